//! The report of a plugin check: results of the probes, and warnings.

use serde_json::{Value, json};

use super::probes::Kind;
use crate::cli::plugin::running::{count, heading, mib};
use crate::plugin::{Classifier, Limits};
use crate::rl::reward::{ambiguity, entropy, max_probability};
use crate::text::table;

/// A worthless probe is close to the best reward if its gap is below this fraction of the real probes' median gap.
const CLOSE: f64 = 0.25;

/// A style above this probability leaves the reward at its floor.
const SATURATED: f64 = 0.9999;

/// Probabilities and rewards that differ by less count as equal.
const SAME: f64 = 1e-6;

/// The result of a plugin for one probe.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) distribution: Vec<f64>,
    pub(super) fuel: Option<u64>,
    pub(super) milliseconds: f64,
    pub(super) memory: Option<usize>,
}

/// One probe and its result, or the plugin's error.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) answer: Result<Answer, String>,
}

/// The report of all probes.
#[derive(Debug)]
pub(super) struct Report {
    plugin: String,
    heading: String,
    styles: Vec<String>,
    rows: Vec<Row>,
    /// The warnings, one sentence each.
    pub(super) warnings: Vec<String>,
}

impl Answer {
    /// Returns the distance of the reward below the best one: the divergence from the uniform distribution.
    fn gap(&self) -> f64 {
        -(self.distribution.len() as f64).ln() - ambiguity(&self.distribution)
    }
}

impl Report {
    pub(super) fn new(plugin: &dyn Classifier, rows: Vec<Row>) -> Self {
        let warnings = warnings(&rows);
        let styles = plugin.description().styles.clone();
        Self { plugin: plugin.source().name.clone(), heading: heading(plugin), styles, rows, warnings }
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
            let worthless = row.kind == Kind::Worthless;
            match &row.answer {
                Err(message) => json!({ "probe": row.name, "worthless": worthless, "refused": message }),
                Ok(answer) => json!({
                    "probe": row.name,
                    "worthless": worthless,
                    "distribution": answer.distribution,
                    "entropy": entropy(&answer.distribution),
                    "reward": ambiguity(&answer.distribution),
                    "gap": answer.gap(),
                    "fuel": answer.fuel,
                    "milliseconds": answer.milliseconds,
                }),
            }
        });
        json!({
            "plugin": self.plugin,
            "styles": self.styles,
            "best_reward": -(self.styles.len() as f64).ln(),
            "probes": probes.collect::<Vec<_>>(),
            "peak_memory": self.peak_memory(),
            "warnings": self.warnings,
        })
    }

    /// Returns the report as text.
    pub(super) fn layout(&self) -> String {
        let header = ["probe", "likeliest style", "top", "entropy", "reward", "gap", "fuel", "ms"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        for row in &self.rows {
            rows.push(match &row.answer {
                Err(message) => {
                    let mut cells = vec![String::new(); header.len()];
                    (cells[0], cells[1]) = (row.name.clone(), format!("refused: {message}"));
                    cells
                }
                Ok(answer) => {
                    let p = &answer.distribution;
                    let top = (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b]).then(b.cmp(&a))).unwrap_or(0);
                    vec![
                        row.name.clone(),
                        self.styles[top].clone(),
                        format!("{:.2} %", p[top] * 100.0),
                        // For a one-hot distribution it may be a negative zero.
                        format!("{:.5}", entropy(p).abs()),
                        format!("{:.5}", ambiguity(p)),
                        format!("{:.5}", answer.gap().max(0.0)),
                        answer.fuel.map_or_else(|| "-".to_owned(), count),
                        format!("{:.2}", answer.milliseconds),
                    ]
                }
            });
        }
        let limits = Limits::default();
        let mut text = format!("{}\n\n", self.heading);
        text += &table(&[true, true, false, false, false, false, false, false], &rows);
        let best = -(self.styles.len() as f64).ln();
        text += &format!("\n  best reward {best:.5} = -ln {}; gap: distance below it\n", self.styles.len());
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
            warnings
                .push(format!("refused: it returned an error for `{}` ({message}); a run would stop there", row.name));
        }
    }
    let answered = |kind: Option<Kind>| {
        let rows = rows.iter().filter(move |row| kind.is_none_or(|kind| row.kind == kind));
        rows.filter_map(|row| row.answer.as_ref().ok().map(|answer| (row.name.as_str(), answer)))
    };
    let all: Vec<&Answer> = answered(None).map(|(_, answer)| answer).collect();
    let Some(first) = all.first() else {
        return warnings;
    };
    let differs =
        |answer: &&Answer| answer.distribution.iter().zip(&first.distribution).any(|(a, b)| (a - b).abs() > SAME);
    if !all.iter().any(differs) {
        warnings.push("dead: all probes get the same distribution, so every reward is the same".to_owned());
        return warnings;
    }
    if all.iter().all(|answer| (answer.gap() - first.gap()).abs() < SAME) {
        warnings
            .push("dead: all probes get the same reward, whatever their style; are probabilities rounded?".to_owned());
        return warnings;
    }
    let saturated = all.iter().filter(|answer| max_probability(&answer.distribution) > SATURATED).count();
    if saturated * 2 > all.len() {
        warnings.push(format!(
            "saturated: {saturated} of {} probes have a style above 99.99 %, which leaves their rewards at the floor; \
             divide the logits by a temperature",
            all.len()
        ));
    }
    let mut gaps: Vec<f64> = answered(Some(Kind::Real)).map(|(_, answer)| answer.gap()).collect();
    gaps.sort_by(f64::total_cmp);
    let Some(&smallest) = gaps.first() else {
        return warnings;
    };
    let median = gaps[gaps.len() / 2];
    let hacks: Vec<(&str, f64)> = answered(Some(Kind::Worthless))
        .map(|(name, answer)| (name, answer.gap()))
        .filter(|&(_, gap)| gap < smallest && gap < CLOSE * median)
        .collect();
    if !hacks.is_empty() {
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

    fn row(name: &str, kind: Kind, p: f64) -> Row {
        let answer = Answer { distribution: vec![p, 1.0 - p], fuel: Some(1), milliseconds: 0.0, memory: None };
        Row { name: name.to_owned(), kind, answer: Ok(answer) }
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
        let refused = Row { name: "empty".into(), kind: Kind::Worthless, answer: Err("no words".into()) };
        let rows = [refused, row("a", Kind::Real, 0.3), row("b", Kind::Real, 0.4)];
        assert_eq!(warnings(&rows), ["refused: it returned an error for `empty` (no words); a run would stop there"]);
    }

    #[test]
    fn the_gap_is_zero_at_the_uniform_distribution() {
        let Row { answer: Ok(answer), .. } = row("even", Kind::Real, 0.5) else { unreachable!("it has an answer") };
        assert!(answer.gap().abs() < 1e-15);
    }
}
