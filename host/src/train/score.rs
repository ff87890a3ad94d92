//! Images to rewards: every classifier of the run over the same batches, encoders run once a batch.

use anyhow::{Context as _, Result, bail};
use ndarray::{Array2, Axis, concatenate};
use tch::Device;

use crate::config::{Config, OnError, RewardPlugin};
use crate::encoders::Encoders;
use crate::plugin::{Batch, Classifier, Limits, PluginHost, Sample, cache_folder};
use crate::reward::{PluginRewards, ambiguity, entropy, max_probability};
use crate::run::LockedPlugin;

/// The classifiers of a run and the encoders they ask for.
pub struct Scorer {
    classifiers: Vec<(RewardPlugin, Box<dyn Classifier>)>,
    encoders: Encoders,
    diversity_encoder: String,
    on_error: OnError,
    batch_size: usize,
}

/// What the classifiers say of some images.
#[derive(Debug)]
pub struct Scores {
    /// Which images every plugin could judge; all below is of these, in order.
    pub kept: Vec<usize>,
    /// One entry a plugin.
    pub plugins: Vec<PluginRewards>,
    /// Of the first plugin's distributions, nats.
    pub entropy: Vec<f64>,
    /// Of the first plugin's distributions.
    pub max_probability: Vec<f64>,
    /// Images left out.
    pub skipped: usize,
}

impl Scores {
    /// The weighted sum of the plugins' rewards, as they are.
    pub fn weighted_sum(&self) -> Vec<f64> {
        crate::reward::combine(&self.plugins, crate::config::RewardNormalization::Sum)
    }
}

impl Scorer {
    /// Loads every plugin of the run; a plugin for another medium than images is refused.
    pub fn load(config: &Config, encoders: Encoders, device: Device) -> Result<Self> {
        let limits = Limits {
            timeout_ms: config.plugin.timeout_ms,
            fuel: config.plugin.fuel,
            memory_mib: config.plugin.memory_mib,
            ..Limits::default()
        };
        let host = PluginHost::new(limits, cache_folder())?.on(device);
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
        self.classifiers.iter().map(|(plugin, classifier)| locked(&plugin.source, &**classifier)).collect()
    }

    /// The highest that the weighted sum of rewards can be.
    pub fn ceiling(&self) -> f64 {
        let of = |(plugin, classifier): &(RewardPlugin, Box<dyn Classifier>)| {
            -plugin.weight * (classifier.description().styles.len() as f64).ln()
        };
        self.classifiers.iter().map(of).sum()
    }

    /// Scores images batch by batch.
    pub fn score(&mut self, samples: Vec<Sample>) -> Result<Scores> {
        self.score_batches(samples, &mut |_, _| Ok(()))
    }

    /// Scores images, and measures their diversity: the mean pairwise 1 − cos of their embeddings by the run's first
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
        look: &mut dyn FnMut(&mut Batch, &mut Encoders) -> Result<()>,
    ) -> Result<Scores> {
        let names = self.names();
        let mut scores = Scores {
            kept: Vec::new(),
            plugins: Vec::new(),
            entropy: Vec::new(),
            max_probability: Vec::new(),
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
            let mut batch = Batch::new(chunk);
            self.score_batch(start, &mut batch, &mut scores)?;
            look(&mut batch, &mut self.encoders)?;
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
            plugin.rewards.extend(distributions.rows.iter().map(|row| ambiguity(row)));
        }
        scores.entropy.extend(classified[0].rows.iter().map(|row| entropy(row)));
        scores.max_probability.extend(classified[0].rows.iter().map(|row| max_probability(row)));
        Ok(())
    }

    /// Plugins' names, made different where two are the same.
    pub fn names(&self) -> Vec<String> {
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

/// What plugins.lock says of a plugin that was called `source`.
pub fn locked(source: &str, classifier: &dyn Classifier) -> LockedPlugin {
    let (file, description) = (classifier.source(), classifier.description());
    LockedPlugin {
        name: description.name.clone(),
        source: source.to_owned(),
        sha256: file.sha256.clone(),
        interface: file.interface.clone(),
        styles: u32::try_from(description.styles.len()).ok(),
    }
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
