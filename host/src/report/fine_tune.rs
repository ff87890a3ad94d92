//! The curve, tiles, sentences and tables of a fine-tuning run: the improvement of the reward on the fixed samples, their
//! remaining diversity, and what other plugins and metrics say.

use serde::Serialize;

use super::Tile;
use super::curve::{Curve, UpperBound};
use super::evaluation::Table;
use super::styles::{Confusion, Likely, confusion, largest, likely, style_names};
use super::transfer::{CLEAR, Cell, Change, improvement, of_evaluation, of_monitors, reward_name};
use crate::config::FineTuneConfig;
use crate::run::evaluation::Evaluation;
use crate::run::record::{FineTuneMonitor, FineTuneRecord, StylesMonitor};
use crate::run::{LockedPlugin, PluginsLock};
use crate::statistics::Improvement;
use crate::text::{counted, decimals, number, signed};

/// A run's configuration and its measurements.
pub(super) struct FineTune<'a> {
    /// Name of the run's folder.
    pub(super) name: &'a str,
    pub(super) records: &'a [FineTuneRecord],
    pub(super) lock: &'a PluginsLock,
    pub(super) config: &'a FineTuneConfig,
}

/// What only the page of a fine-tuning has.
#[derive(Serialize)]
pub(super) struct Details {
    /// The classifier whose distributions these are.
    classifier: String,
    /// The most probable styles of each of the first images, before and after training.
    likely: Vec<[Vec<Likely>; 2]>,
    /// The mean distributions by predicted style: after training, and before.
    styles: Vec<(&'static str, Confusion)>,
    /// The table of `eval.json`.
    evaluation: Option<Table>,
    /// The changes under all plugins, by where they are from.
    transfer: Vec<(String, Vec<Cell>)>,
}

impl<'a> FineTune<'a> {
    /// The weight of a plugin by its index in the configuration, which is its index among the lock's plugins of the reward.
    pub(super) fn weight(&self, index: usize) -> f64 {
        self.config.reward.plugin.get(index).map_or(1.0, |plugin| plugin.weight)
    }

    /// The upper bound of each plugin's reward, weighted and summed: −ln N of a classifier, the best score of a scorer; none
    /// if a plugin has none.
    pub(super) fn upper_bound(&self) -> Option<UpperBound> {
        let plugins = self.lock.of_reward().enumerate();
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
        let reward = reward_name(self.lock);
        let title = if reward.is_empty() { self.name.to_owned() } else { format!("Reward of {reward}") };
        let min_diversity = Some(self.min_diversity());
        Curve { title, records: self.records, upper_bound: self.upper_bound(), min_diversity }
    }

    fn min_diversity(&self) -> f64 {
        self.config.monitor.min_diversity
    }

    /// The monitors by epoch.
    pub(super) fn monitors(&self) -> impl DoubleEndedIterator<Item = (u64, &'a FineTuneMonitor)> {
        self.records.iter().filter_map(|record| Some((record.epoch, record.monitor.as_ref()?)))
    }

    /// The first monitor, and the last one with its epoch.
    pub(super) fn ends(&self) -> Option<(&'a FineTuneMonitor, u64, &'a FineTuneMonitor)> {
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
        self.ends().and_then(|(_, _, last)| self.share_of_gap(last))
    }

    /// The share of the way from the first monitor to the upper bound at which another is, in percent.
    pub(super) fn share_of_gap(&self, monitor: &FineTuneMonitor) -> Option<f64> {
        let ((_, first), bound) = (self.monitors().next()?, self.upper_bound()?);
        let gap = bound.reward - first.reward_mean;
        (gap > 1e-9).then(|| 100.0 * (monitor.reward_mean - first.reward_mean) / gap)
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
                    errors if errors >= CLEAR => "good",
                    errors if errors <= -CLEAR => "bad",
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
        if let (Some(first), Some(last)) = (first.vendi, last.vendi) {
            tiles.push(Tile {
                label: "Vendi score",
                value: number(last, 1),
                note: format!("different images; from {}", number(first, 1)),
                tone: "",
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

    /// The tables of the page, with those of `eval.json` if there is one.
    pub(super) fn details(&self, evaluation: Option<&Evaluation>) -> Details {
        let mut transfer = Vec::new();
        if let Some((first, _, last)) = self.ends() {
            let source = match last.rewards.len() {
                0 => "Monitor".to_owned(),
                n => format!("Monitor, {}", counted(n as u64, "fixed sample")),
            };
            transfer.push((source, of_monitors(self.lock, first, last)));
        }
        if let Some(evaluation) = evaluation {
            let source = format!("host eval, {}", counted(evaluation.protocol.count as u64, "image"));
            transfer.push((source, of_evaluation(evaluation)));
        }
        transfer.retain(|(_, changes)| !changes.is_empty());
        let cells = |(source, changes): (String, Vec<Change>)| (source, changes.iter().map(Cell::of).collect());
        let styles = self.styles();
        let names = styles.map_or(&[][..], |(_, last)| style_names(self.lock, last));
        let full = styles.map_or(1.0, |(first, last)| largest([first, last], |styles| &styles.first));
        let pairs = styles.map(|(first, last)| likely(first, names, full).into_iter().zip(likely(last, names, full)));
        let matrices = styles.map(|(first, last)| {
            let full = largest([first, last], |styles| &styles.confusion);
            let of = |what, styles| Some((what, confusion(styles, names, full)?));
            [of("trained", last), of("untrained", first)].into_iter().flatten().collect()
        });
        Details {
            classifier: styles.map_or_else(String::new, |(_, last)| last.plugin.clone()),
            likely: pairs.map_or_else(Vec::new, |pairs| pairs.map(|(before, after)| [before, after]).collect()),
            styles: matrices.unwrap_or_default(),
            evaluation: evaluation.map(Table::of),
            transfer: transfer.into_iter().map(cells).collect(),
        }
    }

    /// What the classifier says of the first and of the last monitor's images.
    fn styles(&self) -> Option<(&'a StylesMonitor, &'a StylesMonitor)> {
        let (first, _, last) = self.ends()?;
        first.styles.as_ref().zip(last.styles.as_ref())
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
            Some(errors) if errors.abs() < CLEAR => "went",
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
            if errors.abs() < CLEAR {
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
                match self.lock.of_reward().all(|plugin| plugin.styles.is_some()) {
                    true => ", which a classifier without any preference would have",
                    false => "",
                }
            ));
        }
        let plugins: Vec<&LockedPlugin> = self.lock.of_reward().collect();
        let maximum = match plugins[..] {
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
        if plugins.len() > 1 {
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
        let changes = of_monitors(self.lock, first, last);
        sentences.extend(held_out_sentence(&changes));
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

/// What became of the rewards that took no part in the training, in a sentence; none if there are none.
fn held_out_sentence(changes: &[Change]) -> Option<String> {
    let errors = |change: &Change| change.improvement.standard_errors().unwrap_or(0.0);
    let trained = changes.iter().find(|change| !change.held_out).map_or(0.0, errors);
    let of = |wanted: fn(f64) -> bool| -> Vec<String> {
        let found = changes.iter().filter(|change| change.held_out && wanted(errors(change)));
        found.map(|change| format!("{} ({} standard errors)", change.plugin, signed(errors(change), 1))).collect()
    };
    let [fallen, risen, open] =
        [of(|errors| errors <= -CLEAR), of(|errors| errors >= CLEAR), of(|errors| errors.abs() < CLEAR)];
    let mut parts = Vec::new();
    for (names, what) in [(&fallen, "fell"), (&risen, "rose"), (&open, "did not clearly change")] {
        if !names.is_empty() {
            parts.push(format!("{what} for {}", names.join(", ")));
        }
    }
    if parts.is_empty() {
        return None;
    }
    let hacking = match !fallen.is_empty() && trained >= CLEAR {
        true => ", while the trained reward rose: the model may exploit what its classifier gets wrong",
        false => "",
    };
    Some(format!("The reward of plugins that took no part in the training {}{hacking}.", parts.join("; it ")))
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

/// The number of decimals of rewards: those of the change, but no more than its standard error has.
fn decimals_of(improvement: &Improvement) -> usize {
    decimals(improvement.mean.abs().max(improvement.sem.unwrap_or(0.0)))
}

/// The last diversity in percent of the first.
fn diversity_share(first: &FineTuneMonitor, last: &FineTuneMonitor) -> Option<f64> {
    (first.diversity > 0.0).then(|| 100.0 * last.diversity / first.diversity)
}
