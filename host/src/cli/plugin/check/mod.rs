//! `host plugin check`: checks that a plugin loads and that its reward is suitable for training.

mod report;

use anyhow::{Result, bail};
use clap::Args;

pub(super) use self::report::{Answer, Report, Row};
use super::agree;
use super::probes::{Probe, probes};
use super::running::{RunningArgs, embedded, narrow};
use crate::cli::completions::plugins;
use crate::config::fine_tune::OptionValue;
use crate::config::{PluginLimits, RewardPlugin};
use crate::context::Context;
use crate::encoders::Encoders;
use crate::plugin::{Fault, Plugin, PluginHost, Sample, Values};
use crate::rl::reward::rewards;
use crate::text::to_json;

/// Run a plugin on built-in probes, and warn if its reward is easily hacked, or dead.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin check kmeans_image
  host plugin check .                 a plugin crate: the output of `cargo build-plugin`
  host plugin check ./mine.wasm --strict --json
  host plugin check ./mine.wasm --with simple --with clip_softmax

A classifier's gap is the distance of a reward below the best one, -ln(number of styles). Warnings:
  hackable    a blank or a noisy probe has a smaller gap than every real one, and less than a quarter of
              their median: a generator that is trained on this reward may learn to generate such samples
  dead        all probes get the same distribution, or the same reward: there is no learning signal
  saturated   more than half of the probes have a style above 99.99 %: rewards say how unlikely the other styles are,
              not how ambiguous a sample is
  refused     the plugin returned an error for a probe
  opposing    on images of the shipped model, its reward opposes that of a plugin of --with, as `host plugin agree` measures it
A scorer has no gaps: it is hackable if a worthless probe has a better score than every real one.")]
pub struct CheckArgs {
    /// A plugin: a path, a name, or a plugin crate's folder
    #[arg(add = plugins())]
    plugin: String,
    /// Another plugin for images, with which it is to agree; may be repeated
    #[arg(long, value_name = "P", add = plugins())]
    with: Vec<String>,
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
        let mut report = probe(&mut *plugin, &mut encoders, context)?;
        if !self.with.is_empty() {
            let mut configured = RewardPlugin::of_source(&self.plugin);
            let options = self.running.config().iter().cloned();
            configured.config = options.map(|(key, value)| (key, OptionValue::Text(value))).collect();
            let others = self.with.iter().map(|source| RewardPlugin::of_source(source));
            let host = self.running.on_device(PluginHost::of_command(PluginLimits::preset(), context)?)?;
            let plugins: Vec<RewardPlugin> = [configured].into_iter().chain(others).collect();
            let agreements = agree::on_shipped_model(&plugins, encoders, &host, context)?;
            let own = agreements.iter().take(self.with.len());
            report.warnings.extend(own.filter_map(|agreement| Some(format!("opposing: {}", agreement.warning()?))));
            encoders = self.running.encoders(context)?;
        }
        for note in narrow(&*plugin, &mut encoders)? {
            tracing::info!("{note}");
        }
        match self.json {
            true => println!("{}", to_json(&report.document())),
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

/// Runs the plugin on all probes of its media.
pub(super) fn probe(plugin: &mut dyn Plugin, encoders: &mut Encoders, context: &Context) -> Result<Report> {
    let media = plugin.description().media.clone();
    let probes: Vec<Probe> = media.iter().flat_map(|&medium| probes(medium)).collect();
    let mut rows = vec![];
    let bar = context.progress.bar("probing", probes.len() as u64, "probes");
    for (i, probe) in probes.into_iter().enumerate() {
        context.interrupt.check("nothing was written")?;
        let mut ask = || answer(&format!("probe `{}`", probe.name), &probe.sample, plugin, encoders);
        if i == 0 {
            // The first call embeds the styles' names and fills caches, so it costs more than later ones.
            let _warm_up = ask()?;
        }
        let answer = ask()?;
        rows.push(Row { probe, answer });
        bar.inc(1);
    }
    bar.finish();
    Ok(Report::new(plugin, rows))
}

/// Runs the plugin on one sample alone. A plugin may refuse it with its own error; any other error, which names the sample,
/// ends the command.
pub(super) fn answer(
    name: &str,
    sample: &Sample,
    plugin: &mut dyn Plugin,
    encoders: &mut Encoders,
) -> Result<Result<Answer, String>> {
    let mut batch = embedded(vec![sample.clone()], plugin, encoders)?;
    match plugin.run(&mut batch, encoders) {
        Ok(output) => {
            let reward = rewards(&output.values).first().copied().unwrap_or_default();
            let log_distribution = match output.values {
                Values::Distributions(mut distributions) => distributions.rows.pop(),
                Values::Scores { .. } => None,
            };
            Ok(Ok(Answer {
                reward,
                log_distribution,
                fuel: output.fuel,
                milliseconds: output.milliseconds,
                memory: plugin.peak_memory(),
            }))
        }
        Err(error) => match error.fault {
            Fault::Refused(message) => Ok(Err(message)),
            _ => Err(anyhow::Error::from(error).context(name.to_owned())),
        },
    }
}
