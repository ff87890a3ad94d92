//! AdamW ("Decoupled Weight Decay Regularization", Loshchilov and Hutter, arXiv:1711.05101) with libtorch's fused
//! operation, which updates all parameters in one call, and a state that can be saved and loaded.

use std::collections::{BTreeMap, HashSet};

use tch::{Device, Kind, Tensor, no_grad};

use crate::error::{Error, Result};
use crate::ffi;

/// The hyperparameters of AdamW, named as in the run configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment, the running mean of the gradients.
    pub beta1: f64,
    /// Decay of the second moment, the running mean of their squares.
    pub beta2: f64,
    /// Decoupled weight decay: this times the learning rate is the fraction of a parameter subtracted at each step.
    pub weight_decay: f64,
    /// Constant added to the denominator.
    pub epsilon: f64,
}

/// AdamW over named f32 parameters of one device. The parameters are shared with their network, as all tch
/// tensors are: a step changes them in place.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    parameters: Vec<(String, Tensor)>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    steps: Vec<Tensor>,
}

impl AdamW {
    /// Creates an optimizer. Each parameter must be an f32 leaf that requires gradients, all on one device, each name
    /// once.
    pub fn new(parameters: Vec<(String, Tensor)>, config: AdamWConfig) -> Result<Self> {
        let mut names = HashSet::new();
        for (name, tensor) in &parameters {
            let refuse = |what: String| Err(Error::new(format!("parameter `{name}` {what}")));
            if !names.insert(name) {
                return refuse("appears twice".to_owned());
            }
            if !tensor.defined() {
                return refuse("is an undefined tensor".to_owned());
            }
            if tensor.kind() != Kind::Float {
                return refuse(format!("has type {:?}, the optimizer needs Float", tensor.kind()));
            }
            if !tensor.requires_grad() || !tensor.is_leaf() {
                return refuse("is not a leaf that requires gradients".to_owned());
            }
            let (device, wanted) = (tensor.device(), parameters[0].1.device());
            if device != wanted {
                return refuse(format!("is on {device:?}, `{}` on {wanted:?}", parameters[0].0));
            }
        }
        let zeros = || parameters.iter().map(|(_, tensor)| Ok(tensor.detach().f_zeros_like()?)).collect::<Result<_>>();
        let (exp_avgs, exp_avg_sqs) = (zeros()?, zeros()?);
        let steps = parameters
            .iter()
            .map(|(_, tensor)| Ok(Tensor::f_zeros([], (Kind::Float, tensor.device()))?))
            .collect::<Result<_>>()?;
        Ok(Self { config, parameters, exp_avgs, exp_avg_sqs, steps })
    }

    /// Clears all gradients, so that a parameter that the next backward pass does not reach is not updated.
    pub fn zero_grad(&mut self) {
        for (_, tensor) in &self.parameters {
            // SAFETY: the tensor lives through the call.
            let cleared = unsafe { ffi::check(ffi::ext_clear_gradient(tensor.as_ptr())) };
            cleared.expect("clearing the gradient of a defined tensor allocates nothing and checks nothing");
        }
    }

    /// Does one update; parameters without a gradient are skipped, and so are their moments and step counts.
    pub fn step(&mut self) -> Result<()> {
        let parameters = ffi::pointers(self.parameters.iter().map(|(_, tensor)| tensor));
        let exp_avgs = ffi::pointers(&self.exp_avgs);
        let exp_avg_sqs = ffi::pointers(&self.exp_avg_sqs);
        let steps = ffi::pointers(&self.steps);
        let AdamWConfig { learning_rate, beta1, beta2, weight_decay, epsilon } = self.config;
        // SAFETY: four arrays of the same length, whose tensors live through the call.
        unsafe {
            ffi::check(ffi::ext_adamw_step(
                parameters.as_ptr(),
                exp_avgs.as_ptr(),
                exp_avg_sqs.as_ptr(),
                steps.as_ptr(),
                parameters.len(),
                learning_rate,
                beta1,
                beta2,
                weight_decay,
                epsilon,
            ))
        }
    }

    /// Sets the learning rate of the next steps.
    pub fn set_learning_rate(&mut self, learning_rate: f64) {
        self.config.learning_rate = learning_rate;
    }

    /// The hyperparameters, with the current learning rate.
    pub fn config(&self) -> AdamWConfig {
        self.config
    }

    /// The parameters, in their original order.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Returns copies of the state: `NAME.exp_avg`, `NAME.exp_avg_sq` (shaped as the parameter) and `NAME.step` (a
    /// scalar), f32 on the parameters' device. The parameters themselves are not included.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        self.slots().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect()
    }

    /// Restores a state that [`AdamW::state`] returned. Nothing changes unless all names and shapes are right.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let slots = self.slots();
        for (name, slot) in &slots {
            let found = state.get(name).ok_or_else(|| Error::new(format!("optimizer state lacks `{name}`")))?;
            if found.size() != slot.size() || found.kind() != Kind::Float {
                return Err(Error::new(format!(
                    "optimizer state `{name}` is {:?} {:?}, this optimizer expects Float {:?}",
                    found.kind(),
                    found.size(),
                    slot.size()
                )));
            }
        }
        if let Some(unknown) = state.keys().find(|name| !slots.iter().any(|(slot, _)| slot == *name)) {
            return Err(Error::new(format!(
                "optimizer state has `{unknown}`, which no parameter of this optimizer has"
            )));
        }
        for (name, slot) in slots {
            no_grad(|| slot.shallow_clone().f_copy_(&state[&name]))?;
        }
        Ok(())
    }

    /// The device of the parameters, if there are any.
    pub fn device(&self) -> Option<Device> {
        self.parameters.first().map(|(_, tensor)| tensor.device())
    }

    fn slots(&self) -> Vec<(String, &Tensor)> {
        let mut slots = Vec::with_capacity(3 * self.parameters.len());
        for (i, (name, _)) in self.parameters.iter().enumerate() {
            slots.push((format!("{name}.exp_avg"), &self.exp_avgs[i]));
            slots.push((format!("{name}.exp_avg_sq"), &self.exp_avg_sqs[i]));
            slots.push((format!("{name}.step"), &self.steps[i]));
        }
        slots
    }
}

/// Moves each of the tensors in place towards the target in its place by `weight` of their distance, all in one operation:
/// tensor + weight · (target − tensor).
pub fn lerp(tensors: &[&Tensor], targets: &[&Tensor], weight: f64) -> Result<()> {
    if tensors.len() != targets.len() {
        return Err(Error::new(format!("{} tensors have {} targets", tensors.len(), targets.len())));
    }
    let count = tensors.len();
    let [tensors, targets] = [tensors, targets].map(|all| ffi::pointers(all.iter().copied()));
    // SAFETY: two arrays of the same length, whose tensors live through the call.
    unsafe { ffi::check(ffi::ext_lerp(tensors.as_ptr(), targets.as_ptr(), count, weight)) }
}

#[cfg(test)]
mod tests {
    use test_support::{Reference, assert_close, device};

    use super::*;

    const CONFIG: AdamWConfig =
        AdamWConfig { learning_rate: 3e-3, beta1: 0.9, beta2: 0.99, weight_decay: 1e-2, epsilon: 1e-8 };
    const NAMES: [&str; 5] = ["weight", "bias", "scalar", "late", "skipped"];

    fn fresh(reference: &Reference) -> AdamW {
        let leaf = |name: &&str| {
            let start = reference.tensor(&format!("adamw.start.{name}")).copy();
            ((*name).to_owned(), start.set_requires_grad(true))
        };
        AdamW::new(NAMES.iter().map(leaf).collect(), CONFIG).unwrap()
    }

    /// Runs steps `from..to` of the schedule in make_torch_ext.py.
    fn run(optimizer: &mut AdamW, reference: &Reference, from: i64, to: i64) {
        for step in from..to {
            optimizer.zero_grad();
            for (name, tensor) in optimizer.parameters() {
                if name != "skipped" && !(name == "late" && step < 5) {
                    // The gradient of Σ w·g with respect to w is g.
                    let gradient = reference.tensor(&format!("adamw.gradients.{name}")).get(step);
                    (tensor * gradient).sum(Kind::Float).backward();
                }
            }
            if step == 15 {
                optimizer.set_learning_rate(1e-3);
            }
            optimizer.step().unwrap();
        }
    }

    #[test]
    fn twenty_steps_match_pytorchs_fused_adamw() {
        let reference = Reference::read("torch_ext.safetensors");
        let mut optimizer = fresh(&reference);
        run(&mut optimizer, &reference, 0, 20);
        let state = optimizer.state();
        for (name, tensor) in optimizer.parameters() {
            assert_close(name, tensor, reference.tensor(&format!("adamw.end.{name}")), 1e-6);
            for key in ["exp_avg", "exp_avg_sq", "step"] {
                let ours = &state[&format!("{name}.{key}")];
                if name == "skipped" {
                    assert_eq!(ours.abs().sum(Kind::Double).double_value(&[]), 0.0, "{name}.{key}");
                } else {
                    let theirs = reference.tensor(&format!("adamw.state.{name}.{key}"));
                    assert_close(&format!("{name}.{key}"), ours, theirs, 1e-6);
                }
            }
        }
        assert_eq!(state["late.step"].double_value(&[]), 15.0);
    }

    #[test]
    fn going_on_from_a_saved_state_is_bit_exact() {
        let reference = Reference::read("torch_ext.safetensors");
        let mut through = fresh(&reference);
        run(&mut through, &reference, 0, 10);
        let saved = through.state();
        let parameters: Vec<_> = through
            .parameters()
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.detach().copy().set_requires_grad(true)))
            .collect();
        run(&mut through, &reference, 10, 20);

        let mut resumed = AdamW::new(parameters, CONFIG).unwrap();
        resumed.load_state(&saved).unwrap();
        run(&mut resumed, &reference, 10, 20);
        for ((name, a), (_, b)) in through.parameters().iter().zip(resumed.parameters()) {
            assert!(a == b, "{name}");
        }
        assert!(through.state() == resumed.state());
        assert!(saved != through.state(), "a saved state is a copy");
    }

    #[test]
    fn tensors_move_towards_their_targets_as_one_at_a_time() {
        let mut generator = crate::Generator::cpu(1).unwrap();
        let mut normals = || [3, 17, 64].map(|n| generator.normal(&[n]).unwrap().to_device(device()));
        let (tensors, targets) = (normals(), normals());
        let wanted = [0, 1, 2].map(|i| tensors[i].copy().lerp_(&targets[i], 0.1));
        lerp(&tensors.each_ref(), &targets.each_ref(), 0.1).unwrap();
        for (tensor, wanted) in tensors.iter().zip(&wanted) {
            assert_close("mean", tensor, wanted, if device() == Device::Cpu { 0.0 } else { 1e-6 });
        }
        assert!(lerp(&[&tensors[0]], &[&targets[1]], 0.1).is_err() && lerp(&[], &[&targets[1]], 0.1).is_err());
    }

    #[test]
    fn a_foreign_state_is_refused_by_name_and_changes_nothing() {
        let reference = Reference::read("torch_ext.safetensors");
        let mut optimizer = fresh(&reference);
        run(&mut optimizer, &reference, 0, 2);
        let good = optimizer.state();
        let check = |optimizer: &mut AdamW, state: &BTreeMap<String, Tensor>, words: &[&str]| {
            let text = optimizer.load_state(state).unwrap_err().to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        };
        let copy = || good.iter().map(|(name, tensor)| (name.clone(), tensor.zeros_like())).collect::<BTreeMap<_, _>>();

        let mut state = copy();
        state.remove("weight.exp_avg_sq");
        check(&mut optimizer, &state, &["lacks `weight.exp_avg_sq`"]);
        let mut state = copy();
        state.insert("weight.exp_avg".to_owned(), Tensor::zeros([5, 7], (Kind::Float, device())));
        check(&mut optimizer, &state, &["`weight.exp_avg`", "[5, 7]", "[7, 5]"]);
        let mut state = copy();
        state.insert("bias.step".to_owned(), Tensor::zeros([], (Kind::Int64, device())));
        check(&mut optimizer, &state, &["`bias.step`", "Int64"]);
        let mut state = copy();
        state.insert("other.step".to_owned(), Tensor::zeros([], (Kind::Float, device())));
        check(&mut optimizer, &state, &["has `other.step`"]);
        assert!(optimizer.state() == good);
    }

    #[test]
    fn unfit_parameters_are_refused_by_name() {
        let leaf = |kind| Tensor::zeros([2], (kind, device())).set_requires_grad(true);
        let check = |parameters: Vec<(&str, Tensor)>, words: &str| {
            let parameters = parameters.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
            let text = AdamW::new(parameters, CONFIG).unwrap_err().to_string();
            assert!(text.contains(words), "{text}");
        };
        check(vec![("w", leaf(Kind::Double))], "`w` has type Double");
        check(vec![("w", Tensor::zeros([2], (Kind::Float, device())))], "`w` is not a leaf");
        check(vec![("w", leaf(Kind::Float) * 2.0)], "`w` is not a leaf");
        check(vec![("w", leaf(Kind::Float)), ("w", leaf(Kind::Float))], "`w` appears twice");
        check(vec![("w", Tensor::new())], "`w` is an undefined tensor");
    }

    #[test]
    fn a_step_without_any_gradient_does_nothing() {
        let reference = Reference::read("torch_ext.safetensors");
        let mut optimizer = fresh(&reference);
        optimizer.step().unwrap();
        assert!(optimizer.state() == fresh(&reference).state());
    }
}
