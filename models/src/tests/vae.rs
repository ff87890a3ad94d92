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
