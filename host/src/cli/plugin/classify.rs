//! `host plugin classify`: classifies files with a plugin.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::inputs::{Inputs, Prompts, run_on_files};
use super::running::RunningArgs;
use crate::cli::completions::plugins;
use crate::cli::numbers::within;
use crate::context::Context;
use crate::plugin::distributions::probabilities;
use crate::plugin::{Fault, PluginError, Values};
use crate::rl::reward::{ambiguity, entropy};
use crate::text::{shown, table, to_json};

/// Classify images, texts, recordings, videos or arrays with a plugin: the distribution over the styles and the reward of each.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin classify kmeans_image image.png
  host plugin classify ./mine.wasm images/*.jpg --json
  host plugin classify words poem.txt
  host plugin classify melody song.wav
  host plugin classify motion clip.webp
  host plugin classify kmeans_image paintings/ --json     all images below a folder
  curl -s https://example.org/a.jpg | host plugin classify kmeans_image -
  host plugin classify kmeans_large a.png --encoder clip-vit-large-patch14=models/clip-vit-large-patch14")]
pub struct ClassifyArgs {
    /// A plugin: a path or a name
    #[arg(add = plugins())]
    plugin: String,
    /// Images (png, jpg, webp, gif, bmp, tiff), texts (.txt), recordings (.wav), videos (animated gif, webp or png) or arrays
    /// (.safetensors with one tensor); folders of them, searched with their subfolders; or `-` for one on the standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The prompt of all files [default: that of captions.jsonl in a file's folder, else none]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    #[command(flatten)]
    running: RunningArgs,
    /// Number of styles to show for each file, the likeliest first
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = within(0usize..=65_536))]
    top: usize,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Length of a full bar in characters.
const BAR: usize = 32;

impl ClassifyArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let (mut plugin, mut encoders) = self.running.open(&self.plugin, context)?;
        let styles = plugin.description().styles().to_vec();
        if plugin.description().scale().is_some() {
            return Err(PluginError::new(&plugin.source().name, Fault::NoStyles).into());
        }
        let inputs = Inputs::find(&self.files, &plugin.description().media)?;
        let mut prompts = Prompts::new(self.prompt);
        let (mut samples, mut fuel, mut milliseconds) = (vec![], None, 0.0);
        run_on_files(&inputs, &mut prompts, &mut *plugin, &mut encoders, context, |files, output| {
            fuel = output.fuel.map(|used| fuel.unwrap_or(0) + used).or(fuel);
            milliseconds += output.milliseconds;
            if let Values::Distributions(distributions) = output.values {
                samples.extend(files.into_iter().zip(distributions.rows));
            }
        })?;
        if self.json {
            println!("{}", to_json(&document(&plugin.source().name, &styles, &samples, fuel, milliseconds)));
        } else {
            samples.iter().for_each(|(file, row)| print!("{}", bars(file, &styles, row, self.top)));
        }
        Ok(())
    }
}

fn document(
    plugin: &str,
    styles: &[String],
    samples: &[(PathBuf, Vec<f64>)],
    fuel: Option<u64>,
    milliseconds: f64,
) -> Value {
    let samples = samples.iter().map(|(file, row)| {
        json!({
            "file": file.to_string_lossy(), "distribution": probabilities(row), "log_distribution": row,
            "reward": ambiguity(row), "entropy": entropy(row),
        })
    });
    json!({
        "plugin": plugin,
        "styles": styles,
        "samples": samples.collect::<Vec<_>>(),
        "fuel": fuel,
        "milliseconds": milliseconds,
    })
}

/// Returns one file's likeliest styles, with bars relative to the likeliest one; in nearly flat distributions (k-means)
/// the percentages still show the differences.
fn bars(file: &Path, styles: &[String], log_row: &[f64], top: usize) -> String {
    let row = probabilities(log_row);
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    let (likeliest, others) = order.split_at(top.min(order.len()));
    let percent = |p: f64| format!("{:>8.4} %", p * 100.0);
    let bar = |&i: &usize| {
        let length = (row[i] / row[order[0]] * BAR as f64).round() as usize;
        vec![styles[i].clone(), percent(row[i]), "█".repeat(length)]
    };
    let mut rows: Vec<_> = likeliest.iter().map(bar).collect();
    if !others.is_empty() {
        let name = if others.len() == 1 { "1 other".to_owned() } else { format!("{} others", others.len()) };
        rows.push(vec![name, percent(others.iter().map(|&i| row[i]).sum()), String::new()]);
    }
    format!(
        "{}\n  reward {:.5} (at most {:.5}), entropy {:.5}\n{}",
        shown(file),
        ambiguity(log_row),
        -(row.len() as f64).ln(),
        entropy(log_row),
        table(&[true, false, true], &rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_styles_have_the_longest_bars() {
        let styles = ["baroque", "cubism", "pop-art"].map(String::from);
        insta::assert_snapshot!(bars(Path::new("a.png"), &styles, &[0.2f64, 0.5, 0.3].map(f64::ln), 2), @r"
        a.png
          reward -1.16885 (at most -1.09861), entropy 1.02965
          cubism    50.0000 %  ████████████████████████████████
          pop-art   30.0000 %  ███████████████████
          1 other   20.0000 %
        ");
    }
}
