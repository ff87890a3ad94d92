//! The denoiser: epsilon prediction (Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239) on the
//! autoencoder's latents, with min-SNR weights (Hang et al., arXiv 2303.09556) and empty captions for classifier-free
//! guidance (Ho and Salimans, arXiv 2207.12598). The EMA of the weights is the shipped model.

use ambiguity_models::clip::{Clip, Tokenizer};
use ambiguity_models::files::write_atomic;
use ambiguity_models::params::{MemoryFormat, NamedTensors, Params};
use ambiguity_models::safetensors::read_safetensors;
use ambiguity_models::scheduler::{BetaSchedule, Ddim, LastStep, PredictionType, SchedulerConfig, TimestepSpacing};
use ambiguity_models::unet::{DownBlockType, UNet, UNetConfig, UpBlockType};
use ambiguity_models::vae::Vae;
use anyhow::{Context, Result};
use image::RgbImage;
use procedural_art::{STYLES, SUBJECTS};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::Generator;

use super::Session;
use super::clip::write_weights;
use super::data::{Captions, N_PAIRS, Paintings, Split, style_of, subject_of};
use super::evaluate::{ZeroShot, image_grid};
use super::parallel::{Replicas, over, parallel_map};
use super::stage::{Model, Prepared, Pretraining, Stage, generator, weights_seed};
use crate::config::pretrain::UNetStage;
use crate::interrupt::Interrupt;
use crate::policy::{Policy, PromptEmbeddings};
use crate::random::{Purpose, derive_seed};
use crate::rl::rollout::{GivenNoise, rollout};
use crate::run::record::UNetMonitor;

/// Number of images in one call of the VAE, and of rows in one call when sampling.
const CHUNK: i64 = 54;
/// Number of samples of each kind in the grid.
const GRID: i64 = 54;

/// The UNet in training.
pub(super) struct Denoising {
    seed: u64,
    threads: usize,
    config: UNetStage,
    unet_config: UNetConfig,
    replicas: Replicas<UNet>,
    /// The EMA of the UNet and the autoencoder, one of each for each part of a batch.
    samplers: Vec<Sampler>,
    /// The noise schedule of training.
    ddim: Ddim,
    weights: Tensor,
    data: Data,
    zero_shot: ZeroShot,
    clip: Clip,
    tokenizer: Tokenizer,
    interrupt: Interrupt,
}

struct Sampler {
    policy: Policy,
    vae: Vae,
}

/// Training data of the UNet, computed once.
struct Data {
    /// Scaled latents, [2n, 4, h, w]: those of the paintings, then those of the mirrored paintings.
    latents: Tensor,
    held_out: Tensor,
    /// Prompt embeddings of every caption, the text encoder's last hidden states, [captions, length, width].
    embeddings: Tensor,
    captions: Captions,
}

/// One part of a batch.
struct Part {
    noisy: Tensor,
    timesteps: Tensor,
    text: Tensor,
    noise: Tensor,
    weights: Tensor,
}

/// Returns a UNet with fresh weights, with its training latents.
pub(super) fn open(session: &Session) -> Result<Pretraining<Denoising>> {
    // Each operation runs on one thread; the parts of a batch run in parallel instead.
    tch::set_num_threads(1);
    let pretrain = session.pretrain();
    let config = &pretrain.unet;
    let clip_dir = session.clip_dir();
    let vae_dir = session.diffusion_dir().join("vae");
    let missing =
        |stage: &str| format!("the UNet needs the {stage} of the same folder: run `host pretrain {stage}` first");
    let clip = Clip::load(&clip_dir, Device::Cpu, Kind::Float).with_context(|| missing("clip"))?;
    let tokenizer = Tokenizer::load(&clip_dir)?;
    let vae =
        || Vae::load(&vae_dir, Device::Cpu, Kind::Float, MemoryFormat::Contiguous).with_context(|| missing("vae"));
    let mut vaes = (0..config.shards).map(|_| vae()).collect::<Result<Vec<_>>>()?;
    let unet_config = network(session, vaes[0].config().latent_channels, clip.config.text_config.hidden_size)?;
    let params = Params::random(weights_seed(pretrain.seed, Stage::UNet), Device::Cpu)?;
    UNet::new(&params, &unet_config)?;
    let tensors = params.finish()?;
    let build = |params: &Params| Ok(UNet::new(params, &unet_config)?);
    let replicas = Replicas::new(config.shards, &tensors, build)?;
    let prepared = Prepared::new(tensors, &config.schedule, Some(config.ema_decay))?;
    let averages = prepared.averages().context("the UNet is trained with an EMA")?;
    let data = Data::new(session, &clip, &tokenizer, &mut vaes)?;
    let scheduler = scheduler(config);
    let samplers = vaes.into_iter().map(|vae| -> Result<Sampler> {
        let policy = Policy {
            unet: build(&over(&averages))?,
            prompts: data.prompt_embeddings(),
            ddim: Ddim::new(&scheduler, config.samples.steps)?,
            guidance_scale: config.samples.guidance,
            eta: 0.0,
            last_step: LastStep::FinalAlpha,
        };
        Ok(Sampler { policy, vae })
    });
    let ddim = Ddim::new(&scheduler, config.samples.steps)?;
    let model = Denoising {
        seed: pretrain.seed,
        threads: session.context.threads,
        config: config.clone(),
        replicas,
        samplers: samplers.collect::<Result<_>>()?,
        weights: min_snr(&ddim, config.snr_gamma),
        ddim,
        data,
        zero_shot: ZeroShot::new(&clip, &tokenizer),
        unet_config,
        clip,
        tokenizer,
        interrupt: session.context.interrupt.clone(),
    };
    Ok(prepared.with(model, session))
}

/// Returns the UNet's configuration, that of Stable Diffusion 2 except for the sizes.
fn network(session: &Session, latent_channels: i64, text_width: i64) -> Result<UNetConfig> {
    let config = &session.pretrain().unet;
    let kind = |name: &String| -> Result<DownBlockType> {
        serde_json::from_value(json!(name)).with_context(|| {
            format!(
                "`pretrain.unet.down_block_types` contains \"{name}\", known are DownBlock2D and CrossAttnDownBlock2D"
            )
        })
    };
    let down = config.down_block_types.iter().map(kind).collect::<Result<Vec<_>>>()?;
    let up = down.iter().rev().map(|kind| match kind {
        DownBlockType::CrossAttention => UpBlockType::CrossAttention,
        DownBlockType::Plain => UpBlockType::Plain,
    });
    let stages = down.len();
    let halvings = session.pretrain().vae.block_out_channels.len() as u32 - 1;
    Ok(UNetConfig {
        sample_size: Some(i64::from(session.pretrain().data.size >> halvings)),
        in_channels: latent_channels,
        out_channels: latent_channels,
        block_out_channels: config.block_out_channels.clone(),
        up_block_types: up.collect(),
        down_block_types: down,
        layers_per_block: vec![config.layers_per_block; stages],
        transformer_layers_per_block: vec![1; stages],
        attention_heads: config.attention_heads.clone(),
        cross_attention_dim: text_width,
        use_linear_projection: true,
        upcast_attention: false,
        norm_num_groups: config.norm_num_groups,
        norm_eps: 1e-5,
        downsample_padding: 1,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        time_embedding_dim: None,
        conv_in_kernel: 3,
        conv_out_kernel: 3,
    })
}

/// Returns the configuration of Stable Diffusion 2's scheduler, for DDIM.
fn scheduler(config: &UNetStage) -> SchedulerConfig {
    SchedulerConfig {
        num_train_timesteps: config.noise.train_timesteps as i64,
        beta_start: config.noise.beta_start,
        beta_end: config.noise.beta_end,
        beta_schedule: BetaSchedule::ScaledLinear,
        trained_betas: None,
        clip_sample: false,
        clip_sample_range: 1.0,
        set_alpha_to_one: false,
        steps_offset: 1,
        prediction_type: PredictionType::Epsilon,
        timestep_spacing: TimestepSpacing::Leading,
        rescale_betas_zero_snr: false,
    }
}

/// Returns min(SNR, γ) / SNR of every timestep, the weights of the epsilon prediction loss.
fn min_snr(ddim: &Ddim, gamma: f64) -> Tensor {
    let weight = |&alpha: &f64| {
        let snr = alpha / (1.0 - alpha);
        (snr.min(gamma) / snr) as f32
    };
    Tensor::from_slice(&ddim.alphas_cumprod().iter().map(weight).collect::<Vec<f32>>())
}

impl Data {
    fn new(session: &Session, clip: &Clip, tokenizer: &Tokenizer, vaes: &mut [Vae]) -> Result<Self> {
        let paintings = Paintings::render(session, Split::Training, session.pretrain().unet.per_pair)?;
        let latents = encode(session, &paintings, vaes, true)?;
        let paintings = Paintings::render(session, Split::HeldOut, session.pretrain().data.held_out_per_pair.min(2))?;
        let held_out = encode(session, &paintings, vaes, false)?;
        let captions = Captions::new(tokenizer)?;
        let embeddings = no_grad(|| {
            let chunks = captions.ids.split(512, 0);
            Tensor::cat(&chunks.iter().map(|ids| clip.text.hidden_states(ids).0).collect::<Vec<_>>(), 0)
        });
        Ok(Self { latents, held_out, embeddings, captions })
    }

    /// Draws a caption of one of the four kinds, by their probabilities.
    fn caption(&self, config: &UNetStage, pair: usize, draws: &[f32]) -> i64 {
        let (kind, way) = (f64::from(draws[0]), f64::from(draws[1]));
        let subject_from = config.null_share;
        let style_from = subject_from + config.subject_share;
        let full_from = style_from + config.style_share;
        match kind {
            kind if kind < subject_from => self.captions.null(),
            kind if kind < style_from => self.captions.subject(subject_of(pair), way),
            kind if kind < full_from => self.captions.style(style_of(pair), way),
            _ => self.captions.full(pair, way),
        }
    }

    /// Returns all captions as prompts: the empty one, the negative prompt of guidance, and then all others by row.
    fn prompt_embeddings(&self) -> PromptEmbeddings {
        let null = self.embeddings.narrow(0, self.captions.null(), 1);
        PromptEmbeddings::new(Tensor::cat(&[&null, &self.embeddings], 0))
    }

    fn text(&self, rows: &[i64]) -> Tensor {
        self.embeddings.index_select(0, &Tensor::from_slice(rows))
    }
}

/// Returns the scaled means of the latents; with `mirrored`, those of the mirrored paintings follow.
fn encode(session: &Session, paintings: &Paintings, vaes: &mut [Vae], mirrored: bool) -> Result<Tensor> {
    let n = paintings.len() as i64;
    let bar = session.context.progress.bar("latents", if mirrored { 2 * n } else { n } as u64, "images");
    let mut latents = Vec::new();
    for mirror in if mirrored { vec![false, true] } else { vec![false] } {
        for first in (0..n).step_by(CHUNK as usize * vaes.len()) {
            let part = |i: i64| (first + i * CHUNK, CHUNK.min(n - first - i * CHUNK));
            let parts = (0..vaes.len() as i64).map(part).filter(|&(_, count)| count > 0);
            let batches: Vec<Tensor> = parts.map(|(at, count)| paintings.range(at as usize, count as usize)).collect();
            latents.extend(parallel_map(session.context.threads, vaes, batches, |vae, images| {
                let images = if mirror { images.flip([3]) } else { images };
                no_grad(|| vae.encode(&(images * 2.0 - 1.0)).0 * vae.config().scaling_factor)
            }));
            bar.inc((CHUNK * vaes.len() as i64).min(n - first) as u64);
            session.context.interrupt.check("nothing was trained since the last checkpoint")?;
        }
    }
    Ok(Tensor::cat(&latents, 0))
}

impl Model for Denoising {
    type Monitor = UNetMonitor;

    const STAGE: Stage = Stage::UNet;

    fn backward(&mut self, step: u64) -> Result<f64> {
        let n_parts = self.replicas.len();
        let parts = (0..n_parts).map(|part| self.part(step, part, n_parts)).collect::<Result<Vec<_>>>()?;
        self.replicas.backward(self.threads, parts, |unet, part| {
            let output = unet.forward(&part.noisy, &part.timesteps, &part.text);
            let errors = (output - part.noise).square().mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
            Ok((errors * part.weights).mean(Kind::Float))
        })
    }

    fn evaluate(&mut self, last: bool) -> Result<(UNetMonitor, Option<RgbImage>)> {
        let samples = &self.config.samples;
        let (styled_samples, plain_samples) = match last {
            true => (samples.styled, samples.plain),
            false => (samples.styled_on_the_way, samples.plain_on_the_way),
        };
        let held_out_loss = self.held_out_loss()?;
        let (styled, styles, subjects) = self.styled(styled_samples)?;
        let (plain, plain_subjects) = self.plain(plain_samples)?;
        let head = |images: &Tensor| images.narrow(0, 0, GRID.min(images.size()[0]));
        let sheet = image_grid(&Tensor::cat(&[head(&styled), head(&plain)], 0), STYLES.len())?;
        let monitor = UNetMonitor {
            held_out_loss,
            styled_samples,
            styled_style_accuracy: self.zero_shot.styles(&self.clip, &styled, &styles)?,
            styled_subject_accuracy: self.zero_shot.subjects(&self.clip, &styled, &subjects)?,
            plain_samples,
            plain_subject_accuracy: self.zero_shot.subjects(&self.clip, &plain, &plain_subjects)?,
        };
        Ok((monitor, Some(sheet)))
    }

    /// Writes the pipeline's folder in the layout of diffusers.
    fn write(&self, session: &Session, weights: &NamedTensors, _: &UNetMonitor) -> Result<()> {
        let dir = session.diffusion_dir();
        let kind = session.pretrain().weights;
        for part in ["scheduler", "text_encoder", "tokenizer", "unet"] {
            fs_err::create_dir_all(dir.join(part))?;
        }
        self.ddim.config().save(&dir.join("scheduler"))?;
        self.clip.config.text_config.write(&dir.join("text_encoder/config.json"))?;
        let clip = read_safetensors(&session.clip_dir().join("model.safetensors"))?;
        let text = clip.into_iter().filter(|(name, _)| name.starts_with("text_model.")).collect();
        write_weights(&dir.join("text_encoder/model.safetensors"), &text, kind)?;
        self.tokenizer.save(&dir.join("tokenizer"))?;
        self.unet_config.save(&dir.join("unet"))?;
        write_weights(&dir.join("unet/diffusion_pytorch_model.safetensors"), weights, kind)?;
        let version = &self.unet_config.to_json()["_diffusers_version"];
        let index = serde_json::to_string_pretty(&model_index(version))? + "\n";
        Ok(write_atomic(&dir.join("model_index.json"), index.as_bytes())?)
    }
}

/// Draws one of `total` timesteps from each of `n` equal ranges, in random order: less variance than independent draws.
fn spread_timesteps(generator: &mut Generator, n: i64, total: usize) -> Result<Tensor> {
    let order = generator.permutation(n)?.to_kind(Kind::Float);
    let within = generator.uniform(&[n])?;
    let timesteps = (order + within) * (total as f64 / n as f64);
    Ok(timesteps.to_kind(Kind::Int64).clamp(0, total as i64 - 1))
}

impl Denoising {
    /// Draws one part of a batch.
    fn part(&self, step: u64, part: usize, n_parts: usize) -> Result<Part> {
        let n = (self.config.batch_size / n_parts) as i64;
        let mut generator = generator(self.seed, Stage::UNet, step, part, n_parts)?;
        let indices = generator.integers(0, self.data.latents.size()[0], &[n])?;
        let draws = Vec::<f32>::try_from(generator.uniform(&[2 * n])?)?;
        let pairs = Vec::<i64>::try_from(indices.remainder(N_PAIRS as i64))?;
        let captions = pairs.iter().zip(draws.chunks(2));
        let rows: Vec<i64> =
            captions.map(|(&pair, draws)| self.data.caption(&self.config, pair as usize, draws)).collect();
        let timesteps = spread_timesteps(&mut generator, n, self.config.noise.train_timesteps)?;
        let latents = self.data.latents.index_select(0, &indices);
        let offset = generator.normal(&[n, latents.size()[1], 1, 1])? * self.config.offset_noise;
        let noise = generator.normal(&latents.size())? + offset;
        Ok(Part {
            noisy: self.ddim.add_noise(&latents, &noise, &timesteps),
            text: self.data.text(&rows),
            weights: self.weights.index_select(0, &timesteps),
            timesteps,
            noise,
        })
    }

    /// Returns the loss of the EMA on held-out paintings with full captions, with the same noise each time.
    fn held_out_loss(&mut self) -> Result<f64> {
        let mut generator = Generator::cpu(derive_seed(self.seed, Stage::UNet as u64, 0, Purpose::Monitor))?;
        let latents = &self.data.held_out;
        let n = latents.size()[0];
        let timesteps = spread_timesteps(&mut generator, n, self.config.noise.train_timesteps)?;
        let noise = generator.normal(&latents.size())?;
        let noisy = self.ddim.add_noise(latents, &noise, &timesteps);
        let rows: Vec<i64> = (0..n as usize).map(|i| self.data.captions.full(i % N_PAIRS, 0.0)).collect();
        let text = self.data.text(&rows);
        let weights = self.weights.index_select(0, &timesteps);
        let mut sum = 0.0;
        for first in (0..n).step_by(CHUNK as usize) {
            let part = |tensor: &Tensor| tensor.narrow(0, first, CHUNK.min(n - first));
            let output =
                no_grad(|| self.samplers[0].policy.unet.forward(&part(&noisy), &part(&timesteps), &part(&text)));
            let errors = (output - part(&noise)).square().mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
            sum += (errors * part(&weights)).sum(Kind::Float).double_value(&[]);
        }
        Ok(sum / n as f64)
    }

    /// Samples with a style and a subject; returns images, their styles and their subjects.
    fn styled(&mut self, n: usize) -> Result<(Tensor, Vec<usize>, Vec<usize>)> {
        let styles: Vec<usize> = (0..n).map(|i| i % STYLES.len()).collect();
        let subjects: Vec<usize> = (0..n).map(|i| (i + i / STYLES.len()) % SUBJECTS.len()).collect();
        let pairs = styles.iter().zip(&subjects).map(|(style, subject)| style * SUBJECTS.len() + subject);
        let rows: Vec<i64> = pairs.map(|pair| self.data.captions.full(pair, 0.0)).collect();
        Ok((self.sample(&rows, 0)?, styles, subjects))
    }

    /// Samples with a subject alone; returns images and their subjects.
    fn plain(&mut self, n: usize) -> Result<(Tensor, Vec<usize>)> {
        let subjects: Vec<usize> = (0..n).map(|i| i % SUBJECTS.len()).collect();
        let rows: Vec<i64> = subjects.iter().map(|&subject| self.data.captions.subject(subject, 0.0)).collect();
        Ok((self.sample(&rows, 1)?, subjects))
    }

    /// Samples images of the captions in `rows`, f32 [n, 3, s, s] in [0, 1], by DDIM at eta 0 with guidance.
    fn sample(&mut self, rows: &[i64], noise_idx: u64) -> Result<Tensor> {
        let seed = derive_seed(self.seed, Stage::UNet as u64, noise_idx, Purpose::Latents);
        let mut shape = self.data.latents.size();
        shape[0] = rows.len() as i64;
        let noise = Generator::cpu(seed)?.normal(&shape)?;
        // Prompt 0 is the empty one, see `Data::prompt_embeddings`.
        let prompts: Vec<usize> = rows.iter().map(|&row| 1 + row as usize).collect();
        let chunks = prompts.chunks(CHUNK as usize).map(<[usize]>::to_vec);
        let mut batches = noise.split(CHUNK, 0).into_iter().zip(chunks).collect::<Vec<_>>().into_iter();
        let mut images = Vec::new();
        while batches.len() > 0 {
            let group = batches.by_ref().take(self.samplers.len()).collect();
            let sampled = parallel_map(self.threads, &mut self.samplers, group, |sampler, (noise, prompts)| {
                let calls = prompts.len() * sampler.policy.rows_per_sample();
                let mut noise = GivenNoise::new(noise);
                let done = &mut |_| {};
                let trajectories = rollout(&sampler.policy, &prompts, &mut noise, calls, &self.interrupt, done)?;
                let images = no_grad(|| sampler.vae.decode_latents(&trajectories.last(), CHUNK));
                Ok((images / 2.0 + 0.5).clamp(0.0, 1.0))
            });
            images.extend(sampled.into_iter().collect::<Result<Vec<_>>>()?);
        }
        Ok(Tensor::cat(&images, 0))
    }
}

/// Returns the content of `model_index.json`, for diffusers.
fn model_index(version: &Value) -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": version,
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pretrain::PretrainFile;

    #[test]
    fn min_snr_weights_are_1_at_low_snr_and_gamma_over_snr_elsewhere() {
        let config = PretrainFile::resolve(&[]).unwrap().pretrain.unet;
        let ddim = Ddim::new(&scheduler(&config), 30).unwrap();
        let weights = Vec::<f32>::try_from(min_snr(&ddim, 5.0)).unwrap();
        assert_eq!(weights[999], 1.0);
        let alpha = ddim.alphas_cumprod()[0];
        assert!((f64::from(weights[0]) - 5.0 * (1.0 - alpha) / alpha).abs() < 1e-6);
        assert!(weights.windows(2).all(|pair| pair[0] <= pair[1]));
    }

    #[test]
    fn timesteps_are_one_out_of_each_range() {
        let mut generator = Generator::cpu(3).unwrap();
        let mut ranges: Vec<i64> = Vec::<i64>::try_from(spread_timesteps(&mut generator, 8, 1000).unwrap())
            .unwrap()
            .iter()
            .map(|t| t / 125)
            .collect();
        assert_ne!(ranges, [0, 1, 2, 3, 4, 5, 6, 7]);
        ranges.sort_unstable();
        assert_eq!(ranges, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
