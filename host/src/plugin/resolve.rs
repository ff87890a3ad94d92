//! From what a user calls a plugin to its file.

use std::path::{Path, PathBuf};

use super::error::{Fault, PluginError};
use crate::home::home;

/// Extensions that a name may leave out.
const EXTENSIONS: [&str; 2] = ["wasm", super::onnx::EXTENSION];

/// The file of a plugin: a path as it is; a name without a separator is looked up in the working folder, ./plugins, the
/// shipped plugins and the installed ones, its extension optional.
pub fn resolve(reference: &str) -> Result<PathBuf, PluginError> {
    resolve_in(reference, &folders())
}

fn resolve_in(reference: &str, folders: &[PathBuf]) -> Result<PathBuf, PluginError> {
    let path = Path::new(reference);
    if path.components().count() != 1 || reference.contains(std::path::is_separator) {
        return match path.is_file() {
            true => Ok(path.to_owned()),
            false => Err(not_found(reference, vec![], vec![])),
        };
    }
    let names: Vec<String> = match path.extension() {
        Some(extension) if EXTENSIONS.iter().any(|known| extension == *known) => vec![reference.to_owned()],
        _ => EXTENSIONS.iter().map(|extension| format!("{reference}.{extension}")).collect(),
    };
    let candidates = folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(|| {
        let mut available: Vec<String> = folders.iter().flat_map(|folder| plugins_in(folder)).collect();
        available.sort();
        available.dedup();
        not_found(reference, folders.to_vec(), available)
    })
}

/// The name by which messages call a plugin: its file's, without extension.
pub fn short_name(reference: &str) -> String {
    Path::new(reference).file_stem().map_or_else(|| reference.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn not_found(reference: &str, folders: Vec<PathBuf>, available: Vec<String>) -> PluginError {
    PluginError::new(reference, Fault::NotFound { folders, available })
}

fn folders() -> Vec<PathBuf> {
    let installed = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")))
        .map(|data| data.join("ambiguity/plugins"));
    let shipped = home().map(|home| home.join("plugins"));
    [Some(PathBuf::from(".")), Some(PathBuf::from("plugins")), shipped, installed].into_iter().flatten().collect()
}

fn plugins_in(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_plugin = |path: &PathBuf| path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known));
    files.filter(is_plugin).filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect()
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
        // A folder of the plugin's name is no plugin.
        std::fs::create_dir(root.path().join("near/kmeans.wasm")).expect("a new folder");

        assert_eq!(resolve_in("kmeans", &folders).expect("there"), folders[1].join("kmeans.wasm"));
        assert_eq!(resolve_in("words.wasm", &folders).expect("there"), folders[0].join("words.wasm"));
        let message = resolve_in("kmean", &folders).expect_err("not there").to_string();
        assert!(
            message.starts_with("plugin `kmean`: not found in ") && message.ends_with("; there are: kmeans, words"),
            "{message}"
        );
        assert_eq!(resolve_in("./kmeans", &folders).expect_err("no path").to_string(), "plugin `./kmeans`: not found");
    }
}
