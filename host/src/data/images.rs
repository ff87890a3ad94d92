//! Image files: folders of them, and the one loader by which every command reads them.

use std::collections::BTreeSet;
use std::fs::FileType;
use std::io::Cursor;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use tch::{Device, Tensor};

/// The formats that are read, as messages name them.
pub const FORMATS: &str = "png, jpg, webp, gif, bmp, tiff";

/// File extensions of images, case-insensitive.
const EXTENSIONS: [&str; 9] = ["png", "jpg", "jpeg", "jfif", "webp", "gif", "bmp", "tif", "tiff"];

/// File extensions of images that are not supported; skipping them is a warning.
const OTHER_EXTENSIONS: [&str; 9] = ["avif", "heic", "heif", "ico", "jp2", "jxl", "psd", "svg", "tga"];

/// Maximum number of pixels of an image, where Pillow refuses one as a decompression bomb too.
const MAX_PIXELS: u64 = 178_956_970;

/// Maximum number of bytes of a decoded image, before it is converted to 8 bits per channel.
const MAX_BYTES: u64 = 1 << 30;

/// Maximum number of bytes of a file.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Number of pixels above which only one image is in memory at a time, however many threads read.
const LARGE: u64 = 1 << 24;

/// Number of pixels that a batch of images does not exceed, unless a single image does.
const BATCH_PIXELS: u64 = 1 << 26;

/// Number of files that a warning names.
const MAX_NAMED: usize = 3;

/// Number of warnings about images that cannot be read; further ones are counted, and named in the debug log.
const MAX_WARNINGS: usize = 10;

/// Why an image or a folder of them could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or folder could not be opened.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The path names something else than a file.
    #[error("{path} is a {kind}, not a file", path = .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// A noun for what it is.
        kind: &'static str,
    },
    /// The file or the image in it is too large.
    #[error("{path} is too large an image: {size}, at most {limit} are read", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: String,
        /// The largest size that is read.
        limit: String,
    },
    /// The file ends before its image does.
    #[error("{path} is not a readable image: the file is truncated", path = .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a readable image.
    #[error("{path} is not a readable image: {source}", path = .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The decoder's error.
        source: image::ImageError,
    },
    /// A folder has no images.
    #[error("{path} has no images ({FORMATS}){}", but(.others), path = .path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
        /// Images of other formats in it.
        others: Vec<PathBuf>,
    },
}

/// Returns all images below a folder by their extensions, sorted by path.
///
/// Files and folders whose names begin with a dot are left out, and so are links to images that are found anyway.
/// Images of formats that are not read, and pipes and devices with the name of an image, are named in warnings.
pub fn find_images(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut found = Found::default();
    found.collect(folder)?;
    let files = distinct(found.files);
    if files.is_empty() {
        return Err(ImageError::Empty { path: folder.to_owned(), others: found.others });
    }
    if !found.others.is_empty() {
        tracing::warn!("left out: {}, only {FORMATS} are read", named(&found.others));
    }
    Ok(files)
}

/// Splits files into batches of at most `n` files, and of so few pixels that the images fit into memory together: their
/// headers are read for that. A very large image is a batch of its own.
pub fn batches(files: &[PathBuf], n: usize) -> impl Iterator<Item = &[PathBuf]> {
    let mut rest = files;
    std::iter::from_fn(move || {
        let mut pixels = 0;
        let fits = |file: &&PathBuf| {
            pixels += n_pixels(file);
            pixels <= BATCH_PIXELS
        };
        let n_files = rest.iter().take(n).take_while(fits).count().max(1);
        let (batch, others) = rest.split_at_checked(n_files)?;
        rest = others;
        Some(batch)
    })
}

/// Warns of images that cannot be read and are left out, each by its error: the first ones by a line each, and then of their
/// number.
pub fn warn_of_unreadable<S: AsRef<str>>(errors: &[S], n_images: usize) {
    for (i, error) in errors.iter().enumerate() {
        match i < MAX_WARNINGS {
            true => tracing::warn!("left out: {}", error.as_ref()),
            false => tracing::debug!("left out: {}", error.as_ref()),
        }
    }
    let n = errors.len();
    if n > 0 {
        let is_short = n > MAX_WARNINGS && !tracing::enabled!(tracing::Level::DEBUG);
        let all = if is_short { " (-v names them all)" } else { "" };
        tracing::warn!("{n} of {n_images} images cannot be read and are left out{all}");
    }
}

/// Reads image files: one loader per command, so that a warning that applies to many images appears once.
#[derive(Debug, Default)]
pub struct ImageLoader {
    /// Whether the log contains the warning that transparency is composited.
    warned: AtomicBool,
    /// Locked while a large image is in memory.
    large: Mutex<()>,
}

impl ImageLoader {
    /// Reads an image as RGB8, its format detected from the content, not from the name. It is turned upright by its EXIF
    /// orientation; transparency is composited on white, with one warning; of an animation the first frame is read.
    ///
    /// # Errors
    /// If the path does not name a file, or the file is not a whole image of a format that is read, or the image is too large.
    pub fn read(&self, path: &Path) -> Result<RgbImage, ImageError> {
        self.read_with(path, |image| image)
    }

    /// Reads an image as [`ImageLoader::read`] does, and returns what `make` makes of it. Of large images only one at a
    /// time is in memory; `make` must therefore not wait for other threads that read images.
    pub fn read_with<T>(&self, path: &Path, make: impl FnOnce(RgbImage) -> T) -> Result<T, ImageError> {
        let bytes = read_file(path)?;
        let broken = |source| ImageError::Broken { path: path.to_owned(), source };
        let reader = ImageReader::new(Cursor::new(&bytes[..])).with_guessed_format();
        let mut reader = reader.map_err(|source| ImageError::Io { path: path.to_owned(), source })?;
        // The name decides only how the error is worded.
        if let (None, Ok(format)) = (reader.format(), ImageFormat::from_path(path)) {
            reader.set_format(format);
        }
        let mut limits = Limits::default();
        limits.max_alloc = Some(MAX_BYTES);
        reader.limits(limits);
        let format = reader.format();
        let mut decoder = reader.into_decoder().map_err(broken)?;
        let (width, height) = decoder.dimensions();
        let pixels = u64::from(width) * u64::from(height);
        if pixels > MAX_PIXELS || decoder.total_bytes() > MAX_BYTES {
            return Err(ImageError::TooLarge {
                path: path.to_owned(),
                size: format!("{width}x{height} pixels, {} bytes", decoder.total_bytes()),
                limit: format!("{MAX_PIXELS} pixels and {MAX_BYTES} bytes"),
            });
        }
        // The decoders of these formats would fill the rest with gray, or with earlier pixels.
        let is_whole = match format {
            Some(ImageFormat::Jpeg) => has_end(&bytes),
            Some(ImageFormat::WebP) => has_riff_size(&bytes),
            _ => true,
        };
        if !is_whole {
            return Err(ImageError::Truncated { path: path.to_owned() });
        }
        let _turn = (pixels > LARGE).then(|| self.large.lock().unwrap_or_else(PoisonError::into_inner));
        let orientation = decoder.orientation().map_err(broken)?;
        let (image, is_transparent) = on_white(DynamicImage::from_decoder(decoder).map_err(broken)?);
        if is_transparent && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!("{} is transparent: transparent images are composited on white", path.display());
        }
        let mut image = DynamicImage::from(image);
        image.apply_orientation(orientation);
        Ok(make(image.into_rgb8()))
    }
}

/// Converts u8 [n, h, w, 3], on any device, to images.
pub fn rgb_images(images: &Tensor) -> anyhow::Result<Vec<Arc<RgbImage>>> {
    let size = images.size();
    let (height, width) = (u32::try_from(size[1])?, u32::try_from(size[2])?);
    let bytes: Vec<u8> = Vec::try_from(images.to_device(Device::Cpu).flatten(0, -1))?;
    let rows = bytes.chunks_exact((width * height * 3) as usize).map(|rgb| {
        Arc::new(RgbImage::from_raw(width, height, rgb.to_vec()).expect("the chunk is as long as the image"))
    });
    Ok(rows.collect())
}

/// Whether a file's name has an image's extension.
pub fn has_image_extension(path: &Path) -> bool {
    has_extension(path, &EXTENSIONS)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    extensions.contains(&extension.as_str())
}

fn but(others: &[PathBuf]) -> String {
    if others.is_empty() { String::new() } else { format!(", but {}: convert them", named(others)) }
}

/// Names the first of several files, and counts the others.
fn named(files: &[PathBuf]) -> String {
    let shown: Vec<String> = files.iter().take(MAX_NAMED).map(|file| file.display().to_string()).collect();
    match files.len().saturating_sub(MAX_NAMED) {
        0 => shown.join(", "),
        n => format!("{} and {n} more of such formats", shown.join(", ")),
    }
}

/// What was found below a folder.
#[derive(Default)]
struct Found {
    files: Vec<PathBuf>,
    /// Images of formats that are not read.
    others: Vec<PathBuf>,
    walked: BTreeSet<PathBuf>,
}

impl Found {
    fn collect(&mut self, folder: &Path) -> Result<(), ImageError> {
        let io = |source| ImageError::Io { path: folder.to_owned(), source };
        // Links may lead to the same folder again, or form a cycle.
        if !self.walked.insert(folder.canonicalize().map_err(io)?) {
            return Ok(());
        }
        let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>).map_err(io)?;
        let mut paths: Vec<(bool, PathBuf)> = entries
            .iter()
            .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            .map(|entry| (entry.path().is_symlink(), entry.path()))
            .collect();
        // Folders come before the links to them.
        paths.sort();
        for (_, path) in paths {
            match std::fs::metadata(&path).map(|metadata| metadata.file_type()) {
                Ok(kind) if kind.is_dir() => self.collect(&path)?,
                Ok(kind) if !kind.is_file() && has_image_extension(&path) => {
                    tracing::warn!("left out: {}", ImageError::NotAFile { path, kind: noun(kind) });
                }
                // A link to nothing is named where it is read.
                _ if has_image_extension(&path) => self.files.push(path),
                _ if has_extension(&path, &OTHER_EXTENSIONS) => self.others.push(path),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Sorts files, without the links to others of them.
fn distinct(mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    let n = files.len();
    files.sort_by_cached_key(|file| (file.is_symlink(), file.clone()));
    let mut seen = BTreeSet::new();
    files.retain(|file| seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone())));
    files.sort();
    if files.len() < n {
        tracing::info!("{} links lead to images that are found anyway: each image counts once", n - files.len());
    }
    files
}

/// Returns a noun for what is not a file.
fn noun(kind: FileType) -> &'static str {
    match () {
        () if kind.is_dir() => "folder",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () => "device",
    }
}

/// Returns the length of a file, and an error unless the path names one: opening a pipe would wait for its writer, and a device may never end.
pub fn expect_file(path: &Path) -> Result<u64, ImageError> {
    let metadata = std::fs::metadata(path).map_err(|source| ImageError::Io { path: path.to_owned(), source })?;
    match metadata.is_file() {
        true => Ok(metadata.len()),
        false => Err(ImageError::NotAFile { path: path.to_owned(), kind: noun(metadata.file_type()) }),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, ImageError> {
    let n_bytes = expect_file(path)?;
    if n_bytes > MAX_FILE_BYTES {
        let (size, limit) = (format!("{n_bytes} bytes"), format!("{MAX_FILE_BYTES} bytes"));
        return Err(ImageError::TooLarge { path: path.to_owned(), size, limit });
    }
    std::fs::read(path).map_err(|source| ImageError::Io { path: path.to_owned(), source })
}

/// Returns the width and height that an image has once it is turned upright; none for a file that is not an image.
pub fn upright_size(path: &Path) -> Option<(u32, u32)> {
    expect_file(path).ok()?;
    let reader = ImageReader::open(path).ok()?.with_guessed_format().ok()?;
    let mut decoder = reader.into_decoder().ok()?;
    let (width, height) = decoder.dimensions();
    let turned = matches!(
        decoder.orientation().ok()?,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    );
    Some(if turned { (height, width) } else { (width, height) })
}

/// Returns the number of pixels that an image's header states; 0 for a file that is not an image.
fn n_pixels(path: &Path) -> u64 {
    let size = || {
        expect_file(path).ok()?;
        ImageReader::open(path).ok()?.with_guessed_format().ok()?.into_dimensions().ok()
    };
    size().map_or(0, |(width, height)| u64::from(width) * u64::from(height))
}

/// Converts an image to RGB8, its transparency composited on white; returns whether there was any.
pub(super) fn on_white(image: DynamicImage) -> (RgbImage, bool) {
    if !image.color().has_alpha() {
        return (image.into_rgb8(), false);
    }
    let rgba = image.into_rgba8();
    let is_transparent = rgba.pixels().any(|pixel| pixel.0[3] < 255);
    let (width, height) = rgba.dimensions();
    let rgb: Vec<u8> = rgba
        .pixels()
        .flat_map(|pixel| {
            let [red, green, blue, alpha] = pixel.0.map(u32::from);
            [red, green, blue].map(|value| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8)
        })
        .collect();
    (RgbImage::from_raw(width, height, rgb).expect("there are three bytes for each pixel"), is_transparent)
}

/// Whether a JPEG file has the marker that ends its image; a thumbnail's inside a segment does not count.
fn has_end(jpeg: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[first, marker]) = jpeg.get(at..at + 2) {
        at += match (first, marker) {
            (0xff, 0xd9) => return true,
            // Fill bytes, escaped bytes and markers without a segment.
            (0xff, 0xff) => 1,
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => 2,
            (0xff, _) => match jpeg.get(at + 2..at + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])).max(2),
                _ => return false,
            },
            _ => 1,
        };
    }
    false
}

/// Whether a RIFF file has as many bytes as its header states.
fn has_riff_size(riff: &[u8]) -> bool {
    let stated = riff.get(4..8).and_then(|size| <[u8; 4]>::try_from(size).ok()).map(u32::from_le_bytes);
    stated.is_some_and(|size| riff.len() as u64 >= 8 + u64::from(size))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use test_support::{Reference, reference_path};

    use super::*;

    fn read(path: &Path) -> Result<RgbImage, ImageError> {
        ImageLoader::default().read(path)
    }

    #[test]
    fn folders_are_walked_in_order_and_broken_files_are_named() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| root.path().join(name);
        for folder in ["b", "a", ".hidden"] {
            std::fs::create_dir(path(folder)).expect("a new folder");
        }
        let red = RgbImage::from_pixel(3, 2, image::Rgb([255, 0, 0]));
        for file in ["b/1.png", "a/2.PNG", "a/10.png", ".hidden/3.png"] {
            red.save_with_format(path(file), ImageFormat::Png).expect("a new file");
        }
        std::fs::write(path("a/notes.txt"), "no image").expect("a new file");
        std::fs::write(path("broken.jpg"), "no image").expect("a new file");

        let files = find_images(root.path()).expect("there are images");
        assert_eq!(files, ["a/10.png", "a/2.PNG", "b/1.png", "broken.jpg"].map(path));
        assert_eq!(read(&files[1]).expect("an image"), red);
        let message = read(&files[3]).expect_err("no image").to_string();
        assert!(message.starts_with(&format!("{} is not a readable image", path("broken.jpg").display())), "{message}");
        std::fs::create_dir(path("empty")).expect("a new folder");
        let message = find_images(&path("empty")).expect_err("no images").to_string();
        assert!(message.ends_with("empty has no images (png, jpg, webp, gif, bmp, tiff)"), "{message}");
        for i in 0..5 {
            std::fs::write(path(&format!("empty/{i}.heic")), "another format").expect("a new file");
        }
        let message = find_images(&path("empty")).expect_err("no images").to_string();
        let but = format!(
            "but {0}/0.heic, {0}/1.heic, {0}/2.heic and 2 more of such formats: convert them",
            path("empty").display()
        );
        assert!(message.ends_with(&but), "{message}");
    }

    #[test]
    fn links_count_once() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| root.path().join(name);
        for folder in ["a", "b"] {
            std::fs::create_dir(path(folder)).expect("a new folder");
        }
        for file in ["a/2.png", "b/1.png"] {
            std::fs::write(path(file), "an image").expect("a new file");
        }
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(to, path(from)).expect("a new link");
        // A cycle of folders, a link before its image, two links to an image elsewhere, one to nothing.
        link("../a", "b/ring");
        link("../b", "a/ring");
        link("2.png", "a/1.png");
        assert_eq!(find_images(&path("a")).expect("there are images"), ["a/2.png", "a/ring/1.png"].map(path));
        std::fs::create_dir(path("c")).expect("a new folder");
        link("../a/2.png", "c/x.png");
        link("../a/2.png", "c/y.png");
        link("nowhere.png", "c/z.png");
        let files = find_images(&path("c")).expect("there are images");
        assert_eq!(files, ["c/x.png", "c/z.png"].map(path));
        assert!(matches!(read(&files[1]), Err(ImageError::Io { .. })));
    }

    #[test]
    fn only_files_are_opened() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| root.path().join(name);
        std::process::Command::new("mkfifo").arg(path("pipe.png")).status().expect("mkfifo runs");
        std::os::unix::fs::symlink("/dev/zero", path("zero.png")).expect("a new link");
        std::fs::create_dir(path("folder.png")).expect("a new folder");
        for (name, kind) in [("pipe", "pipe"), ("zero", "device"), ("folder", "folder")] {
            let message = read(&path(&format!("{name}.png"))).expect_err("not a file").to_string();
            assert!(message.ends_with(&format!("{name}.png is a {kind}, not a file")), "{message}");
        }
        assert!(matches!(find_images(root.path()), Err(ImageError::Empty { .. })));
        let files = ["pipe.png", "zero.png", "folder.png"].map(path);
        assert_eq!(batches(&files, 2).map(<[_]>::len).collect::<Vec<_>>(), [2, 1]);
    }

    /// Formats, orientations, animations and transparency; tests/reference/make_images.py.
    #[test]
    fn pixels_are_pillows() {
        let reference = Reference::read("images.safetensors");
        let loader = ImageLoader::default();
        let mut n_files = 0;
        for (name, wanted) in &reference.tensors {
            let image = loader.read(&reference_path("images").join(name)).expect("an image");
            let size = [i64::from(image.height()), i64::from(image.width()), 3];
            assert_eq!(wanted.size(), size, "{name}");
            let wanted: Vec<u8> = Vec::try_from(wanted.flatten(0, -1)).expect("bytes");
            let worst = image.as_raw().iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max();
            // The decoders of lossy formats round differently, and so does compositing.
            let tolerance = match name {
                name if name.ends_with(".jpg") || name.ends_with(".jfif") || name.contains("lossy") => 3,
                name if name.starts_with("clear") => 1,
                _ => 0,
            };
            assert!(worst <= Some(tolerance), "{name}: a difference of {worst:?}");
            n_files += 1;
        }
        assert_eq!(n_files, 31);
        assert!(loader.warned.load(Ordering::Relaxed));
    }

    #[test]
    fn what_pillow_refuses_as_truncated_is_refused() {
        let reference = Reference::read("images.safetensors");
        let cut: BTreeMap<String, Vec<usize>> = serde_json::from_str(&reference.metadata["cut"]).expect("lengths");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut accepted, mut n_cuts) = (vec![], 0);
        for (name, lengths) in &cut {
            let bytes = std::fs::read(reference_path("images").join(name)).expect("a file");
            let file = folder.path().join(name);
            for &length in lengths {
                std::fs::write(&file, &bytes[..length]).expect("a new file");
                n_cuts += 1;
                if read(&file).is_ok() {
                    accepted.push((name, length, bytes.len()));
                }
            }
        }
        assert!(n_cuts > 200, "{n_cuts}");
        assert!(accepted.is_empty(), "{accepted:?}");
    }

    /// Returns a PNG of zeros, which are a few kilobytes however many they are.
    fn black(path: &Path, width: u32, height: u32) {
        image::GrayImage::new(width, height).save_with_format(path, ImageFormat::Png).expect("a new file");
    }

    #[test]
    fn pixels_are_counted_before_they_are_decoded() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |i: usize| folder.path().join(format!("{i}.png"));
        black(&path(0), 4096, 4096);
        for i in 1..4 {
            std::fs::copy(path(0), path(i)).expect("a copy");
        }
        black(&path(4), 16_384, 8192);
        black(&path(5), 2, 2);
        let files: Vec<PathBuf> = (0..6).map(path).collect();
        assert_eq!(batches(&files, 3).map(<[_]>::len).collect::<Vec<_>>(), [3, 1, 1, 1]);
        assert_eq!(batches(&files, 9).map(<[_]>::len).collect::<Vec<_>>(), [4, 1, 1]);
        assert_eq!(batches(&[], 9).count(), 0);
        // The header alone decides: what follows it is never read.
        let mut bomb = std::fs::read(path(5)).expect("a file");
        bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let crc = crc(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        std::fs::write(path(6), bomb).expect("a new file");
        let message = read(&path(6)).expect_err("too large").to_string();
        assert!(message.contains("6.png is too large an image: 60000x60000 pixels"), "{message}");
    }

    /// PNG's checksum.
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        })
    }
}
