//! The configuration of CAN and classifier training: the same layers of TOML as for fine-tuning, with a table `[can]`.
//! The preset files contain every default; the code has no second set.

use std::collections::BTreeMap;

use ambiguity_models::can::{DiscriminatorConfig, GeneratorConfig};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use torch_ext::AdamWConfig;

use super::layers::{Layer, Presets};
use super::{
    Checkpoint, Cuda, MAX_BATCH, MAX_PIXELS, Monitor, PluginLimits, Run, RunConfig, WIDEST, counted, positive, within,
};
use crate::text::has_control;

/// A preset consists of layers over the paper's CAN at 512 px, which contains every key.
const PRESETS: Presets = Presets {
    complete: include_str!("../../presets/can-paper.toml"),
    named: &[
        ("paper-512", &[]),
        ("paper-256", &[include_str!("../../presets/can-paper-256.toml")]),
        ("paper-128", &[include_str!("../../presets/can-paper-128.toml")]),
        ("paper-64", &[include_str!("../../presets/can-paper-64.toml")]),
        ("can-as-code", &[include_str!("../../presets/can-as-code.toml")]),
        ("tiny-art", &[include_str!("../../presets/can-tiny-art.toml")]),
    ],
};

/// The layer of the simple classifier over the preset `tiny-art`.
const CLASSIFIER_TINY_ART: &str = include_str!("../../presets/classifier-tiny-art.toml");
/// The layer of a CAN over the same preset if C is a plugin.
const PLUGIN_TINY_ART: &str = include_str!("../../presets/can-tiny-art-plugin.toml");

/// The name of the discriminator's own style head in the configuration.
pub const OWN_HEAD: &str = "dcgan";

/// Maximum ratio of the discriminator's channels to those of its first feature map: 512 for the paper's 32.
const MAX_WIDENING: i64 = 16;

/// The largest number of images of a style in one pass.
const MAX_PER_CLASS: u64 = 1 << 24;
/// The largest number of steps of an epoch.
const MAX_STEPS_PER_EPOCH: u64 = 1 << 32;

/// The names of the presets.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.names()
}

/// The trained networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GanTask {
    /// The generator and the discriminator.
    Can,
    /// Only the discriminator's convolutions and style head.
    Classifier,
}

impl GanTask {
    /// Returns the command of the task.
    pub fn command(self) -> &'static str {
        match self {
            Self::Can => "host can train",
            Self::Classifier => "host classifier train",
        }
    }
}

/// The configuration of a CAN or classifier run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GanConfig {
    /// Seed and device.
    pub run: Run,
    /// How NVIDIA's libraries compute.
    pub cuda: Cuda,
    /// Folders of encoders by the names that plugins use.
    pub encoders: BTreeMap<String, String>,
    /// Networks, losses and data.
    pub can: Can,
    /// Checkpoints.
    pub checkpoint: Checkpoint,
    /// The monitor; `min_diversity` is a share of the real images' diversity.
    pub monitor: Monitor,
    /// The limits of a plugin.
    pub plugin: PluginLimits,
}

/// The table `[can]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Can {
    /// A folder that contains a folder of images for each style; empty for the procedural paintings.
    pub data: String,
    /// Side of the images in pixels.
    pub size: u32,
    /// Number of images of each style in one pass.
    pub per_class: usize,
    /// Share of each style's images that is held out.
    pub test_share: f64,
    /// Padding or cropping of images to squares.
    pub fit: Fit,
    /// Whether half of the images are mirrored.
    pub flip: bool,
    /// Dimension of the noise.
    pub latent: i64,
    /// Number of channels of the generator's first feature map.
    pub generator_channels: i64,
    /// Slope of the generator's activation below zero.
    pub generator_slope: f64,
    /// Number of channels of the discriminator's first feature map.
    pub discriminator_channels: i64,
    /// Widths of the style head's hidden layers.
    pub head: [i64; 2],
    /// Dropout probability of the hidden layers.
    pub dropout: f64,
    /// The form of the adversarial losses.
    pub loss: LossForm,
    /// Weight of the gradient penalty.
    pub lambda: f64,
    /// Whether the generator's loss is −log D instead of log(1 − D).
    pub nonsaturating: bool,
    /// The classifier C of the style ambiguity: [`OWN_HEAD`] or a plugin.
    pub classifier: String,
    /// Weight of L_SL.
    pub style_weight: f64,
    /// Share of each label of L_SL that is spread evenly over all styles.
    pub label_smoothing: f64,
    /// Weight of L_SA.
    pub style_ambiguity_weight: f64,
    /// Number of epochs.
    pub epochs: u64,
    /// Number of steps per epoch; 0: one pass over the balanced images.
    pub steps_per_epoch: u64,
    /// Number of images per step.
    pub batch_size: usize,
    /// Authors of the exported plugin.
    pub authors: Vec<String>,
    /// License of the exported plugin, an SPDX expression.
    pub license: String,
    /// The optimizer of both networks.
    pub adam: Adam,
}

/// The form of the adversarial losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossForm {
    /// The Wasserstein losses of a critic, with a gradient penalty.
    Wasserstein,
    /// Binary cross-entropies of real and fake images.
    Log,
}

/// Padding or cropping of an image to a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The whole image, padded with black (torchvision's default) on both sides.
    Pad,
    /// The center crop.
    Crop,
}

impl Fit {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pad => "pad",
            Self::Crop => "crop",
        }
    }
}

/// The table `[can.adam]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adam {
    /// Constant learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment, the running mean of the gradients.
    pub beta1: f64,
    /// Decay of the second moment, the running mean of their squares.
    pub beta2: f64,
    /// Constant added to the denominator.
    pub epsilon: f64,
}

impl Adam {
    /// Returns the optimizer's configuration: Adam is AdamW without weight decay.
    pub fn config(&self) -> AdamWConfig {
        AdamWConfig {
            learning_rate: self.learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            weight_decay: 0.0,
            epsilon: self.epsilon,
        }
    }
}

impl RunConfig for GanConfig {
    const OF: &'static str = "a CAN run";
    const COMPLETE: &'static str = PRESETS.complete;
    // The images are compared by their digest.
    const FREE_KEYS: &'static [&'static str] = &[
        "run.device",
        "cuda",
        "encoders",
        "can.data",
        "can.epochs",
        "can.authors",
        "can.license",
        "checkpoint.every",
        "checkpoint.keep",
        "monitor.every",
        "monitor.min_diversity",
        "monitor.on_collapse",
        "plugin.timeout_ms",
        "plugin.memory_mib",
    ];

    fn check(&self) -> Result<()> {
        let Self { can, checkpoint, monitor, plugin, .. } = self;
        let size = can.size;
        ensure!(
            size >= 32 && size.is_power_of_two(),
            "can.size is {size}: a CAN generates images whose side is a power of two of at least 32"
        );
        counted("can.size", size, MAX_PIXELS)?;
        counted("can.per_class", can.per_class, MAX_PER_CLASS)?;
        counted("can.batch_size", can.batch_size, MAX_BATCH)?;
        counted("monitor.count", monitor.count, MAX_BATCH)?;
        ensure!(
            can.steps_per_epoch <= MAX_STEPS_PER_EPOCH,
            "can.steps_per_epoch is {}: it must be at most {MAX_STEPS_PER_EPOCH}",
            can.steps_per_epoch
        );
        for (key, width) in [
            ("can.latent", can.latent),
            ("can.generator_channels", can.generator_channels),
            ("can.discriminator_channels", can.discriminator_channels),
            ("can.head", can.head[0]),
            ("can.head", can.head[1]),
        ] {
            counted(key, width, WIDEST)?;
        }
        positive("can.epochs", can.epochs)?;
        positive("checkpoint.every", checkpoint.every)?;
        positive("monitor.every", monitor.every)?;
        plugin.check()?;
        let halvings = size.ilog2() - 3;
        ensure!(
            can.generator_channels % (1 << halvings) == 0,
            "can.generator_channels is {}: at {size} px it is halved {halvings} times, so it must be a multiple of {}",
            can.generator_channels,
            1 << halvings
        );
        ensure!(
            can.batch_size > 1,
            "can.batch_size is {}: BatchNorm needs at least two images per step",
            can.batch_size
        );
        ensure!(monitor.count > 1, "monitor.count is {}: diversity needs at least two images", monitor.count);
        for (key, texts) in [("can.authors", &can.authors[..]), ("can.license", std::slice::from_ref(&can.license))] {
            let bad = texts.iter().find(|text| has_control(text));
            ensure!(
                bad.is_none(),
                "{key} contains control characters, which a plugin must not contain: {:?}",
                bad.map_or("", |t| t)
            );
        }
        within("can.test_share", can.test_share, 0.001, 0.9)?;
        within("can.generator_slope", can.generator_slope, 0.0, 1.0)?;
        within("can.dropout", can.dropout, 0.0, 0.99)?;
        within("can.lambda", can.lambda, 0.0, 1e6)?;
        within("can.style_weight", can.style_weight, 0.0, 1e6)?;
        within("can.label_smoothing", can.label_smoothing, 0.0, 1.0)?;
        within("can.style_ambiguity_weight", can.style_ambiguity_weight, 0.0, 1e9)?;
        within("can.adam.learning_rate", can.adam.learning_rate, 0.0, 10.0)?;
        within("can.adam.beta1", can.adam.beta1, 0.0, 0.999_999)?;
        within("can.adam.beta2", can.adam.beta2, 0.0, 0.999_999_9)?;
        // At 0 a gradient of 0 would be divided by 0.
        within("can.adam.epsilon", can.adam.epsilon, 1e-30, 1.0)?;
        within("monitor.min_diversity", monitor.min_diversity, 0.0, 1.0)?;
        Ok(())
    }
}

impl GanConfig {
    /// Resolves the preset with the layers over it, in order, and checks the result.
    pub fn resolve(task: GanTask, preset: &str, layers: &[Layer]) -> Result<Self> {
        let over = |built_in: &[&str]| Self::of_table(PRESETS.table(preset, built_in, layers)?, layers);
        match (task, preset) {
            (GanTask::Classifier, "tiny-art") => over(&[CLASSIFIER_TINY_ART]),
            (GanTask::Can, "tiny-art") => match over(&[])? {
                config if config.own_head() => Ok(config),
                _ => over(&[PLUGIN_TINY_ART]),
            },
            _ => over(&[]),
        }
    }

    /// Whether the layers name a folder of images.
    pub fn names_data(layers: &[Layer]) -> bool {
        let data = |layer: &Layer| {
            let table: toml::Table = layer.text.parse().ok()?;
            Some(!table.get("can")?.get("data")?.as_str()?.is_empty())
        };
        layers.iter().filter_map(data).next_back().unwrap_or(false)
    }

    /// Whether the style ambiguity is computed with the discriminator's own head. With a plugin the head is not needed,
    /// and is not trained (the paper discards it).
    pub fn own_head(&self) -> bool {
        self.can.classifier == OWN_HEAD
    }

    /// Returns the configuration of the generator.
    pub fn generator(&self) -> GeneratorConfig {
        GeneratorConfig {
            size: i64::from(self.can.size),
            latent: self.can.latent,
            channels: self.can.generator_channels,
            slope: self.can.generator_slope,
        }
    }

    /// Returns the configuration of the discriminator.
    pub fn discriminator(&self, n_styles: usize) -> DiscriminatorConfig {
        DiscriminatorConfig {
            size: i64::from(self.can.size),
            channels: self.can.discriminator_channels,
            max_channels: MAX_WIDENING * self.can.discriminator_channels,
            head: self.can.head,
            dropout: self.can.dropout,
            n_styles: n_styles as i64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::refuses_odd_numbers;

    fn message(text: &str) -> String {
        let layer = Layer { origin: "run.toml".to_owned(), text: text.to_owned() };
        format!("{:#}", GanConfig::resolve(GanTask::Can, "tiny-art", &[layer]).expect_err("the layer is wrong"))
    }

    #[test]
    fn every_preset_resolves_and_survives_its_own_toml() {
        for (name, task) in preset_names().flat_map(|name| [(name, GanTask::Can), (name, GanTask::Classifier)]) {
            let config = GanConfig::resolve(task, name, &[]).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            let again: GanConfig = toml::from_str(&config.to_toml().expect("serializes")).expect("parses");
            assert_eq!(again, config, "{name}");
        }
    }

    #[test]
    fn the_papers_networks_are_those_of_table_17() {
        let config = GanConfig::resolve(GanTask::Can, "paper-64", &[]).expect("resolves");
        let (generator, discriminator) = (config.generator(), config.discriminator(27));
        assert_eq!((generator.size, generator.latent, generator.channels), (64, 100, 2048));
        assert_eq!((discriminator.channels, discriminator.max_channels, discriminator.head), (32, 512, [1024, 512]));
        assert_eq!((config.can.adam.learning_rate, config.can.adam.beta2), (1e-3, 0.99));
        let code = GanConfig::resolve(GanTask::Can, "can-as-code", &[]).expect("resolves");
        assert_eq!((code.can.adam.learning_rate, code.can.adam.beta1, code.can.adam.beta2), (2e-4, 0.5, 0.999));
    }

    #[test]
    fn a_plugins_ambiguity_has_a_weight_of_its_own_where_nobody_names_one() {
        let weight = |layers: &[&str]| {
            let layers: Vec<_> = layers.iter().map(|set| Layer::set(set).expect("an assignment")).collect();
            GanConfig::resolve(GanTask::Can, "tiny-art", &layers).expect("resolves").can.style_ambiguity_weight
        };
        assert_eq!((weight(&[]), weight(&["can.classifier=clip_softmax"])), (20.0, 1.0));
        assert_eq!(weight(&["can.style_ambiguity_weight=20", "can.classifier=clip_softmax"]), 20.0);
    }

    #[test]
    fn the_last_layer_says_whether_there_is_data() {
        let named = |sets: &[&str]| {
            GanConfig::names_data(&sets.iter().map(|set| Layer::set(set).expect("an assignment")).collect::<Vec<_>>())
        };
        assert!(!named(&[]) && !named(&["can.size=64"]) && named(&["can.data=two", "can.size=64"]));
        assert!(!named(&["can.data=two", "can.data="]));
    }

    #[test]
    fn odd_numbers_are_refused_by_key() {
        let accepted = |key: &str, odd: &str| {
            matches!(
                (key, odd),
                ("can.epochs" | "checkpoint.every" | "monitor.every", "9223372036854775807")
                    | ("run.seed" | "checkpoint.keep", "0" | "9223372036854775807")
                    | (
                        "can.steps_per_epoch"
                            | "can.generator_slope"
                            | "can.dropout"
                            | "can.lambda"
                            | "can.style_weight",
                        "0",
                    )
                    | ("can.label_smoothing" | "can.style_ambiguity_weight" | "monitor.min_diversity", "0")
                    | ("can.adam.learning_rate" | "can.adam.beta1" | "can.adam.beta2", "0")
            )
        };
        let n_keys = refuses_odd_numbers(|layers| GanConfig::resolve(GanTask::Can, "tiny-art", layers), accepted);
        assert!(n_keys > 25, "{n_keys}");
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            message("[can]\nsize = 96\n"),
            "can.size is 96: a CAN generates images whose side is a power of two of at least 32"
        );
        assert!(message("[can]\ngenerator_channels = 20\n").contains("must be a multiple of 8"));
        assert!(message("[can]\nloss = \"hinge\"\n").contains("hinge"));
        assert_eq!(message("[can]\nlamda = 1\n"), "run.toml:2:1: unknown key `can.lamda`; did you mean `lambda`?");
        assert!(message("[can.adam]\nlearning_rate = -1\n").contains("can.adam.learning_rate"));
    }
}
