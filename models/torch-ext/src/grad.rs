//! Gradient clipping by the global norm, and sums of gradients that do not depend on the order.

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::ffi;

/// Whether operations of this thread build a graph for a backward pass, as they do outside of `tch::no_grad`.
pub fn grad_enabled() -> bool {
    // SAFETY: it reads a variable of the thread.
    unsafe { ffi::ext_grad_enabled() }
}

/// Scales the gradients of `parameters` in place so that their joint 2-norm is at most `max_norm`, and returns the
/// norm before scaling: a scalar on their device, without synchronization. As in `torch.nn.utils.clip_grad_norm_`, the
/// scale is max_norm / (norm + 1e-6), at most 1. Parameters without a gradient are skipped; without any gradient the
/// norm is 0.
pub fn clip_grad_norm<'a>(parameters: impl IntoIterator<Item = &'a Tensor>, max_norm: f64) -> Result<Tensor> {
    if max_norm.is_nan() || max_norm <= 0.0 {
        return Err(Error::new(format!("the maximum gradient norm is {max_norm}, it must be above 0")));
    }
    let parameters = ffi::pointers(parameters);
    // SAFETY: the caller's tensors outlive this call, since it borrows them.
    ffi::tensor(|out| unsafe { ffi::ext_clip_grad_norm(parameters.as_ptr(), parameters.len(), max_norm, out) })
}

/// The sum of the gradients of several backward passes, in f64: of some f32 numbers it is exact but for rare cases, so that it
/// depends neither on their order nor on which process computed them.
#[derive(Debug)]
pub struct GradientSum {
    parameters: Vec<Tensor>,
    sum: Tensor,
}

impl GradientSum {
    /// Returns the sum of no gradients. The parameters are of one type and on one device.
    pub fn new<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let parameters: Vec<Tensor> = parameters.into_iter().map(Tensor::shallow_clone).collect();
        let n = parameters.iter().map(|parameter| parameter.numel() as i64).sum::<i64>();
        let device = parameters.first().map_or(tch::Device::Cpu, Tensor::device);
        Self { sum: Tensor::zeros([n], (Kind::Double, device)), parameters }
    }

    /// Adds the parameters' gradients, and clears them.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn add(&mut self) -> Result<()> {
        let parameters = ffi::pointers(&self.parameters);
        // SAFETY: the parameters and the sum are ours and live during the call.
        unsafe { ffi::check(ffi::ext_add_gradients(parameters.as_ptr(), parameters.len(), self.sum.as_mut_ptr())) }
    }

    /// The sum: the parameters' gradients one after the other, f64.
    pub fn as_tensor(&mut self) -> &mut Tensor {
        &mut self.sum
    }

    /// Rounds the sum to the parameters' gradients, and begins a new one.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn finish(&mut self) -> Result<()> {
        let parameters = ffi::pointers(&self.parameters);
        // SAFETY: as in `add`.
        unsafe { ffi::check(ffi::ext_set_gradients(parameters.as_ptr(), parameters.len(), self.sum.as_ptr()))? };
        let _ = self.sum.f_zero_()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;
    use test_support::{Reference, assert_close, device};

    use super::*;

    fn parameters(reference: &Reference) -> [Tensor; 3] {
        let leaf = |name: &str| {
            let gradient = reference.tensor(&format!("clip.gradient.{name}"));
            let leaf = gradient.zeros_like().set_requires_grad(true);
            (&leaf * gradient).sum(Kind::Float).backward();
            leaf
        };
        [leaf("a"), leaf("b"), Tensor::zeros([3], (Kind::Float, device())).set_requires_grad(true)]
    }

    #[test]
    fn a_sum_of_gradients_does_not_depend_on_their_order() {
        let leaf = || Tensor::zeros([2], (Kind::Float, device())).set_requires_grad(true);
        let summed = |scales: &[f32]| {
            let (a, b, unused) = (leaf(), leaf(), leaf());
            let mut sum = GradientSum::new([&a, &unused, &b]);
            for &scale in scales {
                (&a * f64::from(scale) + &b * f64::from(2.0 * scale)).sum(Kind::Float).backward();
                sum.add().unwrap();
                assert!(!a.grad().defined());
            }
            sum.finish().unwrap();
            assert_eq!(sum.as_tensor().sum(Kind::Double).double_value(&[]), 0.0);
            [&a, &unused, &b].map(|leaf| Vec::<f32>::try_from(&leaf.grad()).unwrap())
        };
        // In f32 these sums would be 1, 0 and 1.
        let parts = [1.0, 1e8, -1e8];
        let orders = [[0, 1, 2], [1, 0, 2], [2, 1, 0]].map(|order| summed(&order.map(|i| parts[i])));
        assert_eq!(orders[0], [vec![1.0; 2], vec![0.0; 2], vec![2.0; 2]]);
        assert!(orders.iter().all(|sum| *sum == orders[0]));
    }

    #[test]
    fn clipping_matches_pytorch() {
        let reference = Reference::read("torch_ext.safetensors");
        for (label, max_norm) in [("tight", 0.5), ("loose", 100.0)] {
            let parameters = parameters(&reference);
            let norm = clip_grad_norm(&parameters, max_norm).unwrap();
            assert_close(label, &norm, reference.tensor(&format!("clip.{label}.norm")), 1e-6);
            for (parameter, name) in parameters.iter().zip(["a", "b"]) {
                let theirs = reference.tensor(&format!("clip.{label}.{name}"));
                assert_close(&format!("{label} {name}"), &parameter.grad(), theirs, 1e-6);
            }
            assert!(!parameters[2].grad().defined());
        }
    }

    #[test]
    fn edges() {
        let reference = Reference::read("torch_ext.safetensors");
        let [_, _, untouched] = parameters(&reference);
        assert_eq!(clip_grad_norm([&untouched], 1.0).unwrap().double_value(&[]), 0.0);
        assert_eq!(clip_grad_norm([], 1.0).unwrap().double_value(&[]), 0.0);
        for bad in [0.0, -1.0, f64::NAN] {
            assert!(clip_grad_norm([&untouched], bad).unwrap_err().to_string().contains("must be above 0"));
        }
    }
}
