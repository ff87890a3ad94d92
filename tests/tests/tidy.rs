//! The invariants of ARCHITECTURE.md that can be read off the sources.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::root;

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} has no sources");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("readable");
        (path, text)
    };
    found.into_iter().map(read).collect()
}

fn assert_absent(folder: &str, words: &[&str], except: &str) {
    for (path, text) in sources(folder) {
        if !except.is_empty() && path.starts_with(root().join(except)) {
            continue;
        }
        for word in words {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn models_never_name_the_host() {
    assert_absent("models", &["ambiguity_host", "wasmtime"], "");
}

#[test]
fn the_sdk_never_names_tch_or_wasmtime() {
    assert_absent("sdk", &["use tch", " tch::", "wasmtime"], "");
}

#[test]
fn only_the_plugin_folder_names_wasmtime() {
    assert_absent("host/src", &["wasmtime::", "use wasmtime"], "host/src/plugin");
}

#[test]
fn only_the_plugin_folder_names_ort() {
    let named = ["use ort::", " ort::", "(ort::", "<ort::", "&ort::"];
    assert_absent("host/src", &named, "host/src/plugin");
    for folder in ["models", "sdk", "plugins"] {
        assert_absent(folder, &named, "");
    }
}

#[test]
fn ddpo_never_sees_pixels() {
    let text = fs::read_to_string(root().join("host/src/ddpo.rs")).expect("readable");
    for word in ["RgbImage", "image::", "decode"] {
        assert!(!text.contains(word), "ddpo.rs names {word}");
    }
}

#[test]
fn configuration_has_no_defaults_in_code() {
    let text = fs::read_to_string(root().join("host/src/config/mod.rs")).expect("readable");
    assert!(!text.contains("impl Default") && !text.contains("Default)]"));
}

#[test]
fn nothing_is_left_unfinished() {
    for folder in ["host/src", "models/src", "models/torch-ext/src", "sdk/src", "plugins"] {
        for (path, text) in sources(folder) {
            for mark in ["TO\u{44}O", "FIX\u{4d}E", "unimplemented!(", "todo!("] {
                assert!(!text.contains(mark), "{} has {mark}", path.display());
            }
        }
    }
}
