//! Functions of libtorch that `tch` lacks, through a small C++ shim: independent generators with PyTorch's numbers, a
//! fused AdamW whose state can be saved, gradient clipping that returns the norm, autocast with any type on any device,
//! channels-last memory, tensors that Rust code fills, fused GroupNorm and SiLU, LeakyReLU with any slope, counts and
//! times of operators, processes that work together, and CUDA loaded at run time so that one binary supports CPU and GPU. C++
//! exceptions become [`Error`].
//!
//! ```
//! use tch::{Kind, Tensor, Device};
//! use torch_ext::{AdamW, AdamWConfig, Generator, clip_grad_norm};
//!
//! let mut generator = Generator::cpu(7)?;
//! let weight = generator.normal(&[4, 3])?.set_requires_grad(true);
//! let config = AdamWConfig { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, weight_decay: 1e-2, epsilon: 1e-8 };
//! let mut optimizer = AdamW::new(vec![("weight".to_owned(), weight.shallow_clone())], config)?;
//! weight.square().sum(Kind::Float).backward();
//! let norm = clip_grad_norm([&weight], 1.0)?;
//! assert!(norm.double_value(&[]) > 1.0);
//! optimizer.step()?;
//! optimizer.zero_grad();
//! assert_eq!(optimizer.state().len(), 3);
//! # Ok::<(), torch_ext::Error>(())
//! ```
//!
//! # Layout
//! [`Generator`] (generator.rs), [`AdamW`] and [`lerp`] (optim.rs), [`clip_grad_norm`], [`GradientSum`] (grad.rs), [`autocast()`] (autocast.rs),
//! [`channels_last`] (memory_format.rs), [`filled`] (fill.rs), [`group_norm_silu`] and [`leaky_relu`] (fused.rs,
//! fused.cpp, group_norm_silu.c), [`profiled`] (profile.rs, profile.cpp), [`cuda`] (cuda.rs);
//! ffi.rs declares what shim.cpp defines.

mod autocast;
pub mod cuda;
pub mod distributed;
mod error;
mod ffi;
mod fill;
mod fused;
mod generator;
mod grad;
mod memory_format;
mod optim;
mod profile;

use std::path::PathBuf;

pub use autocast::autocast;
pub use error::{Error, Result};
pub use fill::filled;
pub use fused::{group_norm_silu, leaky_relu};
pub use generator::Generator;
pub use grad::{GradientSum, clip_grad_norm, grad_enabled};
pub use memory_format::channels_last;
pub use optim::{AdamW, AdamWConfig, lerp};
pub use profile::{Operator, profiled};

/// Returns the version of the libtorch that this process runs, such as `2.11.0`.
pub fn torch_version() -> String {
    // SAFETY: the out pointer is `string`'s own.
    let config = ffi::string(|out| unsafe { ffi::ext_config(out) }).ok().flatten().unwrap_or_default();
    let version = config.split_once("TORCH_VERSION=").map_or("unknown", |(_, rest)| rest);
    version.split([',', '\n', ' ']).next().unwrap_or(version).to_owned()
}

/// Lets the process reuse freed memory for its next tensors instead of returning it to the system at once, which slows
/// training on the CPU by some percent. To be called once, early, by the program; does nothing if the C library is not
/// glibc.
pub fn keep_memory() {
    // SAFETY: it sets parameters of malloc, which is allowed at any time.
    unsafe { ffi::ext_keep_memory() }
}

/// Returns the file of the libtorch_cpu that this process runs, if the dynamic linker knows it.
pub fn library_path() -> Option<PathBuf> {
    // SAFETY: the out pointer is `string`'s own.
    ffi::string(|out| unsafe { ffi::ext_library_path(out) }).ok().flatten().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaded_libtorch_is_2_11_and_has_a_path() {
        assert!(torch_version().starts_with("2.11."), "{}", torch_version());
        let path = library_path().unwrap();
        assert!(path.is_file() && path.to_string_lossy().contains("libtorch"), "{}", path.display());
    }
}
