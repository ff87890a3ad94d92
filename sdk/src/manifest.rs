//! The metadata of a plugin that was created without a compiler.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::plugin::{Description, Medium, PluginOption};

/// The baked asset `manifest.json`: what `host plugin fit` and `host plugin build` write into a template component.
///
/// Missing keys are empty, and unknown keys are ignored: a plugin's author may bake in as little as a title.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// The plugin's short name.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// One-line title.
    pub title: String,
    /// Its authors.
    pub authors: Vec<String>,
    /// SPDX license expression.
    pub license: String,
    /// The media that it classifies.
    pub media: Vec<Medium>,
    /// The styles, in order.
    pub styles: Vec<String>,
    /// The encoder of the baked data.
    pub encoder: Option<EncoderPin>,
    /// The prompts of each style, in the styles' order; if there are none, each style's name is its prompt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<Vec<String>>,
    /// Temperature, which divides the logits; by default 1, and that of the encoder's training for CLIP softmax.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Whether embeddings are scaled to length 1 first. CLIP softmax always scales them.
    pub normalize: bool,
    /// The number of clusters of a k-means plugin, or of components of a mixture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
}

/// An encoder by name and digest: baked data is valid only for embeddings by these weights, and others are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderPin {
    /// Its name in the run.
    pub name: String,
    /// sha256 over its weights, in hex; empty if no baked data depends on them, so that any weights are accepted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
}

impl Manifest {
    /// The name of the asset.
    pub const ASSET: &str = "manifest.json";

    /// The option of plugins with a manifest that replaces the manifest's temperature.
    pub const TEMPERATURE: PluginOption<f64> = PluginOption::without_default(
        "temperature",
        "Divides the logits: above 1 for flatter distributions; by default that of the manifest",
    );

    /// Reads the manifest that is baked into a plugin. A temperature that the run sets replaces that of the manifest.
    ///
    /// # Errors
    /// If there is no manifest, it cannot be parsed, or the temperature is not above 0.
    pub fn baked(host: &Host) -> Result<Self> {
        let mut manifest = Self::parse(&host.asset(Self::ASSET)?)?;
        if let Some(temperature) = Self::TEMPERATURE.find(host)? {
            manifest.temperature = Some(temperature as f32);
        }
        match manifest.temperature {
            Some(temperature) if !(temperature.is_finite() && temperature > 0.0) => {
                Err(Error::new(format!("the temperature is {temperature}, it must be above 0")))
            }
            _ => Ok(manifest),
        }
    }

    /// Reads a manifest from its JSON.
    pub fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).map_err(|e| Error::from(e).context(Self::ASSET))
    }

    /// Returns the manifest's JSON, the same bytes for the same manifest.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("strings, numbers and lists serialize");
        json.push(b'\n');
        json
    }

    /// Returns the description of a plugin that takes its temperature from [`Manifest::baked`].
    pub fn description(&self) -> Description {
        Description {
            media: self.media.clone(),
            encoders: self.encoder.iter().map(|encoder| encoder.name.clone()).collect(),
            ..Description::new(&self.name, &self.version).option(Self::TEMPERATURE)
        }
    }

    /// Returns the prompts of each style, by default the styles' names; an error unless each style has some.
    pub fn prompts(&self) -> Result<Vec<Vec<String>>> {
        if self.prompts.is_empty() {
            return Ok(self.styles.iter().map(|style| vec![style.clone()]).collect());
        }
        let (prompts, styles) = (self.prompts.len(), self.styles.len());
        if prompts != styles {
            return Err(Error::new(format!("manifest.json has prompts for {prompts} styles, and {styles} styles")));
        }
        match self.prompts.iter().position(Vec::is_empty) {
            Some(i) => Err(Error::new(format!("manifest.json has no prompt for the style `{}`", self.styles[i]))),
            None => Ok(self.prompts.clone()),
        }
    }

    /// Returns the pinned encoder's name; an error if the manifest has none.
    pub fn encoder_name(&self) -> Result<&str> {
        let encoder = self.encoder.as_ref().ok_or_else(|| Error::new("manifest.json names no encoder"))?;
        Ok(&encoder.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_not_written_and_what_is_not_known_is_passed_over() {
        let manifest = Manifest::parse(br#"{"styles": ["a", "b"], "encoder": {"name": "clip"}, "moon": 3}"#);
        let manifest = manifest.expect("an object");
        assert_eq!((manifest.temperature, manifest.encoder_name().expect("it names one")), (None, "clip"));
        let json = String::from_utf8(manifest.to_json()).expect("JSON is UTF-8");
        for absent in ["temperature", "prompts", "digest", "\"k\"", "moon"] {
            assert!(!json.contains(absent), "{absent} in {json}");
        }
        assert_eq!(Manifest::parse(json.as_bytes()).expect("its own JSON"), manifest);
    }

    #[test]
    fn each_style_has_prompts() {
        let mut manifest = Manifest { styles: vec!["a".into(), "b".into()], ..Manifest::default() };
        assert_eq!(manifest.prompts().expect("the names"), [["a"], ["b"]]);
        let message = |manifest: &Manifest| manifest.prompts().expect_err("not one list per style").to_string();
        manifest.prompts = vec![vec!["an a".into()]];
        assert_eq!(message(&manifest), "manifest.json has prompts for 1 styles, and 2 styles");
        manifest.prompts.push(vec![]);
        assert_eq!(message(&manifest), "manifest.json has no prompt for the style `b`");
    }
}
