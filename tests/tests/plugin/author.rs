//! The author's workflow as a new user goes through it: new, cargo test, build, check, test, bench, install, list.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::built;
use crate::support::{Ran, command, host, host_ok, root};

/// The target folder of the crates of `host plugin new`: kept between runs, so that the SDK is compiled once.
fn target() -> PathBuf {
    root().join("target/new-plugin")
}

/// Runs cargo in a crate of `host plugin new`, without a network and with its lock file as it is.
fn cargo(folder: &Path, arguments: &[&str]) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(folder)
        .args(arguments)
        .args(["--locked", "--offline"])
        .env("CARGO_TARGET_DIR", target())
        .output()
        .expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("warning"), "cargo {arguments:?}\n{said}");
}

/// Runs `host` with [`target`] as the crate's target folder.
fn host_here(folder: &Path, arguments: &[&str]) -> Ran {
    let mut command = command(folder, arguments);
    // The crates of a test share the installed plugins, which are in the folder above them.
    command.env("CARGO_TARGET_DIR", target()).env("XDG_DATA_HOME", folder.parent().expect("a crate's folder"));
    let output = command.output().expect("the binary starts");
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn ok(ran: Ran) -> String {
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
    ran.stdout
}

fn refused(ran: Ran) -> String {
    assert_eq!(ran.code, 1, "{}\n{}", ran.stdout, ran.stderr);
    ran.stderr.trim_end().to_owned()
}

/// Each kind: a name for its crate, one of its fixtures, and the command that shows its predictions.
const KINDS: [(&str, &str, &str, &str); 7] = [
    ("pixels", "sea_and-sky", "fixtures/ukiyo-e.png", "classify"),
    ("embedding", "movements", "fixtures/ukiyo-e.png", "classify"),
    ("text", "tone", "fixtures/note.txt", "classify"),
    ("audio", "register", "fixtures/melody.wav", "classify"),
    ("video", "pace", "fixtures/pan.gif", "classify"),
    ("tensor", "relief", "fixtures/hills.safetensors", "classify"),
    ("score", "warmth", "fixtures/ukiyo-e.png", "score"),
];

/// The crates are outside the repository, and contain no path into it.
#[test]
fn a_new_crate_of_each_kind_goes_through_the_whole_workflow() {
    let folder = tempfile::tempdir().expect("a folder");
    for (kind, name, fixture, command) in KINDS {
        host_ok(folder.path(), &["plugin", "new", name, "--kind", kind]);
        let its = folder.path().join(name);
        names_nothing_of_the_repository(&its);
        let unbuilt = refused(host(&its, &["plugin", "check", "."]));
        assert!(unbuilt.contains("is not built: run `cargo build-plugin` in "), "{unbuilt}");
        cargo(&its, &["test"]);
        cargo(&its, &["build-plugin"]);
        let check = ok(host_here(&its, &["plugin", "check", "."]));
        // To the small CLIP, black is ambiguous between the styles: that warning is justified.
        assert!(check.ends_with("ok: no warnings\n") || kind == "embedding", "{check}");
        assert!(refused(host_here(&its, &["plugin", "test"])).contains("--accept"));
        ok(host_here(&its, &["plugin", "test", "--accept"]));
        let test = ok(host_here(&its, &["plugin", "test"]));
        assert_eq!(test.matches("same").count(), 2, "{test}");
        let shown = ok(host_here(&its, &["plugin", command, ".", fixture]));
        assert!(shown.contains(if command == "score" { "higher is better" } else { "█" }), "{shown}");
        let readme = fs::read_to_string(its.join("README.md")).expect("it was written");
        assert!(readme.contains(&format!("host plugin {command} ")), "{readme}");
        ok(host_here(&its, &["plugin", "install", "."]));
    }
    let list = host_ok(folder.path(), &["plugin", "list"]).stdout;
    for (_, name, ..) in KINDS {
        let name = name.replace('-', "_");
        let line = list.lines().find(|line| line.trim_start().starts_with(&name)).expect(&name);
        assert!(line.ends_with("installed"), "{line}");
    }
}

fn names_nothing_of_the_repository(folder: &Path) {
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            names_nothing_of_the_repository(&path);
            continue;
        }
        let bytes = fs::read(&path).expect("a file, no link");
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(root().to_str().expect("UTF-8")) && !path.is_symlink(), "{}", path.display());
    }
}

#[test]
fn new_refuses_bad_names_and_existing_folders() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("taken")).expect("a new folder");
    let refused = |arguments: &[&str]| refused(host(folder.path(), &[&["plugin", "new"], arguments].concat()));
    let messages =
        [refused(&["taken"]), refused(&["My Plugin"]), refused(&["../up"]), refused(&["fn"]), refused(&["serde"])];
    insta::assert_snapshot!(messages.join("\n"), @r"
    error: taken exists already: choose another name, or remove it
    error: `My Plugin` is not a valid name for a plugin crate: it must begin with a lowercase letter
    error: `../up` is not a valid name for a plugin crate: it must begin with a lowercase letter
    error: `fn` is not a valid name for a plugin crate: it has a meaning in Rust
    error: `serde` is not a valid name for a plugin crate: the SDK uses a crate of that name
    ");
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1, "nothing was written");
}

/// The table as a user sees it. Fuel and time are left out: they depend on the compiler and the machine.
#[test]
fn check_shows_a_plugins_predictions_on_probes() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["palette", "words", "melody"] {
        let plugin = built(name);
        let text = host_ok(folder.path(), &["plugin", "check", &plugin.to_string_lossy()]).stdout;
        insta::with_settings!({ filters => [
            (r" +[\d.]+(?: [kMG])? +\d+\.\d\d\n", " [FUEL AND MS]\n"),
            (r"memory [\d.]+ MiB", "memory [N] MiB"),
            (r"fuel [\d.]+ [kMG]", "fuel [N]"),
            (r" +fuel +ms\n", " [FUEL AND MS]\n"),
        ] }, {
            insta::assert_snapshot!(format!("check_{name}"), text);
        });
        let json = host_ok(folder.path(), &["plugin", "check", &plugin.to_string_lossy(), "--json"]).stdout;
        let document: Value = serde_json::from_str(&json).expect("one JSON document");
        assert!(document["probes"].as_array().is_some_and(|probes| probes.len() >= 8), "{name}");
        let strict = host(folder.path(), &["plugin", "check", &plugin.to_string_lossy(), "--strict"]);
        let warnings = document["warnings"].as_array().map_or(0, Vec::len);
        assert_eq!(strict.code, i32::from(warnings > 0), "{}", strict.stderr);
    }
}

#[test]
fn check_warns_of_a_dead_reward() {
    let folder = tempfile::tempdir().expect("a folder");
    // This plugin returns the same distribution for every sample.
    let text = host_ok(folder.path(), &["plugin", "check", &built("hostile").to_string_lossy()]).stdout;
    assert!(text.contains("\nwarning: dead: all probes get the same distribution"), "{text}");
}

#[test]
fn test_compares_a_plugin_with_its_snapshots() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "1", "--seed", "5"]);
    fs::create_dir(folder.path().join("fixtures")).expect("a new folder");
    for style in ["cubism", "ukiyo-e"] {
        let fixture = folder.path().join(format!("fixtures/{style}.png"));
        fs::copy(folder.path().join(format!("art/{style}/0000.png")), fixture).expect("a copy");
    }
    fs::copy(built("palette"), folder.path().join("palette.wasm")).expect("a copy");
    let test = |arguments: &[&str]| host(folder.path(), &[&["plugin", "test", "."], arguments].concat());

    let first = test(&[]);
    assert_eq!(first.stdout, "  fixtures/cubism.png   no snapshot\n  fixtures/ukiyo-e.png  no snapshot\n");
    assert_eq!(
        refused(first),
        "error: 2 x a fixture without a snapshot; if this is intended, write the snapshots with `host plugin test . --accept`"
    );
    assert!(!folder.path().join("snapshots").exists(), "nothing is written without --accept");
    assert_eq!(ok(test(&["--accept"])).matches("written").count(), 2);
    assert_eq!(ok(test(&["--tolerance", "0"])).matches("same").count(), 2);

    let snapshot = folder.path().join("snapshots/cubism.png.snap");
    let text = fs::read_to_string(&snapshot).expect("it was written");
    let changed: Vec<String> = text
        .lines()
        .map(|line| match line.split_once("  ") {
            Some((_, "warm")) => "0.750000000  warm".to_owned(),
            Some((p, "cold")) => format!("{p}  blue"),
            _ => line.to_owned(),
        })
        .collect();
    fs::write(&snapshot, changed.join("\n")).expect("writable");
    fs::rename(folder.path().join("fixtures/ukiyo-e.png"), folder.path().join("fixtures/wave.png")).expect("renamed");
    let changed = test(&[]);
    insta::assert_snapshot!(format!("{}{}", changed.stdout, changed.stderr));
    assert_eq!(changed.code, 1);
    let document: Value = serde_json::from_str(&test(&["--json"]).stdout).expect("one JSON document");
    assert_eq!(document["files"][0]["differences"].as_array().map(Vec::len), Some(3));

    ok(test(&["--accept"]));
    assert_eq!(ok(test(&[])).matches("same").count(), 2);
    let mut kept: Vec<_> = fs::read_dir(folder.path().join("snapshots"))
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
        .collect();
    kept.sort();
    assert_eq!(kept, ["cubism.png.snap", "wave.png.snap"]);
}

#[test]
fn test_reports_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let test = |arguments: &[&str]| refused(host(folder.path(), &[&["plugin", "test"], arguments].concat()));
    let mut messages = vec![test(&["nowhere"]), test(&["."])];
    fs::create_dir(folder.path().join("fixtures")).expect("a new folder");
    messages.push(test(&["."]));
    fs::write(folder.path().join("fixtures/poem.txt"), "rose").expect("writable");
    messages.push(test(&["."]));
    messages.push(test(&[".", "--plugin", "kmeans_image"]));
    insta::assert_snapshot!(messages.join("\n"), @r"
    error: there is no folder nowhere
    error: there is no folder ./fixtures: put some samples there (.png, .jpg, .txt, .wav, .gif, .webp, .safetensors)
    error: ./fixtures has no samples (.png, .jpg, .txt, .wav, .gif, .webp, .safetensors)
    error: plugin `./`: ./ is a folder with neither a Cargo.toml nor a plugin file
    error: ./fixtures/poem.txt is a text, but plugin `kmeans_image` takes image
    ");
}

#[test]
fn install_and_list_know_what_a_name_means() {
    let folder = tempfile::tempdir().expect("a folder");
    let (palette, words) = (built("palette"), built("words"));
    let (palette, words) = (palette.to_string_lossy(), words.to_string_lossy());
    let install = |arguments: &[&str]| host(folder.path(), &[&["plugin", "install"], arguments].concat());
    let said = install(&[&palette, "--name", "mine"]);
    assert!(said.code == 0 && said.stderr.starts_with("installed `mine` (sha256 "), "{}", said.stderr);
    let installed = folder.path().join("ambiguity/plugins/mine.wasm");
    assert!(fs::read(&installed).expect("it exists") == fs::read(&*palette).expect("it exists"));
    ok(install(&[&palette, "--name", "mine"]));

    fs::write(folder.path().join("junk.wasm"), "junk").expect("writable");
    let messages = [
        refused(install(&[&words, "--name", "mine"])),
        refused(install(&[&words, "--name", "kmeans_image", "--force"])),
        refused(install(&[&words, "--name", "../mine"])),
        refused(install(&["./junk.wasm"])),
    ];
    let messages = messages.join("\n").replace(&folder.path().display().to_string(), "[DIR]");
    insta::assert_snapshot!(messages.replace(&root().display().to_string(), "[ROOT]"));

    ok(install(&[&words, "--name", "mine", "--force"]));
    fs::create_dir(folder.path().join("plugins")).expect("a new folder");
    fs::copy(&*palette, folder.path().join("plugins/mine.wasm")).expect("a copy");
    let hidden = install(&[&words, "--name", "mine"]);
    assert!(hidden.stderr.contains("in this folder `mine` still means plugins/mine.wasm"), "{}", hidden.stderr);

    let list = host_ok(folder.path(), &["plugin", "list"]).stdout;
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    let of = |name: &str, last: &str| {
        let line = lines.iter().find(|line| line.first() == Some(&name) && line.last() == Some(&last));
        line.unwrap_or_else(|| panic!("{name} {last}\n{list}")).clone()
    };
    assert_eq!(of("mine", "./plugins")[1..4], ["wasm", "6", "image"]);
    assert_eq!(of("mine", "installed")[3], "text");
    assert_eq!(of("kmeans_image", "shipped")[1..4], ["wasm", "27", "image"]);
    assert!(list.contains("junk.wasm cannot be loaded: "), "{list}");
    assert!(list.contains("ambiguity/plugins/mine.wasm is hidden: `mine` means plugins/mine.wasm"), "{list}");
    let document: Value =
        serde_json::from_str(&host_ok(folder.path(), &["plugin", "list", "--json"]).stdout).expect("one JSON document");
    assert!(document["plugins"].as_array().is_some_and(|plugins| plugins.len() >= 4));
}

/// A list compiles nothing: what is not known without is shown as `?`, until the plugin's first use.
#[test]
fn a_list_never_compiles() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(built("palette"), folder.path().join("fresh.wasm")).expect("a copy");
    let listed = || {
        let list = host_ok(folder.path(), &["plugin", "list"]).stdout;
        let line = list.lines().find(|line| line.trim_start().starts_with("fresh ")).expect("it is listed");
        (line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()[1..4].to_vec(), list)
    };
    let (before, list) = listed();
    assert_eq!(before, ["wasm", "?", "?"], "{list}");
    assert!(list.contains("? is known after the first use, which compiles a plugin: `fresh`"), "{list}");
    assert!(!folder.path().join("cache").exists(), "nothing was compiled");
    host_ok(folder.path(), &["plugin", "inspect", "fresh"]);
    assert_eq!(listed().0, ["wasm", "6", "image"]);
}

#[test]
fn bench_measures_every_part() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = built("palette");
    let arguments =
        ["plugin", "bench", &plugin.to_string_lossy(), "--seconds=0", "--batch=1", "--batch=3", "--size=32"];
    let read = || -> Value {
        let ran = host_ok(folder.path(), &[&arguments[..], &["--json"]].concat());
        serde_json::from_str(&ran.stdout).expect("one JSON document")
    };
    let (first, second) = (read(), read());
    for key in ["load_milliseconds", "cached_load_milliseconds", "instantiate_milliseconds"] {
        assert!(first[key].as_f64().is_some_and(|time| time > 0.0), "{key}");
    }
    assert_eq!(first["batches"].as_array().map(Vec::len), Some(2));
    assert_eq!(first["batches"][1]["fuel"], second["batches"][1]["fuel"], "fuel is deterministic");
    assert!(first["batches"][1]["peak_memory"].as_u64().is_some_and(|bytes| bytes >= 1 << 16));
    let text = host_ok(folder.path(), &arguments).stdout;
    assert!(text.contains("load, from the cache") && text.contains("images of 32 x 32"), "{text}");
}

#[test]
fn an_installed_plugin_is_uninstalled_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let uninstall = |name: &str| host(folder.path(), &["plugin", "uninstall", name]);
    assert_eq!(refused(uninstall("mine")), "error: `mine` is not installed; no plugin is");
    for (file, name) in [("palette.wasm", "mine"), ("simple.onnx", "net")] {
        let file = root().join("plugins").join(file);
        host_ok(folder.path(), &["plugin", "install", &file.to_string_lossy(), "--name", name]);
    }
    let installed = folder.path().join("ambiguity/plugins");
    fs::write(installed.join("net.toml"), "title = \"a net\"").expect("writable");
    assert_eq!(refused(uninstall("mein")), "error: `mein` is not installed; did you mean `mine`?");
    let shipped = refused(uninstall("palette"));
    assert!(shipped.starts_with("error: `palette` is not installed: it is ") && shipped.ends_with("(shipped)"));
    assert_eq!(fs::read_dir(&installed).expect("readable").count(), 3);
    ok(uninstall("net"));
    let json = host_ok(folder.path(), &["plugin", "uninstall", "mine", "--json"]).stdout;
    let document: Value = serde_json::from_str(&json).expect("one JSON document");
    assert_eq!(document["plugin"], "mine");
    assert_eq!(fs::read_dir(&installed).expect("readable").count(), 0, "the .toml of a model goes with it");
}

/// The plugin's own code runs when it is loaded, so that the digest must be compared before.
#[test]
fn a_plugin_of_another_digest_is_refused_before_it_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let hostile = built("hostile");
    let (palette, hostile) = (root().join("plugins/palette.wasm"), hostile.to_string_lossy());
    let inspected = host_ok(folder.path(), &["plugin", "inspect", &palette.to_string_lossy(), "--json"]).stdout;
    let document: Value = serde_json::from_str(&inspected).expect("one JSON document");
    let right = document["sha256"].as_str().expect("a digest");
    let wrong = "0123456789abcdef".repeat(4);

    let install = |plugin: &str, sha256: &str| {
        host(folder.path(), &["plugin", "install", plugin, "--name=mine", "--sha256", sha256])
    };
    let said = refused(install(&hostile, &wrong));
    assert!(said.contains(": its sha256 is ") && said.contains(&format!("but it must be {wrong}")), "{said}");
    let compiled = folder.path().join("cache/ambiguity/plugins");
    let n_compiled = || fs::read_dir(&compiled).expect("readable").count();
    assert_eq!(n_compiled(), 1, "only what was inspected is compiled");
    assert_eq!(install(&hostile, "0123").code, 2, "no digest is a usage error");
    ok(install(&palette.to_string_lossy(), &format!("sha256:{}", right.to_uppercase())));

    let run = |sha256: &str| {
        let config = format!("[[reward.plugin]]\nsource = \"mine\"\nsha256 = \"{sha256}\"\n");
        fs::write(folder.path().join("run.toml"), config).expect("writable");
        host(folder.path(), &["train", "--preset=tiny-art", "--config=run.toml", "--out=run", "--dry-run"])
    };
    ok(run(right));
    let said = refused(run(&wrong));
    assert!(said.ends_with(&format!(
        "plugin `mine`: its sha256 is {right}, but it must be {wrong}: get the file again, or name the digest of this one"
    )));
    assert!(
        refused(run("abc"))
            .ends_with("a SHA-256 digest has 64 hexadecimal digits; `host plugin inspect` shows a plugin's")
    );
    assert_eq!(n_compiled(), 1);
}

/// Every `host` command of the page exists, and so do the flags that it has there.
#[test]
fn the_commands_of_the_plugin_page_exist() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = fs::read_to_string(root().join("docs/plugins.md")).expect("readable");
    let blocks = page.split("```").skip(1).step_by(2);
    let lines = blocks.flat_map(str::lines).filter(|line| line.starts_with("host "));
    let mut n_commands = 0;
    for line in lines {
        let line = line.split(" #").next().unwrap_or(line);
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let n_names = if words[0] == "plugin" { 2 } else { 1 };
        let help = host_ok(folder.path(), &[&words[..n_names], &["--help"]].concat()).stdout;
        for flag in words[n_names..].iter().filter(|word| word.starts_with('-')) {
            assert!(help.split([' ', ',', '\n']).any(|word| word == *flag), "{line}: the help has no {flag}");
        }
        n_commands += 1;
    }
    assert!(n_commands >= 15, "{n_commands}");
}
