//! CLIP's byte-level BPE vocabulary for the captions: each of their words becomes one token.
//!
//! Byte-pair encoding (Sennrich et al., arXiv 1508.07909) on the words of all captions, until no pair is left to merge,
//! over GPT-2's printable alphabet of bytes (openai/gpt-2 encoder.py, `bytes_to_unicode`).

use std::collections::{BTreeMap, BTreeSet};

/// The suffix of a word's last token.
const END_OF_WORD: &str = "</w>";
/// The special tokens, which have the last two ids.
const SPECIAL: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];

/// A vocabulary: tokens with their ids, and merges in order of rank.
#[derive(Debug)]
pub struct Vocabulary {
    /// 256 bytes, 256 bytes that end a word, the merged tokens, start and end of text.
    pub tokens: Vec<(String, u32)>,
    /// Pairs of tokens that are merged.
    pub merges: Vec<(String, String)>,
}

/// Builds the vocabulary of captions; deterministic.
pub fn build<S: AsRef<str>>(captions: &[S]) -> Vocabulary {
    let alphabet = byte_alphabet();
    let mut words: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    for caption in captions {
        for word in split_words(&caption.as_ref().to_lowercase()) {
            *words.entry(spell(word, &alphabet)).or_default() += 1;
        }
    }
    let merges = merge_all(words);
    let mut ordered: Vec<char> = alphabet.to_vec();
    ordered.sort_unstable();
    let letters = ordered.iter().map(char::to_string);
    let ends = ordered.iter().map(|letter| format!("{letter}{END_OF_WORD}"));
    // Two merges may produce the same token, which the vocabulary contains once.
    let mut known = BTreeSet::new();
    let merged = merges.iter().map(|(a, b)| format!("{a}{b}")).filter(|token| known.insert(token.clone()));
    let special = SPECIAL.iter().map(|&token| token.to_owned());
    let tokens = letters.chain(ends).chain(merged).chain(special).zip(0..).collect();
    Vocabulary { tokens, merges }
}

/// Merges the most frequent pair into a token until every word is one token; ties are broken alphabetically.
fn merge_all(words: BTreeMap<Vec<String>, usize>) -> Vec<(String, String)> {
    let mut words: Vec<(Vec<String>, usize)> = words.into_iter().collect();
    let mut merges = Vec::new();
    loop {
        let mut pairs: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *pairs.entry((&pair[0], &pair[1])).or_default() += count;
            }
        }
        let best = pairs.iter().max_by(|(a, n), (b, m)| n.cmp(m).then_with(|| b.cmp(a)));
        let Some((&(left, right), _)) = best else { return merges };
        let pair = (left.to_owned(), right.to_owned());
        for (word, _) in &mut words {
            merge(word, &pair);
        }
        merges.push(pair);
    }
}

fn merge(word: &mut Vec<String>, pair: &(String, String)) {
    let mut i = 0;
    while i + 1 < word.len() {
        if word[i] == pair.0 && word[i + 1] == pair.1 {
            let right = word.remove(i + 1);
            word[i].push_str(&right);
        }
        i += 1;
    }
}

/// Splits a text as CLIP's tokenizer does: runs of letters, single digits and runs of other characters.
fn split_words(text: &str) -> Vec<&str> {
    let class = |c: char| match c {
        c if c.is_whitespace() => 0,
        c if c.is_alphabetic() => 1,
        c if c.is_numeric() => 2,
        _ => 3,
    };
    let mut words = Vec::new();
    let mut start = 0;
    let mut last = 0;
    for (i, c) in text.char_indices() {
        let now = class(c);
        if now != last || now == 2 {
            if last != 0 {
                words.push(&text[start..i]);
            }
            start = i;
        }
        last = now;
    }
    if last != 0 {
        words.push(&text[start..]);
    }
    words
}

fn spell(word: &str, alphabet: &[char; 256]) -> Vec<String> {
    let mut letters: Vec<String> = word.bytes().map(|byte| alphabet[usize::from(byte)].to_string()).collect();
    if let Some(last) = letters.last_mut() {
        last.push_str(END_OF_WORD);
    }
    letters
}

/// Returns a printable character for each byte: its own if it is printable, else the next free one from U+0100.
fn byte_alphabet() -> [char; 256] {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut free = 0x100..;
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        let code = if printable(byte) { byte } else { free.next().expect("the range has no end") };
        char::from_u32(code).expect("all codes below U+0200 are characters")
    })
}

#[cfg(test)]
mod tests {
    use ambiguity_models::clip::{PadRule, Tokenizer};

    use super::*;

    #[test]
    fn every_word_is_one_token_and_unknown_words_still_encode() {
        let captions = ["ukiyo-e painting of a woman", "an impressionism painting", "na-ve-art-primitivism"];
        let vocabulary = build(&captions);
        let n = vocabulary.tokens.len();
        assert_eq!(n, 512 + vocabulary.merges.len() + 2);
        let tokenizer = Tokenizer::from_vocab(vocabulary.tokens, &vocabulary.merges, 16, PadRule::EndOfText).unwrap();
        let ids = tokenizer.encode("Ukiyo-e painting of a WOMAN");
        assert_eq!(ids.len(), 16);
        assert_eq!(ids[0], n as i64 - 2);
        // ukiyo, -, e, painting, of, a, woman, end.
        assert_eq!(ids.iter().position(|&id| id == n as i64 - 1), Some(8));
        assert_eq!(tokenizer.encode("zz")[1..4].iter().filter(|&&id| id < 512).count(), 2);
    }

    #[test]
    fn words_split_as_clip_does() {
        assert_eq!(split_words("ukiyo-e, 1890s"), ["ukiyo", "-", "e", ",", "1", "8", "9", "0", "s"]);
    }
}
