//! Prompts to trajectories: the DDIM sampler that keeps every latent and the log-probability of every step, as DDPO
//! needs them (Black et al., Training Diffusion Models with Reinforcement Learning, arXiv 2305.13301, section 4).
//!
//! [`Denoiser::predict`] is the one place where the UNet is called with guidance: sampling and training run the same
//! arithmetic, which the clip range of the update depends on.

use std::ops::Range;

use ambiguity_models::pipeline::Pipeline;
use ambiguity_models::scheduler::{Ddim, LastStep};
use ambiguity_models::unet::{Recomputed, UNet};
use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::Generator;

use crate::interrupt::Interrupt;
use crate::random::{Purpose, derive_seed};

/// Text states of all prompts of a run, computed once; the text encoder is not needed after it.
#[derive(Debug)]
pub struct TextStates {
    /// [prompts, length, width]; row 0 belongs to the negative (or empty) prompt.
    table: Tensor,
}

impl TextStates {
    /// States at hand, [prompts, length, width]; row 0 is what guidance leads away from.
    pub fn new(table: Tensor) -> Self {
        Self { table }
    }

    /// Encodes `prompts`, the first of which is what guidance leads away from.
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

/// The UNet with its guidance.
#[derive(Clone, Copy, Debug)]
pub struct Denoiser<'a> {
    /// The network, adapter included.
    pub unet: &'a UNet,
    /// Text states by prompt index.
    pub text: &'a TextStates,
    /// Classifier-free guidance; 1 or less means none.
    pub guidance: f64,
}

impl Denoiser<'_> {
    /// UNet rows that one sample costs.
    pub fn rows_per_sample(&self) -> usize {
        if self.guidance > 1.0 { 2 } else { 1 }
    }

    /// The guided prediction, f32 [n, c, h, w], for latents [n, c, h, w] at timesteps \[n\] under prompts \[n\].
    pub fn predict(&self, latents: &Tensor, timesteps: &Tensor, prompts: &[usize]) -> Tensor {
        let [latents, timesteps, text] = self.rows(latents, timesteps, prompts);
        self.guided(&self.unet.forward(&latents, &timesteps, &text))
    }

    /// As [`Denoiser::predict`] with gradient checkpointing: the prediction's gradient ends at the UNet's output, and
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

    /// The UNet's rows of some samples: unguided ones first, if there is guidance.
    fn rows(&self, latents: &Tensor, timesteps: &Tensor, prompts: &[usize]) -> [Tensor; 3] {
        let text = self.text.rows(prompts);
        if self.guidance <= 1.0 {
            return [latents.shallow_clone(), timesteps.shallow_clone(), text];
        }
        let null = self.text.rows(&vec![0; prompts.len()]);
        let twice = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 0);
        [twice(latents), twice(timesteps), Tensor::cat(&[null, text], 0)]
    }

    /// The UNet's output to the guided prediction.
    fn guided(&self, output: &Tensor) -> Tensor {
        let output = output.to_kind(Kind::Float);
        if self.guidance <= 1.0 {
            return output;
        }
        let halves = output.chunk(2, 0);
        &halves[0] + (&halves[1] - &halves[0]) * self.guidance
    }
}

/// A prediction whose graph through the UNet is made when the gradient is there.
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

/// What was sampled: everything the update needs, and nothing of the images.
#[derive(Debug)]
pub struct Trajectories {
    /// The prompt index of each sample.
    pub prompts: Vec<usize>,
    /// f32 [steps + 1, n, c, h, w]: from the initial noise to the final latents, scaled as the UNet sees them.
    pub latents: Tensor,
    /// f32 [steps, n]: mean log-probability of each step; none at eta 0.
    pub log_probs: Option<Tensor>,
}

impl Trajectories {
    /// The final latents, [n, c, h, w].
    pub fn last(&self) -> Tensor {
        self.latents.select(0, -1)
    }
}

/// How trajectories are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Sampler<'a> {
    /// The network.
    pub denoiser: Denoiser<'a>,
    /// The steps.
    pub ddim: &'a Ddim,
    /// Noise of the steps.
    pub eta: f64,
    /// Stochastic for DDPO, [`LastStep::FinalAlpha`] for plain sampling.
    pub last_step: LastStep,
    /// UNet rows a call.
    pub micro_batch: usize,
    /// Where latents live.
    pub device: Device,
}

impl Sampler<'_> {
    /// Draws one trajectory for every prompt index. `noise` supplies it; `done` hears of finished sample-steps.
    ///
    /// Returns `None` if interrupted.
    pub fn sample(
        &self,
        prompts: &[usize],
        noise: &mut impl NoiseSource,
        interrupt: &Interrupt,
        done: &mut dyn FnMut(usize),
    ) -> Result<Option<Trajectories>> {
        ensure!(!prompts.is_empty(), "there is nothing to sample: no prompt was given");
        let rows = (self.micro_batch / self.denoiser.rows_per_sample()).max(1);
        let mut latents = Vec::new();
        let mut log_probs = Vec::new();
        let mut start = 0;
        while start < prompts.len() {
            let range = start..(start + rows).min(prompts.len());
            start = range.end;
            let Some((chunk_latents, chunk_log_probs)) = self.sample_chunk(prompts, range, noise, interrupt, done)?
            else {
                return Ok(None);
            };
            latents.push(chunk_latents);
            log_probs.extend(chunk_log_probs);
        }
        Ok(Some(Trajectories {
            prompts: prompts.to_vec(),
            latents: Tensor::cat(&latents, 1),
            log_probs: (!log_probs.is_empty()).then(|| Tensor::cat(&log_probs, 1)),
        }))
    }

    fn sample_chunk(
        &self,
        prompts: &[usize],
        range: Range<usize>,
        noise: &mut impl NoiseSource,
        interrupt: &Interrupt,
        done: &mut dyn FnMut(usize),
    ) -> Result<Option<(Tensor, Option<Tensor>)>> {
        let prompts = &prompts[range.clone()];
        let mut latents = vec![noise.initial(range.clone())?.f_to_device(self.device)? * self.ddim.init_noise_sigma()];
        let mut log_probs = Vec::new();
        for (step_idx, &timestep) in self.ddim.timesteps().iter().enumerate() {
            if interrupt.requested() {
                return Ok(None);
            }
            let current = &latents[step_idx];
            let timesteps = Tensor::full([range.len() as i64], timestep, (Kind::Int64, self.device));
            let output = no_grad(|| self.denoiser.predict(current, &timesteps, prompts));
            let step_noise = if self.eta > 0.0 {
                Some(noise.step(step_idx, range.clone())?.f_to_device(self.device)?)
            } else {
                None
            };
            let step = self.ddim.step(&output, step_idx, current, self.eta, step_noise.as_ref(), self.last_step);
            latents.push(step.prev_sample);
            log_probs.extend(step.log_prob);
            done(range.len());
        }
        let log_probs = (!log_probs.is_empty()).then(|| Tensor::stack(&log_probs, 0));
        Ok(Some((Tensor::stack(&latents, 0), log_probs)))
    }
}

/// Where the sampler's noise comes from; rows are sample indices.
pub trait NoiseSource {
    /// Standard normal [rows, c, h, w].
    fn initial(&mut self, rows: Range<usize>) -> Result<Tensor>;
    /// Standard normal [rows, c, h, w] of a step; asked for in order, step by step, for each range of rows.
    fn step(&mut self, step_idx: usize, rows: Range<usize>) -> Result<Tensor>;
}

/// Noise of every sample from generators of its own, so that the size of a call changes nothing.
#[derive(Debug)]
pub struct SeededNoise {
    shape: [i64; 3],
    seeds: Vec<Seeds>,
    generators: Vec<Option<Generator>>,
}

#[derive(Clone, Copy, Debug)]
struct Seeds {
    initial: u64,
    /// None: the steps go on with the generator of the initial noise, as diffusers does.
    steps: Option<u64>,
}

impl SeededNoise {
    /// One seed a sample, used as diffusers uses it: the initial noise, then that of the steps. `shape` is [c, h, w].
    pub fn of_seeds(shape: [i64; 3], seeds: Vec<u64>) -> Self {
        Self::new(shape, seeds.into_iter().map(|initial| Seeds { initial, steps: None }).collect())
    }

    /// The noise of `n` samples of an epoch.
    pub fn of_epoch(shape: [i64; 3], seed: u64, epoch: u64, n: usize) -> Self {
        let seeds = (0..n as u64).map(|i| Seeds {
            initial: derive_seed(seed, epoch, i, Purpose::Latents),
            steps: Some(derive_seed(seed, epoch, i, Purpose::StepNoise)),
        });
        Self::new(shape, seeds.collect())
    }

    /// The noise of the monitor's fixed samples.
    pub fn of_monitor(shape: [i64; 3], seed: u64, n: usize) -> Self {
        let seeds = (0..n as u64).map(|i| Seeds { initial: derive_seed(seed, 0, i, Purpose::Monitor), steps: None });
        Self::new(shape, seeds.collect())
    }

    fn new(shape: [i64; 3], seeds: Vec<Seeds>) -> Self {
        let generators = seeds.iter().map(|_| None).collect();
        Self { shape, seeds, generators }
    }
}

impl NoiseSource for SeededNoise {
    fn initial(&mut self, rows: Range<usize>) -> Result<Tensor> {
        let mut noise = Vec::with_capacity(rows.len());
        for row in rows {
            let seeds = self.seeds[row];
            let mut generator = Generator::cpu(seeds.initial)?;
            noise.push(generator.normal(&self.shape)?);
            self.generators[row] = Some(seeds.steps.map_or(Ok(generator), Generator::cpu)?);
        }
        Ok(Tensor::stack(&noise, 0))
    }

    fn step(&mut self, _step_idx: usize, rows: Range<usize>) -> Result<Tensor> {
        let mut noise = Vec::with_capacity(rows.len());
        for row in rows {
            let generator = self.generators[row].as_mut().expect("the initial noise of a row is asked for first");
            noise.push(generator.normal(&self.shape)?);
        }
        Ok(Tensor::stack(&noise, 0))
    }
}
