//! Trajectories from prompts: the sampler keeps every latent and the log-probability of every step, as DDPO needs them
//! (Black et al., Training Diffusion Models with Reinforcement Learning, arXiv 2305.13301, section 4).

use std::ops::Range;

use anyhow::{Result, bail, ensure};
use tch::{Kind, Tensor, no_grad};
use torch_ext::Generator;

use crate::interrupt::Interrupt;
use crate::policy::Policy;
use crate::processes::Processes;
use crate::random::{Purpose, derive_seed};

/// Sampled trajectories: everything that the update needs, without the images.
#[derive(Debug)]
pub struct Trajectories {
    /// The prompt index of each sample.
    pub prompts: Vec<usize>,
    /// Latents from the initial noise to the final ones, scaled as the UNet expects them, f32 [steps + 1, n, c, h, w].
    pub latents: Tensor,
    /// Mean log-probability of each step, f32 [steps, n]; none at eta 0.
    pub log_probs: Option<Tensor>,
    /// The samples that shared the UNet's calls, in order.
    pub calls: Vec<Range<usize>>,
    /// The samples of which each process has the latents and log-probabilities; prompts and calls are those of all.
    pub shares: Vec<Range<usize>>,
}

impl Trajectories {
    /// Returns these trajectories as the share of this process; `prompts` are those of all. Latents stay where they are.
    ///
    /// # Errors
    /// If another process ends before.
    pub fn shared(self, share: Range<usize>, prompts: Vec<usize>, processes: &Processes) -> Result<Self> {
        let calls = self.calls.iter().map(|call| call.start + share.start..call.end + share.start);
        let of_all = processes.gather((share.clone(), calls.collect::<Vec<_>>()))?;
        let (shares, calls): (Vec<_>, Vec<_>) = of_all.into_iter().unzip();
        Ok(Self { prompts, calls: calls.concat(), shares, ..self })
    }

    /// Returns the final latents, [n, c, h, w].
    pub fn last(&self) -> Tensor {
        self.latents.select(0, -1)
    }
}

/// Samples one trajectory per prompt index, with at most `micro_batch` UNet rows per call, which affects only speed,
/// memory and rounding. `done` receives the number of finished rows after every step.
///
/// # Errors
/// If there is no prompt, or `interrupt` is set.
pub fn rollout(
    policy: &Policy,
    prompts: &[usize],
    noise: &mut impl NoiseSource,
    micro_batch: usize,
    interrupt: &Interrupt,
    done: &mut dyn FnMut(usize),
) -> Result<Trajectories> {
    ensure!(!prompts.is_empty(), "there is nothing to sample: no prompt was given");
    let mut latents = Vec::new();
    let mut log_probs = Vec::new();
    let mut calls = Vec::new();
    for start in (0..prompts.len()).step_by(policy.samples_per_call(micro_batch)) {
        let range = start..(start + policy.samples_per_call(micro_batch)).min(prompts.len());
        let (chunk_latents, chunk_log_probs) = rollout_chunk(policy, prompts, range.clone(), noise, interrupt, done)?;
        latents.push(chunk_latents);
        log_probs.extend(chunk_log_probs);
        calls.push(range);
    }
    Ok(Trajectories {
        prompts: prompts.to_vec(),
        latents: Tensor::cat(&latents, 1),
        log_probs: (!log_probs.is_empty()).then(|| Tensor::cat(&log_probs, 1)),
        calls,
        shares: std::iter::once(0..prompts.len()).collect(),
    })
}

fn rollout_chunk(
    policy: &Policy,
    prompts: &[usize],
    range: Range<usize>,
    noise: &mut impl NoiseSource,
    interrupt: &Interrupt,
    done: &mut dyn FnMut(usize),
) -> Result<(Tensor, Option<Tensor>)> {
    // All that a step needs is on the device before the first one, so that no step waits for a transfer.
    let device = policy.device();
    let indices: Vec<i64> = prompts[range.clone()].iter().map(|&prompt| prompt as i64).collect();
    let text = policy.fixed_text(&Tensor::from_slice(&indices).f_to_device(device)?);
    let mut latents = vec![noise.initial(range.clone())?.f_to_device(device)? * policy.ddim.init_noise_sigma()];
    let step_noise = match policy.eta > 0.0 {
        true => Some(noise.steps(policy.ddim.timesteps().len(), range.clone())?.f_to_device(device)?),
        false => None,
    };
    let mut log_probs = Vec::new();
    for (step_idx, &timestep) in policy.ddim.timesteps().iter().enumerate() {
        interrupt.check("")?;
        let current = &latents[step_idx];
        let timesteps = Tensor::full([range.len() as i64], timestep, (Kind::Int64, device));
        let prediction = no_grad(|| policy.predict(current, &timesteps, &text));
        let step_noise = step_noise.as_ref().map(|noise| noise.get(step_idx as i64));
        let step = policy.step(&prediction, step_idx, current, step_noise.as_ref());
        latents.push(step.prev_sample);
        log_probs.extend(step.log_prob);
        done(range.len());
    }
    let log_probs = (!log_probs.is_empty()).then(|| Tensor::stack(&log_probs, 0));
    Ok((Tensor::stack(&latents, 0), log_probs))
}

/// The noise of a rollout; rows are sample indices.
pub trait NoiseSource {
    /// Returns the initial noise: standard normal, [rows, c, h, w].
    fn initial(&mut self, rows: Range<usize>) -> Result<Tensor>;
    /// Returns the noise of the steps after it: standard normal, [steps, rows, c, h, w].
    fn steps(&mut self, n_steps: usize, rows: Range<usize>) -> Result<Tensor>;
}

/// Given initial noise, for sampling at eta 0.
#[derive(Debug)]
pub struct GivenNoise(Tensor);

impl GivenNoise {
    /// Wraps standard normal noise, [n, c, h, w].
    pub fn new(initial: Tensor) -> Self {
        Self(initial)
    }
}

impl NoiseSource for GivenNoise {
    fn initial(&mut self, rows: Range<usize>) -> Result<Tensor> {
        Ok(self.0.narrow(0, rows.start as i64, rows.len() as i64))
    }

    fn steps(&mut self, _: usize, _: Range<usize>) -> Result<Tensor> {
        bail!("the steps' noise was not given, which eta above 0 needs")
    }
}

/// Noise of each sample from its own generators, so that the micro-batch size does not change it.
#[derive(Debug)]
pub struct SeededNoise {
    shape: [i64; 3],
    seeds: Vec<Seeds>,
    generators: Vec<Option<Generator>>,
}

#[derive(Clone, Copy, Debug)]
struct Seeds {
    initial: u64,
    /// Seed of the steps' noise; without it the generator of the initial noise continues, as in diffusers.
    steps: Option<u64>,
}

impl SeededNoise {
    /// Noise from one seed per sample, used as in diffusers: the initial noise, then that of the steps. `shape` is
    /// [c, h, w].
    pub fn of_seeds(shape: [i64; 3], seeds: Vec<u64>) -> Self {
        Self::new(shape, seeds.into_iter().map(|initial| Seeds { initial, steps: None }).collect())
    }

    /// The noise of some samples of an epoch.
    pub fn of_epoch(shape: [i64; 3], seed: u64, epoch: u64, samples: Range<usize>) -> Self {
        let seeds = samples.map(|i| i as u64).map(|i| Seeds {
            initial: derive_seed(seed, epoch, i, Purpose::Latents),
            steps: Some(derive_seed(seed, epoch, i, Purpose::StepNoise)),
        });
        Self::new(shape, seeds.collect())
    }

    /// The noise of some of the monitor's fixed samples.
    pub fn of_monitor(shape: [i64; 3], seed: u64, samples: Range<usize>) -> Self {
        let seeds = samples
            .map(|i| i as u64)
            .map(|i| Seeds { initial: derive_seed(seed, 0, i, Purpose::Monitor), steps: None });
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

    fn steps(&mut self, n_steps: usize, rows: Range<usize>) -> Result<Tensor> {
        let [c, h, w] = self.shape;
        let mut noise = Vec::with_capacity(rows.len());
        for row in rows {
            let generator = self.generators[row].as_mut().expect("the initial noise of a row is drawn first");
            let steps: Vec<Tensor> = (0..n_steps).map(|_| generator.normal(&[c, h, w])).collect::<Result<_, _>>()?;
            noise.push(Tensor::stack(&steps, 0));
        }
        Ok(Tensor::stack(&noise, 1))
    }
}
