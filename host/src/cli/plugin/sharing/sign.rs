//! `host plugin sign`: a signature beside a file, or in a registry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use super::secret_key;
use crate::cli::completions::plugins;
use crate::context::Context;
use crate::fs::write_atomic;
use crate::plugin::store::reference::is_reference;
use crate::plugin::store::registry::{Access, Document, PackageFile, Registry, SIGNATURE, explained};
use crate::plugin::store::signature::{EXTENSION, SignedAs, Signer, signature_file};
use crate::plugin::store::trust::{Policy, Trust};
use crate::plugin::{Found, Limits, PluginHost};
use crate::text::to_json;

/// Sign a plugin with a minisign key: a file gets FILE.minisig beside it, a plugin of a registry a signature there.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin sign ./sea.wasm --key team.key
  host plugin sign oci://registry.example.com/team/sea:1.2.0 --key team.key

`host plugin push --key` signs what it pushes. The signatures are those of the tool `minisign`.")]
pub struct SignArgs {
    /// A plugin: a path, a name, or a reference to a registry
    #[arg(value_name = "P|REF", add = plugins())]
    plugin: String,
    /// The secret key, NAME.key; AMBIGUITY_KEY_PASSWORD or the terminal gives its password
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Print one JSON document about the signature
    #[arg(long)]
    json: bool,
}

impl SignArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let host = PluginHost::of_command(Limits::default(), context)?;
        let signer = secret_key(&self.key)?;
        let reference = host.store().meaning(&self.plugin).to_owned();
        let what = match is_reference(&reference) {
            true => sign_published(&reference, host, &signer)?,
            false => {
                let found = host.store().find(&reference)?;
                // A file that is no plugin gets no signature.
                host.load_found(&found, BTreeMap::new(), None)?;
                sign_files(&found.path, &signer)?
            }
        };
        let id = signer.key().id();
        match self.json {
            true => println!("{}", to_json(&json!({ "plugin": self.plugin, "key": id, "signature": what }))),
            false => context.progress.println(format!("signed with key {id}: {what}")),
        }
        Ok(())
    }
}

/// Returns a plugin's files: its own, and the .toml beside a model.
pub(super) fn files_of(path: &Path) -> Vec<PathBuf> {
    let is_model = path.extension().is_some_and(|extension| extension != "wasm");
    let side = Some(path.with_extension("toml")).filter(|side| is_model && side.is_file());
    [path.to_owned()].into_iter().chain(side).collect()
}

fn sign_files(path: &Path, signer: &Signer) -> Result<String> {
    let files = files_of(path);
    let mut texts = vec![];
    for file in &files {
        let name = file.file_name().context("a plugin's file has a name")?.to_string_lossy();
        texts.push((signature_file(file), signer.sign(&fs_err::read(file)?, &name, files.len(), None)?));
    }
    for (path, text) in &texts {
        write_atomic(path, text.as_bytes())?;
    }
    Ok(texts.iter().map(|(path, _)| path.display().to_string()).collect::<Vec<_>>().join(", "))
}

fn sign_published(reference: &str, host: PluginHost, signer: &Signer) -> Result<String> {
    // Who signs decides for himself whether the plugin is right.
    let off = Trust::of_policy(Policy::Off);
    let network = host.store().network()?.clone();
    let cache = host.store().cache()?;
    let host = host.trusting(off);
    let found = host.store().find(reference)?;
    let plugin = host.load_found(&found, BTreeMap::new(), None)?;
    let Found { path, published, .. } = found;
    let published = published.context("it is from a registry")?;
    let Some(version) = &published.version else { bail!("{reference}: name a version, since a signature is for one") };
    ensure!(semver::Version::parse(version).is_ok(), "{reference}: name a version, since {version} is only a tag");
    let bytes = cache.bytes(&published.manifest).context("the manifest disappeared from the cache")?;
    let manifest = Document { sha256: published.manifest.clone(), bytes };
    let registry = Registry::open(&published.place, Access::Push, &network)?;
    let signed_as = SignedAs { name: &published.place.path, version };
    let files = files_of(&path).into_iter().map(|file| {
        let extension = file.extension().unwrap_or_default().to_string_lossy();
        Ok((format!("{}.{extension}", published.place.name()), fs_err::read(&file)?.into()))
    });
    push_signature(&registry, &manifest, &files.collect::<Result<Vec<_>>>()?, signer, signed_as)?;
    let digest = &plugin.source().sha256[..12];
    Ok(format!("{} (sha256 {digest}…)", published.reference()))
}

/// Signs files of a manifest, by their titles, and publishes the signature.
pub(super) fn push_signature(
    registry: &Registry,
    manifest: &Document,
    files: &[(String, Arc<[u8]>)],
    signer: &Signer,
    published: SignedAs<'_>,
) -> Result<()> {
    let mut signatures = vec![];
    for (title, bytes) in files {
        let text = signer.sign(bytes, title, files.len(), Some(published))?;
        signatures.push((format!("{title}.{EXTENSION}"), text));
    }
    push_texts(registry, manifest, signatures)
}

/// Publishes signatures: one text per file, each with its title.
pub(super) fn push_texts(registry: &Registry, manifest: &Document, signatures: Vec<(String, String)>) -> Result<()> {
    let file =
        |(title, text): (String, String)| PackageFile { media_type: SIGNATURE, title, bytes: text.into_bytes().into() };
    let files: Vec<PackageFile> = signatures.into_iter().map(file).collect();
    let pushed = registry.push_referrer(manifest, SIGNATURE, &files, BTreeMap::new());
    pushed.map(drop).map_err(|failure| explained(&registry.repository, failure))
}
