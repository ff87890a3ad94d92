//! CLIP's tokenizer: NFC, lower case, white space collapsed to one space, CLIP's own word pattern, byte-level BPE with
//! an end-of-word mark; as transformers' `CLIPTokenizer` builds it from a vocabulary and merges.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use tch::Tensor;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::error::{Error, Result};
use crate::json::{JsonObject, MAX_SIZE, write_file, write_json};

/// The token that starts a text.
pub const START_OF_TEXT: &str = "<|startoftext|>";
/// The token that ends a text.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// The suffix of the last symbol of a word in the vocabulary.
const END_OF_WORD: &str = "</w>";
/// The pattern of a word in CLIP's `SimpleTokenizer`.
const WORD: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// Maximum text length of CLIP itself, for folders that do not state one.
const DEFAULT_MAX_LENGTH: usize = 77;

/// The token that pads a text to the maximum length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PadRule {
    /// `<|endoftext|>`, as in CLIP and Stable Diffusion 1.
    #[default]
    EndOfText,
    /// Another token by its name, such as `!` in Stable Diffusion 2.
    Token(String),
}

/// Converts texts to token ids of one fixed length.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    max_length: usize,
    start: u32,
    end: u32,
    pad_token: String,
    pad: u32,
    /// Number of bytes of the longest token.
    longest: usize,
}

impl Tokenizer {
    /// Reads `vocab.json` and `merges.txt`, or else `tokenizer.json`; the padding token and the length come
    /// from `tokenizer_config.json` and `special_tokens_map.json`. A length that they lack comes from the `config.json`
    /// of the text tower in the same folder, and is else 77.
    pub fn load(dir: &Path) -> Result<Self> {
        let (vocab, merges) = read_vocabulary(dir)?;
        let config = JsonObject::read_if_present(&dir.join("tokenizer_config.json"))?;
        let max_length = read_max_length(dir, config.as_ref())?;
        let pad = read_pad(dir, config.as_ref())?;
        Self::from_vocab(vocab, &merges, max_length, pad).map_err(|error| match error {
            Error::Input(message) => Error::Config { path: dir.to_owned(), message },
            other => other,
        })
    }

    /// Builds a tokenizer from a vocabulary, merges in order of rank, and the number of ids of every text.
    ///
    /// # Errors
    /// If a special token or a merge is not in the vocabulary, or `max_length` is below 2.
    pub fn from_vocab(
        vocab: impl IntoIterator<Item = (String, u32)>,
        merges: &[(String, String)],
        max_length: usize,
        pad: PadRule,
    ) -> Result<Self> {
        if max_length < 2 {
            return Err(Error::Input(format!("a tokenizer's length must be at least 2, found {max_length}")));
        }
        let vocab: HashMap<String, u32> = vocab.into_iter().collect();
        let id = |token: &str| {
            let missing = || Error::Input(format!("the vocabulary has no special token `{token}`"));
            vocab.get(token).copied().ok_or_else(missing)
        };
        let (start, end) = (id(START_OF_TEXT)?, id(END_OF_TEXT)?);
        let pad_token = match pad {
            PadRule::EndOfText => END_OF_TEXT.to_owned(),
            PadRule::Token(token) => token,
        };
        let pad = id(&pad_token)?;
        let inner = build(&vocab, merges, start, end, &pad_token)
            .map_err(|e| Error::Input(format!("the vocabulary and the merges do not fit together: {e}")))?;
        // Byte-level BPE writes each byte as one character.
        let longest = vocab.keys().map(|token| token.chars().count()).max().unwrap_or(1);
        Ok(Self { inner, vocab, merges: merges.to_vec(), max_length, start, end, pad_token, pad, longest })
    }

    /// Number of ids of every text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// One more than the highest id: the number of rows that an embedding of the tokens needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab.values().max().map_or(0, |&id| id as usize + 1)
    }

    /// The id of a token by its name in the vocabulary, such as `cat</w>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.vocab.get(token).copied()
    }

    /// Start token, the text's ids, end token, padding: exactly [`Tokenizer::max_length`] ids; a long text is
    /// truncated.
    pub fn encode(&self, text: &str) -> Vec<i64> {
        let encoding = self
            .inner
            .encode_fast(self.beginning(text).as_ref(), false)
            .expect("byte-level BPE encodes every text: its unknown token was found in the vocabulary");
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(i64::from(self.start));
        ids.extend(encoding.get_ids().iter().take(self.max_length - 2).map(|&id| i64::from(id)));
        ids.push(i64::from(self.end));
        ids.resize(self.max_length, i64::from(self.pad));
        ids
    }

    /// Returns the beginning of a text that no kept token lies beyond, since tokenizing takes time and memory that grow
    /// faster than the text: each word has at least one token, and each token at most as many bytes as the longest one.
    fn beginning<'a>(&self, text: &'a str) -> Cow<'a, str> {
        // Twice as many bytes, because the merges within a word may depend on what follows them.
        let max_bytes = 2 * self.max_length * self.longest;
        if text.len() <= max_bytes && text.split_whitespace().nth(self.max_length).is_none() {
            return Cow::Borrowed(text);
        }
        let mut kept = String::with_capacity(max_bytes);
        for word in text.split_whitespace().take(self.max_length) {
            let room = max_bytes.saturating_sub(kept.len());
            if !kept.is_empty() {
                kept.push(' ');
            }
            kept.push_str(&word[..word.floor_char_boundary(room)]);
            if word.len() > room {
                break;
            }
        }
        Cow::Owned(kept)
    }

    /// The ids of several texts, i64 [n, max_length], on the CPU.
    pub fn encode_batch<S: AsRef<str>>(&self, texts: &[S]) -> Tensor {
        let ids: Vec<i64> = texts.iter().flat_map(|text| self.encode(text.as_ref())).collect();
        Tensor::from_slice(&ids).view([texts.len() as i64, self.max_length as i64])
    }

    /// Writes vocab.json, merges.txt, tokenizer.json and tokenizer_config.json, which transformers loads.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.to_owned(), source })?;
        let mut by_id: Vec<(&String, &u32)> = self.vocab.iter().collect();
        by_id.sort_by_key(|(_, id)| **id);
        let vocab: Map<String, Value> = by_id.into_iter().map(|(token, id)| (token.clone(), json!(id))).collect();
        write_file(&dir.join("vocab.json"), Value::Object(vocab).to_string().as_bytes())?;
        let lines: String = self.merges.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
        write_file(&dir.join("merges.txt"), format!("#version: 0.2\n{lines}").as_bytes())?;
        let path = dir.join("tokenizer.json");
        let whole =
            self.inner.to_string(true).map_err(|e| Error::Config { path: path.clone(), message: e.to_string() })?;
        write_file(&path, whole.as_bytes())?;
        let config = json!({
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.max_length,
            "bos_token": START_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
            "pad_token": self.pad_token,
        });
        write_json(&dir.join("tokenizer_config.json"), &config)
    }
}

/// The pipeline of transformers' `CLIPTokenizer`. The padding token is a special token too, so that Stable Diffusion
/// 2's `!` is split off words.
fn build(
    vocab: &HashMap<String, u32>,
    merges: &[(String, String)],
    start: u32,
    end: u32,
    pad_token: &str,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.iter().map(|(token, &id)| (token.clone(), id)).collect::<Vocab>(), merges.to_vec())
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(END_OF_WORD.to_owned())
        .unk_token(END_OF_TEXT.to_owned())
        .build()?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    inner.with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])));
    let words = Split::new(SplitPattern::Regex(WORD.to_owned()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
    let processing = RobertaProcessing::new((END_OF_TEXT.to_owned(), end), (START_OF_TEXT.to_owned(), start));
    inner.with_post_processor(Some(processing.trim_offsets(false).add_prefix_space(false)));
    inner.with_decoder(Some(ByteLevel::new(true, true, true)));
    let special = |token: &str| AddedToken::from(token, true);
    inner.add_special_tokens(&[special(START_OF_TEXT), special(END_OF_TEXT), special(pad_token)]);
    Ok(inner)
}

type Vocabulary = (HashMap<String, u32>, Vec<(String, String)>);

fn read_vocabulary(dir: &Path) -> Result<Vocabulary> {
    let vocab_file = dir.join("vocab.json");
    if vocab_file.exists() {
        return Ok((read_vocab(&JsonObject::read(&vocab_file)?)?, read_merges(&dir.join("merges.txt"))?));
    }
    let file = dir.join("tokenizer.json");
    let Some(whole) = JsonObject::read_if_present(&file)? else {
        let message = "there is no tokenizer: vocab.json and merges.txt, or tokenizer.json, are needed".to_owned();
        return Err(Error::Config { path: dir.to_owned(), message });
    };
    let model = whole.object("model")?.ok_or_else(|| whole.error("model", "is missing"))?;
    if let Some(other) = model.text("type")?.filter(|kind| kind != "BPE") {
        return Err(model.error("type", format!("is `{other}`, CLIP's tokenizer is BPE")));
    }
    if model.text("end_of_word_suffix")?.as_deref() != Some(END_OF_WORD) {
        return Err(model.error("end_of_word_suffix", format!("must be `{END_OF_WORD}`: is this CLIP's tokenizer?")));
    }
    let vocab = model.object("vocab")?.ok_or_else(|| model.error("vocab", "is missing"))?;
    let vocab = read_vocab(&vocab)?;
    let added = whole.value("added_tokens").and_then(Value::as_array).into_iter().flatten();
    for token in added.filter_map(|token| token["content"].as_str()) {
        if !vocab.contains_key(token) {
            return Err(whole.error("added_tokens", format!("adds `{token}`, which is not in the vocabulary")));
        }
    }
    let merges = model.value("merges").and_then(Value::as_array).ok_or_else(|| model.error("merges", "is missing"))?;
    let pair = |merge: &Value| match merge {
        Value::String(line) => line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(two) if two.len() == 2 => Some((two[0].as_str()?.to_owned(), two[1].as_str()?.to_owned())),
        _ => None,
    };
    let bad = |merge: &Value| model.error("merges", format!("must be pairs of tokens, found {merge}"));
    let merges = merges.iter().map(|m| pair(m).ok_or_else(|| bad(m))).collect::<Result<_>>()?;
    Ok((vocab, merges))
}

fn read_vocab(object: &JsonObject) -> Result<HashMap<String, u32>> {
    let id = |(token, value): (&String, &Value)| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok((token.clone(), id)),
        None => Err(object.error(token, format!("must be a token id, found {value}"))),
    };
    object.entries().iter().map(id).collect()
}

fn read_merges(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let mut merges = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.is_empty() || (i == 0 && line.starts_with("#version")) {
            continue;
        }
        let (a, b) = line.split_once(' ').ok_or_else(|| Error::Config {
            path: path.to_owned(),
            message: format!("line {} must be two tokens separated by a space, found `{line}`", i + 1),
        })?;
        merges.push((a.to_owned(), b.to_owned()));
    }
    Ok(merges)
}

fn read_max_length(dir: &Path, config: Option<&JsonObject>) -> Result<usize> {
    // transformers writes a huge number (1e30) if the length is unknown.
    let known = |n: f64| (2.0..=MAX_SIZE as f64).contains(&n).then_some(n as usize);
    let any = f64::MIN..=f64::MAX;
    if let Some(n) = config.map(|c| c.number("model_max_length", any)).transpose()?.flatten().and_then(known) {
        return Ok(n);
    }
    let Some(model) = JsonObject::read_if_present(&dir.join("config.json"))? else { return Ok(DEFAULT_MAX_LENGTH) };
    let text = model.object("text_config")?.unwrap_or(model);
    Ok(text.size("max_position_embeddings", DEFAULT_MAX_LENGTH as i64)? as usize)
}

/// As in transformers, special_tokens_map.json has precedence over a tokenizer_config.json without
/// `added_tokens_decoder`. (The two differ in Stable Diffusion 2.)
fn read_pad(dir: &Path, config: Option<&JsonObject>) -> Result<PadRule> {
    let modern = config.is_some_and(|c| c.value("added_tokens_decoder").is_some());
    let map = if modern { None } else { JsonObject::read_if_present(&dir.join("special_tokens_map.json"))? };
    for object in map.as_ref().into_iter().chain(config) {
        let token = match object.value("pad_token") {
            None => continue,
            Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
            Some(other) => other.as_str(),
        };
        let token = token.ok_or_else(|| object.error("pad_token", "must be a token"))?;
        return Ok(if token == END_OF_TEXT { PadRule::EndOfText } else { PadRule::Token(token.to_owned()) });
    }
    Ok(PadRule::EndOfText)
}
