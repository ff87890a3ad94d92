//! `plugins.lock`: the plugins of a run by digest.

use serde::{Deserialize, Serialize};

use crate::plugin::Classifier;

/// The plugins of a run, in the order of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginsLock {
    /// One entry `[[plugin]]` per plugin.
    #[serde(rename = "plugin", default)]
    pub plugins: Vec<LockedPlugin>,
}

/// A plugin of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedPlugin {
    /// The plugin's name in the metrics.
    pub name: String,
    /// The path or registry reference that it was loaded from.
    pub source: String,
    /// The SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// The interface version that it was built for, such as `0.1.0`.
    pub interface: String,
    /// Number of styles that it classifies; the upper bound of the reward is −ln of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub styles: Option<u32>,
}

impl LockedPlugin {
    /// Returns the entry of a plugin that was loaded from `source`.
    pub fn of(source: &str, classifier: &dyn Classifier) -> Self {
        let (file, description) = (classifier.source(), classifier.description());
        Self {
            name: description.name.clone(),
            source: source.to_owned(),
            sha256: file.sha256.clone(),
            interface: file.interface.clone(),
            styles: u32::try_from(description.styles.len()).ok(),
        }
    }
}

impl PluginsLock {
    /// Returns the plugins in words: names and digests; an empty text if there are none.
    pub fn in_words(&self) -> String {
        let words = self.plugins.iter().map(|plugin| format!("{} (sha256 {})", plugin.name, plugin.sha256));
        words.collect::<Vec<_>>().join(", ")
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        let body = toml::to_string(self).expect("strings and numbers in a flat table always serialize");
        format!("# The plugins that this run is trained with; resuming with other bytes is refused.\n\n{body}")
    }

    /// Reads the file's text.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Returns why a run with this lock must not resume with `other`, in one clause; `None` if it may.
    ///
    /// Names, order and digests must be equal; a plugin may have moved.
    pub fn conflict(&self, other: &Self) -> Option<String> {
        let names = |lock: &Self| match &lock.plugins[..] {
            [] => "no plugin".to_owned(),
            plugins => plugins.iter().map(|plugin| plugin.name.as_str()).collect::<Vec<_>>().join(", "),
        };
        if names(self) != names(other) {
            return Some(format!("the run was started with {}, not {}", names(self), names(other)));
        }
        self.plugins.iter().zip(&other.plugins).find(|(was, is)| was.sha256 != is.sha256).map(|(was, is)| {
            format!(
                "the run was started with plugin {} of digest {}, but {} has {}",
                was.name, was.sha256, is.source, is.sha256
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(sha256: &str) -> PluginsLock {
        let plugin = LockedPlugin {
            name: "kmeans_image".into(),
            source: "plugins/kmeans_image.wasm".into(),
            sha256: sha256.into(),
            interface: "0.1.0".into(),
            styles: Some(27),
        };
        PluginsLock { plugins: vec![plugin] }
    }

    #[test]
    fn the_file_is_an_array_of_tables_and_reads_back() {
        let text = plugin("ab12").to_toml();
        assert!(text.contains("[[plugin]]\nname = \"kmeans_image\""), "{text}");
        assert_eq!(PluginsLock::from_toml(&text).unwrap(), plugin("ab12"));
        assert_eq!(PluginsLock::from_toml("").unwrap(), PluginsLock::default());
    }

    #[test]
    fn another_digest_conflicts_and_another_place_does_not() {
        let mut moved = plugin("ab12");
        moved.plugins[0].source = "elsewhere.wasm".into();
        assert_eq!(plugin("ab12").conflict(&moved), None);
        assert!(plugin("ab12").conflict(&plugin("cd34")).unwrap().contains("cd34"));
        assert!(plugin("ab12").conflict(&PluginsLock::default()).is_some());
    }
}
