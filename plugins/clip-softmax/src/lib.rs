//! CLIP softmax: classifies an image by the cosine similarity of its embedding to each style's prompts.
//!
//! A style's direction is the mean of its prompts' embeddings, each scaled to length 1; logits are the cosines between
//! it and the image's embedding, divided by the temperature. The manifest has styles, prompts, encoder and temperature
//! (by default that of the encoder's training). Nothing here depends on an encoder's weights: the host embeds the
//! prompts and caches the embeddings across batches. `host plugin build` bakes a manifest into this component.

use ambiguity_sdk::heads::{Cosine, Head};
use ambiguity_sdk::{
    Batch, Classifier, Description, Distributions, Error, Gradient, Host, Manifest, Matrix, Plugin, Result, export,
};

/// The plugin; see the module.
pub struct ClipSoftmax {
    manifest: Manifest,
    encoder: String,
    prompts: Vec<Vec<String>>,
}

export!(ClipSoftmax: Classifier, Gradient);

impl Plugin for ClipSoftmax {
    fn new(host: &Host) -> Result<Self> {
        let manifest = Manifest::baked(host)?;
        Ok(Self { encoder: manifest.encoder_name()?.to_owned(), prompts: manifest.prompts()?, manifest })
    }

    fn describe(&self) -> Description {
        self.manifest.description()
    }
}

impl Classifier for ClipSoftmax {
    fn styles(&self) -> Vec<String> {
        self.manifest.styles.clone()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        self.head(batch)?.distributions(batch.embedding(&self.encoder)?)
    }
}

impl Gradient for ClipSoftmax {
    fn embedding_vjp(&self, batch: &Batch, encoder: &str, upstream: &Matrix) -> Result<Matrix> {
        self.head(batch)?.vjp(batch.embedding(encoder)?, upstream)
    }
}

impl ClipSoftmax {
    /// Returns the classifier by the embeddings of the prompts.
    fn head(&self, batch: &Batch) -> Result<Cosine> {
        let encoder = &self.encoder;
        let scale = match self.manifest.temperature {
            Some(temperature) => 1.0 / temperature,
            None => batch.encoder_info(encoder)?.logit_scale.ok_or_else(|| {
                Error::new(format!("encoder `{encoder}` has no logit scale: give the plugin a temperature"))
            })?,
        };
        let mut embeddings = batch.embed_texts(encoder, &self.prompts.concat())?;
        embeddings.normalize_rows();
        let mut start = 0;
        let means = self.prompts.iter().map(|prompts| {
            start += prompts.len();
            embeddings.view_rows(start - prompts.len()..start).mean_row()
        });
        Ok(Cosine::new(Matrix::from_rows(&means.collect::<Vec<_>>())?, scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};
    use ambiguity_sdk::{EncoderInfo, EncoderPin, Medium};

    fn manifest(prompts: &[&[&str]], temperature: Option<f32>) -> Manifest {
        let prompts: Vec<Vec<String>> =
            prompts.iter().map(|prompts| prompts.iter().map(|&prompt| prompt.into()).collect()).collect();
        Manifest {
            name: "directions".into(),
            version: "1.0.0".into(),
            media: vec![Medium::Image],
            styles: (0..prompts.len()).map(|i| format!("style-{i}")).collect(),
            encoder: Some(EncoderPin { name: "clip".into(), digest: String::new() }),
            prompts,
            temperature,
            ..Manifest::default()
        }
    }

    /// Returns a host that embeds texts as directions of the plane, of lengths that must not matter.
    fn host(manifest: Manifest, logit_scale: Option<f32>) -> FakeHost {
        let info = EncoderInfo { dim: 2, logit_scale, ..EncoderInfo::default() };
        FakeHost::new().asset(Manifest::ASSET, manifest.to_json()).encoder("clip", info, |text| match text {
            "east" => vec![3.0, 0.0],
            "north" => vec![0.0, 0.5],
            _ => vec![-1.0, 0.0],
        })
    }

    fn first_row(host: FakeHost) -> Result<Vec<f32>> {
        let embeddings = Matrix::from_rows(&[[0.0, 7.0]]).expect("a row");
        let batch = FakeBatch::new([FakeSample::default()]).embedding("clip", embeddings);
        Ok(host.load::<ClipSoftmax>()?.classify(&batch)?.row(0).to_vec())
    }

    #[test]
    fn prompts_are_averaged_after_they_are_scaled() {
        // Cosines with north: 1/√2 for the mean of east and north, whatever their lengths, and 0 for west.
        let scale = 2.0;
        let manifest = manifest(&[&["east", "north"], &["west"]], None);
        let log_p = first_row(host(manifest, Some(scale))).expect("a good batch");
        let expected = -(1.0 + (-scale * std::f32::consts::FRAC_1_SQRT_2).exp()).ln();
        assert!((log_p[0] - expected).abs() < 1e-6, "{log_p:?}");
    }

    #[test]
    fn a_temperature_wins_over_the_encoders() {
        let manifest = manifest(&[&["north"], &["west"]], Some(0.5));
        let log_p = first_row(host(manifest.clone(), Some(100.0))).expect("a good batch");
        assert!((log_p[0] + (1.0 + (-2.0f32).exp()).ln()).abs() < 1e-6, "{log_p:?}");
        // The run's own wins over both.
        let log_p = first_row(host(manifest, Some(100.0)).option("temperature", "0.25")).expect("a good batch");
        assert!((log_p[0] + (1.0 + (-4.0f32).exp()).ln()).abs() < 1e-6, "{log_p:?}");
    }

    #[test]
    fn small_probabilities_are_not_floored() {
        // e^-100 is 4e-44.
        let log_p = first_row(host(manifest(&[&["north"], &["west"]], Some(0.01)), None)).expect("a good batch");
        assert_eq!(log_p, [0.0, -100.0]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let message =
            first_row(host(manifest(&[&["north"], &["west"]], None), None)).expect_err("no scale").to_string();
        assert_eq!(message, "encoder `clip` has no logit scale: give the plugin a temperature");
        let host = host(manifest(&[&["north"], &[]], None), None);
        let message = host.load::<ClipSoftmax>().err().expect("empty");
        assert_eq!(message.to_string(), "manifest.json has no prompt for the style `style-1`");
    }

    #[test]
    fn the_gradient_is_exact() {
        let host = host(manifest(&[&["east", "north"], &["west"], &["north"]], Some(0.5)), None);
        let plugin = host.load::<ClipSoftmax>().expect("prompts");
        let error = plugin.gradient_error(&numbers(2, 3, 2)).expect("one encoder");
        assert!(error < 0.005, "{error}");
    }
}
