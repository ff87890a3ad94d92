//! Configuration files of the Hub, read key by key, so that every error names the file and the key.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::write_atomic;

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

impl JsonObject {
    /// Reads the file's top-level object.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?)
    }

    /// Parses the top-level object in `bytes`; errors name `path`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bad = |message: String| Error::Config { path: path.to_owned(), message };
        match serde_json::from_slice(bytes).map_err(|e| bad(format!("not valid JSON: {e}")))? {
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
