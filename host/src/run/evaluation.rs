//! `eval.json`: the metrics of images, beside the conditions under which the images were generated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Result, RunError, read, write_report_file};
use crate::text::to_json;

/// The file's name.
pub const EVALUATION: &str = "eval.json";

/// The metrics of images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The conditions under which the images were generated.
    pub protocol: Protocol,
    /// The metrics, in order, also those that were not measured.
    pub metrics: Vec<Metric>,
}

/// The conditions under which images were generated. The same model has other metrics under other conditions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Number of images.
    pub count: usize,
    /// Number of DDIM steps; none for given images.
    pub steps: Option<usize>,
    /// DDIM's η; none for given images.
    pub eta: Option<f64>,
    /// Scale of classifier-free guidance; none for given images.
    pub guidance: Option<f64>,
    /// Width of the images in pixels; none for given images of different sizes.
    pub width: Option<u32>,
    /// Height of the images in pixels; none for given images of different sizes.
    pub height: Option<u32>,
    /// Seed of the noise; none for given images.
    pub seed: Option<u64>,
    /// The prompts, each once; image i has prompt i mod their number. Empty for given images without captions.
    pub prompts: Vec<String>,
    /// Number of image pairs of the style similarity; none where no images were generated for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<usize>,
    /// The model, as it was named; none for given images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The LoRA; none for given images and for a model alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<String>,
    /// The digest of the LoRA's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_sha256: Option<String>,
    /// The folder of given images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<String>,
    /// The folder of reference images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// One metric under one encoder or plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The metric's name, such as `vendi`.
    pub name: String,
    /// The encoder that it was measured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<String>,
    /// The plugin that it was measured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// Whether the plugin took no part in the training.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_out: bool,
    /// The values, or why there are none.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The values of a metric, or why there are none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status")]
pub enum Outcome {
    /// The metric was measured.
    #[serde(rename = "ok")]
    Ok(Box<Values>),
    /// The metric was not measured.
    #[serde(rename = "not run")]
    NotRun {
        /// What is missing, and what to do.
        reason: String,
    },
}

/// The values of a metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Values {
    /// The value of the images.
    #[serde(flatten)]
    pub value: Estimate,
    /// The same of the model without LoRA, from the same prompts and noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Estimate>,
    /// The value minus that of the baseline, image by image where a metric is one of single images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Estimate>,
    /// Mean over the prompts of the value of a prompt's images, for a metric of several images together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_prompts: Option<f64>,
    /// The value of each prompt's images.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_prompt: BTreeMap<String, OfPrompt>,
}

/// A value with its uncertainty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean over images, or the value of all images together.
    pub mean: f64,
    /// The standard deviation over images (ddof 0); for a value of all images together, its standard error.
    pub std: f64,
    /// The interval that contains the true value in 95 of 100 cases: 1.96 standard errors around a mean; for a value of all
    /// images together, the centered bootstrap's. None for a single image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
    /// Number of images, or of pairs of images for a style similarity.
    pub n: usize,
}

/// The value of a prompt's images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OfPrompt {
    /// The mean over them, or the value of them together.
    pub mean: f64,
    /// The least of the distances between two of them, for `pairwise-distance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    /// Number of images.
    pub n: usize,
}

impl Metric {
    /// Returns the values, if the metric was measured.
    pub fn values(&self) -> Option<&Values> {
        match &self.outcome {
            Outcome::Ok(values) => Some(values),
            Outcome::NotRun { .. } => None,
        }
    }

    /// Returns the metric's name with its encoder or plugin, as tables show it.
    pub fn label(&self) -> String {
        match self.plugin.as_ref().or(self.encoder.as_ref()) {
            Some(by) => format!("{} ({by})", self.name),
            None => self.name.clone(),
        }
    }
}

impl Evaluation {
    /// Reads `eval.json` in a folder, if there is one.
    ///
    /// # Errors
    /// If the file cannot be read, or is no evaluation.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let text = read(folder, EVALUATION)?;
        if text.is_empty() {
            return Ok(None);
        }
        let damaged = |error: serde_json::Error| RunError::Damaged {
            path: folder.join(EVALUATION),
            message: format!("it is no evaluation ({error}): run `host eval` again"),
        };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// Writes `eval.json` into a folder.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        write_report_file(folder, EVALUATION, (to_json(self) + "\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_reads_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Evaluation::read(folder.path()).expect("there is none"), None);
        let estimate = |mean| Estimate { mean, std: 0.5, ci95: Some([mean - 1.0, mean + 1.0]), n: 4 };
        let values = Values { value: estimate(2.0), baseline: Some(estimate(1.0)), ..Values::default() };
        let of = |name: &str, outcome| Metric {
            name: name.to_owned(),
            encoder: Some("clip".to_owned()),
            plugin: None,
            held_out: false,
            outcome,
        };
        let evaluation = Evaluation {
            protocol: Protocol { count: 4, prompts: vec!["a cat".to_owned()], ..Protocol::default() },
            metrics: vec![
                of("vendi", Outcome::Ok(Box::new(values))),
                of("ava", Outcome::NotRun { reason: "needs its weights".to_owned() }),
            ],
        };
        let path = evaluation.write(folder.path()).expect("writable");
        assert_eq!(Evaluation::read(folder.path()).expect("it reads"), Some(evaluation));
        let text = std::fs::read_to_string(&path).expect("written");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let metric = &json["metrics"][0];
        assert_eq!((&metric["status"], &metric["mean"], &metric["ci95"][1]), (&"ok".into(), &2.0.into(), &3.0.into()));
        assert_eq!(json["metrics"][1]["status"], "not run");
        std::fs::write(&path, "{").expect("writable");
        let message = Evaluation::read(folder.path()).expect_err("damaged").to_string();
        assert!(message.contains("run `host eval` again"), "{message}");
    }
}
