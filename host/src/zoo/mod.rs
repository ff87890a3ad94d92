//! Models and encoders by reference: a folder, the name of a shipped one, or an id on the Hugging Face Hub.
//!
//! # Layout
//!
//! - [`mod@home`]: the folders of shipped models and plugins.
//! - [`hub`]: models by their ids, from the Hub's cache or downloaded into it.

pub mod home;
pub mod hub;

use std::path::{Path, PathBuf};

use ambiguity_models::params::MemoryFormat;
use ambiguity_models::pipeline::{Pipeline, check_index};
use anyhow::{Context as _, Result, bail, ensure};
use tch::{Device, Kind};

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
pub fn load_pipeline(folder: &Path, device: Device, kind: Kind, format: MemoryFormat) -> Result<Pipeline> {
    let pipeline = Pipeline::load(folder, device, kind, format)?;
    for note in &pipeline.notes {
        tracing::warn!("{note}");
    }
    Ok(pipeline)
}

/// Returns the native image size in pixels of the model in a diffusers folder, from its configurations.
pub fn native_size(folder: &Path) -> Result<u32> {
    check_index(folder)?;
    let read = |part: &str| -> Result<serde_json::Value> {
        let path = folder.join(part).join("config.json");
        let text = fs_err::read_to_string(&path)?;
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
    };
    let sample_size = read("unet")?["sample_size"].as_u64();
    let n_levels = read("vae")?["block_out_channels"].as_array().map(Vec::len);
    match (sample_size, n_levels) {
        (Some(latents), Some(levels)) if levels > 0 => Ok(u32::try_from(latents << (levels - 1))?),
        _ => bail!(
            "{} does not define its image size (unet sample_size, vae block_out_channels): set width and height",
            folder.display()
        ),
    }
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
