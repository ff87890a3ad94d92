//! Random number generators without global state, with the numbers of PyTorch's `torch.Generator`.

use std::ptr::{NonNull, null_mut};

use tch::Tensor;

use crate::error::{Error, Result};
use crate::ffi;

/// A Mersenne Twister on the CPU. A seed yields the numbers that PyTorch yields after
/// `torch.Generator().manual_seed(seed)`, whatever else draws random numbers in the process.
#[derive(Debug)]
pub struct Generator(NonNull<ffi::CGenerator>);

// SAFETY: at::Generator is a reference-counted pointer that only this value holds, and using it takes no thread-local
// state.
unsafe impl Send for Generator {}

impl Generator {
    /// Creates a generator on the CPU with this seed.
    pub fn cpu(seed: u64) -> Result<Self> {
        let mut out = null_mut();
        // SAFETY: `out` lives through the call.
        unsafe { ffi::check(ffi::ext_generator_new(seed, &mut out))? };
        NonNull::new(out).map(Self).ok_or_else(|| Error::new("libtorch returned no generator"))
    }

    /// Draws standard normal numbers, f32 on the CPU: `torch.randn(shape, generator=…)`.
    pub fn normal(&mut self, shape: &[i64]) -> Result<Tensor> {
        // SAFETY: the generator is ours, the shape lives through the call.
        ffi::tensor(|out| unsafe { ffi::ext_generator_normal(self.0.as_ptr(), shape.as_ptr(), shape.len(), out) })
    }

    /// Draws uniform numbers in [0, 1), f32 on the CPU: `torch.rand(shape, generator=…)`.
    pub fn uniform(&mut self, shape: &[i64]) -> Result<Tensor> {
        // SAFETY: the generator is ours, the shape lives through the call.
        ffi::tensor(|out| unsafe { ffi::ext_generator_uniform(self.0.as_ptr(), shape.as_ptr(), shape.len(), out) })
    }

    /// Draws a permutation of 0…n−1, int64 on the CPU: `torch.randperm(n, generator=…)`.
    pub fn permutation(&mut self, n: i64) -> Result<Tensor> {
        // SAFETY: the generator is ours.
        ffi::tensor(|out| unsafe { ffi::ext_generator_permutation(self.0.as_ptr(), n, out) })
    }

    /// Draws integers in low…high−1, int64 on the CPU: `torch.randint(low, high, shape, generator=…)`.
    pub fn integers(&mut self, low: i64, high: i64, shape: &[i64]) -> Result<Tensor> {
        // SAFETY: the generator is ours, the shape lives through the call.
        ffi::tensor(|out| unsafe {
            ffi::ext_generator_integers(self.0.as_ptr(), low, high, shape.as_ptr(), shape.len(), out)
        })
    }

    /// Returns the whole state, u8 on the CPU (5056 bytes), as `torch.Generator.get_state` does.
    pub fn state(&self) -> Result<Tensor> {
        // SAFETY: the generator is ours.
        ffi::tensor(|out| unsafe { ffi::ext_generator_state(self.0.as_ptr(), out) })
    }

    /// Restores a state that [`Generator::state`] returned; any other tensor is an error.
    pub fn set_state(&mut self, state: &Tensor) -> Result<()> {
        // SAFETY: the generator is ours, the tensor lives through the call.
        unsafe { ffi::check(ffi::ext_generator_set_state(self.0.as_ptr(), state.as_ptr())) }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // SAFETY: the pointer came from ext_generator_new and is freed once.
        unsafe { ffi::ext_generator_free(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};
    use test_support::Reference;

    use super::*;

    #[test]
    fn numbers_are_pytorchs_bit_for_bit() {
        let reference = Reference::read("torch_ext.safetensors");
        let mut generator = Generator::cpu(1234).unwrap();
        let draws = [
            ("normal", generator.normal(&[4, 16]).unwrap()),
            ("normal_small", generator.normal(&[3, 5]).unwrap()),
            ("uniform", generator.uniform(&[3, 7]).unwrap()),
            ("permutation", generator.permutation(50).unwrap()),
            ("integers", generator.integers(-3, 1000, &[2, 9]).unwrap()),
            ("state", generator.state().unwrap()),
        ];
        for (name, draw) in draws {
            let wanted = reference.tensor(&format!("generator.{name}"));
            assert_eq!(draw.kind(), wanted.kind(), "{name}");
            assert!(draw == wanted.to_device(Device::Cpu), "{name}: {draw:?} is not PyTorch's {wanted:?}");
        }
    }

    #[test]
    fn a_state_set_again_repeats_the_numbers() {
        let mut generator = Generator::cpu(3).unwrap();
        drop(generator.normal(&[5]).unwrap());
        let state = generator.state().unwrap();
        let first = generator.normal(&[33]).unwrap();
        let mut other = Generator::cpu(99).unwrap();
        other.set_state(&state).unwrap();
        assert!(first == other.normal(&[33]).unwrap());
        assert!(first != other.normal(&[33]).unwrap());
    }

    #[test]
    fn a_generator_moves_between_threads() {
        let mut generator = Generator::cpu(11).unwrap();
        let here = Generator::cpu(11).unwrap().uniform(&[4]).unwrap();
        let there = std::thread::spawn(move || generator.uniform(&[4]).unwrap()).join().unwrap();
        assert!(here == there);
    }

    #[test]
    fn bad_requests_are_errors_of_one_line() {
        let mut generator = Generator::cpu(0).unwrap();
        let errors = [
            generator.normal(&[-1]).unwrap_err(),
            generator.integers(5, 5, &[2]).unwrap_err(),
            generator.permutation(-1).unwrap_err(),
            generator.set_state(&Tensor::zeros([16], (Kind::Uint8, Device::Cpu))).unwrap_err(),
            generator.set_state(&Tensor::zeros([5056], (Kind::Float, Device::Cpu))).unwrap_err(),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(text.starts_with("libtorch: ") && !text.contains('\n'), "{text}");
        }
        assert!(generator.normal(&[2]).is_ok(), "an error leaves the generator usable");
    }
}
