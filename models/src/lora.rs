//! Low-rank adapters of a UNet's linear layers (Hu et al., LoRA, arXiv 2106.09685), in the file formats of
//! diffusers and peft.
//!
//! A [`Lora`] holds the adapter's tensors; the layers of the UNet hold the same tensors and the scale of their product.

mod file;
mod targets;

use tch::{Kind, Tensor, no_grad};
use torch_ext::Generator;

use crate::error::{Error, Result};
use crate::layers::{Adapter, Linear};
use crate::params::NamedTensors;
use crate::unet::UNet;

use serde::{Deserialize, Serialize};

pub use file::{LORA_FILE, LoraFile, LoraLayer, lora_file};
pub use targets::Targets;

/// The configuration of a new adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    /// Rank of every low-rank product.
    pub rank: i64,
    /// Numerator of the product's scale, alpha / rank.
    pub alpha: f64,
    /// Which linear layers are adapted.
    pub targets: Targets,
}

/// The adapter of one layer.
#[derive(Debug)]
struct Entry {
    /// The layer's checkpoint name.
    module: String,
    a: Tensor,
    b: Tensor,
    alpha: f64,
    /// alpha / rank, or alpha / √rank if the file uses rank-stabilized LoRA.
    scaling: f64,
}

/// The adapters of one UNet.
#[derive(Debug)]
pub struct Lora {
    entries: Vec<Entry>,
    targets: Vec<String>,
    factor: f64,
    /// The layers' own weights, while the adapter is merged into them.
    originals: Option<Vec<Tensor>>,
}

impl Lora {
    /// Adds new adapters to every layer that `spec` names: A ~ N(0, 1/rank²), B = 0, so that the network's function
    /// is unchanged at first. All are f32, require gradients and lie on the UNet's device.
    pub fn attach(unet: &mut UNet, spec: &LoraSpec, seed: u64) -> Result<Self> {
        if spec.rank < 1 {
            return Err(Error::Input(format!("LoRA rank {} is below 1", spec.rank)));
        }
        let mut names = Vec::new();
        unet.linears_mut(&mut |linear| names.push(linear.name.clone()));
        let chosen = spec.targets.choose(&names)?;
        let mut generator = Generator::cpu(seed)?;
        let (kind, device) = (Kind::Float, unet.device());
        let mut entries = Vec::with_capacity(chosen.len());
        for (module, [n_out, n_in]) in shapes(unet) {
            if !chosen.contains(&module.as_str()) {
                continue;
            }
            let a = (generator.normal(&[spec.rank, n_in])? / spec.rank as f64).f_to_device(device)?;
            let b = Tensor::f_zeros([n_out, spec.rank], (kind, device))?;
            let (alpha, scaling) = (spec.alpha, spec.alpha / spec.rank as f64);
            entries.push(Entry { module, a, b, alpha, scaling });
        }
        let targets = spec.targets.for_peft(&names);
        Self::install(unet, entries, targets)
    }

    /// Attaches the entries to their layers.
    fn install(unet: &mut UNet, mut entries: Vec<Entry>, targets: Vec<String>) -> Result<Self> {
        for entry in &mut entries {
            entry.a = entry.a.f_set_requires_grad(true)?;
            entry.b = entry.b.f_set_requires_grad(true)?;
        }
        let mut occupied = None;
        unet.linears_mut(&mut |linear| {
            if linear.adapter.is_some() && entries.iter().any(|entry| entry.module == linear.name) {
                occupied.get_or_insert_with(|| linear.name.clone());
            }
        });
        if let Some(name) = occupied {
            return Err(Error::Input(format!("`{name}` already has an adapter: detach that one first")));
        }
        unet.linears_mut(&mut |linear| {
            if let Some(entry) = entries.iter().find(|entry| entry.module == linear.name) {
                let (a, b) = (entry.a.shallow_clone(), entry.b.shallow_clone());
                linear.adapter = Some(Adapter::new(a, b, entry.scaling));
            }
        });
        Ok(Self { entries, targets, factor: 1.0, originals: None })
    }

    /// Returns every tensor with its name in the file, `unet.….lora_A.weight` and `unet.….lora_B.weight`, in layer
    /// order. They are the tensors in use: changing them in place changes the network.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let both = |entry: &Entry| {
            let name = |part: &str| format!("unet.{}.{part}.weight", entry.module);
            [(name("lora_A"), entry.a.shallow_clone()), (name("lora_B"), entry.b.shallow_clone())]
        };
        self.entries.iter().flat_map(both).collect()
    }

    /// Number of trainable parameters.
    pub fn n_parameters(&self) -> usize {
        self.entries.iter().map(|entry| entry.a.numel() + entry.b.numel()).sum()
    }

    /// Number of adapted layers.
    pub fn n_layers(&self) -> usize {
        self.entries.len()
    }

    /// The most common rank and alpha among the layers; all layers have the same unless the file has several.
    pub fn rank_and_alpha(&self) -> (i64, f64) {
        let mut counts: Vec<((i64, f64), usize)> = Vec::new();
        for entry in &self.entries {
            let key = (entry.a.size()[0], entry.alpha);
            match counts.iter_mut().find(|(known, _)| *known == key) {
                Some((_, count)) => *count += 1,
                None => counts.push((key, 1)),
            }
        }
        let mut best = ((0, 0.0), 0);
        for (key, count) in counts {
            if count > best.1 {
                best = (key, count);
            }
        }
        best.0
    }

    /// Sets the factor that the adapter's own scale is multiplied by; 1 is the scale of training.
    pub fn set_scale(&mut self, unet: &mut UNet, factor: f64) {
        self.factor = factor;
        self.enable(unet, true);
    }

    /// Switches the adapter off, for a forward pass of the original network, or on again.
    pub fn enable(&self, unet: &mut UNet, on: bool) {
        let factor = if on && self.originals.is_none() { self.factor } else { 0.0 };
        self.visit(unet, |_, entry, linear| {
            if let Some(adapter) = &mut linear.adapter {
                adapter.scale = entry.scaling * factor;
            }
        });
    }

    /// Removes the adapter from the layers; a merged one stays in their weights.
    pub fn detach(self, unet: &mut UNet) {
        self.visit(unet, |_, _, linear| linear.adapter = None);
    }

    /// Adds scale · B A to the layers' weights, in f32 and in place, and switches the adapter itself off: the function
    /// stays the same, without the adapter's cost.
    pub fn merge(&mut self, unet: &mut UNet) {
        if self.originals.is_some() {
            return;
        }
        let mut originals = Vec::with_capacity(self.entries.len());
        no_grad(|| {
            self.visit(unet, |_, entry, linear| {
                originals.push(linear.weight.copy());
                let delta = entry.b.matmul(&entry.a) * (entry.scaling * self.factor);
                linear.weight.copy_(&(linear.weight.to_kind(Kind::Float) + delta));
            });
        });
        self.originals = Some(originals);
        self.enable(unet, true);
    }

    /// Undoes [`Lora::merge`] exactly: the original weights are restored; nothing is subtracted.
    pub fn unmerge(&mut self, unet: &mut UNet) {
        if let Some(originals) = self.originals.take() {
            no_grad(|| self.visit(unet, |i, _, linear| linear.weight.copy_(&originals[i])));
            self.enable(unet, true);
        }
    }

    /// Copies values, such as those of a checkpoint or an average, into the adapter's tensors by the names of
    /// [`Lora::parameters`].
    pub fn load_values(&self, values: &NamedTensors) -> Result<()> {
        for (name, mut tensor) in self.parameters() {
            let value = values.get(&name).ok_or_else(|| Error::MissingTensor {
                name: name.clone(),
                source_name: "the loaded values".to_owned(),
            })?;
            if value.size() != tensor.size() {
                let (found, wanted) = (value.size(), tensor.size());
                return Err(Error::Shape { name, source_name: "the loaded values".to_owned(), found, wanted });
            }
            no_grad(|| tensor.f_copy_(value))?;
        }
        Ok(())
    }

    /// Calls `f` with each entry, its index and its layer, in layer order, which is also the order of the entries.
    fn visit(&self, unet: &mut UNet, mut f: impl FnMut(usize, &Entry, &mut Linear)) {
        let mut next = 0;
        unet.linears_mut(&mut |linear| {
            if let Some(entry) = self.entries.get(next).filter(|entry| entry.module == linear.name) {
                f(next, entry, linear);
                next += 1;
            }
        });
    }
}

/// The names and weight shapes of all linear layers, in order.
fn shapes(unet: &mut UNet) -> Vec<(String, [i64; 2])> {
    let mut shapes = Vec::new();
    unet.linears_mut(&mut |linear| {
        let size = linear.weight.size();
        shapes.push((linear.name.clone(), [size[0], size[1]]));
    });
    shapes
}
