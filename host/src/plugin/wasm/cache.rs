//! A cache of compiled plugins, by the digest of their bytes and by the compiler's version and settings. It is pruned by
//! the time since an entry's last use, and by size.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::compiler::Failure;
use crate::plugin::limits::{CACHE_DAYS, CACHE_MIB};

/// A folder of compiled plugins. If it is lost, plugins are compiled again; only entries with a valid checksum are used.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

/// The beginning of the names of files that are being written.
const TEMPORARY: &str = ".tmp";

/// The extension of an entry.
const EXTENSION: &str = "cwasm";

/// The time after which the use of an entry is noted again, and what an interrupted write left may be removed.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Length of the checksum in front of the compiled code.
const CHECKSUM: usize = 32;

impl Cache {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Returns the compiled form of the plugin with the given digest, if it is in the cache.
    pub(super) fn find(&self, engine: &Engine, sha256: &str) -> Option<Component> {
        let path = self.path(engine, sha256);
        let component = load(engine, &path)?;
        note_use(&path);
        Some(component)
    }

    /// Returns the compiled form of the plugin with the given digest: from the cache, otherwise from `compile`, whose
    /// result is then cached.
    pub(super) fn get(
        &self,
        engine: &Engine,
        sha256: &str,
        compile: impl FnOnce() -> Result<Component, Failure>,
    ) -> Result<Component, Failure> {
        if let Some(component) = self.find(engine, sha256) {
            return Ok(component);
        }
        let component = compile()?;
        let path = self.path(engine, sha256);
        if let Err(error) = self.keep(&path, &component) {
            tracing::warn!("cannot cache the compiled plugin in {}: {error}", self.folder.display());
        }
        if let Err(error) = self.prune(&path, SystemTime::now(), CACHE_MIB << 20) {
            tracing::debug!("cannot prune {}: {error}", self.folder.display());
        }
        Ok(component)
    }

    /// Returns the path of an entry; its name depends on wasmtime's version, the engine's settings and the CPU.
    fn path(&self, engine: &Engine, sha256: &str) -> PathBuf {
        use std::hash::{Hash, Hasher};
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        self.folder.join(format!("{sha256}-{:016x}.{EXTENSION}", hasher.finish()))
    }

    fn keep(&self, path: &Path, component: &Component) -> Result<(), Box<dyn std::error::Error>> {
        let code = component.serialize()?;
        std::fs::create_dir_all(&self.folder)?;
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.folder)?;
        std::io::Write::write_all(&mut file, &Sha256::digest(&code))?;
        std::io::Write::write_all(&mut file, &code)?;
        file.persist(path)?;
        Ok(())
    }

    /// Removes the entries that were not used for long, those used least recently while all others are larger than `limit`
    /// bytes, and what interrupted writes left; `fresh` stays.
    fn prune(&self, fresh: &Path, now: SystemTime, limit: u64) -> std::io::Result<()> {
        let mut entries = vec![];
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            // Another process may prune at the same time.
            let Ok(metadata) = path.symlink_metadata() else { continue };
            let age = now.duration_since(metadata.modified()?).unwrap_or_default();
            let is_entry = path.extension().is_some_and(|extension| extension == EXTENSION);
            let is_rest = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY));
            if metadata.is_file() && path != fresh && (is_entry || is_rest && age > DAY) {
                entries.push((if is_entry { age } else { Duration::MAX }, metadata.len(), path));
            }
        }
        entries.sort();
        let mut size = fresh.metadata().map_or(0, |metadata| metadata.len());
        for (age, bytes, path) in entries {
            size += bytes;
            if age > DAY * CACHE_DAYS || size > limit {
                size -= bytes;
                drop(std::fs::remove_file(path));
            }
        }
        Ok(())
    }
}

/// Notes that an entry is used, at most once a day.
fn note_use(path: &Path) {
    let Ok(metadata) = path.metadata() else { return };
    if metadata.modified().is_ok_and(|last| last.elapsed().is_ok_and(|age| age > DAY)) {
        let noted =
            std::fs::File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = noted {
            tracing::debug!("cannot note the use of {}: {error}", path.display());
        }
    }
}

/// Returns the compiled plugin in a file; None if the file is missing, damaged, or from another engine.
fn load(engine: &Engine, path: &Path) -> Option<Component> {
    let bytes = std::fs::read(path).ok()?;
    let (checksum, code) = bytes.split_at_checked(CHECKSUM)?;
    if Sha256::digest(code).as_slice() != checksum {
        tracing::debug!("{} is damaged, compiling again", path.display());
        return None;
    }
    // SAFETY: the code is what `Component::serialize` returned, in a folder of the user: the checksum rules out damage,
    // and wasmtime itself refuses the code of another version or of other settings. Anybody who can write a file with a
    // correct checksum there could also replace this program.
    unsafe { Component::deserialize(engine, code) }.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_are_old_or_too_many_are_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let now = SystemTime::now();
        let file = |name: &str, bytes: usize, days: u32| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![0; bytes]).expect("writable");
            let file = std::fs::File::options().append(true).open(&path).expect("our own");
            file.set_modified(now - DAY * days).expect("our own");
            path
        };
        let fresh = file("fresh.cwasm", 100, 0);
        for (name, bytes, days) in [
            ("new.cwasm", 300, 1),
            ("large.cwasm", 900, 2),
            ("small.cwasm", 200, 3),
            ("old.cwasm", 1, CACHE_DAYS + 1),
            (".tmp1", 1, 2),
            (".tmp2", 1, 0),
            ("notes.txt", 5000, 1000),
        ] {
            file(name, bytes, days);
        }
        Cache::new(folder.path().to_owned()).prune(&fresh, now, 1000).expect("our own");
        let left = std::fs::read_dir(folder.path()).expect("readable");
        let mut left: Vec<String> =
            left.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
        left.sort();
        assert_eq!(left, [".tmp2", "fresh.cwasm", "new.cwasm", "notes.txt", "small.cwasm"]);
    }

    #[test]
    fn a_use_is_noted_once_a_day() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.cwasm");
        std::fs::write(&path, "").expect("writable");
        let used = |ago: Duration| {
            let file = std::fs::File::options().append(true).open(&path).expect("our own");
            file.set_modified(SystemTime::now() - ago).expect("our own");
            note_use(&path);
            let last = path.metadata().and_then(|metadata| metadata.modified()).expect("our own");
            last.elapsed().unwrap_or_default()
        };
        assert!(used(DAY * 3) < DAY / 2);
        assert!(used(DAY / 2) >= DAY / 2);
    }
}
