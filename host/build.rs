//! Passes two things to the program: the commit that it is built from, for `host --version`, if this is a checkout; and the
//! files of the SDK, which `host plugin new` writes into each new crate.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What the program is built from. A commit alone changes none of it, and is then no reason to build it again.
const SOURCES: [&str; 9] = [
    "build.rs",
    "src",
    "presets",
    "templates",
    "art/src",
    "../models/src",
    "../sdk",
    "../wit/plugin.wit",
    "../Cargo.lock",
];

/// The SDK's files, besides its sources. The last two are links in its folder.
const SDK_FILES: [&str; 4] = ["Cargo.toml", "README.md", "LICENSE", "wit/plugin.wit"];

fn main() {
    let output = env::var_os("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&output).join("sdk.rs"), sdk()).expect("the folder is writable");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    if let Some(commit) = git(&["describe", "--always", "--dirty", "--exclude=*", "--abbrev=10"]) {
        println!("cargo:rustc-env=AMBIGUITY_COMMIT={commit}");
    }
}

/// Returns the code of a list of the SDK's files: their paths in its folder, and their bytes.
fn sdk() -> String {
    let root = Path::new("../sdk");
    let mut files: Vec<PathBuf> = SDK_FILES.iter().map(PathBuf::from).collect();
    let mut folders = vec![PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("the SDK is beside this crate") {
            let path = folder.join(entry.expect("it is readable").file_name());
            if root.join(&path).is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files[SDK_FILES.len()..].sort();
    let mut code = "&[\n".to_owned();
    for file in files {
        let file = file.to_str().expect("its name is UTF-8");
        writeln!(code, "({file:?}, include_bytes!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/../sdk/{file}\"))),")
            .expect("a string takes any text");
    }
    code + "]"
}

/// Returns what git prints, if it runs in a checkout of this project.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}
