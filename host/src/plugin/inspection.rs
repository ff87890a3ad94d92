//! What a plugin's file shows when it is looked into, whatever kind of file it is.

use ambiguity_sdk::EncoderPin;

/// A plugin's file, for people and for `host plugin inspect --json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspection {
    /// Who made it.
    pub authors: Vec<String>,
    /// SPDX expression, empty if it is not said.
    pub license: String,
    /// The encoder that it was fitted with, if it is for these weights alone.
    pub encoder: Option<EncoderPin>,
    /// What texts stand for each style, if it has such.
    pub prompts: Vec<Vec<String>>,
    /// What divides its logits, if that is baked in.
    pub temperature: Option<f32>,
    /// Whether it can say how its distributions change with the embedding.
    pub differentiable: bool,
    /// The interface that it was built for, with its version.
    pub interface: String,
    /// What is fed to it, empty if it asks for what it needs as it goes.
    pub takes: String,
    /// Size of the file.
    pub bytes: usize,
    /// What is inside besides code.
    pub assets: Vec<Asset>,
    /// What it needs of the host.
    pub imports: Vec<String>,
    /// What it offers.
    pub exports: Vec<String>,
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
