//! CLIP (Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020), read
//! from the folders that transformers and diffusers write.
//!
//! # Layout
//! - [`config`] reads config.json, `open_clip` the names of OpenAI's repository
//! - [`text`] and [`vision`] are the two towers
//! - [`tokenizer`] converts texts to token ids
//! - [`crate::preprocess`] converts images to normalized pixels

pub mod config;
mod encoder;
pub(crate) mod open_clip;
#[cfg(test)]
mod tests;
pub mod text;
pub mod tokenizer;
pub mod vision;

use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use config::{Activation, ClipConfig, TextConfig, VisionConfig};
pub use text::{ProjectedText, TextTransformer};
pub use tokenizer::{PadRule, Tokenizer};
pub use vision::{ProjectedVision, VisionTransformer};

pub use crate::preprocess::Preprocessor;

use crate::error::Result;
use crate::layers::Linear;
use crate::params::{Init, Params};
use crate::weights::{TRANSFORMERS_STEM, digest_folder, load_folder, read_weights};
use text::projection;

/// Both towers and their projections into the joint embedding space (`CLIPModel`).
#[derive(Debug)]
pub struct Clip {
    /// The text tower.
    pub text: TextTransformer,
    /// The image tower.
    pub vision: VisionTransformer,
    /// The configuration that it was built from.
    pub config: ClipConfig,
    /// Natural logarithm of the inverse temperature, a scalar tensor.
    pub logit_scale: Tensor,
    /// [projection, hidden], without a bias.
    pub text_projection: Linear,
    /// [projection, hidden], without a bias.
    pub visual_projection: Linear,
}

impl Clip {
    /// Reads the tensors from a checkpoint, or initializes them as transformers does.
    pub fn new(p: &Params, config: &ClipConfig) -> Result<Self> {
        let (text, vision) = (&config.text_config, &config.vision_config);
        Ok(Self {
            logit_scale: p.tensor("logit_scale", &[], Init::Constant(config.logit_scale_init_value))?,
            text: TextTransformer::at(&p.at("text_model"), text)?,
            vision: VisionTransformer::at(&p.at("vision_model"), vision)?,
            text_projection: projection(&p.at("text_projection"), text.hidden_size, config.projection_dim)?,
            visual_projection: projection(&p.at("visual_projection"), vision.hidden_size, config.projection_dim)?,
            config: config.clone(),
        })
    }

    /// Loads a folder's config.json and weights: one file, an fp16 variant or shards.
    ///
    /// # Errors
    /// If a key or tensor is missing, unknown or of another shape; the message names it and the file.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> Result<Self> {
        let config = ClipConfig::read(&dir.join("config.json"))?;
        let p = load_folder(dir, TRANSFORMERS_STEM, device, kind)?;
        let clip = Self::new(&p, &config)?;
        p.finish()?;
        Ok(clip)
    }

    /// Loads a network in the naming of OpenAI's repository and open_clip (`visual.conv1.weight`), from a safetensors file,
    /// the state dict in a file of PyTorch, or a folder with one of these. The file does not tell the activation:
    /// OpenAI's networks have `QuickGelu`, most others `Gelu`.
    ///
    /// # Errors
    /// If a tensor is missing, unknown or of another shape than the others imply; the message names it and the file.
    pub fn load_open_clip(path: &Path, activation: Activation, device: Device, kind: Kind) -> Result<Self> {
        let tensors = open_clip::without_prefix(read_weights(path)?, "module.");
        let config = open_clip::config(path, &tensors, activation)?;
        let tensors = open_clip::to_transformers(tensors)?;
        let p = Params::from_tensors(tensors, &path.display().to_string(), device, kind);
        let clip = Self::new(&p, &config)?;
        p.finish()?;
        Ok(clip)
    }

    /// The digest that identifies the weights of a folder: [`digest_folder`].
    pub fn digest(dir: &Path) -> Result<String> {
        digest_folder(dir, TRANSFORMERS_STEM)
    }

    /// Normalized pixels [n, 3, s, s] to raw embeddings [n, projection]; see [`VisionTransformer::forward`].
    pub fn embed_images(&self, pixels: &Tensor) -> Tensor {
        self.visual_projection.forward(&self.vision.forward(pixels))
    }

    /// Token ids, i64 [n, len], to raw embeddings [n, projection]; see [`TextTransformer::hidden_states`].
    pub fn embed_texts(&self, ids: &Tensor) -> Tensor {
        self.text_projection.forward(&self.text.hidden_states(ids).1)
    }

    /// The inverse temperature that cosine similarities are multiplied by.
    pub fn logit_scale_exp(&self) -> f64 {
        self.logit_scale.double_value(&[]).exp()
    }
}
