//! The operators that libtorch runs: counted, timed, and the floating-point operations of their products counted.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use crate::error::Result;
use crate::ffi;

/// What one of libtorch's operators did in a call of [`profiled`].
#[derive(Clone, Debug, PartialEq)]
pub struct Operator {
    /// Its name in libtorch with that of the overload, such as `aten::add.Tensor`. `aten::to.device` is a move to a device,
    /// also if the tensor is there already, unlike `aten::to.dtype_layout`, a change of type.
    pub name: String,
    /// Number of calls by the program or by a backward pass.
    pub calls: u64,
    /// Number of calls by other operators, which do a part of their work with it.
    pub nested_calls: u64,
    /// Seconds of the calls that are not nested, with all operators that they call; on a GPU those of launching.
    pub seconds: f64,
    /// Floating-point operations of the calls that are not nested: two per multiply-add of every product of matrices,
    /// convolution and fused attention.
    pub flops: f64,
}

/// Runs `f`, and returns with its value the operators that it ran on this thread and in its backward passes, by name.
///
/// Counting takes a few microseconds an operator. A call of `profiled` inside another hides its operators from that one.
pub fn profiled<T>(f: impl FnOnce() -> T) -> Result<(T, Vec<Operator>)> {
    let mut profile = null_mut();
    // SAFETY: `profile` lives through the call; on success it is a profile that `Running` ends once, on this thread.
    unsafe { ffi::check(ffi::ext_profile_start(&mut profile))? };
    let running = Running(profile);
    let value = f();
    Ok((value, running.stop()?))
}

struct Running(*mut ffi::CProfile);

impl Running {
    fn stop(mut self) -> Result<Vec<Operator>> {
        let profile = std::mem::replace(&mut self.0, null_mut());
        let mut operators: Vec<Operator> = Vec::new();
        // SAFETY: the profile is ended once; `add` receives the vector, which outlives the call.
        unsafe { ffi::check(ffi::ext_profile_stop(profile, Some(add), (&raw mut operators).cast()))? };
        Ok(operators)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the profile has not been ended; nothing is visited.
            let stopped = unsafe { ffi::check(ffi::ext_profile_stop(self.0, None, null_mut())) };
            debug_assert!(stopped.is_ok(), "a running profile ends");
        }
    }
}

/// Adds an operator to the vector behind `data`.
///
/// # Safety
/// `data` is a `Vec<Operator>` that nothing else refers to, and `name` a C string.
unsafe extern "C" fn add(
    data: *mut c_void,
    name: *const c_char,
    calls: u64,
    nested_calls: u64,
    seconds: f64,
    flops: f64,
) {
    // SAFETY: by this function's contract.
    let (operators, name) = unsafe { (&mut *data.cast::<Vec<Operator>>(), CStr::from_ptr(name)) };
    operators.push(Operator { name: name.to_string_lossy().into_owned(), calls, nested_calls, seconds, flops });
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};
    use test_support::device;

    use super::*;

    fn named<'a>(operators: &'a [Operator], name: &str) -> &'a Operator {
        let found = operators.iter().find(|operator| operator.name == name);
        found.unwrap_or_else(|| panic!("no {name} in {operators:?}"))
    }

    fn ones(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Float, device()))
    }

    #[test]
    fn calls_are_counted_with_those_of_the_backward_pass_and_products_by_their_operations() {
        let (x, w) = (ones(&[5, 3]), ones(&[4, 3]).set_requires_grad(true));
        let forward = || x.linear(&w, Some(&ones(&[4])));
        let (_, operators) = profiled(|| {
            let _ = forward();
            forward().sum(Kind::Float).backward();
        })
        .unwrap();
        let linear = named(&operators, "aten::linear");
        assert_eq!((linear.calls, linear.nested_calls, linear.flops), (2, 0, 2.0 * 2.0 * 60.0));
        assert!(linear.seconds > 0.0);
        assert_eq!((named(&operators, "aten::addmm").calls, named(&operators, "aten::addmm").nested_calls), (0, 2));
        // The gradient of the weight.
        assert_eq!((named(&operators, "aten::mm").calls, named(&operators, "aten::mm").flops), (1, 120.0));
        let (_, after) = profiled(|| ()).unwrap();
        assert_eq!(after, []);
    }

    #[test]
    fn convolutions_and_attention_count_as_their_definitions_say() {
        let (x, w) = (ones(&[2, 6, 9, 7]).set_requires_grad(true), ones(&[4, 3, 3, 3]));
        let (_, operators) = profiled(|| x.conv2d(&w, None::<Tensor>, 2, 1, 1, 2).sum(Kind::Float).backward()).unwrap();
        // [2, 4, 5, 4] elements, each of 3 channels and 9 positions; the frozen weight has no gradient.
        let wanted = 2.0 * 160.0 * 27.0;
        assert_eq!(named(&operators, "aten::conv2d").flops, wanted);
        assert_eq!(named(&operators, "aten::convolution_backward").flops, wanted);

        let x = ones(&[2, 6, 5, 5]);
        let transposed = || x.conv_transpose2d(&ones(&[6, 4, 4, 4]), None::<Tensor>, 2, 1, 0, 1, 1);
        let (_, operators) = profiled(transposed).unwrap();
        assert_eq!(named(&operators, "aten::conv_transpose2d.input").flops, 2.0 * 300.0 * 64.0);

        let (q, k) = (ones(&[2, 3, 5, 8]), ones(&[2, 3, 7, 8]));
        let attend =
            || Tensor::scaled_dot_product_attention(&q, &k, &k, None::<&Tensor>, 0.0, false, None::<f64>, false);
        let (_, operators) = profiled(attend).unwrap();
        let attention = named(&operators, "aten::scaled_dot_product_attention");
        assert_eq!(attention.flops, 2.0 * 2.0 * (2 * 3 * 5 * 7 * 8) as f64);
    }

    #[test]
    fn moves_to_a_device_are_told_from_changes_of_type() {
        let x = ones(&[2]);
        let moved = || (x.to_device(device()), x.to_device(device()), x.to_kind(Kind::Float), x.to_kind(Kind::Double));
        let (_, operators) = profiled(moved).unwrap();
        let calls = ["aten::to.device", "aten::to.dtype_layout"].map(|name| named(&operators, name).calls);
        assert_eq!(calls, [2, 2]);
    }

    #[test]
    fn a_panic_ends_the_profile() {
        let panicked = std::panic::catch_unwind(|| profiled(|| panic!("on purpose")));
        assert!(panicked.is_err());
        let (_, operators) = profiled(|| ones(&[2])).unwrap();
        assert_eq!(named(&operators, "aten::ones").calls, 1);
    }
}
