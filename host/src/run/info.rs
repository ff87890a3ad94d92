//! `run.toml`: on what and when a run was started, which neither the configuration nor the metrics say.

use serde::{Deserialize, Serialize};

/// The file's name in the run's folder.
pub(super) const FILE: &str = "run.toml";

/// On what and when a run was started; the report shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunInfo {
    /// The command that trains, and that goes on: `host train`.
    pub command: String,
    /// The version of the program.
    pub version: String,
    /// Seconds since 1970, see [`unix_seconds`](super::unix_seconds).
    pub started: u64,
    /// The preset by name, where one was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// The model in words: its folder or registry name, perhaps its size.
    pub model: String,
    /// `cpu` or `cuda:0`, perhaps with the card's name.
    pub device: String,
    /// Compute threads.
    pub threads: usize,
}

impl RunInfo {
    pub(super) fn to_toml(&self) -> String {
        toml::to_string(self).expect("strings and numbers in a flat table always serialize")
    }
}
