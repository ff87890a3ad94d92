//! `host plugin inspect`: what a plugin's file is, without running more of it than its own description.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::Context;
use crate::plugin::{Asset, Classifier, Limits, PluginHost, cache_folder};

/// Show what a plugin's file is: title, styles, encoders, assets, digest.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin inspect kmeans_image
  host plugin inspect ./mine.wasm --json")]
pub struct InspectArgs {
    /// A plugin: a path, or a name to be looked up
    plugin: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Styles in a line of the layout for people.
const LINE: usize = 84;

impl InspectArgs {
    /// Runs the command.
    pub fn run(self, _: &Context) -> Result<()> {
        let loaded = PluginHost::new(Limits::default(), cache_folder())?.load(&self.plugin, BTreeMap::new())?;
        match self.json {
            true => println!("{:#}", document(&*loaded)),
            false => print!("{}", layout(&*loaded)),
        }
        Ok(())
    }
}

/// Everything there is to know, as JSON.
fn document(loaded: &dyn Classifier) -> Value {
    let (description, source, inspection) = (loaded.description(), loaded.source(), loaded.inspect());
    let pin = |name: &String| inspection.encoder.as_ref().filter(|pin| pin.name == *name).map(|pin| pin.digest.clone());
    let encoders = description.encoders.iter().map(|name| json!({ "name": name, "digest": pin(name) }));
    let assets = inspection.assets.iter().map(|asset| json!({ "name": asset.name, "bytes": asset.bytes }));
    json!({
        "plugin": source.name,
        "path": source.path,
        "name": description.name,
        "version": description.version,
        "title": source.title,
        "authors": inspection.authors,
        "licence": inspection.licence,
        "styles": description.styles,
        "media": description.media,
        "encoders": encoders.collect::<Vec<_>>(),
        "interface": source.interface,
        "differentiable": inspection.differentiable,
        "takes": inspection.takes,
        "bytes": inspection.bytes,
        "sha256": source.sha256,
        "assets": assets.collect::<Vec<_>>(),
        "imports": inspection.imports,
        "exports": inspection.exports,
    })
}

/// The same for people.
fn layout(loaded: &dyn Classifier) -> String {
    let (description, source, inspection) = (loaded.description(), loaded.source(), loaded.inspect());
    let encoders = description.encoders.iter().map(|name| match &inspection.encoder {
        Some(pin) if pin.name == *name => format!("{name} (sha256 {})", short(&pin.digest)),
        _ => format!("{name} (any weights)"),
    });
    let assets = inspection.assets.iter().map(|Asset { name, bytes, shape }| match shape {
        Some((rows, columns)) => format!("{name} ({rows} x {columns}, {})", size(*bytes)),
        None => format!("{name} ({})", size(*bytes)),
    });
    let styles = format!("{}: {}", description.styles.len(), description.styles.join(", "));
    let gradient = if inspection.differentiable { "yes" } else { "no" };
    let mut text = format!("{} {}\n", description.name, description.version);
    for (key, value) in [
        ("title", source.title.clone().unwrap_or_default()),
        ("authors", inspection.authors.join(", ")),
        ("licence", inspection.licence.clone()),
        ("classifies", description.media.join(", ")),
        ("styles", styles),
        ("encoders", encoders.collect::<Vec<_>>().join(", ")),
        ("gradient", gradient.to_owned()),
        ("interface", inspection.interface.clone()),
        ("takes", inspection.takes.clone()),
        ("imports", inspection.imports.join(", ")),
        ("exports", inspection.exports.join(", ")),
        ("assets", assets.collect::<Vec<_>>().join(", ")),
        ("file", format!("{} ({})", source.path.display(), size(inspection.bytes))),
        ("sha256", source.sha256.clone()),
    ] {
        if key == "takes" && value.is_empty() {
            continue;
        }
        let value = if value.is_empty() { "none".to_owned() } else { value };
        let mut lines = wrap(&value).into_iter();
        text += &format!("  {key:<11} {}\n", lines.next().unwrap_or_default());
        lines.for_each(|line| text += &format!("  {:<11} {line}\n", ""));
    }
    text
}

/// Lines of at most so many characters, broken after commas.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for part in text.split_inclusive(", ") {
        let line = lines.last_mut().expect("there is always a line");
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

/// Bytes as people say them.
pub(super) fn size(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
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
        assert_eq!([size(900), size(175_773), size(18_000_000)], ["900 bytes", "176 kB", "18.0 MB"]);
    }
}
