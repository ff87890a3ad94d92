//! `host plugin push`: a plugin into a registry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Args;
use semver::Version;
use serde_json::json;

use super::sign::{files_of, push_signature, push_texts};
use super::{reference, secret_key};
use crate::cli::completions::plugins;
use crate::cli::plugin::card::{Given, collect};
use crate::cli::plugin::diff::{Comparison, Pair, Samples, TOLERANCE, compare};
use crate::cli::plugin::running::RunningArgs;
use crate::config::PluginLimits;
use crate::context::Context;
use crate::encoders::Encoders;
use crate::interrupt::Interrupted;
use crate::net::Failure;
use crate::plugin::store::reference::{Reference, Repository, Selector, versions_of};
use crate::plugin::store::registry::{
    Access, CARD, Document, Manifest, Package, PackageFile, Registry, explained, sha256,
};
use crate::plugin::store::signature::{EXTENSION, MAX_FILE, SignedAs, Signer, signature_file, signer_id};
use crate::plugin::store::trust::{Policy, Trust};
use crate::plugin::{Plugin, PluginHost};
use crate::text::{sentence, size, to_json};

/// Publish a plugin in a registry, under a version that no plugin there has yet.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin push ./sea.wasm oci://registry.example.com/team/sea:1.2.0 --key team.key
  host plugin push . oci://registry.example.com/team/sea       a plugin crate, under its own version
  host plugin push ./sea.wasm oci://127.0.0.1:5000/team/sea:1.2.0 --dry-run

By how much its behavior differs from the version before asks for a version, as `host plugin diff` says; a lower one is
refused, unless --allow is given.

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
    /// Publish it although its behavior asks for a higher version, or cannot be compared
    #[arg(long)]
    allow: bool,
    /// Publish no card
    #[arg(long)]
    no_card: bool,
    #[command(flatten)]
    running: RunningArgs,
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

impl Signature {
    /// Returns the id of the key.
    fn key_id(&self) -> Result<String> {
        match self {
            Self::Key(signer) => Ok(signer.key().id()),
            Self::Beside(texts) => signer_id(&texts.first().context("a plugin has a file")?.1),
        }
    }
}

impl PushArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let place = &self.reference.repository;
        let host = self.running.on_device(PluginHost::of_command(PluginLimits::preset(), context)?)?;
        let found = host.store().find(&self.plugin)?;
        let mut plugin = host.load_found(&found, self.running.config().iter().cloned().collect(), None)?;
        let version = self.version(&*plugin)?;
        let files = files_of(&found.path);
        let signature = self.signature(&files, place, host.store().trust()?)?;
        let package = package(&*plugin, &files, place, &version)?;
        let is_loaded = package.component.is_none() || sha256(&package.bytes) == plugin.source().sha256;
        ensure!(is_loaded, "{} changed while it was read: push it again", found.path.display());

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
        let mut encoders = self.running.encoders(context)?;
        if there.is_none() {
            let tags = match registry.tags() {
                // Nothing was published there yet.
                Err(Failure::Status { status: 404, .. }) => vec![],
                tags => tags.map_err(failed)?,
            };
            self.check_bump(&mut *plugin, &mut encoders, &version, &tags, context)?;
        }
        let key = signature.as_ref().map(Signature::key_id).transpose()?;
        let card = match self.no_card {
            true => None,
            false => Some(self.card(&mut *plugin, &mut encoders, key.as_deref(), context)?),
        };
        if self.dry_run {
            return self.say(context, &package, there.as_ref(), signature.as_ref(), "would be published");
        }
        let document = match there {
            Some(there) => there,
            None => registry.push(&package).map_err(failed)?,
        };
        if let Some(signature) = &signature {
            let published = SignedAs { name: &place.path, version: &package.version };
            match signature {
                Signature::Key(signer) => push_signature(&registry, &document, &titled(&package), signer, published)?,
                Signature::Beside(texts) => push_texts(&registry, &document, texts.clone())?,
            }
        }
        if let Some(files) = &card {
            registry.push_referrer(&document, CARD, files, BTreeMap::new()).map_err(failed)?;
        }
        self.say(context, &package, Some(&document), signature.as_ref(), "published")
    }

    /// Compares the plugin with the highest version below the one that it gets, and refuses a version that is lower than its
    /// behavior asks for.
    fn check_bump(
        &self,
        plugin: &mut dyn Plugin,
        encoders: &mut Encoders,
        version: &Version,
        tags: &[String],
        context: &Context,
    ) -> Result<()> {
        let place = &self.reference.repository;
        let Some(before) = versions_of(tags).into_iter().find(|before| before < version) else { return Ok(()) };
        let old = place.tagged(&before.to_string()).to_string();
        let problem = match self.compared(plugin, encoders, &old, context) {
            Ok(comparison) if comparison.bump().is_enough(&before, version) => {
                context.progress.println(format!("compared with {before}: a {} change", comparison.bump().name()));
                return Ok(());
            }
            Ok(comparison) => {
                let (bump, least) = (comparison.bump(), comparison.bump().least_version(&before));
                let why = comparison.reasons().first().map(|reason| format!(": {}", reason.text)).unwrap_or_default();
                anyhow!(
                    "compared with {before}, this is a {} change{why}; it asks for version {least} at least",
                    bump.name()
                )
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => error.context(format!("it cannot be compared with version {before}")),
        };
        if self.allow {
            tracing::warn!("{}; published as {version} anyway", sentence(&problem));
            return Ok(());
        }
        bail!(
            "{}; push it as that, or with --allow (`host plugin diff {old} {}` shows more)",
            sentence(&problem),
            self.plugin
        )
    }

    fn compared(
        &self,
        plugin: &mut dyn Plugin,
        encoders: &mut Encoders,
        old: &str,
        context: &Context,
    ) -> Result<Comparison> {
        // Who publishes has the right to the place: whoever signed the version before.
        let host = PluginHost::of_command(PluginLimits::preset(), context)?.trusting(Trust::of_policy(Policy::Off));
        let mut before = self.running.load(&self.running.on_device(host)?, old)?;
        let descriptions = [before.description(), plugin.description()];
        let mut samples = Samples::find(&[&self.plugin], &[], None, descriptions)?;
        let mut pair = Pair { old: &mut *before, new: plugin, encoders, old_encoders: None };
        compare(&mut pair, &mut samples, TOLERANCE, context)
    }

    /// Returns the files of the plugin's card.
    fn card(
        &self,
        plugin: &mut dyn Plugin,
        encoders: &mut Encoders,
        key: Option<&str>,
        context: &Context,
    ) -> Result<Vec<PackageFile>> {
        let signer = key.map(|id| format!("key {id}"));
        let given =
            Given { reference: &self.plugin, samples: &[], config: self.running.config(), signer: signer.as_deref() };
        let card = collect(plugin, encoders, given, context).context("the card; --no-card leaves it out")?;
        let name = self.reference.repository.name();
        let file = |media_type, extension: &str, text: String| PackageFile {
            media_type,
            title: format!("{name}.card.{extension}"),
            bytes: text.into_bytes().into(),
        };
        Ok(vec![file("text/markdown", "md", card.markdown()?), file("text/html", "html", card.html()?)])
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
            .map_err(|error| anyhow!("{whose} version `{text}` is none: write three numbers, as in 1.2.0 ({error})"))?;
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
    fn signature(&self, files: &[PathBuf], place: &Repository, trust: &Trust) -> Result<Option<Signature>> {
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
            // A signature that cannot be right would make the version unusable.
            trust.check_fit(&fs_err::read(file)?, &text).with_context(|| beside.display().to_string())?;
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
        let key = signature.map(Signature::key_id).transpose()?;
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

/// Returns the files of a package by their titles.
fn titled(package: &Package) -> Vec<(String, Arc<[u8]>)> {
    package.files().into_iter().map(|file| (file.title, file.bytes)).collect()
}

/// Whether a manifest is that of a plugin's files.
fn is_same(there: &Document, package: &Package) -> bool {
    let files = package.files();
    let wanted = files.iter().map(|file| format!("sha256:{}", sha256(&file.bytes)));
    Manifest::read(&there.bytes)
        .is_ok_and(|manifest| manifest.layers.iter().map(|layer| layer.digest.clone()).eq(wanted))
}
