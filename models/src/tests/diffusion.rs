use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::unet::UNet;
use crate::vae::Vae;

#[test]
fn loads_a_folder_that_diffusers_wrote() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/tiny-art/prototype/diffusion");
    let dir =
        if dir.is_dir() { dir } else { Path::new("/work/shared/reference/tiny-art/prototype/diffusion").to_owned() };
    let unet = UNet::load(&dir.join("unet"), Device::Cpu, Kind::Float).unwrap();
    let vae = Vae::load(&dir.join("vae"), Device::Cpu, Kind::Float).unwrap();
    let out = unet.forward(
        &Tensor::zeros([2, 4, 16, 16], (Kind::Float, Device::Cpu)),
        &Tensor::from_slice(&[3i64, 900]),
        &Tensor::zeros([2, 16, 128], (Kind::Float, Device::Cpu)),
    );
    assert_eq!(out.size(), [2, 4, 16, 16]);
    assert_eq!(vae.decode(&out).size(), [2, 3, 64, 64]);
}
