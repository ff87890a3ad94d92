//! A run's configuration: raw layers (preset < file < flags and `--set`) in, one checked configuration out.
//!
//! The preset files under `host/presets` hold every default; there is no `Default` in code. The resolved configuration is
//! written to the run's folder, and reading it back gives the same one.
//!
//! # Layout
//!
//! - [`fine_tune`]: `host train`. [`gan`]: `host can train` and `host classifier train`. [`pretrain`]: `host pretrain`.
//! - [`layers`]: presets, files and flags to one table.
//! - this file: the sections that several of them have, and what they all can.

pub mod fine_tune;
pub mod gan;
pub mod layers;
pub mod pretrain;

use std::path::Path;

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use self::fine_tune::{FineTuneConfig, OnError, RewardNormalization, RewardPlugin, TimestepChoice, Train};
pub use self::gan::GanConfig;
pub use self::layers::Layer;
pub use self::pretrain::PretrainConfig;

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Every generator's seed is a hash of this, the epoch, the sample and the purpose.
    pub seed: u64,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Epochs.
    pub every: u64,
    /// How many of the newest; 0: all.
    pub keep: usize,
}

/// `[monitor]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Monitor {
    /// Epochs.
    pub every: u64,
    /// Fixed samples.
    pub count: usize,
    /// Share of epoch 0's diversity.
    pub min_diversity: f64,
    /// What a collapse does.
    pub on_collapse: OnCollapse,
}

/// What a collapse does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCollapse {
    /// A warning in the log and the metrics.
    Warn,
    /// The run ends after a checkpoint.
    Stop,
}

/// What one plugin may use, the limits that a user may set; [`crate::plugin::limits`] has those that are part of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginLimits {
    /// Milliseconds of wall-clock time that a plugin's own code may take for one batch; the host's encoders and
    /// resampling do not count. A backstop: what it hits depends on the machine.
    pub timeout_ms: u64,
    /// Units of fuel (about one per WebAssembly instruction) for each sample of a batch. The same on every machine.
    pub fuel: u64,
    /// MiB of memory in all.
    pub memory_mib: usize,
}

impl PluginLimits {
    /// The limits that a run has by default, for commands that run a plugin without a run.
    pub fn preset() -> Self {
        fine_tune::preset().plugin.limits
    }

    fn check(&self) -> Result<()> {
        positive("plugin.timeout_ms", self.timeout_ms)?;
        positive("plugin.memory_mib", self.memory_mib)
    }
}

/// A run's configuration: resolved of layers, written into the run's folder with every value, and read from there when the
/// run goes on.
pub trait RunConfig: Serialize + DeserializeOwned {
    /// Whose configuration it is, for messages.
    const OF: &'static str;
    /// Keys, or whole sections, that a resumed run may change: they alter what is kept or how fast it goes, not what is
    /// learned.
    const FREE_KEYS: &'static [&'static str];

    /// Refuses values that no run can use; each message names the key.
    fn check(&self) -> Result<()>;

    /// Of a table with every key; `layers` are what an error is about.
    fn of_table(table: Table, layers: &[Layer]) -> Result<Self> {
        let config: Self = table.try_into().map_err(|error: toml::de::Error| of_value(&error.to_string(), layers))?;
        config.check()?;
        Ok(config)
    }

    /// The resolved configuration of a run's folder.
    fn read(path: &Path) -> Result<Self> {
        let text = fs_err::read_to_string(path)?;
        let config: Self =
            toml::from_str(&text).with_context(|| format!("{} is not {}'s config", path.display(), Self::OF))?;
        config.check()?;
        Ok(config)
    }

    /// As TOML, every value written out.
    fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }

    /// Refuses to resume a run of this configuration with another that differs in a key that decides what is learned, which
    /// are all but `free` ones.
    fn check_resumable(&self, now: &Self, free: &[&str]) -> Result<()> {
        let (before, now) = (Table::try_from(self)?, Table::try_from(now)?);
        check_same(&before, &now, "", free)
    }
}

/// Refuses a key of either table that the other has not, or not with that value, unless it, or a table around it, is free;
/// `prefix` is where they lie.
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
                    "{path} is {}, but the run was begun with {}: start a new run, or leave the key as it was",
                    shown(new),
                    shown(old)
                );
            }
        }
    }
    Ok(())
}

/// What serde says of a value of the wrong kind, with the layer that it is from.
fn of_value(error: &str, layers: &[Layer]) -> Error {
    let (what, key) = error.trim().rsplit_once("\nin `").unwrap_or((error.trim(), ""));
    let (what, key) = (what.replace('\n', " "), key.trim_end_matches('`'));
    // Rust's names of numbers say nothing to whoever writes TOML.
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
    let sets = |layer: &&Layer| has_key(&Value::Table(layer.text.parse().unwrap_or_default()), key);
    let origin = layers.iter().rev().find(sets).map(|layer| layer.origin.as_str());
    match origin {
        // What `--set KEY=VALUE` is about can be seen.
        Some(origin) if origin.contains(key) => anyhow!("{origin}: {what}"),
        Some(origin) => anyhow!("{origin}: {key}: {what}"),
        None if key.is_empty() => anyhow!("{what}"),
        None => anyhow!("{key}: {what}"),
    }
}

/// Whether a value has a key, `a.b.c`; of an array, whether one of its elements has.
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

fn within(key: &str, value: f64, low: f64, high: f64) -> Result<()> {
    ensure!(
        value.is_finite() && value >= low && value <= high,
        "{key} is {value}: it must lie between {low} and {high}"
    );
    Ok(())
}
