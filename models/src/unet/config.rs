//! The checked configuration of a `UNet2DConditionModel`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::diffusers::DIFFUSERS_VERSION;
use crate::error::Result;
use crate::json::{JsonObject, MAX_LAYERS, MAX_SIZE, write_json};

/// The largest number of stages; each but the last halves height and width.
pub(crate) const MAX_STAGES: usize = 16;
/// The largest number of transformer blocks in all stages together.
const MAX_TRANSFORMER_BLOCKS: i64 = 1024;
/// The largest side of the first and the last convolution's kernel.
const MAX_KERNEL: i64 = 31;

/// A stage on the way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks, each followed by self- and cross-attention.
    #[serde(rename = "CrossAttnDownBlock2D")]
    CrossAttention,
    /// Residual blocks alone.
    #[serde(rename = "DownBlock2D")]
    Plain,
}

/// A stage on the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks, each followed by self- and cross-attention.
    #[serde(rename = "CrossAttnUpBlock2D")]
    CrossAttention,
    /// Residual blocks alone.
    #[serde(rename = "UpBlock2D")]
    Plain,
}

/// The configuration of a [`UNet`](super::UNet). Lists have one entry per stage, from the finest to the coarsest.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetConfig {
    /// Side of the latents that it was trained on; a default for sampling, not a limit.
    pub sample_size: Option<i64>,
    /// Number of channels of the input latents.
    pub in_channels: i64,
    /// Number of channels of the output.
    pub out_channels: i64,
    /// Number of channels of each stage.
    pub block_out_channels: Vec<i64>,
    /// Types of the stages on the way down.
    pub down_block_types: Vec<DownBlockType>,
    /// Types of the stages on the way up, from the coarsest.
    pub up_block_types: Vec<UpBlockType>,
    /// Number of residual blocks of each stage on the way down; on the way up there is one more.
    pub layers_per_block: Vec<i64>,
    /// Number of transformer blocks in each attention of each stage.
    pub transformer_layers_per_block: Vec<i64>,
    /// Number of attention heads of each stage. diffusers calls this `attention_head_dim`, an old mistake that it
    /// keeps.
    pub attention_heads: Vec<i64>,
    /// Width of the prompt embeddings.
    pub cross_attention_dim: i64,
    /// Whether attention's input and output projections are linear layers (SD 2) or 1×1 convolutions (SD 1).
    pub use_linear_projection: bool,
    /// Whether attention is computed in f32 if the weights are f16, in which SD 2.1 overflows otherwise.
    pub upcast_attention: bool,
    /// Number of groups of every GroupNorm.
    pub norm_num_groups: i64,
    /// Epsilon of the residual blocks' GroupNorms.
    pub norm_eps: f64,
    /// Padding of the stride-2 convolutions: 1, or 0 for one row and column at the far side only.
    pub downsample_padding: i64,
    /// Whether the cosines come before the sines in the timestep's embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the divisor of the embedding's frequencies.
    pub freq_shift: f64,
    /// Width of the time embedding if it is not 4 × the first stage's channels.
    pub time_embedding_dim: Option<i64>,
    /// Kernel size of the first convolution.
    pub conv_in_kernel: i64,
    /// Kernel size of the last convolution.
    pub conv_out_kernel: i64,
}

impl UNetConfig {
    /// Reads a `config.json`. Absent keys have diffusers' defaults; a value that needs a network that is not
    /// implemented is an error that names the key.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_object(&JsonObject::read(path)?)
    }

    pub(crate) fn from_object(file: &JsonObject) -> Result<Self> {
        file.only("_class_name", json!("UNet2DConditionModel"))?;
        for (key, allowed) in fixed_keys() {
            file.only(key, allowed)?;
        }
        if file.is_null("mid_block_type") {
            return Err(file.error("mid_block_type", "is null, only \"UNetMidBlock2DCrossAttn\" is supported"));
        }
        let act_fn: String = file.get("act_fn", "silu".to_owned())?;
        if !["silu", "swish"].contains(&act_fn.as_str()) {
            return Err(file.error("act_fn", format!("is \"{act_fn}\", only \"silu\" is supported")));
        }
        let block_out_channels: Vec<i64> = file.get("block_out_channels", vec![320, 640, 1280, 1280])?;
        let n = block_out_channels.len();
        use {DownBlockType as Down, UpBlockType as Up};
        let default_down = vec![Down::CrossAttention, Down::CrossAttention, Down::CrossAttention, Down::Plain];
        let default_up = vec![Up::Plain, Up::CrossAttention, Up::CrossAttention, Up::CrossAttention];
        let config = Self {
            sample_size: file.int("sample_size", 1..=MAX_SIZE)?,
            in_channels: file.size("in_channels", 4)?,
            out_channels: file.size("out_channels", 4)?,
            down_block_types: file.get("down_block_types", default_down)?,
            up_block_types: file.get("up_block_types", default_up)?,
            layers_per_block: file.per_block("layers_per_block", n, 2, MAX_LAYERS)?,
            transformer_layers_per_block: file.per_block("transformer_layers_per_block", n, 1, MAX_LAYERS)?,
            attention_heads: file.per_block("attention_head_dim", n, 8, MAX_SIZE)?,
            cross_attention_dim: file.size("cross_attention_dim", 1280)?,
            use_linear_projection: file.get("use_linear_projection", false)?,
            upcast_attention: file.get("upcast_attention", false)?,
            norm_num_groups: file.size("norm_num_groups", 32)?,
            norm_eps: file.number("norm_eps", 0.0..=1.0)?.unwrap_or(1e-5),
            downsample_padding: file.int("downsample_padding", 0..=1)?.unwrap_or(1),
            flip_sin_to_cos: file.get("flip_sin_to_cos", true)?,
            freq_shift: file.number("freq_shift", 0.0..=1.0)?.unwrap_or(0.0),
            time_embedding_dim: file.int("time_embedding_dim", 1..=MAX_SIZE)?,
            conv_in_kernel: file.int("conv_in_kernel", 1..=MAX_KERNEL)?.unwrap_or(3),
            conv_out_kernel: file.int("conv_out_kernel", 1..=MAX_KERNEL)?.unwrap_or(3),
            block_out_channels,
        };
        match config.fault() {
            Some((key, message)) => Err(file.error(key, message)),
            None => Ok(config),
        }
    }

    /// The first inconsistency of the configuration, if any: diffusers' name of the key, and what is wrong with it.
    pub(super) fn fault(&self) -> Option<(&'static str, String)> {
        let n = self.block_out_channels.len();
        if n == 0 || n > MAX_STAGES {
            return Some(("block_out_channels", format!("has {n} entries, but there must be from 1 to {MAX_STAGES}")));
        }
        let lengths = [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
            ("layers_per_block", self.layers_per_block.len()),
            ("transformer_layers_per_block", self.transformer_layers_per_block.len()),
            ("attention_head_dim", self.attention_heads.len()),
        ];
        if let Some((key, length)) = lengths.into_iter().find(|&(_, length)| length != n) {
            return Some((key, format!("has {length} entries for {n} blocks")));
        }
        for (&channels, &heads) in self.block_out_channels.iter().zip(&self.attention_heads) {
            if !(1..=MAX_SIZE).contains(&channels) {
                return Some((
                    "block_out_channels",
                    format!("contains {channels}, but every number must be from 1 to {MAX_SIZE}"),
                ));
            }
            if channels % self.norm_num_groups != 0 {
                let groups = self.norm_num_groups;
                let message = format!("contains {channels}, which is not a multiple of {groups} groups");
                return Some(("block_out_channels", message));
            }
            if channels % heads != 0 {
                return Some((
                    "attention_head_dim",
                    format!("contains {heads}, which does not divide {channels} channels"),
                ));
            }
        }
        for (key, kernel) in [("conv_in_kernel", self.conv_in_kernel), ("conv_out_kernel", self.conv_out_kernel)] {
            if kernel % 2 == 0 {
                return Some((key, format!("is {kernel}, but it must be odd")));
            }
        }
        // As many on the way up and one more a stage; the middle's are the last stage's.
        let blocks = self.layers_per_block.iter().zip(&self.transformer_layers_per_block);
        let n_blocks: i64 = blocks.map(|(layers, transformers)| (2 * layers + 1) * transformers).sum();
        if n_blocks > MAX_TRANSFORMER_BLOCKS {
            let message =
                format!("asks for {n_blocks} transformer blocks, but there must be at most {MAX_TRANSFORMER_BLOCKS}");
            return Some(("transformer_layers_per_block", message));
        }
        let waves = self.block_out_channels[0] / 2;
        if waves > 0 && waves as f64 <= self.freq_shift {
            return Some((
                "freq_shift",
                format!("is {}, but it must be less than the {waves} frequencies", self.freq_shift),
            ));
        }
        None
    }

    /// Width of the time embedding.
    pub fn time_embedding_width(&self) -> i64 {
        self.time_embedding_dim.unwrap_or(4 * self.block_out_channels[0])
    }

    /// The configuration as diffusers writes it, with every key of its constructor.
    pub fn to_json(&self) -> Value {
        let mut map = serde_json::Map::new();
        map.insert("_class_name".to_owned(), json!("UNet2DConditionModel"));
        map.insert("_diffusers_version".to_owned(), json!(DIFFUSERS_VERSION));
        let own = [
            ("act_fn", json!("silu")),
            // Has no effect without `addition_embed_type`.
            ("addition_embed_type_num_heads", json!(64)),
            ("attention_head_dim", one_or_many(&self.attention_heads)),
            ("block_out_channels", json!(self.block_out_channels)),
            ("conv_in_kernel", json!(self.conv_in_kernel)),
            ("conv_out_kernel", json!(self.conv_out_kernel)),
            ("cross_attention_dim", json!(self.cross_attention_dim)),
            ("down_block_types", json!(self.down_block_types)),
            ("downsample_padding", json!(self.downsample_padding)),
            ("flip_sin_to_cos", json!(self.flip_sin_to_cos)),
            ("freq_shift", whole_or_float(self.freq_shift)),
            ("in_channels", json!(self.in_channels)),
            ("layers_per_block", one_or_many(&self.layers_per_block)),
            ("norm_eps", json!(self.norm_eps)),
            ("norm_num_groups", json!(self.norm_num_groups)),
            ("out_channels", json!(self.out_channels)),
            ("sample_size", json!(self.sample_size)),
            ("time_embedding_dim", json!(self.time_embedding_dim)),
            ("transformer_layers_per_block", one_or_many(&self.transformer_layers_per_block)),
            ("up_block_types", json!(self.up_block_types)),
            ("upcast_attention", json!(self.upcast_attention)),
            ("use_linear_projection", json!(self.use_linear_projection)),
        ];
        let mut keys: Vec<(&str, Value)> = own.into_iter().chain(fixed_keys()).collect();
        keys.sort_by_key(|(key, _)| *key);
        map.extend(keys.into_iter().map(|(key, value)| (key.to_owned(), value)));
        Value::Object(map)
    }

    /// Writes `config.json` into `dir`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join("config.json"), &self.to_json())
    }
}

/// Keys that change the network, each with the one value that is implemented.
fn fixed_keys() -> [(&'static str, Value); 26] {
    [
        ("addition_embed_type", Value::Null),
        ("addition_time_embed_dim", Value::Null),
        ("attention_type", json!("default")),
        ("center_input_sample", json!(false)),
        ("class_embed_type", Value::Null),
        ("class_embeddings_concat", json!(false)),
        ("cross_attention_norm", Value::Null),
        ("dropout", json!(0.0)),
        ("dual_cross_attention", json!(false)),
        ("encoder_hid_dim", Value::Null),
        ("encoder_hid_dim_type", Value::Null),
        ("mid_block_only_cross_attention", Value::Null),
        ("mid_block_scale_factor", json!(1)),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
        ("num_attention_heads", Value::Null),
        ("num_class_embeds", Value::Null),
        ("only_cross_attention", json!(false)),
        ("projection_class_embeddings_input_dim", Value::Null),
        ("resnet_out_scale_factor", json!(1.0)),
        ("resnet_skip_time_act", json!(false)),
        ("resnet_time_scale_shift", json!("default")),
        ("reverse_transformer_layers_per_block", Value::Null),
        ("time_cond_proj_dim", Value::Null),
        ("time_embedding_act_fn", Value::Null),
        ("time_embedding_type", json!("positional")),
        ("timestep_post_act", Value::Null),
    ]
}

/// One number if all blocks have the same, as in most published configurations, else a list.
fn one_or_many(values: &[i64]) -> Value {
    match values {
        [first, rest @ ..] if rest.iter().all(|value| value == first) => json!(first),
        _ => json!(values),
    }
}

/// Published configurations write `0` and not `0.0`.
fn whole_or_float(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}
