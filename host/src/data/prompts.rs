//! Prompts: medium × subject, or the lines of a file, and the empty prompt with a given probability (paper, section
//! 4.1).

use std::path::Path;

use anyhow::{Result, ensure};

use crate::config::fine_tune::Prompts as PromptsConfig;
use crate::random::{Purpose, derive_seed};

/// The prompts of a run; index 0 is the empty ("null") prompt.
#[derive(Clone, Debug)]
pub struct PromptSet {
    prompts: Vec<String>,
    null_probability: f64,
}

impl PromptSet {
    /// Returns every medium with every subject, or every line of the file.
    pub fn new(config: &PromptsConfig) -> Result<Self> {
        let mut prompts = vec![String::new()];
        if config.file.is_empty() {
            for medium in &config.media {
                prompts.extend(config.subjects.iter().map(|subject| format!("{medium} {subject}")));
            }
        } else {
            let path = Path::new(&config.file);
            let text = fs_err::read_to_string(path)?;
            prompts.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
            ensure!(prompts.len() > 1, "prompts.file {} contains no prompt: write one per line", path.display());
        }
        Ok(Self { prompts, null_probability: config.null_probability })
    }

    /// Returns all prompts; the first is the empty one.
    pub fn all(&self) -> &[String] {
        &self.prompts
    }

    /// Draws the prompt index of one sample, from the sample's own generator.
    pub fn draw(&self, seed: u64, epoch: u64, sample: u64) -> usize {
        let hash = derive_seed(seed, epoch, sample, Purpose::Prompt);
        let n_prompts = self.prompts.len() as u64 - 1;
        // The high half decides whether it is the null prompt, the low half selects another one.
        let share = (hash >> 32) as f64 / f64::from(u32::MAX);
        if share < self.null_probability || n_prompts == 0 {
            return 0;
        }
        1 + ((hash & u64::from(u32::MAX)) % n_prompts) as usize
    }

    /// Returns the index of the monitor's prompt `i`: all prompts in turn, the empty one last.
    pub fn monitored(&self, i: usize) -> usize {
        (i + 1) % self.prompts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper() -> PromptSet {
        PromptSet::new(&crate::config::FineTuneConfig::resolve("paper-512", &[]).expect("resolves").prompts)
            .expect("prompts")
    }

    #[test]
    fn the_paper_has_24_prompts_and_the_empty_one() {
        let set = paper();
        assert_eq!(set.all().len(), 25);
        assert_eq!(set.all()[1], "painting of a man");
        assert_eq!(set.all()[24], "drawing of an object");
    }

    #[test]
    fn draws_are_even_and_a_tenth_are_empty() {
        let set = paper();
        let mut counts = [0u32; 25];
        for sample in 0..20_000 {
            counts[set.draw(7, 1, sample)] += 1;
        }
        assert!((1800..2200).contains(&counts[0]), "{counts:?}");
        assert!(counts[1..].iter().all(|n| (620..880).contains(n)), "{counts:?}");
        assert_eq!(set.draw(7, 1, 3), set.draw(7, 1, 3));
    }
}
