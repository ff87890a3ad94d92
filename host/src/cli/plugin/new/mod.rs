//! `host plugin new`: creates a plugin crate that builds and passes its tests, from templates in this program and the
//! sources of the SDK, which this program contains too.

mod fixtures;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;

use self::fixtures::fixtures;
use crate::context::Context;
use crate::text::to_json;

/// Create a Rust plugin crate that builds and passes its tests, as a starting point.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin new sea_and_sky                      classifies by pixels
  host plugin new movements --kind embedding       classifies by CLIP's similarity to the names of styles
  host plugin new tone --kind text                 and likewise audio, video, tensor
  host plugin new warmth --kind score              scores images by their pixels

Then, in its folder: cargo test, cargo build-plugin, host plugin check .

The crate contains the sources of the SDK, in vendor/ambiguity-sdk/, and so needs nothing of this program to be built.")]
pub struct NewArgs {
    /// The plugin's name, which is also the name of the new folder
    name: String,
    /// What the plugin takes, and whether it classifies or scores it
    #[arg(long, value_enum, default_value_t = Kind::Pixels)]
    kind: Kind,
    /// Print one JSON document about what was created
    #[arg(long)]
    json: bool,
}

/// What a plugin takes, and whether it classifies or scores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A classifier of images by their pixels
    Pixels,
    /// A classifier of images by their embeddings by CLIP, with a gradient
    Embedding,
    /// A classifier of texts
    Text,
    /// A classifier of recordings
    Audio,
    /// A classifier of videos
    Video,
    /// A classifier of arrays: latents, features of tokens, height maps
    Tensor,
    /// A scorer of images by their pixels, with an option
    Score,
}

/// The SDK's files by their paths in its folder.
const SDK: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

/// The lock file of the SDK alone: what it was tested with. `make package-sdk` writes it.
const SDK_LOCK: &str = include_str!("../../../../templates/plugin/Cargo.lock.in");

/// Words that Rust does not accept as a crate's name, or that would shadow another crate.
const RESERVED: [&str; 60] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
    "ambiguity_sdk",
    "ambiguity-sdk",
    "build",
    "deps",
];

/// Maximum length of a name.
const MAX_NAME: usize = 64;

impl NewArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        check_name(&self.name)?;
        let folder = PathBuf::from(&self.name);
        ensure!(!folder.exists(), "{} exists already: choose another name, or remove it", folder.display());
        let here = std::env::current_dir().context("the working folder")?;
        // The crate is written under a temporary name first, so that it is complete or does not exist.
        let partial = tempfile::Builder::new().prefix(".new-").tempdir_in(&here).context("the working folder")?;
        for (file, bytes) in self.files()? {
            let path = partial.path().join(file);
            fs_err::create_dir_all(path.parent().expect("every file is in the crate"))?;
            fs_err::write(path, bytes)?;
        }
        // A temporary folder is private by default; the crate's folder has ordinary permissions.
        #[cfg(unix)]
        fs_err::set_permissions(partial.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        fs_err::rename(partial.path(), &folder)?;
        // Nothing is left to remove.
        let _moved = partial.keep();
        if self.json {
            let kind = format!("{:?}", self.kind).to_lowercase();
            let folder = folder.to_string_lossy();
            println!("{}", to_json(&json!({ "plugin": self.name, "folder": folder, "kind": kind })));
            return Ok(());
        }
        let next = format!(
            "created the plugin crate {0}/; next:\n  cd {0}\n  cargo test\n  cargo build-plugin\n  host plugin check \
             .\n  host plugin test . --accept\nREADME.md explains each step; src/lib.rs is the plugin",
            self.name
        );
        next.lines().for_each(|line| context.progress.println(line));
        Ok(())
    }

    /// Returns the crate's files and their contents.
    fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let library = match self.kind {
            Kind::Pixels => include_str!("../../../../templates/plugin/pixels.rs.in"),
            Kind::Embedding => include_str!("../../../../templates/plugin/embedding.rs.in"),
            Kind::Text => include_str!("../../../../templates/plugin/text.rs.in"),
            Kind::Audio => include_str!("../../../../templates/plugin/audio.rs.in"),
            Kind::Video => include_str!("../../../../templates/plugin/video.rs.in"),
            Kind::Tensor => include_str!("../../../../templates/plugin/tensor.rs.in"),
            Kind::Score => include_str!("../../../../templates/plugin/score.rs.in"),
        };
        let file = self.name.replace('-', "_");
        let (what, command) = match self.kind {
            Kind::Score => ("scorer", "score   "),
            _ => ("style classifier", "classify"),
        };
        let fill = |template: &str| {
            let text = template.replace("{{name}}", &self.name).replace("{{type}}", &type_name(&self.name));
            let text = text.replace("{{file}}", &file).replace("{{what}}", what).replace("{{command}}", command);
            text.replace("{{wasm}}", &format!("target/wasm32-unknown-unknown/plugin/{file}.wasm")).into_bytes()
        };
        let mut files = vec![
            ("Cargo.toml".to_owned(), fill(include_str!("../../../../templates/plugin/Cargo.toml.in"))),
            ("Cargo.lock".to_owned(), lock_file(&self.name).into_bytes()),
            (".cargo/config.toml".to_owned(), fill(include_str!("../../../../templates/plugin/config.toml.in"))),
            ("rust-toolchain.toml".to_owned(), include_bytes!("../../../../../rust-toolchain.toml").to_vec()),
            (".gitignore".to_owned(), fill(include_str!("../../../../templates/plugin/gitignore.in"))),
            ("README.md".to_owned(), fill(include_str!("../../../../templates/plugin/README.md.in"))),
            ("src/lib.rs".to_owned(), fill(library)),
        ];
        files.extend(SDK.iter().map(|(path, bytes)| (format!("vendor/ambiguity-sdk/{path}"), bytes.to_vec())));
        files.extend(fixtures(self.kind)?.into_iter().map(|(name, bytes)| (format!("fixtures/{name}"), bytes)));
        Ok(files)
    }
}

/// Checks that a name is valid for a crate and for a folder.
fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let problem = if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        "it must begin with a lowercase letter"
    } else if !name.chars().all(good) {
        "use lowercase letters, digits, `_` and `-`"
    } else if name.len() > MAX_NAME {
        "it is longer than 64 characters"
    } else if RESERVED.contains(&name) {
        "it has a meaning in Rust"
    } else if SDK_LOCK.contains(&format!("\nname = \"{name}\"\n")) {
        "the SDK uses a crate of that name"
    } else {
        return Ok(());
    };
    bail!("`{name}` is not a valid name for a plugin crate: {problem}")
}

/// Converts a name to a type's name: `sea_and-sky` to `SeaAndSky`.
fn type_name(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    let name: String = name.split(['-', '_']).filter(|word| !word.is_empty()).map(capital).collect();
    if TAKEN.contains(&name.as_str()) { format!("{name}Plugin") } else { name }
}

/// Names that the templates use already.
const TAKEN: [&str; 34] = [
    "Audio",
    "Batch",
    "Classifier",
    "Cosine",
    "Default",
    "Description",
    "Distribution",
    "Distributions",
    "Err",
    "FakeBatch",
    "FakeHost",
    "FakeSample",
    "From",
    "Gradient",
    "Head",
    "Host",
    "Image",
    "Into",
    "Iterator",
    "Matrix",
    "Medium",
    "None",
    "Ok",
    "Option",
    "Plugin",
    "PluginOption",
    "Result",
    "Scale",
    "Scorer",
    "Sized",
    "Some",
    "String",
    "Tensor",
    "Vec",
];

/// Returns the new crate's lock file: the SDK's dependencies in the versions that the SDK was tested with, so that cargo
/// need not resolve them.
fn lock_file(name: &str) -> String {
    let package = |name: &str| format!("[[package]]\nname = \"{name}\"\n");
    let own = package(name) + "version = \"0.1.0\"\ndependencies = [\n \"ambiguity-sdk\",\n]";
    let mut blocks: Vec<&str> = SDK_LOCK.trim_end().split("\n\n").collect();
    // The first block is the head of the file; the packages after it are sorted by name.
    let at = blocks.iter().skip(1).take_while(|block| **block < own.as_str()).count() + 1;
    blocks.insert(at, &own);
    blocks.join("\n\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_crates() {
        for name in ["palette", "sea_and-sky2"] {
            check_name(name).expect(name);
        }
        for name in ["", "2d", "Palette", "sea sky", "../up", "fn", "é", "ambiguity-sdk", "serde", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert_eq!(["sea_and-sky2", "fake-batch", "a--b"].map(type_name), ["SeaAndSky2", "FakeBatchPlugin", "AB"]);
    }

    #[test]
    fn the_lock_file_is_sorted() {
        for name in ["aaa", "mine", "ser", "zzz"] {
            let lock: toml::Table = lock_file(name).parse().expect("valid TOML");
            let packages = lock["package"].as_array().expect("a list");
            let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
            assert!(names.is_sorted() && names.contains(&name) && names.contains(&"ambiguity-sdk"), "{names:?}");
        }
        // What the SDK was tested with is what this program was tested with.
        let workspace = include_str!("../../../../../Cargo.lock");
        for block in SDK_LOCK.trim_end().split("\n\n").skip(1) {
            let end = block.find("\ndependencies").unwrap_or(block.len());
            assert!(workspace.contains(&block[..end]), "run `make package-sdk`: {}", &block[..end]);
        }
    }

    #[test]
    fn templates_are_filled_and_short() {
        for &kind in Kind::value_variants() {
            let args = NewArgs { name: "sea-sky".to_owned(), kind, json: false };
            for (file, bytes) in args.files().expect("templates") {
                // A fixture's bytes may be anything.
                let Ok(text) = String::from_utf8(bytes) else { continue };
                assert!(!text.contains("{{") || file.starts_with("vendor/"), "{kind:?} {file}");
                assert!(file != "src/lib.rs" || text.lines().count() < 60, "{kind:?} {}", text.lines().count());
            }
        }
    }

    #[test]
    fn the_sdk_is_complete_and_without_paths_of_this_machine() {
        let names: Vec<&str> = SDK.iter().map(|(name, _)| *name).collect();
        for name in ["Cargo.toml", "LICENSE", "README.md", "src/lib.rs", "src/testing.rs", "wit/plugin.wit"] {
            assert!(names.contains(&name), "{name}");
        }
        let manifest: toml::Table = std::str::from_utf8(SDK[0].1).expect("UTF-8").parse().expect("valid TOML");
        assert_eq!((SDK[0].0, manifest["package"]["name"].as_str()), ("Cargo.toml", Some("ambiguity-sdk")));
        for (name, bytes) in SDK {
            let text = std::str::from_utf8(bytes).expect("UTF-8");
            assert!(!text.contains(env!("CARGO_MANIFEST_DIR")) && !text.contains("workspace = true"), "{name}");
        }
    }
}
