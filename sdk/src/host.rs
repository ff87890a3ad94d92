//! What a plugin may ask the host for besides the batch: encoders, baked assets, its configuration, the log.

use std::fmt::Display;

use crate::error::{Error, Result};
use crate::matrix::Matrix;

/// The calls as they are: into the host from WebAssembly, into the fake host natively.
#[cfg(target_arch = "wasm32")]
pub(crate) use crate::glue::backend;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use crate::testing::backend;

/// What there is to know of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderInfo {
    /// Length of an embedding.
    pub dim: usize,
    /// The factor on cosine similarities that it was trained with, already exponentiated (CLIP: about 100).
    pub logit_scale: Option<f32>,
    /// Side of the square that it sees of an image, in pixels.
    pub image_size: usize,
    /// sha256 over its weights, in hex.
    pub digest: String,
}

/// How much a log message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the plugin's author.
    Debug,
    /// Worth knowing.
    Info,
    /// Something is off; the result still holds.
    Warn,
    /// Why the call is about to fail.
    Error,
}

/// About an encoder that the plugin declared. Not inside `describe`.
pub fn encoder_info(encoder: &str) -> Result<EncoderInfo> {
    backend::encoder_info(encoder).map_err(Error::new)
}

/// `texts.len() × dim`: raw embeddings, not normalized. The host remembers them, so asking for the same class names in
/// every batch costs next to nothing.
pub fn embed_texts<S: AsRef<str>>(encoder: &str, texts: &[S]) -> Result<Matrix> {
    let texts: Vec<String> = texts.iter().map(|text| text.as_ref().to_owned()).collect();
    backend::embed_texts(encoder, &texts).map_err(Error::new)
}

/// The names of all baked assets, sorted.
pub fn asset_names() -> Vec<String> {
    backend::asset_names()
}

/// A baked asset as it is.
pub fn asset(name: &str) -> Result<Vec<u8>> {
    backend::asset_bytes(name).map_err(Error::new)
}

/// The matrix in a baked asset that is a safetensors file with one f32 tensor.
pub fn asset_tensor(name: &str) -> Result<Matrix> {
    backend::asset_tensor(name).map_err(Error::new)
}

/// The value that the run's configuration gives a key, if it does.
pub fn config(key: &str) -> Option<String> {
    backend::config(key)
}

/// Writes a message to the host's log.
pub fn log(level: Level, message: impl Display) {
    backend::log(level, &message.to_string());
}
