//! An evaluation as a table on the terminal.

use crate::run::evaluation::{Estimate, Evaluation, Outcome};
use crate::text::{counted, decimals, number, signed, table};

/// Returns the table of the metrics, and below it those that were not measured.
pub(super) fn of(evaluation: &Evaluation) -> String {
    let has_baseline = evaluation.metrics.iter().filter_map(|metric| metric.values()).any(|v| v.baseline.is_some());
    let mut header = vec!["METRIC", "BY", "VALUE", "95 %"];
    if has_baseline {
        header.extend(["UNTRAINED", "DIFFERENCE", "95 %"]);
    }
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for metric in &evaluation.metrics {
        let Some(values) = metric.values() else { continue };
        let by = metric.plugin.clone().or_else(|| metric.encoder.clone()).unwrap_or_default();
        let by = if metric.held_out { format!("{by} (held out)") } else { by };
        let places = places(&values.value);
        let mut row = vec![metric.name.clone(), by, number(values.value.mean, places), interval(&values.value, places)];
        if has_baseline {
            let baseline = values.baseline.map_or_else(String::new, |baseline| number(baseline.mean, places));
            let difference = values.difference.unwrap_or_default();
            let (change, interval) = match values.difference {
                Some(_) => (signed(difference.mean, places), interval(&difference, places)),
                None => (String::new(), String::new()),
            };
            row.extend([baseline, change, interval]);
        }
        rows.push(row);
    }
    let protocol = &evaluation.protocol;
    let mut conditions = vec![counted(protocol.count as u64, "image")];
    conditions.extend(protocol.steps.map(|steps| counted(steps as u64, "step")));
    conditions.extend(protocol.eta.map(|eta| format!("eta {eta}")));
    conditions.extend(protocol.guidance.map(|guidance| format!("guidance {guidance}")));
    conditions.extend(protocol.width.zip(protocol.height).map(|(width, height)| format!("{width}×{height} px")));
    conditions.extend(protocol.seed.map(|seed| format!("seed {seed}")));
    let mut text = format!("{}\n", conditions.join(", "));
    if rows.len() > 1 {
        text.push_str(&table(&[true, true, false, false, false, false, false], &rows));
    }
    for metric in &evaluation.metrics {
        if let Outcome::NotRun { reason } = &metric.outcome {
            text.push_str(&format!("not run: {}: {reason}\n", metric.label()));
        }
    }
    text
}

/// Returns the number of decimals that the uncertainty of a value leaves meaningful.
fn places(value: &Estimate) -> usize {
    let width = value.ci95.map_or(0.0, |[low, high]| (high - low) / 2.0);
    if width > 0.0 { decimals(width) } else { 3 }
}

fn interval(value: &Estimate, places: usize) -> String {
    value.ci95.map_or_else(String::new, |[low, high]| format!("{} to {}", number(low, places), number(high, places)))
}
