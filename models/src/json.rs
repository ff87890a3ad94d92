//! Configuration files of the Hub, read key by key, so that every error names the file and the key.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{lfs_pointer, write_atomic};

/// The largest width, vocabulary size or id. No model comes near it, and numbers of weights that are computed from such
/// widths fit 64 bits.
pub(crate) const MAX_SIZE: i64 = 1 << 20;
/// The largest number of consecutive layers.
pub(crate) const MAX_LAYERS: i64 = 128;
/// The largest side of an image in pixels.
pub(crate) const MAX_SIDE: i64 = 2048;

/// A JSON object of a configuration file; `null` counts as absent.
pub(crate) struct JsonObject {
    path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

/// Puts the numbers that Python writes though JSON has none of them (`NaN`, `Infinity`, `-Infinity`) in quotation marks:
/// a key that is not read may have them, and one that is read must be a number.
fn quote_non_finite(json: &[u8]) -> Cow<'_, [u8]> {
    const WORDS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
    if !WORDS.iter().any(|word| json.windows(word.len()).any(|part| part == *word)) {
        return Cow::Borrowed(json);
    }
    let (mut quoted, mut at, mut in_text) = (Vec::with_capacity(json.len() + 16), 0, false);
    while at < json.len() {
        let word = WORDS.iter().find(|word| !in_text && json[at..].starts_with(word));
        let length = match (word, json[at]) {
            (Some(word), _) => word.len(),
            (None, b'\\') if in_text => 2.min(json.len() - at),
            (None, byte) => {
                in_text ^= byte == b'"';
                1
            }
        };
        quoted.extend(word.map(|_| b'"'));
        quoted.extend_from_slice(&json[at..at + length]);
        quoted.extend(word.map(|_| b'"'));
        at += length;
    }
    Cow::Owned(quoted)
}

impl JsonObject {
    /// Reads the file's top-level object.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?)
    }

    /// Parses the top-level object in `bytes`; errors name `path`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bad = |message: String| Error::Config { path: path.to_owned(), message };
        if let Some(what) = lfs_pointer(bytes) {
            return Err(bad(what.to_owned()));
        }
        match serde_json::from_slice(&quote_non_finite(bytes)).map_err(|e| bad(format!("not valid JSON: {e}")))? {
            Value::Object(map) => Ok(Self { path: path.to_owned(), prefix: String::new(), map }),
            other => Err(bad(format!("a JSON object was expected, found {}", kind_name(&other)))),
        }
    }

    /// Reads the file's top-level object, or returns `None` if the file does not exist.
    pub fn read_if_present(path: &Path) -> Result<Option<Self>> {
        match Self::read(path) {
            Ok(object) => Ok(Some(object)),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An object without keys, for an absent part whose keys all have defaults.
    pub fn empty(&self, key: &str) -> Self {
        Self { path: self.path.clone(), prefix: self.name(key), map: Map::new() }
    }

    /// Returns the value of `key`, unless it is absent or `null`.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// All keys and values.
    pub fn entries(&self) -> &Map<String, Value> {
        &self.map
    }

    /// Returns an error about `key`.
    pub fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::Config { path: self.path.clone(), message: format!("key `{}` {message}", self.name(key)) }
    }

    /// Returns a nested object.
    pub fn object(&self, key: &str) -> Result<Option<Self>> {
        self.typed(key, "an object", |value| {
            value.as_object().map(|map| Self { path: self.path.clone(), prefix: self.name(key), map: map.clone() })
        })
    }

    /// Returns an integer within `range`.
    pub fn int(&self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        self.within(key, self.typed(key, "a whole number", Value::as_i64)?, &range)
    }

    /// Returns a width, or another integer from 1 to [`MAX_SIZE`]; `default` if absent.
    pub fn size(&self, key: &str, default: i64) -> Result<i64> {
        Ok(self.int(key, 1..=MAX_SIZE)?.unwrap_or(default))
    }

    /// Returns a number within `range`.
    pub fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        self.within(key, self.typed(key, "a number", Value::as_f64)?, &range)
    }

    fn within<T>(&self, key: &str, value: Option<T>, range: &RangeInclusive<T>) -> Result<Option<T>>
    where
        T: PartialOrd + std::fmt::Display,
    {
        match value {
            Some(value) if !range.contains(&value) => {
                Err(self.error(key, format!("must be from {} to {}, found {value}", range.start(), range.end())))
            }
            value => Ok(value),
        }
    }

    /// Returns a boolean; `default` if absent.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// Returns a string.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        self.typed(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// Returns three numbers within `range`, one per color channel.
    pub fn rgb(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<[f64; 3]>> {
        let numbers = self.typed(key, "a list of three numbers", |value| {
            let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
            <[f64; 3]>::try_from(numbers?).ok()
        })?;
        numbers.iter().flatten().try_for_each(|&number| self.within(key, Some(number), &range).map(drop))?;
        Ok(numbers)
    }

    fn typed<T>(&self, key: &str, wanted: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match read(value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(self.error(key, format!("must be {wanted}, found {}", kind_name(value)))),
        }
    }

    fn name(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }
}

fn kind_name(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    }
}

/// Writes indented JSON with a final newline.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_file(path, format!("{value:#}\n").as_bytes())
}

/// Writes a file, all or nothing.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, bytes).map_err(|source| Error::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_lacks_are_words() {
        let read = |text: &str| JsonObject::parse(Path::new("config.json"), text.as_bytes());
        let object = read(
            r#"{"a": NaN, "b": [-Infinity, 1, Infinity], "c": "NaN, \"Infinity\" \\", "d": -Infinity, "e": "x\\", "f": NaN}"#,
        )
        .expect("Python writes such files");
        let value = |key: &str| object.value(key).cloned().expect("it is there");
        assert_eq!(value("a"), "NaN");
        assert_eq!(value("b"), serde_json::json!(["-Infinity", 1, "Infinity"]));
        assert_eq!(value("c"), "NaN, \"Infinity\" \\");
        assert_eq!(value("d"), "-Infinity");
        assert_eq!((value("e"), value("f")), (Value::from("x\\"), Value::from("NaN")));
        let error = object.number("a", 0.0..=1.0).expect_err("it is no number").to_string();
        assert!(error.ends_with("key `a` must be a number, found \"NaN\""), "{error}");
        assert!(read("{\"a\": nan}").is_err() && read("NaN").is_err() && read("{\"a\": \"NaN").is_err());
    }
}
