//! The curve, tiles and sentences of a fine-tuning run: the improvement of the reward on the fixed samples, and their
//! remaining diversity.

use super::Tile;
use super::curve::{Curve, UpperBound};
use crate::config::FineTuneConfig;
use crate::run::record::{FineTuneMonitor, FineTuneRecord};
use crate::run::{LockedPlugin, PluginsLock};
use crate::statistics::Improvement;
use crate::text::{counted, decimals, number, signed};

/// An improvement below this number of standard errors may be chance.
const CLEAR_IMPROVEMENT: f64 = 3.0;

/// A run's configuration and its measurements.
pub(super) struct FineTune<'a> {
    /// Name of the run's folder.
    pub(super) name: &'a str,
    pub(super) records: &'a [FineTuneRecord],
    pub(super) lock: &'a PluginsLock,
    pub(super) config: &'a FineTuneConfig,
}

impl<'a> FineTune<'a> {
    /// The weight of a plugin by its index in the configuration, which is its index in the lock.
    pub(super) fn weight(&self, index: usize) -> f64 {
        self.config.reward.plugin.get(index).map_or(1.0, |plugin| plugin.weight)
    }

    /// The upper bound of each plugin's reward, weighted and summed: −ln N of a classifier, the best score of a scorer; none
    /// if a plugin has none.
    pub(super) fn upper_bound(&self) -> Option<UpperBound> {
        let plugins = self.lock.plugins.iter().enumerate();
        let terms: Option<Vec<_>> = plugins.map(|(i, plugin)| term(self.weight(i), plugin)).collect();
        let terms = terms.filter(|terms| !terms.is_empty())?;
        let reward = terms.iter().map(|(bound, _)| bound).sum();
        let mut formula = String::new();
        for (i, (_, text)) in terms.iter().enumerate() {
            let plus = if i > 0 && !text.starts_with('−') { "+ " } else { "" };
            formula += &format!("{}{plus}{text}", if i > 0 { " " } else { "" });
        }
        Some(UpperBound { reward, formula })
    }

    /// The reward curve.
    pub(super) fn curve(&self) -> Curve<'a> {
        let plugins: Vec<_> = self.lock.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
        let title =
            if plugins.is_empty() { self.name.to_owned() } else { format!("Reward of {}", plugins.join(" + ")) };
        let min_diversity = Some(self.min_diversity());
        Curve { title, records: self.records, upper_bound: self.upper_bound(), min_diversity }
    }

    fn min_diversity(&self) -> f64 {
        self.config.monitor.min_diversity
    }

    fn monitors(&self) -> impl DoubleEndedIterator<Item = (u64, &'a FineTuneMonitor)> {
        self.records.iter().filter_map(|record| Some((record.epoch, record.monitor.as_ref()?)))
    }

    /// The first monitor, and the last one with its epoch.
    fn ends(&self) -> Option<(&'a FineTuneMonitor, u64, &'a FineTuneMonitor)> {
        let ((first_epoch, first), (epoch, last)) = (self.monitors().next()?, self.monitors().next_back()?);
        (first_epoch < epoch).then_some((first, epoch, last))
    }

    /// The monitor with the highest reward whose diversity is not below the minimum.
    fn best(&self) -> Option<(u64, &'a FineTuneMonitor)> {
        let minimum = self.min_diversity() * self.monitors().next()?.1.diversity;
        let held = self.monitors().filter(|(_, monitor)| monitor.diversity >= minimum);
        held.max_by(|(_, a), (_, b)| a.reward_mean.total_cmp(&b.reward_mean))
    }

    /// The share of the way to the upper bound, in percent.
    fn gap_closed(&self) -> Option<f64> {
        let ((first, _, last), bound) = (self.ends()?, self.upper_bound()?);
        let gap = bound.reward - first.reward_mean;
        (gap > 1e-9).then(|| 100.0 * (last.reward_mean - first.reward_mean) / gap)
    }

    /// The tiles at the top of the page.
    pub(super) fn tiles(&self) -> Vec<Tile> {
        let Some((first, _, last)) = self.ends() else { return Vec::new() };
        let improvement = improvement(first, last);
        let decimals = decimals_of(&improvement);
        let mut tiles = vec![Tile {
            label: "Reward",
            value: number(last.reward_mean, decimals),
            note: format!("from {}", number(first.reward_mean, decimals)),
            tone: "",
        }];
        if let Some(errors) = improvement.standard_errors() {
            let value = signed(improvement.mean, decimals);
            tiles.push(Tile {
                label: "Improvement",
                value: value.clone(),
                note: format!(
                    "{} standard errors{}",
                    number(errors, 1),
                    if improvement.paired { ", paired" } else { "" }
                ),
                tone: match errors {
                    // A change that is shown as zero is none, however surely it is measured.
                    _ if !value.starts_with(['+', '−']) => "",
                    errors if errors >= CLEAR_IMPROVEMENT => "good",
                    errors if errors <= -CLEAR_IMPROVEMENT => "bad",
                    _ => "",
                },
            });
        }
        if let (Some(closed), Some(bound)) = (self.gap_closed(), self.upper_bound()) {
            tiles.push(Tile {
                label: "Gap closed",
                value: format!("{} %", number(closed, 0)),
                note: format!("to {} = {}", bound.formula, number(bound.reward, decimals)),
                tone: "",
            });
        }
        if let Some(share) = diversity_share(first, last) {
            let limit = 100.0 * self.min_diversity();
            tiles.push(Tile {
                label: "Diversity",
                value: format!("{} %", number(share, 0)),
                note: format!("of the start; limit {} %", number(limit, 0)),
                tone: if share < limit { "bad" } else { "good" },
            });
        }
        if let (Some(first), Some(last)) = (first.max_probability, last.max_probability) {
            tiles.push(Tile {
                label: "Max probability",
                value: number(last, 2),
                note: format!("from {}", number(first, 2)),
                tone: "",
            });
        }
        tiles
    }

    /// The result in sentences.
    pub(super) fn result(&self) -> Vec<String> {
        let Some((first, epoch, last)) = self.ends() else {
            return vec!["The fixed samples were not yet scored after training began.".to_owned()];
        };
        let improvement = improvement(first, last);
        let decimals = decimals_of(&improvement);
        let n = last.rewards.len();
        let samples = if n > 0 { format!("{n} fixed samples") } else { "the fixed samples".to_owned() };
        let errors = improvement.standard_errors();
        let verb = match errors {
            Some(errors) if errors.abs() < CLEAR_IMPROVEMENT => "went",
            _ if improvement.mean >= 0.0 => "rose",
            _ => "fell",
        };
        let mut sentence = format!(
            "On {samples} (same prompts, same noise) the mean reward {verb} from {} to {} in {}",
            number(first.reward_mean, decimals),
            number(last.reward_mean, decimals),
            counted(epoch, "epoch")
        );
        if let (Some(errors), Some(sem)) = (errors, improvement.sem) {
            let paired = if improvement.paired { "paired by sample" } else { "unpaired" };
            sentence += &format!(
                ", a change of {} ± {} ({paired}), which is {} standard errors",
                signed(improvement.mean, decimals),
                number(sem, decimals),
                number(errors, 1)
            );
            if errors.abs() < CLEAR_IMPROVEMENT {
                sentence += " and may be chance";
            }
        }
        let mut sentences = vec![sentence + "."];
        if let (Some(closed), Some(bound)) = (self.gap_closed(), self.upper_bound()) {
            sentences.push(format!(
                "That is {} % of the way to the upper bound {} = {}{}.",
                number(closed, 0),
                bound.formula,
                number(bound.reward, decimals),
                match self.lock.plugins.iter().all(|plugin| plugin.styles.is_some()) {
                    true => ", which a classifier without any preference would have",
                    false => "",
                }
            ));
        }
        let maximum = match &self.lock.plugins[..] {
            [plugin] => plugin.styles.map(|styles| format!(" of at most {}", number(f64::from(styles).ln(), 2))),
            _ => None,
        };
        let ends = |of: fn(&FineTuneMonitor) -> Option<f64>| Some((of(first)?, of(last)?));
        if let (Some(entropy), Some(probability)) = (ends(|m| m.entropy), ends(|m| m.max_probability)) {
            sentences.push(format!(
                "The mean entropy went from {} to {}{} nats, the probability of the most likely style from {} to {}.",
                number(entropy.0, 2),
                number(entropy.1, 2),
                maximum.unwrap_or_default(),
                number(probability.0, 2),
                number(probability.1, 2)
            ));
        }
        if self.lock.plugins.len() > 1 {
            let changes = first.plugin_rewards.iter().filter_map(|(name, before)| {
                let after = last.plugin_rewards.get(name)?;
                let decimals = crate::text::decimals((after - before).abs());
                Some(format!("{name} from {} to {}", number(*before, decimals), number(*after, decimals)))
            });
            let changes = changes.collect::<Vec<_>>().join(", ");
            if !changes.is_empty() {
                sentences.push(format!("By plugin, the mean reward without its weight: {changes}."));
            }
        }
        if let Some(share) = diversity_share(first, last) {
            let limit = 100.0 * self.min_diversity();
            let held = match share < limit {
                true => format!(", below the limit of {} %: the model has collapsed", number(limit, 0)),
                false => format!("; the limit is {} %", number(limit, 0)),
            };
            sentences.push(format!("The images are {} % as diverse as the untrained model's{held}.", number(share, 0)));
        }
        if let Some((best_epoch, best)) = self.best().filter(|(best, _)| *best > 0 && *best != epoch) {
            sentences.push(format!(
                "The highest reward without a collapse was {}, at epoch {best_epoch}: its LoRA is in best/.",
                number(best.reward_mean, decimals)
            ));
        }
        sentences
    }
}

/// The upper bound of one plugin's weighted reward, and its formula.
fn term(weight: f64, plugin: &LockedPlugin) -> Option<(f64, String)> {
    if let Some(styles) = plugin.styles {
        // Ambiguity has no least value, so a negative weight has no upper bound.
        let formula = match weight {
            1.0 => format!("−ln {styles}"),
            weight => format!("−{weight} ln {styles}"),
        };
        return (weight > 0.0).then(|| (-weight * f64::from(styles).ln(), formula));
    }
    let bound = weight * if weight > 0.0 { plugin.largest_reward } else { plugin.least_reward }?;
    Some((bound, signless(bound)))
}

/// A number as it stands in a formula.
fn signless(bound: f64) -> String {
    let text = format!("{}", bound.abs());
    if bound < 0.0 { format!("−{text}") } else { text }
}

/// The change of the mean reward between two monitors.
fn improvement(first: &FineTuneMonitor, last: &FineTuneMonitor) -> Improvement {
    if first.rewards.len() == last.rewards.len() && first.rewards.len() > 1 {
        return Improvement::paired(&first.rewards, &last.rewards);
    }
    let sem = first.reward_sem.zip(last.reward_sem).map(|(first, last)| first.hypot(last));
    Improvement { mean: last.reward_mean - first.reward_mean, sem, paired: false }
}

/// The number of decimals of rewards: those of the change, but no more than its standard error has.
fn decimals_of(improvement: &Improvement) -> usize {
    decimals(improvement.mean.abs().max(improvement.sem.unwrap_or(0.0)))
}

/// The last diversity in percent of the first.
fn diversity_share(first: &FineTuneMonitor, last: &FineTuneMonitor) -> Option<f64> {
    (first.diversity > 0.0).then(|| 100.0 * last.diversity / first.diversity)
}
