//! Rewards from what plugins return, in f64: of a distribution R(x) = −CE(C(x), U), the paper's equation 3, or a score.

use crate::config::RewardNormalization;
use crate::plugin::Values;
use crate::statistics::Summary;

/// Returns the reward of each sample: of a distribution its ambiguity; of a score itself, or its negative where lower scores
/// are better.
pub fn rewards(values: &Values) -> Vec<f64> {
    match values {
        Values::Distributions(distributions) => distributions.rows.iter().map(|row| ambiguity(row)).collect(),
        Values::Scores { scale, scores } => {
            let sign = if scale.higher_is_better { 1.0 } else { -1.0 };
            scores.iter().map(|score| sign * score).collect()
        }
    }
}

/// Returns the reward of one distribution, given as log-probabilities: their mean over the classes, at most −ln N.
pub fn ambiguity(log_probabilities: &[f64]) -> f64 {
    log_probabilities.iter().sum::<f64>() / log_probabilities.len() as f64
}

/// Returns the Shannon entropy of one distribution, given as log-probabilities, in nats; at most ln N.
pub fn entropy(log_probabilities: &[f64]) -> f64 {
    -log_probabilities.iter().map(|log_p| log_p.exp() * log_p).sum::<f64>()
}

/// Returns the largest probability of a distribution, given as log-probabilities.
pub fn max_probability(log_probabilities: &[f64]) -> f64 {
    log_probabilities.iter().copied().fold(f64::NEG_INFINITY, f64::max).exp()
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
    use crate::plugin::{Distributions, Scale};

    #[test]
    fn the_uniform_distribution_is_the_most_ambiguous() {
        let uniform = [(1.0f64 / 27.0).ln(); 27];
        assert!((ambiguity(&uniform) + 27f64.ln()).abs() < 1e-12);
        assert!((entropy(&uniform) - 27f64.ln()).abs() < 1e-12);
        // Nothing is floored: e^-800 is no f64.
        let mut certain = [-800.0; 27];
        certain[3] = 0.0;
        assert!((ambiguity(&certain) + 800.0 * 26.0 / 27.0).abs() < 1e-9);
        assert_eq!((entropy(&certain), max_probability(&certain)), (0.0, 1.0));
        assert!((max_probability(&[0.2f64, 0.5, 0.3].map(f64::ln)) - 0.5).abs() < 1e-15);
    }

    #[test]
    fn lower_scores_are_better_where_the_plugin_says_so() {
        let scores = |scale| rewards(&Values::Scores { scale, scores: vec![2.0, -3.0] });
        assert_eq!(scores(Scale::higher_is_better()), [2.0, -3.0]);
        assert_eq!(scores(Scale::lower_is_better()), [-2.0, 3.0]);
        let rows = vec![[0.25f64, 0.75].map(f64::ln).to_vec()];
        let found = rewards(&Values::Distributions(Distributions { styles: 2, rows }));
        assert!((found[0] - 0.5 * (0.25f64 * 0.75).ln()).abs() < 1e-15);
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
