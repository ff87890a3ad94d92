use std::collections::BTreeMap;

use super::{reference_path, shared, shipped_model};
use crate::clip::{PadRule, Tokenizer};
use crate::error::Error;

/// `clip_tokenizer.json`: texts, the ids that transformers assigns to them, and a small vocabulary.
pub(super) struct Cases(serde_json::Value);

impl Cases {
    pub(super) fn read() -> Self {
        Self(serde_json::from_slice(&std::fs::read(reference_path("clip_tokenizer.json")).unwrap()).unwrap())
    }

    pub(super) fn texts(&self) -> Vec<String> {
        serde_json::from_value(self.0["texts"].clone()).unwrap()
    }

    fn small(&self, pad: PadRule) -> Tokenizer {
        let vocab: BTreeMap<String, u32> = serde_json::from_value(self.0["vocab"].clone()).unwrap();
        let merges: Vec<(String, String)> = serde_json::from_value(self.0["merges"].clone()).unwrap();
        Tokenizer::from_vocab(vocab, &merges, 20, pad).unwrap()
    }

    fn check(&self, key: &str, tokenizer: &Tokenizer) {
        let texts = self.texts();
        let wanted: Vec<Vec<i64>> = serde_json::from_value(self.0[key].clone()).unwrap();
        assert_eq!(texts.len(), wanted.len());
        for (text, wanted) in texts.iter().zip(&wanted) {
            assert_eq!(&tokenizer.encode(text), wanted, "{key}: {text:?}");
        }
    }
}

fn bang() -> PadRule {
    PadRule::Token("!".to_owned())
}

/// Tokenizing takes as long as for the words that are kept, and the ids are the same.
#[test]
fn a_long_text_is_cut_before_it_is_tokenized() {
    let tokenizer = Tokenizer::load(&shipped_model().join("clip")).expect("the shipped tokenizer");
    let words = |n: usize| (0..n).map(|i| ["a", "cubist", "painting", "of", "12"][i % 5]).collect::<Vec<_>>();
    let short = words(tokenizer.max_length()).join(" ");
    assert_eq!(tokenizer.encode(&words(1_000_000).join(" \n ")), tokenizer.encode(&short));
    assert_eq!(tokenizer.encode(&format!("{}{short}", " ".repeat(10_000_000))), tokenizer.encode(&short));
    assert_eq!(tokenizer.encode(&"ab".repeat(5_000_000)), tokenizer.encode(&"ab".repeat(5_000)));
    assert_eq!(tokenizer.encode(&"\u{1f600}".repeat(1_000_000)), tokenizer.encode(&"\u{1f600}".repeat(5_000)));
}

#[test]
fn small_vocabulary_matches_transformers() {
    let cases = Cases::read();
    cases.check("small", &cases.small(PadRule::EndOfText));
    cases.check("small_bang", &cases.small(bang()));
}

#[test]
fn clip_vocabulary_matches_transformers() {
    let Some(folder) = shared("clip-tokenizer") else { return };
    let cases = Cases::read();
    cases.check("clip", &Tokenizer::load(&folder).unwrap());
    // As in Stable Diffusion 2's folder, two files name different padding tokens.
    let copy = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt"] {
        std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    let config = r#"{"model_max_length": 77, "pad_token": "<|endoftext|>"}"#;
    std::fs::write(copy.path().join("tokenizer_config.json"), config).unwrap();
    let map = r#"{"pad_token": "!", "eos_token": {"content": "<|endoftext|>"}}"#;
    std::fs::write(copy.path().join("special_tokens_map.json"), map).unwrap();
    cases.check("clip_bang", &Tokenizer::load(copy.path()).unwrap());
}

#[test]
fn shipped_vocabulary_matches_transformers() {
    let folder = shipped_model().join("diffusion/tokenizer");
    let cases = Cases::read();
    cases.check("shipped", &Tokenizer::load(&folder).unwrap());
    let copy = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    cases.check("shipped", &Tokenizer::load(copy.path()).unwrap());
}

#[test]
fn saved_tokenizer_loads_from_either_layout() {
    let cases = Cases::read();
    for (key, pad) in [("small", PadRule::EndOfText), ("small_bang", bang())] {
        let folder = tempfile::tempdir().unwrap();
        cases.small(pad).save(folder.path()).unwrap();
        cases.check(key, &Tokenizer::load(folder.path()).unwrap());
        std::fs::remove_file(folder.path().join("vocab.json")).unwrap();
        std::fs::remove_file(folder.path().join("merges.txt")).unwrap();
        cases.check(key, &Tokenizer::load(folder.path()).unwrap());
    }
}

/// The whole text, tokenized by the file that the tokenizer writes for transformers, has the same first ids.
#[test]
fn long_texts_are_truncated_before_they_are_tokenized() {
    let cases = Cases::read();
    let shipped = Tokenizer::load(&shipped_model().join("diffusion/tokenizer")).unwrap();
    for tokenizer in [cases.small(PadRule::EndOfText), cases.small(bang()), shipped] {
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let whole = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let mut texts = cases.texts();
        texts.extend((0..cases.texts().len()).map(|i| {
            let mut all = cases.texts();
            all.rotate_left(i);
            all.join(if i % 2 == 0 { " " } else { "\u{3000}\n" })
        }));
        texts.extend(["a photo of a cat ", "\u{e9}a\u{301}", "abcab", "1234", "!?", "  "].map(|part| part.repeat(150)));
        texts.push(format!(" a{}cat\u{3000}", " \n".repeat(20_000)));
        for text in texts {
            let ids: Vec<i64> =
                whole.encode(text.as_str(), true).unwrap().get_ids().iter().map(|&id| id.into()).collect();
            let n = tokenizer.max_length();
            let found = tokenizer.encode(&text);
            assert_eq!(found[..ids.len().min(n) - 1], ids[..ids.len().min(n) - 1], "{text:?}");
            assert_eq!(tokenizer.truncates(&text), ids.len() > n, "{text:?}");
        }
        // Tokenizing the whole of these would take minutes.
        for part in ["a photo of a cat, ", "cat", "\u{732b}", "7"] {
            let [some, many] = [1000, 100_000].map(|n| part.repeat(n));
            assert_eq!(tokenizer.encode(&many), tokenizer.encode(&some), "{part}");
            assert!(tokenizer.truncates(&many));
        }
    }
}

#[test]
fn batch_has_one_row_a_text() {
    let tokenizer = Cases::read().small(PadRule::EndOfText);
    let ids = tokenizer.encode_batch(&["a photo", "cat"]);
    assert_eq!(ids.size(), [2, 20]);
    assert_eq!(Vec::<i64>::try_from(ids.get(1)).unwrap(), tokenizer.encode("cat"));
    assert_eq!(tokenizer.encode_batch::<&str>(&[]).size(), [0, 20]);
}

#[test]
fn broken_folders_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = || Tokenizer::load(folder.path()).unwrap_err().to_string();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    assert!(message().contains("there is no tokenizer"), "{}", message());
    write("vocab.json", r#"{"a": 0, "b</w>": 1, "<|endoftext|>": 2}"#);
    assert!(message().contains("merges.txt"), "{}", message());
    write("merges.txt", "#version: 0.2\nab</w>\n");
    assert!(message().contains("merges.txt: line 2"), "{}", message());
    write("merges.txt", "#version: 0.2\na b</w>\n");
    assert!(message().contains("no special token `<|startoftext|>`"), "{}", message());
    write("vocab.json", r#"{"a": 0, "b</w>": 1, "<|endoftext|>": 2, "<|startoftext|>": 3}"#);
    assert!(message().contains("do not fit together"), "{}", message());
    write("vocab.json", r#"{"a": -1}"#);
    assert!(message().contains("vocab.json: key `a` must be a token id"), "{}", message());
}

#[test]
fn too_short_a_length_is_refused() {
    let error = Tokenizer::from_vocab(BTreeMap::new(), &[], 1, PadRule::EndOfText).unwrap_err();
    assert!(matches!(error, Error::Input(message) if message.contains("at least 2")));
}
