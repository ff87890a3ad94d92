//! BERT's tokenizer as ImageReward uses it: bert-base-uncased's WordPiece (Wu et al., Google's Neural Machine Translation
//! System, arXiv 1609.08144) in lower case and without accents, with BLIP's two further tokens `[DEC]` and `[ENC]`.

use std::path::Path;

use tch::Tensor;
use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece as Model;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

use crate::error::{Error, Result};
use crate::files::lfs_pointer;
use crate::json::MAX_SIZE;

/// Number of token ids of every prompt of ImageReward.
pub const MAX_LENGTH: usize = 35;
/// The tokens that BLIP adds behind the vocabulary.
const ADDED: [&str; 2] = ["[DEC]", "[ENC]"];
/// The largest vocabulary file in bytes.
const MAX_BYTES: u64 = 1 << 26;

/// Converts prompts to token ids of one fixed length.
#[derive(Clone, Debug)]
pub struct WordPiece {
    inner: tokenizers::Tokenizer,
    max_length: usize,
    pad: u32,
    start: u32,
    end: u32,
}

impl WordPiece {
    /// Reads bert-base-uncased's `vocab.txt`, one token per line; every prompt has `max_length` ids, which is
    /// [`MAX_LENGTH`] for ImageReward.
    ///
    /// # Errors
    /// If the file cannot be read or lacks a special token.
    pub fn load(file: &Path, max_length: usize) -> Result<Self> {
        let bad = |message: String| Error::Config { path: file.to_owned(), message };
        let io = |source| Error::Io { path: file.to_owned(), source };
        let n_bytes = std::fs::metadata(file).map_err(io)?.len();
        if n_bytes > MAX_BYTES {
            return Err(bad(format!("has {n_bytes} bytes, a vocabulary has at most {MAX_BYTES}")));
        }
        let text = std::fs::read_to_string(file).map_err(io)?;
        if let Some(what) = lfs_pointer(text.as_bytes()) {
            return Err(bad(what.to_owned()));
        }
        Self::from_tokens(text.lines(), max_length).map_err(|error| match error {
            Error::Input(message) => bad(message),
            other => other,
        })
    }

    /// Builds a tokenizer from the tokens of a vocabulary in the order of their ids.
    ///
    /// # Errors
    /// If a special token is missing, there are too many tokens, or `max_length` is below 2.
    pub fn from_tokens<'a>(tokens: impl IntoIterator<Item = &'a str>, max_length: usize) -> Result<Self> {
        if max_length < 2 {
            return Err(Error::Input(format!("a tokenizer's length must be at least 2, found {max_length}")));
        }
        let vocab: Vocab = tokens.into_iter().zip(0..).map(|(token, id)| (token.to_owned(), id)).collect();
        if vocab.len() as i64 > MAX_SIZE {
            return Err(Error::Input(format!("a vocabulary has at most {MAX_SIZE} tokens, found {}", vocab.len())));
        }
        let id = |token: &str| {
            let missing = || Error::Input(format!("the vocabulary has no special token `{token}`"));
            vocab.get(token).copied().ok_or_else(missing)
        };
        let special = ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"];
        for token in special {
            id(token)?;
        }
        let (start, end, pad) = (id("[CLS]")?, id("[SEP]")?, id("[PAD]")?);
        let build = || {
            let model = Model::builder().vocab(vocab.clone()).unk_token("[UNK]".to_owned()).build()?;
            let mut inner = tokenizers::Tokenizer::new(model);
            inner.with_normalizer(Some(BertNormalizer::new(true, true, None, true)));
            inner.with_pre_tokenizer(Some(BertPreTokenizer));
            let tokens: Vec<AddedToken> =
                special.into_iter().chain(ADDED).map(|token| AddedToken::from(token, true)).collect();
            inner.add_special_tokens(&tokens);
            Ok::<_, tokenizers::Error>(inner)
        };
        let inner = build().map_err(|e| Error::Input(format!("the vocabulary is no WordPiece: {e}")))?;
        Ok(Self { inner, max_length, pad, start, end })
    }

    /// One more than the highest id: the number of rows that an embedding of the tokens needs.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// `[CLS]`, the prompt's ids, `[SEP]` and padding, and the mask: 1 for the tokens, 0 for the padding. A long prompt is
    /// truncated.
    pub fn encode(&self, prompt: &str) -> (Vec<i64>, Vec<i64>) {
        let encoding = self.inner.encode_fast(prompt, false).expect("WordPiece has an unknown token for every word");
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(i64::from(self.start));
        ids.extend(encoding.get_ids().iter().take(self.max_length - 2).map(|&id| i64::from(id)));
        ids.push(i64::from(self.end));
        let mut mask = vec![1; ids.len()];
        ids.resize(self.max_length, i64::from(self.pad));
        mask.resize(self.max_length, 0);
        (ids, mask)
    }

    /// The ids and the mask of several prompts, i64 [n, max_length] each, on the CPU.
    pub fn encode_batch<S: AsRef<str>>(&self, prompts: &[S]) -> (Tensor, Tensor) {
        let (ids, mask): (Vec<_>, Vec<_>) = prompts.iter().map(|prompt| self.encode(prompt.as_ref())).unzip();
        let shape = [prompts.len() as i64, self.max_length as i64];
        let tensor = |rows: Vec<Vec<i64>>| Tensor::from_slice(&rows.concat()).view(shape);
        (tensor(ids), tensor(mask))
    }
}
