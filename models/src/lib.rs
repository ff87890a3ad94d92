//! Networks on libtorch: functions of tensors, which know nothing of files but the names in a checkpoint.

pub mod clip;
pub mod error;
mod json;
pub mod layers;
pub mod params;
pub mod resize;
pub mod safetensors;

pub use error::{Error, Result};
