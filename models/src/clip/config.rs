//! CLIP's config.json, as transformers writes it, for the whole model and for each of its towers alone.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::clip::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::json::{JsonObject, MAX_LAYERS, MAX_SIDE, MAX_SIZE, write_json};

/// The activation between the two layers of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x · sigmoid(1.702 x), as in OpenAI's models.
    QuickGelu,
    /// x · Φ(x), exact, as in Stable Diffusion 2 and LAION's models.
    Gelu,
}

/// The configuration of the text tower.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextConfig {
    /// Number of rows of the token embedding.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width inside the MLP.
    pub intermediate_size: i64,
    /// Width of the joint embedding space, for a tower with a projection.
    pub projection_dim: i64,
    /// Number of transformer blocks.
    pub num_hidden_layers: i64,
    /// Number of attention heads, a divisor of `hidden_size`.
    pub num_attention_heads: i64,
    /// Maximum length of a token sequence.
    pub max_position_embeddings: i64,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// Token that pads a sequence.
    pub pad_token_id: Option<i64>,
    /// Token that starts a sequence.
    pub bos_token_id: Option<i64>,
    /// Token at whose first occurrence the pooled state is taken; 2 stands for 'the highest id of the sequence'.
    pub eos_token_id: i64,
}

/// The configuration of the image tower.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width inside the MLP.
    pub intermediate_size: i64,
    /// Width of the joint embedding space, for a tower with a projection.
    pub projection_dim: i64,
    /// Number of transformer blocks.
    pub num_hidden_layers: i64,
    /// Number of attention heads, a divisor of `hidden_size`.
    pub num_attention_heads: i64,
    /// Number of color channels of the input.
    pub num_channels: i64,
    /// Side of the square input in pixels.
    pub image_size: i64,
    /// Side of a square patch in pixels.
    pub patch_size: i64,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
}

/// The configuration of both towers and the joint embedding space.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClipConfig {
    /// The text tower.
    pub text_config: TextConfig,
    /// The image tower.
    pub vision_config: VisionConfig,
    /// Width of the joint embedding space.
    pub projection_dim: i64,
    /// Natural logarithm of the initial inverse temperature.
    pub logit_scale_init_value: f64,
}

impl ClipConfig {
    /// Reads the config.json of a transformers `CLIPModel`; absent keys have transformers' defaults.
    pub fn read(file: &Path) -> Result<Self> {
        Self::from_object(&JsonObject::read(file)?)
    }

    pub(crate) fn from_object(object: &JsonObject) -> Result<Self> {
        expect_model_type(object, &["clip"])?;
        Ok(Self {
            text_config: TextConfig::from_object(&part(object, "text_config")?)?,
            vision_config: VisionConfig::from_object(&part(object, "vision_config")?)?,
            projection_dim: object.size("projection_dim", 512)?,
            logit_scale_init_value: object.number("logit_scale_init_value", -100.0..=100.0)?.unwrap_or(2.6592),
        })
    }

    /// The config.json that transformers loads as a `CLIPModel`.
    pub fn to_json(&self) -> Value {
        let mut value = json!({ "architectures": ["CLIPModel"], "model_type": "clip", "initializer_factor": 1.0 });
        extend(&mut value, json!(self));
        extend(&mut value["text_config"], json!({ "model_type": "clip_text_model" }));
        extend(&mut value["vision_config"], json!({ "model_type": "clip_vision_model" }));
        value
    }

    /// Writes [`ClipConfig::to_json`] to `file`.
    pub fn write(&self, file: &Path) -> Result<()> {
        write_json(file, &self.to_json())
    }
}

impl TextConfig {
    /// Reads a text tower: the config.json of `CLIPTextModel` or `CLIPTextModelWithProjection`, or the text part of a
    /// `CLIPModel`'s.
    pub fn read(file: &Path) -> Result<Self> {
        Self::from_file(&JsonObject::read(file)?)
    }

    pub(crate) fn from_file(object: &JsonObject) -> Result<Self> {
        expect_model_type(object, &["clip_text_model", "clip"])?;
        let whole = object.text("model_type")?.as_deref() == Some("clip");
        if whole { Self::from_object(&part(object, "text_config")?) } else { Self::from_object(object) }
    }

    fn from_object(object: &JsonObject) -> Result<Self> {
        let config = Self {
            vocab_size: object.size("vocab_size", 49408)?,
            hidden_size: object.size("hidden_size", 512)?,
            intermediate_size: object.size("intermediate_size", 2048)?,
            projection_dim: object.size("projection_dim", 512)?,
            num_hidden_layers: object.int("num_hidden_layers", 1..=MAX_LAYERS)?.unwrap_or(12),
            num_attention_heads: object.size("num_attention_heads", 8)?,
            max_position_embeddings: object.size("max_position_embeddings", 77)?,
            hidden_act: activation(object)?,
            layer_norm_eps: object.number("layer_norm_eps", 0.0..=1.0)?.unwrap_or(1e-5),
            pad_token_id: object.int("pad_token_id", 0..=MAX_SIZE)?,
            bos_token_id: object.int("bos_token_id", 0..=MAX_SIZE)?,
            eos_token_id: object.int("eos_token_id", 0..=MAX_SIZE)?.unwrap_or(49407),
        };
        expect_heads(object, config.hidden_size, config.num_attention_heads)?;
        Ok(config)
    }

    /// Refuses a tokenizer that gives longer texts or higher ids than the tower has embeddings for; `file` is where this
    /// configuration was read.
    pub fn check_tokenizer(&self, file: &Path, tokenizer: &Tokenizer) -> Result<()> {
        let limits = [
            ("max_position_embeddings", self.max_position_embeddings, tokenizer.max_length(), "length"),
            ("vocab_size", self.vocab_size, tokenizer.vocab_size(), "vocabulary"),
        ];
        for (key, limit, n, what) in limits {
            if limit < n as i64 {
                let message = format!("`{key}` is {limit}, but the tokenizer's {what} is {n}");
                return Err(Error::Config { path: file.to_owned(), message });
            }
        }
        Ok(())
    }

    /// The config.json that transformers loads as `CLIPTextModel`, as in a diffusers `text_encoder` folder.
    pub fn to_json(&self) -> Value {
        let mut value = json!({ "architectures": ["CLIPTextModel"], "model_type": "clip_text_model" });
        extend(&mut value, json!(self));
        value
    }

    /// Writes [`TextConfig::to_json`] to `file`.
    pub fn write(&self, file: &Path) -> Result<()> {
        write_json(file, &self.to_json())
    }
}

impl VisionConfig {
    /// Reads an image tower: the config.json of `CLIPVisionModel` or `CLIPVisionModelWithProjection`, or the image part
    /// of a `CLIPModel`'s.
    pub fn read(file: &Path) -> Result<Self> {
        let object = JsonObject::read(file)?;
        expect_model_type(&object, &["clip_vision_model", "clip"])?;
        let whole = object.text("model_type")?.as_deref() == Some("clip");
        if whole { Self::from_object(&part(&object, "vision_config")?) } else { Self::from_object(&object) }
    }

    fn from_object(object: &JsonObject) -> Result<Self> {
        let config = Self {
            hidden_size: object.size("hidden_size", 768)?,
            intermediate_size: object.size("intermediate_size", 3072)?,
            projection_dim: object.size("projection_dim", 512)?,
            num_hidden_layers: object.int("num_hidden_layers", 1..=MAX_LAYERS)?.unwrap_or(12),
            num_attention_heads: object.size("num_attention_heads", 12)?,
            num_channels: object.size("num_channels", 3)?,
            image_size: object.int("image_size", 1..=MAX_SIDE)?.unwrap_or(224),
            patch_size: object.int("patch_size", 1..=MAX_SIDE)?.unwrap_or(32),
            hidden_act: activation(object)?,
            layer_norm_eps: object.number("layer_norm_eps", 0.0..=1.0)?.unwrap_or(1e-5),
        };
        expect_heads(object, config.hidden_size, config.num_attention_heads)?;
        if config.num_channels != 3 {
            return Err(object.error("num_channels", format!("must be 3, found {}", config.num_channels)));
        }
        if config.patch_size > config.image_size {
            let (patch, image) = (config.patch_size, config.image_size);
            return Err(object.error("patch_size", format!("is {patch}, more than image_size {image}")));
        }
        Ok(config)
    }
}

/// A tower's keys. Old files have them twice; transformers then reads `NAME_dict` and fills in its own defaults.
fn part(object: &JsonObject, name: &str) -> Result<JsonObject> {
    if let Some(part) = object.object(&format!("{name}_dict"))? {
        return Ok(part);
    }
    Ok(object.object(name)?.unwrap_or_else(|| object.empty(name)))
}

fn expect_model_type(object: &JsonObject, supported: &[&str]) -> Result<()> {
    match object.text("model_type")? {
        Some(found) if !supported.contains(&found.as_str()) => {
            Err(object.error("model_type", format!("is `{found}`, only {} is supported", supported.join(" or "))))
        }
        _ => Ok(()),
    }
}

fn expect_heads(object: &JsonObject, hidden: i64, heads: i64) -> Result<()> {
    if hidden % heads == 0 {
        return Ok(());
    }
    Err(object.error("num_attention_heads", format!("is {heads}, which does not divide hidden_size {hidden}")))
}

fn activation(object: &JsonObject) -> Result<Activation> {
    match object.text("hidden_act")?.as_deref() {
        None | Some("quick_gelu") => Ok(Activation::QuickGelu),
        Some("gelu") => Ok(Activation::Gelu),
        Some(other) => Err(object.error("hidden_act", format!("is `{other}`, only quick_gelu and gelu are supported"))),
    }
}

/// Adds the keys of `more` to `value`; both are objects.
fn extend(value: &mut Value, more: Value) {
    if let (Value::Object(map), Value::Object(more)) = (value, more) {
        map.extend(more);
    }
}
