//! The cost of a run before it starts: memory from the configuration, memory and time from one call of each part.

use std::path::Path;
use std::time::Instant;

use ambiguity_models::count::of_folder;
use ambiguity_models::lora::Lora;
use ambiguity_models::pipeline::Pipeline;
use ambiguity_models::scheduler::{Ddim, LastStep};
use ambiguity_models::vae::VaeConfig;
use anyhow::{Result, bail};
use serde::Serialize;
use tch::{Device, no_grad};
use torch_ext::{AdamW, AdamWConfig};

use super::{DECODE_SLICE, LEARNING_RATE};
use crate::config::FineTuneConfig;
use crate::interrupt::{Interrupt, keeping};
use crate::memory;
use crate::optim::StepGuard;
use crate::policy::{Policy, PromptEmbeddings};
use crate::processes::Processes;
use crate::rl::objective::{Ddpo, Hooks};
use crate::rl::rollout::{SeededNoise, rollout};
use crate::text::gibibytes;
use crate::zoo::load_pipeline;

/// The work of an epoch, and the minimum memory.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Number of images.
    pub samples_per_epoch: usize,
    /// Number of optimizer steps.
    pub optimizer_steps_per_epoch: usize,
    /// Number of UNet rows forward, the unconditional rows of guidance included.
    pub unet_rows_sampled_per_epoch: usize,
    /// Number of UNet rows forward and backward, the unconditional rows of guidance included.
    pub unet_rows_trained_per_epoch: usize,
    /// Memory in use all the time; the activations of a UNet call come on top.
    pub memory: Memory,
}

/// Memory in use all the time, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// UNet, VAE and text encoder; the text encoder is dropped once the prompts are encoded.
    pub frozen_weights: u64,
    /// The LoRA, its gradient, and AdamW's two moments.
    pub trained_weights: u64,
    /// The latents of an epoch's trajectories.
    pub trajectories: u64,
}

impl Memory {
    /// Returns the sum.
    pub fn total(&self) -> u64 {
        self.frozen_weights + self.trained_weights + self.trajectories
    }
}

/// The measured cost of one call of each part.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Seconds of one sampling step of one image, guidance included.
    pub sampled_step_seconds: f64,
    /// Seconds of one training step of one image, guidance included.
    pub trained_step_seconds: f64,
    /// Seconds to decode one image.
    pub decode_seconds: f64,
    /// Seconds of an epoch without the plugins' own time.
    pub epoch_seconds: f64,
    /// Peak memory in bytes: of the process, or on a GPU of what libtorch reserved there; none where the system does not
    /// report it.
    pub peak_bytes: Option<u64>,
}

impl Plan {
    /// Counts from the configuration; reads only the model's configuration files.
    pub fn new(config: &FineTuneConfig, folder: &Path) -> Result<Self> {
        let (mut frozen, mut trained) = (0, 0);
        for part in of_folder(folder, &config.lora.spec())? {
            let dtype = if part.name == "vae" { config.model.vae_dtype } else { config.model.dtype };
            frozen += (part.parameters - part.trainable) as u64 * dtype.bytes();
            trained += part.trainable as u64 * 4 * 4;
        }
        let samples = config.sample.per_epoch();
        let guided = if config.sample.guidance > 1.0 { 2 } else { 1 };
        let vae = VaeConfig::read(&folder.join("vae/config.json"))?;
        let side = |pixels: u32| u64::from(pixels) / vae.downscale() as u64;
        let latent = side(config.sample.width) * side(config.sample.height) * vae.latent_channels as u64 * 4;
        let updates = samples / (config.train.batch_size * config.train.accumulation_steps);
        Ok(Self {
            samples_per_epoch: samples,
            optimizer_steps_per_epoch: updates * config.train.inner_epochs,
            unet_rows_sampled_per_epoch: samples * config.sample.steps * guided,
            unet_rows_trained_per_epoch: samples * config.n_train_timesteps() * guided * config.train.inner_epochs,
            memory: Memory {
                frozen_weights: frozen,
                trained_weights: trained,
                trajectories: (samples * (config.sample.steps + 1)) as u64 * latent,
            },
        })
    }

    /// Refuses, with the numbers, a run that cannot fit into the memory of the machine or of the GPU.
    pub fn check_fits(&self, device: Device) -> Result<()> {
        let Some(available) = memory::available(device) else { return Ok(()) };
        let Memory { frozen_weights, trained_weights, trajectories } = self.memory;
        if self.memory.total() > available {
            bail!(
                "this needs at least {} (frozen weights {}, LoRA and optimizer {}, trajectories {}), {} are free: use \
                 model.dtype = \"bf16\", a smaller model or fewer samples per epoch",
                gibibytes(self.memory.total()),
                gibibytes(frozen_weights),
                gibibytes(trained_weights),
                gibibytes(trajectories),
                gibibytes(available)
            );
        }
        Ok(())
    }
}

/// Measures one call of each part, with the run's own batch sizes.
pub fn measure(config: &FineTuneConfig, folder: &Path, interrupt: &Interrupt) -> Result<Measured> {
    try_parts(config, folder, interrupt).map_err(|error| keeping(error, "nothing was started"))
}

fn try_parts(config: &FineTuneConfig, folder: &Path, interrupt: &Interrupt) -> Result<Measured> {
    let device = torch_ext::cuda::device(&config.run.device)?;
    config.cuda.apply(device)?;
    let pipeline = load_pipeline(folder, &config.model.load_options(device))?;
    let [h, w] = pipeline.latent_size(i64::from(config.sample.width), i64::from(config.sample.height))?;
    let shape = [pipeline.unet.config().in_channels, h, w];
    let prompts = PromptEmbeddings::encode(&pipeline, &[String::new(), "painting of a woman".to_owned()])?;
    let Pipeline { mut unet, vae, scheduler, text_encoder, .. } = pipeline;
    drop(text_encoder);
    let lora = Lora::attach(&mut unet, &config.lora.spec(), 0)?;
    let mut policy = Policy {
        unet,
        prompts,
        // Two steps, of which the second one is measured: the first one warms up.
        ddim: Ddim::new(&scheduler, 2)?,
        guidance_scale: config.sample.guidance,
        eta: config.sample.eta,
        last_step: LastStep::Stochastic,
    };
    let n = policy.samples_per_call(config.sample.micro_batch).min(config.sample.per_epoch());
    let mut noise = SeededNoise::of_epoch(shape, 0, 0, 0..n);
    let mut times = vec![];
    let mut done = |_| times.push(now(device));
    let trajectories = rollout(&policy, &vec![1; n], &mut noise, config.sample.micro_batch, interrupt, &mut done)?;
    let sampled_step_seconds = (times[1] - times[0]).as_secs_f64() / n as f64;

    let clock = now(device);
    let decoded = n.min(DECODE_SLICE as usize);
    drop(no_grad(|| vae.decode_latents(&trajectories.last().narrow(0, 0, decoded as i64), DECODE_SLICE)));
    let decode_seconds = (now(device) - clock).as_secs_f64() / decoded as f64;

    let mut train = config.train.clone();
    (train.inner_epochs, train.accumulation_steps, train.batch_size) = (1, 1, n);
    let optimizer = AdamWConfig { learning_rate: 0.0, beta1: 0.9, beta2: 0.99, weight_decay: 0.0, epsilon: 1e-8 };
    let mut optimizer = AdamW::new(lora.parameters(), optimizer)?;
    let processes = &Processes::default();
    let mut ddpo = Ddpo { policy: &mut policy, lora: &lora, config: &train, n_timesteps: 1, processes };
    let mut hooks = Hooks { interrupt, done: &mut |_| {}, after_step: &mut |_| Ok(()) };
    let mut guard = StepGuard::new(LEARNING_RATE);
    let clock = now(device);
    ddpo.train_epoch(&mut optimizer, &mut guard, &trajectories, &vec![Some(1.0); n], (0, 0), &mut hooks)?;
    let trained_step_seconds = (now(device) - clock).as_secs_f64() / n as f64;

    let steps = config.n_train_timesteps() * config.train.inner_epochs;
    let of_one =
        config.sample.steps as f64 * sampled_step_seconds + steps as f64 * trained_step_seconds + decode_seconds;
    Ok(Measured {
        sampled_step_seconds,
        trained_step_seconds,
        decode_seconds,
        epoch_seconds: of_one * config.sample.per_epoch() as f64,
        peak_bytes: memory::peak(device),
    })
}

/// The time once the device has done all that was launched on it.
fn now(device: Device) -> Instant {
    torch_ext::cuda::synchronize(device);
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo::home::home;

    #[test]
    fn what_cannot_fit_is_refused_with_its_numbers() {
        let folder = home().expect("the workspace").join("models/weights/tiny-art/diffusion");
        let mut config = FineTuneConfig::resolve("tiny-art", &[]).expect("the preset");
        let plan = Plan::new(&config, &folder).expect("it counts");
        assert_eq!(plan.memory.frozen_weights, 5_262_363 * 4);
        assert_eq!(plan.memory.trained_weights, 46_592 * 16);
        plan.check_fits(Device::Cpu).expect("the small model fits");
        config.sample.batches_per_epoch = 1 << 40;
        let message = Plan::new(&config, &folder).expect("it counts").check_fits(Device::Cpu).expect_err("it is huge");
        assert!(message.to_string().contains("GiB are free: use model.dtype"), "{message}");
    }
}
