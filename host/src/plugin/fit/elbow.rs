//! Choosing the number of clusters: the inertia for each k, and two criteria for the best k.

use linfa::Dataset;
use linfa::metrics::SilhouetteScore;
use ndarray::{Array1, ArrayView2, Axis};

use super::frame::Frame;
use super::probe::class_sizes;

/// Maximum number of points of which the silhouette is computed: it takes the distances of all of them to each other.
pub const SILHOUETTE_POINTS: usize = 1000;

/// The result for one number of clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct ElbowRow {
    /// Number of clusters.
    pub k: usize,
    /// Sum of squared distances to the centers.
    pub inertia: f64,
    /// The silhouette score, see [`silhouette`].
    pub silhouette: f64,
    /// Iterations of the best run.
    pub iterations: usize,
    /// Wall-clock time of all runs.
    pub seconds: f64,
}

/// The result for one number of components of a Gaussian mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct MixtureRow {
    /// Number of components.
    pub k: usize,
    /// Mean log-likelihood per point.
    pub log_likelihood: f64,
    /// The Bayesian information criterion: lower is better.
    pub bic: f64,
    /// The silhouette score of the most probable components, see [`silhouette`].
    pub silhouette: f64,
    /// Wall-clock time of all runs.
    pub seconds: f64,
}

/// Returns the k at the elbow: where the inertia lies farthest below the straight line from the first row to the last,
/// both axes scaled to [0, 1] (the "kneedle" of Satopää et al., 2011). None with fewer than three rows, or if the
/// inertia does not fall.
pub fn elbow(rows: &[ElbowRow]) -> Option<usize> {
    let (first, last) = (rows.first()?, rows.last()?);
    let (width, height) = ((last.k - first.k) as f64, first.inertia - last.inertia);
    if rows.len() < 3 || height <= 0.0 {
        return None;
    }
    let depth = |row: &ElbowRow| (last.inertia - row.inertia) / height + 1.0 - (row.k - first.k) as f64 / width;
    let deepest = rows.iter().max_by(|a, b| depth(a).total_cmp(&depth(b)).then(b.k.cmp(&a.k)))?;
    (depth(deepest) > 1e-9).then_some(deepest.k)
}

/// Returns the k with the highest silhouette, of numbers of clusters and their silhouettes; the smallest one in a tie.
pub fn most_separate(rows: impl IntoIterator<Item = (usize, f64)>) -> Option<usize> {
    rows.into_iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).map(|(k, _)| k)
}

/// Returns the silhouette score (Rousseeuw, 1987): the mean over the points of (b − a) / max(a, b), where a is the mean
/// distance to the other points of the own cluster and b that to the points of the nearest other one. Near 1, clusters are far
/// apart; near 0, they touch. Of more than [`SILHOUETTE_POINTS`] points so many are compared, always the same ones.
pub fn silhouette(points: ArrayView2<'_, f32>, labels: &[usize]) -> f64 {
    // Nearly evenly spaced, but not in step with points that alternate in some way.
    let mut chosen: Vec<usize> = (0..labels.len()).collect();
    chosen.sort_by_key(|&i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    chosen.truncate(SILHOUETTE_POINTS);
    let n = chosen.len();
    let some = points.select(Axis(0), &chosen);
    let labels: Array1<usize> = chosen.iter().map(|&i| labels[i]).collect();
    let sizes = class_sizes(labels.iter(), labels.iter().max().map_or(0, |largest| largest + 1));
    if sizes.iter().filter(|size| **size > 0).count() < 2 {
        return 0.0;
    }
    // In the frame, squares of very small or very large distances neither vanish nor overflow.
    let some = Frame::of(some.view()).enter(some.view()).mapv(f64::from);
    // The error type is linfa's general one; the score itself never fails.
    let score = Dataset::new(some, labels).silhouette_score().unwrap_or(0.0);
    // linfa counts 1 for a point that is alone in its cluster, Rousseeuw and scikit-learn count 0.
    let alone = sizes.iter().filter(|size| **size == 1).count();
    let score = score - alone as f64 / n as f64;
    // Not a number: two clusters of the same point.
    if score.is_finite() { score } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use test_support::Reference;

    use super::super::reference::{matrix, numbers};
    use super::*;

    fn rows(inertias: &[f64]) -> Vec<ElbowRow> {
        let row =
            |(i, &inertia): (usize, &f64)| ElbowRow { k: i + 2, inertia, silhouette: 0.0, iterations: 1, seconds: 0.0 };
        inertias.iter().enumerate().map(row).collect()
    }

    #[test]
    fn the_elbow_is_where_the_curve_bends() {
        assert_eq!(elbow(&rows(&[100.0, 60.0, 20.0, 18.0, 16.0, 14.0])), Some(4));
        assert_eq!(elbow(&rows(&[100.0, 80.0, 60.0, 40.0])), None, "a straight line has no bend");
        assert_eq!(elbow(&rows(&[100.0, 60.0])), None);
        assert_eq!(elbow(&[]), None);
        assert_eq!(most_separate([(2, 0.1), (3, 0.5), (4, 0.5)]), Some(3));
    }

    #[test]
    fn the_silhouette_by_hand() {
        let points = ndarray::arr2(&[[0.0f32, 0.0], [0.0, 2.0], [8.0, 1.0]]);
        let edge = 65.0f64.sqrt();
        // The third point is alone in its cluster and counts 0.
        let expected = 2.0 * (edge - 2.0) / edge / 3.0;
        assert!((silhouette(points.view(), &[0, 0, 1]) - expected).abs() < 1e-6);
        // It depends neither on the distance of the points to the origin nor on their scale.
        assert!((silhouette((&points + 1e5).view(), &[0, 0, 1]) - expected).abs() < 1e-6);
        assert!((silhouette((&points * 1e-30).view(), &[0, 0, 1]) - expected).abs() < 1e-6);
        assert_eq!(silhouette(points.view(), &[2, 2, 2]), 0.0);
        let same = ndarray::Array2::from_elem((4, 2), 0.5);
        assert_eq!(silhouette(same.view(), &[0, 0, 1, 1]), 0.0);
    }

    #[test]
    fn of_many_points_some_are_compared() {
        let points = ndarray::Array2::from_shape_fn((6000, 1), |(i, _)| (i % 2 * 100 + i % 17) as f32);
        let labels: Vec<usize> = (0..6000).map(|i| i % 2).collect();
        let few = silhouette(points.slice_axis(Axis(0), (..999).into()), &labels[..999]);
        let many = silhouette(points.view(), &labels);
        assert!((few - many).abs() < 0.02 && many > 0.9, "{few} {many}");
    }

    /// The labels are those of scikit-learn's k-means.
    #[test]
    fn the_silhouette_is_that_of_scikit_learn() {
        let reference = Reference::read("kmeans.safetensors");
        let points = matrix(reference.tensor("points")).mapv(|x| x as f32);
        let numbers = |name: &str| numbers(reference.tensor(name));
        let labels: Vec<usize> = numbers("labels").iter().map(|&label| label as usize).collect();
        let (found, expected) = (silhouette(points.view(), &labels), numbers("silhouette")[0]);
        assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
    }
}
