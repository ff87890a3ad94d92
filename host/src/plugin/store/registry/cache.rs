//! The cache of what was pulled from registries. Files are named by their digests, which are compared each time, and several
//! processes use it at once:
//!
//! ```text
//! blobs/sha256/HEX                     manifests and files; HEX.incomplete is a part of one
//! locks/HEX.lock                       locked while a process writes the blob or list of that name
//! plugins/MANIFEST/NAME.wasm           a link to its blob, under the name that the plugin has
//! versions/REGISTRY/PATH/_index.json   the versions that were pulled, and the signatures of each
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ambiguity_models::files::temporary;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Network, hex, sha256};
use crate::fs::{FileError, read_optional, remove_file, write_atomic};
use crate::net::lock;
use crate::plugin::store::reference::Repository;

/// The folder of the cache.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// The entries of a place, held.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "the lock ends with the file")] File);

/// The versions of a place that were pulled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// The digests of manifests by their tags.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
    /// The digests of signatures by the manifest that they are for: one list of files per signature.
    #[serde(default)]
    pub signatures: BTreeMap<String, Vec<Vec<String>>>,
}

impl Cache {
    /// The cache in a folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Returns the path of a blob, whose folder exists then.
    pub fn blob(&self, sha256: &str) -> Result<PathBuf> {
        create_parent(self.folder.join("blobs/sha256").join(sha256))
    }

    /// Returns the path of a lock, whose folder exists then.
    pub fn lock(&self, name: &str) -> Result<PathBuf> {
        create_parent(self.folder.join("locks").join(format!("{name}.lock")))
    }

    /// Returns the bytes of a blob; nothing if the cache lacks it or it is damaged.
    pub fn bytes(&self, sha256_digits: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.folder.join("blobs/sha256").join(sha256_digits)).ok()?;
        (sha256(&bytes) == sha256_digits).then_some(bytes)
    }

    /// Holds the entries of a place against other processes until the result is dropped.
    ///
    /// # Errors
    /// If the user asked to stop, or the lock cannot be written.
    pub fn hold(&self, repository: &Repository, network: &Network) -> Result<Held> {
        let name = sha256(repository.to_string().as_bytes());
        lock(&self.lock(&name)?, &network.progress, &network.interrupt).map(Held)
    }

    /// Keeps a small blob.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, bytes: &[u8]) -> Result<()> {
        let digest = sha256(bytes);
        match self.bytes(&digest) {
            Some(_) => Ok(()),
            None => Ok(write_atomic(&self.blob(&digest)?, bytes)?),
        }
    }

    /// Returns the digest of what a blob's file contains; nothing if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn digest(&self, sha256: &str) -> Result<Option<String>> {
        let path = self.folder.join("blobs/sha256").join(sha256);
        if !path.is_file() {
            return Ok(None);
        }
        let mut hash = Sha256::new();
        let mut file = File::open(&path).map_err(|source| FileError::read(&path, source))?;
        std::io::copy(&mut file, &mut hash).map_err(|source| FileError::read(&path, source))?;
        Ok(Some(hex(&hash.finalize())))
    }

    /// Returns the path under which a manifest's file has a name: a link to its blob.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn named(&self, manifest: &str, file: &str, sha256: &str) -> Result<PathBuf> {
        let path = create_parent(self.folder.join("plugins").join(manifest).join(file))?;
        let target = PathBuf::from("../../blobs/sha256").join(sha256);
        if fs::read_link(&path).is_ok_and(|found| found == target) {
            return Ok(path);
        }
        let fresh = temporary(&path);
        // A killed process of the same number may have left one.
        remove_file(&fresh)?;
        let linked = symlink(target, &fresh).and_then(|()| fs::rename(&fresh, &path));
        linked.map_err(|source| FileError::write(&path, source))?;
        Ok(path)
    }

    fn index_file(&self, repository: &Repository) -> PathBuf {
        // A colon, as before a port, is not in file names everywhere; an underscore is in no host's name.
        let registry = repository.registry.replace(':', "_");
        self.folder.join("versions").join(registry).join(&repository.path).join("_index.json")
    }

    /// Returns the versions of a place that were pulled; none if its list is missing or damaged.
    pub fn index(&self, repository: &Repository) -> Index {
        let text = read_optional(&self.index_file(repository)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Changes the list of the versions of a place, which is held.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn update(&self, _held: &Held, repository: &Repository, change: impl FnOnce(&mut Index)) -> Result<()> {
        let mut index = self.index(repository);
        let before = index.clone();
        change(&mut index);
        if index != before {
            let path = create_parent(self.index_file(repository))?;
            let text = serde_json::to_string_pretty(&index).expect("texts serialize");
            write_atomic(&path, text.as_bytes())?;
        }
        Ok(())
    }
}

/// Creates the folder that a file lies in.
fn create_parent(path: PathBuf) -> Result<PathBuf> {
    let folder = path.parent().expect("the path has several components");
    fs::create_dir_all(folder).map_err(|source| FileError::write(folder, source))?;
    Ok(path)
}
