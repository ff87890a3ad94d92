//! What a run will take, before it is begun: memory out of the configuration, memory and time out of one try.

use std::path::Path;
use std::time::Instant;

use ambiguity_models::count::of_folder;
use ambiguity_models::lora::Lora;
use ambiguity_models::pipeline::Pipeline;
use ambiguity_models::scheduler::{Ddim, LastStep};
use ambiguity_models::vae::VaeConfig;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use tch::{Device, no_grad};
use torch_ext::{AdamW, AdamWConfig};

use super::DECODE_SLICE;
use crate::config::{Config, Dtype};
use crate::ddpo::{Ddpo, Hooks};
use crate::interrupt::{Interrupt, Interrupted};
use crate::sampler::{Denoiser, Sampler, SeededNoise, TextStates};

/// What an epoch consists of, and what must be in memory at least.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Images.
    pub samples_per_epoch: usize,
    /// Optimizer steps.
    pub optimizer_steps_per_epoch: usize,
    /// UNet rows forward, those of guidance included.
    pub unet_rows_sampled_per_epoch: usize,
    /// UNet rows forward and backward, those of guidance included.
    pub unet_rows_trained_per_epoch: usize,
    /// What is held all the time, bytes; the feature maps of a UNet call come on top.
    pub memory: Memory,
}

/// What is held all the time, bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// UNet, VAE and text encoder, the last of which is dropped once the prompts are encoded.
    pub frozen_weights: u64,
    /// The LoRA, its gradient, and AdamW's two moments.
    pub trained_weights: u64,
    /// The latents of an epoch's trajectories.
    pub trajectories: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.frozen_weights + self.trained_weights + self.trajectories
    }
}

/// What one try of each part took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Seconds of one sampled step of one image, guidance included.
    pub sampled_step_seconds: f64,
    /// Seconds of one trained step of one image, guidance included.
    pub trained_step_seconds: f64,
    /// Seconds to decode one image.
    pub decode_seconds: f64,
    /// Seconds of an epoch, the plugins' own time not counted.
    pub epoch_seconds: f64,
    /// The most memory that the process had, bytes; none where the system does not tell.
    pub peak_bytes: Option<u64>,
}

impl Plan {
    /// Counts; reads only the model's configuration files.
    pub fn new(config: &Config, folder: &Path) -> Result<Self> {
        let weight_bytes = match config.model.dtype {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        };
        let (mut frozen, mut trained) = (0, 0);
        for part in of_folder(folder, &config.lora.spec())? {
            // The VAE is always f32.
            let bytes = if part.name == "vae" { 4 } else { weight_bytes };
            frozen += (part.parameters - part.trainable) as u64 * bytes;
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

    /// Refuses, with the numbers, what cannot fit into the memory of the machine or of the GPU.
    pub fn check_fits(&self, device: Device) -> Result<()> {
        let Some(available) = available_memory(device) else { return Ok(()) };
        let Memory { frozen_weights, trained_weights, trajectories } = self.memory;
        if self.memory.total() > available {
            bail!(
                "this needs at least {} (frozen weights {}, LoRA and optimizer {}, trajectories {}), {} are free: take \
                 model.dtype = \"bf16\", a smaller model or fewer samples an epoch",
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

/// Tries each part once, with the run's own sizes of calls.
pub fn measure(config: &Config, folder: &Path, interrupt: &Interrupt) -> Result<Measured> {
    let device = torch_ext::cuda::device(&config.run.device)?;
    let mut pipeline = Pipeline::load(folder, device, config.model.dtype.kind(), config.model.memory_format)?;
    let [h, w] = pipeline.latent_size(i64::from(config.sample.width), i64::from(config.sample.height))?;
    let shape = [pipeline.unet.config().in_channels, h, w];
    let text = TextStates::encode(&pipeline, &[String::new(), "painting of a woman".to_owned()])?;
    pipeline.drop_text_encoder();
    let lora = Lora::attach(&mut pipeline.unet, &config.lora.spec(), 0)?;
    let stopped = || Interrupted { kept: "nothing was begun".to_owned() };

    // Two steps, of which the second one counts: the first one warms up.
    let ddim = Ddim::new(&pipeline.scheduler, 2)?;
    let denoiser = Denoiser { unet: &pipeline.unet, text: &text, guidance: config.sample.guidance };
    let n = (config.sample.micro_batch / denoiser.rows_per_sample()).clamp(1, config.sample.per_epoch());
    let prompts = vec![1; n];
    let mut noise = SeededNoise::of_epoch(shape, 0, 0, n);
    let sampler = Sampler {
        denoiser,
        ddim: &ddim,
        eta: config.sample.eta,
        last_step: LastStep::Stochastic,
        micro_batch: config.sample.micro_batch,
        device,
    };
    let mut times = vec![];
    let sampled = sampler.sample(&prompts, &mut noise, interrupt, &mut |_| times.push(Instant::now()))?;
    let trajectories = sampled.ok_or_else(stopped)?;
    let sampled_step_seconds = (times[1] - times[0]).as_secs_f64() / n as f64;

    let clock = Instant::now();
    let decoded = n.min(DECODE_SLICE as usize);
    drop(no_grad(|| pipeline.decode(&trajectories.last().narrow(0, 0, decoded as i64), DECODE_SLICE)));
    let decode_seconds = clock.elapsed().as_secs_f64() / decoded as f64;

    let mut train = config.train.clone();
    train.inner_epochs = 1;
    train.accumulation_steps = 1;
    train.batch_size = n;
    let optimizer = AdamWConfig { learning_rate: 0.0, beta1: 0.9, beta2: 0.99, weight_decay: 0.0, epsilon: 1e-8 };
    let mut optimizer = AdamW::new(lora.parameters(), optimizer)?;
    let mut ddpo = Ddpo {
        unet: &mut pipeline.unet,
        text: &text,
        guidance: config.sample.guidance,
        lora: &lora,
        ddim: &ddim,
        eta: config.sample.eta,
        config: &train,
        n_timesteps: 1,
    };
    let clock = Instant::now();
    let mut hooks = Hooks { interrupt, done: &mut |_| {}, after_step: &mut || {} };
    let updated = ddpo.train_epoch(&mut optimizer, &trajectories, &vec![Some(1.0); n], (0, 0), &mut hooks)?;
    updated.ok_or_else(stopped).context("while one update was tried")?;
    let trained_step_seconds = clock.elapsed().as_secs_f64() / n as f64;

    let steps = config.n_train_timesteps() * config.train.inner_epochs;
    let of_one =
        config.sample.steps as f64 * sampled_step_seconds + steps as f64 * trained_step_seconds + decode_seconds;
    Ok(Measured {
        sampled_step_seconds,
        trained_step_seconds,
        decode_seconds,
        epoch_seconds: of_one * config.sample.per_epoch() as f64,
        peak_bytes: peak_memory(device),
    })
}

/// Free bytes of the GPU, or of the machine and the container that the process runs in; none where the system does not
/// tell.
pub fn available_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => torch_ext::cuda::memory(index).ok().map(|(free, _)| free),
        _ => {
            let machine = system_memory("/proc/meminfo", "MemAvailable:");
            machine.into_iter().chain(left_to_container(Path::new("/sys/fs/cgroup"))).min()
        }
    }
}

/// What a container's limit leaves, by cgroup v2 as it is seen within one; none where there is no limit.
fn left_to_container(cgroup: &Path) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(cgroup.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

/// The most bytes of the machine's memory that the process had; none for what runs on a GPU, or where the system does
/// not tell.
pub fn peak_memory(device: Device) -> Option<u64> {
    if device.is_cuda() { None } else { system_memory("/proc/self/status", "VmHWM:") }
}

/// A line `KEY N kB` of a file under /proc, in bytes.
fn system_memory(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Bytes for people.
pub fn gibibytes(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve;
    use crate::home::home;

    #[test]
    fn a_containers_limit_counts() {
        let cgroup = tempfile::tempdir().expect("a folder");
        assert_eq!(left_to_container(cgroup.path()), None);
        std::fs::write(cgroup.path().join("memory.current"), "300\n").expect("a file");
        std::fs::write(cgroup.path().join("memory.max"), "max\n").expect("a file");
        assert_eq!(left_to_container(cgroup.path()), None);
        std::fs::write(cgroup.path().join("memory.max"), "1000\n").expect("a file");
        assert_eq!(left_to_container(cgroup.path()), Some(700));
    }

    #[test]
    fn what_cannot_fit_is_refused_with_its_numbers() {
        let folder = home().expect("the workspace").join("models/weights/tiny-art/diffusion");
        let mut config = resolve("tiny-art", &[]).expect("the preset");
        let plan = Plan::new(&config, &folder).expect("it counts");
        assert_eq!(plan.memory.frozen_weights, 5_262_363 * 4);
        assert_eq!(plan.memory.trained_weights, 46_592 * 16);
        plan.check_fits(Device::Cpu).expect("the small model fits");
        config.sample.batches_per_epoch = 1 << 40;
        let message = Plan::new(&config, &folder).expect("it counts").check_fits(Device::Cpu).expect_err("it is huge");
        assert!(message.to_string().contains("GiB are free: take model.dtype"), "{message}");
    }
}
