//! `host plugin outdated`: installed plugins of which a registry has newer versions.

use anyhow::{Result, anyhow};
use clap::Args;
use semver::{Version, VersionReq};
use serde_json::json;

use crate::cli::plugin::install::data_folder;
use crate::context::Context;
use crate::plugin::store::Store;
use crate::plugin::store::installed::{Installed, installed};
use crate::plugin::store::reference::{Reference, Selector, highest, versions_of};
use crate::plugin::store::registry::{Access, Network, Registry, explained};
use crate::text::{sentence, table, to_json};

/// List the installed plugins of registries, with the versions that there are today. `host plugin update` installs those
/// that are wanted.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  host plugin outdated

wanted is the highest version that the reference allows which the plugin was installed by; newest is the highest one.")]
pub struct OutdatedArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// An installed plugin and the versions of today.
pub(super) struct Status {
    pub(super) wanted: Option<String>,
    pub(super) newest: Option<String>,
}

impl OutdatedArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let store = Store::of_command(context)?;
        let network = store.network()?;
        let all = installed(&data_folder()?)?;
        if all.is_empty() && !self.json {
            println!("no plugin was installed from a registry");
            return Ok(());
        }
        let mut rows = vec![];
        for (name, plugin) in all {
            context.interrupt.check("nothing was changed")?;
            let status = status(&plugin, network);
            rows.push((name, plugin, status));
        }
        if self.json {
            let plugins = rows.iter().map(|(name, plugin, status)| {
                let found = status.as_ref().ok();
                json!({
                    "plugin": name, "reference": plugin.reference, "version": plugin.version,
                    "wanted": found.map(|found| &found.wanted), "newest": found.map(|found| &found.newest),
                    "error": status.as_ref().err().map(sentence),
                })
            });
            println!("{}", to_json(&json!({ "plugins": plugins.collect::<Vec<_>>() })));
        } else {
            let header = ["plugin", "version", "wanted", "newest", "from"].map(str::to_owned).to_vec();
            let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".to_owned());
            let cells = rows.iter().map(|(name, plugin, status)| {
                let [wanted, newest] = match status {
                    Ok(status) => [shown(&status.wanted), shown(&status.newest)],
                    Err(_) => ["?".to_owned(), "?".to_owned()],
                };
                vec![name.clone(), shown(&plugin.version), wanted, newest, plugin.reference.clone()]
            });
            print!("{}", table(&[true; 5], &std::iter::once(header).chain(cells).collect::<Vec<_>>()));
        }
        let failed = rows.into_iter().find_map(|(_, _, status)| status.err());
        failed.map_or(Ok(()), Err)
    }
}

/// Asks a registry which versions of an installed plugin there are.
pub(super) fn status(plugin: &Installed, network: &Network) -> Result<Status> {
    let reference: Reference = plugin.reference.parse().map_err(|error: String| anyhow!(error))?;
    let place = &reference.repository;
    let registry = Registry::open(place, Access::Pull, network)?;
    let versions = versions_of(&registry.tags().map_err(|failure| explained(place, failure))?);
    let highest = |range: &VersionReq| highest(&versions, range).map(|version: Version| version.to_string());
    let wanted = match &reference.selector {
        Selector::Range(range) => highest(range),
        Selector::Tag(tag) => Some(tag.clone()),
        Selector::Digest(_) => plugin.version.clone(),
    };
    Ok(Status { wanted, newest: highest(&VersionReq::STAR) })
}
