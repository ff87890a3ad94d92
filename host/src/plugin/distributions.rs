//! The distributions that plugins return, checked, in f64.

use super::error::Fault;
use super::limits::SUM_TOLERANCE;

/// One distribution over styles per sample: finite, not negative, each row summing to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Distributions {
    /// Number of styles.
    pub styles: usize,
    /// One row of `styles` probabilities per sample.
    pub rows: Vec<Vec<f64>>,
}

impl Distributions {
    /// Checks a row-major matrix that a plugin returned for `n_samples` samples and `n_styles` styles. An error carries
    /// the index of the sample at fault, if it concerns a single one.
    pub fn check(
        (rows, cols, data): (usize, usize, &[f32]),
        (n_samples, n_styles): (usize, usize),
    ) -> Result<Self, (Option<usize>, Fault)> {
        if (rows, cols) != (n_samples, n_styles) {
            let expected = format!("{n_samples} samples x {n_styles} styles");
            return Err((None, Fault::Output(format!("it returned {rows} x {cols} probabilities for {expected}"))));
        }
        if data.len() != rows * cols {
            let message = format!("it returned {} numbers for a matrix of {rows} x {cols}", data.len());
            return Err((None, Fault::Output(message)));
        }
        if cols == 0 {
            return Err((None, Fault::Output("it has no styles to return probabilities for".to_owned())));
        }
        let rows = data.chunks_exact(cols).enumerate().map(|(i, row)| check_row(row).map_err(|e| (Some(i), e)));
        Ok(Self { styles: n_styles, rows: rows.collect::<Result<_, _>>()? })
    }
}

fn check_row(row: &[f32]) -> Result<Vec<f64>, Fault> {
    if let Some((style, p)) = row.iter().enumerate().find(|(_, p)| !(p.is_finite() && **p >= 0.0)) {
        let message = format!("the probability of style {style} is {p}: it must be finite and not negative");
        return Err(Fault::Output(message));
    }
    let sum: f64 = row.iter().map(|&p| f64::from(p)).sum();
    if (sum - 1.0).abs() > SUM_TOLERANCE {
        return Err(Fault::Output(format!("its probabilities sum to {sum:.6}, they must sum to 1")));
    }
    Ok(row.iter().map(|&p| f64::from(p) / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_renormalized() {
        let checked = Distributions::check((1, 2, &[0.5, 0.5005]), (1, 2)).expect("within the tolerance");
        assert!((checked.rows[0].iter().sum::<f64>() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn what_is_not_a_distribution_is_named() {
        let message = |matrix, shape| {
            let (sample, fault) = Distributions::check(matrix, shape).expect_err("not a distribution");
            (sample, fault.to_string())
        };
        let cases: [((usize, usize, &[f32]), _, _, _); 6] = [
            ((2, 0, &[]), (2, 0), None, "it has no styles to return probabilities for"),
            ((1, 2, &[0.5, 0.5]), (2, 2), None, "it returned 1 x 2 probabilities for 2 samples x 2 styles"),
            ((2, 2, &[0.5, 0.5]), (2, 2), None, "it returned 2 numbers for a matrix of 2 x 2"),
            (
                (1, 2, &[f32::NAN, 0.5]),
                (1, 2),
                Some(0),
                "the probability of style 0 is NaN: it must be finite and not negative",
            ),
            (
                (2, 1, &[1.0, -1.0]),
                (2, 1),
                Some(1),
                "the probability of style 0 is -1: it must be finite and not negative",
            ),
            ((1, 2, &[0.5, 0.6]), (1, 2), Some(0), "its probabilities sum to 1.100000, they must sum to 1"),
        ];
        for (matrix, shape, sample, text) in cases {
            assert_eq!(message(matrix, shape), (sample, text.to_owned()));
        }
    }
}
