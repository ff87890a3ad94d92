//! The tables of `eval.json`: values with their intervals, those of the untrained model, differences and conditions.

use serde::Serialize;

use crate::run::evaluation::{Estimate, Evaluation, Outcome, Protocol};
use crate::text::{counted, decimals, number, signed};

/// The metrics of a run as a table.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    conditions: String,
    rows: Vec<Row>,
    /// Whether the untrained model was evaluated too.
    has_untrained: bool,
    /// The metrics that were not measured, with the reason.
    not_run: Vec<(String, String)>,
}

/// A metric under one encoder or plugin.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    by: String,
    held_out: bool,
    value: Shown,
    untrained: Option<Shown>,
    difference: Option<Shown>,
}

/// A value with half the width of its interval.
#[derive(Debug, Serialize)]
struct Shown {
    value: String,
    half: String,
    /// The interval's ends.
    interval: String,
}

/// Returns the name of a metric in a table's head.
pub(super) fn title(name: &str) -> String {
    match name {
        "reward" => "Reward",
        "entropy" => "Entropy, nats",
        "style-coverage" => "Style coverage, nats",
        "ava" => "AVA score",
        "image-reward" => "ImageReward",
        "prompt-similarity" => "Prompt similarity",
        "pick-score" => "PickScore",
        "hps" => "HPS v2.1",
        "vendi" => "Vendi score",
        "pairwise-distance" => "Pairwise distance",
        "near-duplicates" => "Near-duplicates",
        "coverage" => "Coverage",
        "novelty" => "Novelty",
        other => {
            return match other.strip_prefix("style-similarity-") {
                Some(steps) => format!("DINO similarity, {steps} steps"),
                None => other.to_owned(),
            };
        }
    }
    .to_owned()
}

/// Returns the conditions of an evaluation in one line.
pub(super) fn conditions(protocol: &Protocol) -> String {
    let mut words = vec![counted(protocol.count as u64, "image")];
    if !protocol.prompts.is_empty() {
        words.push(counted(protocol.prompts.len() as u64, "prompt"));
    }
    words.extend(protocol.steps.map(|steps| counted(steps as u64, "step")));
    words.extend(protocol.eta.map(|eta| format!("eta {eta}")));
    words.extend(protocol.guidance.map(|guidance| format!("guidance {guidance}")));
    words.extend(protocol.width.zip(protocol.height).map(|(width, height)| format!("{width} × {height} px")));
    words.extend(protocol.seed.map(|seed| format!("seed {seed}")));
    words.extend(protocol.pairs.map(|pairs| format!("{} for the style similarity", counted(pairs as u64, "pair"))));
    words.extend(protocol.model.as_ref().map(|model| format!("model {model}")));
    words.extend(protocol.reference.as_ref().map(|folder| format!("reference images {folder}")));
    words.join(", ")
}

/// Returns half the width of an interval.
pub(super) fn half_width(estimate: &Estimate) -> Option<f64> {
    estimate.ci95.map(|[low, high]| (high - low) / 2.0)
}

impl Table {
    /// Returns the table of an evaluation.
    pub(super) fn of(evaluation: &Evaluation) -> Self {
        let mut table = Self {
            conditions: conditions(&evaluation.protocol),
            rows: Vec::new(),
            has_untrained: false,
            not_run: Vec::new(),
        };
        for metric in &evaluation.metrics {
            let by = metric.plugin.clone().or_else(|| metric.encoder.clone()).unwrap_or_default();
            let name = title(&metric.name);
            match &metric.outcome {
                Outcome::NotRun { reason } => {
                    let name = if by.is_empty() { name } else { format!("{name} ({by})") };
                    table.not_run.push((name, reason.clone()));
                }
                Outcome::Ok(values) => {
                    let places = places(&values.value);
                    table.has_untrained |= values.baseline.is_some();
                    table.rows.push(Row {
                        name,
                        by,
                        held_out: metric.held_out,
                        value: Shown::of(&values.value, places, number),
                        untrained: values.baseline.map(|baseline| Shown::of(&baseline, places, number)),
                        difference: values.difference.map(|difference| Shown::of(&difference, places, signed)),
                    });
                }
            }
        }
        table
    }
}

impl Shown {
    fn of(estimate: &Estimate, places: usize, format: fn(f64, usize) -> String) -> Self {
        let interval = estimate.ci95.map(|[low, high]| format!("{} to {}", format(low, places), format(high, places)));
        Self {
            value: format(estimate.mean, places),
            half: half_width(estimate).map_or_else(String::new, |half| number(half, places)),
            interval: interval.unwrap_or_default(),
        }
    }
}

/// Returns the number of decimals that the uncertainty of a value leaves meaningful.
fn places(value: &Estimate) -> usize {
    half_width(value).filter(|half| *half > 0.0).map_or(3, decimals)
}
