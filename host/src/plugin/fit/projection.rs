//! Principal components of embeddings, by linfa: for the mixture, which needs few dimensions, and for maps.

use linfa::traits::Fit;
use linfa::{DatasetBase, dataset::Records};
use linfa_reduction::Pca;
use ndarray::{Array1, Array2, ArrayBase, ArrayView2, Axis, Data, Ix2};

use super::error::FitError;

/// A linear projection: y = P (e − m).
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// m, of length dim.
    pub origin: Array1<f64>,
    /// P, r × dim, its rows the orthonormal principal components, by falling variance.
    pub matrix: Array2<f64>,
    /// The share of the points' variance along each component.
    pub explained: Array1<f64>,
}

impl Projection {
    /// Returns the rows in the projection, n × r.
    pub fn project(&self, rows: ArrayView2<'_, f32>) -> Array2<f64> {
        let mut centered = rows.mapv(f64::from);
        centered -= &self.origin;
        centered.dot(&self.matrix.t())
    }
}

/// Principal component analysis.
#[derive(Clone, Copy, Debug)]
pub struct PrincipalComponents {
    /// Number of components: there are fewer of points that lie in fewer dimensions.
    pub dimensions: usize,
}

impl<D: Data<Elem = f32>, T> Fit<ArrayBase<D, Ix2>, T, FitError> for PrincipalComponents {
    type Object = Projection;

    fn fit(&self, dataset: &DatasetBase<ArrayBase<D, Ix2>, T>) -> Result<Projection, FitError> {
        let mut points = dataset.records().mapv(f64::from);
        if points.iter().any(|x| !x.is_finite()) {
            return Err(FitError::NotFinite("points"));
        }
        let origin = points.mean_axis(Axis(0)).ok_or(FitError::NoVariance)?;
        points -= &origin;
        // The solver's tolerance is absolute: around 0 and with squares that sum to 1 it is relative, and the squares of the
        // singular values are the shares of the variance.
        let largest = points.iter().fold(0f64, |largest, x| largest.max(x.abs()));
        // Copies of a point may differ from their mean by rounding errors.
        if largest <= 1e-6 * origin.iter().fold(0f64, |largest, x| largest.max(x.abs())) || largest == 0.0 {
            return Err(FitError::NoVariance);
        }
        points /= largest;
        points /= points.iter().map(|x| x * x).sum::<f64>().sqrt();
        let all = points.nfeatures().min(points.nsamples());
        // The solver iterates in a space of three times the components. If that is more than there is, it is exact when asked
        // for all of them, and inexact otherwise.
        let asked = if 4 * self.dimensions > all { all } else { self.dimensions };
        let pca = Pca::params(asked).fit(&DatasetBase::from(points))?;
        let explained = pca.singular_values().mapv(|sigma| sigma * sigma);
        let kept = explained.iter().take(self.dimensions).take_while(|&&share| share > 1e-12).count();
        let mut matrix = pca.components().slice_axis(Axis(0), (..kept).into()).to_owned();
        // A component's sign is arbitrary: its largest coordinate is positive, as in scikit-learn.
        for mut row in matrix.rows_mut() {
            let peak = row.iter().copied().fold(0f64, |peak, x| if x.abs() > peak.abs() { x } else { peak });
            if peak < 0.0 {
                row *= -1.0;
            }
        }
        Ok(Projection { origin, matrix, explained: explained.slice_axis(Axis(0), (..kept).into()).to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns numbers in [−1, 1] that look random.
    fn noise(n: usize, dim: usize) -> Array2<f32> {
        let mut state = 1u32;
        Array2::from_shape_fn((n, dim), |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
    }

    fn fit(points: &Array2<f32>, dimensions: usize) -> Projection {
        PrincipalComponents { dimensions }.fit(&DatasetBase::from(points.view())).expect("points of many dimensions")
    }

    /// The components are orthonormal eigenvectors of the covariance, at every shape, offset and scale.
    #[test]
    fn components_are_eigenvectors_of_the_covariance() {
        for (n, dim, r) in [(300, 64, 16), (40, 64, 16), (12, 8, 5), (5, 64, 4), (4, 3, 3), (200, 3, 2), (30, 30, 29)] {
            for (offset, scale) in [(0.0, 1.0), (50.0, 1.0), (0.0, 1e-3), (0.0, 1e4)] {
                let mut points = noise(n, dim);
                for (j, mut column) in points.columns_mut().into_iter().enumerate() {
                    column.mapv_inplace(|x| scale * (offset + x / (1.0 + j as f32)));
                }
                let found = fit(&points, r);
                let name = format!("{n} x {dim}, {r} of {offset} and {scale}");
                assert_eq!(found.matrix.dim(), (r, dim), "{name}");
                let gram = found.matrix.dot(&found.matrix.t());
                assert!((&gram - &Array2::<f64>::eye(r)).iter().all(|x| x.abs() < 1e-6), "{name}: {gram}");
                let mut centered = points.mapv(f64::from);
                centered -= &found.origin;
                let total: f64 = centered.iter().map(|x| x * x).sum();
                let covariance = centered.t().dot(&centered) / total;
                for (row, share) in found.matrix.rows().into_iter().zip(&found.explained) {
                    let residual = &covariance.dot(&row) - &(&row * *share);
                    let length = residual.dot(&residual).sqrt();
                    assert!(length < 1e-6, "{name}: {length}");
                }
                assert!(found.explained.windows(2).into_iter().all(|pair| pair[0] >= pair[1]), "{name}");
                let trace: f64 = covariance.diag().sum();
                assert!(found.explained.sum() <= trace + 1e-9, "{name}");
                if r == dim {
                    assert!((found.explained.sum() - trace).abs() < 1e-6, "{name}: all of the variance");
                }
            }
        }
    }

    #[test]
    fn points_in_fewer_dimensions_have_fewer_components() {
        let plane = noise(50, 2).dot(&noise(2, 10));
        let found = fit(&plane, 6);
        assert_eq!(found.matrix.nrows(), 2, "{}", found.explained);
        assert!((found.explained.sum() - 1.0).abs() < 1e-6);
        let same = Array2::from_elem((9, 4), 0.7f32);
        let error = PrincipalComponents { dimensions: 2 }.fit(&DatasetBase::from(same.view())).expect_err("one point");
        assert!(matches!(error, FitError::NoVariance), "{error}");
        let two = ndarray::arr2(&[[0f32, 1.0], [0.0, 3.0], [0.0, 1.0], [0.0, 3.0]]);
        assert!((fit(&two, 2).matrix - ndarray::arr2(&[[0.0, 1.0]])).iter().all(|x| x.abs() < 1e-12));
    }
}
