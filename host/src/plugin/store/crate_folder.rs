//! Finds the plugin in a folder: a plugin crate's built component, or the folder's only plugin file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use crate::plugin::error::Fault;
use crate::plugin::onnx;

/// The folder below the target folder into which `cargo build-plugin` writes a component.
const BUILT: &str = "wasm32-unknown-unknown/plugin";

/// File extensions of plugins, which a name may omit.
pub(super) const EXTENSIONS: [&str; 2] = ["wasm", onnx::EXTENSION];

/// The parts of a Cargo.toml that are read.
#[derive(Deserialize)]
struct CargoToml {
    package: Option<Named>,
    lib: Option<Lib>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Lib {
    name: Option<String>,
}

/// Returns the plugin files directly in a folder, sorted; none if the folder does not exist.
pub fn plugin_files(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_plugin = |path: &PathBuf| path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known));
    let mut files: Vec<PathBuf> = files.filter(is_plugin).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Returns whether a folder is a plugin crate or contains plugin files.
pub fn is_plugin_folder(folder: &Path) -> bool {
    folder.join("Cargo.toml").is_file() || (folder.is_dir() && !plugin_files(folder).is_empty())
}

/// Returns the plugin in a folder: the component that `cargo build-plugin` built from the crate there, otherwise the
/// only plugin file. Warns about a component that is older than its sources.
pub fn built(folder: &Path) -> Result<PathBuf, Fault> {
    let manifest = folder.join("Cargo.toml");
    if manifest.is_file() {
        return built_crate(folder, &manifest);
    }
    let files = plugin_files(folder);
    match &files[..] {
        [file] => Ok(file.clone()),
        [] => {
            Err(Fault::Folder(format!("{} is a folder with neither a Cargo.toml nor a plugin file", folder.display())))
        }
        _ => {
            let names: Vec<_> = files.iter().filter_map(|file| file.file_name()).map(OsStr::to_string_lossy).collect();
            Err(Fault::Folder(format!("{} has several plugins: name one of {}", folder.display(), names.join(", "))))
        }
    }
}

fn built_crate(folder: &Path, manifest: &Path) -> Result<PathBuf, Fault> {
    let io = |source| Fault::Io { path: manifest.to_owned(), source };
    let bad = |detail: String| Fault::Folder(format!("{}: {detail}", manifest.display()));
    let text = std::fs::read_to_string(manifest).map_err(io)?;
    let read: CargoToml = toml::from_str(&text).map_err(|error| bad(error.message().to_owned()))?;
    let package = read.package.ok_or_else(|| bad("it has no [package]: name the folder of one crate".to_owned()))?;
    let name = read.lib.and_then(|lib| lib.name).unwrap_or(package.name).replace('-', "_");
    let file = format!("{BUILT}/{name}.wasm");
    let folder = folder.canonicalize().map_err(io)?;
    let set = std::env::var_os("CARGO_TARGET_DIR").filter(|set| !set.is_empty()).map(PathBuf::from);
    // A crate of a larger workspace is built into that one's target folder.
    let targets = set.into_iter().chain(folder.ancestors().map(|ancestor| ancestor.join("target")));
    let Some(found) = targets.map(|target| target.join(&file)).find(|candidate| candidate.is_file()) else {
        let missing = format!("the crate `{name}` is not built: run `cargo build-plugin` in {}", folder.display());
        return Err(Fault::Folder(missing));
    };
    if let Some(source) = newer_source(&folder, &found) {
        let (source, found) = (source.display(), found.display());
        tracing::warn!("{source} is newer than {found}: `cargo build-plugin` builds it again");
    }
    Ok(found)
}

/// Returns a source of the crate that changed after the component was built, if there is one.
fn newer_source(folder: &Path, component: &Path) -> Option<PathBuf> {
    let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let built = changed(component)?;
    let mut sources = vec![folder.join("Cargo.toml")];
    collect(&folder.join("src"), &mut sources);
    sources.into_iter().find(|source| changed(source).is_some_and(|time: SystemTime| time > built))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_leads_to_what_was_built_in_it() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = root.path().canonicalize().expect("it exists").join("wide-eyes");
        std::fs::create_dir_all(folder.join("src")).expect("a new folder");
        let message = |folder: &Path| built(folder).expect_err("nothing to find").to_string();
        assert!(message(&folder).ends_with("is a folder with neither a Cargo.toml nor a plugin file"));

        std::fs::write(folder.join("Cargo.toml"), "[package]\nname = \"wide-eyes\"").expect("a new file");
        assert!(is_plugin_folder(&folder));
        assert!(message(&folder).starts_with("the crate `wide_eyes` is not built: run `cargo build-plugin` in "));

        let component = folder.join("target").join(BUILT).join("wide_eyes.wasm");
        std::fs::create_dir_all(component.parent().expect("a folder")).expect("a new folder");
        std::fs::write(&component, "").expect("a new file");
        assert_eq!(built(&folder).expect("it is built"), component);
        assert_eq!(newer_source(&folder, &component), None);
    }

    #[test]
    fn a_folder_with_one_plugin_file_is_that_plugin() {
        let root = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(root.path().join("a.wasm"), "").expect("a new file");
        assert_eq!(built(root.path()).expect("one"), root.path().join("a.wasm"));
        std::fs::write(root.path().join("b.wasm"), "").expect("a new file");
        let message = built(root.path()).expect_err("two").to_string();
        assert!(message.ends_with("has several plugins: name one of a.wasm, b.wasm"), "{message}");
    }
}
