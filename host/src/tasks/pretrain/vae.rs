//! The autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752), without its adversarial and perceptual losses:
//! losses on pixels, their differences and their opponent colors suffice for images this small.

use ambiguity_models::params::{NamedTensors, Params};
use ambiguity_models::vae::{Vae, VaeConfig};
use anyhow::Result;
use image::RgbImage;
use tch::{Device, Kind, Tensor, no_grad};

use super::Session;
use super::clip::write_weights;
use super::data::{N_PAIRS, Paintings, Split, augment};
use super::evaluate::{image_grid, psnr};
use super::parallel::Replicas;
use super::stage::{Model, Prepared, Pretraining, Stage, generator, weights_seed};
use crate::config::pretrain::VaeStage;
use crate::run::record::VaeMonitor;

/// Number of paintings in one call of an evaluation.
const CHUNK: usize = 72;
/// Number of paintings in the grid of originals and reconstructions.
const GRID: usize = 12;

/// The autoencoder in training.
pub(super) struct Reconstruction {
    seed: u64,
    threads: usize,
    config: VaeStage,
    vae_config: VaeConfig,
    replicas: Replicas<Vae>,
    paintings: Paintings,
    held_out: Paintings,
    /// Height and width of the latents.
    latent_side: i64,
}

/// One part of a batch.
struct Part {
    /// Images in [-1, 1].
    images: Tensor,
    /// Noise of the latents' reparametrization.
    noise: Tensor,
}

/// Returns an autoencoder with fresh weights, with its training paintings.
pub(super) fn open(session: &Session) -> Result<Pretraining<Reconstruction>> {
    let pretrain = session.pretrain();
    let config = &pretrain.vae;
    let vae_config = VaeConfig {
        in_channels: 3,
        out_channels: 3,
        block_out_channels: config.block_out_channels.clone(),
        layers_per_block: config.layers_per_block,
        latent_channels: config.latent_channels,
        norm_num_groups: config.norm_num_groups,
        sample_size: i64::from(pretrain.data.size),
        scaling_factor: 1.0,
        force_upcast: true,
        use_quant_conv: true,
        use_post_quant_conv: true,
        mid_block_add_attention: true,
    };
    // Each operation runs on one thread; the parts of a batch run in parallel instead.
    tch::set_num_threads(1);
    let params = Params::random(weights_seed(pretrain.seed, Stage::Vae), Device::Cpu)?;
    Vae::new(&params, &vae_config)?;
    let tensors = params.finish()?;
    let replicas = Replicas::new(config.shards, &tensors, |params| Ok(Vae::new(params, &vae_config)?))?;
    let prepared = Prepared::new(tensors, &config.schedule, None)?;
    let model = Reconstruction {
        seed: pretrain.seed,
        threads: session.context.threads,
        config: config.clone(),
        replicas,
        paintings: Paintings::render(session, Split::Training, config.per_pair)?,
        held_out: Paintings::render(session, Split::HeldOut, pretrain.data.held_out_per_pair)?,
        latent_side: i64::from(pretrain.data.size) / vae_config.downscale(),
        vae_config,
    };
    Ok(prepared.with(model, session))
}

impl Model for Reconstruction {
    type Monitor = VaeMonitor;

    const STAGE: Stage = Stage::Vae;

    fn backward(&mut self, step: u64) -> Result<f64> {
        let n_parts = self.replicas.len();
        let parts = (0..n_parts).map(|part| self.part(step, part, n_parts)).collect::<Result<Vec<_>>>()?;
        let config = &self.config;
        self.replicas.backward(self.threads, parts, |vae, Part { images, noise }| {
            let (mean, log_variance) = vae.encode(&images);
            let decoded = vae.decode(&(&mean + (&log_variance * 0.5).exp() * noise));
            let kl = (mean.square() + log_variance.exp() - 1.0 - &log_variance).mean(Kind::Float) * 0.5;
            Ok(loss(config, &decoded, &images) + kl * config.kl_weight)
        })
    }

    fn evaluate(&mut self, last: bool) -> Result<(VaeMonitor, Option<RgbImage>)> {
        // A quarter of the held-out paintings suffices before the last step.
        let n =
            if last { self.held_out.len() } else { (self.held_out.len() / 4).max(N_PAIRS.min(self.held_out.len())) };
        let mut decibels = Vec::new();
        let mut latents = Vec::new();
        no_grad(|| {
            for first in (0..n).step_by(CHUNK) {
                let images = self.held_out.range(first, CHUNK.min(n - first));
                let mean = self.replicas.first().encode(&(&images * 2.0 - 1.0)).0;
                decibels.push(psnr(&self.reconstruct(&mean), &images));
                latents.push(mean);
            }
        });
        let latent_std = Tensor::cat(&latents, 0).std(true).double_value(&[]);
        let psnr = Tensor::cat(&decibels, 0).mean(Kind::Float).double_value(&[]);
        Ok((VaeMonitor { psnr, latent_std }, Some(self.sheet()?)))
    }

    fn write(&self, session: &Session, weights: &NamedTensors, monitor: &VaeMonitor) -> Result<()> {
        let dir = session.diffusion_dir().join("vae");
        fs_err::create_dir_all(&dir)?;
        VaeConfig { scaling_factor: 1.0 / monitor.latent_std, ..self.vae_config.clone() }.save(&dir)?;
        write_weights(&dir.join("diffusion_pytorch_model.safetensors"), weights, session.pretrain().weights)
    }
}

/// Returns the weighted errors of pixels, of their differences and of their opponent colors.
fn loss(config: &VaeStage, decoded: &Tensor, images: &Tensor) -> Tensor {
    let error = decoded - images;
    let (height, width) = (error.size()[2], error.size()[3]);
    let across = error.narrow(3, 1, width - 1) - error.narrow(3, 0, width - 1);
    let down = error.narrow(2, 1, height - 1) - error.narrow(2, 0, height - 1);
    let opponent = error.narrow(1, 0, 2) - error.narrow(1, 1, 2);
    error.abs().mean(Kind::Float) * config.l1_weight
        + error.square().mean(Kind::Float) * config.l2_weight
        + (across.abs().mean(Kind::Float) + down.abs().mean(Kind::Float)) * config.gradient_weight
        + opponent.abs().mean(Kind::Float) * (2.0 * config.opponent_weight)
}

impl Reconstruction {
    /// Draws one part of a batch.
    fn part(&self, step: u64, part: usize, n_parts: usize) -> Result<Part> {
        let n = (self.config.batch_size / n_parts) as i64;
        let mut generator = generator(self.seed, Stage::Vae, step, part, n_parts)?;
        let indices = generator.integers(0, self.paintings.len() as i64, &[n])?;
        let images = augment(&self.paintings.at(&indices), 0, &mut generator)? * 2.0 - 1.0;
        let side = self.latent_side;
        let noise = generator.normal(&[n, self.config.latent_channels, side, side])?;
        Ok(Part { images, noise })
    }

    /// Returns images in [0, 1] from unscaled latents.
    fn reconstruct(&self, latents: &Tensor) -> Tensor {
        (self.replicas.first().decode(latents) / 2.0 + 0.5).clamp(0.0, 1.0)
    }

    /// Returns originals above their reconstructions, of pairs spread over styles and subjects.
    fn sheet(&self) -> Result<RgbImage> {
        let stride = (self.held_out.len() / GRID).max(1) | 1;
        let indices: Vec<i64> = (0..GRID).map(|i| ((i * stride) % self.held_out.len()) as i64).collect();
        let images = self.held_out.at(&Tensor::from_slice(&indices));
        let decoded = no_grad(|| self.reconstruct(&self.replicas.first().encode(&(&images * 2.0 - 1.0)).0));
        image_grid(&Tensor::cat(&[&images, &decoded], 0), GRID)
    }
}
