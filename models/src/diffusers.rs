//! Reading the configurations of diffusers' models: typed values, and errors for networks that are not implemented.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::Result;
use crate::json::JsonObject;

/// The release of diffusers whose folder layout is written, and against which parity is tested.
pub(crate) const DIFFUSERS_VERSION: &str = "0.42.1";

impl JsonObject {
    /// Returns the value of `key`, or none if it is absent or null.
    pub fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let read = |value: &Value| serde_json::from_value(value.clone());
        self.value(key)
            .map(|value| read(value).map_err(|e| self.error(key, format!("is {value}, which does not fit: {e}"))))
            .transpose()
    }

    /// Returns the value of `key`, or diffusers' default.
    pub fn get<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    /// Reads one number from 1 to `max` for all blocks, or a list with a number for each of the `n` blocks.
    pub fn per_block(&self, key: &str, n: usize, default: i64, max: i64) -> Result<Vec<i64>> {
        let values = match self.value(key) {
            Some(Value::Array(_)) => self.get(key, Vec::new())?,
            _ => vec![self.get(key, default)?; n],
        };
        if values.len() != n {
            return Err(self.error(key, format!("has {} entries for {n} blocks", values.len())));
        }
        match values.iter().find(|&value| !(1..=max).contains(value)) {
            Some(value) => Err(self.error(key, format!("contains {value}, but every number must be from 1 to {max}"))),
            None => Ok(values),
        }
    }

    /// Refuses any value but `allowed` for a key whose other values need a network that is not implemented. Absent and
    /// null are accepted: diffusers' default for such a key is `allowed`, and null is the same as that default.
    pub fn only(&self, key: &str, allowed: Value) -> Result<()> {
        match self.value(key) {
            Some(value) if *value != allowed && !same_number(value, &allowed) => {
                Err(self.error(key, format!("is {value}, only {allowed} is supported")))
            }
            _ => Ok(()),
        }
    }

    /// Whether `key` is null, for the rare key where that differs from being absent.
    pub fn is_null(&self, key: &str) -> bool {
        self.entries().get(key).is_some_and(Value::is_null)
    }
}

/// 1 and 1.0 are the same setting.
fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}
