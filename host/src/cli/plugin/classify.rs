//! `host plugin classify`: classifies files with a plugin.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::running::{RunningArgs, table};
use crate::context::Context;
use crate::data::audio::read_wav;
use crate::data::images::{ImageLoader, batches, expect_file};
use crate::plugin::{Batch, Classifier, Sample};
use crate::rl::reward::{ambiguity, entropy};
use crate::text::{shown, to_json};

/// Classify images, texts or recordings with a plugin: the distribution over the styles and the reward of each.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin classify kmeans_image image.png
  host plugin classify ./mine.wasm images/*.jpg --json
  host plugin classify words poem.txt
  host plugin classify melody song.wav
  host plugin classify kmeans_large a.png --encoder clip-vit-large-patch14=models/clip-vit-large-patch14")]
pub struct ClassifyArgs {
    /// A plugin: a path or a name
    plugin: String,
    /// Images (png, jpg, webp, gif, bmp, tiff), texts (.txt) or recordings (.wav)
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    running: RunningArgs,
    /// Number of styles to show for each file, the likeliest first
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Number of files in a batch.
const BATCH: usize = 32;

/// Length of a full bar in characters.
const BAR: usize = 32;

impl ClassifyArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let (mut plugin, mut encoders) = self.running.open(&self.plugin, context)?;
        let styles = plugin.description().styles.clone();
        let (mut samples, mut fuel, mut milliseconds) = (vec![], None, 0.0);
        let bar = context.progress.bar("classifying", self.files.len() as u64, "files");
        let loader = ImageLoader::default();
        for files in batches(&self.files, BATCH) {
            context.interrupt.check("nothing was written")?;
            let read = files.iter().map(|file| read_sample(file, &*plugin, &loader)).collect::<Result<Vec<_>>>()?;
            let classified = match plugin.classify(&mut Batch::new(read), &mut encoders) {
                Ok(classified) => classified,
                Err(error) => match error.sample.and_then(|i| files.get(i)) {
                    Some(file) => return Err(error).context(file.display().to_string()),
                    None => return Err(error.into()),
                },
            };
            fuel = classified.fuel.map(|used| fuel.unwrap_or(0) + used).or(fuel);
            milliseconds += classified.milliseconds;
            samples.extend(files.iter().zip(classified.distributions.rows));
            bar.inc(files.len() as u64);
        }
        bar.finish();
        if self.json {
            println!("{}", to_json(&document(&plugin.source().name, &styles, &samples, fuel, milliseconds)));
        } else {
            samples.iter().for_each(|(file, row)| print!("{}", bars(file, &styles, row, self.top)));
        }
        Ok(())
    }
}

/// Reads a file as a sample, if the plugin classifies its medium: .txt is a text, .wav a recording, all others images.
pub(super) fn read_sample(file: &Path, plugin: &dyn Classifier, loader: &ImageLoader) -> Result<Sample> {
    let is = |wanted: &str| file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted));
    let (medium, noun) = match () {
        () if is("txt") => ("text", "text"),
        () if is("wav") => ("audio", "recording"),
        () => ("image", "image"),
    };
    let media = &plugin.description().media;
    if !media.iter().any(|known| known == medium) {
        let (file, plugin, media) = (file.display(), &plugin.source().name, media.join(", "));
        bail!("{file} is a {noun}, but plugin `{plugin}` classifies {media}");
    }
    expect_file(file)?;
    let mut sample = Sample::default();
    match medium {
        "text" => {
            let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            sample.text = Some(text.trim_end().to_owned());
        }
        "audio" => sample.audio = Some(Arc::new(read_wav(file)?)),
        _ => sample.image = Some(Arc::new(loader.read(file)?)),
    }
    if let Some(name) = file.file_name() {
        sample.metadata.insert("title".to_owned(), name.to_string_lossy().into_owned());
    }
    Ok(sample)
}

fn document(
    plugin: &str,
    styles: &[String],
    samples: &[(&PathBuf, Vec<f64>)],
    fuel: Option<u64>,
    milliseconds: f64,
) -> Value {
    let samples = samples.iter().map(
        |(file, row)| json!({ "file": file.to_string_lossy(), "distribution": row, "reward": ambiguity(row), "entropy": entropy(row) }),
    );
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
fn bars(file: &Path, styles: &[String], row: &[f64], top: usize) -> String {
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
        ambiguity(row),
        -(row.len() as f64).ln(),
        entropy(row),
        table(&[true, false, true], &rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_styles_have_the_longest_bars() {
        let styles = ["baroque", "cubism", "pop-art"].map(String::from);
        insta::assert_snapshot!(bars(Path::new("a.png"), &styles, &[0.2, 0.5, 0.3], 2), @r"
        a.png
          reward -1.16885 (at most -1.09861), entropy 1.02965
          cubism    50.0000 %  ████████████████████████████████
          pop-art   30.0000 %  ███████████████████
          1 other   20.0000 %
        ");
    }
}
