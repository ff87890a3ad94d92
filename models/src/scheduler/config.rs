//! `scheduler_config.json`, the noise schedule that a model was trained with.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::diffusers::DIFFUSERS_VERSION;
use crate::error::{Error, Result};
use crate::json::{JsonObject, write_json};

/// The growth of β with the timestep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Linear in β.
    Linear,
    /// Linear in √β, as in latent diffusion.
    ScaledLinear,
    /// Nichol and Dhariwal's cosine schedule (arXiv 2102.09672).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// The quantity that the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The clean sample.
    Sample,
    /// √ᾱ ε − √(1−ᾱ) x₀ (Salimans and Ho, arXiv 2202.00512), as in SD 2.1 at 768 pixels.
    VPrediction,
}

/// The choice of the timesteps (Lin et al., arXiv 2305.08891, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Equally spaced from `steps_offset` upwards.
    Leading,
    /// Equally spaced from the last timestep downwards.
    Trailing,
    /// Equally spaced with both ends included.
    Linspace,
}

/// The largest number of timesteps that a network was trained with.
const MAX_TIMESTEPS: i64 = 100_000;

/// The configuration of a [`Ddim`](super::Ddim).
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// Number of timesteps that the network was trained with.
    pub num_train_timesteps: i64,
    /// First β.
    pub beta_start: f64,
    /// Last β.
    pub beta_end: f64,
    /// Growth of β between them.
    pub beta_schedule: BetaSchedule,
    /// Every β, which replaces the three values above.
    pub trained_betas: Option<Vec<f64>>,
    /// Whether the predicted clean sample is clamped.
    pub clip_sample: bool,
    /// Bound of the clamping.
    pub clip_sample_range: f64,
    /// Whether the last step of plain sampling goes to ᾱ = 1 instead of ᾱ₀.
    pub set_alpha_to_one: bool,
    /// Offset of the timesteps with leading spacing.
    pub steps_offset: i64,
    /// The quantity that the network predicts.
    pub prediction_type: PredictionType,
    /// The choice of the timesteps.
    pub timestep_spacing: TimestepSpacing,
    /// Whether the β are rescaled so that the last ᾱ is 0 (Lin et al., arXiv 2305.08891, algorithm 1).
    pub rescale_betas_zero_snr: bool,
}

/// The schedulers whose configurations contain all that DDIM needs, as for diffusers' `from_config`.
const COMPATIBLE: [&str; 15] = [
    "DDIMScheduler",
    "PNDMScheduler",
    "DDPMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
];

impl SchedulerConfig {
    /// The defaults of diffusers' `DDIMScheduler`, for absent keys.
    pub fn diffusers_default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            clip_sample: true,
            clip_sample_range: 1.0,
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            rescale_betas_zero_snr: false,
        }
    }

    /// Reads a `scheduler_config.json` of DDIM or of a scheduler that DDIM can replace. Absent keys have DDIM's
    /// defaults, but `clip_sample` is false if another scheduler's file lacks it: those schedulers never clip.
    pub fn read(path: &Path) -> Result<Self> {
        let file = JsonObject::read(path)?;
        let class: String = file.get("_class_name", "DDIMScheduler".to_owned())?;
        if !COMPATIBLE.contains(&class.as_str()) {
            return Err(file.error("_class_name", format!("is \"{class}\", from which no DDIM sampler can be built")));
        }
        file.only("thresholding", json!(false))?;
        let default = Self::diffusers_default();
        let config = Self {
            num_train_timesteps: file
                .int("num_train_timesteps", 1..=MAX_TIMESTEPS)?
                .unwrap_or(default.num_train_timesteps),
            beta_start: file.number("beta_start", 0.0..=1.0)?.unwrap_or(default.beta_start),
            beta_end: file.number("beta_end", 0.0..=1.0)?.unwrap_or(default.beta_end),
            beta_schedule: file.get("beta_schedule", default.beta_schedule)?,
            trained_betas: file.optional("trained_betas")?,
            clip_sample: file.get("clip_sample", class == "DDIMScheduler")?,
            clip_sample_range: file.number("clip_sample_range", 1e-6..=1e6)?.unwrap_or(default.clip_sample_range),
            set_alpha_to_one: file.get("set_alpha_to_one", default.set_alpha_to_one)?,
            steps_offset: file.int("steps_offset", 0..=MAX_TIMESTEPS)?.unwrap_or(default.steps_offset),
            prediction_type: file.get("prediction_type", default.prediction_type)?,
            timestep_spacing: file.get("timestep_spacing", default.timestep_spacing)?,
            rescale_betas_zero_snr: file.get("rescale_betas_zero_snr", default.rescale_betas_zero_snr)?,
        };
        match config.fault() {
            Some((key, message)) => Err(file.error(key, message)),
            None => {
                let key = if config.trained_betas.is_some() { "trained_betas" } else { "beta_schedule" };
                config.alphas_cumprod().map_err(|error| file.error(key, format!("leads to {error}")))?;
                Ok(config)
            }
        }
    }

    /// Replaces the values that diffusers' `StableDiffusionPipeline` does not accept, as it does, and says so.
    pub(crate) fn for_stable_diffusion(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.steps_offset != 1 {
            notes.push(format!("`steps_offset` is {}, but Stable Diffusion needs 1, which is used", self.steps_offset));
            self.steps_offset = 1;
        }
        if self.clip_sample {
            notes.push("`clip_sample` is true, but latents must not be clipped; false is used".to_owned());
            self.clip_sample = false;
        }
        notes
    }

    fn fault(&self) -> Option<(&'static str, String)> {
        let n = self.num_train_timesteps;
        if let Some(betas) = &self.trained_betas
            && betas.len() as i64 != n
        {
            return Some(("trained_betas", format!("has {} entries for {n} timesteps", betas.len())));
        }
        if self.rescale_betas_zero_snr && self.prediction_type == PredictionType::Epsilon {
            let message = "is true, so epsilon cannot be predicted: prediction_type must be v_prediction or sample";
            return Some(("rescale_betas_zero_snr", message.to_owned()));
        }
        None
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.fault() {
            Some((key, message)) => Err(Error::Input(format!("scheduler configuration: `{key}` {message}"))),
            None => Ok(()),
        }
    }

    /// ᾱ of every training timestep. The f32 arithmetic is that of diffusers, since models were trained with exactly
    /// these numbers.
    ///
    /// # Errors
    /// If a timestep has no noise or only noise; the last one may have only noise unless the network predicts noise.
    pub(super) fn alphas_cumprod(&self) -> Result<Vec<f64>> {
        let n = self.num_train_timesteps;
        let even = |from: f64, to: f64| Tensor::f_linspace(from, to, n, (Kind::Float, Device::Cpu));
        let betas = match (&self.trained_betas, self.beta_schedule) {
            (Some(betas), _) => Tensor::f_from_slice(betas)?.f_to_kind(Kind::Float)?,
            (None, BetaSchedule::Linear) => even(self.beta_start, self.beta_end)?,
            (None, BetaSchedule::ScaledLinear) => even(self.beta_start.sqrt(), self.beta_end.sqrt())?.f_square()?,
            (None, BetaSchedule::SquaredCosine) => {
                let level = |i: i64| {
                    let t = i as f64 / n as f64;
                    ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
                };
                let betas: Vec<f64> = (0..n).map(|i| (1.0 - level(i + 1) / level(i)).min(0.999)).collect();
                Tensor::f_from_slice(&betas)?.f_to_kind(Kind::Float)?
            }
        };
        let betas = if self.rescale_betas_zero_snr { rescale_zero_terminal_snr(&betas)? } else { betas };
        let alphas_cumprod = betas.f_neg()?.f_add_scalar(1.0)?.f_cumprod(0, Kind::Float)?;
        let alphas_cumprod = Vec::<f64>::try_from(alphas_cumprod.f_to_kind(Kind::Double)?)?;
        let last_may_be_zero = self.prediction_type != PredictionType::Epsilon;
        let sound = |t: usize, alpha: f64| {
            alpha > 0.0 && alpha < 1.0 || last_may_be_zero && alpha == 0.0 && t + 1 == n as usize
        };
        match alphas_cumprod.iter().enumerate().find(|&(t, &alpha)| !sound(t, alpha)) {
            Some((t, alpha)) => Err(Error::Input(format!("\u{3b1}\u{304} = {alpha} at timestep {t} of {n}"))),
            None => Ok(alphas_cumprod),
        }
    }

    /// The timesteps of `steps` steps, the noisiest first.
    pub(super) fn timesteps(&self, steps: usize) -> Result<Vec<i64>> {
        let n = self.num_train_timesteps;
        if steps == 0 || steps as i64 > n {
            return Err(Error::Input(format!("{steps} sampling steps: the number must be from 1 to {n}")));
        }
        let timesteps: Vec<i64> = match self.timestep_spacing {
            TimestepSpacing::Leading => {
                let stride = n / steps as i64;
                (0..steps as i64).rev().map(|i| i * stride + self.steps_offset).collect()
            }
            TimestepSpacing::Trailing => {
                let stride = n as f64 / steps as f64;
                (0..steps).map(|i| (n as f64 - i as f64 * stride).round_ties_even() as i64 - 1).collect()
            }
            TimestepSpacing::Linspace => {
                let stride = (n - 1) as f64 / (steps as f64 - 1.0).max(1.0);
                (0..steps).rev().map(|i| (i as f64 * stride).round_ties_even() as i64).collect()
            }
        };
        match timesteps.iter().find(|&&t| !(0..n).contains(&t)) {
            Some(t) => Err(Error::Input(format!(
                "{steps} sampling steps with steps_offset {} lead to timestep {t} of {n}: take fewer steps",
                self.steps_offset
            ))),
            None => Ok(timesteps),
        }
    }

    /// The configuration as diffusers' `DDIMScheduler` writes it.
    pub fn to_json(&self) -> Value {
        json!({
            "_class_name": "DDIMScheduler",
            "_diffusers_version": DIFFUSERS_VERSION,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "beta_start": self.beta_start,
            "clip_sample": self.clip_sample,
            "clip_sample_range": self.clip_sample_range,
            "dynamic_thresholding_ratio": 0.995,
            "num_train_timesteps": self.num_train_timesteps,
            "prediction_type": self.prediction_type,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
            "sample_max_value": 1.0,
            "set_alpha_to_one": self.set_alpha_to_one,
            "steps_offset": self.steps_offset,
            "thresholding": false,
            "timestep_spacing": self.timestep_spacing,
            "trained_betas": self.trained_betas,
        })
    }

    /// Writes `scheduler_config.json` into `dir`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join("scheduler_config.json"), &self.to_json())
    }
}

/// Rescales β so that the last ᾱ is 0 and the first is unchanged.
fn rescale_zero_terminal_snr(betas: &Tensor) -> Result<Tensor> {
    let sqrt = betas.f_neg()?.f_add_scalar(1.0)?.f_cumprod(0, Kind::Float)?.f_sqrt()?;
    let (first, last) = (sqrt.f_get(0)?, sqrt.f_get(-1)?);
    let shifted = sqrt.f_sub(&last)?.f_mul(&first.f_div(&first.f_sub(&last)?)?)?;
    let cumprod = shifted.f_square()?;
    let n = cumprod.size1()?;
    let ratios = cumprod.f_narrow(0, 1, n - 1)?.f_div(&cumprod.f_narrow(0, 0, n - 1)?)?;
    let alphas = Tensor::f_cat(&[cumprod.f_narrow(0, 0, 1)?, ratios], 0)?;
    Ok(alphas.f_neg()?.f_add_scalar(1.0)?)
}
