//! The config.json of DINO's Vision Transformers, as transformers writes it.

use std::path::Path;

use crate::error::Result;
use crate::json::{JsonObject, MAX_LAYERS, MAX_SIDE, MAX_SIZE};

/// The two families of networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A plain Vision Transformer (`ViTModel`), as in DINO.
    Vit,
    /// One whose branches are scaled by learned vectors (`Dinov2Model`), as in DINOv2.
    Dinov2 {
        /// Whether the MLP is a gated one (SwiGLU), as in DINOv2-giant.
        swiglu: bool,
    },
}

/// The configuration of a DINO network.
#[derive(Clone, Debug, PartialEq)]
pub struct DinoConfig {
    /// The family of networks that it belongs to.
    pub family: Family,
    /// Width of the residual stream and of the embedding.
    pub hidden_size: i64,
    /// Width inside the MLP.
    pub intermediate_size: i64,
    /// Number of transformer blocks.
    pub num_hidden_layers: i64,
    /// Number of attention heads, a divisor of `hidden_size`.
    pub num_attention_heads: i64,
    /// Side in pixels of the square images that the position embeddings are for; other images are taken too.
    pub image_size: i64,
    /// Side of a square patch in pixels.
    pub patch_size: i64,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
}

impl DinoConfig {
    /// Reads the config.json of a transformers `ViTModel` or `Dinov2Model`; absent keys have transformers' defaults.
    ///
    /// # Errors
    /// If the file describes another network or has a value out of bounds; the message names the file and the key.
    pub fn read(file: &Path) -> Result<Self> {
        Self::from_object(&JsonObject::read(file)?)
    }

    pub(crate) fn from_object(object: &JsonObject) -> Result<Self> {
        let family = match object.text("model_type")?.as_deref() {
            Some("vit") => Family::Vit,
            Some("dinov2") => Family::Dinov2 { swiglu: object.flag("use_swiglu_ffn", false)? },
            other => {
                let found = other.unwrap_or("missing");
                return Err(object.error("model_type", format!("is `{found}`, only vit or dinov2 is supported")));
            }
        };
        if let Some(other) = object.text("hidden_act")?.filter(|name| name != "gelu") {
            return Err(object.error("hidden_act", format!("is `{other}`, only gelu is supported")));
        }
        let hidden_size = object.size("hidden_size", 768)?;
        let (patch, eps) = if family == Family::Vit { (16, 1e-12) } else { (14, 1e-6) };
        let intermediate_size = match family {
            Family::Vit => object.size("intermediate_size", 3072)?,
            Family::Dinov2 { swiglu } => {
                let ratio = object.number("mlp_ratio", 0.125..=64.0)?.unwrap_or(4.0);
                let width = (hidden_size as f64 * ratio) as i64;
                // Two thirds of a plain MLP's width, rounded up to a multiple of 8.
                let width = if swiglu { ((width as f64 * 2.0 / 3.0) as i64 + 7) / 8 * 8 } else { width };
                if !(1..=MAX_SIZE).contains(&width) {
                    return Err(object.error("mlp_ratio", format!("is {ratio}, which makes the MLP {width} wide")));
                }
                width
            }
        };
        let config = Self {
            family,
            hidden_size,
            intermediate_size,
            num_hidden_layers: object.int("num_hidden_layers", 1..=MAX_LAYERS)?.unwrap_or(12),
            num_attention_heads: object.size("num_attention_heads", 12)?,
            image_size: object.int("image_size", 1..=MAX_SIDE)?.unwrap_or(224),
            patch_size: object.int("patch_size", 1..=MAX_SIDE)?.unwrap_or(patch),
            layer_norm_eps: object.number("layer_norm_eps", 0.0..=1.0)?.unwrap_or(eps),
            qkv_bias: object.flag("qkv_bias", true)?,
        };
        if config.hidden_size % config.num_attention_heads != 0 {
            let (heads, hidden) = (config.num_attention_heads, config.hidden_size);
            return Err(object.error("num_attention_heads", format!("is {heads}, which does not divide {hidden}")));
        }
        if let Some(other) = object.int("num_channels", 1..=MAX_SIZE)?.filter(|&n| n != 3) {
            return Err(object.error("num_channels", format!("must be 3, found {other}")));
        }
        if config.patch_size > config.image_size {
            let (patch, image) = (config.patch_size, config.image_size);
            return Err(object.error("patch_size", format!("is {patch}, more than image_size {image}")));
        }
        Ok(config)
    }

    /// Number of patches per side of an image of `image_size` pixels.
    pub(crate) fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }
}
