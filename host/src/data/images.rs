//! Folders of pictures.

use std::path::{Path, PathBuf};

use image::{ImageReader, RgbImage};

/// File extensions that count as pictures, in any case.
const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// Why a picture or a folder of them could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or folder could not be opened.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// A file is no picture that we can read.
    #[error("{path} is not a readable picture: {source}", path = .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The decoder's word.
        source: image::ImageError,
    },
    /// A folder has no pictures.
    #[error("{path} has no pictures (png, jpg)", path = .path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

/// All png and jpg files below a folder, sorted by path; files and folders whose names begin with a dot are left out.
pub fn find_images(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut files = vec![];
    collect(folder, &mut files)?;
    if files.is_empty() {
        return Err(ImageError::Empty { path: folder.to_owned() });
    }
    files.sort();
    Ok(files)
}

/// Reads a picture as RGB8, told by its content, not by its name; transparency is dropped.
pub fn read_image(path: &Path) -> Result<RgbImage, ImageError> {
    let io = |source| ImageError::Io { path: path.to_owned(), source };
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(io)?;
    let image = reader.decode().map_err(|source| ImageError::Broken { path: path.to_owned(), source })?;
    Ok(image.into_rgb8())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), ImageError> {
    let io = |source| ImageError::Io { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else if has_picture_extension(&path) {
            files.push(path);
        }
    }
    Ok(())
}

fn has_picture_extension(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    EXTENSIONS.contains(&extension.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_walked_in_order_and_broken_files_named() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| root.path().join(name);
        for folder in ["b", "a", ".hidden"] {
            std::fs::create_dir(path(folder)).expect("a new folder");
        }
        let red = RgbImage::from_pixel(3, 2, image::Rgb([255, 0, 0]));
        for file in ["b/1.png", "a/2.PNG", "a/10.png", ".hidden/3.png"] {
            red.save_with_format(path(file), image::ImageFormat::Png).expect("a new file");
        }
        std::fs::write(path("a/notes.txt"), "no picture").expect("a new file");
        std::fs::write(path("broken.jpg"), "no picture").expect("a new file");

        let files = find_images(root.path()).expect("there are pictures");
        assert_eq!(files, ["a/10.png", "a/2.PNG", "b/1.png", "broken.jpg"].map(path));
        assert_eq!(read_image(&files[1]).expect("a picture"), red);
        let message = read_image(&files[3]).expect_err("no picture").to_string();
        assert!(
            message.starts_with(&format!("{} is not a readable picture", path("broken.jpg").display())),
            "{message}"
        );
        std::fs::create_dir(path("empty")).expect("a new folder");
        let message = find_images(&path("empty")).expect_err("no pictures").to_string();
        assert!(message.ends_with("empty has no pictures (png, jpg)"), "{message}");
    }
}
