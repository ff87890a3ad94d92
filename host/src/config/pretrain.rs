//! The configuration of `host pretrain`: a TOML file with every value; the code has no second set of defaults.

use anyhow::{Result, ensure};
use procedural_art::{STYLES, SUBJECTS};
use serde::{Deserialize, Serialize};
use tch::Kind;

use super::layers::{Layer, Presets};
use super::{MAX_BATCH, MAX_PIXELS, RunConfig, WIDEST, counted, within};

/// The preset with which the shipped models were trained.
const PRESETS: Presets =
    Presets { complete: include_str!("../../presets/pretrain-tiny-art.toml"), named: &[("tiny-art", &[])] };

/// The whole file.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainFile {
    /// The table `[pretrain]`.
    pub pretrain: PretrainConfig,
}

/// The table `[pretrain]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainConfig {
    /// Seed of all random numbers.
    pub seed: u64,
    /// Type of the weights on disk.
    pub weights: WeightsType,
    /// The paintings.
    pub data: DataConfig,
    /// CLIP.
    pub clip: ClipStage,
    /// The autoencoder.
    pub vae: VaeStage,
    /// The UNet.
    pub unet: UNetStage,
}

/// Type of the weights on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightsType {
    /// 4 bytes per value.
    F32,
    /// 2 bytes per value.
    F16,
}

impl WeightsType {
    /// Returns the libtorch kind.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::F16 => Kind::Half,
        }
    }
}

/// The table `[pretrain.data]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Side of a painting in pixels.
    pub size: u32,
    /// Number of held-out paintings of each (style, subject).
    pub held_out_per_pair: usize,
}

/// Optimizer, learning rate, and numbers of steps.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Number of updates.
    pub steps: u64,
    /// Maximum learning rate.
    pub learning_rate: f64,
    /// Number of first steps, in which the learning rate increases from 0.
    pub warmup_steps: u64,
    /// Number of last steps, in which the learning rate decreases to 0.
    pub decay_steps: u64,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Maximum gradient norm.
    pub max_grad_norm: f64,
    /// Number of steps after which an epoch ends and a checkpoint is written.
    pub steps_per_epoch: u64,
    /// Number of epochs between two evaluations on held-out data; the last epoch is always evaluated.
    pub evaluate_every: u64,
}

impl Schedule {
    /// Number of epochs; the last one may be shorter than the others.
    pub fn epochs(&self) -> u64 {
        self.steps.div_ceil(self.steps_per_epoch)
    }

    /// The learning rate of step `step`, counted from 0: warmup, constant, decay. Because of the constant part the
    /// number of steps may be changed when a run is resumed.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        let warmup = (step + 1) as f64 / self.warmup_steps.max(1) as f64;
        let decay = self.steps.saturating_sub(step) as f64 / (self.decay_steps + 1) as f64;
        self.learning_rate * warmup.min(decay).min(1.0)
    }

    fn check(&self, table: &str) -> Result<()> {
        let key = |name: &str| format!("{table}.{name}");
        for (name, value) in
            [("steps", self.steps), ("steps_per_epoch", self.steps_per_epoch), ("evaluate_every", self.evaluate_every)]
        {
            counted(&key(name), value, MAX_UPDATES)?;
        }
        for (name, value) in [("warmup_steps", self.warmup_steps), ("decay_steps", self.decay_steps)] {
            within(&key(name), value as f64, 0.0, MAX_UPDATES as f64)?;
        }
        within(&key("learning_rate"), self.learning_rate, 1e-30, 10.0)?;
        within(&key("beta1"), self.beta1, 0.0, 0.999_999)?;
        within(&key("beta2"), self.beta2, 0.0, 0.999_999_9)?;
        // At 0 a gradient of 0 would be divided by 0.
        within(&key("epsilon"), self.epsilon, 1e-30, 1.0)?;
        within(&key("weight_decay"), self.weight_decay, 0.0, 10.0)?;
        within(&key("max_grad_norm"), self.max_grad_norm, 1e-12, 1e6)
    }
}

/// The table `[pretrain.clip]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClipStage {
    /// Number of training paintings of each (style, subject).
    pub per_pair: usize,
    /// Number of paintings in a batch, all of different (style, subject) pairs.
    pub batch_size: usize,
    /// Weight of the contrastive loss over the captions of the batch.
    pub caption_weight: f64,
    /// Weight of the classification of the 27 styles.
    pub style_weight: f64,
    /// Weight of the classification of the 8 subjects.
    pub subject_weight: f64,
    /// Maximum random shift of a painting in pixels.
    pub shift: i64,
    /// Width of the joint embedding space.
    pub projection_dim: i64,
    /// Natural logarithm of the initial inverse temperature.
    pub logit_scale_init: f64,
    /// Maximum inverse temperature.
    pub logit_scale_max: f64,
    /// The text tower.
    pub text: TextTower,
    /// The image tower.
    pub vision: VisionTower,
    /// Schedule of the training.
    pub schedule: Schedule,
}

/// The table `[pretrain.clip.text]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TextTower {
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width inside the MLP.
    pub intermediate_size: i64,
    /// Number of transformer blocks.
    pub layers: i64,
    /// Number of attention heads.
    pub heads: i64,
    /// Number of tokens of a text, including the start and end tokens.
    pub length: usize,
}

/// The table `[pretrain.clip.vision]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VisionTower {
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width inside the MLP.
    pub intermediate_size: i64,
    /// Number of transformer blocks.
    pub layers: i64,
    /// Number of attention heads.
    pub heads: i64,
    /// Side of a patch in pixels.
    pub patch_size: i64,
}

/// The table `[pretrain.vae]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VaeStage {
    /// Number of training paintings of each (style, subject).
    pub per_pair: usize,
    /// Number of paintings in a batch.
    pub batch_size: usize,
    /// Number of parts of the batch, which are computed in parallel.
    pub shards: usize,
    /// Number of channels of each stage, from the finest; each stage but the last halves the side.
    pub block_out_channels: Vec<i64>,
    /// Number of residual blocks per stage.
    pub layers_per_block: i64,
    /// Number of channels of the latents.
    pub latent_channels: i64,
    /// Number of groups of every GroupNorm.
    pub norm_num_groups: i64,
    /// Weight of the mean absolute error of pixels in [-1, 1].
    pub l1_weight: f64,
    /// Weight of the mean squared error.
    pub l2_weight: f64,
    /// Weight of the error of the differences of neighboring pixels.
    pub gradient_weight: f64,
    /// Weight of the error of R - G and G - B.
    pub opponent_weight: f64,
    /// Weight of the mean Kullback–Leibler divergence from the standard normal, per latent value.
    pub kl_weight: f64,
    /// Schedule of the training.
    pub schedule: Schedule,
}

/// The table `[pretrain.unet]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UNetStage {
    /// Number of training paintings of each (style, subject); each is used as it is and mirrored.
    pub per_pair: usize,
    /// Number of latents in a batch.
    pub batch_size: usize,
    /// Number of parts of the batch, which are computed in parallel.
    pub shards: usize,
    /// Types of the stages on the way down, from the finest, by diffusers' names.
    pub down_block_types: Vec<String>,
    /// Number of channels of each stage.
    pub block_out_channels: Vec<i64>,
    /// Number of residual blocks per stage.
    pub layers_per_block: i64,
    /// Number of attention heads of each stage.
    pub attention_heads: Vec<i64>,
    /// Number of groups of every GroupNorm.
    pub norm_num_groups: i64,
    /// Share of empty captions.
    pub null_share: f64,
    /// Share of captions that name the subject alone.
    pub subject_share: f64,
    /// Share of captions that name the style alone.
    pub style_share: f64,
    /// Standard deviation of offset noise, which is constant over each channel and added to the noise.
    pub offset_noise: f64,
    /// γ of the min-SNR weighting.
    pub snr_gamma: f64,
    /// Decay of the moving average of the weights.
    pub ema_decay: f64,
    /// Schedule of the training.
    pub schedule: Schedule,
    /// The noise schedule.
    pub noise: NoiseConfig,
    /// Evaluation of samples.
    pub samples: SamplesConfig,
}

/// The table `[pretrain.unet.noise]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NoiseConfig {
    /// Number of timesteps in training.
    pub train_timesteps: usize,
    /// First β; √β increases linearly.
    pub beta_start: f64,
    /// Last β.
    pub beta_end: f64,
}

/// The table `[pretrain.unet.samples]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SamplesConfig {
    /// Number of DDIM steps.
    pub steps: usize,
    /// Scale of classifier-free guidance.
    pub guidance: f64,
    /// Number of samples with a style and a subject in the final evaluation.
    pub styled: usize,
    /// Number of samples with the subject alone in the final evaluation.
    pub plain: usize,
    /// Number of samples with a style and a subject in the other evaluations.
    pub styled_on_the_way: usize,
    /// Number of samples with the subject alone in the other evaluations.
    pub plain_on_the_way: usize,
}

impl PretrainFile {
    /// Resolves the preset with the layers over it, in order, and checks the result.
    pub fn resolve(layers: &[Layer]) -> Result<Self> {
        Self::of_table(PRESETS.table("tiny-art", &[], layers)?, layers)
    }
}

impl RunConfig for PretrainFile {
    const OF: &'static str = "a pretraining";
    const COMPLETE: &'static str = PRESETS.complete;
    const FREE_KEYS: &'static [&'static str] = &["pretrain.weights"];

    fn check(&self) -> Result<()> {
        self.pretrain.check()
    }
}

impl PretrainConfig {
    fn check(&self) -> Result<()> {
        counted("pretrain.data.size", self.data.size, MAX_PIXELS)?;
        counted("pretrain.data.held_out_per_pair", self.data.held_out_per_pair, MAX_PER_PAIR)?;
        self.clip.check()?;
        self.vae.check()?;
        self.unet.check()?;
        self.check_size()
    }

    fn check_size(&self) -> Result<()> {
        let (size, patch, shift) = (i64::from(self.data.size), self.clip.vision.patch_size, self.clip.shift);
        ensure!(
            size % patch == 0,
            "pretrain.data.size is {size}: it must be a multiple of pretrain.clip.vision.patch_size, {patch}"
        );
        ensure!((0..size).contains(&shift), "pretrain.clip.shift is {shift}: it must be from 0 to {}", size - 1);
        let halvings = self.vae.block_out_channels.len().saturating_sub(1) + self.unet.block_out_channels.len() - 1;
        let factor = 1i64 << halvings;
        ensure!(
            size % factor == 0,
            "pretrain.data.size is {size}: it must be a multiple of {factor}, since VAE and UNet halve it {halvings} times"
        );
        Ok(())
    }
}

impl ClipStage {
    fn check(&self) -> Result<()> {
        let (text, vision) = (&self.text, &self.vision);
        counted("pretrain.clip.per_pair", self.per_pair, MAX_PER_PAIR)?;
        // All paintings of a batch are of different pairs.
        counted("pretrain.clip.batch_size", self.batch_size, (STYLES.len() * SUBJECTS.len()) as u64)?;
        for (key, value) in [
            ("caption_weight", self.caption_weight),
            ("style_weight", self.style_weight),
            ("subject_weight", self.subject_weight),
        ] {
            within(&format!("pretrain.clip.{key}"), value, 0.0, MAX_WEIGHT)?;
        }
        counted("pretrain.clip.projection_dim", self.projection_dim, WIDEST)?;
        within("pretrain.clip.logit_scale_init", self.logit_scale_init, -10.0, 10.0)?;
        within("pretrain.clip.logit_scale_max", self.logit_scale_max, 1.0, 1e4)?;
        within("pretrain.clip.text.length", text.length as f64, 3.0, 4096.0)?;
        counted("pretrain.clip.vision.patch_size", vision.patch_size, MAX_PIXELS)?;
        for (tower, hidden, intermediate, layers, heads) in [
            ("text", text.hidden_size, text.intermediate_size, text.layers, text.heads),
            ("vision", vision.hidden_size, vision.intermediate_size, vision.layers, vision.heads),
        ] {
            let key = |name: &str| format!("pretrain.clip.{tower}.{name}");
            counted(&key("hidden_size"), hidden, WIDEST)?;
            counted(&key("intermediate_size"), intermediate, WIDEST)?;
            counted(&key("layers"), layers, MAX_LAYERS)?;
            counted(&key("heads"), heads, WIDEST)?;
            let [hidden_key, heads_key] = [key("hidden_size"), key("heads")];
            ensure!(hidden % heads == 0, "{hidden_key} is {hidden}: it must be a multiple of {heads_key}, {heads}");
        }
        self.schedule.check("pretrain.clip.schedule")
    }
}

impl VaeStage {
    fn check(&self) -> Result<()> {
        check_batch("pretrain.vae", self.per_pair, self.batch_size, self.shards)?;
        check_stages("pretrain.vae", &self.block_out_channels, self.layers_per_block, self.norm_num_groups)?;
        counted("pretrain.vae.latent_channels", self.latent_channels, WIDEST)?;
        for (key, value) in [
            ("l1_weight", self.l1_weight),
            ("l2_weight", self.l2_weight),
            ("gradient_weight", self.gradient_weight),
            ("opponent_weight", self.opponent_weight),
            ("kl_weight", self.kl_weight),
        ] {
            within(&format!("pretrain.vae.{key}"), value, 0.0, MAX_WEIGHT)?;
        }
        self.schedule.check("pretrain.vae.schedule")
    }
}

impl UNetStage {
    fn check(&self) -> Result<()> {
        let (noise, samples) = (&self.noise, &self.samples);
        check_batch("pretrain.unet", self.per_pair, self.batch_size, self.shards)?;
        check_stages("pretrain.unet", &self.block_out_channels, self.layers_per_block, self.norm_num_groups)?;
        let stages = self.block_out_channels.len();
        for (key, length) in
            [("down_block_types", self.down_block_types.len()), ("attention_heads", self.attention_heads.len())]
        {
            ensure!(length == stages, "pretrain.unet.{key} has {length} entries for {stages} stages");
        }
        for (heads, channels) in self.attention_heads.iter().zip(&self.block_out_channels) {
            counted("pretrain.unet.attention_heads", *heads, WIDEST)?;
            ensure!(
                channels % heads == 0,
                "pretrain.unet.attention_heads has {heads} for {channels} channels, which are not a multiple of it"
            );
        }
        let shares =
            [("null_share", self.null_share), ("subject_share", self.subject_share), ("style_share", self.style_share)];
        for (key, share) in shares {
            within(&format!("pretrain.unet.{key}"), share, 0.0, 1.0)?;
        }
        let share: f64 = shares.iter().map(|(_, share)| share).sum();
        ensure!(share <= 1.0, "the caption shares of `pretrain.unet` add up to {share}, more than 1");
        within("pretrain.unet.offset_noise", self.offset_noise, 0.0, 10.0)?;
        within("pretrain.unet.snr_gamma", self.snr_gamma, 1e-6, 1e6)?;
        within("pretrain.unet.ema_decay", self.ema_decay, 0.0, 0.999_999_9)?;
        counted("pretrain.unet.noise.train_timesteps", noise.train_timesteps, MAX_TIMESTEPS)?;
        within("pretrain.unet.noise.beta_start", noise.beta_start, 1e-9, 0.999)?;
        within("pretrain.unet.noise.beta_end", noise.beta_end, noise.beta_start, 0.999)?;
        counted("pretrain.unet.samples.steps", samples.steps, noise.train_timesteps as u64)?;
        within("pretrain.unet.samples.guidance", samples.guidance, 0.0, 1000.0)?;
        for (key, count) in [
            ("styled", samples.styled),
            ("plain", samples.plain),
            ("styled_on_the_way", samples.styled_on_the_way),
            ("plain_on_the_way", samples.plain_on_the_way),
        ] {
            counted(&format!("pretrain.unet.samples.{key}"), count, MAX_BATCH)?;
        }
        self.schedule.check("pretrain.unet.schedule")
    }
}

/// Checks the sizes of a stage whose batches are split into shards.
fn check_batch(table: &str, per_pair: usize, batch_size: usize, shards: usize) -> Result<()> {
    counted(&format!("{table}.per_pair"), per_pair, MAX_PER_PAIR)?;
    counted(&format!("{table}.batch_size"), batch_size, MAX_BATCH)?;
    counted(&format!("{table}.shards"), shards, MAX_BATCH)?;
    ensure!(
        batch_size.is_multiple_of(shards),
        "{table}.batch_size is {batch_size}: it must be a multiple of {table}.shards, {shards}"
    );
    Ok(())
}

/// Checks the convolutional stages of a VAE or UNet.
fn check_stages(table: &str, channels: &[i64], layers_per_block: i64, groups: i64) -> Result<()> {
    counted(&format!("{table}.block_out_channels"), channels.len(), MAX_STAGES)?;
    counted(&format!("{table}.layers_per_block"), layers_per_block, MAX_LAYERS)?;
    counted(&format!("{table}.norm_num_groups"), groups, WIDEST)?;
    for &width in channels {
        counted(&format!("{table}.block_out_channels"), width, WIDEST)?;
        ensure!(
            width % groups == 0,
            "{table}.block_out_channels has {width}, which is not a multiple of {table}.norm_num_groups, {groups}"
        );
    }
    Ok(())
}

/// The largest number of updates of a stage.
const MAX_UPDATES: u64 = 1 << 40;
/// The largest number of paintings of each (style, subject).
const MAX_PER_PAIR: u64 = 1 << 16;
/// The largest weight of a term of a loss.
const MAX_WEIGHT: f64 = 1e6;
/// The largest number of blocks of a transformer or a stage.
const MAX_LAYERS: u64 = 256;
/// The largest number of stages of a VAE or UNet.
const MAX_STAGES: u64 = 10;
/// The largest number of timesteps in training.
const MAX_TIMESTEPS: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::refuses_odd_numbers;

    fn resolve(set: &str) -> Result<PretrainFile> {
        PretrainFile::resolve(&[Layer::set(set)?])
    }

    #[test]
    fn the_preset_is_complete_and_reads_back() {
        let config = PretrainFile::resolve(&[]).unwrap();
        let again: PretrainFile = toml::from_str(&config.to_toml().unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn set_changes_one_value_and_refuses_unknown_keys() {
        let config = resolve("pretrain.clip.schedule.steps=7").unwrap().pretrain;
        assert_eq!(config.clip.schedule.steps, 7);
        let error = resolve("pretrain.clip.stepz=7").unwrap_err();
        assert!(format!("{error:#}").contains("stepz"), "{error:#}");
        let error = resolve("pretrain.unet.shards=5").unwrap_err();
        assert!(format!("{error:#}").contains("shards"), "{error:#}");
    }

    #[test]
    fn odd_numbers_are_refused_by_key() {
        let accepted = |key: &str, odd: &str| {
            let name = key.rsplit('.').next().unwrap_or(key);
            match (name, odd) {
                ("seed", "0" | "9223372036854775807") => true,
                ("logit_scale_init", "0" | "-1") => true,
                ("warmup_steps" | "decay_steps" | "beta1" | "beta2" | "weight_decay" | "shift" | "guidance", "0") => {
                    true
                }
                ("offset_noise" | "ema_decay", "0") => true,
                (name, "0") => name.ends_with("_weight") || name.ends_with("_share"),
                _ => false,
            }
        };
        let n_keys = refuses_odd_numbers(PretrainFile::resolve, accepted);
        assert!(n_keys > 80, "{n_keys}");
    }

    #[test]
    fn the_learning_rate_rises_holds_and_falls() {
        let mut schedule = PretrainFile::resolve(&[]).unwrap().pretrain.clip.schedule;
        (schedule.steps, schedule.warmup_steps, schedule.decay_steps, schedule.learning_rate) = (100, 10, 20, 1.0);
        assert_eq!(schedule.learning_rate_at(0), 0.1);
        assert_eq!(schedule.learning_rate_at(9), 1.0);
        assert_eq!(schedule.learning_rate_at(79), 1.0);
        assert!(schedule.learning_rate_at(99) > 0.0 && schedule.learning_rate_at(99) < 0.06);
    }
}
