//! Files and folders: written completely or not at all, and read with errors that name the file and the cause.
//!
//! [`write_atomic`] writes to temporary siblings named `.NAME.PID.tmp`; [`sweep`] removes those that a killed process
//! left behind.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

pub use ambiguity_models::files::is_temporary;
use ambiguity_models::files::{sync_parent, temporary, write_synced};

/// The result of an operation on files.
pub type Result<T, E = FileError> = std::result::Result<T, E>;

/// Why a file or folder could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {}", .path.display(), reason(.source))]
pub struct FileError {
    /// The verb of the message: `read` or `write`.
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

/// Returns the error's text without the operating system's number and capital letter.
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

/// Creates the folder `path`, which must not exist, with `files` (name, bytes), all or nothing.
pub fn write_folder_atomic<'a>(path: &Path, files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<()> {
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

/// Returns whether `path`, which need not exist, is `folder` or inside it, however the two are written.
pub fn is_inside(path: &Path, folder: &Path) -> Result<bool> {
    let whole = |path: &Path| path.canonicalize().map_err(|source| FileError::read(path, source));
    let (folder, path) = (whole(folder)?, std::path::absolute(path).map_err(|source| FileError::read(path, source))?);
    Ok(path.ancestors().find_map(|existing| existing.canonicalize().ok()).is_some_and(|path| path.starts_with(folder)))
}

/// Removes a folder, all or nothing: it is renamed to a temporary name first, so that `path` never names half of it.
pub fn remove_folder(path: &Path) -> Result<()> {
    let doomed = temporary(path);
    remove_any(&doomed)
        .and_then(|()| fs::rename(path, &doomed))
        .and_then(|()| remove_any(&doomed))
        .map_err(|source| FileError::write(path, source))
}

/// Removes the temporary files and folders in `folder` that earlier processes left; the folder need not exist.
pub fn sweep(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten() {
        if is_temporary(&entry.file_name().to_string_lossy()) {
            remove_any(&entry.path()).map_err(|source| FileError::write(&entry.path(), source))?;
        }
    }
    Ok(())
}

/// Removes a file if it exists.
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

/// Reads a file's text; the error names the file, and the byte that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|source| FileError::read(path, source))?;
    String::from_utf8(bytes).map_err(|error| {
        let message = format!("byte {} is not UTF-8 text", error.utf8_error().valid_up_to());
        FileError::read(path, io::Error::new(ErrorKind::InvalidData, message))
    })
}

/// Reads the text of a file, invalid bytes replaced; returns an empty text if the file does not exist.
pub fn read_optional(path: &Path) -> Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(FileError::read(path, error)),
    }
}

/// Creates a folder for output, with its parents; a folder that is not empty is refused.
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
