//! `host plugin new`: creates a plugin crate that builds and passes its tests, from templates in this program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::context::Context;
use crate::text::to_json;
use crate::zoo::home::home;
use procedural_art::{STYLES, paint};

/// Create a Rust plugin crate that builds and passes its tests, as a starting point.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin new sea_and_sky                      classifies by pixels
  host plugin new movements --kind embedding       classifies by CLIP's similarity to the names of styles
  host plugin new tone --kind text

Then, in its folder: cargo test, cargo build-plugin, host plugin check .")]
pub struct NewArgs {
    /// The plugin's name, which is also the name of the new folder
    name: String,
    /// The plugin's input
    #[arg(long, value_enum, default_value_t = Kind::Pixels)]
    kind: Kind,
    /// The folder of ambiguity-sdk [default: the one beside this program's sources]
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
    /// Print one JSON document about what was created
    #[arg(long)]
    json: bool,
}

/// The input of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// An image's pixels
    Pixels,
    /// An image's embedding by CLIP
    Embedding,
    /// A text
    Text,
}

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

/// Styles of the paintings that are an image plugin's fixtures.
const FIXTURES: [&str; 2] = ["impressionism", "ukiyo-e"];
/// Side of the fixtures in pixels.
const SIDE: u32 = 96;

/// The texts that are a text plugin's fixtures.
const TEXTS: [(&str, &str); 2] = [
    ("note.txt", "The ferry leaves at nine. It is cold on deck. Bring a coat.\n"),
    (
        "letter.txt",
        "When at last the long rains had gone and the road lay dry and white in the sun, she walked down to the \
         harbour, as she had every summer of her life, to look for the one red sail among the gray.\n",
    ),
];

impl NewArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        check_name(&self.name)?;
        let folder = PathBuf::from(&self.name);
        ensure!(!folder.exists(), "{} exists already: choose another name, or remove it", folder.display());
        let sdk = self.sdk()?;
        let here = std::env::current_dir().context("the working folder")?;
        // The crate is written under a temporary name first, so that it is complete or does not exist.
        let partial = tempfile::Builder::new().prefix(".new-").tempdir_in(&here).context("the working folder")?;
        for (file, bytes) in self.files(&sdk)? {
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

    /// Returns the SDK's folder as an absolute path.
    fn sdk(&self) -> Result<PathBuf> {
        let is_sdk = |folder: &Path| {
            fs_err::read_to_string(folder.join("Cargo.toml"))
                .is_ok_and(|text| text.contains("name = \"ambiguity-sdk\""))
        };
        let folder = match (&self.sdk, home()) {
            (Some(given), _) => {
                ensure!(is_sdk(given), "{} is not the folder of ambiguity-sdk", given.display());
                given.clone()
            }
            (None, Some(home)) if is_sdk(&home.join("sdk")) => home.join("sdk"),
            (None, _) => bail!(
                "ambiguity-sdk is not beside this program: name its folder in a checkout of Ambiguity with --sdk DIR"
            ),
        };
        fs_err::canonicalize(folder).map_err(Into::into)
    }

    /// Returns the crate's files and their contents.
    fn files(&self, sdk: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let library = match self.kind {
            Kind::Pixels => include_str!("../../../templates/plugin/pixels.rs.in"),
            Kind::Embedding => include_str!("../../../templates/plugin/embedding.rs.in"),
            Kind::Text => include_str!("../../../templates/plugin/text.rs.in"),
        };
        let file = self.name.replace('-', "_");
        let path =
            sdk.to_str().with_context(|| format!("{} is not UTF-8, which Cargo.toml requires", sdk.display()))?;
        let fill = |template: &str| {
            let text = template.replace("{{name}}", &self.name).replace("{{type}}", &type_name(&self.name));
            let text = text.replace("{{file}}", &file).replace("{{sdk}}", &toml::Value::from(path).to_string());
            text.replace("{{wasm}}", &format!("target/wasm32-unknown-unknown/plugin/{file}.wasm")).into_bytes()
        };
        let mut files = vec![
            ("Cargo.toml", fill(include_str!("../../../templates/plugin/Cargo.toml.in"))),
            (".cargo/config.toml", fill(include_str!("../../../templates/plugin/config.toml.in"))),
            ("rust-toolchain.toml", include_bytes!("../../../../rust-toolchain.toml").to_vec()),
            (".gitignore", fill(include_str!("../../../templates/plugin/gitignore.in"))),
            ("README.md", fill(include_str!("../../../templates/plugin/README.md.in"))),
            ("src/lib.rs", fill(library)),
        ];
        if let Some(lock) = sdk.parent().and_then(|root| fs_err::read_to_string(root.join("Cargo.lock")).ok()) {
            files.push(("Cargo.lock", lock_file(&lock, &self.name)?.into_bytes()));
        }
        match self.kind {
            Kind::Text => files.extend(TEXTS.map(|(name, text)| match name {
                "note.txt" => ("fixtures/note.txt", text.into()),
                _ => ("fixtures/letter.txt", text.into()),
            })),
            Kind::Pixels | Kind::Embedding => {
                files.push(("fixtures/impressionism.png", painting(FIXTURES[0], 2)?));
                files.push(("fixtures/ukiyo-e.png", painting(FIXTURES[1], 1)?));
            }
        }
        Ok(files)
    }
}

/// Returns a painting as a PNG file.
fn painting(slug: &str, subject: usize) -> Result<Vec<u8>> {
    let style = STYLES.iter().position(|style| style.slug == slug).expect("it is one of the styles");
    let mut png = std::io::Cursor::new(vec![]);
    paint(style, subject, 7, 0, SIDE).write_to(&mut png, image::ImageFormat::Png)?;
    Ok(png.into_inner())
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
    } else {
        return Ok(());
    };
    bail!("`{name}` is not a valid name for a plugin crate: {problem}")
}

/// Converts a name to a type's name: `sea_and-sky` to `SeaAndSky`.
fn type_name(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    let name: String = name.split(['-', '_']).filter(|word| !word.is_empty()).map(capital).collect();
    // Names that the template uses already.
    let taken = ["Batch", "Classifier", "Cosine", "Description", "Distribution", "Distributions", "Gradient", "Image"];
    match taken.contains(&name.as_str()) || ["Matrix", "Result", "Vec", "String", "Ok"].contains(&name.as_str()) {
        true => format!("{name}Plugin"),
        false => name,
    }
}

/// The content of cargo's lock file.
#[derive(Deserialize, Serialize)]
struct Lock {
    version: u32,
    package: Vec<Package>,
}

#[derive(Clone, Deserialize, Serialize)]
struct Package {
    name: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dependencies: Vec<String>,
}

/// Returns the new crate's lock file: the SDK's dependencies in the versions that the SDK was tested with, so that
/// cargo need not resolve them.
fn lock_file(sdk_lock: &str, name: &str) -> Result<String> {
    let mut lock: Lock = toml::from_str(sdk_lock).context("the Cargo.lock beside the SDK")?;
    let (mut wanted, mut queue) = (BTreeSet::new(), vec!["ambiguity-sdk".to_owned()]);
    while let Some(next) = queue.pop() {
        // A dependency is NAME, NAME VERSION where there are several, or NAME VERSION (SOURCE).
        let mut parts = next.split(' ');
        let (package, version) = (parts.next().unwrap_or_default(), parts.next());
        for (i, found) in lock.package.iter().enumerate() {
            let is_it = found.name == package && version.is_none_or(|version| found.version == version);
            if is_it && wanted.insert(i) {
                queue.extend(found.dependencies.iter().cloned());
            }
        }
    }
    lock.package = wanted.into_iter().map(|i| lock.package[i].clone()).collect();
    lock.package.push(Package {
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        source: None,
        checksum: None,
        dependencies: vec!["ambiguity-sdk".to_owned()],
    });
    lock.package.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(toml::to_string(&lock)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_crates() {
        for name in ["palette", "sea_and-sky2"] {
            check_name(name).expect(name);
        }
        for name in ["", "2d", "Palette", "sea sky", "../up", "fn", "é", "ambiguity-sdk", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert_eq!(["sea_and-sky2", "batch", "a--b"].map(type_name), ["SeaAndSky2", "BatchPlugin", "AB"]);
    }

    #[test]
    fn the_lock_file_has_what_the_sdk_needs_and_no_more() {
        let sdk_lock = r#"
            version = 4
            [[package]]
            name = "ambiguity-sdk"
            version = "0.1.0"
            dependencies = ["serde", "itoa 1.0.0"]
            [[package]]
            name = "serde"
            version = "1.0.1"
            source = "registry"
            checksum = "00"
            [[package]]
            name = "itoa"
            version = "0.4.0"
            [[package]]
            name = "itoa"
            version = "1.0.0"
            [[package]]
            name = "wasmtime"
            version = "48.0.0"
        "#;
        let lock: Lock = toml::from_str(&lock_file(sdk_lock, "mine").expect("a lock file")).expect("valid TOML");
        let names: Vec<_> =
            lock.package.iter().map(|package| format!("{} {}", package.name, package.version)).collect();
        assert_eq!(names, ["ambiguity-sdk 0.1.0", "itoa 1.0.0", "mine 0.1.0", "serde 1.0.1"]);
    }

    #[test]
    fn templates_are_filled_and_short() {
        for kind in [Kind::Pixels, Kind::Embedding, Kind::Text] {
            let args = NewArgs { name: "sea-sky".to_owned(), kind, sdk: None, json: false };
            for (file, bytes) in args.files(Path::new("/no/sdk")).expect("templates") {
                // An image's bytes may be anything.
                let Ok(text) = String::from_utf8(bytes) else { continue };
                assert!(!text.contains("{{"), "{kind:?} {file}");
                assert!(file != "src/lib.rs" || text.lines().count() < 60, "{kind:?} {}", text.lines().count());
            }
        }
    }
}
