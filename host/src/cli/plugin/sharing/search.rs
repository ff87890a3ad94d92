//! `host plugin search`: the plugins of a registry.

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use semver::VersionReq;
use serde_json::json;

use crate::context::Context;
use crate::net::Failure;
use crate::plugin::store::Store;
use crate::plugin::store::reference::{Repository, SCHEME, highest, versions_of};
use crate::plugin::store::registry::{Access, Contents, DESCRIPTION, Manifest, Network, Registry, explained};
use crate::text::{escaped, table, to_json};

/// Number of places that are examined.
const MAX_PLACES: usize = 200;
/// Number of characters of a description in the table.
const SHOWN: usize = 60;

/// List the plugins of a registry, or of a namespace in it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin search oci://registry.example.com/team
  host plugin search oci://127.0.0.1:5000 --json

It needs a registry with a catalog, which those that teams run themselves have, and large public ones do not.")]
pub struct SearchArgs {
    /// oci://REGISTRY or oci://REGISTRY/NAMESPACE
    #[arg(value_name = "REGISTRY")]
    registry: String,
    /// Only those whose name or description contains this
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// A plugin that was found.
struct Hit {
    place: Repository,
    version: String,
    kind: &'static str,
    description: String,
}

impl SearchArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let wrong =
            || anyhow!("{} is no registry: write oci://REGISTRY or oci://REGISTRY/NAMESPACE", escaped(&self.registry));
        let prefix = self.registry.strip_prefix(SCHEME).with_context(wrong)?.trim_end_matches('/');
        let (host, path) = prefix.split_once('/').unwrap_or((prefix, "catalog"));
        let place = Repository::new(host, path).with_context(wrong)?;
        let store = Store::of_command(context)?;
        let network = store.network()?;
        let registry = Registry::open(&place, Access::Catalog, network)?;
        let (places, more) = registry.catalog(prefix).map_err(|failure| match failure {
            Failure::Status { status: 401 | 403 | 404 | 405, .. } => {
                anyhow!("{host} lets nobody list what it has: name a plugin, `host plugin versions oci://{host}/NAMESPACE/NAME`")
            }
            failure => explained(&place, failure),
        })?;
        let more = more || places.len() > MAX_PLACES;
        let bar = context.progress.bar("reading", places.len().min(MAX_PLACES) as u64, "places");
        let mut hits = vec![];
        for place in places.into_iter().take(MAX_PLACES) {
            context.interrupt.check("nothing was written")?;
            hits.extend(newest(&place, network)?);
            bar.inc(1);
        }
        bar.finish();
        if let Some(text) = &self.text {
            let text = text.to_lowercase();
            hits.retain(|hit| hit.place.path.contains(&text) || hit.description.to_lowercase().contains(&text));
        }
        if self.json {
            let hits = hits.iter().map(|hit| {
                let Hit { place, version, kind, description } = hit;
                json!({ "plugin": format!("{SCHEME}{place}"), "version": version, "kind": kind, "description": description })
            });
            println!("{}", to_json(&json!({ "plugins": hits.collect::<Vec<_>>(), "more": more })));
            return Ok(());
        }
        if hits.is_empty() {
            println!("no plugins");
        } else {
            let header = ["plugin", "version", "kind", "description"].map(str::to_owned).to_vec();
            let cells = hits.iter().map(|hit| {
                let description: String = escaped(&hit.description).chars().take(SHOWN).collect();
                vec![format!("{SCHEME}{}", hit.place), hit.version.clone(), hit.kind.to_owned(), description]
            });
            print!("{}", table(&[true; 4], &std::iter::once(header).chain(cells).collect::<Vec<_>>()));
        }
        if more {
            println!("the registry has more; name a namespace");
        }
        Ok(())
    }
}

/// Returns the newest version of a place; nothing if that is no plugin, or must not be read.
fn newest(place: &Repository, network: &Network) -> Result<Option<Hit>> {
    let registry = Registry::open(place, Access::Pull, network)?;
    let found = registry.tags().and_then(|tags| {
        let Some(version) = highest(&versions_of(&tags), &VersionReq::STAR) else { return Ok(None) };
        Ok(Some((registry.manifest(&version.to_string())?, version)))
    });
    let (document, version) = match found {
        Ok(Some(found)) => found,
        // Others' places, and those whose versions were removed.
        Ok(None) | Err(Failure::Status { status: 401 | 403 | 404, .. }) => return Ok(None),
        Err(failure) => return Err(explained(place, failure)),
    };
    let Ok(manifest) = Manifest::read(&document.bytes) else { return Ok(None) };
    let Ok(contents) = manifest.contents() else { return Ok(None) };
    let kind = if matches!(contents, Contents::Component(_)) { "wasm" } else { "onnx" };
    let description = manifest.annotations.get(DESCRIPTION).cloned().unwrap_or_default();
    Ok(Some(Hit { place: place.clone(), version: version.to_string(), kind, description }))
}
