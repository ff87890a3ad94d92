use tch::Kind;

use super::*;
use crate::lora::{Lora, LoraSpec, Targets};

fn forward(unet: &UNet, reference: &Reference) -> Tensor {
    let input = |name: &str| reference.tensor(name);
    unet.forward(input("latents"), input("timesteps"), input("text"))
}

fn loaded(reference: &Reference, kind: Kind) -> (UNet, Lora) {
    let mut unet = reference.unet("unet", 101, kind);
    let lora = Lora::load(&mut unet, &reference_path("diffusers_lora.safetensors")).unwrap();
    (unet, lora)
}

#[test]
fn a_file_of_diffusers_gives_pefts_output_and_gradients() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let (mut unet, lora) = loaded(&reference, Kind::Float);
    assert_eq!(lora.rank_and_alpha(), (4, 6.0));
    let out = forward(&unet, &reference);
    assert_close("with the adapter", &out, reference.tensor("out"), 1e-5);
    (out * reference.tensor("weight")).sum(Kind::Float).backward();
    let mut compared = 0;
    for (name, tensor) in lora.parameters() {
        let gradient = tensor.grad();
        assert!(gradient.defined(), "{name}");
        if let Some(theirs) = reference.tensors.get(&format!("grad.{name}")) {
            assert_close(&name, &gradient, theirs, 1e-4);
            compared += 1;
        }
    }
    assert_eq!(compared, reference.tensors.keys().filter(|name| name.starts_with("grad.")).count());
    lora.enable(&mut unet, false);
    assert_close("switched off", &forward(&unet, &reference), reference.tensor("base"), 1e-5);
}

#[test]
fn bf16_stays_near_f32() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let (unet, _) = loaded(&reference, Kind::BFloat16);
    assert_close("bf16", &forward(&unet, &reference), reference.tensor("out"), 2e-2);
}

#[test]
fn merging_keeps_the_function_and_unmerging_restores_it() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let (mut unet, mut lora) = loaded(&reference, Kind::Float);
    lora.merge(&mut unet);
    assert_close("merged", &forward(&unet, &reference), reference.tensor("out"), 1e-5);
    lora.unmerge(&mut unet);
    assert_close("unmerged", &forward(&unet, &reference), reference.tensor("out"), 1e-5);
    lora.set_scale(&mut unet, 0.0);
    assert_eq!(forward(&unet, &reference), forward(&reference.unet("unet", 101, Kind::Float), &reference));
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_lora_weights.safetensors");
    let (unet, lora) = loaded(&reference, Kind::Float);
    lora.save(&path).unwrap();
    let mut again = reference.unet("unet", 101, Kind::Float);
    let loaded = Lora::load(&mut again, folder.path()).unwrap();
    assert_eq!(loaded.rank_and_alpha(), (4, 6.0));
    assert_eq!(forward(&again, &reference), forward(&unet, &reference));
    // The tensors are those of diffusers' own file, and so is the configuration in the metadata.
    let (ours, ours_metadata) = read_safetensors_with_metadata(&path).unwrap();
    let (theirs, theirs_metadata) =
        read_safetensors_with_metadata(&reference_path("diffusers_lora.safetensors")).unwrap();
    assert!(ours.keys().eq(theirs.keys()));
    let config = |metadata: &HashMap<String, String>| -> serde_json::Value {
        serde_json::from_str(&metadata["lora_adapter_metadata"]).unwrap()
    };
    let (ours, theirs) = (config(&ours_metadata), config(&theirs_metadata));
    for (key, value) in ours.as_object().unwrap() {
        let same = theirs[key] == *value || theirs[key].as_f64() == value.as_f64() && value.is_number();
        assert!(same || key == "unet.target_modules", "`{key}`: {value}, diffusers has {}", theirs[key]);
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_learns() {
    let reference = Reference::read("diffusion_lora.safetensors");
    // Eleven transformer blocks: two in each of the fine stage's five attentions, and one in the middle.
    let cases = [
        ("\"attention\"", 11 * 8),
        ("\"attention+feed-forward\"", 11 * 10),
        ("[\"attn2.to_q\", \"mid_block.attentions.0.transformer_blocks.0.attn1.to_k\"]", 11 + 1),
    ];
    for (targets, n_layers) in cases {
        let targets: Targets = serde_json::from_str(targets).unwrap();
        let mut unet = reference.unet("unet", 101, Kind::Float);
        let before = forward(&unet, &reference);
        assert_eq!(forward(&unet, &reference), before);
        let lora = Lora::attach(&mut unet, &LoraSpec { rank: 2, alpha: 4.0, targets }, 1).unwrap();
        let out = forward(&unet, &reference);
        assert_eq!(out, before);
        assert_eq!(lora.n_layers(), n_layers);
        out.square().sum(Kind::Float).backward();
        for (name, tensor) in lora.parameters() {
            let largest = tensor.grad().abs().max().double_value(&[]);
            assert_eq!(largest > 0.0, name.contains("lora_B"), "{name}: B is zero at first, so A's gradient is too");
        }
        assert!(Lora::load(&mut unet, &reference_path("diffusers_lora.safetensors")).is_err());
        lora.detach(&mut unet);
        assert_eq!(forward(&unet, &reference), before);
    }
}

#[test]
fn stray_names_are_refused() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let mut unet = reference.unet("unet", 101, Kind::Float);
    let spec = LoraSpec { rank: 2, alpha: 2.0, targets: Targets::List(vec!["to_q".to_owned(), "to_z".to_owned()]) };
    let error = Lora::attach(&mut unet, &spec, 1).unwrap_err().to_string();
    assert!(error.contains("`to_z`"), "{error}");
    // The adapter of another network.
    let other = Reference::read("diffusion_unet.safetensors");
    let mut unet = other.unet("upcast", 102, Kind::Float);
    let error = Lora::load(&mut unet, &reference_path("diffusers_lora.safetensors")).unwrap_err().to_string();
    assert!(error.contains("diffusers_lora.safetensors") && error.contains("`unet.down_blocks.0."), "{error}");
    assert!(serde_json::from_str::<Targets>("\"atention\"").is_err());
}
