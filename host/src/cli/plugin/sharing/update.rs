//! `host plugin update`: newer versions of installed plugins.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::Args;
use semver::Version;
use serde_json::json;

use crate::cli::completions::installed_plugins;
use crate::cli::plugin::install::{Installation, data_folder, origin};
use crate::context::Context;
use crate::plugin::store::installed::{Installed, installed, note};
use crate::plugin::{Limits, PluginHost};
use crate::text::{key_hint, to_json};

/// Install the newest versions of installed plugins that their references allow.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin update               all that were installed from registries
  host plugin update sea --json

`host plugin diff OLD NEW` shows how the behavior of a new version differs. A new version that somebody else signed is refused.")]
pub struct UpdateArgs {
    /// Names of installed plugins [default: all of registries]
    #[arg(value_name = "NAME", add = installed_plugins())]
    names: Vec<String>,
    /// Print one JSON document about what was updated
    #[arg(long)]
    json: bool,
}

impl UpdateArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let folder = data_folder()?;
        let all = installed(&folder)?;
        let chosen = self.chosen(&all)?;
        let host = PluginHost::of_command(Limits::default(), context)?;
        let mut updated = vec![];
        for (name, before) in chosen {
            context.interrupt.check("the plugins before this one were updated")?;
            let found = host.store().find(&before.reference)?;
            let manifest = found.published.as_ref().map(|published| published.manifest.clone());
            if manifest.as_ref() == Some(&before.manifest) {
                continue;
            }
            let version = |text: Option<&String>| text.and_then(|text| Version::parse(text).ok());
            let is = version(found.published.as_ref().and_then(|published| published.version.as_ref()));
            if let (Some(was), Some(is)) = (version(before.version.as_ref()), is)
                && is <= was
            {
                tracing::warn!("{name}: {was} is installed, and the registry has {is} today; it stays as it is");
                continue;
            }
            let (plugin, _) = Installation { folder: &folder, name, replaces: true }.run(&host, &found, None)?;
            let now = found.published.map(|published| origin(before.reference.clone(), published, &*plugin));
            let shown = |version: Option<&String>| version.cloned().unwrap_or_else(|| "?".to_owned());
            let version = shown(now.as_ref().and_then(|now| now.version.as_ref()));
            note(&folder, name, now)?;
            updated.push((name.clone(), shown(before.version.as_ref()), version));
        }
        if self.json {
            let plugins = updated.iter().map(|(name, was, is)| json!({ "plugin": name, "was": was, "is": is }));
            println!("{}", to_json(&json!({ "updated": plugins.collect::<Vec<_>>() })));
        } else if updated.is_empty() {
            context.progress.println("all are up to date");
        }
        for (name, was, is) in updated.iter().filter(|_| !self.json) {
            context.progress.println(format!("{name}: {was} → {is}"));
        }
        Ok(())
    }

    /// Returns the plugins that are named, or all.
    fn chosen<'a>(&self, all: &'a BTreeMap<String, Installed>) -> Result<Vec<(&'a String, &'a Installed)>> {
        for name in &self.names {
            if !all.contains_key(name) {
                let known: Vec<&str> = all.keys().map(String::as_str).collect();
                let hint = if known.is_empty() { "no plugin was".to_owned() } else { key_hint(name, &known) };
                bail!("`{name}` was not installed from a registry; {hint}");
            }
        }
        Ok(all.iter().filter(|(name, _)| self.names.is_empty() || self.names.contains(name)).collect())
    }
}
