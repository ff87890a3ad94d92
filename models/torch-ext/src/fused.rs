//! Fused operations: one pass over memory where libtorch needs several.

use tch::Tensor;

use crate::error::Result;
use crate::ffi;

/// Computes silu(group_norm(x)) with weight and bias \[c\], for x [n, c, ...].
///
/// On the CPU in f32, if the weights are not trained, it is one kernel that stores only `x` and two numbers per group
/// for the gradient, which cannot be differentiated again; otherwise it is libtorch's two operations. Both agree up to
/// rounding.
pub fn group_norm_silu(x: &Tensor, groups: i64, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (x, weight, bias) = (x.as_ptr(), weight.as_ptr(), bias.as_ptr());
    // SAFETY: the tensors live through the call, since it borrows them.
    ffi::tensor(|out| unsafe { ffi::ext_group_norm_silu(x, groups, weight, bias, eps, out) })
}

/// `torch.nn.functional.leaky_relu` with any slope below zero (tch's has 0.01 alone): max(x, slope · x), in place,
/// differentiable twice. It is an error if autograd needs the original `x`: for a leaf that requires gradients.
pub fn leaky_relu(mut x: Tensor, slope: f64) -> Result<Tensor> {
    let x = x.as_mut_ptr();
    // SAFETY: the tensor lives through the call, since this function owns it.
    ffi::tensor(|out| unsafe { ffi::ext_leaky_relu(x, slope, out) })
}

#[cfg(test)]
mod tests {
    use tch::Kind;
    use test_support::{assert_close, device};

    use super::*;
    use crate::generator::Generator;

    #[test]
    fn the_slope_below_zero_is_the_one_given_and_differentiable_twice() {
        let x = Tensor::from_slice(&[-2.0f32, -0.5, 0.0, 3.0]).to_device(device()).set_requires_grad(true);
        let y = leaky_relu(&x * 1.0, 0.25).unwrap();
        assert!(leaky_relu(x.shallow_clone(), 0.25).is_err());
        assert_eq!(Vec::<f32>::try_from(&y).unwrap(), [-0.5, -0.125, 0.0, 3.0]);
        let first = Tensor::run_backward(&[y.square().sum(Kind::Float)], &[&x], true, true).remove(0);
        assert_eq!(Vec::<f32>::try_from(&first).unwrap(), [-0.25, -0.0625, 0.0, 6.0]);
        first.sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(&x.grad()).unwrap()[0], 0.125);
    }

    #[test]
    fn it_is_libtorchs_two_operations_and_their_gradient() {
        tch::set_num_threads(4);
        let mut generator = Generator::cpu(1).unwrap();
        for (shape, groups) in [([2, 8, 5, 7], 4), ([3, 32, 16, 16], 8), ([1, 6, 1, 3], 6), ([2, 4, 40, 33], 1)] {
            let mut normal = |shape: &[i64]| generator.normal(shape).unwrap().to_device(device());
            let (weight, bias) = (normal(&[shape[1]]) * 3.0, normal(&[shape[1]]));
            let (x, upstream) = (normal(&shape) * 4.0 + 2.0, normal(&shape));
            let both = |f: &dyn Fn(&Tensor) -> Tensor| {
                let x = x.copy().set_requires_grad(true);
                let y = f(&x);
                (&y * &upstream).sum(Kind::Float).backward();
                (y, x.grad())
            };
            let ours = both(&|x| group_norm_silu(x, groups, &weight, &bias, 1e-5).unwrap());
            let theirs = both(&|x| x.group_norm(groups, Some(&weight), Some(&bias), 1e-5, true).silu());
            assert_close(&format!("{shape:?}"), &ours.0, &theirs.0, 1e-6);
            assert_close(&format!("gradient of {shape:?}"), &ours.1, &theirs.1, 3e-6);
        }
    }

    /// OpenMP gives fewer threads than libtorch asks for: the whole tensor is computed all the same. The limit is of a
    /// process, so the comparison above runs in one of its own.
    #[test]
    fn fewer_threads_than_wanted_do_all_the_work() {
        let test = "fused::tests::it_is_libtorchs_two_operations_and_their_gradient";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", test]).env("OMP_THREAD_LIMIT", "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[test]
    fn large_and_small_numbers_stay_finite() {
        let weight = Tensor::full([2], 1e3, (Kind::Float, device()));
        let bias = Tensor::zeros([2], (Kind::Float, device()));
        let x = Tensor::from_slice(&[-1e6f32, 1e6, 0.0, 1e-30]).view([1, 2, 1, 2]).to_device(device());
        let y = group_norm_silu(&x, 2, &weight, &bias, 1e-5).unwrap();
        let expected = x.group_norm(2, Some(&weight), Some(&bias), 1e-5, true).silu();
        assert!((y - expected).abs().max().double_value(&[]) < 1e-3);
    }

    #[test]
    fn weights_that_are_trained_have_their_gradient() {
        let weight = Tensor::ones([4], (Kind::Float, device())).set_requires_grad(true);
        let bias = Tensor::zeros([4], (Kind::Float, device())).set_requires_grad(true);
        let x = Generator::cpu(2).unwrap().normal(&[2, 4, 3, 3]).unwrap().to_device(device());
        group_norm_silu(&x, 2, &weight, &bias, 1e-5).unwrap().sum(Kind::Float).backward();
        assert!(weight.grad().abs().max().double_value(&[]) > 0.0 && bias.grad().abs().max().double_value(&[]) > 0.0);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (x, w) = (Tensor::ones([1, 5, 2, 2], (Kind::Float, device())), Tensor::ones([5], (Kind::Float, device())));
        assert!(group_norm_silu(&x, 2, &w, &w, 1e-5).is_err());
    }
}
