//! `host pretrain`: trains the shipped small models, CLIP, autoencoder and UNet, on the procedural paintings.
//!
//! ```text
//! paintings ─► CLIP (contrastive)      ─► OUT/clip
//!           ─► VAE (reconstruction)    ─► OUT/diffusion/vae
//!           ─► VAE latents, CLIP texts ─► UNet (epsilon) ─► OUT/diffusion
//! ```
//!
//! Each stage is a run in OUT/training/STAGE.
//!
//! # Layout
//!
//! - this file: the sequence of stages
//! - [`stage`]: the task that the stages share
//! - `clip`, `vae`, `unet`: one stage each · `evaluate`: zero-shot accuracy, PSNR, image grids
//! - `data`: paintings in memory, captions as token ids · `vocabulary`: the tokenizer's vocabulary
//! - `parallel`: parts of a batch in parallel · `card`: the model cards

mod card;
mod clip;
mod data;
mod evaluate;
mod parallel;
pub mod stage;
mod unet;
mod vae;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ambiguity_models::safetensors::read_safetensors;
use anyhow::{Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tch::Device;

use self::stage::{Model, Pretraining, Stage};
use crate::config::pretrain::PretrainFile;
use crate::config::{PretrainConfig, RunConfig as _};
use crate::context::Context;
use crate::hardware;
use crate::run::record::{ClipMonitor, PretrainEpoch, PretrainRecord, UNetMonitor, VaeMonitor};
use crate::run::{self, PluginsLock, RunInfo, unix_seconds};
use crate::trainer::{Start, Trainer};

/// The inputs of a pretraining.
pub struct Session<'a> {
    /// The complete configuration.
    pub config: &'a PretrainFile,
    /// The folder of the models.
    pub out: &'a Path,
    /// Whether to resume from checkpoints and skip finished stages.
    pub resume: bool,
    /// The command's context.
    pub context: &'a Context,
}

/// The metrics of a finished stage, and its cost.
#[derive(Clone, Debug, Serialize)]
pub struct Finished<M> {
    /// The record of the last monitor.
    #[serde(flatten)]
    pub monitor: M,
    /// Number of parameters.
    pub parameters: usize,
    /// Minutes of training.
    pub minutes: f64,
    /// Number of compute threads.
    pub threads: usize,
}

impl Session<'_> {
    fn pretrain(&self) -> &PretrainConfig {
        &self.config.pretrain
    }

    /// Returns the folder of the CLIP model.
    pub fn clip_dir(&self) -> PathBuf {
        self.out.join("clip")
    }

    /// Returns the folder of the diffusion pipeline.
    pub fn diffusion_dir(&self) -> PathBuf {
        self.out.join("diffusion")
    }

    /// Returns the run's folder of a stage.
    fn run_dir(&self, stage: Stage) -> PathBuf {
        self.out.join("training").join(stage.name())
    }

    /// Returns the file of weights that a finished stage writes.
    fn product(&self, stage: Stage) -> PathBuf {
        match stage {
            Stage::Clip => self.clip_dir().join("model.safetensors"),
            Stage::Vae => self.diffusion_dir().join("vae/diffusion_pytorch_model.safetensors"),
            Stage::UNet => self.diffusion_dir().join("unet/diffusion_pytorch_model.safetensors"),
        }
    }

    /// Returns the metrics of a finished stage; none if it is not finished.
    fn finished<M: Clone + Serialize + DeserializeOwned>(&self, stage: Stage) -> Result<Option<Finished<M>>> {
        let (run, product) = (self.run_dir(stage), self.product(stage));
        if !product.is_file() || run::config(&run).is_err() {
            return Ok(None);
        }
        let records: Vec<PretrainRecord<M>> = run::records::<PretrainEpoch, M>(&run)?;
        let epochs = self.pretrain().schedule(stage).epochs();
        let Some(monitor) = records.last().filter(|last| last.epoch >= epochs).and_then(|last| last.monitor.clone())
        else {
            return Ok(None);
        };
        let seconds: f64 = records.iter().filter_map(|record| Some(record.trained.as_ref()?.train_seconds)).sum();
        let parameters = read_safetensors(&product)?.values().map(|tensor| tensor.numel()).sum();
        Ok(Some(Finished { monitor, parameters, minutes: seconds / 60.0, threads: run::info(&run).threads }))
    }

    /// Returns the start of a stage: a new run, or the existing one.
    fn start(&self, stage: Stage) -> Result<Start> {
        let folder = self.run_dir(stage);
        if run::config(&folder).is_err() {
            return Ok(Start::New(folder));
        }
        let (out, name) = (self.out.display(), stage.name());
        if !self.resume {
            bail!("{out} already has a {name} training: resume it with --resume, or name another folder");
        }
        PretrainFile::read(&folder.join("config.toml"))?.check_resumable(self.config, &stage.free_keys())?;
        Ok(Start::Resume { folder, epoch: None, force: false })
    }

    fn info(&self, stage: Stage) -> Result<RunInfo> {
        Ok(RunInfo {
            command: stage.command(self.out),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: unix_seconds(SystemTime::now()),
            preset: None,
            model: format!("{} of {} px", stage.title(), self.pretrain().data.size),
            device: "cpu".to_owned(),
            hardware: hardware::name(Device::Cpu).unwrap_or_default(),
            memory: hardware::memory(Device::Cpu).unwrap_or_default(),
            threads: self.context.threads,
            processes: 1,
        })
    }

    /// Trains a stage and writes its model; a finished stage is skipped.
    fn train<M: Model>(&self, open: impl FnOnce(&Self) -> Result<Pretraining<M>>) -> Result<Finished<M::Monitor>> {
        let stage = M::STAGE;
        let start = self.start(stage)?;
        if let Some(finished) = self.finished::<M::Monitor>(stage)? {
            tracing::info!("{} is trained already", stage.name());
            return Ok(finished);
        }
        let claim = start.claim(PluginsLock::default(), &self.context.processes)?;
        let task = open(self)?;
        let outcome = Trainer::new(task, claim, self.config, &self.info(stage)?, self.context)?.run()?;
        outcome.task.write(self, &outcome.ends.last)?;
        let finished = self.finished(stage)?;
        Ok(finished.expect("a finished run has its last monitor, and its model was just written"))
    }
}

/// Trains the stages in order and returns the metrics of each.
pub fn run(stages: &[Stage], session: &Session) -> Result<Vec<(Stage, Value)>> {
    fs_err::create_dir_all(session.out)?;
    let mut results = Vec::new();
    for &stage in stages {
        let result = match stage {
            Stage::Clip => json!(session.train(clip::open)?),
            Stage::Vae => json!(session.train(vae::open)?),
            Stage::UNet => json!(session.train(unet::open)?),
        };
        card::write(session, stage)?;
        results.push((stage, result));
    }
    Ok(results)
}

/// Returns the metrics of the finished CLIP stage, for the model card.
fn finished_clip(session: &Session) -> Result<Option<Finished<ClipMonitor>>> {
    session.finished(Stage::Clip)
}

/// As [`finished_clip`], for the VAE.
fn finished_vae(session: &Session) -> Result<Option<Finished<VaeMonitor>>> {
    session.finished(Stage::Vae)
}

/// As [`finished_clip`], for the UNet.
fn finished_unet(session: &Session) -> Result<Option<Finished<UNetMonitor>>> {
    session.finished(Stage::UNet)
}

#[cfg(test)]
mod tests;
