//! Rewards from distributions: R(x) = −CE(C(x), U), the paper's equation 3, in f64.

use crate::config::RewardNormalization;
use crate::statistics::Summary;

/// The floor of probabilities before their logarithm is taken.
pub const MIN_PROBABILITY: f64 = 1e-12;

/// Returns the reward of one distribution: the mean of ln p over the classes, at most −ln N.
pub fn ambiguity(distribution: &[f64]) -> f64 {
    let sum: f64 = distribution.iter().map(|p| p.max(MIN_PROBABILITY).ln()).sum();
    sum / distribution.len() as f64
}

/// Returns the Shannon entropy in nats, at most ln N.
pub fn entropy(distribution: &[f64]) -> f64 {
    -distribution.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

/// Returns the largest probability.
pub fn max_probability(distribution: &[f64]) -> f64 {
    distribution.iter().copied().fold(0.0, f64::max)
}

/// The rewards of one plugin.
#[derive(Clone, Debug)]
pub struct PluginRewards {
    /// The plugin's name in the metrics.
    pub name: String,
    /// The plugin's weight in the run.
    pub weight: f64,
    /// One reward per sample.
    pub rewards: Vec<f64>,
}

/// Combines the plugins' rewards into one reward per sample.
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
        assert_eq!(max_probability(&[0.2, 0.5, 0.3]), 0.5);
    }

    #[test]
    fn z_scores_bring_plugins_to_one_scale() {
        let plugin = |weight, rewards: &[f64]| PluginRewards { name: String::new(), weight, rewards: rewards.to_vec() };
        let plugins = [plugin(1.0, &[1.0, 3.0]), plugin(0.5, &[100.0, 300.0])];
        assert_eq!(combine(&plugins, RewardNormalization::Sum), [51.0, 153.0]);
        let z = combine(&plugins, RewardNormalization::Zscore);
        assert!((z[0] + 1.5).abs() < 1e-6 && (z[1] - 1.5).abs() < 1e-6, "{z:?}");
    }
}
