//! Plugins as ONNX models: a classifier that was trained elsewhere, run by ONNX Runtime.
//!
//! A model cannot call anything, but one operator may take gigabytes or minutes, so that it runs in a process of its own
//! (`remote`; in this one on a GPU, and in a program that uses the library). Our own code reads the file first
//! ([`graph`]), and refuses a file with external data or with operators of other libraries. The digest pins everything:
//! the model, and the `.toml` beside it if there is one.

mod describe;
pub mod graph;
pub mod settings;
pub mod spec;

mod remote;
mod runtime;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ambiguity_models::files::lfs_pointer;
use ambiguity_models::safetensors::hex;
use ambiguity_sdk::EncoderPin;
use ambiguity_sdk::resize::resize_bicubic;
use image::RgbImage;
use prost::bytes::Bytes;
use sha2::{Digest, Sha256};
use tch::Device;

use self::graph::{Graph, GraphError};
use self::remote::Runner;
pub(super) use self::remote::serve;
use self::runtime::Numbers;
use self::settings::{Layout, OutputKind, Settings};
use self::spec::{Input, Pixels, Spec};
use super::artifact::check_size;
use super::batch::Batch;
use super::confined::Launcher;
use super::distributions::Distributions;
use super::error::{Fault, PluginError};
use super::inspection::{Asset, Bounds, Inspection};
use super::limits::{Limits, mib};
use super::store::Found;
use super::{
    Description, Glance, Kind, Medium, Output, Plugin, PluginSource, Values, check_description, check_digest,
    check_encoders, options,
};
use crate::encoders::Encoders;

/// The extension of a model's file.
pub(super) const EXTENSION: &str = "onnx";

/// The interface in plugins.lock, in place of a version of the WIT interface.
const INTERFACE: &str = "onnx";

/// A plugin that is an ONNX model.
pub(super) struct OnnxPlugin {
    model: Runner,
    spec: Spec,
    graph: Graph,
    bytes: usize,
    timeout_ms: u64,
    description: Description,
    source: PluginSource,
    /// Whether the log has the notice that images are resized.
    resizing_logged: bool,
}

/// A model's file and the `.toml` beside it, checked.
struct File {
    bytes: Bytes,
    graph: Graph,
    spec: Spec,
    description: Description,
    source: PluginSource,
}

impl File {
    fn read(found: &Found, limits: &Limits) -> Result<Self, Fault> {
        let path = &*found.path;
        let bytes = Bytes::from(read(path, limits)?);
        if let Some(what) = lfs_pointer(&bytes) {
            return Err(Fault::Damaged { path: path.to_owned(), detail: what.to_owned() });
        }
        let graph = parsed(path, bytes.clone())?;
        let mut settings = Settings::from_metadata(&graph.metadata).map_err(Fault::Unusable)?;
        let mut digest = Sha256::new_with_prefix(&bytes);
        if let Some((beside, text)) = beside(path)? {
            digest.update(&text);
            let message = |detail: String| Fault::Unusable(format!("{}: {detail}", beside.display()));
            let text = String::from_utf8(text).map_err(|error| message(error.to_string()))?;
            settings = Settings::from_toml(&text).map_err(message)?.or(settings);
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let spec = spec::resolve(&graph, settings, &stem).map_err(Fault::Unusable)?;
        let description = description(&spec);
        check_description(&description, limits)?;
        let source = PluginSource {
            name: found.name.clone(),
            path: path.to_owned(),
            sha256: hex(&digest.finalize()),
            interface: INTERFACE.to_owned(),
            title: spec.title.clone(),
            published: found.published.clone(),
        };
        Ok(Self { bytes, graph, spec, description, source })
    }
}

fn parsed(path: &Path, bytes: Bytes) -> Result<Graph, Fault> {
    Graph::parse(bytes).map_err(|error| match error {
        GraphError::Malformed(_) => {
            Fault::Damaged { path: path.to_owned(), detail: format!("{error}, so it is no ONNX model") }
        }
        other => Fault::Unusable(other.to_string()),
    })
}

/// Returns a model's file with everything in it that makes it a plugin: the data of its tensors, also those in other files
/// of its folder, and the keys of `set` and of the `.toml` beside it, in this order of precedence, as metadata. Returns its
/// description and title too, checked.
pub(super) fn described(
    path: &Path,
    set: BTreeMap<String, String>,
    limits: &Limits,
) -> Result<(Bytes, Description, Inspection, Option<String>), Fault> {
    let mut metadata = BTreeMap::new();
    if let Some((beside, text)) = beside(path)? {
        let message = |detail: String| Fault::Unusable(format!("{}: {detail}", beside.display()));
        let text = String::from_utf8(text).map_err(|error| message(error.to_string()))?;
        metadata = settings::metadata_of_toml(&text).map_err(message)?;
    }
    metadata.extend(set);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = Bytes::from(read(path, limits)?);
    let file = describe::described(file, folder, &metadata, mib(limits.onnx_mib)).map_err(Fault::Unusable)?;
    check_size("its file", file.len(), limits.onnx_mib)?;
    let graph = parsed(path, file.clone())?;
    let settings = Settings::from_metadata(&graph.metadata).map_err(Fault::Unusable)?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let spec = spec::resolve(&graph, settings, &stem).map_err(Fault::Unusable)?;
    let description = description(&spec);
    check_description(&description, limits)?;
    let inspection = Inspection { authors: spec.authors, license: spec.license, ..Inspection::default() };
    Ok((file, description, inspection, spec.title))
}

impl OnnxPlugin {
    /// Reads a model's file and the `.toml` beside it, checks both, and loads the model.
    pub(super) fn load(
        found: &Found,
        config: &BTreeMap<String, String>,
        sha256: Option<&str>,
        limits: &Limits,
        device: Device,
        launcher: Option<&Launcher>,
    ) -> Result<Self, PluginError> {
        Self::load_file(found, config, sha256, limits, device, launcher)
            .map_err(|fault| PluginError::new(&found.name, fault))
    }

    /// Reads a model's file and the `.toml` beside it, and checks both; the model is not loaded.
    ///
    /// # Errors
    /// As for [`OnnxPlugin::load`].
    pub(super) fn glance(found: &Found, limits: &Limits) -> Result<Glance, PluginError> {
        let file = File::read(found, limits).map_err(|fault| PluginError::new(&found.name, fault))?;
        Ok(Glance { sha256: file.source.sha256, description: Some(file.description) })
    }

    fn load_file(
        found: &Found,
        config: &BTreeMap<String, String>,
        sha256: Option<&str>,
        limits: &Limits,
        device: Device,
        launcher: Option<&Launcher>,
    ) -> Result<Self, Fault> {
        let File { bytes, graph, spec, description, source } = File::read(found, limits)?;
        options::check(config, &description.options)?;
        check_digest(&source.sha256, sha256)?;
        let model = Runner::load(&bytes, &spec.input_name, &spec.output_name, device, launcher)?;
        let (bytes, timeout_ms) = (bytes.len(), limits.timeout_ms);
        Ok(Self { model, spec, graph, bytes, timeout_ms, description, source, resizing_logged: false })
    }

    /// Returns the encoder whose weights the model was trained with, if the settings have its digest.
    fn pin(&self) -> Option<EncoderPin> {
        match &self.spec.input {
            Input::Embedding { encoder, digest: Some(digest), .. } => {
                Some(EncoderPin { name: encoder.clone(), digest: digest.clone() })
            }
            _ => None,
        }
    }

    /// Logs, once, that images are resized to the size of the model's input.
    fn log_resizing(&mut self, batch: &Batch) {
        let Input::Pixels(Pixels { width, height, .. }) = self.spec.input else { return };
        let mut sizes = batch.samples().iter().filter_map(|sample| Some(sample.image.as_ref()?.dimensions()));
        let other = sizes.find(|&(w, h)| (w as usize, h as usize) != (width, height));
        if let (false, Some((w, h))) = (self.resizing_logged, other) {
            self.resizing_logged = true;
            let name = &self.source.name;
            tracing::info!(
                "plugin `{name}` takes images of {width} x {height}; those of {w} x {h} are resized with antialiasing"
            );
        }
    }

    /// Returns one row of log-probabilities per sample: the logarithms of the model's output, or the log-softmax of its
    /// logits.
    fn log_probabilities(
        &mut self,
        batch: &mut Batch,
        encoders: &mut Encoders,
    ) -> Result<Vec<f64>, (Option<usize>, Fault)> {
        let embeddings = match &self.spec.input {
            Input::Pixels(_) => None,
            Input::Embedding { encoder, dim, .. } => {
                let embeddings = batch.embedding(encoder, encoders).map_err(|error| (None, Fault::Encoder(error)))?;
                if dim.is_some_and(|dim| dim != embeddings.ncols()) {
                    let (expected, found) = (dim.unwrap_or_default(), embeddings.ncols());
                    let message = format!(
                        "its input has {expected} dimensions, but embeddings by the encoder `{encoder}` have {found}"
                    );
                    return Err((None, Fault::Unusable(message)));
                }
                Some(embeddings)
            }
        };
        let (n_samples, n_styles, at_once) = (batch.len(), self.spec.styles.len(), self.spec.batch);
        let mut log_probabilities = Vec::with_capacity(n_samples * n_styles);
        let mut left = Duration::from_millis(self.timeout_ms);
        for start in (0..n_samples).step_by(at_once) {
            let n = at_once.min(n_samples - start);
            // A model with a fixed batch size is padded with copies of the last sample.
            let n_rows = if self.spec.fixed_batch { at_once } else { n };
            let rows = (0..n_rows).map(|i| start + i.min(n - 1));
            let (numbers, shape) = match (&self.spec.input, &embeddings) {
                (Input::Pixels(pixels), _) => (images(pixels, batch, rows)?, pixels.shape(n_rows).to_vec()),
                (Input::Embedding { .. }, Some(embeddings)) => {
                    let numbers = rows.flat_map(|i| embeddings.row(i).to_vec()).collect();
                    (Numbers::Floats(numbers), vec![n_rows, embeddings.ncols()])
                }
                (Input::Embedding { .. }, None) => unreachable!("they were computed above"),
            };
            let (shape, values, took) =
                self.model.run(numbers, &shape, left, self.timeout_ms).map_err(|fault| (None, fault))?;
            left = left.saturating_sub(took);
            if shape != [n_rows as i64, n_styles as i64] {
                let message = format!("its output has shape {shape:?} for {n_rows} samples x {n_styles} styles");
                return Err((None, Fault::Output(message)));
            }
            for (row, i) in values.chunks_exact(n_styles).take(n).zip(start..) {
                match self.spec.output {
                    OutputKind::Probabilities => {
                        log_probabilities.extend(logarithms(row).map_err(|fault| (Some(i), fault))?);
                    }
                    OutputKind::Logits => log_probabilities.extend(log_softmax(row)),
                }
            }
        }
        Ok(log_probabilities)
    }
}

impl Plugin for OnnxPlugin {
    fn description(&self) -> &Description {
        &self.description
    }

    fn source(&self) -> &PluginSource {
        &self.source
    }

    fn inspect(&self) -> Inspection {
        let opsets: Vec<String> =
            self.graph.opsets.iter().map(|(domain, version)| format!("{domain} {version}")).collect();
        Inspection {
            authors: self.spec.authors.clone(),
            license: self.spec.license.clone(),
            encoder: self.pin(),
            prompts: vec![],
            temperature: None,
            differentiable: false,
            pixel_differentiable: false,
            interface: INTERFACE.to_owned(),
            takes: takes(&self.spec),
            bytes: self.bytes,
            assets: vec![Asset { name: "weights".to_owned(), bytes: self.graph.weight_bytes, shape: None }],
            needs: opsets.iter().map(|opset| format!("the operators of {opset}")).collect(),
            imports: opsets,
            exports: self.graph.outputs.iter().map(ToString::to_string).collect(),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds { fuel: None, milliseconds: self.timeout_ms, memory: self.model.memory() }
    }

    fn run(&mut self, batch: &mut Batch, encoders: &mut Encoders) -> Result<Output, PluginError> {
        if batch.is_empty() {
            let values = Values::none(&self.description.kind);
            return Ok(Output { values, fuel: None, milliseconds: 0.0 });
        }
        let plugin = self.source.name.clone();
        let at = |(sample, fault)| PluginError { plugin: plugin.clone(), sample, fault };
        check_encoders(&self.description.encoders, self.pin().as_ref(), encoders).map_err(|fault| at((None, fault)))?;
        self.log_resizing(batch);
        let started = Instant::now();
        let n_samples = batch.len();
        let log_probabilities = self.log_probabilities(batch, encoders).map_err(at)?;
        let shape = (n_samples, self.spec.styles.len());
        let distributions = Distributions::check((shape.0, shape.1, &log_probabilities[..]), shape).map_err(at)?;
        let values = Values::Distributions(distributions);
        Ok(Output { values, fuel: None, milliseconds: started.elapsed().as_secs_f64() * 1e3 })
    }
}

fn description(spec: &Spec) -> Description {
    let encoders = match &spec.input {
        Input::Pixels(_) => vec![],
        Input::Embedding { encoder, .. } => vec![encoder.clone()],
    };
    Description {
        name: spec.name.clone(),
        version: spec.version.clone(),
        kind: Kind::Classifier { styles: spec.styles.clone() },
        media: vec![Medium::Image],
        encoders,
        options: vec![],
        properties: vec![],
    }
}

/// Returns the format of a model's input and output, as messages show it.
fn takes(spec: &Spec) -> String {
    let what = match &spec.input {
        Input::Pixels(Pixels { height, width, channels, layout, normalize }) => {
            let color = if *channels == 1 { "gray" } else { "RGB" };
            let order = if *layout == Layout::Nchw { "NCHW" } else { "NHWC" };
            let scale = match normalize {
                None => "bytes".to_owned(),
                Some(pairs) if pairs.iter().all(|pair| *pair == (0.0, 1.0)) => "[0, 1]".to_owned(),
                Some(pairs) => {
                    let (mean, std): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
                    format!("mean {mean:?}, std {std:?}")
                }
            };
            format!("images of {width} x {height}, {color}, {order}, {scale}")
        }
        Input::Embedding { encoder, .. } => format!("embeddings by {encoder}"),
    };
    let output = if spec.output == OutputKind::Logits { "logits" } else { "probabilities" };
    let batch = if spec.fixed_batch { format!(", {} at a time", spec.batch) } else { String::new() };
    format!("{what}{batch}; returns {output}")
}

fn read(path: &Path, limits: &Limits) -> Result<Vec<u8>, Fault> {
    let io = |source| Fault::Io { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(io)?.len() as usize;
    check_size("its file", size, limits.onnx_mib)?;
    std::fs::read(path).map_err(io)
}

/// Returns the `.toml` beside a model, if there is one.
fn beside(path: &Path) -> Result<Option<(PathBuf, Vec<u8>)>, Fault> {
    let beside = path.with_extension("toml");
    match std::fs::read(&beside) {
        Ok(text) => Ok(Some((beside, text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Fault::Io { path: beside, source }),
    }
}

/// Returns images in the format of a model's input, resized as by `image-resized` of the WIT interface.
fn images(
    pixels: &Pixels,
    batch: &Batch,
    rows: impl Iterator<Item = usize>,
) -> Result<Numbers, (Option<usize>, Fault)> {
    let (mut floats, mut bytes) = (vec![], vec![]);
    for i in rows {
        let image = batch.samples()[i].image.as_deref();
        let image = image.ok_or_else(|| (Some(i), Fault::Refused("the sample is not an image".to_owned())))?;
        let image = fitted(pixels, image);
        match &pixels.normalize {
            None => bytes.extend(image),
            Some(pairs) => {
                let area = pixels.height * pixels.width;
                floats.extend(image.into_iter().enumerate().map(|(at, byte)| {
                    let channel = match pixels.layout {
                        Layout::Nchw => at / area,
                        Layout::Nhwc => at % pixels.channels,
                    };
                    let (mean, std) = pairs[channel];
                    (f32::from(byte) / 255.0 - mean) / std
                }));
            }
        }
    }
    Ok(if pixels.normalize.is_none() { Numbers::Bytes(bytes) } else { Numbers::Floats(floats) })
}

/// Returns one image's bytes in a model's size, channels and order.
fn fitted(pixels: &Pixels, image: &RgbImage) -> Vec<u8> {
    let [width, height] = [image.width() as usize, image.height() as usize];
    let rgb = resize_bicubic(image.as_raw(), width, height, pixels.width, pixels.height);
    match (pixels.channels, pixels.layout) {
        (1, _) => rgb.chunks_exact(3).map(luma).collect(),
        (_, Layout::Nhwc) => rgb,
        (_, Layout::Nchw) => (0..3).flat_map(|channel| rgb.iter().skip(channel).step_by(3).copied()).collect(),
    }
}

/// Returns the ITU-R 601-2 luma, rounded as by Pillow's `convert("L")`.
fn luma(rgb: &[u8]) -> u8 {
    let [r, g, b] = [0, 1, 2].map(|channel| u32::from(rgb[channel]));
    ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16) as u8
}

/// Returns the log-softmax of logits, computed in f64.
fn log_softmax(logits: &[f32]) -> impl Iterator<Item = f64> {
    let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let log_sum = logits.iter().map(|&logit| (f64::from(logit) - top).exp()).sum::<f64>().ln();
    logits.iter().map(move |&logit| f64::from(logit) - top - log_sum)
}

/// Returns the logarithms of probabilities.
fn logarithms(probabilities: &[f32]) -> Result<Vec<f64>, Fault> {
    let logarithm = |(style, &p): (usize, &f32)| match p {
        p if !(p.is_finite() && p >= 0.0) => {
            Err(format!("the probability of style {style} is {p}: it must be finite and not negative"))
        }
        0.0 => Err(format!(
            "the probability of style {style} is 0, so its logarithm, and the reward, would be -inf: export the model's \
             logits, and name them with `output = \"logits\"`"
        )),
        p => Ok(f64::from(p).ln()),
    };
    probabilities.iter().enumerate().map(logarithm).collect::<Result<_, _>>().map_err(Fault::Output)
}
