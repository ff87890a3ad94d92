//! The image cache: the images' planes in one memory-mapped file, KEY.u8, and its index, KEY.json.
//!
//! The index is written last, by a rename, so that its images are complete if it exists. A lock lets one process at a
//! time build a cache; the others wait for it. An interrupt leaves a part with an index of its own, .KEY.part and
//! .KEY.part.json, which the next process completes.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fs_err as fs;
use image::RgbImage;
use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempPath};

use super::Options;
use super::listing::Listing;
use super::square::square;
use crate::data::images::ImageLoader;
use crate::fs::write_atomic;
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;
use crate::text::counted;

/// Number of images that each thread decodes between two writes: this bounds the memory.
const DECODED_PER_THREAD: usize = 16;
/// Maximum number of images whose bytes are checked when a cache is opened: reading all of a large one takes minutes.
const MAX_CHECKED: usize = 64;
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
    sweep(folder);
    let Part { mut styles, mut broken, mut n_read, file } = Part::resume(listing, options, folder)?;
    let n_written: usize = styles.iter().map(|style| style.files.len()).sum();
    let needed = (listing.images.len() - n_read) as u64 * image_bytes(options.size);
    let disk =
        rustix::fs::statvfs(folder).with_context(|| format!("reading the free space of {}", folder.display()))?;
    check_space(needed, disk.f_bavail.saturating_mul(disk.f_frsize), folder)?;

    let writing = || format!("writing the image cache in {}", folder.display());
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.seek(SeekFrom::Start(n_written as u64 * image_bytes(options.size))).with_context(writing)?;
    let loader = ImageLoader::default();
    let mut bar = progress.bar("image cache", listing.images.len() as u64, "images");
    bar.skip(n_read as u64);
    for images in listing.images[n_read..].chunks(DECODED_PER_THREAD * rayon::current_num_threads()) {
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
                if n_read == 0 {
                    bail!(Interrupted { kept: "no image was read yet".to_owned() });
                }
                let file = out.into_inner().map_err(|error| error.into_error()).with_context(writing)?;
                Part { styles, broken, n_read, file }.keep(listing, folder)?;
                let n = counted(n_read as u64, "image");
                bail!(Interrupted { kept: format!("{n} are kept in the cache, and the same command resumes") });
            };
            n_read += 1;
            let style = &mut styles[image.style];
            match decoded {
                Ok(planes) => {
                    out.write_all(&planes).with_context(writing)?;
                    style.files.push(image.name.clone());
                }
                Err(why) => {
                    broken.push(Broken { file: image.name.clone(), why });
                    style.n_broken += 1;
                }
            }
        }
    }
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

/// Removes the parts that killed processes left, tens of GB each: those without an index, whose cache nobody builds.
fn sweep(folder: &Path) {
    let names = || std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names: Vec<String> = names().filter_map(|name| name.into_string().ok()).collect();
    for part in names.iter().filter_map(|name| name.strip_prefix('.')?.strip_suffix(".part")) {
        let is_kept = names.contains(&format!(".{part}.part.json"));
        let lock = names.iter().find(|name| name.starts_with(part) && name.ends_with(".lock"));
        let lock = lock.map(|name| File::open(folder.join(name)));
        // A lock that cannot be taken is held by the process that writes to the part, this one included.
        let is_free = lock.as_ref().is_none_or(|lock| lock.as_ref().is_ok_and(|lock| lock.try_lock().is_ok()));
        if !is_kept && is_free {
            drop(std::fs::remove_file(folder.join(format!(".{part}.part"))));
        }
    }
}

/// A cache that is not complete.
struct Part {
    styles: Vec<CachedStyle>,
    broken: Vec<Broken>,
    /// Number of images of the listing that were read.
    n_read: usize,
    /// The planes of those that could be read; removed when it is dropped.
    file: NamedTempFile,
}

/// The index of a part, which exists while nobody writes to it.
#[derive(Serialize, Deserialize)]
struct PartIndex {
    styles: Vec<CachedStyle>,
    broken: Vec<Broken>,
    n_read: usize,
}

impl Part {
    /// The paths of the planes and of the index: one each for a cache, so that what a killed process leaves is replaced.
    fn paths(listing: &Listing, folder: &Path) -> [PathBuf; 2] {
        ["part", "part.json"].map(|kind| folder.join(format!(".{}.{kind}", &listing.key[..16])))
    }

    /// Takes the part that an interrupt left, or begins a new one.
    fn resume(listing: &Listing, options: &Options, folder: &Path) -> Result<Self> {
        let [path, index] = Self::paths(listing, folder);
        let found: Option<PartIndex> = std::fs::read(&index).ok().and_then(|text| serde_json::from_slice(&text).ok());
        // Without its index a part counts as empty.
        crate::fs::remove_file(&index)?;
        let file = fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let length = file.metadata()?.len();
        let is_whole = |part: &PartIndex| {
            let n: usize = part.styles.iter().map(|style| style.files.len()).sum();
            let names = part.styles.iter().map(|style| &style.name);
            n + part.broken.len() == part.n_read
                && part.n_read <= listing.images.len()
                && names.eq(&listing.names)
                && length == n as u64 * image_bytes(options.size)
        };
        let style = |name: &String| CachedStyle { name: name.clone(), files: Vec::new(), n_broken: 0 };
        let empty = || PartIndex { styles: listing.names.iter().map(style).collect(), broken: Vec::new(), n_read: 0 };
        let PartIndex { styles, broken, n_read } = found.filter(is_whole).unwrap_or_else(empty);
        if n_read == 0 {
            file.set_len(0)?;
        }
        let file = NamedTempFile::from_parts(file.into_parts().0, TempPath::try_from_path(path)?);
        Ok(Self { styles, broken, n_read, file })
    }

    /// Leaves the part for the next process.
    fn keep(self, listing: &Listing, folder: &Path) -> Result<()> {
        let Self { styles, broken, n_read, file } = self;
        file.as_file().sync_all()?;
        file.keep()?;
        let [_, index] = Self::paths(listing, folder);
        Ok(write_atomic(&index, &serde_json::to_vec(&PartIndex { styles, broken, n_read })?)?)
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
        let create = |name: &str| File::create(folder.path().join(name)).unwrap();
        for name in [".killed.part", "killed0.lock", ".lost.part", ".kept.part", ".kept.part.json", ".written.part"] {
            create(name);
        }
        let held = create("written0.lock");
        held.try_lock().unwrap();
        sweep(folder.path());
        let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".kept.part", ".kept.part.json", ".written.part", "killed0.lock", "written0.lock"]);
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
