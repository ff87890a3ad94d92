//! Writing so that a crash leaves the old state or the new one: a temporary sibling, fsync, rename, fsync of the folder.
//!
//! Temporaries are named `.NAME.PID.tmp`; [`sweep`] removes those that a killed process left behind.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::{Result, RunError};

/// The temporary sibling of `path`.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

/// Whether a file name is one that [`temporary`] makes.
fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Replaces `path` by `bytes`, all or nothing; its folder must exist.
pub(super) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary(path);
    let written =
        write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, path)).and_then(|()| sync_parent(path));
    written.map_err(|source| {
        // The first error is the one that matters; the temporary may not even exist.
        drop(fs::remove_file(&temporary));
        RunError::write(path, source)
    })
}

/// Makes `path` a folder that holds `files`, all or nothing: the folder that was there before stays until the new one is whole.
pub(super) fn write_folder_atomic(path: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    let fresh = temporary(path);
    let old = temporary(&path.with_extension("old"));
    let written = (|| {
        remove_any(&fresh)?;
        fs::create_dir(&fresh)?;
        for (name, bytes) in files {
            write_synced(&fresh.join(name), bytes)?;
        }
        File::open(&fresh)?.sync_all()?;
        if path.exists() {
            remove_any(&old)?;
            fs::rename(path, &old)?;
        }
        fs::rename(&fresh, path)?;
        sync_parent(path)?;
        remove_any(&old)
    })();
    written.map_err(|source| {
        drop(fs::remove_dir_all(&fresh));
        RunError::write(path, source)
    })
}

/// Removes a folder all or nothing: it is renamed to a temporary name first, so that half of it never has its name.
pub(super) fn remove_folder(path: &Path) -> Result<()> {
    let doomed = temporary(path);
    remove_any(&doomed)
        .and_then(|()| fs::rename(path, &doomed))
        .and_then(|()| remove_any(&doomed))
        .map_err(|source| RunError::write(path, source))
}

/// Removes the temporaries in `folder` that earlier processes left; a folder that is not there has none.
pub(super) fn sweep(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten() {
        if is_temporary(&entry.file_name().to_string_lossy()) {
            remove_any(&entry.path()).map_err(|source| RunError::write(&entry.path(), source))?;
        }
    }
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
