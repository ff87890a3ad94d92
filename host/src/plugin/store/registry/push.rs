//! What is published: a plugin's files and what refers to them, in the layout of `wkg`.

use std::collections::BTreeMap;
use std::sync::Arc;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::manifest::{
    AUTHORS, CREATED, ComponentNames, DESCRIPTION, EMPTY, EMPTY_CONFIG, INDEX, Index, LICENSES, MANIFEST, ONNX,
    ONNX_METADATA, ONNX_MODEL, TITLE, VERSION, WASM, WASM_CONFIG, WasmConfig,
};
use super::{Descriptor, Document, Manifest, Registry, fallback_tag, sha256};
use crate::net::{Failure, Meter, Request, Sent};

/// Number of attempts to add to a list of referrers that others write too.
const ATTEMPTS: usize = 5;

/// A file that is published.
#[derive(Clone, Debug)]
pub struct PackageFile {
    /// Its media type.
    pub media_type: &'static str,
    /// Its name, which other tools write it under.
    pub title: String,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
}

/// A plugin that is published.
#[derive(Clone, Debug)]
pub struct Package {
    /// The plugin's name in the registry.
    pub name: String,
    /// The version.
    pub version: String,
    /// One sentence about it; may be empty.
    pub description: String,
    /// The authors.
    pub authors: Vec<String>,
    /// The license; may be empty.
    pub license: String,
    /// The imports and exports of a component; nothing for a model.
    pub component: Option<(Vec<String>, Vec<String>)>,
    /// The file.
    pub bytes: Arc<[u8]>,
    /// The .toml beside a model.
    pub metadata: Option<Arc<[u8]>>,
}

impl Package {
    /// Returns the files.
    pub fn files(&self) -> Vec<PackageFile> {
        let file = |media_type, extension: &str, bytes: &Arc<[u8]>| PackageFile {
            media_type,
            title: format!("{}.{extension}", self.name),
            bytes: Arc::clone(bytes),
        };
        match &self.component {
            Some(_) => vec![file(WASM, "wasm", &self.bytes)],
            None => {
                let metadata = self.metadata.iter().map(|bytes| file(ONNX_METADATA, "toml", bytes));
                [file(ONNX_MODEL, "onnx", &self.bytes)].into_iter().chain(metadata).collect()
            }
        }
    }

    /// Returns the configuration's media type and bytes, and the manifest.
    fn manifest(&self, layers: Vec<Descriptor>) -> (&'static str, Vec<u8>, Manifest) {
        let (media_type, config) = match &self.component {
            None => (EMPTY, EMPTY_CONFIG.to_vec()),
            Some((imports, exports)) => {
                let config = WasmConfig {
                    created: now(),
                    author: self.authors.first().cloned(),
                    architecture: "wasm".to_owned(),
                    os: "wasip2".to_owned(),
                    layer_digests: layers.iter().map(|layer| layer.digest.clone()).collect(),
                    component: Some(ComponentNames {
                        exports: exports.clone(),
                        imports: imports.clone(),
                        target: None,
                    }),
                };
                (WASM_CONFIG, serde_json::to_vec(&config).expect("texts serialize"))
            }
        };
        let texts = [
            (VERSION, self.version.clone()),
            (TITLE, self.name.clone()),
            (DESCRIPTION, self.description.clone()),
            (LICENSES, self.license.clone()),
            (AUTHORS, self.authors.join(", ")),
        ];
        let annotations = texts.into_iter().filter(|(_, text)| !text.is_empty());
        let annotations = annotations.map(|(key, text)| (key.to_owned(), text)).collect();
        let manifest = Manifest {
            artifact_type: self.component.is_none().then(|| ONNX.to_owned()),
            config: Descriptor::of(media_type, &config),
            annotations,
            ..Manifest::of_artifact("", layers)
        };
        (media_type, config, manifest)
    }
}

impl Registry {
    /// Publishes a plugin under its version's tag. Its manifest, which makes it visible, comes last.
    ///
    /// # Errors
    /// If the registry cannot be reached, or does not allow it.
    pub fn push(&self, package: &Package) -> Result<Document, Failure> {
        let files = package.files();
        let layers = self.push_files(&files)?;
        let (media_type, config, manifest) = package.manifest(layers);
        self.push_file(media_type, config.into(), None)?;
        self.push_manifest(&package.version, MANIFEST, &manifest.to_bytes())
    }

    /// Publishes files that refer to a plugin's manifest.
    ///
    /// # Errors
    /// As for [`Registry::push`].
    pub fn push_referrer(
        &self,
        subject: &Document,
        artifact_type: &str,
        files: &[PackageFile],
        annotations: BTreeMap<String, String>,
    ) -> Result<Document, Failure> {
        let layers = self.push_files(files)?;
        self.push_file(EMPTY, EMPTY_CONFIG.into(), None)?;
        let mut manifest = Manifest::of_artifact(artifact_type, layers);
        manifest.subject = Some(Descriptor::of(MANIFEST, &subject.bytes));
        manifest.annotations = annotations;
        manifest.annotations.insert(CREATED.to_owned(), now());
        let bytes = manifest.to_bytes();
        let pushed = self.push_manifest(&format!("sha256:{}", sha256(&bytes)), MANIFEST, &bytes)?;
        let mut descriptor = Descriptor::of(MANIFEST, &bytes);
        descriptor.artifact_type = Some(artifact_type.to_owned());
        descriptor.annotations = manifest.annotations;
        self.list_referrer(&subject.sha256, &descriptor)?;
        Ok(pushed)
    }

    /// Adds a manifest to the list of what refers to another, in a registry that keeps no such list itself. Several clients
    /// may do so at once: the list is read again after it was written.
    fn list_referrer(&self, subject: &str, descriptor: &Descriptor) -> Result<(), Failure> {
        for _ in 0..ATTEMPTS {
            let (mut index, is_kept) = self.referrer_index(subject)?;
            if is_kept || index.manifests.iter().any(|found| found.digest == descriptor.digest) {
                return Ok(());
            }
            index.manifests.push(descriptor.clone());
            let Index { schema_version, manifests, .. } = index;
            let index = Index { schema_version, media_type: INDEX.to_owned(), manifests };
            let bytes = serde_json::to_vec(&index).expect("texts serialize");
            self.push_manifest(&fallback_tag(subject), INDEX, &bytes)?;
        }
        Err(Failure::wrong(self.client.endpoint(), "does not keep the list of what refers to the plugin"))
    }

    /// Uploads files that the registry lacks; returns their descriptors.
    fn push_files(&self, files: &[PackageFile]) -> Result<Vec<Descriptor>, Failure> {
        let total = files.iter().map(|file| file.bytes.len() as u64).sum();
        let meter = Meter::new(&self.network.progress, &self.repository.to_string(), total, 0);
        let meter = std::rc::Rc::new(std::cell::RefCell::new(meter));
        let mut layers = vec![];
        for PackageFile { media_type, title, bytes } in files {
            meter.borrow().message(title.clone());
            let shared = std::rc::Rc::clone(&meter);
            let sent = Sent(Box::new(move |n| shared.borrow_mut().advance(n)));
            self.push_file(media_type, Arc::clone(bytes), Some(&sent))?;
            layers.push(Descriptor::of(media_type, bytes).annotated(TITLE, title.clone()));
        }
        Ok(layers)
    }

    /// Uploads a file, unless the registry has it.
    fn push_file(&self, media_type: &str, bytes: Arc<[u8]>, sent: Option<&Sent>) -> Result<(), Failure> {
        let digest = format!("sha256:{}", sha256(&bytes));
        let mut attempts = self.client.attempts();
        loop {
            match self.upload(&digest, &bytes, sent) {
                Ok(()) => return Ok(()),
                Err(failure) => attempts.after(&format!("{}: {media_type}", self.repository), failure)?,
            }
        }
    }

    fn upload(&self, digest: &str, bytes: &Arc<[u8]>, sent: Option<&Sent>) -> Result<(), Failure> {
        match self.client.head(&self.address(&["blobs", digest])) {
            Ok(_) => {
                if let Some(Sent(hear)) = sent {
                    hear(bytes.len() as u64);
                }
                return Ok(());
            }
            Err(Failure::Status { status: 404, .. }) => {}
            Err(failure) => return Err(failure),
        }
        let start = self.address(&["blobs", "uploads", ""]);
        let reply =
            self.client.write(Request::new("POST", start.clone()).body("application/octet-stream", [], None))?;
        let location = reply.headers.get("Location").and_then(|location| reply.url.join(location).ok());
        let Some(mut location) = location.filter(|url| matches!(url.scheme(), "http" | "https")) else {
            return Err(Failure::wrong(&start, "names no address for an upload"));
        };
        if start.scheme() == "https" && location.scheme() != "https" {
            return Err(Failure::wrong(&start, "names an address for an upload that is not encrypted"));
        }
        location.query_pairs_mut().append_pair("digest", digest);
        let body = Arc::clone(bytes);
        self.client.write(Request::new("PUT", location).body("application/octet-stream", body, sent)).map(drop)
    }

    /// Uploads a manifest under a tag or its digest.
    fn push_manifest(&self, reference: &str, media_type: &str, bytes: &[u8]) -> Result<Document, Failure> {
        let url = self.address(&["manifests", reference]);
        let mut attempts = self.client.attempts();
        loop {
            match self.client.write(Request::new("PUT", url.clone()).body(media_type, bytes, None)) {
                Ok(_) => return Ok(Document { sha256: sha256(bytes), bytes: bytes.to_vec() }),
                Err(failure) => attempts.after(&format!("{}: {reference}", self.repository), failure)?,
            }
        }
    }
}

/// The time now, RFC 3339 in UTC, to the second.
fn now() -> String {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 is a number of nanoseconds");
    now.format(&Rfc3339).expect("a time of today has a form")
}
