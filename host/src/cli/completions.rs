//! `host completions`: shell completion scripts, and the names that they complete.
//!
//! A script asks the program itself what fits, so that it knows the commands, and the plugins and models, of today.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Args;
use clap_complete::CompletionCandidate;
use clap_complete::engine::{ArgValueCompleter, PathCompleter, ValueCompleter};
use clap_complete::env::Shells;

use super::Context;
use crate::plugin::store::{Project, installed_folder, places, plugin_files, short_name};
use crate::zoo::home::home;

/// The environment variable by which a script asks the program.
pub const VARIABLE: &str = "HOST_COMPLETE";

/// Print a completion script for a shell
///
/// It completes the names of plugins and models too.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host completions bash > ~/.local/share/bash-completion/completions/host
  host completions zsh > ~/.zfunc/_host
  host completions fish > ~/.config/fish/completions/host.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_parser = ["bash", "elvish", "fish", "powershell", "zsh"])]
    shell: String,
}

impl CompletionsArgs {
    /// Runs the command.
    pub fn run(self, _context: &Context) -> Result<()> {
        let shells = Shells::builtins();
        let shell = shells.completer(&self.shell).context("this shell has no completions")?;
        let mut script = Vec::new();
        shell.write_registration(VARIABLE, "host", "host", "host", &mut script)?;
        std::io::stdout().lock().write_all(&script)?;
        Ok(())
    }
}

/// Completes a plugin: the names that can be used here, and paths.
pub(super) fn plugins() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let files = places().into_iter().flat_map(|(_, folder)| plugin_files(&folder));
        let names = files.map(|file| short_name(&file.to_string_lossy()));
        let project = Project::find().ok().flatten().map(|project| project.plugins).unwrap_or_default();
        with_files(current, project.into_keys().chain(names).collect())
    })
}

/// Completes the name of an installed plugin.
pub(super) fn installed_plugins() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let files = installed_folder().map(|folder| plugin_files(&folder)).unwrap_or_default();
        matching(current, files.iter().map(|file| short_name(&file.to_string_lossy())).collect())
    })
}

/// Completes a model: the names of those that ship, and folders.
pub(super) fn models() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let folder = home().map(|home| home.join("models/weights"));
        let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        with_files(current, entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    })
}

/// Returns the names that begin with what is typed, sorted.
fn matching(current: &OsStr, mut names: Vec<String>) -> Vec<CompletionCandidate> {
    names.sort();
    names.dedup();
    names.retain(|name| name.starts_with(&*current.to_string_lossy()));
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// Returns the names, then the paths, that begin with what is typed.
fn with_files(current: &OsStr, names: Vec<String>) -> Vec<CompletionCandidate> {
    let names = if Path::new(current).components().count() > 1 { vec![] } else { matching(current, names) };
    names.into_iter().chain(PathCompleter::any().complete(current)).collect()
}
