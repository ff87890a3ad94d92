//! CLIP softmax over a sharp encoder: rewards compared with transformers, also where a probability is e^-136.

use std::fs;

use ambiguity_models::safetensors::{read_safetensors, write_safetensors};
use serde_json::Value;
use tch::Tensor;
use test_support::Reference;

use crate::support::{host_ok, root};

/// The rewards and log-probabilities of 16 paintings are those of transformers' log-softmax in f64, to 1e-4 relative, at a
/// logit scale of 100 and of 400 (`tests/reference/make_log_softmax.py`).
#[test]
fn rewards_of_a_sharp_clip_are_transformers() {
    let reference = Reference::read("log_softmax.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out=art", "--per-class=1", "--size=64", "--seed=41"]);
    let mut files: Vec<String> = fs::read_dir(folder.path().join("art"))
        .expect("a folder")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.ends_with(".jsonl"))
        .map(|style| format!("art/{style}/0000.png"))
        .collect();
    files.sort();
    files.truncate(16);
    let styles: Vec<String> = reference.metadata["styles"].lines().map(|style| format!("{style:?}")).collect();
    let text = format!("encoder = 'sharp'\ntemplate = 'a {{}} painting'\nstyles = [{}]\n", styles.join(", "));
    fs::write(folder.path().join("sharp.toml"), text).expect("writable");
    host_ok(folder.path(), &["plugin", "build", "sharp.toml"]);
    for scale in [100, 400] {
        let encoder = folder.path().join(format!("clip-{scale}"));
        fs::create_dir(&encoder).expect("a new folder");
        let shipped = root().join("models/weights/tiny-art/clip");
        for entry in fs::read_dir(&shipped).expect("it ships") {
            let entry = entry.expect("readable");
            fs::copy(entry.path(), encoder.join(entry.file_name())).expect("writable");
        }
        let weights = encoder.join("model.safetensors");
        let mut tensors = read_safetensors(&weights).expect("weights");
        tensors.insert("logit_scale".to_owned(), Tensor::from(f64::from(scale).ln() as f32));
        write_safetensors(&weights, &tensors, &[("format", "pt")]).expect("writable");
        let named = format!("--encoder=sharp=clip-{scale}");
        let mut arguments = vec!["plugin", "classify", "./sharp.wasm", "--json", &named];
        arguments.extend(files.iter().map(String::as_str));
        let found: Value = serde_json::from_str(&host_ok(folder.path(), &arguments).stdout).expect("JSON");
        let numbers = |name: &str| -> Vec<f64> {
            let name = format!("{name}_{scale}");
            Vec::<f64>::try_from(reference.tensor(&name).flatten(0, -1)).expect("numbers")
        };
        let (rewards, log_p) = (numbers("reward"), numbers("log_p"));
        assert!(log_p.iter().copied().fold(0.0, f64::min) < -92.2, "some probability is below 1e-40");
        let samples = found["samples"].as_array().expect("samples");
        assert_eq!(samples.len(), 16);
        for (i, sample) in samples.iter().enumerate() {
            let reward = sample["reward"].as_f64().expect("a number");
            assert!((reward / rewards[i] - 1.0).abs() < 1e-4, "scale {scale}, {i}: {reward} is not {}", rewards[i]);
            let row = sample["log_distribution"].as_array().expect("a row").iter();
            for (found, wanted) in row.map(|x| x.as_f64().expect("a number")).zip(&log_p[27 * i..]) {
                // Logits themselves are rounded to f32: 1e-6 of the scale.
                assert!((found - wanted).abs() <= 1e-4 * wanted.abs() + 1e-5 * f64::from(scale), "{found}, {wanted}");
            }
        }
    }
}
