//! Generated images compared with reference images, such as those that a model or a classifier was made from.
//!
//! Coverage is that of Naeem et al. (Reliable Fidelity and Diversity Metrics for Generative Models, arXiv 2002.09797): the
//! share of reference images that have a generated image within the distance of their k-th nearest reference image. Distances
//! are 1 − cos.

use ndarray::{Array2, ArrayView2, Axis};

use super::diversity::unit_rows;

/// Number of images whose distances to all others are computed at a time.
const BLOCK: usize = 256;
/// The k of coverage.
pub const NEIGHBORS: usize = 5;

/// The embeddings of reference images, with the distance of each to its k-th nearest neighbor.
#[derive(Clone, Debug)]
pub struct Reference {
    unit: Array2<f64>,
    /// None for too few images.
    radii: Option<Vec<f64>>,
}

impl Reference {
    /// Returns the reference of embeddings, one row per image. Only more than [`NEIGHBORS`] images can be covered.
    pub fn new(embeddings: ArrayView2<'_, f64>) -> Self {
        let unit = unit_rows(embeddings);
        if unit.nrows() <= NEIGHBORS {
            return Self { unit, radii: None };
        }
        let mut radii = Vec::with_capacity(unit.nrows());
        for block in unit.axis_chunks_iter(Axis(0), BLOCK) {
            for row in block.dot(&unit.t()).rows() {
                let own = radii.len();
                let others = row.iter().enumerate().filter(|(j, _)| *j != own);
                let mut others: Vec<f64> = others.map(|(_, cosine)| 1.0 - cosine).collect();
                let (_, radius, _) = others.select_nth_unstable_by(NEIGHBORS - 1, f64::total_cmp);
                radii.push(*radius);
            }
        }
        Self { unit, radii: Some(radii) }
    }

    /// Compares generated images with the reference.
    pub fn compare(&self, embeddings: ArrayView2<'_, f64>) -> Compared {
        let cosines = unit_rows(embeddings).dot(&self.unit.t());
        let novelty = cosines.rows().into_iter().map(|row| 1.0 - row.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        let within = |radii: &Vec<f64>| -> Vec<Vec<bool>> {
            let of = |row: ndarray::ArrayView1<'_, f64>| {
                row.iter().zip(radii).map(|(cosine, radius)| 1.0 - cosine <= *radius).collect()
            };
            cosines.rows().into_iter().map(of).collect()
        };
        Compared { novelty: novelty.collect(), within: self.radii.as_ref().map(within) }
    }
}

/// Generated images beside a reference.
#[derive(Clone, Debug)]
pub struct Compared {
    /// The distance of each generated image to its nearest reference image.
    pub novelty: Vec<f64>,
    /// For each generated image, whether it is within the radius of each reference image; none for too few of these.
    within: Option<Vec<Vec<bool>>>,
}

impl Compared {
    /// Returns whether there are enough reference images for coverage.
    pub fn has_coverage(&self) -> bool {
        self.within.is_some()
    }

    /// Returns the coverage by some of the generated images; 0 for too few reference images.
    pub fn coverage(&self, images: &[usize]) -> f64 {
        let Some(within) = &self.within else { return 0.0 };
        let n = within.first().map_or(0, Vec::len);
        let covered = (0..n).filter(|&reference| images.iter().any(|&image| within[image][reference]));
        covered.count() as f64 / n.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points on the unit circle, by their angles in degrees.
    fn circle(degrees: &[f64]) -> Array2<f64> {
        Array2::from_shape_fn((degrees.len(), 2), |(i, axis)| {
            let angle = degrees[i].to_radians();
            if axis == 0 { angle.cos() } else { angle.sin() }
        })
    }

    #[test]
    fn coverage_counts_reference_images_that_are_reached() {
        let reference = Reference::new(circle(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 90.0]).view());
        // The fifth neighbor of the image at 0 is at 5, of that at 90 at 1.
        let near = reference.compare(circle(&[2.5]).view());
        assert_eq!(near.coverage(&[0]), 1.0);
        let both = reference.compare(circle(&[-4.5, 180.5]).view());
        assert_eq!(both.coverage(&[0]), 1.0 / 7.0, "only the image at 0 reaches as far");
        assert_eq!(both.coverage(&[1]), 0.0);
        assert!((both.novelty[1] - (1.0 - 90.5f64.to_radians().cos())).abs() < 1e-12);
        assert!((near.novelty[0] - (1.0 - 0.5f64.to_radians().cos())).abs() < 1e-12);
        // Five images have no fifth neighbor, but a nearest one.
        let few = Reference::new(circle(&[0.0, 1.0, 2.0, 3.0, 4.0]).view()).compare(circle(&[5.0]).view());
        assert!(!few.has_coverage() && near.has_coverage());
        assert!((few.novelty[0] - (1.0 - 1f64.to_radians().cos())).abs() < 1e-12);
    }
}
