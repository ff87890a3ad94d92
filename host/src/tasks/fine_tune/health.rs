//! Signs that a fine-tuning goes wrong: reward hacking, a collapse and what counteracts it, updates that do not fit; and what a
//! classifier says of the monitor's images.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::COMPARED;
use crate::config::fine_tune::{Dtype, OnCollapse};
use crate::config::{FineTuneConfig, Shuffle, Train};
use crate::rl::objective::UpdateStatistics;
use crate::run::MAX_NAMED_STYLES;
use crate::run::record::{FineTuneMonitor, StylesMonitor};
use crate::statistics::Improvement;

/// Maximum |ratio − 1| of a first update that f32 rounding explains, and more than calls that repeat those of sampling have.
const MAX_RATIO_ERROR: f64 = 1e-5;
/// Share of the clip range that rounding of narrower types may take.
const MAX_ROUNDING_SHARE: f64 = 0.5;
/// Number of standard errors from which on a change is more than uncertainty.
const MIN_STANDARD_ERRORS: f64 = 3.0;

/// How fast the logarithm of the Vendi score's weight grows as its share falls below the target.
const VENDI_SLOPE: f64 = 10.0;

/// The monitor of the untrained model, with which later ones are compared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct First {
    pub(super) diversity: f64,
    pub(super) rewards: Vec<f64>,
    pub(super) held_out: BTreeMap<String, Vec<f64>>,
}

impl First {
    /// Returns the warning of reward hacking: the trained reward has risen, and a held-out one has fallen, both by more than
    /// their uncertainty.
    pub(super) fn hacking(&self, monitor: &FineTuneMonitor) -> Option<String> {
        let trained = Improvement::paired(&self.rewards, &monitor.rewards);
        trained.standard_errors().filter(|errors| *errors >= MIN_STANDARD_ERRORS)?;
        let change = |(name, before): (&String, &Vec<f64>)| {
            let after = monitor.held_out_rewards.get(name)?;
            Some((name.clone(), Improvement::paired(before, after)))
        };
        let fallen = self
            .held_out
            .iter()
            .filter_map(change)
            .filter(|(_, change)| change.standard_errors().is_some_and(|errors| errors <= -MIN_STANDARD_ERRORS));
        let words = fallen.map(|(name, change)| {
            let errors = change.standard_errors().unwrap_or_default();
            format!("that of {name} has fallen by {:.4} ({:.1} standard errors)", -change.mean, -errors)
        });
        let words: Vec<String> = words.collect();
        (!words.is_empty()).then(|| {
            format!(
                "reward hacking: the trained reward has risen by {:.4}, but {}: the model exploits what its classifier gets \
                 wrong; train with these plugins together, or with a larger train.kl",
                trained.mean,
                words.join(", and ")
            )
        })
    }
}

/// Returns what a classifier says of the monitor's images.
pub(super) fn styles_monitor(plugin: String, rows: &[Vec<f64>]) -> StylesMonitor {
    let rounded = |p: f64| (p * 1e4).round() / 1e4;
    let n_styles = rows.first().map_or(0, Vec::len);
    let probabilities: Vec<Vec<f64>> = rows.iter().map(|row| row.iter().map(|log_p| log_p.exp()).collect()).collect();
    let mean_of = |rows: &[&Vec<f64>]| -> Vec<f64> {
        (0..n_styles).map(|style| rows.iter().map(|row| row[style]).sum::<f64>() / rows.len() as f64).collect()
    };
    let mean = mean_of(&probabilities.iter().collect::<Vec<_>>());
    let coverage = -mean.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>();
    let of_style = |style: usize| {
        let is_top = |row: &&Vec<f64>| (0..n_styles).max_by(|&a, &b| row[a].total_cmp(&row[b])) == Some(style);
        let own: Vec<&Vec<f64>> = probabilities.iter().filter(is_top).collect();
        if own.is_empty() { vec![] } else { mean_of(&own).into_iter().map(rounded).collect() }
    };
    let is_small = n_styles <= MAX_NAMED_STYLES as usize;
    StylesMonitor {
        plugin,
        coverage,
        first: probabilities.iter().take(COMPARED).map(|row| row.iter().copied().map(rounded).collect()).collect(),
        confusion: if is_small { (0..n_styles).map(of_style).collect() } else { vec![] },
    }
}

/// Returns the weight of the Vendi score in an epoch whose samples have this share of the first epoch's score.
pub(super) fn vendi_weight(train: &Train, share: f64) -> f64 {
    match train.vendi_target {
        0.0 => train.vendi_weight,
        target => train.vendi_weight * (VENDI_SLOPE * (target - share)).exp(),
    }
}

/// Returns the weight of the KL divergence after some monitors found a collapse.
pub(super) fn counteracting_kl(config: &FineTuneConfig, counteracted: u32) -> f64 {
    match (config.monitor.on_collapse, config.train.kl) {
        (OnCollapse::RaiseKl, 0.0) if counteracted > 0 => 2f64.powi(counteracted as i32 - 1),
        (OnCollapse::RaiseKl, kl) => kl * 2f64.powi(counteracted as i32),
        (_, kl) => kl,
    }
}

/// Returns the maximum |ratio − 1| of a first update that the configuration explains. Calls that repeat those of sampling round
/// as these do; other calls round as the type does, which must not use up the clip range.
fn max_ratio_error(config: &FineTuneConfig) -> f64 {
    let is_cuda = config.run.device != "cpu";
    let is_f32 = config.model.dtype == Dtype::F32 && !(is_cuda && config.cuda.tf32);
    match config.train.shuffle {
        Shuffle::Samples if !is_f32 => MAX_RATIO_ERROR.max(MAX_ROUNDING_SHARE * config.train.clip_range),
        Shuffle::Samples | Shuffle::Calls => MAX_RATIO_ERROR,
    }
}

/// Returns the warnings about an epoch's updates.
pub(super) fn of_update(update: &UpdateStatistics, config: &FineTuneConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    let (train, max_ratio_error) = (&config.train, max_ratio_error(config));
    if update.ratio_error > max_ratio_error {
        warnings.push(format!(
            "ratios of the first update differ from 1 by up to {:.1e}, which should be at most {max_ratio_error:.0e}, and the \
             clip range is {}: sampling and training round differently; {}",
            update.ratio_error,
            train.clip_range,
            match train.shuffle {
                Shuffle::Samples => "use train.shuffle = \"calls\"",
                Shuffle::Calls => "use model.dtype = \"f32\" and cuda.tf32 = false",
            }
        ));
    }
    if update.clip_fraction > 0.5 {
        warnings.push(format!(
            "{:.0} % of ratios were clipped: lower train.learning_rate or widen train.clip_range",
            100.0 * update.clip_fraction
        ));
    }
    if update.dropped_steps > 0 {
        let n = update.dropped_steps;
        warnings.push(format!("{n} optimizer steps were dropped because their gradient was not finite"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_out_reward_that_falls_while_the_trained_one_rises_is_named() {
        let start: Vec<f64> = (0..40).map(|i| f64::from(i % 7) / 10.0).collect();
        let moved = |by: f64| start.iter().enumerate().map(|(i, x)| x + by + 0.01 * (i % 3) as f64).collect::<Vec<_>>();
        let held_out = |simple: Vec<f64>| BTreeMap::from([("simple".to_owned(), simple)]);
        let first = First { diversity: 1.0, rewards: start.clone(), held_out: held_out(start.clone()) };
        let monitor = |trained: f64, simple: f64| FineTuneMonitor {
            rewards: moved(trained),
            held_out_rewards: held_out(moved(simple)),
            ..FineTuneMonitor::default()
        };
        let warning = first.hacking(&monitor(0.5, -0.3)).expect("it is hacking");
        assert!(warning.starts_with("reward hacking: the trained reward has risen by 0.5"), "{warning}");
        assert!(warning.contains("that of simple has fallen by 0.2"), "{warning}");
        for (trained, simple) in [(0.5, 0.3), (-0.5, -0.3), (-0.01, -0.3), (0.5, -0.01)] {
            assert_eq!(first.hacking(&monitor(trained, simple)), None, "{trained} {simple}");
        }
    }

    #[test]
    fn the_bound_of_the_ratio_check_fits_calls_and_types() {
        let mut config = FineTuneConfig::resolve("tiny-art", &[]).expect("the preset");
        assert!(config.train.shuffle == Shuffle::Samples && config.cuda.tf32);
        let is_warned = |config: &FineTuneConfig, ratio_error: f64| {
            let update = UpdateStatistics { ratio_error, ..UpdateStatistics::default() };
            !of_update(&update, config).is_empty()
        };
        let [below, above] = [0.9e-5, 1.1e-5];
        assert!(!is_warned(&config, below) && is_warned(&config, above), "f32 on the CPU, where there is no TF32");
        let half = 0.5 * config.train.clip_range;
        let mut narrow = config.clone();
        narrow.model.dtype = Dtype::Bf16;
        config.run.device = "cuda".to_owned();
        for config in [&narrow, &config] {
            assert!(!is_warned(config, above) && !is_warned(config, 0.9 * half) && is_warned(config, 1.1 * half));
        }
        config.cuda.tf32 = false;
        narrow.train.shuffle = Shuffle::Calls;
        for config in [&narrow, &config] {
            assert!(!is_warned(config, below) && is_warned(config, above));
        }
    }

    #[test]
    fn the_vendi_weight_grows_as_the_score_falls_below_its_target() {
        let config = FineTuneConfig::resolve("tiny-art", &[]).expect("the preset");
        let mut train = Train { vendi_weight: 0.5, ..config.train };
        let weights = |train: &Train| [1.1, 0.9, 0.8, 0.7].map(|share| vendi_weight(train, share));
        assert_eq!(weights(&train), [0.5; 4]);
        train.vendi_target = 0.9;
        let e = std::f64::consts::E;
        for (found, wanted) in weights(&train).into_iter().zip([0.5 / (e * e), 0.5, 0.5 * e, 0.5 * e * e]) {
            assert!((found / wanted - 1.0).abs() < 1e-9, "{found} {wanted}");
        }
    }

    #[test]
    fn the_kl_weight_doubles_with_every_collapse() {
        let mut config = FineTuneConfig::resolve("tiny-art", &[]).expect("the preset");
        config.train.kl = 0.5;
        assert_eq!(counteracting_kl(&config, 3), 0.5);
        config.monitor.on_collapse = OnCollapse::RaiseKl;
        assert_eq!([0, 1, 2].map(|n| counteracting_kl(&config, n)), [0.5, 1.0, 2.0]);
        config.train.kl = 0.0;
        assert_eq!([0, 1, 2].map(|n| counteracting_kl(&config, n)), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn styles_are_grouped_by_the_most_probable_one() {
        let rows = [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]].map(|row| row.map(f64::ln).to_vec());
        let styles = styles_monitor("p".to_owned(), &rows);
        assert_eq!(styles.confusion, [vec![0.6, 0.25, 0.15], vec![0.1, 0.8, 0.1], vec![]]);
        assert_eq!(styles.first[1], [0.5, 0.3, 0.2]);
        let mean = [1.3 / 3.0, 1.3 / 3.0, 0.4 / 3.0];
        let entropy: f64 = -mean.iter().map(|p: &f64| p * p.ln()).sum::<f64>();
        assert!((styles.coverage - entropy).abs() < 1e-12);
    }
}
