//! Models by their ids on the Hugging Face Hub: from its cache, or downloaded into it unless the network is disabled.
//!
//! The cache, its location (`HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`), the token
//! (`HF_TOKEN`, else the file that `hf auth login` writes) and the address (`HF_ENDPOINT`) are those of Hugging Face's
//! own tools. A model that is complete in the cache is used without a network request.
//!
//! A server is not trusted.
//!
//! # Layout
//!
//! - this file: ids, the files of a model, and failures as sentences
//! - `cache`: the places of files · `download`: lengths and digests

mod cache;
mod download;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};

use ambiguity_models::weights::{DIFFUSERS_STEM, TRANSFORMERS_STEM, weight_files};
use anyhow::{Context as _, Result, anyhow, bail, ensure};

pub use self::cache::hub_cache;
use self::cache::{Cache, hf_home, is_component};
use self::download::{Listing, ModelFile, download};
use crate::context::Context;
use crate::interrupt::{Interrupt, keeping};
use crate::net::{Client, Downloads, Failure, Headers, Patience};
use crate::progress::Progress;
use crate::text::escaped;

/// Address of the Hub.
const ENDPOINT: &str = "https://huggingface.co";
/// Maximum length of `OWNER/NAME`, as the Hub has it.
const MAX_ID: usize = 96;
/// Number of files that a message names.
const MAX_NAMED: usize = 20;

/// Access to models by their ids.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Whether the network must not be used.
    offline: bool,
    /// The progress of downloads.
    progress: Progress,
    /// The interrupt; a partial file is kept and resumed.
    interrupt: Interrupt,
    /// The place of the files, the address and the token.
    settings: Settings,
}

/// What the environment says of the Hub.
#[derive(Clone, Debug)]
struct Settings {
    cache: Cache,
    endpoint: String,
    token: Option<String>,
    patience: Patience,
}

/// The id of a model: `OWNER/NAME`, and the revision, `main` unless `@REVISION` follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id {
    owner: String,
    name: String,
    revision: String,
}

/// The kind of model in a repository, which determines the files to download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A `StableDiffusionPipeline`.
    Pipeline,
    /// A `CLIPModel` with tokenizer and preprocessor.
    Clip,
    /// Files: of each list the first that exists.
    Files(&'static [&'static [&'static str]]),
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

impl Id {
    /// Reads an id.
    ///
    /// # Errors
    /// If the text has not the form of an id, or contains what the Hub allows in none: a revision that is a path above
    /// all.
    fn parse(text: &str) -> Result<Self> {
        ensure!(is_id(text), "{text} is not an id on the Hub: write OWNER/NAME, or OWNER/NAME@REVISION");
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = repository.split_once('/').unwrap_or_default();
        let is_allowed = repository.len() <= MAX_ID && !repository.contains("--") && !repository.contains("..");
        ensure!(
            is_allowed,
            "{repository} is not an id on the Hub: ids have at most {MAX_ID} characters, and no -- or .."
        );
        ensure!(
            is_component(revision),
            "{text}: the revision {} is not the name of a branch or tag, or a commit",
            escaped(revision)
        );
        Ok(Self { owner: owner.to_owned(), name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl Display for Id {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { owner, name, revision } = self;
        match &**revision {
            "main" => write!(f, "{owner}/{name}"),
            revision => write!(f, "{owner}/{name}@{revision}"),
        }
    }
}

impl Settings {
    fn from_environment() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let file = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(hf_home().ok()?.join("token")));
        let stored = || fs::read_to_string(file?).ok();
        let token = variable("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned());
        Ok(Self {
            cache: Cache::new(hub_cache()?),
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            token: token.filter(|token| !token.is_empty()),
            patience: Patience::default(),
        })
    }
}

impl Hub {
    /// Returns the Hub with a command's context and the environment's settings.
    pub fn new(context: &Context) -> Result<Self> {
        Ok(Self::with(context, Settings::from_environment()?))
    }

    fn with(context: &Context, settings: Settings) -> Self {
        let Context { offline, progress, interrupt, .. } = context;
        Self { offline: *offline, progress: progress.clone(), interrupt: interrupt.clone(), settings }
    }

    /// Returns the folder of a repository's files in the cache, if it is complete there.
    pub fn cached(&self, id: &str, wanted: Wanted) -> Result<Option<PathBuf>> {
        let id = Id::parse(id)?;
        let folder = self.settings.cache.repository(&id).snapshot(&id.revision);
        Ok(folder.filter(|folder| wanted.is_complete(folder)))
    }

    /// Returns the folder of a repository's files; missing files are downloaded if the network may be used.
    pub fn folder(&self, id: &str, wanted: Wanted) -> Result<PathBuf> {
        let id = Id::parse(id)?;
        let Settings { cache, endpoint, token, patience } = &self.settings;
        let cached = cache.repository(&id).snapshot(&id.revision);
        if let Some(folder) = cached.filter(|folder| wanted.is_complete(folder)) {
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
        let address = Client::address_of(endpoint)
            .with_context(|| format!("HF_ENDPOINT: {endpoint} is not an address, https://HOST"))?;
        let is_plain = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(
            token.as_ref().is_none_or(is_plain),
            "the token for the Hub contains characters that no token has: set HF_TOKEN, or log in with `hf auth login` again"
        );
        let bearer = token.as_ref().map(|token| format!("Bearer {token}"));
        let client = Client::new(address, bearer, *patience, self.interrupt.clone())?;
        self.download(&id, &client, wanted).map_err(|failure| explained(&id, &client, failure))
    }

    fn download(&self, id: &Id, client: &Client, wanted: Wanted) -> Result<PathBuf, Failure> {
        let listing = Listing::request(client, id)?;
        let (names, commit) = (listing.names(), &*listing.sha);
        let files = wanted.choose(&names);
        let first = wanted.first_file();
        let is_wanted = files.iter().any(|file| first.contains(file));
        is_wanted
            .then_some(())
            .ok_or_else(|| anyhow!("{id} has no {}: it is not a {}", first.join(" or "), wanted.what()))?;
        let files: Vec<ModelFile> =
            files.iter().map(|name| ModelFile::request(client, id, commit, name)).collect::<Result<_, _>>()?;
        let repository = self.settings.cache.repository(id);
        let (progress, interrupt) = (&self.progress, &self.interrupt);
        download(Downloads { client, progress, interrupt }, &repository, id, commit, &files)?;
        let folder = repository.snapshot_of(commit);
        if !wanted.is_complete(&folder) {
            let names: Vec<_> = names.iter().take(MAX_NAMED).map(|name| escaped(name)).collect();
            let more = if listing.names().len() > MAX_NAMED { ", …" } else { "" };
            Err(anyhow!("{id} lacks files of a {}: it has {}{more}", wanted.what(), names.join(", ")))?;
        }
        repository.set_revision(&id.revision, commit)?;
        Ok(folder)
    }
}

impl Wanted {
    /// The file in the repository's root that identifies its kind, by any of its names.
    fn first_file(self) -> &'static [&'static str] {
        match self {
            Self::Pipeline => &["model_index.json"],
            Self::Clip => &["config.json"],
            Self::Files(files) => files[0],
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Pipeline => "diffusers pipeline with safetensors weights",
            Self::Clip => "CLIP model with safetensors weights",
            Self::Files(_) => "repository of these weights",
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
                Self::Files(_) => false,
            }
        };
        let mut files: Vec<&str> = names.iter().copied().filter(|name| small(name)).collect();
        match self {
            Self::Pipeline => PARTS.iter().for_each(|(part, stem)| files.extend(weights(names, part, stem))),
            Self::Clip => files.extend(weights(names, "", TRANSFORMERS_STEM)),
            Self::Files(wanted) => {
                let first = |of: &&[&str]| of.iter().find_map(|name| names.iter().copied().find(|other| other == name));
                files.extend(wanted.iter().filter_map(first));
                files.dedup();
            }
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
            Self::Files(wanted) => wanted.iter().all(|names| names.iter().any(|name| has(name))),
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

/// Returns a failure as a sentence that says what to do.
fn explained(id: &Id, client: &Client, failure: Failure) -> anyhow::Error {
    let endpoint = client.endpoint();
    let kept = "what was downloaded is kept in the Hub's cache, and the same command resumes it";
    let failure = match failure {
        Failure::Interrupted(interrupted) => return keeping(interrupted.into(), kept),
        Failure::Local(error) => return keeping(error, kept),
        failure => failure,
    };
    let hint = match &failure {
        Failure::Status { status: 401 | 403 | 404, headers, .. } if code(headers) == Some("RevisionNotFound") => {
            format!("the model has no revision {}", id.revision)
        }
        Failure::Status { status: 401 | 403, headers, .. } if code(headers) == Some("GatedRepo") => format!(
            "the model is gated: accept its conditions at {endpoint}{}/{}, and set HF_TOKEN, or log in with `hf auth login`",
            id.owner, id.name
        ),
        Failure::Status { status: 401 | 403, .. } if client.has_credentials() => {
            "the model does not exist, or the token (HF_TOKEN, or that of `hf auth login`) does not allow reading it"
                .to_owned()
        }
        Failure::Status { status: 401 | 403, .. } => {
            "the model does not exist, or it needs a token: set HF_TOKEN, or log in with `hf auth login`".to_owned()
        }
        Failure::Status { status: 404, .. } => "the model, its revision or a file does not exist".to_owned(),
        Failure::Status { status: 429, .. } => {
            "it allows no more requests now: try again later, or set HF_TOKEN".to_owned()
        }
        Failure::Unreachable { .. } | Failure::Broken { .. } | Failure::Silent { .. } | Failure::Short { .. } => {
            "the same command resumes the download when the network is there; a folder needs none".to_owned()
        }
        Failure::Status { .. } => "try again later; what was downloaded is kept".to_owned(),
        Failure::Wrong { .. } | Failure::Interrupted(_) | Failure::Local(_) => return anyhow!("{id}: {failure}"),
    };
    anyhow!("{id}: {failure}; {hint}")
}

/// Returns the Hub's own name of an error.
fn code(headers: &Headers) -> Option<&str> {
    headers.get("X-Error-Code")
}
