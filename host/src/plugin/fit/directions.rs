//! Directions of embeddings that clusters disregard: those in which the embeddings of some texts differ.
//!
//! CLIP embeds an image's content and its style in one vector. Clusters of such vectors are often clusters of content. The
//! texts say what the content can be, as a run's prompts do; without the directions in which they differ, what is left of
//! an image's embedding is what they do not say.

use linfa::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array2, Axis};

use super::error::FitError;
use super::normalize_rows;
use super::projection::{PrincipalComponents, Projection};

/// The least share of the texts' variance along a direction. Wordings that CLIP takes for the same ("painting of", "drawing
/// of") differ by less, in directions that have no meaning.
const MIN_SHARE: f64 = 1e-3;

/// The least mean square, relative to that of the whole embeddings, that may be left of embeddings.
const MIN_REST: f64 = 1e-3;

/// Orthonormal directions.
#[derive(Clone, Debug, PartialEq)]
pub struct Directions {
    /// The directions, n × dim.
    pub matrix: Array2<f64>,
}

impl Directions {
    /// Returns the directions in which rows differ: their principal components with at least a thousandth of the variance.
    ///
    /// # Errors
    /// If all rows are equal, or not finite.
    pub fn between(rows: &Array2<f32>) -> Result<Self, FitError> {
        let all = PrincipalComponents { dimensions: rows.nrows().saturating_sub(1).max(1) };
        let found: Projection = all.fit(&DatasetBase::from(rows.view()))?;
        let kept = found.explained.iter().take_while(|&&share| share >= MIN_SHARE).count();
        Ok(Self { matrix: found.matrix.slice_axis(Axis(0), (..kept).into()).to_owned() })
    }

    /// Removes the directions from embeddings, and scales what is left to length 1 if `normalize` is true.
    ///
    /// # Errors
    /// If the embeddings have other dimensions, or next to nothing is left of them.
    pub fn remove(&self, points: &mut Array2<f32>, normalize: bool) -> Result<(), FitError> {
        if points.ncols() != self.matrix.ncols() {
            return Err(FitError::OtherDirections { directions: self.matrix.ncols(), points: points.ncols() });
        }
        let whole = points.mapv(f64::from);
        let rest = &whole - &whole.dot(&self.matrix.t()).dot(&self.matrix);
        let square = |rows: &Array2<f64>| rows.iter().map(|x| x * x).sum::<f64>();
        if square(&rest) <= MIN_REST * square(&whole) {
            return Err(FitError::NoRest);
        }
        points.assign(&rest.mapv(|x| x as f32));
        if normalize {
            normalize_rows(points);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;
    use test_support::Reference;

    use super::super::reference::matrix;
    use super::*;

    #[test]
    fn what_the_rows_differ_in_is_removed() {
        let texts = arr2(&[[1.0f32, 5.0, 0.0, 2.0], [3.0, 5.0, 0.0, 2.0], [1.0, 5.0, 4.0, 2.0]]);
        let directions = Directions::between(&texts).expect("they differ");
        assert_eq!(directions.matrix.nrows(), 2);
        let mut points = arr2(&[[7.0f32, 3.0, -2.0, 4.0], [0.5, 0.0, 9.0, 1.0]]);
        directions.remove(&mut points, false).expect("there is a rest");
        assert!((&points - &arr2(&[[0.0, 3.0, 0.0, 4.0], [0.0, 0.0, 0.0, 1.0]])).iter().all(|x| x.abs() < 1e-5));
        directions.remove(&mut points, true).expect("there is a rest");
        assert!((&points.row(0) - &ndarray::arr1(&[0.0, 0.6, 0.0, 0.8])).iter().all(|x| x.abs() < 1e-5), "{points}");
    }

    #[test]
    fn wordings_of_the_same_add_no_direction() {
        // The last text differs from the first by a hundredth of what the others do.
        let texts = arr2(&[[1.0f32, 0.0, 0.0], [-1.0, 0.0, 0.0], [1.0, 0.01, 0.0]]);
        let directions = Directions::between(&texts).expect("they differ");
        assert_eq!(directions.matrix.nrows(), 1, "{directions:?}");
    }

    #[test]
    fn what_cannot_be_removed_is_refused() {
        let same = Directions::between(&Array2::from_elem((3, 4), 0.7)).expect_err("all are one").to_string();
        assert_eq!(same, "all embeddings are the same: there is nothing to fit");
        let directions = Directions::between(&arr2(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).expect("they differ");
        let refused = |mut points: Array2<f32>| directions.remove(&mut points, true).expect_err("no").to_string();
        assert_eq!(refused(Array2::zeros((1, 2))), "the texts have embeddings of 3 dimensions, the points 2");
        assert_eq!(
            refused(arr2(&[[1.0, -1.0, 0.0], [-3.0, 3.0, 0.0]])),
            "next to nothing is left of the embeddings without what the disregarded texts differ in"
        );
    }

    /// The rest, the distances to scikit-learn's centers and the soft k-means of them, as numpy and scikit-learn compute
    /// them.
    #[test]
    fn the_rest_is_that_of_scikit_learn() {
        let reference = Reference::read("disregard.safetensors");
        let texts = matrix(reference.tensor("texts")).mapv(|x| x as f32);
        let directions = Directions::between(&texts).expect("they differ");
        let expected = matrix(reference.tensor("projector"));
        let projector = directions.matrix.t().dot(&directions.matrix);
        assert!((&projector - &expected).iter().all(|x| x.abs() < 1e-5), "{} directions", directions.matrix.nrows());
        let mut points = matrix(reference.tensor("points")).mapv(|x| x as f32);
        directions.remove(&mut points, true).expect("there is a rest");
        let expected = matrix(reference.tensor("rest"));
        assert!((&points.mapv(f64::from) - &expected).iter().all(|x| x.abs() < 1e-5));
    }
}
