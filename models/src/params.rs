//! Named parameters: the source of the tensors of a network's constructor.
//!
//! A constructor requests each tensor from [`Params`] by its name in the checkpoint and the shape that the
//! configuration implies. The same constructor thus reads a checkpoint ([`Params::load`]) or initializes new weights
//! ([`Params::random`]). [`Params::finish`] refuses a checkpoint with unused tensors and returns all tensors by name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;

use crate::error::{Error, Result};
use crate::safetensors::read_safetensors;

/// Tensors by their full checkpoint names, in order.
pub type NamedTensors = BTreeMap<String, Tensor>;

/// The initialization of a new tensor.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// One value everywhere.
    Constant(f64),
    /// N(mean, std²).
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// Uniform on [-bound, bound].
    Uniform {
        /// Half the width of the interval.
        bound: f64,
    },
}

/// The memory format of a frozen network's feature maps and convolution weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryFormat {
    /// Channel by channel, PyTorch's default.
    Contiguous,
    /// Channels innermost, which tensor cores use without a copy; the output of a convolution then has this format too.
    ChannelsLast,
}

enum Source {
    Checkpoint(NamedTensors),
    Random(Generator),
    Shapes,
}

struct Store {
    source: Source,
    source_name: String,
    device: Device,
    kind: Kind,
    format: MemoryFormat,
    taken: NamedTensors,
}

/// A position in a tree of named tensors; cheap to clone.
#[derive(Clone)]
pub struct Params {
    store: Rc<RefCell<Store>>,
    path: String,
}

impl Params {
    /// Parameters from one safetensors file, converted to `kind` on `device`.
    pub fn load(file: &Path, device: Device, kind: Kind) -> Result<Self> {
        Ok(Self::from_tensors(read_safetensors(file)?, &file.display().to_string(), device, kind))
    }

    /// Parameters from existing tensors; `source_name` is their name in errors.
    pub fn from_tensors(tensors: NamedTensors, source_name: &str, device: Device, kind: Kind) -> Self {
        Self::new(Source::Checkpoint(tensors), source_name, device, kind)
    }

    /// New f32 parameters, drawn by their own generator in the order in which the constructor requests them.
    pub fn random(seed: u64, device: Device) -> Result<Self> {
        let generator = Generator::cpu(seed)?;
        Ok(Self::new(Source::Random(generator), "random initialization", device, Kind::Float))
    }

    /// Parameters that have a shape but no memory: the parameters of a network built from them can be counted, but it
    /// cannot be run.
    pub fn shapes() -> Self {
        Self::new(Source::Shapes, "shapes", Device::Cpu, Kind::Float)
    }

    fn new(source: Source, source_name: &str, device: Device, kind: Kind) -> Self {
        let (source_name, format) = (source_name.to_owned(), MemoryFormat::Contiguous);
        let store = Store { source, source_name, device, kind, format, taken: NamedTensors::new() };
        Self { store: Rc::new(RefCell::new(store)), path: String::new() }
    }

    /// Sets the memory format of convolution weights.
    pub fn in_format(self, format: MemoryFormat) -> Self {
        self.store.borrow_mut().format = format;
        self
    }

    /// Returns the child named `name`, as `parent.name`.
    pub fn at(&self, name: impl Display) -> Self {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Self { store: Rc::clone(&self.store), path }
    }

    /// The full checkpoint name of this position.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the checkpoint has this child; true for a source without a checkpoint.
    pub fn has(&self, name: &str) -> bool {
        let full = self.at(name).path;
        match &self.store.borrow().source {
            Source::Checkpoint(tensors) => tensors.contains_key(&full),
            Source::Random(_) | Source::Shapes => true,
        }
    }

    /// Returns the tensor `name` below this position; `init` initializes it if the source is random.
    pub fn tensor(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        let full = self.at(name).path;
        let mut store = self.store.borrow_mut();
        let store = &mut *store;
        let tensor = match &mut store.source {
            Source::Checkpoint(tensors) => {
                let found = tensors.remove(&full).ok_or_else(|| Error::MissingTensor {
                    name: full.clone(),
                    source_name: store.source_name.clone(),
                })?;
                if found.size() != shape {
                    return Err(Error::Shape {
                        name: full,
                        source_name: store.source_name.clone(),
                        found: found.size(),
                        wanted: shape.to_vec(),
                    });
                }
                found.f_to_device(store.device)?.f_to_kind(store.kind)?
            }
            Source::Random(generator) => {
                let cpu = (Kind::Float, Device::Cpu);
                let fresh = match init {
                    Init::Zeros => Tensor::f_zeros(shape, cpu)?,
                    Init::Ones => Tensor::f_ones(shape, cpu)?,
                    Init::Constant(value) => Tensor::f_full(shape, value, cpu)?,
                    Init::Normal { mean, std } => generator.normal(shape)? * std + mean,
                    Init::Uniform { bound } => generator.uniform(shape)? * (2.0 * bound) - bound,
                };
                fresh.f_to_device(store.device)?
            }
            Source::Shapes => Tensor::f_zeros([], (store.kind, store.device))?.f_expand(shape, false)?,
        };
        let tensor = match store.format {
            MemoryFormat::ChannelsLast if shape.len() == 4 => torch_ext::channels_last(&tensor)?,
            _ => tensor,
        };
        store.taken.insert(full, tensor.shallow_clone());
        Ok(tensor)
    }

    /// Drops a tensor that some checkpoints contain and no network needs (`position_ids`).
    pub fn ignore(&self, name: &str) {
        let full = self.at(name).path;
        if let Source::Checkpoint(tensors) = &mut self.store.borrow_mut().source {
            tensors.remove(&full);
        }
    }

    /// Returns all requested tensors by name; an error if the checkpoint contains others.
    pub fn finish(&self) -> Result<NamedTensors> {
        let store = self.store.borrow();
        if let Source::Checkpoint(tensors) = &store.source
            && let Some(name) = tensors.keys().next()
        {
            return Err(Error::UnknownTensor {
                name: name.clone(),
                count: tensors.len(),
                source_name: store.source_name.clone(),
            });
        }
        Ok(store.taken.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect())
    }
}
