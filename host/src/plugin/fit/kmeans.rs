//! k-means: linfa's k-means++ for the start, then Lloyd's algorithm with the assignment as a matrix product (linfa's own
//! goes row by row).

use linfa::prelude::*;
use linfa_clustering::{KMeans, KMeansInit};
use linfa_nn::distance::L2Dist;
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView2, Axis};
use rand_xoshiro::Xoshiro256Plus;
use rand_xoshiro::rand_core::SeedableRng;

/// Points that are assigned together. The sums over them are added up in order, so the result does not depend on the
/// number of threads.
const CHUNK: usize = 1024;

/// How to look for clusters.
#[derive(Clone, Copy, Debug)]
pub struct KMeansOptions {
    /// Number of clusters.
    pub k: usize,
    /// Starts, of which the best one counts.
    pub runs: usize,
    /// Iterations of a run at most.
    pub max_iterations: usize,
    /// A run ends when its centres move by less than this share of the points' mean variance, squared and summed (as
    /// scikit-learn's `tol`).
    pub tolerance: f64,
    /// Run r starts from k-means++ seeded with `seed + r`.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Clustering {
    /// k × dim.
    pub centers: Array2<f32>,
    /// The cluster of each point.
    pub labels: Vec<usize>,
    /// Sum of the points' squared distances to their centres.
    pub inertia: f64,
    /// Iterations of the best run.
    pub iterations: usize,
}

impl Clustering {
    /// Number of points in each cluster.
    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.centers.nrows()];
        self.labels.iter().for_each(|&label| sizes[label] += 1);
        sizes
    }

    /// The same clusters, numbered so that the new cluster i is the old cluster `order[i]`.
    pub fn reordered(mut self, order: &[usize]) -> Self {
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, &old)| places[old] = new);
        self.centers = self.centers.select(Axis(0), order);
        self.labels.iter_mut().for_each(|label| *label = places[*label]);
        self
    }
}

/// The best of several runs of k-means over the rows of `points`; `after_run` hears the inertia of each, and says
/// whether to go on.
pub fn k_means(
    points: &Array2<f32>,
    options: &KMeansOptions,
    mut after_run: impl FnMut(usize, f64) -> bool,
) -> Result<Clustering, String> {
    let (n, k) = (points.nrows(), options.k);
    if k < 2 || k > n {
        return Err(format!("{k} clusters cannot be made of {n} points: k goes from 2 to the number of points"));
    }
    if points.iter().any(|x| !x.is_finite()) {
        return Err("the points are not all finite".to_owned());
    }
    let tolerance = options.tolerance * mean_variance(points);
    let mut best: Option<Clustering> = None;
    for run in 0..options.runs.max(1) {
        let start = k_means_plus_plus(points, k, options.seed.wrapping_add(run as u64))?;
        let found = lloyd(points, start, options.max_iterations, tolerance);
        let go_on = after_run(run, found.inertia);
        if best.as_ref().is_none_or(|best| found.inertia < best.inertia) {
            best = Some(found);
        }
        if !go_on {
            break;
        }
    }
    best.ok_or_else(|| "no run was made".to_owned())
}

/// linfa keeps its initialisation to itself; one iteration of its k-means is that and one step of Lloyd's.
fn k_means_plus_plus(points: &Array2<f32>, k: usize, seed: u64) -> Result<Array2<f32>, String> {
    let dataset = DatasetBase::from(points.view());
    let model = KMeans::params_with(k, Xoshiro256Plus::seed_from_u64(seed), L2Dist)
        .init_method(KMeansInit::KMeansPlusPlus)
        .n_runs(1)
        .max_n_iterations(1)
        .fit(&dataset)
        .map_err(|e| e.to_string())?;
    Ok(model.centroids().clone())
}

fn lloyd(points: &Array2<f32>, mut centers: Array2<f32>, max_iterations: usize, tolerance: f64) -> Clustering {
    let mut iterations = 0;
    loop {
        let step = assign(points, &centers);
        let moved = step.means(points, &centers);
        let shift: f64 = moved.iter().zip(&centers).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        iterations += 1;
        centers = moved;
        if shift <= tolerance || iterations >= max_iterations.max(1) {
            break;
        }
    }
    let last = assign(points, &centers);
    Clustering { inertia: last.distances.iter().sum(), labels: last.labels, centers, iterations }
}

/// The points' clusters, and what their means are made of.
struct Assignment {
    labels: Vec<usize>,
    distances: Vec<f64>,
    sums: Array2<f64>,
    counts: Vec<usize>,
}

/// Nearest centres by ‖x − c‖² = ‖x‖² − 2 x·c + ‖c‖², of which the first term is the same for all centres.
fn assign(points: &Array2<f32>, centers: &Array2<f32>) -> Assignment {
    let lengths: Array1<f32> = centers.rows().into_iter().map(|c| c.dot(&c)).collect();
    let chunks: Vec<Assignment> = points
        .axis_chunks_iter(Axis(0), CHUNK)
        .into_par_iter()
        .map(|chunk| assign_chunk(chunk, centers, &lengths))
        .collect();
    let mut all = Assignment {
        labels: Vec::with_capacity(points.nrows()),
        distances: Vec::with_capacity(points.nrows()),
        sums: Array2::zeros(centers.raw_dim()),
        counts: vec![0; centers.nrows()],
    };
    for chunk in chunks {
        all.labels.extend(chunk.labels);
        all.distances.extend(chunk.distances);
        all.sums += &chunk.sums;
        all.counts.iter_mut().zip(chunk.counts).for_each(|(all, n)| *all += n);
    }
    all
}

fn assign_chunk(points: ArrayView2<'_, f32>, centers: &Array2<f32>, lengths: &Array1<f32>) -> Assignment {
    let products = points.dot(&centers.t());
    let mut chunk = Assignment {
        labels: Vec::with_capacity(points.nrows()),
        distances: Vec::with_capacity(points.nrows()),
        sums: Array2::zeros(centers.raw_dim()),
        counts: vec![0; centers.nrows()],
    };
    for (point, products) in points.rows().into_iter().zip(products.rows()) {
        let mut nearest = 0;
        let mut smallest = f32::INFINITY;
        for (i, (product, length)) in products.iter().zip(lengths).enumerate() {
            let distance = length - 2.0 * product;
            if distance < smallest {
                (nearest, smallest) = (i, distance);
            }
        }
        // The difference itself, which does not cancel as the products do.
        let center = centers.row(nearest);
        chunk.distances.push(point.iter().zip(center).map(|(x, c)| f64::from(x - c).powi(2)).sum());
        chunk.labels.push(nearest);
        chunk.counts[nearest] += 1;
        chunk.sums.row_mut(nearest).zip_mut_with(&point, |sum, x| *sum += f64::from(*x));
    }
    chunk
}

impl Assignment {
    /// The means of the clusters; an empty one gets the point that is farthest from its centre.
    fn means(&self, points: &Array2<f32>, centers: &Array2<f32>) -> Array2<f32> {
        let mut means = centers.clone();
        let mut farthest: Vec<usize> = vec![];
        for (i, &count) in self.counts.iter().enumerate() {
            if count > 0 {
                means.row_mut(i).zip_mut_with(&self.sums.row(i), |mean, sum| *mean = (sum / count as f64) as f32);
                continue;
            }
            let free = (0..points.nrows()).filter(|point| !farthest.contains(point));
            let point = free.max_by(|&a, &b| self.distances[a].total_cmp(&self.distances[b]));
            let point = point.expect("there are at least as many points as clusters");
            farthest.push(point);
            means.row_mut(i).assign(&points.row(point));
        }
        means
    }
}

fn mean_variance(points: &Array2<f32>) -> f64 {
    let n = points.nrows() as f64;
    let variance = |column: ndarray::ArrayView1<'_, f32>| {
        let mean = column.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        column.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n
    };
    points.columns().into_iter().map(variance).sum::<f64>() / points.ncols().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: KMeansOptions = KMeansOptions { k: 3, runs: 4, max_iterations: 100, tolerance: 1e-4, seed: 0 };

    /// Points on small circles round three far corners.
    fn points() -> Array2<f32> {
        Array2::from_shape_fn((30, 2), |(i, j)| {
            let corner = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]][i % 3][j];
            let angle = i as f32;
            corner + 0.5 * if j == 0 { angle.cos() } else { angle.sin() }
        })
    }

    #[test]
    fn clusters_that_are_there_are_found() {
        let points = points();
        let found = k_means(&points, &OPTIONS, |_, _| true).expect("3 of 30");
        for i in 0..30 {
            assert_eq!(found.labels[i], found.labels[i % 3], "point {i}");
        }
        let by_hand: f64 = (0..30)
            .map(|i| {
                let center = found.centers.row(found.labels[i]);
                points.row(i).iter().zip(center).map(|(x, c)| f64::from(x - c).powi(2)).sum::<f64>()
            })
            .sum();
        assert!((found.inertia - by_hand).abs() < 1e-9 && found.inertia < 30.0 * 0.26, "{}", found.inertia);
    }

    #[test]
    fn a_seed_gives_the_same_centres() {
        let found = || k_means(&points(), &OPTIONS, |_, _| true).expect("3 of 30").centers;
        assert_eq!(found(), found());
    }

    #[test]
    fn as_many_clusters_as_points_leaves_nothing_over() {
        let points = Array2::from_shape_fn((5, 3), |(i, j)| (i * i + j) as f32);
        let found = k_means(&points, &KMeansOptions { k: 5, ..OPTIONS }, |_, _| true).expect("5 of 5");
        assert!(found.inertia < 1e-6, "{}", found.inertia);
        assert!(k_means(&points, &KMeansOptions { k: 6, ..OPTIONS }, |_, _| true).is_err());
    }
}
