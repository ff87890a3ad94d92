//! The host's functions for a plugin besides the batch: baked assets, its configuration, the log; and what the host says
//! of encoders.

use std::fmt::Display;

use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::plugin::Medium;

/// The raw calls: into the host from WebAssembly, into the fake host natively.
#[cfg(target_arch = "wasm32")]
pub(crate) use crate::glue::backend;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use crate::testing::backend;

/// Information about an encoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EncoderInfo {
    /// The media that it embeds, in one space.
    pub media: Vec<Medium>,
    /// Length of an embedding.
    pub dim: usize,
    /// The scale of cosine similarities that it was trained with, already exponentiated (CLIP: about 100), if any.
    pub logit_scale: Option<f32>,
    /// Side of its square input image in pixels, if it embeds images.
    pub image_size: Option<usize>,
    /// Its token features; empty if it has none.
    pub token_features: Vec<TokenFeatures>,
    /// sha256 over its weights, in hex.
    pub digest: String,
    /// Other properties by key.
    pub properties: Vec<(String, String)>,
}

/// The token features of an encoder, for one medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenFeatures {
    /// The medium.
    pub medium: Medium,
    /// Number of tokens of a sample.
    pub tokens: usize,
    /// Number of features of a token.
    pub width: usize,
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

/// The host, without a batch: what is baked into the plugin's file, what the run configures, and the log.
#[derive(Clone, Copy)]
pub struct Host<'a>(backend::Host<'a>);

impl<'a> Host<'a> {
    pub(crate) const fn new(host: backend::Host<'a>) -> Self {
        Self(host)
    }

    /// Returns the names of all baked assets, sorted.
    pub fn asset_names(&self) -> Vec<String> {
        self.0.asset_names()
    }

    /// Returns the bytes of a baked asset.
    pub fn asset(&self, name: &str) -> Result<Vec<u8>> {
        self.0.asset_bytes(name).map_err(Error::new)
    }

    /// Returns the matrix in a baked asset that is a safetensors file with one f32 tensor.
    pub fn asset_tensor(&self, name: &str) -> Result<Matrix> {
        self.0.asset_tensor(name).map_err(Error::new)
    }

    /// Returns the text of an option that the run sets; [`PluginOption`](crate::PluginOption) reads it by its type.
    pub fn config(&self, key: &str) -> Option<String> {
        self.0.config(key)
    }

    /// Writes a message to the host's log.
    pub fn log(&self, level: Level, message: impl Display) {
        self.0.log(level, &message.to_string());
    }
}
