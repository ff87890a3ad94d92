//! Arithmetic on flat slices, in a form that the compiler turns into SIMD instructions. The order of additions is
//! fixed, so a result has the same bits on every machine.

/// Distances below this count as this: 1/d stays finite where a point lies on a centre.
pub const MIN_DISTANCE: f32 = 1e-6;

/// Sums run in so many independent lanes.
const LANES: usize = 8;

/// Σ term(aᵢ, bᵢ).
#[inline(always)]
fn sum_of(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    assert_eq!(a.len(), b.len(), "both vectors have one length");
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(&a, &b)| term(a, b)).sum();
    let mut lanes = [0.0; LANES];
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += term(a[i], b[i]);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Σ term(xⱼ, row[j]) for every row of a flat matrix with rows as long as `x`. Four rows at a time share each load of
/// `x` and have sums of their own in flight; a row's sum has the bits that [`sum_of`] gives it.
#[inline(always)]
pub(crate) fn sums_over_rows(rows: &[f32], x: &[f32], sums: &mut [f32], term: impl Fn(f32, f32) -> f32 + Copy) {
    const ROWS: usize = 4;
    let cols = x.len();
    assert_eq!(rows.len(), cols * sums.len(), "every row is as long as the vector, and has a place for its sum");
    if cols == 0 {
        return sums.fill(0.0);
    }
    let whole = cols - cols % LANES;
    let (blocks, mut sum_blocks) = (rows.chunks_exact(ROWS * cols), sums.chunks_exact_mut(ROWS));
    let rest = blocks.remainder();
    for (block, sums) in blocks.zip(sum_blocks.by_ref()) {
        let (a, b) = block.split_at(2 * cols);
        let ((a, b), (c, d)) = (a.split_at(cols), b.split_at(cols));
        let mut lanes = [[0.0; LANES]; ROWS];
        let chunks = a.chunks_exact(LANES).zip(b.chunks_exact(LANES)).zip(c.chunks_exact(LANES));
        for ((x, ((a, b), c)), d) in x.chunks_exact(LANES).zip(chunks).zip(d.chunks_exact(LANES)) {
            for i in 0..LANES {
                lanes[0][i] += term(x[i], a[i]);
                lanes[1][i] += term(x[i], b[i]);
                lanes[2][i] += term(x[i], c[i]);
                lanes[3][i] += term(x[i], d[i]);
            }
        }
        for ((sum, lanes), row) in sums.iter_mut().zip(lanes).zip([a, b, c, d]) {
            let rest: f32 = x[whole..].iter().zip(&row[whole..]).map(|(&x, &y)| term(x, y)).sum();
            *sum = lanes.iter().sum::<f32>() + rest;
        }
    }
    for (row, sum) in rest.chunks_exact(cols).zip(sum_blocks.into_remainder()) {
        *sum = sum_of(x, row, term);
    }
}

/// a · b.
///
/// # Panics
/// If the lengths differ; so does every function of two slices here.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of(a, b, |a, b| a * b)
}

/// ‖a − b‖².
pub fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    sum_of(a, b, |a, b| (a - b) * (a - b))
}

/// ‖a‖.
pub fn norm(a: &[f32]) -> f32 {
    dot(a, a).sqrt()
}

/// The cosine of the angle between a and b; 0 if one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let lengths = norm(a) * norm(b);
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

/// Scales a vector to length 1 and returns the length that it had; a vector of zeros stays.
pub fn normalize(a: &mut [f32]) -> f32 {
    let length = norm(a);
    if length > 0.0 {
        a.iter_mut().for_each(|x| *x /= length);
    }
    length
}

/// a += factor · b.
pub fn add_scaled(a: &mut [f32], factor: f32, b: &[f32]) {
    assert_eq!(a.len(), b.len(), "both vectors have one length");
    a.iter_mut().zip(b).for_each(|(a, &b)| *a += factor * b);
}

/// exp(zᵢ) / Σ exp(zⱼ), without overflow whatever the (finite) logits.
pub fn softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|z| *z = (*z - max).exp());
    let sum: f32 = logits.iter().sum();
    logits.iter_mut().for_each(|z| *z /= sum);
}

/// The logits of soft k-means, in place: d² → 1 / max(√d², [`MIN_DISTANCE`]).
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
    fn a_point_on_a_centre_has_a_finite_logit() {
        let mut distances = [0.0, 4.0];
        inverse_distances(&mut distances);
        assert_eq!(distances, [1e6, 0.5]);
    }
}
