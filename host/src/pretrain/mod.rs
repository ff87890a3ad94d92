//! `host pretrain`: trains the small models that ship, CLIP, autoencoder and UNet, from the procedural paintings.
//!
//! ```text
//! paintings ─► CLIP (contrastive)      ─► OUT/clip
//!           ─► VAE (reconstruction)    ─► OUT/diffusion/vae
//!           ─► VAE latents, CLIP texts ─► UNet (epsilon) ─► OUT/diffusion
//! ```
//!
//! # Layout
//! - [`config`]: every value, from the preset, a file and `--set`.
//! - `data`: paintings in memory, captions as token ids. `vocabulary`: the tokenizer's.
//! - `trainer`: the loop the stages share. `parallel`: parts of a batch side by side.
//! - `clip`, `vae`, `unet`: a stage each. `evaluate`: held-out figures and grids.
//! - `journal`: pretrain.jsonl. `card`: the model cards.

mod card;
mod clip;
pub mod config;
mod data;
mod evaluate;
mod journal;
mod parallel;
mod trainer;
mod unet;
mod vae;
mod vocabulary;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use torch_ext::Generator;

use self::config::PretrainConfig;
pub use self::journal::{Figures, Journal};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::random::{Purpose, derive_seed};

/// One of the three trainings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Text and image encoder.
    Clip,
    /// Autoencoder.
    Vae,
    /// Denoiser; needs the other two.
    UNet,
}

impl Stage {
    /// All, in an order in which they can be trained.
    pub const ALL: [Self; 3] = [Self::Clip, Self::Vae, Self::UNet];

    /// Its name in the configuration, the journal and the checkpoint.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Vae => "vae",
            Self::UNet => "unet",
        }
    }
}

/// What a pretraining is given.
pub struct Session<'a> {
    /// Every value.
    pub config: &'a PretrainConfig,
    /// Where the models go.
    pub out: &'a Path,
    /// Whether to go on from checkpoints and leave finished stages alone.
    pub resume: bool,
    /// Compute threads.
    pub threads: usize,
    /// Asked at every step.
    pub interrupt: &'a Interrupt,
    /// Where progress is shown.
    pub progress: &'a Progress,
}

impl Session<'_> {
    /// The folder of the CLIP model.
    pub fn clip_dir(&self) -> PathBuf {
        self.out.join("clip")
    }

    /// The folder of the diffusion pipeline.
    pub fn diffusion_dir(&self) -> PathBuf {
        self.out.join("diffusion")
    }

    /// The file that a stage's checkpoints go to.
    fn checkpoint(&self, stage: Stage) -> PathBuf {
        self.out.join(format!(".pretrain-{}.safetensors", stage.name()))
    }

    /// The file that shows that a stage has written its model.
    fn product(&self, stage: Stage) -> PathBuf {
        match stage {
            Stage::Clip => self.clip_dir().join("model.safetensors"),
            Stage::Vae => self.diffusion_dir().join("vae/diffusion_pytorch_model.safetensors"),
            Stage::UNet => self.diffusion_dir().join("unet/diffusion_pytorch_model.safetensors"),
        }
    }

    /// The values that must not change while a stage is trained in pieces. The number of steps may (the learning rate is
    /// level until the decay), and so may how often something is looked at.
    fn fingerprint(&self, stage: Stage) -> Value {
        let whole = json!(self.config);
        let mut part = json!({ "seed": whole["seed"], "data": whole["data"] });
        let mut own = whole[stage.name()].clone();
        if let Some(schedule) = own["schedule"].as_object_mut() {
            for key in ["steps", "decay_steps", "checkpoint_every", "evaluate_every"] {
                schedule.remove(key);
            }
        }
        if let Some(own) = own.as_object_mut() {
            own.remove("samples");
        }
        part[stage.name()] = own;
        part
    }

    /// The generator of part `part` of `parts` of step `step`.
    fn generator(&self, stage: Stage, step: u64, part: usize, parts: usize) -> Result<Generator> {
        let index = step * parts as u64 + part as u64;
        Ok(Generator::cpu(derive_seed(self.config.seed, stage as u64, index, Purpose::Update))?)
    }

    /// The seed of a stage's fresh weights.
    fn weights_seed(&self, stage: Stage) -> u64 {
        derive_seed(self.config.seed, stage as u64, 0, Purpose::Weights)
    }
}

/// Writes a small file through a temporary one beside it.
fn write_text(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    fs_err::write(&temporary, text)?;
    Ok(fs_err::rename(&temporary, path)?)
}

/// Trains the stages one after the other and gives the figures of each.
pub fn run(stages: &[Stage], session: &Session) -> Result<Vec<(Stage, Figures)>> {
    fs_err::create_dir_all(session.out)?;
    let mut results = Vec::new();
    for &stage in stages {
        let journal = Journal::of(session.out);
        let done = journal.done(stage)?.filter(|_| session.product(stage).exists());
        let started = session.checkpoint(stage).exists();
        if !session.resume && (done.is_some() || started) {
            let (out, name) = (session.out.display(), stage.name());
            bail!("{out} already has a {name} training: go on with --resume, or name another folder");
        }
        if let (Some(figures), false) = (done, started) {
            tracing::info!("{} is trained already", stage.name());
            results.push((stage, figures));
            continue;
        }
        let (figures, steps) = match stage {
            Stage::Clip => (clip::train(session)?, session.config.clip.schedule.steps),
            Stage::Vae => (vae::train(session)?, session.config.vae.schedule.steps),
            Stage::UNet => (unet::train(session)?, session.config.unet.schedule.steps),
        };
        session.progress.println(format!("{}: {figures}", stage.name()));
        journal.write(stage, steps, true, &figures)?;
        card::write(session, stage)?;
        if session.checkpoint(stage).exists() {
            fs_err::remove_file(session.checkpoint(stage))?;
        }
        results.push((stage, figures));
    }
    Ok(results)
}

#[cfg(test)]
mod tests;
