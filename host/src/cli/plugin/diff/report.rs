//! The report of a comparison: text and JSON.

use serde_json::{Value, json};

use super::bump::Bump;
use super::compare::{Change, Comparison, Row, amount};
use super::description::Described;
use super::outputs::{Movement, Outcome, StyleChange};
use crate::cli::plugin::running::heading;
use crate::text::{counted, decimals, escaped, number, shown, signed, table};

/// Number of styles that are named for a sample in the text.
const NAMED: usize = 2;

/// Returns the report as text, with the samples that moved most.
pub(super) fn layout(comparison: &Comparison, moved: &[&Row]) -> String {
    let line = |which: &str, described: &Described| {
        vec![which.to_owned(), heading(&described.description), shown(&described.path)]
    };
    let mut text = table(&[true, true, true], &[line("OLD", &comparison.old), line("NEW", &comparison.new)]);
    let n = comparison.compared().count();
    if n > 0 {
        text += &format!("\n{}", changes(comparison, n));
    }
    if !moved.is_empty() {
        text += &format!("\n{}", most_moved(moved));
    }
    let reasons = comparison.reasons().iter().map(|reason| vec![reason.bump.name().to_owned(), reason.text.clone()]);
    let reasons: Vec<_> = reasons.collect();
    if !reasons.is_empty() {
        text += &format!("\n{}", table(&[true, true], &reasons));
    }
    format!("{text}\n{}\n", verdict(comparison))
}

/// Returns the table of the changes over all samples.
fn changes(comparison: &Comparison, n: usize) -> String {
    let measured = measured(comparison);
    let rows = measured.into_iter().filter_map(|(_, name, change)| Some((name, change?)));
    let rows = rows.map(|(name, change)| vec![name.to_owned(), amount(change.mean), amount(change.max)]);
    let head = vec![format!("change, of {}", counted(n as u64, "sample")), "mean".to_owned(), "largest".to_owned()];
    let mut text = table(&[true, false, false], &std::iter::once(head).chain(rows).collect::<Vec<_>>());
    let ranks =
        comparison.rank_correlation().map(|ranks| format!("rank correlation of the rewards {}", number(ranks, 5)));
    let spread = comparison.reward_unit().map(|unit| format!("standard deviation of OLD's {}", amount(unit)));
    let notes: Vec<String> = ranks.into_iter().chain(spread).collect();
    if !notes.is_empty() {
        text += &format!("  {}\n", notes.join(", "));
    }
    text
}

/// Returns what is measured, by its key in JSON and its name in the text.
fn measured(comparison: &Comparison) -> [(&'static str, &'static str, Option<Change>); 7] {
    let distribution = |of: fn(&Movement) -> Option<f64>| comparison.change(of);
    [
        (
            "total_variation",
            "total variation of the distributions",
            distribution(|movement| Some(movement.distribution.as_ref()?.total_variation)),
        ),
        (
            "log_probability",
            "log-probability of a style",
            distribution(|movement| Some(movement.distribution.as_ref()?.log_probability)),
        ),
        ("entropy", "entropy", distribution(|movement| Some(movement.distribution.as_ref()?.entropy()))),
        ("reward", "reward", comparison.change(|movement| Some(movement.reward()))),
        (
            "reward_in_standard_deviations",
            "reward, in standard deviations of OLD's",
            comparison.change(|movement| Some(comparison.relative_reward(movement))),
        ),
        (
            "standardized_reward",
            "reward, each plugin's standardized",
            comparison.change(|movement| Some(comparison.advantage(movement))),
        ),
        (
            "gradient",
            "gradient, relative to OLD's",
            comparison.change(|movement| comparison.relative_gradient(movement)),
        ),
    ]
}

/// Returns the table of the samples that moved most.
fn most_moved(moved: &[&Row]) -> String {
    let mut rows =
        vec![["moved most", "OLD", "NEW", "reward", "variation", "probabilities"].map(str::to_owned).to_vec()];
    for row in moved {
        let Some(movement) = row.outcome.movement() else {
            let message = failure(&row.outcome).unwrap_or_default();
            rows.push([row.name.clone(), "-".into(), "-".into(), "-".into(), "-".into(), message].to_vec());
            continue;
        };
        let places = decimals(movement.reward());
        let [old, new] = movement.rewards.map(|reward| number(reward, places));
        let distribution = movement.distribution.as_ref();
        let variation = distribution.map_or_else(String::new, |change| amount(change.total_variation));
        let styles = distribution.iter().flat_map(|change| change.styles.iter().take(NAMED));
        let styles: Vec<String> = styles.map(percentages).collect();
        rows.push(vec![row.name.clone(), old, new, signed(movement.reward(), places), variation, styles.join(", ")]);
    }
    let is_filled = |column: usize| rows[1..].iter().any(|row| !["", "-"].contains(&row[column].as_str()));
    let filled: Vec<usize> = (0..rows[0].len()).filter(|&column| is_filled(column)).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| filled.iter().map(|&column| row[column].clone()).collect()).collect();
    let left: Vec<bool> = filled.iter().map(|column| [0, 5].contains(column)).collect();
    table(&left, &rows)
}

/// Returns the probability of a style before and after: `fog 3.10 → 4.20 %`.
pub(super) fn percentages(change: &StyleChange) -> String {
    let places = decimals(change.change() * 100.0) - 1;
    let percent = |p: Option<f64>| p.map_or_else(|| "none".to_owned(), |p| number(p * 100.0, places));
    let [old, new] = change.probabilities.map(percent);
    format!("{} {old} → {new} %", change.style)
}

/// Returns what became of a sample on which one plugin fails.
pub(super) fn failure(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Both(_) => None,
        Outcome::Failed { old, new } => {
            let said = |which: &str, message: &Option<String>| {
                message.as_ref().map(|message| format!("{which} fails: {}", escaped(message)))
            };
            Some([said("OLD", old), said("NEW", new)].into_iter().flatten().collect::<Vec<_>>().join("; "))
        }
    }
}

/// Returns what the change asks of the version, and whether the new plugin's version is enough.
pub(super) fn verdict(comparison: &Comparison) -> String {
    let (old, new) = (&comparison.old.description.version, &comparison.new.description.version);
    let bump = comparison.bump();
    let asks = match bump {
        Bump::None => "nothing changed, the files are the same".to_owned(),
        _ => format!("this is a {} change", bump.name()),
    };
    match (comparison.versions(), comparison.is_enough()) {
        (Ok(_), Ok(true)) => format!("{asks}: version {old} to {new} is enough"),
        (Ok([least, _]), Ok(false)) => {
            let least = bump.least_version(&least);
            format!("{asks}: version {old} to {new} is not enough, NEW must be at least {least}")
        }
        (Err(message), _) | (_, Err(message)) => format!("{asks}: {message}"),
    }
}

/// Returns the report as JSON, with all samples.
pub(super) fn document(comparison: &Comparison) -> Value {
    let plugin = |described: &Described| {
        json!({
            "path": described.path.to_string_lossy(),
            "name": described.description.name,
            "version": described.description.version,
            "sha256": described.sha256,
        })
    };
    let styles = &comparison.styles;
    let (old, new) = (comparison.old.description.styles(), comparison.new.description.styles());
    let names = |places: &[usize], of: &[String]| places.iter().map(|&i| of[i].clone()).collect::<Vec<_>>();
    let renamed = styles.renamed.iter().map(|&i| json!({ "old": old[i], "new": new[i] }));
    let reasons = comparison.reasons().iter();
    let reasons = reasons.map(|reason| json!({ "bump": reason.bump.name(), "reason": reason.text }));
    let changes = measured(comparison).into_iter();
    let changes = changes.filter_map(|(key, _, change)| {
        let Change { mean, max } = change?;
        Some((key.to_owned(), json!({ "mean": mean, "largest": max })))
    });
    let least = comparison.versions().map(|[old, _]| comparison.bump().least_version(&old).to_string());
    json!({
        "old": plugin(&comparison.old),
        "new": plugin(&comparison.new),
        "bump": comparison.bump().name(),
        "least_version": least.ok(),
        "version_is_enough": comparison.is_enough().ok(),
        "reasons": reasons.collect::<Vec<_>>(),
        "tolerance": comparison.tolerance,
        "styles": {
            "renamed": renamed.collect::<Vec<_>>(),
            "removed": names(&styles.removed, old),
            "added": names(&styles.added, new),
            "reordered": styles.is_reordered,
        },
        "changes": changes.collect::<serde_json::Map<_, _>>(),
        "rank_correlation": comparison.rank_correlation(),
        "reward_standard_deviation": comparison.reward_unit(),
        "samples": comparison.rows.iter().map(|row| sample(comparison, row)).collect::<Vec<_>>(),
    })
}

fn sample(comparison: &Comparison, row: &Row) -> Value {
    let (name, origin) = (&row.name, row.origin);
    let movement = match &row.outcome {
        Outcome::Failed { old, new } => {
            return json!({ "sample": name, "from": origin, "failed": { "old": old, "new": new } });
        }
        Outcome::Both(movement) => movement,
    };
    let distribution = movement.distribution.as_ref().map(|change| {
        let styles = change.styles.iter().map(|style| {
            let [old, new] = style.probabilities;
            json!({ "style": style.style, "old": old, "new": new })
        });
        json!({
            "total_variation": change.total_variation,
            "log_probability": change.log_probability,
            "entropy": { "old": change.entropies[0], "new": change.entropies[1] },
            "largest_changes": styles.collect::<Vec<_>>(),
        })
    });
    let pair = |[old, new]: [f64; 2]| json!({ "old": old, "new": new });
    json!({
        "sample": name,
        "from": origin,
        "equal_bits": movement.is_equal,
        "reward": pair(movement.rewards),
        "reward_in_standard_deviations": comparison.relative_reward(movement),
        "score": movement.scores.map(pair),
        "distribution": distribution,
        "gradient": comparison.relative_gradient(movement),
    })
}
