use serde_json::json;

use super::*;
use crate::vae::{Vae, VaeConfig};

fn vae(reference: &Reference, rename: impl Fn(String) -> String) -> Vae {
    let config = VaeConfig::read(&reference.config("vae")).unwrap();
    let params = drawn(200, Kind::Float, |p| Vae::new(p, &config).map(drop));
    Vae::new(&params, &config).unwrap();
    let tensors = params.finish().unwrap().into_iter().map(|(name, tensor)| (rename(name), tensor)).collect();
    let params = Params::from_tensors(tensors, "drawn weights", device(), Kind::Float);
    let vae = Vae::new(&params, &config).unwrap();
    params.finish().unwrap();
    vae
}

fn check(vae: &Vae, reference: &Reference) {
    let (mean, logvar) = vae.encode(reference.tensor("images"));
    assert_close("mean", &mean, reference.tensor("mean"), 1e-5);
    assert_close("logvar", &logvar, reference.tensor("logvar"), 1e-5);
    assert_close("decoded", &vae.decode(reference.tensor("latents")), reference.tensor("decoded"), 1e-5);
}

#[test]
fn matches_diffusers() {
    let reference = Reference::read("diffusion_vae.safetensors");
    check(&vae(&reference, |name| name), &reference);
}

#[test]
fn tiles_are_blended_as_by_diffusers() {
    let reference = Reference::read("diffusion_vae.safetensors");
    let mut vae = vae(&reference, |name| name);
    let latents = reference.tensor("large_latents");
    let whole = vae.decode(latents);
    vae.set_tiling(true);
    assert_close("tiled", &vae.decode(latents), reference.tensor("tiled"), 1e-5);
    assert!((&whole - reference.tensor("tiled")).abs().max().double_value(&[]) > 1e-2, "tiles make a difference");
    // The image has its size also if a tile cannot be divided by four.
    let odd = VaeConfig { sample_size: 22, ..vae.config().clone() };
    let mut odd = Vae::new(&drawn(200, Kind::Float, |p| Vae::new(p, &odd).map(drop)), &odd).unwrap();
    odd.set_tiling(true);
    let tiled = odd.decode(latents);
    assert_eq!(tiled.size(), whole.size());
    assert!((tiled - &whole).abs().mean(Kind::Float).double_value(&[]) < 0.5 * whole.std(true).double_value(&[]));
    // An image of a tile's size is decoded as a whole.
    let latents = reference.tensor("latents");
    assert_close("decoded", &vae.decode(latents), reference.tensor("decoded"), 1e-5);
}

#[test]
fn bf16_is_close_to_f32() {
    let reference = Reference::read("diffusion_vae.safetensors");
    let config = VaeConfig::read(&reference.config("vae")).unwrap();
    let vae = Vae::new(&drawn(200, Kind::BFloat16, |p| Vae::new(p, &config).map(drop)), &config).unwrap();
    let images = vae.decode_latents(&(reference.tensor("latents") * config.scaling_factor), 1);
    assert_eq!(images.kind(), Kind::Float);
    let wanted = reference.tensor("decoded");
    let error = (images - wanted).square().mean(Kind::Float).sqrt() / wanted.std(true);
    assert!((1e-5..0.03).contains(&error.double_value(&[])), "{error:?}");
}

#[test]
fn reads_the_attention_names_of_the_published_files() {
    let reference = Reference::read("diffusion_vae.safetensors");
    let old = |name: String| {
        let new_and_old = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
        new_and_old.iter().fold(name, |name, (new, old)| name.replace(new, old))
    };
    check(&vae(&reference, old), &reference);
}

#[test]
fn configuration_survives_writing_and_reading() {
    let reference = Reference::read("diffusion_vae.safetensors");
    let config = VaeConfig::read(&reference.config("vae")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    config.save(folder.path()).unwrap();
    assert_eq!(VaeConfig::read(&folder.path().join("config.json")).unwrap(), config);
    let mut theirs: serde_json::Value = serde_json::from_str(&reference.metadata["vae"]).unwrap();
    let ours = config.to_json();
    theirs["_diffusers_version"] = ours["_diffusers_version"].clone();
    theirs
        .as_object_mut()
        .unwrap()
        .retain(|key, _| key == "_diffusers_version" || key == "_class_name" || !key.starts_with('_'));
    assert_eq!(ours, theirs);
}

#[test]
fn numbers_that_no_network_has_are_refused_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let cases = [
        ("latent_channels", json!(0)),
        ("layers_per_block", json!(1_000_000_000)),
        ("block_out_channels", json!([i64::MAX - 63])),
        ("scaling_factor", json!(0.0)),
    ];
    for (key, value) in cases {
        std::fs::write(&path, json!({ key: value }).to_string()).unwrap();
        let error = VaeConfig::read(&path).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains(key), "{key}: {error}");
    }
    let n = 70;
    let config = json!({
        "block_out_channels": vec![32; n],
        "down_block_types": vec!["DownEncoderBlock2D"; n],
        "up_block_types": vec!["UpDecoderBlock2D"; n],
    });
    std::fs::write(&path, config.to_string()).unwrap();
    let error = VaeConfig::read(&path).unwrap_err().to_string();
    assert!(error.contains("key `block_out_channels` has 70 entries"), "{error}");
}
