//! The plugins, encoders and networks that turn images into numbers. Every one of them sees the same batches, and each
//! encoder runs once per batch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use ndarray::Array2;
use sha2::{Digest as _, Sha256};
use tch::Device;

use super::diversity::unit_rows;
use super::measured::{Column, Measured};
use crate::config::{FineTuneConfig, OnError, RewardNormalization, RewardPlugin};
use crate::context::Context;
use crate::encoders::{Encoders, PROBE_TEXT, SHIPPED, probe};
use crate::interrupt::Interrupt;
use crate::plugin::{Batch, Medium, Pin, Plugin, PluginError, PluginHost, Sample, Values};
use crate::processes::Processes;
use crate::rl::reward::{PluginRewards, combine, rewards};
use crate::run::{LockedEncoder, LockedPlugin, PluginsLock};
use crate::text::counted;

/// A network that scores images, beside plugins: higher is better.
pub trait Network {
    /// Returns one score per image of a batch.
    ///
    /// # Errors
    /// If the network cannot be loaded or run.
    fn score(&mut self, batch: &mut Batch, encoders: &mut Encoders) -> Result<Vec<f64>>;
}

/// A loaded plugin.
struct Loaded {
    /// The plugin's name in metrics; of several with the same name, later ones have a number.
    name: String,
    configured: RewardPlugin,
    /// Whether the plugin takes no part in the reward.
    held_out: bool,
    plugin: Box<dyn Plugin>,
}

/// The plugins, encoders and networks that turn images into numbers.
pub struct Evaluator {
    plugins: Vec<Loaded>,
    encoders: Encoders,
    networks: BTreeMap<&'static str, Box<dyn Network>>,
    on_error: OnError,
    batch_size: usize,
    interrupt: Interrupt,
}

/// The rewards of images.
#[derive(Debug)]
pub struct Scores {
    /// The indices of the images on which every plugin ran; the other fields refer to these, in order.
    pub kept: Vec<usize>,
    /// The rewards of each plugin.
    pub plugins: Vec<PluginRewards>,
    /// The plugins' columns of these images, and the other ones that were asked for.
    pub measured: Measured,
    /// Number of images that were left out.
    pub skipped: usize,
}

impl Scores {
    /// Returns the weighted sum of the plugins' rewards, without normalization.
    pub fn weighted_sum(&self) -> Vec<f64> {
        combine(&self.plugins, RewardNormalization::Sum)
    }
}

/// What is known of a plugin without running it.
#[derive(Clone, Debug)]
pub struct EvaluatedPlugin<'a> {
    /// The plugin's name in metrics.
    pub name: &'a str,
    /// Its weight in the reward; none for a held-out one.
    pub weight: Option<f64>,
    /// The styles of a classifier; empty for a scorer.
    pub styles: &'a [String],
    /// The largest possible reward, if there is one.
    pub upper_bound: Option<f64>,
}

impl Evaluator {
    /// Returns an evaluator without plugins and networks, which works on batches of `batch_size` images.
    pub fn new(encoders: Encoders, batch_size: usize, interrupt: &Interrupt) -> Self {
        Self {
            plugins: vec![],
            encoders,
            networks: BTreeMap::new(),
            on_error: OnError::Abort,
            batch_size,
            interrupt: interrupt.clone(),
        }
    }

    /// Loads every plugin of a run, also those held out, those of registries as `pins` say; a plugin for another medium than
    /// images is refused.
    pub fn of_run(
        config: &FineTuneConfig,
        device: Device,
        pins: &BTreeMap<String, Pin>,
        context: &Context,
    ) -> Result<Self> {
        let encoders = Encoders::open(&config.encoders, device, context)?;
        let host = PluginHost::of_command(config.plugin.limits, context)?.on(device).pinned(pins.clone());
        let mut evaluator = Self::new(encoders, config.sample.batch_size, &context.interrupt);
        evaluator.on_error = config.plugin.on_error;
        for configured in &config.reward.plugin {
            evaluator.add_plugin(configured.clone(), false, &host)?;
        }
        if evaluator.plugins.is_empty() {
            bail!("no plugin: name one with --plugin, as in --plugin kmeans_image.wasm");
        }
        for source in &config.monitor.held_out {
            evaluator.add_plugin(RewardPlugin::of_source(source), true, &host)?;
        }
        Ok(evaluator)
    }

    /// Loads a plugin.
    ///
    /// # Errors
    /// If it cannot be loaded, or takes no images.
    pub fn add_plugin(&mut self, configured: RewardPlugin, held_out: bool, host: &PluginHost) -> Result<()> {
        let plugin = host.load_pinned(&configured.source, configured.options(), configured.sha256.as_deref())?;
        let description = plugin.description();
        if !description.takes(Medium::Image) {
            bail!(
                "plugin {} takes {}, but these are images: choose a plugin for images",
                configured.source,
                description.media_names(" and ")
            );
        }
        let name = &description.name;
        let numbered = (2..).map(|number| format!("{name}#{number}"));
        let is_free = |name: &String| self.plugins.iter().all(|other| other.name != *name);
        let name = [name.clone()].into_iter().chain(numbered).find(is_free).context("the numbers do not end")?;
        self.plugins.push(Loaded { name, configured, held_out, plugin });
        Ok(())
    }

    /// Whether the plugin that was added last is one of the others: the same bytes with the same options.
    pub fn repeats_last(&self) -> bool {
        let Some((last, others)) = self.plugins.split_last() else { return false };
        let of = |loaded: &Loaded| (loaded.plugin.source().sha256.clone(), loaded.configured.options());
        others.iter().any(|other| of(other) == of(last))
    }

    /// Adds a network by the name of its metric.
    pub fn add_network(&mut self, name: &'static str, network: Box<dyn Network>) {
        self.networks.insert(name, network);
    }

    /// Returns whether there is a network of this name.
    pub fn has_network(&self, name: &str) -> bool {
        self.networks.contains_key(name)
    }

    /// Returns the plugins in order.
    pub fn plugins(&self) -> impl Iterator<Item = EvaluatedPlugin<'_>> {
        self.plugins.iter().map(|loaded| {
            let description = loaded.plugin.description();
            EvaluatedPlugin {
                name: &loaded.name,
                weight: (!loaded.held_out).then_some(loaded.configured.weight),
                styles: description.styles(),
                upper_bound: description.reward_range()[1],
            }
        })
    }

    /// Returns the encoders.
    pub fn encoders(&mut self) -> &mut Encoders {
        &mut self.encoders
    }

    /// Returns the name of the encoder by which diversity is measured: the first that a plugin of the reward asks for, else
    /// the shipped one.
    ///
    /// # Errors
    /// If the encoder is not known.
    pub fn diversity_encoder(&self) -> Result<String> {
        let of_reward = self.plugins.iter().filter(|loaded| !loaded.held_out);
        let asked = of_reward.flat_map(|loaded| &loaded.plugin.description().encoders).next();
        let encoder = asked.map_or(SHIPPED, String::as_str);
        self.encoders.resolve(encoder).with_context(|| format!("diversity is measured with encoder {encoder}"))
    }

    /// Returns the entries of `plugins.lock` for the plugins, and for the encoders that they and the monitor use; those
    /// are loaded.
    pub fn lock(&mut self) -> Result<PluginsLock> {
        let diversity = self.diversity_encoder()?;
        let locked = |loaded: &Loaded| LockedPlugin {
            held_out: loaded.held_out,
            ..LockedPlugin::of(&loaded.configured.source, &*loaded.plugin)
        };
        let plugins = self.plugins.iter().map(locked).collect();
        let asked = self.plugins.iter().flat_map(|loaded| &loaded.plugin.description().encoders);
        let encoders = LockedEncoder::all(asked.chain([&diversity]), &mut self.encoders)?;
        Ok(PluginsLock { prompts: None, plugins, encoders })
    }

    /// Returns the upper bound of the weighted sum of rewards, if there is one.
    pub fn upper_bound(&self) -> Option<f64> {
        let of = |loaded: &Loaded| {
            let [least, largest] = loaded.plugin.description().reward_range();
            let weight = loaded.configured.weight;
            let bound = if weight > 0.0 { largest } else { least };
            bound.map(|bound| weight * bound)
        };
        self.plugins.iter().filter(|loaded| !loaded.held_out).map(of).sum()
    }

    /// Scores images batch by batch with the plugins of the reward, and measures further columns of them. A held-out plugin among
    /// these that fails is left out, with a warning. These samples are this process's share, from `start` on, and the scores are
    /// those of all processes.
    ///
    /// # Errors
    /// [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop.
    pub fn score(
        &mut self,
        samples: Vec<Sample>,
        start: usize,
        more: &[Column],
        processes: &Processes,
    ) -> Result<Scores> {
        let of_reward = self.plugins.iter().filter(|loaded| !loaded.held_out);
        let (names, weights): (Vec<String>, Vec<f64>) =
            of_reward.map(|loaded| (loaded.name.clone(), loaded.configured.weight)).unzip();
        let mut columns: Vec<Column> = names.iter().cloned().map(Column::Plugin).collect();
        let is_plugin = |column: &&Column| matches!(column, Column::Plugin(_));
        let mut held_out: Vec<&Column> = more.iter().filter(is_plugin).collect();
        columns.extend(more.iter().filter(|column| !is_plugin(column)).cloned());
        let (mut kept, mut skipped, mut parts, mut start) = (Vec::new(), 0, Vec::new(), start);
        for mut batch in batches(samples, self.batch_size) {
            self.interrupt.check("")?;
            let n = batch.len();
            match self.measure_or_skip(&mut batch, &columns)? {
                Some(mut measured) => {
                    kept.extend(start..start + n);
                    held_out.retain(|column| match self.measure(&mut batch, &[(*column).clone()]) {
                        Ok(more) => {
                            measured.insert((*column).clone(), more.rows(column).clone());
                            true
                        }
                        Err(error) => {
                            tracing::warn!("{error:#}; this held-out plugin is left out of the monitor");
                            false
                        }
                    });
                    parts.push(measured);
                }
                None => skipped += n,
            }
            start += n;
        }
        // A held-out plugin that failed has only the first batches.
        let is_whole = |column: &&Column| parts.iter().all(|part| part.has(column));
        let whole: Vec<Column> = columns.iter().chain(held_out.iter().copied()).filter(is_whole).cloned().collect();
        let measured = Measured::concatenated(&parts, &whole)?;
        let known: Vec<Column> = columns.iter().chain(more.iter().filter(is_plugin)).cloned().collect();
        let measured = measured.gathered(&known, processes)?;
        for column in whole.iter().filter(|column| !parts.is_empty() && !measured.has(column)) {
            tracing::warn!("the {} is missing in another process; it is left out of the monitor", column.in_words());
        }
        let kept = processes.gather(kept)?.concat();
        let skipped = processes.gather(skipped)?.into_iter().sum();
        let is_empty = kept.is_empty();
        let rewards = |column: &Column| if is_empty { vec![] } else { measured.means(column) };
        let plugins = names.into_iter().zip(weights).zip(&columns);
        let plugins = plugins.map(|((name, weight), column)| PluginRewards { name, weight, rewards: rewards(column) });
        Ok(Scores { kept, plugins: plugins.collect(), measured, skipped })
    }

    /// Measures columns of images, batch by batch. None if a plugin failed on some and such images are to be left out.
    ///
    /// # Errors
    /// [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop.
    pub fn measure_all(&mut self, samples: Vec<Sample>, columns: &[Column]) -> Result<Option<Measured>> {
        let mut parts = Vec::new();
        for mut batch in batches(samples, self.batch_size) {
            self.interrupt.check("")?;
            let Some(measured) = self.measure_or_skip(&mut batch, columns)? else { return Ok(None) };
            parts.push(measured);
        }
        Measured::concatenated(&parts, columns).map(Some)
    }

    /// Measures columns of a batch, or returns none if a plugin failed and the configuration allows to leave its samples out.
    fn measure_or_skip(&mut self, batch: &mut Batch, columns: &[Column]) -> Result<Option<Measured>> {
        match self.measure(batch, columns) {
            Err(error) if self.on_error == OnError::Skip && error.is::<PluginError>() => {
                let samples = counted(batch.len() as u64, "sample");
                tracing::warn!("{error}; left out: the batch's {samples}");
                Ok(None)
            }
            measured => measured.map(Some),
        }
    }

    /// Measures columns of a batch.
    ///
    /// # Errors
    /// If a plugin, an encoder or a network fails, or is not there.
    pub fn measure(&mut self, batch: &mut Batch, columns: &[Column]) -> Result<Measured> {
        let mut measured = Measured::default();
        for column in columns {
            let rows = match column {
                Column::Plugin(name) => self.run_plugin(name, batch)?,
                Column::Embedding(encoder) => {
                    let embeddings = batch.embedding(encoder, &mut self.encoders);
                    embeddings.with_context(|| format!("encoder {encoder}"))?.mapv(f64::from)
                }
                Column::PromptSimilarity(encoder) => self.prompt_similarity(encoder, batch)?,
                Column::Network(name) => {
                    let network = self.networks.get_mut(name).with_context(|| format!("{name} was not loaded"))?;
                    single_column(network.score(batch, &mut self.encoders).with_context(|| (*name).to_owned())?)
                }
            };
            let unusable = rows.iter().any(|value| !value.is_finite());
            ensure!(!unusable, "{} is not finite for some images", column.in_words());
            measured.insert(column.clone(), rows);
        }
        Ok(measured)
    }

    fn run_plugin(&mut self, name: &str, batch: &mut Batch) -> Result<Array2<f64>> {
        let Self { plugins, encoders, .. } = self;
        let loaded = plugins.iter_mut().find(|loaded| loaded.name == name);
        let values = loaded.with_context(|| format!("there is no plugin {name}"))?.plugin.run(batch, encoders)?.values;
        Ok(match &values {
            Values::Distributions(distributions) => {
                let n = distributions.rows.len();
                Array2::from_shape_fn((n, distributions.styles), |(i, style)| distributions.rows[i][style])
            }
            Values::Scores { .. } => single_column(rewards(&values)),
        })
    }

    fn prompt_similarity(&mut self, encoder: &str, batch: &mut Batch) -> Result<Array2<f64>> {
        let images = unit_rows(batch.embedding(encoder, &mut self.encoders)?.view());
        let prompts: Vec<String> = batch.samples().iter().map(|sample| sample.prompt.clone()).collect();
        let texts = unit_rows(self.encoders.embed_texts(encoder, &prompts)?.view());
        Ok(single_column(images.rows().into_iter().zip(texts.rows()).map(|(image, text)| image.dot(&text)).collect()))
    }

    /// Returns what identifies a column's numbers besides the images and prompts: its name, and a digest of what computes it. A
    /// plugin is identified by its bytes and options, encoders and networks by what they compute of a probe.
    ///
    /// # Errors
    /// If an encoder or the weights of a network cannot be loaded.
    pub fn identity(&mut self, column: &Column) -> Result<String> {
        let (name, parts) = match column {
            Column::Plugin(name) => {
                let loaded = self.plugins.iter().find(|loaded| loaded.name == *name);
                let loaded = loaded.with_context(|| format!("there is no plugin {name}"))?;
                let options = loaded.configured.options();
                let mut parts = vec![loaded.plugin.source().sha256.clone()];
                parts.extend(options.iter().map(|(key, value)| format!("{key}={value}")));
                let asked: BTreeSet<String> = loaded.plugin.description().encoders.iter().cloned().collect();
                for encoder in asked {
                    parts.push(self.encoders.identity(&encoder)?);
                }
                (format!("plugin {name}"), parts)
            }
            Column::Embedding(encoder) => (format!("embedding {encoder}"), vec![self.encoders.identity(encoder)?]),
            Column::PromptSimilarity(encoder) => {
                (format!("prompt-similarity {encoder}"), vec![self.encoders.identity(encoder)?])
            }
            Column::Network(name) => {
                let image = Some(Arc::new(probe()));
                let sample = Sample { prompt: PROBE_TEXT.to_owned(), image, ..Sample::default() };
                let score = self.measure(&mut Batch::new(vec![sample]), std::slice::from_ref(column))?.means(column);
                ((*name).to_owned(), score.iter().map(|score| format!("{:x}", score.to_bits())).collect())
            }
        };
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Ok(format!("{name} {:.16}", format!("{:x}", hash.finalize())))
    }
}

fn single_column(values: Vec<f64>) -> Array2<f64> {
    Array2::from_shape_vec((values.len(), 1), values).expect("one value per row")
}

/// Returns samples as batches of at most `size`.
fn batches(samples: Vec<Sample>, size: usize) -> impl Iterator<Item = Batch> {
    let mut samples = samples.into_iter().peekable();
    std::iter::from_fn(move || {
        samples.peek()?;
        Some(Batch::new(samples.by_ref().take(size).collect()))
    })
}
