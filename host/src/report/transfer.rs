//! Transfer: the change by training of the reward under each plugin, those of the training and those held out, in standard
//! errors.

use serde::Serialize;

use crate::run::PluginsLock;
use crate::run::evaluation::{Estimate, Evaluation};
use crate::run::record::FineTuneMonitor;
use crate::statistics::Improvement;
use crate::text::{decimals, number, signed};

/// Half the width of a 95 % interval of a mean in standard errors.
pub(super) const NORMAL: f64 = 1.96;
/// A change below this number of standard errors may be chance.
pub(super) const CLEAR: f64 = 3.0;

/// The change of a plugin's reward by training.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    /// The plugin's name, or those of the plugins that were trained together.
    pub(super) plugin: String,
    /// Whether the plugin took no part in the training.
    pub(super) held_out: bool,
    pub(super) improvement: Improvement,
}

/// A change as a cell of a table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Cell {
    pub(super) plugin: String,
    pub(super) held_out: bool,
    /// The change in standard errors, with its sign.
    pub(super) value: String,
    /// The change itself.
    pub(super) title: String,
    /// `good`, `bad` or empty for what may be chance.
    pub(super) tone: &'static str,
}

/// Returns the name of a run's reward: its plugins, joined.
pub(super) fn reward_name(lock: &PluginsLock) -> String {
    lock.of_reward().map(|plugin| plugin.name.as_str()).collect::<Vec<_>>().join(" + ")
}

/// Returns the change of the reward between two monitors, paired by sample where both have the same samples.
pub(super) fn improvement(first: &FineTuneMonitor, last: &FineTuneMonitor) -> Improvement {
    if first.rewards.len() == last.rewards.len() && first.rewards.len() > 1 {
        return Improvement::paired(&first.rewards, &last.rewards);
    }
    let sem = first.reward_sem.zip(last.reward_sem).map(|(first, last)| first.hypot(last));
    Improvement { mean: last.reward_mean - first.reward_mean, sem, paired: false }
}

/// Returns the changes between two monitors: of the reward, and of each held-out plugin.
pub(super) fn of_monitors(lock: &PluginsLock, first: &FineTuneMonitor, last: &FineTuneMonitor) -> Vec<Change> {
    let trained = Change { plugin: reward_name(lock), held_out: false, improvement: improvement(first, last) };
    let held_out = first.held_out_rewards.iter().filter_map(|(name, before)| {
        let after = last.held_out_rewards.get(name).filter(|after| after.len() == before.len() && after.len() > 1)?;
        Some(Change { plugin: name.clone(), held_out: true, improvement: Improvement::paired(before, after) })
    });
    std::iter::once(trained).chain(held_out).collect()
}

/// Returns the changes that `eval.json` has: of the reward under each plugin, from the same prompts and noise.
pub(super) fn of_evaluation(evaluation: &Evaluation) -> Vec<Change> {
    let rewards = evaluation.metrics.iter().filter(|metric| metric.name == "reward");
    let changes = rewards.filter_map(|metric| {
        let difference = metric.values()?.difference?;
        let improvement = Improvement { mean: difference.mean, sem: standard_error(&difference), paired: true };
        Some(Change { plugin: metric.plugin.clone()?, held_out: metric.held_out, improvement })
    });
    changes.collect()
}

/// The standard error of a mean, from its interval.
fn standard_error(estimate: &Estimate) -> Option<f64> {
    estimate.ci95.map(|[low, high]| (high - low) / (2.0 * NORMAL))
}

impl Cell {
    /// Returns the cell of a change.
    pub(super) fn of(change: &Change) -> Self {
        let Change { plugin, held_out, improvement } = change;
        let places = decimals(improvement.mean.abs().max(improvement.sem.unwrap_or(0.0)));
        let error = improvement.sem.map_or_else(String::new, |sem| format!(" ± {}", number(sem, places)));
        let errors = improvement.standard_errors();
        Self {
            plugin: plugin.clone(),
            held_out: *held_out,
            value: errors.map_or_else(|| "–".to_owned(), |errors| signed(errors, 1)),
            title: format!("{}{error}", signed(improvement.mean, places)),
            tone: errors.map_or("", tone),
        }
    }
}

/// Returns the tone of a change in standard errors.
pub(super) fn tone(errors: f64) -> &'static str {
    match errors {
        errors if errors >= CLEAR => "good",
        errors if errors <= -CLEAR => "bad",
        _ => "",
    }
}
