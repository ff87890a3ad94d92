//! `host plugin inspect`: what a plugin's file is, without running more of it than its own description.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::Context;
use crate::plugin::{Artifact, Classifier, Limits, PluginHost, cache_folder, resolve};

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
        let limits = Limits::default();
        let loaded = PluginHost::new(limits, cache_folder())?.load(&self.plugin, BTreeMap::new())?;
        let path = resolve::resolve(&self.plugin)?;
        let artifact = Artifact::read(&path, &limits)?;
        match self.json {
            true => println!("{:#}", document(&*loaded, &artifact)),
            false => print!("{}", layout(&*loaded, &artifact)),
        }
        Ok(())
    }
}

/// Everything there is to know, as JSON.
fn document(loaded: &dyn Classifier, artifact: &Artifact) -> Value {
    let (description, source) = (loaded.description(), loaded.source());
    let manifest = artifact.manifest.clone().unwrap_or_default();
    let pinned = manifest.encoder.as_ref().filter(|pin| !pin.digest.is_empty());
    let pin = |name: &String| pinned.filter(|pin| pin.name == *name).map(|pin| pin.digest.clone());
    let encoders = description.encoders.iter().map(|name| json!({ "name": name, "digest": pin(name) }));
    json!({
        "plugin": source.name,
        "path": source.path,
        "name": description.name,
        "version": description.version,
        "title": source.title,
        "authors": manifest.authors,
        "licence": manifest.licence,
        "styles": description.styles,
        "prompts": manifest.prompts,
        "temperature": manifest.temperature,
        "media": description.media,
        "encoders": encoders.collect::<Vec<_>>(),
        "interface": source.interface,
        "differentiable": artifact.is_differentiable(),
        "bytes": artifact.bytes().len(),
        "sha256": source.sha256,
        "assets": artifact.assets().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect::<Vec<_>>(),
        "imports": artifact.imports,
        "exports": artifact.exports,
    })
}

/// The same for people.
fn layout(loaded: &dyn Classifier, artifact: &Artifact) -> String {
    let (description, source) = (loaded.description(), loaded.source());
    let manifest = artifact.manifest.clone().unwrap_or_default();
    let encoders = description.encoders.iter().map(|name| match &manifest.encoder {
        Some(pin) if pin.name == *name && !pin.digest.is_empty() => format!("{name} (sha256 {})", short(&pin.digest)),
        _ => format!("{name} (any weights)"),
    });
    let assets = artifact.assets().map(|(name, bytes)| match artifact.tensor(name) {
        Ok(tensor) => format!("{name} ({} x {}, {})", tensor.nrows(), tensor.ncols(), size(bytes)),
        Err(_) => format!("{name} ({})", size(bytes)),
    });
    let styles = format!("{}: {}", description.styles.len(), description.styles.join(", "));
    let prompts = manifest.styles.iter().zip(&manifest.prompts);
    let prompts: Vec<_> = prompts.map(|(style, prompts)| format!("{style}: \"{}\"", prompts.join("\", \""))).collect();
    let temperature = match (manifest.temperature, &manifest.encoder) {
        (Some(temperature), _) => Some(temperature.to_string()),
        (None, Some(_)) => Some("the encoder's own".to_owned()),
        (None, None) => None,
    };
    let gradient = if artifact.is_differentiable() { "yes" } else { "no" };
    let one = |value: String| vec![if value.is_empty() { "none".to_owned() } else { value }];
    let mut text = format!("{} {}\n", description.name, description.version);
    for (key, values) in [
        ("title", one(source.title.clone().unwrap_or_default())),
        ("authors", one(manifest.authors.join(", "))),
        ("licence", one(manifest.licence.clone())),
        ("classifies", one(description.media.join(", "))),
        ("styles", one(styles)),
        ("prompts", prompts),
        ("encoders", one(encoders.collect::<Vec<_>>().join(", "))),
        ("temperature", temperature.into_iter().collect()),
        ("gradient", one(gradient.to_owned())),
        ("interface", one(format!("ambiguity:plugin {}", source.interface))),
        ("imports", one(artifact.imports.join(", "))),
        ("exports", one(artifact.exports.join(", "))),
        ("assets", one(assets.collect::<Vec<_>>().join(", "))),
        ("file", one(format!("{} ({})", source.path.display(), size(artifact.bytes().len())))),
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
