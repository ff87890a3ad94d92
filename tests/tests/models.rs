//! `host models`, `host lora` and `host embed`.

use std::collections::BTreeMap;
use std::path::Path;

use ambiguity_models::lora::{Lora, LoraSpec, Targets};
use ambiguity_models::params::MemoryFormat;
use ambiguity_models::safetensors::read_safetensors;
use ambiguity_models::unet::UNet;
use serde_json::json;
use tch::Kind;
use test_support::device;
use test_support::server::{self, Server};

use crate::support::{host, host_ok, root};

#[test]
fn published_models_are_counted_exactly() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = host_ok(folder.path(), &["models", "count", "stabilityai/stable-diffusion-2-base", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).expect("one JSON document");
    let expected = json!({ "components": [
        { "name": "text_encoder", "parameters": 340_387_840, "trainable": 0 },
        { "name": "vae", "parameters": 83_653_863, "trainable": 0 },
        { "name": "unet", "parameters": 866_740_676, "trainable": 829_952 },
    ] });
    assert_eq!(document, expected);
    // Every tensor of the shipped UNet's file, and no other.
    let ran = host_ok(folder.path(), &["models", "count", "tiny-art", "--json", "--tensors"]);
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).expect("one JSON document");
    let weights = root().join("models/weights/tiny-art/diffusion/unet/diffusion_pytorch_model.safetensors");
    let shapes: BTreeMap<String, Vec<i64>> =
        read_safetensors(&weights).expect("readable").into_iter().map(|(name, tensor)| (name, tensor.size())).collect();
    assert_eq!(document["components"][2]["tensors"], json!(shapes));
    insta::assert_snapshot!("count_tiny_art", host_ok(folder.path(), &["models", "count", "tiny-art"]).stdout);
    let ran = host(folder.path(), &["models", "count", "stable-diffusion-9"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("there is no model stable-diffusion-9"), "{}", ran.stderr);
}

#[test]
fn a_merged_model_generates_the_same_images_as_the_lora() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = root().join("models/weights/tiny-art/diffusion");
    let mut unet =
        UNet::load(&model.join("unet"), device(), Kind::Float, MemoryFormat::Contiguous).expect("the shipped model");
    let spec = LoraSpec { rank: 2, alpha: 3.0, targets: Targets::AllLinear };
    let lora = Lora::attach(&mut unet, &spec, 1).expect("it fits");
    let random = |tensor: &tch::Tensor| tensor.randn_like() * 0.02;
    let values = lora.parameters().into_iter().map(|(name, tensor)| (name, random(&tensor))).collect();
    lora.load_values(&values).expect("the same shapes");
    lora.save(&folder.path().join("lora.safetensors")).expect("written");

    let info = host_ok(folder.path(), &["lora", "info", "lora.safetensors"]).stdout;
    assert!(info.contains("rank 2, alpha 3 on") && info.contains("to_out.0 ("), "{info}");

    host_ok(folder.path(), &["lora", "merge", "--model=tiny-art", "--lora=lora.safetensors", "--out=merged"]);
    let sample = |model: &str, out: &str, extra: &[&str]| {
        let mut arguments = vec!["sample", "--prompt=drawing of shapes", "--steps=2", "--tensors", "--model", model];
        arguments.extend(["--out", out]);
        arguments.extend(extra);
        host_ok(folder.path(), &arguments);
        read_safetensors(&folder.path().join(out).join("sample.safetensors")).expect("readable").remove("images")
    };
    let plain = sample("tiny-art", "plain", &[]).expect("images");
    let adapted = sample("tiny-art", "adapted", &["--lora=lora.safetensors"]).expect("images");
    let merged = sample("merged", "as-merged", &[]).expect("images");
    let distance = |a: &tch::Tensor, b: &tch::Tensor| (a - b).abs().max().double_value(&[]);
    // The shipped weights are f16, so merging rounds to 11 bits.
    assert!(distance(&adapted, &merged) < 0.02 * distance(&adapted, &plain), "{}", distance(&adapted, &merged));

    host_ok(folder.path(), &["lora", "unmerge", "--model=merged", "--lora=lora.safetensors", "--out=back"]);
    let file = "unet/diffusion_pytorch_model.safetensors";
    let back = read_safetensors(&folder.path().join("back").join(file)).expect("readable");
    let original = read_safetensors(&model.join(file)).expect("readable");
    assert_eq!(back.keys().collect::<Vec<_>>(), original.keys().collect::<Vec<_>>());
    for (name, tensor) in &original {
        let relative = f64::try_from((&back[name] - tensor).to_kind(Kind::Float).norm()).expect("a number")
            / f64::try_from(tensor.to_kind(Kind::Float).norm()).expect("a number").max(1e-12);
        assert!(back[name].kind() == tensor.kind() && relative < 1e-3, "{name}: {relative}");
    }
}

#[test]
fn texts_and_images_are_embedded_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("lines.txt"), "painting of a man\n\ndrawing of shapes\n").expect("writable");
    host_ok(folder.path(), &["embed", "texts", "--encoder=tiny-art", "--file=lines.txt", "--out=file", "--normalize"]);
    let texts = ["painting of a man", "drawing of shapes"];
    host_ok(folder.path(), &["embed", "texts", "--encoder=tiny-art", texts[0], texts[1], "--out=given"]);
    let read = |name: &str| read_safetensors(&folder.path().join(name)).expect("readable").remove("embeddings");
    let (normalized, raw) = (read("file").expect("a tensor"), read("given").expect("a tensor"));
    assert_eq!(raw.size()[0], 2);
    let scaled = &raw / raw.square().sum_dim_intlist([1i64].as_slice(), true, Kind::Float).sqrt();
    assert!((scaled - normalized).abs().max().double_value(&[]) < 1e-6);

    host_ok(folder.path(), &["art", "--out=art", "--per-class=1", "--size=64"]);
    host_ok(folder.path(), &["embed", "images", "--encoder=tiny-art", "art", "--out=images"]);
    assert_eq!(read("images").expect("a tensor").size()[0], 27);
    let ran = host(folder.path(), &["embed", "texts", "--encoder=nothing", "a", "--out=none"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("encoder nothing: nothing is neither a folder nor an id on the Hub")
            && !folder.path().join("none").exists(),
        "{}",
        ran.stderr
    );
}

/// The files of a folder and of its subfolders by their names, each with an ETag.
fn files_of(root: &Path) -> BTreeMap<String, (String, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for folder in ["", "scheduler/", "text_encoder/", "tokenizer/", "unet/", "vae/"] {
        for file in std::fs::read_dir(root.join(folder)).expect("a folder").flatten() {
            if let Ok(data) = std::fs::read(file.path()) {
                let name = format!("{folder}{}", file.file_name().display());
                files.insert(name.clone(), (name.replace('/', "-"), data));
            }
        }
    }
    files
}

#[test]
fn a_model_by_its_id_is_downloaded_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files_of(&root().join("models/weights/tiny-art/diffusion"));
    let hub = Server::start(move |request, stream| server::hub(request, stream, &files));
    let requested = || hub.requests().into_iter().map(|request| request.path).collect::<Vec<_>>();
    let sample = |out: &str, extra: &[&str]| {
        let mut arguments = vec!["sample", "--model=someone/small", "--prompt=nature", "--steps=1", "--out", out];
        arguments.extend(extra);
        let mut command = crate::support::command(folder.path(), &arguments);
        command.env("HF_HOME", folder.path().join("hf")).env("HF_ENDPOINT", &hub.address).env_remove("HF_HUB_CACHE");
        command.env_remove("HF_HUB_OFFLINE").env_remove("HF_TOKEN").output().expect("the binary starts")
    };
    let ran = sample("held-back", &["--offline"]);
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.code() == Some(1) && stderr.contains("the network is disabled"), "{stderr}");
    assert!(requested().is_empty());

    let ran = sample("first", &[]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let first = requested();
    assert!(first.len() > 8 && !first.iter().any(|path| path.contains("README")));
    let ran = sample("second", &[]);
    assert!(ran.status.success() && requested() == first, "the cache is not used");
    let read = |out: &str| std::fs::read(folder.path().join(out).join("0000.png")).expect("an image");
    assert_eq!(read("first"), read("second"));
}
