//! Files and folders: written whole or not at all, and read with errors that say which file and why.
//!
//! The temporary siblings of [`write_atomic`] are named `.NAME.PID.tmp`; [`sweep`] removes those that a killed process
//! left behind.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use ambiguity_models::files::{is_temporary, sync_parent, temporary, write_synced};

/// The result of working on files.
pub type Result<T, E = FileError> = std::result::Result<T, E>;

/// Why a file or folder could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {}", .path.display(), reason(.source))]
pub struct FileError {
    /// `read` or `write`.
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// The error of a file or folder that cannot be written.
    pub fn write(path: &Path, source: io::Error) -> Self {
        Self { action: "write", path: path.to_owned(), source }
    }

    /// The error of a file or folder that cannot be read.
    pub fn read(path: &Path, source: io::Error) -> Self {
        Self { action: "read", path: path.to_owned(), source }
    }
}

/// The error in words, without the operating system's number and capital.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// Replaces `path` by `bytes`, all or nothing; its folder must exist.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let missing = io::Error::new(ErrorKind::NotFound, format!("there is no folder {}", folder.display()));
        return Err(FileError::write(path, missing));
    }
    ambiguity_models::files::write_atomic(path, bytes).map_err(|source| FileError::write(path, source))
}

/// Makes `path`, which must not exist, a folder that holds `files` (name, bytes), all or nothing.
pub fn write_folder_atomic(path: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    let fresh = temporary(path);
    let written = (|| {
        remove_any(&fresh)?;
        fs::create_dir(&fresh)?;
        for (name, bytes) in files {
            write_synced(&fresh.join(name), bytes)?;
        }
        File::open(&fresh)?.sync_all()?;
        fs::rename(&fresh, path)?;
        sync_parent(path)
    })();
    written.map_err(|source| {
        drop(fs::remove_dir_all(&fresh));
        FileError::write(path, source)
    })
}

/// Removes a folder all or nothing: it is renamed to a temporary name first, so that half of it never has its name.
pub fn remove_folder(path: &Path) -> Result<()> {
    let doomed = temporary(path);
    remove_any(&doomed)
        .and_then(|()| fs::rename(path, &doomed))
        .and_then(|()| remove_any(&doomed))
        .map_err(|source| FileError::write(path, source))
}

/// Removes the temporary files and folders in `folder` that earlier processes left; a folder that does not exist has none.
pub fn sweep(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten() {
        if is_temporary(&entry.file_name().to_string_lossy()) {
            remove_any(&entry.path()).map_err(|source| FileError::write(&entry.path(), source))?;
        }
    }
    Ok(())
}

/// Removes a file if it is there.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(FileError::write(path, error)),
        _ => Ok(()),
    }
}

fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A file's text; an error says which file, and which byte is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|source| FileError::read(path, source))?;
    String::from_utf8(bytes).map_err(|error| {
        let message = format!("byte {} is not UTF-8 text", error.utf8_error().valid_up_to());
        FileError::read(path, io::Error::new(ErrorKind::InvalidData, message))
    })
}

/// The text of a file that need not exist, damaged bytes replaced; empty if it does not.
pub fn read_optional(path: &Path) -> Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(FileError::read(path, error)),
    }
}

/// Makes a folder for output, with its parents; one that has something in it is refused.
pub fn new_folder(path: &Path) -> Result<()> {
    let refused = |kind, message: &str| Err(FileError::write(path, io::Error::new(kind, message)));
    if path.is_file() {
        return refused(ErrorKind::NotADirectory, "it is a file: name a new folder");
    }
    let failed = |source| FileError::write(path, source);
    if path.exists() && fs::read_dir(path).map_err(failed)?.next().is_some() {
        return refused(ErrorKind::AlreadyExists, "it is not empty: name a new folder, so that nothing is overwritten");
    }
    fs::create_dir_all(path).map_err(failed)
}
