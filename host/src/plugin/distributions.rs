//! The distributions that plugins return, checked, as log-probabilities in f64.

use super::error::Fault;
use super::limits::SUM_TOLERANCE;

/// One distribution over styles per sample, as natural logarithms of probabilities: finite, and the exponentials of each row
/// sum to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Distributions {
    /// Number of styles.
    pub styles: usize,
    /// One row of `styles` log-probabilities per sample.
    pub rows: Vec<Vec<f64>>,
}

impl Distributions {
    /// Checks a row-major matrix of log-probabilities that a plugin returned for `n_samples` samples and `n_styles` styles.
    /// An error carries the index of the sample at fault, if it concerns a single one.
    pub fn check<T: Copy + Into<f64>>(
        (rows, cols, data): (usize, usize, &[T]),
        (n_samples, n_styles): (usize, usize),
    ) -> Result<Self, (Option<usize>, Fault)> {
        if (rows, cols) != (n_samples, n_styles) {
            let expected = format!("{n_samples} samples x {n_styles} styles");
            let message = format!("it returned {rows} x {cols} log-probabilities for {expected}");
            return Err((None, Fault::Output(message)));
        }
        if data.len() != rows * cols {
            let message = format!("it returned {} numbers for a matrix of {rows} x {cols}", data.len());
            return Err((None, Fault::Output(message)));
        }
        if cols == 0 {
            return Err((None, Fault::Output("it has no styles to return log-probabilities for".to_owned())));
        }
        let rows = data.chunks_exact(cols).enumerate().map(|(i, row)| check_row(row).map_err(|e| (Some(i), e)));
        Ok(Self { styles: n_styles, rows: rows.collect::<Result<_, _>>()? })
    }

    /// Returns the probabilities of each sample.
    pub fn probabilities(&self) -> Vec<Vec<f64>> {
        self.rows.iter().map(|row| probabilities(row)).collect()
    }
}

/// Returns the probabilities of one row of log-probabilities.
pub fn probabilities(row: &[f64]) -> Vec<f64> {
    row.iter().map(|log_p| log_p.exp()).collect()
}

/// Checks one row, and subtracts from it the logarithm of its exponentials' sum.
fn check_row<T: Copy + Into<f64>>(row: &[T]) -> Result<Vec<f64>, Fault> {
    let row: Vec<f64> = row.iter().map(|&log_p| log_p.into()).collect();
    if let Some((style, log_p)) = row.iter().enumerate().find(|(_, log_p)| !log_p.is_finite()) {
        let message = match *log_p {
            f64::NEG_INFINITY => format!(
                "the log-probability of style {style} is -inf, so the reward would be too: return the log-softmax of logits, \
                 or give each style a small probability"
            ),
            _ => format!("the log-probability of style {style} is {log_p}: it must be finite"),
        };
        return Err(Fault::Output(message));
    }
    // No overflow: what is far above 0 is no log-probability, and refused by its sum.
    let sum: f64 = row.iter().map(|log_p| log_p.exp()).sum();
    if (sum - 1.0).abs() <= SUM_TOLERANCE {
        let log_sum = sum.ln();
        return Ok(row.into_iter().map(|log_p| log_p - log_sum).collect());
    }
    let message = if row.iter().all(|log_p| (0.0..=1.0).contains(log_p)) {
        "it returned probabilities: return their logarithms".to_owned()
    } else {
        format!("its probabilities, the exponentials of what it returned, sum to {sum:.6}; they must sum to 1")
    };
    Err(Fault::Output(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_renormalized() {
        let checked =
            Distributions::check((1, 2, &[0.5f32.ln(), 0.5005f32.ln()]), (1, 2)).expect("within the tolerance");
        assert!((checked.probabilities()[0].iter().sum::<f64>() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn small_probabilities_are_kept() {
        let checked = Distributions::check((1, 2, &[0.0f32, -300.0]), (1, 2)).expect("finite");
        assert_eq!(checked.rows, [[0.0, -300.0]]);
    }

    #[test]
    fn what_is_not_a_distribution_is_named() {
        let message = |matrix: (usize, usize, &[f32]), shape| {
            let (sample, fault) = Distributions::check(matrix, shape).expect_err("not a distribution");
            (sample, fault.to_string())
        };
        let half = 0.5f32.ln();
        let cases: [((usize, usize, &[f32]), _, _, _); 8] = [
            ((2, 0, &[]), (2, 0), None, "it has no styles to return log-probabilities for"),
            ((1, 2, &[half, half]), (2, 2), None, "it returned 1 x 2 log-probabilities for 2 samples x 2 styles"),
            ((2, 2, &[half, half]), (2, 2), None, "it returned 2 numbers for a matrix of 2 x 2"),
            ((1, 2, &[f32::NAN, half]), (1, 2), Some(0), "the log-probability of style 0 is NaN: it must be finite"),
            (
                (2, 1, &[0.0, f32::NEG_INFINITY]),
                (2, 1),
                Some(1),
                "the log-probability of style 0 is -inf, so the reward would be too: return the log-softmax of logits, or \
                 give each style a small probability",
            ),
            (
                (1, 2, &[half, -0.25]),
                (1, 2),
                Some(0),
                "its probabilities, the exponentials of what it returned, sum to 1.278801; they must sum to 1",
            ),
            ((1, 2, &[0.25, 0.75]), (1, 2), Some(0), "it returned probabilities: return their logarithms"),
            (
                (1, 2, &[3e38, 0.0]),
                (1, 2),
                Some(0),
                "its probabilities, the exponentials of what it returned, sum to inf; they must sum to 1",
            ),
        ];
        for (matrix, shape, sample, text) in cases {
            assert_eq!(message(matrix, shape), (sample, text.to_owned()));
        }
    }
}
