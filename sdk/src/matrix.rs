//! Row-major matrices of f32: embeddings, centres, gradients.

use crate::error::{Error, Result};
use crate::math;

/// A row-major matrix in one flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// A matrix of `data`, row after row; an error unless there are `rows * cols` elements.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Result<Self> {
        if rows.checked_mul(cols) != Some(data.len()) {
            return Err(Error::new(format!("a {rows} x {cols} matrix cannot have {} elements", data.len())));
        }
        Ok(Self { rows, cols, data })
    }

    /// A matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// A matrix of rows that all have one length.
    pub fn from_rows<R: AsRef<[f32]>>(rows: &[R]) -> Result<Self> {
        let cols = rows.first().map_or(0, |row| row.as_ref().len());
        Self::new(rows.len(), cols, rows.iter().flat_map(|row| row.as_ref()).copied().collect())
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn n_cols(&self) -> usize {
        self.cols
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.cols..][..self.cols]
    }

    /// Row `i`, to be written.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.cols..][..self.cols]
    }

    /// All rows in order.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        (0..self.rows).map(|i| self.row(i))
    }

    /// The elements, row after row.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// The elements, row after row.
    pub fn into_vec(self) -> Vec<f32> {
        self.data
    }

    /// Scales every row to Euclidean length 1; a row of zeros stays.
    pub fn normalize_rows(&mut self) {
        for i in 0..self.rows {
            math::normalize(self.row_mut(i));
        }
    }
}
