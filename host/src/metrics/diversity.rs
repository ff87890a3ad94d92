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

/// The cosines of all pairs of images.
#[derive(Clone, Debug)]
pub struct Cosines(Array2<f64>);

impl Cosines {
    /// Computes the cosines of embeddings.
    pub fn of<T: Copy + Into<f64>>(embeddings: ArrayView2<'_, T>) -> Self {
        let unit = unit_rows(embeddings);
        Self(unit.dot(&unit.t()))
    }

    /// Returns the cosines of some images, of which one may be listed repeatedly.
    pub fn select(&self, images: &[usize]) -> Self {
        Self(self.0.select(Axis(0), images).select(Axis(1), images))
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.0.nrows()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the Vendi score: the effective number of different images, from 1 to their number. It is the exponential of
    /// the entropy of the eigenvalues of the cosines divided by the number of images.
    pub fn vendi(&self) -> f64 {
        vendi_of(&self.0)
    }

    /// Returns the distances, 1 − cos, of all pairs of these images; an image that is listed repeatedly makes no pair with
    /// itself.
    fn distances_of<'a>(&'a self, images: &'a [usize]) -> impl Iterator<Item = f64> + 'a {
        let others = move |at: usize| images[at + 1..].iter().filter(move |&&j| j != images[at]);
        (0..images.len()).flat_map(move |at| others(at).map(move |&j| 1.0 - self.0[[images[at], j]]))
    }

    /// Returns the mean distance of two of these images; 0 for fewer than two.
    pub fn mean_distance_of(&self, images: &[usize]) -> f64 {
        let (sum, n) = self.distances_of(images).fold((0.0, 0u64), |(sum, n), distance| (sum + distance, n + 1));
        sum / n.max(1) as f64
    }

    /// Returns the least distance of two images; none for fewer than two.
    pub fn least_distance(&self) -> Option<f64> {
        let all: Vec<usize> = (0..self.len()).collect();
        self.distances_of(&all).min_by(f64::total_cmp)
    }

    /// Returns the share of these images that have a near-duplicate among the others.
    pub fn near_duplicates_of(&self, images: &[usize]) -> f64 {
        let has_twin = |i: &&usize| images.iter().any(|j| j != *i && self.0[[**i, *j]] >= NEAR_DUPLICATE);
        images.iter().filter(has_twin).count() as f64 / images.len().max(1) as f64
    }
}

/// Returns the distance of each image to its nearest neighbor of the same group, or of all images where it is alone in its
/// group; `groups` has the group of each row.
pub fn nearest_in_group(embeddings: ArrayView2<'_, f64>, groups: &[usize]) -> Vec<f64> {
    let Cosines(cosines) = Cosines::of(embeddings);
    let nearest = |i: usize, is_other: &dyn Fn(usize) -> bool| {
        (0..groups.len()).filter(|&j| j != i && is_other(j)).map(|j| 1.0 - cosines[[i, j]]).min_by(f64::total_cmp)
    };
    let of = |i: usize| nearest(i, &|j| groups[j] == groups[i]).or_else(|| nearest(i, &|_| true)).unwrap_or(0.0);
    (0..groups.len()).map(of).collect()
}

/// Returns the Vendi score and the mean distance of embeddings, without all their cosines at once.
pub fn vendi_and_mean_distance(embeddings: ArrayView2<'_, f32>) -> (f64, f64) {
    let unit = unit_rows(embeddings);
    // The matrices XXᵀ and XᵀX have the same eigenvalues but for zeros.
    let vendi = match unit.nrows() > unit.ncols() {
        true => entropy_of(&(unit.t().dot(&unit) / unit.nrows() as f64)),
        false => entropy_of(&(unit.dot(&unit.t()) / unit.nrows().max(1) as f64)),
    };
    // Σ_{i≠j} cos = ‖Σ e‖² − Σ ‖e‖².
    let sum = unit.sum_axis(Axis(0));
    let n = unit.nrows() as f64;
    let own: f64 = unit.iter().map(|x| x * x).sum();
    let distance = if n < 2.0 { 0.0 } else { 1.0 - (sum.dot(&sum) - own) / (n * (n - 1.0)) };
    (vendi, distance)
}

fn vendi_of(cosines: &Array2<f64>) -> f64 {
    entropy_of(&(cosines / cosines.nrows().max(1) as f64))
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
        let cosines = Cosines::of(embeddings.view());
        assert!((cosines.mean_distance_of(&[0, 1, 2]) - wanted).abs() < 1e-7);
        assert!((cosines.least_distance().expect("pairs") - (1.0 - half)).abs() < 1e-7);
        let nearest = |groups: &[usize]| nearest_in_group(embeddings.mapv(f64::from).view(), groups);
        assert!(nearest(&[0, 0, 0]).iter().all(|distance| (distance - (1.0 - half)).abs() < 1e-7));
        // The third image is alone in its group.
        let grouped = nearest(&[0, 0, 1]);
        assert!((grouped[0] - 1.0).abs() < 1e-7 && (grouped[2] - (1.0 - half)).abs() < 1e-7, "{grouped:?}");
        let (vendi, distance) = vendi_and_mean_distance(embeddings.view());
        assert!((distance - wanted).abs() < 1e-7 && (vendi - cosines.vendi()).abs() < 1e-9);
        let one = Cosines::of(array![[1.0f32, 2.0]].view());
        assert_eq!((one.mean_distance_of(&[0]), one.least_distance()), (0.0, None));
        // A resample lists an image twice, which is no pair of two images.
        assert!((cosines.mean_distance_of(&[0, 0, 2]) - (1.0 - half)).abs() < 1e-7);
        assert_eq!(cosines.near_duplicates_of(&[0, 0, 2]), 0.0);
        assert_eq!(vendi_and_mean_distance(array![[1.0f32, 2.0]].view()), (1.0, 0.0));
    }

    #[test]
    fn the_vendi_score_is_the_number_of_different_images() {
        // Three directions, the first of them twice.
        let embeddings = array![[1.0f32, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0], [3.0, 0.0, 0.0]];
        let entropy = -(0.5 * 0.5f64.ln() + 2.0 * 0.25 * 0.25f64.ln());
        assert!((Cosines::of(embeddings.view()).vendi() - entropy.exp()).abs() < 1e-9);
        assert!((vendi_and_mean_distance(embeddings.view()).0 - entropy.exp()).abs() < 1e-9);
        assert!((Cosines::of(embeddings.slice(ndarray::s![..3, ..])).vendi() - 3.0).abs() < 1e-9);
        assert_eq!(Cosines::of(embeddings.view()).near_duplicates_of(&[0, 1, 2, 3]), 0.5);
        // The eigenvalues of [[1, 1/2], [1/2, 1]] / 2 are 3/4 and 1/4.
        let pair = Cosines::of(array![[1.0f64, 0.0], [0.5, 0.75f64.sqrt()]].view());
        let entropy = -(0.75 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        assert!((pair.vendi() - entropy.exp()).abs() < 1e-12);
    }
}
