//! Layers of TOML, each checked against the keys of the presets, and merged into one table.

use std::ops::Range;

use anyhow::{Context as _, Result, bail};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::text::{key_hint, nearest};

/// The presets of a command by name; each consists of layers over `complete`, which contains every key.
pub(super) struct Presets {
    /// TOML that contains every key.
    pub(super) complete: &'static str,
    /// Layers by name of the preset.
    pub(super) named: &'static [(&'static str, &'static [&'static str])],
}

impl Presets {
    /// The presets' names.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.named.iter().map(|(name, _)| *name)
    }

    /// Returns the table of a preset with `built_in` layers and then the user's `layers` over it.
    pub(super) fn table(&self, preset: &str, built_in: &[&str], layers: &[Layer]) -> Result<Table> {
        let (_, texts) = self.named.iter().find(|(name, _)| *name == preset).with_context(|| {
            format!("there is no preset `{preset}`: choose one of {}", self.names().collect::<Vec<_>>().join(", "))
        })?;
        let known: Table = self.complete.parse().context("the built-in presets")?;
        let mut merged = known.clone();
        for text in texts.iter().chain(built_in) {
            let layer = Layer { origin: format!("the built-in preset {preset}"), text: (*text).to_owned() };
            merge(&mut merged, checked(&layer, &known)?);
        }
        for layer in layers {
            merge(&mut merged, checked(layer, &known)?);
        }
        Ok(merged)
    }
}

/// Keys that override the preset, and their origin.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The path of the file, or the flag.
    pub origin: String,
    /// The TOML text.
    pub text: String,
}

impl Layer {
    /// Parses one `--set KEY=VALUE`; a value that is not TOML is read as a string.
    pub fn set(assignment: &str) -> Result<Self> {
        let origin = format!("--set {assignment}");
        let (key, value) = assignment
            .split_once('=')
            .with_context(|| format!("`{origin}`: write --set KEY=VALUE, as in --set train.epochs=4"))?;
        let (key, value) = (key.trim(), value.trim());
        let text = format!("{key} = {value}");
        if text.parse::<Table>().is_ok() {
            return Ok(Self { origin, text });
        }
        Ok(Self { origin, text: format!("{key} = {}", Value::from(value)) })
    }
}

/// Puts the values of `over` into the table `base`, key by key.
pub(super) fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Parses a layer and returns an error with the position of keys and types of values that the presets do not have.
fn checked(layer: &Layer, known: &Table) -> Result<Table> {
    let parsed = DeTable::parse(&layer.text).with_context(|| layer.origin.clone())?;
    check_table(layer, parsed.get_ref(), known, "", known)?;
    layer.text.parse().with_context(|| layer.origin.clone())
}

fn check_table(layer: &Layer, table: &DeTable<'_>, known: &Table, prefix: &str, all: &Table) -> Result<()> {
    for (key, value) in table {
        let name: &str = key.get_ref();
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        // The names of encoders are free.
        if prefix == "encoders" {
            continue;
        }
        let Some(wanted) = known.get(name) else {
            bail!("{}: unknown key `{path}`; {}", place(layer, key.span()), unknown_key_hint(name, known, all));
        };
        match (value.get_ref(), wanted) {
            (DeValue::Table(table), Value::Table(known)) => check_table(layer, table, known, &path, all)?,
            (found, wanted) if fits(&path, found, wanted) => {}
            (found, wanted) => bail!(
                "{}: `{path}` is {}, it must be {}",
                place(layer, value.span()),
                kind(found.type_str()),
                kind(wanted.type_str())
            ),
        }
    }
    Ok(())
}

/// Returns what to say of an unknown key in the table `known`: the most similar key there, or the key of another table of
/// `all` whose name is more similar.
fn unknown_key_hint(name: &str, known: &Table, all: &Table) -> String {
    let here: Vec<&str> = known.keys().map(String::as_str).collect();
    let similarity = nearest(name, here.iter().copied()).map_or(0.0, |(similarity, _)| similarity);
    let tables = all.iter().filter_map(|(section, keys)| Some((section, keys.as_table()?)));
    let elsewhere = tables.filter_map(|(section, keys)| {
        let (similarity, key) = nearest(name, keys.keys().map(String::as_str))?;
        Some((similarity, format!("{section}.{key}")))
    });
    let better = elsewhere.filter(|(other, _)| *other > similarity).max_by(|a, b| a.0.total_cmp(&b.0));
    better.map_or_else(|| key_hint(name, &here), |(_, path)| format!("did you mean `{path}`?"))
}

fn fits(path: &str, found: &DeValue<'_>, wanted: &Value) -> bool {
    match (found, wanted) {
        (DeValue::Integer(_), Value::Float(_)) => true,
        (DeValue::Array(_), _) if path == "lora.targets" => true,
        _ => found.type_str() == wanted.type_str(),
    }
}

fn kind(name: &str) -> String {
    match name {
        "float" => "a number".to_owned(),
        "integer" => "a whole number".to_owned(),
        "array" => "a list".to_owned(),
        "boolean" => "true or false".to_owned(),
        other => format!("a {other}"),
    }
}

/// Returns `file:line:column` of a byte range; only the flag if the layer is one.
fn place(layer: &Layer, span: Range<usize>) -> String {
    if layer.origin.starts_with("--") {
        return layer.origin.clone();
    }
    let before = &layer.text[..span.start.min(layer.text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
    format!("{}:{line}:{column}", layer.origin)
}
