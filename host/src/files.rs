//! Writing files whole or not at all.

use std::io::Write;
use std::path::Path;

/// Writes `bytes` to `path` through a temporary file beside it, so that there is never half a file.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named = |error: std::io::Error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(named)?;
    file.write_all(bytes).map_err(named)?;
    // A temporary file is private by default; what it becomes is an ordinary one.
    #[cfg(unix)]
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(named)?;
    file.persist(path).map_err(|error| named(error.error))?;
    Ok(())
}
