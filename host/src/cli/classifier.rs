//! `host classifier`: trains the simple style classifier, without a GAN.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::can::TrainingArgs;
use super::processes::ProcessArgs;
use crate::config::gan::GanTask;
use crate::context::Context;

/// Train the simple style classifier.
#[derive(Args, Debug)]
pub struct ClassifierArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train the discriminator's convolutions and style head by cross-entropy on images alone.
    ///
    /// Writes discriminator/, confusion.png (on held-out images) and simple.onnx: a plugin for `host train`.
    #[command(after_help = "Examples:
  host classifier train --out runs/simple
  host classifier train --data wikiart --preset paper-64 --device cuda
  host classifier train --resume runs/simple")]
    Train(Box<TrainingArgs>),
}

impl ClassifierArgs {
    /// Returns the flags of the command, on which several processes can work.
    pub(super) fn processes(&self) -> &ProcessArgs {
        let Command::Train(args) = &self.command;
        &args.processes
    }

    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let Command::Train(args) = self.command;
        args.run(GanTask::Classifier, Vec::new(), context)
    }
}
