//! What all optimizer steps share: a step whose gradient is not finite is dropped, and weights may be averaged (EMA).

use ambiguity_models::params::NamedTensors;
use anyhow::{Context as _, Result, bail, ensure};
use tch::{Device, Tensor, no_grad};
use torch_ext::{AdamW, clip_grad_norm, lerp};

/// Number of optimizer steps that may be dropped in a row before training stops.
const MAX_DROPPED_STEPS: u32 = 3;

/// Training has diverged: running it again with the same configuration would diverge again.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Diverged {
    /// The value that is not finite, and when.
    pub what: String,
    /// The configuration key to lower.
    pub lower: &'static str,
}

/// Runs optimizer steps and drops those whose gradient is not finite.
#[derive(Debug)]
pub struct StepGuard {
    /// Number of consecutive dropped steps.
    pub dropped_in_a_row: u32,
    /// The configuration's key of the learning rate.
    learning_rate_key: &'static str,
}

impl StepGuard {
    /// Returns a guard that has not dropped a step yet; its error advises to lower `learning_rate_key`.
    pub fn new(learning_rate_key: &'static str) -> Self {
        Self { dropped_in_a_row: 0, learning_rate_key }
    }

    /// Clips the accumulated gradient to `max_norm` and steps; returns its norm before clipping, or none if it is not
    /// finite and the step was dropped.
    ///
    /// # Errors
    /// [`Diverged`] at the third dropped step in a row.
    pub fn step(&mut self, optimizer: &mut AdamW, max_norm: f64) -> Result<Option<f64>> {
        let leaves = optimizer.parameters().iter().map(|(_, tensor)| tensor);
        let norm = clip_grad_norm(leaves, max_norm)?.double_value(&[]);
        if norm.is_finite() {
            optimizer.step()?;
            self.dropped_in_a_row = 0;
            return Ok(Some(norm));
        }
        self.dropped_in_a_row += 1;
        if self.dropped_in_a_row >= MAX_DROPPED_STEPS {
            let what = format!("{} optimizer steps in a row had no finite gradient", self.dropped_in_a_row);
            bail!(Diverged { what, lower: self.learning_rate_key });
        }
        Ok(None)
    }
}

/// The exponential moving average (EMA) of parameters.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    tensors: NamedTensors,
}

impl Ema {
    /// Returns an average that starts at the parameters' values.
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a String, &'a Tensor)>, decay: f64) -> Self {
        let copy = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.detach().copy());
        Self { decay, tensors: parameters.into_iter().map(copy).collect() }
    }

    /// The averages by name; [`Ema::update`] changes them in place.
    pub fn tensors(&self) -> &NamedTensors {
        &self.tensors
    }

    /// Updates the averages with the parameters' values after an optimizer step.
    pub fn update(&mut self, parameters: &[(String, Tensor)]) -> Result<()> {
        self.update_by(parameters, self.decay)
    }

    /// As [`Ema::update`], `steps` steps after random initialization: the decay is lower at first, so that the initial
    /// weights are soon forgotten.
    pub fn update_warm(&mut self, parameters: &[(String, Tensor)], steps: u64) -> Result<()> {
        self.update_by(parameters, self.decay.min((1.0 + steps as f64) / (10.0 + steps as f64)))
    }

    fn update_by(&mut self, parameters: &[(String, Tensor)], decay: f64) -> Result<()> {
        let mean = |name| self.tensors.get(name).expect("the average was built from these parameters");
        let (means, values): (Vec<&Tensor>, Vec<&Tensor>) =
            parameters.iter().map(|(name, value)| (mean(name), value)).unzip();
        Ok(lerp(&means, &values, 1.0 - decay)?)
    }

    /// Loads the averages of a checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(&mut self, saved: &NamedTensors) -> Result<()> {
        copy_into(self.tensors.iter(), saved)
    }
}

/// Copies the values of `saved` into tensors of the same names, in place.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub fn copy_into<'a>(tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>, saved: &NamedTensors) -> Result<()> {
    for (name, tensor) in tensors {
        let value = saved.get(name).with_context(|| format!("the tensor {name} is missing"))?;
        ensure!(value.size() == tensor.size(), "{name} has shape {:?}, not {:?}", value.size(), tensor.size());
        no_grad(|| tensor.shallow_clone().f_copy_(value))?;
    }
    Ok(())
}

/// Adds tensors to a checkpoint's state under `prefix`.
pub fn add_under(state: &mut NamedTensors, prefix: &str, tensors: impl IntoIterator<Item = (impl AsRef<str>, Tensor)>) {
    state.extend(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}.{}", name.as_ref()), tensor.detach())));
}

/// Returns the tensors of a checkpoint's state under `prefix`, the prefix removed from their names.
pub fn under(state: &NamedTensors, prefix: &str) -> NamedTensors {
    let strip = |(name, tensor): (&String, &Tensor)| {
        Some((name.strip_prefix(prefix)?.strip_prefix('.')?.to_owned(), tensor.shallow_clone()))
    };
    state.iter().filter_map(strip).collect()
}

/// Returns the name of the first tensor that contains a value that is not finite.
pub fn first_not_finite<'a>(tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) -> Result<Option<&'a str>> {
    let (names, finite): (Vec<_>, Vec<_>) =
        tensors.into_iter().map(|(name, tensor)| (name.as_str(), tensor.isfinite().all())).unzip();
    // One read from the device for all tensors.
    let finite = Vec::<bool>::try_from(&Tensor::stack(&finite, 0).to_device(Device::Cpu))?;
    Ok(names.into_iter().zip(finite).find(|(_, finite)| !finite).map(|(name, _)| name))
}

#[cfg(test)]
mod tests {
    use tch::Kind;
    use torch_ext::AdamWConfig;

    use super::*;

    fn optimizer(leaf: &Tensor) -> AdamW {
        let config = AdamWConfig { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, weight_decay: 0.0, epsilon: 1e-8 };
        AdamW::new(vec![("w".to_owned(), leaf.shallow_clone())], config).expect("an optimizer")
    }

    /// A step of a loss whose gradient is `gradient`.
    fn step(guard: &mut StepGuard, leaf: &Tensor, optimizer: &mut AdamW, gradient: f64) -> Result<Option<f64>> {
        optimizer.zero_grad();
        (leaf * gradient).sum(Kind::Float).backward();
        guard.step(optimizer, 1.0)
    }

    #[test]
    fn only_consecutive_dropped_steps_end_a_training() {
        let leaf = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        let (mut optimizer, mut guard) = (optimizer(&leaf), StepGuard::new("train.learning_rate"));
        for _ in 0..5 {
            for _ in 1..MAX_DROPPED_STEPS {
                assert_eq!(step(&mut guard, &leaf, &mut optimizer, f64::NAN).expect("it continues"), None);
            }
            assert_eq!(step(&mut guard, &leaf, &mut optimizer, 2.0).expect("it steps"), Some(2.0));
        }
        for _ in 1..MAX_DROPPED_STEPS {
            step(&mut guard, &leaf, &mut optimizer, f64::INFINITY).expect("it continues");
        }
        let error = step(&mut guard, &leaf, &mut optimizer, f64::NAN).expect_err("the third in a row");
        assert_eq!(error.downcast_ref::<Diverged>().expect("it diverged").lower, "train.learning_rate");
        assert!(leaf.double_value(&[0]).is_finite());
    }

    #[test]
    fn an_average_decays_towards_the_parameters() {
        let parameters = |value: f32| vec![("w".to_owned(), Tensor::from_slice(&[value]))];
        let start = parameters(1.0);
        let mut ema = Ema::new(start.iter().map(|(name, tensor)| (name, tensor)), 0.9);
        ema.update(&parameters(2.0)).expect("the same shapes");
        assert!((ema.tensors()["w"].double_value(&[0]) - 1.1).abs() < 1e-6);
        // After one step the warm average has a decay of 2 / 11.
        ema.update_warm(&parameters(2.0), 1).expect("the same shapes");
        let wanted = 1.1 * 2.0 / 11.0 + 2.0 * 9.0 / 11.0;
        assert!((ema.tensors()["w"].double_value(&[0]) - wanted).abs() < 1e-6);
        let saved = parameters(5.0).into_iter().collect();
        ema.load(&saved).expect("the same shape");
        assert_eq!(ema.tensors()["w"].double_value(&[0]), 5.0);
        ema.load(&NamedTensors::new()).expect_err("nothing to load");
    }

    #[test]
    fn tensors_are_found_under_their_prefix_alone() {
        let mut state = NamedTensors::new();
        add_under(&mut state, "ema", [("w", Tensor::from(1.0f32)), ("b", Tensor::from(2.0f32))]);
        add_under(&mut state, "ema_step", [("w", Tensor::from(3.0f32))]);
        let found = under(&state, "ema");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["b", "w"]);
        assert_eq!((found["w"].double_value(&[]), found["b"].double_value(&[])), (1.0, 2.0));
        assert!(under(&state, "optimizer").is_empty());
    }

    #[test]
    fn what_is_not_finite_is_found_by_name() {
        let tensors: NamedTensors =
            [("a".to_owned(), Tensor::from(1.0f32)), ("b".to_owned(), Tensor::from(f32::NAN))].into();
        assert_eq!(first_not_finite(&tensors).expect("readable"), Some("b"));
    }
}
