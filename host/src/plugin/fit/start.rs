//! Initial centers of k-means: greedy k-means++ (Arthur and Vassilvitskii, 2007), as in scikit-learn.
//!
//! Each next center is a point drawn with a probability proportional to its squared distance to the nearest center so
//! far; of 2 + ln k draws the one with the lowest inertia is taken. The distances are matrix products, where those do not
//! cancel, and only those to the newest center are computed: O(k n dim).

use ndarray::{Array1, Array2, ArrayView2, Axis};
use rand_xoshiro::Xoshiro256Plus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

use super::frame::{ROUNDING, squared_distance};

/// Number of points that are multiplied at a time.
const TILE: usize = 256;

/// Returns k rows of `points`, whose squared lengths are `lengths`, as initial centers, the same ones for the same seed.
pub(super) fn k_means_plus_plus(
    points: ArrayView2<'_, f32>,
    lengths: &Array1<f32>,
    k: usize,
    seed: u64,
) -> Array2<f32> {
    let mut rng = Xoshiro256Plus::seed_from_u64(seed);
    let n_trials = 2 + (k as f64).ln() as usize;
    let first = (uniform(&mut rng) * points.nrows() as f64) as usize;
    let mut chosen = vec![first.min(points.nrows() - 1)];
    let mut nearest = squared_distances(points, lengths, &chosen).column(0).to_owned();
    while chosen.len() < k {
        let candidates: Vec<usize> = (0..n_trials).map(|_| draw(&nearest, &mut rng)).collect();
        let mut distances = squared_distances(points, lengths, &candidates);
        for mut column in distances.columns_mut() {
            column.zip_mut_with(&nearest, |new, old| *new = new.min(*old));
        }
        let inertia = |i: usize| distances.column(i).iter().map(|&x| f64::from(x)).sum::<f64>();
        let inertias: Vec<f64> = (0..n_trials).map(inertia).collect();
        let best = (0..n_trials).min_by(|&a, &b| inertias[a].total_cmp(&inertias[b])).expect("there are trials");
        chosen.push(candidates[best]);
        nearest = distances.column(best).to_owned();
    }
    points.select(Axis(0), &chosen)
}

/// Returns the n × m squared distances of all n points to m of them: never below 0, exactly 0 from a point to itself.
fn squared_distances(points: ArrayView2<'_, f32>, lengths: &Array1<f32>, some: &[usize]) -> Array2<f32> {
    let others = points.select(Axis(0), some);
    let mut distances = Array2::zeros((points.nrows(), some.len()));
    points
        .axis_chunks_iter(Axis(0), TILE)
        .into_par_iter()
        .zip(distances.axis_chunks_iter_mut(Axis(0), TILE).into_par_iter())
        .for_each(|(tile, mut out)| out.assign(&tile.dot(&others.t())));
    for ((mut row, point), length) in distances.rows_mut().into_iter().zip(points.rows()).zip(lengths) {
        for ((x, &other), other_point) in row.iter_mut().zip(some).zip(others.rows()) {
            let magnitude = length + lengths[other];
            let distance = magnitude - 2.0 * *x;
            *x = match distance <= ROUNDING * magnitude {
                true => squared_distance(point, other_point) as f32,
                false => distance,
            };
        }
    }
    some.iter().enumerate().for_each(|(column, &point)| distances[[point, column]] = 0.0);
    distances
}

/// Draws a point with a probability proportional to its weight; the first point if all weights are 0.
fn draw(weights: &Array1<f32>, rng: &mut Xoshiro256Plus) -> usize {
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let mut left = uniform(rng) * total;
    let mut last = 0;
    for (i, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        last = i;
        left -= f64::from(weight);
        if left < 0.0 {
            break;
        }
    }
    last
}

/// Draws a number in [0, 1).
fn uniform(rng: &mut Xoshiro256Plus) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::super::frame::squared_lengths;
    use super::*;

    #[test]
    fn starts_lie_in_different_groups() {
        // Four groups of ten points each; one start in each of them, whatever the seed.
        let points = Array2::from_shape_fn((40, 2), |(i, j)| {
            (if j == 0 { i % 4 % 2 } else { i % 4 / 2 } * 100) as f32 + i as f32 / 40.0
        });
        for seed in 0..20 {
            let starts = k_means_plus_plus(points.view(), &squared_lengths(points.view()), 4, seed);
            let mut groups: Vec<[bool; 2]> = starts.rows().into_iter().map(|x| [x[0] > 50.0, x[1] > 50.0]).collect();
            groups.sort();
            groups.dedup();
            assert_eq!(groups.len(), 4, "seed {seed}: {starts}");
        }
    }

    #[test]
    fn draws_follow_the_weights() {
        let mut rng = Xoshiro256Plus::seed_from_u64(1);
        let weights = Array1::from(vec![0.0, 1.0, 0.0, 3.0]);
        let mut counts = [0; 4];
        (0..4000).for_each(|_| counts[draw(&weights, &mut rng)] += 1);
        assert!(counts[0] + counts[2] == 0 && (2850..3150).contains(&counts[3]), "{counts:?}");
        assert_eq!(draw(&Array1::zeros(4), &mut rng), 0);
    }

    #[test]
    fn equal_points_are_accepted() {
        let points = Array2::from_elem((6, 3), 0.5);
        let starts = k_means_plus_plus(points.view(), &squared_lengths(points.view()), 4, 0);
        assert_eq!(starts.nrows(), 4);
    }
}
