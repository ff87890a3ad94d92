//! Where installed plugins came from: `.registry.toml` beside them, for those of registries.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

use super::trust::Signer;
use crate::fs::{read_optional, write_atomic};

/// The name of the file, which no plugin has.
const FILE: &str = ".registry.toml";

/// A plugin that was installed from a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The reference that it was installed by, with its range.
    pub reference: String,
    /// The version that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The sha256 of its file, in hexadecimal.
    pub sha256: String,
    /// The sha256 of its manifest, in hexadecimal.
    pub manifest: String,
    /// Who signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
}

/// Returns the plugins of a folder that were installed from registries, by their names.
///
/// # Errors
/// If the file cannot be read.
pub fn installed(folder: &Path) -> Result<BTreeMap<String, Installed>> {
    let path = folder.join(FILE);
    let text = read_optional(&path)?;
    toml::from_str(&text).map_err(|error| anyhow!("{}: {}", path.display(), error.message()))
}

/// Notes where the plugin of a name came from; nothing: from no registry.
///
/// # Errors
/// If the file cannot be written.
pub fn note(folder: &Path, name: &str, from: Option<Installed>) -> Result<()> {
    if from.is_none() && !folder.join(FILE).is_file() {
        return Ok(());
    }
    fs_err::create_dir_all(folder)?;
    let held = fs_err::File::create(folder.join(".registry.lock"))?;
    // A file system without locks has none.
    held.file().lock().ok();
    let mut all = installed(folder)?;
    let before = all.clone();
    match from {
        Some(from) => drop(all.insert(name.to_owned(), from)),
        None => drop(all.remove(name)),
    }
    if all == before {
        return Ok(());
    }
    let body = toml::to_string(&all).expect("texts serialize");
    let text = format!("# The plugins here that are from registries; `host plugin update` reads this.\n\n{body}");
    Ok(write_atomic(&folder.join(FILE), text.as_bytes())?)
}
