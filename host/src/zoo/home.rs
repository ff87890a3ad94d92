//! The folders of shipped models and plugins, and of the dependencies that `make setup` installs.

use std::path::{Path, PathBuf};

/// Returns the folder that contains `models/weights` and `plugins`: `AMBIGUITY_HOME`, else the nearest ancestor of the
/// executable that contains `models/weights`.
pub fn home() -> Option<PathBuf> {
    if let Some(home) = std::env::var_os("AMBIGUITY_HOME").filter(|home| !home.is_empty()) {
        return Some(home.into());
    }
    let executable = std::env::current_exe().ok()?;
    executable.ancestors().find(|folder| folder.join("models/weights").is_dir()).map(Path::to_owned)
}

/// Returns the folder with libtorch/ and onnxruntime/ that `make setup` creates: `.deps` in [`home`], else in the
/// nearest ancestor of the executable that contains one.
pub fn dependencies() -> Option<PathBuf> {
    let executable = std::env::current_exe().unwrap_or_default();
    let home = home();
    let folders = home.iter().map(PathBuf::as_path).chain(executable.ancestors());
    folders.map(|folder| folder.join(".deps")).find(|folder| folder.is_dir())
}
