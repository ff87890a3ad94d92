//! `host plugin rename`: gives the styles of a plugin other names, such as those of clusters after seeing their sheet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ambiguity_sdk::Manifest;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use super::check_component_name;
use crate::cli::completions::plugins;
use crate::context::Context;
use crate::fs::write_atomic;
use crate::plugin::store::{Store, short_name};
use crate::plugin::{Artifact, Limits, PluginHost};
use crate::text::{counted, key_hint, text_lines, to_json};

/// Rename the styles of a plugin of `host plugin fit` or `host plugin build`; what it predicts stays the same.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin rename ./five.wasm cluster-01=fog cluster-02='open sea'
  host plugin rename ./five.wasm --names names.txt -o seas.wasm

names.txt has one line per style, in the order in which `host plugin fit` and `host plugin inspect` show them; lines
that begin with # are left out. `host plugin fit --names names.txt` writes these names onto the contact sheet too.")]
pub struct RenameArgs {
    /// A plugin: a path or a name
    #[arg(add = plugins())]
    plugin: String,
    /// A style's name and its new one
    #[arg(value_name = "OLD=NEW", value_parser = super::running::key_value, required_unless_present = "names")]
    renamed: Vec<(String, String)>,
    /// A file with the names of all styles, one per line
    #[arg(long, value_name = "FILE", conflicts_with = "renamed")]
    names: Option<PathBuf>,
    /// The new file [default: the plugin's own, if it was named by its path]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON document about the result
    #[arg(long)]
    json: bool,
}

impl RenameArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let path = Store::of_command(context)?.find(&self.plugin)?.path;
        let output = match &self.output {
            Some(output) => output.clone(),
            None => {
                ensure!(
                    Path::new(&self.plugin).is_file(),
                    "`{}` is {}: name a new file with -o",
                    self.plugin,
                    path.display()
                );
                path.clone()
            }
        };
        check_component_name(&output)?;
        ensure!(
            path.extension().is_some_and(|extension| extension == "wasm"),
            "{} is a model: its styles are the list `styles` of its metadata or of the .toml beside it",
            path.display()
        );
        let artifact = Artifact::read(&path, &Limits::default()).with_context(|| self.plugin.clone())?;
        let name = short_name(&path.to_string_lossy());
        let Some(mut manifest) = artifact.manifest.clone().filter(|manifest| !manifest.styles.is_empty()) else {
            bail!("the styles of `{name}` are in its code: only those of `host plugin fit` and `build` can be renamed");
        };
        let before = manifest.styles.clone();
        let styles = match &self.names {
            Some(file) => read_names(file, before.len())?,
            None => renamed(&before, &self.renamed)?,
        };
        // Without prompts and baked numbers, the styles' names are what CLIP embeds.
        let has_numbers = artifact.assets().any(|(name, _)| name != Manifest::ASSET);
        if !has_numbers && manifest.prompts.is_empty() {
            manifest.prompts = manifest.prompts().map_err(|error| anyhow::anyhow!("{error}"))?;
        }
        manifest.styles = styles.clone();
        let bytes = Artifact::bake(artifact.bytes(), &[(Manifest::ASSET, manifest.to_json())])?;
        // The new file is a plugin with these styles before it replaces the old one.
        let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let trial = tempfile::Builder::new().prefix(".rename-").suffix(".wasm").tempfile_in(folder)?;
        fs_err::write(trial.path(), &bytes)?;
        let plugin =
            PluginHost::of_command(Limits::default(), context)?.load(&trial.path().to_string_lossy(), BTreeMap::new());
        let plugin = plugin.map_err(|error| error.fault)?;
        ensure!(
            plugin.description().styles() == styles,
            "`{name}` does not take its styles from its manifest: they are in its code, and cannot be renamed"
        );
        write_atomic(&output, &bytes)?;
        if self.json {
            let sha256 = &plugin.source().sha256;
            let output = output.to_string_lossy();
            println!("{}", to_json(&json!({ "plugin": output, "sha256": sha256, "before": before, "styles": styles })));
        } else {
            let n = before.iter().zip(&styles).filter(|(old, new)| old != new).count() as u64;
            context.progress.println(format!("{}: {} renamed", output.display(), counted(n, "style")));
        }
        Ok(())
    }
}

/// Returns the styles with their new names.
fn renamed(styles: &[String], pairs: &[(String, String)]) -> Result<Vec<String>> {
    let known: Vec<&str> = styles.iter().map(String::as_str).collect();
    for (i, (old, _)) in pairs.iter().enumerate() {
        ensure!(known.contains(&old.as_str()), "there is no style `{old}`; {}", key_hint(old, &known));
        ensure!(pairs[..i].iter().all(|(other, _)| other != old), "the style `{old}` is renamed twice");
    }
    let new = |style: &String| pairs.iter().find(|(old, _)| old == style).map_or(style, |(_, new)| new).clone();
    Ok(styles.iter().map(new).collect())
}

/// Reads the names of `n` styles, one per line.
pub(super) fn read_names(file: &Path, n: usize) -> Result<Vec<String>> {
    let text = crate::fs::read_text(file)?;
    let names: Vec<String> = text_lines(&text).into_iter().map(str::to_owned).collect();
    let (found, wanted) = (counted(names.len() as u64, "name"), counted(n as u64, "style"));
    ensure!(names.len() == n, "{} has {found} for {wanted}: write one per line, in their order", file.display());
    for (i, name) in names.iter().enumerate() {
        ensure!(!names[..i].contains(name), "{} has the name `{name}` twice", file.display());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles_are_renamed_by_name() {
        let styles = ["a", "b", "c"].map(String::from);
        let pair = |old: &str, new: &str| (old.to_owned(), new.to_owned());
        assert_eq!(
            renamed(&styles, &[pair("c", "x"), pair("a", "b"), pair("b", "a")]).expect("known"),
            ["b", "a", "x"]
        );
        let message = |pairs: &[_]| renamed(&styles, pairs).expect_err("it is refused").to_string();
        assert_eq!(message(&[pair("d", "x")]), "there is no style `d`; known here: a, b, c");
        assert_eq!(message(&[pair("a", "x"), pair("a", "y")]), "the style `a` is renamed twice");
    }
}
