//! The comparison of two plugins: what changed, by how much outputs moved, and what version that asks for.

use std::cmp::Ordering;

use anyhow::{Result, bail};
use ndarray::Array2;
use semver::Version;

use super::bump::{Bump, Reason};
use super::description::{Described, Styles, changes, listed};
use super::outputs::{Answer, Movement, Outcome, Value};
use super::samples::Samples;
use crate::context::Context;
use crate::encoders::Encoders;
use crate::plugin::{Batch, Fault, Kind, Plugin, PluginError, Values};
use crate::rl::reward::rewards;
use crate::statistics::{Summary, rank_correlation};
use crate::text::{counted, two_digits};

/// Rewards, or gradients, whose spread is below this are all the same.
const SAME: f64 = 1e-9;

/// The plugins to compare.
pub(in crate::cli::plugin) struct Pair<'a> {
    pub(in crate::cli::plugin) old: &'a mut dyn Plugin,
    pub(in crate::cli::plugin) new: &'a mut dyn Plugin,
    /// The encoders of both, or of the new one.
    pub(in crate::cli::plugin) encoders: &'a mut Encoders,
    /// The encoders of the old one, if it has others.
    pub(in crate::cli::plugin) old_encoders: Option<&'a mut Encoders>,
}

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

/// Runs both plugins on the samples and compares what they return. Each sample is a batch of its own, so that no other sample
/// has a part in its bits, and a sample that a plugin refuses is the only one that is lost; where the plugins have the same
/// encoders, both get the same embeddings.
///
/// # Errors
/// If a sample cannot be read, an encoder is missing, the user interrupts it, or neither plugin returns anything of any sample.
pub(in crate::cli::plugin) fn compare(
    pair: &mut Pair<'_>,
    samples: &mut Samples,
    tolerance: f64,
    context: &Context,
) -> Result<Comparison> {
    let (old, new) = (Described::of(pair.old), Described::of(pair.new));
    let styles = Styles::matched(old.description.styles(), new.description.styles());
    let shared = shared_gradients(&old, &new);
    let bar = context.progress.bar("comparing", samples.len() as u64, "samples");
    let mut rows = vec![];
    for index in 0..samples.len() {
        context.interrupt.check("nothing was written")?;
        let name = samples.name(index);
        if let Some(sample) = samples.read(index)? {
            let mut batch = Batch::new(vec![sample.clone()]);
            let of_new = answer(pair.new, &mut batch, pair.encoders, &shared);
            let of_old = match &mut pair.old_encoders {
                Some(encoders) => answer(pair.old, &mut Batch::new(vec![sample]), encoders, &shared),
                None => answer(pair.old, &mut batch, pair.encoders, &shared),
            };
            let at = |error: PluginError| anyhow::Error::from(error).context(name.clone());
            let (of_old, of_new) = (of_old.map_err(at)?, of_new.map_err(at)?);
            let outcome = Outcome::new(of_old, of_new, [&old.description, &new.description], &styles);
            let (origin, is_worthless) = (samples.origin(index), samples.is_worthless(index));
            rows.push(Row { index, name, origin, is_worthless, outcome });
        }
        bar.inc(1);
    }
    bar.finish();
    let both_failed = |row: &Row| matches!(row.outcome, Outcome::Failed { old: Some(_), new: Some(_) });
    if let Some(Outcome::Failed { new: Some(message), .. }) = rows.first().map(|row| &row.outcome)
        && rows.iter().all(both_failed)
    {
        let n = counted(rows.len() as u64, "sample");
        bail!("both plugins fail on {n}, such as `{}` ({message}): name samples that they take", rows[0].name);
    }
    Ok(Comparison::new(old, new, rows, tolerance))
}

/// The gradients that both plugins have.
struct Gradients {
    /// The encoders whose embeddings they have a gradient of.
    encoders: Vec<String>,
    pixels: bool,
}

fn shared_gradients(old: &Described, new: &Described) -> Gradients {
    let asked = &old.description.encoders;
    let both = asked.iter().filter(|encoder| new.description.encoders.contains(encoder)).cloned();
    let encoders = if old.differentiable && new.differentiable { both.collect() } else { vec![] };
    Gradients { encoders, pixels: old.pixel_differentiable && new.pixel_differentiable }
}

/// Runs a plugin on one sample. A fault of the plugin is its answer, any other is an error.
fn answer(
    plugin: &mut dyn Plugin,
    batch: &mut Batch,
    encoders: &mut Encoders,
    shared: &Gradients,
) -> Result<Result<Answer, String>, PluginError> {
    let output = match of_plugin(plugin.run(batch, encoders))? {
        Ok(output) => output,
        Err(message) => return Ok(Err(message)),
    };
    let reward = rewards(&output.values).first().copied().unwrap_or_default();
    let value = match output.values {
        Values::Distributions(mut distributions) => Value::Distribution(distributions.rows.pop().unwrap_or_default()),
        Values::Scores { scores, .. } => Value::Score(scores.first().copied().unwrap_or_default()),
    };
    let gradient = match of_plugin(gradient(plugin, batch, encoders, shared, &value))? {
        Ok(gradient) => gradient.map(Ok),
        Err(message) => Some(Err(format!("its gradient: {message}"))),
    };
    Ok(Ok(Answer { reward, value, gradient }))
}

/// Returns the gradient of L_SA, by which a CAN is trained, or of the score.
fn gradient(
    plugin: &mut dyn Plugin,
    batch: &mut Batch,
    encoders: &mut Encoders,
    shared: &Gradients,
    value: &Value,
) -> Result<Option<Vec<f32>>, PluginError> {
    let has_pixels = shared.pixels && batch.samples().iter().all(|sample| sample.image.is_some());
    if shared.encoders.is_empty() && !has_pixels {
        return Ok(None);
    }
    let upstream: Vec<f32> = match value {
        Value::Distribution(row) => row.iter().map(|log_p| (log_p.exp() - 1.0 / row.len() as f64) as f32).collect(),
        Value::Score(_) => vec![1.0],
    };
    let upstream = Array2::from_shape_fn((1, upstream.len()), |(_, style)| upstream[style]);
    let mut all = vec![];
    for encoder in &shared.encoders {
        all.extend(plugin.embedding_vjp(batch, encoders, encoder, &upstream)?);
    }
    if has_pixels {
        all.extend(plugin.pixel_vjp(batch, encoders, &upstream)?.into_iter().flatten());
    }
    Ok(Some(all))
}

/// Returns the message of a fault that is the plugin's own and concerns this sample.
fn of_plugin<T>(result: Result<T, PluginError>) -> Result<Result<T, String>, PluginError> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => match error.fault {
            Fault::Refused(_)
            | Fault::Panic { .. }
            | Fault::Trap { .. }
            | Fault::Timeout { .. }
            | Fault::Fuel { .. }
            | Fault::Memory { .. }
            | Fault::Handover { .. }
            | Fault::HostWork { .. }
            | Fault::Stack { .. }
            | Fault::UndeclaredEncoder { .. }
            | Fault::Output(_) => Ok(Err(error.fault.to_string())),
            _ => Err(error),
        },
    }
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
