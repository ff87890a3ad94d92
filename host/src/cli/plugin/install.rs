//! `host plugin install`: installs a plugin under a name, for all folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::cli::completions::plugins;
use crate::context::Context;
use crate::fs::write_atomic;
use crate::plugin::store::installed::{Installed, note};
use crate::plugin::store::{Origin, installed_folder, places, plugin_files, short_name};
use crate::plugin::{Found, Limits, Plugin, PluginHost, Published};
use crate::text::{sha256_digits, to_json};

/// Install a plugin into the user's data folder, so that it can be used by name from any folder.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin install ./mine.wasm
  host plugin install . --name sea_and_sky       a plugin crate: the output of `cargo build-plugin`
  host plugin install oci://registry.example.com/team/sea:^1.2     `host plugin update` keeps it up to date
  host plugin install ./mine.wasm --force        replace the plugin of that name
  host plugin install ./theirs.wasm --sha256 9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab")]
pub struct InstallArgs {
    /// A plugin: a path, a plugin crate's folder, or a reference to a registry
    #[arg(value_name = "FILE|REF", add = plugins())]
    plugin: String,
    /// The name to install it under [default: the file's]
    #[arg(long)]
    name: Option<String>,
    /// Install the plugin only if it has this digest, which is checked before anything of it runs
    #[arg(long, value_name = "DIGEST", value_parser = sha256_digits)]
    sha256: Option<String>,
    /// Replace an installed plugin of that name
    #[arg(long)]
    force: bool,
    /// Print one JSON document about what was installed
    #[arg(long)]
    json: bool,
}

impl InstallArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let folder = data_folder()?;
        let host = PluginHost::of_command(Limits::default(), context)?;
        let found = host.store().find(&self.plugin)?;
        let name = self.name.clone().unwrap_or_else(|| found.name.clone());
        check_name(&name)?;
        let (plugin, target) = Installation { folder: &folder, name: &name, replaces: self.force }.run(
            &host,
            &found,
            self.sha256.as_deref(),
        )?;
        let reference = host.store().meaning(&self.plugin).to_owned();
        note(&folder, &name, found.published.map(|published| origin(reference, published, &*plugin)))?;
        let sha256 = &plugin.source().sha256;
        if self.json {
            let description = plugin.description();
            let (version, styles) = (&description.version, description.styles());
            let path = target.to_string_lossy();
            let document =
                json!({ "plugin": name, "path": path, "sha256": sha256, "version": version, "styles": styles });
            println!("{}", to_json(&document));
        } else {
            context.progress.println(format!("installed `{name}` (sha256 {}…) as {}", &sha256[..12], target.display()));
        }
        for (_, nearer) in places().into_iter().filter(|(origin, _)| is_nearer(*origin)) {
            if let Some(file) = named(&nearer, &name) {
                tracing::warn!("in this folder `{name}` still means {}", file.display());
            }
        }
        Ok(())
    }
}

/// Returns the folder of installed plugins.
pub(super) fn data_folder() -> Result<PathBuf> {
    installed_folder().context("there is no data folder to install into: HOME and XDG_DATA_HOME are both unset")
}

/// Returns where a plugin that is installed came from.
pub(super) fn origin(reference: String, published: Published, plugin: &dyn Plugin) -> Installed {
    let Published { version, manifest, signer, .. } = published;
    Installed { reference, version, sha256: plugin.source().sha256.clone(), manifest, signer }
}

/// A plugin's way into the folder of installed plugins.
pub(super) struct Installation<'a> {
    pub(super) folder: &'a Path,
    pub(super) name: &'a str,
    /// Whether another installed plugin of that name is replaced.
    pub(super) replaces: bool,
}

impl Installation<'_> {
    /// Checks a plugin, and copies it; returns it and its new file. A file that is not a plugin is refused with its error
    /// before anything is installed.
    pub(super) fn run(
        &self,
        host: &PluginHost,
        found: &Found,
        sha256: Option<&str>,
    ) -> Result<(Box<dyn Plugin>, PathBuf)> {
        let plugin = host.load_found(found, BTreeMap::new(), sha256)?;
        let path = &found.path;
        let extension = path.extension().map(|extension| extension.to_string_lossy().into_owned()).unwrap_or_default();
        let target = self.folder.join(format!("{}.{extension}", self.name));
        let bytes = fs_err::read(path)?;
        // The .toml beside a model has the metadata that the model itself lacks.
        let side = Some(path.with_extension("toml")).filter(|side| extension != "wasm" && side.is_file());
        let side = side.map(fs_err::read).transpose()?;
        self.check_free(&target, &bytes, side.as_deref())?;
        fs_err::create_dir_all(self.folder)?;
        let target_side = target.with_extension("toml");
        match side {
            Some(side) => write_atomic(&target_side, &side)?,
            // That of the plugin that is replaced would describe this one.
            None if target_side.is_file() => fs_err::remove_file(&target_side)?,
            None => {}
        }
        write_atomic(&target, &bytes)?;
        Ok((plugin, target))
    }

    /// Checks that the name is free, or that the user wants a replacement.
    fn check_free(&self, target: &Path, bytes: &[u8], side: Option<&[u8]>) -> Result<()> {
        let Self { folder, name, replaces } = self;
        let shipped = places().into_iter().find(|(origin, _)| *origin == Origin::Shipped);
        if let Some(file) = shipped.and_then(|(_, folder)| named(&folder, name)) {
            bail!("`{name}` is a shipped plugin ({}), which would hide it; use another --name", file.display());
        }
        match named(folder, name) {
            None => Ok(()),
            Some(file) if file == target && fs_err::read(&file)? == bytes && is_same(&file, side)? => Ok(()),
            Some(file) if !replaces => {
                bail!("`{name}` is installed already as another file, {}; --force replaces it", file.display())
            }
            Some(file) if file == target => Ok(()),
            Some(file) => Ok(fs_err::remove_file(file)?),
        }
    }
}

/// Whether a folder is searched before the installed plugins and depends on the working folder.
fn is_nearer(origin: Origin) -> bool {
    matches!(origin, Origin::WorkingFolder | Origin::Plugins)
}

/// Whether the .toml beside an installed file has this content.
fn is_same(file: &Path, side: Option<&[u8]>) -> Result<bool> {
    let installed = Some(file.with_extension("toml")).filter(|side| side.is_file());
    Ok(installed.map(fs_err::read).transpose()?.as_deref() == side)
}

/// Returns the plugin file of that name in a folder.
pub(super) fn named(folder: &Path, name: &str) -> Option<PathBuf> {
    plugin_files(folder).into_iter().find(|file| short_name(&file.to_string_lossy()) == name)
}

fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    ensure!(
        !name.is_empty() && name.chars().all(good),
        "`{name}` is not a valid plugin name: use letters, digits, `_` and `-` (--name names another)"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["kmeans_image", "a-2"] {
            check_name(name).expect(name);
        }
        for name in ["", "../evil", "a b", "a.wasm"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
