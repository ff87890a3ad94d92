//! Scores an image by the cosine similarity of its embedding and its prompt's, by the run's default CLIP (Hessel et al.,
//! 2021, "CLIPScore", without the factor 2.5 and the floor at 0). The null prompt is embedded as it is: an empty text.

use ambiguity_sdk::{Batch, Description, Gradient, Host, Matrix, Medium, Plugin, Result, Scale, Scorer, export, math};

/// The plugin; see the module.
pub struct ClipScore;

export!(ClipScore: Scorer, Gradient);

/// The run's default encoder.
const ENCODER: &str = "clip";

impl Plugin for ClipScore {
    fn new(_host: &Host) -> Result<Self> {
        Ok(Self)
    }

    fn describe(&self) -> Description {
        Description::new("clip_score", env!("CARGO_PKG_VERSION")).medium(Medium::Image).encoder(ENCODER)
    }
}

impl Scorer for ClipScore {
    fn scale(&self) -> Scale {
        Scale::higher_is_better().at_least(-1.0).at_most(1.0)
    }

    fn score(&self, batch: &Batch) -> Result<Vec<f64>> {
        let (images, prompts) = (batch.embedding(ENCODER)?, batch.prompt_embedding(ENCODER)?);
        let cosine = |(image, prompt): (&[f32], &[f32])| f64::from(math::cosine(image, prompt)).clamp(-1.0, 1.0);
        Ok(images.rows().zip(prompts.rows()).map(cosine).collect())
    }
}

impl Gradient for ClipScore {
    /// The gradient of the cosine e·t / (‖e‖ ‖t‖) is (t/‖t‖ − cos · e/‖e‖) / ‖e‖.
    fn embedding_vjp(&self, batch: &Batch, encoder: &str, upstream: &Matrix) -> Result<Matrix> {
        let (images, mut prompts) = (batch.embedding(encoder)?, batch.prompt_embedding(encoder)?);
        prompts.normalize_rows();
        let mut gradient = Matrix::zeros(images.n_rows(), images.n_cols());
        for (i, image) in images.rows().enumerate() {
            let (mut unit, gradient) = (image.to_vec(), gradient.row_mut(i));
            let length = math::normalize(&mut unit);
            if length > 0.0 {
                let factor = upstream.row(i)[0] / length;
                math::add_scaled(gradient, factor, prompts.row(i));
                math::add_scaled(gradient, -factor * math::dot(&unit, prompts.row(i)), &unit);
            }
        }
        Ok(gradient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::EncoderInfo;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};

    #[test]
    fn scores_are_cosines_and_their_gradient_is_exact() {
        let info = EncoderInfo { dim: 2, ..EncoderInfo::default() };
        let host = FakeHost::new().encoder(ENCODER, info, |text| match text {
            "east" => vec![3.0, 0.0],
            _ => vec![0.0, 0.5],
        });
        let plugin = host.load::<ClipScore>().expect("it needs nothing");
        let samples = ["east", "north"].map(|prompt| FakeSample::default().prompt(prompt));
        let images = Matrix::from_rows(&[[-2.0, 0.0], [1.0, 1.0]]).expect("two rows");
        let scores = plugin.score(&FakeBatch::new(samples).embedding(ENCODER, images)).expect("two images");
        assert!((scores[0] + 1.0).abs() < 1e-6 && (scores[1] - 0.5f64.sqrt()).abs() < 1e-6, "{scores:?}");
        let error = plugin.score_gradient_error(&numbers(2, 3, 2)).expect("one encoder");
        assert!(error < 0.005, "{error}");
    }
}
