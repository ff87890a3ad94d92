//! The report of a plugin check: results of the probes, and warnings.

use serde_json::{Value, json};

use crate::cli::plugin::probes::{Kind, Probe};
use crate::cli::plugin::running::{count, heading, mib};
use crate::plugin::distributions::probabilities;
use crate::plugin::{Limits, Plugin};
use crate::rl::reward::{entropy, max_probability};
use crate::text::table;

/// A worthless probe is close to the best reward if its gap is below this fraction of the real probes' median gap.
const CLOSE: f64 = 0.25;

/// A style above this probability leaves nothing ambiguous.
const SATURATED: f64 = 0.9999;

/// Probabilities and rewards that differ by less count as equal.
const SAME: f64 = 1e-6;

/// The result of a plugin for one probe.
#[derive(Clone, Debug)]
pub(in crate::cli::plugin) struct Answer {
    pub(in crate::cli::plugin) reward: f64,
    /// The log-probability of each style; none of a scorer.
    pub(in crate::cli::plugin) log_distribution: Option<Vec<f64>>,
    pub(in crate::cli::plugin) fuel: Option<u64>,
    pub(super) milliseconds: f64,
    pub(in crate::cli::plugin) memory: Option<usize>,
}

/// One probe and its result, or the plugin's error.
#[derive(Clone, Debug)]
pub(in crate::cli::plugin) struct Row {
    pub(in crate::cli::plugin) probe: Probe,
    pub(in crate::cli::plugin) answer: Result<Answer, String>,
}

/// The report of all probes.
#[derive(Debug)]
pub(in crate::cli::plugin) struct Report {
    plugin: String,
    heading: String,
    styles: Vec<String>,
    pub(in crate::cli::plugin) rows: Vec<Row>,
    /// The warnings, one sentence each.
    pub(in crate::cli::plugin) warnings: Vec<String>,
}

impl Answer {
    /// Returns the distance of a classifier's reward below the best one, which is the divergence from the uniform
    /// distribution; the negative reward of a scorer, which may have no best one.
    pub(in crate::cli::plugin) fn gap(&self) -> f64 {
        match &self.log_distribution {
            Some(row) => -(row.len() as f64).ln() - self.reward,
            None => -self.reward,
        }
    }
}

impl Report {
    pub(super) fn new(plugin: &dyn Plugin, rows: Vec<Row>) -> Self {
        let warnings = warnings(&rows);
        let styles = plugin.description().styles().to_vec();
        Self { plugin: plugin.source().name.clone(), heading: heading(plugin.description()), styles, rows, warnings }
    }

    fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.rows.iter().filter_map(|row| row.answer.as_ref().ok())
    }

    fn peak_memory(&self) -> Option<usize> {
        self.answers().filter_map(|answer| answer.memory).max()
    }

    /// Returns the report as JSON.
    pub(super) fn document(&self) -> Value {
        let probes = self.rows.iter().map(|row| {
            let (name, worthless) = (&row.probe.name, row.probe.kind == Kind::Worthless);
            match &row.answer {
                Err(message) => json!({ "probe": name, "worthless": worthless, "refused": message }),
                Ok(answer) => {
                    let row_of = answer.log_distribution.as_deref();
                    json!({
                        "probe": name,
                        "worthless": worthless,
                        "distribution": row_of.map(probabilities),
                        "entropy": row_of.map(entropy),
                        "reward": answer.reward,
                        "gap": row_of.map(|_| answer.gap()),
                        "fuel": answer.fuel,
                        "milliseconds": answer.milliseconds,
                    })
                }
            }
        });
        json!({
            "plugin": self.plugin,
            "styles": self.styles,
            "best_reward": self.best_reward(),
            "probes": probes.collect::<Vec<_>>(),
            "peak_memory": self.peak_memory(),
            "warnings": self.warnings,
        })
    }

    /// Returns the best reward of a classifier; a scorer may have none.
    fn best_reward(&self) -> Option<f64> {
        (!self.styles.is_empty()).then(|| -(self.styles.len() as f64).ln())
    }

    /// Returns the report as text.
    pub(super) fn layout(&self) -> String {
        let header: &[&str] = match self.styles.is_empty() {
            false => &["probe", "likeliest style", "top", "entropy", "reward", "gap", "fuel", "ms"],
            true => &["probe", "reward", "fuel", "ms"],
        };
        let mut rows = vec![header.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()];
        for row in &self.rows {
            rows.push(match &row.answer {
                Err(message) => {
                    let mut cells = vec![String::new(); header.len()];
                    (cells[0], cells[1]) = (row.probe.name.clone(), format!("refused: {message}"));
                    cells
                }
                Ok(answer) => {
                    let mut cells = vec![row.probe.name.clone()];
                    if let Some(row) = &answer.log_distribution {
                        let top =
                            (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap_or(0);
                        cells.push(self.styles[top].clone());
                        cells.push(format!("{:.2} %", row[top].exp() * 100.0));
                        // For a one-hot distribution it may be a negative zero.
                        cells.push(format!("{:.5}", entropy(row).abs()));
                    }
                    cells.push(format!("{:.5}", answer.reward));
                    if answer.log_distribution.is_some() {
                        cells.push(format!("{:.5}", answer.gap().max(0.0)));
                    }
                    cells.push(answer.fuel.map_or_else(|| "-".to_owned(), count));
                    cells.push(format!("{:.2}", answer.milliseconds));
                    cells
                }
            });
        }
        let limits = Limits::default();
        let mut text = format!("{}\n\n", self.heading);
        let left: Vec<bool> = header.iter().map(|name| ["probe", "likeliest style"].contains(name)).collect();
        text += &table(&left, &rows);
        text += &match self.best_reward() {
            Some(best) => format!("\n  best reward {best:.5} = -ln {}; gap: distance below it\n", self.styles.len()),
            None => "\n  reward: the score, or its negative if lower scores are better\n".to_owned(),
        };
        if let Some(peak) = self.peak_memory() {
            text += &format!("  memory {} of {} MiB at most", mib(peak), limits.memory_mib);
            if let Some(fuel) = self.answers().filter_map(|answer| answer.fuel).max() {
                text += &format!(", fuel {} of {} per sample at most", count(fuel), count(limits.fuel));
            }
            text += "\n";
        }
        text += "\n";
        for warning in &self.warnings {
            text += &format!("warning: {warning}\n");
        }
        if self.warnings.is_empty() {
            text += "ok: no warnings\n";
        }
        text
    }
}

fn warnings(rows: &[Row]) -> Vec<String> {
    let mut warnings: Vec<String> = vec![];
    for row in rows {
        if let Err(message) = &row.answer {
            let name = &row.probe.name;
            warnings.push(format!("refused: it returned an error for `{name}` ({message}); a run would stop there"));
        }
    }
    let answered = |kind: Option<Kind>| {
        let rows = rows.iter().filter(move |row| kind.is_none_or(|kind| row.probe.kind == kind));
        rows.filter_map(|row| row.answer.as_ref().ok().map(|answer| (row.probe.name.as_str(), answer)))
    };
    let all: Vec<&Answer> = answered(None).map(|(_, answer)| answer).collect();
    let Some(first) = all.first() else {
        return warnings;
    };
    let row = |answer: &Answer| answer.log_distribution.as_deref().map(probabilities);
    if let Some(first) = row(first) {
        let differs =
            |answer: &&Answer| row(answer).is_some_and(|row| row.iter().zip(&first).any(|(a, b)| (a - b).abs() > SAME));
        if !all.iter().any(differs) {
            warnings.push("dead: all probes get the same distribution, so every reward is the same".to_owned());
            return warnings;
        }
    }
    if all.iter().all(|answer| (answer.gap() - first.gap()).abs() < SAME) {
        warnings.push(match first.log_distribution {
            Some(_) => {
                "dead: all probes get the same reward, whatever their style; are probabilities rounded?".to_owned()
            }
            None => "dead: all probes get the same score".to_owned(),
        });
        return warnings;
    }
    let is_saturated =
        |answer: &&&Answer| answer.log_distribution.as_ref().is_some_and(|row| max_probability(row) > SATURATED);
    let saturated = all.iter().filter(is_saturated).count();
    if saturated * 2 > all.len() {
        warnings.push(format!(
            "saturated: {saturated} of {} probes have a style above 99.99 %, so rewards say how unlikely the other styles \
             are, not how ambiguous a sample is; divide the logits by a temperature",
            all.len()
        ));
    }
    let mut gaps: Vec<f64> = answered(Some(Kind::Real)).map(|(_, answer)| answer.gap()).collect();
    gaps.sort_by(f64::total_cmp);
    let Some(&smallest) = gaps.first() else {
        return warnings;
    };
    let median = gaps[gaps.len() / 2];
    let is_scorer = first.log_distribution.is_none();
    let hacks: Vec<(&str, f64)> = answered(Some(Kind::Worthless))
        .map(|(name, answer)| (name, answer.gap()))
        .filter(|&(_, gap)| gap < smallest && (is_scorer || gap < CLOSE * median))
        .collect();
    if is_scorer && !hacks.is_empty() {
        let names: Vec<String> = hacks.iter().map(|(name, gap)| format!("`{name}` (reward {:.5})", -gap)).collect();
        warnings.push(format!(
            "hackable: {} score{} better than every real probe (best {:.5}): a generator can learn to generate that; add a \
             second plugin to the run",
            names.join(", "),
            if hacks.len() == 1 { "s" } else { "" },
            -smallest
        ));
    } else if !hacks.is_empty() {
        let names: Vec<String> =
            hacks.iter().map(|(name, gap)| format!("`{name}` (gap {:.5})", gap.max(0.0))).collect();
        warnings.push(format!(
            "hackable: {} come{} closer to the best reward than any real probe (median gap {median:.5}): a generator \
             can learn to generate that; give such samples their own style, or add a second plugin to the run",
            names.join(", "),
            if hacks.len() == 1 { "s" } else { "" }
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Sample;

    fn probe(name: &str, kind: Kind) -> Probe {
        Probe { name: name.to_owned(), kind, sample: Sample::default() }
    }

    fn row(name: &str, kind: Kind, p: f64) -> Row {
        // A logarithm of 0 is no log-probability.
        let row = [p, 1.0 - p].map(|p| p.max(1e-30).ln()).to_vec();
        let reward = 0.5 * (row[0] + row[1]);
        let log_distribution = Some(row);
        let answer = Answer { reward, log_distribution, fuel: Some(1), milliseconds: 0.0, memory: None };
        Row { probe: probe(name, kind), answer: Ok(answer) }
    }

    /// The first word of each warning about these worthless and real probes.
    fn kinds(worthless: &[f64], real: &[f64]) -> Vec<String> {
        let rows = |kind: Kind, ps: &[f64]| ps.iter().map(|&p| row("probe", kind, p)).collect::<Vec<_>>();
        let rows = [rows(Kind::Worthless, worthless), rows(Kind::Real, real)].concat();
        warnings(&rows).iter().filter_map(|warning| warning.split(':').next().map(str::to_owned)).collect()
    }

    #[test]
    fn hackable_dead_and_saturated_rewards_are_warned_of() {
        assert_eq!(kinds(&[0.5, 0.9], &[0.8, 0.9, 0.2]), ["hackable"]);
        assert_eq!(kinds(&[0.9], &[0.5, 0.8, 0.9]), [""; 0], "a real one is just as ambiguous");
        assert_eq!(kinds(&[0.65], &[0.7, 0.71, 0.3]), [""; 0], "below the real ones, but not close to the best");
        assert_eq!(kinds(&[0.5, 0.5], &[0.5, 0.5]), ["dead"]);
        assert_eq!(kinds(&[0.2, 0.8], &[0.2, 0.8]), ["dead"], "two distributions, one reward");
        assert_eq!(kinds(&[1.0, 0.0], &[1.0, 0.0, 0.3]), ["saturated"]);
        let refused = Row { probe: probe("empty", Kind::Worthless), answer: Err("no words".into()) };
        let rows = [refused, row("a", Kind::Real, 0.3), row("b", Kind::Real, 0.4)];
        assert_eq!(warnings(&rows), ["refused: it returned an error for `empty` (no words); a run would stop there"]);
    }

    #[test]
    fn scorers_are_hackable_where_worthless_probes_score_best() {
        let row = |kind: Kind, reward: f64| {
            let answer = Answer { reward, log_distribution: None, fuel: None, milliseconds: 0.0, memory: None };
            Row { probe: probe("probe", kind), answer: Ok(answer) }
        };
        let rows = |worthless: f64, real: [f64; 2]| {
            let [a, b] = real.map(|reward| row(Kind::Real, reward));
            warnings(&[row(Kind::Worthless, worthless), a, b])
        };
        assert_eq!(
            rows(-1.5, [-3.0, -2.0]),
            [
                "hackable: `probe` (reward -1.50000) scores better than every real probe (best -2.00000): a generator can \
              learn to generate that; add a second plugin to the run"
            ]
        );
        assert_eq!(rows(-2.5, [-3.0, -2.0]), [""; 0]);
        assert_eq!(rows(1.0, [1.0, 1.0]), ["dead: all probes get the same score"]);
    }

    #[test]
    fn the_gap_is_zero_at_the_uniform_distribution() {
        let Row { answer: Ok(answer), .. } = row("even", Kind::Real, 0.5) else { unreachable!("it has an answer") };
        assert!(answer.gap().abs() < 1e-15);
    }
}
