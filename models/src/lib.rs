//! Networks on libtorch: functions of tensors, which know nothing about files but the tensor names of a checkpoint.

pub mod aesthetic;
pub mod can;
pub mod clip;
pub mod count;
pub mod csd;
mod diffusers;
pub mod dino;
pub mod error;
pub mod files;
pub mod image_reward;
mod json;
pub mod layers;
pub mod lora;
pub mod onnx;
pub mod params;
pub mod pipeline;
pub mod preference;
pub mod preprocess;
pub mod published;
pub mod safetensors;
pub mod scheduler;
pub mod torch_file;
pub mod unet;
pub mod vae;
pub mod weights;

#[cfg(test)]
mod tests;

pub use error::{Error, Result};
