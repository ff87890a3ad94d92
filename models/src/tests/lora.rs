use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use tch::{Device, no_grad};
use torch_ext::{AdamW, AdamWConfig, profiled};

use super::*;
use crate::lora::{LORA_FILE, Lora, LoraFile, LoraSpec, Targets};
use crate::safetensors::{read_safetensors_with_metadata, write_safetensors};

fn forward(unet: &UNet, reference: &Reference) -> Tensor {
    let input = |name: &str| reference.tensor(name);
    unet.forward(input("latents"), input("timesteps"), input("text"))
}

fn loaded(reference: &Reference, kind: Kind) -> (UNet, Lora) {
    let mut unet = drawn_unet(reference, "unet", 101, kind);
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
fn rank_stabilization_and_patterns_of_rank_and_alpha_are_pefts() {
    let reference = Reference::read("diffusion_lora_patterns.safetensors");
    let folder = tempfile::tempdir().unwrap();
    write_safetensors(&folder.path().join("adapter_model.safetensors"), &reference.part("adapter."), &[]).unwrap();
    std::fs::copy(reference.config("adapter_config"), folder.path().join("adapter_config.json")).unwrap();
    let file = LoraFile::read(folder.path()).unwrap();
    let scalings: BTreeMap<&str, f64> = file.layers.iter().map(|layer| (&*layer.module, layer.scaling)).collect();
    let theirs = reference.part("scaling.");
    assert!(scalings.keys().eq(theirs.keys()), "{scalings:?}");
    for (module, theirs) in &theirs {
        let error = (scalings[&**module] - theirs.double_value(&[])).abs();
        assert!(error < 1e-12, "{module}: scaled by {}, peft by {theirs}", scalings[&**module]);
    }
    let mut unet = drawn_unet(&reference, "unet", 101, Kind::Float);
    let lora = Lora::load(&mut unet, folder.path()).unwrap();
    assert_close("with the adapter", &forward(&unet, &reference), reference.tensor("out"), 1e-5);
    // If ranks and alphas are equally common, the adapter has those of the first layer, and lists the others as
    // patterns.
    assert_eq!(lora.rank_and_alpha(), (2, 5.0));
    let copy = folder.path().join("copy.safetensors");
    lora.save(&copy).unwrap();
    let metadata = read_safetensors_with_metadata(&copy).unwrap().1;
    let config: Value = serde_json::from_str(&metadata["lora_adapter_metadata"]).unwrap();
    let name = |part: &str| format!("mid_block.attentions.0.transformer_blocks.0.attn2.{part}");
    assert_eq!(config["unet.rank_pattern"], json!({ name("to_k"): 4, name("to_v"): 4 }));
    assert_eq!(config["unet.alpha_pattern"], json!({ name("to_k"): 0.5, name("to_v"): 6 }));
    assert_eq!((&config["unet.r"], &config["unet.use_rslora"]), (&json!(2), &json!(true)));
    let again = LoraFile::read(&copy).unwrap();
    let saved = |file: &LoraFile| -> Vec<(String, f64, f64, i64)> {
        file.layers.iter().map(|l| (l.module.clone(), l.alpha, l.scaling, l.rank())).collect()
    };
    assert_eq!(saved(&again), saved(&file));
}

#[test]
fn bf16_stays_near_f32() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let (unet, _) = loaded(&reference, Kind::BFloat16);
    assert_close("bf16", &forward(&unet, &reference), reference.tensor("out"), 2e-2);
}

/// Without gradients the factors are copied to bf16 once, and again after an optimizer step.
#[test]
fn calls_of_a_rollout_share_the_factors_in_bf16() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let (mut unet, lora) = loaded(&reference, Kind::BFloat16);
    let called = |unet: &UNet| {
        let (out, operators) = profiled(|| no_grad(|| forward(unet, &reference))).unwrap();
        let is_cast = |name: &str| name.starts_with("aten::to.dtype");
        let casts = operators.iter().filter(|operator| is_cast(&operator.name));
        (out, casts.map(|operator| operator.calls).sum::<u64>())
    };
    let n_factors = lora.parameters().len() as u64;
    let ((first, casts), (second, fewer)) = (called(&unet), called(&unet));
    assert_eq!((casts - fewer, &second), (n_factors, &first));

    let config = AdamWConfig { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, weight_decay: 0.0, epsilon: 1e-8 };
    let mut optimizer = AdamW::new(lora.parameters(), config).unwrap();
    // A graph has casts of its own.
    forward(&unet, &reference).sum(Kind::Float).backward();
    optimizer.step().unwrap();
    let (stepped, casts_again) = called(&unet);
    assert_eq!(casts_again, casts);
    assert_ne!(stepped, first);
    // As a resumed run and an average do.
    let values: NamedTensors = lora.parameters().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
    lora.load_values(&values.iter().map(|(name, tensor)| (name.clone(), tensor * 0.5)).collect()).unwrap();
    assert_ne!(called(&unet).0, stepped);
    lora.load_values(&values).unwrap();
    assert_eq!(called(&unet).0, stepped);
    // A new adapter with the same values has no copies.
    lora.detach(&mut unet);
    let fresh = Lora::load(&mut unet, &reference_path("diffusers_lora.safetensors")).unwrap();
    fresh.load_values(&values).unwrap();
    assert_eq!(called(&unet).0, stepped);
}

/// The shipped UNet in bf16 with an adapter on every linear layer, against the same weights in f32: the gradient of all
/// of the adapter as one vector, which is what an optimizer step sees.
#[test]
fn bf16_gradients_stay_near_f32() {
    let folder = shipped_model().join("diffusion/unet");
    let mut generator = Generator::cpu(6).unwrap();
    let mut normal = |shape: &[i64]| generator.normal(shape).unwrap().to_device(device());
    let (latents, text, upstream) = (normal(&[4, 4, 16, 16]), normal(&[4, 16, 128]), normal(&[4, 4, 16, 16]));
    let timesteps = Tensor::from_slice(&[1i64, 250, 600, 950]).to_device(device());
    let gradient = |kind| {
        let mut unet = UNet::load(&folder, device(), kind, MemoryFormat::Contiguous).unwrap();
        let spec = LoraSpec { rank: 4, alpha: 4.0, targets: Targets::AllLinear };
        let lora = Lora::attach(&mut unet, &spec, 1).unwrap();
        // A new B is zero, so A would have no gradient.
        let mut generator = Generator::cpu(7).unwrap();
        let mut value = |tensor: &Tensor| generator.normal(&tensor.size()).unwrap() * 0.05;
        let values = lora.parameters().into_iter().map(|(name, tensor)| (name, value(&tensor))).collect();
        lora.load_values(&values).unwrap();
        let out = unet.forward(&latents.to_kind(kind), &timesteps, &text.to_kind(kind));
        (out.to_kind(Kind::Float) * &upstream).sum(Kind::Float).backward();
        let parameters = lora.parameters();
        assert!(parameters.iter().all(|(_, tensor)| tensor.grad().kind() == Kind::Float));
        Tensor::cat(&parameters.iter().map(|(_, tensor)| tensor.grad().flatten(0, -1)).collect::<Vec<_>>(), 0)
    };
    // bf16 has 8 bits of precision; how its sums are rounded differs from one processor to another.
    assert_close("bf16", &gradient(Kind::BFloat16), &gradient(Kind::Float), 4e-2);
}

#[test]
fn merging_keeps_the_function_and_unmerging_restores_it() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let (mut unet, mut lora) = loaded(&reference, Kind::Float);
    lora.merge(&mut unet);
    assert_close("merged", &forward(&unet, &reference), reference.tensor("out"), 1e-5);
    lora.unmerge(&mut unet);
    assert_close("unmerged", &forward(&unet, &reference), reference.tensor("out"), 1e-5);
    lora.set_scale(&mut unet, 0.25);
    let scaled = forward(&unet, &reference);
    assert!(relative_error(&scaled, reference.tensor("out")) > 1e-2);
    lora.merge(&mut unet);
    // Repeating it changes nothing.
    lora.merge(&mut unet);
    assert_close("merged at a scale", &forward(&unet, &reference), &scaled, 1e-5);
    lora.unmerge(&mut unet);
    lora.set_scale(&mut unet, 0.0);
    assert_eq!(forward(&unet, &reference), forward(&drawn_unet(&reference, "unet", 101, Kind::Float), &reference));
}

#[test]
fn detaching_removes_the_adapter_and_leaves_what_was_merged() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let (mut unet, lora) = loaded(&reference, Kind::Float);
    lora.detach(&mut unet);
    assert_eq!(forward(&unet, &reference), forward(&drawn_unet(&reference, "unet", 101, Kind::Float), &reference));
    let (mut unet, mut lora) = loaded(&reference, Kind::Float);
    lora.merge(&mut unet);
    lora.detach(&mut unet);
    assert_close("merged and detached", &forward(&unet, &reference), reference.tensor("out"), 1e-5);
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_lora_weights.safetensors");
    let (unet, lora) = loaded(&reference, Kind::Float);
    lora.save(&path).unwrap();
    let mut again = drawn_unet(&reference, "unet", 101, Kind::Float);
    let loaded = Lora::load(&mut again, folder.path()).unwrap();
    assert_eq!(loaded.rank_and_alpha(), (4, 6.0));
    assert_eq!(forward(&again, &reference), forward(&unet, &reference));
    // The tensors and the configuration in the metadata are those of diffusers' own file.
    let (ours, ours_metadata) = read_safetensors_with_metadata(&path).unwrap();
    let (theirs, theirs_metadata) =
        read_safetensors_with_metadata(&reference_path("diffusers_lora.safetensors")).unwrap();
    assert!(ours.keys().eq(theirs.keys()));
    let config = |metadata: &HashMap<String, String>| -> Value {
        serde_json::from_str(&metadata["lora_adapter_metadata"]).unwrap()
    };
    let (ours, theirs) = (config(&ours_metadata), config(&theirs_metadata));
    for (key, value) in ours.as_object().unwrap() {
        let same = theirs[key] == *value || theirs[key].as_f64() == value.as_f64() && value.is_number();
        assert!(same || key == "unet.target_modules", "`{key}`: {value}, diffusers has {}", theirs[key]);
    }
}

#[test]
fn values_are_loaded_by_name_and_refused_if_they_do_not_fit() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let mut unet = drawn_unet(&reference, "unet", 101, Kind::Float);
    let lora = Lora::load(&mut unet, &reference_path("diffusers_lora.safetensors")).unwrap();
    let values =
        || -> NamedTensors { lora.parameters().into_iter().map(|(name, t)| (name, t.detach().copy())).collect() };
    let wanted = forward(&unet, &reference);
    let saved = values();
    for (_, tensor) in lora.parameters() {
        let _ = no_grad(|| tensor.shallow_clone().fill_(0.5));
    }
    assert_ne!(forward(&unet, &reference), wanted);
    lora.load_values(&saved).unwrap();
    assert_eq!(forward(&unet, &reference), wanted);
    let name = saved.keys().next().unwrap().clone();
    let mut without = values();
    without.remove(&name);
    let error = lora.load_values(&without).unwrap_err().to_string();
    assert!(error.contains(&name), "{error}");
    let mut other = values();
    other.insert(name.clone(), Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)));
    let error = lora.load_values(&other).unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("[1, 1]"), "{error}");
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
        let mut unet = drawn_unet(&reference, "unet", 101, Kind::Float);
        let before = forward(&unet, &reference);
        assert_eq!(forward(&unet, &reference), before);
        let lora = Lora::attach(&mut unet, &LoraSpec { rank: 2, alpha: 4.0, targets }, 1).unwrap();
        let out = forward(&unet, &reference);
        assert_eq!(out, before);
        assert_eq!(lora.n_layers(), n_layers);
        out.square().sum(Kind::Float).backward();
        for (name, tensor) in lora.parameters() {
            let largest = tensor.grad().abs().max().double_value(&[]);
            assert_eq!(largest > 0.0, name.contains("lora_B"), "{name}: B is initially zero, so A's gradient is too");
        }
        assert!(Lora::load(&mut unet, &reference_path("diffusers_lora.safetensors")).is_err());
        lora.detach(&mut unet);
        assert_eq!(forward(&unet, &reference), before);
    }
}

#[test]
fn a_fresh_a_is_normal_with_one_over_the_rank_and_its_file_says_what_became_of_it() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let mut unet = drawn_unet(&reference, "unet", 101, Kind::Float);
    let spec = |rank, targets| LoraSpec { rank, alpha: 4.0, targets };
    let lora = Lora::attach(&mut unet, &spec(8, Targets::AllLinear), 1).unwrap();
    let parameters = lora.parameters();
    let numbers: usize = parameters.iter().map(|(_, tensor)| tensor.numel()).sum();
    assert_eq!((lora.n_parameters(), 2 * lora.n_layers()), (numbers, parameters.len()));
    let fresh = parameters.iter().filter(|(name, _)| name.contains("lora_A")).map(|(_, tensor)| tensor.flatten(0, -1));
    let std = Tensor::cat(&fresh.collect::<Vec<_>>(), 0).std(true).double_value(&[]);
    assert!((std * 8.0 - 1.0).abs() < 0.02, "{std}");

    let mut generator = Generator::cpu(7).unwrap();
    let mut value = |tensor: &Tensor| generator.normal(&tensor.size()).unwrap() * 0.1;
    lora.load_values(&parameters.iter().map(|(name, tensor)| (name.clone(), value(tensor))).collect()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_lora_weights.safetensors");
    lora.save(&path).unwrap();
    assert_eq!(lora.to_bytes().unwrap(), std::fs::read(&path).unwrap());
    let mut again = drawn_unet(&reference, "unet", 101, Kind::Float);
    let loaded = Lora::load(&mut again, &path).unwrap();
    assert_eq!(loaded.rank_and_alpha(), (8, 4.0));
    assert_eq!(forward(&again, &reference), forward(&unet, &reference));
}

#[test]
fn adapters_of_other_layers_live_side_by_side() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let mut unet = drawn_unet(&reference, "unet", 101, Kind::Float);
    let spec = |rank, name: &str| LoraSpec { rank, alpha: 2.0, targets: Targets::List(vec![name.to_owned()]) };
    Lora::attach(&mut unet, &spec(1, "attn1.to_q"), 1).unwrap();
    Lora::attach(&mut unet, &spec(2, "attn1.to_k"), 1).unwrap();
    let error = Lora::attach(&mut unet, &spec(1, "to_k"), 1).unwrap_err().to_string();
    assert!(error.contains("attn1.to_k` already has an adapter"), "{error}");
    for rank in [0, -1] {
        let error = Lora::attach(&mut unet, &spec(rank, "to_v"), 1).unwrap_err().to_string();
        assert_eq!(error, format!("LoRA rank {rank} is below 1"));
    }
}

/// The rank and alpha of two layers are more common than those of the first layer.
#[test]
fn the_most_common_rank_and_alpha_are_the_adapters() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let mut unet = drawn_unet(&reference, "unet", 101, Kind::Float);
    let (tensors, _) = read_safetensors_with_metadata(&reference_path("diffusers_lora.safetensors")).unwrap();
    let few = |(name, tensor): (&String, &Tensor)| {
        let short = if name.contains("to_q.lora_A") {
            tensor.narrow(0, 0, 2)
        } else if name.contains("to_q.lora_B") {
            tensor.narrow(1, 0, 2)
        } else {
            tensor.shallow_clone()
        };
        (name.contains("mid_block") && name.contains("attn1") && !name.contains("to_out"))
            .then(|| (name.clone(), short))
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_lora_weights.safetensors");
    write_safetensors(&path, &tensors.iter().filter_map(few).collect(), &[]).unwrap();
    let lora = Lora::load(&mut unet, &path).unwrap();
    assert!(lora.parameters()[0].1.size()[0] == 2 && lora.rank_and_alpha() == (4, 4.0), "{:?}", lora.rank_and_alpha());
}

#[test]
fn stray_names_are_refused() {
    let reference = Reference::read("diffusion_lora.safetensors");
    let mut unet = drawn_unet(&reference, "unet", 101, Kind::Float);
    let spec = LoraSpec { rank: 2, alpha: 2.0, targets: Targets::List(vec!["to_q".to_owned(), "to_z".to_owned()]) };
    let error = Lora::attach(&mut unet, &spec, 1).unwrap_err().to_string();
    assert!(error.contains("`to_z`"), "{error}");
    // The adapter of another network.
    let other = Reference::read("diffusion_unet.safetensors");
    let mut unet = drawn_unet(&other, "upcast", 102, Kind::Float);
    let error = Lora::load(&mut unet, &reference_path("diffusers_lora.safetensors")).unwrap_err().to_string();
    assert!(error.contains("diffusers_lora.safetensors") && error.contains("`unet.down_blocks.0."), "{error}");
    assert!(serde_json::from_str::<Targets>("\"atention\"").is_err());
    // An adapter of a 1×1 convolution, which merging takes.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_lora_weights.safetensors");
    for end in ["proj_in", "proj_out"] {
        let module = format!("unet.down_blocks.0.attentions.0.{end}");
        let tensor = |name: &str, shape: [i64; 2]| {
            (format!("{module}.{name}.weight"), Tensor::ones(shape, (Kind::Float, Device::Cpu)))
        };
        let tensors = [tensor("lora_A", [2, 8]), tensor("lora_B", [8, 2])].into_iter().collect();
        write_safetensors(&path, &tensors, &[]).unwrap();
        let error = Lora::load(&mut unet, &path).unwrap_err().to_string();
        assert!(error.contains("adapts a 1×1 convolution"), "{error}");
    }
}

#[test]
fn an_alpha_that_is_no_number_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ones = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu));
    let not_finite = Some("`unet.a.to_q.alpha` contains numbers that are not finite");
    for (alpha, refused) in [
        (1.0, None),
        (f64::NAN, not_finite),
        (f64::INFINITY, not_finite),
        (1e30, Some("the alpha of `a.to_q` is 1000000015047466200000000000000, at most 1000000 is possible")),
    ] {
        let tensors = [
            ("unet.a.to_q.lora.down.weight", ones(&[2, 4])),
            ("unet.a.to_q.lora.up.weight", ones(&[3, 2])),
            ("unet.a.to_q.alpha", ones(&[]) * alpha),
        ];
        let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into();
        let path = folder.path().join(LORA_FILE);
        write_safetensors(&path, &tensors, &[]).unwrap();
        match (LoraFile::read(&path).map_err(|error| error.to_string()), refused) {
            (Ok(_), None) => {}
            (Err(error), Some(said)) => assert!(error.ends_with(said), "{alpha}: {error}"),
            (read, _) => panic!("{alpha}: {read:?}"),
        }
    }
}
