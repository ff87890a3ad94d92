//! Both plugins run on the samples, one at a time.

use anyhow::{Result, bail};
use ndarray::Array2;

use super::compare::{Comparison, Row};
use super::description::{Described, Styles};
use super::outputs::{Answer, Outcome, Value};
use super::samples::Samples;
use crate::context::Context;
use crate::encoders::Encoders;
use crate::plugin::{Batch, Fault, Plugin, PluginError, Values};
use crate::rl::reward::rewards;
use crate::text::counted;

/// The plugins to compare.
pub(in crate::cli::plugin) struct Pair<'a> {
    pub(in crate::cli::plugin) old: &'a mut dyn Plugin,
    pub(in crate::cli::plugin) new: &'a mut dyn Plugin,
    /// The encoders of both, or of the new one.
    pub(in crate::cli::plugin) encoders: &'a mut Encoders,
    /// The encoders of the old one, if it has others.
    pub(in crate::cli::plugin) old_encoders: Option<&'a mut Encoders>,
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
