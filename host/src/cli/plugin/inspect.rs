//! `host plugin inspect`: what a plugin's file is and says of itself.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::plugin::resolve::resolve;
use crate::plugin::{Artifact, Limits, PluginError, PluginHost, cache_folder};

/// Show what a plugin is: title, authors, styles, encoders, interface, imports, assets, digest.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  host plugin inspect kmeans_image\n  host plugin inspect mine.wasm --json")]
pub(super) struct InspectArgs {
    /// A plugin, by path or name
    #[arg(value_name = "P")]
    plugin: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl InspectArgs {
    pub(super) fn run(self) -> Result<()> {
        let limits = Limits::default();
        let path = resolve(&self.plugin)?;
        let artifact = Artifact::read(&path, &limits).map_err(|fault| PluginError::new(&self.plugin, fault))?;
        let plugin = PluginHost::new(limits, cache_folder())?.load(&self.plugin, BTreeMap::new())?;
        let description = plugin.description();
        let manifest = artifact.manifest.clone().unwrap_or_default();
        let size = artifact.bytes().len();
        if self.json {
            let assets = artifact.assets().map(|(name, bytes)| json!({"name": name, "bytes": bytes}));
            let document = json!({
                "file": path, "name": description.name, "version": description.version, "title": manifest.title,
                "authors": manifest.authors, "licence": manifest.licence, "styles": description.styles,
                "media": description.media, "encoders": description.encoders, "encoder_digest": manifest.encoder.map(|e| e.digest),
                "interface": artifact.interface, "differentiable": artifact.is_differentiable(),
                "imports": artifact.imports, "exports": artifact.exports, "assets": assets.collect::<Vec<_>>(),
                "bytes": size, "sha256": artifact.sha256,
            });
            println!("{}", serde_json::to_string_pretty(&document)?);
            return Ok(());
        }
        let line = |key: &str, value: String| {
            if !value.is_empty() {
                println!("{key:<11}{value}");
            }
        };
        line("plugin", format!("{} {}", description.name, description.version));
        line("title", manifest.title);
        line("authors", manifest.authors.join(", "));
        line("licence", manifest.licence);
        line("file", path.display().to_string());
        line("size", format!("{size} bytes"));
        line("sha256", artifact.sha256.clone());
        let gradient = if artifact.is_differentiable() { ", with gradient" } else { "" };
        line("interface", format!("ambiguity:plugin@{}{gradient}", artifact.interface));
        line("media", description.media.join(", "));
        line("encoders", description.encoders.join(", "));
        if let Some(encoder) = manifest.encoder {
            line("", format!("{} has digest {}", encoder.name, encoder.digest));
        }
        if let Some(k) = manifest.k {
            let normalize = if manifest.normalize { "normalised" } else { "raw" };
            line("k-means", format!("{k} centres of {normalize} embeddings, temperature {}", manifest.temperature));
        }
        line("styles", description.styles.len().to_string());
        for styles in description.styles.chunks(4) {
            line(" ", styles.join(", "));
        }
        line("imports", artifact.imports.join(", "));
        line("exports", artifact.exports.join(", "));
        line("assets", artifact.assets().map(|(name, n)| format!("{name} ({n} bytes)")).collect::<Vec<_>>().join(", "));
        Ok(())
    }
}
