//! Embeddings of image files by the batch, kept in a cache, so that a large folder that was broken off, or is embedded
//! again, costs only what is new.
//!
//! A cache is one file of records that grows by one for each batch. A batch is cached whole or not at all: the last bits
//! of an embedding may depend on the images beside it, and what is read back is what would be computed.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use image::RgbImage;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Encoders, probe};
use crate::context::Context;
use crate::data::images::{ImageError, ImageLoader, batches};
use crate::interrupt::Interrupted;
use crate::text::counted;

/// Number of images in a batch.
const BATCH: usize = 128;
/// The version of the cache's layout: raise it when that or the reading of images changes.
const FORMAT: &str = "ambiguity embeddings 1";
/// A file that was modified this recently may change again within the same tick of the file system's clock, so its
/// embedding is not cached.
const SETTLED: Duration = Duration::from_secs(2);
/// Number of bytes of a record before its flags: key, number of images, number of rows, width of a row.
const HEADER: usize = 32 + 3 * 4;
/// Number of bytes of a record's checksum.
const CHECKSUM: usize = 32;

type Key = [u8; 32];

/// The embeddings of files.
#[derive(Debug)]
pub struct Embedded {
    /// The files that could be read, in the order given.
    pub files: Vec<PathBuf>,
    /// Their embeddings, n × dim.
    pub rows: Array2<f32>,
}

/// Embeds image files with the encoder of that name; `skip` decides what a file that cannot be read means.
///
/// With a folder for caches, embeddings are taken from and added to the cache of the encoder: an interrupt keeps what
/// was computed.
///
/// # Errors
/// Those of `skip` and of the encoder; an interrupt.
pub fn embed_files(
    files: &[PathBuf],
    name: &str,
    encoders: &mut Encoders,
    loader: &ImageLoader,
    caches: Option<&Path>,
    skip: &mut dyn FnMut(ImageError) -> Result<()>,
    context: &Context,
) -> Result<Embedded> {
    // The encoder is loaded before the bar starts, so that its speed excludes loading.
    let dim = encoders.get(name)?.info().dim;
    let mut cache = match caches {
        Some(folder) => Cache::open(folder, &identity(name, encoders)?, dim),
        None => None,
    };
    let mut bar = context.progress.bar("embedding", files.len() as u64, "images");
    let (mut read_files, mut flat) = (vec![], vec![]);
    let mut n_done = 0;
    for batch in batches(files, BATCH) {
        if context.interrupt.requested() {
            let kept = match cache {
                Some(_) => format!(
                    "the embeddings of {} are kept in the cache, and the same command resumes",
                    counted(n_done, "image")
                ),
                None => "nothing was written".to_owned(),
            };
            return Err(Interrupted { kept }.into());
        }
        let key = cache.as_ref().and_then(|_| key_of(batch));
        let known = key.and_then(|key| cache.as_mut()?.get(key));
        let is_known = known.is_some();
        let (is_readable, rows) = match known {
            Some(found) => found,
            None => {
                let images: Vec<Option<RgbImage>> = read(batch, loader, skip)?;
                let is_readable: Vec<bool> = images.iter().map(Option::is_some).collect();
                let images: Vec<Arc<RgbImage>> = images.into_iter().flatten().map(Arc::new).collect();
                let rows = encoders.embed_images(name, &images)?;
                let rows = rows.into_raw_vec_and_offset().0;
                if let (Some(key), Some(open)) = (key, cache.as_mut())
                    && let Err(error) = open.add(key, &is_readable, &rows)
                {
                    tracing::warn!(
                        "the cache {} cannot be written ({error}): nothing more is kept",
                        open.path.display()
                    );
                    cache = None;
                }
                (is_readable, rows)
            }
        };
        if is_known {
            // The messages of files that cannot be read are not in the cache.
            let broken: Vec<PathBuf> =
                batch.iter().zip(&is_readable).filter(|(_, is)| !**is).map(|(file, _)| file.clone()).collect();
            read(&broken, loader, skip)?;
            let rows = ArrayView2::from_shape((rows.len() / dim, dim), &rows);
            encoders.note_images(name, rows.context("the rows of an encoder have one length")?)?;
            bar.skip(batch.len() as u64);
        } else {
            bar.inc(batch.len() as u64);
        }
        read_files.extend(batch.iter().zip(is_readable).filter(|(_, is)| *is).map(|(file, _)| file.clone()));
        flat.extend(rows);
        n_done += batch.len() as u64;
    }
    bar.finish();
    if let Some(cache) = cache {
        cache.prune();
    }
    let rows =
        Array2::from_shape_vec((read_files.len(), dim), flat).context("the rows of an encoder have one length")?;
    Ok(Embedded { files: read_files, rows })
}

/// Reads a batch in parallel; `skip` learns of the files that cannot be read, in their order.
fn read(
    files: &[PathBuf],
    loader: &ImageLoader,
    skip: &mut dyn FnMut(ImageError) -> Result<()>,
) -> Result<Vec<Option<RgbImage>>> {
    let read: Vec<Result<RgbImage, ImageError>> = files.par_iter().map(|file| loader.read(file)).collect();
    read.into_iter()
        .map(|image| image.map_or_else(|error| skip(error).map(|()| None), |image| Ok(Some(image))))
        .collect()
}

/// Returns what decides an embedding besides the image: weights, preprocessing and device show in the embedding of one
/// fixed image.
fn identity(name: &str, encoders: &mut Encoders) -> Result<String> {
    let encoder = encoders.get(name)?;
    let row = encoder.embed_images(&[Arc::new(probe())])?;
    let mut hash = Sha256::new();
    hash.update(FORMAT);
    hash.update(encoder.info().digest);
    row.iter().for_each(|value| hash.update(value.to_le_bytes()));
    Ok(format!("{:x}", hash.finalize()))
}

/// Returns the key of a batch, from its files' paths, lengths and times; none if one of them changed just now or cannot
/// be asked.
fn key_of(files: &[PathBuf]) -> Option<Key> {
    let settled = SystemTime::now().checked_sub(SETTLED)?;
    let mut hash = Sha256::new();
    for file in files {
        let (path, metadata) = (file.canonicalize().ok()?, fs::metadata(file).ok()?);
        if metadata.modified().ok()? > settled {
            return None;
        }
        let path = path.as_os_str().as_encoded_bytes();
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
        hash.update(metadata.len().to_le_bytes());
        for time in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
            hash.update(time.to_le_bytes());
        }
    }
    Some(hash.finalize().into())
}

/// The embeddings by one encoder.
#[derive(Debug)]
struct Cache {
    path: PathBuf,
    file: File,
    dim: usize,
    /// Where each batch's record begins, and its length.
    records: HashMap<Key, (u64, usize)>,
    used: HashSet<Key>,
    end: u64,
}

impl Cache {
    /// Opens a cache; none if its file cannot be used, or another process uses it.
    fn open(folder: &Path, identity: &str, dim: usize) -> Option<Self> {
        let path = folder.join("embeddings").join(format!("{}.rows", &identity[..32]));
        let open = || -> io::Result<Self> {
            fs::create_dir_all(folder.join("embeddings"))?;
            let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
            if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
                return Err(io::Error::other("another process uses it"));
            }
            let mut cache =
                Self { path: path.clone(), file, dim, records: HashMap::new(), used: HashSet::new(), end: 0 };
            cache.scan()?;
            Ok(cache)
        };
        open().inspect_err(|error| tracing::info!("no cache of embeddings: {}: {error}", path.display())).ok()
    }

    /// Finds the records; what a killed process left unfinished is overwritten.
    fn scan(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let mut header = [0; HEADER];
        while self.end + (HEADER as u64) <= length {
            self.file.read_exact_at(&mut header, self.end)?;
            let (key, numbers) = header.split_first_chunk::<32>().expect("a header begins with the key");
            let number = |i: usize| {
                let bytes = numbers[4 * i..4 * i + 4].try_into().expect("four bytes");
                u32::from_le_bytes(bytes) as usize
            };
            let (n_images, n_rows, dim) = (number(0), number(1), number(2));
            if n_images > BATCH || n_rows > n_images || dim != self.dim {
                break;
            }
            let size = HEADER + n_images + 4 * n_rows * dim + CHECKSUM;
            if self.end + size as u64 > length {
                break;
            }
            self.records.insert(*key, (self.end, size));
            self.end += size as u64;
        }
        Ok(())
    }

    /// Returns which images of a batch can be read, and the rows of those.
    fn get(&mut self, key: Key) -> Option<(Vec<bool>, Vec<f32>)> {
        let &(start, size) = self.records.get(&key)?;
        let mut record = vec![0; size];
        self.file.read_exact_at(&mut record, start).ok()?;
        let (data, checksum) = record.split_at(size - CHECKSUM);
        if Sha256::digest(data).as_slice() != checksum {
            return None;
        }
        let n_images = u32::from_le_bytes(data[32..36].try_into().expect("four bytes")) as usize;
        let (flags, rows) = data[HEADER..].split_at(n_images);
        let rows = rows.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")));
        self.used.insert(key);
        Some((flags.iter().map(|flag| *flag == 1).collect(), rows.collect()))
    }

    /// Appends a batch.
    fn add(&mut self, key: Key, is_readable: &[bool], rows: &[f32]) -> io::Result<()> {
        let n_rows = is_readable.iter().filter(|is| **is).count();
        let mut record = key.to_vec();
        for number in [is_readable.len(), n_rows, self.dim] {
            record.extend((number as u32).to_le_bytes());
        }
        record.extend(is_readable.iter().map(|is| u8::from(*is)));
        record.extend(rows.iter().flat_map(|value| value.to_le_bytes()));
        record.extend(Sha256::digest(&record));
        self.file.set_len(self.end)?;
        self.file.write_all_at(&record, self.end)?;
        self.records.insert(key, (self.end, record.len()));
        self.used.insert(key);
        self.end += record.len() as u64;
        self.file.flush()
    }

    /// Removes a cache of which most was not used: of files that have changed or are gone.
    fn prune(self) {
        let size = |keys: &mut dyn Iterator<Item = &Key>| keys.map(|key| self.records[key].1).sum::<usize>() as u64;
        if self.end > 4 * size(&mut self.used.iter()) {
            // What cannot be removed costs space, and nothing else.
            drop(fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use image::Rgb;

    use super::*;
    use crate::encoders::{Encoder, EncoderError, EncoderInfo};
    use crate::interrupt::Interrupt;

    /// An encoder that returns the first pixel, counts images, and interrupts after some.
    struct Pixels {
        n_images: Rc<Cell<usize>>,
        stop: Option<(usize, Interrupt)>,
    }

    impl Encoder for Pixels {
        fn info(&self) -> EncoderInfo {
            EncoderInfo { dim: 3, digest: "pixels".to_owned(), ..EncoderInfo::default() }
        }

        fn embed_images(&self, images: &[Arc<RgbImage>]) -> Result<Array2<f32>, EncoderError> {
            self.n_images.set(self.n_images.get() + images.len());
            if let Some((n, interrupt)) = &self.stop
                && self.n_images.get() > *n
            {
                interrupt.request();
            }
            Ok(Array2::from_shape_fn((images.len(), 3), |(i, channel)| f32::from(images[i].get_pixel(0, 0)[channel])))
        }

        fn embed_texts(&self, _: &[String]) -> Result<Array2<f32>, EncoderError> {
            unreachable!("only images are embedded")
        }
    }

    /// Returns the embeddings, the names of the files that are skipped, and the number of images that were computed.
    fn embed(folder: &Path, files: &[PathBuf], stop: Option<usize>) -> Result<(Embedded, Vec<String>, usize)> {
        let interrupt = Interrupt::default();
        let n_images = Rc::new(Cell::new(0));
        let mut encoders = Encoders::new();
        let stop = stop.map(|n| (n, interrupt.clone()));
        encoders.add("pixels", Box::new(Pixels { n_images: Rc::clone(&n_images), stop }));
        let context = Context { interrupt, ..Context::quiet() };
        let mut skipped = vec![];
        let mut skip = |error: ImageError| {
            skipped.push(error.to_string());
            Ok(())
        };
        let loader = ImageLoader::default();
        let embedded = embed_files(files, "pixels", &mut encoders, &loader, Some(folder), &mut skip, &context)?;
        // Without the one that identifies the encoder.
        Ok((embedded, skipped, n_images.get() - 1))
    }

    #[test]
    fn a_folder_that_was_broken_off_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().expect("a folder");
        let odd =
            ["50%, été", "\"quoted\" 'name'", "日本語 🎨", "-n", " space ", "tab\tand\nline", "a,b;c", "%s%n", "..x"];
        let files: Vec<PathBuf> = (0..300u32)
            .map(|i| {
                let path = folder.path().join(format!("{} {i:03}.png", odd[i as usize % odd.len()]));
                match i % 50 {
                    7 => fs::write(&path, b"no image").expect("a new file"),
                    _ => RgbImage::from_pixel(4, 4, Rgb([i as u8, 1, 2])).save(&path).expect("a new file"),
                }
                let past = SystemTime::now() - Duration::from_secs(60);
                File::options().write(true).open(&path).and_then(|file| file.set_modified(past)).expect("a new file");
                path
            })
            .collect();
        let caches = tempfile::tempdir().expect("a folder");
        let error = embed(caches.path(), &files, Some(100)).expect_err("it was interrupted");
        assert!(
            error.is::<Interrupted>() && error.to_string().contains("the embeddings of 128 images are kept"),
            "{error}"
        );
        let (all, skipped, computed) = embed(caches.path(), &files, None).expect("embeddings");
        assert_eq!((all.files.len(), all.rows.nrows(), skipped.len(), computed), (294, 294, 6, 294 - 125));
        let again = embed(caches.path(), &files, None).expect("embeddings");
        assert_eq!((&again.0.files, &again.0.rows, &again.1, again.2), (&all.files, &all.rows, &skipped, 0));
        assert!(all.files.iter().zip(all.rows.rows()).all(|(file, row)| {
            let number = file.file_stem().and_then(|stem| stem.to_str()?.rsplit(' ').next()?.parse::<u32>().ok());
            Some(row[0]) == number.map(|i| f32::from(i as u8))
        }));

        // A file that changes is read again with its batch, and a torn or damaged record is computed again.
        RgbImage::from_pixel(4, 4, Rgb([9, 9, 9])).save(&files[299]).expect("written");
        let (changed, _, computed) = embed(caches.path(), &files, None).expect("embeddings");
        assert_eq!((changed.rows[[293, 0]], computed), (9.0, 43));
        let cache = fs::read_dir(caches.path().join("embeddings")).expect("a folder").next().expect("a file");
        let cache = cache.expect("an entry").path();
        let mut bytes = fs::read(&cache).expect("a file");
        bytes[200] ^= 1;
        fs::write(&cache, &bytes[..bytes.len() - 10]).expect("written");
        let (whole, _, computed) = embed(caches.path(), &files[..256], None).expect("embeddings");
        assert_eq!((whole.rows, computed), (all.rows.slice(ndarray::s![..whole.files.len(), ..]).to_owned(), 125));
    }
}
