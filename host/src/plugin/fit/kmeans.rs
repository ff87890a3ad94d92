//! k-means: Lloyd's algorithm with the assignment as a matrix product, from the best of several k-means++ starts. Like
//! linfa's, it is fitted to a data set ([`Fit`]) and predicts the clusters of other points ([`PredictInplace`]).
//!
//! Products of points far from the origin cancel, so that all of it runs in a [`Frame`] around the points' mean, as
//! scikit-learn's does. Distances that still cancel there, those of points much nearer to each other than to the mean,
//! are computed from differences.

use linfa::DatasetBase;
use linfa::traits::{Fit, PredictInplace};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayBase, ArrayView1, ArrayView2, Axis, Data, Ix2, s};
use rayon::prelude::*;

use super::error::FitError;
use super::frame::{Frame, ROUNDING, squared_distance, squared_lengths};
use super::start::k_means_plus_plus;

/// Number of points whose sums are added up together, in order, so that the result does not depend on the number of
/// threads.
const BLOCK: usize = 1024;

/// Number of points of a block that are multiplied at a time: at 768 dimensions they stay in a core's own cache until
/// their sums are taken.
const TILE: usize = 256;

/// Options of k-means.
#[derive(Clone, Copy)]
pub struct KMeansOptions<'a> {
    /// Number of clusters.
    pub k: usize,
    /// The centers to start from, k × dim: then there is one run.
    pub start: Option<&'a Array2<f32>>,
    /// Number of runs, of which the best one is returned.
    pub runs: usize,
    /// Maximum number of iterations of a run.
    pub max_iterations: usize,
    /// A run ends when its centers move by less than this share of the points' mean variance, squared and summed (as
    /// scikit-learn's `tol`).
    pub tolerance: f64,
    /// Run r starts from k-means++ seeded with `seed + r`.
    pub seed: u64,
    /// Receives the index and the inertia of each run, and returns whether to continue.
    pub after_run: &'a dyn Fn(usize, f64) -> bool,
}

/// The clusters that k-means found.
#[derive(Clone, Debug)]
pub struct Clustering {
    /// The cluster centers, k × dim.
    pub centers: Array2<f32>,
    /// The cluster of each point.
    pub labels: Vec<usize>,
    /// Sum of the points' squared distances to their centers.
    pub inertia: f64,
    /// Iterations of the best run.
    pub iterations: usize,
}

impl Clustering {
    /// Returns the number of points in each cluster.
    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.centers.nrows()];
        self.labels.iter().for_each(|&label| sizes[label] += 1);
        sizes
    }

    /// Returns the points of each cluster, the nearest to its center first. `points` are those that were clustered.
    pub fn nearest_first(&self, points: ArrayView2<'_, f32>) -> Vec<Vec<usize>> {
        let distances = own_distances(points, &self.centers, &self.labels);
        let mut members = vec![vec![]; self.centers.nrows()];
        self.labels.iter().enumerate().for_each(|(point, &label)| members[label].push(point));
        members.iter_mut().for_each(|members| members.sort_by(|&a, &b| distances[a].total_cmp(&distances[b])));
        members
    }

    /// Returns the same clusters, renumbered so that the new cluster i is the old cluster `order[i]`.
    pub fn reordered(mut self, order: &[usize]) -> Self {
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, &old)| places[old] = new);
        self.centers = self.centers.select(Axis(0), order);
        self.labels.iter_mut().for_each(|label| *label = places[*label]);
        self
    }

    /// Returns the same clusters outside the frame.
    fn leave(self, frame: &Frame) -> Self {
        Self { centers: frame.leave(&self.centers), inertia: frame.leave_squared(self.inertia), ..self }
    }
}

impl<D: Data<Elem = f32>, T> Fit<ArrayBase<D, Ix2>, T, FitError> for KMeansOptions<'_> {
    type Object = Clustering;

    /// Returns the best of several runs.
    ///
    /// # Errors
    /// If there are fewer points than clusters or fewer than two clusters, or the points or the centers to start from are not
    /// finite or have other dimensions than each other.
    fn fit(&self, dataset: &DatasetBase<ArrayBase<D, Ix2>, T>) -> Result<Clustering, FitError> {
        let points = dataset.records().view();
        if self.k < 2 || self.k > points.nrows() {
            return Err(FitError::Clusters { points: points.nrows(), k: self.k });
        }
        if points.iter().any(|x| !x.is_finite()) {
            return Err(FitError::NotFinite("points"));
        }
        let frame = Frame::of(points);
        let inside = frame.enter(points);
        let lengths = squared_lengths(inside.view());
        let tolerance = self.tolerance * mean_variance(inside.view());
        if let Some(start) = self.start {
            self.check(start, points.ncols())?;
            let start = frame.enter(start.view());
            let found = lloyd(inside.view(), &lengths, start, self.max_iterations, tolerance).leave(&frame);
            (self.after_run)(0, found.inertia);
            return Ok(found);
        }
        let mut best: Option<Clustering> = None;
        for run in 0..self.runs.max(1) {
            let start = k_means_plus_plus(inside.view(), &lengths, self.k, self.seed.wrapping_add(run as u64));
            let found = lloyd(inside.view(), &lengths, start, self.max_iterations, tolerance).leave(&frame);
            let proceed = (self.after_run)(run, found.inertia);
            if best.as_ref().is_none_or(|best| found.inertia < best.inertia) {
                best = Some(found);
            }
            if !proceed {
                break;
            }
        }
        Ok(best.expect("there is at least one run"))
    }
}

impl KMeansOptions<'_> {
    fn check(&self, start: &Array2<f32>, dim: usize) -> Result<(), FitError> {
        match start.dim() {
            (k, _) if k != self.k => Err(FitError::Start { centers: k, k: self.k }),
            (_, columns) if columns != dim => Err(FitError::Dimensions { centers: columns, points: dim }),
            _ if start.iter().any(|x| !x.is_finite()) => Err(FitError::NotFinite("centers to start from")),
            _ => Ok(()),
        }
    }
}

impl<D: Data<Elem = f32>> PredictInplace<ArrayBase<D, Ix2>, Array1<usize>> for Clustering {
    fn predict_inplace(&self, x: &ArrayBase<D, Ix2>, y: &mut Array1<usize>) {
        let frame = Frame::of(x.view());
        let (points, centers) = (frame.enter(x.view()), frame.enter(self.centers.view()));
        let labels = assign(points.view(), &squared_lengths(points.view()), &centers).labels;
        y.iter_mut().zip(labels).for_each(|(y, label)| *y = label);
    }

    fn default_target(&self, x: &ArrayBase<D, Ix2>) -> Array1<usize> {
        Array1::zeros(x.nrows())
    }
}

/// Runs Lloyd's algorithm on points whose squared lengths are `lengths`.
fn lloyd(
    points: ArrayView2<'_, f32>,
    lengths: &Array1<f32>,
    mut centers: Array2<f32>,
    max_iterations: usize,
    tolerance: f64,
) -> Clustering {
    let mut iterations = 0;
    loop {
        let moved = assign(points, lengths, &centers).means(points, &centers);
        let shift: f64 = moved.iter().zip(&centers).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        iterations += 1;
        centers = moved;
        if shift <= tolerance || iterations >= max_iterations.max(1) {
            break;
        }
    }
    let labels = assign(points, lengths, &centers).labels;
    let inertia = own_distances(points, &centers, &labels).iter().sum();
    Clustering { inertia, labels, centers, iterations }
}

/// The cluster of each point, and the sums and counts of which the means are computed.
struct Assignment {
    labels: Vec<usize>,
    sums: Array2<f64>,
    counts: Vec<usize>,
}

/// Assigns points to their nearest centers by ‖x − c‖² = ‖x‖² − 2 x·c + ‖c‖², of which the first term is the same for
/// all centers. Where two centers are equally near up to rounding, the differences decide.
fn assign(points: ArrayView2<'_, f32>, lengths: &Array1<f32>, centers: &Array2<f32>) -> Assignment {
    let center_lengths = squared_lengths(centers.view());
    let blocks: Vec<_> = points
        .axis_chunks_iter(Axis(0), BLOCK)
        .into_par_iter()
        .zip(lengths.axis_chunks_iter(Axis(0), BLOCK).into_par_iter())
        .map(|(block, lengths)| assign_block(block, lengths, centers, &center_lengths))
        .collect();
    let mut all = Assignment {
        labels: Vec::with_capacity(points.nrows()),
        sums: Array2::zeros(centers.raw_dim()),
        counts: vec![0; centers.nrows()],
    };
    for (labels, sums) in blocks {
        labels.iter().for_each(|&label| all.counts[label] += 1);
        all.labels.extend(labels);
        all.sums.zip_mut_with(&sums, |all, sum| *all += f64::from(*sum));
    }
    all
}

/// Returns the clusters of a block's points, and the sum of each cluster's points.
fn assign_block(
    points: ArrayView2<'_, f32>,
    lengths: ArrayView1<'_, f32>,
    centers: &Array2<f32>,
    center_lengths: &Array1<f32>,
) -> (Vec<usize>, Array2<f32>) {
    let mut labels = Vec::with_capacity(points.nrows());
    let mut sums = Array2::zeros(centers.raw_dim());
    let mut products = Array2::zeros((TILE, centers.nrows()));
    let tiles = points.axis_chunks_iter(Axis(0), TILE).zip(lengths.axis_chunks_iter(Axis(0), TILE));
    for (tile, lengths) in tiles {
        let mut products = products.slice_mut(s![..tile.nrows(), ..]);
        general_mat_mul(1.0, &tile, &centers.t(), 0.0, &mut products);
        for ((point, length), mut distances) in tile.rows().into_iter().zip(lengths).zip(products.rows_mut()) {
            distances.zip_mut_with(center_lengths, |product, center_length| *product = center_length - 2.0 * *product);
            let nearest = nearest(point, *length, distances.view(), centers, center_lengths);
            labels.push(nearest);
            sums.row_mut(nearest).zip_mut_with(&point, |sum, x| *sum += x);
        }
    }
    (labels, sums)
}

/// Returns the nearest center to a point; `distances` lack the point's own squared length.
fn nearest(
    point: ArrayView1<'_, f32>,
    length: f32,
    distances: ArrayView1<'_, f32>,
    centers: &Array2<f32>,
    center_lengths: &Array1<f32>,
) -> usize {
    let (mut nearest, mut smallest) = (0, f32::INFINITY);
    for (i, &distance) in distances.iter().enumerate() {
        if distance < smallest {
            (nearest, smallest) = (i, distance);
        }
    }
    let close = |&i: &usize| {
        let magnitude = length + center_lengths[i].max(center_lengths[nearest]);
        distances[i] - smallest <= ROUNDING * magnitude
    };
    let mut rivals = (0..distances.len()).filter(|&i| i != nearest).filter(close).peekable();
    if rivals.peek().is_none() {
        return nearest;
    }
    let exact = |i: usize| squared_distance(point, centers.row(i));
    let mut best = (exact(nearest), nearest);
    for i in rivals {
        let distance = exact(i);
        // The lowest number wins a tie, as it does above.
        if distance < best.0 || (distance == best.0 && i < best.1) {
            best = (distance, i);
        }
    }
    best.1
}

impl Assignment {
    /// Returns the means of the clusters; an empty cluster gets the point that is farthest from its center.
    fn means(&self, points: ArrayView2<'_, f32>, centers: &Array2<f32>) -> Array2<f32> {
        let mut means = centers.clone();
        let mut farthest = vec![];
        if self.counts.contains(&0) {
            let distances = own_distances(points, centers, &self.labels);
            farthest = (0..distances.len()).collect();
            farthest.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
        }
        for (i, &count) in self.counts.iter().enumerate() {
            if count > 0 {
                means.row_mut(i).zip_mut_with(&self.sums.row(i), |mean, sum| *mean = (sum / count as f64) as f32);
            } else {
                let point = farthest.pop().expect("there are at least as many points as clusters");
                means.row_mut(i).assign(&points.row(point));
            }
        }
        means
    }
}

/// Returns each point's squared distance to its center, from the differences, which do not cancel as the products do.
fn own_distances(points: ArrayView2<'_, f32>, centers: &Array2<f32>, labels: &[usize]) -> Vec<f64> {
    let distance = |(i, &label): (usize, &usize)| squared_distance(points.row(i), centers.row(label));
    labels.par_iter().enumerate().map(distance).collect()
}

fn mean_variance(points: ArrayView2<'_, f32>) -> f64 {
    let n = points.nrows() as f64;
    let (mut sums, mut squares) = (Array1::<f64>::zeros(points.ncols()), Array1::<f64>::zeros(points.ncols()));
    points.rows().into_iter().for_each(|row| sums.zip_mut_with(&row, |sum, x| *sum += f64::from(*x)));
    let means = sums / n;
    for row in points.rows() {
        ndarray::Zip::from(&mut squares).and(&means).and(&row).for_each(|sum, mean, x| {
            *sum += (f64::from(*x) - mean).powi(2);
        });
    }
    squares.sum() / n / points.ncols().max(1) as f64
}

#[cfg(test)]
mod tests {
    use linfa::traits::Predict;
    use test_support::Reference;

    use super::super::reference::{self, numbers};
    use super::*;

    const OPTIONS: KMeansOptions<'static> = KMeansOptions {
        k: 3,
        start: None,
        runs: 4,
        max_iterations: 100,
        tolerance: 1e-4,
        seed: 0,
        after_run: &|_, _| true,
    };

    fn fit(points: &Array2<f32>, options: KMeansOptions<'_>) -> Result<Clustering, FitError> {
        options.fit(&DatasetBase::from(points.view()))
    }

    fn fit_from(
        points: &Array2<f32>,
        start: &Array2<f32>,
        max_iterations: usize,
        tolerance: f64,
    ) -> Result<Clustering, FitError> {
        let options = KMeansOptions { k: start.nrows(), start: Some(start), max_iterations, tolerance, ..OPTIONS };
        fit(points, options)
    }

    /// Points on small circles around three distant corners.
    fn points() -> Array2<f32> {
        Array2::from_shape_fn((30, 2), |(i, j)| {
            let corner = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]][i % 3][j];
            let angle = i as f32;
            corner + 0.5 * if j == 0 { angle.cos() } else { angle.sin() }
        })
    }

    #[test]
    fn separate_clusters_are_found() {
        let points = points();
        let found = fit(&points, OPTIONS).expect("3 of 30");
        for i in 0..30 {
            assert_eq!(found.labels[i], found.labels[i % 3], "point {i}");
        }
        let by_hand: f64 = (0..30)
            .map(|i| {
                let center = found.centers.row(found.labels[i]);
                points.row(i).iter().zip(center).map(|(x, c)| f64::from(x - c).powi(2)).sum::<f64>()
            })
            .sum();
        assert!((found.inertia - by_hand).abs() < 1e-6 && found.inertia < 30.0 * 0.26, "{}", found.inertia);
        // Other points are predicted to be in the cluster of the corner that they are near.
        let predicted = found.predict(&DatasetBase::from(ndarray::arr2(&[[9.0f32, 1.0], [1.0, 8.0], [2.0, 2.0]])));
        assert_eq!(predicted.to_vec(), [found.labels[1], found.labels[2], found.labels[0]]);
    }

    #[test]
    fn a_run_can_be_the_last() {
        let runs = std::cell::Cell::new(0);
        let after_run = |run: usize, _: f64| {
            runs.set(run + 1);
            run < 1
        };
        fit(&points(), KMeansOptions { after_run: &after_run, ..OPTIONS }).expect("3 of 30");
        assert_eq!(runs.get(), 2);
    }

    #[test]
    fn a_seed_returns_the_same_centers() {
        let found = || fit(&points(), OPTIONS).expect("3 of 30").centers;
        assert_eq!(found(), found());
    }

    #[test]
    fn as_many_clusters_as_points_leaves_nothing_over() {
        let points = Array2::from_shape_fn((5, 3), |(i, j)| (i * i + j) as f32);
        let found = fit(&points, KMeansOptions { k: 5, ..OPTIONS }).expect("5 of 5");
        assert!(found.inertia < 1e-6, "{}", found.inertia);
        assert!(fit(&points, KMeansOptions { k: 6, ..OPTIONS }).is_err());
    }

    #[test]
    fn an_empty_cluster_gets_the_farthest_point() {
        let points = ndarray::arr2(&[[0.0], [1.0], [2.0], [9.0]]);
        // Nothing is nearer to the third center than to the others.
        let centers = ndarray::arr2(&[[0.0], [1.0], [100.0]]);
        let found = fit_from(&points, &centers, 100, 0.0).expect("it goes");
        assert_eq!((found.sizes(), found.centers[[2, 0]]), (vec![2, 1, 1], 9.0));
        let members = found.nearest_first(points.view());
        assert_eq!(members, [vec![0, 1], vec![2], vec![3]]);
    }

    #[test]
    fn blocks_and_tiles_are_all_of_the_points() {
        // More than two blocks, the last one not a whole tile; the two clusters alternate.
        let n = 2 * BLOCK + TILE + 37;
        let points = Array2::from_shape_fn((n, 3), |(i, j)| (i % 2 * 10 + j) as f32 + (i % 7) as f32 / 100.0);
        let found = fit(&points, KMeansOptions { k: 2, ..OPTIONS }).expect("2 of many");
        assert_eq!(found.labels.len(), n);
        assert!((0..n).all(|i| found.labels[i] == found.labels[i % 2]));
        let mean = found.centers.row(found.labels[0])[0];
        assert!((mean - 0.03).abs() < 1e-3, "{mean}");
    }

    #[test]
    fn starts_that_do_not_fit_are_refused() {
        let refused =
            |centers: Array2<f32>| fit_from(&points(), &centers, 10, 0.0).expect_err("it does not fit").to_string();
        assert_eq!(refused(Array2::zeros((3, 5))), "the centers have 5 dimensions, the points 2");
        assert!(refused(Array2::zeros((1, 2))).starts_with("30 points cannot form 1 clusters"));
        assert_eq!(refused(Array2::from_elem((2, 2), f32::NAN)), "the centers to start from are not all finite");
        let two = Array2::zeros((2, 2));
        let options = KMeansOptions { start: Some(&two), ..OPTIONS };
        assert_eq!(fit(&points(), options).expect_err("two of three").to_string(), "2 centers to start from are not 3");
    }

    /// linfa's Lloyd works row by row, about seven times slower, so it is the reference and not the implementation.
    #[test]
    fn inertia_is_no_larger_than_linfas() {
        use linfa::prelude::*;
        use rand_xoshiro::rand_core::SeedableRng;

        let points =
            Array2::from_shape_fn((400, 6), |(i, j)| ((i * 37 + j * 101) % 97) as f32 / 9.7 + (i % 5 * j) as f32);
        let found = fit(&points, KMeansOptions { k: 7, runs: 8, ..OPTIONS }).expect("7 of 400");
        let rng = rand_xoshiro::Xoshiro256Plus::seed_from_u64(1);
        let model = linfa_clustering::KMeans::params_with(7, rng, linfa_nn::distance::L2Dist)
            .n_runs(8)
            .fit(&DatasetBase::from(points.view()))
            .expect("linfa clusters them");
        let theirs = fit_from(&points, model.centroids(), 1, f64::INFINITY).expect("they fit").inertia;
        assert!(found.inertia <= 1.01 * theirs, "{} {theirs}", found.inertia);
    }

    fn matrix(tensor: &tch::Tensor) -> Array2<f32> {
        reference::matrix(tensor).mapv(|x| x as f32)
    }

    /// Five iterations from the same centers; relative error, where f32 sums differ in their order alone.
    #[test]
    fn lloyd_matches_scikit_learn() {
        let reference = Reference::read("kmeans.safetensors");
        let (points, start) = (matrix(reference.tensor("points")), matrix(reference.tensor("start")));
        let found = fit_from(&points, &start, 5, 0.0).expect("12 of 600");
        let expected = matrix(reference.tensor("centers"));
        let norm = |x: &Array2<f32>| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let error = norm(&(&found.centers - &expected)) / norm(&expected);
        assert!(error < 1e-5, "centers: {error}");
        let inertia = reference.tensor("lloyd_inertia").double_value(&[0]);
        assert!((found.inertia / inertia - 1.0).abs() < 1e-5, "{} is not {inertia}", found.inertia);
    }

    /// Offsets, scales, duplicates and constant dimensions, each side with its best of many starts.
    #[test]
    fn odd_data_is_clustered_as_by_scikit_learn() {
        let reference = Reference::read("kmeans_odd.safetensors");
        let sets = reference.part("points.");
        assert_eq!(sets.len(), 24);
        for (name, points) in sets {
            let points = matrix(&points);
            let sizes: Vec<usize> =
                numbers(reference.tensor(&format!("sizes.{name}"))).iter().map(|&n| n as usize).collect();
            let inertia = numbers(reference.tensor(&format!("inertia.{name}")))[0];
            let options = KMeansOptions { k: sizes.len(), runs: 200, max_iterations: 300, tolerance: 0.0, ..OPTIONS };
            let found = fit(&points, options).expect("more points than clusters");
            let mut found_sizes = found.sizes();
            found_sizes.sort_unstable();
            assert_eq!(found_sizes, sizes, "{name}");
            let spread: f64 = mean_variance(points.view()) * points.len() as f64;
            let error = (found.inertia - inertia).abs();
            assert!(error <= 1e-5 * inertia + 1e-12 * spread, "{name}: {} is not {inertia}", found.inertia);
        }
    }

    /// Each side with a hundred starts of its own, after which neither finds better ones.
    #[test]
    fn inertia_is_within_a_hundredth_of_scikit_learns() {
        let reference = Reference::read("kmeans.safetensors");
        let points = matrix(reference.tensor("points"));
        for (k, inertia) in (2..).zip(numbers(reference.tensor("inertia"))) {
            let options = KMeansOptions { k, runs: 100, max_iterations: 300, ..OPTIONS };
            let found = fit(&points, options).expect("few of 600");
            assert!((found.inertia / inertia - 1.0).abs() < 0.01, "k = {k}: {} is not {inertia}", found.inertia);
        }
    }
}
