//! CLIP softmax: classifies an image by the cosine similarity of its embedding to each style's prompts.
//!
//! A style's direction is the mean of its prompts' embeddings, each scaled to length 1; logits are the cosines between
//! it and the image's embedding, divided by the temperature. The manifest has styles, prompts, encoder and temperature
//! (by default that of the encoder's training). Nothing here depends on an encoder's weights: the host embeds the
//! prompts and caches the embeddings across batches. `host plugin build` bakes a manifest into this component.

use ambiguity_sdk::heads::Cosine;
use ambiguity_sdk::{
    Batch, Classifier, Description, Distributions, Error, Gradient, Manifest, Matrix, Result, export, host,
};

/// The plugin; see the module.
pub struct ClipSoftmax;

export!(ClipSoftmax, gradient);

impl Classifier for ClipSoftmax {
    fn describe() -> Result<Description> {
        let manifest = Manifest::baked()?;
        manifest.encoder_name()?;
        manifest.prompts()?;
        Ok(manifest.description())
    }

    fn classify(batch: &Batch) -> Result<Distributions> {
        let manifest = Manifest::baked()?;
        head(&manifest)?.distributions(batch.embedding(manifest.encoder_name()?)?)
    }
}

impl Gradient for ClipSoftmax {
    fn embedding_vjp(batch: &Batch, upstream: &Matrix) -> Result<Matrix> {
        let manifest = Manifest::baked()?;
        head(&manifest)?.vjp(batch.embedding(manifest.encoder_name()?)?, upstream)
    }
}

/// Returns the classifier that the manifest describes.
fn head(manifest: &Manifest) -> Result<Cosine> {
    let (encoder, prompts) = (manifest.encoder_name()?, manifest.prompts()?);
    let scale = match manifest.temperature {
        Some(temperature) if temperature > 0.0 => 1.0 / temperature,
        Some(temperature) => return Err(Error::new(format!("the temperature is {temperature}, it must be above 0"))),
        None => host::encoder_info(encoder)?.logit_scale.ok_or_else(|| {
            Error::new(format!("encoder `{encoder}` has no logit scale: give the plugin a temperature"))
        })?,
    };
    let mut embeddings = host::embed_texts(encoder, &prompts.concat())?;
    embeddings.normalize_rows();
    let mut start = 0;
    let means = prompts.iter().map(|prompts| {
        start += prompts.len();
        embeddings.view_rows(start - prompts.len()..start).mean_row()
    });
    Ok(Cosine { texts: Matrix::from_rows(&means.collect::<Vec<_>>())?, scale })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::EncoderPin;
    use ambiguity_sdk::host::EncoderInfo;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};

    fn manifest(prompts: &[&[&str]], temperature: Option<f32>) -> Manifest {
        let prompts: Vec<Vec<String>> =
            prompts.iter().map(|prompts| prompts.iter().map(|&prompt| prompt.into()).collect()).collect();
        Manifest {
            name: "directions".into(),
            version: "1.0.0".into(),
            media: vec!["image".into()],
            styles: (0..prompts.len()).map(|i| format!("style-{i}")).collect(),
            encoder: Some(EncoderPin { name: "clip".into(), digest: String::new() }),
            prompts,
            temperature,
            ..Manifest::default()
        }
    }

    /// Returns a host that embeds texts as directions of the plane, of lengths that must not matter.
    fn host(manifest: Manifest, logit_scale: Option<f32>) -> FakeHost {
        let info = EncoderInfo { dim: 2, logit_scale, image_size: 8, digest: "0".into() };
        FakeHost::new().asset(Manifest::ASSET, manifest.to_json()).encoder("clip", info, |text| match text {
            "east" => vec![3.0, 0.0],
            "north" => vec![0.0, 0.5],
            _ => vec![-1.0, 0.0],
        })
    }

    fn first_row(mut host: FakeHost) -> Result<Vec<f32>> {
        let embeddings = Matrix::from_rows(&[[0.0, 7.0]]).expect("a row");
        let batch = FakeBatch::new([FakeSample::default()]).embedding("clip", embeddings);
        host.classify::<ClipSoftmax>(batch).map(|distributions| distributions.row(0).to_vec())
    }

    #[test]
    fn prompts_are_averaged_after_they_are_scaled() {
        // Cosines with north: 1/√2 for the mean of east and north, whatever their lengths, and 0 for west.
        let scale = 2.0;
        let manifest = manifest(&[&["east", "north"], &["west"]], None);
        let p = first_row(host(manifest, Some(scale))).expect("a good batch");
        let expected = 1.0 / (1.0 + (-scale * std::f32::consts::FRAC_1_SQRT_2).exp());
        assert!((p[0] - expected).abs() < 1e-6, "{p:?}");
    }

    #[test]
    fn a_temperature_wins_over_the_encoders() {
        let manifest = manifest(&[&["north"], &["west"]], Some(0.5));
        let p = first_row(host(manifest, Some(100.0))).expect("a good batch");
        assert!((p[0] - 1.0 / (1.0 + (-2.0f32).exp())).abs() < 1e-6, "{p:?}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let message =
            first_row(host(manifest(&[&["north"], &["west"]], None), None)).expect_err("no scale").to_string();
        assert_eq!(message, "encoder `clip` has no logit scale: give the plugin a temperature");
        let message = host(manifest(&[&["north"], &[]], None), None).describe::<ClipSoftmax>().expect_err("empty");
        assert_eq!(message.to_string(), "manifest.json has no prompt for the style `style-1`");
    }

    #[test]
    fn the_gradient_is_exact() {
        let mut host = host(manifest(&[&["east", "north"], &["west"], &["north"]], Some(0.5)), None);
        let error = host.gradient_error::<ClipSoftmax>(&numbers(2, 3, 2)).expect("one encoder");
        assert!(error < 0.005, "{error}");
    }
}
