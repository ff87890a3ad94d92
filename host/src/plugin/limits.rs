//! Resource limits of plugins.

use std::time::Duration;

use crate::config::PluginLimits;

/// Maximum time until an ONNX model is ready to run.
pub(super) const LOAD_LIMIT: Duration = Duration::from_secs(120);
/// Maximum number of characters of a plugin's message that are shown.
pub(super) const MESSAGE_LENGTH: usize = 2000;
/// Maximum difference of a row's sum from 1; the row is then renormalized.
pub(super) const SUM_TOLERANCE: f64 = 1e-3;

/// The limits of a plugin's sandbox: those that a user can set ([`PluginLimits`]) and those that are fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// See [`PluginLimits::timeout_ms`].
    pub timeout_ms: u64,
    /// See [`PluginLimits::fuel`].
    pub fuel: u64,
    /// See [`PluginLimits::memory_mib`].
    pub memory_mib: usize,
    /// Size of the call stack in KiB.
    pub stack_kib: usize,
    /// Maximum size of the plugin's file in MiB, baked assets included.
    pub file_mib: usize,
    /// Maximum data in MiB that a plugin may pass to the host in one call: its output, its description, a message.
    pub output_mib: usize,
    /// Maximum megapixels that the host resamples, per sample of a batch.
    pub resample_megapixels: u64,
    /// Maximum number of texts that the host embeds in one call.
    pub texts: usize,
    /// Maximum size of an ONNX plugin's file in MiB.
    pub onnx_mib: usize,
    /// Maximum number of styles of a plugin.
    pub styles: usize,
}

impl Default for Limits {
    /// Returns the limits for commands that use a plugin outside a training run.
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
    /// Returns every limit for the table in docs/limits.md: its key in a run's configuration, if it has one, its value
    /// with its unit, and what it limits.
    pub fn table(&self) -> Vec<(Option<&'static str>, String, &'static str)> {
        let row = |key, value: String, bounds| (key, value, bounds);
        vec![
            row(
                Some("plugin.fuel"),
                self.fuel.to_string(),
                "fuel for each sample of a batch, about one per WebAssembly instruction; the same on every machine",
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
                "data that a plugin passes to the host in one call: distributions, description, a message",
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
            row(None, format!("{MESSAGE_LENGTH} characters"), "a plugin's message; longer ones are cut"),
            row(None, format!("{SUM_TOLERANCE}"), "how far a row's sum may be from 1; it is then renormalized"),
        ]
    }

    /// Returns the fuel for a call on `n_samples` samples.
    pub(crate) fn fuel_for(&self, n_samples: usize) -> u64 {
        self.fuel.saturating_mul(n_samples.max(1) as u64)
    }
}
