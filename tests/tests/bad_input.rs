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
    let size = ["--width=16384", "--height=16384", "--out=images"];
    for what in [&["sample", "--model=tiny-art", "--prompt=x"][..], &["eval", "--model=tiny-art", "--count=2"]] {
        let inner = command(folder.path(), &[what, &size].concat());
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -v 2000000 && exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
        limited.current_dir(folder.path()).env("AMBIGUITY_HOME", root());
        let ran = ran(&limited.output().expect("a shell starts"));
        let last = ran.stderr.lines().last().unwrap_or_default();
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(last.starts_with("error: out of memory: ") && last.contains("--micro-batch"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("panicked") && !ran.stderr.contains("frame #"), "{}", ran.stderr);
    }
}

/// A file's name may contain whatever a terminal executes, line feeds, marks of direction, and what is no UTF-8. Each is shown
/// as what it is, by every command that prints names, also in JSON.
#[cfg(target_os = "linux")]
#[test]
fn hostile_file_names_are_shown_as_they_are() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let folder = tempfile::tempdir().expect("a folder");
    // A plugin and a model are named by text; other files may have any bytes.
    let text = |extension: &str| folder.path().join(format!("a\n\u{1b}[2J\u{202e}{extension}"));
    let bytes =
        |extension: &str| OsStr::from_bytes(&[b"a\n\x1b[2J\xe2\x80\xae\xff", extension.as_bytes()].concat()).to_owned();
    let path = |extension: &str| folder.path().join(bytes(extension));
    fs::create_dir(path(".folder")).expect("made");
    let (plugin, made, image) = (text(".wasm"), text(".out"), path(".folder").join(bytes(".png")));
    let content = image::RgbImage::from_pixel(8, 8, image::Rgb([9, 90, 200]));
    content.save_with_format(&image, image::ImageFormat::Png).expect("saved");
    fs::copy(root().join("plugins/palette.wasm"), &plugin).expect("copied");
    let shown = "a\\n\\u{1b}[2J\\u{202e}";
    let ran_with = |arguments: &[&dyn AsRef<OsStr>]| {
        let mut command = command(folder.path(), &[]);
        command.args(arguments.iter().map(|argument| argument.as_ref()));
        let ran = ran(&command.output().expect("it starts"));
        let all = format!("{}{}", ran.stdout, ran.stderr);
        let raw = all.chars().find(|&c| c != '\n' && ambiguity_host::text::is_control(c));
        assert_eq!(raw, None, "{all}");
        assert!(!all.lines().any(|line| line.starts_with("\\u{1b}[2J") || line.starts_with("[2J")), "{all}");
        ran
    };
    let inspected = ran_with(&[&"plugin", &"inspect", &plugin]);
    assert!(inspected.code == 0 && inspected.stdout.contains(shown), "{}{}", inspected.stdout, inspected.stderr);
    let classified = ran_with(&[&"plugin", &"classify", &"palette", &image]);
    assert!(classified.code == 0 && classified.stdout.contains(shown), "{}{}", classified.stdout, classified.stderr);
    assert!(classified.stdout.lines().next().is_some_and(|line| line.ends_with(".png")), "{}", classified.stdout);
    let missing = ran_with(&[&"plugin", &"classify", &"palette", &path(".gif")]);
    assert!(missing.code == 1 && missing.stderr.lines().count() == 1 && missing.stderr.contains(shown));
    let listed = ran_with(&[&"plugin", &"list"]);
    assert!(listed.code == 0 && listed.stdout.contains(shown), "{}", listed.stdout);
    // A reader of JSON gets the name itself.
    for (arguments, pointer) in [
        (vec![&"plugin" as &dyn AsRef<OsStr>, &"classify", &"palette", &image, &"--json"], "/samples/0/file"),
        (vec![&"plugin", &"inspect", &plugin, &"--json"], "/path"),
        (vec![&"plugin", &"list", &"--json"], "/plugins/0/path"),
    ] {
        let ran = ran_with(&arguments);
        let document: serde_json::Value = serde_json::from_str(&ran.stdout).expect(pointer);
        let found = document.pointer(pointer).and_then(|value| value.as_str()).expect(pointer);
        assert!(found.contains("a\n\u{1b}[2J\u{202e}"), "{pointer}: {found}");
    }
    // So is an argument that is none.
    let unknown = ran_with(&[&"plugin", &"list", &"--\u{1b}[2J\u{202e}"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("'--\\u{202e}'"), "{}", unknown.stderr);
    let painted = ran_with(&[&"art", &"--out", &made, &"--per-class", &"1", &"--size", &"16"]);
    assert!(painted.code == 0 && painted.stderr.contains(shown), "{}", painted.stderr);
    let embedded =
        ran_with(&[&"embed", &"images", &"--encoder", &"tiny-art", &path(".folder"), &"--out", &path(".safetensors")]);
    assert!(embedded.code == 0 && embedded.stdout.contains(shown), "{}{}", embedded.stdout, embedded.stderr);
    for arguments in [
        vec![&"models" as &dyn AsRef<OsStr>, &"count", &made],
        vec![&"sample", &"--model", &"tiny-art", &"--lora", &made, &"--prompt", &"a", &"--out", &path(".new")],
        vec![&"can", &"sample", &"--generator", &made, &"--out", &path(".new")],
        vec![&"lora", &"info", &path(".folder")],
        vec![&"report", &made],
    ] {
        let refused = ran_with(&arguments);
        assert!(refused.code != 0 && refused.stderr.contains(shown), "{}{}", refused.stdout, refused.stderr);
    }
}
