//! The download of a file into a cache: resumed, of the announced length and digest, or not kept.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ambiguity_models::safetensors::hex;
use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};
use url::Url;

use super::client::{Client, Failure, host_of};
use crate::fs::{FileError, remove_file};
use crate::interrupt::Interrupt;
use crate::progress::{Bar, Progress};
use crate::text::gibibytes;

/// Number of bytes in one step of the progress bar.
const MEBIBYTE: u64 = 1 << 20;
/// Time between two attempts to lock a file.
const POLL: Duration = Duration::from_millis(100);

/// A file to download.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Its name in messages.
    pub name: String,
    /// Where it is.
    pub url: Url,
    /// Number of bytes.
    pub size: u64,
    /// Its sha256 in hexadecimal, if it is known.
    pub sha256: Option<String>,
}

/// Downloads of files from one server.
#[derive(Clone, Copy, Debug)]
pub struct Downloads<'a> {
    /// The client.
    pub client: &'a Client,
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

/// Returns the number of bytes that are missing of a file.
pub fn missing(file: &Remote, path: &Path) -> u64 {
    let length = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.len());
    let found = length(path).filter(|length| *length == file.size);
    file.size.saturating_sub(found.or_else(|| length(&incomplete(path))).unwrap_or(0))
}

/// Refuses a download that the disk of a folder has no space for; `remedy` says what to do.
pub fn check_space(folder: &Path, missing: u64, remedy: &str) -> Result<()> {
    // What cannot be asked for is not known to be too little.
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    ensure!(
        missing <= free,
        "the download needs {}, but {} has {} free: {remedy}",
        gibibytes(missing),
        folder.display(),
        gibibytes(free)
    );
    Ok(())
}

/// Locks a file against other processes until the result is dropped; creates it.
pub fn lock(path: &Path, progress: &Progress, interrupt: &Interrupt) -> Result<File> {
    let failed = |source| FileError::write(path, source);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    let mut said = false;
    loop {
        interrupt.check("")?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {}
            // A file system without locks.
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
        }
        if !said {
            progress.println(format!("waiting for another process, which holds {}", path.display()));
        }
        said = true;
        thread::sleep(POLL);
    }
}

impl Downloads<'_> {
    /// Downloads a file to `path`, unless it is there, while `lock_file` is locked: a partial one is resumed, and a damaged
    /// one is fetched anew, once. Both folders must exist.
    ///
    /// # Errors
    /// If the server cannot be reached, or sends something else than announced; a partial file is kept.
    pub fn fetch(&self, file: &Remote, path: &Path, lock_file: &Path, meter: &mut Meter) -> Result<(), Failure> {
        let _lock = lock(lock_file, self.progress, self.interrupt)?;
        if fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == file.size) {
            return Ok(());
        }
        let partial = incomplete(path);
        for is_last in [false, true] {
            match self.complete(file, &partial, meter)? {
                Outcome::Complete => {
                    return fs::rename(&partial, path)
                        .map_err(|source| Failure::Local(FileError::write(path, source).into()));
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
        Ok(match file.sha256.as_ref().is_none_or(|wanted| partial.digest() == wanted.to_ascii_lowercase()) {
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
            let range = reply.headers.get("Content-Range").unwrap_or_default();
            let first = format!("bytes {}-", partial.length);
            let total = range.rsplit_once('/').is_none_or(|(_, total)| total == "*" || total == file.size.to_string());
            if !range.starts_with(&first) || !total {
                return wrong(format!("sends another part of {name} than asked for"));
            }
        }
        let length = reply.headers.get("Content-Length").and_then(|length| length.parse::<u64>().ok());
        if let Some(length) = length.filter(|length| *length > file.size - partial.length) {
            let size = file.size;
            return wrong(format!(
                "sends {} bytes of {name}, but announced {size}",
                length.saturating_add(partial.length)
            ));
        }
        while let Some(chunk) = reply.chunk()? {
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

/// The partial file of a file.
fn incomplete(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".incomplete");
    path.with_file_name(name)
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
#[derive(Debug)]
pub struct Meter {
    bar: Bar,
    bytes: u64,
    shown: u64,
}

impl Meter {
    /// Starts a bar of `total` bytes, of which the cache has some.
    pub fn new(progress: &Progress, label: &str, total: u64, cached: u64) -> Self {
        let mut bar = progress.bar(label, total.div_ceil(MEBIBYTE), "MiB");
        bar.skip(cached / MEBIBYTE);
        Self { bar, bytes: cached % MEBIBYTE, shown: 0 }
    }

    /// Advances by bytes that arrived.
    pub fn advance(&mut self, bytes: u64) {
        self.bytes += bytes;
        let mebibytes = self.bytes / MEBIBYTE;
        self.bar.inc(mebibytes - self.shown);
        self.shown = mebibytes;
    }

    /// Says what is downloaded.
    pub fn message(&self, message: impl Into<String>) {
        self.bar.message(message);
    }

    /// Adds bytes that are downloaded again.
    fn again(&self, bytes: u64) {
        self.bar.extend(bytes / MEBIBYTE);
    }
}
