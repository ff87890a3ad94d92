//! Probability distributions over styles, checked when they are created.

use crate::error::{Error, Result};
use crate::math;
use crate::matrix::Matrix;

/// Maximum difference of a sum from 1: f32 arithmetic over some thousand styles stays well below.
pub const SUM_TOLERANCE: f32 = 1e-3;

/// The probability of each style: finite, not negative, summing to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution(Vec<f32>);

impl Distribution {
    /// Returns the distribution of these probabilities; an error names the first invalid one.
    pub fn new(probabilities: Vec<f32>) -> Result<Self> {
        check(&probabilities)?;
        Ok(Self(probabilities))
    }

    /// Returns the weights (finite, not negative, not all zero) divided by their sum.
    pub fn from_weights(mut weights: Vec<f32>) -> Result<Self> {
        let sum: f32 = weights.iter().sum();
        if sum > 0.0 {
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        Self::new(weights).map_err(|e| e.context("weights do not make a distribution"))
    }

    /// Returns the softmax of finite logits.
    pub fn softmax(mut logits: Vec<f32>) -> Result<Self> {
        math::softmax(&mut logits);
        Self::new(logits).map_err(|e| e.context("logits do not make a distribution"))
    }

    /// Returns the probabilities.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }
}

/// Checks probabilities; an error names the first invalid one, or the wrong sum.
fn check(probabilities: &[f32]) -> Result<()> {
    if let Some((i, p)) = probabilities.iter().enumerate().find(|(_, p)| !(p.is_finite() && **p >= 0.0)) {
        return Err(Error::new(format!("the probability of style {i} is {p}: it must be finite and not negative")));
    }
    let sum: f32 = probabilities.iter().sum();
    if (sum - 1.0).abs() > SUM_TOLERANCE {
        return Err(Error::new(format!("probabilities sum to {sum}, they must sum to 1")));
    }
    Ok(())
}

/// One distribution per sample, all over the same styles.
#[derive(Clone, Debug, PartialEq)]
pub struct Distributions(Matrix);

impl Distributions {
    /// Returns the distributions of a matrix with one row per sample.
    pub fn new(rows: Matrix) -> Result<Self> {
        for (i, row) in rows.rows().enumerate() {
            check(row).map_err(|e| e.context(format!("sample {i}")))?;
        }
        Ok(Self(rows))
    }

    /// Returns the softmax of each row of logits.
    pub fn softmax(mut logits: Matrix) -> Result<Self> {
        for i in 0..logits.n_rows() {
            math::softmax(logits.row_mut(i));
        }
        Self::new(logits)
    }

    /// Returns the distribution of sample `i`.
    ///
    /// # Panics
    /// If the sample does not exist.
    pub fn row(&self, i: usize) -> &[f32] {
        self.0.row(i)
    }

    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        self.0.n_rows()
    }

    /// Returns whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of styles.
    pub fn n_styles(&self) -> usize {
        self.0.n_cols()
    }

    /// Returns the matrix, one row per sample.
    pub fn into_matrix(self) -> Matrix {
        self.0
    }
}

/// `(0..batch.len()).map(|i| …).collect()` over results of [`Distribution`]s.
impl FromIterator<Distribution> for Distributions {
    /// # Panics
    /// If the distributions are over different numbers of styles.
    fn from_iter<I: IntoIterator<Item = Distribution>>(distributions: I) -> Self {
        let rows: Vec<Vec<f32>> = distributions.into_iter().map(|d| d.0).collect();
        let n_styles = rows.first().map_or(0, Vec::len);
        assert!(rows.iter().all(|row| row.len() == n_styles), "all distributions are over the same styles");
        Self(Matrix::from_rows(&rows).expect("all rows have one length"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_distribution_is_refused_by_name() {
        let message = |p: Vec<f32>| Distribution::new(p).expect_err("not a distribution").to_string();
        assert_eq!(
            message(vec![0.5, f32::NAN]),
            "the probability of style 1 is NaN: it must be finite and not negative"
        );
        assert_eq!(message(vec![-0.5, 1.5]), "the probability of style 0 is -0.5: it must be finite and not negative");
        assert_eq!(message(vec![0.5, 0.25]), "probabilities sum to 0.75, they must sum to 1");
        assert!(Distribution::new(vec![]).is_err());
        assert!(Distribution::from_weights(vec![0.0, 0.0]).is_err());
        assert!(Distribution::softmax(vec![0.0, f32::INFINITY]).is_err());
    }

    #[test]
    fn rows_are_named_by_their_sample() {
        let rows = Matrix::from_rows(&[[0.5, 0.5], [0.5, 0.6]]).expect("two rows of two");
        let message = Distributions::new(rows).expect_err("row 1 does not sum to 1").to_string();
        assert_eq!(message, "sample 1: probabilities sum to 1.1, they must sum to 1");
    }

    #[test]
    fn distributions_collect() {
        let rows: Result<Distributions> = (0..3).map(|i| Distribution::from_weights(vec![1.0, i as f32])).collect();
        let rows = rows.expect("weights are fine");
        assert_eq!((rows.len(), rows.n_styles(), rows.row(1)), (3, 2, &[0.5, 0.5][..]));
    }
}
