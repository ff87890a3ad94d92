//! The images that a run keeps: what it sampled for training and what its monitor sampled, each epoch in a folder of its own
//! with the prompts and rewards.
//!
//! `images/training/epoch-0003/` and `images/monitor/epoch-0003/` have the files `0000.webp`, … and `captions.jsonl`, one
//! [`Caption`] per image, so that a folder is also a folder of given images for `host eval`.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, RgbImage};
use serde::{Deserialize, Serialize};

use super::{Result, RunDir, RunError, epoch_name, numbered, read};
use crate::data::png;
use crate::fs::{FileError, write_folder_atomic};

/// The folder of all kept images.
pub(super) const IMAGES: &str = "images";
/// The file with the prompts of a folder's images.
pub const CAPTIONS: &str = "captions.jsonl";

/// What images were sampled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampled {
    /// An epoch of training.
    Training,
    /// The monitor: the same prompts and noise each time.
    Monitor,
}

impl Sampled {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Training, Self::Monitor];

    /// Returns the name of the folder.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Monitor => "monitor",
        }
    }
}

/// The format of image files; both are lossless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// PNG.
    Png,
    /// WebP.
    Webp,
}

/// An image to keep.
#[derive(Clone, Debug)]
pub struct KeptImage {
    /// The image.
    pub image: Arc<RgbImage>,
    /// The prompt.
    pub prompt: String,
    /// The weighted sum of the plugins' rewards.
    pub reward: f64,
    /// The reward of each plugin.
    pub rewards: BTreeMap<String, f64>,
}

/// The images of an epoch to keep.
#[derive(Clone, Debug)]
pub struct KeptImages {
    /// Their format.
    pub format: ImageFormat,
    /// The images in order.
    pub images: Vec<KeptImage>,
}

/// A line of `captions.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Caption {
    /// The image's file in the same folder.
    pub file: String,
    /// The prompt.
    #[serde(default)]
    pub caption: String,
    /// The weighted sum of the plugins' rewards, for an image of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// The reward of each plugin of the run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewards: BTreeMap<String, f64>,
}

impl RunDir {
    /// Writes the images of an epoch, all or nothing.
    pub fn keep_images(&mut self, sampled: Sampled, epoch: u64, kept: &KeptImages) -> Result<()> {
        let folder = self.path().join(IMAGES).join(sampled.as_str());
        std::fs::create_dir_all(&folder).map_err(|error| FileError::write(&folder, error))?;
        let path = folder.join(epoch_name(epoch));
        let extension = match kept.format {
            ImageFormat::Png => "png",
            ImageFormat::Webp => "webp",
        };
        let (mut files, mut captions) = (Vec::with_capacity(kept.images.len() + 1), String::new());
        for (i, kept_image) in kept.images.iter().enumerate() {
            let name = format!("{i:04}.{extension}");
            let caption = Caption {
                file: name.clone(),
                caption: kept_image.prompt.clone(),
                reward: Some(kept_image.reward),
                rewards: kept_image.rewards.clone(),
            };
            captions.push_str(&serde_json::to_string(&caption).map_err(|_| RunError::Record)?);
            captions.push('\n');
            files.push((name, encode(&path, &kept_image.image, kept.format)?));
        }
        files.push((CAPTIONS.to_owned(), captions.into_bytes()));
        Ok(write_folder_atomic(&path, files.iter().map(|(name, bytes)| (&**name, &bytes[..])))?)
    }
}

fn encode(path: &Path, image: &RgbImage, format: ImageFormat) -> Result<Vec<u8>> {
    match format {
        ImageFormat::Png => {
            let failed = |source| RunError::Image { path: path.to_owned(), source };
            png::encode(image, &[png::software()]).map_err(failed)
        }
        ImageFormat::Webp => {
            let mut bytes = Cursor::new(vec![]);
            let (width, height) = image.dimensions();
            let written = WebPEncoder::new_lossless(&mut bytes).encode(image, width, height, ExtendedColorType::Rgb8);
            written.map_err(|error| FileError::write(path, std::io::Error::other(error)))?;
            Ok(bytes.into_inner())
        }
    }
}

/// Returns the folders of a run's kept images by epoch, the newest last.
pub fn kept_images(run: &Path, sampled: Sampled) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join(IMAGES).join(sampled.as_str());
    if [run.join(IMAGES), folder.clone()].iter().any(|folder| folder.is_symlink()) {
        return Ok(Vec::new());
    }
    let mut found = numbered(&folder, "")?;
    found.retain(|(_, path)| !path.is_symlink() && path.is_dir());
    Ok(found)
}

/// Reads `captions.jsonl` of a folder of images; none if there is no such file.
///
/// # Errors
/// If a line is none, or names a file of another folder.
pub fn captions(folder: &Path) -> Result<Option<Vec<Caption>>> {
    let path = folder.join(CAPTIONS);
    let text = read(folder, CAPTIONS)?;
    if text.is_empty() && !path.exists() {
        return Ok(None);
    }
    let damaged = |i: usize, what: String| RunError::Damaged {
        path: path.clone(),
        message: format!("line {} {what}: it must be {{\"file\": \"NAME\", \"caption\": \"TEXT\"}}", i + 1),
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parsed = lines.map(|(i, line)| {
        let caption: Caption =
            serde_json::from_str(line).map_err(|error| damaged(i, format!("is no caption ({error})")))?;
        let is_plain = Path::new(&caption.file).file_name().is_some_and(|name| name == &*caption.file);
        if is_plain { Ok(caption) } else { Err(damaged(i, "names a file that is not in this folder".to_owned())) }
    });
    parsed.collect::<Result<_>>().map(Some)
}
