//! `host plugin …`: make, look into and run plugins.

mod bench;
mod build;
mod check;
mod classify;
mod fit;
mod inspect;
mod install;
mod list;
mod new;
mod running;
mod test;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use tch::Device;

use super::Context;
use crate::encoders::Encoders;
use crate::hub::Hub;
use crate::train::encoder_folder;

/// Make, look into and run style classifier plugins.
#[derive(Args, Debug)]
pub struct PluginArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::BenchArgs),
    Build(build::BuildArgs),
    Check(check::CheckArgs),
    Classify(classify::ClassifyArgs),
    Fit(fit::FitArgs),
    Inspect(inspect::InspectArgs),
    Install(install::InstallArgs),
    List(list::ListArgs),
    New(new::NewArgs),
    Test(test::TestArgs),
}

impl PluginArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        match self.command {
            Command::Bench(args) => args.run(context),
            Command::Build(args) => args.run(context),
            Command::Check(args) => args.run(context),
            Command::Classify(args) => args.run(context),
            Command::Fit(args) => args.run(context),
            Command::Inspect(args) => args.run(context),
            Command::Install(args) => args.run(context),
            Command::List(args) => args.run(context),
            Command::New(args) => args.run(context),
            Command::Test(args) => args.run(context),
        }
    }
}

/// What `--encoder NAME=DIR` says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct EncoderFolder {
    name: String,
    folder: PathBuf,
}

impl std::str::FromStr for EncoderFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
                Ok(Self { name: name.to_owned(), folder: folder.into() })
            }
            _ => Err("give it as NAME=DIR".to_owned()),
        }
    }
}

/// Adds encoders to those that ship; the first one added is what `clip` stands for.
fn encoders(folders: &[EncoderFolder], device: Device, hub: &Hub) -> Result<Encoders> {
    let mut encoders = Encoders::shipped(device);
    for EncoderFolder { name, folder } in folders {
        encoders.add_clip(name, &encoder_folder(name, &folder.to_string_lossy(), hub)?, device);
    }
    if let Some(first) = folders.first() {
        encoders.set_default(&first.name);
    }
    Ok(encoders)
}

/// The name of a file that a component is written to.
fn check_component_name(output: &Path) -> Result<()> {
    ensure!(
        output.extension().is_some_and(|extension| extension == "wasm"),
        "-o {} does not end in .wasm, which is how a plugin's file is told",
        output.display()
    );
    Ok(())
}
