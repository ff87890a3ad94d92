//! `host plugin build`: from a list of styles to distributions, with the command line alone.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{host, host_ok};

const LIGHT: &str = "title = 'Two kinds of painting'\nauthors = ['Ada', 'Grace']\nlicense = 'CC0-1.0'\nversion = '1.2.0'\n\
                     temperature = 0.02\n\n[styles]\nukiyo-e = ['a ukiyo e painting', 'ukiyo-e']\n\
                     minimalism = 'a minimalism painting'\n";

fn json_of(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&host_ok(folder, arguments).stdout).expect("one JSON document")
}

#[test]
fn build_inspect_classify() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("two.toml"), LIGHT).expect("writable");
    let build = ["plugin", "build", "two.toml"];
    let said = host_ok(folder.path(), &build).stderr;
    let first = fs::read(folder.path().join("two.wasm")).expect("it was written");
    host_ok(folder.path(), &build);
    assert!(fs::read(folder.path().join("two.wasm")).expect("it exists") == first, "building twice, the same bytes");

    let shown = host_ok(folder.path(), &["plugin", "inspect", "two"]).stdout;
    insta::with_settings!({ filters => [(r"sha256      [0-9a-f]{64}", "sha256      [DIGEST]"), (r"\d+ kB", "[N] kB"), (r"imports     .*\n.*\n.*\n", "imports     [IMPORTS]\n")] }, {
        insta::assert_snapshot!(format!("{said}---\n{shown}"));
    });

    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "1", "--seed", "3"]);
    let files = ["art/ukiyo-e/0000.png", "art/minimalism/0000.png"];
    let classified = json_of(folder.path(), &[&["plugin", "classify", "two"], &files[..], &["--json"]].concat());
    let p = |i: usize, j: usize| classified["samples"][i]["distribution"][j].as_f64().expect("a number");
    assert!(p(0, 0) > p(0, 1) && p(1, 1) > p(1, 0), "{classified}");
}

#[test]
fn names_and_a_template_are_enough() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "template = 'a painting, {}'\nstyles = ['noon', 'dusk', 'night']\nmedium = 'text'\n";
    fs::write(folder.path().join("light.toml"), text).expect("writable");
    let built = json_of(folder.path(), &["plugin", "build", "light.toml", "-o", "evening.wasm", "--json"]);
    assert_eq!(built["prompts"][1], json!(["a painting, dusk"]));
    let inspected = json_of(folder.path(), &["plugin", "inspect", "evening", "--json"]);
    assert_eq!((&inspected["name"], &inspected["media"]), (&json!("light"), &json!(["text"])));
    assert_eq!((&inspected["sha256"], &inspected["temperature"]), (&built["sha256"], &Value::Null));

    fs::write(folder.path().join("a.txt"), "a painting, dusk").expect("writable");
    let classified = json_of(folder.path(), &["plugin", "classify", "evening.wasm", "a.txt", "--json"]);
    let row = &classified["samples"][0]["distribution"];
    assert!(row[1].as_f64() > row[0].as_f64() && row[1].as_f64() > row[2].as_f64(), "{row}");
}

#[test]
fn what_cannot_be_built_is_refused_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |text: &str, more: &[&str]| {
        fs::write(folder.path().join("s.toml"), text).expect("writable");
        let ran = host(folder.path(), &[&["plugin", "build", "s.toml"], more].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        assert!(!folder.path().join("s.wasm").exists(), "something was written");
        ran.stderr
    };
    let mut table = String::new();
    table += &refused("styles = ['one']", &[]);
    table += &refused("styles = ['one', 'two']\ntemprature = 0.1", &[]);
    table += &refused("styles = ['one', 'two'", &[]);
    table += &refused("styles = ['one', 'two']", &["-o", "s.onnx"]);
    // Names with which no plugin is loaded.
    table += &refused("styles = ['one', \"two\\u202E\"]", &[]);
    table += &refused(&format!("styles = ['one', '{}']", "long ".repeat(41)), &[]);
    table += &refused("name = \"a\\u0007b\"\nstyles = ['one', 'two']", &[]);
    table += &refused("[styles]\none = 'first'\n\"a\\nb\" = 'second'", &[]);
    table += &refused("styles = ['one', 'two']", &["-o", "a\u{202e}.wasm"]);
    table += &refused("styles = ['one', 'two']", &["-o", "nowhere/s.wasm"]);
    let missing = host(folder.path(), &["plugin", "build", "missing.toml"]);
    assert_eq!(missing.code, 1);
    insta::assert_snapshot!(table + &missing.stderr);
}
