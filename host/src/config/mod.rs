//! The configuration of a run: raw layers (preset < file < flags and `--set`) are merged to one checked configuration.
//!
//! The preset files under `host/presets` hold every default; there is no `Default` in code. The resolved configuration
//! is written to the run's folder, and reading it back returns the same one.
//!
//! # Layout
//!
//! - [`fine_tune`]: `host train`. [`gan`]: `host can train` and `host classifier train`. [`pretrain`]: `host pretrain`.
//! - [`layers`]: merging presets, files and flags to one table.
//! - this file: the sections that several configurations share, and the trait [`RunConfig`] of all of them.

pub mod fine_tune;
pub mod gan;
pub mod layers;
pub mod pretrain;

use std::path::Path;

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::Device;
use toml::{Table, Value};
use torch_ext::cuda::Numerics;

pub use self::fine_tune::{FineTuneConfig, OnError, RewardNormalization, RewardPlugin, Shuffle, TimestepChoice, Train};
pub use self::gan::GanConfig;
pub use self::layers::Layer;
pub use self::pretrain::PretrainConfig;
use crate::text::key_hint;

/// The table `[run]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Seed of the run; each random generator's seed is a hash of it, the epoch, the sample and the purpose.
    pub seed: u64,
    /// Device: `cpu`, `cuda` or `cuda:N`.
    pub device: String,
}

/// The table `[cuda]`: how NVIDIA's libraries compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cuda {
    /// Whether products and convolutions of f32 round their inputs to TF32.
    pub tf32: bool,
    /// Whether cuDNN tries its algorithms for each new shape and keeps the fastest.
    pub cudnn_benchmark: bool,
    /// Whether every operation must compute the same bits on each run.
    pub deterministic: bool,
}

impl Cuda {
    /// Applies the table to the process if `device` is a GPU.
    pub fn apply(self, device: Device) -> Result<()> {
        let Self { tf32, cudnn_benchmark, deterministic } = self;
        if device.is_cuda() {
            Numerics { tf32, cudnn_benchmark, deterministic }.set()?;
        }
        Ok(())
    }
}

/// The table `[checkpoint]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Number of epochs between two checkpoints.
    pub every: u64,
    /// Number of checkpoints to keep, the newest; 0: all.
    pub keep: usize,
}

/// The table `[monitor]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Monitor {
    /// Number of epochs between two evaluations.
    pub every: u64,
    /// Number of fixed samples.
    pub count: usize,
    /// Minimum diversity as a share of that of the untrained model; below it the model has collapsed.
    pub min_diversity: f64,
    /// The reaction to a collapse.
    pub on_collapse: OnCollapse,
}

/// The reaction to a collapse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCollapse {
    /// Write a warning to the log and the metrics.
    Warn,
    /// Stop the run after a checkpoint.
    Stop,
}

/// The limits of one plugin that a user may set; [`crate::plugin::limits`] contains those that are part of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginLimits {
    /// Maximum wall-clock time of a plugin's own code for one batch, in milliseconds. A tenth of the time for texts that it
    /// has embedded and images that it has resampled counts too, the batch's own embeddings do not. A safeguard, since the
    /// time depends on the machine.
    pub timeout_ms: u64,
    /// Maximum fuel (about one unit per WebAssembly instruction) for each sample of a batch. The same on every machine.
    pub fuel: u64,
    /// Maximum total memory in MiB.
    pub memory_mib: usize,
}

impl PluginLimits {
    /// The default limits of a run, for commands that use a plugin without a run.
    pub fn preset() -> Self {
        fine_tune::preset().plugin.limits
    }

    fn check(&self) -> Result<()> {
        // A day; what the largest batch can multiply; more than any plugin can address.
        counted("plugin.timeout_ms", self.timeout_ms, 86_400_000)?;
        counted("plugin.fuel", self.fuel, 1 << 40)?;
        counted("plugin.memory_mib", self.memory_mib, 1 << 16)
    }
}

/// The configuration of a run: resolved from layers, written to the run's folder with every value, and read from there
/// when the run is resumed.
pub trait RunConfig: Serialize + DeserializeOwned {
    /// What the configuration belongs to, for messages.
    const OF: &'static str;
    /// A preset with every key.
    const COMPLETE: &'static str;
    /// Keys, or whole sections, that a resumed run may change: they affect what is stored or the speed, but not what is
    /// learned.
    const FREE_KEYS: &'static [&'static str];

    /// Returns an error for invalid values; each message names the key.
    fn check(&self) -> Result<()>;

    /// Parses a table with every key; errors name the layer of `layers` that a value is from.
    fn of_table(table: Table, layers: &[Layer]) -> Result<Self> {
        let config: Self = table.try_into().map_err(|error: toml::de::Error| of_value(&error.to_string(), layers))?;
        config.check()?;
        Ok(config)
    }

    /// Parses the configuration of a run. A key that the run's version of the program did not have gets the value of
    /// [`Self::COMPLETE`].
    ///
    /// # Errors
    /// If the text is no TOML, or has a key or a value that does not fit.
    fn of_run(text: &str) -> Result<Self, toml::de::Error> {
        let mut table: Table = Self::COMPLETE.parse()?;
        layers::merge(&mut table, text.parse()?);
        table.try_into()
    }

    /// Reads the resolved configuration of a run's folder.
    fn read(path: &Path) -> Result<Self> {
        let text = fs_err::read_to_string(path)?;
        let config: Self =
            Self::of_run(&text).with_context(|| format!("{} is not {}'s config", path.display(), Self::OF))?;
        config.check()?;
        Ok(config)
    }

    /// Returns the configuration as TOML with every value.
    fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }

    /// Returns an error if a run of this configuration cannot be resumed with configuration `now`, since they differ in
    /// a key that affects what is learned: one that is not `free`.
    fn check_resumable(&self, now: &Self, free: &[&str]) -> Result<()> {
        let (before, now) = (Table::try_from(self)?, Table::try_from(now)?);
        check_same(&before, &now, "", free)
    }
}

/// Returns an error for a key that the tables do not both have with the same value, unless it, or a table around it, is
/// free; `prefix` is the path of the tables.
fn check_same(before: &Table, now: &Table, prefix: &str, free: &[&str]) -> Result<()> {
    for key in now.keys().chain(before.keys()) {
        let path = format!("{prefix}{key}");
        if free.contains(&path.as_str()) {
            continue;
        }
        match (before.get(key), now.get(key)) {
            (Some(Value::Table(before)), Some(Value::Table(now))) => {
                check_same(before, now, &format!("{path}."), free)?;
            }
            (old, new) => {
                let shown = |value: Option<&Value>| value.map_or_else(|| "not set".to_owned(), ToString::to_string);
                ensure!(
                    old == new,
                    "{path} is {}, but the run was started with {}: start a new run, or leave the key as it was",
                    shown(new),
                    shown(old)
                );
            }
        }
    }
    Ok(())
}

/// Extends serde's message about a value of the wrong type with the layer that it is from.
fn of_value(error: &str, layers: &[Layer]) -> Error {
    let (what, key) = error.trim().rsplit_once("\nin `").unwrap_or((error.trim(), ""));
    let (what, key) = (what.replace('\n', " "), key.trim_end_matches('`'));
    // Users of TOML need not know Rust's number types.
    let kinds = [
        ("u32", "a whole number from 0 to 4294967295"),
        ("u64", "a whole number from 0 on"),
        ("usize", "a whole number from 0 on"),
        ("i64", "a whole number"),
        ("f64", "a number"),
        ("f32", "a number"),
    ];
    let what = kinds.iter().fold(what, |what, (kind, words)| {
        what.strip_suffix(&format!("expected {kind}")).map_or(what.clone(), |rest| format!("{rest}expected {words}"))
    });
    let what = unknown_field(&what).unwrap_or(what);
    let sets = |layer: &&Layer| has_key(&Value::Table(layer.text.parse().unwrap_or_default()), key);
    let origin = layers.iter().rev().find(sets).map(|layer| layer.origin.as_str());
    match origin {
        // `--set KEY=VALUE` itself contains the key.
        Some(origin) if origin.contains(key) => anyhow!("{origin}: {what}"),
        Some(origin) => anyhow!("{origin}: {key}: {what}"),
        None if key.is_empty() => anyhow!("{what}"),
        None => anyhow!("{key}: {what}"),
    }
}

/// Returns serde's message about a key that a list's element may not have, with the key that is meant.
fn unknown_field(message: &str) -> Option<String> {
    let (name, known) = message.strip_prefix("unknown field `")?.split_once("`, expected one of ")?;
    let known: Vec<&str> = known.split(", ").map(|key| key.trim_matches('`')).collect();
    Some(format!("unknown key `{name}`; {}", key_hint(name, &known)))
}

/// Whether a value has a key, `a.b.c`; for an array, whether one of its elements has it.
fn has_key(value: &Value, key: &str) -> bool {
    match (value, key.split_once('.').unwrap_or((key, ""))) {
        (_, ("", _)) => true,
        (Value::Array(elements), _) => elements.iter().any(|element| has_key(element, key)),
        (value, (first, rest)) => value.get(first).is_some_and(|value| has_key(value, rest)),
    }
}

fn positive<N: Copy + std::fmt::Display + TryInto<u64>>(key: &str, value: N) -> Result<()> {
    ensure!(value.try_into().unwrap_or(0) > 0, "{key} is {value}: it must be at least 1");
    Ok(())
}

/// Checks a number of things that memory or time is taken for.
fn counted<N: Copy + std::fmt::Display + TryInto<u64>>(key: &str, value: N, most: u64) -> Result<()> {
    let is_possible = value.try_into().is_ok_and(|value| (1..=most).contains(&value));
    ensure!(is_possible, "{key} is {value}: it must be from 1 to {most}");
    Ok(())
}

fn within(key: &str, value: f64, low: f64, high: f64) -> Result<()> {
    ensure!(
        value.is_finite() && value >= low && value <= high,
        "{key} is {value}: it must lie between {low} and {high}"
    );
    Ok(())
}

/// The largest number of images or texts in a batch, of batches in an epoch, and of rows in a call.
const MAX_BATCH: u64 = 1 << 16;
/// The largest number of sampling steps and of passes over an epoch.
const MAX_STEPS: u64 = 1000;
/// The largest side of an image in pixels.
const MAX_PIXELS: u64 = 4096;
/// The largest width of a layer.
const WIDEST: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// The paths of all numbers of a table, and of its arrays of numbers with their lengths.
    fn numbers(table: &Table, prefix: &str, found: &mut Vec<(String, Option<usize>)>) {
        let is_number = |value: &Value| value.is_integer() || value.is_float();
        for (key, value) in table {
            let path = format!("{prefix}{key}");
            match value {
                Value::Table(table) => numbers(table, &format!("{path}."), found),
                Value::Array(values) if values.iter().all(is_number) && !values.is_empty() => {
                    found.push((path, Some(values.len())));
                }
                value if is_number(value) => found.push((path, None)),
                _ => {}
            }
        }
    }

    /// Checks that every number of a configuration is refused by a message that names its key if it is odd, or is
    /// `accepted` where it makes sense; returns the number of keys.
    pub(super) fn refuses_odd_numbers<C: RunConfig>(
        resolve: impl Fn(&[Layer]) -> Result<C>,
        accepted: impl Fn(&str, &str) -> bool,
    ) -> usize {
        let toml = resolve(&[]).and_then(|config| config.to_toml()).expect("the preset");
        let mut keys = Vec::new();
        numbers(&toml.parse().expect("TOML"), "", &mut keys);
        for (key, length) in &keys {
            for odd in ["nan", "inf", "-inf", "-1", "0", "1e30", "9223372036854775807", "99999999999999999999"] {
                let value = length.map_or_else(|| odd.to_owned(), |n| format!("[{}]", vec![odd; n].join(", ")));
                let layer = Layer::set(&format!("{key}={value}")).expect("a setting");
                match resolve(&[layer]) {
                    Ok(_) => assert!(accepted(key, odd), "{key} = {value} is accepted"),
                    Err(error) => assert!(format!("{error:#}").contains(key), "{key} = {value}: {error:#}"),
                }
            }
        }
        keys.len()
    }
}
