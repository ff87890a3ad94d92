//! `host pretrain`: trains the small models that ship, CLIP, autoencoder and UNet, from the procedural paintings.
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
//! - this file: the stages, one after the other
//! - [`stage`]: the task that they share
//! - `clip`, `vae`, `unet`: a stage each · `evaluate`: zero-shot accuracy, PSNR, samples
//! - `data`: paintings in memory, captions as token ids · `vocabulary`: the tokenizer's
//! - `parallel`: parts of a batch side by side · `card`: the model cards

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

use self::stage::{Model, Pretraining, Stage};
use crate::config::pretrain::PretrainFile;
use crate::config::{PretrainConfig, RunConfig as _};
use crate::context::Context;
use crate::run::record::{ClipMonitor, PretrainEpoch, PretrainRecord, UNetMonitor, VaeMonitor};
use crate::run::{self, PluginsLock, RunInfo, unix_seconds};
use crate::trainer::{Start, Trainer};

/// What a pretraining is given.
pub struct Session<'a> {
    /// Every value.
    pub config: &'a PretrainFile,
    /// Where the models go.
    pub out: &'a Path,
    /// Whether to resume from checkpoints and leave finished stages alone.
    pub resume: bool,
    /// Threads, progress and interrupt.
    pub context: &'a Context,
}

/// What a finished stage measured, and what it was made of.
#[derive(Clone, Debug, Serialize)]
pub struct Finished<M> {
    /// The last monitor.
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

    /// The folder of the CLIP model.
    pub fn clip_dir(&self) -> PathBuf {
        self.out.join("clip")
    }

    /// The folder of the diffusion pipeline.
    pub fn diffusion_dir(&self) -> PathBuf {
        self.out.join("diffusion")
    }

    /// The run's folder of a stage.
    fn run_dir(&self, stage: Stage) -> PathBuf {
        self.out.join("training").join(stage.name())
    }

    /// The weights that a stage writes once it is finished.
    fn product(&self, stage: Stage) -> PathBuf {
        match stage {
            Stage::Clip => self.clip_dir().join("model.safetensors"),
            Stage::Vae => self.diffusion_dir().join("vae/diffusion_pytorch_model.safetensors"),
            Stage::UNet => self.diffusion_dir().join("unet/diffusion_pytorch_model.safetensors"),
        }
    }

    /// What a finished stage measured; nothing for one that is not finished.
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

    /// Where a stage starts: in a new run, or in the one that is there.
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
            threads: self.context.threads,
        })
    }

    /// Trains a stage and writes its model; what is finished is left alone.
    fn train<M: Model>(&self, open: impl FnOnce(&Self) -> Result<Pretraining<M>>) -> Result<Finished<M::Monitor>> {
        let stage = M::STAGE;
        let start = self.start(stage)?;
        if let Some(finished) = self.finished::<M::Monitor>(stage)? {
            tracing::info!("{} is trained already", stage.name());
            return Ok(finished);
        }
        let claim = start.claim(PluginsLock::default())?;
        let task = open(self)?;
        let outcome = Trainer::new(task, claim, self.config, &self.info(stage)?, self.context)?.run()?;
        outcome.task.write(self, &outcome.ends.last)?;
        let finished = self.finished(stage)?;
        Ok(finished.expect("a run that has ended has its last monitor, and its model was just written"))
    }
}

/// Trains the stages one after the other and returns what each measured, by its name.
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

/// What the stages of a finished pretraining measured, for the model cards.
fn finished_clip(session: &Session) -> Result<Option<Finished<ClipMonitor>>> {
    session.finished(Stage::Clip)
}

fn finished_vae(session: &Session) -> Result<Option<Finished<VaeMonitor>>> {
    session.finished(Stage::Vae)
}

fn finished_unet(session: &Session) -> Result<Option<Finished<UNetMonitor>>> {
    session.finished(Stage::UNet)
}

#[cfg(test)]
mod tests;
