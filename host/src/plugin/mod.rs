//! Style classifiers and scorers as plugins: lookup, validation, a sandbox that runs them, and checks of what they return.
//!
//! [`PluginHost::load`] turns a plugin's path, name or reference into a [`Plugin`]; no module above this one knows which kind
//! of file is behind it, and no module outside it names wasmtime or ort. [`fit`] and [`build`] create plugins without a
//! compiler.
//!
//! # Layout
//!
//! - [`batch`]: the samples. [`distributions`]: the output of a classifier. `gradient`: the gradients with respect to the
//!   embeddings and the pixels. `options`: the options that a run sets.
//! - [`store`]: finds files by paths, names, folders and references to registries; signatures and trust.
//! - [`artifact`]: a component's file, parsed without running it, and the data baked into it. `budget`: what compiling it
//!   would take.
//! - `confined`: processes that compile components and run models within limits of memory and time.
//! - [`limits`], [`error`]: the sandbox's limits, and every error message.
//! - `wasm`: WebAssembly components on wasmtime. [`onnx`]: ONNX models on ONNX Runtime.
//! - [`inspection`]: the contents of a plugin's file for display, whatever its kind.
//! - [`fit`]: classifiers fitted to embeddings, [`build`]: styles and prompts; each baked into a template.

pub mod artifact;
pub mod batch;
mod budget;
pub mod build;
mod confined;
pub mod distributions;
pub mod error;
pub mod fit;
mod gradient;
pub mod inspection;
pub mod limits;
pub mod onnx;
mod options;
pub mod store;
mod wasm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_sdk::{EncoderPin, Manifest};
pub use ambiguity_sdk::{Medium, OptionInfo, Scale};
use ndarray::Array2;
use tch::Device;

pub use self::artifact::Artifact;
pub use self::batch::{Batch, Sample};
use self::confined::Launcher;
pub use self::distributions::Distributions;
use self::error::quoted_name;
pub use self::error::{Fault, PluginError};
pub use self::inspection::{Asset, Bounds, Inspection};
pub use self::limits::Limits;
use self::onnx::OnnxPlugin;
pub use self::store::{Found, Pin, Published, Store};
use self::wasm::{Nans, Sandbox};
use crate::context::Context;
use crate::encoders::Encoders;
use crate::text::{in_one_line, is_control, sentence, sha256_digits};

/// A loaded plugin.
pub trait Plugin {
    /// Returns the plugin's description of itself.
    fn description(&self) -> &Description;
    /// Returns the file that the plugin was loaded from.
    fn source(&self) -> &PluginSource;
    /// Returns the contents of the file, for display.
    fn inspect(&self) -> Inspection;
    /// Returns what it may use at most.
    fn bounds(&self) -> Bounds;
    /// Returns one distribution over the styles, or one score, per sample. The batch keeps the embeddings that were
    /// computed for it, and encoders are loaded when they are first needed.
    fn run(&mut self, batch: &mut Batch, encoders: &mut Encoders) -> Result<Output, PluginError>;
    /// Returns what [`Plugin::run`] returns of a classifier.
    ///
    /// # Errors
    /// [`Fault::NoStyles`] if the plugin is a scorer, and every error of [`Plugin::run`].
    fn classify(&mut self, batch: &mut Batch, encoders: &mut Encoders) -> Result<Distributions, PluginError> {
        match self.run(batch, encoders)?.values {
            Values::Distributions(distributions) => Ok(distributions),
            Values::Scores { .. } => Err(PluginError::new(&self.source().name, Fault::NoStyles)),
        }
    }
    /// Returns whether the plugin has a gradient of its output with respect to the embedding, that is, whether
    /// [`Plugin::embedding_vjp`] is supported.
    fn differentiable(&self) -> bool {
        self.inspect().differentiable
    }
    /// Returns whether the plugin has a gradient of its output with respect to the pixels, that is, whether
    /// [`Plugin::pixel_vjp`] is supported.
    fn pixel_differentiable(&self) -> bool {
        self.inspect().pixel_differentiable
    }
    /// Returns the vector-Jacobian product of [`Plugin::run`]: maps dL/d(log-probabilities), len × styles, or
    /// dL/d(scores), len × 1, to dL/d(embeddings), len × dim, for one of the encoders that the description names. All
    /// values are finite. The limits are those of `run`.
    ///
    /// # Errors
    /// [`Fault::NoGradient`] if the plugin is not [`Plugin::differentiable`], and every error of `run`.
    ///
    /// # Panics
    /// If `upstream` has another shape.
    fn embedding_vjp(
        &mut self,
        _batch: &mut Batch,
        _encoders: &mut Encoders,
        _encoder: &str,
        _upstream: &Array2<f32>,
    ) -> Result<Array2<f32>, PluginError> {
        Err(PluginError::new(&self.source().name, Fault::NoGradient))
    }
    /// Returns the vector-Jacobian product of [`Plugin::run`] for each image of a batch: maps dL/d(log-probabilities),
    /// len × styles, or dL/d(scores), len × 1, to dL/d(pixel values in [0, 1]), height × width × 3 in one list. All values
    /// are finite.
    ///
    /// # Errors
    /// [`Fault::NoGradient`] if the plugin is not [`Plugin::pixel_differentiable`], and every error of `run`.
    ///
    /// # Panics
    /// If `upstream` has another shape.
    fn pixel_vjp(
        &mut self,
        _batch: &mut Batch,
        _encoders: &mut Encoders,
        _upstream: &Array2<f32>,
    ) -> Result<Vec<Vec<f32>>, PluginError> {
        Err(PluginError::new(&self.source().name, Fault::NoGradient))
    }
    /// Returns the peak memory of the last call on a batch in bytes, if the sandbox counts it.
    fn peak_memory(&self) -> Option<usize> {
        None
    }
    /// Creates a fresh instance and asks it for its description, as loading did: the minimum cost of a call. Returns
    /// None for a plugin without instances.
    fn describe_again(&self) -> Result<Option<Description>, PluginError> {
        Ok(None)
    }
}

/// A plugin's description of itself, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    /// A short name.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// What it returns.
    pub kind: Kind,
    /// The media that it takes.
    pub media: Vec<Medium>,
    /// The encoders whose embeddings it asks for.
    pub encoders: Vec<String>,
    /// The options that a run may set.
    pub options: Vec<OptionInfo>,
    /// Other properties by key.
    pub properties: Vec<(String, String)>,
}

/// What a plugin returns of each sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A distribution over the styles.
    Classifier {
        /// The styles, in the order of a distribution's entries; at least two, all different.
        styles: Vec<String>,
    },
    /// One number.
    Scorer(Scale),
}

impl Default for Kind {
    fn default() -> Self {
        Self::Classifier { styles: vec![] }
    }
}

impl Description {
    /// Returns a classifier's styles; a scorer has none.
    pub fn styles(&self) -> &[String] {
        match &self.kind {
            Kind::Classifier { styles } => styles,
            Kind::Scorer(_) => &[],
        }
    }

    /// Returns what the numbers of a scorer mean; a classifier has none.
    pub fn scale(&self) -> Option<Scale> {
        match self.kind {
            Kind::Classifier { .. } => None,
            Kind::Scorer(scale) => Some(scale),
        }
    }

    /// Returns the least and the largest possible reward of a sample, where there are such: the largest of a classifier of N
    /// styles is −ln N, that of a scorer its best score.
    pub fn reward_range(&self) -> [Option<f64>; 2] {
        match &self.kind {
            Kind::Classifier { styles } => [None, Some(-(styles.len() as f64).ln())],
            Kind::Scorer(scale) if scale.higher_is_better => [scale.minimum, scale.maximum],
            Kind::Scorer(scale) => [scale.maximum, scale.minimum].map(|bound| bound.map(|bound| -bound)),
        }
    }

    /// Returns whether the plugin takes a medium.
    pub fn takes(&self, medium: Medium) -> bool {
        self.media.contains(&medium)
    }

    /// Returns the names of the media, with `separator` between them.
    pub fn media_names(&self, separator: &str) -> String {
        self.media.iter().map(|medium| medium.name()).collect::<Vec<_>>().join(separator)
    }

    /// Returns the description of a classifier with a manifest.
    fn of_manifest(manifest: &Manifest) -> Self {
        let ambiguity_sdk::Description { name, version, media, encoders, options, properties } = manifest.description();
        let kind = Kind::Classifier { styles: manifest.styles.clone() };
        Self { name, version, kind, media, encoders, options, properties }
    }
}

/// The properties of a plugin that are known without compiling or loading it.
#[derive(Clone, Debug, PartialEq)]
pub struct Glance {
    /// sha256 of the file, in hex.
    pub sha256: String,
    /// Its description; None for a component that was never compiled here and has no manifest.
    pub description: Option<Description>,
}

/// The file that a plugin was loaded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginSource {
    /// The file's name without extension, as messages show it.
    pub name: String,
    /// Path of the file.
    pub path: PathBuf,
    /// sha256 of the file, in hex.
    pub sha256: String,
    /// The version of the plugin interface that it was built for; `onnx` for a model.
    pub interface: String,
    /// One-line title, if it has one.
    pub title: Option<String>,
    /// Where it was published, if it is from a registry.
    pub published: Option<Published>,
}

/// The result of running a plugin on a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// One value per sample.
    pub values: Values,
    /// Units of fuel used, where the sandbox counts them: the same on every machine.
    pub fuel: Option<u64>,
    /// Wall-clock time in milliseconds, including the embeddings that had to be computed.
    pub milliseconds: f64,
}

/// What a plugin returns of the samples of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// One distribution per sample.
    Distributions(Distributions),
    /// One score per sample, finite and within the scale.
    Scores {
        /// What the scores mean.
        scale: Scale,
        /// The scores.
        scores: Vec<f64>,
    },
}

impl Values {
    /// Returns no values of a plugin of this kind.
    fn none(kind: &Kind) -> Self {
        match kind {
            Kind::Classifier { styles } => Self::Distributions(Distributions { styles: styles.len(), rows: vec![] }),
            Kind::Scorer(scale) => Self::Scores { scale: *scale, scores: vec![] },
        }
    }

    /// Checks the scores that a plugin returned for `n_samples` samples. An error carries the index of the sample at fault,
    /// if it concerns a single one.
    fn of_scores(scores: Vec<f64>, scale: Scale, n_samples: usize) -> Result<Self, (Option<usize>, Fault)> {
        if scores.len() != n_samples {
            let message = format!("it returned {} scores for {n_samples} samples", scores.len());
            return Err((None, Fault::Output(message)));
        }
        for (i, &score) in scores.iter().enumerate() {
            scale.check(score).map_err(|error| (Some(i), Fault::Output(error.to_string())))?;
        }
        Ok(Self::Scores { scale, scores })
    }

    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Distributions(distributions) => distributions.rows.len(),
            Self::Scores { scores, .. } => scores.len(),
        }
    }

    /// Returns whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Loads plugins, all with the same limits.
pub struct PluginHost {
    sandbox: Arc<Sandbox>,
    limits: Limits,
    device: Device,
    launcher: Option<Launcher>,
    store: Store,
}

impl PluginHost {
    /// Returns a host of plugins in files, which compiles components and runs models in this process, and caches compiled code in
    /// `cache_folder`, if given.
    pub fn new(limits: impl Into<Limits>, cache_folder: Option<PathBuf>) -> Result<Self, PluginError> {
        Self::create(limits.into(), cache_folder, None, Store::local())
    }

    /// Returns the host of a command: components are compiled, and models run on the CPU, in processes whose memory and
    /// time are limited and which Ctrl-C ends; compiled code is cached in the user's [`cache_folder`]. Registries are reached.
    pub fn of_command(limits: impl Into<Limits>, context: &Context) -> Result<Self, PluginError> {
        let store = Store::of_command(context);
        let store = store.map_err(|error| PluginError::new("any", Fault::Registry(sentence(&error))))?;
        Self::create(limits.into(), cache_folder(), Launcher::of(context), store)
    }

    fn create(
        limits: Limits,
        cache_folder: Option<PathBuf>,
        launcher: Option<Launcher>,
        store: Store,
    ) -> Result<Self, PluginError> {
        let sandbox = Sandbox::new(limits, cache_folder, launcher.clone())
            .map_err(|error| PluginError::new("any", Fault::Sandbox(error.root_cause().to_string())))?;
        Ok(Self { sandbox: Arc::new(sandbox), limits, device: Device::Cpu, launcher, store })
    }

    /// Runs plugins that support it on `device`; by default all plugins run on the CPU.
    pub fn on(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Lets references to registries mean what a lock says.
    pub fn pinned(self, pins: BTreeMap<String, Pin>) -> Self {
        Self { store: self.store.pinned(pins), ..self }
    }

    /// Accepts other signatures than the user's files say.
    pub fn trusting(self, trust: store::trust::Trust) -> Self {
        Self { store: self.store.trusting(trust), ..self }
    }

    /// Returns what finds the plugins.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Loads a plugin by its path, name or reference (see [`Store::find`]), with the values of its configuration.
    pub fn load(&self, reference: &str, config: BTreeMap<String, String>) -> Result<Box<dyn Plugin>, PluginError> {
        self.load_pinned(reference, config, None)
    }

    /// Loads a plugin as [`PluginHost::load`] does; unless it has the given digest (as [`PluginSource::sha256`]), if any,
    /// it is refused before it is compiled or run.
    pub fn load_pinned(
        &self,
        reference: &str,
        config: BTreeMap<String, String>,
        sha256: Option<&str>,
    ) -> Result<Box<dyn Plugin>, PluginError> {
        self.load_found(&self.store.find(reference)?, config, sha256)
    }

    /// Loads a plugin whose file was found.
    ///
    /// # Errors
    /// As for [`PluginHost::load_pinned`].
    pub fn load_found(
        &self,
        found: &Found,
        config: BTreeMap<String, String>,
        sha256: Option<&str>,
    ) -> Result<Box<dyn Plugin>, PluginError> {
        let plugin: Box<dyn Plugin> = match is_onnx(&found.path) {
            true => {
                let launcher = self.launcher.as_ref();
                Box::new(OnnxPlugin::load(found, &config, sha256, &self.limits, self.device, launcher)?)
            }
            false => Box::new(self.sandbox.load(found, config, sha256)?),
        };
        check_texts(plugin.description(), plugin.source().title.as_ref(), &plugin.inspect())
            .map_err(|fault| PluginError::new(&found.name, fault))?;
        Ok(plugin)
    }

    /// Reads a plugin's file, as lists show it: it is never compiled, and no model is loaded.
    ///
    /// # Errors
    /// As for [`PluginHost::load`], except that what only compiling finds is not found.
    pub fn glance(&self, path: &Path) -> Result<Glance, PluginError> {
        let found = Found { name: store::short_name(&path.to_string_lossy()), path: path.to_owned(), published: None };
        let glance = match is_onnx(path) {
            true => OnnxPlugin::glance(&found, &self.limits)?,
            false => self.sandbox.glance(&found)?,
        };
        if let Some(description) = &glance.description {
            check_texts(description, None, &Inspection::default())
                .map_err(|fault| PluginError::new(found.name, fault))?;
        }
        Ok(glance)
    }
}

/// Checks a file's digest, if the user named one.
fn check_digest(found: &str, expected: Option<&str>) -> Result<(), Fault> {
    match expected.map(sha256_digits) {
        Some(Ok(expected)) if expected != found => Err(Fault::Digest { found: found.to_owned(), expected }),
        Some(Err(why)) => Err(Fault::Unusable(why)),
        _ => Ok(()),
    }
}

fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(onnx::EXTENSION))
}

/// Returns the folder of the cache of compiled plugins: `XDG_CACHE_HOME`, else `~/.cache`, then `ambiguity/plugins`.
pub fn cache_folder() -> Option<PathBuf> {
    user_cache().map(|folder| folder.join("plugins"))
}

/// Returns the folder of all caches, in which that of compiled plugins is one.
pub fn user_cache() -> Option<PathBuf> {
    store::user_folder("XDG_CACHE_HOME", ".cache")
}

/// What a process does that [`PluginHost::of_command`] starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Service {
    /// It compiles the component on stdin to stdout.
    Compiler,
    /// The same, to code where all NaNs are the same.
    CanonicalCompiler,
    /// It runs the ONNX model on stdin on the inputs that follow it.
    Onnx,
}

/// Works for another process over stdin and stdout, within limits of memory and time, with this many threads.
///
/// # Errors
/// If stdin cannot be read, or stdout not be written.
pub fn serve(service: Service, threads: usize) -> std::io::Result<()> {
    match service {
        Service::Compiler => wasm::serve(&Limits::default(), Nans::AsComputed, threads),
        Service::CanonicalCompiler => wasm::serve(&Limits::default(), Nans::Canonical, threads),
        Service::Onnx => onnx::serve(threads),
    }
}

/// Checks that a description has a name and a medium; a classifier's at least two styles, all different and not too many; a
/// scorer's a scale; and its options different keys and defaults of their types.
fn check_description(description: &Description, limits: &Limits) -> Result<(), Fault> {
    let Description { name, media, .. } = description;
    let (styles, is_classifier) = (description.styles(), description.scale().is_none());
    let problem = if name.is_empty() {
        "its name is empty".to_owned()
    } else if is_classifier && styles.len() < 2 {
        format!("it has {}, ambiguity needs at least two", if styles.is_empty() { "no styles" } else { "one style" })
    } else if styles.len() > limits.styles {
        format!("it has {} styles, the limit is {}", styles.len(), limits.styles)
    } else if let Some((what, text)) = first_long(description) {
        let (start, length) = (quoted_name(text), text.chars().count());
        format!("its {what} `{start}` has {length} characters, the limit is {}", limits::NAME_LENGTH)
    } else if let Some(duplicate) = first_duplicate(styles) {
        format!("the style `{duplicate}` appears twice")
    } else if styles.iter().any(String::is_empty) {
        "a style's name is empty".to_owned()
    } else if media.is_empty() {
        "it names no medium (image, text, audio, video, tensor)".to_owned()
    } else if let Some(problem) = description.scale().as_ref().and_then(scale_problem) {
        problem
    } else if let Some(problem) = options::problem(&description.options) {
        problem
    } else {
        return Ok(());
    };
    Err(Fault::Description(problem))
}

/// Checks that a plugin's texts are safe to print: a terminal would execute control characters, and directional ones
/// would change the order in which the text is read.
fn check_texts(description: &Description, title: Option<&String>, inspection: &Inspection) -> Result<(), Fault> {
    let Description { name, version, encoders, options, properties, .. } = description;
    let texts = [("name", vec![name]), ("version", vec![version]), ("title", title.into_iter().collect())];
    let lists = [("encoders", encoders), ("authors", &inspection.authors)];
    let rest = [
        ("styles", description.styles().iter().collect()),
        ("options", options.iter().flat_map(|option| [&option.key, &option.help]).collect()),
        ("options' defaults", options.iter().filter_map(|option| option.default.as_ref()).collect()),
        ("properties", properties.iter().flat_map(|(key, value)| [key, value]).collect()),
        ("license", vec![&inspection.license]),
        ("prompts", inspection.prompts.iter().flatten().collect()),
        ("assets", inspection.assets.iter().map(|asset| &asset.name).collect()),
        ("imports", inspection.imports.iter().collect()),
        ("exports", inspection.exports.iter().collect()),
    ];
    let lists = lists.into_iter().map(|(what, list)| (what, list.iter().collect::<Vec<&String>>()));
    for (what, texts) in texts.into_iter().chain(lists).chain(rest) {
        let prose = what == "prompts";
        let bad = |text: &&String| text.chars().any(|c| is_control(c) && !(prose && c.is_whitespace()));
        if let Some(text) = texts.into_iter().find(bad) {
            return Err(Fault::Description(format!(
                "its {what}: \"{}\" contains a control character",
                quoted_name(text)
            )));
        }
    }
    Ok(())
}

/// Returns an ONNX model's file with everything in it that makes it a plugin: the data of tensors in other files of its
/// folder, and as metadata the keys of `set` (docs/onnx.md), which replace those of a `.toml` beside it. Returns the
/// description that it then has.
///
/// # Errors
/// If the model could not be used as a plugin: what is missing or wrong.
pub fn describe_onnx(path: &Path, set: BTreeMap<String, String>) -> Result<(Vec<u8>, Description), PluginError> {
    let at = |fault| PluginError::new(store::short_name(&path.to_string_lossy()), fault);
    let (file, description, inspection, title) = onnx::described(path, set, &Limits::default()).map_err(at)?;
    check_texts(&description, title.as_ref(), &inspection).map_err(at)?;
    Ok((file.into(), description))
}

/// Checks that a plugin with this manifest would be loaded.
///
/// # Errors
/// [`Fault::Description`] with what is wrong.
pub fn check_manifest(manifest: &Manifest) -> Result<(), Fault> {
    let description = Description::of_manifest(manifest);
    check_description(&description, &Limits::default())?;
    let inspection = Inspection {
        authors: manifest.authors.iter().map(|author| in_one_line(author)).collect(),
        license: in_one_line(&manifest.license),
        prompts: manifest.prompts.clone(),
        ..Inspection::default()
    };
    check_texts(&description, Some(&in_one_line(&manifest.title)), &inspection)
}

/// Checks that the encoders that a plugin needs exist, and that the pinned one has the digest that it was fitted with.
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

/// Returns the first name of a description that is too long, and what it names.
fn first_long(description: &Description) -> Option<(&'static str, &str)> {
    let Description { name, version, encoders, options, properties, .. } = description;
    let one = [("name", name), ("version", version)].into_iter();
    let styles = description.styles().iter().map(|style| ("style", style));
    let encoders = encoders.iter().map(|encoder| ("encoder", encoder));
    let options = options.iter().flat_map(|option| {
        let texts = [&option.key, &option.help].into_iter().chain(option.default.as_ref());
        texts.map(|text| ("option", text))
    });
    let properties = properties.iter().flat_map(|(key, value)| [("property", key), ("property", value)]);
    let mut names = one.chain(styles).chain(encoders).chain(options).chain(properties);
    names.find(|(_, name)| name.chars().nth(limits::NAME_LENGTH).is_some()).map(|(what, name)| (what, name.as_str()))
}

/// Returns what is wrong with a scale.
fn scale_problem(scale: &Scale) -> Option<String> {
    let bounds = [scale.minimum, scale.maximum];
    if bounds.into_iter().flatten().any(|bound| !bound.is_finite()) {
        return Some("a bound of its scores is not finite".to_owned());
    }
    match bounds {
        [Some(minimum), Some(maximum)] if minimum >= maximum => {
            Some(format!("its scores are at least {minimum} and at most {maximum}"))
        }
        _ => None,
    }
}

fn first_duplicate(names: &[String]) -> Option<&str> {
    let mut seen = std::collections::BTreeSet::new();
    names.iter().map(String::as_str).find(|name| !seen.insert(*name))
}
