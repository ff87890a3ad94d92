//! Models and encoders by reference: a folder, the name of a shipped one, or an id on the Hugging Face Hub.
//!
//! # Layout
//!
//! - [`mod@home`]: the folders of shipped models and plugins.
//! - [`hub`]: models by their ids, from the Hub's cache or downloaded into it.
//! - [`weights`]: the weights of evaluation metrics.

pub mod home;
pub mod hub;
pub mod weights;

use std::path::{Path, PathBuf};

use ambiguity_models::pipeline::{LoadOptions, Pipeline, check_index};
use ambiguity_models::unet::UNetConfig;
use ambiguity_models::vae::VaeConfig;
use anyhow::{Context as _, Result, bail, ensure};

use self::home::home;
use self::hub::{Hub, Wanted, is_id};
use crate::context::Context;

/// Returns the folder of a model: an existing folder, a shipped model's name, or an id on the Hub.
pub fn model_folder(path: &str, context: &Context) -> Result<PathBuf> {
    ensure!(!path.is_empty(), "no model: name a diffusers folder with --model, or use --preset tiny-art");
    let folder = Path::new(path);
    if folder.is_dir() {
        return Ok(folder.to_owned());
    }
    ensure!(
        !folder.exists() && !is_weights(path),
        "{path} is {}: name a diffusers folder; `StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR)` of \
         diffusers makes one of a checkpoint in one file",
        if folder.exists() { "a file" } else { "no folder" }
    );
    let shipped = home().map(|home| home.join("models/weights").join(path).join("diffusion"));
    match shipped {
        Some(shipped) if !path.contains(['/', '\\']) && shipped.is_dir() => Ok(shipped),
        _ if is_id(path) => Hub::new(context)?.folder(path, Wanted::Pipeline),
        _ => bail!(
            "there is no model {path}: it is neither a folder nor the name of a shipped model (tiny-art) nor an id on the \
             Hub (OWNER/NAME)"
        ),
    }
}

/// Whether a name ends as files of weights do.
fn is_weights(name: &str) -> bool {
    let extension = Path::new(name).extension().unwrap_or_default().to_ascii_lowercase();
    ["safetensors", "ckpt", "bin", "pt", "pth", "gguf", "onnx", "wasm"].iter().any(|known| extension == *known)
}

/// Loads the pipeline of a folder, and warns of what it reads otherwise than the files say.
pub fn load_pipeline(folder: &Path, options: &LoadOptions) -> Result<Pipeline> {
    let pipeline = Pipeline::load(folder, options)?;
    for note in &pipeline.notes {
        tracing::warn!("{note}");
    }
    Ok(pipeline)
}

/// Returns the native image size in pixels of the model in a diffusers folder, from its configurations.
pub fn native_size(folder: &Path) -> Result<u32> {
    check_index(folder)?;
    let sample_size = UNetConfig::read(&folder.join("unet/config.json"))?.sample_size;
    let downscale = VaeConfig::read(&folder.join("vae/config.json"))?.downscale();
    let side = sample_size.and_then(|latents| u32::try_from(latents.checked_mul(downscale)?).ok());
    side.with_context(|| {
        format!("{} does not define its image size (unet sample_size): set width and height", folder.display())
    })
}

/// Returns the folder of an encoder: an existing folder, or an id on the Hub.
pub fn encoder_folder(name: &str, path: &str, context: &Context) -> Result<PathBuf> {
    match Path::new(path) {
        folder if folder.is_dir() => {
            let is_clip = folder.join("config.json").is_file();
            ensure!(is_clip, "{} is not an encoder folder: it has no config.json", folder.display());
            Ok(folder.to_owned())
        }
        _ if is_id(path) && !is_weights(path) => Hub::new(context)?.folder(path, Wanted::Clip),
        _ => bail!("encoder {name}: {path} is neither a folder nor an id on the Hub (OWNER/NAME)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_native_size_is_read_as_the_model_is() {
        let shipped = test_support::shipped_model().join("diffusion");
        assert_eq!(native_size(&shipped).expect("it is defined"), 64);
        let folder = tempfile::tempdir().expect("a folder");
        let read = |part: &str| std::fs::read_to_string(shipped.join(part)).expect("it ships");
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a new folder");
            std::fs::write(path, text).expect("a new file");
        };
        write("model_index.json", read("model_index.json"));
        write("vae/config.json", read("vae/config.json"));
        let unet = |value: &str| {
            let text = read("unet/config.json").replacen("\"sample_size\"", "\"unread\": NaN, \"sample_size\"", 1);
            let (before, after) = text.split_once("\"sample_size\": ").expect("a key");
            let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
            write("unet/config.json", format!("{before}\"sample_size\": {value}{rest}"));
            native_size(folder.path()).map_err(|error| error.to_string())
        };
        assert_eq!(unet("32"), Ok(128));
        let message = unet("null").expect_err("no size");
        assert!(
            message.ends_with("does not define its image size (unet sample_size): set width and height"),
            "{message}"
        );
        let message = unet("4611686018427387904").expect_err("no size");
        assert!(message.contains("key `sample_size` must be from 1 to 1048576"), "{message}");
    }
}
