//! The host's functions for a plugin besides the batch: encoders, baked assets, its configuration, the log.

use std::fmt::Display;

use crate::error::{Error, Result};
use crate::matrix::Matrix;

/// The raw calls: into the host from WebAssembly, into the fake host natively.
#[cfg(target_arch = "wasm32")]
pub(crate) use crate::glue::backend;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use crate::testing::backend;

/// Information about an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderInfo {
    /// Length of an embedding.
    pub dim: usize,
    /// The scale of cosine similarities that it was trained with, already exponentiated (CLIP: about 100).
    pub logit_scale: Option<f32>,
    /// Side of its square input image, in pixels.
    pub image_size: usize,
    /// sha256 over its weights, in hex.
    pub digest: String,
}

/// The severity of a log message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the plugin's author.
    Debug,
    /// Information for the user.
    Info,
    /// Something is unexpected; the result is still valid.
    Warn,
    /// The reason why the call is about to fail.
    Error,
}

/// Returns information about an encoder that the plugin declared. Not available inside `describe`.
pub fn encoder_info(encoder: &str) -> Result<EncoderInfo> {
    backend::encoder_info(encoder).map_err(Error::new)
}

/// Returns the raw embeddings of texts, `texts.len() × dim`, not normalized. The host caches them, so the same class
/// names in every batch cost next to nothing.
pub fn embed_texts<S: AsRef<str>>(encoder: &str, texts: &[S]) -> Result<Matrix> {
    let texts: Vec<String> = texts.iter().map(|text| text.as_ref().to_owned()).collect();
    backend::embed_texts(encoder, &texts).map_err(Error::new)
}

/// Returns the names of all baked assets, sorted.
pub fn asset_names() -> Vec<String> {
    backend::asset_names()
}

/// Returns the bytes of a baked asset.
pub fn asset(name: &str) -> Result<Vec<u8>> {
    backend::asset_bytes(name).map_err(Error::new)
}

/// Returns the matrix in a baked asset that is a safetensors file with one f32 tensor.
pub fn asset_tensor(name: &str) -> Result<Matrix> {
    backend::asset_tensor(name).map_err(Error::new)
}

/// Returns the value of a key in the run's configuration, if it is set.
pub fn config(key: &str) -> Option<String> {
    backend::config(key)
}

/// Writes a message to the host's log.
pub fn log(level: Level, message: impl Display) {
    backend::log(level, &message.to_string());
}
