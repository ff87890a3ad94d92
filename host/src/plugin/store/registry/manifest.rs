//! The documents of a registry: manifests, their descriptors and lists of manifests, as the OCI specifications 1.1 have them,
//! and what makes a manifest a plugin's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::text::{escaped, sha256_digits};

/// The media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of a list of manifests.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// What a client accepts where it asks for a manifest: lists too, so that one is refused by its name.
pub const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                            application/vnd.docker.distribution.manifest.v2+json, \
                            application/vnd.docker.distribution.manifest.list.v2+json";
/// The media type of the configuration of a component, as `wkg` writes it.
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// The media type of a component.
pub const WASM: &str = "application/wasm";
/// The artifact type of an ONNX plugin.
pub const ONNX: &str = "application/vnd.ambiguity.onnx.v1";
/// The media type of an ONNX model.
pub const ONNX_MODEL: &str = "application/vnd.ambiguity.onnx.model.v1";
/// The media type of the .toml beside a model.
pub const ONNX_METADATA: &str = "application/vnd.ambiguity.onnx.metadata.v1+toml";
/// The artifact type of a signature by minisign, and the media type of its file.
pub const SIGNATURE: &str = "application/vnd.ambiguity.minisig.v1";
/// The artifact type of a card.
pub const CARD: &str = "application/vnd.ambiguity.card.v1";
/// The media type of an empty configuration.
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// An empty configuration.
pub const EMPTY_CONFIG: &[u8] = b"{}";

/// Annotations of manifests and layers.
pub const TITLE: &str = "org.opencontainers.image.title";
/// The version.
pub const VERSION: &str = "org.opencontainers.image.version";
/// One sentence about the content.
pub const DESCRIPTION: &str = "org.opencontainers.image.description";
/// The license, in SPDX's words.
pub const LICENSES: &str = "org.opencontainers.image.licenses";
/// The authors.
pub const AUTHORS: &str = "org.opencontainers.image.authors";
/// The time of creation.
pub const CREATED: &str = "org.opencontainers.image.created";

/// Number of characters of a registry's text in a message.
const SHOWN: usize = 100;

/// Returns the beginning of a registry's text, as messages show it.
pub fn named(text: &str) -> String {
    let start: String = text.chars().take(SHOWN).collect();
    format!("{}{}", escaped(&start), if start.len() < text.len() { "…" } else { "" })
}

/// Returns the beginning of an error that may quote a registry.
pub fn brief(error: &serde_json::Error) -> String {
    named(&error.to_string())
}

/// What a descriptor points to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type.
    pub media_type: String,
    /// `sha256:` and the digest in hexadecimal.
    pub digest: String,
    /// Number of bytes.
    pub size: u64,
    /// The artifact type of a manifest, in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "map_or_null")]
    pub annotations: BTreeMap<String, String>,
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Its media type.
    #[serde(default)]
    pub media_type: String,
    /// What it is, if it is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The files.
    pub layers: Vec<Descriptor>,
    /// The manifest that it refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "map_or_null")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Its media type.
    #[serde(default)]
    pub media_type: String,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

/// The configuration of a component, as `wkg` writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WasmConfig {
    /// The time of creation, RFC 3339.
    pub created: String,
    /// The author.
    pub author: Option<String>,
    /// Always `wasm`.
    pub architecture: String,
    /// `wasip2` for a component.
    pub os: String,
    /// The digests of the layers.
    pub layer_digests: Vec<String>,
    /// What the component imports and exports.
    pub component: Option<ComponentNames>,
}

/// What a component imports and exports, by names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentNames {
    /// The names of its exports.
    pub exports: Vec<String>,
    /// The names of its imports.
    pub imports: Vec<String>,
    /// The world that it is built for, if it is known.
    pub target: Option<String>,
}

/// Reads a map, for which some registries write null.
fn map_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The files of a plugin's manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A component.
    Component(Descriptor),
    /// An ONNX model, and the .toml beside it.
    Onnx {
        /// The model.
        model: Descriptor,
        /// The file beside it.
        metadata: Option<Descriptor>,
    },
}

impl Contents {
    /// Returns the files with their extensions; the plugin's own is the first.
    pub fn files(&self) -> Vec<(&'static str, &Descriptor)> {
        match self {
            Self::Component(component) => vec![("wasm", component)],
            Self::Onnx { model, metadata } => {
                [("onnx", model)].into_iter().chain(metadata.iter().map(|file| ("toml", file))).collect()
            }
        }
    }
}

impl Descriptor {
    /// Returns the descriptor of bytes.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        let digest = format!("sha256:{}", super::sha256(bytes));
        let (media_type, size) = (media_type.to_owned(), bytes.len() as u64);
        Self { media_type, digest, size, artifact_type: None, annotations: BTreeMap::new() }
    }

    /// Returns the descriptor with an annotation.
    pub fn annotated(mut self, key: &str, value: impl Into<String>) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// Returns the digest in hexadecimal.
    ///
    /// # Errors
    /// If it is of another kind, or is none.
    pub fn sha256(&self) -> Result<String, String> {
        let digits = self.digest.strip_prefix("sha256:").and_then(|digits| sha256_digits(digits).ok());
        digits.ok_or_else(|| format!("names a file by `{}`, which is no sha256", named(&self.digest)))
    }
}

impl Manifest {
    /// Returns a manifest of files with an empty configuration.
    pub fn of_artifact(artifact_type: &str, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: MANIFEST.to_owned(),
            artifact_type: Some(artifact_type.to_owned()),
            config: Descriptor::of(EMPTY, EMPTY_CONFIG),
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// What it is instead, as a verb and its object.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            #[serde(default)]
            media_type: String,
            manifests: Option<serde_json::Value>,
        }
        let kind: Kind =
            serde_json::from_slice(bytes).map_err(|error| format!("sends what is no manifest ({})", brief(&error)))?;
        if kind.manifests.is_some() {
            return Err("has a list of images there, as for several platforms, and no plugin".to_owned());
        }
        if !["", MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"].contains(&&*kind.media_type) {
            return Err(format!("has `{}` there, which is no manifest", named(&kind.media_type)));
        }
        serde_json::from_slice(bytes).map_err(|error| format!("sends what is no manifest ({})", brief(&error)))
    }

    /// Returns the files of a plugin.
    ///
    /// # Errors
    /// If the manifest is another thing's, as a verb and its object.
    pub fn contents(&self) -> Result<Contents, String> {
        let onnx = [self.artifact_type.as_deref(), Some(&self.config.media_type)].contains(&Some(ONNX));
        let types: Vec<&str> = self.layers.iter().map(|layer| layer.media_type.as_str()).collect();
        let contents = match (&*types, &self.layers[..]) {
            ([WASM], [component]) if self.config.media_type == WASM_CONFIG => Contents::Component(component.clone()),
            ([ONNX_MODEL], [model]) if onnx => Contents::Onnx { model: model.clone(), metadata: None },
            ([ONNX_MODEL, ONNX_METADATA], [model, side]) if onnx => {
                Contents::Onnx { model: model.clone(), metadata: Some(side.clone()) }
            }
            ([WASM, ..], _) if self.config.media_type == WASM_CONFIG => {
                return Err(format!("has {} files there, where a component is one", types.len()));
            }
            _ => {
                let found = types.first().map_or("no files", |found| found);
                let config = named(&self.config.media_type);
                return Err(format!("has another thing there than a plugin ({}, of {config})", named(found)));
            }
        };
        for (_, file) in contents.files() {
            file.sha256()?;
        }
        Ok(contents)
    }

    /// Returns the bytes that are pushed.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers serialize")
    }
}
