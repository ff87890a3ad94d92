//! The files that `classify`, `score` and `test` run a plugin on.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::NamedTempFile;

use super::running::warn_of_unfamiliar;
use crate::context::Context;
use crate::data::array::read_array;
use crate::data::audio::read_wav;
use crate::data::images::{ImageError, ImageLoader, batches, expect_file, find_images, has_image_extension};
use crate::data::video::read_video;
use crate::encoders::Encoders;
use crate::plugin::{Batch, Description, Medium, Output, Plugin, Sample};
use crate::text::sentence;

/// Number of files in a batch.
const BATCH: usize = 32;

/// The name of the standard input.
const STDIN: &str = "-";

/// Maximum number of bytes of the standard input.
const MAX_STDIN: u64 = 1 << 30;

/// The extensions of videos.
const VIDEOS: [&str; 3] = ["gif", "webp", "png"];

/// The files that a plugin runs on.
pub(super) struct Inputs {
    pub(super) files: Vec<PathBuf>,
    /// Those that were found in a folder: where one cannot be read, the others are used.
    are_optional: BTreeSet<PathBuf>,
    /// What was read from the standard input.
    stdin: Option<NamedTempFile>,
}

impl Inputs {
    /// Finds what was named, for a plugin of these media.
    pub(super) fn find(named: &[PathBuf], media: &[Medium]) -> Result<Self> {
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

    /// Returns whether a file was found in a folder, so that the others are used where it cannot be read.
    pub(super) fn is_optional(&self, file: &Path) -> bool {
        self.are_optional.contains(file)
    }

    /// Returns the file as the user named it.
    pub(super) fn shown(&self, file: &Path) -> PathBuf {
        let is_stdin = self.stdin.as_ref().is_some_and(|stdin| stdin.path() == file);
        if is_stdin { STDIN.into() } else { file.to_owned() }
    }
}

/// Reads the standard input as a file whose extension says what it is: a text if the plugin takes texts and it is one, an
/// array if it takes arrays, a recording by its first bytes, else an image or a video.
fn read_stdin(media: &[Medium]) -> Result<NamedTempFile> {
    let mut bytes = vec![];
    std::io::stdin().take(MAX_STDIN + 1).read_to_end(&mut bytes).context("reading the standard input")?;
    ensure!(!bytes.is_empty(), "the standard input is empty");
    ensure!(bytes.len() as u64 <= MAX_STDIN, "the standard input has more than {MAX_STDIN} bytes");
    let takes = |wanted: Medium| media.contains(&wanted);
    let extension = match () {
        () if takes(Medium::Text) && std::str::from_utf8(&bytes).is_ok() => ".txt",
        () if takes(Medium::Tensor) => ".safetensors",
        () if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WAVE") => ".wav",
        () => ".image",
    };
    let mut file = tempfile::Builder::new().prefix("stdin-").suffix(extension).tempfile()?;
    file.write_all(&bytes).with_context(|| format!("writing {}", file.path().display()))?;
    Ok(file)
}

/// Returns the files of these media below a folder.
fn samples_below(folder: &Path, media: &[Medium]) -> Result<Vec<PathBuf>> {
    let mut found = vec![];
    for medium in media {
        match medium {
            Medium::Text => collect(folder, &["txt"], &mut found)?,
            Medium::Audio => collect(folder, &["wav"], &mut found)?,
            Medium::Video => collect(folder, &VIDEOS, &mut found)?,
            Medium::Tensor => collect(folder, &["safetensors"], &mut found)?,
            Medium::Image => match find_images(folder) {
                Ok(images) => found.extend(images),
                Err(ImageError::Empty { .. }) if media.len() > 1 => {}
                Err(error) => return Err(error.into()),
            },
        }
    }
    let names = media.iter().map(|medium| medium.name()).collect::<Vec<_>>().join(", ");
    ensure!(!found.is_empty(), "{} has no files that this plugin takes ({names})", folder.display());
    Ok(found)
}

/// Adds the files with one of some extensions below a folder, sorted; hidden ones are left out, and links to folders.
fn collect(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries = fs_err::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs_err::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let is = |found: &OsStr| extensions.iter().any(|extension| found.eq_ignore_ascii_case(extension));
        let has_extension = path.extension().is_some_and(is);
        match entry.file_type()? {
            _ if entry.file_name().as_encoded_bytes().starts_with(b".") => {}
            kind if kind.is_dir() => collect(&path, extensions, found)?,
            _ if has_extension => found.push(path),
            _ => {}
        }
    }
    Ok(())
}

/// Extensions of fixtures besides those of images, case-insensitive.
const FIXTURES: [&str; 3] = ["txt", "wav", "safetensors"];

/// Returns the fixtures of a folder, sorted.
pub(super) fn fixtures(folder: &Path) -> Result<Vec<PathBuf>> {
    let fixtures = folder.join("fixtures");
    ensure!(
        fixtures.is_dir(),
        "there is no folder {}: put some samples there (.png, .jpg, .txt, .wav, .gif, .webp, .safetensors)",
        fixtures.display()
    );
    let mut files = vec![];
    for entry in fs_err::read_dir(&fixtures)? {
        let path = entry?.path();
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let is_fixture = extension.is_some_and(|extension| FIXTURES.contains(&extension.as_str()));
        if path.is_file() && (is_fixture || has_image_extension(&path)) {
            files.push(path);
        }
    }
    ensure!(
        !files.is_empty(),
        "{} has no samples (.png, .jpg, .txt, .wav, .gif, .webp, .safetensors)",
        fixtures.display()
    );
    files.sort();
    Ok(files)
}

/// Reads a file as a sample of a medium that the plugin takes: .txt is a text, .wav a recording, .safetensors an array; a .gif,
/// .webp or .png is a video for a plugin that takes videos and no images; all others are images.
pub(super) fn read_sample(file: &Path, description: &Description, loader: &ImageLoader) -> Result<Sample> {
    let is = |wanted: &str| file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted));
    let (medium, noun) = match () {
        () if is("txt") => (Medium::Text, "a text"),
        () if is("wav") => (Medium::Audio, "a recording"),
        () if is("safetensors") => (Medium::Tensor, "an array"),
        () if description.takes(Medium::Video) && !description.takes(Medium::Image) => (Medium::Video, "a video"),
        () => (Medium::Image, "an image"),
    };
    if !description.takes(medium) {
        let (file, plugin, media) = (file.display(), &description.name, description.media_names(", "));
        bail!("{file} is {noun}, but plugin `{plugin}` takes {media}");
    }
    expect_file(file)?;
    let mut sample = Sample::default();
    match medium {
        Medium::Text => {
            let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            sample.text = Some(text.trim_end().to_owned());
        }
        Medium::Audio => sample.audio = Some(Arc::new(read_wav(file)?)),
        Medium::Video => sample.video = Some(Arc::new(read_video(file)?)),
        Medium::Tensor => sample.array = Some(Arc::new(read_array(file)?)),
        Medium::Image => sample.image = Some(Arc::new(loader.read(file)?)),
    }
    if let Some(name) = file.file_name() {
        sample.metadata.insert("title".to_owned(), name.to_string_lossy().into_owned());
    }
    Ok(sample)
}

/// The prompts of samples: the same for all, or those of the file `captions.jsonl` in a sample's folder or the one above.
pub(super) struct Prompts {
    given: Option<String>,
    /// The captions by file name, for each folder that was asked for.
    captions: BTreeMap<PathBuf, BTreeMap<String, String>>,
}

impl Prompts {
    pub(super) fn new(given: Option<String>) -> Self {
        Self { given, captions: BTreeMap::new() }
    }

    /// Returns the prompt of a file; empty if there is none.
    pub(super) fn of(&mut self, file: &Path) -> Result<String> {
        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // `host art` names files relative to the folder above.
        for folder in [Some(folder), folder.parent()].into_iter().flatten() {
            if !self.captions.contains_key(folder) {
                let captions = folder.join(CAPTIONS);
                let captions = if captions.is_file() { read_captions(&captions)? } else { BTreeMap::new() };
                self.captions.insert(folder.to_owned(), captions);
            }
            let name = file.strip_prefix(folder).unwrap_or(file).to_string_lossy();
            if let Some(caption) = self.captions[folder].get(&*name) {
                return Ok(caption.clone());
            }
        }
        Ok(String::new())
    }
}

/// The file with the captions of a folder's images: one JSON object `{"file", "caption"}` per line.
const CAPTIONS: &str = "captions.jsonl";

/// Reads captions by file name.
fn read_captions(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Line {
        file: String,
        caption: String,
    }
    let text = fs_err::read_to_string(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let caption = |(i, line): (usize, &str)| {
        let Line { file, caption } = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}: it needs `file` and `caption`", path.display(), i + 1))?;
        Ok((file, caption))
    };
    lines.map(caption).collect()
}

/// Runs a plugin on files, batch by batch. `each` gets the files of a batch, as the user named them, and the plugin's output.
pub(super) fn run_on_files(
    inputs: &Inputs,
    prompts: &mut Prompts,
    plugin: &mut dyn Plugin,
    encoders: &mut Encoders,
    context: &Context,
    mut each: impl FnMut(Vec<PathBuf>, Output),
) -> Result<()> {
    let bar = context.progress.bar("running the plugin", inputs.files.len() as u64, "files");
    let loader = ImageLoader::default();
    let mut n_read = 0;
    for batch in batches(&inputs.files, BATCH) {
        context.interrupt.check("nothing was written")?;
        let (mut files, mut samples) = (vec![], vec![]);
        for file in batch {
            match read_sample(file, plugin.description(), &loader) {
                Ok(sample) => {
                    files.push(inputs.shown(file));
                    samples.push(Sample { prompt: prompts.of(file)?, ..sample });
                }
                Err(error) if inputs.is_optional(file) => tracing::warn!("left out: {}", sentence(&error)),
                Err(error) => return Err(error),
            }
        }
        bar.inc(batch.len() as u64);
        if samples.is_empty() {
            continue;
        }
        n_read += samples.len();
        match plugin.run(&mut Batch::new(samples), encoders) {
            Ok(output) => each(files, output),
            Err(error) => match error.sample.and_then(|i| files.get(i)) {
                Some(file) => return Err(error).context(file.display().to_string()),
                None => return Err(error.into()),
            },
        }
    }
    bar.finish();
    warn_of_unfamiliar(encoders);
    ensure!(n_read > 0, "none of the {} files can be read", inputs.files.len());
    Ok(())
}
