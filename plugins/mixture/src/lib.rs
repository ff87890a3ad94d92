//! Gaussian mixture: classifies a sample by the responsibilities of the mixture's components for its embedding.
//!
//! e = the raw embedding by the manifest's encoder, scaled to length 1 if its `normalize` is true; y = P (e − m); logits
//! ln wᵢ + ln N(y; μᵢ, Σᵢ), divided by the manifest's temperature; softmax. The baked assets, which
//! `host plugin fit --mixture` writes, are `manifest.json` and the matrices `projection` (P, r × dim), `origin` (m, a row),
//! `log_weights` (ln wᵢ, a row), `means` (μᵢ, styles × r) and `factors` (the lower triangular Lᵢ with Lᵢ Lᵢᵀ = Σᵢ⁻¹, one
//! below the other).

use ambiguity_sdk::heads::{GaussianMixture, Head, MixtureParts};
use ambiguity_sdk::{
    Batch, Classifier, Description, Distributions, Error, Gradient, Host, Manifest, Matrix, Plugin, Result, export,
};

/// The plugin; see the module.
pub struct Mixture {
    manifest: Manifest,
    head: GaussianMixture,
}

export!(Mixture: Classifier, Gradient);

impl Plugin for Mixture {
    fn new(host: &Host) -> Result<Self> {
        let manifest = Manifest::baked(host)?;
        manifest.encoder_name()?;
        let parts = MixtureParts {
            projection: host.asset_tensor("projection")?,
            origin: host.asset_tensor("origin")?.into_vec(),
            log_weights: host.asset_tensor("log_weights")?.into_vec(),
            means: host.asset_tensor("means")?,
            factors: host.asset_tensor("factors")?,
            temperature: manifest.temperature.unwrap_or(1.0),
            normalize: manifest.normalize,
        };
        let (components, styles) = (parts.means.n_rows(), manifest.styles.len());
        if components != styles {
            return Err(Error::new(format!("{components} baked components do not fit the manifest's {styles} styles")));
        }
        Ok(Self { manifest, head: GaussianMixture::new(parts)? })
    }

    fn describe(&self) -> Description {
        self.manifest.description()
    }
}

impl Classifier for Mixture {
    fn styles(&self) -> Vec<String> {
        self.manifest.styles.clone()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        self.head.distributions(batch.embedding(self.manifest.encoder_name()?)?)
    }
}

impl Gradient for Mixture {
    fn embedding_vjp(&self, batch: &Batch, encoder: &str, upstream: &Matrix) -> Result<Matrix> {
        self.head.vjp(batch.embedding(encoder)?, upstream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};
    use ambiguity_sdk::{EncoderPin, Medium};

    /// Returns a host with a mixture in two of `dim` dimensions, whose components have the given factors.
    fn host(styles: &[&str], dim: usize, means: Matrix, factors: Matrix) -> FakeHost {
        let manifest = Manifest {
            name: "places".into(),
            version: "1.0.0".into(),
            title: "Places in the plane".into(),
            license: "Apache-2.0".into(),
            media: vec![Medium::Image],
            styles: styles.iter().map(|&style| style.into()).collect(),
            encoder: Some(EncoderPin { name: "tiny".into(), digest: "0".into() }),
            ..Manifest::default()
        };
        let k = means.n_rows();
        let mut projection = Matrix::zeros(2, dim);
        (0..2).for_each(|i| projection.row_mut(i)[i] = 1.0);
        let log_weights = (1..=k).map(|i| (i as f32 / (k * (k + 1) / 2) as f32).ln()).collect();
        FakeHost::new()
            .asset(Manifest::ASSET, manifest.to_json())
            .tensor("projection", projection)
            .tensor("origin", Matrix::new(1, dim, vec![0.5; dim]).expect("one row"))
            .tensor("log_weights", Matrix::new(1, k, log_weights).expect("one row"))
            .tensor("means", means)
            .tensor("factors", factors)
    }

    #[test]
    fn probabilities_are_the_responsibilities() {
        let means = Matrix::from_rows(&[[0.0, 0.0], [2.0, 1.0]]).expect("two rows of two");
        // Variances 1 and 1, and 1/4 and 1, whose densities are 1/2π and 2/2π at their means; the weights 1/3 and 2/3.
        let factors = Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 1.0]]).expect("two factors");
        let host = host(&["here", "there"], 3, means, factors);
        let embeddings = Matrix::from_rows(&[[0.5, 0.5, 9.0], [2.5, 1.5, 9.0], [1.5, 0.5, 9.0]]).expect("three rows");
        let batch = FakeBatch::new(vec![FakeSample::default(); 3]).embedding("tiny", embeddings);
        let found = host.load::<Mixture>().expect("a mixture").classify(&batch).expect("a good batch");
        let densities = [
            (1.0 / 3.0, 4.0 / 3.0 * (-0.5 * (16.0 + 1.0f64)).exp()),
            (1.0 / 3.0 * (-0.5 * 5.0f64).exp(), 4.0 / 3.0),
            (1.0 / 3.0 * (-0.5f64).exp(), 4.0 / 3.0 * (-0.5 * 5.0f64).exp()),
        ];
        for (row, (here, there)) in densities.into_iter().enumerate() {
            let expected = (here / (here + there)).ln();
            assert!((f64::from(found.row(row)[0]) - expected).abs() < 1e-5, "{row}: {:?} {expected}", found.row(row));
        }
    }

    #[test]
    fn the_gradient_is_exact() {
        let factors = Matrix::from_rows(&[[1.2, 0.0], [-0.4, 0.8], [0.6, 0.0], [0.3, 1.5]]).expect("two factors");
        let host = host(&["a", "b"], 5, numbers(1, 2, 2), factors).option("temperature", "3");
        let plugin = host.load::<Mixture>().expect("a mixture");
        let error = plugin.gradient_error(&numbers(3, 3, 5)).expect("one encoder");
        assert!(error < 0.005, "{error}");
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let refused = |styles: &[&str], rows: usize| {
            let host = host(styles, 3, numbers(1, 2, 2), numbers(2, rows, 2));
            host.load::<Mixture>().err().expect("it does not fit").to_string()
        };
        assert_eq!(refused(&["here"], 4), "2 baked components do not fit the manifest's 1 styles");
        assert_eq!(refused(&["here", "there"], 3), "the parts of a mixture of 2 components in 2 dimensions do not fit");
    }
}
