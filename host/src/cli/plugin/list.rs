//! `host plugin list`: lists the plugins that can be used by name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::context::Context;
use crate::plugin::store::{Origin, PROJECT_FILE, places, plugin_files, short_name};
use crate::plugin::{Description, Glance, Limits, PluginHost};
use crate::text::{escaped, shown, size, table, to_json};

/// List the plugins that can be used by name: those of ambiguity.toml, those in the working folder, in ./plugins, shipped
/// and installed ones. None is compiled or pulled.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin list
  host plugin list --json

A name means the first plugin of that name in this order: ambiguity.toml, working folder, ./plugins, shipped, installed.")]
pub struct ListArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// One plugin file.
struct Listed {
    name: String,
    path: PathBuf,
    origin: Origin,
    bytes: usize,
    /// The plugin's digest and description, or why it cannot be loaded.
    found: Result<Glance, String>,
    /// The file that the name refers to instead.
    hidden_by: Option<PathBuf>,
}

impl ListArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let host = PluginHost::of_command(Limits::default(), context)?;
        let mut seen: BTreeMap<String, PathBuf> = BTreeMap::new();
        let mut listed = vec![];
        let projects = host.store().project().map(|project| project.plugins.clone()).unwrap_or_default();
        for (name, meaning) in &projects {
            seen.insert(name.clone(), meaning.into());
        }
        for (origin, folder) in places() {
            for path in plugin_files(&folder) {
                let name = short_name(&path.to_string_lossy());
                let hidden_by = seen.get(&name).cloned();
                seen.entry(name.clone()).or_insert_with(|| path.clone());
                let found = host.glance(&path).map_err(|error| escaped(&error.fault.to_string()).into_owned());
                let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len() as usize);
                listed.push(Listed { name, path, origin, bytes, found, hidden_by });
            }
        }
        match self.json {
            true => {
                let plugins: Vec<Value> = listed.iter().map(Listed::document).collect();
                println!("{}", to_json(&json!({ "plugins": plugins, "project": projects })));
            }
            false if listed.is_empty() && projects.is_empty() => {
                println!("no plugins; create one with `host plugin fit` or `host plugin new`")
            }
            false => print!("{}{}", project_layout(&projects), layout(&listed)),
        }
        Ok(())
    }
}

impl Listed {
    fn kind(&self) -> String {
        self.path.extension().map(|extension| extension.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn document(&self) -> Value {
        let (glance, error) = match &self.found {
            Ok(glance) => (Some(glance), None),
            Err(error) => (None, Some(error)),
        };
        let description = glance.and_then(|glance| glance.description.as_ref());
        json!({
            "plugin": self.name,
            "path": self.path.to_string_lossy(),
            "kind": self.kind(),
            "origin": self.origin.as_str(),
            "bytes": self.bytes,
            "sha256": glance.map(|glance| &glance.sha256),
            "version": description.map(|description| &description.version),
            "styles": description.map(Description::styles),
            "media": description.map(|description| &description.media),
            "encoders": description.map(|description| &description.encoders),
            "hidden_by": self.hidden_by.as_ref().map(|path| path.to_string_lossy()),
            "error": error,
        })
    }
}

/// Returns what the names of the project's file mean.
fn project_layout(projects: &BTreeMap<String, String>) -> String {
    if projects.is_empty() {
        return String::new();
    }
    let rows = projects.iter().map(|(name, meaning)| vec![name.clone(), escaped(meaning).into_owned()]);
    let header = ["name".to_owned(), PROJECT_FILE.to_owned()].to_vec();
    format!("{}\n", table(&[true, true], &std::iter::once(header).chain(rows).collect::<Vec<_>>()))
}

fn layout(listed: &[Listed]) -> String {
    let header = ["name", "kind", "styles", "media", "size", "sha256", "from"].map(str::to_owned).to_vec();
    let (mut notes, mut uncompiled) = (String::new(), vec![]);
    let rows = listed.iter().map(|plugin| {
        let (styles, media, sha256) = match &plugin.found {
            Ok(Glance { sha256, description }) => {
                let (styles, media) = match description {
                    Some(description) => {
                        let styles = match description.scale() {
                            Some(_) => "score".to_owned(),
                            None => description.styles().len().to_string(),
                        };
                        (styles, description.media_names(", "))
                    }
                    None => {
                        uncompiled.push(format!("`{}`", escaped(&plugin.name)));
                        ("?".to_owned(), "?".to_owned())
                    }
                };
                (styles, media, sha256[..12].to_owned())
            }
            Err(error) => {
                notes += &format!("{} cannot be loaded: {error}\n", shown(&plugin.path));
                ("-".to_owned(), "-".to_owned(), "-".to_owned())
            }
        };
        if let Some(first) = &plugin.hidden_by {
            let (name, path, first) = (escaped(&plugin.name), shown(&plugin.path), shown(first));
            notes += &format!("{path} is hidden: `{name}` means {first}\n");
        }
        let origin = plugin.origin.as_str().to_owned();
        vec![plugin.name.clone(), plugin.kind(), styles, media, size(plugin.bytes), sha256, origin]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    if !uncompiled.is_empty() {
        notes += &format!(
            "? is known after the first use, which compiles a plugin: {}; `host plugin inspect NAME` is one\n",
            uncompiled.join(", ")
        );
    }
    let table = table(&[true, true, false, true, false, true, true], &rows);
    if notes.is_empty() { table } else { format!("{table}\n{notes}") }
}
