//! Classifiers over one embedding, with exact gradients: [`InverseDistances`] (soft k-means), [`Cosine`] (CLIP softmax),
//! [`Linear`] (a linear probe) and [`GaussianMixture`]; [`Disregarding`] is one of them on a part of the embedding.
//!
//! A head computes one logit per style; [`Head::distributions`] is their softmax, and [`Head::vjp`] its gradient. A head of
//! your own implements the logits and their gradient, and has the rest.

use crate::distribution::Distributions;
use crate::error::{Error, Result};
use crate::math;
use crate::matrix::Matrix;

/// A classifier over one embedding: the softmax of one logit per style.
pub trait Head {
    /// Returns the number of styles.
    fn n_styles(&self) -> usize;

    /// Returns the dimension of an embedding.
    fn dim(&self) -> usize;

    /// Returns whether embeddings are scaled to length 1 first.
    fn normalizes(&self) -> bool;

    /// Computes the logits of one embedding.
    fn logits(&self, embedding: &[f32], logits: &mut [f32]);

    /// Adds dL/d(embedding) to `gradient`, from dL/d(logits) at `embedding`, whose logits are `logits`.
    fn add_gradient(&self, embedding: &[f32], d_logits: &[f32], gradient: &mut [f32]);

    /// Returns one distribution per row of raw embeddings.
    ///
    /// # Errors
    /// If the embeddings have another dimension, or a logit is not finite.
    fn distributions(&self, mut embeddings: Matrix) -> Result<Distributions> {
        check_dim(self.dim(), &embeddings)?;
        if self.normalizes() {
            embeddings.normalize_rows();
        }
        let mut logits = Matrix::zeros(embeddings.n_rows(), self.n_styles());
        for (i, embedding) in embeddings.rows().enumerate() {
            self.logits(embedding, logits.row_mut(i));
        }
        Distributions::softmax(logits)
    }

    /// Returns dL/d(raw embeddings) from dL/d(log-probabilities).
    ///
    /// # Errors
    /// If the embeddings have another dimension, or `upstream` is not samples × styles.
    fn vjp(&self, mut embeddings: Matrix, upstream: &Matrix) -> Result<Matrix> {
        check_dim(self.dim(), &embeddings)?;
        check_upstream(upstream, embeddings.n_rows(), self.n_styles())?;
        let mut gradient = Matrix::zeros(embeddings.n_rows(), embeddings.n_cols());
        let mut logits = vec![0.0; self.n_styles()];
        for i in 0..embeddings.n_rows() {
            let length = if self.normalizes() { math::normalize(embeddings.row_mut(i)) } else { 1.0 };
            let (embedding, gradient) = (embeddings.row(i), gradient.row_mut(i));
            self.logits(embedding, &mut logits);
            self.add_gradient(embedding, &log_softmax_vjp(&logits, upstream.row(i)), gradient);
            if self.normalizes() {
                normalize_vjp(gradient, embedding, length);
            }
        }
        Ok(gradient)
    }
}

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

impl Head for InverseDistances {
    fn n_styles(&self) -> usize {
        self.centers.n_rows()
    }

    fn dim(&self) -> usize {
        self.centers.n_cols()
    }

    fn normalizes(&self) -> bool {
        self.normalize
    }

    fn logits(&self, embedding: &[f32], logits: &mut [f32]) {
        self.centers.view().squared_distances(embedding, logits);
        math::inverse_distances(logits);
        logits.iter_mut().for_each(|logit| *logit /= self.temperature);
    }

    fn add_gradient(&self, embedding: &[f32], d_logits: &[f32], gradient: &mut [f32]) {
        for (center, d_logit) in self.centers.rows().zip(d_logits) {
            let distance = math::squared_distance(embedding, center).sqrt();
            // Below the minimum distance the logit is constant.
            if distance > math::MIN_DISTANCE {
                let factor = -d_logit / self.temperature / distance.powi(3);
                math::add_scaled(gradient, factor, embedding);
                math::add_scaled(gradient, -factor, center);
            }
        }
    }
}

/// CLIP softmax: softmax of scaled cosine similarities to texts.
#[derive(Clone, Debug)]
pub struct Cosine {
    /// Of length 1 each.
    texts: Matrix,
    scale: f32,
}

impl Cosine {
    /// Returns the classifier by the embeddings of texts, styles × dim, of any lengths; `scale` multiplies the cosines
    /// (CLIP: about 100).
    pub fn new(mut texts: Matrix, scale: f32) -> Self {
        texts.normalize_rows();
        Self { texts, scale }
    }
}

impl Head for Cosine {
    fn n_styles(&self) -> usize {
        self.texts.n_rows()
    }

    fn dim(&self) -> usize {
        self.texts.n_cols()
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn logits(&self, embedding: &[f32], logits: &mut [f32]) {
        self.texts.view().dots(embedding, logits);
        logits.iter_mut().for_each(|logit| *logit *= self.scale);
    }

    fn add_gradient(&self, _embedding: &[f32], d_logits: &[f32], gradient: &mut [f32]) {
        for (text, d_logit) in self.texts.rows().zip(d_logits) {
            math::add_scaled(gradient, d_logit * self.scale, text);
        }
    }
}

/// A linear probe: multinomial logistic regression. Logits are (w·e + b) / temperature.
#[derive(Clone, Debug)]
pub struct Linear {
    weights: Matrix,
    bias: Vec<f32>,
    temperature: f32,
    normalize: bool,
}

impl Linear {
    /// Returns the classifier by its weights, styles × dim, and its biases, one per style. The temperature divides the
    /// logits; `normalize` is whether e is the embedding scaled to length 1.
    ///
    /// # Errors
    /// If there is not one bias per style.
    pub fn new(weights: Matrix, bias: Vec<f32>, temperature: f32, normalize: bool) -> Result<Self> {
        let (styles, biases) = (weights.n_rows(), bias.len());
        if styles != biases {
            return Err(Error::new(format!("{biases} biases do not fit the weights of {styles} styles")));
        }
        Ok(Self { weights, bias, temperature, normalize })
    }
}

impl Head for Linear {
    fn n_styles(&self) -> usize {
        self.weights.n_rows()
    }

    fn dim(&self) -> usize {
        self.weights.n_cols()
    }

    fn normalizes(&self) -> bool {
        self.normalize
    }

    fn logits(&self, embedding: &[f32], logits: &mut [f32]) {
        self.weights.view().dots(embedding, logits);
        for (logit, bias) in logits.iter_mut().zip(&self.bias) {
            *logit = (*logit + bias) / self.temperature;
        }
    }

    fn add_gradient(&self, _embedding: &[f32], d_logits: &[f32], gradient: &mut [f32]) {
        for (weights, d_logit) in self.weights.rows().zip(d_logits) {
            math::add_scaled(gradient, d_logit / self.temperature, weights);
        }
    }
}

/// A Gaussian mixture in a linear projection of the embedding: y = P (e − m). Logits are (ln wᵢ + ln N(y; μᵢ, Σᵢ)) /
/// temperature, so at temperature 1 the distributions are the components' responsibilities.
#[derive(Clone, Debug)]
pub struct GaussianMixture {
    parts: MixtureParts,
    /// ln wᵢ + ln det Lᵢ; what all components have in common is left out.
    constants: Vec<f32>,
}

/// The numbers of a [`GaussianMixture`] of k components in r dimensions.
#[derive(Clone, Debug)]
pub struct MixtureParts {
    /// P, r × dim.
    pub projection: Matrix,
    /// m, of length dim.
    pub origin: Vec<f32>,
    /// ln wᵢ, one per component.
    pub log_weights: Vec<f32>,
    /// μᵢ, k × r.
    pub means: Matrix,
    /// The lower triangular Lᵢ with Lᵢ Lᵢᵀ = Σᵢ⁻¹, one below the other, k r × r.
    pub factors: Matrix,
    /// Temperature, which divides the logits.
    pub temperature: f32,
    /// Whether e is the embedding scaled to length 1.
    pub normalize: bool,
}

impl GaussianMixture {
    /// Returns the classifier of these numbers.
    ///
    /// # Errors
    /// If their sizes do not fit, or a factor's diagonal is not positive.
    pub fn new(parts: MixtureParts) -> Result<Self> {
        let (k, r) = (parts.means.n_rows(), parts.means.n_cols());
        let found = [
            parts.projection.n_rows(),
            parts.origin.len(),
            parts.log_weights.len(),
            parts.factors.n_rows(),
            parts.factors.n_cols(),
        ];
        if found != [r, parts.projection.n_cols(), k, k * r, r] {
            return Err(Error::new(format!("the parts of a mixture of {k} components in {r} dimensions do not fit")));
        }
        let log_det = |i: usize| (0..r).map(|j| parts.factors.row(i * r + j)[j].ln()).sum::<f32>();
        let constants: Vec<f32> = (0..k).map(|i| parts.log_weights[i] + log_det(i)).collect();
        match constants.iter().position(|constant| !constant.is_finite()) {
            Some(i) => Err(Error::new(format!("component {i} of the mixture has no density or no weight"))),
            None => Ok(Self { parts, constants }),
        }
    }

    /// Returns y of an embedding.
    fn projected(&self, embedding: &[f32]) -> Vec<f32> {
        let centered: Vec<f32> = embedding.iter().zip(&self.parts.origin).map(|(e, m)| e - m).collect();
        let mut y = vec![0.0; self.parts.means.n_cols()];
        self.parts.projection.view().dots(&centered, &mut y);
        y
    }

    /// Returns Lᵢᵀ (y − μᵢ).
    fn whitened(&self, i: usize, y: &[f32]) -> Vec<f32> {
        let r = y.len();
        let mut whitened = vec![0.0; r];
        for (j, (y, mean)) in y.iter().zip(self.parts.means.row(i)).enumerate() {
            math::add_scaled(&mut whitened, y - mean, self.parts.factors.row(i * r + j));
        }
        whitened
    }
}

impl Head for GaussianMixture {
    fn n_styles(&self) -> usize {
        self.parts.means.n_rows()
    }

    fn dim(&self) -> usize {
        self.parts.projection.n_cols()
    }

    fn normalizes(&self) -> bool {
        self.parts.normalize
    }

    fn logits(&self, embedding: &[f32], logits: &mut [f32]) {
        let y = self.projected(embedding);
        for (i, logit) in logits.iter_mut().enumerate() {
            let whitened = self.whitened(i, &y);
            *logit = (self.constants[i] - 0.5 * math::dot(&whitened, &whitened)) / self.parts.temperature;
        }
    }

    fn add_gradient(&self, embedding: &[f32], d_logits: &[f32], gradient: &mut [f32]) {
        let y = self.projected(embedding);
        let r = y.len();
        let mut d_y = vec![0.0; r];
        for (i, d_logit) in d_logits.iter().enumerate() {
            // The gradient of −½ ‖Lᵀ (y − μ)‖² is −L Lᵀ (y − μ).
            let whitened = self.whitened(i, &y);
            for (j, d_y) in d_y.iter_mut().enumerate() {
                let along = math::dot(self.parts.factors.row(i * r + j), &whitened);
                *d_y -= d_logit / self.parts.temperature * along;
            }
        }
        for (row, d_y) in self.parts.projection.rows().zip(d_y) {
            math::add_scaled(gradient, d_y, row);
        }
    }
}

/// A head that disregards some directions of the embedding, orthonormal ones: it classifies e − Σ v (v·e), which is scaled
/// to length 1 if the head scales embeddings.
#[derive(Clone, Debug)]
pub struct Disregarding<H> {
    head: H,
    directions: Matrix,
}

impl<H: Head> Disregarding<H> {
    /// Returns `head` without the directions, n × dim.
    ///
    /// # Errors
    /// If the directions have another dimension than the head, or are not orthonormal.
    pub fn new(head: H, directions: Matrix) -> Result<Self> {
        let (theirs, ours) = (directions.n_cols(), head.dim());
        if theirs != ours {
            return Err(Error::new(format!("directions of {theirs} dimensions do not fit embeddings of {ours}")));
        }
        for (i, a) in directions.rows().enumerate() {
            for (j, b) in directions.rows().enumerate().take(i + 1) {
                let error = (math::dot(a, b) - if i == j { 1.0 } else { 0.0 }).abs();
                if error.is_nan() || error > 1e-3 {
                    return Err(Error::new(format!("the directions {j} and {i} to disregard are not orthonormal")));
                }
            }
        }
        Ok(Self { head, directions })
    }

    /// Removes the directions from a vector.
    fn remove(&self, vector: &mut [f32]) {
        for direction in self.directions.rows() {
            math::add_scaled(vector, -math::dot(direction, vector), direction);
        }
    }

    /// Returns what is left of an embedding, scaled to length 1 if the head scales embeddings, and the length before.
    fn rest(&self, embedding: &[f32]) -> (Vec<f32>, f32) {
        let mut rest = embedding.to_vec();
        self.remove(&mut rest);
        let length = if self.head.normalizes() { math::normalize(&mut rest) } else { 1.0 };
        (rest, length)
    }
}

impl<H: Head> Head for Disregarding<H> {
    fn n_styles(&self) -> usize {
        self.head.n_styles()
    }

    fn dim(&self) -> usize {
        self.head.dim()
    }

    fn normalizes(&self) -> bool {
        self.head.normalizes()
    }

    fn logits(&self, embedding: &[f32], logits: &mut [f32]) {
        self.head.logits(&self.rest(embedding).0, logits);
    }

    fn add_gradient(&self, embedding: &[f32], d_logits: &[f32], gradient: &mut [f32]) {
        let (rest, length) = self.rest(embedding);
        let mut d_rest = vec![0.0; rest.len()];
        self.head.add_gradient(&rest, d_logits, &mut d_rest);
        if self.head.normalizes() {
            normalize_vjp(&mut d_rest, &rest, length);
        }
        self.remove(&mut d_rest);
        math::add_scaled(gradient, 1.0, &d_rest);
    }
}

/// Returns dL/dz of ln softmax(z): u − p Σu.
fn log_softmax_vjp(logits: &[f32], upstream: &[f32]) -> Vec<f32> {
    let mut p = logits.to_vec();
    math::softmax(&mut p);
    let sum: f32 = upstream.iter().sum();
    p.iter_mut().zip(upstream).for_each(|(p, u)| *p = u - *p * sum);
    p
}

/// Computes dL/dx of e = x / ‖x‖, in place: (g − e (e·g)) / ‖x‖. A zero vector has no direction: its gradient is 0.
fn normalize_vjp(gradient: &mut [f32], unit: &[f32], length: f32) {
    let along = math::dot(gradient, unit);
    math::add_scaled(gradient, -along, unit);
    let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
    gradient.iter_mut().for_each(|g| *g *= factor);
}

fn check_dim(ours: usize, embeddings: &Matrix) -> Result<()> {
    let theirs = embeddings.n_cols();
    if ours != theirs {
        return Err(Error::new(format!(
            "the plugin is for embeddings of {ours} dimensions, the encoder gives {theirs}"
        )));
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

    fn k_means(normalize: bool) -> InverseDistances {
        InverseDistances { centers: numbers(1, 5, 12), temperature: 0.7, normalize }
    }

    /// Returns a mixture of five components in three dimensions.
    fn mixture(normalize: bool) -> GaussianMixture {
        let mut factors = numbers(5, 15, 3);
        for i in 0..15 {
            for j in 0..3 {
                let below = &mut factors.row_mut(i)[j];
                *below = if j == i % 3 {
                    1.0 + below.abs()
                } else if j < i % 3 {
                    *below
                } else {
                    0.0
                };
            }
        }
        GaussianMixture::new(MixtureParts {
            projection: numbers(6, 3, 12),
            origin: numbers(7, 1, 12).into_vec(),
            log_weights: [0.1f32, 0.2, 0.3, 0.15, 0.25].map(f32::ln).to_vec(),
            means: numbers(8, 5, 3),
            factors,
            temperature: 2.0,
            normalize,
        })
        .expect("the parts fit")
    }

    /// Returns two orthonormal directions in twelve dimensions.
    fn directions() -> Matrix {
        let mut directions = Matrix::zeros(2, 12);
        directions.row_mut(0)[..2].copy_from_slice(&[0.6, 0.8]);
        directions.row_mut(1)[..3].copy_from_slice(&[-0.48, 0.36, 0.8]);
        directions
    }

    #[test]
    fn soft_k_means_by_hand() {
        let centers = Matrix::from_rows(&[[1.0, 0.0], [0.0, 2.0]]).expect("two rows of two");
        let head = InverseDistances { centers, temperature: 1.0, normalize: true };
        let p = head.distributions(Matrix::from_rows(&[[0.0, 5.0]]).expect("a row")).expect("two dimensions each");
        // Distances √2 and 1, so logits 1/√2 and 1.
        let expected = -(1.0 + (1.0 - std::f32::consts::FRAC_1_SQRT_2).exp()).ln();
        assert!((p.row(0)[0] - expected).abs() < 1e-6, "{:?}", p.row(0));
    }

    #[test]
    fn a_linear_probe_by_hand() {
        let weights = Matrix::from_rows(&[[1.0, 2.0], [-1.0, 0.5]]).expect("two rows of two");
        let head = Linear::new(weights.clone(), vec![0.5, -0.5], 2.0, false).expect("two biases");
        let p = head.distributions(Matrix::from_rows(&[[3.0, 1.0]]).expect("a row")).expect("two dimensions each");
        // Logits (5 + 0.5) / 2 and (−2.5 − 0.5) / 2.
        let expected = -(1.0 + (-1.5f32 - 2.75).exp()).ln();
        assert!((p.row(0)[0] - expected).abs() < 1e-6, "{:?}", p.row(0));
        let message = Linear::new(weights, vec![0.0], 1.0, false).expect_err("one bias").to_string();
        assert_eq!(message, "1 biases do not fit the weights of 2 styles");
    }

    #[test]
    fn a_mixture_by_hand() {
        // Two components on a line: N(0, 1) with weight ¼, and N(3, ½²) with weight ¾; y is the embedding's first number.
        let head = GaussianMixture::new(MixtureParts {
            projection: Matrix::from_rows(&[[1.0, 0.0]]).expect("a row"),
            origin: vec![1.0, 9.0],
            log_weights: vec![0.25f32.ln(), 0.75f32.ln()],
            means: Matrix::from_rows(&[[0.0], [3.0]]).expect("two rows"),
            factors: Matrix::from_rows(&[[1.0], [2.0]]).expect("two rows"),
            temperature: 1.0,
            normalize: false,
        });
        let head = head.expect("the parts fit");
        let p = head.distributions(Matrix::from_rows(&[[3.0, 5.0]]).expect("a row")).expect("two dimensions each");
        let densities = [0.25 * (-2.0f32).exp(), 0.75 * 2.0 * (-2.0f32).exp()];
        let expected = densities[0] / (densities[0] + densities[1]);
        assert!((p.probabilities(0)[0] - expected).abs() < 1e-6, "{p:?}");
    }

    #[test]
    fn disregarded_directions_make_no_difference() {
        for normalize in [false, true] {
            let head = Disregarding::new(k_means(normalize), directions()).expect("orthonormal");
            let mut x = numbers(2, 3, 12);
            let before = head.distributions(x.clone()).expect("twelve dimensions").into_matrix();
            for i in 0..3 {
                math::add_scaled(x.row_mut(i), 5.0 - 3.0 * i as f32, directions().row(i % 2));
            }
            let after = head.distributions(x.clone()).expect("twelve dimensions").into_matrix();
            let same = before.as_slice().iter().zip(after.as_slice()).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(same, "{before:?} {after:?}");
            // Nor do they have a gradient.
            let gradient = head.vjp(x, &numbers(3, 3, 5)).expect("shapes fit");
            let along = |row: &[f32]| directions().rows().map(|v| math::dot(v, row).abs()).fold(0.0, f32::max);
            assert!(gradient.rows().all(|row| along(row) < 1e-5 && math::norm(row) > 1e-3), "{gradient:?}");
        }
    }

    #[test]
    fn a_rest_by_hand() {
        let centers = Matrix::from_rows(&[[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]).expect("two rows of three");
        let head = InverseDistances { centers, temperature: 1.0, normalize: true };
        let head = Disregarding::new(head, Matrix::from_rows(&[[1.0, 0.0, 0.0]]).expect("a row")).expect("a unit");
        let p = head.distributions(Matrix::from_rows(&[[7.0, 0.0, 5.0]]).expect("a row")).expect("three dimensions");
        // What is left is (0, 0, 1): distances √2 and 1.
        let expected = -(1.0 + (1.0 - std::f32::consts::FRAC_1_SQRT_2).exp()).ln();
        assert!((p.row(0)[0] - expected).abs() < 1e-6, "{:?}", p.row(0));
    }

    #[test]
    fn directions_that_do_not_fit_are_refused() {
        let refused =
            |directions: Matrix| Disregarding::new(k_means(true), directions).expect_err("it does not fit").to_string();
        assert_eq!(refused(Matrix::zeros(1, 7)), "directions of 7 dimensions do not fit embeddings of 12");
        assert_eq!(refused(Matrix::zeros(1, 12)), "the directions 0 and 0 to disregard are not orthonormal");
        let mut twice = Matrix::zeros(2, 12);
        (0..2).for_each(|i| twice.row_mut(i)[4] = 1.0);
        assert_eq!(refused(twice), "the directions 0 and 1 to disregard are not orthonormal");
    }

    #[test]
    fn gradients_agree_with_differences() {
        let (x, u) = (numbers(2, 3, 12), numbers(3, 3, 5));
        let mut heads: Vec<(String, Box<dyn Head>)> =
            vec![("cosine".to_owned(), Box::new(Cosine::new(numbers(4, 5, 12), 8.0)))];
        for normalize in [false, true] {
            heads.push((format!("soft k-means, normalize {normalize}"), Box::new(k_means(normalize))));
            let bias = numbers(9, 1, 5).into_vec();
            let linear = Linear::new(numbers(4, 5, 12), bias, 0.5, normalize).expect("five biases");
            heads.push((format!("linear, normalize {normalize}"), Box::new(linear)));
            heads.push((format!("mixture, normalize {normalize}"), Box::new(mixture(normalize))));
            let disregarding = Disregarding::new(k_means(normalize), directions()).expect("orthonormal");
            heads.push((format!("disregarding, normalize {normalize}"), Box::new(disregarding)));
        }
        for (name, head) in heads {
            let function = |x| Ok(head.distributions(x)?.into_matrix());
            let error = vjp_error(&x, &u, function, |x, u| head.vjp(x, u)).expect("shapes fit");
            assert!(error < TOLERANCE, "{name}: {error}");
        }
    }

    #[test]
    fn a_point_on_a_center_has_a_finite_gradient() {
        let head = k_means(false);
        let x = Matrix::new(1, 12, head.centers.row(2).to_vec()).expect("one row");
        let g = head.vjp(x, &numbers(3, 1, 5)).expect("shapes fit");
        assert!(g.as_slice().iter().all(|g| g.is_finite()), "{g:?}");
    }

    #[test]
    fn other_dimensions_are_named() {
        let message = k_means(true).distributions(Matrix::zeros(1, 7)).expect_err("12 is not 7").to_string();
        assert_eq!(message, "the plugin is for embeddings of 12 dimensions, the encoder gives 7");
    }
}
