//! ImageReward v1.0 (Xu et al., ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation, arXiv
//! 2304.05977): an image and its prompt to a number, higher where people prefer the image.
//!
//! A BLIP (Li et al., BLIP: Bootstrapping Language-Image Pre-training, arXiv 2201.12086): a Vision Transformer makes hidden
//! states of the image, a BERT (Devlin et al., arXiv 1810.04805) reads the prompt and attends to them in every layer, and an
//! MLP makes one number of its first hidden state. The published file is `ImageReward.pt` of `THUDM/ImageReward`.
//!
//! # Layout
//! - [`ImageRewardConfig`] is read from the shapes of the tensors
//! - `vision` and `text` are the two transformers
//! - [`WordPiece`] converts prompts to token ids

mod config;
#[cfg(test)]
mod tests;
mod text;
mod vision;
mod word_piece;

use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use config::ImageRewardConfig;
pub use word_piece::{MAX_LENGTH, WordPiece};

use crate::aesthetic::Mlp;
use crate::error::{Error, Result};
use crate::params::Params;
use crate::preprocess::Preprocessor;
use crate::weights::read_weights;
use text::TextEncoder;
use vision::VisualEncoder;

/// Mean of the MLP's output on upstream's training data, which is subtracted.
const MEAN: f64 = 0.167_173_628_300_524_26;
/// Standard deviation of the MLP's output on upstream's training data, which is divided by.
const STD: f64 = 1.033_339_496_605_407_2;

/// The network.
#[derive(Debug)]
pub struct ImageReward {
    /// The configuration that it was built from.
    pub config: ImageRewardConfig,
    visual_encoder: VisualEncoder,
    text_encoder: TextEncoder,
    mlp: Mlp,
}

impl ImageReward {
    /// Loads `ImageReward.pt`, the same tensors in a safetensors file, or a folder with one of these. A `med_config.json`
    /// in the same folder is read too, for what shapes do not tell.
    ///
    /// # Errors
    /// If a tensor is missing, unknown or of another shape, or the files do not fit together; the message names the file.
    pub fn load(path: &Path, device: Device, kind: Kind) -> Result<Self> {
        let tensors = read_weights(path)?;
        let config = ImageRewardConfig::of(path, &tensors)?;
        let p = Params::from_tensors(tensors, &path.display().to_string(), device, kind);
        let network = Self::new(&p, &config)?;
        p.finish()?;
        Ok(network)
    }

    /// Reads or initializes `blip` and `mlp`. BLIP's projections, which the reward does not need, are ignored.
    pub fn new(p: &Params, config: &ImageRewardConfig) -> Result<Self> {
        let blip = p.at("blip");
        for name in ["vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_proj.bias"] {
            blip.ignore(name);
        }
        Ok(Self {
            config: config.clone(),
            visual_encoder: VisualEncoder::new(&blip.at("visual_encoder"), config)?,
            text_encoder: TextEncoder::new(&blip.at("text_encoder"), config)?,
            mlp: Mlp::new(&p.at("mlp"), config.hidden_size)?,
        })
    }

    /// The preprocessing of images: CLIP's, to the network's size.
    pub fn preprocessor(&self) -> Preprocessor {
        Preprocessor::clip(self.config.image_size as usize)
    }

    /// Normalized pixels [n, 3, s, s], token ids i64 [n, len] and their mask i64 [n, len] (0 where a row is padded), as
    /// [`WordPiece::encode_batch`] makes them, to rewards \[n\], f32. Ids and mask of one row are those of all images.
    ///
    /// Rewards have mean 0 and standard deviation 1 on upstream's training data.
    ///
    /// # Errors
    /// If the tensors do not fit each other or the network.
    pub fn score(&self, pixels: &Tensor, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let rewards = self.mlp.forward(&self.features(pixels, ids, mask)?);
        Ok((rewards.to_kind(Kind::Float) - MEAN) / STD)
    }

    /// The text encoder's first hidden states, [n, hidden].
    fn features(&self, pixels: &Tensor, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let bad = |message: String| Err(Error::Input(format!("ImageReward {message}")));
        let side = self.config.image_size;
        let &[n, 3, height, width] = &pixels.size()[..] else {
            return bad(format!("takes pixels [n, 3, {side}, {side}], found {:?}", pixels.size()));
        };
        if (height, width) != (side, side) {
            return bad(format!("takes images of {side}x{side} pixels, found {width}x{height}"));
        }
        let shape = ids.size();
        let fits = shape.len() == 2 && (shape[0] == n || shape[0] == 1) && mask.size() == shape;
        if !fits || !(1..=self.config.max_position_embeddings).contains(&shape[1]) {
            return bad(format!("takes token ids and mask [{n}, length], found {shape:?} and {:?}", mask.size()));
        }
        let vocabulary = self.config.vocab_size;
        if ids.numel() > 0 && (ids.min().int64_value(&[]) < 0 || ids.max().int64_value(&[]) >= vocabulary) {
            return bad(format!("knows the token ids below {vocabulary}, found {}", ids.max().int64_value(&[])));
        }
        let image = self.visual_encoder.forward(pixels);
        let (ids, mask) = (ids.expand([n, shape[1]], false), mask.expand([n, shape[1]], false));
        Ok(self.text_encoder.forward(&ids, &mask, &image).select(1, 0))
    }
}
