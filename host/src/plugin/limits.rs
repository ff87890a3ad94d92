//! How much a plugin may use.

use serde::{Deserialize, Serialize};

/// The bounds of a plugin's sandbox, as the configuration's `[plugin]` table has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Milliseconds of wall-clock time that a plugin's own code may take for one batch; the host's encoders and
    /// resampling do not count. A backstop: what it hits depends on the machine.
    pub timeout_ms: u64,
    /// Units of fuel (about one per WebAssembly instruction) for each sample of a batch. The same on every machine.
    pub fuel: u64,
    /// MiB of memory in all.
    pub memory_mib: usize,
    /// KiB of call stack.
    pub stack_kib: usize,
    /// MiB of the plugin's file, baked assets included.
    pub file_mib: usize,
    /// Styles that a plugin may have.
    pub styles: usize,
}

impl Default for Limits {
    /// The one place where the defaults stand.
    fn default() -> Self {
        Self { timeout_ms: 10_000, fuel: 2_000_000_000, memory_mib: 256, stack_kib: 1024, file_mib: 64, styles: 10_000 }
    }
}

impl Limits {
    /// The fuel for a call about so many samples.
    pub(crate) fn fuel_for(&self, n_samples: usize) -> u64 {
        self.fuel.saturating_mul(n_samples.max(1) as u64)
    }
}
