//! Style classifiers as plugins: found, checked, run in a sandbox, and held to what they promise.
//!
//! [`PluginHost::load`] turns what a user calls a plugin into a [`Classifier`]; nothing above this module knows what
//! kind of file is behind it, and nothing outside it names wasmtime or ort. [`fit`] and [`build`] make plugins without a
//! compiler.
//!
//! # Layout
//!
//! - [`batch`]: what is classified. [`distributions`]: what comes out. `gradient`: what comes back through it.
//! - [`store`]: names, paths and folders to files.
//! - [`artifact`]: what a file is, and what is baked into it.
//! - [`limits`], [`error`]: the sandbox's bounds, and every message.
//! - `wasm`: WebAssembly components on wasmtime. [`onnx`]: ONNX models on ONNX Runtime.
//! - [`inspection`]: what a file shows when it is looked into, whatever its kind.
//! - [`fit`]: k-means centers of embeddings, [`build`]: styles and prompts; each baked into a template.

pub mod artifact;
pub mod batch;
pub mod build;
pub mod distributions;
pub mod error;
pub mod fit;
mod gradient;
pub mod inspection;
pub mod limits;
pub mod onnx;
pub mod store;
mod wasm;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ambiguity_sdk::EncoderPin;
use ndarray::Array2;
use tch::Device;

pub use self::artifact::Artifact;
pub use self::batch::{Batch, Sample};
pub use self::distributions::Distributions;
pub use self::error::{Fault, PluginError};
pub use self::inspection::{Asset, Inspection};
pub use self::limits::Limits;
use self::onnx::OnnxPlugin;
use self::wasm::Sandbox;
use crate::encoders::Encoders;
use crate::text::is_control;

/// A loaded plugin.
pub trait Classifier {
    /// What it says of itself.
    fn description(&self) -> &Description;
    /// Which file it is.
    fn source(&self) -> &PluginSource;
    /// What the file shows when it is looked into.
    fn inspect(&self) -> Inspection;
    /// One distribution over its styles per sample. The batch keeps the embeddings that were computed for it, and the
    /// encoders are loaded where they are first needed.
    fn classify(&mut self, batch: &mut Batch, encoders: &mut Encoders) -> Result<Classified, PluginError>;
    /// Whether it can say how its distributions change with the embedding: whether [`Classifier::embedding_vjp`] has an
    /// answer.
    fn differentiable(&self) -> bool {
        self.inspect().differentiable
    }
    /// The vector-Jacobian product of [`Classifier::classify`]: from dL/d(distributions), len × styles, to
    /// dL/d(embeddings), len × dim, of the one encoder that its description names; finite. Within the same limits as
    /// `classify`.
    ///
    /// # Errors
    /// [`Fault::NoGradient`] where it is not [`Classifier::differentiable`], besides all that `classify` may give.
    ///
    /// # Panics
    /// If `upstream` has another shape.
    fn embedding_vjp(
        &mut self,
        _batch: &mut Batch,
        _encoders: &mut Encoders,
        _upstream: &Array2<f32>,
    ) -> Result<Array2<f32>, PluginError> {
        Err(PluginError::new(&self.source().name, Fault::NoGradient))
    }
    /// Bytes of memory that the last call on a batch had at most, where the sandbox counts them.
    fn peak_memory(&self) -> Option<usize> {
        None
    }
    /// Makes a fresh instance and asks it for its description, as loading did: the least that a call can cost. Nothing
    /// where a plugin has no instances.
    fn describe_again(&self) -> Result<Option<Description>, PluginError> {
        Ok(None)
    }
}

/// What a plugin says of itself, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// A short name.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// The styles, in the order of a distribution's entries; at least two, all different.
    pub styles: Vec<String>,
    /// What it classifies: "image", "text", "audio".
    pub media: Vec<String>,
    /// The encoders whose embeddings it asks for.
    pub encoders: Vec<String>,
}

/// Which file a plugin is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginSource {
    /// The file's name without extension: what messages call it.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// sha256 of the file, in hex.
    pub sha256: String,
    /// The version of the plugin interface that it was built for; `onnx` for a model.
    pub interface: String,
    /// One line for people, if it is baked in.
    pub title: Option<String>,
}

/// What came of classifying a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Classified {
    /// One per sample.
    pub distributions: Distributions,
    /// Units of fuel used, where the sandbox counts them: the same on every machine.
    pub fuel: Option<u64>,
    /// Wall-clock time, embeddings included where they were not there yet.
    pub milliseconds: f64,
}

/// Loads plugins, all within the same limits.
pub struct PluginHost {
    sandbox: Arc<Sandbox>,
    limits: Limits,
    device: Device,
}

impl PluginHost {
    /// A host that keeps compiled code in `cache_folder`, if given. See [`cache_folder`].
    pub fn new(limits: impl Into<Limits>, cache_folder: Option<PathBuf>) -> Result<Self, PluginError> {
        let limits = limits.into();
        let sandbox = Sandbox::new(limits, cache_folder)
            .map_err(|error| PluginError::new("any", Fault::Sandbox(error.root_cause().to_string())))?;
        Ok(Self { sandbox: Arc::new(sandbox), limits, device: Device::Cpu })
    }

    /// Lets plugins that can run on a GPU do so; without this they run on the CPU.
    pub fn on(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Loads a plugin, called by a path or a name (see [`store::resolve`]), with the values of its configuration.
    pub fn load(&self, reference: &str, config: BTreeMap<String, String>) -> Result<Box<dyn Classifier>, PluginError> {
        let path = store::resolve(reference)?;
        let name = store::short_name(&path.to_string_lossy());
        let plugin: Box<dyn Classifier> =
            match path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(onnx::EXTENSION)) {
                true => Box::new(OnnxPlugin::load(&name, &path, &config, &self.limits, self.device)?),
                false => Box::new(self.sandbox.load(&name, &path, config)?),
            };
        check_words(&*plugin).map_err(|fault| PluginError::new(name, fault))?;
        Ok(plugin)
    }
}

/// Where compiled plugins are kept: `XDG_CACHE_HOME`, else `~/.cache`, then `ambiguity/plugins`.
pub fn cache_folder() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("ambiguity/plugins"))
}

/// A description is usable: it has a name, some styles, all different and not too many, and a medium.
fn check_description(description: &Description, limits: &Limits) -> Result<(), Fault> {
    let Description { name, styles, media, .. } = description;
    let problem = if name.is_empty() {
        "its name is empty".to_owned()
    } else if styles.len() < 2 {
        format!("it has {}, ambiguity needs at least two", if styles.is_empty() { "no styles" } else { "one style" })
    } else if styles.len() > limits.styles {
        format!("it has {} styles, the limit is {}", styles.len(), limits.styles)
    } else if let Some(twice) = first_duplicate(styles) {
        format!("the style `{twice}` is there twice")
    } else if styles.iter().any(String::is_empty) {
        "a style's name is empty".to_owned()
    } else if media.is_empty() {
        "it names no medium (image, text, audio)".to_owned()
    } else {
        return Ok(());
    };
    Err(Fault::Description(problem))
}

/// What a plugin says in words can be shown: on a terminal, control characters would do instead of being read, and
/// directional ones would change the order in which it is read.
fn check_words(plugin: &dyn Classifier) -> Result<(), Fault> {
    let (description, inspection) = (plugin.description(), plugin.inspect());
    let Description { name, version, styles, media, encoders } = description;
    let texts = [("name", vec![name]), ("version", vec![version]), ("title", plugin.source().title.iter().collect())];
    let lists = [("styles", styles), ("media", media), ("encoders", encoders), ("authors", &inspection.authors)];
    let rest = [
        ("license", vec![&inspection.license]),
        ("prompts", inspection.prompts.iter().flatten().collect()),
        ("assets", inspection.assets.iter().map(|asset| &asset.name).collect()),
    ];
    let lists = lists.into_iter().map(|(what, list)| (what, list.iter().collect::<Vec<&String>>()));
    for (what, texts) in texts.into_iter().chain(lists).chain(rest) {
        let prose = what == "prompts";
        let bad = |text: &&String| text.chars().any(|c| is_control(c) && !(prose && c.is_whitespace()));
        if let Some(text) = texts.into_iter().find(bad) {
            return Err(Fault::Description(format!(
                "its {what}: {text:?} has a character that a terminal obeys instead of showing it"
            )));
        }
    }
    Ok(())
}

/// The encoders that a plugin needs are there, and the one that it was fitted with is the same.
fn check_encoders(declared: &[String], pinned: Option<&EncoderPin>, encoders: &mut Encoders) -> Result<(), Fault> {
    for name in declared {
        let found = encoders.get(name)?.info().digest;
        if let Some(pin) = pinned.filter(|pin| pin.name == *name && !pin.digest.is_empty() && pin.digest != found) {
            let (encoder, fitted) = (name.clone(), pin.digest.clone());
            return Err(Fault::EncoderDigest { encoder, fitted, found });
        }
    }
    Ok(())
}

fn first_duplicate(names: &[String]) -> Option<&str> {
    let mut seen = std::collections::BTreeSet::new();
    names.iter().map(String::as_str).find(|name| !seen.insert(*name))
}
