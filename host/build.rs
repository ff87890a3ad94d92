//! Tells the program the commit that it is built from, for `host --version`; nothing outside a checkout.

use std::process::Command;

/// What the program is built from. A commit alone changes none of it, and is then no reason to build it again.
const SOURCES: [&str; 8] =
    ["build.rs", "src", "presets", "templates", "art/src", "../models/src", "../sdk/src", "../Cargo.lock"];

fn main() {
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    if let Some(commit) = git(&["describe", "--always", "--dirty", "--exclude=*", "--abbrev=10"]) {
        println!("cargo:rustc-env=AMBIGUITY_COMMIT={commit}");
    }
}

/// Returns what git prints, if it runs in a checkout of this project.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}
