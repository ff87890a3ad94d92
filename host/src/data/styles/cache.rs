//! The image cache: the images' planes in one memory-mapped file, KEY.u8, and its index, KEY.json.
//!
//! The index is written last, by a rename, so that its images are complete if it exists. A lock lets one process at a
//! time build a cache; the others wait for it.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fs_err as fs;
use image::RgbImage;
use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Options;
use super::listing::Listing;
use super::square::square;
use crate::data::images::ImageLoader;
use crate::fs::write_atomic;
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;

/// Number of images that each thread decodes between two writes: this bounds the memory.
const DECODED_PER_THREAD: usize = 16;
/// Maximum number of images whose bytes are checked when a cache is opened: reading all of a large one takes minutes.
const MAX_CHECKED: usize = 64;
/// The end of the name of a cache that is being written.
const UNFINISHED: &str = ".unfinished";
/// A cache that is being written is locked within this time.
const LOCKED_WITHIN: Duration = Duration::from_secs(10);
/// Period at which a process that waits for another one's cache checks again.
const POLL_PERIOD: Duration = Duration::from_millis(200);

/// The index of a cache.
#[derive(Serialize, Deserialize)]
struct Index {
    key: String,
    size: u32,
    styles: Vec<CachedStyle>,
    broken: Vec<Broken>,
    /// SHA-256 over evenly chosen images.
    checked: String,
}

/// A style and its images, which are contiguous.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CachedStyle {
    pub(super) name: String,
    pub(super) files: Vec<String>,
    /// Number of its images that could not be read.
    pub(super) n_broken: usize,
}

/// An image that could not be read.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Broken {
    file: String,
    /// The error message.
    pub(super) why: String,
}

/// The images of an opened cache, by style and then by name.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) key: String,
    pub(super) names: Vec<String>,
    pub(super) styles: Vec<CachedStyle>,
    pub(super) broken: Vec<Broken>,
    /// Width and height in pixels.
    pub(super) size: usize,
    /// The style of each image.
    style_of: Vec<u32>,
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl Images {
    /// Opens the cache of a listing; it is built if it is missing or damaged.
    pub(super) fn open(
        listing: &Listing,
        options: &Options,
        folder: &Path,
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        if let Some(images) = Self::load(listing, options.size, folder)? {
            return Ok(images);
        }
        fs::create_dir_all(folder)?;
        let lock = fs::File::create(folder.join(format!("{}.lock", listing.key)))?;
        wait_for(lock.file(), progress, interrupt)?;
        // Another process may have built it in the meantime.
        if let Some(images) = Self::load(listing, options.size, folder)? {
            return Ok(images);
        }
        build(listing, options, folder, progress, interrupt)?;
        let written = Self::load(listing, options.size, folder)?;
        written.with_context(|| format!("the image cache in {} was damaged while it was written", folder.display()))
    }

    /// Loads the cache, if it exists and is complete.
    ///
    /// # Errors
    /// If it is complete, but a style in it has no image.
    fn load(listing: &Listing, size: u32, folder: &Path) -> Result<Option<Self>> {
        let [index_path, path] = ["json", "u8"].map(|kind| folder.join(format!("{}.{kind}", listing.key)));
        // A cache that cannot be read, for whatever reason, is built again.
        let index: Option<Index> = std::fs::read(index_path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let Some(index) = index.filter(|index| index.key == listing.key && index.size == size) else { return Ok(None) };
        if let Some(style) = index.styles.iter().find(|style| style.files.is_empty()) {
            let first = index.broken.iter().find(|broken| Path::new(&broken.file).starts_with(&style.name));
            bail!(
                "every image of the style {} is broken; the first: {}",
                style.name,
                first.map_or("", |broken| &broken.why)
            );
        }
        let n: usize = index.styles.iter().map(|style| style.files.len()).sum();
        let Ok(file) = File::open(&path) else { return Ok(None) };
        if file.metadata().ok().map(|metadata| metadata.len()) != Some(n as u64 * image_bytes(size)) {
            return Ok(None);
        }
        // SAFETY: the file is never written to after it was renamed to this name. If another process truncated it,
        // reading would end this process: `check` detects that before each batch.
        let Ok(map) = (unsafe { Mmap::map(&file) }) else { return Ok(None) };
        if digest_of_some(&map, n) != index.checked {
            return Ok(None);
        }
        let styles = index.styles.iter().enumerate();
        let style_of = styles.flat_map(|(i, style)| std::iter::repeat_n(i as u32, style.files.len())).collect();
        Ok(Some(Self {
            key: index.key,
            names: index.styles.iter().map(|style| style.name.clone()).collect(),
            styles: index.styles,
            broken: index.broken,
            size: size as usize,
            style_of,
            path,
            file,
            map,
        }))
    }

    /// Returns the number of images.
    pub(super) fn len(&self) -> usize {
        self.style_of.len()
    }

    /// Returns an image's style.
    pub(super) fn style(&self, image: usize) -> i64 {
        i64::from(self.style_of[image])
    }

    /// Returns an image's planes, u8 [3, size, size].
    pub(super) fn planes(&self, image: usize) -> &[u8] {
        let bytes = 3 * self.size * self.size;
        &self.map[image * bytes..(image + 1) * bytes]
    }

    /// Returns an error if the file was truncated since it was opened: its pages could then not be read.
    pub(super) fn check(&self) -> Result<()> {
        let length = self.file.metadata().with_context(|| format!("reading {}", self.path.display()))?.len();
        ensure!(
            length >= self.map.len() as u64,
            "the image cache {} was truncated while it was in use: start again to rebuild it",
            self.path.display()
        );
        Ok(())
    }
}

/// Returns the bytes of one image in the cache.
fn image_bytes(size: u32) -> u64 {
    3 * u64::from(size) * u64::from(size)
}

/// Returns the SHA-256 over evenly chosen images of `n`, including the first and the last, in hexadecimal.
fn digest_of_some(images: &[u8], n: usize) -> String {
    let mut hash = Sha256::new();
    let (bytes, count) = (images.len() / n.max(1), n.min(MAX_CHECKED));
    for i in 0..count {
        let image = if count > 1 { i * (n - 1) / (count - 1) } else { 0 };
        hash.update(&images[image * bytes..(image + 1) * bytes]);
    }
    format!("{:x}", hash.finalize())
}

/// Waits until no other process builds this cache.
fn wait_for(lock: &File, progress: &Progress, interrupt: &Interrupt) -> Result<()> {
    let mut announced = false;
    loop {
        match lock.try_lock() {
            // Without locks, at worst two processes do the same work.
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
        }
        if !announced {
            progress.println("another process is building the image cache: waiting for it");
            announced = true;
        }
        interrupt.check("another process is building the image cache")?;
        std::thread::sleep(POLL_PERIOD);
    }
}

/// Reads, squares and resizes every image, in parallel, and writes the cache.
fn build(
    listing: &Listing,
    options: &Options,
    folder: &Path,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let needed = listing.images.len() as u64 * image_bytes(options.size);
    let disk =
        rustix::fs::statvfs(folder).with_context(|| format!("reading the free space of {}", folder.display()))?;
    check_space(needed, disk.f_bavail.saturating_mul(disk.f_frsize), folder)?;

    sweep(folder);
    // A temporary file that is dropped before it is renamed is removed; it is locked as long as this process lives.
    let temporary = tempfile::Builder::new().prefix(".").suffix(UNFINISHED).tempfile_in(folder)?;
    // Without locks, the file of another process is not removed either.
    drop(temporary.as_file().try_lock());
    let mut out = BufWriter::with_capacity(1 << 20, temporary);
    let mut styles: Vec<CachedStyle> =
        listing.names.iter().map(|name| CachedStyle { name: name.clone(), files: Vec::new(), n_broken: 0 }).collect();
    let mut broken = Vec::new();
    let loader = ImageLoader::default();
    let bar = progress.bar("image cache", listing.images.len() as u64, "images");
    for images in listing.images.chunks(DECODED_PER_THREAD * rayon::current_num_threads()) {
        let decoded: Vec<_> = images
            .par_iter()
            .map(|image| {
                // An image that is skipped here is never written: the check below comes first.
                let planes = (!interrupt.requested()).then(|| {
                    let squared = |read: RgbImage| square(&read, options.size, options.fit);
                    image
                        .read_with(options.size, &loader, squared)
                        .map_err(|error| error.to_string().trim_end().to_owned())
                });
                bar.inc(1);
                planes
            })
            .collect();
        for (image, decoded) in images.iter().zip(decoded) {
            let Some(decoded) = decoded else {
                bail!(Interrupted { kept: "the unfinished image cache is not kept".to_owned() });
            };
            let style = &mut styles[image.style];
            match decoded {
                Ok(planes) => {
                    out.write_all(&planes)
                        .with_context(|| format!("writing the image cache in {}", folder.display()))?;
                    style.files.push(image.name.clone());
                }
                Err(why) => {
                    broken.push(Broken { file: image.name.clone(), why });
                    style.n_broken += 1;
                }
            }
        }
    }
    let writing = || format!("writing the image cache in {}", folder.display());
    let temporary = out.into_inner().map_err(|error| error.into_error()).with_context(writing)?;
    temporary.as_file().sync_all().with_context(writing)?;

    let n = listing.images.len() - broken.len();
    // SAFETY: no other process writes to the temporary file, and it is complete.
    let map = unsafe { Mmap::map(temporary.as_file()) }.with_context(writing)?;
    let checked = digest_of_some(&map, n);
    #[cfg(unix)]
    std::fs::set_permissions(temporary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .with_context(writing)?;
    temporary.persist(folder.join(format!("{}.u8", listing.key))).with_context(writing)?;
    let index = Index { key: listing.key.clone(), size: options.size, styles, broken, checked };
    write_atomic(&folder.join(format!("{}.json", listing.key)), &serde_json::to_vec(&index)?)?;
    Ok(())
}

/// Removes the unfinished caches of processes that were killed: tens of GB each.
fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(file) = File::open(&path) else { continue };
        let age = file.metadata().ok().and_then(|metadata| metadata.modified().ok()?.elapsed().ok());
        // One that was only just created may not be locked yet.
        let is_old = age.is_some_and(|age| age > LOCKED_WITHIN);
        if path.to_string_lossy().ends_with(UNFINISHED) && is_old && file.try_lock().is_ok() {
            drop(std::fs::remove_file(path));
        }
    }
}

/// Returns an error if the cache would not fit on the disk.
fn check_space(needed: u64, free: u64, folder: &Path) -> Result<()> {
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    ensure!(
        needed <= free,
        "the image cache needs {}, but {} has {} free: free some space, or use a smaller size",
        gigabytes(needed),
        folder.display(),
        gigabytes(free)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_without_space_is_refused_with_the_numbers() {
        check_space(10, 10, Path::new("cache")).unwrap();
        let needed = 81_444 * image_bytes(512);
        let error = check_space(needed, 12_300_000_000, Path::new("cache")).unwrap_err().to_string();
        assert_eq!(
            error,
            "the image cache needs 64.1 GB, but cache has 12.3 GB free: free some space, or use a smaller size"
        );
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_being_written_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let create = |name: &str| {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - 2 * LOCKED_WITHIN).unwrap();
            file
        };
        let written = create(&format!(".written{UNFINISHED}"));
        written.try_lock().unwrap();
        drop([create(&format!(".killed{UNFINISHED}")), create("whole.u8")]);
        File::create(folder.path().join(format!(".new{UNFINISHED}"))).unwrap();
        sweep(folder.path());
        let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [&format!(".new{UNFINISHED}"), &format!(".written{UNFINISHED}"), "whole.u8"]);
    }

    #[test]
    fn the_checked_images_are_spread_from_the_first_to_the_last() {
        let images = vec![0; 2 * 1000];
        let intact = digest_of_some(&images, 1000);
        let checked = (0..1000).filter(|image| {
            let mut damaged = images.clone();
            damaged[2 * image + 1] = 1;
            digest_of_some(&damaged, 1000) != intact
        });
        let checked: Vec<usize> = checked.collect();
        assert_eq!((checked.len(), checked[0], checked[63]), (64, 0, 999));
        assert_eq!(digest_of_some(&[], 0), format!("{:x}", Sha256::digest([])));
    }
}
