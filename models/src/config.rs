//! Reading Hugging Face's JSON configurations key by key, with the defaults that diffusers has for absent keys.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::safetensors::write_atomically;

/// The release of diffusers whose folders we write, and against which parity is tested.
pub(crate) const DIFFUSERS_VERSION: &str = "0.42.1";

/// One configuration file. A `null` counts as absent.
pub(crate) struct ConfigFile {
    path: PathBuf,
    values: Map<String, Value>,
}

impl ConfigFile {
    /// Reads a JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let config = |message: String| Error::Config { path: path.to_owned(), message };
        match serde_json::from_str(&text).map_err(|e| config(format!("not valid JSON: {e}")))? {
            Value::Object(values) => Ok(Self { path: path.to_owned(), values }),
            _ => Err(config("a JSON object is wanted".to_owned())),
        }
    }

    /// The error that names this file and `key`.
    pub fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::Config { path: self.path.clone(), message: format!("`{key}` {message}") }
    }

    /// Whether `key` stands there as null, for the one key where that differs from being absent.
    pub fn is_null(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(Value::is_null)
    }

    /// The value of `key`, or none where it is absent or null.
    pub fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|e| self.error(key, format!("is {value}, which does not fit: {e}"))),
        }
    }

    /// The value of `key`, or diffusers' default.
    pub fn get<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    /// A whole number above zero, or diffusers' default.
    pub fn positive(&self, key: &str, default: i64) -> Result<i64> {
        match self.get(key, default)? {
            n if n > 0 => Ok(n),
            n => Err(self.error(key, format!("is {n}, a number above 0 is wanted"))),
        }
    }

    /// One positive number for every block, or a list with one for each of the `n` blocks.
    pub fn per_block(&self, key: &str, n: usize, default: i64) -> Result<Vec<i64>> {
        let values = match self.values.get(key) {
            Some(Value::Array(_)) => self.get(key, Vec::new())?,
            _ => vec![self.get(key, default)?; n],
        };
        if values.len() != n {
            return Err(self.error(key, format!("has {} entries for {n} blocks", values.len())));
        }
        match values.iter().find(|&&value| value <= 0) {
            Some(value) => Err(self.error(key, format!("holds {value}, numbers above 0 are wanted"))),
            None => Ok(values),
        }
    }

    /// Refuses any value but `allowed` for a key that changes the network in a way that is not built here; absent and
    /// null pass, for diffusers' default is `allowed` or null.
    pub fn only(&self, key: &str, allowed: Value) -> Result<()> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if *value == allowed || same_number(value, &allowed) => Ok(()),
            Some(value) => {
                let wanted = if allowed.is_null() { "null".to_owned() } else { allowed.to_string() };
                Err(self.error(key, format!("is {value}, only {wanted} is supported")))
            }
        }
    }
}

/// 1 and 1.0 are the same setting.
fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

/// Writes a configuration as diffusers lays it out: sorted keys, two spaces, a final newline.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("a JSON value always serialises");
    write_atomically(path, format!("{text}\n").as_bytes())
}
