//! DINO (Caron et al., Emerging Properties in Self-Supervised Vision Transformers, arXiv 2104.14294) and DINOv2 (Oquab et
//! al., DINOv2: Learning Robust Visual Features without Supervision, arXiv 2304.07193): images to embeddings whose cosine
//! is a similarity of content and style.
//!
//! Both are Vision Transformers (Dosovitskiy et al., arXiv 2010.11929), read from the folders of transformers' `ViTModel`
//! (`facebook/dino-vits16`) and `Dinov2Model` (`facebook/dinov2-base`). The embedding is the class token's hidden state
//! after the last layer norm.

mod config;
#[cfg(test)]
mod tests;

use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use config::{DinoConfig, Family};

use crate::error::{Error, Result};
use crate::layers::{Conv2d, LayerNorm, Linear, attention};
use crate::params::{Init, Params};
use crate::preprocess::Preprocessor;
use crate::weights::load_weights;

/// A DINO or DINOv2 network.
#[derive(Debug)]
pub struct Dino {
    /// The configuration that it was built from.
    pub config: DinoConfig,
    cls_token: Tensor,
    position_embeddings: Tensor,
    projection: Conv2d,
    blocks: Vec<Block>,
    layernorm: LayerNorm,
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    /// What the branches of attention and MLP are multiplied by, in DINOv2.
    scales: Option<[Tensor; 2]>,
    heads: i64,
}

#[derive(Debug)]
enum Mlp {
    Plain { fc1: Linear, fc2: Linear },
    Swiglu { weights_in: Linear, weights_out: Linear },
}

impl Dino {
    /// Loads a folder's config.json and weights: safetensors, or pytorch_model.bin.
    ///
    /// # Errors
    /// If a key or tensor is missing, unknown or of another shape; the message names it and the file.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> Result<Self> {
        let config = DinoConfig::read(&dir.join("config.json"))?;
        let p = load_weights(dir, device, kind)?;
        let dino = Self::new(&p, &config)?;
        p.finish()?;
        Ok(dino)
    }

    /// Reads or initializes the network, whose names begin with `vit.` or `dinov2.` in the files of classifiers. The
    /// pooler and the mask token, which the embedding does not need, are ignored.
    pub fn new(p: &Params, config: &DinoConfig) -> Result<Self> {
        let prefix = if config.family == Family::Vit { "vit" } else { "dinov2" };
        let prefixed = p.at(prefix).has("embeddings.cls_token") && !p.has("embeddings.cls_token");
        let p = if prefixed { p.at(prefix) } else { p.clone() };
        for name in ["pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token"] {
            p.ignore(name);
        }
        let (hidden, patch) = (config.hidden_size, config.patch_size);
        let embeddings = p.at("embeddings");
        let init = Init::Normal { mean: 0.0, std: 0.02 };
        let positions = [1, config.grid().pow(2) + 1, hidden];
        let projection = embeddings.at("patch_embeddings").at("projection");
        let layers = p.at("encoder").at("layer");
        Ok(Self {
            cls_token: embeddings.tensor("cls_token", &[1, 1, hidden], init)?,
            position_embeddings: embeddings.tensor("position_embeddings", &positions, init)?,
            projection: Conv2d::new(&projection, 3, hidden, patch, patch, 0)?,
            blocks: (0..config.num_hidden_layers).map(|i| Block::new(&layers.at(i), config)).collect::<Result<_>>()?,
            layernorm: LayerNorm::new(&p.at("layernorm"), hidden, config.layer_norm_eps)?,
            config: config.clone(),
        })
    }

    /// Reads the preprocessing of a folder's images: DINO's to 224 × 224 pixels, stretched, by bilinear resize; DINOv2's
    /// to 224 pixels cropped from 256 by bicubic resize.
    ///
    /// # Errors
    /// If the folder has no preprocessor_config.json, or its values are not supported.
    pub fn preprocessor(dir: &Path) -> Result<Preprocessor> {
        Preprocessor::read(dir)
    }

    /// Normalized pixels [n, 3, h, w] to embeddings [n, hidden]. For another size than the configuration's, the position
    /// embeddings are resized by bicubic interpolation, as in transformers.
    ///
    /// # Errors
    /// If the pixels have another number of channels or are smaller than a patch.
    pub fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let patch = self.config.patch_size;
        match pixels.size()[..] {
            [_, 3, height, width] if height >= patch && width >= patch => {
                let x = self.embeddings(pixels, height, width)?;
                let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
                Ok(self.layernorm.forward(&x.select(1, 0)))
            }
            _ => {
                let found = pixels.size();
                Err(Error::Input(format!(
                    "DINO takes pixels [n, 3, h, w] of at least {patch} per side, found {found:?}"
                )))
            }
        }
    }

    /// The class token and the patches, row after row, with their positions.
    fn embeddings(&self, pixels: &Tensor, height: i64, width: i64) -> Result<Tensor> {
        let pixels = pixels.to_device(self.cls_token.device()).to_kind(self.cls_token.kind());
        let patches = self.projection.forward(&pixels).flatten(2, 3).transpose(1, 2);
        let class = self.cls_token.expand([pixels.size()[0], -1, -1], false);
        Ok(Tensor::cat(&[class, patches], 1) + self.positions(height, width)?)
    }

    /// The position embeddings for images of this size in pixels (`interpolate_pos_encoding`).
    fn positions(&self, height: i64, width: i64) -> Result<Tensor> {
        let (patch, grid, hidden) = (self.config.patch_size, self.config.grid(), self.config.hidden_size);
        let (rows, columns) = (height / patch, width / patch);
        if rows * columns == grid * grid && height == width {
            return Ok(self.position_embeddings.shallow_clone());
        }
        let kind = self.position_embeddings.kind();
        let (class, patches) =
            (self.position_embeddings.narrow(1, 0, 1), self.position_embeddings.narrow(1, 1, grid * grid));
        let square = patches.reshape([1, grid, grid, hidden]).permute([0, 3, 1, 2]).to_kind(Kind::Float);
        let resized = square.f_upsample_bicubic2d([rows, columns], false, None::<f64>, None::<f64>)?;
        let patches = resized.to_kind(kind).permute([0, 2, 3, 1]).reshape([1, rows * columns, hidden]);
        Ok(Tensor::cat(&[class, patches], 1))
    }
}

impl Block {
    fn new(p: &Params, config: &DinoConfig) -> Result<Self> {
        let (hidden, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = p.at("attention").at("attention");
        let linear = |name| Linear::new(&attention.at(name), hidden, hidden, config.qkv_bias);
        let (query, key, value) = (linear("query")?, linear("key")?, linear("value")?);
        let output = Linear::new(&p.at("attention").at("output").at("dense"), hidden, hidden, true)?;
        let (norms, mlp) = match config.family {
            Family::Vit => {
                let fc1 = Linear::new(&p.at("intermediate").at("dense"), hidden, inner, true)?;
                let fc2 = Linear::new(&p.at("output").at("dense"), inner, hidden, true)?;
                (["layernorm_before", "layernorm_after"], Mlp::Plain { fc1, fc2 })
            }
            Family::Dinov2 { swiglu } => {
                let mlp = p.at("mlp");
                let mlp = if swiglu {
                    Mlp::Swiglu {
                        weights_in: Linear::new(&mlp.at("weights_in"), hidden, 2 * inner, true)?,
                        weights_out: Linear::new(&mlp.at("weights_out"), inner, hidden, true)?,
                    }
                } else {
                    Mlp::Plain {
                        fc1: Linear::new(&mlp.at("fc1"), hidden, inner, true)?,
                        fc2: Linear::new(&mlp.at("fc2"), inner, hidden, true)?,
                    }
                };
                (["norm1", "norm2"], mlp)
            }
        };
        let scale = |name| p.at(name).tensor("lambda1", &[hidden], Init::Ones);
        let scales = match config.family {
            Family::Vit => None,
            Family::Dinov2 { .. } => Some([scale("layer_scale1")?, scale("layer_scale2")?]),
        };
        Ok(Self {
            norm1: LayerNorm::new(&p.at(norms[0]), hidden, eps)?,
            norm2: LayerNorm::new(&p.at(norms[1]), hidden, eps)?,
            query,
            key,
            value,
            output,
            mlp,
            scales,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: Tensor) -> Tensor {
        let y = self.norm1.forward(&x);
        let (q, k, v) = (self.query.forward(&y), self.key.forward(&y), self.value.forward(&y));
        let x = x + self.scaled(self.output.forward(&attention(&q, &k, &v, self.heads, None)), 0);
        let y = self.scaled(self.mlp.forward(&self.norm2.forward(&x)), 1);
        x + y
    }

    fn scaled(&self, branch: Tensor, i: usize) -> Tensor {
        match &self.scales {
            Some(scales) => branch * &scales[i],
            None => branch,
        }
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Plain { fc1, fc2 } => fc2.forward(&fc1.forward(x).gelu("none")),
            // Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202.
            Self::Swiglu { weights_in, weights_out } => {
                let halves = weights_in.forward(x).chunk(2, -1);
                weights_out.forward(&(halves[0].silu() * &halves[1]))
            }
        }
    }
}
