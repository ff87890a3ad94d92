//! `host plugin check`: does a plugin load, and is its reward worth training on?

mod probes;
mod report;

use anyhow::{Result, bail};
use clap::Args;

use self::probes::{Probe, probes};
use self::report::{Answer, Report, Row};
use super::running::{RunningArgs, embedded};
use crate::context::Context;
use crate::encoders::Encoders;
use crate::plugin::{Classifier, Fault};

/// Run a plugin over built-in probes, and warn where its reward is easily hacked, or dead.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin check kmeans_image
  host plugin check .                 a plugin crate: what `cargo build-plugin` made there
  host plugin check ./mine.wasm --strict --json

A probe's gap is how far its reward is below the best one, -ln(number of styles). Warnings:
  hackable    a blank or a noisy probe has a smaller gap than every real one, and less than a quarter of
              their median: a generator that is trained on this reward may learn to make such samples
  dead        all probes get the same distribution, or the same reward: there is nothing to learn from
  saturated   more than half of the probes have a style above 99.99 %: nearly all rewards are at the floor
  refused     the plugin returned an error for a probe")]
pub struct CheckArgs {
    /// A plugin: a path, a name to be looked up, or a plugin crate's folder
    plugin: String,
    #[command(flatten)]
    running: RunningArgs,
    /// Exit with 1 if there are warnings
    #[arg(long)]
    strict: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl CheckArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let (mut plugin, mut encoders) = self.running.open(&self.plugin, context)?;
        let media = plugin.description().media.clone();
        let probes: Vec<Probe> = media.iter().flat_map(|medium| probes(medium)).collect();
        if probes.is_empty() {
            bail!("there are no probes for what plugin `{}` classifies: {}", plugin.source().name, media.join(", "));
        }
        let mut rows = vec![];
        let bar = context.progress.bar("probing", probes.len() as u64, "probes");
        for (i, probe) in probes.into_iter().enumerate() {
            context.interrupt.check("nothing was written")?;
            if i == 0 {
                // The first call embeds the styles' names and fills caches: it is not what a later one costs.
                let _refused_or_not = ask(&probe, &mut *plugin, &mut encoders)?;
            }
            let answer = ask(&probe, &mut *plugin, &mut encoders)?;
            rows.push(Row { name: probe.name, kind: probe.kind, answer });
            bar.inc(1);
        }
        bar.finish();
        let report = Report::new(&*plugin, rows);
        match self.json {
            true => println!("{:#}", report.document()),
            false => print!("{}", report.layout()),
        }
        match report.warnings.len() {
            n if n > 0 && self.strict => bail!("{n} warning{} about plugin `{}`", plural(n), plugin.source().name),
            _ => Ok(()),
        }
    }
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// One probe alone. A plugin may refuse it with an error of its own; whatever else goes wrong ends the check.
fn ask(probe: &Probe, plugin: &mut dyn Classifier, encoders: &mut Encoders) -> Result<Result<Answer, String>> {
    let mut batch = embedded(vec![probe.sample.clone()], plugin, encoders)?;
    match plugin.classify(&mut batch, encoders) {
        Ok(mut classified) => Ok(Ok(Answer {
            distribution: classified.distributions.rows.pop().unwrap_or_default(),
            fuel: classified.fuel,
            milliseconds: classified.milliseconds,
            memory: plugin.peak_memory(),
        })),
        Err(error) => match error.fault {
            Fault::Refused(message) => Ok(Err(message)),
            _ => Err(anyhow::Error::from(error).context(format!("probe `{}`", probe.name))),
        },
    }
}
