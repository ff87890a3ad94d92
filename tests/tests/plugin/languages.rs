//! The plugins in other languages than Rust. Each test needs its language's tools and is skipped without them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use image::{Rgb, RgbImage};
use serde_json::Value;

use super::root;
use crate::support::{host, host_ok};

/// Held while an interpreter is built and compiled: about 20 seconds on one core, of the 120 that the host allows. On a
/// busy machine two at once may take longer than that.
static INTERPRETER: Mutex<()> = Mutex::new(());

/// Returns the probabilities that logits stand for.
fn softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / sum).collect()
}

/// Checks the distributions of images by a plugin in `folder`; returns what the log says.
fn classify(folder: &Path, plugin: &str, styles: [&str; 3], expected: &[(&str, Vec<f64>)]) -> String {
    let files: Vec<&str> = expected.iter().map(|(file, _)| *file).collect();
    let arguments = [&["plugin", "classify", plugin, "--json"][..], &files].concat();
    let ran = host_ok(folder, &arguments);
    let document: Value = serde_json::from_str(&ran.stdout).expect("one JSON document");
    assert_eq!(document["styles"], serde_json::json!(styles));
    for (i, (file, distribution)) in expected.iter().enumerate() {
        for (j, wanted) in distribution.iter().enumerate() {
            let p = document["samples"][i]["distribution"][j].as_f64().expect("a number");
            assert!((p - wanted).abs() < 1e-5, "{file}: {}: {p} {wanted}", styles[j]);
        }
    }
    ran.stderr
}

/// Returns a file's text with another line put before the one that begins with `before`, at the same indentation.
fn with_lines(file: &str, before: &str, lines: &[&str]) -> String {
    let text = fs::read_to_string(root().join(file)).expect("readable");
    let at = text.find(before).unwrap_or_else(|| panic!("{file} has no `{before}`"));
    let indentation = &text[text[..at].rfind('\n').map_or(0, |end| end + 1)..at];
    let lines: String = lines.iter().map(|line| format!("{line}\n{indentation}")).collect();
    format!("{}{lines}{}", &text[..at], &text[at..])
}

/// Runs a tool and asserts that it succeeds.
fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Writes images: of one color, of one pixel, in stripes one pixel wide, dark on the left and light on the right.
fn write_images(folder: &Path) {
    let save = |name: &str, image: RgbImage| image.save(folder.join(name)).expect("writable");
    let gray = |lightness| Rgb([lightness; 3]);
    save("dark.png", RgbImage::from_pixel(600, 400, gray(40)));
    save("light.png", RgbImage::from_pixel(3, 5, gray(220)));
    save("pixel.png", RgbImage::from_pixel(1, 1, gray(128)));
    save("stripes.png", RgbImage::from_fn(32, 32, |x, _| gray(255 * (x % 2) as u8)));
    save("halves.png", RgbImage::from_fn(32, 32, |x, _| gray(if x < 16 { 100 } else { 115 })));
}

/// Needs clang with its WebAssembly back end.
#[test]
fn the_plugin_in_c_builds_and_runs() {
    let clang = Command::new("clang").arg("--print-targets").output();
    if !clang.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("wasm32")) {
        eprintln!("skipped: the plugin in C, since there is no clang for wasm32");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    write_images(folder.path());
    let plugin = folder.path().join("lightness.wasm");
    run(Command::new(root().join("examples/plugin-c/build.sh")).current_dir(root()).arg(&plugin));
    let of = |lightness: f64| softmax(&[0.15, 0.5, 0.85].map(|center| -(lightness / 255.0 - center).powi(2) / 0.045));
    let expected = [("dark.png", of(40.0)), ("light.png", of(220.0)), ("dark.png", of(40.0))];
    classify(folder.path(), "./lightness.wasm", ["dark", "middling", "light"], &expected);
    let check = host_ok(folder.path(), &["plugin", "check", "./lightness.wasm"]).stdout;
    assert!(check.contains("lightness 0.1.0: 3 styles, image"), "{check}");
}

/// Needs what `make python-plugin` installs.
#[test]
fn the_plugin_in_python_builds_runs_and_writes_to_the_log() {
    let tool = root().join(".deps/componentize/bin/componentize-py");
    if !tool.is_file() {
        eprintln!("skipped: the plugin in Python, since {} is missing (`make python-plugin`)", tool.display());
        return;
    }
    let _one_at_a_time = INTERPRETER.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().expect("a folder");
    write_images(folder.path());
    let lines = ["print(\"sample\", i)", "if batch.image(i).width == 1: raise ValueError(\"a pixel has no grain\")"];
    let source = with_lines("examples/plugin-python/plugin.py", "rows += ", &lines);
    fs::write(folder.path().join("plugin.py"), source).expect("writable");
    let build = ["--world", "classifier-plugin", "componentize", "plugin", "--stub-wasi", "--output", "busyness.wasm"];
    run(Command::new(tool).current_dir(folder.path()).arg("--wit-path").arg(root().join("wit")).args(build));
    let of = |grain: f64| softmax(&[0.0, 0.06, 0.12].map(|target| -(grain - target).abs() * 40.0));
    let expected = [("dark.png", of(0.0)), ("stripes.png", of(1.0))];
    let log = classify(folder.path(), "./busyness.wasm", ["calm", "lively", "busy"], &expected);
    assert!(log.contains("plugin busyness: sample 0") && log.contains("plugin busyness: sample 1"), "{log}");
    let failed = host(folder.path(), &["plugin", "classify", "./busyness.wasm", "pixel.png"]);
    assert!(
        failed.code == 1 && failed.stderr.contains("ValueError: a pixel has no grain (in classify, line "),
        "{}",
        failed.stderr
    );
}

/// Needs what `make js-plugin` installs.
#[test]
fn the_plugin_in_javascript_builds_runs_and_writes_to_the_log() {
    let tool = root().join(".deps/componentize-js/node_modules/.bin/componentize-js");
    if !tool.is_file() {
        eprintln!("skipped: the plugin in JavaScript, since {} is missing (`make js-plugin`)", tool.display());
        return;
    }
    let _one_at_a_time = INTERPRETER.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().expect("a folder");
    write_images(folder.path());
    let lines = [
        "console.log(\"sample\", i);",
        "if (batch.image(i).width === 1) throw new RangeError(\"a pixel has no halves\");",
    ];
    let source = with_lines("examples/plugin-js/plugin.js", "const found = ", &lines);
    fs::write(folder.path().join("plugin.js"), source).expect("writable");
    let build = ["--world-name", "classifier-plugin", "--out", "symmetry.wasm"];
    let without = ["--disable", "stdio", "random", "clocks", "http", "fetch-event"];
    let mut command = Command::new(tool);
    run(command
        .current_dir(folder.path())
        .args(["plugin.js", "--wit"])
        .arg(root().join("wit"))
        .args(build)
        .args(without));
    let of = |asymmetry: f64| softmax(&[0.0, 0.08, 0.16].map(|center| -(asymmetry - center).abs() * 40.0));
    let expected = [("dark.png", of(0.0)), ("halves.png", of(15.0 / 255.0)), ("stripes.png", of(1.0))];
    let log = classify(folder.path(), "./symmetry.wasm", ["mirrored", "leaning", "lopsided"], &expected);
    assert!(log.contains("plugin symmetry: sample 0") && log.contains("plugin symmetry: sample 2"), "{log}");
    let failed = host(folder.path(), &["plugin", "classify", "./symmetry.wasm", "pixel.png"]);
    assert!(failed.code == 1 && failed.stderr.contains("RangeError: a pixel has no halves (in "), "{}", failed.stderr);
}
