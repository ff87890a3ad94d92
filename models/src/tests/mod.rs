//! Parity with diffusers, peft and TRL on small random networks. `tests/reference/make_diffusion.py` computes the
//! reference tensors; the networks' weights are drawn here by the same rule.

mod aesthetic;
mod can;
mod lora;
mod onnx;
mod pipeline;
mod preference;
mod preprocess;
mod scheduler;
mod true_shapes;
mod unet;
mod vae;

use std::collections::BTreeMap;

use tch::{Kind, Tensor};
use test_support::{Reference, assert_close, device, reference_path, relative_error, shipped_model};
use torch_ext::Generator;

use crate::params::{MemoryFormat, NamedTensors, Params};
use crate::unet::{UNet, UNetConfig};

/// Returns the UNet that the reference calls `name`, with the weights that `drawn` returns.
fn drawn_unet(reference: &Reference, name: &str, seed: u64, kind: Kind) -> UNet {
    drawn_unet_in(reference, name, seed, kind, MemoryFormat::Contiguous)
}

fn drawn_unet_in(reference: &Reference, name: &str, seed: u64, kind: Kind, format: MemoryFormat) -> UNet {
    let config = UNetConfig::read(&reference.config(name)).unwrap();
    let params = drawn(seed, kind, |p| UNet::new(p, &config).map(drop)).in_format(format);
    let unet = UNet::new(&params, &config).unwrap();
    params.finish().unwrap();
    unet
}

/// The script's `draw`: tensors in the order of their names, from one generator, scaled by kind.
pub(crate) fn drawn(seed: u64, kind: Kind, build: impl Fn(&Params) -> crate::Result<()>) -> Params {
    let shapes = Params::shapes();
    build(&shapes).unwrap();
    let shapes = shapes.finish().unwrap().into_iter().map(|(name, tensor)| (name, tensor.size())).collect();
    Params::from_tensors(drawn_tensors(seed, &shapes), "drawn weights", device(), kind)
}

/// The same for tensors whose names and shapes are known.
pub(crate) fn drawn_tensors(seed: u64, shapes: &BTreeMap<String, Vec<i64>>) -> NamedTensors {
    let mut generator = Generator::cpu(seed).unwrap();
    let draw = |(name, shape): (&String, &Vec<i64>)| {
        let normal = generator.normal(shape).unwrap();
        let tensor = if shape.len() > 1 {
            let n = normal.numel() as f64;
            normal / (3.0 * n / shape[0] as f64).sqrt()
        } else if name.ends_with("weight") {
            normal * 0.1 + 1.0
        } else {
            normal * 0.1
        };
        (name.clone(), tensor)
    };
    shapes.iter().map(draw).collect()
}
