//! Means, standard deviations and standard errors, in f64: rewards of k-means classifiers differ by 0.002 to 0.02
//! around −ln N.

use rand_xoshiro::Xoshiro256Plus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};

/// The value that is added to a standard deviation before it divides.
pub const STD_EPSILON: f64 = 1e-8;

/// Mean, population standard deviation (ddof 0), minimum and maximum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Mean.
    pub mean: f64,
    /// Standard deviation, ddof 0.
    pub std: f64,
    /// Minimum.
    pub min: f64,
    /// Maximum.
    pub max: f64,
}

impl Summary {
    /// Returns the summary of at least one value.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
        Self {
            mean,
            std: variance.sqrt(),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    /// Returns (value − mean) / (std + 1e-8).
    pub fn z_score(&self, value: f64) -> f64 {
        (value - self.mean) / (self.std + STD_EPSILON)
    }
}

/// Returns the standard error of the mean of `values` (ddof 1); none for fewer than two.
pub fn standard_error(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    (n > 1.0).then(|| Summary::of(values).std / (n - 1.0).sqrt())
}

/// Returns the values of a statistic for `draws` resamples of `n` items, drawn with replacement by generators that depend on
/// `seed` alone (Efron's bootstrap). `statistic` gets the indices of the items.
pub fn bootstrap(n: usize, draws: usize, seed: u64, mut statistic: impl FnMut(&[usize]) -> f64) -> Vec<f64> {
    let mut generator = Xoshiro256Plus::seed_from_u64(seed);
    let mut draw = move || {
        // The high half of a product of 128 bits is even over 0..n.
        let item = |_| ((u128::from(generator.next_u64()) * n as u128) >> 64) as usize;
        let items: Vec<usize> = (0..n).map(item).collect();
        statistic(&items)
    };
    (0..if n == 0 { 0 } else { draws }).map(|_| draw()).collect()
}

/// Returns the interval that contains 95 % of a bootstrap's values, moved so that their mean becomes `value`: resamples
/// repeat items, which lowers every measure of diversity. None for fewer than two values.
pub fn centered_interval(value: f64, draws: &[f64]) -> Option<[f64; 2]> {
    let shift = value - Summary::of(draws).mean;
    let mut sorted = draws.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
    (draws.len() > 1).then(|| [at(0.025) + shift, at(0.975) + shift])
}

/// Returns Spearman's rank correlation of two lists of the same length, from -1 to 1; equal values share the mean of their
/// ranks. None for fewer than two values, or where all values of a list are equal.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let (of_a, of_b) = (Summary::of(&a), Summary::of(&b));
    let spread = of_a.std * of_b.std * a.len() as f64;
    // Σ (a − ā)(b − b̄), in which b̄ drops out.
    let covariance = a.iter().zip(&b).map(|(a, b)| (a - of_a.mean) * b).sum::<f64>();
    (spread > 0.0).then(|| (covariance / spread).clamp(-1.0, 1.0))
}

/// Returns the rank of each value, from 0; equal values have the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let (mut ranks, mut first) = (vec![0.0; values.len()], 0);
    for equal in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let rank = first as f64 + (equal.len() - 1) as f64 / 2.0;
        equal.iter().for_each(|&i| ranks[i] = rank);
        first += equal.len();
    }
    ranks
}

/// The change of a mean between two measurements of the same samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Improvement {
    /// Mean of the paired differences, or the difference of the means where the samples are not paired.
    pub mean: f64,
    /// Standard error of that mean; none where it is unknown.
    pub sem: Option<f64>,
    /// Whether the differences are paired, sample by sample.
    pub paired: bool,
}

impl Improvement {
    /// Returns the change from `before` to `after`, values of the same samples in the same order.
    pub fn paired(before: &[f64], after: &[f64]) -> Self {
        let differences: Vec<f64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
        Self { mean: Summary::of(&differences).mean, sem: standard_error(&differences), paired: true }
    }

    /// Returns the change in units of its standard error; none where that is unknown or 0.
    pub fn standard_errors(&self) -> Option<f64> {
        self.sem.filter(|sem| *sem > 0.0).map(|sem| self.mean / sem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paired_improvement_has_the_standard_error_of_differences() {
        let improvement = Improvement::paired(&[1.0, 2.0, 3.0, 4.0], &[2.0, 3.0, 4.0, 7.0]);
        assert_eq!(improvement, Improvement { mean: 1.5, sem: Some(0.5), paired: true });
        assert_eq!(improvement.standard_errors(), Some(3.0));
    }

    #[test]
    fn a_summary_has_the_population_standard_deviation() {
        let summary = Summary::of(&[1.0, 3.0, 8.0]);
        let std = ((9.0 + 1.0 + 16.0) / 3f64).sqrt();
        assert_eq!((summary.mean, summary.min, summary.max), (4.0, 1.0, 8.0));
        assert!((summary.std - std).abs() < 1e-12);
        assert!((summary.z_score(6.0) - 2.0 / std).abs() < 1e-8);
        // Equal values have a z-score of 0, not 0 / 0.
        assert_eq!(Summary::of(&[2.0; 3]).z_score(2.0), 0.0);
        // A standard deviation of 1e-8 counts twice.
        assert!((Summary::of(&[0.0, 2e-8]).z_score(2e-8) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn equal_changes_have_a_standard_error_of_0() {
        let improvement = Improvement::paired(&[1.0, 2.0], &[2.0, 3.0]);
        assert_eq!((improvement.sem, improvement.standard_errors()), (Some(0.0), None));
    }

    #[test]
    fn ranks_are_correlated_whatever_the_distances() {
        let a = [1.0, 2.0, 3.0, 4.0];
        for (b, expected) in [([-9.0, 0.0, 0.1, 1e9], 1.0), ([4.0, 3.0, 2.0, 1.0], -1.0)] {
            let found = rank_correlation(&a, &b).expect("they differ");
            assert!((found - expected).abs() < 1e-12, "{found}");
        }
        // 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1)).
        let swapped = rank_correlation(&a, &[1.0, 3.0, 2.0, 4.0]).expect("they differ");
        assert!((swapped - 0.8).abs() < 1e-12, "{swapped}");
        assert_eq!(ranks(&[5.0, 1.0, 5.0, 0.0]), [2.5, 1.0, 2.5, 0.0]);
        assert_eq!([rank_correlation(&a, &[7.0; 4]), rank_correlation(&[1.0], &[2.0])], [None, None]);
    }

    #[test]
    fn a_bootstrap_of_means_has_their_standard_error() {
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        let mean = |items: &[usize]| items.iter().map(|&i| values[i]).sum::<f64>() / items.len() as f64;
        let draws = bootstrap(values.len(), 2000, 1, mean);
        assert_eq!(draws, bootstrap(values.len(), 2000, 1, mean));
        let error = Summary::of(&values).std / 10.0;
        assert!((Summary::of(&draws).std / error - 1.0).abs() < 0.05, "{}", Summary::of(&draws).std / error);
        let [low, high] = centered_interval(49.5, &draws).expect("many");
        assert!(((high - low) / (2.0 * 1.96 * error) - 1.0).abs() < 0.08, "{low} {high}");
        assert!((49.5 - low - (high - 49.5)).abs() < error, "{low} {high}");
        let shifted = centered_interval(0.0, &draws).expect("many");
        assert!((shifted[0] - (low - 49.5)).abs() < 1e-9 && (shifted[1] - (high - 49.5)).abs() < 1e-9);
        let numbers: Vec<f64> = (0..=40).map(f64::from).collect();
        assert_eq!(centered_interval(20.0, &numbers), Some([1.0, 39.0]));
        assert_eq!((centered_interval(1.0, &[1.0]), bootstrap(0, 3, 1, |_| 0.0)), (None, vec![]));
    }

    #[test]
    fn one_sample_has_no_standard_error() {
        assert_eq!(standard_error(&[3.0]), None);
        assert_eq!(Improvement::paired(&[1.0], &[2.0]).standard_errors(), None);
    }
}
