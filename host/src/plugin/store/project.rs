//! A team's folder: `ambiguity.toml` names its plugins, the encoders that they use, and whose signatures it trusts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use serde::Deserialize;

use super::reference::is_reference;
use super::trust::{Policy, TrustFile, TrustedKey};
use crate::fs::read_text;
use crate::text::escaped;

/// The name of the file.
pub const FILE: &str = "ambiguity.toml";

/// A project's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The plugins by the names that commands use: references, or paths from the file's folder.
    #[serde(default)]
    plugins: BTreeMap<String, String>,
    /// The folders of encoders, paths from the file's folder, or their ids on the Hub, by the names that plugins ask for.
    #[serde(default)]
    encoders: BTreeMap<String, String>,
    /// What happens with a plugin of a registry that nobody trusted has signed.
    policy: Option<Policy>,
    /// Keys that are trusted.
    #[serde(default, rename = "key")]
    keys: Vec<TrustedKey>,
}

/// A project, as commands below its folder see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Project {
    /// The folder of the file.
    pub folder: PathBuf,
    /// The plugins by their names: references, or paths.
    pub plugins: BTreeMap<String, String>,
    /// The folders of encoders, or their ids on the Hub, by their names.
    pub encoders: BTreeMap<String, String>,
    /// The keys and the policy.
    pub trust: TrustFile,
}

impl Project {
    /// Reads the file of the working folder, or of the nearest folder above it; nothing if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn find() -> Result<Option<Self>> {
        let Ok(working) = std::env::current_dir() else { return Ok(None) };
        let found = working.ancestors().find(|folder| folder.join(FILE).is_file());
        found.map(|folder| Self::open(folder, folder == working)).transpose()
    }

    /// Reads the file of a folder. Paths in it are from there, and remain as they are if that is the working folder.
    fn open(folder: &Path, is_working: bool) -> Result<Self> {
        let path = folder.join(FILE);
        let text = read_text(&path)?;
        let File { plugins, encoders, policy, keys } =
            toml::from_str(&text).map_err(|error| anyhow!("{}: {}", path.display(), error.to_string().trim()))?;
        for name in plugins.keys() {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
            ensure!(
                !name.is_empty() && name.chars().all(plain),
                "{}: the plugin's name `{}` has other characters than letters, digits, `_` and `-`",
                path.display(),
                escaped(name)
            );
        }
        let from_here = |value: String| match is_working || Path::new(&value).is_absolute() {
            true => value,
            false => folder.join(value).to_string_lossy().into_owned(),
        };
        let place = |value: String| if is_reference(&value) { value } else { from_here(value) };
        // An id on the Hub has the form of a path: it is one if there is no such folder.
        let encoder = |value: String| if folder.join(&value).exists() { from_here(value) } else { value };
        Ok(Self {
            folder: folder.to_owned(),
            plugins: plugins.into_iter().map(|(name, value)| (name, place(value))).collect(),
            encoders: encoders.into_iter().map(|(name, value)| (name, encoder(value))).collect(),
            trust: TrustFile { policy, keys },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_from_the_files_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("clip")).expect("a new folder");
        let text = "policy = \"require\"\n\
                    [plugins]\nsea = \"oci://r.example/team/sea:^1\"\nland = \"plugins/land.wasm\"\n\
                    [encoders]\nclip = \"clip\"\nlarge = \"openai/clip-vit-large-patch14\"\n\
                    [[key]]\nname = \"team\"\nnamespace = \"r.example/team\"\nkey = \"RW\"\n";
        std::fs::write(folder.path().join(FILE), text).expect("written");
        let project = Project::open(folder.path(), false).expect("a project");
        let here = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        assert_eq!(project.plugins["sea"], "oci://r.example/team/sea:^1");
        assert_eq!(project.plugins["land"], here("plugins/land.wasm"));
        assert_eq!(project.encoders["clip"], here("clip"));
        assert_eq!(project.encoders["large"], "openai/clip-vit-large-patch14");
        assert_eq!((project.trust.policy, project.trust.keys.len()), (Some(Policy::Require), 1));
        assert_eq!(Project::open(folder.path(), true).expect("a project").plugins["land"], "plugins/land.wasm");
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_path() {
        let folder = tempfile::tempdir().expect("a folder");
        for (text, part) in [
            ("[plugin]\n", "unknown field `plugin`"),
            ("[plugins]\n\"a/b\" = \"x\"\n", "the plugin's name `a/b`"),
            ("policy = \"maybe\"\n", "unknown variant `maybe`"),
        ] {
            std::fs::write(folder.path().join(FILE), text).expect("written");
            let message = Project::open(folder.path(), true).expect_err("wrong").to_string();
            assert!(message.contains(FILE) && message.contains(part), "{message}");
        }
    }
}
