//! From what a user calls a plugin to its file: a path, a name, or a reference to a registry.
//!
//! # Layout
//!
//! - this file: [`Store`], and names
//! - `crate_folder`: folders · `project`: a team's folder, `ambiguity.toml`
//! - [`reference`](mod@reference): references to registries · [`registry`]: requests to them · `published`: from a reference to verified files
//! - [`signature`]: minisign · [`trust`]: whose signatures are accepted
//! - [`installed`]: where installed plugins came from

mod crate_folder;
pub mod installed;
mod project;
mod published;
pub mod reference;
pub mod registry;
pub mod signature;
pub mod trust;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use self::crate_folder::EXTENSIONS;
pub use self::crate_folder::{is_plugin_folder, plugin_files};
pub use self::project::{FILE as PROJECT_FILE, Project};
use self::published::Finder;
pub use self::published::Published;
use self::reference::{Reference, is_reference};
use self::registry::{Cache, Network};
use self::trust::{Signer, Trust};
use super::error::{Fault, PluginError};
use crate::context::Context;
use crate::interrupt::Interrupted;
use crate::text::{nearest, sentence};
use crate::zoo::home::home;

/// The places in which plugins are looked up by name, in this order: an earlier one hides a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The working folder itself.
    WorkingFolder,
    /// `plugins` in the working folder.
    Plugins,
    /// The plugins that ship with the program.
    Shipped,
    /// The plugins that `host plugin install` copied into the user's data folder.
    Installed,
}

impl Origin {
    /// Returns the name of the place, as lists show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WorkingFolder => "working folder",
            Self::Plugins => "./plugins",
            Self::Shipped => "shipped",
            Self::Installed => "installed",
        }
    }
}

/// Returns the folders in which names are looked up, in order, whether they exist or not.
pub fn places() -> Vec<(Origin, PathBuf)> {
    [
        Some((Origin::WorkingFolder, PathBuf::from("."))),
        Some((Origin::Plugins, PathBuf::from("plugins"))),
        home().map(|home| (Origin::Shipped, home.join("plugins"))),
        installed_folder().map(|folder| (Origin::Installed, folder)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns the folder of installed plugins: `XDG_DATA_HOME`, else `~/.local/share`, then `ambiguity/plugins`.
pub fn installed_folder() -> Option<PathBuf> {
    user_folder("XDG_DATA_HOME", ".local/share").map(|folder| folder.join("plugins"))
}

/// Returns `ambiguity` in the folder that an environment variable names, else in a folder below `HOME`.
pub(super) fn user_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let folder = |variable| std::env::var_os(variable).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = folder(variable).or_else(|| Some(folder("HOME")?.join(below_home)))?;
    Some(folder.join("ambiguity"))
}

/// The file that a plugin was found in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The plugin's name in messages: its file's without extension.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Where it was published, if it is from a registry.
    pub published: Option<Published>,
}

/// What a lock says of a plugin of a registry: which files are meant, whatever its reference means today.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The place in a registry.
    pub reference: Reference,
    /// The version that it had.
    pub version: Option<String>,
    /// The sha256 of its manifest, in hexadecimal.
    pub manifest: String,
    /// Who had signed it.
    pub signer: Option<Signer>,
    /// Whether it is of a run's own lock: its plugin was accepted when the run was started.
    pub is_own: bool,
}

/// Finds plugins.
#[derive(Debug)]
pub struct Store {
    /// What registries need; nothing in a program that only uses files.
    network: Option<Network>,
    project: Option<Project>,
    pins: BTreeMap<String, Pin>,
    trust: OnceCell<Trust>,
}

impl Store {
    /// Returns a store of files alone.
    pub fn local() -> Self {
        Self { network: None, project: None, pins: BTreeMap::new(), trust: OnceCell::new() }
    }

    /// Returns the store of a command: registries are reached, and the names of the project's file are known.
    ///
    /// # Errors
    /// If the project's file cannot be read.
    pub fn of_command(context: &Context) -> anyhow::Result<Self> {
        Ok(Self { network: Some(Network::of(context)), project: Project::find()?, ..Self::local() })
    }

    /// Returns the store, for which these references mean what a lock says.
    pub fn pinned(self, pins: BTreeMap<String, Pin>) -> Self {
        Self { pins, ..self }
    }

    /// Returns the store, which accepts other signatures than the user's files say.
    pub fn trusting(self, trust: Trust) -> Self {
        Self { trust: OnceCell::from(trust), ..self }
    }

    /// Returns the project, if the working folder is one's.
    pub fn project(&self) -> Option<&Project> {
        self.project.as_ref()
    }

    /// Returns what requests to registries need.
    ///
    /// # Errors
    /// If this program uses files alone.
    pub fn network(&self) -> anyhow::Result<&Network> {
        self.network.as_ref().context("this program uses no registries")
    }

    /// Returns whose signatures are accepted.
    ///
    /// # Errors
    /// If a file about it cannot be read.
    pub fn trust(&self) -> anyhow::Result<&Trust> {
        if self.trust.get().is_none() {
            let trust = Trust::open(self.project.as_ref().map(|project| &project.trust))?;
            return Ok(self.trust.get_or_init(|| trust));
        }
        self.trust.get().context("it was set")
    }

    /// Returns the cache of registries.
    ///
    /// # Errors
    /// If there is no place for one.
    pub fn cache(&self) -> anyhow::Result<Cache> {
        let folder = user_folder("XDG_CACHE_HOME", ".cache");
        let folder = folder.context("there is no folder for what is pulled: HOME and XDG_CACHE_HOME are both unset")?;
        Ok(Cache::new(folder.join("registry")))
    }

    /// Returns what a name of the project's file means, or the text itself.
    pub fn meaning<'a>(&'a self, reference: &'a str) -> &'a str {
        let project = self.project.as_ref().and_then(|project| project.plugins.get(reference));
        project.map_or(reference, |value| value.as_str())
    }

    /// Returns the file of a plugin. A reference to a registry is pulled, unless the cache has it; a name of the project's
    /// file means what is said there; the others are paths and names on this machine.
    ///
    /// # Errors
    /// If there is no such plugin, or it must not be used.
    pub fn find(&self, reference: &str) -> Result<Found, PluginError> {
        let meaning = self.meaning(reference);
        let pin = self.pins.get(reference);
        if !is_reference(meaning) && pin.is_none() {
            let path = resolve(meaning)?;
            return Ok(Found { name: short_name(&path.to_string_lossy()), path, published: None });
        }
        self.published(meaning, pin).map_err(|error| {
            let fault = match error.is::<Interrupted>() {
                true => Fault::Interrupted,
                false => Fault::Registry(sentence(&error)),
            };
            PluginError::new(plugin_name(reference), fault)
        })
    }

    fn published(&self, reference: &str, pin: Option<&Pin>) -> anyhow::Result<Found> {
        let reference = match pin {
            Some(pin) => pin.reference.clone(),
            None => reference.parse::<Reference>().map_err(anyhow::Error::msg)?,
        };
        let (network, cache, trust) = (self.network()?, self.cache()?, self.trust()?);
        Finder { network, cache: &cache, trust }.find(&reference, pin)
    }
}

/// Returns the name of a plugin by what a user calls it: a path, a name, or a reference to a registry.
pub fn plugin_name(reference: &str) -> String {
    match reference.parse::<Reference>() {
        Ok(reference) => reference.repository.name().to_owned(),
        Err(_) => short_name(reference),
    }
}

/// Returns the file of a plugin that is on this machine. A path is used as it is; the path of a plugin crate's folder stands for the component
/// that was built there. A name without a separator is looked up in the working folder, ./plugins, the shipped plugins
/// and the installed ones; its extension is optional.
fn resolve(reference: &str) -> Result<PathBuf, PluginError> {
    let folders: Vec<PathBuf> = places().into_iter().map(|(_, folder)| folder).collect();
    resolve_in(reference, &folders)
}

/// Returns the folder that a reference to a plugin names, if the plugin is looked for in it.
pub fn named_folder(reference: &str) -> Option<&Path> {
    let folders: Vec<PathBuf> = places().into_iter().map(|(_, folder)| folder).collect();
    let is_hidden = is_name(reference) && named_file(reference, &folders).is_some();
    Some(Path::new(reference)).filter(|path| path.is_dir() && !is_hidden)
}

/// Returns whether a reference to a plugin is a name, and no path.
fn is_name(reference: &str) -> bool {
    let mut parts = Path::new(reference).components();
    parts.all(|part| matches!(part, std::path::Component::Normal(_))) && !reference.contains(std::path::is_separator)
}

/// Returns the first file in some folders that has this name, whose extension is optional.
fn named_file(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let names: Vec<String> = match Path::new(name).extension() {
        Some(extension) if EXTENSIONS.iter().any(|known| extension == *known) => vec![name.to_owned()],
        _ => EXTENSIONS.iter().map(|extension| format!("{name}.{extension}")).collect(),
    };
    let mut candidates = folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
    candidates.find(|candidate| candidate.is_file())
}

fn resolve_in(reference: &str, folders: &[PathBuf]) -> Result<PathBuf, PluginError> {
    let path = Path::new(reference);
    if !is_name(reference) {
        if path.is_dir() {
            return crate_folder::built(path).map_err(|fault| PluginError::new(reference, fault));
        }
        return match path.is_file() {
            true => Ok(path.to_owned()),
            false => Err(not_found(reference, vec![], &neighbors(path), vec![])),
        };
    }
    if let Some(file) = named_file(reference, folders) {
        return Ok(file);
    }
    if is_plugin_folder(path) {
        return crate_folder::built(path).map_err(|fault| PluginError::new(reference, fault));
    }
    let files = folders.iter().flat_map(|folder| plugin_files(folder));
    let mut available: Vec<String> = files.map(|file| short_name(&file.to_string_lossy())).collect();
    available.sort();
    available.dedup();
    Err(not_found(reference, folders.to_vec(), &available, available.clone()))
}

/// Returns the paths of the plugins in a path's folder.
fn neighbors(path: &Path) -> Vec<String> {
    let files = path.parent().map(plugin_files).unwrap_or_default();
    files.iter().map(|file| file.to_string_lossy().into_owned()).collect()
}

/// Returns the name of a plugin in messages: its file's name without extension.
pub fn short_name(reference: &str) -> String {
    Path::new(reference).file_stem().map_or_else(|| reference.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn not_found(reference: &str, folders: Vec<PathBuf>, similar: &[String], available: Vec<String>) -> PluginError {
    let similar = nearest(reference, similar.iter().map(String::as_str)).map(|(_, name)| name.to_owned());
    PluginError::new(reference, Fault::NotFound { folders, similar, available })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_in_order_and_a_path_is_not() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folders = [root.path().join("near"), root.path().join("far")];
        for folder in &folders {
            std::fs::create_dir(folder).expect("a new folder");
        }
        for file in ["far/kmeans.wasm", "far/words.wasm", "near/words.wasm", "near/notes.txt"] {
            std::fs::write(root.path().join(file), "").expect("a new file");
        }
        // A folder with the plugin's name is not a plugin.
        std::fs::create_dir(root.path().join("near/kmeans.wasm")).expect("a new folder");

        assert_eq!(resolve_in("kmeans", &folders).expect("found"), folders[1].join("kmeans.wasm"));
        assert_eq!(resolve_in("words.wasm", &folders).expect("found"), folders[0].join("words.wasm"));
        let message = resolve_in("kmean", &folders).expect_err("not found").to_string();
        assert!(
            message.starts_with("plugin `kmean`: not found in ")
                && message.ends_with("; did you mean `kmeans`? Available: kmeans, words"),
            "{message}"
        );
        let message = resolve_in("xyz", &folders).expect_err("not found").to_string();
        assert!(!message.contains("did you mean") && message.ends_with("; available: kmeans, words"), "{message}");
        assert_eq!(resolve_in("./kmeans", &folders).expect_err("no path").to_string(), "plugin `./kmeans`: not found");
        let far = folders[1].display();
        let message = resolve_in(&format!("{far}/kmaens.wasm"), &folders).expect_err("no such path").to_string();
        assert!(message.ends_with(&format!(": not found; did you mean `{far}/kmeans.wasm`?")), "{message}");
    }
}
