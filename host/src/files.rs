//! Writing files whole or not at all.

use std::io::{Error, ErrorKind, Write};
use std::path::Path;

/// Writes `bytes` to `path` through a temporary file beside it, so that there is never half a file.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", path.display()));
    if !folder.is_dir() {
        let message = format!("{}: there is no folder {}", path.display(), folder.display());
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(named)?;
    file.write_all(bytes).map_err(named)?;
    // A temporary file is private by default; what it becomes is an ordinary one.
    #[cfg(unix)]
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(named)?;
    file.persist(path).map_err(|error| named(error.error))?;
    Ok(())
}

/// A file's text; an error says which file, and which byte is no UTF-8.
pub fn read_text(path: &Path) -> std::io::Result<String> {
    let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", path.display()));
    String::from_utf8(std::fs::read(path).map_err(named)?).map_err(|error| {
        let message = format!("{} is no UTF-8 text: byte {}", path.display(), error.utf8_error().valid_up_to());
        Error::new(ErrorKind::InvalidData, message)
    })
}

/// The lines of a text that have something in them, without the white space round it.
pub fn text_lines(text: &str) -> Vec<&str> {
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    lines.filter(|line| !line.is_empty()).collect()
}

/// Makes a folder for output, with its parents; one that has something in it is refused.
pub fn new_folder(path: &Path) -> std::io::Result<()> {
    let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", path.display()));
    if path.is_file() {
        let message = format!("{} is a file: name a new folder", path.display());
        return Err(Error::new(ErrorKind::NotADirectory, message));
    }
    if path.exists() && std::fs::read_dir(path).map_err(named)?.next().is_some() {
        let message = format!("{} is not empty: name a new folder, so that nothing is overwritten", path.display());
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    std::fs::create_dir_all(path).map_err(named)
}
