//! Row-major matrices of f32: embeddings, centers, gradients.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::math::{self, Product, SquaredDifference};

/// A row-major matrix in one flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

/// A view of consecutive rows of a matrix, or of a flat slice as a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatrixView<'a> {
    rows: usize,
    cols: usize,
    data: &'a [f32],
}

impl Matrix {
    /// Returns a matrix of `data`, row after row; an error unless there are `rows * cols` elements.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Result<Self> {
        if rows.checked_mul(cols) != Some(data.len()) {
            return Err(Error::new(format!("a {rows} x {cols} matrix cannot have {} elements", data.len())));
        }
        Ok(Self { rows, cols, data })
    }

    /// Returns a matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// Returns a matrix of rows that all have one length.
    pub fn from_rows<R: AsRef<[f32]>>(rows: &[R]) -> Result<Self> {
        let cols = rows.first().map_or(0, |row| row.as_ref().len());
        Self::new(rows.len(), cols, rows.iter().flat_map(|row| row.as_ref()).copied().collect())
    }

    /// Returns the number of rows.
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns.
    pub fn n_cols(&self) -> usize {
        self.cols
    }

    /// Returns row `i`.
    ///
    /// # Panics
    /// If the row does not exist.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.cols..][..self.cols]
    }

    /// Returns row `i`, for writing.
    ///
    /// # Panics
    /// If the row does not exist.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.cols..][..self.cols]
    }

    /// Returns all rows in order.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        (0..self.rows).map(|i| self.row(i))
    }

    /// Returns a view of all rows.
    pub fn view(&self) -> MatrixView<'_> {
        MatrixView { rows: self.rows, cols: self.cols, data: &self.data }
    }

    /// Returns a view of consecutive rows.
    ///
    /// # Panics
    /// If the rows do not exist.
    pub fn view_rows(&self, rows: Range<usize>) -> MatrixView<'_> {
        let data = &self.data[rows.start * self.cols..rows.end * self.cols];
        MatrixView { rows: rows.len(), cols: self.cols, data }
    }

    /// Returns the elements, row after row.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// Returns the elements, row after row.
    pub fn into_vec(self) -> Vec<f32> {
        self.data
    }

    /// Scales every row to Euclidean length 1; a row of zeros stays as it is.
    pub fn normalize_rows(&mut self) {
        for i in 0..self.rows {
            math::normalize(self.row_mut(i));
        }
    }
}

impl<'a> MatrixView<'a> {
    /// Returns a flat slice as a matrix; an error unless there are `rows * cols` elements.
    pub fn new(rows: usize, cols: usize, data: &'a [f32]) -> Result<Self> {
        if rows.checked_mul(cols) != Some(data.len()) {
            return Err(Error::new(format!("a {rows} x {cols} matrix cannot have {} elements", data.len())));
        }
        Ok(Self { rows, cols, data })
    }

    /// Returns the number of rows.
    pub fn n_rows(self) -> usize {
        self.rows
    }

    /// Returns the number of columns.
    pub fn n_cols(self) -> usize {
        self.cols
    }

    /// Returns row `i`.
    ///
    /// # Panics
    /// If the row does not exist.
    pub fn row(self, i: usize) -> &'a [f32] {
        &self.data[i * self.cols..][..self.cols]
    }

    /// Returns all rows in order.
    pub fn rows(self) -> impl Iterator<Item = &'a [f32]> {
        (0..self.rows).map(move |i| self.row(i))
    }

    /// Returns the mean of the rows; zeros if there are none.
    pub fn mean_row(self) -> Vec<f32> {
        let mut mean = vec![0.0; self.cols];
        self.rows().for_each(|row| math::add_scaled(&mut mean, 1.0, row));
        mean.iter_mut().for_each(|x| *x /= self.rows.max(1) as f32);
        mean
    }

    /// Writes rowᵢ · x for every row into `products`: the same bits as [`math::dot`], but faster.
    ///
    /// # Panics
    /// Unless `x` is as long as a row, and `products` has one element per row; the same holds for `squared_distances`.
    pub fn dots(self, x: &[f32], products: &mut [f32]) {
        assert_eq!((x.len(), products.len()), (self.cols, self.rows), "(columns, rows)");
        math::sums_over_rows::<Product>(self.data, x, products);
    }

    /// Writes ‖rowᵢ − x‖² for every row into `distances`: the same bits as [`math::squared_distance`], but faster.
    pub fn squared_distances(self, x: &[f32], distances: &mut [f32]) {
        assert_eq!((x.len(), distances.len()), (self.cols, self.rows), "(columns, rows)");
        math::sums_over_rows::<SquaredDifference>(self.data, x, distances);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;

    #[test]
    fn sums_over_all_rows_have_the_bits_of_each_alone() {
        for (rows, cols) in [(1, 3), (4, 8), (7, 19), (27, 768), (5, 0), (0, 4)] {
            let (matrix, x) = (numbers(1, rows, cols), numbers(2, 1, cols));
            let (mut dots, mut distances) = (vec![0.0; rows], vec![0.0; rows]);
            matrix.view().dots(x.as_slice(), &mut dots);
            matrix.view().squared_distances(x.as_slice(), &mut distances);
            for (i, row) in matrix.rows().enumerate() {
                assert_eq!(dots[i].to_bits(), math::dot(x.as_slice(), row).to_bits(), "{rows} x {cols}");
                assert_eq!(distances[i].to_bits(), math::squared_distance(x.as_slice(), row).to_bits());
            }
        }
    }

    #[test]
    fn views_see_some_rows() {
        let matrix = Matrix::from_rows(&[[1.0, 2.0], [3.0, 4.0], [5.0, 8.0]]).expect("three rows of two");
        let view = matrix.view_rows(1..3);
        assert_eq!((view.n_rows(), view.n_cols(), view.row(0)), (2, 2, &[3.0, 4.0][..]));
        assert_eq!(view.mean_row(), [4.0, 6.0]);
        assert_eq!(matrix.view_rows(1..1).mean_row(), [0.0, 0.0]);
        assert_eq!(MatrixView::new(3, 2, matrix.as_slice()).expect("six elements"), matrix.view());
        let message = MatrixView::new(2, 2, matrix.as_slice()).expect_err("six are not four").to_string();
        assert_eq!(message, "a 2 x 2 matrix cannot have 6 elements");
    }
}
