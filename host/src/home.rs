//! Where the things that ship lie.

use std::path::{Path, PathBuf};

/// The folder that holds `models/weights` and `plugins`: `AMBIGUITY_HOME`, else the nearest ancestor of the executable
/// that has `models/weights`.
pub fn home() -> Option<PathBuf> {
    if let Some(home) = std::env::var_os("AMBIGUITY_HOME").filter(|home| !home.is_empty()) {
        return Some(home.into());
    }
    let executable = std::env::current_exe().ok()?;
    executable.ancestors().find(|folder| folder.join("models/weights").is_dir()).map(Path::to_owned)
}
