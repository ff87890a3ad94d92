//! The comparison of two plugins: what changed, by how much outputs moved, and what version that asks for.

use std::cmp::Ordering;

use semver::Version;

use super::bump::{Bump, Reason};
use super::description::{Described, Styles, changes, listed};
use super::outputs::{Movement, Outcome};
use crate::plugin::Kind;
use crate::statistics::{Summary, rank_correlation};
use crate::text::{counted, two_digits};

/// Rewards, or gradients, whose spread is below this are all the same.
const SAME: f64 = 1e-9;

/// One sample, compared.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Its place among the samples.
    pub(super) index: usize,
    pub(super) name: String,
    /// The kind of place where it is from.
    pub(super) origin: &'static str,
    /// Whether it stands for what no generator should learn.
    pub(super) is_worthless: bool,
    pub(super) outcome: Outcome,
}

/// The comparison of two plugins.
#[derive(Clone, Debug)]
pub(in crate::cli::plugin) struct Comparison {
    pub(super) old: Described,
    pub(super) new: Described,
    pub(super) styles: Styles,
    pub(super) tolerance: f64,
    /// The samples in their order.
    pub(super) rows: Vec<Row>,
    /// The rewards of the old plugin and of the new one, without worthless probes.
    pub(super) rewards: [Summary; 2],
    /// The root mean square of the norms of the old plugin's gradients; none if they are all 0.
    pub(super) gradient_unit: Option<f64>,
    /// Everything that changed, what asks for the most first.
    reasons: Vec<Reason>,
}

/// The mean and the largest of the absolute changes of a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) mean: f64,
    pub(super) max: f64,
}

impl Comparison {
    /// Compares what two plugins are, and what they returned.
    pub(super) fn new(old: Described, new: Described, rows: Vec<Row>, tolerance: f64) -> Self {
        let styles = Styles::matched(old.description.styles(), new.description.styles());
        let movements = || rows.iter().filter_map(|row| Some((row, row.outcome.movement()?)));
        let real = || movements().filter(|(row, _)| !row.is_worthless);
        let rewards = [0, 1].map(|i| real().map(|(_, movement)| movement.rewards[i]).collect::<Vec<_>>());
        let rewards = rewards.map(|rewards| Summary::of(&rewards));
        let norms = movements().filter_map(|(_, movement)| Some(movement.gradient?.norm.powi(2)));
        let norms: Vec<f64> = norms.collect();
        let gradient_unit = Some(Summary::of(&norms).mean.sqrt()).filter(|unit| *unit > SAME);
        let mut reasons = changes(&old, &new, &styles);
        let mut comparison = Self { old, new, styles, tolerance, rows, rewards, gradient_unit, reasons: vec![] };
        reasons.extend(comparison.failures());
        reasons.extend(comparison.movements());
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.bump));
        comparison.reasons = reasons;
        comparison
    }

    /// Returns what the change asks of the version.
    pub(in crate::cli::plugin) fn bump(&self) -> Bump {
        let least = if self.is_same_file() { Bump::None } else { Bump::Patch };
        self.reasons.iter().map(|reason| reason.bump).max().map_or(least, |bump| bump.max(least))
    }

    /// Returns everything that changed, what asks for the most first; empty if nothing did.
    pub(in crate::cli::plugin) fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// Returns the version of each plugin.
    ///
    /// # Errors
    /// If one is no semantic version: which one.
    pub(in crate::cli::plugin) fn versions(&self) -> Result<[Version; 2], String> {
        let version = |which: &str, described: &Described| {
            let text = &described.description.version;
            Version::parse(text).map_err(|error| {
                format!("the version `{text}` of {which} is no semantic version, such as 1.2.3: {error}")
            })
        };
        Ok([version("OLD", &self.old)?, version("NEW", &self.new)?])
    }

    /// Returns whether the new plugin's version is high enough.
    ///
    /// # Errors
    /// If a version is no semantic version.
    pub(in crate::cli::plugin) fn is_enough(&self) -> Result<bool, String> {
        let [old, new] = self.versions()?;
        Ok(self.bump().is_enough(&old, &new))
    }

    fn is_same_file(&self) -> bool {
        !self.old.sha256.is_empty() && self.old.sha256 == self.new.sha256
    }

    /// Returns the samples of which both plugins returned something.
    pub(super) fn compared(&self) -> impl Iterator<Item = (&Row, &Movement)> {
        self.rows.iter().filter_map(|row| Some((row, row.outcome.movement()?)))
    }

    /// Returns the standard deviation of the old plugin's rewards; none if they are all the same.
    pub(super) fn reward_unit(&self) -> Option<f64> {
        Some(self.rewards[0].std).filter(|unit| *unit > SAME)
    }

    /// Returns the change of a reward in standard deviations of the old rewards; infinite if those are all the same.
    pub(super) fn relative_reward(&self, movement: &Movement) -> f64 {
        relative(movement.reward().abs(), self.reward_unit())
    }

    /// Returns the change of a reward after each plugin's rewards have been standardized, as training does to make advantages
    /// of them: what only shifts or scales all rewards changes nothing.
    pub(super) fn advantage(&self, movement: &Movement) -> f64 {
        self.rewards[1].z_score(movement.rewards[1]) - self.rewards[0].z_score(movement.rewards[0])
    }

    /// Returns the change of a gradient relative to the norms of the old ones.
    pub(super) fn relative_gradient(&self, movement: &Movement) -> Option<f64> {
        Some(relative(movement.gradient?.distance, self.gradient_unit))
    }

    /// Returns the rank correlation of the old and the new rewards.
    pub(super) fn rank_correlation(&self) -> Option<f64> {
        let [old, new] = [0, 1].map(|i| self.compared().map(|(_, movement)| movement.rewards[i]).collect::<Vec<_>>());
        rank_correlation(&old, &new)
    }

    /// Returns the mean and the largest of the absolute values of a number that movements have.
    pub(super) fn change(&self, of: impl Fn(&Movement) -> Option<f64>) -> Option<Change> {
        let values: Vec<f64> = self.compared().filter_map(|(_, movement)| Some(of(movement)?.abs())).collect();
        let summary = Summary::of(&values);
        (!values.is_empty()).then_some(Change { mean: summary.mean, max: summary.max })
    }

    /// Returns the samples whose outputs moved, those that moved most first: by the largest of the total variation and the
    /// relative changes of reward and gradient, and before all others those on which only one plugin fails.
    pub(super) fn most_moved(&self) -> Vec<&Row> {
        let mut rows: Vec<(f64, &Row)> = self.rows.iter().map(|row| (self.distance(row), row)).collect();
        rows.retain(|(distance, _)| *distance > 0.0);
        rows.sort_by(|(a, _), (b, _)| b.partial_cmp(a).unwrap_or(Ordering::Equal));
        rows.into_iter().map(|(_, row)| row).collect()
    }

    fn distance(&self, row: &Row) -> f64 {
        match &row.outcome {
            Outcome::Failed { old: Some(_), new: Some(_) } => 0.0,
            Outcome::Failed { .. } => f64::INFINITY,
            Outcome::Both(movement) if movement.is_equal => 0.0,
            Outcome::Both(movement) => {
                let variation = movement.distribution.as_ref().map_or(0.0, |change| change.total_variation);
                let gradient = self.relative_gradient(movement).unwrap_or(0.0);
                variation.max(self.relative_reward(movement)).max(gradient)
            }
        }
    }

    /// Returns what follows from samples on which one plugin fails and the other does not.
    fn failures(&self) -> Vec<Reason> {
        let (mut of_old, mut of_new) = (vec![], vec![]);
        for row in &self.rows {
            match &row.outcome {
                Outcome::Failed { old: None, new: Some(message) } => of_new.push(format!("`{}` ({message})", row.name)),
                Outcome::Failed { old: Some(message), new: None } => of_old.push(format!("`{}` ({message})", row.name)),
                _ => {}
            }
        }
        let reason = |bump, which: &str, other: &str, names: Vec<String>| {
            let n = counted(names.len() as u64, "sample");
            let text = format!("{which} fails on {n} on which {other} does not: {}", listed(&names));
            (!names.is_empty()).then(|| Reason::new(bump, text))
        };
        let reasons = [reason(Bump::Major, "NEW", "OLD", of_new), reason(Bump::Minor, "OLD", "NEW", of_old)];
        reasons.into_iter().flatten().collect()
    }

    /// Returns what follows from the outputs that moved. Rewards of plugins of different kinds are not comparable.
    fn movements(&self) -> Vec<Reason> {
        let is_classifier = |described: &Described| matches!(described.description.kind, Kind::Classifier { .. });
        if is_classifier(&self.old) != is_classifier(&self.new) {
            return vec![];
        }
        let tolerance = self.tolerance;
        let largest = |of: &dyn Fn(&Movement) -> Option<f64>| {
            let values = self.compared().filter_map(|(row, movement)| Some((of(movement)?, row)));
            values.max_by(|(a, _), (b, _)| a.total_cmp(b))
        };
        let variation = largest(&|movement| Some(movement.distribution.as_ref()?.total_variation));
        let reward = largest(&|movement| Some(self.relative_reward(movement)));
        let gradient = largest(&|movement| self.relative_gradient(movement));
        let rewards = match self.reward_unit() {
            Some(_) => "standard deviations of OLD's rewards",
            None => "standard deviations of OLD's rewards, which are all the same",
        };
        let parts = [
            ("distributions", "in total variation", variation),
            ("rewards", rewards, reward),
            ("gradients", "times the norm of OLD's gradients", gradient),
        ];
        let mut reasons = vec![];
        let mut within = vec![];
        for (what, unit, found) in parts {
            let Some((value, row)) = found.filter(|(value, _)| *value > 0.0) else { continue };
            let moved = format!("{what} moved by up to {} {unit}", amount(value));
            match value > tolerance {
                true => {
                    let text = format!("{moved}, above the tolerance of {tolerance} (`{}`)", row.name);
                    reasons.push(Reason::new(Bump::Major, text));
                }
                false => within.push(moved),
            }
        }
        let n_moved = self.compared().filter(|(_, movement)| !movement.is_equal).count();
        if reasons.is_empty() && n_moved > 0 {
            let moved = if within.is_empty() { "the outputs moved".to_owned() } else { within.join(", ") };
            reasons.push(Reason::new(Bump::Minor, format!("{moved}, within the tolerance of {tolerance}")));
        }
        if n_moved == 0 && self.compared().next().is_some() && !self.is_same_file() {
            let n = counted(self.compared().count() as u64, "sample");
            reasons.push(Reason::new(Bump::Patch, format!("all outputs are equal to the last bit, for {n}")));
        }
        reasons
    }
}

/// Returns a distance in a unit; infinite if there is none.
fn relative(distance: f64, unit: Option<f64>) -> f64 {
    match unit {
        Some(unit) => distance / unit,
        None if distance > SAME => f64::INFINITY,
        None => 0.0,
    }
}

/// Formats a positive amount with two digits.
pub(super) fn amount(value: f64) -> String {
    if value.is_finite() { two_digits(value) } else { "∞".to_owned() }
}
