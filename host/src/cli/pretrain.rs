//! `host pretrain`: trains the small models that ship.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::Context;
use crate::pretrain::config::PretrainConfig;
use crate::pretrain::{Session, Stage, run};

/// Train the small models that ship, from the procedural paintings
#[derive(Args, Debug)]
#[command(after_help = "Example: host pretrain all --out tiny-art --threads 2\n         \
    host pretrain unet --out tiny-art --set pretrain.unet.schedule.steps=20000 --resume")]
pub struct PretrainArgs {
    /// What to train; the UNet needs the other two in the same folder
    #[arg(value_enum)]
    what: What,
    /// Folder of the models: OUT/clip, OUT/diffusion, OUT/pretrain.jsonl
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// TOML file with values that differ from the preset's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One value, such as pretrain.clip.schedule.steps=100; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Everything random follows from it [default: the preset's]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Go on from the checkpoints in OUT; finished trainings are left alone
    #[arg(long)]
    resume: bool,
    /// Print the figures as one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Text and image encoder
    Clip,
    /// Autoencoder
    Vae,
    /// Denoiser
    Unet,
    /// One after the other
    All,
}

impl PretrainArgs {
    /// Trains.
    pub fn run(self, context: &Context) -> Result<()> {
        let mut set = self.set;
        set.extend(self.seed.map(|seed| format!("pretrain.seed={seed}")));
        let config = PretrainConfig::resolve(self.config.as_deref(), &set)?;
        let threads =
            context.global.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let session = Session {
            config: &config,
            out: &self.out,
            resume: self.resume,
            threads,
            interrupt: &context.interrupt,
            progress: &context.progress,
        };
        let stages = match self.what {
            What::Clip => vec![Stage::Clip],
            What::Vae => vec![Stage::Vae],
            What::Unet => vec![Stage::UNet],
            What::All => Stage::ALL.to_vec(),
        };
        let results = run(&stages, &session)?;
        if self.json {
            let document: serde_json::Map<String, serde_json::Value> =
                results.into_iter().map(|(stage, figures)| (stage.name().to_owned(), figures.into_json())).collect();
            println!("{}", serde_json::to_string_pretty(&document)?);
        } else {
            for (stage, figures) in results {
                println!("{}: {figures}", stage.name());
            }
        }
        Ok(())
    }
}
