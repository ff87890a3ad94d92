//! What a card says, collected from a loaded plugin.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use image::RgbImage;
use image::imageops::{FilterType, resize};
use serde::Serialize;
use serde_json::Value;

use crate::cli::plugin::check::{Answer, Row, answer, probe};
use crate::cli::plugin::inputs::{Inputs, Prompts, fixtures, read_sample};
use crate::cli::plugin::probes::Kind;
use crate::cli::plugin::running::narrow;
use crate::context::Context;
use crate::data::images::ImageLoader;
use crate::encoders::Encoders;
use crate::plugin::distributions::probabilities;
use crate::plugin::store::named_folder;
use crate::plugin::{Bounds, OptionInfo, Plugin, Sample};
use crate::rl::reward::entropy;
use crate::text::{counted, sentence};

/// Maximum number of samples of a card; of more, evenly spaced ones are taken.
const MAX_SAMPLES: usize = 60;

/// Maximum side of an image on the page, in pixels.
pub(super) const SIDE: u32 = 128;

/// Maximum number of characters of a text that are shown.
const EXCERPT: usize = 240;

/// What a card is to be collected from, besides the loaded plugin.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cli::plugin) struct Given<'a> {
    /// What the user called the plugin: if it is a folder with fixtures, they are among the samples.
    pub(in crate::cli::plugin) reference: &'a str,
    /// Files and folders of further samples.
    pub(in crate::cli::plugin) samples: &'a [PathBuf],
    /// The options that the plugin was loaded with.
    pub(in crate::cli::plugin) config: &'a [(String, String)],
    /// Who signed the file, if it is signed.
    pub(in crate::cli::plugin) signer: Option<&'a str>,
}

/// All that is said of a plugin. The same file, encoders and samples make the same card: it contains no times.
#[derive(Debug, Serialize)]
pub(in crate::cli::plugin) struct Card {
    /// The plugin's file without extension, as commands name it.
    pub(super) plugin: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) title: Option<String>,
    pub(super) authors: Vec<String>,
    pub(super) license: String,
    pub(super) kind: &'static str,
    /// A classifier's styles; none of a scorer.
    pub(super) styles: Vec<String>,
    /// The prompts of each style; empty if it has none.
    pub(super) prompts: Vec<Vec<String>>,
    /// What the numbers of a scorer mean.
    pub(super) scale: Option<Scale>,
    /// The least and the largest possible reward of a sample, where there are such.
    pub(super) reward_range: [Option<f64>; 2],
    pub(super) media: Vec<&'static str>,
    pub(super) encoders: Vec<Encoder>,
    pub(super) options: Vec<OptionOfPlugin>,
    /// The options that the numbers of this card were computed with; others have their defaults.
    pub(super) config: BTreeMap<String, String>,
    pub(super) properties: BTreeMap<String, String>,
    pub(super) differentiable: bool,
    pub(super) pixel_differentiable: bool,
    /// What it imports, in words.
    pub(super) needs: Vec<String>,
    pub(super) imports: Vec<String>,
    pub(super) limits: Bounds,
    pub(super) file: File,
    pub(super) signer: Option<String>,
    /// The least and the most fuel of a sample of this card, where it is counted.
    pub(super) fuel_per_sample: Option<[u64; 2]>,
    /// Peak memory of a call on one sample in bytes, where it is counted.
    pub(super) peak_memory: Option<usize>,
    /// What to know of the numbers, one sentence each.
    pub(super) notes: Vec<String>,
    /// The warnings of the audit, one sentence each.
    pub(super) warnings: Vec<String>,
    /// What it predicts of the probes of the audit.
    pub(super) probes: Vec<Entry>,
    /// What it predicts of fixtures and of the files that the user named.
    pub(super) samples: Vec<Entry>,
    /// Number of samples that were found, of which all or some are shown.
    pub(super) n_samples: usize,
}

/// What the numbers of a scorer mean.
#[derive(Debug, Serialize)]
pub(super) struct Scale {
    pub(super) higher_is_better: bool,
    pub(super) minimum: Option<f64>,
    pub(super) maximum: Option<f64>,
}

/// An encoder that the plugin asks for.
#[derive(Debug, Serialize)]
pub(super) struct Encoder {
    pub(super) name: String,
    /// The digest of the weights that the plugin requires, if it requires some.
    pub(super) required: Option<String>,
    /// The name of the encoder that the numbers of this card were computed with.
    pub(super) used: String,
    /// The digest of that one's weights.
    pub(super) used_digest: String,
}

/// An option that a run may set.
#[derive(Debug, Serialize)]
pub(super) struct OptionOfPlugin {
    pub(super) key: String,
    #[serde(rename = "type")]
    pub(super) value_type: &'static str,
    pub(super) default: Option<String>,
    pub(super) help: String,
}

/// The plugin's file.
#[derive(Debug, Serialize)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) bytes: usize,
    pub(super) sha256: String,
    pub(super) interface: String,
    /// The data in it besides code, by name, with its size in bytes.
    pub(super) assets: Vec<(String, usize)>,
}

/// What the plugin predicts of one sample.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Of a probe: whether it is one that should not be rewarded.
    pub(super) worthless: Option<bool>,
    /// Its prompt; empty if it has none.
    pub(super) prompt: String,
    /// The beginning of a text.
    pub(super) text: Option<String>,
    /// The size of what is no text.
    pub(super) size: Option<String>,
    /// The plugin's error, if it refused the sample.
    pub(super) refused: Option<String>,
    /// The probability of each style.
    pub(super) distribution: Option<Vec<f64>>,
    /// The entropy of the distribution as a share of ln N.
    pub(super) entropy_share: Option<f64>,
    pub(super) reward: Option<f64>,
    /// The distance of the reward below a classifier's largest one.
    pub(super) gap: Option<f64>,
    pub(super) fuel: Option<u64>,
    #[serde(skip)]
    pub(super) memory: Option<usize>,
    /// The image, or a video's first frame, of at most [`SIDE`] pixels.
    #[serde(skip)]
    pub(super) image: Option<RgbImage>,
}

/// Collects what a card says: runs the plugin on its samples, each alone, and on the probes of `host plugin check`.
pub(in crate::cli::plugin) fn collect(
    plugin: &mut dyn Plugin,
    encoders: &mut Encoders,
    given: Given,
    context: &Context,
) -> Result<Card> {
    let (samples, n_samples) = samples(plugin, encoders, &given, context)?;
    // What was embedded until now is the user's own.
    let mut notes = encoders.unfamiliar();
    let report = probe(plugin, encoders, context)?;
    notes.extend(narrow(plugin, encoders)?);
    let probe = |row: &Row| {
        let entry = Entry::new(row.probe.name.clone(), &row.probe.sample, row.answer.clone());
        Entry { worthless: Some(row.probe.kind == Kind::Worthless), ..entry }
    };
    let probes: Vec<Entry> = report.rows.iter().map(probe).collect();
    let (description, source, inspection) = (plugin.description(), plugin.source(), plugin.inspect());
    let option = |OptionInfo { key, value_type, default, help }: &OptionInfo| OptionOfPlugin {
        key: key.clone(),
        value_type: value_type.name(),
        default: default.clone(),
        help: help.clone(),
    };
    let scale = description.scale();
    let all = || probes.iter().chain(&samples);
    let fuel = || all().filter_map(|entry| entry.fuel);
    Ok(Card {
        plugin: source.name.clone(),
        name: description.name.clone(),
        version: description.version.clone(),
        title: source.title.clone(),
        authors: inspection.authors,
        license: inspection.license,
        kind: if scale.is_some() { "scorer" } else { "classifier" },
        styles: description.styles().to_vec(),
        prompts: inspection.prompts,
        scale: scale.map(|scale| Scale {
            higher_is_better: scale.higher_is_better,
            minimum: scale.minimum,
            maximum: scale.maximum,
        }),
        reward_range: description.reward_range(),
        media: description.media.iter().map(|medium| medium.name()).collect(),
        encoders: encoders_of(plugin, encoders)?,
        options: description.options.iter().map(option).collect(),
        config: given.config.iter().cloned().collect(),
        properties: description.properties.iter().cloned().collect(),
        differentiable: inspection.differentiable,
        pixel_differentiable: inspection.pixel_differentiable,
        needs: inspection.needs,
        imports: inspection.imports,
        limits: plugin.bounds(),
        file: File {
            name: source.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            bytes: inspection.bytes,
            sha256: source.sha256.clone(),
            interface: inspection.interface,
            assets: inspection.assets.into_iter().map(|asset| (asset.name, asset.bytes)).collect(),
        },
        signer: given.signer.map(str::to_owned),
        fuel_per_sample: fuel().min().zip(fuel().max()).map(|(least, most)| [least, most]),
        peak_memory: all().filter_map(|entry| entry.memory).max(),
        notes,
        warnings: report.warnings,
        probes,
        samples,
        n_samples,
    })
}

impl Card {
    /// Returns the card as JSON, without its images.
    pub(in crate::cli::plugin) fn document(&self) -> Result<Value> {
        Ok(serde_json::to_value(self)?)
    }
}

impl Entry {
    fn new(name: String, sample: &Sample, answer: Result<Answer, String>) -> Self {
        let (answer, refused) = match answer {
            Ok(answer) => (Some(answer), None),
            Err(message) => (None, Some(message)),
        };
        let row = answer.as_ref().and_then(|answer| answer.log_distribution.as_deref());
        // For a one-hot distribution the entropy may be a negative zero.
        let share = |row: &[f64]| entropy(row).abs() / (row.len() as f64).ln();
        Self {
            name,
            worthless: None,
            prompt: sample.prompt.clone(),
            text: sample.text.as_deref().map(excerpt),
            size: size_of(sample),
            refused,
            distribution: row.map(probabilities),
            entropy_share: row.map(share),
            reward: answer.as_ref().map(|answer| answer.reward),
            gap: row.and(answer.as_ref()).map(|answer| answer.gap().max(0.0)),
            fuel: answer.as_ref().and_then(|answer| answer.fuel),
            memory: answer.as_ref().and_then(|answer| answer.memory),
            image: image_of(sample).map(|image| small(image, SIDE)),
        }
    }
}

/// Runs the plugin on the fixtures of a folder and on what the user named; returns the number of all files as well.
fn samples(
    plugin: &mut dyn Plugin,
    encoders: &mut Encoders,
    given: &Given,
    context: &Context,
) -> Result<(Vec<Entry>, usize)> {
    let folder = named_folder(given.reference).filter(|folder| folder.join("fixtures").is_dir());
    let mut files = folder.map(fixtures).transpose()?.unwrap_or_default();
    let inputs = Inputs::find(given.samples, &plugin.description().media)?;
    files.extend(inputs.files.iter().cloned());
    let chosen = evenly(&files, MAX_SAMPLES);
    let above = common_folder(&chosen);
    let bar = context.progress.bar("running the plugin", chosen.len() as u64, "samples");
    let (mut entries, loader, mut prompts) = (vec![], ImageLoader::default(), Prompts::new(None));
    for file in &chosen {
        context.interrupt.check("nothing was written")?;
        match read_sample(file, plugin.description(), &loader) {
            Ok(sample) => {
                let sample = Sample { prompt: prompts.of(file)?, ..sample };
                // Each is a batch of its own, so that its fuel is its own too.
                let answer = answer(&file.display().to_string(), &sample, plugin, encoders)?;
                let shown = inputs.shown(file);
                let name = shown.strip_prefix(&above).unwrap_or(&shown).to_string_lossy().into_owned();
                entries.push(Entry::new(name, &sample, answer));
            }
            Err(error) if inputs.is_optional(file) => tracing::warn!("left out: {}", sentence(&error)),
            Err(error) => return Err(error),
        }
        bar.inc(1);
    }
    bar.finish();
    Ok((entries, files.len()))
}

/// Returns the encoders that a plugin asks for, with what stands for each here.
fn encoders_of(plugin: &dyn Plugin, encoders: &mut Encoders) -> Result<Vec<Encoder>> {
    let pinned = plugin.inspect().encoder.filter(|pin| !pin.digest.is_empty());
    let mut found = vec![];
    for name in &plugin.description().encoders {
        found.push(Encoder {
            name: name.clone(),
            required: pinned.as_ref().filter(|pin| pin.name == *name).map(|pin| pin.digest.clone()),
            used: encoders.resolve(name)?,
            used_digest: encoders.get(name)?.info().digest,
        });
    }
    Ok(found)
}

/// Returns at most `most` files: all, or evenly spaced ones.
fn evenly(files: &[PathBuf], most: usize) -> Vec<PathBuf> {
    let n = files.len().min(most);
    (0..n).map(|i| files[i * files.len() / n].clone()).collect()
}

/// Returns the innermost folder that contains all files, which a card does not name.
fn common_folder(files: &[PathBuf]) -> PathBuf {
    let mut folders = files.iter().map(|file| file.parent().unwrap_or(Path::new("")));
    let Some(first) = folders.next() else { return PathBuf::new() };
    let shared = |above: &Path, folder: &Path| {
        let parts = above.components().zip(folder.components());
        parts.take_while(|(a, b)| a == b).map(|(part, _)| part).collect::<PathBuf>()
    };
    folders.fold(first.to_owned(), |above, folder| shared(&above, folder))
}

fn image_of(sample: &Sample) -> Option<&RgbImage> {
    let frame = || sample.video.as_ref().and_then(|video| video.frames.first());
    sample.image.as_deref().or_else(frame)
}

/// Returns an image in a size of at most `side` x `side`; one that is smaller stays as it is.
pub(super) fn small(image: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let longest = width.max(height);
    if longest <= side {
        return image.clone();
    }
    let scaled = |length: u32| (u64::from(length) * u64::from(side) / u64::from(longest)).max(1) as u32;
    resize(image, scaled(width), scaled(height), FilterType::Triangle)
}

/// Returns the size of a sample that is no text, in words.
fn size_of(sample: &Sample) -> Option<String> {
    let pixels = |image: &RgbImage| format!("{} × {}", image.width(), image.height());
    if let Some(image) = &sample.image {
        return Some(pixels(image));
    }
    if let Some(video) = &sample.video {
        let frame = video.frames.first().map(|frame| format!(" of {}", pixels(frame))).unwrap_or_default();
        return Some(format!("{}{frame}", counted(video.frames.len() as u64, "frame")));
    }
    if let Some(audio) = &sample.audio {
        let frames = audio.pcm.len() as f64 / f64::from(audio.channels.max(1));
        return Some(format!("{:.2} s at {} Hz", frames / f64::from(audio.sample_rate.max(1)), audio.sample_rate));
    }
    let array = sample.array.as_ref()?;
    Some(array.shape.iter().map(u32::to_string).collect::<Vec<_>>().join(" × "))
}

/// Returns the beginning of a text.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_names_no_folder_that_all_samples_are_in() {
        let folder = |files: &[&str]| common_folder(&files.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(folder(&["/home/me/art/a/1.png", "/home/me/art/b/1.png"]), Path::new("/home/me/art"));
        assert_eq!(folder(&["art/a.png"]), Path::new("art"));
        assert_eq!(folder(&["a.png", "art/a.png"]), Path::new(""));
        assert_eq!(folder(&[]), Path::new(""));
    }

    #[test]
    fn many_samples_are_evenly_spaced() {
        let files: Vec<PathBuf> = (0..10).map(|i| PathBuf::from(i.to_string())).collect();
        assert_eq!(evenly(&files, 5), ["0", "2", "4", "6", "8"].map(PathBuf::from));
        assert_eq!(evenly(&files, 20), files);
        assert_eq!(evenly(&[], 20), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn images_are_small_and_keep_their_shape() {
        assert_eq!(small(&RgbImage::new(1000, 10), 100).dimensions(), (100, 1));
        assert_eq!(small(&RgbImage::new(9, 90_000), 100).dimensions(), (1, 100));
        assert_eq!(small(&RgbImage::new(64, 64), 100).dimensions(), (64, 64));
    }
}
