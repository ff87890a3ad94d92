//! The download of files into the cache: what arrives is of the announced length and, where the ETag is a sha256, of
//! that digest, or does not become a blob.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ambiguity_models::safetensors::hex;
use anyhow::{Result, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use url::Url;

use super::Id;
use super::cache::{Repository, expect_component, expect_file};
use super::client::{Client, Failure, Header, host_of};
use crate::fs::{FileError, remove_file};
use crate::interrupt::Interrupt;
use crate::progress::{Bar, Progress};
use crate::text::{counted, gibibytes};

/// Number of bytes in one step of the progress bar.
const MEBIBYTE: u64 = 1 << 20;
/// Number of hexadecimal digits of a sha256.
const SHA256_DIGITS: usize = 64;

/// The files of a revision, as the Hub lists them.
#[derive(Debug, Deserialize)]
pub struct Listing {
    /// The commit.
    pub sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// Requests the files of a revision.
    pub fn request(client: &Client, id: &Id) -> Result<Self, Failure> {
        let url = client.address(["api", "models", &id.owner, &id.name, "revision", &id.revision]);
        let mut attempts = client.attempts();
        let bytes = loop {
            match client.document(&url) {
                Ok(bytes) => break bytes,
                // Without a network, this is where a user learns it.
                Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
                Err(failure) => attempts.after(&id.to_string(), failure)?,
            }
        };
        let listing: Self = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::wrong(&url, format!("does not list the files of a model: {error}")))?;
        expect_component("a commit", &listing.sha)?;
        Ok(listing)
    }

    /// The names of the files.
    pub fn names(&self) -> Vec<&str> {
        self.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect()
    }
}

/// A file to download.
#[derive(Debug)]
pub struct Remote {
    /// Its path in the repository.
    name: String,
    url: Url,
    etag: String,
    /// Number of bytes.
    size: u64,
}

impl Remote {
    /// Requests what the Hub announces of a file: its ETag and its size.
    pub fn request(client: &Client, id: &Id, commit: &str, name: &str) -> Result<Self, Failure> {
        expect_file(name)?;
        let path = [&*id.owner, &id.name, "resolve", commit].into_iter().chain(name.split('/'));
        let url = client.address(path);
        let mut attempts = client.attempts();
        let reply = loop {
            match client.head(&url) {
                Ok(reply) => break reply,
                Err(failure) => attempts.after(name, failure)?,
            }
        };
        if let Some(other) = reply.header(Header::Commit).filter(|other| *other != commit) {
            return Err(Failure::wrong(&reply.url, format!("has commit {other} of {name}, not {commit}")));
        }
        let redirected = reply.status >= 300;
        let header = |linked, plain| reply.header(linked).or_else(|| reply.header(plain).filter(|_| !redirected));
        // A redirect's own length says nothing of the file, but the Hub repeats the ETag of small files in it.
        let etag = header(Header::LinkedEtag, Header::Etag).or_else(|| reply.header(Header::Etag));
        let size = header(Header::LinkedSize, Header::Length).and_then(|size| size.parse().ok());
        let (Some(etag), Some(size)) = (etag, size) else {
            let what = format!("does not announce ETag and size of {name}; HF_ENDPOINT must be a Hub's own address");
            return Err(Failure::wrong(&reply.url, what));
        };
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        expect_component("an ETag", &etag)?;
        Ok(Self { name: name.to_owned(), url, etag, size })
    }

    /// The digest of the data, where the ETag is one.
    fn sha256(&self) -> Option<&str> {
        let is_digest = self.etag.len() == SHA256_DIGITS && self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_digest.then_some(&*self.etag)
    }
}

/// Downloads of files into one repository of the cache.
#[derive(Debug)]
pub struct Downloads<'a> {
    /// The client.
    pub client: &'a Client,
    /// The repository in the cache.
    pub repository: &'a Repository,
    /// The progress of all files.
    pub progress: &'a Progress,
    /// The interrupt.
    pub interrupt: &'a Interrupt,
}

/// What one attempt to complete a partial file found.
enum Outcome {
    Complete,
    /// The data has another sha256.
    Damaged,
}

impl Downloads<'_> {
    /// Downloads files, and links them into the snapshot of a commit.
    pub fn files(&self, id: &Id, commit: &str, files: &[Remote]) -> Result<(), Failure> {
        let missing = self.missing(files)?;
        self.check_space(missing)?;
        let total: u64 = files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let many = counted(files.len() as u64, "file");
        self.progress.println(format!("{id}: downloading {} of {} in {many}", gibibytes(missing), gibibytes(total)));
        let mut meter = Meter::new(self.progress, id, total, total.saturating_sub(missing));
        for file in files {
            meter.bar.message(file.name.clone());
            self.blob(file, &mut meter)?;
            self.repository.link(commit, &file.name, &file.etag)?;
        }
        Ok(())
    }

    /// Returns the number of bytes that the cache lacks.
    fn missing(&self, files: &[Remote]) -> Result<u64> {
        let mut missing = 0;
        for file in files {
            let blob = self.repository.blob(&file.etag)?;
            let length = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.len());
            let found = length(&blob).filter(|length| *length == file.size);
            let found = found.or_else(|| length(&incomplete(&blob))).unwrap_or(0);
            missing = u64::saturating_add(missing, file.size.saturating_sub(found));
        }
        Ok(missing)
    }

    /// Refuses a download that the disk has no space for.
    fn check_space(&self, missing: u64) -> Result<()> {
        let folder = self.repository.blob("x")?;
        let folder = folder.parent().expect("a blob lies in a folder");
        // What cannot be asked for is not known to be too little.
        let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        ensure!(
            missing <= free,
            "the download needs {}, but {} has {} free: set HF_HOME to a folder on another disk",
            gibibytes(missing),
            folder.display(),
            gibibytes(free)
        );
        Ok(())
    }

    /// Downloads a blob, unless the cache has it: a partial one is resumed, and a damaged one is fetched anew, once.
    fn blob(&self, file: &Remote, meter: &mut Meter) -> Result<(), Failure> {
        let blob = self.repository.blob(&file.etag)?;
        let _lock = self.repository.lock(&file.etag, self.progress, self.interrupt)?;
        if fs::metadata(&blob).is_ok_and(|metadata| metadata.is_file() && metadata.len() == file.size) {
            return Ok(());
        }
        let partial = incomplete(&blob);
        for is_last in [false, true] {
            match self.complete(file, &partial, meter)? {
                Outcome::Complete => {
                    return fs::rename(&partial, &blob)
                        .map_err(|source| Failure::Local(FileError::write(&blob, source).into()));
                }
                Outcome::Damaged => {
                    remove_file(&partial).map_err(anyhow::Error::from)?;
                    meter.again(file.size);
                    if !is_last {
                        tracing::warn!("{}: what was downloaded is damaged; downloading it again", file.name);
                    }
                }
            }
        }
        Err(Failure::wrong(
            &file.url,
            format!("sends other data for {} than its sha256 announces; it is not kept", file.name),
        ))
    }

    /// Completes a partial file, and examines the whole.
    fn complete(&self, file: &Remote, path: &Path, meter: &mut Meter) -> Result<Outcome, Failure> {
        let failed = |source| Failure::Local(FileError::write(path, source).into());
        let mut partial = Partial::open(path, file.size).map_err(failed)?;
        let mut attempts = self.client.attempts();
        while partial.length < file.size {
            let before = partial.length;
            match self.transfer(file, &mut partial, meter) {
                Ok(()) => {}
                Err(failure) => {
                    if partial.length >= before + MEBIBYTE {
                        attempts.reset();
                    }
                    attempts.after(&file.name, failure)?;
                }
            }
        }
        partial.file.sync_all().map_err(failed)?;
        Ok(match file.sha256().is_none_or(|wanted| partial.digest() == wanted.to_ascii_lowercase()) {
            true => Outcome::Complete,
            false => Outcome::Damaged,
        })
    }

    /// Requests the rest of a file, and appends what arrives.
    fn transfer(&self, file: &Remote, partial: &mut Partial, meter: &mut Meter) -> Result<(), Failure> {
        let failed =
            |source: io::Error| Failure::Local(anyhow::Error::new(source).context(format!("writing {}", file.name)));
        let mut reply = match self.client.get(&file.url, partial.length) {
            // What the server has is shorter than the partial file.
            Err(Failure::Status { status: 416, .. }) if partial.length > 0 => {
                meter.again(partial.length);
                partial.restart().map_err(failed)?;
                self.client.get(&file.url, 0)?
            }
            reply => reply?,
        };
        if reply.status != 206 && partial.length > 0 {
            meter.again(partial.length);
            partial.restart().map_err(failed)?;
        }
        let wrong = |what: String| Err(Failure::wrong(&reply.url, what));
        let name = &file.name;
        if reply.status == 206 {
            let range = reply.header(Header::Range).unwrap_or_default();
            let first = format!("bytes {}-", partial.length);
            let total = range.rsplit_once('/').is_none_or(|(_, total)| total == "*" || total == file.size.to_string());
            if !range.starts_with(&first) || !total {
                return wrong(format!("sends another part of {name} than asked for"));
            }
        }
        let length = reply.header(Header::Length).and_then(|length| length.parse::<u64>().ok());
        if let Some(length) = length.filter(|length| *length > file.size - partial.length) {
            let size = file.size;
            return wrong(format!(
                "sends {} bytes of {name}, but announced {size}",
                length.saturating_add(partial.length)
            ));
        }
        while let Some(chunk) = reply.next()? {
            if chunk.len() as u64 > file.size - partial.length {
                return Err(Failure::wrong(
                    &reply.url,
                    format!("sends more bytes of {name} than the {} announced", file.size),
                ));
            }
            partial.append(&chunk).map_err(failed)?;
            meter.advance(chunk.len() as u64);
        }
        match partial.length < file.size {
            true => Err(Failure::Short { host: host_of(&reply.url), received: partial.length, size: file.size }),
            false => Ok(()),
        }
    }
}

/// The partial file of a blob.
fn incomplete(blob: &Path) -> PathBuf {
    let mut name = blob.file_name().unwrap_or_default().to_owned();
    name.push(".incomplete");
    blob.with_file_name(name)
}

/// A file that grows, with the digest of what it contains.
struct Partial {
    file: File,
    length: u64,
    hash: Sha256,
}

impl Partial {
    /// Opens a partial file, or creates it; one that is longer than the whole is emptied.
    fn open(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut partial = Self { file, length: 0, hash: Sha256::new() };
        if partial.file.metadata()?.len() > size {
            partial.restart()?;
        }
        let mut chunk = vec![0; MEBIBYTE as usize];
        loop {
            let n = partial.file.read(&mut chunk)?;
            if n == 0 {
                break;
            }
            partial.hash.update(&chunk[..n]);
            partial.length += n as u64;
        }
        Ok(partial)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.length, self.hash) = (0, Sha256::new());
        Ok(())
    }

    /// The sha256 in hexadecimal.
    fn digest(&self) -> String {
        hex(&self.hash.clone().finalize())
    }
}

/// A bar in mebibytes, advanced by bytes.
struct Meter {
    bar: Bar,
    bytes: u64,
    shown: u64,
}

impl Meter {
    /// Starts a bar of `total` bytes, of which the cache has some.
    fn new(progress: &Progress, id: &Id, total: u64, cached: u64) -> Self {
        let mut bar = progress.bar(&id.to_string(), total.div_ceil(MEBIBYTE), "MiB");
        bar.skip(cached / MEBIBYTE);
        Self { bar, bytes: cached % MEBIBYTE, shown: 0 }
    }

    /// Advances by bytes that arrived.
    fn advance(&mut self, bytes: u64) {
        self.bytes += bytes;
        let mebibytes = self.bytes / MEBIBYTE;
        self.bar.inc(mebibytes - self.shown);
        self.shown = mebibytes;
    }

    /// Adds bytes that are downloaded again.
    fn again(&self, bytes: u64) {
        self.bar.extend(bytes / MEBIBYTE);
    }
}
