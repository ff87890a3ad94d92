//! Layers of TOML, each checked against the keys that the presets have, merged into one [`Config`].

use std::ops::Range;

use anyhow::{Context as _, Result, anyhow, bail};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::{Config, RunConfig as _};

const PAPER_512: &str = include_str!("../../presets/paper-512.toml");

/// A preset is one or more layers, each over the one before; the first one has every key.
const PRESETS: [(&str, &[&str]); 5] = [
    ("paper-512", &[PAPER_512]),
    ("paper-256", &[PAPER_512, include_str!("../../presets/paper-256.toml")]),
    ("paper-128", &[PAPER_512, include_str!("../../presets/paper-128.toml")]),
    ("paper-64", &[PAPER_512, include_str!("../../presets/paper-64.toml")]),
    ("tiny-art", &[PAPER_512, include_str!("../../presets/tiny-art.toml")]),
];

/// The presets' names.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// Keys over the preset, and where they come from.
#[derive(Clone, Debug)]
pub struct Layer {
    /// A file's path, or the flag.
    pub origin: String,
    /// TOML.
    pub text: String,
}

impl Layer {
    /// One `--set KEY=VALUE`; a value that is not TOML is taken as a string.
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

/// The preset with the layers over it, in order, checked.
pub fn resolve(preset: &str, layers: &[Layer]) -> Result<Config> {
    let (_, texts) = PRESETS.iter().find(|(name, _)| *name == preset).with_context(|| {
        format!("there is no preset `{preset}`: choose one of {}", preset_names().collect::<Vec<_>>().join(", "))
    })?;
    let known: Table = PAPER_512.parse().context("the built-in presets")?;
    let mut merged = known.clone();
    for text in &texts[1..] {
        merge(&mut merged, text.parse().with_context(|| format!("the built-in preset {preset}"))?);
    }
    for layer in layers {
        merge(&mut merged, checked(layer, &known)?);
    }
    Config::of_table(merged, layers)
}

/// A complete table with the layers over it, in order; a key that it does not have is an error.
pub(crate) fn overlay(known: &Table, layers: &[Layer]) -> Result<Table> {
    let mut merged = known.clone();
    for layer in layers {
        merge(&mut merged, checked(layer, known)?);
    }
    Ok(merged)
}

fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Parses a layer and refuses keys and kinds of values that the presets don't have, saying where they stand.
fn checked(layer: &Layer, known: &Table) -> Result<Table> {
    let parsed = DeTable::parse(&layer.text).map_err(|error| anyhow!("{}: {error}", layer.origin))?;
    check_table(layer, parsed.get_ref(), known, "")?;
    layer.text.parse().with_context(|| layer.origin.clone())
}

fn check_table(layer: &Layer, table: &DeTable<'_>, known: &Table, prefix: &str) -> Result<()> {
    for (key, value) in table {
        let name: &str = key.get_ref();
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        // Any encoder may be named.
        if prefix == "encoders" {
            continue;
        }
        let Some(wanted) = known.get(name) else {
            let candidates = known.keys().map(|key| (strsim::jaro_winkler(key, name), key));
            let nearest = candidates.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.75);
            let hint = match nearest {
                Some((_, key)) => format!("did you mean `{key}`?"),
                None => format!("known here: {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
            };
            bail!("{}: unknown key `{path}`; {hint}", place(layer, key.span()));
        };
        match (value.get_ref(), wanted) {
            (DeValue::Table(table), Value::Table(known)) => check_table(layer, table, known, &path)?,
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

/// `file:line:column` of a byte range; a flag has no lines.
fn place(layer: &Layer, span: Range<usize>) -> String {
    if layer.origin.starts_with("--") {
        return layer.origin.clone();
    }
    let before = &layer.text[..span.start.min(layer.text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
    format!("{}:{line}:{column}", layer.origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Vec<Layer> {
        vec![Layer { origin: "run.toml".to_owned(), text: text.to_owned() }]
    }

    fn message(text: &str) -> String {
        format!("{:#}", resolve("tiny-art", &file(text)).expect_err("the layer is wrong"))
    }

    #[test]
    fn every_preset_resolves_and_survives_its_own_toml() {
        for name in preset_names() {
            let config = resolve(name, &[]).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            let again: Config = toml::from_str(&config.to_toml().expect("serializes")).expect("parses");
            assert_eq!(again, config, "{name}");
        }
    }

    #[test]
    fn presets_differ_as_the_paper_says() {
        let paper = resolve("paper-512", &[]).expect("resolves");
        let mut small = resolve("paper-256", &[]).expect("resolves");
        assert_eq!(small.sample.per_epoch(), paper.sample.per_epoch());
        assert_eq!(small.train.batch_size * small.train.accumulation_steps, 8);
        small.sample = paper.sample.clone();
        small.train = paper.train.clone();
        assert_eq!(small, paper);
    }

    #[test]
    fn later_layers_win() {
        let mut layers = file("[train]\nepochs = 3\nlearning_rate = 1\n");
        layers.push(Layer::set("train.epochs=4").expect("a setting"));
        layers.push(Layer::set("model.dtype=bf16").expect("a setting"));
        layers.push(Layer::set("lora.targets=[\"to_q\"]").expect("a setting"));
        let config = resolve("tiny-art", &layers).expect("resolves");
        assert_eq!((config.train.epochs, config.train.learning_rate), (4, 1.0));
        assert_eq!(config.model.dtype, super::super::Dtype::Bf16);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        assert_eq!(
            message("[train]\n  lerning_rate = 1e-3\n"),
            "run.toml:2:3: unknown key `train.lerning_rate`; did you mean `learning_rate`?"
        );
        assert_eq!(
            message("[train]\nepochs = \"3\"\n"),
            "run.toml:2:10: `train.epochs` is a string, it must be a whole number"
        );
        assert!(message("[train\n").starts_with("run.toml: TOML parse error at line 1"));
        assert!(message("[model]\ndtype = \"f8\"\n").contains("f8"));
        assert!(message("[train]\nbatch_size = 7\n").contains("train.batch_size"));
        assert!(message("[sample]\neta = 0\n").contains("sample.eta is 0"));
    }
}
