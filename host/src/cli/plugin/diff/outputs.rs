//! What two plugins return for one sample, compared.

use super::description::Styles;
use crate::plugin::Description;
use crate::plugin::distributions::probabilities;
use crate::rl::reward::entropy;

/// Number of styles that are named for a sample: those whose probabilities changed most.
pub(super) const NAMED: usize = 5;

/// What a plugin returned for one sample.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) reward: f64,
    pub(super) value: Value,
    /// The gradient of the reward, of each encoder's embedding or of the pixels, in one list; or why the plugin has none of
    /// this sample.
    pub(super) gradient: Option<Result<Vec<f32>, String>>,
}

/// A distribution or a score.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// The log-probability of each style.
    Distribution(Vec<f64>),
    Score(f64),
}

/// The comparison of one sample.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// Both plugins returned something.
    Both(Movement),
    /// One of them failed, or both: the messages of the old one and of the new one.
    Failed { old: Option<String>, new: Option<String> },
}

/// How far the outputs of one sample moved.
#[derive(Clone, Debug)]
pub(super) struct Movement {
    /// Whether all numbers have the same bits.
    pub(super) is_equal: bool,
    /// The reward of the old plugin and of the new one; likewise below.
    pub(super) rewards: [f64; 2],
    pub(super) scores: Option<[f64; 2]>,
    pub(super) distribution: Option<DistributionChange>,
    pub(super) gradient: Option<GradientChange>,
}

/// How far a distribution moved.
#[derive(Clone, Debug)]
pub(super) struct DistributionChange {
    /// Half the sum of the probabilities' changes; a style that only one plugin has is of probability 0 in the other.
    pub(super) total_variation: f64,
    /// The largest change of a log-probability, among the styles that both have.
    pub(super) log_probability: f64,
    pub(super) entropies: [f64; 2],
    /// The styles whose probabilities changed most, the largest change first.
    pub(super) styles: Vec<StyleChange>,
}

/// The probability of a style; None in a plugin that does not have the style.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StyleChange {
    /// Its name, in the new plugin if that has it.
    pub(super) style: String,
    pub(super) probabilities: [Option<f64>; 2],
}

/// How far a gradient moved, as norms of vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct GradientChange {
    pub(super) distance: f64,
    /// The norm of the old gradient.
    pub(super) norm: f64,
}

impl Outcome {
    /// Compares what the plugins with these descriptions returned.
    pub(super) fn new(
        old: Result<Answer, String>,
        new: Result<Answer, String>,
        descriptions: [&Description; 2],
        styles: &Styles,
    ) -> Self {
        let (old, new) = match (old, new) {
            (Ok(old), Ok(new)) => (old, new),
            (old, new) => return Self::Failed { old: old.err(), new: new.err() },
        };
        let (gradient, is_same_gradient) = match (&old.gradient, &new.gradient) {
            (Some(Ok(old)), Some(Ok(new))) => (Some(GradientChange::new(old, new)), same_bits(old, new)),
            (Some(Ok(_)), Some(Err(message))) => return Self::Failed { old: None, new: Some(message.clone()) },
            (Some(Err(message)), Some(Ok(_))) => return Self::Failed { old: Some(message.clone()), new: None },
            _ => (None, true),
        };
        let rewards = [old.reward, new.reward];
        let movement = match (&old.value, &new.value) {
            (Value::Distribution(old), Value::Distribution(new)) => Movement {
                is_equal: is_same_distribution(old, new, styles) && is_same_gradient,
                rewards,
                scores: None,
                distribution: Some(DistributionChange::new([old, new], descriptions, styles)),
                gradient,
            },
            (Value::Score(old), Value::Score(new)) => Movement {
                is_equal: old.to_bits() == new.to_bits() && is_same_gradient,
                rewards,
                scores: Some([*old, *new]),
                distribution: None,
                gradient,
            },
            _ => Movement { is_equal: false, rewards, scores: None, distribution: None, gradient: None },
        };
        Self::Both(movement)
    }

    /// Returns the movement, if both plugins returned something.
    pub(super) fn movement(&self) -> Option<&Movement> {
        match self {
            Self::Both(movement) => Some(movement),
            Self::Failed { .. } => None,
        }
    }
}

/// Returns whether two distributions are equal to the last bit, style by style.
fn is_same_distribution(old: &[f64], new: &[f64], styles: &Styles) -> bool {
    let [old, new] = [old, new].map(|row| move |place: usize| row[place].to_bits());
    let is_same = styles.pairs.iter().all(|&(i, j)| old(i) == new(j));
    is_same && styles.removed.is_empty() && styles.added.is_empty()
}

/// Returns whether two lists are equal to the last bit.
fn same_bits(old: &[f32], new: &[f32]) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(old, new)| old.to_bits() == new.to_bits())
}

impl Movement {
    /// Returns the change of the reward.
    pub(super) fn reward(&self) -> f64 {
        self.rewards[1] - self.rewards[0]
    }
}

impl DistributionChange {
    fn new([old, new]: [&[f64]; 2], [was, is]: [&Description; 2], styles: &Styles) -> Self {
        let (p, q) = (probabilities(old), probabilities(new));
        let change = |style: &String, probabilities| StyleChange { style: style.clone(), probabilities };
        let both = styles.pairs.iter().map(|&(i, j)| change(&is.styles()[j], [Some(p[i]), Some(q[j])]));
        let removed = styles.removed.iter().map(|&i| change(&was.styles()[i], [Some(p[i]), None]));
        let added = styles.added.iter().map(|&j| change(&is.styles()[j], [None, Some(q[j])]));
        let mut all: Vec<StyleChange> = both.chain(removed).chain(added).collect();
        let total_variation = all.iter().map(|style| style.change().abs()).sum::<f64>() / 2.0;
        let changes = styles.pairs.iter().map(|&(i, j)| (new[j] - old[i]).abs());
        let log_probability = changes.fold(0.0, f64::max);
        all.sort_by(|a, b| b.change().abs().total_cmp(&a.change().abs()));
        all.truncate(NAMED);
        Self { total_variation, log_probability, entropies: [entropy(old), entropy(new)], styles: all }
    }

    /// Returns the change of the entropy.
    pub(super) fn entropy(&self) -> f64 {
        self.entropies[1] - self.entropies[0]
    }
}

impl StyleChange {
    /// Returns the change of the probability.
    pub(super) fn change(&self) -> f64 {
        let [old, new] = self.probabilities.map(|p| p.unwrap_or(0.0));
        new - old
    }
}

impl GradientChange {
    /// Compares two gradients; those of different lengths are as far apart as the longer of them is from 0.
    fn new(old: &[f32], new: &[f32]) -> Self {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let length = |values: &[f32]| norm(&mut values.iter().map(|&value| f64::from(value)));
        let distance = match old.len() == new.len() {
            true => norm(&mut old.iter().zip(new).map(|(&old, &new)| f64::from(new) - f64::from(old))),
            false => length(old).max(length(new)),
        };
        Self { distance, norm: length(old) }
    }
}
