//! Soft k-means: classifies a sample by the distance of its embedding to each baked center.
//!
//! e = the raw embedding by the manifest's encoder, scaled to length 1 if its `normalize` is true; logits 1 / ‖e − c‖,
//! divided by the manifest's temperature; softmax. One crate serves images and texts, and images by centers of texts'
//! embeddings (the paper's text clusters): only the baked assets differ, the matrix `centers` and `manifest.json`,
//! which `host plugin fit` writes. Of a matrix `disregarded`, if there is one, the rows are orthonormal directions that are
//! removed from e, before it is scaled to length 1 (`host plugin fit --disregard`).

use ambiguity_sdk::heads::{Disregarding, Head, InverseDistances};
use ambiguity_sdk::{
    Batch, Classifier, Description, Distributions, Error, Gradient, Host, Manifest, Matrix, Plugin, Result, export,
};

/// The asset of the directions that are removed from embeddings.
const DISREGARDED: &str = "disregarded";

/// The plugin; see the module.
pub struct KMeans {
    manifest: Manifest,
    head: Box<dyn Head>,
}

export!(KMeans: Classifier, Gradient);

impl Plugin for KMeans {
    fn new(host: &Host) -> Result<Self> {
        let manifest = Manifest::baked(host)?;
        manifest.encoder_name()?;
        let centers = host.asset_tensor("centers")?;
        if centers.n_rows() != manifest.styles.len() {
            let (centers, styles) = (centers.n_rows(), manifest.styles.len());
            return Err(Error::new(format!("{centers} baked centers do not fit the manifest's {styles} styles")));
        }
        let temperature = manifest.temperature.unwrap_or(1.0);
        let head = InverseDistances { centers, temperature, normalize: manifest.normalize };
        let head: Box<dyn Head> = match host.asset_names().iter().any(|name| name == DISREGARDED) {
            true => Box::new(Disregarding::new(head, host.asset_tensor(DISREGARDED)?)?),
            false => Box::new(head),
        };
        Ok(Self { manifest, head })
    }

    fn describe(&self) -> Description {
        self.manifest.description()
    }
}

impl Classifier for KMeans {
    fn styles(&self) -> Vec<String> {
        self.manifest.styles.clone()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        self.head.distributions(batch.embedding(self.manifest.encoder_name()?)?)
    }
}

impl Gradient for KMeans {
    fn embedding_vjp(&self, batch: &Batch, encoder: &str, upstream: &Matrix) -> Result<Matrix> {
        self.head.vjp(batch.embedding(encoder)?, upstream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};
    use ambiguity_sdk::{EncoderPin, Medium};

    fn host(styles: &[&str], centers: Matrix) -> FakeHost {
        let manifest = Manifest {
            name: "directions".into(),
            version: "1.0.0".into(),
            title: "Directions of the plane".into(),
            authors: vec![],
            license: "Apache-2.0".into(),
            media: vec![Medium::Image],
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
        let host = host(&["east", "north", "west"], centers);
        let found = host.load::<KMeans>().expect("centers").classify(&batch).expect("a good batch");
        assert_eq!((found.likeliest(0), found.likeliest(1)), (0, 1));
    }

    #[test]
    fn the_gradient_is_exact() {
        let host = host(&["a", "b", "c", "d"], numbers(1, 4, 6)).option("temperature", "0.7");
        let plugin = host.load::<KMeans>().expect("centers");
        let error = plugin.gradient_error(&numbers(2, 3, 6)).expect("one encoder");
        assert!(error < 0.005, "{error}");
    }

    #[test]
    fn disregarded_directions_make_no_difference() {
        let centers = Matrix::from_rows(&[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).expect("two rows of three");
        let east = Matrix::from_rows(&[[1.0, 0.0, 0.0]]).expect("a row of three");
        let host = host(&["north", "up"], centers).tensor("disregarded", east);
        let plugin = host.load::<KMeans>().expect("centers and a direction");
        let embeddings = Matrix::from_rows(&[[0.0, 2.0, 1.0], [30.0, 2.0, 1.0]]).expect("two rows of three");
        let batch = FakeBatch::new(vec![FakeSample::default(); 2]).embedding("tiny", embeddings);
        let found = plugin.classify(&batch).expect("a good batch");
        assert_eq!((found.row(0), found.likeliest(1)), (found.row(1), 0));
    }

    #[test]
    fn the_gradient_without_disregarded_directions_is_exact() {
        let direction = Matrix::from_rows(&[[0.6, 0.0, 0.8, 0.0, 0.0, 0.0]]).expect("a row of six");
        let host = host(&["a", "b", "c", "d"], numbers(1, 4, 6)).tensor("disregarded", direction);
        let plugin = host.load::<KMeans>().expect("centers and a direction");
        let error = plugin.gradient_error(&numbers(2, 3, 6)).expect("one encoder");
        assert!(error < 0.005, "{error}");
    }

    #[test]
    fn centers_that_do_not_fit_are_refused() {
        let host = host(&["east"], numbers(1, 2, 2));
        let message = host.load::<KMeans>().err().expect("2 is not 1").to_string();
        assert_eq!(message, "2 baked centers do not fit the manifest's 1 styles");
    }
}
