//! `host plugin diff`: by how much a plugin's behavior differs from another's, and what version that asks for.

mod bump;
mod compare;
mod description;
mod outputs;
mod report;
mod run;
mod samples;
mod sheet;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail, ensure};
use clap::Args;

pub(super) use self::compare::Comparison;
pub(super) use self::run::{Pair, compare};
pub(super) use self::samples::Samples;
use super::running::RunningArgs;
use super::{EncoderFolder, encoders};
use crate::cli::completions::plugins;
use crate::cli::numbers::within;
use crate::config::PluginLimits;
use crate::context::Context;
use crate::plugin::PluginHost;
use crate::text::to_json;

/// Compare the behavior of two plugins, such as a plugin's last version and its next one: by how much distributions, entropy and
/// rewards moved, on which samples most, and what version that asks for.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin diff kmeans_image ./refitted.wasm
  host plugin diff ./palette-1.0.0.wasm . images/          a plugin crate: its fixtures are compared too
  host plugin diff old.wasm new.wasm --sheet moved.png --top 12
  host plugin diff old.wasm new.wasm --strict --json       for CI: exits with 1 if NEW's version is too low

Both run on the fixtures of OLD and NEW, if they are folders that have some, on the probes of `host plugin check`, and on the
given samples. What changed asks for a version:
  patch    every output has the same bits, and only words changed: the name, help, properties
  minor    outputs moved by at most the tolerance, or something was added: an option, a medium, a gradient
  major    all else: styles renamed, added, removed or reordered, another encoder, a sample that NEW fails on, a score
           that is reversed, outputs that moved by more than the tolerance
Of a version 0.y.z, a major change raises y, and any other z, as in cargo.

The tolerance is one number for three changes, of each sample: the total variation of its distribution, its reward's change in
standard deviations of OLD's rewards (without blank and noisy probes), and its gradient's change relative to the norm of OLD's
gradients. Training standardizes rewards to advantages, so that a tolerance of 0.01 is 0.01 of an advantage's standard
deviation, and a hundredth of the probability in a distribution.")]
pub struct DiffArgs {
    /// The plugin to compare with: a path, a name, or a plugin crate's folder
    #[arg(value_name = "OLD", add = plugins())]
    old: String,
    /// The changed plugin
    #[arg(value_name = "NEW", add = plugins())]
    new: String,
    /// More samples: files of a medium that both plugins take, as of `host plugin classify`; folders of them; or `-`
    #[arg(value_name = "SAMPLE")]
    files: Vec<PathBuf>,
    /// The prompt of all files [default: that of captions.jsonl in a file's folder, else none]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// The largest change that training does not notice
    #[arg(long, value_name = "T", default_value_t = TOLERANCE, value_parser = within(0.0..=1.0))]
    tolerance: f64,
    /// Number of samples to show, those that moved most first
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = within(0usize..=200))]
    top: usize,
    /// Draw the samples that moved most, with their rewards and probabilities before and after
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
    #[command(flatten)]
    running: RunningArgs,
    /// Folder of an encoder that OLD asks for, if it is another one than NEW's of the same name
    #[arg(long = "old-encoder", value_name = "NAME=DIR")]
    old_encoders: Vec<EncoderFolder>,
    /// Exit with 1 if NEW's version is lower than its behavior asks for
    #[arg(long)]
    strict: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The default of `--tolerance`.
pub(super) const TOLERANCE: f64 = 0.01;

impl DiffArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        if let Some(sheet) = &self.sheet {
            let is_png = sheet.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
            ensure!(is_png, "--sheet {} must end in .png", sheet.display());
            let folder = sheet.parent().filter(|folder| !folder.as_os_str().is_empty());
            let is_there = folder.is_none_or(std::path::Path::is_dir);
            ensure!(is_there, "--sheet {}: there is no such folder", sheet.display());
        }
        let host = self.running.on_device(PluginHost::of_command(PluginLimits::preset(), context)?)?;
        let mut old = self.running.load(&host, &self.old)?;
        let mut new = self.running.load(&host, &self.new)?;
        let mut shared = self.running.encoders(context)?;
        let mut apart = match self.old_encoders.is_empty() {
            true => None,
            false => Some(encoders(&self.old_encoders, self.running.device()?, context)?),
        };
        let descriptions = [old.description(), new.description()];
        let mut samples = Samples::find(&[&self.old, &self.new], &self.files, self.prompt.clone(), descriptions)?;
        let mut pair = Pair { old: &mut *old, new: &mut *new, encoders: &mut shared, old_encoders: apart.as_mut() };
        let comparison = compare(&mut pair, &mut samples, self.tolerance, context)?;
        let moved = comparison.most_moved();
        let shown = &moved[..moved.len().min(self.top)];
        if let Some(path) = &self.sheet {
            sheet::write(path, &comparison, shown, &mut samples)?;
            context.progress.println(format!("{}: {} drawn", path.display(), shown.len()));
        }
        match self.json {
            true => println!("{}", to_json(&report::document(&comparison))),
            false => print!("{}", report::layout(&comparison, shown)),
        }
        match comparison.is_enough() {
            Ok(false) if self.strict => bail!("{}", report::verdict(&comparison)),
            Err(message) if self.strict => Err(anyhow!("{message}")),
            _ => Ok(()),
        }
    }
}
