//! What a registry sends, and what a team's files say: manifests, references, signatures, keys.

use std::path::Path;

use ambiguity_host::plugin::store::reference::Reference;
use ambiguity_host::plugin::store::registry::Manifest;
use ambiguity_host::plugin::store::signature::{Key, signer_id};
use anyhow::Result;

/// Returns documents of a registry, references, a signature and a key, as the target tells them apart by their form.
pub fn documents(_: &Path) -> Result<Vec<Vec<u8>>> {
    let digest = format!("sha256:{}", "0f".repeat(32));
    let file = |media_type: &str| format!("{{\"mediaType\":\"{media_type}\",\"digest\":\"{digest}\",\"size\":2}}");
    let manifest = |more: &str, config: &str, layers: &[&str]| {
        let layers: Vec<String> = layers.iter().map(|layer| file(layer)).collect();
        let (config, layers) = (file(config), layers.join(","));
        format!(
            "{{\"schemaVersion\":2,{more}\"config\":{config},\"layers\":[{layers}],\"annotations\":{{\"a\":\"b\"}}}}"
        )
    };
    let onnx = "application/vnd.ambiguity.onnx";
    let artifact = format!("\"artifactType\":\"{onnx}.v1\",\"subject\":{},", file("x"));
    Ok([
        manifest("", "application/vnd.wasm.config.v0+json", &["application/wasm"]),
        manifest(
            &artifact,
            "application/vnd.oci.empty.v1+json",
            &[&format!("{onnx}.model.v1"), &format!("{onnx}.metadata.v1+toml")],
        ),
        format!("{{\"schemaVersion\":2,\"manifests\":[{}]}}", file("application/vnd.oci.image.manifest.v1+json")),
        format!("oci://registry.example.com:5000/team/sea:1.2.0@{digest}"),
        "oci://[::1]:5000/a/b_c-d.e:>=1.2, <2".to_owned(),
        "untrusted comment: signature from key 5851CD6F90FE82F5\n\
         RUT1gv6Qb81RWBbbvPN0yRDvAhAzGNTUwkN8pVSR+t1XOxVAlJBsQaqxSAbVHQ4YQRiVGoU9RXjVZk0BH2jS4kRbQxe5YlXGjQ8=\n\
         trusted comment: timestamp:1764309000\tfile:sea.wasm\tname:sea\tversion:1.2.0\thashed\n\
         J5zRPSmTBtQBAZTT3SBTjwLo6rXBfLbEcl5NhrbzsVvjlyhKfVmCgkSAM3ZjS6OAaUFxKDcdKcJAtjBSR0wpDA==\n"
            .to_owned(),
        "untrusted comment: minisign public key\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n".to_owned(),
        "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".to_owned(),
    ]
    .map(String::into_bytes)
    .into())
}

pub fn document(_: &Path, bytes: &[u8]) -> bool {
    let manifest = Manifest::read(bytes);
    let contents = manifest.as_ref().is_ok_and(|manifest| match manifest.contents() {
        Ok(contents) => {
            for (_, file) in contents.files() {
                let digest = file.sha256().expect("contents have digests");
                assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()));
            }
            true
        }
        Err(_) => false,
    });
    let Ok(text) = std::str::from_utf8(bytes) else { return contents };
    let reference = text.parse::<Reference>();
    if let Ok(reference) = &reference {
        // Nothing of a reference leads out of a folder, and what is printed means the same.
        assert_eq!(reference.to_string().parse().as_ref(), Ok(reference));
        let place = &reference.repository;
        assert!(place.path.split('/').all(|part| !part.is_empty() && part != ".."), "{place}");
        assert!(!place.registry.contains('/') && !place.host().is_empty(), "{place}");
    }
    contents || reference.is_ok() || signer_id(text).is_ok() || Key::read(text).is_ok()
}
