//! The listing of a source's images, before any of them is decoded, and the key of their cache.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use fs_err as fs;
use image::RgbImage;
use sha2::{Digest, Sha256};

use super::{Options, digests};
use crate::data::images::{FORMATS, ImageError, ImageLoader, find_images, has_image_extension};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::text::{counted, has_control};
use procedural_art::{self, STYLES, SUBJECTS, paint};

/// The version of the cache's layout and of the preprocessing: raise it when either changes, and caches are rebuilt.
const FORMAT: u32 = 2;

/// The images of a source, by style and then by name.
pub(super) struct Listing {
    /// The styles' names, sorted.
    pub(super) names: Vec<String>,
    pub(super) images: Vec<Image>,
    /// SHA-256 over the images' contents and their preprocessing, in hexadecimal.
    pub(super) key: String,
}

/// One image, which may turn out to be broken.
pub(super) struct Image {
    /// Index into the styles' names.
    pub(super) style: usize,
    /// Its path in the source.
    pub(super) name: String,
    origin: Origin,
}

enum Origin {
    File(PathBuf),
    Painting { seed: u64, number: usize },
}

impl Image {
    /// Reads an image file at its own size, or paints a painting at `size`; returns what `make` makes of it.
    pub(super) fn read_with<T>(
        &self,
        size: u32,
        loader: &ImageLoader,
        make: impl FnOnce(RgbImage) -> T,
    ) -> Result<T, ImageError> {
        match &self.origin {
            Origin::File(path) => loader.read_with(path, make),
            // Subjects cycle, as in `host art`'s folders.
            Origin::Painting { seed, number } => {
                Ok(make(paint(self.style, number % SUBJECTS.len(), *seed, *number as u64, size)))
            }
        }
    }
}

impl Listing {
    /// Lists the images of [`StyleFiles`].
    pub(super) fn of_folder(
        root: &Path,
        options: &Options,
        cache_folder: &Path,
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let StyleFiles { names, files } = StyleFiles::list(root, Some(cache_folder), progress, interrupt)?;
        let mut hash = new_key("folder", options.size);
        hash.update(options.fit.name());
        let mut images = Vec::with_capacity(files.len());
        for StyleFile { style, path, digest } in files {
            let name = path.strip_prefix(root).unwrap_or(&path);
            let bytes = name.as_os_str().as_encoded_bytes();
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
            hash.update(digest.unwrap_or_default());
            let name = name.display().to_string();
            images.push(Image { style, name, origin: Origin::File(path) });
        }
        Ok(Self { names, images, key: format!("{:x}", hash.finalize()) })
    }

    /// Lists `per_class` procedural paintings of each style.
    pub(super) fn of_paintings(seed: u64, per_class: usize, size: u32) -> Self {
        let mut hash = new_key("paintings", size);
        for part in [u64::from(procedural_art::VERSION), seed, per_class as u64] {
            hash.update(part.to_le_bytes());
        }
        let painting = |k: usize| {
            let (style, number) = (k / per_class, k % per_class);
            let name = format!("{}/{number:04}.png", STYLES[style].slug);
            Image { style, name, origin: Origin::Painting { seed, number } }
        };
        Self {
            names: STYLES.iter().map(|style| style.slug.to_owned()).collect(),
            images: (0..STYLES.len() * per_class).map(painting).collect(),
            key: format!("{:x}", hash.finalize()),
        }
    }
}

/// The image files below each direct subfolder of a folder, each content once per style. The subfolders' names are the
/// styles.
#[derive(Clone, Debug)]
pub struct StyleFiles {
    /// The styles' names, sorted.
    pub names: Vec<String>,
    /// The files, by style and then by name.
    pub files: Vec<StyleFile>,
}

/// An image file of a style, which may turn out to be broken.
#[derive(Clone, Debug)]
pub struct StyleFile {
    /// Index into the styles' names.
    pub style: usize,
    /// The file.
    pub path: PathBuf,
    /// The SHA-256 of its content, if it can be read.
    pub digest: Option<[u8; 32]>,
}

impl StyleFiles {
    /// Lists the images below each direct subfolder of `root`; hidden subfolders and those without images are skipped. The
    /// files' digests are cached in `cache_folder`.
    ///
    /// # Errors
    /// If there are fewer than two styles, or a folder cannot be read.
    pub fn list(root: &Path, cache_folder: Option<&Path>, progress: &Progress, interrupt: &Interrupt) -> Result<Self> {
        let styles = style_folders(root)?;
        ensure!(
            styles.len() >= 2,
            "{} has {} with images ({FORMATS}): name a folder that has one folder for each of two or more styles",
            root.display(),
            if styles.len() == 1 { "one folder" } else { "no folder" }
        );
        let found: Vec<(usize, &PathBuf)> = styles
            .iter()
            .enumerate()
            .flat_map(|(style, (_, files))| files.iter().map(move |file| (style, file)))
            .collect();
        let paths: Vec<&Path> = found.iter().map(|(_, path)| path.as_path()).collect();
        let digests = digests::of_files(root, &paths, cache_folder, progress, interrupt)?;

        let mut seen = HashSet::new();
        let mut files = Vec::with_capacity(found.len());
        for (&(style, path), digest) in found.iter().zip(digests) {
            // Copies would let an image be in both splits. Files that cannot be read do not count as copies.
            if digest.is_none_or(|digest| seen.insert((style, digest))) {
                files.push(StyleFile { style, path: path.clone(), digest });
            }
        }
        let n_copies = found.len() - files.len();
        if n_copies > 0 {
            tracing::info!("left out: {}, copies of others of their style", counted(n_copies as u64, "image"));
        }
        let names = styles.into_iter().map(|(name, _)| name).collect();
        Ok(Self { names, files })
    }
}

fn new_key(source: &str, size: u32) -> Sha256 {
    let mut hash = Sha256::new();
    hash.update(format!("ambiguity images {FORMAT} {source} {size} "));
    hash
}

/// Returns the subfolders with images, by name, and their images, sorted.
fn style_folders(root: &Path) -> Result<Vec<(String, Vec<PathBuf>)>> {
    if !root.is_dir() {
        bail!("there is no folder {}: name one that has a folder of images for each style", root.display());
    }
    let (mut styles, mut n_loose) = (Vec::new(), 0);
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if !entry.path().is_dir() {
            n_loose += usize::from(has_image_extension(&entry.path()));
            continue;
        }
        match find_images(&entry.path()) {
            Ok(files) => styles.push((name.to_string_lossy().into_owned(), files)),
            // The folder is named in a warning: if its images have another format, a style is missing.
            Err(error @ ImageError::Empty { .. }) => tracing::warn!("left out: {error}"),
            Err(error) => return Err(error.into()),
        }
    }
    if n_loose > 0 {
        let images = counted(n_loose as u64, "image");
        tracing::warn!("left out: {images} in {} itself, not in a style's folder", root.display());
    }
    styles.sort();
    if let Some((name, _)) = styles.iter().find(|(name, _)| has_control(name)) {
        bail!(
            "the folder {:?} has control characters in its name, which a style must not have: rename it",
            root.join(name)
        );
    }
    Ok(styles)
}
