//! A run's configuration: raw layers (preset < file < flags and `--set`) in, one checked [`Config`] out.
//!
//! The preset files under `host/presets` hold every default; there is no `Default` in code. The resolved
//! configuration is written to the run's folder, and reading it back gives the same [`Config`].

mod layers;

use std::collections::BTreeMap;
use std::path::Path;

use ambiguity_models::lora::{LoraSpec, Targets};
use ambiguity_models::params::MemoryFormat;
use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub(crate) use layers::overlay;
pub use layers::{Layer, preset_names, resolve};

/// Everything that decides what a run does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seed and device.
    pub run: Run,
    /// What is fine-tuned.
    pub model: Model,
    /// Encoder folders by the name that plugins use.
    pub encoders: BTreeMap<String, String>,
    /// The classifiers.
    pub reward: Reward,
    /// How samples are drawn.
    pub sample: Sample,
    /// The update.
    pub train: Train,
    /// The adapter.
    pub lora: LoraConfig,
    /// What is asked for.
    pub prompts: Prompts,
    /// What is kept.
    pub checkpoint: Checkpoint,
    /// What is watched.
    pub monitor: Monitor,
    /// What a plugin may use.
    pub plugin: PluginLimits,
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Every generator's seed is a hash of this, the epoch, the sample and the purpose.
    pub seed: u64,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// A diffusers folder, or the name of a shipped model.
    pub path: String,
    /// Type of the frozen weights.
    pub dtype: Dtype,
    /// Order of the convolutions' weights and feature maps in memory; changes speed and rounding only.
    pub memory_format: MemoryFormat,
}

/// Floating-point types of frozen weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl Dtype {
    /// The libtorch kind.
    pub fn kind(self) -> tch::Kind {
        match self {
            Self::F32 => tch::Kind::Float,
            Self::Bf16 => tch::Kind::BFloat16,
            Self::F16 => tch::Kind::Half,
        }
    }
}

/// `[reward]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reward {
    /// The classifiers, in order.
    pub plugin: Vec<RewardPlugin>,
}

/// `[[reward.plugin]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardPlugin {
    /// A path or a plugin's name.
    pub source: String,
    /// Its reward is multiplied by this.
    #[serde(default = "one")]
    pub weight: f64,
    /// What the plugin reads through its `config` import.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
}

fn one() -> f64 {
    1.0
}

/// `[sample]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// DDIM steps.
    pub steps: usize,
    /// 0 (deterministic) to 1 (as DDPM).
    pub eta: f64,
    /// Classifier-free guidance; 1 or less means none.
    pub guidance: f64,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Samples a batch.
    pub batch_size: usize,
    /// Batches an epoch.
    pub batches_per_epoch: usize,
    /// UNet rows a call.
    pub micro_batch: usize,
}

impl Sample {
    /// Samples an epoch.
    pub fn per_epoch(&self) -> usize {
        self.batch_size * self.batches_per_epoch
    }
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// How many.
    pub epochs: u64,
    /// AdamW, constant.
    pub learning_rate: f64,
    /// AdamW.
    pub beta1: f64,
    /// AdamW.
    pub beta2: f64,
    /// AdamW, decoupled.
    pub weight_decay: f64,
    /// AdamW.
    pub epsilon: f64,
    /// Half the width of the trust interval of the ratio.
    pub clip_range: f64,
    /// Advantages are clamped to ± this.
    pub advantage_clip: f64,
    /// Passes over the samples of an epoch.
    pub inner_epochs: usize,
    /// Gradient norm.
    pub max_grad_norm: f64,
    /// Share of the timesteps trained on.
    pub timestep_fraction: f64,
    /// Which ones.
    pub timestep_choice: TimestepChoice,
    /// Samples an update.
    pub batch_size: usize,
    /// Batches an optimizer step.
    pub accumulation_steps: usize,
    /// Rows (sample × timestep) a UNet call.
    pub micro_batch: usize,
    /// Compute the UNet's stages again in the backward pass: a third more time, a fraction of the memory.
    pub gradient_checkpointing: bool,
    /// Weight of the KL divergence to the reference.
    pub kl: f64,
    /// Decay of the moving average; 0 is none.
    pub ema: f64,
    /// Statistics by prompt instead of by epoch.
    pub per_prompt_statistics: bool,
    /// How several plugins' rewards are put together.
    pub reward_normalization: RewardNormalization,
}

/// Which timesteps an update trains on when it does not train on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepChoice {
    /// A fresh random subset for every sample.
    Random,
    /// The first ones sampled: the noisiest.
    Earliest,
}

/// How the rewards of several plugins are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RewardNormalization {
    /// The weighted sum.
    Sum,
    /// The weighted sum of each plugin's z-scores over the epoch.
    Zscore,
}

/// `[lora]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Width of the bottleneck.
    pub rank: i64,
    /// The addition is scaled by alpha / rank.
    pub alpha: f64,
    /// Which layers.
    pub targets: Targets,
    /// A LoRA to go on from, a file or folder of diffusers, peft or a run, whose rank, alpha and layers then count
    /// instead; empty for a fresh one.
    pub init: String,
}

impl LoraConfig {
    /// What a fresh adapter is made from.
    pub fn spec(&self) -> LoraSpec {
        LoraSpec { rank: self.rank, alpha: self.alpha, targets: self.targets.clone() }
    }
}

/// `[prompts]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// "painting of", …
    pub media: Vec<String>,
    /// "a man", …
    pub subjects: Vec<String>,
    /// Share of empty prompts.
    pub null_probability: f64,
    /// A text file, one prompt a line; empty: none.
    pub file: String,
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

/// `[plugin]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginLimits {
    /// Wall clock of a call.
    pub timeout_ms: u64,
    /// Fuel for each sample of a call.
    pub fuel: u64,
    /// Linear memory of an instance.
    pub memory_mib: usize,
    /// What a failing plugin does.
    pub on_error: OnError,
    /// Share of an epoch's samples that may be skipped.
    pub max_skipped: f64,
}

/// What a failing plugin does to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Drops the part epoch and stops.
    Abort,
    /// Leaves the batch's samples out of the update.
    Skip,
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

    /// Refuses to go on with a run of this configuration by another that differs in a key that decides what is learned.
    fn check_resumable(&self, now: &Self) -> Result<()> {
        let (before, now) = (Table::try_from(self)?, Table::try_from(now)?);
        check_same(&before, &now, "", Self::FREE_KEYS)
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

impl RunConfig for Config {
    const OF: &'static str = "a run";
    const FREE_KEYS: &'static [&'static str] = &[
        "run.device",
        "model.path",
        "encoders",
        "train.epochs",
        "train.micro_batch",
        "train.gradient_checkpointing",
        "sample.micro_batch",
        "checkpoint.every",
        "checkpoint.keep",
        "monitor.every",
        "monitor.on_collapse",
        "monitor.min_diversity",
        "plugin.timeout_ms",
        "plugin.memory_mib",
        "plugin.max_skipped",
    ];

    fn check(&self) -> Result<()> {
        let Self { sample, train, lora, prompts, checkpoint, monitor, plugin, .. } = self;
        positive("sample.steps", sample.steps)?;
        positive("sample.batch_size", sample.batch_size)?;
        positive("sample.batches_per_epoch", sample.batches_per_epoch)?;
        positive("sample.micro_batch", sample.micro_batch)?;
        positive("sample.width", sample.width as usize)?;
        positive("sample.height", sample.height as usize)?;
        positive("train.inner_epochs", train.inner_epochs)?;
        positive("train.batch_size", train.batch_size)?;
        positive("train.accumulation_steps", train.accumulation_steps)?;
        positive("train.micro_batch", train.micro_batch)?;
        positive("monitor.count", monitor.count)?;
        positive("monitor.every", monitor.every as usize)?;
        positive("checkpoint.every", checkpoint.every as usize)?;
        positive("lora.rank", usize::try_from(lora.rank).unwrap_or(0))?;
        positive("plugin.timeout_ms", plugin.timeout_ms as usize)?;
        positive("plugin.memory_mib", plugin.memory_mib)?;
        within("sample.eta", sample.eta, 0.0, 1.0)?;
        ensure!(
            sample.eta > 0.0,
            "sample.eta is 0, but DDPO learns from the sampler's noise: set it above 0 (1 is DDPM)"
        );
        within("sample.guidance", sample.guidance, 0.0, 1000.0)?;
        within("train.learning_rate", train.learning_rate, 0.0, 10.0)?;
        within("train.beta1", train.beta1, 0.0, 0.999_999)?;
        within("train.beta2", train.beta2, 0.0, 0.999_999_9)?;
        within("train.weight_decay", train.weight_decay, 0.0, 10.0)?;
        within("train.clip_range", train.clip_range, 0.0, 1.0)?;
        within("train.advantage_clip", train.advantage_clip, 0.0, 1e6)?;
        within("train.max_grad_norm", train.max_grad_norm, 0.0, 1e6)?;
        within("train.timestep_fraction", train.timestep_fraction, 1e-6, 1.0)?;
        within("train.kl", train.kl, 0.0, 1e6)?;
        within("train.ema", train.ema, 0.0, 0.999_999_9)?;
        within("prompts.null_probability", prompts.null_probability, 0.0, 1.0)?;
        within("monitor.min_diversity", monitor.min_diversity, 0.0, 1.0)?;
        within("plugin.max_skipped", plugin.max_skipped, 0.0, 1.0)?;
        ensure!(
            sample.per_epoch() % (train.batch_size * train.accumulation_steps) == 0,
            "an epoch has {} samples (sample.batch_size × sample.batches_per_epoch), which {} samples an optimizer step \
             (train.batch_size × train.accumulation_steps) do not divide: change one of the four",
            sample.per_epoch(),
            train.batch_size * train.accumulation_steps
        );
        ensure!(sample.per_epoch() > 1, "an epoch of one sample has no reward spread: raise sample.batch_size");
        if prompts.file.is_empty() && prompts.null_probability < 1.0 {
            ensure!(!prompts.media.is_empty(), "prompts.media is empty: name at least one, or prompts.file");
            ensure!(!prompts.subjects.is_empty(), "prompts.subjects is empty: name at least one, or prompts.file");
        }
        for plugin in &self.reward.plugin {
            ensure!(plugin.weight.is_finite(), "the weight of plugin {} is not a number", plugin.source);
        }
        Ok(())
    }
}

impl Config {
    /// Timesteps of a sample that an update trains on: the share of the steps, rounded, at least one.
    pub fn n_train_timesteps(&self) -> usize {
        let wanted = (self.sample.steps as f64 * self.train.timestep_fraction).round() as usize;
        wanted.clamp(1, self.sample.steps)
    }
}

pub(crate) fn positive(key: &str, value: usize) -> Result<()> {
    if value == 0 {
        bail!("{key} is 0: it must be at least 1");
    }
    Ok(())
}

pub(crate) fn within(key: &str, value: f64, low: f64, high: f64) -> Result<()> {
    ensure!(
        value.is_finite() && value >= low && value <= high,
        "{key} is {value}: it must lie between {low} and {high}"
    );
    Ok(())
}
