//! Autocast (mixed precision) with any type on any device; tch's own autocast does nothing on the CPU.

use std::ptr::null_mut;

use tch::{Device, Kind};

use crate::error::{Error, Result};
use crate::ffi;

/// Runs `f` while matrix products and convolutions on `device` compute in `kind` (`BFloat16` or `Half`), as PyTorch's
/// `torch.autocast` does. `Float` disables autocast in `f`. The previous setting is restored afterwards, also if `f`
/// panics. The setting is that of the calling thread.
pub fn autocast<T>(device: Device, kind: Kind, f: impl FnOnce() -> T) -> Result<T> {
    // at::ScalarType and c10::DeviceType by number, fixed in libtorch's binary interface.
    let dtype = match kind {
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::BFloat16 => 15,
        _ => return Err(Error::new(format!("autocast takes BFloat16, Half or Float, not {kind:?}"))),
    };
    let device_type = match device {
        Device::Cpu => 0,
        Device::Cuda(_) => 1,
        _ => return Err(Error::new(format!("autocast takes the CPU or a CUDA device, not {device:?}"))),
    };
    let mut state = null_mut();
    // SAFETY: `state` lives through the call; on success it is a saved state that `Restore` passes back once.
    unsafe { ffi::check(ffi::ext_autocast_enter(device_type, dtype, &mut state))? };
    let restore = Restore(state);
    let value = f();
    drop(restore);
    Ok(value)
}

struct Restore(*mut ffi::CAutocastState);

impl Drop for Restore {
    fn drop(&mut self) {
        // SAFETY: the pointer came from ext_autocast_enter on this thread and is passed back once.
        let left = unsafe { ffi::check(ffi::ext_autocast_leave(self.0)) };
        debug_assert!(left.is_ok(), "the device type was accepted on entry");
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;
    use test_support::{Reference, assert_close, device};

    use super::*;

    fn factors() -> (Tensor, Tensor) {
        let reference = Reference::read("torch_ext.safetensors");
        (reference.tensor("autocast.a").shallow_clone(), reference.tensor("autocast.b").shallow_clone())
    }

    #[test]
    fn bf16_products_match_pytorch_and_the_setting_ends_with_the_call() {
        let (a, b) = factors();
        let product = autocast(device(), Kind::BFloat16, || a.matmul(&b)).unwrap();
        assert_eq!(product.kind(), Kind::BFloat16);
        // On the CPU to the last bit, elsewhere to bf16's rounding.
        let reference = Reference::read("torch_ext.safetensors");
        let tolerance = if device() == Device::Cpu { 0.0 } else { 2f64.powi(-8) };
        assert_close("product", &product, reference.tensor("autocast.product"), tolerance);
        assert_eq!(a.matmul(&b).kind(), Kind::Float);
    }

    #[test]
    fn nesting_restores_the_outer_setting() {
        let (a, b) = factors();
        let kinds = autocast(device(), Kind::BFloat16, || {
            let off = autocast(device(), Kind::Float, || a.matmul(&b).kind()).unwrap();
            (off, a.matmul(&b).kind())
        });
        assert_eq!(kinds.unwrap(), (Kind::Float, Kind::BFloat16));
    }

    #[test]
    fn a_panic_restores_the_setting() {
        let (a, b) = factors();
        let panicked = std::panic::catch_unwind(|| autocast(device(), Kind::BFloat16, || panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(a.matmul(&b).kind(), Kind::Float);
    }

    #[test]
    fn other_types_and_devices_are_refused() {
        assert!(autocast(Device::Cpu, Kind::Int64, || ()).unwrap_err().to_string().contains("Int64"));
        assert!(autocast(Device::Mps, Kind::BFloat16, || ()).unwrap_err().to_string().contains("Mps"));
    }
}
