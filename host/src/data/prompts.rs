//! Prompts: medium × subject, or the lines of a file, and the empty prompt with a given probability (paper, section
//! 4.1).

use std::collections::BTreeSet;
use std::path::Path;

use ambiguity_models::clip::Tokenizer;
use anyhow::{Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::config::fine_tune::Prompts as PromptsConfig;
use crate::fs::read_text;
use crate::random::{Purpose, derive_seed};
use crate::text::{counted, in_one_line, is_control, text_lines};

/// Number of characters that a warning shows of a long text.
const SHOWN: usize = 40;

/// The prompts of a run; index 0 is the empty ("null") prompt.
#[derive(Clone, Debug)]
pub struct PromptSet {
    prompts: Vec<String>,
    null_probability: f64,
}

impl PromptSet {
    /// Returns every medium with every subject, or every line of the file as [`distinct_lines`] reads it.
    pub fn new(config: &PromptsConfig) -> Result<Self> {
        let mut prompts = vec![String::new()];
        if config.file.is_empty() {
            for medium in &config.media {
                prompts.extend(config.subjects.iter().map(|subject| format!("{medium} {subject}")));
            }
        } else {
            let path = Path::new(&config.file);
            prompts.extend(distinct_lines(path)?);
            ensure!(prompts.len() > 1, "prompts.file {} contains no prompt: write one per line", path.display());
        }
        Ok(Self { prompts, null_probability: config.null_probability })
    }

    /// Returns all prompts; the first is the empty one.
    pub fn all(&self) -> &[String] {
        &self.prompts
    }

    /// Returns the SHA-256 over all prompts, in hexadecimal.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for prompt in &self.prompts {
            hash.update((prompt.len() as u64).to_le_bytes());
            hash.update(prompt);
        }
        format!("{:x}", hash.finalize())
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

/// Returns the lines of a file that are neither empty nor comments, trimmed, each once; a byte order mark is dropped. The
/// log warns of repeated lines.
pub fn distinct_lines(file: &Path) -> Result<Vec<String>> {
    let text = read_text(file)?;
    let lines = text_lines(&text);
    let mut seen = BTreeSet::new();
    let distinct: Vec<String> = lines.iter().filter(|line| seen.insert(**line)).map(|&line| line.to_owned()).collect();
    if distinct.len() < lines.len() {
        let repeated = lines.len() - distinct.len();
        tracing::warn!("{}: {repeated} of {} lines repeat others and are left out", file.display(), lines.len());
    }
    Ok(distinct)
}

/// Warns of the texts that a tokenizer truncates, the first by its beginning; returns whether there are any.
pub fn warn_of_truncated<S: AsRef<str>>(tokenizer: &Tokenizer, texts: &[S]) -> bool {
    let long: Vec<&str> = texts.iter().map(AsRef::as_ref).filter(|text| tokenizer.truncates(text)).collect();
    let Some(first) = long.first() else { return false };
    let others = match long.len() - 1 {
        0 => "is".to_owned(),
        n => format!("and {} are", counted(n as u64, "other text")),
    };
    let beginning: String = in_one_line(first).chars().take(SHOWN).filter(|&c| !is_control(c)).collect();
    let n_tokens = tokenizer.max_length() - 2;
    tracing::warn!("`{beginning}…` {others} truncated: the encoder reads the first {n_tokens} tokens of a text");
    true
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
    fn a_file_has_a_prompt_per_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("prompts.txt");
        let read = |bytes: &[u8]| {
            std::fs::write(&file, bytes).expect("a new file");
            let config = PromptsConfig {
                media: vec![],
                subjects: vec![],
                null_probability: 0.1,
                file: file.to_string_lossy().into_owned(),
            };
            PromptSet::new(&config).map(|set| set.all().to_vec())
        };
        let plain = read(b"a cat\na dog\n").expect("prompts");
        assert_eq!(plain, ["", "a cat", "a dog"]);
        for same in [
            &b"\xef\xbb\xbfa cat\r\na dog"[..],
            b"a cat\na dog\na cat\n a dog \n",
            b"# of animals\n\n  a cat\n  # a bird\na dog",
        ] {
            assert_eq!(read(same).expect("prompts"), plain);
        }
        for empty in [&b""[..], b"\xef\xbb\xbf", b"# nothing\n\n"] {
            let message = read(empty).expect_err("no prompt").to_string();
            assert!(message.ends_with("contains no prompt: write one per line"), "{message}");
        }
        let message = read(b"a cat\n\xff").expect_err("no text").to_string();
        assert!(message.ends_with("byte 6 is not UTF-8 text"), "{message}");
    }

    #[test]
    fn truncated_texts_are_found() {
        let tokenizer = Tokenizer::load(&test_support::shipped_model().join("diffusion/tokenizer")).expect("it ships");
        assert!(!warn_of_truncated(&tokenizer, &["a cat", ""]));
        assert!(warn_of_truncated(&tokenizer, &["a cat".to_owned(), "a cat ".repeat(1500)]));
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
