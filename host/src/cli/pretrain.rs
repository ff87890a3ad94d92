//! `host pretrain`: trains the shipped small models.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::run_args::file;
use crate::config::Layer;
use crate::config::pretrain::PretrainFile;
use crate::context::Context;
use crate::tasks::pretrain::stage::Stage;
use crate::tasks::pretrain::{Session, run};
use crate::text::{escaped, to_json};

/// Train the shipped small models on the procedural paintings
#[derive(Args, Debug)]
#[command(after_help = "Example: host pretrain all --out tiny-art --threads 2\n         \
    host pretrain unet --out tiny-art --set pretrain.unet.schedule.steps=20000 --resume")]
pub struct PretrainArgs {
    /// The model to train; the UNet needs the other two in the same folder
    #[arg(value_enum)]
    what: What,
    /// The folder of the models: OUT/clip, OUT/diffusion; each stage's run is OUT/training/STAGE
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A TOML file that overrides the preset
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One key, as in pretrain.clip.schedule.steps=100; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The seed of all randomness [default: the preset's]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Resume from the checkpoints in OUT; finished stages are skipped
    #[arg(long)]
    resume: bool,
    /// Print the metrics as one JSON document
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
    /// All of them, in this order
    All,
}

impl PretrainArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let mut layers = self.config.as_deref().map(file).into_iter().collect::<Result<Vec<_>>>()?;
        let seed = self.seed.map(|seed| format!("pretrain.seed={seed}"));
        for set in self.set.iter().chain(&seed) {
            layers.push(Layer::set(set)?);
        }
        let config = PretrainFile::resolve(&layers)?;
        let session = Session { config: &config, out: &self.out, resume: self.resume, context };
        let stages = match self.what {
            What::Clip => vec![Stage::Clip],
            What::Vae => vec![Stage::Vae],
            What::Unet => vec![Stage::UNet],
            What::All => Stage::ALL.to_vec(),
        };
        let results = run(&stages, &session)?;
        if self.json {
            let document: serde_json::Map<String, serde_json::Value> =
                results.into_iter().map(|(stage, result)| (stage.name().to_owned(), result)).collect();
            println!("{}", to_json(&document));
        } else {
            for (stage, result) in results {
                println!("{}: {}", stage.name(), escaped(&result.to_string()));
            }
        }
        Ok(())
    }
}
