//! The curve, figures and sentences of a fine-tuning run: how far the reward on the fixed samples rose, and what of their
//! diversity is left.

use super::PluginsLock;
use super::curve::{Ceiling, Curve};
use super::history::{History, MonitorPoint};
use super::report::Tile;
use crate::canvas::text::{decimals, number};
use crate::reward::paired_rise;

/// A rise below so many standard errors may be chance.
const CLEAR_RISE: f64 = 3.0;

/// What was measured in a run, and what it was told.
pub(super) struct FineTuning<'a> {
    /// The run's folder by its name.
    pub(super) name: &'a str,
    pub(super) history: &'a History,
    pub(super) lock: &'a PluginsLock,
    pub(super) config: &'a toml::Table,
    /// The share of the untrained diversity below which a run warns or stops.
    pub(super) min_diversity: Option<f64>,
}

impl<'a> FineTuning<'a> {
    /// The weight of the plugin at a place in the configuration, which is its place in the lock.
    pub(super) fn weight(&self, index: usize) -> f64 {
        let plugin = self.config.get("reward").and_then(|reward| reward.get("plugin")?.as_array()?.get(index));
        let weight = plugin.and_then(|plugin| plugin.get("weight"));
        weight.and_then(|weight| weight.as_float().or(weight.as_integer().map(|whole| whole as f64))).unwrap_or(1.0)
    }

    /// −ln N, weighted and summed over the plugins; unknown if one plugin's number of styles is.
    pub(super) fn ceiling(&self) -> Option<Ceiling> {
        let plugins = &self.lock.plugins;
        let terms: Option<Vec<_>> =
            plugins.iter().enumerate().map(|(i, plugin)| Some((self.weight(i), plugin.styles?))).collect();
        let terms = terms.filter(|terms| !terms.is_empty())?;
        let reward = terms.iter().map(|(weight, styles)| -weight * f64::from(*styles).ln()).sum();
        let formula = |(weight, styles): &(f64, u32)| match *weight {
            1.0 => format!("−ln {styles}"),
            weight => format!("−{weight} ln {styles}"),
        };
        Some(Ceiling { reward, formula: terms.iter().map(formula).collect::<Vec<_>>().join(" ") })
    }

    /// The reward curve.
    pub(super) fn curve(&self) -> Curve<'a> {
        let plugins: Vec<_> = self.lock.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
        let title =
            if plugins.is_empty() { self.name.to_owned() } else { format!("Reward of {}", plugins.join(" + ")) };
        Curve { title, history: self.history, ceiling: self.ceiling(), min_diversity: self.min_diversity }
    }

    /// The first and the last look at the fixed samples.
    fn ends(&self) -> Option<(&MonitorPoint, &MonitorPoint)> {
        let (first, last) = (self.history.monitor.first()?, self.history.monitor.last()?);
        (first.epoch < last.epoch).then_some((first, last))
    }

    /// The share of the way to the ceiling that was gone, in per cent.
    fn gap_closed(&self) -> Option<f64> {
        let ((first, last), ceiling) = (self.ends()?, self.ceiling()?);
        let gap = ceiling.reward - first.reward_mean;
        (gap > 1e-9).then(|| 100.0 * (last.reward_mean - first.reward_mean) / gap)
    }

    /// The figures that are seen first.
    pub(super) fn tiles(&self) -> Vec<Tile> {
        let Some((first, last)) = self.ends() else { return Vec::new() };
        let rise = Rise::between(first, last);
        let decimals = decimals(rise.mean);
        let mut tiles = vec![Tile {
            label: "Reward",
            value: number(last.reward_mean, decimals),
            note: format!("from {}", number(first.reward_mean, decimals)),
            tone: "",
        }];
        if let Some(errors) = rise.standard_errors() {
            tiles.push(Tile {
                label: "Rise",
                value: signed(rise.mean, decimals),
                note: format!("{} standard errors{}", number(errors, 1), if rise.paired { ", paired" } else { "" }),
                tone: match errors {
                    errors if errors >= CLEAR_RISE => "good",
                    errors if errors <= -CLEAR_RISE => "bad",
                    _ => "",
                },
            });
        }
        if let (Some(closed), Some(ceiling)) = (self.gap_closed(), self.ceiling()) {
            tiles.push(Tile {
                label: "Gap closed",
                value: format!("{} %", number(closed, 0)),
                note: format!("to {} = {}", ceiling.formula, number(ceiling.reward, decimals)),
                tone: "",
            });
        }
        if let Some(share) = diversity_share(first, last) {
            let limit = self.min_diversity;
            tiles.push(Tile {
                label: "Diversity",
                value: format!("{} %", number(share, 0)),
                note: limit.map_or("of the start".to_owned(), |limit| {
                    format!("of the start; limit {} %", number(100.0 * limit, 0))
                }),
                tone: if limit.is_some_and(|limit| share < 100.0 * limit) { "bad" } else { "good" },
            });
        }
        if let (Some(from), Some(to)) = (first.max_probability, last.max_probability) {
            tiles.push(Tile {
                label: "Top probability",
                value: number(to, 2),
                note: format!("from {}", number(from, 2)),
                tone: "",
            });
        }
        tiles
    }

    /// The result in sentences.
    pub(super) fn result(&self) -> Vec<String> {
        let Some((first, last)) = self.ends() else {
            return vec!["The fixed samples were not yet looked at after training began.".to_owned()];
        };
        let rise = Rise::between(first, last);
        let decimals = decimals(rise.mean);
        let n = last.rewards.len();
        let samples = if n > 0 { format!("{n} fixed samples") } else { "the fixed samples".to_owned() };
        let errors = rise.standard_errors();
        let verb = match errors {
            Some(errors) if errors.abs() < CLEAR_RISE => "went",
            _ if rise.mean >= 0.0 => "rose",
            _ => "fell",
        };
        let mut sentence = format!(
            "On {samples} (same prompts, same noise) the mean reward {verb} from {} to {} in {} epochs",
            number(first.reward_mean, decimals),
            number(last.reward_mean, decimals),
            last.epoch
        );
        if let (Some(errors), Some(sem)) = (errors, rise.sem) {
            let paired = if rise.paired { "paired by sample" } else { "unpaired" };
            sentence += &format!(
                ", a change of {} ± {} ({paired}), which is {} standard errors",
                signed(rise.mean, decimals),
                number(sem, decimals),
                number(errors, 1)
            );
            if errors.abs() < CLEAR_RISE {
                sentence += " and may be chance";
            }
        }
        let mut sentences = vec![sentence + "."];
        if let (Some(closed), Some(ceiling)) = (self.gap_closed(), self.ceiling()) {
            sentences.push(format!(
                "That is {} % of the way to the ceiling {} = {}, which a classifier without any preference would give.",
                number(closed, 0),
                ceiling.formula,
                number(ceiling.reward, decimals)
            ));
        }
        if let (Some(from), Some(to)) = (first.entropy, last.entropy) {
            let most = match &self.lock.plugins[..] {
                [plugin] => plugin.styles.map(|styles| format!(" of at most {}", number(f64::from(styles).ln(), 2))),
                _ => None,
            };
            let mut sentence = format!(
                "The mean entropy went from {} to {}{} nats",
                number(from, 2),
                number(to, 2),
                most.unwrap_or_default()
            );
            if let (Some(from), Some(to)) = (first.max_probability, last.max_probability) {
                sentence +=
                    &format!(", the probability of the likeliest style from {} to {}", number(from, 2), number(to, 2));
            }
            sentences.push(sentence + ".");
        }
        if let Some(share) = diversity_share(first, last) {
            let held = match self.min_diversity {
                Some(limit) if share < 100.0 * limit => {
                    format!(", below the limit of {} %: the model has collapsed", number(100.0 * limit, 0))
                }
                Some(limit) => format!("; the limit is {} %", number(100.0 * limit, 0)),
                None => String::new(),
            };
            sentences
                .push(format!("The images are {} % as diverse as the untrained model's{held}.", number(share, 0)));
        }
        if let Some(best) =
            self.history.best(self.min_diversity).filter(|best| best.epoch > 0 && best.epoch != last.epoch)
        {
            sentences.push(format!(
                "The highest reward whose diversity held was {}, at epoch {}: its LoRA is in best/.",
                number(best.reward_mean, decimals),
                best.epoch
            ));
        }
        sentences
    }
}

/// The difference of two looks at the fixed samples.
struct Rise {
    mean: f64,
    sem: Option<f64>,
    /// Whether it is of differences sample by sample.
    paired: bool,
}

impl Rise {
    fn between(first: &MonitorPoint, last: &MonitorPoint) -> Self {
        if first.rewards.len() == last.rewards.len() && first.rewards.len() > 1 {
            let (mean, sem) = paired_rise(&first.rewards, &last.rewards);
            return Self { mean, sem: Some(sem), paired: true };
        }
        let sem = first.reward_sem.zip(last.reward_sem).map(|(first, last)| first.hypot(last));
        Self { mean: last.reward_mean - first.reward_mean, sem, paired: false }
    }

    fn standard_errors(&self) -> Option<f64> {
        self.sem.filter(|sem| *sem > 0.0).map(|sem| self.mean / sem)
    }
}

/// The last diversity in per cent of the first.
fn diversity_share(first: &MonitorPoint, last: &MonitorPoint) -> Option<f64> {
    first.diversity.zip(last.diversity).filter(|(first, _)| *first > 0.0).map(|(first, last)| 100.0 * last / first)
}

fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    if value > 0.0 { format!("+{text}") } else { text }
}
