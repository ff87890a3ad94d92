//! ONNX plugins: their outputs compared with onnxruntime in Python, `inspect`, `classify` and `train` with them, and
//! every file that is refused. `tests/reference/make_onnx.py` writes the files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_host::encoders::Encoders;
use ambiguity_host::plugin::{Batch, Limits, Sample};
use ambiguity_models::can::{Discriminator, DiscriminatorConfig, Generator, GeneratorConfig};
use ambiguity_models::onnx::{self, Metadata};
use ambiguity_models::params::Params;
use image::RgbImage;
use serde_json::Value;
use tch::Kind;
use test_support::{Reference, device};

use super::{load, means, two_images};
use crate::support::{command, host, host_ok, root, tiny_run};

fn file(name: &str) -> PathBuf {
    root().join("tests/reference/onnx").join(name)
}

fn reference() -> Reference {
    Reference::read("onnx.safetensors")
}

/// The six images of the reference, 24 x 20.
fn images() -> Batch {
    let bytes = Vec::<u8>::try_from(reference().tensor("images").flatten(0, -1)).expect("bytes");
    let images = bytes.chunks_exact(24 * 20 * 3).map(|rgb| RgbImage::from_raw(24, 20, rgb.to_vec()).expect("its size"));
    Batch::new(images.map(|image| Sample { image: Some(Arc::new(image)), ..Sample::default() }).collect())
}

/// Within 1e-6 of the outputs of onnxruntime and numpy for the same images, resized by Pillow.
#[test]
fn distributions_are_those_of_onnxruntime_in_python() {
    let reference = reference();
    for name in ["pixels", "bytes", "gray", "fixed_1", "fixed_4", "embedding", "bare", "function"] {
        let mut plugin = load(Limits::default(), &file(&format!("{name}.onnx")), &[]).expect(name);
        let classified = plugin.classify(&mut images(), &mut means()).expect(name);
        let wanted = Vec::<f64>::try_from(reference.tensor(name).flatten(0, -1)).expect("f64");
        let found: Vec<f64> = classified.probabilities().concat();
        assert_eq!(found.len(), wanted.len(), "{name}");
        let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-6, "{name} is off by {worst}");
        let again = plugin.classify(&mut images(), &mut means()).expect(name);
        assert_eq!(again, classified, "{name} returns something else the second time");
        assert!(plugin.classify(&mut Batch::new(vec![]), &mut means()).expect("nothing to do").rows.is_empty());
    }
}

/// The logarithms of probabilities far below the smallest f32, within 1e-6 relative.
#[test]
fn logits_have_logarithms_however_small_the_probability() {
    let mut plugin = load(Limits::default(), &file("sharp.onnx"), &[]).expect("it loads");
    let found = plugin.classify(&mut images(), &mut means()).expect("six images").rows.concat();
    let wanted = Vec::<f64>::try_from(reference().tensor("sharp_log").flatten(0, -1)).expect("f64");
    assert!(wanted.iter().any(|log_p| *log_p < -100.0), "{wanted:?}");
    for (found, wanted) in found.iter().zip(&wanted) {
        assert!((found - wanted).abs() <= 1e-6 * wanted.abs().max(1e-3), "{found} is not {wanted}");
    }
}

#[test]
fn files_that_are_refused() {
    let hasty = Limits { timeout_ms: 200, ..Limits::default() };
    let small = Limits { onnx_mib: 0, ..Limits::default() };
    let message = |name: &str, limits: Limits, config: &[(&str, &str)], encoders: &mut Encoders| {
        let result = load(limits, &file(&format!("{name}.onnx")), config)
            .and_then(|mut plugin| plugin.classify(&mut two_images(), encoders));
        // A broken plugin must not affect the next one.
        let mut good = load(Limits::default(), &file("pixels.onnx"), &[]).expect("a good plugin");
        good.classify(&mut two_images(), &mut means()).expect("a good plugin");
        result.expect_err(name).to_string().replace(&root().display().to_string(), "[ROOT]")
    };
    let mut table = vec![];
    for name in [
        "external",
        "external_in_branch",
        "custom",
        "random",
        "unknown",
        "truncated",
        "no_styles",
        "misspelled",
        "width",
        "twins",
        "nan",
        "sum",
        "shape",
    ] {
        table.push(message(name, Limits::default(), &[], &mut means()));
    }
    table.push(message("loop", hasty, &[], &mut means()));
    table.push(message("pixels", small, &[], &mut means()));
    table.push(message("pixels", Limits::default(), &[("color", "red")], &mut means()));
    table.push(message("embedding", Limits::default(), &[], &mut Encoders::new()));
    insta::assert_snapshot!(table.join("\n"));
}

#[test]
fn a_batch_without_images_names_the_sample() {
    let mut plugin = load(Limits::default(), &file("pixels.onnx"), &[]).expect("a good plugin");
    let text = Sample { text: Some("no image".to_owned()), ..Sample::default() };
    let error = plugin.classify(&mut Batch::new(vec![text]), &mut means()).expect_err("a text").to_string();
    assert_eq!(error, "plugin `pixels` at sample 0: the sample is not an image");
}

#[test]
fn inspect_and_classify_work_for_all_kinds() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["pixels.onnx", "bare.onnx", "bare.toml", "fixed_4.onnx"] {
        fs::copy(file(name), folder.path().join(name)).expect("copied");
    }
    RgbImage::from_fn(24, 20, |x, y| image::Rgb([x as u8 * 10, y as u8 * 12, 90]))
        .save(folder.path().join("a.png"))
        .expect("saved");
    let classified = host_ok(folder.path(), &["plugin", "classify", "pixels", "a.png"]);
    let shown = [
        host_ok(folder.path(), &["plugin", "inspect", "pixels"]).stdout,
        host_ok(folder.path(), &["plugin", "inspect", "./bare.onnx"]).stdout,
        host_ok(folder.path(), &["plugin", "inspect", "./fixed_4.onnx"]).stdout,
        classified.stdout,
    ];
    let notice = "plugin `pixels` takes images of 16 x 12; those of 24 x 20 are resized with antialiasing";
    assert_eq!(classified.stderr.matches(notice).count(), 1, "{}", classified.stderr);
    insta::assert_snapshot!(shown.concat());
    let document = |arguments: &[&str]| -> Value {
        serde_json::from_str(&host_ok(folder.path(), arguments).stdout).expect("one JSON document")
    };
    let inspected = document(&["plugin", "inspect", "bare", "--json"]);
    assert_eq!((inspected["interface"].as_str(), inspected["version"].as_str()), (Some("onnx"), Some("3")));
    let classified = document(&["plugin", "classify", "pixels", "a.png", "--json"]);
    assert_eq!((classified["fuel"].clone(), classified["plugin"].as_str()), (Value::Null, Some("pixels")));

    // The digest pins the file beside it too.
    fs::write(folder.path().join("bare.toml"), fs::read_to_string(file("bare.toml")).expect("readable") + "# more\n")
        .expect("writable");
    assert_ne!(document(&["plugin", "inspect", "bare", "--json"])["sha256"], inspected["sha256"]);
    fs::write(folder.path().join("bare.toml"), "styels = []\n").expect("writable");
    let ran = host(folder.path(), &["plugin", "inspect", "bare"]);
    assert_eq!(ran.code, 1);
    insta::assert_snapshot!(
        "a_key_misspelled_beside",
        ran.stderr.replace(&folder.path().display().to_string(), "[DIR]")
    );
}

/// A description becomes a part of the model's file, with the same result as beside it.
#[test]
fn a_description_is_written_into_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["bare.onnx", "bare.toml"] {
        fs::copy(file(name), folder.path().join(name)).expect("copied");
    }
    RgbImage::from_fn(24, 20, |x, y| image::Rgb([x as u8 * 10, y as u8 * 12, 90]))
        .save(folder.path().join("a.png"))
        .expect("saved");
    let described = ["plugin", "describe-onnx", "bare.onnx", "-o", "described.onnx", "--set", "version=9"];
    let said = host_ok(folder.path(), &[&described[..], &["--set", "authors=[\"A. Author\"]"]].concat());
    assert!(said.stderr.starts_with("described.onnx: ") && said.stderr.contains(" 9, "), "{}", said.stderr);
    let document = |arguments: &[&str]| -> Value {
        serde_json::from_str(&host_ok(folder.path(), arguments).stdout).expect("one JSON document")
    };
    let before = document(&["plugin", "inspect", "bare", "--json"]);
    let after = document(&["plugin", "inspect", "described", "--json"]);
    assert_eq!((after["version"].as_str(), &after["authors"][0]), (Some("9"), &Value::from("A. Author")));
    assert_eq!((&after["styles"], &after["takes"]), (&before["styles"], &before["takes"]));
    let classified = |name: &str| document(&["plugin", "classify", name, "a.png", "--json"])["samples"].clone();
    assert_eq!(classified("bare"), classified("described"));
    // Once more, into itself: the value that is set last is the one.
    host_ok(
        folder.path(),
        &["plugin", "describe-onnx", "described.onnx", "-o", "described.onnx", "--set", "version=10"],
    );
    assert_eq!(document(&["plugin", "inspect", "described", "--json"])["version"].as_str(), Some("10"));

    fs::remove_file(folder.path().join("bare.toml")).expect("ours");
    let refused = host(folder.path(), &["plugin", "describe-onnx", "bare.onnx", "-o", "new.onnx"]);
    assert!(refused.code == 1 && refused.stderr.contains("`ambiguity.styles`"), "{}", refused.stderr);
    assert!(!folder.path().join("new.onnx").exists());
}

/// The .toml beside an installed model is that of the same file.
#[test]
fn installing_another_model_leaves_no_description_of_the_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let install = |name: &str, more: &[&str]| {
        let file = file(name).display().to_string();
        host(folder.path(), &[&["plugin", "install", file.as_str(), "--name", "mine"], more].concat())
    };
    let installed = |name: &str| folder.path().join("ambiguity/plugins").join(name);
    assert_eq!(install("bare.onnx", &[]).code, 0);
    assert!(installed("mine.toml").is_file());
    assert_eq!(install("pixels.onnx", &[]).code, 1);
    assert!(installed("mine.toml").is_file(), "what is refused changes nothing");
    assert_eq!(install("pixels.onnx", &["--force"]).code, 0);
    assert!(!installed("mine.toml").exists(), "it describes another model");
    // The description is a part of the plugin: another one is another plugin.
    assert_eq!(install("bare.onnx", &["--force"]).code, 0);
    assert_eq!(install("bare.onnx", &[]).code, 0);
    fs::write(installed("mine.toml"), "styles = ['x', 'y']\n").expect("writable");
    assert_eq!(install("bare.onnx", &[]).code, 1);
}

#[test]
fn a_missing_onnx_runtime_is_an_error_only_where_it_is_needed() {
    let folder = tempfile::tempdir().expect("a folder");
    let without = |arguments: &[&str]| {
        command(folder.path(), arguments).env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so").output().expect("starts")
    };
    assert!(without(&["plugin", "inspect", "kmeans_image"]).status.success());
    let output = without(&["plugin", "inspect", file("pixels.onnx").to_str().expect("UTF-8")]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("ONNX Runtime does not load from /nowhere/libonnxruntime.so"), "{stderr}");
    assert!(stderr.contains("run `make setup`"), "{stderr}");
}

#[test]
fn a_run_is_trained_with_an_onnx_plugin_beside_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = format!("--plugin={}=0.5", file("pixels.onnx").display());
    let mut arguments = vec!["train", "--out=run"];
    arguments.extend(tiny_run());
    arguments.extend([plugin.as_str(), "--set=train.epochs=1"]);
    host_ok(folder.path(), &arguments);
    let lock = fs::read_to_string(folder.path().join("run/plugins.lock")).expect("written");
    assert!(lock.contains("name = \"pixels\"") && lock.contains("interface = \"onnx\""), "{lock}");
    let metrics = fs::read_to_string(folder.path().join("run/metrics.jsonl")).expect("written");
    let last: Value = serde_json::from_str(metrics.lines().last().expect("a line")).expect("JSON");
    assert!(last["rewards"]["pixels"].as_f64().is_some_and(|reward| reward < -(3f64.ln())), "{last}");
}

/// The reference's networks, exported as for users. `make parity` checks the files in target/tmp/onnx after this test
/// with ONNX's own checker, and compares the outputs of onnxruntime with PyTorch's.
#[test]
fn a_network_that_was_written_is_a_plugin() {
    let reference = Reference::read("can.safetensors");
    let part = |prefix: &str| {
        let mut tensors = reference.part(prefix);
        tensors.retain(|name, _| !name.starts_with("after.") && !name.starts_with("gradient."));
        Params::from_tensors(tensors, "can.safetensors", device(), Kind::Float)
    };
    let config =
        DiscriminatorConfig { size: 64, channels: 4, max_channels: 8, head: [10, 7], dropout: 0.3, n_styles: 5 };
    let discriminator = Discriminator::new(&part("d."), &config).expect("the reference's");
    let config = GeneratorConfig { size: 64, latent: 6, channels: 32, slope: 0.2 };
    let generator = Generator::new(&part("g."), &config).expect("the reference's");
    let metadata = Metadata {
        name: "discriminator".to_owned(),
        version: "1.0.0".to_owned(),
        title: "Five styles of nothing".to_owned(),
        authors: vec![],
        license: "Apache-2.0".to_owned(),
        styles: ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec(),
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("onnx");
    fs::create_dir_all(&folder).expect("writable");
    let file = folder.join("discriminator.onnx");
    fs::write(&file, onnx::discriminator(&discriminator, &metadata).expect("written")).expect("writable");
    fs::write(folder.join("generator.onnx"), onnx::generator(&generator, "Images").expect("written"))
        .expect("writable");

    let real = reference.tensor("real").to_kind(Kind::Float);
    let bytes = ((real + 1.0) * 127.5).round().to_kind(Kind::Uint8);
    let images: Vec<RgbImage> = (0..4)
        .map(|i| Vec::<u8>::try_from(bytes.get(i).permute([1, 2, 0]).flatten(0, -1)).expect("bytes"))
        .map(|rgb| RgbImage::from_raw(64, 64, rgb).expect("its size"))
        .collect();
    let samples = images.into_iter().map(|image| Sample { image: Some(Arc::new(image)), ..Sample::default() });
    let mut plugin = load(Limits::default(), &file, &[]).expect("a good plugin");
    let classified = plugin.classify(&mut Batch::new(samples.collect()), &mut means()).expect("classified");
    let logits = discriminator.forward(&(bytes.to_kind(Kind::Float) / 127.5 - 1.0)).expect("it runs").styles;
    let wanted = Vec::<f64>::try_from(logits.softmax(-1, Kind::Double).flatten(0, -1)).expect("f64");
    let worst = classified.probabilities().concat().into_iter().zip(&wanted).map(|(a, b)| (a - b).abs());
    let worst = worst.fold(0.0, f64::max);
    assert!(worst <= 1e-5, "off by {worst:.2e}");
}
