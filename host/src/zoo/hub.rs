//! Models by their ids on the Hugging Face Hub: from its cache, or downloaded into it unless the network is disabled.
//!
//! The cache, its location (`HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`), the token
//! (`HF_TOKEN`, else the file that `hf auth login` writes) and the address (`HF_ENDPOINT`) are those of Hugging Face's
//! own tools. A model that is complete in the cache is used without a network request.

use std::path::{Path, PathBuf};

use ambiguity_models::weights::{DIFFUSERS_STEM, TRANSFORMERS_STEM, weight_files};
use anyhow::{Context as _, Result, bail, ensure};
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::context::Context;
use crate::interrupt::Interrupt;
use crate::progress::{Bar, Progress};

/// Number of bytes in one step of the progress bar.
const MEBIBYTE: u64 = 1 << 20;

/// Access to models by their ids.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Whether the network must not be used.
    offline: bool,
    /// The progress of downloads.
    progress: Progress,
    /// The interrupt, checked between files; a partial file is kept and resumed.
    interrupt: Interrupt,
}

/// The kind of model in a repository, which determines the files to download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A `StableDiffusionPipeline`.
    Pipeline,
    /// A `CLIPModel` with tokenizer and preprocessor.
    Clip,
}

/// The parts of a pipeline with weights, and the stems of their weight files.
const PARTS: [(&str, &str); 3] =
    [("unet", DIFFUSERS_STEM), ("vae", DIFFUSERS_STEM), ("text_encoder", TRANSFORMERS_STEM)];

/// Whether `name` has the form of an id: `OWNER/NAME` or `OWNER/NAME@REVISION`.
pub fn is_id(name: &str) -> bool {
    let repository = name.split_once('@').map_or(name, |(repository, _)| repository);
    let plain = |part: &str| {
        let mut letters = part.chars();
        letters.next().is_some_and(|first| first.is_ascii_alphanumeric())
            && letters.all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
    };
    repository.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name))
}

impl Hub {
    /// Returns the Hub with a command's context.
    pub fn new(context: &Context) -> Self {
        let Context { offline, progress, interrupt, .. } = context;
        Self { offline: *offline, progress: progress.clone(), interrupt: interrupt.clone() }
    }

    /// Returns the folder of a repository's files; missing files are downloaded if the network may be used.
    pub fn folder(&self, id: &str, wanted: Wanted) -> Result<PathBuf> {
        ensure!(is_id(id), "{id} is not an id on the Hub: write OWNER/NAME, or OWNER/NAME@REVISION");
        let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
        let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
        let cache = cache();
        let first = wanted.first_file();
        if let Some(folder) = cache.repo(repo.clone()).get(first).and_then(|file| Some(file.parent()?.to_owned()))
            && wanted.is_complete(&folder)
        {
            tracing::debug!("{id}: {}", folder.display());
            return Ok(folder);
        }
        if self.offline {
            bail!(
                "{id} is not complete in the Hub's cache {}, and the network is disabled (--offline, HF_HUB_OFFLINE): \
                 run this once without it, or name a folder",
                cache.path().display()
            );
        }
        self.download(id, &cache, repo, wanted)
    }

    fn download(&self, id: &str, cache: &Cache, repo: Repo, wanted: Wanted) -> Result<PathBuf> {
        let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()).or_else(|| cache.token());
        let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false).with_retries(3).with_token(token);
        if let Some(endpoint) = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty()) {
            builder = builder.with_endpoint(endpoint);
        }
        let repo = builder.build().context("reaching the Hub")?.repo(repo);
        let info = repo.info().map_err(|error| explained(id, &error))?;
        let names: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let files = wanted.choose(&names);
        let first = wanted.first_file();
        ensure!(files.contains(&first), "{id} has no {first}: it is not a {}", wanted.what());
        let mut folder = None;
        for (i, file) in files.iter().enumerate() {
            self.interrupt.check("the downloaded files are kept in the Hub's cache")?;
            let bar = Download::new(&self.progress, format!("{file} ({}/{})", i + 1, files.len()));
            let path = repo.download_with_progress(file, bar).map_err(|error| explained(id, &error))?;
            if *file == first {
                folder = path.parent().map(Path::to_owned);
            }
        }
        let folder = folder.expect("the first file is among the downloaded files");
        ensure!(wanted.is_complete(&folder), "{id} lacks files of a {}: it has {}", wanted.what(), names.join(", "));
        Ok(folder)
    }
}

impl Wanted {
    /// The file in the repository's root that identifies its kind.
    fn first_file(self) -> &'static str {
        match self {
            Self::Pipeline => "model_index.json",
            Self::Clip => "config.json",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Pipeline => "diffusers pipeline with safetensors weights",
            Self::Clip => "CLIP model with safetensors weights",
        }
    }

    /// Returns the needed files among `names`.
    fn choose<'a>(self, names: &[&'a str]) -> Vec<&'a str> {
        let small = |name: &str| {
            let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
            let data = file.ends_with(".json") || file.ends_with(".txt");
            match self {
                Self::Pipeline => {
                    name == "model_index.json"
                        || data && ["scheduler", "tokenizer"].contains(&folder)
                        || file == "config.json" && PARTS.iter().any(|(part, _)| *part == folder)
                }
                Self::Clip => folder.is_empty() && data && !file.contains(".index."),
            }
        };
        let mut files: Vec<&str> = names.iter().copied().filter(|name| small(name)).collect();
        match self {
            Self::Pipeline => PARTS.iter().for_each(|(part, stem)| files.extend(weights(names, part, stem))),
            Self::Clip => files.extend(weights(names, "", TRANSFORMERS_STEM)),
        }
        files
    }

    fn is_complete(self, folder: &Path) -> bool {
        let has = |name: &str| folder.join(name).is_file();
        let tokenizer = |prefix: &str| {
            has(&format!("{prefix}tokenizer.json"))
                || has(&format!("{prefix}vocab.json")) && has(&format!("{prefix}merges.txt"))
        };
        let weights = |part: &str, stem: &str| {
            has(&format!("{part}config.json"))
                && weight_files(&folder.join(part), stem).is_ok_and(|files| files.iter().all(|file| file.is_file()))
        };
        match self {
            Self::Pipeline => {
                has("model_index.json")
                    && has("scheduler/scheduler_config.json")
                    && tokenizer("tokenizer/")
                    && PARTS.iter().all(|(part, stem)| weights(&format!("{part}/"), stem))
            }
            Self::Clip => has("preprocessor_config.json") && tokenizer("") && weights("", TRANSFORMERS_STEM),
        }
    }
}

/// Returns the weight files of a part: a single file before shards, full precision before half, as they are read.
fn weights<'a>(names: &[&'a str], part: &str, stem: &str) -> Vec<&'a str> {
    let prefix = if part.is_empty() { String::new() } else { format!("{part}/") };
    let one = |file: String| names.iter().copied().find(|name| **name == file);
    let shards = |half: bool| -> Vec<&'a str> {
        let shard = |name: &&&str| {
            let rest = name.strip_prefix(&*prefix).and_then(|file| file.strip_prefix(stem));
            let numbered = |rest: &str| rest.contains("-of-") && rest.ends_with(".safetensors");
            rest.is_some_and(|rest| numbered(rest) && rest.contains("fp16") == half)
        };
        names.iter().filter(shard).copied().collect()
    };
    if let Some(file) = one(format!("{prefix}{stem}.safetensors")) {
        return vec![file];
    }
    if let Some(index) = one(format!("{prefix}{stem}.safetensors.index.json")) {
        return [vec![index], shards(false)].concat();
    }
    if let Some(file) = one(format!("{prefix}{stem}.fp16.safetensors")) {
        return vec![file];
    }
    let half = ["safetensors.index.fp16", "fp16.safetensors.index"];
    match half.iter().find_map(|middle| one(format!("{prefix}{stem}.{middle}.json"))) {
        Some(index) => [vec![index], shards(true)].concat(),
        None => vec![],
    }
}

/// Returns the folder of downloaded models.
pub fn cache_folder() -> PathBuf {
    cache().path().to_owned()
}

/// Returns the cache of Hugging Face's own tools.
fn cache() -> Cache {
    match std::env::var_os("HF_HUB_CACHE").filter(|path| !path.is_empty()) {
        Some(path) => Cache::new(path.into()),
        None => Cache::from_env(),
    }
}

/// Explains an error of the Hub.
fn explained(id: &str, error: &ApiError) -> anyhow::Error {
    let text = error.to_string();
    let hint = if text.contains("401") || text.contains("403") {
        "the repository does not exist, or it needs a token: set HF_TOKEN, or log in with `hf auth login`"
    } else if text.contains("404") {
        "the repository, revision or file does not exist"
    } else {
        "is the network available? A folder works without it"
    };
    anyhow::anyhow!("{id}: the Hub did not return it ({text}); {hint}")
}

/// The progress bar of one file.
struct Download<'a> {
    progress: &'a Progress,
    name: String,
    bar: Option<Bar>,
    shown: u64,
    done: u64,
}

impl<'a> Download<'a> {
    fn new(progress: &'a Progress, name: String) -> Self {
        Self { progress, name, bar: None, shown: 0, done: 0 }
    }
}

impl hf_hub::api::Progress for Download<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.bar = Some(self.progress.bar(&self.name, (size as u64).div_ceil(MEBIBYTE), "MiB"));
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        let mebibytes = self.done / MEBIBYTE;
        if let Some(bar) = &self.bar {
            bar.inc(mebibytes - self.shown);
        }
        self.shown = mebibytes;
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinguished_from_paths() {
        for id in ["stabilityai/stable-diffusion-2-base", "openai/clip-vit-large-patch14@main", "a/b.c"] {
            assert!(is_id(id), "{id}");
        }
        for path in ["tiny-art", "./a/b", "/a/b", "a/b/c", "a/", "../b", "a b/c"] {
            assert!(!is_id(path), "{path}");
        }
    }

    #[test]
    fn only_needed_files_are_downloaded() {
        let names = [
            "README.md",
            "512-base-ema.ckpt",
            "feature_extractor/preprocessor_config.json",
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder/pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        ];
        insta::assert_snapshot!(Wanted::Pipeline.choose(&names).join("\n"), @r"
        model_index.json
        scheduler/scheduler_config.json
        text_encoder/config.json
        tokenizer/merges.txt
        tokenizer/vocab.json
        unet/config.json
        vae/config.json
        unet/diffusion_pytorch_model.safetensors.index.json
        unet/diffusion_pytorch_model-00001-of-00002.safetensors
        unet/diffusion_pytorch_model-00002-of-00002.safetensors
        vae/diffusion_pytorch_model.fp16.safetensors
        text_encoder/model.safetensors
        ");
    }
}
