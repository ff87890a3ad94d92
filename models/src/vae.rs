//! The autoencoder between images and latents, diffusers' `AutoencoderKL` (Kingma and Welling, arXiv 1312.6114;
//! Rombach et al., arXiv 2112.10752).

use std::path::Path;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::diffusers::DIFFUSERS_VERSION;
use crate::error::{Error, Result};
use crate::json::{JsonObject, MAX_LAYERS, MAX_SIZE, write_json};
use crate::layers::{Conv2d, GroupNorm, Linear};
use crate::params::{MemoryFormat, Params};
use crate::unet::{Downsample, MAX_STAGES, ResnetBlock, Upsample, multi_head_attention};
use crate::weights::{DIFFUSERS_STEM, load_folder};

/// Epsilon of every GroupNorm.
const NORM_EPS: f64 = 1e-6;
/// The range to which diffusers clamps the logarithm of the variance.
const LOGVAR_RANGE: [f64; 2] = [-30.0, 20.0];

/// The configuration of a [`Vae`].
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Number of channels of the input images.
    pub in_channels: i64,
    /// Number of channels of the output images.
    pub out_channels: i64,
    /// Number of channels of each stage, from the finest to the coarsest; each but the last halves height and width.
    pub block_out_channels: Vec<i64>,
    /// Number of residual blocks of each stage of the encoder; the decoder has one more.
    pub layers_per_block: i64,
    /// Number of channels of the latents.
    pub latent_channels: i64,
    /// Number of groups of every GroupNorm.
    pub norm_num_groups: i64,
    /// Side of the images that it was trained on, in pixels.
    pub sample_size: i64,
    /// Factor that latents are multiplied by for the UNet, so that their variance is about 1.
    pub scaling_factor: f64,
    /// diffusers' hint that this network overflows in f16, which is the caller's to follow.
    pub force_upcast: bool,
    /// Whether a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the coarsest stage has self-attention.
    pub mid_block_add_attention: bool,
}

impl VaeConfig {
    /// Reads a `config.json`. Absent keys have diffusers' defaults; a value that needs a network that is not
    /// implemented is an error that names the key.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_object(&JsonObject::read(path)?)
    }

    pub(crate) fn from_object(file: &JsonObject) -> Result<Self> {
        file.only("_class_name", json!("AutoencoderKL"))?;
        for key in ["latents_mean", "latents_std", "shift_factor"] {
            file.only(key, Value::Null)?;
        }
        let act_fn: String = file.get("act_fn", "silu".to_owned())?;
        if !["silu", "swish"].contains(&act_fn.as_str()) {
            return Err(file.error("act_fn", format!("is \"{act_fn}\", only \"silu\" is supported")));
        }
        let block_out_channels: Vec<i64> = file.get("block_out_channels", vec![64])?;
        for (key, supported) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let types: Vec<String> = file.get(key, vec![supported.to_owned()])?;
            if let Some(other) = types.iter().find(|&name| name != supported) {
                return Err(file.error(key, format!("contains \"{other}\", only \"{supported}\" is supported")));
            }
            if types.len() != block_out_channels.len() {
                let (types, blocks) = (types.len(), block_out_channels.len());
                return Err(file.error(key, format!("has {types} entries for {blocks} blocks")));
            }
        }
        let config = Self {
            in_channels: file.size("in_channels", 3)?,
            out_channels: file.size("out_channels", 3)?,
            layers_per_block: file.int("layers_per_block", 1..=MAX_LAYERS)?.unwrap_or(1),
            latent_channels: file.size("latent_channels", 4)?,
            norm_num_groups: file.size("norm_num_groups", 32)?,
            sample_size: file.size("sample_size", 32)?,
            scaling_factor: file.number("scaling_factor", 1e-4..=1e4)?.unwrap_or(0.18215),
            force_upcast: file.get("force_upcast", true)?,
            use_quant_conv: file.get("use_quant_conv", true)?,
            use_post_quant_conv: file.get("use_post_quant_conv", true)?,
            mid_block_add_attention: file.get("mid_block_add_attention", true)?,
            block_out_channels,
        };
        match config.fault() {
            Some((key, message)) => Err(file.error(key, message)),
            None => Ok(config),
        }
    }

    fn fault(&self) -> Option<(&'static str, String)> {
        let n = self.block_out_channels.len();
        if n == 0 || n > MAX_STAGES {
            return Some(("block_out_channels", format!("has {n} entries, but there must be from 1 to {MAX_STAGES}")));
        }
        if let Some(channels) = self.block_out_channels.iter().find(|&channels| !(1..=MAX_SIZE).contains(channels)) {
            return Some((
                "block_out_channels",
                format!("contains {channels}, but every number must be from 1 to {MAX_SIZE}"),
            ));
        }
        let groups = self.norm_num_groups;
        let odd = self.block_out_channels.iter().find(|&channels| channels % groups != 0)?;
        Some(("block_out_channels", format!("contains {odd}, which is not a multiple of {groups} groups")))
    }

    /// Ratio of an image's side to its latents' side.
    pub fn downscale(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The configuration as diffusers writes it, with every key of its constructor.
    pub fn to_json(&self) -> Value {
        let n = self.block_out_channels.len();
        json!({
            "_class_name": "AutoencoderKL",
            "_diffusers_version": DIFFUSERS_VERSION,
            "act_fn": "silu",
            "block_out_channels": self.block_out_channels,
            "down_block_types": vec!["DownEncoderBlock2D"; n],
            "force_upcast": self.force_upcast,
            "in_channels": self.in_channels,
            "latent_channels": self.latent_channels,
            "latents_mean": null,
            "latents_std": null,
            "layers_per_block": self.layers_per_block,
            "mid_block_add_attention": self.mid_block_add_attention,
            "norm_num_groups": self.norm_num_groups,
            "out_channels": self.out_channels,
            "sample_size": self.sample_size,
            "scaling_factor": self.scaling_factor,
            "shift_factor": null,
            "up_block_types": vec!["UpDecoderBlock2D"; n],
            "use_post_quant_conv": self.use_post_quant_conv,
            "use_quant_conv": self.use_quant_conv,
        })
    }

    /// Writes `config.json` into `dir`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join("config.json"), &self.to_json())
    }
}

/// Part of a tile's side that it shares with the next one, as in diffusers.
const TILE_OVERLAP: f64 = 0.25;

/// The autoencoder: encoder and decoder.
#[derive(Debug)]
pub struct Vae {
    config: VaeConfig,
    tiling: bool,
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
}

impl Vae {
    /// Builds the network from the parameters at `p`.
    pub fn new(p: &Params, config: &VaeConfig) -> Result<Self> {
        if let Some((key, message)) = config.fault() {
            return Err(Error::Input(format!("VAE configuration: `{key}` {message}")));
        }
        let latent = config.latent_channels;
        let pointwise = |name: &str, width: i64| Conv2d::new(&p.at(name), width, width, 1, 1, 0);
        Ok(Self {
            config: config.clone(),
            tiling: false,
            encoder: Encoder::new(&p.at("encoder"), config)?,
            decoder: Decoder::new(&p.at("decoder"), config)?,
            quant_conv: config.use_quant_conv.then(|| pointwise("quant_conv", 2 * latent)).transpose()?,
            post_quant_conv: config.use_post_quant_conv.then(|| pointwise("post_quant_conv", latent)).transpose()?,
        })
    }

    /// Reads a `vae` folder: config.json and its weights, converted to `kind`.
    pub fn load(dir: &Path, device: Device, kind: Kind, format: MemoryFormat) -> Result<Self> {
        let config = VaeConfig::read(&dir.join("config.json"))?;
        let params = load_folder(dir, DIFFUSERS_STEM, device, kind)?.in_format(format);
        let vae = Self::new(&params, &config)?;
        params.finish()?;
        Ok(vae)
    }

    /// Sets whether images larger than those of training ([`VaeConfig::sample_size`]) are decoded in tiles of that size, which
    /// overlap by a quarter and are blended there. Memory no longer grows with the image, but tiles may differ in tone, since
    /// each is normalized on its own. The arithmetic is that of diffusers' `enable_tiling`.
    pub fn set_tiling(&mut self, on: bool) {
        self.tiling = on;
    }

    /// Images [n, 3, h, w] in [-1, 1] to mean and log-variance of the latents, [n, latent_channels, h / downscale,
    /// w / downscale] each, unscaled. The log-variance is clamped as diffusers does.
    pub fn encode(&self, images: &Tensor) -> (Tensor, Tensor) {
        let mut moments = self.encoder.forward(&images.to_kind(self.kind()));
        if let Some(quant_conv) = &self.quant_conv {
            moments = quant_conv.forward(&moments);
        }
        let latent = self.config.latent_channels;
        let [low, high] = LOGVAR_RANGE;
        (moments.narrow(1, 0, latent), moments.narrow(1, latent, latent).clamp(low, high))
    }

    /// Scaled latents, as the UNet has them, [n, c, h, w], to images [n, 3, H, W], f32, about in [-1, 1], `slice` rows
    /// at a time, which limits the memory of the large feature maps.
    pub fn decode_latents(&self, latents: &Tensor, slice: i64) -> Tensor {
        let latents = latents.to_kind(Kind::Float) / self.config.scaling_factor;
        let images: Vec<Tensor> = latents.split(slice.max(1), 0).iter().map(|rows| self.decode(rows)).collect();
        Tensor::cat(&images, 0).to_kind(Kind::Float)
    }

    /// Unscaled latents (already divided by `scaling_factor`) to images [n, 3, H, W] about in [-1, 1], not clamped, in the type
    /// of the weights.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        let latents = latents.to_kind(self.kind());
        let side = self.config.sample_size / self.config.downscale();
        let (_, _, h, w) = latents.size4().expect("latents are [n, c, h, w]");
        if self.tiling && side > 0 && (h > side || w > side) {
            self.decode_tiles(&latents, side)
        } else {
            self.decode_whole(&latents)
        }
    }

    fn decode_whole(&self, latents: &Tensor) -> Tensor {
        match &self.post_quant_conv {
            Some(post_quant_conv) => self.decoder.forward(&post_quant_conv.forward(latents)),
            None => self.decoder.forward(latents),
        }
    }

    /// Decodes tiles of `side` × `side` latents. The first rows and columns of each pass over from its neighbors.
    fn decode_tiles(&self, latents: &Tensor, side: i64) -> Tensor {
        let (_, _, h, w) = latents.size4().expect("latents are [n, c, h, w]");
        let stride = ((side as f64 * (1.0 - TILE_OVERLAP)) as usize).max(1);
        // In diffusers, three quarters of the tile in pixels: the same if its latents can be divided by four, else too many.
        let kept = stride as i64 * self.config.downscale();
        let blended = side * self.config.downscale() - kept;
        let tile = |top: i64, left: i64| {
            self.decode_whole(&latents.narrow(2, top, side.min(h - top)).narrow(3, left, side.min(w - left)))
        };
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in (0..h).step_by(stride) {
            let mut row: Vec<Tensor> = Vec::new();
            for (column, left) in (0..w).step_by(stride).enumerate() {
                let tile = tile(top, left);
                if let Some(above) = above.get(column) {
                    pass_over(above, &tile, 2, blended);
                }
                if let Some(before) = row.last() {
                    pass_over(before, &tile, 3, blended);
                }
                row.push(tile);
            }
            let cut = |tile: &Tensor| {
                let (_, _, height, width) = tile.size4().expect("an image is [n, 3, H, W]");
                tile.narrow(2, 0, kept.min(height)).narrow(3, 0, kept.min(width))
            };
            rows.push(Tensor::cat(&row.iter().map(cut).collect::<Vec<_>>(), 3));
            above = row;
        }
        Tensor::cat(&rows, 2)
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The type of the weights.
    pub fn kind(&self) -> Kind {
        self.decoder.conv_in.weight.kind()
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.decoder.conv_in.weight.device()
    }
}

/// Lets the first `length` rows or columns (axis 2 or 3) of `tile` pass over linearly from the last ones of `before`.
fn pass_over(before: &Tensor, tile: &Tensor, axis: i64, length: i64) {
    let (ends, starts) = (before.size()[axis as usize], tile.size()[axis as usize]);
    let length = length.min(ends).min(starts);
    let mut shape = [1; 4];
    shape[axis as usize] = length;
    let weight = Tensor::arange(length, (Kind::Float, tile.device())) / length as f64;
    let weight = weight.view(shape).to_kind(tile.kind());
    let mut start = tile.narrow(axis, 0, length);
    let end = before.narrow(axis, ends - length, length);
    start.copy_(&(end * (1.0 - &weight) + &start * weight));
}

fn resnet(p: &Params, n_in: i64, n_out: i64, config: &VaeConfig) -> Result<ResnetBlock> {
    ResnetBlock::new(p, n_in, n_out, None, config.norm_num_groups, NORM_EPS)
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<(Vec<ResnetBlock>, Option<Downsample>)>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(p: &Params, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let last = channels[channels.len() - 1];
        let mut down_blocks = Vec::new();
        for (i, &width) in channels.iter().enumerate() {
            let p = p.at("down_blocks").at(i);
            let mut resnets = Vec::new();
            for j in 0..config.layers_per_block {
                let n_in = if j > 0 { width } else { channels[i.saturating_sub(1)] };
                resnets.push(resnet(&p.at("resnets").at(j), n_in, width, config)?);
            }
            let coarser = i + 1 < channels.len();
            let downsampler = coarser.then(|| Downsample::new(&p.at("downsamplers.0"), width, 0)).transpose()?;
            down_blocks.push((resnets, downsampler));
        }
        Ok(Self {
            conv_in: Conv2d::new(&p.at("conv_in"), config.in_channels, channels[0], 3, 1, 1)?,
            down_blocks,
            mid_block: MidBlock::new(&p.at("mid_block"), config)?,
            conv_norm_out: GroupNorm::new(&p.at("conv_norm_out"), config.norm_num_groups, last, NORM_EPS)?,
            conv_out: Conv2d::new(&p.at("conv_out"), last, 2 * config.latent_channels, 3, 1, 1)?,
        })
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let mut x = self.conv_in.forward(images);
        for (resnets, downsampler) in &self.down_blocks {
            for resnet in resnets {
                x = resnet.forward(&x, None);
            }
            if let Some(downsampler) = downsampler {
                x = downsampler.forward(&x);
            }
        }
        let x = self.mid_block.forward(&x);
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x))
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(p: &Params, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut up_blocks = Vec::new();
        let mut coming = last;
        for (i, &width) in channels.iter().rev().enumerate() {
            let p = p.at("up_blocks").at(i);
            let mut resnets = Vec::new();
            for j in 0..=config.layers_per_block {
                resnets.push(resnet(&p.at("resnets").at(j), coming, width, config)?);
                coming = width;
            }
            let finer = i + 1 < channels.len();
            let upsampler = finer.then(|| Upsample::new(&p.at("upsamplers.0"), width)).transpose()?;
            up_blocks.push((resnets, upsampler));
        }
        Ok(Self {
            conv_in: Conv2d::new(&p.at("conv_in"), config.latent_channels, last, 3, 1, 1)?,
            mid_block: MidBlock::new(&p.at("mid_block"), config)?,
            up_blocks,
            conv_norm_out: GroupNorm::new(&p.at("conv_norm_out"), config.norm_num_groups, first, NORM_EPS)?,
            conv_out: Conv2d::new(&p.at("conv_out"), first, config.out_channels, 3, 1, 1)?,
        })
    }

    fn forward(&self, latents: &Tensor) -> Tensor {
        let mut x = self.mid_block.forward(&self.conv_in.forward(latents));
        for (resnets, upsampler) in &self.up_blocks {
            for resnet in resnets {
                x = resnet.forward(&x, None);
            }
            if let Some(upsampler) = upsampler {
                let (_, _, h, w) = x.size4().expect("a feature map is [n, c, h, w]");
                x = upsampler.forward(&x, [2 * h, 2 * w]);
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x))
    }
}

/// Two residual blocks, with single-head self-attention over the pixels between them.
#[derive(Debug)]
struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Option<PixelAttention>,
}

impl MidBlock {
    fn new(p: &Params, config: &VaeConfig) -> Result<Self> {
        let width = config.block_out_channels[config.block_out_channels.len() - 1];
        let attention = config
            .mid_block_add_attention
            .then(|| PixelAttention::new(&p.at("attentions.0"), width, config.norm_num_groups))
            .transpose()?;
        let resnet = |i: i64| resnet(&p.at("resnets").at(i), width, width, config);
        Ok(Self { resnets: [resnet(0)?, resnet(1)?], attention })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.resnets[0].forward(x, None);
        if let Some(attention) = &self.attention {
            x = attention.forward(&x);
        }
        self.resnets[1].forward(&x, None)
    }
}

#[derive(Debug)]
struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl PixelAttention {
    fn new(p: &Params, width: i64, groups: i64) -> Result<Self> {
        // The published SD 1 and SD 2 files have the names of diffusers before 0.17.
        let names = if p.at("to_q").has("weight") {
            ["to_q", "to_k", "to_v", "to_out.0"]
        } else {
            ["query", "key", "value", "proj_attn"]
        };
        let linear = |name: &str| Linear::new(&p.at(name), width, width, true);
        Ok(Self {
            group_norm: GroupNorm::new(&p.at("group_norm"), groups, width, NORM_EPS)?,
            to_q: linear(names[0])?,
            to_k: linear(names[1])?,
            to_v: linear(names[2])?,
            to_out: linear(names[3])?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let (n, c, h, w) = x.size4().expect("a feature map is [n, c, h, w]");
        let tokens = self.group_norm.forward(x).permute([0, 2, 3, 1]).reshape([n, h * w, c]);
        let (q, k, v) = (self.to_q.forward(&tokens), self.to_k.forward(&tokens), self.to_v.forward(&tokens));
        let mixed = self.to_out.forward(&multi_head_attention(&q, &k, &v, 1));
        mixed.view([n, h, w, c]).permute([0, 3, 1, 2]) + x
    }
}
