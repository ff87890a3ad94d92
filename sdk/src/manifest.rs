//! What a plugin that was made without a compiler says about itself.

use serde::{Deserialize, Serialize};

use crate::classifier::Description;
use crate::error::{Error, Result};
use crate::host;

/// The baked asset `manifest.json`: what `host plugin fit` and `host plugin build` write into a template component.
///
/// What is missing is empty, and what is not known is passed over: a plugin's author may bake in as little as a title.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// The plugin's short name.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// One line for people.
    pub title: String,
    /// Who made it.
    pub authors: Vec<String>,
    /// SPDX expression.
    pub licence: String,
    /// "image", "text", "audio".
    pub media: Vec<String>,
    /// The styles, in order.
    pub styles: Vec<String>,
    /// The encoder that the data belongs to.
    pub encoder: Option<EncoderPin>,
    /// Divides the logits.
    pub temperature: f32,
    /// Whether embeddings are scaled to length 1 first.
    pub normalize: bool,
    /// The number of clusters of a k-means plugin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
}

/// An encoder by name and by what it is: embeddings of other weights mean something else, and are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderPin {
    /// The name that the run knows it by.
    pub name: String,
    /// sha256 over its weights, in hex.
    pub digest: String,
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            name: String::new(),
            version: String::new(),
            title: String::new(),
            authors: vec![],
            licence: String::new(),
            media: vec![],
            styles: vec![],
            encoder: None,
            temperature: 1.0,
            normalize: false,
            k: None,
        }
    }
}

impl Manifest {
    /// The name of the asset.
    pub const ASSET: &str = "manifest.json";

    /// Reads the manifest that is baked into this plugin.
    pub fn baked() -> Result<Self> {
        Self::parse(&host::asset(Self::ASSET)?)
    }

    /// Reads a manifest from its JSON.
    pub fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).map_err(|e| Error::from(e).context(Self::ASSET))
    }

    /// The manifest's JSON, the same bytes for the same manifest.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("strings, numbers and lists serialise");
        json.push(b'\n');
        json
    }

    /// The description that follows from it.
    pub fn description(&self) -> Description {
        Description {
            name: self.name.clone(),
            version: self.version.clone(),
            styles: self.styles.clone(),
            media: self.media.clone(),
            encoders: self.encoder.iter().map(|encoder| encoder.name.clone()).collect(),
        }
    }

    /// The pinned encoder's name; an error if the manifest has none.
    pub fn encoder_name(&self) -> Result<&str> {
        let encoder = self.encoder.as_ref().ok_or_else(|| Error::new("manifest.json names no encoder"))?;
        Ok(&encoder.name)
    }
}
