//! Generated images as files: each says where it is from in its own metadata, and a contact sheet shows all of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use image::RgbImage;

use crate::data::png::{self, software};
use crate::fs::write_atomic;
use crate::report::grid::{Cell, titled_sheet};
use crate::text::counted;

/// Maximum number of images on a sheet.
const MAX_CELLS: usize = 60;

/// The contact sheet of generated images.
#[derive(Args, Debug)]
pub(super) struct SheetArgs {
    /// The contact sheet of the images [default: the folder's name and .png, beside the folder]
    #[arg(long, value_name = "FILE.png", conflicts_with = "no_sheet")]
    sheet: Option<PathBuf>,
    /// Write no contact sheet
    #[arg(long)]
    no_sheet: bool,
}

/// A generated image.
pub(super) struct Sample {
    pub(super) image: Arc<RgbImage>,
    /// What is said of it on the sheet.
    pub(super) title: String,
    /// The texts of its file by name.
    pub(super) texts: Vec<(String, String)>,
}

impl SheetArgs {
    /// Returns the file of the sheet of `n` images in the folder `out`, if there is one to write; a file of that name is
    /// not overwritten. It is not in the folder, where it would be one of the images.
    pub(super) fn path(&self, out: &Path, n: usize) -> Result<Option<PathBuf>> {
        let beside = || {
            let name = out.file_name().filter(|_| n > 1)?.to_string_lossy();
            Some(out.with_file_name(format!("{name}.png")))
        };
        let path = if self.no_sheet { None } else { self.sheet.clone().or_else(beside) };
        if let Some(path) = path.as_ref().filter(|path| path.exists()) {
            let path = path.display();
            bail!("{path} exists: name another file for the contact sheet with --sheet, or use --no-sheet");
        }
        Ok(path)
    }
}

/// Writes an image as `OUT/NNNN.png`.
pub(super) fn write_image(out: &Path, i: u64, sample: &Sample) -> Result<()> {
    let path = out.join(format!("{i:04}.png"));
    let texts: Vec<_> = sample.texts.iter().cloned().chain([software()]).collect();
    let bytes = png::encode(&sample.image, &texts).with_context(|| path.display().to_string())?;
    Ok(write_atomic(&path, &bytes)?)
}

/// Writes the contact sheet of the images, which are `n` with those that are left out.
pub(super) fn write_sheet(path: &Path, title: &str, samples: &[Sample], n: usize) -> Result<()> {
    let cell =
        |sample: &Sample| Cell { image: RgbImage::clone(&sample.image), title: sample.title.clone(), value: None };
    let cells: Vec<Cell> = samples.iter().take(MAX_CELLS).map(cell).collect();
    let count = counted(n as u64, "image");
    let note = if cells.len() < n { format!("the first {} of {count}", cells.len()) } else { count };
    let sheet = titled_sheet(title, &note, &cells);
    let texts: Vec<_> = sheet.texts.into_iter().chain([software()]).collect();
    let bytes = png::encode(&sheet.image, &texts).with_context(|| path.display().to_string())?;
    Ok(write_atomic(path, &bytes)?)
}

/// Whether a sample is among those that a sheet shows.
pub(super) fn is_shown(i: usize) -> bool {
    i < MAX_CELLS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_lies_beside_the_folder_and_overwrites_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("run.v2");
        let path =
            |sheet: Option<&Path>, no_sheet, n| SheetArgs { sheet: sheet.map(Path::to_owned), no_sheet }.path(&out, n);
        let beside = folder.path().join("run.v2.png");
        assert_eq!(path(None, false, 2).expect("it is free"), Some(beside.clone()));
        assert_eq!([path(None, false, 1), path(None, true, 2)].map(|path| path.expect("none")), [None, None]);
        std::fs::write(&beside, "").expect("writable");
        let message = path(None, false, 2).expect_err("it is taken").to_string();
        assert!(
            message.ends_with(
                "run.v2.png exists: name another file for the contact sheet with --sheet, or use --no-sheet"
            )
        );
        let other = folder.path().join("other.png");
        assert_eq!(path(Some(&other), false, 1).expect("it is free"), Some(other));
    }
}
