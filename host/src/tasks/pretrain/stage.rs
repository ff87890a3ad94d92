//! The task of the three stages: optimizer steps with a learning rate schedule, EMA, evaluation on held-out data.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ambiguity_models::params::NamedTensors;
use anyhow::{Context as _, Result};
use image::RgbImage;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Tensor;
use torch_ext::{AdamW, AdamWConfig, Generator};

use super::Session;
use crate::config::Checkpoint;
use crate::config::pretrain::{PretrainConfig, Schedule as Steps};
use crate::data::png::Sheet;
use crate::interrupt::Interrupt;
use crate::optim::{Ema, StepGuard, add_under, copy_into, under};
use crate::progress::Bar;
use crate::random::{Purpose, derive_seed};
use crate::run::record::PretrainEpoch;
use crate::trainer::{Claim, Monitored, Saved, Schedule, State, Task, Trained};

/// A stage of pretraining; the numbers are part of seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Text and image encoder.
    Clip = 0,
    /// Autoencoder.
    Vae = 1,
    /// Denoiser; needs the other two stages.
    UNet = 2,
}

impl Stage {
    /// All stages, in an order in which they can be trained.
    pub const ALL: [Self; 3] = [Self::Clip, Self::Vae, Self::UNet];

    /// Returns the stage's name in the configuration, on the command line and as a folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Vae => "vae",
            Self::UNet => "unet",
        }
    }

    /// Returns the stage's name in reports.
    pub fn title(self) -> &'static str {
        match self {
            Self::Clip => "CLIP",
            Self::Vae => "VAE",
            Self::UNet => "UNet",
        }
    }

    /// Returns the command that trains the stage, and resumes it with `--resume`.
    pub(super) fn command(self, out: &Path) -> String {
        format!("host pretrain {} --out {}", self.name(), out.display())
    }

    fn learning_rate_key(self) -> &'static str {
        match self {
            Self::Clip => "pretrain.clip.schedule.learning_rate",
            Self::Vae => "pretrain.vae.schedule.learning_rate",
            Self::UNet => "pretrain.unet.schedule.learning_rate",
        }
    }

    /// Returns the keys that a resumed stage may change: those of the other stages, and the number of steps (the
    /// learning rate is constant until the decay).
    pub(super) fn free_keys(self) -> Vec<&'static str> {
        let of = |stage: Self| match stage {
            Self::Clip => ["pretrain.clip", "pretrain.clip.schedule.steps", "pretrain.clip.schedule.decay_steps"],
            Self::Vae => ["pretrain.vae", "pretrain.vae.schedule.steps", "pretrain.vae.schedule.decay_steps"],
            Self::UNet => ["pretrain.unet", "pretrain.unet.schedule.steps", "pretrain.unet.schedule.decay_steps"],
        };
        let others = Self::ALL.into_iter().filter(|stage| *stage != self).map(|stage| of(stage)[0]);
        others.chain(of(self).into_iter().skip(1)).chain(["pretrain.weights", "pretrain.unet.samples"]).collect()
    }
}

impl PretrainConfig {
    /// Returns the schedule of a stage.
    pub(super) fn schedule(&self, stage: Stage) -> &Steps {
        match stage {
            Stage::Clip => &self.clip.schedule,
            Stage::Vae => &self.vae.schedule,
            Stage::UNet => &self.unet.schedule,
        }
    }
}

/// The model of a stage: its loss, its evaluation and its files.
pub trait Model {
    /// The record of an evaluation on held-out data.
    type Monitor: Serialize + DeserializeOwned + Clone + std::fmt::Debug;

    /// The stage.
    const STAGE: Stage;

    /// Returns the loss of step `step` and leaves its gradients in the parameters, which have none before.
    fn backward(&mut self, step: u64) -> Result<f64>;

    /// Evaluates the model on held-out data; returns a contact sheet too, if there is one. After the last step (`last`)
    /// the evaluation may take longer.
    fn evaluate(&mut self, last: bool) -> Result<(Self::Monitor, Option<RgbImage>)>;

    /// Writes the model's folder: the weights (their EMA, if there is one) and values of the last monitor.
    fn write(&self, session: &Session, weights: &NamedTensors, monitor: &Self::Monitor) -> Result<()>;
}

/// A stage in training.
pub struct Pretraining<M> {
    model: M,
    /// The trained weights.
    tensors: NamedTensors,
    steps: Steps,
    optimizer: AdamW,
    guard: StepGuard,
    ema: Option<Ema>,
    /// The folder of the models.
    out: PathBuf,
    interrupt: Interrupt,
}

/// The optimizer and the EMA of a stage's fresh weights, which become leaves that require gradients.
pub(super) struct Prepared {
    tensors: NamedTensors,
    steps: Steps,
    optimizer: AdamW,
    ema: Option<Ema>,
}

impl Prepared {
    /// Prepares `tensors` for a stage's schedule, with an EMA if there is an `ema_decay`.
    pub(super) fn new(tensors: NamedTensors, steps: &Steps, ema_decay: Option<f64>) -> Result<Self> {
        let leaves = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.set_requires_grad(true))).collect();
        let config = AdamWConfig {
            learning_rate: steps.learning_rate,
            beta1: steps.beta1,
            beta2: steps.beta2,
            weight_decay: steps.weight_decay,
            epsilon: steps.epsilon,
        };
        let optimizer = AdamW::new(leaves, config)?;
        let ema = ema_decay.map(|decay| Ema::new(&tensors, decay));
        Ok(Self { tensors, steps: steps.clone(), optimizer, ema })
    }

    /// Returns the EMA, which training updates in place; shared, not copied.
    pub(super) fn averages(&self) -> Option<NamedTensors> {
        let shared = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.shallow_clone());
        self.ema.as_ref().map(|ema| ema.tensors().iter().map(shared).collect())
    }

    /// Returns the stage, ready to train.
    pub(super) fn with<M: Model>(self, model: M, session: &Session) -> Pretraining<M> {
        let Self { tensors, steps, optimizer, ema } = self;
        let guard = StepGuard::new(M::STAGE.learning_rate_key());
        let (out, interrupt) = (session.out.to_owned(), session.context.interrupt.clone());
        Pretraining { model, tensors, steps, optimizer, guard, ema, out, interrupt }
    }
}

impl<M: Model> Pretraining<M> {
    /// Writes the model's folder.
    pub(super) fn write(&self, session: &Session, monitor: &M::Monitor) -> Result<()> {
        self.model.write(session, self.ema.as_ref().map_or(&self.tensors, Ema::tensors), monitor)
    }

    /// Returns the number of finished steps at the end of an epoch.
    fn step_after(&self, epoch: u64) -> u64 {
        (epoch * self.steps.steps_per_epoch).min(self.steps.steps)
    }
}

impl<M: Model> Task for Pretraining<M> {
    type Epoch = PretrainEpoch;
    type Monitor = M::Monitor;

    fn resume_command(&self, _: &Path) -> (String, bool) {
        (format!("{} --resume", M::STAGE.command(&self.out)), false)
    }

    fn schedule(&self) -> Schedule {
        Schedule {
            epochs: self.steps.epochs(),
            checkpoint: Checkpoint { every: 1, keep: 1 },
            monitor_every: self.steps.evaluate_every,
            collapse: None,
            progress: (self.steps.steps_per_epoch, "steps"),
        }
    }

    fn train_epoch(&mut self, epoch: u64, bar: &Bar) -> Result<Trained<PretrainEpoch>> {
        let began = Instant::now();
        let (first, end) = (self.step_after(epoch - 1), self.step_after(epoch));
        let (mut sum, mut dropped_steps) = (0.0, 0);
        for step in first..end {
            self.interrupt.check("")?;
            self.optimizer.set_learning_rate(self.steps.learning_rate_at(step));
            self.optimizer.zero_grad();
            sum += self.model.backward(step)?;
            if self.guard.step(&mut self.optimizer, self.steps.max_grad_norm)?.is_none() {
                dropped_steps += 1;
            }
            if let Some(ema) = &mut self.ema {
                ema.update_warm(self.optimizer.parameters(), step + 1)?;
            }
            bar.inc(1);
            bar.message(format!("{} loss {:.4}", M::STAGE.name(), sum / (step + 1 - first) as f64));
        }
        let record = PretrainEpoch {
            step: end,
            loss: sum / (end - first) as f64,
            dropped_steps,
            train_seconds: began.elapsed().as_secs_f64(),
        };
        Ok(Trained { message: format!("loss {:.4}", record.loss), record, warnings: Vec::new(), kept: None })
    }

    fn monitor(&mut self, epoch: u64) -> Result<Option<Monitored<M::Monitor>>> {
        let (record, sheet) = self.model.evaluate(epoch == self.steps.epochs())?;
        Ok(Some(Monitored {
            record,
            score: None,
            diversity: None,
            sheet: sheet.map(Sheet::from),
            images: Vec::new(),
            kept: None,
        }))
    }

    fn warnings(&self, _: u64, trained: &PretrainEpoch, _: Option<&M::Monitor>, _: f64) -> Vec<String> {
        let dropped = Some(trained.dropped_steps).filter(|dropped| *dropped > 0);
        let warning = |n| format!("{n} optimizer steps were dropped because their gradient was not finite");
        dropped.map(warning).into_iter().collect()
    }

    fn counteract(&mut self) -> Option<String> {
        None
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        add_under(&mut state.tensors, "weights", self.tensors.iter().map(|(name, t)| (name, t.shallow_clone())));
        add_under(&mut state.tensors, "optimizer", self.optimizer.state());
        if let Some(ema) = &self.ema {
            add_under(&mut state.tensors, "ema", ema.tensors().iter().map(|(name, t)| (name, t.shallow_clone())));
        }
        state.metadata = vec![("dropped_in_a_row", self.guard.dropped_in_a_row.to_string())];
        Ok(state)
    }

    fn restore(&mut self, saved: &Saved, _: &Claim) -> Result<()> {
        copy_into(&self.tensors, &under(&saved.tensors, "weights")).context("weights")?;
        self.optimizer.load_state(&under(&saved.tensors, "optimizer"))?;
        if let Some(ema) = &mut self.ema {
            ema.load(&under(&saved.tensors, "ema")).context("ema")?;
        }
        self.guard.dropped_in_a_row = saved.json("dropped_in_a_row")?;
        Ok(())
    }

    /// Returns no files: the model has its own folder, which is written at the end of the training.
    fn products(&mut self) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(Vec::new())
    }
}

/// Returns the generator for part `part` of `parts` in step `step`.
pub(super) fn generator(seed: u64, stage: Stage, step: u64, part: usize, parts: usize) -> Result<Generator> {
    let index = step * parts as u64 + part as u64;
    Ok(Generator::cpu(derive_seed(seed, stage as u64, index, Purpose::Update))?)
}

/// Returns the seed of a stage's fresh weights.
pub(super) fn weights_seed(seed: u64, stage: Stage) -> u64 {
    derive_seed(seed, stage as u64, 0, Purpose::Weights)
}
