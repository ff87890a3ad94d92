//! `host sample`: generates images with a model, with or without a LoRA.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ambiguity_models::lora::Lora;
use ambiguity_models::params::{MemoryFormat, NamedTensors};
use ambiguity_models::pipeline::{Pipeline, images_u8};
use ambiguity_models::safetensors::{read_safetensors, write_safetensors};
use ambiguity_models::scheduler::{Ddim, LastStep};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tch::{Kind, Tensor, no_grad};

use crate::context::Context;
use crate::data::images::rgb_images;
use crate::fs::new_folder;
use crate::interrupt::keeping;
use crate::policy::{Policy, PromptEmbeddings};
use crate::rl::rollout::{NoiseSource, SeededNoise, rollout};
use crate::text::shown;
use crate::zoo::{load_pipeline, model_folder, native_size};

/// Number of latents that are decoded per call.
const DECODE_SLICE: i64 = 8;

/// Generate images with DDIM, with or without a trained LoRA.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  host sample --model tiny-art --prompt \"painting of a woman\" --count 8 --out images
  host sample --model tiny-art --lora runs/demo --prompt \"painting of a woman\" --count 8 --out trained")]
pub struct SampleArgs {
    /// A diffusers folder, the name of a shipped model, or an id on the Hub
    #[arg(long, value_name = "DIR|NAME|ID")]
    model: String,
    /// A LoRA: a run's or checkpoint's folder, or a pytorch_lora_weights.safetensors
    #[arg(long, value_name = "DIR|FILE")]
    lora: Option<PathBuf>,
    /// Scale of the LoRA's weight update
    #[arg(long, value_name = "S", default_value_t = 1.0, requires = "lora")]
    lora_scale: f64,
    /// A prompt; may be repeated
    #[arg(long = "prompt", value_name = "TEXT", required = true, num_args = 1..)]
    prompts: Vec<String>,
    /// The negative prompt of classifier-free guidance
    #[arg(long, value_name = "TEXT", default_value = "")]
    negative_prompt: String,
    /// Number of DDIM steps
    #[arg(long, value_name = "N", default_value_t = 30)]
    steps: usize,
    /// DDIM's eta; 0: deterministic, 1: as much noise as DDPM
    #[arg(long, value_name = "ETA", default_value_t = 0.0)]
    eta: f64,
    /// Scale of classifier-free guidance; 1 or less: none
    #[arg(long, value_name = "G", default_value_t = 5.0)]
    guidance: f64,
    /// Seed; image i has seed N + i
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Number of images of each prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: usize,
    /// Width in pixels [default: the model's native size]
    #[arg(long, value_name = "PX")]
    width: Option<u32>,
    /// Height in pixels [default: the model's native size]
    #[arg(long, value_name = "PX")]
    height: Option<u32>,
    /// Initial latents: safetensors, key `latents`, f32 [n, c, h, w], standard normal
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Noise of the steps at eta > 0: safetensors, key `noise`, f32 [steps, n, c, h, w]
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Maximum number of UNet rows per call
    #[arg(long, value_name = "N", default_value_t = 16)]
    micro_batch: usize,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// A new folder for 0000.png …
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write sample.safetensors too: latents, images, trajectory, and log_probs at eta > 0
    #[arg(long)]
    tensors: bool,
}

impl SampleArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        ensure!((0.0..=1.0).contains(&self.eta), "--eta {} must lie between 0 and 1", self.eta);
        ensure!(
            self.count > 0 && self.steps > 0 && self.micro_batch > 0,
            "--count, --steps and --micro-batch must be at least 1"
        );
        ensure!((0.0..=1000.0).contains(&self.guidance), "--guidance {} must lie between 0 and 1000", self.guidance);
        ensure!(self.lora_scale.abs() <= 1e6, "--lora-scale {} must be a number from -1e6 to 1e6", self.lora_scale);
        let device = torch_ext::cuda::device(&self.device)?;
        let folder = model_folder(&self.model, context)?;
        let size = native_size(&folder)?;
        let (width, height) = (self.width.unwrap_or(size), self.height.unwrap_or(size));
        let pipeline = load_pipeline(&folder, device, Kind::Float, MemoryFormat::Contiguous)?;
        let [h, w] = pipeline.latent_size(i64::from(width), i64::from(height)).context("--width and --height")?;
        let shape = [pipeline.unet.config().in_channels, h, w];
        let ddim = Ddim::new(&pipeline.scheduler, self.steps).context("--steps")?;
        let mut table = vec![self.negative_prompt.clone()];
        table.extend(self.prompts.iter().cloned());
        let prompts = PromptEmbeddings::encode(&pipeline, &table)?;
        let Pipeline { mut unet, vae, .. } = pipeline;
        if let Some(lora) = &self.lora {
            Lora::load(&mut unet, lora)?.set_scale(&mut unet, self.lora_scale);
        }
        let n = self.prompts.len() * self.count;
        let mut noise = self.noise_source(shape, n)?;
        new_folder(&self.out)?;

        let policy = Policy {
            unet,
            prompts,
            ddim,
            guidance_scale: self.guidance,
            eta: self.eta,
            last_step: LastStep::FinalAlpha,
        };
        let indices: Vec<usize> = (0..n).map(|i| 1 + i / self.count).collect();
        let bar = context.progress.bar("sampling", (n * self.steps) as u64, "steps");
        let mut done = |rows| bar.inc(rows as u64);
        let sampled = rollout(&policy, &indices, &mut noise, self.micro_batch, &context.interrupt, &mut done);
        let trajectories = sampled.map_err(|error| keeping(error, "no image was written"))?;
        bar.finish();
        let images = no_grad(|| vae.decode_latents(&trajectories.last(), DECODE_SLICE));
        for (i, image) in rgb_images(&images_u8(&images))?.iter().enumerate() {
            let path = self.out.join(format!("{i:04}.png"));
            image.save(&path).with_context(|| path.display().to_string())?;
        }
        if self.tensors {
            let mut tensors = NamedTensors::new();
            tensors.insert("latents".to_owned(), trajectories.last());
            tensors.insert("images".to_owned(), (images / 2 + 0.5).clamp(0.0, 1.0));
            tensors.insert("trajectory".to_owned(), trajectories.latents);
            if let Some(log_probs) = trajectories.log_probs {
                tensors.insert("log_probs".to_owned(), log_probs);
            }
            write_safetensors(&self.out.join("sample.safetensors"), &tensors, &[])?;
        }
        println!("{n} images of {width}×{height} in {}", shown(&self.out));
        Ok(())
    }

    /// Returns the noise from seeds, or from the given files.
    fn noise_source(&self, shape: [i64; 3], n: usize) -> Result<SampleNoise> {
        let [c, h, w] = shape;
        let initial =
            self.latents.as_deref().map(|path| tensor_of(path, "latents", &[n as i64, c, h, w])).transpose()?;
        let steps = self.steps as i64;
        let noise =
            self.noise.as_deref().map(|path| tensor_of(path, "noise", &[steps, n as i64, c, h, w])).transpose()?;
        let seeds = (0..n as u64).map(|i| self.seed.wrapping_add(i)).collect();
        Ok(SampleNoise { seeded: SeededNoise::of_seeds(shape, seeds), initial, noise })
    }
}

/// Noise from files where given, else from seeds.
struct SampleNoise {
    seeded: SeededNoise,
    initial: Option<Tensor>,
    noise: Option<Tensor>,
}

impl NoiseSource for SampleNoise {
    fn initial(&mut self, rows: Range<usize>) -> Result<Tensor> {
        let seeded = self.seeded.initial(rows.clone())?;
        Ok(self.initial.as_ref().map_or(seeded, |given| given.narrow(0, rows.start as i64, rows.len() as i64)))
    }

    fn step(&mut self, step_idx: usize, rows: Range<usize>) -> Result<Tensor> {
        match &self.noise {
            Some(given) => Ok(given.select(0, step_idx as i64).narrow(0, rows.start as i64, rows.len() as i64)),
            None => self.seeded.step(step_idx, rows),
        }
    }
}

fn tensor_of(path: &Path, key: &str, shape: &[i64]) -> Result<Tensor> {
    let mut tensors = read_safetensors(path)?;
    let tensor = tensors.remove(key).with_context(|| format!("{} has no tensor `{key}`", path.display()))?;
    ensure!(
        tensor.size() == shape,
        "`{key}` in {} has shape {:?}, this command needs {shape:?}",
        path.display(),
        tensor.size()
    );
    Ok(tensor.to_kind(Kind::Float))
}
