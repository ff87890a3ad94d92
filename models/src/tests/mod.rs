//! Parity with diffusers, peft and TRL on small random networks. `tests/reference/make_diffusion.py` makes the
//! reference tensors; the networks' weights are drawn here by the rule it has. The relative error is ‖a − b‖₂ / ‖b‖₂.

mod can;
mod lora;
mod onnx;
mod pipeline;
mod scheduler;
mod unet;
mod vae;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use torch_ext::Generator;

use crate::params::{MemoryFormat, NamedTensors, Params};
use crate::safetensors::read_safetensors_with_metadata;
use crate::unet::{UNet, UNetConfig};

/// Reference tensors and the configurations that diffusers wrote for them.
struct Reference {
    tensors: NamedTensors,
    configs: HashMap<String, String>,
    folder: tempfile::TempDir,
}

impl Reference {
    fn read(name: &str) -> Self {
        // These networks are too small to share among threads, and the tests themselves run side by side.
        tch::set_num_threads(1);
        let (tensors, configs) = read_safetensors_with_metadata(&reference_path(name)).unwrap();
        Self { tensors, configs, folder: tempfile::tempdir().unwrap() }
    }

    fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the reference has no `{name}`"))
    }

    /// The configuration of `name` as a file.
    fn config(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.json"));
        std::fs::write(&path, &self.configs[name]).unwrap();
        path
    }

    /// The UNet of `name` with the weights that `draw` gives.
    fn unet(&self, name: &str, seed: u64, kind: Kind) -> UNet {
        self.unet_in(name, seed, kind, MemoryFormat::Contiguous)
    }

    fn unet_in(&self, name: &str, seed: u64, kind: Kind, format: MemoryFormat) -> UNet {
        let config = UNetConfig::read(&self.config(name)).unwrap();
        let params = drawn(seed, kind, |p| UNet::new(p, &config).map(drop)).in_format(format);
        let unet = UNet::new(&params, &config).unwrap();
        params.finish().unwrap();
        unet
    }
}

fn reference_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/reference").join(name)
}

/// The script's `draw`: tensors in the order of their names, from one generator, scaled by kind.
fn drawn(seed: u64, kind: Kind, build: impl Fn(&Params) -> crate::Result<()>) -> Params {
    let fresh = Params::random(0, Device::Cpu).unwrap();
    build(&fresh).unwrap();
    let mut generator = Generator::cpu(seed).unwrap();
    let mut tensors = fresh.finish().unwrap();
    for (name, tensor) in &mut tensors {
        let shape = tensor.size();
        let normal = generator.normal(&shape).unwrap();
        *tensor = if shape.len() > 1 {
            normal / (3.0 * tensor.numel() as f64 / shape[0] as f64).sqrt()
        } else if name.ends_with("weight") {
            normal * 0.1 + 1.0
        } else {
            normal * 0.1
        };
    }
    Params::from_tensors(tensors, "drawn weights", Device::Cpu, kind)
}

fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    (a - &b).norm().double_value(&[]) / b.norm().double_value(&[])
}

#[track_caller]
fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = relative_error(a, b);
    assert!(error <= tolerance, "{what}: relative error {error:.2e} above {tolerance:.0e}");
}

/// The prototype pipeline, a folder that diffusers wrote, where this checkout has it.
fn prototype() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/tiny-art/prototype/diffusion");
    if !dir.is_dir() {
        eprintln!("skipped: {} is not there", dir.display());
        return None;
    }
    Some(dir)
}
