//! Rewards of images: every plugin of the run scores the same batches; each encoder runs once per batch.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use ndarray::{Axis, concatenate};
use tch::Device;

use super::diversity::mean_pairwise_distance;
use crate::config::{FineTuneConfig, OnError, RewardNormalization, RewardPlugin};
use crate::context::Context;
use crate::encoders::{Encoders, SHIPPED};
use crate::interrupt::Interrupt;
use crate::plugin::{Batch, Medium, Pin, Plugin, PluginHost, Sample, Values};
use crate::rl::reward::{PluginRewards, combine, entropy, max_probability, rewards};
use crate::run::{LockedEncoder, LockedPlugin, PluginsLock};
use crate::text::counted;

/// The plugins of a run and the encoders that they need.
pub struct Scorer {
    plugins: Vec<(RewardPlugin, Box<dyn Plugin>)>,
    encoders: Encoders,
    diversity_encoder: String,
    on_error: OnError,
    batch_size: usize,
    interrupt: Interrupt,
}

/// The scores of images.
#[derive(Debug)]
pub struct Scores {
    /// The indices of the images on which every plugin ran; the other fields refer to these, in order.
    pub kept: Vec<usize>,
    /// The rewards of each plugin.
    pub plugins: Vec<PluginRewards>,
    /// Entropy of the first classifier's distributions in nats; empty if all plugins are scorers.
    pub entropy: Vec<f64>,
    /// Largest probability of the first classifier's distributions; empty if all plugins are scorers.
    pub max_probability: Vec<f64>,
    /// Number of images that were left out.
    pub skipped: usize,
}

impl Scores {
    /// Returns the weighted sum of the plugins' rewards, without normalization.
    pub fn weighted_sum(&self) -> Vec<f64> {
        combine(&self.plugins, RewardNormalization::Sum)
    }
}

impl Scorer {
    /// Loads every plugin of the run, those of registries as `pins` say; a plugin for another medium than images is refused.
    pub fn load(
        config: &FineTuneConfig,
        device: Device,
        pins: &BTreeMap<String, Pin>,
        context: &Context,
    ) -> Result<Self> {
        let encoders = Encoders::open(&config.encoders, device, context)?;
        let host = PluginHost::of_command(config.plugin.limits, context)?.on(device).pinned(pins.clone());
        let mut plugins = Vec::new();
        for configured in &config.reward.plugin {
            let options = configured.options();
            let plugin = host.load_pinned(&configured.source, options, configured.sha256.as_deref())?;
            if !plugin.description().takes(Medium::Image) {
                bail!(
                    "plugin {} takes {}, but this run generates images: choose a plugin for images",
                    configured.source,
                    plugin.description().media_names(" and ")
                );
            }
            plugins.push((configured.clone(), plugin));
        }
        if plugins.is_empty() {
            bail!("no plugin: name one with --plugin, as in --plugin kmeans_image.wasm");
        }
        let asked = plugins.iter().flat_map(|(_, plugin)| &plugin.description().encoders).next();
        let diversity_encoder = asked.cloned().unwrap_or_else(|| SHIPPED.to_owned());
        let (on_error, batch_size) = (config.plugin.on_error, config.sample.batch_size);
        let interrupt = context.interrupt.clone();
        Ok(Self { plugins, encoders, diversity_encoder, on_error, batch_size, interrupt })
    }

    /// Returns the entries of `plugins.lock` for the plugins, and for the encoders that they and the monitor use; those
    /// are loaded.
    pub fn lock(&mut self) -> Result<PluginsLock> {
        let plugins =
            self.plugins.iter().map(|(configured, plugin)| LockedPlugin::of(&configured.source, &**plugin)).collect();
        let asked = self.plugins.iter().flat_map(|(_, plugin)| &plugin.description().encoders);
        let encoders = LockedEncoder::all(asked.chain([&self.diversity_encoder]), &mut self.encoders)?;
        Ok(PluginsLock { prompts: None, plugins, encoders })
    }

    /// Returns the upper bound of the weighted sum of rewards, if there is one.
    pub fn upper_bound(&self) -> Option<f64> {
        let of = |(configured, plugin): &(RewardPlugin, Box<dyn Plugin>)| {
            let [least, largest] = plugin.description().reward_range();
            let bound = if configured.weight > 0.0 { largest } else { least };
            bound.map(|bound| configured.weight * bound)
        };
        self.plugins.iter().map(of).sum()
    }

    /// Scores images batch by batch.
    ///
    /// # Errors
    /// [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop.
    pub fn score(&mut self, samples: Vec<Sample>) -> Result<Scores> {
        self.score_batches(samples, &mut |_, _| Ok(()))
    }

    /// Scores images and measures their diversity: the mean pairwise 1 − cos of their embeddings by the run's first
    /// image encoder.
    pub fn score_and_diversity(&mut self, samples: Vec<Sample>) -> Result<(Scores, f64)> {
        let encoder = self.diversity_encoder.clone();
        let mut chunks = Vec::new();
        let scores = self.score_batches(samples, &mut |batch, encoders| {
            let embedding = batch.embedding(&encoder, encoders);
            chunks.push(embedding.with_context(|| format!("the monitor measures diversity with encoder {encoder}"))?);
            Ok(())
        })?;
        let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
        Ok((scores, mean_pairwise_distance(&concatenate(Axis(0), &views)?)))
    }

    fn score_batches(
        &mut self,
        samples: Vec<Sample>,
        also: &mut dyn FnMut(&mut Batch, &mut Encoders) -> Result<()>,
    ) -> Result<Scores> {
        let names = self.names();
        let mut scores = Scores {
            kept: Vec::new(),
            plugins: Vec::new(),
            entropy: Vec::new(),
            max_probability: Vec::new(),
            skipped: 0,
        };
        for ((plugin, _), name) in self.plugins.iter().zip(names) {
            scores.plugins.push(PluginRewards { name, weight: plugin.weight, rewards: Vec::new() });
        }
        let mut start = 0;
        let mut samples = samples.into_iter().peekable();
        while samples.peek().is_some() {
            self.interrupt.check("")?;
            let chunk: Vec<Sample> = samples.by_ref().take(self.batch_size).collect();
            let n = chunk.len();
            let mut batch = Batch::new(chunk);
            self.score_batch(start, &mut batch, &mut scores)?;
            also(&mut batch, &mut self.encoders)?;
            start += n;
        }
        Ok(scores)
    }

    fn score_batch(&mut self, start: usize, batch: &mut Batch, scores: &mut Scores) -> Result<()> {
        let mut values = Vec::with_capacity(self.plugins.len());
        for (_, plugin) in &mut self.plugins {
            match plugin.run(batch, &mut self.encoders) {
                Ok(output) => values.push(output.values),
                Err(error) if self.on_error == OnError::Skip => {
                    let samples = counted(batch.samples().len() as u64, "sample");
                    tracing::warn!("{error}; left out: the batch's {samples}");
                    scores.skipped += batch.samples().len();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        scores.kept.extend(start..start + batch.samples().len());
        for (plugin, values) in scores.plugins.iter_mut().zip(&values) {
            plugin.rewards.extend(rewards(values));
        }
        let distributions = values.iter().find_map(|values| match values {
            Values::Distributions(distributions) => Some(distributions),
            Values::Scores { .. } => None,
        });
        for row in distributions.iter().flat_map(|distributions| &distributions.rows) {
            scores.entropy.push(entropy(row));
            scores.max_probability.push(max_probability(row));
        }
        Ok(())
    }

    /// Returns the plugins' names; repeated names get a number.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (_, plugin) in &self.plugins {
            let name = &plugin.description().name;
            let n_same = names.iter().filter(|other| *other == name || other.starts_with(&format!("{name}#"))).count();
            names.push(if n_same == 0 { name.clone() } else { format!("{name}#{}", n_same + 1) });
        }
        names
    }
}
