//! The loop that the three stages share: learning rate, update, moving average, held-out figures, checkpoints.
//!
//! Every draw of a step comes from a generator seeded by (seed, stage, step), so a checkpoint needs no generator's state:
//! weights, moving average, optimizer and the number of steps done say everything.

use std::path::PathBuf;
use std::time::Instant;

use ambiguity_models::params::NamedTensors;
use ambiguity_models::safetensors::{read_safetensors_with_metadata, write_safetensors};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tch::no_grad;
use torch_ext::{AdamW, AdamWConfig, clip_grad_norm};

use super::config::Schedule;
use super::journal::{Figures, Journal};
use super::{Session, Stage};
use crate::interrupt::Interrupted;

/// So many updates in a row may have a gradient that is no number before training gives up.
const MAX_BAD_STEPS: u32 = 5;
/// Steps over which the loss that is shown is averaged.
const SHOWN_LOSS_STEPS: f64 = 50.0;

/// What is particular to a stage.
pub trait Task {
    /// The loss of step `step`; leaves the gradients in the parameters, which have none before.
    fn backward(&mut self, step: u64) -> Result<f64>;

    /// Figures on held-out data after `steps` steps. At the end (`last`) they may take longer.
    fn evaluate(&mut self, steps: u64, last: bool) -> Result<Figures>;
}

/// The state of a stage's training.
pub struct Trainer<'a> {
    session: &'a Session<'a>,
    stage: Stage,
    schedule: &'a Schedule,
    optimizer: AdamW,
    average: Option<Average>,
    step: u64,
    seconds: f64,
}

/// The moving average of the weights.
struct Average {
    decay: f64,
    tensors: NamedTensors,
}

impl<'a> Trainer<'a> {
    /// A trainer of these parameters, which are turned into leaves that take gradients; where a checkpoint is to be
    /// gone on from, they get its values.
    pub fn new(
        session: &'a Session<'a>,
        stage: Stage,
        schedule: &'a Schedule,
        parameters: &NamedTensors,
        ema_decay: Option<f64>,
    ) -> Result<Self> {
        let leaves = parameters.iter().map(|(name, tensor)| (name.clone(), tensor.set_requires_grad(true))).collect();
        let config = AdamWConfig {
            learning_rate: schedule.learning_rate,
            beta1: schedule.beta1,
            beta2: schedule.beta2,
            weight_decay: schedule.weight_decay,
            epsilon: schedule.epsilon,
        };
        let optimizer = AdamW::new(leaves, config)?;
        let copies = || parameters.iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy())).collect();
        let average = ema_decay.map(|decay| Average { decay, tensors: copies() });
        let mut trainer = Self { session, stage, schedule, optimizer, average, step: 0, seconds: 0.0 };
        if session.resume && trainer.path().exists() {
            trainer.load()?;
        }
        Ok(trainer)
    }

    /// The moving average of the weights; updated in place as training goes on.
    pub fn average(&self) -> Option<&NamedTensors> {
        self.average.as_ref().map(|average| &average.tensors)
    }

    /// Minutes of training so far, by the wall clock, all pieces together.
    pub fn minutes(&self) -> f64 {
        self.seconds / 60.0
    }

    /// Trains to the end and gives the last figures. On Ctrl-C a checkpoint is written and [`Interrupted`] returned.
    pub fn train(&mut self, task: &mut dyn Task) -> Result<Figures> {
        let journal = Journal::of(self.session.out);
        let mut bar = self.session.progress.bar(self.stage.name(), self.schedule.steps, "steps");
        bar.skip(self.step);
        let mut shown = None;
        let mut bad_steps = 0;
        while self.step < self.schedule.steps {
            let began = Instant::now();
            let loss = self.one_step(task, &mut bad_steps)?;
            let mean: &mut f64 = shown.get_or_insert(loss);
            *mean += (loss - *mean) / SHOWN_LOSS_STEPS;
            bar.message(format!("loss {mean:.4}"));
            bar.inc(1);
            if self.step.is_multiple_of(self.schedule.evaluate_every) && self.step < self.schedule.steps {
                let figures = Figures::default().add("loss", *mean).join(task.evaluate(self.step, false)?);
                self.session.progress.println(format!("{} step {}: {figures}", self.stage.name(), self.step));
                journal.write(self.stage, self.step, false, &figures)?;
            }
            self.seconds += began.elapsed().as_secs_f64();
            let stop = self.session.interrupt.requested();
            if stop || self.step.is_multiple_of(self.schedule.checkpoint_every) || self.step == self.schedule.steps {
                self.save()?;
            }
            if stop {
                let (path, step) = (self.path(), self.step);
                let kept = format!("step {step} is kept in {}; go on with --resume", path.display());
                return Err(Interrupted { kept }.into());
            }
        }
        bar.finish();
        let began = Instant::now();
        let figures = task.evaluate(self.step, true)?;
        self.seconds += began.elapsed().as_secs_f64();
        Ok(figures)
    }

    fn one_step(&mut self, task: &mut dyn Task, bad_steps: &mut u32) -> Result<f64> {
        self.optimizer.set_learning_rate(self.schedule.learning_rate_at(self.step));
        self.optimizer.zero_grad();
        let loss = task.backward(self.step)?;
        let leaves = self.optimizer.parameters().iter().map(|(_, tensor)| tensor);
        let norm = clip_grad_norm(leaves, self.schedule.max_grad_norm)?.double_value(&[]);
        if norm.is_finite() {
            *bad_steps = 0;
            self.optimizer.step()?;
        } else {
            *bad_steps += 1;
            tracing::warn!("{} step {}: the gradient is not finite, left out", self.stage.name(), self.step);
            if *bad_steps >= MAX_BAD_STEPS {
                bail!(
                    "{bad_steps} updates in a row had no finite gradient: lower `pretrain.{}.schedule.learning_rate`",
                    self.stage.name()
                );
            }
        }
        self.step += 1;
        if let Some(average) = &mut self.average {
            average.follow(&self.optimizer, self.step);
        }
        Ok(loss)
    }

    /// The checkpoint's file.
    fn path(&self) -> PathBuf {
        self.session.checkpoint(self.stage)
    }

    fn save(&self) -> Result<()> {
        let mut tensors = NamedTensors::new();
        for (name, tensor) in self.optimizer.parameters() {
            tensors.insert(format!("weights.{name}"), tensor.detach());
        }
        for (name, tensor) in self.average.iter().flat_map(|average| &average.tensors) {
            tensors.insert(format!("average.{name}"), tensor.shallow_clone());
        }
        for (name, tensor) in self.optimizer.state() {
            tensors.insert(format!("optimizer.{name}"), tensor);
        }
        let (step, seconds) = (self.step.to_string(), self.seconds.to_string());
        let config = self.session.fingerprint(self.stage).to_string();
        write_safetensors(
            &self.path(),
            &tensors,
            &[("step", step.as_str()), ("seconds", seconds.as_str()), ("config", config.as_str())],
        )?;
        Ok(())
    }

    fn load(&mut self) -> Result<()> {
        let path = self.path();
        let (tensors, metadata) = read_safetensors_with_metadata(&path)?;
        let entry = |key: &str| metadata.get(key).with_context(|| format!("{} has no `{key}`", path.display()));
        let config: Value = serde_json::from_str(entry("config")?)?;
        if let Some(difference) = difference("pretrain", &config, &self.session.fingerprint(self.stage)) {
            bail!("{} can't be gone on from: {difference}", path.display());
        }
        let below = |prefix: &str| -> NamedTensors {
            let strip = |(name, tensor): (&String, &tch::Tensor)| {
                Some((name.strip_prefix(prefix)?.to_owned(), tensor.shallow_clone()))
            };
            tensors.iter().filter_map(strip).collect()
        };
        let weights = below("weights.");
        let average = below("average.");
        no_grad(|| -> Result<()> {
            for (name, leaf) in self.optimizer.parameters() {
                copy(&weights, name, leaf, &path)?;
            }
            for (name, tensor) in self.average.iter().flat_map(|average| &average.tensors) {
                copy(&average, name, tensor, &path)?;
            }
            Ok(())
        })?;
        self.optimizer.load_state(&below("optimizer."))?;
        self.step = entry("step")?.parse()?;
        self.seconds = entry("seconds")?.parse()?;
        ensure!(
            self.step <= self.schedule.steps,
            "{} is at step {}, `pretrain.{}.schedule.steps` is {}",
            path.display(),
            self.step,
            self.stage.name(),
            self.schedule.steps
        );
        tracing::info!("going on from step {} of {}", self.step, path.display());
        Ok(())
    }
}

impl Average {
    /// Takes in the weights after `steps` steps; the decay is lower at first, so that the start is soon forgotten.
    fn follow(&mut self, optimizer: &AdamW, steps: u64) {
        let decay = self.decay.min((1.0 + steps as f64) / (10.0 + steps as f64));
        no_grad(|| {
            for (name, leaf) in optimizer.parameters() {
                let tensor = self.tensors.get_mut(name).expect("the average was copied from these parameters");
                let _ = tensor.lerp_(leaf, 1.0 - decay);
            }
        });
    }
}

fn copy(from: &NamedTensors, name: &str, to: &tch::Tensor, path: &std::path::Path) -> Result<()> {
    let tensor = from.get(name).with_context(|| format!("{} has no values for `{name}`", path.display()))?;
    ensure!(tensor.size() == to.size(), "`{name}` in {} has shape {:?}", path.display(), tensor.size());
    to.shallow_clone().f_copy_(tensor)?;
    Ok(())
}

/// The first value in which two configurations differ, in words.
fn difference(path: &str, then: &Value, now: &Value) -> Option<String> {
    match (then, now) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys());
            let null = json!(null);
            keys.into_iter().find_map(|key| {
                difference(&format!("{path}.{key}"), a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null))
            })
        }
        _ if then == now => None,
        _ => Some(format!("`{path}` was {then} when it was written and is {now} now")),
    }
}
