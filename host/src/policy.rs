//! A diffusion model as reinforcement learning sees it: a stochastic policy whose action is the next, less noisy latent
//! (Black et al., Training Diffusion Models with Reinforcement Learning, arXiv 2305.13301, section 4).
//!
//! [`Policy::predict`] is the one place where classifier-free guidance is applied, and [`Policy::step`] and
//! [`Policy::log_prob`] the one place that knows the distribution of a step: sampling and training run the same arithmetic,
//! which the clip range of the update depends on.

use ambiguity_models::pipeline::Pipeline;
use ambiguity_models::scheduler::{Ddim, LastStep, Step, StepIndex};
use ambiguity_models::unet::{Recomputed, UNet};
use anyhow::Result;
use tch::{Device, Kind, Tensor, no_grad};

/// The embeddings of all prompts of a run, computed once; the text encoder is not needed after it.
#[derive(Debug)]
pub struct PromptEmbeddings {
    /// [prompts, length, width]; row 0 belongs to the negative (or empty) prompt.
    table: Tensor,
}

impl PromptEmbeddings {
    /// Embeddings that exist already, [prompts, length, width]; guidance leads away from row 0.
    pub fn new(table: Tensor) -> Self {
        Self { table }
    }

    /// Encodes `prompts`; guidance leads away from the first one.
    pub fn encode(pipeline: &Pipeline, prompts: &[String]) -> Result<Self> {
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let table = no_grad(|| pipeline.encode_prompts(&texts))?;
        Ok(Self { table })
    }

    fn rows(&self, prompts: &[usize]) -> Tensor {
        let indices: Vec<i64> = prompts.iter().map(|&prompt| prompt as i64).collect();
        self.table.index_select(0, &Tensor::from_slice(&indices).to_device(self.table.device()))
    }
}

/// A denoiser with its prompts, its guidance and the distribution of its steps.
#[derive(Debug)]
pub struct Policy {
    /// The network, adapter included.
    pub unet: UNet,
    /// The prompts by index.
    pub prompts: PromptEmbeddings,
    /// The steps.
    pub ddim: Ddim,
    /// Classifier-free guidance; 1 or less means none.
    pub guidance_scale: f64,
    /// Noise of the steps: 0 makes them deterministic.
    pub eta: f64,
    /// The distribution of the last step: stochastic for DDPO, [`LastStep::FinalAlpha`] for plain sampling.
    pub last_step: LastStep,
}

impl Policy {
    /// Where latents live.
    pub fn device(&self) -> Device {
        self.unet.device()
    }

    /// Number of UNet rows that one sample costs: two under guidance.
    pub fn rows_per_sample(&self) -> usize {
        if self.guidance_scale > 1.0 { 2 } else { 1 }
    }

    /// Number of samples in a call of at most `micro_batch` UNet rows; at least one.
    pub fn samples_per_call(&self, micro_batch: usize) -> usize {
        (micro_batch / self.rows_per_sample()).max(1)
    }

    /// The guided prediction, f32 [n, c, h, w], for latents [n, c, h, w] at timesteps \[n\] under prompts \[n\].
    pub fn predict(&self, latents: &Tensor, timesteps: &Tensor, prompts: &[usize]) -> Tensor {
        let [latents, timesteps, text] = self.rows(latents, timesteps, prompts);
        self.guided(&self.unet.forward(&latents, &timesteps, &text))
    }

    /// As [`Policy::predict`] with gradient checkpointing: the prediction's gradient ends at the UNet's output, and
    /// [`Recomputing::backward`] carries it on from there.
    pub fn predict_recomputing(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        prompts: &[usize],
    ) -> (Tensor, Recomputing) {
        let [latents, timesteps, text] = self.rows(latents, timesteps, prompts);
        let (output, pass) = self.unet.forward_recomputed(&latents, &timesteps, &text);
        let output = output.set_requires_grad(true);
        (self.guided(&output), Recomputing { output, pass })
    }

    /// One step of a whole batch from `latents`; `noise` is standard normal, and without it the mean is taken.
    pub fn step(&self, prediction: &Tensor, step_idx: usize, latents: &Tensor, noise: Option<&Tensor>) -> Step {
        self.ddim.step(prediction, step_idx, latents, self.eta, noise, self.last_step)
    }

    /// The log-probability of having stepped from `latents` to `next_latents`, a mean over latent elements, \[n\], f32, as
    /// ddpo-pytorch and TRL have it. Gradients reach `prediction`.
    pub fn log_prob<'a>(
        &self,
        prediction: &Tensor,
        steps: impl Into<StepIndex<'a>>,
        latents: &Tensor,
        next_latents: &Tensor,
    ) -> Tensor {
        self.ddim.log_prob(prediction, steps, latents, next_latents, self.eta, self.last_step)
    }

    /// The KL divergence of the steps' distributions under two predictions, \[n\], f32, a mean over latent elements.
    pub fn kl_divergence<'a>(
        &self,
        prediction: &Tensor,
        reference: &Tensor,
        steps: impl Into<StepIndex<'a>>,
        latents: &Tensor,
    ) -> Tensor {
        self.ddim.kl_divergence(prediction, reference, steps, latents, self.eta, self.last_step)
    }

    /// The UNet's rows of some samples: unguided ones first, if there is guidance.
    fn rows(&self, latents: &Tensor, timesteps: &Tensor, prompts: &[usize]) -> [Tensor; 3] {
        let text = self.prompts.rows(prompts);
        if self.guidance_scale <= 1.0 {
            return [latents.shallow_clone(), timesteps.shallow_clone(), text];
        }
        let null = self.prompts.rows(&vec![0; prompts.len()]);
        let twice = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 0);
        [twice(latents), twice(timesteps), Tensor::cat(&[null, text], 0)]
    }

    /// The UNet's output to the guided prediction.
    fn guided(&self, output: &Tensor) -> Tensor {
        let output = output.to_kind(Kind::Float);
        if self.guidance_scale <= 1.0 {
            return output;
        }
        let halves = output.chunk(2, 0);
        &halves[0] + (&halves[1] - &halves[0]) * self.guidance_scale
    }
}

/// A prediction whose graph through the UNet is made when its gradient is known.
#[derive(Debug)]
pub struct Recomputing {
    output: Tensor,
    pass: Recomputed,
}

impl Recomputing {
    /// Carries the gradient that the loss's own backward pass left at the UNet's output on into the parameters.
    pub fn backward(self, unet: &UNet) -> Result<()> {
        Ok(self.pass.backward(unet, &self.output.grad())?)
    }
}
