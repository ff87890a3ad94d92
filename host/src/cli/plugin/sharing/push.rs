//! `host plugin push`: a plugin into a registry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use semver::Version;
use serde_json::json;

use super::sign::{files_of, push_signature, push_texts};
use super::{reference, secret_key};
use crate::cli::completions::plugins;
use crate::context::Context;
use crate::plugin::store::reference::{Reference, Repository, Selector};
use crate::plugin::store::registry::{Access, Document, Manifest, Package, Registry, explained, sha256};
use crate::plugin::store::signature::{EXTENSION, MAX_FILE, SignedAs, Signer, signature_file, signer_id};
use crate::plugin::{Limits, Plugin, PluginHost};
use crate::text::{size, to_json};

/// Publish a plugin in a registry, under a version that no plugin there has yet.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin push ./sea.wasm oci://registry.example.com/team/sea:1.2.0 --key team.key
  host plugin push . oci://registry.example.com/team/sea       a plugin crate, under its own version
  host plugin push ./sea.wasm oci://127.0.0.1:5000/team/sea:1.2.0 --dry-run

The registry is any that keeps container images. It gets the plugin in the layout of `wkg`, and what refers to it: the
signature of --key or of FILE.minisig, and the card. The login is docker's: `docker login REGISTRY`.")]
pub struct PushArgs {
    /// A plugin: a path, a name, or a plugin crate's folder
    #[arg(value_name = "P", add = plugins())]
    plugin: String,
    /// Where to: oci://REGISTRY/NAMESPACE/NAME, and :VERSION [default: the plugin's own version]
    #[arg(value_name = "REF", value_parser = reference)]
    reference: Reference,
    /// The secret key to sign with, NAME.key
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Do everything but publish
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document about what was published
    #[arg(long)]
    json: bool,
}

/// The signature that is published with a plugin.
enum Signature {
    /// It is made now.
    Key(Box<Signer>),
    /// It lies beside the files: one title and text per file.
    Beside(Vec<(String, String)>),
}

impl PushArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let place = &self.reference.repository;
        let host = PluginHost::of_command(Limits::default(), context)?;
        let found = host.store().find(&self.plugin)?;
        let plugin = host.load_found(&found, BTreeMap::new(), None)?;
        let version = self.version(&*plugin)?;
        let files = files_of(&found.path);
        let signature = self.signature(&files, place)?;
        let package = package(&*plugin, &files, place, &version)?;

        let registry = Registry::open(place, Access::Push, host.store().network()?)?;
        let failed = |failure| explained(place, failure);
        let there = registry.tagged(&version.to_string()).map_err(failed)?;
        if let Some(there) = &there {
            let same = is_same(there, &package);
            ensure!(
                same,
                "{place} has another plugin as version {version}: a version is never replaced, since others have locked it; \
                 push it as the next version"
            );
        }
        if self.dry_run {
            return self.say(context, &package, there.as_ref(), signature.as_ref(), "would be published");
        }
        let document = match there {
            Some(there) => there,
            None => registry.push(&package).map_err(failed)?,
        };
        if let Some(signature) = &signature {
            let published = SignedAs { name: place.name(), version: &package.version };
            match signature {
                Signature::Key(signer) => push_signature(&registry, &document, &files, signer, published)?,
                Signature::Beside(texts) => push_texts(&registry, &document, texts.clone())?,
            }
        }
        self.say(context, &package, Some(&document), signature.as_ref(), "published")
    }

    /// Returns the version that is published.
    fn version(&self, plugin: &dyn Plugin) -> Result<Version> {
        let own = &plugin.description().version;
        let (text, whose) = match &self.reference.selector {
            Selector::Tag(tag) => (tag, "the reference's"),
            Selector::Range(range) if *range == semver::VersionReq::STAR => (own, "the plugin's"),
            _ => bail!("{}: name the version that it gets, as in {}:1.0.0", self.reference, self.reference.repository),
        };
        let version = Version::parse(text)
            .with_context(|| format!("{whose} version `{text}` is none: write three numbers, as in 1.2.0"))?;
        ensure!(
            version.build.is_empty(),
            "the version {version} has a build's name, for which registries have no sign"
        );
        if *own != version.to_string() {
            tracing::info!("the plugin calls its version {own}; it is published as {version}");
        }
        Ok(version)
    }

    /// Returns the signature: that of `--key`, else the one beside the files.
    fn signature(&self, files: &[PathBuf], place: &Repository) -> Result<Option<Signature>> {
        if let Some(key) = &self.key {
            return Ok(Some(Signature::Key(Box::new(secret_key(key)?))));
        }
        if !files.iter().any(|file| signature_file(file).is_file()) {
            return Ok(None);
        }
        let mut texts = vec![];
        for file in files {
            let beside = signature_file(file);
            ensure!(
                beside.is_file() && fs_err::metadata(&beside)?.len() <= MAX_FILE as u64,
                "{} is missing or no signature, but the other file has one",
                beside.display()
            );
            let text = fs_err::read_to_string(&beside)?;
            signer_id(&text).with_context(|| beside.display().to_string())?;
            let extension = file.extension().unwrap_or_default().to_string_lossy();
            texts.push((format!("{}.{extension}.{EXTENSION}", place.name()), text));
        }
        Ok(Some(Signature::Beside(texts)))
    }

    fn say(
        &self,
        context: &Context,
        package: &Package,
        document: Option<&Document>,
        signature: Option<&Signature>,
        done: &str,
    ) -> Result<()> {
        let reference = self.reference.repository.tagged(&package.version).to_string();
        let key = match signature {
            None => None,
            Some(Signature::Key(signer)) => Some(signer.key().id()),
            Some(Signature::Beside(texts)) => texts.first().map(|(_, text)| signer_id(text)).transpose()?,
        };
        let digest = sha256(&package.bytes);
        if self.json {
            let document = json!({
                "reference": reference, "sha256": digest, "manifest": document.map(|document| &document.sha256),
                "key": key, "dry_run": self.dry_run,
            });
            println!("{}", to_json(&document));
        } else {
            let signed = key.map_or("not signed".to_owned(), |key| format!("signed with key {key}"));
            let bytes = size(package.bytes.len());
            context.progress.println(format!("{reference} is {done}: {bytes}, sha256 {}…, {signed}", &digest[..12]));
        }
        Ok(())
    }
}

/// Returns what is published of a plugin.
fn package(plugin: &dyn Plugin, files: &[PathBuf], place: &Repository, version: &Version) -> Result<Package> {
    let [path, side @ ..] = files else { bail!("a plugin has a file") };
    let inspection = plugin.inspect();
    let is_model = path.extension().is_some_and(|extension| extension != "wasm");
    let read = |path: &Path| anyhow::Ok(fs_err::read(path)?.into());
    Ok(Package {
        name: place.name().to_owned(),
        version: version.to_string(),
        description: plugin.source().title.clone().unwrap_or_default(),
        authors: inspection.authors,
        license: inspection.license,
        component: (!is_model).then_some((inspection.imports, inspection.exports)),
        bytes: read(path)?,
        metadata: side.first().map(|side| read(side)).transpose()?,
    })
}

/// Whether a manifest is that of a plugin's files.
fn is_same(there: &Document, package: &Package) -> bool {
    let files = package.files();
    let wanted = files.iter().map(|file| format!("sha256:{}", sha256(&file.bytes)));
    Manifest::read(&there.bytes)
        .is_ok_and(|manifest| manifest.layers.iter().map(|layer| layer.digest.clone()).eq(wanted))
}
