//! A diffusion model as an RL policy: a stochastic policy whose action is the next, less noisy latent
//! (Black et al., Training Diffusion Models with Reinforcement Learning, arXiv 2305.13301, section 4).
//!
//! [`Policy::predict`] is the only place that applies classifier-free guidance; [`Policy::step`] and
//! [`Policy::log_prob`] are the only ones that know the distribution of a step. Sampling and training thus run the same
//! arithmetic, which the clip range of the update depends on.

use ambiguity_models::pipeline::Pipeline;
use ambiguity_models::scheduler::{Ddim, LastStep, Step, StepIndex};
use ambiguity_models::unet::{Recomputed, Text, UNet};
use anyhow::Result;
use tch::{Device, Kind, Tensor, no_grad};

use crate::data::prompts::warn_of_truncated;

/// The embeddings of all prompts of a run, computed once; the text encoder is not needed afterwards.
#[derive(Debug)]
pub struct PromptEmbeddings {
    /// Embeddings [prompts, length, width]; row 0 belongs to the negative (or empty) prompt.
    table: Tensor,
}

impl PromptEmbeddings {
    /// Wraps precomputed embeddings, [prompts, length, width]; row 0 is classifier-free guidance's negative prompt.
    pub fn new(table: Tensor) -> Self {
        Self { table }
    }

    /// Encodes `prompts`; the first one is the negative prompt of classifier-free guidance. The log warns of prompts that
    /// are too long for the text encoder.
    pub fn encode(pipeline: &Pipeline, prompts: &[String]) -> Result<Self> {
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        warn_of_truncated(&pipeline.tokenizer, &texts);
        let table = no_grad(|| pipeline.encode_prompts(&texts))?;
        Ok(Self { table })
    }
}

/// A denoiser with its prompts, its guidance scale and the distribution of its steps.
#[derive(Debug)]
pub struct Policy {
    /// The network, adapter included.
    pub unet: UNet,
    /// The prompt embeddings by index.
    pub prompts: PromptEmbeddings,
    /// The scheduler.
    pub ddim: Ddim,
    /// Scale of classifier-free guidance; 1 or less means none.
    pub guidance_scale: f64,
    /// DDIM's eta, the amount of noise in a step: 0 is deterministic.
    pub eta: f64,
    /// The distribution of the last step: stochastic for DDPO, [`LastStep::FinalAlpha`] for plain sampling.
    pub last_step: LastStep,
}

impl Policy {
    /// The device of the latents.
    pub fn device(&self) -> Device {
        self.unet.device()
    }

    /// Number of UNet rows of one sample: two with classifier-free guidance.
    pub fn rows_per_sample(&self) -> usize {
        if self.guidance_scale > 1.0 { 2 } else { 1 }
    }

    /// Number of samples in a call of at most `micro_batch` UNet rows; at least one.
    pub fn samples_per_call(&self, micro_batch: usize) -> usize {
        (micro_batch / self.rows_per_sample()).max(1)
    }

    /// Returns the prompts of some samples, given by their indices \[n\] (i64, on the policy's device), as the UNet takes
    /// them.
    pub fn text(&self, prompts: &Tensor) -> Text {
        self.unet.text(&self.prompt_rows(prompts))
    }

    /// As [`Policy::text`], for several predictions with the same adapter: what depends on the prompts alone is computed
    /// here, by the same operations.
    pub fn fixed_text(&self, prompts: &Tensor) -> Text {
        no_grad(|| self.unet.fixed_text(&self.prompt_rows(prompts)))
    }

    /// Returns the guided prediction, f32 [n, c, h, w], for latents [n, c, h, w], timesteps \[n\] and the prompts.
    pub fn predict(&self, latents: &Tensor, timesteps: &Tensor, text: &Text) -> Tensor {
        self.guided(&self.unet.forward_text(&self.rows(latents), &self.rows(timesteps), text))
    }

    /// As [`Policy::predict`], with gradient checkpointing: the prediction's graph ends at the UNet's output, and
    /// [`Recomputing::backward`] continues the backward pass from there.
    pub fn predict_recomputing(&self, latents: &Tensor, timesteps: &Tensor, text: &Text) -> (Tensor, Recomputing) {
        let (output, pass) = self.unet.forward_recomputed(&self.rows(latents), &self.rows(timesteps), text);
        let output = output.set_requires_grad(true);
        (self.guided(&output), Recomputing { output, pass })
    }

    /// Takes one step of a whole batch from `latents`; `noise` is standard normal, and without it the mean is returned.
    pub fn step(&self, prediction: &Tensor, step_idx: usize, latents: &Tensor, noise: Option<&Tensor>) -> Step {
        self.ddim.step(prediction, step_idx, latents, self.eta, noise, self.last_step)
    }

    /// Returns the log-probability of the step from `latents` to `next_latents`, a mean over latent elements, \[n\],
    /// f32, as in ddpo-pytorch and TRL. It is differentiable in `prediction`.
    pub fn log_prob<'a>(
        &self,
        prediction: &Tensor,
        steps: impl Into<StepIndex<'a>>,
        latents: &Tensor,
        next_latents: &Tensor,
    ) -> Tensor {
        self.ddim.log_prob(prediction, steps, latents, next_latents, self.eta, self.last_step)
    }

    /// Returns the KL divergence of the steps' distributions under two predictions, a mean over latent elements, \[n\],
    /// f32.
    pub fn kl_divergence<'a>(
        &self,
        prediction: &Tensor,
        reference: &Tensor,
        steps: impl Into<StepIndex<'a>>,
        latents: &Tensor,
    ) -> Tensor {
        self.ddim.kl_divergence(prediction, reference, steps, latents, self.eta, self.last_step)
    }

    /// Returns the prompt embeddings of the UNet's rows: with classifier-free guidance, unconditional rows come first.
    fn prompt_rows(&self, prompts: &Tensor) -> Tensor {
        let rows = if self.guidance_scale > 1.0 {
            Tensor::cat(&[&prompts.zeros_like(), prompts], 0)
        } else {
            prompts.shallow_clone()
        };
        self.prompts.table.index_select(0, &rows)
    }

    /// Returns a tensor of some samples as the UNet's rows have it: with classifier-free guidance, twice.
    fn rows(&self, samples: &Tensor) -> Tensor {
        if self.guidance_scale > 1.0 { Tensor::cat(&[samples, samples], 0) } else { samples.shallow_clone() }
    }

    /// Combines the UNet's output rows into the guided prediction.
    fn guided(&self, output: &Tensor) -> Tensor {
        let output = output.to_kind(Kind::Float);
        if self.guidance_scale <= 1.0 {
            return output;
        }
        let halves = output.chunk(2, 0);
        &halves[0] + (&halves[1] - &halves[0]) * self.guidance_scale
    }
}

/// A prediction whose graph through the UNet is built by a second forward pass once its gradient is known.
#[derive(Debug)]
pub struct Recomputing {
    output: Tensor,
    pass: Recomputed,
}

impl Recomputing {
    /// Propagates the gradient that the loss's backward pass left at the UNet's output into the parameters.
    pub fn backward(self, unet: &UNet) -> Result<()> {
        Ok(self.pass.backward(unet, &self.output.grad())?)
    }
}
