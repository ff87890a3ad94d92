//! Registries of plugins, by the OCI distribution specification 1.1: versions, manifests, files, and what refers to them. The
//! layout is that of `wkg`, so that either finds what the other published.
//!
//! A registry is not trusted: everything is of an announced length and digest, and nothing of what it says becomes a path.
//!
//! # Layout
//!
//! - this file: the requests
//! - `manifest`: the documents · `auth`: credentials and tokens · `cache`: the places of files
//! - `push`: what is published, and how

mod auth;
mod cache;
mod manifest;
mod push;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ambiguity_models::safetensors::hex;
use anyhow::{Result, anyhow, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use url::Url;

use self::auth::{Credentials, has_credentials, is_docker};
pub use self::cache::Cache;
use self::manifest::{ACCEPTED, INDEX, Index, brief, named};
pub use self::manifest::{CARD, Contents, DESCRIPTION, Descriptor, Manifest, SIGNATURE, VERSION};
pub use self::push::{Package, PackageFile};
use super::reference::{Repository, is_tag};
use crate::context::Context;
use crate::interrupt::{Interrupt, keeping};
use crate::net::{Client, Downloads, Failure, Patience, Remote, Reply, Request};
use crate::progress::Progress;
use crate::text::{escaped, in_one_line};

/// Number of bytes of a manifest or a list, above which it is refused; registries refuse larger ones too.
const MAX_MANIFEST: usize = 4 << 20;
/// Number of pages of tags that are read.
const MAX_PAGES: usize = 100;
/// Number of tags, or of places, above which a list is refused or cut.
const MAX_NAMES: usize = 10_000;
/// Number of manifests that refer to a plugin which are examined.
const MAX_REFERRERS: usize = 64;
/// Number of characters of a registry's own message that are shown.
const MAX_MESSAGE: usize = 300;

/// The variable that names registries that are reached without encryption, separated by commas.
const PLAIN_HTTP: &str = "AMBIGUITY_PLAIN_HTTP";

/// What requests need besides their registry.
#[derive(Clone, Debug)]
pub struct Network {
    /// Whether the network must not be used.
    pub offline: bool,
    /// The progress of downloads.
    pub progress: Progress,
    /// The interrupt; a partial file is kept and resumed.
    pub interrupt: Interrupt,
    /// How long a registry is waited for.
    pub patience: Patience,
}

impl Network {
    /// Returns the network of a command.
    pub fn of(context: &Context) -> Self {
        let Context { offline, progress, interrupt, .. } = context.clone();
        Self { offline, progress, interrupt, patience: Patience::default() }
    }
}

/// What a client is going to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads.
    Pull,
    /// It reads and writes.
    Push,
    /// It lists what the registry has.
    Catalog,
}

/// One place of plugins in a registry.
#[derive(Debug)]
pub struct Registry {
    /// The place.
    pub repository: Repository,
    client: Client,
    network: Network,
}

/// A document and its digest.
#[derive(Clone, Debug)]
pub struct Document {
    /// The sha256 in hexadecimal.
    pub sha256: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Registry {
    /// Returns a client of a place. Only a registry on this machine is asked something yet: whether it wants encryption.
    ///
    /// # Errors
    /// If the network is disabled, or the environment's proxy or certificates cannot be used.
    pub fn open(repository: &Repository, access: Access, network: &Network) -> Result<Self> {
        if network.offline {
            bail!("{repository}: the network is disabled (--offline, HF_HUB_OFFLINE)");
        }
        let endpoint = endpoint(repository, network)?;
        let scope = match access {
            Access::Pull => format!("repository:{}:pull", repository.path),
            Access::Push => format!("repository:{}:pull,push", repository.path),
            Access::Catalog => "registry:catalog:*".to_owned(),
        };
        let credentials = Credentials {
            registry: repository.registry.clone(),
            endpoint: endpoint.clone(),
            scope,
            patience: network.patience,
            interrupt: network.interrupt.clone(),
        };
        let client = Client::new(endpoint, None, network.patience, network.interrupt.clone())?;
        let client = client.authorized_by(credentials);
        Ok(Self { repository: repository.clone(), client, network: network.clone() })
    }

    /// Returns a client for downloads from the place.
    pub fn downloads(&self) -> Downloads<'_> {
        Downloads { client: &self.client, progress: &self.network.progress, interrupt: &self.network.interrupt }
    }

    /// Returns an address of the place: `/v2/PATH/…`.
    fn address(&self, rest: &[&str]) -> Url {
        let path = self.repository.path.split('/');
        self.client.address(["v2"].into_iter().chain(path).chain(rest.iter().copied()))
    }

    /// Returns a small document; failures that may pass are tried again.
    fn document(&self, what: &str, request: &Request<'_>) -> Result<(Reply, Vec<u8>), Failure> {
        let mut attempts = self.client.attempts();
        loop {
            match self.client.document(request.clone(), MAX_MANIFEST) {
                Ok(found) => return Ok(found),
                // Without a network, this is where a user learns it.
                Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
                Err(failure) => attempts.after(&format!("{}: {what}", self.repository), failure)?,
            }
        }
    }

    /// Returns all tags.
    ///
    /// # Errors
    /// If the place does not exist, or the registry cannot be reached or lies.
    pub fn tags(&self) -> Result<Vec<String>, Failure> {
        #[derive(Deserialize)]
        struct Tags {
            tags: Option<Vec<String>>,
        }
        let mut url = self.address(&["tags", "list"]);
        let mut tags = BTreeSet::new();
        for _ in 0..MAX_PAGES {
            let (reply, bytes) = self.document("versions", &Request::new("GET", url.clone()))?;
            let page: Tags = serde_json::from_slice(&bytes)
                .map_err(|error| Failure::wrong(&url, format!("does not list versions: {}", brief(&error))))?;
            tags.extend(page.tags.unwrap_or_default().into_iter().filter(|tag| is_tag(tag)));
            if tags.len() > MAX_NAMES {
                return Err(Failure::wrong(&url, format!("lists more than {MAX_NAMES} versions")));
            }
            match next_page(&reply) {
                // A page elsewhere would be another registry's.
                Some(next) if self.client.is_own(&next) => url = next,
                _ => return Ok(tags.into_iter().collect()),
            }
        }
        Err(Failure::wrong(&url, format!("lists versions on more than {MAX_PAGES} pages")))
    }

    /// Returns the places of a registry whose paths begin with `prefix`, by the registry's catalog, and whether there are
    /// more than are listed.
    ///
    /// # Errors
    /// If the registry has no catalog, cannot be reached, or lies.
    pub fn catalog(&self, prefix: &str) -> Result<(Vec<Repository>, bool), Failure> {
        #[derive(Deserialize)]
        struct Catalog {
            repositories: Option<Vec<String>>,
        }
        let mut url = self.client.address(["v2", "_catalog"]);
        url.query_pairs_mut().append_pair("n", "1000");
        let mut found = BTreeSet::new();
        for _ in 0..MAX_PAGES {
            let (reply, bytes) = self.document("catalog", &Request::new("GET", url.clone()))?;
            let page: Catalog = serde_json::from_slice(&bytes)
                .map_err(|error| Failure::wrong(&url, format!("does not list what it has: {}", brief(&error))))?;
            let paths = page.repositories.unwrap_or_default().into_iter();
            let places = paths.filter_map(|path| Repository::new(&self.repository.registry, &path));
            found.extend(places.filter(|place| prefix.is_empty() || place.is_in(prefix)));
            match next_page(&reply) {
                _ if found.len() > MAX_NAMES => return Ok((found.into_iter().collect(), true)),
                Some(next) if self.client.is_own(&next) => url = next,
                _ => return Ok((found.into_iter().collect(), false)),
            }
        }
        Ok((found.into_iter().collect(), true))
    }

    /// Returns the manifest of a tag, or of `sha256:DIGEST`, as the registry has it.
    ///
    /// # Errors
    /// If there is none, or the registry cannot be reached or lies.
    pub fn manifest(&self, reference: &str) -> Result<Document, Failure> {
        let url = self.address(&["manifests", reference]);
        let (reply, bytes) = self.document(reference, &Request::new("GET", url.clone()).header("Accept", ACCEPTED))?;
        let sha256 = sha256(&bytes);
        let announced = reply.headers.get("Docker-Content-Digest").and_then(|digest| digest.strip_prefix("sha256:"));
        let wanted = reference.strip_prefix("sha256:").or(announced);
        match wanted {
            Some(wanted) if wanted != sha256 => Err(Failure::wrong(
                &url,
                format!("sends another manifest for {reference} than its sha256 says; it is not used"),
            )),
            _ => Ok(Document { sha256, bytes }),
        }
    }

    /// Returns a tag's manifest; nothing if there is no such tag.
    ///
    /// # Errors
    /// If the registry cannot be reached, or lies.
    pub fn tagged(&self, tag: &str) -> Result<Option<Document>, Failure> {
        match self.manifest(tag) {
            Ok(found) => Ok(Some(found)),
            Err(Failure::Status { status: 404, .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Returns a small file of a manifest, of at most `limit` bytes.
    ///
    /// # Errors
    /// If the registry cannot be reached, or sends something else than the descriptor says.
    pub fn small(&self, file: &Descriptor, limit: usize) -> Result<Vec<u8>, Failure> {
        let url = self.address(&["blobs", &file.digest]);
        let wrong = |what: &str| Failure::wrong(&url, what);
        let wanted = file.sha256().map_err(|what| wrong(&what))?;
        if file.size > limit as u64 {
            return Err(wrong(&format!(
                "has {} bytes of {}, where at most {limit} are",
                file.size,
                named(&file.media_type)
            )));
        }
        let mut attempts = self.client.attempts();
        let bytes = loop {
            match self.client.document(Request::new("GET", url.clone()), limit) {
                Ok((_, bytes)) => break bytes,
                Err(failure) => attempts.after(&file.digest, failure)?,
            }
        };
        match bytes.len() as u64 == file.size && sha256(&bytes) == wanted {
            true => Ok(bytes),
            false => Err(wrong("sends other data than its sha256 announces; it is not kept")),
        }
    }

    /// Returns a file of a manifest as a download; `name` is its name in messages.
    ///
    /// # Errors
    /// If the descriptor has no sha256.
    pub fn remote(&self, name: &str, file: &Descriptor) -> Result<Remote, Failure> {
        let url = self.address(&["blobs", &file.digest]);
        let sha256 = file.sha256().map_err(|what| Failure::wrong(&url, what))?;
        Ok(Remote { name: name.to_owned(), url, size: file.size, sha256: Some(sha256) })
    }

    /// Returns the manifests of a type that refer to a manifest: by the registry's list of referrers, else by the tag that
    /// stands for it.
    ///
    /// # Errors
    /// If the registry cannot be reached, or lies.
    pub fn referrers(&self, sha256: &str, artifact_type: &str) -> Result<Vec<Manifest>, Failure> {
        let (index, _) = self.referrer_index(sha256)?;
        let subject = format!("sha256:{sha256}");
        let mut found = vec![];
        for descriptor in index.manifests.iter().take(MAX_REFERRERS) {
            // Some registries leave the type out of their lists: then the manifest says it.
            if descriptor.artifact_type.as_deref().is_some_and(|other| other != artifact_type) {
                continue;
            }
            let digest = descriptor.sha256().map_err(|what| Failure::wrong(self.client.endpoint(), what))?;
            let document = match self.manifest(&format!("sha256:{digest}")) {
                // A list may name what was removed.
                Err(Failure::Status { status: 404, .. }) => continue,
                document => document?,
            };
            let Ok(manifest) = Manifest::read(&document.bytes) else { continue };
            let own = manifest.subject.as_ref().is_some_and(|found| found.digest == subject);
            if own && manifest.artifact_type.as_deref() == Some(artifact_type) {
                found.push(manifest);
            }
        }
        Ok(found)
    }

    /// Returns the list of what refers to a manifest, and whether the registry keeps it itself.
    fn referrer_index(&self, sha256: &str) -> Result<(Index, bool), Failure> {
        let read = |url: &Url, bytes: &[u8]| {
            let wrong = |error| {
                let error = brief(&error);
                Failure::wrong(url, format!("sends no list of what refers to a plugin: {error}"))
            };
            serde_json::from_slice::<Index>(bytes).map_err(wrong)
        };
        let url = self.address(&["referrers", &format!("sha256:{sha256}")]);
        match self.document("referrers", &Request::new("GET", url.clone()).header("Accept", INDEX)) {
            Ok((_, bytes)) => return Ok((read(&url, &bytes)?, true)),
            // An older registry, which has no such address.
            Err(Failure::Status { status: 400 | 404 | 405, .. }) => {}
            Err(failure) => return Err(failure),
        }
        let tag = fallback_tag(sha256);
        match self.manifest(&tag) {
            Ok(document) => Ok((read(&self.address(&["manifests", &tag]), &document.bytes)?, false)),
            Err(Failure::Status { status: 404, .. }) => {
                Ok((Index { schema_version: 2, media_type: INDEX.to_owned(), manifests: vec![] }, false))
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Returns a failure as a sentence that says what to do.
pub fn explained(repository: &Repository, failure: Failure) -> anyhow::Error {
    let registry = &repository.registry;
    let kept = "what was downloaded is kept, and the same command resumes it";
    let hint = match &failure {
        Failure::Interrupted(_) | Failure::Local(_) => {
            return match failure {
                Failure::Interrupted(interrupted) => keeping(interrupted.into(), kept),
                Failure::Local(error) => keeping(error, kept),
                _ => unreachable!("one of the two"),
            };
        }
        Failure::Status { status: 401 | 403, .. } if has_credentials(registry) => {
            "docker's credentials for it do not allow this; `docker login` renews them".to_owned()
        }
        Failure::Status { status: 401 | 403, .. } => {
            format!(
                "it needs a login: `docker login {registry}`, or `skopeo login --compat-auth-file ~/.docker/config.json {registry}`"
            )
        }
        Failure::Status { status: 404, .. } => "there is no such plugin, or no such version".to_owned(),
        Failure::Status { status: 429, .. } => "it allows no more requests now: try again later, or log in".to_owned(),
        Failure::Unreachable { cause, .. } | Failure::Broken { cause, .. } if cause.contains("certificate") => {
            "for a private authority, set SSL_CERT_FILE to its certificate".to_owned()
        }
        Failure::Unreachable { .. } | Failure::Broken { .. } | Failure::Silent { .. } | Failure::Short { .. } => {
            "the same command goes on when the network is there, and --offline uses what was pulled before".to_owned()
        }
        Failure::Status { .. } => "try again later".to_owned(),
        Failure::Wrong { .. } => return anyhow!("{repository}: {}", in_one_line(&failure.to_string())),
    };
    let said = match &failure {
        Failure::Status { body, .. } => message(body).map(|said| format!(" ({said})")).unwrap_or_default(),
        _ => String::new(),
    };
    anyhow!("{repository}: {}{said}; {hint}", in_one_line(&failure.to_string()))
}

/// Returns what a registry says with a failure.
fn message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Problem>,
    }
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let Problem { code, message } = errors.errors.into_iter().next()?;
    let text = if message.is_empty() { code } else { message };
    let text: String = text.chars().take(MAX_MESSAGE).collect();
    (!text.is_empty()).then(|| escaped(&text).into_owned())
}

/// The tag that stands for the list of what refers to a manifest, in registries that keep none.
fn fallback_tag(sha256: &str) -> String {
    format!("sha256-{sha256}")
}

/// Returns the address of the next page that the header `Link` names.
fn next_page(reply: &Reply) -> Option<Url> {
    let link = reply.headers.get("Link")?;
    let (target, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    rest.contains("rel=\"next\"").then(|| reply.url.join(target).ok()).flatten()
}

/// Returns the address of a place's registry: encrypted, unless the registry is on this machine and says that it is not, or
/// `AMBIGUITY_PLAIN_HTTP` names it.
fn endpoint(repository: &Repository, network: &Network) -> Result<Url> {
    let registry = &repository.registry;
    let host = if is_docker(registry) { "registry-1.docker.io" } else { registry };
    let address = |scheme: &str| {
        Client::address_of(&format!("{scheme}://{host}")).ok_or_else(|| anyhow!("{registry} is no registry's address"))
    };
    let plain = std::env::var(PLAIN_HTTP).unwrap_or_default();
    if plain.split(',').any(|named| named.trim() == registry) {
        return address("http");
    }
    if !is_loopback(repository.host()) {
        return address("https");
    }
    let unencrypted = address("http")?;
    let client = Client::new(unencrypted.clone(), None, network.patience, network.interrupt.clone())?;
    match client.document(Request::new("GET", client.address(["v2", ""])), MAX_MANIFEST) {
        // Go's servers answer this to a request without encryption.
        Err(Failure::Status { status: 400, body, .. }) if String::from_utf8_lossy(&body).contains("HTTPS") => {
            address("https")
        }
        Err(Failure::Broken { .. }) => address("https"),
        Err(Failure::Interrupted(interrupted)) => Err(interrupted.into()),
        _ => Ok(unencrypted),
    }
}

/// Whether a host is this machine.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns the sha256 of bytes in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
