//! Folders of images.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{ImageReader, RgbImage};
use tch::{Device, Tensor};

/// File extensions of images, case-insensitive.
const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// File extensions of images that are not supported; skipping them is a warning.
const OTHER_EXTENSIONS: [&str; 9] = ["avif", "bmp", "gif", "heic", "jxl", "svg", "tif", "tiff", "webp"];

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
    /// The file is not a readable image.
    #[error("{path} is not a readable image: {source}", path = .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The decoder's error.
        source: image::ImageError,
    },
    /// A folder has no images.
    #[error("{path} has no images (png, jpg){}", but(*.n_others), path = .path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
        /// Number of images of other formats in it.
        n_others: usize,
    },
}

/// Returns all png and jpg files below a folder, sorted by path; files and folders whose names begin with a dot are
/// left out.
pub fn find_images(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let (mut files, mut n_others) = (vec![], 0);
    collect(folder, &mut files, &mut n_others, &mut BTreeSet::new())?;
    if files.is_empty() {
        return Err(ImageError::Empty { path: folder.to_owned(), n_others });
    }
    if n_others > 0 {
        tracing::warn!("{} has {}: left out, only png and jpg are read", folder.display(), others(n_others));
    }
    files.sort();
    Ok(files)
}

/// Reads an image as RGB8, its format detected from the content, not from the name; transparency is dropped.
pub fn read_image(path: &Path) -> Result<RgbImage, ImageError> {
    let io = |source| ImageError::Io { path: path.to_owned(), source };
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(io)?;
    let image = reader.decode().map_err(|source| ImageError::Broken { path: path.to_owned(), source })?;
    Ok(image.into_rgb8())
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

fn but(n_others: usize) -> String {
    if n_others == 0 { String::new() } else { format!(", but {}: convert them", others(n_others)) }
}

fn others(n: usize) -> String {
    if n == 1 { "1 image of another format".to_owned() } else { format!("{n} images of other formats") }
}

fn collect(
    folder: &Path,
    files: &mut Vec<PathBuf>,
    n_others: &mut usize,
    walked: &mut BTreeSet<PathBuf>,
) -> Result<(), ImageError> {
    let io = |source| ImageError::Io { path: folder.to_owned(), source };
    // Links may lead to the same folder again, or form a cycle.
    if !walked.insert(folder.canonicalize().map_err(io)?) {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            collect(&path, files, n_others, walked)?;
        } else if has_image_extension(&path) {
            files.push(path);
        } else if has_extension(&path, &OTHER_EXTENSIONS) {
            *n_others += 1;
        }
    }
    Ok(())
}

/// Whether a file's name has an image's extension.
pub fn has_image_extension(path: &Path) -> bool {
    has_extension(path, &EXTENSIONS)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    extensions.contains(&extension.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_walked_in_order_and_broken_files_are_named() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| root.path().join(name);
        for folder in ["b", "a", ".hidden"] {
            std::fs::create_dir(path(folder)).expect("a new folder");
        }
        let red = RgbImage::from_pixel(3, 2, image::Rgb([255, 0, 0]));
        for file in ["b/1.png", "a/2.PNG", "a/10.png", ".hidden/3.png"] {
            red.save_with_format(path(file), image::ImageFormat::Png).expect("a new file");
        }
        std::fs::write(path("a/notes.txt"), "no image").expect("a new file");
        std::fs::write(path("broken.jpg"), "no image").expect("a new file");

        let files = find_images(root.path()).expect("there are images");
        assert_eq!(files, ["a/10.png", "a/2.PNG", "b/1.png", "broken.jpg"].map(path));
        assert_eq!(read_image(&files[1]).expect("an image"), red);
        let message = read_image(&files[3]).expect_err("no image").to_string();
        assert!(message.starts_with(&format!("{} is not a readable image", path("broken.jpg").display())), "{message}");
        std::fs::create_dir(path("empty")).expect("a new folder");
        let message = find_images(&path("empty")).expect_err("no images").to_string();
        assert!(message.ends_with("empty has no images (png, jpg)"), "{message}");
        std::fs::write(path("empty/a.webp"), "another format").expect("a new file");
        let message = find_images(&path("empty")).expect_err("no images").to_string();
        assert!(
            message.ends_with("empty has no images (png, jpg), but 1 image of another format: convert them"),
            "{message}"
        );

        // A cycle of links is walked once.
        std::os::unix::fs::symlink("../a", path("b/ring")).expect("a new link");
        std::os::unix::fs::symlink("../b", path("a/ring")).expect("a new link");
        let files = find_images(&path("a")).expect("there are images");
        assert_eq!(files, ["a/10.png", "a/2.PNG", "a/ring/1.png"].map(path));
    }
}
