//! Gaussian mixtures: linfa's expectation-maximization (Dempster, Laird and Rubin, 1977) on the principal components of
//! embeddings. The responsibilities of the components are the probabilities of the styles.

use linfa::DatasetBase;
use linfa::traits::{Fit, PredictInplace};
use linfa_clustering::{GaussianMixtureModel, GmmError};
use linfa_linalg::cholesky::Cholesky;
use ndarray::{Array1, Array2, Array3, ArrayBase, ArrayView2, Axis, Data, Ix2, Zip, s};
use rand_xoshiro::Xoshiro256Plus;
use rand_xoshiro::rand_core::SeedableRng;
use rayon::prelude::*;

use super::error::FitError;
use super::projection::{PrincipalComponents, Projection};

/// Number of dimensions of the projection by default, if there are enough points.
pub const DIMENSIONS: usize = 8;

/// Options of a Gaussian mixture.
#[derive(Clone, Copy)]
pub struct MixtureOptions<'a> {
    /// Number of components.
    pub k: usize,
    /// Number of principal components, at most [`max_dimensions`].
    pub dimensions: usize,
    /// Number of runs, of which the one with the highest likelihood is returned.
    pub runs: usize,
    /// Maximum number of iterations of a run: one that has not converged by then is left out.
    pub max_iterations: usize,
    /// A run ends when the mean log-likelihood changes by less.
    pub tolerance: f64,
    /// Share of the mean variance of the projected points that is added to each variance of each component, so that
    /// components of few points keep a volume.
    pub ridge: f64,
    /// Run r starts from linfa's k-means seeded with `seed + r`.
    pub seed: u64,
    /// Receives the index and the mean log-likelihood of each run that ended, and returns whether to continue.
    pub after_run: &'a (dyn Fn(usize, f64) -> bool + Sync),
}

/// A Gaussian mixture in a projection of the embeddings: y = P (e − m).
#[derive(Clone, Debug)]
pub struct Mixture {
    /// P and m. P is scaled, so that the mean variance of the fitted points' coordinates is 1.
    pub projection: Projection,
    /// ln wᵢ, one per component.
    pub log_weights: Array1<f64>,
    /// μᵢ, k × r.
    pub means: Array2<f64>,
    /// The lower triangular Lᵢ with Lᵢ Lᵢᵀ = Σᵢ⁻¹, k × r × r.
    pub factors: Array3<f64>,
    /// The mean of ln p(y) over the points that it was fitted to.
    pub log_likelihood: f64,
    /// The component of each of these points with the highest responsibility.
    pub labels: Vec<usize>,
}

/// Returns the largest number of dimensions for n points in k components: each component needs more points than
/// dimensions on average, or its covariance has no inverse.
pub fn max_dimensions(n_points: usize, k: usize, dim: usize) -> usize {
    (n_points / k.max(1)).saturating_sub(1).min(dim)
}

/// Checks that n points of dimension `dim` are enough for a mixture of k components in so many dimensions.
///
/// # Errors
/// If they are too few.
pub fn check_mixture(n: usize, dim: usize, k: usize, dimensions: usize) -> Result<(), FitError> {
    if k < 2 || k > n {
        return Err(FitError::Clusters { points: n, k });
    }
    match max_dimensions(n, k, dim) {
        0 => Err(FitError::TooFewPoints { points: n, k }),
        max if dimensions > max => Err(FitError::TooManyDimensions { points: n, k, max }),
        _ => Ok(()),
    }
}

impl<D: Data<Elem = f32>, T> Fit<ArrayBase<D, Ix2>, T, FitError> for MixtureOptions<'_> {
    type Object = Mixture;

    fn fit(&self, dataset: &DatasetBase<ArrayBase<D, Ix2>, T>) -> Result<Mixture, FitError> {
        let points = dataset.records().view();
        let n = points.nrows();
        check_mixture(n, points.ncols(), self.k, self.dimensions)?;
        let mut projection = PrincipalComponents { dimensions: self.dimensions }.fit(&DatasetBase::from(points))?;
        let projected = projection.project(points);
        let variance = projected.iter().map(|y| y * y).sum::<f64>() / projected.len() as f64;
        let projected = projected / variance.sqrt();
        projection.matrix /= variance.sqrt();

        let projected = DatasetBase::from(projected);
        let run = |run: usize| -> Option<Result<Mixture, GmmError>> {
            let rng = Xoshiro256Plus::seed_from_u64(self.seed.wrapping_add(run as u64));
            let params = GaussianMixtureModel::params_with_rng(self.k, rng)
                // Its further runs continue the first one.
                .n_runs(1)
                .max_n_iterations(self.max_iterations as u64)
                .tolerance(self.tolerance)
                .reg_covariance(self.ridge);
            let found = params.fit(&projected).and_then(|model| {
                Mixture::new(projection.clone(), model.weights(), model.means().clone(), model.precisions())
            });
            let found = found.map(|mixture| mixture.measured(projected.records().view()));
            let likelihood = found.as_ref().map_or(f64::NEG_INFINITY, |mixture| mixture.log_likelihood);
            (self.after_run)(run, likelihood).then_some(found)
        };
        let runs: Option<Vec<_>> = (0..self.runs.max(1)).into_par_iter().map(run).collect();
        let (mut best, mut failure): (Option<Mixture>, _) = (None, None);
        for found in runs.ok_or(FitError::Interrupted)? {
            match found {
                Ok(found) if best.as_ref().is_none_or(|best| found.log_likelihood > best.log_likelihood) => {
                    best = Some(found);
                }
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        match (best, failure) {
            (Some(best), _) => Ok(best),
            (None, Some(GmmError::NotConverged(_))) => Err(FitError::NotConverged(self.max_iterations)),
            (None, Some(error)) => Err(error.into()),
            (None, None) => Err(FitError::Interrupted),
        }
    }
}

impl Mixture {
    /// Returns the mixture of these numbers: of each component its weight, its mean and the inverse of its covariance.
    fn new(
        projection: Projection,
        weights: &Array1<f64>,
        means: Array2<f64>,
        precisions: &Array3<f64>,
    ) -> Result<Self, GmmError> {
        let mut factors = Array3::zeros(precisions.raw_dim());
        for (mut factor, precision) in factors.outer_iter_mut().zip(precisions.outer_iter()) {
            factor.assign(&precision.cholesky()?);
        }
        let log_weights = weights.mapv(f64::ln);
        Ok(Self { projection, log_weights, means, factors, log_likelihood: f64::NAN, labels: vec![] })
    }

    /// Returns the mixture with the likelihood and the components of the points that it was fitted to.
    fn measured(mut self, projected: ArrayView2<'_, f64>) -> Self {
        let joint = self.log_joint(projected);
        self.log_likelihood =
            joint.rows().into_iter().map(|row| log_sum_exp(row.iter())).sum::<f64>() / projected.nrows().max(1) as f64;
        self.labels = joint.rows().into_iter().map(|row| largest(row.iter())).collect();
        self
    }

    /// Returns ln wᵢ + ln N(y; μᵢ, Σᵢ) of projected points, n × k.
    fn log_joint(&self, projected: ArrayView2<'_, f64>) -> Array2<f64> {
        let (k, r) = self.means.dim();
        let mut joint = Array2::zeros((projected.nrows(), k));
        let constant = -0.5 * r as f64 * (2.0 * std::f64::consts::PI).ln();
        for (i, mut column) in joint.columns_mut().into_iter().enumerate() {
            let factor = self.factors.slice(s![i, .., ..]);
            let whitened = (&projected - &self.means.row(i)).dot(&factor);
            let constant = constant + self.log_weights[i] + factor.diag().mapv(f64::ln).sum();
            Zip::from(&mut column).and(whitened.rows()).for_each(|joint, y| *joint = constant - 0.5 * y.dot(&y));
        }
        joint
    }

    /// Returns the logarithms of the components' responsibilities for embeddings, n × k.
    pub fn log_responsibilities(&self, points: ArrayView2<'_, f32>) -> Array2<f64> {
        let mut joint = self.log_joint(self.projection.project(points).view());
        for mut row in joint.rows_mut() {
            let total = log_sum_exp(row.iter());
            row.mapv_inplace(|x| x - total);
        }
        joint
    }

    /// Returns the fitted points of each component, those of the highest density first. `points` are those points.
    pub fn densest_first(&self, points: ArrayView2<'_, f32>) -> Vec<Vec<usize>> {
        let joint = self.log_joint(self.projection.project(points).view());
        let mut members = vec![vec![]; self.means.nrows()];
        self.labels.iter().enumerate().for_each(|(point, &label)| members[label].push(point));
        for (label, members) in members.iter_mut().enumerate() {
            members.sort_by(|&a, &b| joint[[b, label]].total_cmp(&joint[[a, label]]));
        }
        members
    }

    /// Returns the same mixture, renumbered so that the new component i is the old component `order[i]`.
    pub fn reordered(mut self, order: &[usize]) -> Self {
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, &old)| places[old] = new);
        self.log_weights = self.log_weights.select(Axis(0), order);
        self.means = self.means.select(Axis(0), order);
        self.factors = self.factors.select(Axis(0), order);
        self.labels.iter_mut().for_each(|label| *label = places[*label]);
        self
    }

    /// Returns the Bayesian information criterion (Schwarz, 1978): lower is better.
    pub fn bic(&self) -> f64 {
        let ((k, r), n) = (self.means.dim(), self.labels.len() as f64);
        let n_parameters = (k - 1) + k * r + k * r * (r + 1) / 2;
        n_parameters as f64 * n.ln() - 2.0 * n * self.log_likelihood
    }
}

impl<D: Data<Elem = f32>> PredictInplace<ArrayBase<D, Ix2>, Array1<usize>> for Mixture {
    fn predict_inplace(&self, x: &ArrayBase<D, Ix2>, y: &mut Array1<usize>) {
        let joint = self.log_joint(self.projection.project(x.view()).view());
        Zip::from(y).and(joint.rows()).for_each(|label, row| *label = largest(row.iter()));
    }

    fn default_target(&self, x: &ArrayBase<D, Ix2>) -> Array1<usize> {
        Array1::zeros(x.nrows())
    }
}

fn log_sum_exp<'a>(row: impl Iterator<Item = &'a f64> + Clone) -> f64 {
    let largest = row.clone().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + row.map(|x| (x - largest).exp()).sum::<f64>().ln()
}

/// Returns the index of the largest number, the first one in a tie.
pub(super) fn largest<'a>(row: impl Iterator<Item = &'a f64>) -> usize {
    let (mut best, mut highest) = (0, f64::NEG_INFINITY);
    for (i, &x) in row.enumerate() {
        if x > highest {
            (best, highest) = (i, x);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use linfa::traits::Predict;
    use test_support::Reference;

    use super::super::reference::{matrix, numbers};
    use super::*;

    const OPTIONS: MixtureOptions<'static> = MixtureOptions {
        k: 3,
        dimensions: 4,
        runs: 20,
        max_iterations: 1000,
        tolerance: 1e-9,
        ridge: 1e-3,
        seed: 0,
        after_run: &|_, _| true,
    };

    fn fit(points: &Array2<f32>, options: MixtureOptions<'_>) -> Result<Mixture, FitError> {
        options.fit(&DatasetBase::from(points.view()))
    }

    /// The responsibilities and the likelihood under scikit-learn's parameters.
    #[test]
    fn responsibilities_are_those_of_scikit_learn() {
        let reference = Reference::read("mixture.safetensors");
        let points = matrix(reference.tensor("points")).mapv(|x| x as f32);
        let projection = Projection { origin: Array1::zeros(4), matrix: Array2::eye(4), explained: Array1::ones(4) };
        let precisions = numbers(reference.tensor("precisions"));
        let precisions = Array3::from_shape_vec((5, 4, 4), precisions).expect("five of them");
        let weights = Array1::from(numbers(reference.tensor("weights")));
        let mixture = Mixture::new(projection, &weights, matrix(reference.tensor("means")), &precisions);
        let mixture = mixture.expect("positive definite");
        let found = mixture.log_responsibilities(points.view());
        let expected = matrix(reference.tensor("log_responsibilities"));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-9 * (1.0 + expected.abs()), "{found} is not {expected}");
        }
        assert!(found.rows().into_iter().all(|row| (row.mapv(f64::exp).sum() - 1.0).abs() < 1e-12));
        let likelihood = numbers(reference.tensor("log_likelihood"))[0];
        let measured = mixture.measured(points.mapv(f64::from).view());
        assert!((measured.log_likelihood - likelihood).abs() < 1e-9, "{}", measured.log_likelihood);
        let predicted: Array1<usize> = measured.predict(&DatasetBase::from(points.view()));
        assert_eq!(predicted.to_vec(), measured.labels);
    }

    /// Each side with the best of many starts. A projection to as many dimensions turns and scales the coordinates, which
    /// changes the density by its determinant.
    #[test]
    fn the_likelihood_is_that_of_scikit_learn() {
        let reference = Reference::read("mixture.safetensors");
        let points = matrix(reference.tensor("points")).mapv(|x| x as f32);
        let found = fit(&points, OPTIONS).expect("three groups");
        let lengths = found.projection.matrix.rows().into_iter().map(|row| row.dot(&row).sqrt().ln());
        let likelihood = found.log_likelihood + lengths.sum::<f64>();
        let expected = numbers(reference.tensor("fitted"))[0];
        assert!((likelihood - expected).abs() < 1e-3, "{likelihood} is not {expected}");
    }

    /// Returns points around `k` corners.
    fn corners(n: usize, k: usize) -> Array2<f32> {
        Array2::from_shape_fn((n, 6), |(i, j)| {
            (if i % k == j { 8.0 } else { 0.0 }) + ((i * (j + 3) * 7919 + j * 104_729) % 97) as f32 / 97.0
        })
    }

    #[test]
    fn separate_groups_are_components() {
        let points = corners(90, 3);
        let options = MixtureOptions { dimensions: 3, ..OPTIONS };
        let found = fit(&points, options).expect("three groups");
        assert!((0..90).all(|i| found.labels[i] == found.labels[i % 3]), "{:?}", found.labels);
        let variance = found.projection.project(points.view()).mapv(|y| y * y).mean().expect("points");
        assert!((variance - 1.0).abs() < 1e-9, "the unit of the projection: {variance}");
        let members = found.densest_first(points.view());
        assert_eq!(members.iter().map(Vec::len).collect::<Vec<_>>(), [30, 30, 30]);
        let other = fit(&points, options).expect("three groups");
        assert_eq!((&other.means, &other.factors), (&found.means, &found.factors), "the same for the same seed");
        let bic = |k: usize| fit(&points, MixtureOptions { k, ..options }).expect("few of 90").bic();
        assert!(bic(3) < bic(2) && bic(3) < bic(4), "{} {} {}", bic(2), bic(3), bic(4));

        let order = [2, 0, 1];
        let reordered = found.clone().reordered(&order);
        let (new, old) = (reordered.log_responsibilities(points.view()), found.log_responsibilities(points.view()));
        assert_eq!(new.column(1), old.column(0));
        assert_eq!(reordered.labels[0], order.iter().position(|&i| i == found.labels[0]).expect("it has a place"));
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let points = corners(20, 3);
        let refused = |options: MixtureOptions<'_>| fit(&points, options).expect_err("too few").to_string();
        assert_eq!(
            refused(MixtureOptions { dimensions: 6, ..OPTIONS }),
            "20 points in 3 components allow at most 5 dimensions, because each component needs more points than \
             dimensions: use fewer --dimensions, a smaller -k or more data"
        );
        assert_eq!(
            refused(MixtureOptions { k: 11, dimensions: 1, ..OPTIONS }),
            "20 points are too few for a mixture of 11 components: it needs at least two for each"
        );
        assert!(refused(MixtureOptions { k: 21, ..OPTIONS }).starts_with("20 points cannot form 21 clusters"));
        assert_eq!(
            refused(MixtureOptions { max_iterations: 1, ..OPTIONS }),
            "no run converged within 1 iterations: raise --max-iterations or --tolerance, or use a smaller -k"
        );
        assert_eq!(refused(MixtureOptions { after_run: &|_, _| false, ..OPTIONS }), "interrupted");
        let same = Array2::from_elem((20, 6), 0.25f32);
        let message = fit(&same, OPTIONS).expect_err("one point").to_string();
        assert_eq!(message, "all embeddings are the same: there is nothing to fit");
    }
}
