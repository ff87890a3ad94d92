//! A cache of compiled plugins, by the digest of their bytes and by the compiler's version and settings.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// A folder of compiled plugins. If it is lost, plugins are compiled again; only entries with a valid checksum are used.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

/// Length of the checksum in front of the compiled code.
const CHECKSUM: usize = 32;

impl Cache {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Returns the compiled form of the plugin with the given digest, if it is in the cache.
    pub(super) fn find(&self, engine: &Engine, sha256: &str) -> Option<Component> {
        load(engine, &self.path(engine, sha256))
    }

    /// Returns the compiled form of the plugin with the given digest: from the cache, otherwise from `compile`, whose
    /// result is then cached.
    pub(super) fn get(
        &self,
        engine: &Engine,
        sha256: &str,
        compile: impl FnOnce() -> wasmtime::Result<Component>,
    ) -> wasmtime::Result<Component> {
        if let Some(component) = self.find(engine, sha256) {
            return Ok(component);
        }
        let component = compile()?;
        if let Err(error) = self.keep(&self.path(engine, sha256), &component) {
            tracing::warn!("cannot cache the compiled plugin in {}: {error}", self.folder.display());
        }
        Ok(component)
    }

    /// Returns the path of an entry; its name depends on wasmtime's version, the engine's settings and the CPU.
    fn path(&self, engine: &Engine, sha256: &str) -> PathBuf {
        use std::hash::{Hash, Hasher};
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        self.folder.join(format!("{sha256}-{:016x}.cwasm", hasher.finish()))
    }

    fn keep(&self, path: &Path, component: &Component) -> Result<(), Box<dyn std::error::Error>> {
        let code = component.serialize()?;
        std::fs::create_dir_all(&self.folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        std::io::Write::write_all(&mut file, &Sha256::digest(&code))?;
        std::io::Write::write_all(&mut file, &code)?;
        file.persist(path)?;
        Ok(())
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
