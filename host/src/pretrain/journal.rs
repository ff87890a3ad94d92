//! `pretrain.jsonl`: an object a line, with the stage, the step and the figures measured there.
//!
//! Lines are only ever added. Where a step is there twice (a run was killed after it and went on from an earlier
//! checkpoint), the later line counts.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::Stage;

/// Figures by name, in the order in which they are shown.
#[derive(Clone, Debug, Default)]
pub struct Figures(Map<String, Value>);

impl Figures {
    /// Adds one.
    pub fn add(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// All of `other` after these.
    pub fn join(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// A number by its name.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.0.get(name).and_then(Value::as_f64)
    }

    /// As a JSON object.
    pub fn into_json(self) -> Value {
        Value::Object(self.0)
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            match value.as_f64() {
                Some(number) if number.fract() != 0.0 => write!(f, "{comma}{name} {number:.4}")?,
                _ => write!(f, "{comma}{name} {value}")?,
            }
        }
        Ok(())
    }
}

/// The file.
#[derive(Debug)]
pub struct Journal(PathBuf);

impl Journal {
    /// The journal of a pretraining folder.
    pub fn of(out: &Path) -> Self {
        Self(out.join("pretrain.jsonl"))
    }

    /// Adds a line; `done` marks the last one of a stage.
    pub fn write(&self, stage: Stage, step: u64, done: bool, figures: &Figures) -> Result<()> {
        let mut line = json!({ "stage": stage.name(), "step": step, "done": done });
        line.as_object_mut().expect("it was made as an object").extend(figures.0.clone());
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(&self.0)?;
        // One write call a line: two stages may be trained side by side into the same folder.
        file.write_all(format!("{line}\n").as_bytes())?;
        Ok(())
    }

    /// The figures of a finished stage, if it is.
    pub fn done(&self, stage: Stage) -> Result<Option<Figures>> {
        if !self.0.exists() {
            return Ok(None);
        }
        let text = fs_err::read_to_string(&self.0)?;
        let mut found = None;
        for line in text.lines() {
            let figures: Map<String, Value> =
                serde_json::from_str(line).with_context(|| format!("{} has a damaged line", self.0.display()))?;
            if figures.get("stage") == Some(&json!(stage.name())) && figures.get("done") == Some(&json!(true)) {
                found = Some(Figures(figures));
            }
        }
        Ok(found)
    }
}
