//! Compiled plugins, kept by the digest of their bytes and by what compiled them.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// A folder of compiled plugins. Losing it costs a compilation each; nothing in it is trusted unless its checksum holds.
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

    /// The compiled form of a plugin with the given digest: out of the cache, else by `compile`, and then kept.
    pub(super) fn get(
        &self,
        engine: &Engine,
        sha256: &str,
        compile: impl FnOnce() -> wasmtime::Result<Component>,
    ) -> wasmtime::Result<Component> {
        let path = self.path(engine, sha256);
        if let Some(component) = load(engine, &path) {
            return Ok(component);
        }
        let component = compile()?;
        if let Err(error) = self.keep(&path, &component) {
            tracing::warn!("the compiled plugin is not kept in {}: {error}", self.folder.display());
        }
        Ok(component)
    }

    /// Another wasmtime, another set of engine settings, another machine's CPU: another name.
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

/// The compiled plugin in a file; none if the file is missing, damaged, or of another engine.
fn load(engine: &Engine, path: &Path) -> Option<Component> {
    let bytes = std::fs::read(path).ok()?;
    let (checksum, code) = bytes.split_at_checked(CHECKSUM)?;
    if Sha256::digest(code).as_slice() != checksum {
        tracing::debug!("{} is damaged, compiling again", path.display());
        return None;
    }
    // SAFETY: the code is what `Component::serialize` gave, in a folder of the user's own: the checksum rules out
    // damage, and wasmtime itself refuses the code of another version or of other settings. Whoever can write a file
    // there with a right checksum can as well replace this program.
    unsafe { Component::deserialize(engine, code) }.ok()
}
