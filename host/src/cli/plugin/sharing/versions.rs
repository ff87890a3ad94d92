//! `host plugin versions`: the versions of a plugin in a registry.

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use super::reference;
use crate::cli::numbers::within;
use crate::context::Context;
use crate::plugin::store::Store;
use crate::plugin::store::reference::{Reference, Selector, versions_of};
use crate::plugin::store::registry::{Access, Manifest, Registry, explained};
use crate::text::{size, table, to_json};

/// Number of versions whose manifests are read.
const SHOWN: usize = 20;

/// List the versions of a plugin in a registry, the highest first.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin versions oci://registry.example.com/team/sea
  host plugin versions oci://registry.example.com/team/sea:^1 --json     those of a range")]
pub struct VersionsArgs {
    /// The plugin: oci://REGISTRY/NAMESPACE/NAME, and :RANGE for those of a range alone
    #[arg(value_name = "REF", value_parser = reference)]
    reference: Reference,
    /// Number of versions
    #[arg(long, value_name = "N", default_value_t = SHOWN, value_parser = within(1usize..=10_000))]
    count: usize,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl VersionsArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let Reference { repository: place, selector } = &self.reference;
        let store = Store::of_command(context)?;
        let registry = Registry::open(place, Access::Pull, store.network()?)?;
        let failed = |failure| explained(place, failure);
        let mut versions = versions_of(&registry.tags().map_err(failed)?);
        let total = versions.len();
        match selector {
            Selector::Range(range) if *range != semver::VersionReq::STAR => {
                versions.retain(|version| range.matches(version));
            }
            Selector::Range(_) => {}
            Selector::Tag(tag) => versions.retain(|version| version.to_string() == *tag),
            Selector::Digest(_) => anyhow::bail!("a digest is one version: leave it out"),
        }
        ensure!(!versions.is_empty(), "{}: none of its {total} versions is meant", self.reference);
        let left_out = versions.len().saturating_sub(self.count);
        let mut rows = vec![];
        for version in versions.iter().take(self.count) {
            let document = registry.manifest(&version.to_string()).map_err(failed)?;
            let manifest = Manifest::read(&document.bytes);
            let contents = manifest.and_then(|manifest| manifest.contents());
            let bytes = contents
                .map(|contents| contents.files().iter().map(|(_, file)| file.size).fold(0, u64::saturating_add));
            rows.push((version.to_string(), document.sha256, bytes));
        }
        if self.json {
            let versions = rows.iter().map(|(version, manifest, bytes)| {
                json!({ "version": version, "manifest": manifest, "bytes": bytes.as_ref().ok() })
            });
            let versions: Vec<_> = versions.collect();
            println!(
                "{}",
                to_json(&json!({ "plugin": place.to_string(), "versions": versions, "left_out": left_out }))
            );
            return Ok(());
        }
        let header = ["version", "size", "manifest"].map(str::to_owned).to_vec();
        let cells = rows.into_iter().map(|(version, manifest, bytes)| {
            let size = bytes.map_or_else(|_| "no plugin".to_owned(), |bytes| size(bytes as usize));
            vec![version, size, manifest[..12].to_owned()]
        });
        print!("{}", table(&[true, false, true], &std::iter::once(header).chain(cells).collect::<Vec<_>>()));
        if left_out > 0 {
            println!("{left_out} more; --count shows them");
        }
        Ok(())
    }
}
