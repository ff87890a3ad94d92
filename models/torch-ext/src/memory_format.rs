//! The order of a tensor's elements in memory.

use tch::Tensor;

use crate::error::Result;
use crate::ffi;

/// Returns the [n, c, h, w] tensor with its channels innermost in memory, with which convolutions on current GPUs (and
/// in bf16 on the CPU) are faster. Gradients flow through it. A tensor in this format already is returned as it is; one
/// that does not have four dimensions is an error.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor> {
    // SAFETY: the tensor lives through the call.
    ffi::tensor(|out| unsafe { ffi::ext_channels_last(tensor.as_ptr(), out) })
}

#[cfg(test)]
mod tests {
    use tch::Kind;
    use test_support::device;

    use super::*;

    #[test]
    fn the_numbers_stay_and_the_strides_change() {
        let tensor = Tensor::arange(2 * 3 * 4 * 5, (Kind::Float, device())).reshape([2, 3, 4, 5]);
        let last = channels_last(&tensor).unwrap();
        assert_eq!(last.stride(), [60, 1, 15, 3]);
        assert!(last == tensor);
        assert_eq!(channels_last(&last).unwrap().data_ptr(), last.data_ptr());
    }

    #[test]
    fn gradients_pass() {
        let tensor = Tensor::ones([1, 2, 3, 3], (Kind::Float, device())).set_requires_grad(true);
        (channels_last(&tensor).unwrap() * 3.0).sum(Kind::Float).backward();
        assert_eq!(tensor.grad().sum(Kind::Float).double_value(&[]), 54.0);
    }

    #[test]
    fn three_dimensions_are_an_error() {
        let error = channels_last(&Tensor::zeros([1, 2, 3], (Kind::Float, device()))).unwrap_err().to_string();
        assert!(error.contains("rank 4"), "{error}");
    }
}
