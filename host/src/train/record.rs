//! What a run writes down: a line of metrics an epoch, and the state that a checkpoint carries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ddpo::UpdateStatistics;
use crate::reward::{PromptStatistics, Summary};

/// A line of metrics.jsonl.
#[derive(Clone, Debug, Serialize)]
pub struct EpochRecord {
    /// 0 is the untrained model, which has the monitor alone.
    pub epoch: u64,
    /// What was sampled, rewarded and learned.
    #[serde(flatten)]
    pub trained: Option<TrainedRecord>,
    /// The fixed samples, every so many epochs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<MonitorRecord>,
    /// What somebody should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An epoch of training.
#[derive(Clone, Debug, Serialize)]
pub struct TrainedRecord {
    /// Mean of the weighted sum of the plugins' rewards.
    pub reward_mean: f64,
    /// Its standard deviation, ddof 0.
    pub reward_std: f64,
    /// Its smallest.
    pub reward_min: f64,
    /// Its largest.
    pub reward_max: f64,
    /// The mean of each plugin's.
    pub rewards: BTreeMap<String, f64>,
    /// Samples that no plugin could judge.
    pub skipped: usize,
    /// The update.
    #[serde(flatten)]
    pub update: UpdateStatistics,
    /// Samples by the time of all three parts.
    pub images_per_second: f64,
    /// Where the time went.
    pub seconds: Seconds,
}

impl TrainedRecord {
    /// From its parts.
    pub fn new(
        reward: Summary,
        rewards: BTreeMap<String, f64>,
        skipped: usize,
        update: UpdateStatistics,
        n_samples: usize,
        seconds: Seconds,
    ) -> Self {
        Self {
            reward_mean: reward.mean,
            reward_std: reward.std,
            reward_min: reward.min,
            reward_max: reward.max,
            rewards,
            skipped,
            update,
            images_per_second: n_samples as f64 / (seconds.sample + seconds.reward + seconds.train),
            seconds,
        }
    }
}

/// Wall-clock seconds of an epoch's parts.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Seconds {
    /// Prompts to latents.
    pub sample: f64,
    /// Latents to rewards: VAE, encoders, plugins.
    pub reward: f64,
    /// Updates.
    pub train: f64,
}

/// The same prompts and noise each time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MonitorRecord {
    /// Mean reward.
    pub reward_mean: f64,
    /// Its standard error over the samples.
    pub reward_sem: f64,
    /// Mean entropy of the first plugin's distributions, nats.
    pub entropy: f64,
    /// Mean of the largest probability.
    pub max_probability: f64,
    /// Mean pairwise 1 − cos of the images' embeddings.
    pub diversity: f64,
    /// The reward of each sample, for paired comparison.
    pub rewards: Vec<f64>,
}

/// What, besides tensors, the next epoch depends on; kept in the metadata of state.safetensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Finished epochs.
    pub epoch: u64,
    /// Diversity of the untrained model's fixed samples.
    pub first_diversity: Option<f64>,
    /// The highest monitor reward whose diversity held.
    pub best_reward: Option<f64>,
    /// Rewards by prompt.
    pub prompt_statistics: PromptStatistics,
    /// Dropped optimizer steps in a row.
    pub dropped_in_a_row: usize,
}
