//! `host sample`: generates images with a model, with or without a LoRA.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_models::params::NamedTensors;
use ambiguity_models::pipeline::{LoadOptions, images_u8};
use ambiguity_models::safetensors::{read_safetensors, write_safetensors};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use image::RgbImage;
use serde_json::json;
use tch::{Kind, Tensor};

use super::completions::models;
use super::numbers::within;
use super::samples::{Sample, SheetArgs, is_shown, write_image, write_sheet};
use crate::config::fine_tune::Dtype;
use crate::context::Context;
use crate::data::images::rgb_images;
use crate::data::png::parameters;
use crate::fs::new_folder;
use crate::generator::{Generator, Settings};
use crate::interrupt::keeping;
use crate::rl::rollout::{NoiseSource, SeededNoise};
use crate::run::plugins_lock;
use crate::text::{counted, shown, to_json};
use crate::zoo::{model_folder, native_size};

/// Generate images with DDIM, with or without a trained LoRA.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  host sample --model tiny-art --prompt \"painting of a woman\" --count 8 --out images
  host sample --model tiny-art --lora runs/demo --prompt \"painting of a woman\" --count 8 --out trained")]
pub struct SampleArgs {
    /// A diffusers folder, the name of a shipped model, or an id on the Hub
    #[arg(long, value_name = "DIR|NAME|ID", add = models())]
    model: String,
    /// A LoRA: a run's or checkpoint's folder, or a pytorch_lora_weights.safetensors
    #[arg(long, value_name = "DIR|FILE")]
    lora: Option<PathBuf>,
    /// Scale of the LoRA's weight update
    #[arg(long, value_name = "S", default_value_t = 1.0, requires = "lora", value_parser = within(-1e6..=1e6))]
    lora_scale: f64,
    /// A prompt; may be repeated
    #[arg(long = "prompt", value_name = "TEXT", required = true, num_args = 1..)]
    prompts: Vec<String>,
    /// The negative prompt of classifier-free guidance
    #[arg(long, value_name = "TEXT", default_value = "")]
    negative_prompt: String,
    /// Number of DDIM steps
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = within(1usize..=1000))]
    steps: usize,
    /// DDIM's eta; 0: deterministic, 1: as much noise as DDPM
    #[arg(long, value_name = "ETA", default_value_t = 0.0, value_parser = within(0.0..=1.0))]
    eta: f64,
    /// Scale of classifier-free guidance; 1 or less: none
    #[arg(long, value_name = "G", default_value_t = 5.0, value_parser = within(0.0..=1000.0))]
    guidance: f64,
    /// Seed; image i has seed N + i
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Number of images of each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = within(1usize..=1_000_000))]
    count: usize,
    /// Width in pixels [default: the model's native size]
    #[arg(long, value_name = "PX", value_parser = within(1u32..=65_536))]
    width: Option<u32>,
    /// Height in pixels [default: the model's native size]
    #[arg(long, value_name = "PX", value_parser = within(1u32..=65_536))]
    height: Option<u32>,
    /// Initial latents: safetensors, key `latents`, f32 [n, c, h, w], standard normal
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Noise of the steps at eta > 0: safetensors, key `noise`, f32 [steps, n, c, h, w]
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Maximum number of UNet rows per call
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = within(1usize..=1_000_000))]
    micro_batch: usize,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Type of UNet and text encoder: f32, bf16 or f16
    #[arg(long, value_name = "TYPE", default_value = "f32", hide_possible_values = true)]
    dtype: Dtype,
    /// Type of the VAE: f32, bf16 or f16, in which the published ones overflow
    #[arg(long, value_name = "TYPE", default_value = "f32", hide_possible_values = true)]
    vae_dtype: Dtype,
    /// Decode images larger than the VAE's own size in tiles: less memory, slight seams
    #[arg(long)]
    vae_tiling: bool,
    /// A new folder for 0000.png …
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write sample.safetensors too: latents, images, trajectory, and log_probs at eta > 0
    #[arg(long)]
    tensors: bool,
    #[command(flatten)]
    sheet: SheetArgs,
    /// Print one JSON document about the result
    #[arg(long)]
    json: bool,
}

impl SampleArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let device = torch_ext::cuda::device(&self.device)?;
        let folder = model_folder(&self.model, context)?;
        let size = native_size(&folder)?;
        let (width, height) = (self.width.unwrap_or(size), self.height.unwrap_or(size));
        let mut prompts = vec![self.negative_prompt.clone()];
        prompts.extend(self.prompts.iter().cloned());
        let load = LoadOptions {
            kind: self.dtype.kind(),
            vae_kind: self.vae_dtype.kind(),
            vae_tiling: self.vae_tiling,
            ..LoadOptions::on(device)
        };
        let generator = Generator::open(&Settings {
            model: folder,
            lora: self.lora.clone(),
            lora_scale: self.lora_scale,
            load,
            prompts,
            steps: self.steps,
            eta: self.eta,
            guidance: self.guidance,
            width,
            height,
            micro_batch: self.micro_batch,
        })?;
        let n = self.prompts.len() * self.count;
        let mut noise = self.noise_source(generator.latent_shape(), n)?;
        let sheet = self.sheet.path(&self.out, n)?;
        new_folder(&self.out)?;

        let indices: Vec<usize> = (0..n).map(|i| 1 + i / self.count).collect();
        let bar = context.progress.bar("sampling", (n * self.steps) as u64, "steps");
        let mut done = |rows| bar.inc(rows as u64);
        let sampled = generator.sample(&indices, &mut noise, &context.interrupt, &mut done);
        let trajectories = sampled.map_err(|error| keeping(error, "no image was written"))?;
        bar.finish();
        let images = generator.decode(&trajectories.last());
        let is_finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
        if !is_finite(&images) {
            let (network, key) =
                if is_finite(&trajectories.last()) { ("VAE", "--vae-dtype") } else { ("UNet", "--dtype") };
            bail!("the {network} overflows, so that images are no numbers: use another {key}; no image was written");
        }
        let plugins = self.lora.as_deref().map(trained_with).unwrap_or_default();
        let mut samples = vec![];
        for (i, image) in rgb_images(&images_u8(&images))?.into_iter().enumerate() {
            let sample = self.described(i, image, (width, height), &plugins);
            write_image(&self.out, i as u64, &sample)?;
            samples.extend(is_shown(i).then_some(sample));
        }
        if let Some(sheet) = &sheet {
            write_sheet(sheet, &self.title(), &samples, n)?;
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
        if self.json {
            let [out, model] = [self.out.to_string_lossy(), self.model.as_str().into()];
            let [lora, sheet] = [&self.lora, &sheet].map(|path| path.as_ref().map(|path| path.to_string_lossy()));
            let document = json!({
                "out": out, "images": n, "width": width, "height": height, "sheet": sheet, "model": model, "lora": lora,
            });
            println!("{}", to_json(&document));
        } else {
            let sheet = sheet.map_or_else(String::new, |sheet| format!("; all on {}", shown(&sheet)));
            println!("{} of {width}×{height} in {}{sheet}", counted(n as u64, "image"), shown(&self.out));
        }
        Ok(())
    }

    /// The title of the contact sheet: the model, and the LoRA.
    fn title(&self) -> String {
        let lora = self.lora.as_ref().map_or_else(String::new, |lora| format!(" with {}", lora.display()));
        format!("{}{lora}", self.model)
    }

    /// Returns image `i` with where it is from; `plugins` are those that the LoRA was trained with.
    fn described(&self, i: usize, image: Arc<RgbImage>, (width, height): (u32, u32), plugins: &str) -> Sample {
        let prompt = &self.prompts[i / self.count];
        // Given latents replace the seed.
        let seed = match &self.latents {
            None => self.seed.wrapping_add(i as u64).to_string(),
            Some(latents) => format!("row {i} of {}", latents.display()),
        };
        let start = if self.latents.is_some() { format!("row {i}") } else { format!("seed {seed}") };
        let lora = self.lora.as_ref().map(|lora| lora.display().to_string());
        let scale = lora.as_ref().map(|_| self.lora_scale.to_string());
        let version = format!("host {}", env!("CARGO_PKG_VERSION"));
        let mut settings = vec![
            ("Steps", self.steps.to_string()),
            ("Sampler", "DDIM".to_owned()),
            ("CFG scale", self.guidance.to_string()),
            ("Seed", seed.clone()),
            ("Size", format!("{width}x{height}")),
            ("Model", self.model.clone()),
            ("Eta", self.eta.to_string()),
        ];
        settings.extend(lora.iter().map(|lora| ("Lora", format!("{lora}: {}", self.lora_scale))));
        let types = [("Type", self.dtype), ("VAE type", self.vae_dtype)];
        settings.extend(
            types
                .into_iter()
                .filter(|(_, dtype)| *dtype != Dtype::F32)
                .map(|(name, dtype)| (name, format!("{dtype:?}").to_lowercase())),
        );
        settings.extend(self.vae_tiling.then(|| ("VAE tiling", "true".to_owned())));
        settings.push(("Version", version));
        let plugins = Some(plugins.to_owned()).filter(|plugins| !plugins.is_empty());
        let negative = Some(self.negative_prompt.clone()).filter(|prompt| !prompt.is_empty());
        let entries = [
            ("prompt", Some(prompt.clone())),
            ("negative_prompt", negative),
            ("seed", Some(seed.clone())),
            ("steps", Some(self.steps.to_string())),
            ("eta", Some(self.eta.to_string())),
            ("guidance", Some(self.guidance.to_string())),
            ("model", Some(self.model.clone())),
            ("lora", lora),
            ("lora_scale", scale),
            ("plugin", plugins),
        ];
        let entries = entries.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?)));
        let texts = [parameters(prompt, &self.negative_prompt, &settings)].into_iter().chain(entries).collect();
        Sample { image, title: format!("{start}: {prompt}"), texts }
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

    fn steps(&mut self, n_steps: usize, rows: Range<usize>) -> Result<Tensor> {
        match &self.noise {
            Some(given) => Ok(given.narrow(1, rows.start as i64, rows.len() as i64)),
            None => self.seeded.steps(n_steps, rows),
        }
    }
}

/// Returns the plugins that a LoRA was trained with, if it is in its run's folder: names and digests.
fn trained_with(lora: &Path) -> String {
    let locks = lora.ancestors().take(4).filter_map(|folder| plugins_lock(folder).ok());
    locks.map(|lock| lock.in_words()).find(|words| !words.is_empty()).unwrap_or_default()
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
