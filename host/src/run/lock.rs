//! `plugins.lock`: the plugins, encoders and prompts of a run by digest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::encoders::{EncoderError, Encoders};
use crate::fs::read_text;
use crate::plugin::store::reference::Reference;
use crate::plugin::store::trust::Signer;
use crate::plugin::{Pin, Plugin, Published};
use crate::text::sha256_digits;

/// The largest number of styles whose names a lock has, and whose confusion a monitor records.
pub const MAX_NAMED_STYLES: u32 = 64;

/// What a run's rewards depend on besides its configuration and its model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PluginsLock {
    /// The SHA-256 of the prompts, in hexadecimal; none for a run without prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<String>,
    /// One entry `[[plugin]]` per plugin, in the order of the configuration.
    #[serde(rename = "plugin", default)]
    pub plugins: Vec<LockedPlugin>,
    /// One entry `[[encoder]]` per encoder that a plugin or the monitor uses, sorted by name.
    #[serde(rename = "encoder", default, skip_serializing_if = "Vec::is_empty")]
    pub encoders: Vec<LockedEncoder>,
}

/// An encoder of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedEncoder {
    /// The encoder's name, no alias.
    pub name: String,
    /// The SHA-256 of its weights, in hexadecimal.
    pub digest: String,
}

/// A plugin of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LockedPlugin {
    /// The plugin's name in the metrics.
    pub name: String,
    /// The path, name or reference that the configuration has.
    pub source: String,
    /// The reference to its version, for a plugin of a registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The version that it had in the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The SHA-256 of its manifest in the registry, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Who signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// The SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// The least interface version that it needs, such as `0.2.0`.
    pub interface: String,
    /// Whether it took no part in the reward: the monitor alone used it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_out: bool,
    /// The encoders that it asks for, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encoders: Vec<String>,
    /// Number of styles of a classifier; the upper bound of its reward is −ln of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub styles: Option<u32>,
    /// Their names, for a classifier of at most 64 styles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub style_names: Vec<String>,
    /// The least possible reward of a scorer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_reward: Option<f64>,
    /// The largest possible reward of a scorer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_reward: Option<f64>,
}

impl LockedPlugin {
    /// Returns the entry of a plugin that was loaded from `source`.
    pub fn of(source: &str, plugin: &dyn Plugin) -> Self {
        let (file, description) = (plugin.source(), plugin.description());
        let n_styles = description.styles().len() as u32;
        let [least_reward, largest_reward] = match description.scale() {
            Some(_) => description.reward_range(),
            None => [None, None],
        };
        let published = file.published.as_ref();
        Self {
            name: description.name.clone(),
            source: source.to_owned(),
            reference: published.map(Published::reference),
            version: published.and_then(|published| published.version.clone()),
            manifest: published.map(|published| published.manifest.clone()),
            signer: published.and_then(|published| published.signer.clone()),
            held_out: false,
            encoders: description.encoders.clone(),
            sha256: file.sha256.clone(),
            interface: file.interface.clone(),
            styles: (n_styles > 0).then_some(n_styles),
            style_names: if n_styles > MAX_NAMED_STYLES { vec![] } else { description.styles().to_vec() },
            least_reward,
            largest_reward,
        }
    }
}

impl LockedEncoder {
    /// Returns the entries of encoders by their names or aliases, sorted, each once; the encoders are loaded.
    ///
    /// # Errors
    /// If an encoder is unknown or cannot be loaded.
    pub fn all<'a>(
        names: impl IntoIterator<Item = &'a String>,
        encoders: &mut Encoders,
    ) -> Result<Vec<Self>, EncoderError> {
        let names: BTreeSet<String> =
            names.into_iter().map(|name| encoders.resolve(name)).collect::<Result<_, EncoderError>>()?;
        let entry = |name: String| Ok(Self { digest: encoders.get(&name)?.info().digest, name });
        names.into_iter().map(entry).collect()
    }
}

impl PluginsLock {
    /// Returns the plugins of the reward, without those held out.
    pub fn of_reward(&self) -> impl Iterator<Item = &LockedPlugin> {
        self.plugins.iter().filter(|plugin| !plugin.held_out)
    }

    /// Returns the plugins of the reward in words: names and digests; an empty text if there are none.
    pub fn in_words(&self) -> String {
        let words = self.of_reward().map(|plugin| format!("{} (sha256 {})", plugin.name, plugin.sha256));
        words.collect::<Vec<_>>().join(", ")
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        let body = toml::to_string(self).expect("strings and numbers in a flat table always serialize");
        format!("# What this run's rewards depend on; resuming with other bytes is refused.\n\n{body}")
    }

    /// Reads the file's text.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let text = read_text(path).context("a lock is written by `host plugin lock`")?;
        Self::from_toml(&text).map_err(|error| anyhow!("{}: {}", path.display(), error.message()))
    }

    /// Returns what the sources of its plugins of registries mean; `is_own`: it is the lock of a run, whose plugins were
    /// accepted when the run was started.
    ///
    /// # Errors
    /// If a reference or a digest is none, or is of another place than the source.
    pub fn pins(&self, is_own: bool) -> anyhow::Result<BTreeMap<String, Pin>> {
        let mut pins = BTreeMap::new();
        for plugin in &self.plugins {
            let (Some(reference), Some(manifest)) = (&plugin.reference, &plugin.manifest) else { continue };
            let wrong = |error: String| anyhow!("plugins.lock: {error}");
            let reference: Reference = reference.parse().map_err(wrong)?;
            let manifest = sha256_digits(manifest).map_err(wrong)?;
            if let Ok(source) = plugin.source.parse::<Reference>() {
                ensure!(
                    source.repository == reference.repository,
                    "plugins.lock: {} is of another place than {}",
                    reference.repository,
                    source.repository
                );
            }
            let (version, signer) = (plugin.version.clone(), plugin.signer.clone());
            pins.insert(plugin.source.clone(), Pin { reference, version, manifest, signer, is_own });
        }
        Ok(pins)
    }

    /// Returns why a run with the lock `other` is not one that this lock allows, in one clause; `None` if it is. What the run
    /// does not use does not matter.
    pub fn forbids(&self, other: &Self) -> Option<String> {
        let listed = |plugin: &&LockedPlugin| other.plugins.iter().any(|used| used.source == plugin.source);
        let used = |encoder: &&LockedEncoder| other.encoders.iter().any(|used| used.name == encoder.name);
        let mut part = Self {
            prompts: self.prompts.clone().or_else(|| other.prompts.clone()),
            plugins: self.plugins.iter().filter(listed).cloned().collect(),
            encoders: self.encoders.iter().filter(used).cloned().collect(),
        };
        let place = |source: &str| other.plugins.iter().position(|used| used.source == source);
        part.plugins.sort_by_key(|plugin| place(&plugin.source));
        // What a monitor alone uses is no plugin's.
        let of_plugins: BTreeSet<&String> = other.plugins.iter().flat_map(|plugin| &plugin.encoders).collect();
        // An alias may mean any of the run's encoders.
        let has_alias = of_plugins.iter().any(|name| !other.encoders.iter().any(|encoder| encoder.name == **name));
        let mut asked = other.clone();
        asked.encoders.retain(|encoder| {
            has_alias
                || part.encoders.iter().any(|locked| locked.name == encoder.name)
                || of_plugins.contains(&encoder.name)
        });
        part.conflict(&asked)
    }

    /// Returns why a run with this lock must not resume with `other`, in one clause; `None` if it may.
    ///
    /// Names, order and digests must be equal; a plugin may have moved.
    pub fn conflict(&self, other: &Self) -> Option<String> {
        let differ = |what: &str, names: fn(&Self) -> Vec<&str>| {
            let [before, now] = [names(self), names(other)];
            let listed = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let (listed_before, listed_now) = (listed(&before), listed(&now));
            (before != now).then(|| format!("the {what} of the run are {listed_before}, not {listed_now}"))
        };
        let plugin = || {
            let mut pairs = self.plugins.iter().zip(&other.plugins);
            pairs.find(|(was, is)| was.sha256 != is.sha256).map(|(was, is)| {
                format!(
                    "the run was started with plugin {} of digest {}, but {} has {}",
                    was.name, was.sha256, is.source, is.sha256
                )
            })
        };
        let signer = || {
            let mut pairs = self.plugins.iter().zip(&other.plugins);
            let differ = |(was, is): &(&LockedPlugin, &LockedPlugin)| {
                let signers = was.signer.as_ref().zip(is.signer.as_ref());
                signers
                    .filter(|(was, is)| was.id != is.id)
                    .map(|(was, now)| (is.name.clone(), was.clone(), now.clone()))
            };
            let (name, was, is) = pairs.find_map(|pair| differ(&pair))?;
            Some(format!("{is} signed plugin {name}, which {was} had signed"))
        };
        let encoder = || {
            let mut pairs = self.encoders.iter().zip(&other.encoders);
            pairs.find(|(was, is)| was.digest != is.digest).map(|(was, is)| {
                let (name, before, now) = (&was.name, &was.digest, &is.digest);
                format!("the run was started with encoder {name} of weight digest {before}, but its folder has {now}")
            })
        };
        let prompts = || {
            let changed = "the run was started with other prompts: the file that prompts.file names has changed";
            (self.prompts != other.prompts).then(|| changed.to_owned())
        };
        differ("plugins", |lock| lock.plugins.iter().map(|plugin| &*plugin.name).collect())
            .or_else(plugin)
            .or_else(signer)
            .or_else(|| differ("encoders", |lock| lock.encoders.iter().map(|encoder| &*encoder.name).collect()))
            .or_else(encoder)
            .or_else(prompts)
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
            interface: "0.2.0".into(),
            styles: Some(27),
            ..LockedPlugin::default()
        };
        PluginsLock { plugins: vec![plugin], ..PluginsLock::default() }
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

    #[test]
    fn other_encoders_and_prompts_conflict() {
        let lock = |name: &str, digest: &str, prompts: &str| PluginsLock {
            prompts: Some(prompts.into()),
            encoders: vec![LockedEncoder { name: name.into(), digest: digest.into() }],
            ..plugin("ab12")
        };
        let first = lock("tiny-art", "01", "aa");
        assert_eq!(PluginsLock::from_toml(&first.to_toml()).unwrap(), first);
        assert_eq!(first.conflict(&first), None);
        let conflict = |other: PluginsLock| first.conflict(&other).unwrap();
        assert_eq!(conflict(lock("clip", "01", "aa")), "the encoders of the run are tiny-art, not clip");
        let digests = "the run was started with encoder tiny-art of weight digest 01, but its folder has 02";
        assert_eq!(conflict(lock("tiny-art", "02", "aa")), digests);
        assert!(conflict(lock("tiny-art", "01", "bb")).starts_with("the run was started with other prompts"));
        assert_eq!(conflict(plugin("ab12")), "the encoders of the run are tiny-art, not none");
    }

    #[test]
    fn a_pin_is_of_the_place_that_its_source_names() {
        let (digest, source) = ("0f".repeat(32), "oci://r.example/makers/sea:^1");
        let lock = |reference: &str, manifest: &str| {
            let mut lock = plugin("ab12");
            lock.plugins[0].source = source.into();
            lock.plugins[0].reference = Some(reference.into());
            lock.plugins[0].manifest = Some(manifest.into());
            lock
        };
        let pins = lock("oci://r.example/makers/sea:1.0.0", &digest).pins(false).unwrap();
        assert_eq!((pins[source].manifest.as_str(), pins[source].is_own), (&*digest, false));
        let message = lock("oci://evil.example/x/y:1.0.0", &digest).pins(false).unwrap_err().to_string();
        assert_eq!(message, "plugins.lock: evil.example/x/y is of another place than r.example/makers/sea");
        assert!(lock("oci://r.example/makers/sea:1.0.0", "/dev/zero").pins(false).is_err());
    }

    #[test]
    fn a_lock_forbids_what_it_does_not_name() {
        let run = |sha256: &str, asked: &str, encoder: &str, digest: &str| {
            let mut lock = plugin(sha256);
            lock.plugins[0].encoders = vec![asked.into()];
            lock.encoders = vec![LockedEncoder { name: encoder.into(), digest: digest.into() }];
            lock
        };
        let locked = run("ab12", "clip", "tiny-art", "01");
        assert_eq!(locked.forbids(&run("ab12", "clip", "tiny-art", "01")), None);
        assert!(locked.forbids(&run("cd34", "clip", "tiny-art", "01")).is_some());
        assert!(locked.forbids(&run("ab12", "clip", "tiny-art", "02")).is_some());
        // The alias means another encoder than the locked one.
        assert!(locked.forbids(&run("ab12", "clip", "big", "01")).is_some());
        assert!(locked.forbids(&run("ab12", "big", "big", "01")).is_some());
        let without = PluginsLock { encoders: vec![], ..locked.clone() };
        assert!(without.forbids(&locked).is_some());
        // What a monitor alone uses is no plugin's, and what the run does not use does not matter.
        let mut more = run("ab12", "tiny-art", "tiny-art", "01");
        let locked = more.clone();
        more.encoders.push(LockedEncoder { name: "watching".into(), digest: "03".into() });
        assert_eq!(locked.forbids(&more), None);
        let mut two = locked.clone();
        two.plugins.push(LockedPlugin { source: "other.wasm".into(), ..LockedPlugin::default() });
        assert_eq!(two.forbids(&locked), None);
        assert!(locked.forbids(&two).is_some());
    }
}
