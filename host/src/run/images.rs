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
    if let Some(link) = [run.join(IMAGES), folder.clone()].into_iter().find(|folder| folder.is_symlink()) {
        return Err(RunError::Damaged { path: link, message: "it is a link, not a folder of the run".to_owned() });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::record::{FineTuneEpoch, FineTuneMonitor, FineTuneRecord};
    use crate::run::{PluginsLock, RunInfo};

    fn kept(format: ImageFormat) -> KeptImages {
        let image = |i: u8| KeptImage {
            image: Arc::new(RgbImage::from_fn(5, 3, |x, y| image::Rgb([i, 40 * x as u8, 80 * y as u8]))),
            prompt: format!("prompt {i}"),
            reward: -f64::from(i),
            rewards: BTreeMap::from([("simple".to_owned(), 0.5)]),
        };
        KeptImages { format, images: (0..3).map(image).collect() }
    }

    fn run(folder: &Path) -> RunDir {
        RunDir::create(&folder.join("run"), "", &PluginsLock::default(), &RunInfo::default()).expect("a run")
    }

    #[test]
    fn images_are_kept_without_loss_with_their_prompts_and_rewards() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut run = run(folder.path());
        for (epoch, format) in [(1, ImageFormat::Png), (2, ImageFormat::Webp)] {
            run.keep_images(Sampled::Training, epoch, &kept(format)).expect("written");
        }
        let found = kept_images(run.path(), Sampled::Training).expect("readable");
        assert_eq!(found.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [1, 2]);
        assert!(kept_images(run.path(), Sampled::Monitor).expect("readable").is_empty());
        for (_, folder) in &found {
            let captions = captions(folder).expect("readable").expect("there are captions");
            assert_eq!(captions.len(), 3);
            assert_eq!((&*captions[2].caption, captions[2].reward), ("prompt 2", Some(-2.0)));
            assert_eq!(captions[2].rewards["simple"], 0.5);
            let image = image::open(folder.join(&captions[2].file)).expect("an image").into_rgb8();
            assert_eq!(image, *kept(ImageFormat::Png).images[2].image);
        }
    }

    #[test]
    fn a_rewound_run_keeps_no_later_images() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut run = run(folder.path());
        for epoch in 1..=3 {
            run.keep_images(Sampled::Training, epoch, &kept(ImageFormat::Png)).expect("written");
            run.keep_images(Sampled::Monitor, epoch, &kept(ImageFormat::Png)).expect("written");
            let record =
                FineTuneRecord { epoch, trained: Some(FineTuneEpoch::default()), monitor: None, warnings: vec![] };
            run.append_metrics::<FineTuneEpoch, FineTuneMonitor>(&record).expect("written");
            if epoch < 3 {
                run.save_checkpoint(epoch, &[("state", vec![1])], 9).expect("written");
            }
        }
        let epochs = |sampled| -> Vec<u64> {
            let found = kept_images(&folder.path().join("run"), sampled).expect("readable");
            found.into_iter().map(|(epoch, _)| epoch).collect()
        };
        // What came after the newest checkpoint is made again, and removed.
        assert_eq!(run.rewind(Some(2)).expect("rewound"), None);
        assert_eq!((epochs(Sampled::Training), epochs(Sampled::Monitor)), (vec![1, 2], vec![1, 2]));
        // What came after an earlier one is moved.
        let rewound = run.rewind(Some(1)).expect("rewound").expect("there was a later checkpoint");
        assert_eq!((epochs(Sampled::Training), epochs(Sampled::Monitor)), (vec![1], vec![1]));
        for sampled in Sampled::ALL {
            assert!(rewound.join(IMAGES).join(sampled.as_str()).join("epoch-0002/0000.png").is_file());
        }
    }

    #[test]
    fn captions_name_files_of_their_folder_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(captions(folder.path()).expect("readable"), None);
        let read = |text: &str| {
            std::fs::write(folder.path().join(CAPTIONS), text).expect("writable");
            captions(folder.path()).map_err(|error| error.to_string())
        };
        let two = read("{\"file\": \"a.png\"}\n\n{\"file\": \"b.png\", \"caption\": \"a cat\"}\n").expect("captions");
        let found = two.expect("there are some");
        assert_eq!((&*found[0].caption, &*found[1].caption), ("", "a cat"));
        for (text, said) in [
            ("{\"file\": \"../secret.png\"}", "line 1 names a file that is not in this folder"),
            ("{\"file\": \"a.png\"}\n{\"file\": \"/etc/a.png\"}", "line 2 names a file that is not in this folder"),
            ("{\"file\": \"..\"}", "line 1 names a file"),
            ("{}", "line 1 is no caption"),
            ("nothing", "line 1 is no caption"),
        ] {
            let message = read(text).expect_err(text);
            assert!(message.contains(said), "{message}");
        }
    }
}
