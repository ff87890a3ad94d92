//! The contents of a plugin's file for display, whatever its kind.

use ambiguity_sdk::EncoderPin;
use serde::Serialize;

/// The contents of a plugin's file, as `host plugin inspect` shows them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspection {
    /// Its authors.
    pub authors: Vec<String>,
    /// SPDX license expression; empty if the file has none.
    pub license: String,
    /// The encoder that it was fitted with, if it requires these exact weights.
    pub encoder: Option<EncoderPin>,
    /// The prompts of each style; empty if it has none.
    pub prompts: Vec<Vec<String>>,
    /// The temperature that divides its logits, if that is baked in.
    pub temperature: Option<f32>,
    /// Whether it has a gradient of its output with respect to the embedding.
    pub differentiable: bool,
    /// Whether it has a gradient of its output with respect to the pixels.
    pub pixel_differentiable: bool,
    /// The interface that it was built for, with its version.
    pub interface: String,
    /// The format of a model's input and output; empty for a component, which requests its inputs itself.
    pub takes: String,
    /// Size of the file in bytes.
    pub bytes: usize,
    /// The data in the file besides code.
    pub assets: Vec<Asset>,
    /// The interfaces that it imports; of a model, its operator sets.
    pub imports: Vec<String>,
    /// What it imports, in words.
    pub needs: Vec<String>,
    /// The interfaces that it exports; of a model, its outputs.
    pub exports: Vec<String>,
}

/// What a plugin may use at most, whatever its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// Units of fuel for each sample of a batch, where the sandbox counts them.
    pub fuel: Option<u64>,
    /// Milliseconds for one batch.
    pub milliseconds: u64,
    /// Memory in bytes, where it is limited.
    pub memory: Option<usize>,
}

/// Data inside a plugin's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: usize,
    /// Rows and columns, if it is a matrix.
    pub shape: Option<(usize, usize)>,
}
