//! Advantages from rewards: z-scores over an epoch, or over the last rewards of the same prompt.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::statistics::Summary;

/// Returns advantages over an epoch: z-scores, clamped to ± `clip`.
pub fn advantages(rewards: &[f64], clip: f64) -> Vec<f64> {
    let summary = Summary::of(rewards);
    rewards.iter().map(|&reward| summary.z_score(reward).clamp(-clip, clip)).collect()
}

/// Weights positive advantages by diversity, so that an image is pushed up less if it resembles another one of its group: an
/// advantage is multiplied by 1 + `weight` · (d / mean d − 1), where d is the distance of the image to its nearest neighbor
/// (GARDO, arXiv 2512.24138, multiplies by d itself; the division keeps the scale of the advantages).
pub fn weight_by_diversity(advantages: &mut [f64], nearest: &[f64], weight: f64) {
    let mean = Summary::of(nearest).mean;
    if mean > 0.0 {
        for (advantage, distance) in advantages.iter_mut().zip(nearest) {
            *advantage += advantage.max(0.0) * weight * (distance / mean - 1.0);
        }
    }
}

/// The last rewards of every prompt, for per-prompt advantages (Black et al., appendix D).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PromptStatistics {
    buffers: BTreeMap<usize, VecDeque<f64>>,
}

impl PromptStatistics {
    /// Number of rewards that are kept for a prompt, and the minimum before they are used.
    pub const BUFFER: usize = 16;

    /// Records an epoch's rewards and returns their advantages: relative to the same prompt's last rewards where there
    /// are enough, else to the epoch's.
    pub fn advantages(&mut self, prompts: &[usize], rewards: &[f64], clip: f64) -> Vec<f64> {
        for (&prompt, &reward) in prompts.iter().zip(rewards) {
            let buffer = self.buffers.entry(prompt).or_default();
            if buffer.len() == Self::BUFFER {
                buffer.pop_front();
            }
            buffer.push_back(reward);
        }
        let epoch = Summary::of(rewards);
        let of_prompt = |prompt: &usize| match self.buffers.get(prompt) {
            Some(buffer) if buffer.len() == Self::BUFFER => Summary::of(&buffer.iter().copied().collect::<Vec<_>>()),
            _ => epoch,
        };
        prompts
            .iter()
            .zip(rewards)
            .map(|(prompt, &reward)| of_prompt(prompt).z_score(reward).clamp(-clip, clip))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_are_clamped_z_scores_with_ddof_0() {
        let values = advantages(&[1.0, 2.0, 3.0], 5.0);
        assert!((values[2] - 1.5f64.sqrt()).abs() < 1e-6 && values[1] == 0.0);
        assert_eq!(advantages(&[2.0; 4], 5.0), [0.0; 4]);
        let mut spike = vec![0.0; 100];
        spike[0] = 1.0;
        assert_eq!(advantages(&spike, 5.0)[0], 5.0);
    }

    #[test]
    fn a_near_duplicate_is_pushed_up_less() {
        let weighted = |weight| {
            let mut advantages = [2.0, 2.0, -2.0, -2.0];
            weight_by_diversity(&mut advantages, &[0.1, 0.3, 0.1, 0.3], weight);
            advantages
        };
        assert_eq!(weighted(0.0), [2.0, 2.0, -2.0, -2.0]);
        let found = weighted(1.0);
        assert!((found[0] - 1.0).abs() < 1e-12 && (found[1] - 3.0).abs() < 1e-12, "{found:?}");
        assert_eq!(found[2..], [-2.0, -2.0]);
        assert!((weighted(0.5)[0] - 1.5).abs() < 1e-12);
        let mut same = [1.0, -1.0];
        weight_by_diversity(&mut same, &[0.0, 0.0], 1.0);
        assert_eq!(same, [1.0, -1.0]);
    }

    #[test]
    fn prompts_are_compared_with_themselves_once_there_are_enough() {
        let mut statistics = PromptStatistics::default();
        let prompts: Vec<usize> = (0..32).map(|i| i % 2).collect();
        let rewards: Vec<f64> = (0..32).map(|i| if i % 2 == 0 { 10.0 } else { -10.0 } + f64::from(i / 2)).collect();
        let by_prompt = statistics.advantages(&prompts, &rewards, 5.0);
        // The prompts' means differ by 20, yet both have the same advantages.
        assert!((by_prompt[0] - by_prompt[1]).abs() < 1e-9, "{by_prompt:?}");
        let mut few = PromptStatistics::default();
        assert_eq!(few.advantages(&prompts[..4], &rewards[..4], 5.0), advantages(&rewards[..4], 5.0));
    }
}
