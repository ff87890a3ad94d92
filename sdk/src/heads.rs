//! Classifiers over one embedding, with exact gradients: [`InverseDistances`] (soft k-means) and [`Cosine`] (CLIP
//! softmax).

use crate::distribution::Distributions;
use crate::error::{Error, Result};
use crate::math;
use crate::matrix::Matrix;

/// Soft k-means: softmax of the inverse distances to centers (R(x) of the style-ambiguity paper's clustering
/// classifiers). Logits are 1 / max(‖e − c‖, 1e-6) / temperature.
#[derive(Clone, Debug)]
pub struct InverseDistances {
    /// The centers, styles × dim.
    pub centers: Matrix,
    /// Temperature, which divides the logits.
    pub temperature: f32,
    /// Whether e is the embedding scaled to length 1. The centers are used as they are.
    pub normalize: bool,
}

/// CLIP softmax: softmax of scaled cosine similarities to texts.
#[derive(Clone, Debug)]
pub struct Cosine {
    /// The embeddings of the texts, styles × dim, of any lengths.
    pub texts: Matrix,
    /// Scale, which multiplies the cosines (CLIP: about 100).
    pub scale: f32,
}

impl InverseDistances {
    /// Returns one distribution per row of raw embeddings.
    pub fn distributions(&self, mut embeddings: Matrix) -> Result<Distributions> {
        check_dim("centers", &self.centers, &embeddings)?;
        if self.normalize {
            embeddings.normalize_rows();
        }
        let mut logits = Matrix::zeros(embeddings.n_rows(), self.centers.n_rows());
        for (i, embedding) in embeddings.rows().enumerate() {
            self.logits(embedding, logits.row_mut(i));
        }
        Distributions::softmax(logits)
    }

    /// Returns dL/d(raw embeddings) from dL/d(distributions).
    pub fn vjp(&self, mut embeddings: Matrix, upstream: &Matrix) -> Result<Matrix> {
        check_dim("centers", &self.centers, &embeddings)?;
        check_upstream(upstream, embeddings.n_rows(), self.centers.n_rows())?;
        let mut gradient = Matrix::zeros(embeddings.n_rows(), embeddings.n_cols());
        let mut logits = vec![0.0; self.centers.n_rows()];
        for i in 0..embeddings.n_rows() {
            let length = if self.normalize { math::normalize(embeddings.row_mut(i)) } else { 1.0 };
            let (embedding, g) = (embeddings.row(i), gradient.row_mut(i));
            self.logits(embedding, &mut logits);
            let d_logits = softmax_vjp(&logits, upstream.row(i));
            for (center, d_logit) in self.centers.rows().zip(d_logits) {
                let distance = math::squared_distance(embedding, center).sqrt();
                // Below the minimum distance the logit is constant.
                if distance > math::MIN_DISTANCE {
                    let factor = -d_logit / self.temperature / distance.powi(3);
                    math::add_scaled(g, factor, embedding);
                    math::add_scaled(g, -factor, center);
                }
            }
            if self.normalize {
                normalize_vjp(g, embedding, length);
            }
        }
        Ok(gradient)
    }

    fn logits(&self, embedding: &[f32], logits: &mut [f32]) {
        self.centers.view().squared_distances(embedding, logits);
        math::inverse_distances(logits);
        logits.iter_mut().for_each(|logit| *logit /= self.temperature);
    }
}

impl Cosine {
    /// Returns one distribution per row of raw embeddings.
    pub fn distributions(&self, mut embeddings: Matrix) -> Result<Distributions> {
        check_dim("texts", &self.texts, &embeddings)?;
        embeddings.normalize_rows();
        let texts = self.unit_texts();
        let mut logits = Matrix::zeros(embeddings.n_rows(), texts.n_rows());
        for (i, embedding) in embeddings.rows().enumerate() {
            self.logits(&texts, embedding, logits.row_mut(i));
        }
        Distributions::softmax(logits)
    }

    /// Returns dL/d(raw embeddings) from dL/d(distributions).
    pub fn vjp(&self, mut embeddings: Matrix, upstream: &Matrix) -> Result<Matrix> {
        check_dim("texts", &self.texts, &embeddings)?;
        check_upstream(upstream, embeddings.n_rows(), self.texts.n_rows())?;
        let texts = self.unit_texts();
        let mut gradient = Matrix::zeros(embeddings.n_rows(), embeddings.n_cols());
        let mut logits = vec![0.0; texts.n_rows()];
        for i in 0..embeddings.n_rows() {
            let length = math::normalize(embeddings.row_mut(i));
            let (embedding, g) = (embeddings.row(i), gradient.row_mut(i));
            self.logits(&texts, embedding, &mut logits);
            for (text, d_logit) in texts.rows().zip(softmax_vjp(&logits, upstream.row(i))) {
                math::add_scaled(g, d_logit * self.scale, text);
            }
            normalize_vjp(g, embedding, length);
        }
        Ok(gradient)
    }

    fn unit_texts(&self) -> Matrix {
        let mut texts = self.texts.clone();
        texts.normalize_rows();
        texts
    }

    fn logits(&self, texts: &Matrix, embedding: &[f32], logits: &mut [f32]) {
        texts.view().dots(embedding, logits);
        logits.iter_mut().for_each(|logit| *logit *= self.scale);
    }
}

/// Returns dL/dz of p = softmax(z): p ⊙ (u − u·p).
fn softmax_vjp(logits: &[f32], upstream: &[f32]) -> Vec<f32> {
    let mut p = logits.to_vec();
    math::softmax(&mut p);
    let mean = math::dot(&p, upstream);
    p.iter_mut().zip(upstream).for_each(|(p, u)| *p *= u - mean);
    p
}

/// Computes dL/dx of e = x / ‖x‖, in place: (g − e (e·g)) / ‖x‖. A zero vector has no direction: its gradient is 0.
fn normalize_vjp(gradient: &mut [f32], unit: &[f32], length: f32) {
    let along = math::dot(gradient, unit);
    math::add_scaled(gradient, -along, unit);
    let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
    gradient.iter_mut().for_each(|g| *g *= factor);
}

fn check_dim(what: &str, ours: &Matrix, embeddings: &Matrix) -> Result<()> {
    let (ours, theirs) = (ours.n_cols(), embeddings.n_cols());
    if ours != theirs {
        return Err(Error::new(format!("the {what} have {ours} dimensions, the encoder gives {theirs}")));
    }
    Ok(())
}

fn check_upstream(upstream: &Matrix, n_samples: usize, n_styles: usize) -> Result<()> {
    let found = (upstream.n_rows(), upstream.n_cols());
    if found != (n_samples, n_styles) {
        return Err(Error::new(format!(
            "the upstream gradient is {found:?}, it should be {:?}",
            (n_samples, n_styles)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, vjp_error};

    /// Maximum relative error compared with central differences in f32, which themselves are no more accurate.
    const TOLERANCE: f32 = 5e-3;

    fn head(normalize: bool) -> InverseDistances {
        InverseDistances { centers: numbers(1, 5, 12), temperature: 0.7, normalize }
    }

    #[test]
    fn soft_k_means_by_hand() {
        let centers = Matrix::from_rows(&[[1.0, 0.0], [0.0, 2.0]]).expect("two rows of two");
        let head = InverseDistances { centers, temperature: 1.0, normalize: true };
        let p = head.distributions(Matrix::from_rows(&[[0.0, 5.0]]).expect("a row")).expect("two dimensions each");
        // Distances √2 and 1, so logits 1/√2 and 1.
        let expected = 1.0 / (1.0 + (1.0 - std::f32::consts::FRAC_1_SQRT_2).exp());
        assert!((p.row(0)[0] - expected).abs() < 1e-6, "{:?}", p.row(0));
    }

    #[test]
    fn gradients_agree_with_differences() {
        let (x, u) = (numbers(2, 3, 12), numbers(3, 3, 5));
        for normalize in [false, true] {
            let head = head(normalize);
            let error = vjp_error(&x, &u, |x| head.distributions(x), |x, u| head.vjp(x, u)).expect("shapes fit");
            assert!(error < TOLERANCE, "soft k-means, normalize {normalize}: {error}");
        }
        let head = Cosine { texts: numbers(4, 5, 12), scale: 8.0 };
        let error = vjp_error(&x, &u, |x| head.distributions(x), |x, u| head.vjp(x, u)).expect("shapes fit");
        assert!(error < TOLERANCE, "cosine: {error}");
    }

    #[test]
    fn a_point_on_a_center_has_a_finite_gradient() {
        let head = head(false);
        let x = Matrix::new(1, 12, head.centers.row(2).to_vec()).expect("one row");
        let g = head.vjp(x, &numbers(3, 1, 5)).expect("shapes fit");
        assert!(g.as_slice().iter().all(|g| g.is_finite()), "{g:?}");
    }

    #[test]
    fn other_dimensions_are_named() {
        let message = head(true).distributions(Matrix::zeros(1, 7)).expect_err("12 is not 7").to_string();
        assert_eq!(message, "the centers have 12 dimensions, the encoder gives 7");
    }
}
