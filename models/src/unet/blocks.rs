//! The stages of the UNet and the residual block that the VAE shares
//! (diffusers' `unet_2d_blocks.py`, `resnet.py`, `downsampling.py`, `upsampling.py`).

use tch::Tensor;

use super::attention::{Text, Transformer2D};
use super::config::{DownBlockType, UNetConfig, UpBlockType};
use crate::error::Result;
use crate::layers::{Conv2d, GroupNorm, Linear};
use crate::params::Params;

/// `ResnetBlock2D`: two convolutions with the time embedding between them, and a residual connection.
#[derive(Debug)]
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// Builds a block; `time_width` is none in a VAE.
    pub fn new(p: &Params, n_in: i64, n_out: i64, time_width: Option<i64>, groups: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            norm1: GroupNorm::new(&p.at("norm1"), groups, n_in, eps)?,
            conv1: Conv2d::new(&p.at("conv1"), n_in, n_out, 3, 1, 1)?,
            time_emb_proj: time_width
                .map(|width| Linear::new(&p.at("time_emb_proj"), width, n_out, true))
                .transpose()?,
            norm2: GroupNorm::new(&p.at("norm2"), groups, n_out, eps)?,
            conv2: Conv2d::new(&p.at("conv2"), n_out, n_out, 3, 1, 1)?,
            conv_shortcut: (n_in != n_out)
                .then(|| Conv2d::new(&p.at("conv_shortcut"), n_in, n_out, 1, 1, 0))
                .transpose()?,
        })
    }

    /// [n, in, h, w] to [n, out, h, w]; `time` is [n, width], after its activation.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Tensor {
        let mut hidden = self.conv1.forward(&self.norm1.forward_silu(x));
        if let (Some(proj), Some(time)) = (&self.time_emb_proj, time) {
            hidden += proj.forward(time).unsqueeze(-1).unsqueeze(-1);
        }
        let hidden = self.conv2.forward(&self.norm2.forward_silu(&hidden));
        match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x) + hidden,
            None => hidden + x,
        }
    }

    fn linears_mut(&mut self, f: &mut dyn FnMut(&mut Linear)) {
        self.time_emb_proj.iter_mut().for_each(f);
    }
}

/// `Downsample2D`: a stride-2 convolution.
#[derive(Debug)]
pub(crate) struct Downsample {
    conv: Conv2d,
    one_sided: bool,
}

impl Downsample {
    /// Builds the layer; `padding` 0 pads one row and column at the far side only.
    pub fn new(p: &Params, channels: i64, padding: i64) -> Result<Self> {
        Ok(Self { conv: Conv2d::new(&p.at("conv"), channels, channels, 3, 2, padding)?, one_sided: padding == 0 })
    }

    /// Halves height and width.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        if self.one_sided { self.conv.forward(&x.constant_pad_nd([0, 1, 0, 1])) } else { self.conv.forward(x) }
    }
}

/// `Upsample2D`: nearest neighbors, then a convolution.
#[derive(Debug)]
pub(crate) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub fn new(p: &Params, channels: i64) -> Result<Self> {
        Ok(Self { conv: Conv2d::new(&p.at("conv"), channels, channels, 3, 1, 1)? })
    }

    /// Upsamples to the height and width in `size`: twice the input's, except for odd sizes.
    pub fn forward(&self, x: &Tensor, size: [i64; 2]) -> Tensor {
        self.conv.forward(&x.upsample_nearest2d(size, None, None))
    }
}

/// `CrossAttnDownBlock2D` or `DownBlock2D`.
#[derive(Debug)]
pub(super) struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer2D>,
    downsampler: Option<Downsample>,
}

impl DownBlock {
    pub fn new(p: &Params, stage: usize, config: &UNetConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let time = Some(config.time_embedding_width());
        let mut block = Self { resnets: Vec::new(), attentions: Vec::new(), downsampler: None };
        for i in 0..config.layers_per_block[stage] {
            let n_in = if i > 0 { channels[stage] } else { channels[stage.saturating_sub(1)] };
            let (groups, eps) = (config.norm_num_groups, config.norm_eps);
            block.resnets.push(ResnetBlock::new(&p.at("resnets").at(i), n_in, channels[stage], time, groups, eps)?);
            if config.down_block_types[stage] == DownBlockType::CrossAttention {
                block.attentions.push(Transformer2D::new(&p.at("attentions").at(i), stage, config)?);
            }
        }
        if stage + 1 < channels.len() {
            let p = p.at("downsamplers.0");
            block.downsampler = Some(Downsample::new(&p, channels[stage], config.downsample_padding)?);
        }
        Ok(block)
    }

    /// Pushes the feature map after each layer onto `skips`; the last one is the input of the next stage.
    pub fn forward(&self, skips: &mut Vec<Tensor>, time: &Tensor, text: &Text) {
        let mut x = skips.last().expect("the first convolution's output comes first").shallow_clone();
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(&x, Some(time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(&x, text);
            }
            skips.push(x.shallow_clone());
        }
        if let Some(downsampler) = &self.downsampler {
            skips.push(downsampler.forward(&x));
        }
    }

    pub fn linears_mut(&mut self, f: &mut dyn FnMut(&mut Linear)) {
        visit(&mut self.resnets, &mut self.attentions, f);
    }

    pub fn attentions(&self) -> &[Transformer2D] {
        &self.attentions
    }
}

/// `UNetMidBlock2DCrossAttn`.
#[derive(Debug)]
pub(super) struct MidBlock {
    resnets: [ResnetBlock; 2],
    attentions: [Transformer2D; 1],
}

impl MidBlock {
    pub fn new(p: &Params, config: &UNetConfig) -> Result<Self> {
        let stage = config.block_out_channels.len() - 1;
        let width = config.block_out_channels[stage];
        let resnet = |i: i64| {
            let time = Some(config.time_embedding_width());
            ResnetBlock::new(&p.at("resnets").at(i), width, width, time, config.norm_num_groups, config.norm_eps)
        };
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attentions: [Transformer2D::new(&p.at("attentions.0"), stage, config)?],
        })
    }

    pub fn forward(&self, x: &Tensor, time: &Tensor, text: &Text) -> Tensor {
        let x = self.resnets[0].forward(x, Some(time));
        let x = self.attentions[0].forward(&x, text);
        self.resnets[1].forward(&x, Some(time))
    }

    pub fn linears_mut(&mut self, f: &mut dyn FnMut(&mut Linear)) {
        visit(&mut self.resnets, &mut self.attentions, f);
    }

    pub fn attentions(&self) -> &[Transformer2D] {
        &self.attentions
    }
}

/// `CrossAttnUpBlock2D` or `UpBlock2D`.
#[derive(Debug)]
pub(super) struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer2D>,
    upsampler: Option<Upsample>,
}

impl UpBlock {
    /// Builds block `index`, counted from the coarsest stage, as in the checkpoint.
    pub fn new(p: &Params, index: usize, config: &UNetConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let stage = channels.len() - 1 - index;
        let time = Some(config.time_embedding_width());
        let mut block = Self { resnets: Vec::new(), attentions: Vec::new(), upsampler: None };
        let n_layers = config.layers_per_block[stage] + 1;
        for i in 0..n_layers {
            // The last skip of a stage was its input on the way down, hence the finer stage's width.
            let skip = if i + 1 == n_layers { channels[stage.saturating_sub(1)] } else { channels[stage] };
            let coming = if i == 0 { channels[(stage + 1).min(channels.len() - 1)] } else { channels[stage] };
            let (groups, eps) = (config.norm_num_groups, config.norm_eps);
            let p_resnet = p.at("resnets").at(i);
            block.resnets.push(ResnetBlock::new(&p_resnet, coming + skip, channels[stage], time, groups, eps)?);
            if config.up_block_types[index] == UpBlockType::CrossAttention {
                block.attentions.push(Transformer2D::new(&p.at("attentions").at(i), stage, config)?);
            }
        }
        if stage > 0 {
            block.upsampler = Some(Upsample::new(&p.at("upsamplers.0"), channels[stage])?);
        }
        Ok(block)
    }

    /// Pops one of `skips` for each layer, and upsamples to the size of the next one.
    pub fn forward(&self, mut x: Tensor, skips: &mut Vec<Tensor>, time: &Tensor, text: &Text) -> Tensor {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let skip = skips.pop().expect("the way down left one feature map per layer");
            x = resnet.forward(&Tensor::cat(&[x, skip], 1), Some(time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(&x, text);
            }
        }
        match (&self.upsampler, skips.last()) {
            (Some(upsampler), Some(next)) => {
                let (_, _, h, w) = next.size4().expect("a feature map is [n, c, h, w]");
                upsampler.forward(&x, [h, w])
            }
            _ => x,
        }
    }

    pub fn linears_mut(&mut self, f: &mut dyn FnMut(&mut Linear)) {
        visit(&mut self.resnets, &mut self.attentions, f);
    }

    pub fn attentions(&self) -> &[Transformer2D] {
        &self.attentions
    }
}

fn visit(resnets: &mut [ResnetBlock], attentions: &mut [Transformer2D], f: &mut dyn FnMut(&mut Linear)) {
    for resnet in resnets {
        resnet.linears_mut(f);
    }
    for attention in attentions {
        attention.linears_mut(f);
    }
}
