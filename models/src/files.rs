//! The one way in which a file is written: a temporary sibling, fsync, rename, fsync of the folder, so that a crash
//! leaves either the old file or the new one, and never a part of one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What a file is that a repository keeps with Git LFS and that was not fetched, if these bytes are one.
pub fn lfs_pointer(bytes: &[u8]) -> Option<&'static str> {
    const TEXT: &str = "it is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository";
    bytes.starts_with(b"version https://git-lfs").then_some(TEXT)
}

/// The temporary sibling of `path` that this process writes first: `.NAME.PID.tmp`.
pub fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

/// Whether a file name is one that [`temporary`] returns.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Replaces the contents of `path` with `bytes`, all or nothing.
///
/// # Errors
/// If the folder does not exist or the disk refuses; a file that existed before is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    let written =
        write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, path)).and_then(|()| sync_parent(path));
    // The first error is the one that matters; the temporary file may not even exist.
    written.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Writes a file and syncs it to the disk.
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Syncs the folder of `path`, and with it the names of its files, to the disk.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
