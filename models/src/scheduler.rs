//! DDIM: the sampler's step and, beside it, the step's log-probability (Song, Meng and Ermon, Denoising Diffusion
//! Implicit Models, arXiv 2010.02502; Black et al., Training Diffusion Models with Reinforcement Learning, arXiv
//! 2305.13301), after diffusers' `scheduling_ddim.py`.
//!
//! The step's distribution is normal with a mean that is linear in the sample and the network's output, except for
//! clipping: x₀ = (x − √(1−ᾱ) ε) / √ᾱ, μ = √ᾱ' x₀ + √(1−ᾱ'−σ²) ε, σ² = η² (1−ᾱ')/(1−ᾱ) (1−ᾱ/ᾱ') (equations 12 and 16).
//! The coefficients are computed in f64 and used in f32, from a table with one row per step: sampling uses one row for
//! the whole batch, training one row per sample, by the same code, so that both get the same numbers.

mod config;

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

pub use config::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing};

use crate::error::Result;

/// The ᾱ that the last step ends at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastStep {
    /// diffusers' `final_alpha_cumprod`, for plain sampling.
    FinalAlpha,
    /// ᾱ₀, as in DDPO, so that the last step is also stochastic at eta > 0.
    Stochastic,
}

/// The result of one step.
#[derive(Debug)]
pub struct Step {
    /// The less noisy sample, [n, c, h, w], f32.
    pub prev_sample: Tensor,
    /// The mean of its distribution, [n, c, h, w], f32.
    pub mean: Tensor,
    /// The standard deviation of its distribution.
    pub std: f64,
    /// The log-probability of `prev_sample`, averaged over its elements, \[n\], f32; none if the step is deterministic.
    pub log_prob: Option<Tensor>,
}

/// The steps that the rows of a batch are at.
#[derive(Clone, Copy, Debug)]
pub enum StepIndex<'a> {
    /// All rows at one step.
    Same(usize),
    /// One index per row, \[n\], i64, on the batch's device.
    PerRow(&'a Tensor),
}

impl From<usize> for StepIndex<'_> {
    fn from(index: usize) -> Self {
        Self::Same(index)
    }
}

impl<'a> From<&'a Tensor> for StepIndex<'a> {
    fn from(indices: &'a Tensor) -> Self {
        Self::PerRow(indices)
    }
}

/// A DDIM sampler with a fixed number of steps.
#[derive(Debug)]
pub struct Ddim {
    config: SchedulerConfig,
    alphas_cumprod: Vec<f64>,
    timesteps: Vec<i64>,
    tables: Mutex<Vec<(TableKey, Tensor)>>,
}

impl Ddim {
    /// Builds a sampler of `steps` steps; an error if the configuration does not allow so many.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        config.check()?;
        let alphas_cumprod = config.alphas_cumprod()?;
        let timesteps = config.timesteps(steps)?;
        Ok(Self { config: config.clone(), alphas_cumprod, timesteps, tables: Mutex::default() })
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// The timesteps in sampling order, the noisiest first.
    pub fn timesteps(&self) -> &[i64] {
        &self.timesteps
    }

    /// ᾱ of every training timestep, with diffusers' f32 values.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Factor that standard normal noise is multiplied by before the first step: always 1.
    pub fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// The standard deviation of a step.
    pub fn std(&self, step_idx: usize, eta: f64, last: LastStep) -> f64 {
        self.coefficients(step_idx, eta, last).std
    }

    /// Takes one step with a whole batch. `model_output` may be of any floating-point type; `noise` is standard normal
    /// and is scaled here; without noise the step goes to the mean.
    pub fn step(
        &self,
        model_output: &Tensor,
        step_idx: usize,
        sample: &Tensor,
        eta: f64,
        noise: Option<&Tensor>,
        last: LastStep,
    ) -> Step {
        let rows = self.rows(StepIndex::Same(step_idx), eta, last, sample.device());
        let mean = self.mean(&rows, model_output, sample);
        let std = self.std(step_idx, eta, last);
        let prev_sample = match noise {
            Some(noise) => &mean + noise.to_kind(Kind::Float) * rows.get(STD),
            None => mean.shallow_clone(),
        };
        let log_prob = (std > 0.0).then(|| normal_log_prob(&rows, &mean, &prev_sample));
        Step { prev_sample, mean, std, log_prob }
    }

    /// The log-probability of having stepped from `sample` to `prev_sample`, averaged over the elements, \[n\], f32,
    /// for rows that may each be at another step. Gradients flow to `model_output`. Infinite if a step is deterministic
    /// (see [`Ddim::std`]).
    pub fn log_prob<'a>(
        &self,
        model_output: &Tensor,
        steps: impl Into<StepIndex<'a>>,
        sample: &Tensor,
        prev_sample: &Tensor,
        eta: f64,
        last: LastStep,
    ) -> Tensor {
        let rows = self.rows(steps.into(), eta, last, sample.device());
        normal_log_prob(&rows, &self.mean(&rows, model_output, sample), prev_sample)
    }

    /// The KL divergence between the steps' distributions under two outputs, averaged over the elements, \[n\], f32:
    /// they share their variance, so it is (μ − μ')² / 2σ². Gradients flow to `model_output`.
    pub fn kl_divergence<'a>(
        &self,
        model_output: &Tensor,
        reference_output: &Tensor,
        steps: impl Into<StepIndex<'a>>,
        sample: &Tensor,
        eta: f64,
        last: LastStep,
    ) -> Tensor {
        let rows = self.rows(steps.into(), eta, last, sample.device());
        let reference = self.mean(&rows, reference_output, sample).detach();
        -mean_square(&(self.mean(&rows, model_output, sample) - reference)) * rows.flat(LOG_PROB_SCALE)
    }

    /// Adds noise to clean latents at training timesteps \[n\], i64: √ᾱ x + √(1−ᾱ) ε.
    pub fn add_noise(&self, clean: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Tensor {
        let table = self.table(TableKey::AddNoise(clean.device()));
        let rows = Rows { values: table.index_select(0, timesteps) };
        clean * rows.get(0) + noise * rows.get(1)
    }

    fn mean(&self, rows: &Rows, model_output: &Tensor, sample: &Tensor) -> Tensor {
        let (output, sample) = (model_output.to_kind(Kind::Float), sample.to_kind(Kind::Float));
        if !self.config.clip_sample {
            return sample * rows.get(MEAN_SAMPLE) + output * rows.get(MEAN_OUTPUT);
        }
        let range = self.config.clip_sample_range;
        let original = &sample * rows.get(ORIGINAL_SAMPLE) + &output * rows.get(ORIGINAL_OUTPUT);
        let noise = sample * rows.get(NOISE_SAMPLE) + output * rows.get(NOISE_OUTPUT);
        original.clamp(-range, range) * rows.get(SQRT_ALPHA_PREV) + noise * rows.get(DIRECTION)
    }

    fn rows(&self, steps: StepIndex, eta: f64, last: LastStep, device: Device) -> Rows {
        let table = self.table(TableKey::Steps(eta.to_bits(), last, device));
        let values = match steps {
            StepIndex::Same(index) => table.narrow(0, index as i64, 1),
            StepIndex::PerRow(indices) => table.index_select(0, indices),
        };
        Rows { values }
    }

    /// The table for one key, computed at its first use and kept on its device, so that steps never wait for a
    /// transfer.
    fn table(&self, key: TableKey) -> Tensor {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, table)) = tables.iter().find(|(known, _)| *known == key) {
            return table.shallow_clone();
        }
        let (values, device): (Vec<f64>, Device) = match key {
            TableKey::Steps(eta, last, device) => {
                let eta = f64::from_bits(eta);
                let rows = 0..self.timesteps.len();
                (rows.flat_map(|i| self.coefficients(i, eta, last).columns()).collect(), device)
            }
            TableKey::AddNoise(device) => {
                (self.alphas_cumprod.iter().flat_map(|&alpha| [alpha.sqrt(), (1.0 - alpha).sqrt()]).collect(), device)
            }
        };
        let n_rows = match key {
            TableKey::Steps(..) => self.timesteps.len(),
            TableKey::AddNoise(_) => self.alphas_cumprod.len(),
        };
        let table = Tensor::from_slice(&values).view([n_rows as i64, -1]).to_kind(Kind::Float).to_device(device);
        tables.push((key, table.shallow_clone()));
        table
    }

    fn coefficients(&self, step_idx: usize, eta: f64, last: LastStep) -> Coefficients {
        let timestep = self.timesteps[step_idx];
        let n_train = self.alphas_cumprod.len() as i64;
        let previous = timestep - n_train / self.timesteps.len() as i64;
        let alpha = self.alphas_cumprod[timestep as usize];
        let alpha_prev = match last {
            _ if previous >= 0 => self.alphas_cumprod[previous as usize],
            LastStep::FinalAlpha if self.config.set_alpha_to_one => 1.0,
            _ => self.alphas_cumprod[0],
        };
        let variance = (1.0 - alpha_prev) / (1.0 - alpha) * (1.0 - alpha / alpha_prev);
        let std = eta * variance.max(0.0).sqrt();
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        // x₀ and ε as linear combinations of (sample, output).
        let (original, epsilon) = match self.config.prediction_type {
            PredictionType::Epsilon => ([1.0 / signal, -noise / signal], [0.0, 1.0]),
            PredictionType::Sample => ([0.0, 1.0], [1.0 / noise, -signal / noise]),
            PredictionType::VPrediction => ([signal, -noise], [noise, signal]),
        };
        let sqrt_alpha_prev = alpha_prev.sqrt();
        let direction = (1.0 - alpha_prev - std * std).max(0.0).sqrt();
        Coefficients { original, epsilon, sqrt_alpha_prev, direction, std }
    }
}

/// The key of a table of coefficients: an eta (its bits), a kind of last step and a device, or adding noise.
#[derive(Clone, Copy, Debug, PartialEq)]
enum TableKey {
    Steps(u64, LastStep, Device),
    AddNoise(Device),
}

struct Coefficients {
    original: [f64; 2],
    epsilon: [f64; 2],
    sqrt_alpha_prev: f64,
    direction: f64,
    std: f64,
}

const MEAN_SAMPLE: i64 = 0;
const MEAN_OUTPUT: i64 = 1;
const STD: i64 = 2;
const LOG_PROB_SCALE: i64 = 3;
const LOG_PROB_OFFSET: i64 = 4;
const ORIGINAL_SAMPLE: i64 = 5;
const ORIGINAL_OUTPUT: i64 = 6;
const NOISE_SAMPLE: i64 = 7;
const NOISE_OUTPUT: i64 = 8;
const SQRT_ALPHA_PREV: i64 = 9;
const DIRECTION: i64 = 10;

impl Coefficients {
    /// The coefficients in the order of the constants above.
    fn columns(&self) -> [f64; 11] {
        let mean = |i: usize| self.sqrt_alpha_prev * self.original[i] + self.direction * self.epsilon[i];
        [
            mean(0),
            mean(1),
            self.std,
            -0.5 / (self.std * self.std),
            -self.std.ln() - 0.5 * (2.0 * std::f64::consts::PI).ln(),
            self.original[0],
            self.original[1],
            self.epsilon[0],
            self.epsilon[1],
            self.sqrt_alpha_prev,
            self.direction,
        ]
    }
}

/// The coefficients of a batch, [n or 1, columns].
struct Rows {
    values: Tensor,
}

impl Rows {
    /// Returns one column as [n or 1, 1, 1, 1].
    fn get(&self, column: i64) -> Tensor {
        self.values.narrow(1, column, 1).view([-1, 1, 1, 1])
    }

    /// Returns one column as [n or 1].
    fn flat(&self, column: i64) -> Tensor {
        self.values.select(1, column)
    }
}

/// Mean over the elements of log N(prev; mean, std²), \[n\].
fn normal_log_prob(rows: &Rows, mean: &Tensor, prev_sample: &Tensor) -> Tensor {
    let difference = prev_sample.detach().to_kind(Kind::Float) - mean;
    mean_square(&difference) * rows.flat(LOG_PROB_SCALE) + rows.flat(LOG_PROB_OFFSET)
}

/// Mean over the elements of x², [n, c, h, w] to \[n\]. The mean is computed in two stages, so that libtorch does not
/// split a row's sum among threads at any batch size: a row's result is the same in any batch.
fn mean_square(x: &Tensor) -> Tensor {
    let averages = x.square().mean_dim([3i64].as_slice(), false, Kind::Float).flatten(1, 2);
    averages.mean_dim([1i64].as_slice(), false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use torch_ext::Generator;

    fn stable_diffusion() -> SchedulerConfig {
        SchedulerConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            clip_sample: false,
            set_alpha_to_one: false,
            steps_offset: 1,
            ..SchedulerConfig::diffusers_default()
        }
    }

    #[test]
    fn thirty_steps_are_the_papers() {
        let ddim = Ddim::new(&stable_diffusion(), 30).unwrap();
        assert_eq!(ddim.timesteps()[..3], [958, 925, 892]);
        assert_eq!(ddim.timesteps()[28..], [34, 1]);
        let std = ddim.std(29, 1.0, LastStep::Stochastic);
        assert!((std - 0.02065).abs() < 1e-5, "{std}");
    }

    #[test]
    fn set_alpha_to_one_makes_only_plain_samplings_last_step_certain() {
        let ddim = Ddim::new(&SchedulerConfig { set_alpha_to_one: true, ..stable_diffusion() }, 10).unwrap();
        assert_eq!(ddim.std(9, 1.0, LastStep::FinalAlpha), 0.0);
        assert!(ddim.std(9, 1.0, LastStep::Stochastic) > 0.0);
    }

    /// On the CPU, whose sums depend on how threads share them.
    #[test]
    fn sampling_and_training_agree_bit_for_bit() {
        for clip_sample in [false, true] {
            let ddim = Ddim::new(&SchedulerConfig { clip_sample, ..stable_diffusion() }, 10).unwrap();
            let mut generator = Generator::cpu(1).unwrap();
            // Rows that are large enough for libtorch to split a sum among threads.
            let mut normal = || generator.normal(&[3, 4, 96, 96]).unwrap();
            let (output, sample, noise) = (normal(), normal(), normal());
            let indices = [7i64, 0, 9];
            let row = |x: &Tensor, i: i64| x.narrow(0, i, 1);
            let mut prev = Vec::new();
            let mut log_probs = Vec::new();
            for (i, &step) in (0i64..).zip(&indices) {
                let noise = row(&noise, i);
                let (output, sample) = (row(&output, i), row(&sample, i));
                let step = ddim.step(&output, step as usize, &sample, 1.0, Some(&noise), LastStep::Stochastic);
                prev.push(step.prev_sample);
                log_probs.push(step.log_prob.unwrap());
            }
            let (prev, sampled) = (Tensor::cat(&prev, 0), Tensor::cat(&log_probs, 0));
            let steps = Tensor::from_slice(&indices);
            let trained = ddim.log_prob(&output, &steps, &sample, &prev, 1.0, LastStep::Stochastic);
            assert_eq!(sampled.size(), [3]);
            assert_eq!(sampled, trained);
        }
    }

    #[test]
    fn impossible_numbers_of_steps_are_refused() {
        for steps in [0, 1000, 1001] {
            let error = Ddim::new(&stable_diffusion(), steps).unwrap_err().to_string();
            assert!(error.contains("steps"), "{error}");
        }
    }
}
