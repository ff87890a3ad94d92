//! The lines of `metrics.jsonl`: one typed record for each kind of run, which both the trainer that writes it and the
//! report that reads it use.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::energy::Energy;
use crate::rl::objective::UpdateStatistics;

/// A line of `metrics.jsonl`: an epoch, the metrics of its training, and the metrics of the monitor after it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record<T, M> {
    /// The epoch; 0 is the untrained model, which has only the monitor.
    pub epoch: u64,
    /// The metrics of the epoch's training.
    #[serde(flatten)]
    pub trained: Option<T>,
    /// The metrics of the monitor, which evaluates the same fixed samples or held-out data every few epochs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<M>,
    /// Warnings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl<T: Serialize + DeserializeOwned, M: Serialize + DeserializeOwned> Record<T, M> {
    /// Reads a line.
    ///
    /// # Errors
    /// If it is not a JSON object, or a field is missing or of another type; the message names it.
    pub fn parse(line: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Common<M> {
            epoch: u64,
            monitor: Option<M>,
            #[serde(default)]
            warnings: Vec<String>,
        }
        let value: Value = serde_json::from_str(line)?;
        let Common { epoch, monitor, warnings } = Common::deserialize(&value)?;
        let trained = (epoch > 0).then(|| T::deserialize(&value)).transpose()?;
        Ok(Self { epoch, trained, monitor, warnings })
    }
}

/// Returns the name of the first field of a JSON value that is `null`, as which a number that is not finite is written.
pub(super) fn first_null(value: &Value, name: &str) -> Option<String> {
    match value {
        Value::Null => Some(name.to_owned()),
        Value::Object(fields) => fields.iter().find_map(|(field, value)| {
            first_null(value, &if name.is_empty() { field.clone() } else { format!("{name}.{field}") })
        }),
        Value::Array(values) => values.iter().find_map(|value| first_null(value, name)),
        _ => None,
    }
}

/// The record of `host train`.
pub type FineTuneRecord = Record<FineTuneEpoch, FineTuneMonitor>;

/// An epoch of fine-tuning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FineTuneEpoch {
    /// Mean of the weighted sum of the plugins' rewards.
    pub reward_mean: f64,
    /// Standard deviation of the same, ddof 0.
    pub reward_std: f64,
    /// Minimum of the same.
    pub reward_min: f64,
    /// Maximum of the same.
    pub reward_max: f64,
    /// The mean reward of each plugin.
    pub rewards: BTreeMap<String, f64>,
    /// Number of samples that were left out since a plugin failed on them.
    pub skipped: u64,
    /// The statistics of the update.
    #[serde(flatten)]
    pub update: UpdateStatistics,
    /// Number of samples divided by the time of all parts.
    pub images_per_second: f64,
    /// Wall-clock seconds by part.
    pub seconds: FineTuneSeconds,
    /// The energy of all parts; none where it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
}

/// Wall-clock seconds of the parts of an epoch of fine-tuning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FineTuneSeconds {
    /// From prompts to latents.
    pub sample: f64,
    /// From latents to rewards: VAE, encoders, plugins.
    pub reward: f64,
    /// Updates.
    pub train: f64,
}

impl FineTuneSeconds {
    /// Returns the seconds of all parts.
    pub fn total(&self) -> f64 {
        self.sample + self.reward + self.train
    }
}

/// The monitor of a fine-tuning: the same prompts and noise each time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FineTuneMonitor {
    /// Mean reward.
    pub reward_mean: f64,
    /// Standard error of the mean reward over the samples; none for a single sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_sem: Option<f64>,
    /// The mean reward of each plugin.
    #[serde(default)]
    pub plugin_rewards: BTreeMap<String, f64>,
    /// Mean entropy of the first classifier's distributions in nats; none if all plugins are scorers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// Mean of the largest probability; none if all plugins are scorers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_probability: Option<f64>,
    /// Mean pairwise 1 − cos of the images' embeddings.
    pub diversity: f64,
    /// The Vendi score of the same embeddings: the effective number of different images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendi: Option<f64>,
    /// The mean reward of each held-out plugin.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held_out: BTreeMap<String, f64>,
    /// The reward of each sample, for paired comparison.
    pub rewards: Vec<f64>,
    /// The same of each held-out plugin.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held_out_rewards: BTreeMap<String, Vec<f64>>,
    /// The distributions of the first classifier of the reward; none if all plugins are scorers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub styles: Option<StylesMonitor>,
}

/// What a classifier says of the monitor's images; probabilities have four decimals.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StylesMonitor {
    /// The plugin's name in the metrics.
    pub plugin: String,
    /// Entropy in nats of the mean distribution over all images.
    pub coverage: f64,
    /// The distributions of the first images, one per image of the before/after comparison.
    pub first: Vec<Vec<f64>>,
    /// Row i: the mean distribution of the images whose most probable style is i; empty for a style that no image has, and
    /// for classifiers of more than 64 styles as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<Vec<f64>>,
}

/// The record of `host can train`.
pub type GanRecord = Record<GanEpoch, GanMonitor>;

/// An epoch of a CAN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GanEpoch {
    /// Means over the epoch's steps.
    #[serde(flatten)]
    pub means: GanMeans,
    /// Steps and their speed.
    #[serde(flatten)]
    pub pace: Pace,
}

/// The means of a CAN's epoch over its steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GanMeans {
    /// Losses by their name.
    pub loss: GanLosses,
    /// Share of (real, fake) pairs in which the discriminator's output is higher for the real image.
    pub discriminator_accuracy: f64,
    /// Share of real images whose style the style head predicts correctly, if it is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style_accuracy: Option<f64>,
}

/// The losses of a CAN; those that a configuration leaves out are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GanLosses {
    /// The discriminator's adversarial loss.
    pub adversarial_discriminator: f64,
    /// The gradient penalty of the Wasserstein form, not weighted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_penalty: Option<f64>,
    /// L_SL, not weighted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style: Option<f64>,
    /// The discriminator's total loss.
    pub discriminator: f64,
    /// The generator's adversarial loss.
    pub adversarial_generator: f64,
    /// L_SA, not weighted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ambiguity: Option<f64>,
    /// The generator's total loss.
    pub generator: f64,
}

/// The monitor of a CAN: images generated from the same noise each time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GanMonitor {
    /// Mean style ambiguity of generated images in nats; the minimum is ln of `styles`.
    pub ambiguity: f64,
    /// Mean entropy of their distributions in nats.
    pub entropy: f64,
    /// Mean of the largest probability.
    pub max_probability: f64,
    /// Mean pairwise distance as a share of that of real images.
    pub diversity: f64,
    /// Number of styles of the classifier.
    pub styles: usize,
    /// Norm of the gradient of the weighted style ambiguity with respect to the images, divided by that of the
    /// adversarial loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm_ratio: Option<f64>,
    /// Share of held-out real images whose style the style head predicts correctly, if it is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style_accuracy: Option<f64>,
}

/// The record of `host classifier train`.
pub type ClassifierRecord = Record<ClassifierEpoch, ClassifierMonitor>;

/// An epoch of the simple classifier.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassifierEpoch {
    /// Means over the epoch's steps.
    #[serde(flatten)]
    pub means: ClassifierMeans,
    /// Steps and their speed.
    #[serde(flatten)]
    pub pace: Pace,
}

/// The means of a classifier's epoch over its steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassifierMeans {
    /// Cross-entropy in nats.
    pub loss: f64,
    /// Share of images whose style is predicted correctly.
    pub accuracy: f64,
}

/// The monitor of the simple classifier: held-out images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassifierMonitor {
    /// Share of images whose style is predicted correctly.
    pub accuracy: f64,
    /// Cross-entropy in nats.
    pub loss: f64,
}

/// The steps of an epoch over images, and their speed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Number of steps.
    pub steps: u64,
    /// Number of trained images divided by the training time.
    pub images_per_second: f64,
    /// Wall-clock seconds by part.
    pub seconds: PaceSeconds,
}

/// Wall-clock seconds of the parts of an epoch over images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PaceSeconds {
    /// Waiting for images.
    pub data: f64,
    /// Updates.
    pub train: f64,
}

/// The record of a stage of `host pretrain`, whose monitor is `M`.
pub type PretrainRecord<M> = Record<PretrainEpoch, M>;

/// The monitor of CLIP's pretraining: zero-shot classification of held-out paintings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClipMonitor {
    /// Share of paintings whose style is predicted correctly.
    pub style_accuracy: f64,
    /// Share of paintings whose subject is predicted correctly.
    pub subject_accuracy: f64,
    /// Share of paintings whose style and subject are predicted correctly together.
    pub caption_accuracy: f64,
}

/// The monitor of the autoencoder's pretraining: held-out paintings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VaeMonitor {
    /// Mean peak signal-to-noise ratio of reconstructions in dB.
    pub psnr: f64,
    /// Standard deviation of the latents.
    pub latent_std: f64,
}

/// The monitor of the UNet's pretraining, with the averaged weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UNetMonitor {
    /// Weighted loss on held-out latents, always with the same noise.
    pub held_out_loss: f64,
    /// Number of samples with a style and a subject.
    pub styled_samples: usize,
    /// Share of them whose style CLIP predicts.
    pub styled_style_accuracy: f64,
    /// Share of them whose subject CLIP predicts.
    pub styled_subject_accuracy: f64,
    /// Number of samples with a subject alone.
    pub plain_samples: usize,
    /// Share of them whose subject CLIP predicts.
    pub plain_subject_accuracy: f64,
}

/// An epoch of pretraining.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PretrainEpoch {
    /// Number of steps since training began.
    pub step: u64,
    /// Mean loss.
    pub loss: f64,
    /// Number of steps that were skipped since their gradient was not finite.
    pub dropped_steps: u64,
    /// Wall-clock seconds of training.
    pub train_seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let epoch = FineTuneEpoch { reward_mean: -3.5, skipped: 2, ..FineTuneEpoch::default() };
        let monitor = FineTuneMonitor { reward_mean: -3.4, rewards: vec![-3.4], ..FineTuneMonitor::default() };
        let record =
            Record { epoch: 3, trained: Some(epoch), monitor: Some(monitor), warnings: vec!["low".to_owned()] };
        let line = serde_json::to_string(&record).unwrap();
        let read = FineTuneRecord::parse(&line).unwrap();
        assert_eq!((read.epoch, read.trained, read.monitor), (3, record.trained, record.monitor));
        assert_eq!(read.warnings, ["low"]);
        assert!(line.starts_with(r#"{"epoch":3,"reward_mean":-3.5,"#), "{line}");
    }

    #[test]
    fn the_untrained_model_has_its_monitor_alone() {
        let line = r#"{"epoch": 0, "monitor": {"accuracy": 0.1, "loss": 3.3}}"#;
        let record = ClassifierRecord::parse(line).unwrap();
        assert!(record.trained.is_none());
        assert_eq!(record.monitor.unwrap().accuracy, 0.1);
    }

    #[test]
    fn a_field_that_is_missing_or_not_a_number_is_named() {
        let message = |line: &str| ClassifierRecord::parse(line).unwrap_err().to_string();
        assert!(message(r#"{"epoch": 1, "accuracy": 0.5}"#).contains("missing field `loss`"));
        assert!(message(r#"{"epoch": 0, "monitor": {"accuracy": null, "loss": 1}}"#).contains("invalid type: null"));
        assert!(message("\"stray\"").contains("invalid type"));
        let value = serde_json::json!({"epoch": 1, "loss": {"style": f64::NAN}});
        assert_eq!(first_null(&value, "").as_deref(), Some("loss.style"));
    }
}
