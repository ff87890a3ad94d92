//! Gradient clipping by the global norm.

use tch::Tensor;

use crate::error::{Error, Result};
use crate::ffi;

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
