//! `host plugin uninstall`: removes an installed plugin.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;

use super::install::named;
use crate::cli::completions::installed_plugins;
use crate::context::Context;
use crate::fs::remove_file;
use crate::plugin::store::installed::note;
use crate::plugin::store::{Origin, installed_folder, places, plugin_files, short_name};
use crate::text::{key_hint, to_json};

/// Remove an installed plugin; those that ship, and files elsewhere, stay as they are.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  host plugin uninstall mine

`host plugin list` shows which plugins are installed.")]
pub struct UninstallArgs {
    /// The name under which the plugin is installed
    #[arg(add = installed_plugins())]
    name: String,
    /// Print one JSON document about what was removed
    #[arg(long)]
    json: bool,
}

impl UninstallArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let folder = installed_folder()
            .context("there is no data folder of installed plugins: HOME and XDG_DATA_HOME are both unset")?;
        let Some(file) = named(&folder, &self.name) else {
            let elsewhere = places().into_iter().filter(|(origin, _)| *origin != Origin::Installed);
            let mut found = elsewhere.filter_map(|(origin, folder)| Some((origin, named(&folder, &self.name)?)));
            if let Some((origin, file)) = found.next() {
                bail!("`{}` is not installed: it is {} ({})", self.name, file.display(), origin.as_str());
            }
            let installed: Vec<String> =
                plugin_files(&folder).iter().map(|file| short_name(&file.to_string_lossy())).collect();
            let installed: Vec<&str> = installed.iter().map(String::as_str).collect();
            let hint = if installed.is_empty() {
                "no plugin is".to_owned()
            } else {
                key_hint(&self.name, &installed).replace("known here", "installed")
            };
            bail!("`{}` is not installed; {hint}", self.name);
        };
        // The .toml of a model goes last: without the model it is nothing, and the model without it is another one.
        let side = file.with_extension("toml");
        remove_file(&file)?;
        remove_file(&side)?;
        note(&folder, &self.name, None)?;
        if self.json {
            println!("{}", to_json(&json!({ "plugin": self.name, "removed": file.to_string_lossy() })));
        } else {
            context.progress.println(format!("removed `{}`, {}", self.name, file.display()));
        }
        Ok(())
    }
}
