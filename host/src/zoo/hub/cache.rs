//! The cache of models, laid out as Hugging Face's own tools do, so that either finds what the other downloaded:
//!
//! ```text
//! models--OWNER--NAME/refs/REVISION               the commit that a branch or tag names
//! models--OWNER--NAME/snapshots/COMMIT/unet/…     links to the blobs
//! models--OWNER--NAME/blobs/ETAG                  the data; ETAG.incomplete is a part of it
//! .locks/models--OWNER--NAME/ETAG.lock            locked while a process downloads the blob
//! ```
//!
//! The names of a commit, an ETag and a file come from a server. Each is a plain path component, or is refused here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ambiguity_models::files::temporary;
use anyhow::{Result, ensure};

use super::Id;
use crate::fs::{FileError, write_atomic};
use crate::text::escaped;

/// Maximum length of a path component.
const MAX_NAME: usize = 200;
/// Number of components of a file's name.
const MAX_DEPTH: usize = 8;
/// Number of hexadecimal digits of a commit.
const COMMIT_DIGITS: usize = 40;

/// The folder of all cached models.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// The folder of one cached model.
#[derive(Clone, Debug)]
pub struct Repository {
    folder: PathBuf,
    locks: PathBuf,
}

/// Whether a name is a single path component that no shell, file system or reader takes for anything else.
pub fn is_component(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.+=".contains(c);
    !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with(['.', '-']) && name.chars().all(is_plain)
}

/// Refuses a name that a server gives, unless it [`is_component`].
pub fn expect_component(what: &str, name: &str) -> Result<()> {
    ensure!(is_component(name), "the Hub names {what} `{}`, which is no plain name", escaped(name));
    Ok(())
}

/// Refuses the name of a file in a repository, unless it is a path of plain components.
pub fn expect_file(name: &str) -> Result<()> {
    let is_plain = name.split('/').count() <= MAX_DEPTH && name.split('/').all(is_component);
    ensure!(is_plain, "the Hub names a file `{}`, which is no plain path", escaped(name));
    Ok(())
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

    /// The folder of a repository.
    pub fn repository(&self, id: &Id) -> Repository {
        let name = format!("models--{}--{}", id.owner, id.name);
        Repository { folder: self.folder.join(&name), locks: self.folder.join(".locks").join(name) }
    }
}

/// The folder of the cache that the environment names: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `huggingface/hub` in
/// `XDG_CACHE_HOME` or `~/.cache`.
pub fn hub_cache() -> Result<PathBuf> {
    variable("HF_HUB_CACHE").map_or_else(|| Ok(hf_home()?.join("hub")), Ok)
}

/// The folder of Hugging Face's tools.
pub fn hf_home() -> Result<PathBuf> {
    let cache = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    variable("HF_HOME")
        .or_else(|| cache().map(|cache| cache.join("huggingface")))
        .ok_or_else(|| anyhow::anyhow!("the Hub's cache has no place: set HF_HOME to a folder"))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

impl Repository {
    /// Returns the folder of a revision's files, if a download has begun.
    pub fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).unwrap_or_default();
        let is_commit = revision.len() == COMMIT_DIGITS && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
        let commit = match commit.trim() {
            "" if is_commit => revision,
            commit => commit,
        };
        let folder = is_component(commit).then(|| self.snapshot_of(commit))?;
        folder.is_dir().then_some(folder)
    }

    /// The folder of a commit's files.
    pub fn snapshot_of(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Records the commit that a revision names.
    pub fn set_revision(&self, revision: &str, commit: &str) -> Result<()> {
        if revision != commit {
            let path = create_parent(self.folder.join("refs").join(revision))?;
            write_atomic(&path, commit.as_bytes())?;
        }
        Ok(())
    }

    /// The file of a blob.
    pub fn blob(&self, etag: &str) -> Result<PathBuf> {
        create_parent(self.folder.join("blobs").join(etag))
    }

    /// The file that a process locks while it downloads a blob, those of Hugging Face's tools included.
    pub fn lock(&self, etag: &str) -> Result<PathBuf> {
        create_parent(self.locks.join(format!("{etag}.lock")))
    }

    /// Makes a file of a snapshot a link to its blob.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let path = create_parent(self.snapshot_of(commit).join(name))?;
        let up = "../".repeat(name.split('/').count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&path).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let fresh = temporary(&path);
        let linked = symlink(target, &fresh).and_then(|()| fs::rename(&fresh, &path));
        linked.map_err(|source| FileError::write(&path, source).into())
    }
}

/// Creates the folder that a file lies in.
fn create_parent(path: PathBuf) -> Result<PathBuf> {
    let folder = path.parent().expect("the path has several components");
    fs::create_dir_all(folder).map_err(|source| FileError::write(folder, source))?;
    Ok(path)
}
