//! Probability distributions over styles, as natural logarithms, checked when they are created.

use crate::error::{Error, Result};
use crate::math;
use crate::matrix::Matrix;

/// Maximum difference of a sum of probabilities from 1: f32 arithmetic over some thousand styles stays well below.
pub const SUM_TOLERANCE: f32 = 1e-3;

/// The probability of each style, as its natural logarithm: finite, and the exponentials sum to 1.
///
/// The reward of a sample is the mean of these logarithms. No probability is 0: its logarithm would be −∞, and so would
/// the reward. Classifiers with logits use [`Distribution::softmax`], which is exact however small a probability is;
/// others can use [`Distribution::smoothed`].
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution(Vec<f32>);

impl Distribution {
    /// Returns the softmax of finite logits.
    pub fn softmax(mut logits: Vec<f32>) -> Result<Self> {
        math::log_softmax(&mut logits);
        check_finite(&logits).map_err(|e| e.context("logits do not make a distribution"))?;
        match logits.is_empty() {
            true => Err(Error::new("there are no logits to make a distribution of")),
            false => Ok(Self(logits)),
        }
    }

    /// Returns the distribution of these probabilities, all above 0; an error names the first invalid one.
    pub fn new(probabilities: Vec<f32>) -> Result<Self> {
        Self::from_log_probabilities(logarithms(probabilities)?)
    }

    /// Returns the distribution of weights (finite, above 0), divided by their sum.
    pub fn from_weights(mut weights: Vec<f32>) -> Result<Self> {
        let sum: f32 = weights.iter().sum();
        if sum > 0.0 {
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        Self::new(weights).map_err(|e| e.context("weights do not make a distribution"))
    }

    /// Returns the distribution of weights (finite, not negative, not all zero), divided by their sum and mixed with the
    /// uniform distribution, whose part is `epsilon` (such as 1e-6). So no probability is 0.
    pub fn smoothed(mut weights: Vec<f32>, epsilon: f32) -> Result<Self> {
        let (sum, n): (f32, _) = (weights.iter().sum(), weights.len() as f32);
        weights.iter_mut().for_each(|w| *w = (1.0 - epsilon) * *w / sum + epsilon / n);
        Self::new(weights).map_err(|e| e.context("weights do not make a distribution"))
    }

    /// Returns the distribution of these natural logarithms of probabilities; an error names the first invalid one.
    pub fn from_log_probabilities(log_probabilities: Vec<f32>) -> Result<Self> {
        check(&log_probabilities)?;
        Ok(Self(log_probabilities))
    }

    /// Returns the logarithm of each style's probability.
    pub fn log_probabilities(&self) -> &[f32] {
        &self.0
    }
}

/// Returns the logarithms of probabilities; an error names the first that has none.
fn logarithms(mut probabilities: Vec<f32>) -> Result<Vec<f32>> {
    for (i, p) in probabilities.iter_mut().enumerate() {
        if !(p.is_finite() && *p >= 0.0) {
            return Err(Error::new(format!("the probability of style {i} is {p}: it must be finite and not negative")));
        }
        if *p == 0.0 {
            return Err(Error::new(format!(
                "the probability of style {i} is 0, so its logarithm is -inf: return the softmax of logits, or give each \
                 style a small probability"
            )));
        }
        *p = p.ln();
    }
    Ok(probabilities)
}

/// Checks that log-probabilities are finite; an error names the first that is not.
fn check_finite(log_probabilities: &[f32]) -> Result<()> {
    match log_probabilities.iter().enumerate().find(|(_, log_p)| !log_p.is_finite()) {
        Some((i, log_p)) => Err(Error::new(format!("the log-probability of style {i} is {log_p}: it must be finite"))),
        None => Ok(()),
    }
}

/// Checks log-probabilities; an error names the first invalid one, or the wrong sum.
fn check(log_probabilities: &[f32]) -> Result<()> {
    check_finite(log_probabilities)?;
    let sum: f32 = log_probabilities.iter().map(|log_p| log_p.exp()).sum();
    // A sum that is not a number is no difference below the tolerance.
    if (sum - 1.0).abs() <= SUM_TOLERANCE {
        return Ok(());
    }
    Err(Error::new(format!("probabilities sum to {sum}, they must sum to 1")))
}

/// One distribution per sample, all over the same styles.
#[derive(Clone, Debug, PartialEq)]
pub struct Distributions(Matrix);

impl Distributions {
    /// Returns the distributions of a matrix of log-probabilities, one row per sample.
    pub fn new(rows: Matrix) -> Result<Self> {
        for (i, row) in rows.rows().enumerate() {
            check(row).map_err(|e| e.context(format!("sample {i}")))?;
        }
        Ok(Self(rows))
    }

    /// Returns the softmax of each row of logits.
    pub fn softmax(mut logits: Matrix) -> Result<Self> {
        for i in 0..logits.n_rows() {
            math::log_softmax(logits.row_mut(i));
            // They sum to 1 by construction.
            check_finite(logits.row(i)).map_err(|e| e.context(format!("sample {i}")))?;
        }
        Ok(Self(logits))
    }

    /// Returns the log-probabilities of sample `i`.
    ///
    /// # Panics
    /// If the sample does not exist.
    pub fn row(&self, i: usize) -> &[f32] {
        self.0.row(i)
    }

    /// Returns the probabilities of sample `i`.
    ///
    /// # Panics
    /// If the sample does not exist.
    pub fn probabilities(&self, i: usize) -> Vec<f32> {
        self.row(i).iter().map(|log_p| log_p.exp()).collect()
    }

    /// Returns the index of the likeliest style of sample `i`; the first of several.
    ///
    /// # Panics
    /// If the sample does not exist.
    pub fn likeliest(&self, i: usize) -> usize {
        let row = self.row(i);
        (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0)
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

    /// Returns the log-probabilities, one row per sample.
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
        assert_eq!(
            message(vec![1.0, 0.0]),
            "the probability of style 1 is 0, so its logarithm is -inf: return the softmax of logits, or give each style \
             a small probability"
        );
        assert_eq!(message(vec![0.5, 0.25]), "probabilities sum to 0.75, they must sum to 1");
        assert!(Distribution::new(vec![]).is_err());
        assert!(Distribution::from_weights(vec![0.0, 0.0]).is_err());
        assert!(Distribution::softmax(vec![0.0, f32::INFINITY]).is_err());
        assert!(Distribution::softmax(vec![0.0, f32::NEG_INFINITY]).is_err());
        assert!(Distribution::from_log_probabilities(vec![0.0, 100.0]).is_err());
        assert!(Distribution::smoothed(vec![0.0, 0.0], 0.01).is_err());
    }

    #[test]
    fn probabilities_below_the_smallest_float_have_logarithms() {
        let d = Distribution::softmax(vec![0.0, -300.0]).expect("finite logits");
        assert_eq!(d.log_probabilities(), [0.0, -300.0]);
        let smoothed = Distribution::smoothed(vec![2.0, 0.0], 1e-3).expect("weights");
        assert!((smoothed.log_probabilities()[1] - 5e-4f32.ln()).abs() < 1e-4, "{smoothed:?}");
    }

    #[test]
    fn rows_are_named_by_their_sample() {
        let rows = Matrix::from_rows(&[[0.5f32.ln(), 0.5f32.ln()], [0.5f32.ln(), 0.6f32.ln()]]).expect("two rows");
        let message = Distributions::new(rows).expect_err("row 1 does not sum to 1").to_string();
        assert_eq!(message, "sample 1: probabilities sum to 1.1, they must sum to 1");
    }

    #[test]
    fn distributions_collect() {
        let rows: Result<Distributions> = (1..4).map(|i| Distribution::from_weights(vec![1.0, i as f32])).collect();
        let rows = rows.expect("weights are fine");
        assert_eq!((rows.len(), rows.n_styles(), rows.probabilities(0)), (3, 2, vec![0.5, 0.5]));
        assert_eq!((rows.likeliest(0), rows.likeliest(2)), (0, 1));
    }
}
