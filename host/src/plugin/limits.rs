//! How much a plugin may use.

use std::time::Duration;

use crate::config::PluginLimits;

/// The time in which an ONNX model must be ready to run.
pub(super) const LOAD_LIMIT: Duration = Duration::from_secs(120);
/// Number of characters of a plugin's message that are shown.
pub(super) const MESSAGE_LENGTH: usize = 2000;
/// How far a row's sum may be from 1; it is then renormalized.
pub(super) const SUM_TOLERANCE: f64 = 1e-3;

/// The bounds of a plugin's sandbox: those that a user may set ([`PluginLimits`]) and those that are part of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// See [`PluginLimits::timeout_ms`].
    pub timeout_ms: u64,
    /// See [`PluginLimits::fuel`].
    pub fuel: u64,
    /// See [`PluginLimits::memory_mib`].
    pub memory_mib: usize,
    /// KiB of call stack.
    pub stack_kib: usize,
    /// MiB of the plugin's file, baked assets included.
    pub file_mib: usize,
    /// MiB that a plugin may hand over in one call: its output, its description, a message.
    pub output_mib: usize,
    /// Megapixels that the host resamples for each sample of a batch.
    pub resample_megapixels: u64,
    /// Texts that the host embeds in one call.
    pub texts: usize,
    /// MiB of an ONNX plugin's file.
    pub onnx_mib: usize,
    /// Styles that a plugin may have.
    pub styles: usize,
}

impl Default for Limits {
    /// The limits of commands that run a plugin without a run.
    fn default() -> Self {
        PluginLimits::preset().into()
    }
}

impl From<PluginLimits> for Limits {
    fn from(PluginLimits { timeout_ms, fuel, memory_mib }: PluginLimits) -> Self {
        Self {
            timeout_ms,
            fuel,
            memory_mib,
            stack_kib: 1024,
            file_mib: 64,
            output_mib: 64,
            resample_megapixels: 128,
            texts: 65_536,
            onnx_mib: 1024,
            styles: 10_000,
        }
    }
}

impl Limits {
    /// Every limit, for the table in the documents: its key in a run's configuration or none, its value with its unit, and
    /// what it bounds.
    pub fn table(&self) -> Vec<(Option<&'static str>, String, &'static str)> {
        let row = |key, value: String, bounds| (key, value, bounds);
        vec![
            row(
                Some("plugin.fuel"),
                self.fuel.to_string(),
                "fuel for each sample of a batch, about one a WebAssembly instruction; the same on every machine",
            ),
            row(
                Some("plugin.timeout_ms"),
                format!("{} ms", self.timeout_ms),
                "wall clock of a plugin's own code, or of an ONNX model, for one batch; encoders and resampling do not count",
            ),
            row(
                Some("plugin.memory_mib"),
                format!("{} MiB", self.memory_mib),
                "linear memory of one instance (WebAssembly)",
            ),
            row(None, format!("{} KiB", self.stack_kib), "call stack (WebAssembly)"),
            row(None, format!("{} MiB", self.file_mib), "a component's file, the assets baked into it included"),
            row(
                None,
                format!("{} MiB", self.output_mib),
                "what a plugin hands over in one call: distributions, description, a message",
            ),
            row(
                None,
                format!("{} megapixels", self.resample_megapixels),
                "images that the host resamples, for each sample of a batch",
            ),
            row(None, self.texts.to_string(), "texts that the host embeds for a plugin in one call"),
            row(None, format!("{} MiB", self.onnx_mib), "an ONNX model's file"),
            row(None, format!("{} s", LOAD_LIMIT.as_secs()), "the time until an ONNX model is ready to run"),
            row(None, self.styles.to_string(), "styles of a plugin"),
            row(None, format!("{MESSAGE_LENGTH} characters"), "a plugin's message, longer ones are cut"),
            row(None, format!("{SUM_TOLERANCE}"), "how far a row's sum may be from 1; it is then renormalized"),
        ]
    }

    /// The fuel for a call about so many samples.
    pub(crate) fn fuel_for(&self, n_samples: usize) -> u64 {
        self.fuel.saturating_mul(n_samples.max(1) as u64)
    }
}
