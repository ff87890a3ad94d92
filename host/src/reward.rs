//! Distributions to rewards to advantages: R(x) = −CE(C(x), U), the paper's equation 3.
//!
//! Rewards of k-means classifiers differ by 0.002 to 0.02 round −ln N, so everything here is f64.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::config::RewardNormalization;

/// Probabilities are floored at this before their logarithm is taken.
pub const MIN_PROBABILITY: f64 = 1e-12;
/// Added to a standard deviation before it divides.
pub const STD_EPSILON: f64 = 1e-8;

/// The reward of one distribution: the mean of ln p over the classes, at most −ln N.
pub fn ambiguity(distribution: &[f64]) -> f64 {
    let sum: f64 = distribution.iter().map(|p| p.max(MIN_PROBABILITY).ln()).sum();
    sum / distribution.len() as f64
}

/// Shannon entropy in nats, at most ln N.
pub fn entropy(distribution: &[f64]) -> f64 {
    -distribution.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

/// The largest probability.
pub fn max_probability(distribution: &[f64]) -> f64 {
    distribution.iter().copied().fold(0.0, f64::max)
}

/// Mean, population standard deviation (ddof 0), smallest and largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Mean.
    pub mean: f64,
    /// Standard deviation, ddof 0.
    pub std: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Summary {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
        Self {
            mean,
            std: variance.sqrt(),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    /// (value − mean) / (std + 1e-8).
    pub fn z_score(&self, value: f64) -> f64 {
        (value - self.mean) / (self.std + STD_EPSILON)
    }
}

/// One plugin's rewards, one a sample.
#[derive(Clone, Debug)]
pub struct PluginRewards {
    /// What metrics call it.
    pub name: String,
    /// Its weight in the run.
    pub weight: f64,
    /// One a sample.
    pub rewards: Vec<f64>,
}

/// The reward of each sample from those of the plugins.
pub fn combine(plugins: &[PluginRewards], normalization: RewardNormalization) -> Vec<f64> {
    let n = plugins.first().map_or(0, |plugin| plugin.rewards.len());
    let mut total = vec![0.0; n];
    for plugin in plugins {
        let summary = Summary::of(&plugin.rewards);
        for (total, &reward) in total.iter_mut().zip(&plugin.rewards) {
            *total += plugin.weight
                * match normalization {
                    RewardNormalization::Sum => reward,
                    RewardNormalization::Zscore => summary.z_score(reward),
                };
        }
    }
    total
}

/// Advantages over an epoch: z-scores, clamped to ± `clip`.
pub fn advantages(rewards: &[f64], clip: f64) -> Vec<f64> {
    let summary = Summary::of(rewards);
    rewards.iter().map(|&reward| summary.z_score(reward).clamp(-clip, clip)).collect()
}

/// The last rewards of every prompt, for advantages by prompt (Black et al., appendix D).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PromptStatistics {
    buffers: BTreeMap<usize, VecDeque<f64>>,
}

impl PromptStatistics {
    /// Rewards kept of a prompt, and how many there must be before they are used.
    pub const BUFFER: usize = 16;

    /// Takes an epoch's rewards in and gives their advantages: against the same prompt's last rewards where there are
    /// enough, else against the epoch.
    pub fn advantages(&mut self, prompts: &[usize], rewards: &[f64], clip: f64) -> Vec<f64> {
        for (&prompt, &reward) in prompts.iter().zip(rewards) {
            let buffer = self.buffers.entry(prompt).or_default();
            if buffer.len() == Self::BUFFER {
                buffer.pop_front();
            }
            buffer.push_back(reward);
        }
        let epoch = Summary::of(rewards);
        let of_prompt = |prompt: &usize| match self.buffers.get(prompt) {
            Some(buffer) if buffer.len() == Self::BUFFER => Summary::of(&buffer.iter().copied().collect::<Vec<_>>()),
            _ => epoch,
        };
        prompts
            .iter()
            .zip(rewards)
            .map(|(prompt, &reward)| of_prompt(prompt).z_score(reward).clamp(-clip, clip))
            .collect()
    }
}

/// The mean of paired differences and its standard error (ddof 1).
pub fn paired_rise(before: &[f64], after: &[f64]) -> (f64, f64) {
    let differences: Vec<f64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    let n = differences.len() as f64;
    let summary = Summary::of(&differences);
    (summary.mean, standard_error(summary.std, n))
}

/// The standard error of a mean over `n` from a population standard deviation.
pub fn standard_error(std: f64, n: f64) -> f64 {
    if n > 1.0 { std / (n - 1.0).sqrt() } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uniform_distribution_is_the_most_ambiguous() {
        let uniform = [1.0 / 27.0; 27];
        assert!((ambiguity(&uniform) + 27f64.ln()).abs() < 1e-12);
        assert!((entropy(&uniform) - 27f64.ln()).abs() < 1e-12);
        let mut certain = [0.0; 27];
        certain[3] = 1.0;
        assert!((ambiguity(&certain) - 26.0 / 27.0 * MIN_PROBABILITY.ln()).abs() < 1e-9);
        assert_eq!((entropy(&certain), max_probability(&certain)), (0.0, 1.0));
    }

    #[test]
    fn advantages_are_clamped_z_scores_with_ddof_0() {
        let values = advantages(&[1.0, 2.0, 3.0], 5.0);
        assert!((values[2] - 1.5f64.sqrt()).abs() < 1e-6 && values[1] == 0.0);
        assert_eq!(advantages(&[2.0; 4], 5.0), [0.0; 4]);
        let mut spike = vec![0.0; 100];
        spike[0] = 1.0;
        assert_eq!(advantages(&spike, 5.0)[0], 5.0);
    }

    #[test]
    fn prompts_are_compared_with_themselves_once_there_are_enough() {
        let mut statistics = PromptStatistics::default();
        let prompts: Vec<usize> = (0..32).map(|i| i % 2).collect();
        let rewards: Vec<f64> = (0..32).map(|i| if i % 2 == 0 { 10.0 } else { -10.0 } + f64::from(i / 2)).collect();
        let by_prompt = statistics.advantages(&prompts, &rewards, 5.0);
        // The prompts' means differ by 20, yet both have the same advantages.
        assert!((by_prompt[0] - by_prompt[1]).abs() < 1e-9, "{by_prompt:?}");
        let mut few = PromptStatistics::default();
        assert_eq!(few.advantages(&prompts[..4], &rewards[..4], 5.0), advantages(&rewards[..4], 5.0));
    }

    #[test]
    fn z_scores_bring_plugins_to_one_scale() {
        let plugin = |weight, rewards: &[f64]| PluginRewards { name: String::new(), weight, rewards: rewards.to_vec() };
        let plugins = [plugin(1.0, &[1.0, 3.0]), plugin(0.5, &[100.0, 300.0])];
        assert_eq!(combine(&plugins, RewardNormalization::Sum), [51.0, 153.0]);
        let z = combine(&plugins, RewardNormalization::Zscore);
        assert!((z[0] + 1.5).abs() < 1e-6 && (z[1] - 1.5).abs() < 1e-6, "{z:?}");
    }

    #[test]
    fn a_paired_rise_has_the_standard_error_of_differences() {
        let (mean, sem) = paired_rise(&[1.0, 2.0, 3.0, 4.0], &[2.0, 3.0, 4.0, 7.0]);
        assert_eq!((mean, sem), (1.5, 0.5));
    }
}
