//! A diffusion model that generates images, with or without a LoRA.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_models::lora::Lora;
use ambiguity_models::pipeline::{LoadOptions, Pipeline, images_u8};
use ambiguity_models::scheduler::{Ddim, LastStep};
use ambiguity_models::vae::Vae;
use anyhow::{Context as _, Result};
use image::RgbImage;
use tch::{Tensor, no_grad};

use crate::data::images::rgb_images;
use crate::interrupt::Interrupt;
use crate::policy::{Policy, PromptEmbeddings};
use crate::rl::rollout::{NoiseSource, Trajectories, rollout};
use crate::zoo::load_pipeline;

/// Number of latents that are decoded per call.
const DECODE_SLICE: i64 = 8;

/// The model of a generator, and how it samples.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the pipeline.
    pub model: PathBuf,
    /// A LoRA: a file, or the folder of a run or checkpoint.
    pub lora: Option<PathBuf>,
    /// Scale of the LoRA's weight update.
    pub lora_scale: f64,
    /// How its networks are loaded.
    pub load: LoadOptions,
    /// The prompts; the first is the negative prompt of classifier-free guidance.
    pub prompts: Vec<String>,
    /// Number of DDIM steps.
    pub steps: usize,
    /// DDIM's η.
    pub eta: f64,
    /// Scale of classifier-free guidance; 1 or less: none.
    pub guidance: f64,
    /// Width of the images in pixels.
    pub width: u32,
    /// Height of the images in pixels.
    pub height: u32,
    /// Maximum number of UNet rows per call.
    pub micro_batch: usize,
}

/// A diffusion model that generates images.
pub struct Generator {
    policy: Policy,
    vae: Vae,
    lora: Option<Lora>,
    shape: [i64; 3],
    micro_batch: usize,
}

impl Generator {
    /// Loads a model, its prompts' embeddings, and its LoRA if it has one.
    pub fn open(settings: &Settings) -> Result<Self> {
        let pipeline = load_pipeline(&settings.model, &settings.load)?;
        let size = pipeline.latent_size(i64::from(settings.width), i64::from(settings.height));
        let [h, w] = size.context("width and height")?;
        let shape = [pipeline.unet.config().in_channels, h, w];
        let ddim = Ddim::new(&pipeline.scheduler, settings.steps).context("steps")?;
        let prompts = PromptEmbeddings::encode(&pipeline, &settings.prompts)?;
        let Pipeline { mut unet, vae, .. } = pipeline;
        let mut lora = None;
        if let Some(path) = &settings.lora {
            lora = Some(load_lora(&mut unet, path, settings.lora_scale)?);
        }
        let policy = Policy {
            unet,
            prompts,
            ddim,
            guidance_scale: settings.guidance,
            eta: settings.eta,
            last_step: LastStep::FinalAlpha,
        };
        Ok(Self { policy, vae, lora, shape, micro_batch: settings.micro_batch })
    }

    /// The shape of a latent, [c, h, w].
    pub fn latent_shape(&self) -> [i64; 3] {
        self.shape
    }

    /// Number of images of a UNet call.
    pub fn images_per_call(&self) -> usize {
        self.policy.samples_per_call(self.micro_batch)
    }

    /// Uses the LoRA, if there is one, or the model without it.
    pub fn use_lora(&mut self, on: bool) {
        if let Some(lora) = &self.lora {
            lora.enable(&mut self.policy.unet, on);
        }
    }

    /// Sets the number of steps and their η.
    ///
    /// # Errors
    /// If the scheduler has no such steps.
    pub fn set_steps(&mut self, steps: usize, eta: f64) -> Result<()> {
        self.policy.ddim = Ddim::new(self.policy.ddim.config(), steps).with_context(|| format!("{steps} steps"))?;
        self.policy.eta = eta;
        Ok(())
    }

    /// Samples one trajectory per prompt, given by its index; `done` receives the number of images after every step.
    ///
    /// # Errors
    /// [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop.
    pub fn sample(
        &self,
        prompts: &[usize],
        noise: &mut impl NoiseSource,
        interrupt: &Interrupt,
        done: &mut dyn FnMut(usize),
    ) -> Result<Trajectories> {
        rollout(&self.policy, prompts, noise, self.micro_batch, interrupt, done)
    }

    /// Decodes latents, [n, c, h, w], to pixels in [-1, 1], f32 [n, 3, height, width].
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        no_grad(|| self.vae.decode_latents(latents, DECODE_SLICE))
    }

    /// Generates one image per prompt, given by its index.
    ///
    /// # Errors
    /// As for [`Generator::sample`].
    pub fn generate(
        &self,
        prompts: &[usize],
        noise: &mut impl NoiseSource,
        interrupt: &Interrupt,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Arc<RgbImage>>> {
        let trajectories = self.sample(prompts, noise, interrupt, done)?;
        rgb_images(&images_u8(&self.decode(&trajectories.last())))
    }
}

fn load_lora(unet: &mut ambiguity_models::unet::UNet, path: &Path, scale: f64) -> Result<Lora> {
    let mut lora = Lora::load(unet, path)?;
    lora.set_scale(unet, scale);
    Ok(lora)
}
