//! The SDK as a crate that others depend on: what its package contains, and what a wrong plugin's author reads.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{host_ok, root};

/// `make package-sdk`: cargo builds the package from its own files alone, among them the plugin interface and the license as
/// files. The lock file in it is the one that `host plugin new` writes.
#[test]
fn the_package_is_complete_and_builds() {
    let folder = tempfile::tempdir().expect("a folder");
    let lock = folder.path().join("Cargo.lock");
    let output = Command::new("sh")
        .arg(root().join("scripts/package-sdk.sh"))
        .arg(&lock)
        .env("CARGO_NET_OFFLINE", "true")
        .env("PACKAGE_FLAGS", "--allow-dirty")
        .output()
        .expect("sh starts");
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("--offline") || said.contains("offline mode") {
        println!("skipped, since crates are missing from cargo's cache and there is no network: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    let (written, kept) =
        (fs::read_to_string(&lock), fs::read_to_string(root().join("host/templates/plugin/Cargo.lock.in")));
    assert!(
        written.expect("it was written") == kept.expect("committed"),
        "run `make package-sdk` and commit Cargo.lock.in"
    );
}

/// Returns the first line of rustc's error about a plugin with these kinds implemented and exported, if there is one.
fn compiled(folder: &Path, implemented: &[&str], exported: &str) -> String {
    let code = |kind: &&str| match *kind {
        "Classifier" => {
            "impl Classifier for P {
                 fn styles(&self) -> Vec<String> { vec![] }
                 fn classify(&self, _: &Batch) -> Result<Distributions> { todo!() }
             }"
        }
        "Scorer" => {
            "impl Scorer for P {
                 fn scale(&self) -> Scale { Scale::higher_is_better() }
                 fn score(&self, _: &Batch) -> Result<Vec<f64>> { todo!() }
             }"
        }
        _ => {
            "impl Gradient for P {
                 fn embedding_vjp(&self, _: &Batch, _: &str, _: &Matrix) -> Result<Matrix> { todo!() }
             }"
        }
    };
    let kinds: Vec<&str> = implemented.iter().map(code).collect();
    let text = format!(
        "#![allow(unused_imports)]
         use ambiguity_sdk::*;
         struct P;
         impl Plugin for P {{
             fn new(_: &Host) -> Result<Self> {{ Ok(P) }}
             fn describe(&self) -> Description {{ Description::default() }}
         }}
         {}
         {exported}",
        kinds.join("\n")
    );
    fs::write(folder.join("src/lib.rs"), text).expect("writable");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(folder)
        .args(["check", "--quiet", "--locked", "--offline"])
        .env("CARGO_TARGET_DIR", root().join("target/new-plugin"))
        .output()
        .expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let error = said.lines().find(|line| line.starts_with("error")).unwrap_or_default().to_owned();
    assert_eq!(output.status.success(), error.is_empty(), "{said}");
    if error.is_empty() { "it compiles".to_owned() } else { error }
}

#[test]
fn kinds_that_are_implemented_and_exported_otherwise_do_not_compile() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["plugin", "new", "kinds"]);
    let folder = folder.path().join("kinds");
    let cases: [(&[&str], &str); 10] = [
        (&["Classifier", "Gradient"], "export!(P: Classifier, Gradient);"),
        (&["Classifier", "Gradient"], "export!(P: Classifier);"),
        (&["Scorer", "Gradient"], "export!(P: Gradient);"),
        (&["Classifier"], "export!(P: Scorer);"),
        (&["Scorer"], "export!(P: Scorer, Gradient);"),
        (&["Classifier", "Scorer"], "export!(P: Classifier, Scorer);"),
        (&["Classifier", "Scorer"], "export!(P: Classifier);"),
        (&["Gradient"], "export!(P: Gradient);"),
        (&["Classifier"], "export!(P);"),
        (&["Classifier"], "export!(P: Classifier, Wonder);"),
    ];
    let mut messages = String::new();
    for (implemented, exported) in cases {
        let message = compiled(&folder, implemented, exported);
        messages += &format!("{}; {exported}\n    {message}\n", implemented.join(", "));
    }
    insta::assert_snapshot!(messages);
}
