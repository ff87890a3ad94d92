//! Everything that reads a plugin before it runs, and the check of its output.

use std::collections::BTreeMap;
use std::path::Path;

use ambiguity_host::plugin::fit::KMEANS_TEMPLATE;
use ambiguity_host::plugin::onnx::graph::Graph;
use ambiguity_host::plugin::onnx::settings::Settings;
use ambiguity_host::plugin::onnx::spec::{Input, resolve};
use ambiguity_host::plugin::{Artifact, Distributions, describe_onnx};
use ambiguity_sdk::{EncoderPin, Manifest, Medium};
use anyhow::Result;

use crate::{files, put};

/// Returns the templates and guests that ship, and small components, which are executed more often in the same time.
pub fn components(root: &Path) -> Result<Vec<Vec<u8>>> {
    let mut seeds = vec![];
    let small = wat::parse_str(
        "(component (import \"ambiguity:plugin/log@0.2.0\" (instance)) (instance $i) \
         (export \"ambiguity:plugin/description@0.2.0\" (instance $i)) \
         (export \"ambiguity:plugin/classifier@0.2.0\" (instance $i)) \
         (export \"ambiguity:plugin/gradient@0.2.0\" (instance $i)))",
    )?;
    let tensor =
        [&40u64.to_le_bytes()[..], b"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", &[0; 4]];
    for assets in [
        vec![],
        vec![("centers", tensor.concat()), (Manifest::ASSET, Manifest::default().to_json())],
        vec![("notes.txt", b"by hand".to_vec())],
    ] {
        seeds.push(Artifact::bake(&small, &assets)?);
    }
    seeds.push(wat::parse_str("(module (func (export \"classify\")))")?);
    seeds.push(KMEANS_TEMPLATE.to_vec());
    seeds.extend(files(&root.join("tests/guests"), "wasm")?);
    Ok(seeds)
}

pub fn component(_: &Path, bytes: &[u8]) -> bool {
    let Ok(artifact) = Artifact::parse("x.wasm".as_ref(), bytes.to_vec()) else { return false };
    for (name, size) in artifact.assets() {
        assert_eq!(artifact.asset(name).map(<[u8]>::len), Some(size));
    }
    assert_eq!((artifact.inspect().bytes, artifact.bytes()), (bytes.len(), bytes));
    // A baked asset is found again, and everything else stays.
    if let Ok(baked) = Artifact::bake(bytes, &[("fuzz", b"asset".to_vec())]) {
        let again = Artifact::parse("x.wasm".as_ref(), baked).expect("it was a plugin before it was baked");
        assert_eq!(again.asset("fuzz"), Some(&b"asset"[..]));
        assert_eq!((again.imports, again.exports), (artifact.imports, artifact.exports));
    }
    true
}

pub fn manifests(_: &Path) -> Result<Vec<Vec<u8>>> {
    let full = Manifest {
        name: "kmeans".to_owned(),
        version: "1.0.0".to_owned(),
        title: "Clusters \u{1f3a8}".to_owned(),
        authors: vec!["A. Author".to_owned()],
        license: "Apache-2.0".to_owned(),
        media: vec![Medium::Image],
        styles: ["a", "b", "c"].map(str::to_owned).to_vec(),
        encoder: Some(EncoderPin { name: "tiny-art".to_owned(), digest: "0f".repeat(32) }),
        temperature: Some(0.5),
        k: Some(3),
        ..Manifest::default()
    };
    Ok(vec![full.to_json(), Manifest::default().to_json(), b"{}".to_vec()])
}

pub fn manifest(_: &Path, bytes: &[u8]) -> bool {
    match Manifest::parse(bytes) {
        // A number of JSON that is too large for an f32; the host refuses it.
        Ok(manifest) if manifest.temperature.is_some_and(f32::is_infinite) => false,
        Ok(manifest) => {
            // NaN cannot come out of JSON, so what was read can be compared with what is written and read again.
            let again = Manifest::parse(&manifest.to_json()).expect("its own JSON");
            assert_eq!(again, manifest);
            assert_eq!(manifest.description().media, manifest.media);
            true
        }
        Err(_) => false,
    }
}

pub fn models(root: &Path) -> Result<Vec<Vec<u8>>> {
    let folder = root.join("tests/reference/onnx");
    let mut seeds = files(&folder, "onnx")?;
    seeds.extend(files(&folder, "toml")?);
    Ok(seeds)
}

pub fn onnx(folder: &Path, bytes: &[u8]) -> bool {
    let beside = std::str::from_utf8(bytes).ok().and_then(|text| Settings::from_toml(text).ok());
    let Ok(graph) = Graph::parse(bytes.to_vec()) else { return beside.is_some() };
    let Ok(said) = Settings::from_metadata(&graph.metadata) else { return false };
    let Ok(spec) = resolve(&graph, beside.unwrap_or_default().or(said), "x") else { return false };
    let numbers = match &spec.input {
        Input::Pixels(pixels) => pixels.shape(spec.batch).iter().product(),
        Input::Embedding { dim, .. } => spec.batch * dim.unwrap_or(1),
    };
    assert!((1..=1 << 28).contains(&numbers), "{numbers} numbers in one call");
    // What describes a model is written into its file, which then describes itself.
    let described = |bytes: &[u8]| {
        put(folder, "x.onnx", bytes);
        describe_onnx(&folder.join("x.onnx"), BTreeMap::new())
    };
    if let Ok((file, description)) = described(bytes) {
        assert_eq!(described(&file).expect("it was described").1, description);
    }
    true
}

/// One byte each for the rows and columns given and wanted, then the numbers.
pub fn outputs(_: &Path) -> Result<Vec<Vec<u8>>> {
    let case = |shape: [u8; 4], data: &[f32]| {
        shape.into_iter().chain(data.iter().flat_map(|x| x.to_le_bytes())).collect::<Vec<u8>>()
    };
    Ok(vec![
        case([1, 2, 1, 2], &[0.5f32.ln(), 0.5f32.ln()]),
        case([2, 3, 2, 3], &[0.2f32.ln(), 0.3f32.ln(), 0.5f32.ln(), 0.0, -90.0, -3e38]),
        case([1, 3, 1, 2], &[0.2, 0.3, 0.5]),
        case([1, 2, 1, 2], &[f32::NAN, 0.5]),
        case([1, 2, 1, 2], &[f32::NEG_INFINITY, 0.0]),
        case([1, 2, 1, 2], &[0.5f32.ln(), 0.5004f32.ln()]),
    ])
}

pub fn output(_: &Path, bytes: &[u8]) -> bool {
    let Some((&[rows, cols, n_samples, n_styles], data)) = bytes.split_first_chunk() else { return false };
    let data: Vec<f32> = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let wanted = (usize::from(n_samples), usize::from(n_styles));
    match Distributions::check((rows.into(), cols.into(), &data[..]), wanted) {
        Ok(checked) => {
            assert_eq!((checked.rows.len(), checked.styles), wanted);
            for row in &checked.rows {
                assert_eq!(row.len(), wanted.1);
                assert!(row.iter().all(|log_p| log_p.is_finite() && *log_p < 1e-12), "{row:?}");
                assert!((row.iter().map(|log_p| log_p.exp()).sum::<f64>() - 1.0).abs() < 1e-12, "{row:?}");
            }
            true
        }
        Err((sample, _)) => {
            assert!(sample.is_none_or(|sample| sample < wanted.0));
            false
        }
    }
}
