//! `host plugin classify`: classifies files with a plugin.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::running::{RunningArgs, warn_of_unfamiliar};
use crate::cli::completions::plugins;
use crate::cli::numbers::within;
use crate::context::Context;
use crate::data::audio::read_wav;
use crate::data::images::{ImageError, ImageLoader, batches, expect_file, find_images};
use crate::plugin::{Batch, Classifier, Sample};
use crate::rl::reward::{ambiguity, entropy};
use crate::text::{sentence, shown, table, to_json};

/// Classify images, texts or recordings with a plugin: the distribution over the styles and the reward of each.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin classify kmeans_image image.png
  host plugin classify ./mine.wasm images/*.jpg --json
  host plugin classify words poem.txt
  host plugin classify melody song.wav
  host plugin classify kmeans_image paintings/ --json     all images below a folder
  curl -s https://example.org/a.jpg | host plugin classify kmeans_image -
  host plugin classify kmeans_large a.png --encoder clip-vit-large-patch14=models/clip-vit-large-patch14")]
pub struct ClassifyArgs {
    /// A plugin: a path or a name
    #[arg(add = plugins())]
    plugin: String,
    /// Images (png, jpg, webp, gif, bmp, tiff), texts (.txt) or recordings (.wav); folders of them, searched with their
    /// subfolders; or `-` for one on the standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    running: RunningArgs,
    /// Number of styles to show for each file, the likeliest first
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = within(0usize..=65_536))]
    top: usize,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Number of files in a batch.
const BATCH: usize = 32;

/// The name of the standard input.
const STDIN: &str = "-";

/// Maximum number of bytes of the standard input.
const MAX_STDIN: u64 = 1 << 30;

/// Length of a full bar in characters.
const BAR: usize = 32;

impl ClassifyArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let (mut plugin, mut encoders) = self.running.open(&self.plugin, context)?;
        let styles = plugin.description().styles.clone();
        let (mut samples, mut fuel, mut milliseconds) = (vec![], None, 0.0);
        let inputs = Inputs::find(&self.files, &plugin.description().media)?;
        let bar = context.progress.bar("classifying", inputs.files.len() as u64, "files");
        let loader = ImageLoader::default();
        for batch in batches(&inputs.files, BATCH) {
            context.interrupt.check("nothing was written")?;
            let (mut files, mut read) = (vec![], vec![]);
            for file in batch {
                match read_sample(file, &*plugin, &loader) {
                    Ok(sample) => {
                        files.push(inputs.shown(file));
                        read.push(sample);
                    }
                    Err(error) if inputs.are_optional.contains(file) => {
                        tracing::warn!("left out: {}", sentence(&error))
                    }
                    Err(error) => return Err(error),
                }
            }
            bar.inc(batch.len() as u64);
            if read.is_empty() {
                continue;
            }
            let classified = match plugin.classify(&mut Batch::new(read), &mut encoders) {
                Ok(classified) => classified,
                Err(error) => match error.sample.and_then(|i| files.get(i)) {
                    Some(file) => return Err(error).context(file.display().to_string()),
                    None => return Err(error.into()),
                },
            };
            fuel = classified.fuel.map(|used| fuel.unwrap_or(0) + used).or(fuel);
            milliseconds += classified.milliseconds;
            samples.extend(files.into_iter().zip(classified.distributions.rows));
        }
        bar.finish();
        warn_of_unfamiliar(&encoders);
        ensure!(!samples.is_empty(), "none of the {} files can be read", inputs.files.len());
        if self.json {
            println!("{}", to_json(&document(&plugin.source().name, &styles, &samples, fuel, milliseconds)));
        } else {
            samples.iter().for_each(|(file, row)| print!("{}", bars(file, &styles, row, self.top)));
        }
        Ok(())
    }
}

/// The files to classify.
struct Inputs {
    files: Vec<PathBuf>,
    /// Those that were found in a folder: where one cannot be read, the others are classified.
    are_optional: BTreeSet<PathBuf>,
    /// What was read from the standard input.
    stdin: Option<NamedTempFile>,
}

impl Inputs {
    /// Finds what was named, for a plugin of these media.
    fn find(named: &[PathBuf], media: &[String]) -> Result<Self> {
        let mut inputs = Self { files: vec![], are_optional: BTreeSet::new(), stdin: None };
        for path in named {
            if path == Path::new(STDIN) {
                ensure!(inputs.stdin.is_none(), "`-`, the standard input, is named twice");
                let file = read_stdin(media)?;
                inputs.files.push(file.path().to_owned());
                inputs.stdin = Some(file);
            } else if path.is_dir() {
                let found = samples_below(path, media)?;
                inputs.files.extend(found.iter().cloned());
                inputs.are_optional.extend(found);
            } else {
                inputs.files.push(path.clone());
            }
        }
        Ok(inputs)
    }

    /// Returns the file as the user named it.
    fn shown(&self, file: &Path) -> PathBuf {
        let is_stdin = self.stdin.as_ref().is_some_and(|stdin| stdin.path() == file);
        if is_stdin { STDIN.into() } else { file.to_owned() }
    }
}

/// Reads the standard input as a file whose extension says what it is: a text if the plugin classifies texts and it is one,
/// a recording likewise, else an image.
fn read_stdin(media: &[String]) -> Result<NamedTempFile> {
    let mut bytes = vec![];
    std::io::stdin().take(MAX_STDIN + 1).read_to_end(&mut bytes).context("reading the standard input")?;
    ensure!(!bytes.is_empty(), "the standard input is empty");
    ensure!(bytes.len() as u64 <= MAX_STDIN, "the standard input has more than {MAX_STDIN} bytes");
    let takes = |wanted: &str| media.iter().any(|medium| medium == wanted);
    let extension = match () {
        () if takes("text") && std::str::from_utf8(&bytes).is_ok() => ".txt",
        () if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WAVE") => ".wav",
        () => ".image",
    };
    let mut file = tempfile::Builder::new().prefix("stdin-").suffix(extension).tempfile()?;
    file.write_all(&bytes).with_context(|| format!("writing {}", file.path().display()))?;
    Ok(file)
}

/// Returns the files of these media below a folder.
fn samples_below(folder: &Path, media: &[String]) -> Result<Vec<PathBuf>> {
    let mut found = vec![];
    for medium in media {
        match &**medium {
            "text" => collect(folder, "txt", &mut found)?,
            "audio" => collect(folder, "wav", &mut found)?,
            _ => match find_images(folder) {
                Ok(images) => found.extend(images),
                Err(ImageError::Empty { .. }) if media.len() > 1 => {}
                Err(error) => return Err(error.into()),
            },
        }
    }
    ensure!(!found.is_empty(), "{} has no files that this plugin classifies ({})", folder.display(), media.join(", "));
    Ok(found)
}

/// Adds the files with an extension below a folder, sorted; hidden ones are left out, and links to folders.
fn collect(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries = fs_err::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs_err::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let has_extension = path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
        match entry.file_type()? {
            _ if entry.file_name().as_encoded_bytes().starts_with(b".") => {}
            kind if kind.is_dir() => collect(&path, extension, found)?,
            _ if has_extension => found.push(path),
            _ => {}
        }
    }
    Ok(())
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
    samples: &[(PathBuf, Vec<f64>)],
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
