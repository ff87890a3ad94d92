//! Pictures to rewards: every classifier of the run over the same batches, encoders run once a batch.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use image::RgbImage;
use ndarray::{Array2, Axis, concatenate};

use crate::config::{Config, OnError, RewardPlugin};
use crate::encoders::Encoders;
use crate::plugin::{Batch, Classifier, Limits, PluginHost, Sample};
use crate::reward::{PluginRewards, ambiguity, entropy, top_probability};
use crate::run::LockedPlugin;

/// The classifiers of a run and the encoders they ask for.
pub struct Scorer {
    classifiers: Vec<(RewardPlugin, Box<dyn Classifier>)>,
    encoders: Encoders,
    diversity_encoder: String,
    on_error: OnError,
    batch_size: usize,
}

/// What the classifiers say of some pictures.
#[derive(Debug)]
pub struct Scores {
    /// Which pictures every plugin could judge; all below is of these, in order.
    pub kept: Vec<usize>,
    /// One entry a plugin.
    pub plugins: Vec<PluginRewards>,
    /// Of the first plugin's distributions, nats.
    pub entropy: Vec<f64>,
    /// Of the first plugin's distributions.
    pub top_probability: Vec<f64>,
    /// Pictures left out.
    pub skipped: usize,
}

impl Scores {
    /// The weighted sum of the plugins' rewards, as they are.
    pub fn weighted_sum(&self) -> Vec<f64> {
        crate::reward::combine(&self.plugins, crate::config::RewardNormalisation::Sum)
    }
}

impl Scorer {
    /// Loads every plugin of the run; a plugin for another medium than images is refused.
    pub fn load(config: &Config, encoders: Encoders) -> Result<Self> {
        let limits = Limits {
            timeout_ms: config.plugin.timeout_ms,
            fuel: config.plugin.fuel,
            memory_mib: config.plugin.memory_mib,
            ..Limits::default()
        };
        let host = PluginHost::new(limits, PluginHost::default_cache())?;
        let mut classifiers = Vec::new();
        for plugin in &config.reward.plugin {
            let classifier = host.load(&plugin.source, plugin.config.clone())?;
            let media = &classifier.description().media;
            if !media.iter().any(|medium| medium == "image") {
                bail!(
                    "plugin {} judges {}, but this run makes images: choose a plugin for images",
                    plugin.source,
                    media.join(" and ")
                );
            }
            classifiers.push((plugin.clone(), classifier));
        }
        if classifiers.is_empty() {
            bail!("no classifier: name one with --plugin, as in --plugin kmeans_image.wasm");
        }
        let asked = classifiers.iter().flat_map(|(_, classifier)| &classifier.description().encoders).next();
        let diversity_encoder = asked.cloned().unwrap_or_else(|| "tiny-art".to_owned());
        let (on_error, batch_size) = (config.plugin.on_error, config.sample.batch_size);
        Ok(Self { classifiers, encoders, diversity_encoder, on_error, batch_size })
    }

    /// What plugins.lock says.
    pub fn locked(&self) -> Vec<LockedPlugin> {
        let lock = |(plugin, classifier): &(RewardPlugin, Box<dyn Classifier>)| {
            let source = classifier.source();
            LockedPlugin {
                name: classifier.description().name.clone(),
                source: plugin.source.clone(),
                sha256: source.sha256.clone(),
                interface: source.interface.clone(),
            }
        };
        self.classifiers.iter().map(lock).collect()
    }

    /// The number of styles of the first plugin: the reward's ceiling is −ln of it.
    pub fn n_styles(&self) -> usize {
        self.classifiers[0].1.description().styles.len()
    }

    /// The sum of the weights: the ceiling of the weighted sum is this times −ln N where all plugins have N styles.
    pub fn ceiling(&self) -> f64 {
        let of = |(plugin, classifier): &(RewardPlugin, Box<dyn Classifier>)| {
            -plugin.weight * (classifier.description().styles.len() as f64).ln()
        };
        self.classifiers.iter().map(of).sum()
    }

    /// Scores pictures batch by batch.
    pub fn score(&mut self, samples: Vec<Sample>) -> Result<Scores> {
        let names = self.names();
        let mut scores = Scores {
            kept: Vec::new(),
            plugins: Vec::new(),
            entropy: Vec::new(),
            top_probability: Vec::new(),
            skipped: 0,
        };
        for ((plugin, _), name) in self.classifiers.iter().zip(names) {
            scores.plugins.push(PluginRewards { name, weight: plugin.weight, rewards: Vec::new() });
        }
        let mut start = 0;
        let mut samples = samples.into_iter().peekable();
        while samples.peek().is_some() {
            let chunk: Vec<Sample> = samples.by_ref().take(self.batch_size).collect();
            let n = chunk.len();
            self.score_batch(start, &mut Batch::new(chunk), &mut scores)?;
            start += n;
        }
        Ok(scores)
    }

    fn score_batch(&mut self, start: usize, batch: &mut Batch, scores: &mut Scores) -> Result<()> {
        let mut classified = Vec::with_capacity(self.classifiers.len());
        for (_, classifier) in &mut self.classifiers {
            match classifier.classify(batch, &mut self.encoders) {
                Ok(of_plugin) => classified.push(of_plugin.distributions),
                Err(error) if self.on_error == OnError::Skip => {
                    tracing::warn!("{error}; the batch's {} samples are left out", batch.samples().len());
                    scores.skipped += batch.samples().len();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        scores.kept.extend(start..start + batch.samples().len());
        for (plugin, distributions) in scores.plugins.iter_mut().zip(&classified) {
            plugin.rewards.extend(distributions.rows().map(ambiguity));
        }
        scores.entropy.extend(classified[0].rows().map(entropy));
        scores.top_probability.extend(classified[0].rows().map(top_probability));
        Ok(())
    }

    /// Mean pairwise 1 − cos of the embeddings of pictures, by the run's first image encoder.
    pub fn diversity(&mut self, images: &[Arc<RgbImage>]) -> Result<f64> {
        let mut chunks = Vec::new();
        for chunk in images.chunks(self.batch_size) {
            chunks.push(self.encoders.embed_images(&self.diversity_encoder, chunk).with_context(|| {
                format!("the monitor measures diversity with encoder {}", self.diversity_encoder)
            })?);
        }
        let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
        Ok(mean_pairwise_distance(&concatenate(Axis(0), &views)?))
    }

    /// Plugins' names, made different where two are the same.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (_, classifier) in &self.classifiers {
            let name = &classifier.description().name;
            let n_same = names.iter().filter(|other| *other == name || other.starts_with(&format!("{name}#"))).count();
            names.push(if n_same == 0 { name.clone() } else { format!("{name}#{}", n_same + 1) });
        }
        names
    }
}

/// Mean of 1 − cos over all pairs of rows; 0 for fewer than two.
fn mean_pairwise_distance(embeddings: &Array2<f32>) -> f64 {
    let n = embeddings.nrows();
    if n < 2 {
        return 0.0;
    }
    // Σ_{i≠j} cos = ‖Σ e‖² − n for unit rows e.
    let mut sum = vec![0f64; embeddings.ncols()];
    for row in embeddings.rows() {
        let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        for (sum, &x) in sum.iter_mut().zip(row) {
            *sum += f64::from(x) / norm;
        }
    }
    let squared: f64 = sum.iter().map(|x| x * x).sum();
    let n = n as f64;
    1.0 - (squared - n) / (n * (n - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diversity_is_the_mean_over_pairs() {
        let embeddings = ndarray::array![[2.0f32, 0.0], [0.0, 3.0], [1.0, 1.0]];
        let half = 0.5f64.sqrt();
        let wanted = (1.0 + (1.0 - half) + (1.0 - half)) / 3.0;
        assert!((mean_pairwise_distance(&embeddings) - wanted).abs() < 1e-7);
        assert_eq!(mean_pairwise_distance(&ndarray::array![[1.0f32, 2.0]]), 0.0);
    }
}
