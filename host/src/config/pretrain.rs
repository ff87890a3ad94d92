//! The configuration of `host pretrain`: a TOML file with every value; the code has no second set of defaults.

use anyhow::{Result, bail, ensure};
use procedural_art::{STYLES, SUBJECTS};
use serde::{Deserialize, Serialize};
use tch::Kind;

use super::layers::{Layer, Presets};
use super::{RunConfig, positive};

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
        for (key, value) in
            [("steps", self.steps), ("steps_per_epoch", self.steps_per_epoch), ("evaluate_every", self.evaluate_every)]
        {
            positive(&format!("{table}.{key}"), value)?;
        }
        ensure!(
            self.learning_rate > 0.0 && self.learning_rate.is_finite(),
            "`{table}.learning_rate` must be above 0, found {}",
            self.learning_rate
        );
        ensure!(self.max_grad_norm > 0.0, "`{table}.max_grad_norm` must be above 0, found {}", self.max_grad_norm);
        Ok(())
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
    const FREE_KEYS: &'static [&'static str] = &["pretrain.weights"];

    fn check(&self) -> Result<()> {
        self.pretrain.check()
    }
}

impl PretrainConfig {
    fn check(&self) -> Result<()> {
        self.clip.schedule.check("pretrain.clip.schedule")?;
        self.vae.schedule.check("pretrain.vae.schedule")?;
        self.unet.schedule.check("pretrain.unet.schedule")?;
        let pairs = STYLES.len() * SUBJECTS.len();
        for (key, value) in [
            ("data.held_out_per_pair", self.data.held_out_per_pair),
            ("clip.per_pair", self.clip.per_pair),
            ("clip.batch_size", self.clip.batch_size),
            ("vae.per_pair", self.vae.per_pair),
            ("vae.batch_size", self.vae.batch_size),
            ("unet.per_pair", self.unet.per_pair),
            ("unet.batch_size", self.unet.batch_size),
            ("unet.shards", self.unet.shards),
            ("vae.shards", self.vae.shards),
        ] {
            positive(&format!("pretrain.{key}"), value)?;
        }
        let batch = self.clip.batch_size;
        ensure!(batch <= pairs, "`pretrain.clip.batch_size` is {batch}, more than the {pairs} (style, subject) pairs");
        for (stage, batch, shards) in
            [("vae", self.vae.batch_size, self.vae.shards), ("unet", self.unet.batch_size, self.unet.shards)]
        {
            ensure!(
                batch % shards == 0,
                "`pretrain.{stage}.batch_size` is {batch}, which is not a multiple of {shards} shards"
            );
        }
        self.check_size()?;
        let stages = self.unet.block_out_channels.len();
        for (key, length) in [
            ("down_block_types", self.unet.down_block_types.len()),
            ("attention_heads", self.unet.attention_heads.len()),
        ] {
            ensure!(length == stages, "`pretrain.unet.{key}` has {length} entries for {stages} stages");
        }
        let share = self.unet.null_share + self.unet.subject_share + self.unet.style_share;
        ensure!((0.0..=1.0).contains(&share), "the caption shares of `pretrain.unet` add up to {share}, more than 1");
        Ok(())
    }

    fn check_size(&self) -> Result<()> {
        let size = i64::from(self.data.size);
        let patch = self.clip.vision.patch_size;
        if size == 0 || patch <= 0 || size % patch != 0 {
            bail!("`pretrain.data.size` is {size}, it must be a positive multiple of the patch size {patch}");
        }
        let halvings = self.vae.block_out_channels.len().saturating_sub(1) + self.unet.block_out_channels.len() - 1;
        let factor = 1i64 << halvings;
        ensure!(
            size % factor == 0,
            "`pretrain.data.size` is {size}, it must be a multiple of {factor}: VAE and UNet halve it {halvings} times"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_learning_rate_rises_holds_and_falls() {
        let mut schedule = PretrainFile::resolve(&[]).unwrap().pretrain.clip.schedule;
        (schedule.steps, schedule.warmup_steps, schedule.decay_steps, schedule.learning_rate) = (100, 10, 20, 1.0);
        assert_eq!(schedule.learning_rate_at(0), 0.1);
        assert_eq!(schedule.learning_rate_at(9), 1.0);
        assert_eq!(schedule.learning_rate_at(79), 1.0);
        assert!(schedule.learning_rate_at(99) > 0.0 && schedule.learning_rate_at(99) < 0.06);
    }
}
