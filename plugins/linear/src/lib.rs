//! Linear probe: classifies a sample by multinomial logistic regression on its embedding.
//!
//! e = the raw embedding by the manifest's encoder, scaled to length 1 if its `normalize` is true; logits W e + b, divided
//! by the manifest's temperature; softmax. The baked assets are the matrix `weights` (W, styles × dim), the row `bias` (b)
//! and `manifest.json`, which `host plugin fit --labels` writes.

use ambiguity_sdk::heads::{Head, Linear};
use ambiguity_sdk::{
    Batch, Classifier, Description, Distributions, Error, Gradient, Host, Manifest, Matrix, Plugin, Result, export,
};

/// The plugin; see the module.
pub struct LinearProbe {
    manifest: Manifest,
    head: Linear,
}

export!(LinearProbe: Classifier, Gradient);

impl Plugin for LinearProbe {
    fn new(host: &Host) -> Result<Self> {
        let manifest = Manifest::baked(host)?;
        manifest.encoder_name()?;
        let weights = host.asset_tensor("weights")?;
        let (rows, styles) = (weights.n_rows(), manifest.styles.len());
        if rows != styles {
            return Err(Error::new(format!("the baked weights of {rows} styles do not fit the manifest's {styles}")));
        }
        let bias = host.asset_tensor("bias")?.into_vec();
        let head = Linear::new(weights, bias, manifest.temperature.unwrap_or(1.0), manifest.normalize)?;
        Ok(Self { manifest, head })
    }

    fn describe(&self) -> Description {
        self.manifest.description()
    }
}

impl Classifier for LinearProbe {
    fn styles(&self) -> Vec<String> {
        self.manifest.styles.clone()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        self.head.distributions(batch.embedding(self.manifest.encoder_name()?)?)
    }
}

impl Gradient for LinearProbe {
    fn embedding_vjp(&self, batch: &Batch, encoder: &str, upstream: &Matrix) -> Result<Matrix> {
        self.head.vjp(batch.embedding(encoder)?, upstream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};
    use ambiguity_sdk::{EncoderPin, Medium};

    fn host(styles: &[&str], weights: Matrix, bias: Matrix) -> FakeHost {
        let manifest = Manifest {
            name: "directions".into(),
            version: "1.0.0".into(),
            title: "Directions of the plane".into(),
            license: "Apache-2.0".into(),
            media: vec![Medium::Image],
            styles: styles.iter().map(|&style| style.into()).collect(),
            encoder: Some(EncoderPin { name: "tiny".into(), digest: "0".into() }),
            normalize: true,
            ..Manifest::default()
        };
        FakeHost::new().asset(Manifest::ASSET, manifest.to_json()).tensor("weights", weights).tensor("bias", bias)
    }

    #[test]
    fn probabilities_are_the_softmax_of_the_logits() {
        let weights = Matrix::from_rows(&[[2.0, 0.0], [0.0, 3.0]]).expect("two rows of two");
        let bias = Matrix::from_rows(&[[0.5, -0.5]]).expect("one row");
        let embeddings = Matrix::from_rows(&[[3.0, 4.0], [5.0, 0.0]]).expect("two rows of two");
        let batch = FakeBatch::new(vec![FakeSample::default(); 2]).embedding("tiny", embeddings);
        let host = host(&["east", "north"], weights, bias);
        let found = host.load::<LinearProbe>().expect("weights").classify(&batch).expect("a good batch");
        // The first sample's direction is (0.6, 0.8), its logits 1.7 and 1.9; the second one's are 2.5 and −0.5.
        for (row, difference) in [(0, 0.2f64), (1, -3.0)] {
            let north = 1.0 / (1.0 + (-difference).exp());
            assert!((f64::from(found.probabilities(row)[1]) - north).abs() < 1e-6, "{:?}", found.probabilities(row));
        }
    }

    #[test]
    fn the_gradient_is_exact() {
        let host = host(&["a", "b", "c", "d"], numbers(1, 4, 6), numbers(2, 1, 4)).option("temperature", "0.7");
        let plugin = host.load::<LinearProbe>().expect("weights");
        let error = plugin.gradient_error(&numbers(3, 3, 6)).expect("one encoder");
        assert!(error < 0.005, "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |styles: &[&str], bias: usize| {
            let host = host(styles, numbers(1, 2, 2), numbers(2, 1, bias));
            host.load::<LinearProbe>().err().expect("it does not fit").to_string()
        };
        assert_eq!(refused(&["east"], 2), "the baked weights of 2 styles do not fit the manifest's 1");
        assert_eq!(refused(&["east", "north"], 3), "3 biases do not fit the weights of 2 styles");
    }
}
