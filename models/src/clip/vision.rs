//! CLIP's image tower, a Vision Transformer (Radford et al., arXiv 2103.00020, section 2.4; Dosovitskiy et al., arXiv
//! 2010.11929), as transformers' `CLIPVisionModel` computes it.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::clip::config::VisionConfig;
use crate::clip::encoder::{Encoder, EncoderConfig};
use crate::clip::text::projection;
use crate::error::Result;
use crate::layers::{Embedding, LayerNorm, Linear};
use crate::params::{Init, Params};
use crate::weights::{TRANSFORMERS_STEM, load_folder};

/// Pixels to one hidden state per image.
#[derive(Debug)]
pub struct VisionTransformer {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Embedding,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
    patch_size: i64,
}

impl VisionTransformer {
    /// Reads or initializes a `CLIPVisionModel` at the root of a checkpoint: names below `vision_model.`, or, as
    /// transformers 5 has them in memory, without it.
    pub fn new(p: &Params, config: &VisionConfig) -> Result<Self> {
        let bare = !p.has("vision_model.embeddings.class_embedding") && p.has("embeddings.class_embedding");
        if bare { Self::at(p, config) } else { Self::at(&p.at("vision_model"), config) }
    }

    /// Reads or initializes the tower whose `embeddings`, `encoder` and norms lie directly below `p`. (`pre_layrnorm`
    /// is how the checkpoints spell it.)
    pub(crate) fn at(p: &Params, config: &VisionConfig) -> Result<Self> {
        let embeddings = p.at("embeddings");
        embeddings.ignore("position_ids");
        let (hidden, patch, channels) = (config.hidden_size, config.patch_size, config.num_channels);
        let encoder = EncoderConfig {
            layers: config.num_hidden_layers,
            hidden,
            intermediate: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        let positions = (config.image_size / patch).pow(2) + 1;
        let class_std = (hidden as f64).powf(-0.5);
        Ok(Self {
            class_embedding: embeddings.tensor(
                "class_embedding",
                &[hidden],
                Init::Normal { mean: 0.0, std: class_std },
            )?,
            patch_embedding: embeddings.at("patch_embedding").tensor(
                "weight",
                &[hidden, channels, patch, patch],
                Init::Normal { mean: 0.0, std: 0.02 },
            )?,
            position_embedding: Embedding::new(&embeddings.at("position_embedding"), positions, hidden, 0.02)?,
            pre_layrnorm: LayerNorm::new(&p.at("pre_layrnorm"), hidden, config.layer_norm_eps)?,
            encoder: Encoder::new(&p.at("encoder"), &encoder)?,
            post_layernorm: LayerNorm::new(&p.at("post_layernorm"), hidden, config.layer_norm_eps)?,
            patch_size: patch,
        })
    }

    /// Normalized pixels [n, 3, s, s] to the class token's hidden states after the last layer norm, [n, hidden].
    ///
    /// # Panics
    /// As [`VisionTransformer::hidden_states`].
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        self.post_layernorm.forward(&self.hidden_states(pixels).select(1, 0))
    }

    /// Normalized pixels [n, 3, s, s] to the hidden states after the last layer, [n, 1 + patches, hidden]: the class token,
    /// then the patches row after row.
    ///
    /// # Panics
    /// If `s` is not the configuration's `image_size`; [`Preprocessor`](crate::clip::Preprocessor) resizes to it.
    pub fn hidden_states(&self, pixels: &Tensor) -> Tensor {
        let weight = &self.patch_embedding;
        let pixels = pixels.to_device(weight.device()).to_kind(weight.kind());
        let n = pixels.size()[0];
        let hidden = self.class_embedding.size()[0];
        let patches = pixels.conv2d(weight, None::<&Tensor>, self.patch_size, 0, 1, 1).flatten(2, 3).transpose(1, 2);
        let class = self.class_embedding.expand([n, 1, hidden], false);
        let x = Tensor::cat(&[class, patches], 1) + self.position_embedding.table();
        self.encoder.forward(self.pre_layrnorm.forward(&x), false)
    }
}

/// The image tower with its projection into the joint embedding space (`CLIPVisionModelWithProjection`).
#[derive(Debug)]
pub struct ProjectedVision {
    /// The tower.
    pub vision: VisionTransformer,
    /// [projection, hidden], without a bias.
    pub visual_projection: Linear,
}

impl ProjectedVision {
    /// Reads or initializes `vision_model` and `visual_projection`.
    pub fn new(p: &Params, config: &VisionConfig) -> Result<Self> {
        let vision = VisionTransformer::new(p, config)?;
        let visual_projection = projection(&p.at("visual_projection"), config.hidden_size, config.projection_dim)?;
        Ok(Self { vision, visual_projection })
    }

    /// Loads a folder's config.json and weights: one file, an fp16 variant or shards.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> Result<Self> {
        let config = VisionConfig::read(&dir.join("config.json"))?;
        let p = load_folder(dir, TRANSFORMERS_STEM, device, kind)?;
        let vision = Self::new(&p, &config)?;
        p.finish()?;
        Ok(vision)
    }

    /// Normalized pixels [n, 3, s, s] to raw embeddings [n, projection].
    pub fn embed_images(&self, pixels: &Tensor) -> Tensor {
        self.visual_projection.forward(&self.vision.forward(pixels))
    }
}
