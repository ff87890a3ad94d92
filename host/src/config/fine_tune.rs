//! `host train`: the configuration of a fine-tuning run.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use ambiguity_models::lora::{LoraSpec, Targets};
use ambiguity_models::params::MemoryFormat;
use ambiguity_models::pipeline::LoadOptions;
use anyhow::{Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use super::layers::{Layer, Presets};
use super::{Checkpoint, Cuda, MAX_BATCH, MAX_PIXELS, MAX_STEPS, PluginLimits, RunConfig, counted, positive, within};
use crate::text::sha256_digits;

/// The configuration of a fine-tuning run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FineTuneConfig {
    /// Seed, device and kept images.
    pub run: Run,
    /// How NVIDIA's libraries compute.
    pub cuda: Cuda,
    /// The fine-tuned model.
    pub model: Model,
    /// Folders of encoders by the names that plugins use.
    pub encoders: BTreeMap<String, String>,
    /// The plugins of the reward.
    pub reward: Reward,
    /// Sampling.
    pub sample: Sample,
    /// Training.
    pub train: Train,
    /// The LoRA adapter.
    pub lora: LoraConfig,
    /// The prompts.
    pub prompts: Prompts,
    /// Checkpoints.
    pub checkpoint: Checkpoint,
    /// The monitor.
    pub monitor: Monitor,
    /// Limits of plugins, and the reaction to their errors.
    pub plugin: Plugin,
}

/// The table `[run]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Seed of the run; each random generator's seed is a hash of it, the epoch, the sample and the purpose.
    pub seed: u64,
    /// Device: `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Whether the sampled images are kept, and in which format.
    pub keep_images: KeepImages,
}

/// Whether the images that a run samples are kept, and in which format; both formats are lossless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepImages {
    /// No image is kept.
    None,
    /// PNG files.
    Png,
    /// WebP files, which are smaller.
    Webp,
}

/// The table `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// A diffusers folder, or the name of a shipped model.
    pub path: String,
    /// Type of the frozen weights.
    pub dtype: Dtype,
    /// Memory format of the convolutions' weights and feature maps; affects speed and rounding only.
    pub memory_format: MemoryFormat,
    /// Type of the VAE.
    pub vae_dtype: Dtype,
    /// Whether the VAE decodes large images in tiles.
    pub vae_tiling: bool,
}

impl Model {
    /// Returns how the networks are loaded on a device.
    pub fn load_options(&self, device: Device) -> LoadOptions {
        LoadOptions {
            device,
            kind: self.dtype.kind(),
            vae_kind: self.vae_dtype.kind(),
            vae_tiling: self.vae_tiling,
            format: self.memory_format,
        }
    }
}

/// Floating-point types of frozen weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision, for sampling alone.
    F16,
}

impl Dtype {
    /// Returns the number of bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Returns the libtorch kind.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

/// The table `[reward]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reward {
    /// The plugins, in order.
    pub plugin: Vec<RewardPlugin>,
}

/// A table `[[reward.plugin]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardPlugin {
    /// Path or name of the plugin.
    pub source: String,
    /// Factor of the plugin's reward.
    #[serde(default = "one")]
    pub weight: f64,
    /// The SHA-256 digest that the plugin must have, in hex; none: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The values of the plugin's options: texts, numbers and booleans.
    #[serde(default)]
    pub config: BTreeMap<String, OptionValue>,
}

/// The value of a plugin's option. A text may stand for a number or a boolean, as on the command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a plugin's option is a text, a number or a boolean")]
pub enum OptionValue {
    /// A boolean.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

impl Display for OptionValue {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) => f.write_str(value),
        }
    }
}

impl RewardPlugin {
    /// Returns a plugin by its path, name or reference, with weight 1.
    pub fn of_source(source: &str) -> Self {
        Self { source: source.to_owned(), weight: one(), sha256: None, config: BTreeMap::new() }
    }

    /// Returns the values of the plugin's options as texts.
    pub fn options(&self) -> BTreeMap<String, String> {
        self.config.iter().map(|(key, value)| (key.clone(), value.to_string())).collect()
    }
}

fn one() -> f64 {
    1.0
}

/// The table `[sample]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Number of DDIM steps.
    pub steps: usize,
    /// DDIM's η, from 0 (deterministic) to 1 (as DDPM).
    pub eta: f64,
    /// Scale of classifier-free guidance; 1 or less disables it.
    pub guidance: f64,
    /// Width of the images in pixels.
    pub width: u32,
    /// Height of the images in pixels.
    pub height: u32,
    /// Number of samples per batch.
    pub batch_size: usize,
    /// Number of batches per epoch.
    pub batches_per_epoch: usize,
    /// Number of rows per UNet call.
    pub micro_batch: usize,
}

impl Sample {
    /// Number of samples per epoch.
    pub fn per_epoch(&self) -> usize {
        self.batch_size * self.batches_per_epoch
    }
}

/// The table `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Number of epochs.
    pub epochs: u64,
    /// Constant learning rate of AdamW.
    pub learning_rate: f64,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// Clip range ε of the probability ratio, which is clipped to [1 − ε, 1 + ε].
    pub clip_range: f64,
    /// Maximum absolute value of an advantage, to which advantages are clamped.
    pub advantage_clip: f64,
    /// Weight of diversity in positive advantages: 0: none; 1: an advantage is multiplied by the image's distance to its
    /// nearest neighbor, divided by the mean of these distances.
    pub diversity_weight: f64,
    /// Weight of the Vendi score beside the reward: the z-scores of the rewards gain this many times the z-scores of what each
    /// image adds to the logarithm of the Vendi score of the epoch's images, before advantages are computed.
    pub vendi_weight: f64,
    /// The share of the first epoch's Vendi score at which this weight is as it is: it grows by a factor of e for each tenth that
    /// an epoch is below it, and falls likewise above it. 0: the weight is the same in all epochs.
    pub vendi_target: f64,
    /// Number of passes over the samples of an epoch.
    pub inner_epochs: usize,
    /// Maximum gradient norm.
    pub max_grad_norm: f64,
    /// Share of the sampled timesteps that are trained on.
    pub timestep_fraction: f64,
    /// Choice of these timesteps.
    pub timestep_choice: TimestepChoice,
    /// Number of samples per training batch.
    pub batch_size: usize,
    /// Number of batches per optimizer step.
    pub accumulation_steps: usize,
    /// What an epoch's updates shuffle.
    pub shuffle: Shuffle,
    /// Number of rows per UNet call.
    pub micro_batch: usize,
    /// Whether the UNet's stages are recomputed in the backward pass: a third more time, a fraction of the memory.
    pub gradient_checkpointing: bool,
    /// Weight of the KL divergence from the reference model.
    pub kl: f64,
    /// Decay of the exponential moving average of the LoRA; 0: none.
    pub ema: f64,
    /// Whether rewards are normalized by prompt instead of by epoch.
    pub per_prompt_statistics: bool,
    /// Combination of the rewards of several plugins.
    pub reward_normalization: RewardNormalization,
}

/// Choice of the timesteps that an update trains on, if not on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepChoice {
    /// A new random subset for every sample.
    Random,
    /// The first sampled timesteps, which are the noisiest.
    Earliest,
}

/// What an epoch's updates shuffle, and with it which rows share a UNet call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// The samples, each with timesteps of its own; a call takes as many rows as `micro_batch` allows.
    Samples,
    /// The calls of sampling: a call of the update predicts the same samples at the same timestep in the same places as
    /// one of sampling. On a GPU, a row's rounding depends on its place and on the number of rows, so that only then the
    /// ratios of a first update are exactly 1.
    Calls,
}

/// Combination of the rewards of several plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RewardNormalization {
    /// Weighted sum of the rewards.
    Sum,
    /// Weighted sum of each plugin's z-scores over the epoch.
    Zscore,
}

/// The table `[lora]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the low-rank product.
    pub rank: i64,
    /// Numerator of the product's scale, alpha / rank.
    pub alpha: f64,
    /// The adapted layers.
    pub targets: Targets,
    /// An initial LoRA, a file or folder of diffusers, peft or a run, whose rank, alpha and layers are then used; empty
    /// for a new one.
    pub init: String,
}

impl LoraConfig {
    /// Returns the configuration of a new adapter.
    pub fn spec(&self) -> LoraSpec {
        LoraSpec { rank: self.rank, alpha: self.alpha, targets: self.targets.clone() }
    }
}

/// The table `[prompts]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// Media, such as "painting of".
    pub media: Vec<String>,
    /// Subjects, such as "a man".
    pub subjects: Vec<String>,
    /// Probability of the empty prompt.
    pub null_probability: f64,
    /// A text file with one prompt per line; empty: none.
    pub file: String,
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
    /// Plugins that take no part in the reward, by path, name or reference. If their rewards fall while the trained one
    /// rises, the model exploits what its own classifier gets wrong.
    pub held_out: Vec<String>,
}

/// The reaction to a collapse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCollapse {
    /// Write a warning to the log and the metrics.
    Warn,
    /// Stop the run after a checkpoint.
    Stop,
    /// Halve the learning rate, each time that the monitor finds a collapse.
    LowerLearningRate,
    /// Double the weight of the KL divergence, from 0 to 1, each time that the monitor finds a collapse.
    RaiseKl,
}

/// The table `[plugin]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// The limits of a plugin.
    #[serde(flatten)]
    pub limits: PluginLimits,
    /// The reaction to a failing plugin.
    pub on_error: OnError,
    /// Maximum share of an epoch's samples that may be skipped.
    pub max_skipped: f64,
}

/// The reaction to a failing plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Drop the incomplete epoch and stop.
    Abort,
    /// Leave the batch's samples out of the update.
    Skip,
}

impl RunConfig for FineTuneConfig {
    const OF: &'static str = "a run";
    const COMPLETE: &'static str = PRESETS.complete;
    const FREE_KEYS: &'static [&'static str] = &[
        "run.device",
        "run.keep_images",
        "cuda",
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
        ensure!(
            self.model.dtype != Dtype::F16,
            "model.dtype = \"f16\" is for sampling alone: small gradients are 0 in it; train in \"bf16\" or \"f32\""
        );
        ensure!(
            self.model.vae_dtype != Dtype::F16,
            "model.vae_dtype = \"f16\": the published autoencoders overflow in it; use \"bf16\" or \"f32\""
        );
        counted("sample.steps", sample.steps, MAX_STEPS)?;
        counted("sample.batch_size", sample.batch_size, MAX_BATCH)?;
        counted("sample.batches_per_epoch", sample.batches_per_epoch, MAX_BATCH)?;
        counted("sample.micro_batch", sample.micro_batch, MAX_BATCH)?;
        counted("sample.width", sample.width, MAX_PIXELS)?;
        counted("sample.height", sample.height, MAX_PIXELS)?;
        positive("train.epochs", train.epochs)?;
        counted("train.inner_epochs", train.inner_epochs, MAX_STEPS)?;
        counted("train.batch_size", train.batch_size, MAX_BATCH)?;
        counted("train.accumulation_steps", train.accumulation_steps, MAX_BATCH)?;
        counted("train.micro_batch", train.micro_batch, MAX_BATCH)?;
        counted("monitor.count", monitor.count, MAX_BATCH)?;
        ensure!(monitor.count > 1, "monitor.count is 1: diversity and uncertainty need at least two images");
        positive("monitor.every", monitor.every)?;
        positive("checkpoint.every", checkpoint.every)?;
        counted("lora.rank", lora.rank, MAX_RANK)?;
        within("lora.alpha", lora.alpha, -1e6, 1e6)?;
        ensure!(lora.alpha != 0.0, "lora.alpha is 0, with which the LoRA changes nothing: its scale is alpha / rank");
        plugin.limits.check()?;
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
        // At 0 a gradient of 0 would be divided by 0.
        within("train.epsilon", train.epsilon, 1e-30, 1.0)?;
        within("train.clip_range", train.clip_range, 1e-12, 1.0)?;
        within("train.advantage_clip", train.advantage_clip, 1e-6, 1e6)?;
        within("train.diversity_weight", train.diversity_weight, 0.0, 1.0)?;
        within("train.vendi_weight", train.vendi_weight, 0.0, 100.0)?;
        within("train.vendi_target", train.vendi_target, 0.0, 1.0)?;
        ensure!(
            train.vendi_target == 0.0 || train.vendi_weight > 0.0,
            "train.vendi_target has no effect without train.vendi_weight"
        );
        within("train.max_grad_norm", train.max_grad_norm, 1e-12, 1e6)?;
        within("train.timestep_fraction", train.timestep_fraction, 1e-6, 1.0)?;
        within("train.kl", train.kl, 0.0, 1e6)?;
        within("train.ema", train.ema, 0.0, 0.999_999_9)?;
        within("prompts.null_probability", prompts.null_probability, 0.0, 1.0)?;
        within("monitor.min_diversity", monitor.min_diversity, 0.0, 1.0)?;
        within("plugin.max_skipped", plugin.max_skipped, 0.0, 1.0)?;
        ensure!(
            sample.per_epoch() % (train.batch_size * train.accumulation_steps) == 0,
            "an epoch has {} samples (sample.batch_size × sample.batches_per_epoch), which is not a multiple of \
             the {} samples of an optimizer step (train.batch_size × train.accumulation_steps): change one of the four",
            sample.per_epoch(),
            train.batch_size * train.accumulation_steps
        );
        if train.shuffle == Shuffle::Calls {
            self.check_calls()?;
        }
        ensure!(sample.per_epoch() > 1, "an epoch of one sample has no spread of rewards: increase sample.batch_size");
        if prompts.file.is_empty() && prompts.null_probability < 1.0 {
            ensure!(!prompts.media.is_empty(), "prompts.media is empty: name at least one, or prompts.file");
            ensure!(!prompts.subjects.is_empty(), "prompts.subjects is empty: name at least one, or prompts.file");
        }
        for (i, plugin) in self.reward.plugin.iter().enumerate() {
            let source = &plugin.source;
            let is_usable = plugin.weight != 0.0 && plugin.weight.abs() <= 1e6;
            ensure!(
                is_usable,
                "the weight of plugin {source} is {}: it must be a number other than 0, at most 1e6",
                plugin.weight
            );
            if let Some(sha256) = &plugin.sha256 {
                let why = |why| anyhow!("the sha256 of plugin {source} is \"{sha256}\": {why}");
                sha256_digits(sha256).map_err(why)?;
            }
            let twice =
                self.reward.plugin[..i].iter().any(|other| other.source == *source && other.config == plugin.config);
            ensure!(!twice, "plugin {source} is named twice with the same config: add the weights instead");
        }
        for (i, source) in monitor.held_out.iter().enumerate() {
            let in_reward =
                self.reward.plugin.iter().any(|plugin| plugin.source == *source && plugin.config.is_empty());
            ensure!(!in_reward, "monitor.held_out names {source}, which is a plugin of the reward: name others");
            ensure!(!monitor.held_out[..i].contains(source), "monitor.held_out names {source} twice");
        }
        Ok(())
    }
}

/// The largest image of a small model.
const SMALL_MODEL_PIXELS: u32 = 64;
/// The largest rank of a LoRA; no layer is wider than a few thousand.
const MAX_RANK: u64 = 4096;

const PRESETS: Presets = Presets {
    complete: include_str!("../../presets/paper-512.toml"),
    named: &[
        ("paper-512", &[]),
        ("paper-256", &[include_str!("../../presets/paper-256.toml")]),
        ("paper-128", &[include_str!("../../presets/paper-128.toml")]),
        ("paper-64", &[include_str!("../../presets/paper-64.toml")]),
        ("tiny-art", &[include_str!("../../presets/tiny-art.toml")]),
    ],
};

/// The names of the presets.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.names()
}

/// Returns the preset of a model that generates images of this size in pixels, unless another one is named.
pub fn preset_of_size(pixels: u32) -> &'static str {
    if pixels <= SMALL_MODEL_PIXELS { "tiny-art" } else { "paper-512" }
}

/// The defaults without any layer over them.
pub(super) fn preset() -> FineTuneConfig {
    FineTuneConfig::resolve("paper-512", &[]).expect("the presets that ship are valid, which a test checks")
}

impl FineTuneConfig {
    /// Checks that the calls of sampling can be repeated in the updates.
    fn check_calls(&self) -> Result<()> {
        let Self { sample, train, .. } = self;
        ensure!(
            sample.micro_batch == train.micro_batch,
            "train.shuffle = \"calls\" repeats the UNet calls of sampling, but sample.micro_batch is {} and \
             train.micro_batch is {}: set both to the same number, or train.shuffle to \"samples\"",
            sample.micro_batch,
            train.micro_batch
        );
        let rows = if sample.guidance > 1.0 { 2 } else { 1 };
        let n = (sample.micro_batch / rows).max(1).min(sample.per_epoch());
        let per_step = train.batch_size * train.accumulation_steps;
        ensure!(
            per_step % n == 0,
            "train.shuffle = \"calls\" repeats the UNet calls of sampling, which have {n} samples (sample.micro_batch = {} at \
             {rows} rows a sample), but an optimizer step (train.batch_size × train.accumulation_steps) has {per_step}: \
             change one of them, or set train.shuffle to \"samples\"",
            sample.micro_batch
        );
        Ok(())
    }

    /// Resolves the preset with the layers over it, in order, and checks the result.
    pub fn resolve(preset: &str, layers: &[Layer]) -> Result<Self> {
        Self::of_table(PRESETS.table(preset, &[], layers)?, layers)
    }

    /// Number of timesteps of a sample that an update trains on: the share of the steps, rounded, at least one.
    pub fn n_train_timesteps(&self) -> usize {
        let wanted = (self.sample.steps as f64 * self.train.timestep_fraction).round() as usize;
        wanted.clamp(1, self.sample.steps)
    }
}

#[cfg(test)]
mod tests;
