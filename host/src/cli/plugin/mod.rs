//! `host plugin`: make, look into and try plugins.

mod classify;
mod fit;
mod inspect;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use tch::Device;

use super::Context;
use crate::encoders::Encoders;

/// Make, look into and try classifier plugins.
#[derive(Args, Debug)]
pub struct PluginArgs {
    #[command(subcommand)]
    command: PluginCommand,
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    Classify(classify::ClassifyArgs),
    Fit(fit::FitArgs),
    Inspect(inspect::InspectArgs),
}

impl PluginArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        match self.command {
            PluginCommand::Classify(args) => args.run(),
            PluginCommand::Fit(args) => args.run(context),
            PluginCommand::Inspect(args) => args.run(),
        }
    }
}

/// The shipped encoders and those of `--encoder NAME=DIR`.
fn encoders(named: &[String]) -> Result<Encoders> {
    let mut encoders = Encoders::shipped(Device::Cpu);
    for encoder in named {
        let (name, folder) = encoder
            .split_once('=')
            .with_context(|| format!("--encoder {encoder}: write NAME=DIR, as in --encoder clip=/models/clip"))?;
        let folder = Path::new(folder);
        ensure!(folder.is_dir(), "--encoder {encoder}: there is no folder {}", folder.display());
        encoders.add_clip(name, folder, Device::Cpu);
    }
    Ok(encoders)
}
