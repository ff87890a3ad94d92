//! `host plugin inspect`: shows a plugin's file, without running more of it than its description.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::completions::plugins;
use crate::context::Context;
use crate::plugin::{Asset, Kind, Limits, OptionInfo, Plugin, PluginHost};
use crate::text::{escaped, shown, size, to_json};

/// Show a plugin's title, styles, encoders, assets and digest.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin inspect kmeans_image
  host plugin inspect ./mine.wasm --json")]
pub struct InspectArgs {
    /// A plugin: a path or a name
    #[arg(add = plugins())]
    plugin: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Maximum number of characters of a line's values.
const LINE: usize = 84;

impl InspectArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let loaded = PluginHost::of_command(Limits::default(), context)?.load(&self.plugin, BTreeMap::new())?;
        match self.json {
            true => println!("{}", to_json(&document(&*loaded))),
            false => print!("{}", layout(&*loaded)),
        }
        Ok(())
    }
}

/// Returns all properties of a plugin as JSON.
fn document(loaded: &dyn Plugin) -> Value {
    let (description, source, inspection) = (loaded.description(), loaded.source(), loaded.inspect());
    let pinned = inspection.encoder.as_ref().filter(|pin| !pin.digest.is_empty());
    let pin = |name: &String| pinned.filter(|pin| pin.name == *name).map(|pin| pin.digest.clone());
    let encoders = description.encoders.iter().map(|name| json!({ "name": name, "digest": pin(name) }));
    let assets = inspection.assets.iter().map(|asset| json!({ "name": asset.name, "bytes": asset.bytes }));
    json!({
        "plugin": source.name,
        "path": source.path.to_string_lossy(),
        "name": description.name,
        "version": description.version,
        "title": source.title,
        "authors": inspection.authors,
        "license": inspection.license,
        "kind": if description.scale().is_some() { "scorer" } else { "classifier" },
        "styles": description.styles(),
        "scale": description.scale().map(|scale| json!({
            "higher_is_better": scale.higher_is_better, "minimum": scale.minimum, "maximum": scale.maximum,
        })),
        "options": description.options.iter().map(|OptionInfo { key, value_type, default, help }| json!({
            "key": key, "type": value_type.name(), "default": default, "help": help,
        })).collect::<Vec<_>>(),
        "properties": description.properties.iter().cloned().collect::<BTreeMap<_, _>>(),
        "prompts": inspection.prompts,
        "temperature": inspection.temperature,
        "media": description.media,
        "encoders": encoders.collect::<Vec<_>>(),
        "interface": source.interface,
        "differentiable": inspection.differentiable,
        "pixel_differentiable": inspection.pixel_differentiable,
        "takes": inspection.takes,
        "bytes": inspection.bytes,
        "sha256": source.sha256,
        "assets": assets.collect::<Vec<_>>(),
        "imports": inspection.imports,
        "exports": inspection.exports,
    })
}

/// Returns the properties of a plugin as text.
fn layout(loaded: &dyn Plugin) -> String {
    let (description, source, inspection) = (loaded.description(), loaded.source(), loaded.inspect());
    let encoders = description.encoders.iter().map(|name| match &inspection.encoder {
        Some(pin) if pin.name == *name && !pin.digest.is_empty() => format!("{name} (sha256 {})", short(&pin.digest)),
        _ => format!("{name} (any weights)"),
    });
    let assets = inspection.assets.iter().map(|Asset { name, bytes, shape }| match shape {
        Some((rows, columns)) => format!("{name} ({rows} x {columns}, {})", size(*bytes)),
        None => format!("{name} ({})", size(*bytes)),
    });
    let (styles, scores) = match &description.kind {
        Kind::Classifier { styles } => (vec![format!("{}: {}", styles.len(), styles.join(", "))], vec![]),
        Kind::Scorer(scale) => {
            let direction = if scale.higher_is_better { "higher is better" } else { "lower is better" };
            let least = scale.minimum.map(|minimum| format!(", at least {minimum}")).unwrap_or_default();
            let most = scale.maximum.map(|maximum| format!(", at most {maximum}")).unwrap_or_default();
            (vec![], vec![format!("{direction}{least}{most}")])
        }
    };
    let options = description.options.iter().map(|OptionInfo { key, value_type, default, help }| {
        let default = default.as_ref().map(|default| format!(", default {default}")).unwrap_or_default();
        format!("{key} ({}{default}): {help}", value_type.name())
    });
    let properties = description.properties.iter().map(|(key, value)| format!("{key}: {value}"));
    let prompts = description.styles().iter().zip(&inspection.prompts);
    let prompts: Vec<_> =
        prompts.map(|(style, prompts)| format!("{style}: \"{}\"", escaped(&prompts.join("\", \"")))).collect();
    let gradient = match (inspection.differentiable, inspection.pixel_differentiable) {
        (false, false) => "no",
        (true, false) => "yes",
        (false, true) => "yes, of pixels",
        (true, true) => "yes, of embeddings and pixels",
    };
    let one = |value: String| vec![if value.is_empty() { "none".to_owned() } else { value }];
    let takes = Some(inspection.takes.clone()).filter(|takes| !takes.is_empty());
    let temperature = match (inspection.temperature, &inspection.encoder, &takes) {
        (Some(temperature), ..) => Some(temperature.to_string()),
        (None, Some(_), None) => Some("the encoder's own".to_owned()),
        (None, ..) => None,
    };
    let mut text = format!("{} {}\n", description.name, description.version);
    for (key, values) in [
        ("title", one(source.title.clone().unwrap_or_default())),
        ("authors", one(inspection.authors.join(", "))),
        ("license", one(inspection.license.clone())),
        ("takes", one(description.media_names(", "))),
        ("styles", styles),
        ("scores", scores),
        ("options", options.collect()),
        ("properties", properties.collect()),
        ("prompts", prompts),
        ("encoders", one(encoders.collect::<Vec<_>>().join(", "))),
        ("temperature", temperature.into_iter().collect()),
        ("gradient", one(gradient.to_owned())),
        ("interface", one(inspection.interface.clone())),
        ("input", takes.into_iter().collect()),
        ("imports", one(inspection.imports.join(", "))),
        ("exports", one(inspection.exports.join(", "))),
        ("assets", one(assets.collect::<Vec<_>>().join(", "))),
        ("file", one(format!("{} ({})", shown(&source.path), size(inspection.bytes)))),
        ("sha256", one(source.sha256.clone())),
    ] {
        let mut key = key;
        for line in values.iter().flat_map(|value| wrap(value)) {
            text += &format!("  {key:<11} {line}\n");
            key = "";
        }
    }
    text
}

/// Wraps a text after commas into lines of at most [`LINE`] characters.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for part in text.split_inclusive(", ") {
        let line = lines.last_mut().expect("there is at least one line");
        if !line.is_empty() && line.chars().count() + part.trim_end().chars().count() > LINE {
            *line = line.trim_end().to_owned();
            lines.push(part.to_owned());
        } else {
            line.push_str(part);
        }
    }
    lines
}

fn short(digest: &str) -> String {
    match digest.get(..12) {
        Some(start) if digest.len() > 12 => format!("{start}…"),
        _ => digest.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_break_after_commas() {
        let styles: Vec<String> = (0..12).map(|i| format!("cluster-{i:02}")).collect();
        let lines = wrap(&styles.join(", "));
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.chars().count() <= LINE) && lines[0].ends_with(','), "{lines:?}");
    }
}
