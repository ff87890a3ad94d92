//! Bad input: one clear sentence, the right exit code, no partial files.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{command, copy_folder, host, ran, root, tiny_run};

/// Runs `host train` with the tiny run's settings and `extra`, and returns its error. Asserts exit 1, one sentence, and
/// no run's folder.
fn refused(folder: &Path, extra: &[&str]) -> String {
    let mut arguments = vec!["train"];
    arguments.extend(tiny_run());
    arguments.extend(extra);
    let ran = host(folder, &arguments);
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.is_empty(), "{}", ran.stdout);
    assert!(!folder.join("runs").exists(), "something was written");
    let errors: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{}", ran.stderr);
    errors[0].replace(&folder.display().to_string(), "[DIR]").replace(&root().display().to_string(), "[HOME]")
}

#[test]
fn a_missing_model() {
    let folder = tempfile::tempdir().expect("a folder");
    insta::assert_snapshot!(refused(folder.path(), &["--model=no-such-model"]));
}

#[test]
fn a_model_with_a_tensor_of_another_shape() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    copy_folder(&root().join("models/weights/tiny-art/diffusion"), &model);
    let config = model.join("unet/config.json");
    let text = fs::read_to_string(&config).expect("readable");
    let changed = text.replacen("\"cross_attention_dim\": 128", "\"cross_attention_dim\": 64", 1);
    assert_ne!(text, changed);
    fs::write(&config, changed).expect("writable");
    insta::assert_snapshot!(refused(folder.path(), &["--model=model"]));
}

#[test]
fn a_model_whose_weights_are_cut_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    copy_folder(&root().join("models/weights/tiny-art/diffusion"), &model);
    let weights = model.join("vae/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&weights).expect("readable");
    fs::write(&weights, &bytes[..bytes.len() / 2]).expect("writable");
    insta::assert_snapshot!(refused(folder.path(), &["--model=model"]));
}

#[test]
fn a_broken_plugin() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = fs::read(root().join("plugins/kmeans_image.wasm")).expect("the shipped plugin");
    fs::write(folder.path().join("cut.wasm"), &bytes[..1000]).expect("writable");
    fs::write(folder.path().join("text.wasm"), "not a component").expect("writable");
    insta::assert_snapshot!("a_plugin_cut_off", refused(folder.path(), &["--plugin=cut.wasm"]));
    insta::assert_snapshot!("a_plugin_that_is_not_one", refused(folder.path(), &["--plugin=text.wasm"]));
    insta::assert_snapshot!("a_missing_plugin", refused(folder.path(), &["--plugin=no-such-plugin"]));
}

#[test]
fn a_wrong_key() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("run.toml"), "[train]\nlerning_rate = 1e-3\n").expect("writable");
    insta::assert_snapshot!(refused(folder.path(), &["--config=run.toml"]));
    assert!(refused(folder.path(), &["--set=sample.steps=0"]).contains("sample.steps is 0"));
}

#[test]
fn a_folder_that_cannot_be_written() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("file"), "").expect("writable");
    insta::assert_snapshot!(refused(folder.path(), &["--out=file/run"]));
}

#[test]
fn a_folder_that_is_not_empty() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("full")).expect("a folder");
    fs::write(folder.path().join("full/note"), "").expect("writable");
    insta::assert_snapshot!(refused(folder.path(), &["--out=full"]));
}

#[test]
fn a_wrong_flag_is_a_usage_error() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(host(folder.path(), &["train", "--no-such-flag"]).code, 2);
    assert_eq!(host(folder.path(), &["no-such-command"]).code, 2);
}

/// libtorch throws, tch panics: what is left of it is a sentence.
#[test]
#[cfg(target_os = "linux")]
fn memory_that_runs_out() {
    let folder = tempfile::tempdir().expect("a folder");
    // The program has 2 GB; the latents of such an image are 256 MiB, and the UNet's first feature map 2 GiB.
    let large = ["sample", "--model=tiny-art", "--prompt=x", "--width=16384", "--height=16384", "--out=images"];
    let inner = command(folder.path(), &large);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v 2000000 && exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
    limited.current_dir(folder.path()).env("AMBIGUITY_HOME", root());
    let ran = ran(&limited.output().expect("a shell starts"));
    let last = ran.stderr.lines().last().unwrap_or_default();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(last.starts_with("error: out of memory: ") && last.contains("--micro-batch"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("panicked") && !ran.stderr.contains("frame #"), "{}", ran.stderr);
}
