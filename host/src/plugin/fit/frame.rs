//! The frame that k-means computes in: around the mean of the points, and of their size, so that squares neither
//! cancel nor overflow.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

/// Squared distances that are less than this share of the squared lengths of which they are computed may consist of
/// f32's rounding errors.
pub(super) const ROUNDING: f32 = 1e-5;

/// A frame with the points' mean as its origin. Its unit is a power of two near the largest coordinate, so that scaling
/// rounds nothing.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    mean: Array1<f64>,
    unit: f64,
}

impl Frame {
    /// Returns the frame of the rows of `points`, which are finite.
    pub(super) fn of(points: ArrayView2<'_, f32>) -> Self {
        let mut mean = Array1::<f64>::zeros(points.ncols());
        points.rows().into_iter().for_each(|row| mean.zip_mut_with(&row, |sum, x| *sum += f64::from(*x)));
        mean /= points.nrows().max(1) as f64;
        let mut largest = 0f64;
        for row in points.rows() {
            row.iter().zip(&mean).for_each(|(x, mean)| largest = largest.max((f64::from(*x) - mean).abs()));
        }
        let unit = if largest > 0.0 { largest.log2().floor().exp2() } else { 1.0 };
        Self { mean, unit }
    }

    /// Returns the rows in the frame.
    pub(super) fn enter(&self, rows: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut inside = Array2::zeros(rows.raw_dim());
        for (row, mut inside) in rows.rows().into_iter().zip(inside.rows_mut()) {
            ndarray::Zip::from(&mut inside).and(&row).and(&self.mean).for_each(|inside, x, mean| {
                *inside = ((f64::from(*x) - mean) / self.unit) as f32;
            });
        }
        inside
    }

    /// Returns the rows outside the frame.
    pub(super) fn leave(&self, rows: &Array2<f32>) -> Array2<f32> {
        let mut outside = rows.clone();
        for mut row in outside.rows_mut() {
            row.zip_mut_with(&self.mean, |x, mean| *x = (f64::from(*x) * self.unit + mean) as f32);
        }
        outside
    }

    /// Returns a squared distance outside the frame.
    pub(super) fn leave_squared(&self, distance: f64) -> f64 {
        distance * self.unit * self.unit
    }
}

/// Returns the squared length of each row.
pub(super) fn squared_lengths(rows: ArrayView2<'_, f32>) -> Array1<f32> {
    rows.rows().into_iter().map(|row| row.dot(&row)).collect()
}

/// Returns the squared distance of two rows from their differences, which do not cancel as products do.
pub(super) fn squared_distance(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| a - b).map(|difference| f64::from(difference * difference)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_a_frame_returns_what_entered_it() {
        let points = ndarray::arr2(&[[3000.25f32, -1e-3], [3001.5, 1e-3], [2999.0, 4e-3]]);
        let frame = Frame::of(points.view());
        let inside = frame.enter(points.view());
        assert!(inside.iter().all(|x| x.abs() < 2.0), "{inside}");
        assert!((&frame.leave(&inside) - &points).iter().all(|x| x.abs() < 1e-6));
        assert_eq!(frame.leave_squared(1.0), frame.unit * frame.unit);
        let equal = Array2::from_elem((4, 2), 7e-30f32);
        assert_eq!(Frame::of(equal.view()).leave(&Frame::of(equal.view()).enter(equal.view())), equal);
    }
}
