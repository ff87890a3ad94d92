//! Diversity of images, from embeddings, one row per image, which need not be normalized.
//!
//! The kernel is the cosine. The Vendi score is that of Friedman and Dieng (The Vendi Score, arXiv 2210.02410).

use ndarray::{Array2, ArrayView2, Axis};
use tch::{Kind, Tensor};

/// Two images whose embeddings have at least this cosine count as near-duplicates.
pub const NEAR_DUPLICATE: f64 = 0.99;

/// Returns rows scaled to length 1, in f64; a row of zeros stays.
pub fn unit_rows<T: Copy + Into<f64>>(rows: ArrayView2<'_, T>) -> Array2<f64> {
    let mut unit = rows.mapv(Into::into);
    for mut row in unit.rows_mut() {
        let norm = row.dot(&row).sqrt();
        if norm > 0.0 {
            row /= norm;
        }
    }
    unit
}

/// Images by the directions of their embeddings. Every measure is one of some of the images, which may be listed repeatedly, as
/// a resample does; an image makes no pair with itself.
#[derive(Clone, Debug)]
pub struct Directions {
    unit: Array2<f64>,
    /// The near-duplicates of each image.
    near: Vec<Vec<usize>>,
}

/// Number of images whose cosines with all others are computed at a time.
const BLOCK: usize = 256;

impl Directions {
    /// Normalizes embeddings, and finds near-duplicates.
    pub fn of<T: Copy + Into<f64>>(embeddings: ArrayView2<'_, T>) -> Self {
        let unit = unit_rows(embeddings);
        let mut near = Vec::with_capacity(unit.nrows());
        for block in unit.axis_chunks_iter(Axis(0), BLOCK) {
            for row in block.dot(&unit.t()).rows() {
                let own = near.len();
                let is_near = |(j, cosine): (usize, &f64)| (j != own && *cosine >= NEAR_DUPLICATE).then_some(j);
                near.push(row.iter().enumerate().filter_map(is_near).collect());
            }
        }
        Self { unit, near }
    }

    /// Returns the Vendi score of these images: the effective number of different ones, from 1 to their number. It is the
    /// exponential of the entropy of the eigenvalues of their cosines divided by their number.
    pub fn vendi(&self, images: &[usize]) -> f64 {
        vendi_of(&self.unit.select(Axis(0), images))
    }

    /// Returns the mean distance, 1 − cos, of two of these images; 0 for fewer than two.
    pub fn mean_distance(&self, images: &[usize]) -> f64 {
        let mut times = vec![0.0; self.unit.nrows()];
        images.iter().for_each(|&i| times[i] += 1.0);
        let times = ndarray::Array1::from(times);
        let squares = (&self.unit * &self.unit).sum_axis(Axis(1));
        // Σ_{i≠j} nᵢ nⱼ cos = ‖Σ nᵢ eᵢ‖² − Σ nᵢ² ‖eᵢ‖².
        let sum = times.dot(&self.unit);
        let own = (&times * &times).dot(&squares);
        let n_pairs = times.sum().powi(2) - times.dot(&times);
        if n_pairs > 0.0 { 1.0 - (sum.dot(&sum) - own) / n_pairs } else { 0.0 }
    }

    /// Returns the least distance of two of these images; none for fewer than two.
    pub fn least_distance(&self, images: &[usize]) -> Option<f64> {
        let rows = self.unit.select(Axis(0), images);
        let cosines = rows.dot(&rows.t());
        let n = images.len();
        let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b))).filter(|&(a, b)| images[a] != images[b]);
        pairs.map(|(a, b)| 1.0 - cosines[[a, b]]).min_by(f64::total_cmp)
    }

    /// Returns the share of these images that have a near-duplicate among the others.
    pub fn near_duplicates(&self, images: &[usize]) -> f64 {
        let mut is_listed = vec![false; self.near.len()];
        images.iter().for_each(|&i| is_listed[i] = true);
        let has_twin = |i: &&usize| self.near[**i].iter().any(|&j| is_listed[j]);
        images.iter().filter(has_twin).count() as f64 / images.len().max(1) as f64
    }
}

/// Returns the distance of each image to its nearest neighbor of the same group, or of all images where it is alone in its
/// group; `groups` has the group of each row.
pub fn nearest_in_group(embeddings: ArrayView2<'_, f64>, groups: &[usize]) -> Vec<f64> {
    let unit = unit_rows(embeddings);
    let cosines = unit.dot(&unit.t());
    let nearest = |i: usize, is_other: &dyn Fn(usize) -> bool| {
        (0..groups.len()).filter(|&j| j != i && is_other(j)).map(|j| 1.0 - cosines[[i, j]]).min_by(f64::total_cmp)
    };
    let of = |i: usize| nearest(i, &|j| groups[j] == groups[i]).or_else(|| nearest(i, &|_| true)).unwrap_or(0.0);
    (0..groups.len()).map(of).collect()
}

/// Returns what each image adds to the logarithm of the Vendi score, −xᵀ ln(XᵀX / n) x for an image's direction x. The mean over the
/// images is that logarithm itself, and its derivative by the weight of an image is the image's value less the mean, divided by n:
/// as a reward, it has the gradient of the Vendi score of what a policy samples.
pub fn contributions_to_vendi(embeddings: ArrayView2<'_, f64>) -> Vec<f64> {
    let unit = unit_rows(embeddings);
    let (n, width) = unit.dim();
    let values: Vec<f64> = unit.iter().copied().collect();
    let scaled = Tensor::from_slice(&values).view([n as i64, width as i64]) / (n.max(1) as f64).sqrt();
    // With X / √n = U Σ Vᵀ, an image's component along an eigenvector of XᵀX / n is √n u σ.
    let (u, sigma, _) = scaled.svd(true, true);
    let eigenvalues = sigma.square();
    let surprise = -(&eigenvalues * eigenvalues.clamp_min(f64::MIN_POSITIVE).log()) * n as f64;
    let values = u.square().mv(&surprise);
    Vec::try_from(values).expect("a tensor of numbers")
}

/// Returns the Vendi score and the mean distance of embeddings, without all their cosines at once.
pub fn vendi_and_mean_distance(embeddings: ArrayView2<'_, f32>) -> (f64, f64) {
    let unit = unit_rows(embeddings);
    let vendi = vendi_of(&unit);
    // Σ_{i≠j} cos = ‖Σ e‖² − Σ ‖e‖².
    let sum = unit.sum_axis(Axis(0));
    let n = unit.nrows() as f64;
    let own: f64 = unit.iter().map(|x| x * x).sum();
    let distance = if n < 2.0 { 0.0 } else { 1.0 - (sum.dot(&sum) - own) / (n * (n - 1.0)) };
    (vendi, distance)
}

/// Returns the Vendi score of rows of length 1.
fn vendi_of(unit: &Array2<f64>) -> f64 {
    // The matrices XXᵀ and XᵀX have the same eigenvalues but for zeros.
    let n = unit.nrows().max(1) as f64;
    let smaller = if unit.nrows() > unit.ncols() { unit.t().dot(unit) } else { unit.dot(&unit.t()) };
    entropy_of(&(smaller / n))
}

/// Returns the exponential of the entropy of a symmetric matrix's eigenvalues.
fn entropy_of(matrix: &Array2<f64>) -> f64 {
    let n = matrix.nrows() as i64;
    if n == 0 {
        return 0.0;
    }
    let values: Vec<f64> = matrix.iter().copied().collect();
    let matrix = Tensor::from_slice(&values).view([n, n]);
    let eigenvalues = matrix.linalg_eigvalsh("L").clamp_min(0.0);
    let entropy = -(&eigenvalues * eigenvalues.clamp_min(f64::MIN_POSITIVE).log()).sum(Kind::Double);
    entropy.double_value(&[]).exp()
}

/// Returns the mean over all pairs of images, [n, 3, s, s], of their root mean square difference.
pub fn mean_pixel_distance(images: &Tensor) -> f64 {
    let n = images.size()[0];
    let flat = images.detach().flatten(1, -1).to_kind(Kind::Float);
    let width = flat.size()[1] as f64;
    // ‖a − b‖² = ‖a‖² + ‖b‖² − 2 ab, around the common mean to limit cancellation.
    let flat = &flat - flat.mean_dim([0i64].as_slice(), true, Kind::Float);
    let norms = flat.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let products = flat.matmul(&flat.tr()).to_kind(Kind::Double);
    let squares: Tensor = norms.unsqueeze(0) + norms.unsqueeze(1) - products * 2.0;
    let distances = (squares.clamp_min(0.0) / width).sqrt();
    let distances: Tensor = &distances - Tensor::diag_embed(&distances.diagonal(0, 0, 1), 0, 0, 1);
    distances.sum(Kind::Double).double_value(&[]) / (n * (n - 1)).max(1) as f64
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::statistics::Summary;

    #[test]
    fn the_distance_is_the_mean_over_pairs() {
        let images = Tensor::from_slice(&[0.0f32, 0.0, 1.0, 1.0, 0.0, 2.0]).view([3, 1, 1, 2]);
        let wanted = (1.0 + 2.0f64.sqrt() + 1.0) / 3.0;
        assert!((mean_pixel_distance(&images) - wanted).abs() < 1e-6, "{}", mean_pixel_distance(&images));
    }

    #[test]
    fn distances_are_one_minus_the_cosine() {
        let embeddings = array![[2.0f32, 0.0], [0.0, 3.0], [1.0, 1.0]];
        let half = 0.5f64.sqrt();
        let wanted = (1.0 + (1.0 - half) + (1.0 - half)) / 3.0;
        let directions = Directions::of(embeddings.view());
        assert!((directions.mean_distance(&[0, 1, 2]) - wanted).abs() < 1e-7);
        assert!((directions.least_distance(&[0, 1, 2]).expect("pairs") - (1.0 - half)).abs() < 1e-7);
        // A resample lists an image twice, which is no pair of two images.
        assert!((directions.mean_distance(&[0, 0, 2]) - (1.0 - half)).abs() < 1e-7);
        assert!((directions.least_distance(&[0, 0, 2]).expect("pairs") - (1.0 - half)).abs() < 1e-7);
        assert_eq!((directions.mean_distance(&[1]), directions.least_distance(&[1, 1])), (0.0, None));
        let nearest = |groups: &[usize]| nearest_in_group(embeddings.mapv(f64::from).view(), groups);
        assert!(nearest(&[0, 0, 0]).iter().all(|distance| (distance - (1.0 - half)).abs() < 1e-7));
        // The third image is alone in its group.
        let grouped = nearest(&[0, 0, 1]);
        assert!((grouped[0] - 1.0).abs() < 1e-7 && (grouped[2] - (1.0 - half)).abs() < 1e-7, "{grouped:?}");
        let (vendi, distance) = vendi_and_mean_distance(embeddings.view());
        assert!((distance - wanted).abs() < 1e-7 && (vendi - directions.vendi(&[0, 1, 2])).abs() < 1e-9);
        assert_eq!(vendi_and_mean_distance(array![[1.0f32, 2.0]].view()), (1.0, 0.0));
    }

    #[test]
    fn the_vendi_score_is_the_number_of_different_images() {
        // Three directions, the first of them twice.
        let embeddings = array![[1.0f32, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0], [3.0, 0.0, 0.0]];
        let entropy = -(0.5 * 0.5f64.ln() + 2.0 * 0.25 * 0.25f64.ln());
        let directions = Directions::of(embeddings.view());
        assert!((directions.vendi(&[0, 1, 2, 3]) - entropy.exp()).abs() < 1e-9);
        assert!((vendi_and_mean_distance(embeddings.view()).0 - entropy.exp()).abs() < 1e-9);
        assert!((directions.vendi(&[0, 1, 2]) - 3.0).abs() < 1e-9);
        assert_eq!(directions.near_duplicates(&[0, 1, 2, 3]), 0.5);
        assert_eq!(directions.near_duplicates(&[0, 0, 2]), 0.0);
        // The eigenvalues of [[1, 1/2], [1/2, 1]] / 2 are 3/4 and 1/4.
        let pair = Directions::of(array![[1.0f64, 0.0], [0.5, 0.75f64.sqrt()]].view());
        let entropy = -(0.75 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        assert!((pair.vendi(&[0, 1]) - entropy.exp()).abs() < 1e-12);
    }

    #[test]
    fn contributions_to_the_vendi_score_are_its_derivatives() {
        // More images than dimensions, and fewer.
        for (n, width) in [(7usize, 3usize), (3, 7)] {
            let embeddings = Array2::from_shape_fn((n, width), |(i, j)| ((i * 5 + j * 3) as f64).sin() + 0.2);
            let found = contributions_to_vendi(embeddings.view());
            let directions = Directions::of(embeddings.view());
            let all: Vec<usize> = (0..n).collect();
            let log_vendi = directions.vendi(&all).ln();
            assert!((Summary::of(&found).mean - log_vendi).abs() < 1e-9, "{found:?}");
            // A weight of 1 + 1/m: every image listed m times, this one once more.
            let m = 10_000;
            let unit = unit_rows(embeddings.view());
            for (image, value) in found.iter().enumerate() {
                let weights = |i: usize| (if i == image { 1.0 + 1.0 / m as f64 } else { 1.0f64 }).sqrt();
                let weighted = Array2::from_shape_fn((n, width), |(i, j)| unit[[i, j]] * weights(i));
                let total = n as f64 + 1.0 / m as f64;
                let derivative = (entropy_of(&(weighted.t().dot(&weighted) / total)).ln() - log_vendi) * m as f64;
                assert!(
                    (derivative - (value - log_vendi) / n as f64).abs() < 1e-4,
                    "image {image}: {derivative}, {value}"
                );
            }
        }
        // Of three equal images and another one, that one adds most.
        let found = contributions_to_vendi(array![[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 1.0]].view());
        assert!((found[3] - 4f64.ln()).abs() < 1e-9 && (found[0] - (4f64 / 3.0).ln()).abs() < 1e-9, "{found:?}");
        assert_eq!(contributions_to_vendi(Array2::zeros((0, 3)).view()), [0.0; 0]);
    }

    #[test]
    fn near_duplicates_are_found_across_blocks() {
        let n = 2 * BLOCK + 3;
        // Every image has its own axis, but for the last one, which repeats the first.
        let axis = |i: usize| if i == n - 1 { 0 } else { i };
        let embeddings = Array2::from_shape_fn((n, n), |(i, j)| if axis(i) == j { 1.0f32 } else { 0.0 });
        let directions = Directions::of(embeddings.view());
        let all: Vec<usize> = (0..n).collect();
        assert!((directions.near_duplicates(&all) - 2.0 / n as f64).abs() < 1e-12);
    }
}
