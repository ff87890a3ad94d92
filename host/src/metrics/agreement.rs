//! Whether plugins reward the same images: rank correlations of their rewards.
//!
//! A reward that opposes another one on the untrained model's images is likely to lower it in training: what makes an image good
//! under the first makes it bad under the second.

use serde::Serialize;

use crate::statistics::{bootstrap, centered_interval, rank_correlation};

/// Number of images below which an interval of a rank correlation says nothing.
const MIN_IMAGES: usize = 20;
/// Number of resamples of a bootstrap.
const DRAWS: usize = 500;

/// The agreement of two plugins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// The first plugin's name.
    pub a: String,
    /// The second plugin's name.
    pub b: String,
    /// Spearman's rank correlation of their rewards, from -1 to 1; none if all rewards of one are equal.
    pub rank_correlation: Option<f64>,
    /// Its 95 % interval, by the centered bootstrap over images; none for fewer than 20 images.
    pub ci95: Option<[f64; 2]>,
}

impl Agreement {
    /// Compares the rewards of the same images.
    pub fn of((a, of_a): (&str, &[f64]), (b, of_b): (&str, &[f64])) -> Self {
        let rank = rank_correlation(of_a, of_b);
        let interval = rank.filter(|_| of_a.len() >= MIN_IMAGES).and_then(|rank| {
            let mut draws = bootstrap(of_a.len(), DRAWS, 0, |images| {
                let select = |of: &[f64]| -> Vec<f64> { images.iter().map(|&i| of[i]).collect() };
                rank_correlation(&select(of_a), &select(of_b)).unwrap_or(f64::NAN)
            });
            // A resample whose images all have the same reward has no ranks.
            draws.retain(|draw| !draw.is_nan());
            centered_interval(rank, &draws).map(|interval| interval.map(|end| end.clamp(-1.0, 1.0)))
        });
        Self { a: a.to_owned(), b: b.to_owned(), rank_correlation: rank, ci95: interval }
    }

    /// Compares each of some plugins, with their rewards of the same images, with each later one.
    pub fn of_all(plugins: &[(String, Vec<f64>)]) -> Vec<Self> {
        let pair = |i: usize, j: usize| {
            let ((a, of_a), (b, of_b)) = (&plugins[i], &plugins[j]);
            Self::of((a, of_a), (b, of_b))
        };
        let n = plugins.len();
        (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).map(|(i, j)| pair(i, j)).collect()
    }

    /// Whether one plugin opposes the other: the whole interval is below 0.
    pub fn opposes(&self) -> bool {
        self.ci95.is_some_and(|[_, high]| high < 0.0)
    }

    /// Returns the warning about plugins that oppose each other; none if they do not.
    pub fn warning(&self) -> Option<String> {
        let Self { a, b, rank_correlation, ci95 } = self;
        let ((rank, [low, high]), true) = (rank_correlation.zip(*ci95)?, self.opposes()) else { return None };
        Some(format!(
            "{a} and {b} oppose each other: the rank correlation of their rewards is {rank:.2} ({low:.2} to {high:.2}), so that \
             training for one is likely to lower the other; `host plugin agree` shows the images"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_that_rank_images_the_other_way_round_oppose() {
        let up: Vec<f64> = (0..60).map(f64::from).collect();
        let noisy: Vec<f64> = (0..60).map(|i| f64::from((i * 37) % 60)).collect();
        let down: Vec<f64> = up.iter().zip(&noisy).map(|(up, noise)| 0.5 * noise - up).collect();
        let plugins = [("up".to_owned(), up), ("down".to_owned(), down), ("noisy".to_owned(), noisy)];
        let all = Agreement::of_all(&plugins);
        assert_eq!(
            all.iter().map(|pair| (&*pair.a, &*pair.b)).collect::<Vec<_>>(),
            [("up", "down"), ("up", "noisy"), ("down", "noisy")]
        );
        assert!(all[0].opposes() && !all[1].opposes(), "{all:?}");
        let [low, high] = all[0].ci95.expect("they differ");
        assert!(low < all[0].rank_correlation.expect("they differ") && high < -0.5, "{all:?}");
        let warning = all[0].warning().expect("they oppose");
        assert!(warning.starts_with("up and down oppose each other: the rank correlation"), "{warning}");
        assert_eq!(all[1].warning(), None);
        let few = Agreement::of(("a", &[1.0, 2.0]), ("b", &[2.0, 1.0]));
        assert_eq!((few.rank_correlation, few.ci95, few.opposes()), (Some(-1.0), None, false));
        let same = Agreement::of(("a", &[1.0, 1.0]), ("b", &[1.0, 2.0]));
        assert_eq!((same.rank_correlation, same.ci95, same.warning()), (None, None, None));
    }
}
