//! `host plugin classify`: what a plugin says of some pictures.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::data::images::{find_images, read_image};
use crate::plugin::{Batch, Classified, Limits, PluginHost, Sample, cache_folder};
use crate::reward::{ambiguity, entropy};

/// Styles shown of each picture.
const SHOWN: usize = 5;
/// Characters of a bar that is full.
const BAR: f64 = 30.0;

/// Classify pictures: the distribution over styles, and the reward that training would give.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  host plugin classify kmeans_image a.png b.png\n  host plugin classify mine.wasm pictures/ --json")]
pub(super) struct ClassifyArgs {
    /// A plugin, by path or name
    #[arg(value_name = "P")]
    plugin: String,
    /// Pictures, or folders of them
    #[arg(value_name = "FILES", required = true)]
    files: Vec<PathBuf>,
    /// The folder of an encoder that the plugin asks for by name; may be repeated
    #[arg(long = "encoder", value_name = "NAME=DIR")]
    encoders: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl ClassifyArgs {
    pub(super) fn run(self) -> Result<()> {
        let mut files = Vec::new();
        for file in &self.files {
            if file.is_dir() { files.extend(find_images(file)?) } else { files.push(file.clone()) }
        }
        let mut samples = Vec::with_capacity(files.len());
        for file in &files {
            samples.push(Sample { image: Some(Arc::new(read_image(file)?)), ..Sample::default() });
        }
        let mut encoders = super::encoders(&self.encoders)?;
        let mut plugin = PluginHost::new(Limits::default(), cache_folder())?.load(&self.plugin, BTreeMap::new())?;
        let classified = plugin.classify(&mut Batch::new(samples), &mut encoders)?;
        let styles = &plugin.description().styles;
        let rows = files.iter().zip(&classified.distributions.rows);
        if self.json {
            let samples = rows.map(|(file, row)| {
                json!({"file": file, "distribution": row, "reward": ambiguity(row), "entropy": entropy(row)})
            });
            let Classified { fuel, milliseconds, .. } = &classified;
            let document = json!({
                "plugin": plugin.description().name, "styles": styles, "samples": samples.collect::<Vec<_>>(),
                "fuel": fuel, "milliseconds": milliseconds,
            });
            println!("{}", serde_json::to_string_pretty(&document)?);
            return Ok(());
        }
        let n = styles.len() as f64;
        for (file, row) in rows {
            let (reward, entropy) = (ambiguity(row), entropy(row));
            println!("{}   reward {reward:.4} (highest {:.4})   entropy {entropy:.3} of {:.3}", file.display(), -n.ln(), n.ln());
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let longest = order.iter().take(SHOWN).map(|&i| styles[i].chars().count()).max().unwrap_or(0);
            for &i in order.iter().take(SHOWN) {
                let bar = "█".repeat((row[i] * BAR).round() as usize);
                println!("  {:longest$}  {:5.1} %  {bar}", styles[i], 100.0 * row[i]);
            }
        }
        Ok(())
    }
}
