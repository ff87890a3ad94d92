//! `host cache …`: what the program keeps outside of runs: compiled plugins, plugins of registries, resized images,
//! embeddings, downloaded models.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::context::Context;
use crate::fs::remove_folder;
use crate::plugin::user_cache;
use crate::text::{counted, escaped, key_hint, size, table, to_json};
use crate::zoo::hub::hub_cache;

/// List or remove what is kept outside of runs: compiled plugins, plugins of registries, resized images, embeddings,
/// downloaded models.
#[derive(Args, Debug)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List what is kept, where, and its size
    #[command(after_help = "Examples:
  host cache list
  host cache list --json

Nothing of it is lost when it is removed: plugins are compiled and pulled, images are resized and embedded, and models
are downloaded again. Downloaded models are in the cache of Hugging Face's own tools, which other programs use too. Runs (runs/) and
installed plugins (`host plugin list`) are no cache.")]
    List {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Remove what is kept: all but downloaded models, or what is named
    #[command(after_help = "Examples:
  host cache clear                              all but downloaded models, after a question
  host cache clear plugins --yes
  host cache clear openai/clip-vit-large-patch14     a downloaded model, which other programs may use")]
    Clear {
        /// What to remove: a name of `host cache list` [default: all but downloaded models]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Remove it without a question
        #[arg(long)]
        yes: bool,
        /// Print one JSON document about what was removed
        #[arg(long)]
        json: bool,
    },
}

/// One part of what is kept.
struct Kept {
    name: String,
    what: &'static str,
    path: PathBuf,
    /// Whether other programs use it too.
    shared: bool,
    files: u64,
    bytes: u64,
}

impl CacheArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        match self.command {
            Command::List { json } => list(json),
            Command::Clear { names, yes, json } => clear(&names, yes, json, context),
        }
    }
}

fn list(json: bool) -> Result<()> {
    let kept = kept();
    let bytes: u64 = kept.iter().map(|kept| kept.bytes).sum();
    if json {
        let kept: Vec<Value> = kept.iter().map(Kept::document).collect();
        println!("{}", to_json(&json!({ "caches": kept, "bytes": bytes })));
        return Ok(());
    }
    if kept.is_empty() {
        println!("nothing is kept");
        return Ok(());
    }
    print!("{}", layout(&kept));
    println!("  {} in total", size(bytes as usize));
    Ok(())
}

fn clear(names: &[String], yes: bool, json: bool, context: &Context) -> Result<()> {
    let mut kept = kept();
    let known: Vec<String> = kept.iter().map(|kept| kept.name.clone()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        let hint = if known.is_empty() { "nothing is kept".to_owned() } else { key_hint(unknown, &known) };
        bail!("`{unknown}` is not kept; {hint}");
    }
    kept.retain(|kept| if names.is_empty() { !kept.shared } else { names.contains(&kept.name) });
    if !kept.is_empty() && !yes {
        ensure!(
            std::io::stdin().is_terminal(),
            "this would remove {}: pass --yes to do it without a question",
            kept.iter().map(|kept| kept.name.as_str()).collect::<Vec<_>>().join(", ")
        );
        eprint!("{}remove this? [y/N] ", layout(&kept));
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).context("reading the answer")?;
        ensure!(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()), "nothing was removed");
    }
    for kept in &kept {
        context.interrupt.check("the rest was not removed")?;
        remove_folder(&kept.path)?;
    }
    let bytes: u64 = kept.iter().map(|kept| kept.bytes).sum();
    if json {
        let removed: Vec<Value> = kept.iter().map(Kept::document).collect();
        println!("{}", to_json(&json!({ "removed": removed, "bytes": bytes })));
    } else if kept.is_empty() {
        println!("nothing to remove");
    } else {
        println!("removed {}", size(bytes as usize));
    }
    Ok(())
}

/// Returns all that is kept, the program's own first.
fn kept() -> Vec<Kept> {
    let own = user_cache().into_iter().flat_map(|folder| folders(&folder)).map(|(name, path)| {
        let what = match &*name {
            "plugins" => "compiled plugins",
            "images" => "resized images of trainings",
            "embeddings" => "embeddings of images",
            "registry" => "plugins of registries",
            _ => "other",
        };
        Kept::of(name, what, path, false)
    });
    let models = hub_cache().into_iter().flat_map(|folder| folders(&folder)).filter_map(|(name, path)| {
        let id = name.strip_prefix("models--")?.replacen("--", "/", 1);
        Some(Kept::of(id, "downloaded model", path, true))
    });
    own.chain(models).collect()
}

/// Returns the folders in a folder, sorted by name.
fn folders(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_folder = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let folders = entries.filter(is_folder);
    let mut folders: Vec<_> =
        folders.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    folders.retain(|(name, _)| !name.starts_with('.'));
    folders.sort();
    folders
}

/// Returns the number of files below a folder and of their bytes; links count as such, not as what they lead to.
fn usage(folder: &Path) -> (u64, u64) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.fold((0, 0), |(files, bytes), entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            let (more, their) = usage(&entry.path());
            (files + more, bytes + their)
        }
        Ok(metadata) => (files + 1, bytes + metadata.len()),
        Err(_) => (files, bytes),
    })
}

impl Kept {
    fn of(name: String, what: &'static str, path: PathBuf, shared: bool) -> Self {
        let (files, bytes) = usage(&path);
        Self { name, what, path, shared, files, bytes }
    }

    fn document(&self) -> Value {
        json!({
            "name": self.name, "what": self.what, "path": self.path.to_string_lossy(), "files": self.files,
            "bytes": self.bytes, "shared": self.shared,
        })
    }
}

fn layout(kept: &[Kept]) -> String {
    let rows: Vec<Vec<String>> = kept
        .iter()
        .map(|kept| {
            let shown = |text: &str| escaped(text).into_owned();
            let (path, files) = (kept.path.to_string_lossy(), counted(kept.files, "file"));
            vec![shown(&kept.name), kept.what.to_owned(), size(kept.bytes as usize), files, shown(&path)]
        })
        .collect();
    table(&[true, true, false, false, true], &rows)
}
