//! The sizes of an ImageReward network. Its file has no configuration: the shapes of the tensors tell all but the numbers
//! of heads.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::{JsonObject, MAX_SIDE};
use crate::params::NamedTensors;
use crate::weights::{axis_length, number_of_layers};

/// Width of a head of attention in ViT-L and BERT-base.
const HEAD: i64 = 64;

/// The configuration of both transformers.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageRewardConfig {
    /// Side of the square input in pixels.
    pub image_size: i64,
    /// Side of a square patch in pixels.
    pub patch_size: i64,
    /// Width of the image transformer's residual stream.
    pub vision_width: i64,
    /// Width inside the image transformer's MLP.
    pub vision_intermediate_size: i64,
    /// Number of the image transformer's blocks.
    pub vision_layers: i64,
    /// Number of the image transformer's attention heads, a divisor of `vision_width`.
    pub vision_heads: i64,
    /// Number of token embeddings.
    pub vocab_size: i64,
    /// Maximum length of a token sequence.
    pub max_position_embeddings: i64,
    /// Width of the text transformer's residual stream.
    pub hidden_size: i64,
    /// Width inside the text transformer's MLP.
    pub intermediate_size: i64,
    /// Number of the text transformer's layers.
    pub num_hidden_layers: i64,
    /// Number of the text transformer's attention heads, a divisor of `hidden_size`.
    pub num_attention_heads: i64,
    /// Epsilon of the text transformer's layer norms.
    pub layer_norm_eps: f64,
}

impl ImageRewardConfig {
    /// ImageReward v1.0: ViT-L/16 and BERT-base.
    pub fn v1() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            vision_width: 1024,
            vision_intermediate_size: 4096,
            vision_layers: 24,
            vision_heads: 16,
            vocab_size: 30_524,
            max_position_embeddings: 512,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            layer_norm_eps: 1e-12,
        }
    }

    /// Reads the sizes from the shapes of a file's tensors, and number of heads and epsilon from `med_config.json` beside
    /// it, if there is one; without it the heads are 64 wide.
    pub(crate) fn of(path: &Path, tensors: &NamedTensors) -> Result<Self> {
        let axis = |name: &str, axis: usize| axis_length(path, tensors, name, axis);
        let layers = |prefix: &str, last: &str| number_of_layers(tensors, prefix, last);
        let (vision, text) = ("blip.visual_encoder", "blip.text_encoder");
        let patch_size = axis(&format!("{vision}.patch_embed.proj.weight"), 2)?;
        let grid = ((axis(&format!("{vision}.pos_embed"), 1)? - 1) as f64).sqrt() as i64;
        let vision_width = axis(&format!("{vision}.norm.weight"), 0)?;
        let hidden_size = axis(&format!("{text}.embeddings.LayerNorm.weight"), 0)?;
        let image_size = grid * patch_size;
        if !(1..=MAX_SIDE).contains(&image_size) {
            return Err(bad(
                path,
                format!("its images have {image_size} pixels per side, at most {MAX_SIDE} are supported"),
            ));
        }
        let mut config = Self {
            image_size,
            patch_size,
            vision_width,
            vision_intermediate_size: axis(&format!("{vision}.blocks.0.mlp.fc1.weight"), 0)?,
            vision_layers: layers(&format!("{vision}.blocks"), "norm1.weight"),
            vision_heads: vision_width / HEAD,
            vocab_size: axis(&format!("{text}.embeddings.word_embeddings.weight"), 0)?,
            max_position_embeddings: axis(&format!("{text}.embeddings.position_embeddings.weight"), 0)?,
            hidden_size,
            intermediate_size: axis(&format!("{text}.encoder.layer.0.intermediate.dense.weight"), 0)?,
            num_hidden_layers: layers(&format!("{text}.encoder.layer"), "output.dense.weight"),
            num_attention_heads: hidden_size / HEAD,
            layer_norm_eps: 1e-12,
        };
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
        if let Some(object) = JsonObject::read_if_present(&folder.join("med_config.json"))? {
            config.read_more(&object)?;
        }
        for (what, width, heads) in
            [("images", vision_width, config.vision_heads), ("texts", hidden_size, config.num_attention_heads)]
        {
            if heads < 1 || width % heads != 0 {
                return Err(bad(
                    path,
                    format!("its transformer of {what} is {width} wide, which {heads} heads do not divide"),
                ));
            }
        }
        Ok(config)
    }

    fn read_more(&mut self, object: &JsonObject) -> Result<()> {
        object.only("hidden_act", Value::from("gelu"))?;
        object.only("add_cross_attention", Value::from(true))?;
        object.only("hidden_size", Value::from(self.hidden_size))?;
        self.num_attention_heads = object.size("num_attention_heads", self.num_attention_heads)?;
        self.layer_norm_eps = object.number("layer_norm_eps", 0.0..=1.0)?.unwrap_or(self.layer_norm_eps);
        Ok(())
    }
}

fn bad(path: &Path, message: String) -> Error {
    Error::Input(format!("{}: {message}: is it ImageReward?", path.display()))
}
