//! Plugins: the shipped ones, those that `fit` writes, and every way in which a plugin can be at fault.

mod author;
mod build;
mod card;
mod confined;
mod diff;
mod faults;
mod fit;
mod frozen;
mod gradient;
mod in_a_run;
mod languages;
mod onnx;
mod sharp;
mod shipped;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use ambiguity_host::encoders::{Encoder, EncoderError, EncoderInfo, Encoders};
use ambiguity_host::plugin::{Batch, Distributions, Limits, Plugin, PluginError, PluginHost, Sample};
use image::{Rgb, RgbImage};
use ndarray::Array2;

use crate::support::root;

/// An encoder that needs no weights: the mean of each channel in [0, 1]; of a text, its length, vowels and spaces.
struct Means;

impl Encoder for Means {
    fn info(&self) -> EncoderInfo {
        EncoderInfo { dim: 3, digest: "means".into(), ..EncoderInfo::default() }
    }

    fn embed_images(&self, images: &[Arc<RgbImage>]) -> Result<Array2<f32>, EncoderError> {
        Ok(Array2::from_shape_fn((images.len(), 3), |(i, channel)| {
            let sum: u64 = images[i].pixels().map(|pixel| u64::from(pixel[channel])).sum();
            sum as f32 / (255.0 * (images[i].width() * images[i].height()) as f32)
        }))
    }

    fn embed_texts(&self, texts: &[String]) -> Result<Array2<f32>, EncoderError> {
        let count = |text: &str, set: &str| text.chars().filter(|c| set.contains(*c)).count() as f32;
        Ok(Array2::from_shape_fn((texts.len(), 3), |(i, j)| match j {
            0 => texts[i].len() as f32,
            1 => count(&texts[i], "aeiou"),
            _ => count(&texts[i], " "),
        }))
    }
}

fn means() -> Encoders {
    let mut encoders = Encoders::new();
    encoders.add("means", Box::new(Means));
    encoders
}

/// An image of one color.
fn image(color: [u8; 3]) -> Sample {
    Sample { image: Some(Arc::new(RgbImage::from_pixel(4, 4, Rgb(color)))), ..Sample::default() }
}

fn two_images() -> Batch {
    Batch::new(vec![image([255, 0, 0]), image([0, 255, 51])])
}

/// The probabilities of each sample, to six decimals.
fn rounded(distributions: &Distributions) -> Vec<Vec<f64>> {
    let round = |p: f64| (p * 1e6).round() / 1e6;
    distributions.probabilities().into_iter().map(|row| row.into_iter().map(round).collect()).collect()
}

fn load(limits: Limits, path: &Path, config: &[(&str, &str)]) -> Result<Box<dyn Plugin>, PluginError> {
    let config: BTreeMap<_, _> = config.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    PluginHost::new(limits, None).expect("the sandbox starts").load(path.to_str().expect("a path in UTF-8"), config)
}

/// A plugin of this workspace, built from its source.
fn built(package: &str) -> PathBuf {
    static BUILDING: OnceLock<std::sync::Mutex<()>> = OnceLock::new();
    let _one_at_a_time = BUILDING.get_or_init(Default::default).lock();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).current_dir(root()).args(["build-plugin", "-p", package]).output();
    let output = output.expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("wasm32-unknown-unknown/plugin").join(format!("{}.wasm", package.replace('-', "_")))
}
