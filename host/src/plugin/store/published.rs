//! Plugins of registries: from a reference to verified files in the cache.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use semver::{Version, VersionReq};

use super::reference::{Reference, Repository, Selector, highest, versions_of};
use super::registry::{
    Access, Cache, Contents, Descriptor, Document, Manifest, Network, Registry, SIGNATURE, VERSION, explained, sha256,
};
use super::signature::MAX_FILE;
use super::trust::{Policy, Signer, Trust};
use super::{Found, Pin};
use crate::fs::remove_file;
use crate::net::{Failure, Meter, check_space, lock, missing};
use crate::plugin::limits::{Limits, mib};
use crate::text::{gibibytes, size};

/// A plugin that was pulled from a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The place, `REGISTRY/NAMESPACE/NAME`.
    pub place: Repository,
    /// The tag, in most cases a version, that the reference meant; nothing if it named a digest.
    pub version: Option<String>,
    /// The sha256 of the manifest, in hexadecimal, which pins all files.
    pub manifest: String,
    /// Who signed it; nothing if nobody did, or if signatures are not looked for.
    pub signer: Option<Signer>,
}

impl Published {
    /// Returns the reference that means these files as long as the registry keeps its word.
    pub fn reference(&self) -> String {
        let selector = match &self.version {
            Some(version) => Selector::Tag(version.clone()),
            None => Selector::Digest(self.manifest.clone()),
        };
        Reference { repository: self.place.clone(), selector }.to_string()
    }
}

/// What finding a published plugin needs.
pub(super) struct Finder<'a> {
    pub(super) network: &'a Network,
    pub(super) cache: &'a Cache,
    pub(super) trust: &'a Trust,
}

/// A version that was chosen.
struct Chosen {
    version: Option<String>,
    manifest: Document,
    /// The registry, if it was asked.
    registry: Option<Registry>,
}

impl Finder<'_> {
    /// Returns the files of a plugin, after everything about them was verified: those of the version that the reference
    /// means, or those of `pin`.
    ///
    /// # Errors
    /// If the registry cannot be reached or lies, if the cache was changed, or if the signature is not accepted.
    pub(super) fn find(&self, reference: &Reference, pin: Option<&Pin>) -> Result<Found> {
        let place = &reference.repository;
        let chosen = match pin {
            Some(pin) => self.pinned(place, &pin.manifest, pin.version.clone())?,
            None => self.chosen(reference)?,
        };
        let Chosen { version, manifest: document, registry } = chosen;
        let manifest = Manifest::read(&document.bytes).map_err(|what| anyhow!("{place}: the registry {what}"))?;
        let contents = manifest.contents().map_err(|what| anyhow!("{place}: the registry {what}"))?;
        check_sizes(place, &contents)?;
        let is_said = version.is_some() && registry.is_some() && pin.is_none();
        let registry = self.complete(place, &contents, registry)?;
        let signatures = self.signatures(place, &document.sha256, registry.as_ref())?;
        let files = contents.files().into_iter().map(|(_, file)| self.verified(place, file));
        let files = files.collect::<Result<Vec<_>>>()?;
        // A signature is for a version: the tag, if it is one, or what the manifest states.
        let stated = version.iter().chain(manifest.annotations.get(VERSION)).find(|text| Version::parse(text).is_ok());
        let signer = self.accepted(place, stated.map(String::as_str), pin, &files, &signatures)?;
        let held = self.cache.hold(place, self.network)?;
        self.cache.keep(&document.bytes)?;
        let mut digests = vec![];
        for signature in &signatures {
            signature.iter().try_for_each(|text| self.cache.keep(text.as_bytes()))?;
            digests.push(signature.iter().map(|text| sha256(text.as_bytes())).collect::<Vec<_>>());
        }
        self.cache.update(&held, place, |index| {
            // Only what the registry says a version is.
            if let Some(version) = version.as_ref().filter(|_| is_said) {
                index.versions.insert(version.clone(), document.sha256.clone());
            }
            let known = index.signatures.entry(document.sha256.clone()).or_default();
            digests.retain(|signature| !known.contains(signature));
            known.extend(digests);
        })?;
        let mut path = PathBuf::new();
        for (i, (extension, file)) in contents.files().into_iter().enumerate() {
            let digest = file.sha256().map_err(|what| anyhow!(what))?;
            let named = self.cache.named(&document.sha256, &format!("{}.{extension}", place.name()), &digest)?;
            if i == 0 {
                path = named;
            }
        }
        if matches!(&contents, Contents::Onnx { metadata: None, .. }) {
            // Nothing beside the model belongs to it.
            remove_file(&path.with_extension("toml"))?;
        }
        let published = Published { place: place.clone(), version, manifest: document.sha256, signer };
        Ok(Found { name: place.name().to_owned(), path, published: Some(published) })
    }

    /// Decides whether the files may be used; returns who signed them.
    fn accepted(
        &self,
        place: &Repository,
        version: Option<&str>,
        pin: Option<&Pin>,
        files: &[Vec<u8>],
        signatures: &[Vec<String>],
    ) -> Result<Option<Signer>> {
        let before = pin.and_then(|pin| pin.signer.clone());
        if !self.trust.is_on() {
            return Ok(before);
        }
        if let Some(before) = &before {
            self.trust.check_same(place, before, files, signatures)?;
        }
        match (pin, before) {
            // What a run has used was accepted when it was started, unless signatures were not looked for then.
            (Some(pin), Some(before)) if pin.is_own => Ok(Some(before)),
            (Some(pin), None) if pin.is_own && self.trust.policy != Policy::Require => Ok(None),
            _ => self.trust.check(place, version, files, signatures),
        }
    }

    /// Chooses the version that a reference means: as the registry says, or, where it is not reached, as the cache knows.
    fn chosen(&self, reference: &Reference) -> Result<Chosen> {
        let place = &reference.repository;
        if let Selector::Digest(digest) = &reference.selector {
            return self.pinned(place, digest, None);
        }
        if self.network.offline {
            return self.cached(reference, "the network is disabled (--offline, HF_HUB_OFFLINE)");
        }
        let registry = Registry::open(place, Access::Pull, self.network)?;
        match self.asked(&registry, reference) {
            Ok((version, manifest)) => Ok(Chosen { version: Some(version), manifest, registry: Some(registry) }),
            Err(Asked::Failed(failure @ (Failure::Unreachable { .. } | Failure::Silent { .. }))) => {
                let why = failure.to_string();
                let Ok(chosen) = self.cached(reference, &why) else { return Err(explained(place, failure)) };
                tracing::warn!(
                    "{reference}: {why}; using {}, as pulled before",
                    chosen.version.as_deref().unwrap_or("it")
                );
                Ok(chosen)
            }
            Err(Asked::Failed(failure)) => Err(explained(place, failure)),
            Err(Asked::Nothing(versions)) => Err(no_version(reference, &versions, "the registry has")),
        }
    }

    /// Asks a registry for the version that a reference means.
    fn asked(&self, registry: &Registry, reference: &Reference) -> Result<(String, Document), Asked> {
        let tag = match &reference.selector {
            Selector::Tag(tag) => tag.clone(),
            Selector::Digest(digest) => format!("sha256:{digest}"),
            Selector::Range(range) => {
                let versions = versions_of(&registry.tags()?);
                match highest(&versions, range) {
                    Some(version) => version.to_string(),
                    None => return Err(Asked::Nothing(versions)),
                }
            }
        };
        let manifest = registry.manifest(&tag)?;
        Ok((tag, manifest))
    }

    /// Chooses among the versions that were pulled before.
    fn cached(&self, reference: &Reference, why: &str) -> Result<Chosen> {
        let place = &reference.repository;
        let index = self.cache.index(place);
        let versions = versions_of(index.versions.keys());
        let version = match &reference.selector {
            Selector::Tag(tag) => index.versions.contains_key(tag).then(|| tag.clone()),
            Selector::Range(range) => highest(&versions, range).map(|version| version.to_string()),
            Selector::Digest(_) => None,
        };
        let Some(version) = version else {
            return Err(no_version(reference, &versions, "the cache has").context(why.to_owned()));
        };
        self.pinned(place, &index.versions[&version], Some(version.clone()))
    }

    /// Returns a manifest by its digest: from the cache, else from the registry.
    fn pinned(&self, place: &Repository, digest: &str, version: Option<String>) -> Result<Chosen> {
        if let Some(bytes) = self.cache.bytes(digest) {
            let manifest = Document { sha256: digest.to_owned(), bytes };
            return Ok(Chosen { version, manifest, registry: None });
        }
        ensure!(
            !self.network.offline,
            "{place}: its manifest {digest} is not in the cache {}, and the network is disabled (--offline, HF_HUB_OFFLINE)",
            self.cache.path().display()
        );
        let registry = Registry::open(place, Access::Pull, self.network)?;
        let manifest = registry.manifest(&format!("sha256:{digest}")).map_err(|failure| explained(place, failure))?;
        Ok(Chosen { version, manifest, registry: Some(registry) })
    }

    /// Downloads the files that the cache lacks, and those that are damaged there.
    fn complete(
        &self,
        place: &Repository,
        contents: &Contents,
        registry: Option<Registry>,
    ) -> Result<Option<Registry>> {
        let mut wanted = vec![];
        for (_, file) in contents.files() {
            let digest = file.sha256().map_err(|what| anyhow!(what))?;
            match self.cache.digest(&digest)? {
                Some(found) if found == digest => continue,
                Some(found) => {
                    let blob = self.cache.blob(&digest)?;
                    let changed =
                        format!("{place}: {} was changed: its sha256 is {found}, not {digest}", blob.display());
                    ensure!(
                        !self.network.offline,
                        "{changed}; remove it, and run this once with the network, which pulls it again"
                    );
                    tracing::warn!("{changed}; pulling it again");
                    let _lock = lock(&self.cache.lock(&digest)?, &self.network.progress, &self.network.interrupt)?;
                    // Another process may have done so in between.
                    if self.cache.digest(&digest)?.as_deref() != Some(&*digest) {
                        remove_file(&blob)?;
                    }
                }
                None => ensure!(
                    !self.network.offline,
                    "{place}: its file {digest} is not in the cache {}, and the network is disabled (--offline, HF_HUB_OFFLINE)",
                    self.cache.path().display()
                ),
            }
            wanted.push((digest, file));
        }
        if wanted.is_empty() {
            return Ok(registry);
        }
        let registry = match registry {
            Some(registry) => registry,
            None => Registry::open(place, Access::Pull, self.network)?,
        };
        self.download(&registry, &wanted).map_err(|failure| explained(place, failure))?;
        Ok(Some(registry))
    }

    fn download(&self, registry: &Registry, wanted: &[(String, &Descriptor)]) -> Result<(), Failure> {
        let place = &registry.repository;
        let mut files = vec![];
        for (digest, file) in wanted {
            let (blob, lock) = (self.cache.blob(digest)?, self.cache.lock(digest)?);
            files.push((registry.remote(place.name(), file)?, blob, lock));
        }
        let total: u64 = files.iter().map(|(file, ..)| file.size).fold(0, u64::saturating_add);
        let lacking: u64 = files.iter().map(|(file, blob, _)| missing(file, blob)).sum();
        check_space(self.cache.path(), lacking, "set XDG_CACHE_HOME to a folder on another disk")?;
        self.network.progress.println(format!("{place}: pulling {}", size(total as usize)));
        let mut meter = Meter::new(&self.network.progress, &place.to_string(), total, total.saturating_sub(lacking));
        for (file, blob, lock) in &files {
            registry.downloads().fetch(file, blob, lock, &mut meter)?;
        }
        Ok(())
    }

    /// Returns the texts of a manifest's signatures: as the registry has them, if it was asked, else as the cache does.
    fn signatures(&self, place: &Repository, manifest: &str, registry: Option<&Registry>) -> Result<Vec<Vec<String>>> {
        if !self.trust.is_on() {
            return Ok(vec![]);
        }
        let digests = self.cache.index(place).signatures.remove(manifest).unwrap_or_default();
        let text = |digest: &String| self.cache.bytes(digest).and_then(|bytes| String::from_utf8(bytes).ok());
        let cached: Vec<Vec<String>> = digests.iter().filter_map(|files| files.iter().map(text).collect()).collect();
        let asked = match registry {
            Some(registry) => signatures_of(registry, manifest),
            // The plugin may have been signed since it was pulled.
            None if cached.is_empty() && !self.network.offline => {
                signatures_of(&Registry::open(place, Access::Pull, self.network)?, manifest)
            }
            None => return Ok(cached),
        };
        match asked {
            Ok(mut found) => {
                found.extend(cached.into_iter().filter(|signature| !found.contains(signature)).collect::<Vec<_>>());
                Ok(found)
            }
            Err(Failure::Unreachable { .. } | Failure::Silent { .. }) if registry.is_none() => Ok(cached),
            Err(failure) => Err(explained(place, failure)),
        }
    }

    /// Returns a file's bytes from the cache, which are those of its digest.
    fn verified(&self, place: &Repository, file: &Descriptor) -> Result<Vec<u8>> {
        let digest = file.sha256().map_err(|what| anyhow!(what))?;
        let bytes = self.cache.bytes(&digest);
        bytes.with_context(|| {
            format!("{place}: the file {digest} disappeared from the cache {}", self.cache.path().display())
        })
    }
}

/// Why a registry has no version to give.
enum Asked {
    Failed(Failure),
    /// Its versions, of which none is meant.
    Nothing(Vec<Version>),
}

impl From<Failure> for Asked {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Returns the signatures of a manifest in a registry: the texts of each.
pub(super) fn signatures_of(registry: &Registry, manifest: &str) -> Result<Vec<Vec<String>>, Failure> {
    let mut found = vec![];
    for signature in registry.referrers(manifest, SIGNATURE)? {
        // A plugin has two files at most.
        if signature.layers.len() > 2 {
            continue;
        }
        let mut texts = vec![];
        for layer in &signature.layers {
            let bytes = registry.small(layer, MAX_FILE)?;
            // What is no text is no signature.
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        found.push(texts);
    }
    Ok(found)
}

/// Refuses files that are larger than plugins may be.
fn check_sizes(place: &Repository, contents: &Contents) -> Result<()> {
    let limits = Limits::default();
    let limit = match contents {
        Contents::Component(_) => mib(limits.file_mib),
        Contents::Onnx { .. } => mib(limits.onnx_mib),
    };
    for (_, file) in contents.files() {
        if file.size > limit as u64 {
            bail!("{place}: it has {}, where a plugin has at most {}", gibibytes(file.size), gibibytes(limit as u64));
        }
    }
    Ok(())
}

/// The error of a reference that means none of these versions.
fn no_version(reference: &Reference, versions: &[Version], has: &str) -> anyhow::Error {
    const SHOWN: usize = 8;
    let named: Vec<String> = versions.iter().take(SHOWN).map(Version::to_string).collect();
    let more = if versions.len() > SHOWN { ", …" } else { "" };
    let listed = if named.is_empty() { "no versions".to_owned() } else { format!("{}{more}", named.join(", ")) };
    let wanted = match &reference.selector {
        Selector::Range(range) if *range == VersionReq::STAR => "there is no version".to_owned(),
        Selector::Range(range) => format!("no version is {range}"),
        Selector::Tag(tag) => format!("there is no version {tag}"),
        Selector::Digest(digest) => format!("there is no manifest {digest}"),
    };
    anyhow!("{}: {wanted}; {has} {listed}", reference.repository)
}
