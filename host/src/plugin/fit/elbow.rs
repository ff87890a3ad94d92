//! Choosing the number of clusters: the inertia for each k, and two criteria for the best k.

use ndarray::{Array2, Axis};
use rayon::prelude::*;

use super::frame::{Frame, squared_lengths};
use super::kmeans::Clustering;

/// Number of points whose distances are computed together.
const TILE: usize = 256;

/// The result for one number of clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct ElbowRow {
    /// Number of clusters.
    pub k: usize,
    /// Sum of squared distances to the centers.
    pub inertia: f64,
    /// The simplified silhouette, see [`silhouette`].
    pub silhouette: f64,
    /// Iterations of the best run.
    pub iterations: usize,
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

/// Returns the k with the highest silhouette; the smallest one in a tie.
pub fn most_separate(rows: &[ElbowRow]) -> Option<usize> {
    let best = rows.iter().max_by(|a, b| a.silhouette.total_cmp(&b.silhouette).then(b.k.cmp(&a.k)))?;
    Some(best.k)
}

/// Returns the simplified silhouette (Hruschka et al., 2006): the mean over the points of (b − a) / max(a, b), where a
/// is the distance to a point's own center and b that to the nearest other one. Near 1, clusters are far apart; near 0,
/// they touch.
pub fn silhouette(points: &Array2<f32>, found: &Clustering) -> f64 {
    let frame = Frame::of(points.view());
    let centers = frame.enter(found.centers.view());
    let lengths = squared_lengths(centers.view());
    let sums: Vec<f64> = points
        .axis_chunks_iter(Axis(0), TILE)
        .into_par_iter()
        .zip(found.labels.par_chunks(TILE))
        .map(|(tile, labels)| {
            let tile = frame.enter(tile);
            let products = tile.dot(&centers.t());
            let mut sum = 0.0;
            for ((point, products), &label) in tile.rows().into_iter().zip(products.rows()).zip(labels) {
                let length = point.dot(&point);
                let distance = |i: usize| f64::from((length + lengths[i] - 2.0 * products[i]).max(0.0)).sqrt();
                let own = distance(label);
                let other = (0..lengths.len()).filter(|&i| i != label).map(distance).fold(f64::INFINITY, f64::min);
                let larger = own.max(other);
                sum += if larger > 0.0 { (other - own) / larger } else { 0.0 };
            }
            sum
        })
        .collect();
    sums.iter().sum::<f64>() / points.nrows().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(inertias: &[f64]) -> Vec<ElbowRow> {
        let row = |(i, &inertia): (usize, &f64)| ElbowRow {
            k: i + 2,
            inertia,
            silhouette: 1.0 / (1.0 + (i as f64 - 1.0).abs()),
            iterations: 1,
            seconds: 0.0,
        };
        inertias.iter().enumerate().map(row).collect()
    }

    #[test]
    fn the_elbow_is_where_the_curve_bends() {
        assert_eq!(elbow(&rows(&[100.0, 60.0, 20.0, 18.0, 16.0, 14.0])), Some(4));
        assert_eq!(elbow(&rows(&[100.0, 80.0, 60.0, 40.0])), None, "a straight line has no bend");
        assert_eq!(elbow(&rows(&[100.0, 60.0])), None);
        assert_eq!(elbow(&[]), None);
        assert_eq!(most_separate(&rows(&[3.0, 2.0, 1.0])), Some(3));
    }

    #[test]
    fn the_silhouette_by_hand() {
        let points = ndarray::arr2(&[[0.0f32, 0.0], [0.0, 2.0], [8.0, 1.0]]);
        let found = Clustering {
            centers: ndarray::arr2(&[[0.0, 1.0], [8.0, 1.0]]),
            labels: vec![0, 0, 1],
            inertia: 2.0,
            iterations: 1,
        };
        let edge = 65.0f64.sqrt();
        let expected = (2.0 * (edge - 1.0) / edge + 1.0) / 3.0;
        assert!((silhouette(&points, &found) - expected).abs() < 1e-6);
        // It does not depend on the distance of the points to the origin.
        let far = Clustering { centers: &found.centers + 1e5, ..found };
        assert!((silhouette(&(&points + 1e5), &far) - expected).abs() < 1e-6);
    }
}
