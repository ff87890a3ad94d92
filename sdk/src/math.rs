//! Arithmetic on flat slices, in a form that the compiler turns into SIMD instructions. The order of additions is
//! fixed, so a result has the same bits on every machine.

use crate::lanes::{LANES, Lanes};

/// Minimum of distances in 1/d, which stays finite for a point on a center.
pub const MIN_DISTANCE: f32 = 1e-6;

/// Number of chunks of eight elements that are summed in one iteration of the loop.
const STEPS: usize = 4;

/// A term that is summed over two vectors.
pub(crate) trait Term {
    /// Returns the term of one element of each.
    fn of(a: f32, b: f32) -> f32;
    /// Returns the terms of eight elements of each.
    fn of_lanes(a: Lanes, b: Lanes) -> Lanes;
}

/// The term aᵢ bᵢ.
pub(crate) struct Product;

/// The term (aᵢ − bᵢ)².
pub(crate) struct SquaredDifference;

impl Term for Product {
    #[inline(always)]
    fn of(a: f32, b: f32) -> f32 {
        a * b
    }

    #[inline(always)]
    fn of_lanes(a: Lanes, b: Lanes) -> Lanes {
        a.mul(b)
    }
}

impl Term for SquaredDifference {
    #[inline(always)]
    fn of(a: f32, b: f32) -> f32 {
        (a - b) * (a - b)
    }

    #[inline(always)]
    fn of_lanes(a: Lanes, b: Lanes) -> Lanes {
        let difference = a.sub(b);
        difference.mul(difference)
    }
}

/// Returns the terms' sums for `x` and each of some rows of the same length, in eight lanes each. The rows share each
/// load of `x`, and their additions overlap in time; a row's sum has the same bits whatever the other rows.
#[inline(always)]
fn sums<T: Term, const ROWS: usize>(x: &[f32], rows: [&[f32]; ROWS]) -> [f32; ROWS] {
    let (x, x_rest) = x.as_chunks::<LANES>();
    assert!(rows.iter().all(|row| row.len() == LANES * x.len() + x_rest.len()), "vectors have one length");
    let rows = rows.map(|row| row.as_chunks::<LANES>());
    // Cut to a length that the compiler knows to be that of `x`, the rows need no check at each step.
    let chunks = rows.map(|row| &row.0[..x.len()]);
    let mut lanes = [Lanes::zero(); ROWS];
    // Several steps in one iteration of the loop, at each of which a sandbox checks its fuel and its clock.
    let (x_turns, x_last) = x.as_chunks::<STEPS>();
    for (turn, x) in x_turns.iter().enumerate() {
        for (step, x) in x.iter().enumerate() {
            let x = Lanes::load(x);
            for (lanes, chunks) in lanes.iter_mut().zip(&chunks) {
                *lanes = lanes.add(T::of_lanes(x, Lanes::load(&chunks[turn * STEPS + step])));
            }
        }
    }
    for (x, i) in x_last.iter().zip(x_turns.len() * STEPS..) {
        let x = Lanes::load(x);
        for (lanes, chunks) in lanes.iter_mut().zip(&chunks) {
            *lanes = lanes.add(T::of_lanes(x, Lanes::load(&chunks[i])));
        }
    }
    let mut sums = lanes.map(Lanes::sum);
    for (sum, row) in sums.iter_mut().zip(&rows) {
        *sum += x_rest.iter().zip(row.1).map(|(&x, &y)| T::of(x, y)).sum::<f32>();
    }
    sums
}

/// Computes the terms' sum for `x` and every row of a flat matrix with rows as long as `x`.
#[inline(always)]
pub(crate) fn sums_over_rows<T: Term>(rows: &[f32], x: &[f32], found: &mut [f32]) {
    const ROWS: usize = 4;
    let cols = x.len();
    assert_eq!(rows.len(), cols * found.len(), "every row is as long as the vector, and has a place for its sum");
    let row = |i: usize| &rows[i * cols..][..cols];
    let (blocks, rest) = found.as_chunks_mut::<ROWS>();
    let n_blocks = blocks.len();
    for (block, found) in blocks.iter_mut().enumerate() {
        *found = sums::<T, ROWS>(x, std::array::from_fn(|i| row(ROWS * block + i)));
    }
    for (i, found) in rest.iter_mut().enumerate() {
        [*found] = sums::<T, 1>(x, [row(ROWS * n_blocks + i)]);
    }
}

/// Returns a · b.
///
/// # Panics
/// If the lengths differ; this holds for every function of two slices here.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let [sum] = sums::<Product, 1>(a, [b]);
    sum
}

/// Returns ‖a − b‖².
pub fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let [sum] = sums::<SquaredDifference, 1>(a, [b]);
    sum
}

/// Returns ‖a‖.
pub fn norm(a: &[f32]) -> f32 {
    dot(a, a).sqrt()
}

/// Returns the cosine of the angle between a and b; 0 if one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let lengths = norm(a) * norm(b);
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

/// Scales a vector to length 1 and returns the length that it had; a vector of zeros stays as it is.
pub fn normalize(a: &mut [f32]) -> f32 {
    let length = norm(a);
    if length > 0.0 {
        let factor = 1.0 / length;
        a.iter_mut().for_each(|x| *x *= factor);
    }
    length
}

/// Computes a += factor · b.
pub fn add_scaled(a: &mut [f32], factor: f32, b: &[f32]) {
    assert_eq!(a.len(), b.len(), "both vectors have one length");
    a.iter_mut().zip(b).for_each(|(a, &b)| *a += factor * b);
}

/// Computes exp(zᵢ) / Σ exp(zⱼ) in place, without overflow for any finite logits.
pub fn softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|z| *z = (*z - max).exp());
    let sum: f32 = logits.iter().sum();
    logits.iter_mut().for_each(|z| *z /= sum);
}

/// Computes ln(exp(zᵢ) / Σ exp(zⱼ)) in place, exactly for logits of any differences.
pub fn log_softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|z| (z - max).exp()).sum();
    let log_sum = sum.ln();
    logits.iter_mut().for_each(|z| *z = *z - max - log_sum);
}

/// Computes the logits of soft k-means, in place: d² → 1 / max(√d², [`MIN_DISTANCE`]).
pub fn inverse_distances(squared_distances: &mut [f32]) {
    squared_distances.iter_mut().for_each(|d| *d = 1.0 / d.sqrt().max(MIN_DISTANCE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_cover_lanes_and_remainder() {
        let a: Vec<f32> = (0..19).map(|i| i as f32).collect();
        let b = vec![2.0; 19];
        assert_eq!(dot(&a, &b), 342.0);
        assert_eq!(squared_distance(&a, &b), a.iter().map(|x| (x - 2.0) * (x - 2.0)).sum::<f32>());
        assert_eq!(norm(&[3.0, 4.0]), 5.0);
        assert_eq!(cosine(&[1.0, 0.0], &[1.0, 1.0]), std::f32::consts::FRAC_1_SQRT_2);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
    }

    #[test]
    fn softmax_of_large_logits_is_finite() {
        let mut logits = [1e6, 1e6, -1e6];
        softmax(&mut logits);
        assert_eq!(logits, [0.5, 0.5, 0.0]);
    }

    #[test]
    fn log_softmax_is_the_logarithm_of_softmax() {
        let logits = [0.5, -1.0, 2.0, 0.0];
        let (mut p, mut log_p) = (logits, logits);
        softmax(&mut p);
        log_softmax(&mut log_p);
        assert!(p.iter().zip(log_p).all(|(p, log_p)| (p.ln() - log_p).abs() < 1e-6), "{p:?} {log_p:?}");
        // Far below the smallest f32, which is about e^-103.
        let mut log_p = [0.0, -1000.0];
        log_softmax(&mut log_p);
        assert_eq!(log_p, [0.0, -1000.0]);
    }

    #[test]
    fn a_point_on_a_center_has_a_finite_logit() {
        let mut distances = [0.0, 4.0];
        inverse_distances(&mut distances);
        assert_eq!(distances, [1e6, 0.5]);
    }
}
