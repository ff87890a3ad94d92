//! Networks on libtorch: functions of tensors, which know nothing of files but the names in a checkpoint.

mod config;
pub mod error;
pub mod layers;
pub mod params;
pub mod safetensors;
pub mod scheduler;
pub mod unet;
pub mod vae;
pub mod weights;

#[cfg(test)]
mod tests;

pub use error::{Error, Result};
