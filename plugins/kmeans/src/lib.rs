//! Soft k-means: classifies a sample by the distance of its embedding to each baked center.
//!
//! e = the raw embedding by the manifest's encoder, scaled to length 1 if its `normalize` is true; logits 1 / ‖e − c‖,
//! divided by the manifest's temperature; softmax. One crate serves images and texts, and images by centers of texts'
//! embeddings (the paper's text clusters): only the baked assets differ, the matrix `centers` and `manifest.json`,
//! which `host plugin fit` writes.

use ambiguity_sdk::heads::InverseDistances;
use ambiguity_sdk::{
    Batch, Classifier, Description, Distributions, Error, Gradient, Manifest, Matrix, Result, export, host,
};

/// The plugin; see the module.
pub struct KMeans;

export!(KMeans, gradient);

impl Classifier for KMeans {
    fn describe() -> Result<Description> {
        let (manifest, _) = baked()?;
        Ok(manifest.description())
    }

    fn classify(batch: &Batch) -> Result<Distributions> {
        let (manifest, head) = baked()?;
        head.distributions(batch.embedding(manifest.encoder_name()?)?)
    }
}

impl Gradient for KMeans {
    fn embedding_vjp(batch: &Batch, upstream: &Matrix) -> Result<Matrix> {
        let (manifest, head) = baked()?;
        head.vjp(batch.embedding(manifest.encoder_name()?)?, upstream)
    }
}

/// Returns the manifest, and the classifier of the manifest and the baked centers.
fn baked() -> Result<(Manifest, InverseDistances)> {
    let manifest = Manifest::baked()?;
    let centers = host::asset_tensor("centers")?;
    if centers.n_rows() != manifest.styles.len() {
        let (centers, styles) = (centers.n_rows(), manifest.styles.len());
        return Err(Error::new(format!("{centers} baked centers do not fit the manifest's {styles} styles")));
    }
    let temperature = manifest.temperature.unwrap_or(1.0);
    let head = InverseDistances { centers, temperature, normalize: manifest.normalize };
    Ok((manifest, head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::EncoderPin;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};

    fn host(styles: &[&str], centers: Matrix) -> FakeHost {
        let manifest = Manifest {
            name: "directions".into(),
            version: "1.0.0".into(),
            title: "Directions of the plane".into(),
            authors: vec![],
            license: "Apache-2.0".into(),
            media: vec!["image".into()],
            styles: styles.iter().map(|&style| style.into()).collect(),
            encoder: Some(EncoderPin { name: "tiny".into(), digest: "0".into() }),
            normalize: true,
            k: Some(styles.len()),
            ..Manifest::default()
        };
        FakeHost::new().asset(Manifest::ASSET, manifest.to_json()).tensor("centers", centers)
    }

    #[test]
    fn the_nearest_center_is_the_likeliest_style() {
        let centers = Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]).expect("three rows of two");
        let embeddings = Matrix::from_rows(&[[9.0, 1.0], [-0.1, 0.4]]).expect("two rows of two");
        let batch = FakeBatch::new(vec![FakeSample::default(); 2]).embedding("tiny", embeddings);
        let distributions = host(&["east", "north", "west"], centers).classify::<KMeans>(batch).expect("a good batch");
        let likeliest = |i: usize| (0..3).max_by(|&a, &b| distributions.row(i)[a].total_cmp(&distributions.row(i)[b]));
        assert_eq!((likeliest(0), likeliest(1)), (Some(0), Some(1)));
    }

    #[test]
    fn the_gradient_is_exact() {
        let mut host = host(&["a", "b", "c", "d"], numbers(1, 4, 6));
        let error = host.gradient_error::<KMeans>(&numbers(2, 3, 6)).expect("one encoder");
        assert!(error < 0.005, "{error}");
    }

    #[test]
    fn centers_that_do_not_fit_are_refused() {
        let message = host(&["east"], numbers(1, 2, 2)).describe::<KMeans>().expect_err("2 is not 1").to_string();
        assert_eq!(message, "2 baked centers do not fit the manifest's 1 styles");
    }
}
