//! Diversity of images.

use ndarray::Array2;
use tch::{Kind, Tensor};

/// Returns the mean of 1 − cos over all pairs of rows; 0 for fewer than two rows.
pub fn mean_pairwise_distance(embeddings: &Array2<f32>) -> f64 {
    let n = embeddings.nrows();
    if n < 2 {
        return 0.0;
    }
    // Σ_{i≠j} cos = ‖Σ e‖² − n for unit rows e.
    let mut sum = vec![0f64; embeddings.ncols()];
    for row in embeddings.rows() {
        let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        for (sum, &x) in sum.iter_mut().zip(row) {
            *sum += f64::from(x) / norm;
        }
    }
    let squared: f64 = sum.iter().map(|x| x * x).sum();
    let n = n as f64;
    1.0 - (squared - n) / (n * (n - 1.0))
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
    use super::*;

    #[test]
    fn the_distance_is_the_mean_over_pairs() {
        let images = Tensor::from_slice(&[0.0f32, 0.0, 1.0, 1.0, 0.0, 2.0]).view([3, 1, 1, 2]);
        let wanted = (1.0 + 2.0f64.sqrt() + 1.0) / 3.0;
        assert!((mean_pixel_distance(&images) - wanted).abs() < 1e-6, "{}", mean_pixel_distance(&images));
    }

    #[test]
    fn diversity_is_the_mean_over_pairs() {
        let embeddings = ndarray::array![[2.0f32, 0.0], [0.0, 3.0], [1.0, 1.0]];
        let half = 0.5f64.sqrt();
        let wanted = (1.0 + (1.0 - half) + (1.0 - half)) / 3.0;
        assert!((mean_pairwise_distance(&embeddings) - wanted).abs() < 1e-7);
        assert_eq!(mean_pairwise_distance(&ndarray::array![[1.0f32, 2.0]]), 0.0);
    }
}
