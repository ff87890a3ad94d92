//! `host train`: everything that decides what a fine-tuning run does.

use std::collections::BTreeMap;

use ambiguity_models::lora::{LoraSpec, Targets};
use ambiguity_models::params::MemoryFormat;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::layers::{Layer, Presets};
use super::{Checkpoint, Monitor, PluginLimits, Run, RunConfig, positive, within};

/// Everything that decides what a run does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FineTuneConfig {
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
    pub plugin: Plugin,
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

/// `[plugin]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// What a plugin may use.
    #[serde(flatten)]
    pub limits: PluginLimits,
    /// What a failing plugin does to the run.
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

impl RunConfig for FineTuneConfig {
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
        positive("sample.width", sample.width)?;
        positive("sample.height", sample.height)?;
        positive("train.inner_epochs", train.inner_epochs)?;
        positive("train.batch_size", train.batch_size)?;
        positive("train.accumulation_steps", train.accumulation_steps)?;
        positive("train.micro_batch", train.micro_batch)?;
        positive("monitor.count", monitor.count)?;
        positive("monitor.every", monitor.every)?;
        positive("checkpoint.every", checkpoint.every)?;
        positive("lora.rank", lora.rank)?;
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

/// The presets' names.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.names()
}

/// The defaults that nothing stands over.
pub(super) fn preset() -> FineTuneConfig {
    FineTuneConfig::resolve("paper-512", &[]).expect("the presets that ship are valid, which a test checks")
}

impl FineTuneConfig {
    /// The preset with the layers over it, in order, checked.
    pub fn resolve(preset: &str, layers: &[Layer]) -> Result<Self> {
        Self::of_table(PRESETS.table(preset, &[], layers)?, layers)
    }

    /// Timesteps of a sample that an update trains on: the share of the steps, rounded, at least one.
    pub fn n_train_timesteps(&self) -> usize {
        let wanted = (self.sample.steps as f64 * self.train.timestep_fraction).round() as usize;
        wanted.clamp(1, self.sample.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Vec<Layer> {
        vec![Layer { origin: "run.toml".to_owned(), text: text.to_owned() }]
    }

    fn message(text: &str) -> String {
        format!("{:#}", FineTuneConfig::resolve("tiny-art", &file(text)).expect_err("the layer is wrong"))
    }

    #[test]
    fn every_preset_resolves_and_survives_its_own_toml() {
        for name in preset_names() {
            let config = FineTuneConfig::resolve(name, &[]).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            let again: FineTuneConfig = toml::from_str(&config.to_toml().expect("serializes")).expect("parses");
            assert_eq!(again, config, "{name}");
        }
    }

    #[test]
    fn presets_differ_as_the_paper_says() {
        let paper = FineTuneConfig::resolve("paper-512", &[]).expect("resolves");
        let mut small = FineTuneConfig::resolve("paper-256", &[]).expect("resolves");
        assert_eq!(small.sample.per_epoch(), paper.sample.per_epoch());
        assert_eq!(small.train.batch_size * small.train.accumulation_steps, 8);
        small.sample = paper.sample.clone();
        small.train = paper.train.clone();
        assert_eq!(small, paper);
    }

    #[test]
    fn later_layers_win() {
        let mut layers = file("[train]\nepochs = 3\nlearning_rate = 1\n");
        layers.push(Layer::set("train.epochs=4").expect("a setting"));
        layers.push(Layer::set("model.dtype=bf16").expect("a setting"));
        layers.push(Layer::set("lora.targets=[\"to_q\"]").expect("a setting"));
        let config = FineTuneConfig::resolve("tiny-art", &layers).expect("resolves");
        assert_eq!((config.train.epochs, config.train.learning_rate), (4, 1.0));
        assert_eq!(config.model.dtype, Dtype::Bf16);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        assert_eq!(
            message("[train]\n  lerning_rate = 1e-3\n"),
            "run.toml:2:3: unknown key `train.lerning_rate`; did you mean `learning_rate`?"
        );
        assert_eq!(
            message("[train]\nepochs = \"3\"\n"),
            "run.toml:2:10: `train.epochs` is a string, it must be a whole number"
        );
        assert!(message("[train\n").starts_with("run.toml: TOML parse error at line 1"));
        assert!(message("[model]\ndtype = \"f8\"\n").contains("f8"));
        assert!(message("[train]\nbatch_size = 7\n").contains("train.batch_size"));
        assert!(message("[sample]\neta = 0\n").contains("sample.eta is 0"));
    }
}
