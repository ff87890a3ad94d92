//! Stable Diffusion's denoiser, diffusers' `UNet2DConditionModel` (Rombach et al., High-Resolution Image Synthesis
//! with Latent Diffusion Models, arXiv 2112.10752), for SD 1.x, SD 2.x and smaller UNets of the same architecture.

mod attention;
mod blocks;
mod config;
mod recompute;

use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use attention::Text;
pub(crate) use attention::multi_head_attention;
use blocks::{DownBlock, MidBlock, UpBlock};
pub(crate) use blocks::{Downsample, ResnetBlock, Upsample};
pub(crate) use config::MAX_STAGES;
pub use config::{DownBlockType, UNetConfig, UpBlockType};
pub use recompute::Recomputed;

use crate::error::{Error, Result};
use crate::layers::{Conv2d, GroupNorm, Linear};
use crate::params::{MemoryFormat, Params};
use crate::weights::{DIFFUSERS_STEM, load_folder};

/// Predicts the noise (or velocity) in latents from the timestep and the prompt embeddings.
#[derive(Debug)]
pub struct UNet {
    config: UNetConfig,
    frequencies: Tensor,
    conv_in: Conv2d,
    time_embedding: [Linear; 2],
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet {
    /// Builds the network from the parameters at `p`.
    pub fn new(p: &Params, config: &UNetConfig) -> Result<Self> {
        if let Some((key, message)) = config.fault() {
            return Err(Error::Input(format!("UNet configuration: `{key}` {message}")));
        }
        let channels = &config.block_out_channels;
        let time_width = config.time_embedding_width();
        let (kernel_in, kernel_out) = (config.conv_in_kernel, config.conv_out_kernel);
        let p_time = p.at("time_embedding");
        let conv_in = Conv2d::new(&p.at("conv_in"), config.in_channels, channels[0], kernel_in, 1, kernel_in / 2)?;
        Ok(Self {
            config: config.clone(),
            frequencies: frequencies(config)?.f_to_device(conv_in.weight.device())?,
            conv_in,
            time_embedding: [
                Linear::new(&p_time.at("linear_1"), channels[0], time_width, true)?,
                Linear::new(&p_time.at("linear_2"), time_width, time_width, true)?,
            ],
            down_blocks: (0..channels.len())
                .map(|i| DownBlock::new(&p.at("down_blocks").at(i), i, config))
                .collect::<Result<_>>()?,
            mid_block: MidBlock::new(&p.at("mid_block"), config)?,
            up_blocks: (0..channels.len())
                .map(|i| UpBlock::new(&p.at("up_blocks").at(i), i, config))
                .collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::new(
                &p.at("conv_norm_out"),
                config.norm_num_groups,
                channels[0],
                config.norm_eps,
            )?,
            conv_out: Conv2d::new(&p.at("conv_out"), channels[0], config.out_channels, kernel_out, 1, kernel_out / 2)?,
        })
    }

    /// Reads a `unet` folder: config.json and its weights, converted to `kind`.
    pub fn load(dir: &Path, device: Device, kind: Kind, format: MemoryFormat) -> Result<Self> {
        let config = UNetConfig::read(&dir.join("config.json"))?;
        let params = load_folder(dir, DIFFUSERS_STEM, device, kind)?.in_format(format);
        let unet = Self::new(&params, &config)?;
        params.finish()?;
        Ok(unet)
    }

    /// `latents` [n, in_channels, h, w], `timesteps` \[n\] (integers or f32) and prompt embeddings `text` [n, length,
    /// cross_attention_dim] to [n, out_channels, h, w]; all tensors on the network's device. Latents and prompt
    /// embeddings are converted to the type of the weights, which is also that of the result.
    pub fn forward(&self, latents: &Tensor, timesteps: &Tensor, text: &Tensor) -> Tensor {
        self.forward_text(latents, timesteps, &self.text(text))
    }

    /// As [`UNet::forward`], with the result of [`UNet::text`] or [`UNet::fixed_text`].
    pub fn forward_text(&self, latents: &Tensor, timesteps: &Tensor, text: &Text) -> Tensor {
        let state = self.stages().fold(self.head(latents, timesteps), |state, stage| self.stage(stage, state, text));
        state.maps.into_iter().next_back().expect("the last stage leaves the output")
    }

    /// Prompt embeddings [n, length, cross_attention_dim] as a call takes them.
    pub fn text(&self, embeddings: &Tensor) -> Text {
        Text::of_embeddings(embeddings.to_kind(self.kind()))
    }

    /// As [`UNet::text`], for several calls with the same prompts: the keys and values of cross-attention, which depend on
    /// the prompts alone, are computed here. They stay valid until weights or an adapter change.
    pub fn fixed_text(&self, embeddings: &Tensor) -> Text {
        let down = self.down_blocks.iter().flat_map(DownBlock::attentions);
        let up = self.up_blocks.iter().flat_map(UpBlock::attentions);
        Text::of_layers(&embeddings.to_kind(self.kind()), down.chain(self.mid_block.attentions()).chain(up))
    }

    /// The layers before all stages.
    fn head(&self, latents: &Tensor, timesteps: &Tensor) -> State {
        let time = self.embed_timesteps(timesteps).silu();
        State { time, maps: vec![self.conv_in.forward(&latents.to_kind(self.kind()))] }
    }

    /// The stages in order.
    fn stages(&self) -> impl Iterator<Item = Stage> + use<> {
        let (n_down, n_up) = (self.down_blocks.len(), self.up_blocks.len());
        (0..n_down).map(Stage::Down).chain([Stage::Mid]).chain((0..n_up).map(Stage::Up)).chain([Stage::Out])
    }

    /// Computes one stage.
    fn stage(&self, stage: Stage, state: State, text: &Text) -> State {
        let State { time, mut maps } = state;
        let last = "every stage leaves a feature map";
        match stage {
            Stage::Down(i) => self.down_blocks[i].forward(&mut maps, &time, text),
            Stage::Mid => maps.push(self.mid_block.forward(maps.last().expect(last), &time, text)),
            Stage::Up(i) => {
                let x = maps.pop().expect(last);
                let x = self.up_blocks[i].forward(x, &mut maps, &time, text);
                maps.push(x);
            }
            Stage::Out => {
                let x = maps.pop().expect(last);
                maps.push(self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)));
            }
        }
        State { time, maps }
    }

    /// Timesteps \[n\] to their embeddings [n, time width].
    fn embed_timesteps(&self, timesteps: &Tensor) -> Tensor {
        let angles = timesteps.to_kind(Kind::Float).unsqueeze(1) * &self.frequencies;
        let (sin, cos) = (angles.sin(), angles.cos());
        let waves = if self.config.flip_sin_to_cos { [cos, sin] } else { [sin, cos] };
        let mut embedded = Tensor::cat(&waves, 1);
        if self.config.block_out_channels[0] % 2 == 1 {
            embedded = embedded.constant_pad_nd([0, 1]);
        }
        let [linear_1, linear_2] = &self.time_embedding;
        linear_2.forward(&linear_1.forward(&embedded.to_kind(self.kind())).silu())
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The type of the weights.
    pub fn kind(&self) -> Kind {
        self.conv_in.weight.kind()
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.conv_in.weight.device()
    }

    /// Calls `f` with every linear layer, each of which contains its checkpoint name, always in the same order.
    pub fn linears_mut(&mut self, f: &mut dyn FnMut(&mut Linear)) {
        self.time_embedding.iter_mut().for_each(&mut *f);
        self.down_blocks.iter_mut().for_each(|block| block.linears_mut(f));
        self.mid_block.linears_mut(f);
        self.up_blocks.iter_mut().for_each(|block| block.linears_mut(f));
    }
}

/// A part of the network between two points where gradient checkpointing stores the tensors.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Down(usize),
    Mid,
    Up(usize),
    Out,
}

/// The tensors that are passed from stage to stage.
#[derive(Debug)]
struct State {
    /// The time embedding as the blocks use it, [n, width].
    time: Tensor,
    /// The feature maps that later stages need; the last one is the input of the next stage.
    maps: Vec<Tensor>,
}

impl State {
    fn shallow_clone(&self) -> Self {
        Self { time: self.time.shallow_clone(), maps: self.maps.iter().map(Tensor::shallow_clone).collect() }
    }

    /// The time embedding, then the feature maps.
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.time).chain(&self.maps)
    }
}

/// Angular frequencies of the sinusoids, [channels / 2], computed in f32 step by step as in `get_timestep_embedding`.
fn frequencies(config: &UNetConfig) -> Result<Tensor> {
    let half = config.block_out_channels[0] / 2;
    let ramp = Tensor::f_arange(half, (Kind::Float, Device::Cpu))?;
    Ok(ramp.f_mul_scalar(-(10_000f64.ln()))?.f_div_scalar(half as f64 - config.freq_shift)?.f_exp()?)
}
