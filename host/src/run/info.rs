//! `run.toml`: device, time and command of a run, which neither the configuration nor the metrics contain.

use serde::{Deserialize, Serialize};

/// The file's name in the run's folder.
pub(super) const FILE: &str = "run.toml";

/// How, where and when a run was started; the report shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunInfo {
    /// The command that trains and resumes the run, such as `host train`.
    pub command: String,
    /// The version of the program.
    pub version: String,
    /// Start time in seconds since 1970, see [`unix_seconds`](super::unix_seconds).
    pub started: u64,
    /// Name of the preset, if one was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Description of the model: its folder or registry name, possibly its size.
    pub model: String,
    /// Device, `cpu` or `cuda:0`.
    pub device: String,
    /// Name of the device's processor; empty where the system does not report it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hardware: String,
    /// Bytes of the device's memory; 0 where the system does not report them.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory: u64,
    /// Number of compute threads.
    pub threads: usize,
    /// Number of processes that train together; their threads come on top. 0 in a run of before there were any.
    #[serde(skip_serializing_if = "is_single")]
    pub processes: usize,
}

fn is_single(processes: &usize) -> bool {
    *processes < 2
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl RunInfo {
    pub(super) fn to_toml(&self) -> String {
        toml::to_string(self).expect("strings and numbers in a flat table always serialize")
    }
}
