//! Resource limits of plugins.

use std::time::Duration;

use crate::config::PluginLimits;
use crate::text::has_control;

/// Maximum time until an ONNX model is ready to run, and of each thread's computing while a component is compiled.
pub(super) const LOAD_LIMIT: Duration = Duration::from_secs(120);
/// Maximum time until a component is compiled, on a machine that is busy with other work.
pub(super) const COMPILE_DEADLINE: Duration = Duration::from_secs(600);
/// Maximum memory in MiB of the process that compiles a component.
pub(super) const COMPILE_MIB: usize = 2048;
/// Maximum memory in MiB of the process that runs an ONNX model, besides four times the size of its file.
pub(super) const ONNX_MEMORY_MIB: usize = 4096;
/// Maximum number of days since the last use of a compiled plugin in the cache.
pub(super) const CACHE_DAYS: u32 = 90;
/// Maximum size in MiB of the cache of compiled plugins.
pub(super) const CACHE_MIB: u64 = 1024;
/// Maximum number of characters of a plugin's message that are shown.
pub(super) const MESSAGE_LENGTH: usize = 2000;
/// Maximum number of parts of a component's nested components, each counted as often as it is instantiated.
pub(super) const MAX_PARTS: u64 = 20_000;
/// Maximum number of components within each other.
pub(super) const MAX_DEPTH: u64 = 100;
/// Maximum number of functions of a component.
pub(super) const MAX_FUNCTIONS: u64 = 100_000;
/// Maximum number of imports, exports, globals, tables and entries of tables of a component's modules.
pub(super) const MAX_ITEMS: u64 = 1_000_000;
/// Maximum number of instances, of memories and of tables of a component that runs.
pub(super) const MAX_INSTANCES: u32 = 100;
/// Maximum size of a component's types in KiB.
pub(super) const MAX_TYPE_KIB: u64 = 1024;
/// Maximum size of a component's code in MiB.
pub(super) const MAX_CODE_MIB: u64 = 32;
/// Maximum size of one function's code in KiB.
pub(super) const MAX_BODY_KIB: u64 = 1024;
/// Maximum number of local variables of one function, its parameters and results included.
pub(super) const MAX_LOCALS: u64 = 10_000;
/// Maximum number of values that one function keeps across its branches; each takes a compiler up to 10 µs and 1 kB.
pub(super) const MAX_FUNCTION_WORK: u64 = 1_000_000;
/// Maximum number of values that all functions keep across their branches.
pub(super) const MAX_WORK: u64 = 10_000_000;
/// Maximum number of characters of a name: of a plugin, its version, a style, a medium, an encoder, a function in a message.
pub const NAME_LENGTH: usize = 200;
/// Maximum number of options of a plugin.
pub(super) const MAX_OPTIONS: usize = 100;
/// Maximum number of lines that a plugin writes to the log in one call.
pub(super) const LOG_LINES: usize = 200;
/// Maximum size in KiB of what a plugin writes to the log in one call.
pub(super) const LOG_KIB: usize = 64;
/// The part of the time that the host spends on texts and resampling for a plugin which counts as the plugin's own: one in
/// this many milliseconds.
pub(super) const HOST_DISCOUNT: u32 = 10;
/// Maximum difference of a row's sum from 1; the row is then renormalized.
pub(super) const SUM_TOLERANCE: f64 = 1e-3;

/// Whether a plugin, a style, a medium or an encoder may have this name.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().count() <= NAME_LENGTH && !has_control(name)
}

/// Returns MiB in bytes; the largest number for what is larger.
pub(super) fn mib(n: usize) -> usize {
    n.saturating_mul(1 << 20)
}

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
    /// Maximum size in MiB of all texts that the host embeds in one call.
    pub text_mib: usize,
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
            text_mib: 8,
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
                "wall clock of a plugin's own code, or of an ONNX model, for one batch; of the time for texts that it has \
                 embedded, token features and images that it has resampled a tenth counts, the batch's own embeddings do \
                 not",
            ),
            row(
                Some("plugin.memory_mib"),
                format!("{} MiB", self.memory_mib),
                "linear memory of one instance, all its memories together (WebAssembly)",
            ),
            row(None, format!("{} KiB", self.stack_kib), "call stack (WebAssembly)"),
            row(None, format!("{} MiB", self.file_mib), "a component's file, the assets baked into it included"),
            row(
                None,
                MAX_PARTS.to_string(),
                "parts of a component's nested components, each counted as often as it is instantiated",
            ),
            row(None, MAX_DEPTH.to_string(), "components within each other"),
            row(None, MAX_FUNCTIONS.to_string(), "functions of a component"),
            row(
                None,
                MAX_ITEMS.to_string(),
                "imports, exports, globals, tables and their entries of a component's modules",
            ),
            row(None, format!("{MAX_TYPE_KIB} KiB"), "a component's types"),
            row(None, format!("{MAX_CODE_MIB} MiB"), "a component's code"),
            row(None, format!("{MAX_BODY_KIB} KiB"), "the code of one function"),
            row(None, MAX_LOCALS.to_string(), "local variables of one function"),
            row(
                None,
                MAX_FUNCTION_WORK.to_string(),
                "values that one function keeps across its branches: the local variables of each block that it assigns, of each loop that it uses",
            ),
            row(None, MAX_WORK.to_string(), "values that all functions of a component keep across their branches"),
            row(
                None,
                format!("{} MiB", self.output_mib),
                "data that a plugin passes to the host in one call: distributions, scores, gradients, description, a message",
            ),
            row(
                None,
                format!("{} megapixels", self.resample_megapixels),
                "images that the host resamples, for each sample of a batch",
            ),
            row(None, self.texts.to_string(), "texts that the host embeds for a plugin in one call"),
            row(None, format!("{} MiB", self.text_mib), "the size of these texts"),
            row(None, format!("{} MiB", self.onnx_mib), "an ONNX model's file"),
            row(
                None,
                format!("{} s, {COMPILE_MIB} MiB", LOAD_LIMIT.as_secs()),
                "the process that compiles a component which is not in the cache: what each of its threads computes, five \
                 times as long on the clock; Ctrl-C ends it",
            ),
            row(
                None,
                format!("{} s, {ONNX_MEMORY_MIB} MiB and four times its file", LOAD_LIMIT.as_secs()),
                "the process in which an ONNX model is loaded and run on the CPU; Ctrl-C ends the loading",
            ),
            row(
                None,
                format!("{CACHE_DAYS} days, {CACHE_MIB} MiB"),
                "compiled components in the cache (`~/.cache/ambiguity/plugins`): the time since the last use of each, the size of all, of which those go first that were used least recently",
            ),
            row(None, self.styles.to_string(), "styles of a plugin"),
            row(None, MAX_OPTIONS.to_string(), "options of a plugin"),
            row(None, format!("{MESSAGE_LENGTH} characters"), "a plugin's message; longer ones are cut"),
            row(
                None,
                format!("{NAME_LENGTH} characters"),
                "the name of a plugin, a style, a medium, an encoder or an option; an option's help and default, a property",
            ),
            row(
                None,
                format!("{LOG_LINES} lines, {LOG_KIB} KiB"),
                "what a plugin writes to the log in one call; the log says how much more there was",
            ),
            row(
                None,
                format!("{SUM_TOLERANCE}"),
                "how far the sum of a row's probabilities may be from 1; the row is then renormalized",
            ),
        ]
    }

    /// Returns the fuel for a call on `n_samples` samples.
    pub(crate) fn fuel_for(&self, n_samples: usize) -> u64 {
        self.fuel.saturating_mul(n_samples.max(1) as u64)
    }
}
