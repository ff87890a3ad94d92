use std::path::PathBuf;

use tch::no_grad;

use super::*;
use crate::pipeline::{LoadOptions, Pipeline, images_u8};
use crate::scheduler::{Ddim, LastStep};

fn shipped_folder() -> PathBuf {
    shipped_model().join("diffusion")
}

fn shipped() -> Pipeline {
    Pipeline::load(&shipped_folder(), &LoadOptions::on(device())).unwrap()
}

#[test]
fn a_folder_of_diffusers_makes_the_same_images() {
    let reference = Reference::read("diffusion_pipeline.safetensors");
    let pipeline = shipped();
    let prompts: Vec<String> = serde_json::from_str(&reference.metadata["prompts"]).unwrap();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let text = pipeline.encode_prompts(&prompts).unwrap();
    assert_close("embeddings", &text, reference.tensor("embeddings"), 1e-5);
    let both = Tensor::cat(&[pipeline.encode_prompts(&["", ""]).unwrap(), text], 0);
    let ddim = Ddim::new(&pipeline.scheduler, 6).unwrap();
    let images = no_grad(|| {
        let mut sample = reference.tensor("latents").shallow_clone();
        for (i, &t) in ddim.timesteps().iter().enumerate() {
            let timesteps = Tensor::full([4], t, (Kind::Int64, device()));
            let predicted = pipeline.unet.forward(&Tensor::cat(&[&sample, &sample], 0), &timesteps, &both);
            let (without, guided) = (predicted.narrow(0, 0, 2), predicted.narrow(0, 2, 2));
            let predicted = &without + (guided - &without) * 2.5;
            sample = ddim.step(&predicted, i, &sample, 0.0, None, LastStep::FinalAlpha).prev_sample;
        }
        assert_close("final latents", &sample, reference.tensor("final"), 1e-5);
        images_u8(&pipeline.vae.decode_latents(&sample, 1))
    });
    // A value exactly between two bytes may be rounded to either.
    let off = (images.to_kind(Kind::Int) - reference.tensor("images_u8").to_kind(Kind::Int)).abs();
    assert!(off.max().int64_value(&[]) <= 1 && off.sum(Kind::Int64).int64_value(&[]) <= 5);
}

#[test]
fn sizes_that_do_not_divide_are_refused() {
    let pipeline = shipped();
    assert_eq!(pipeline.latent_size(64, 32).unwrap(), [8, 16]);
    let error = pipeline.latent_size(66, 64).unwrap_err().to_string();
    assert!(error.contains("66×64") && error.contains("multiples of 4"), "{error}");
}

#[test]
fn parts_that_do_not_fit_are_refused_by_file_and_key() {
    let source = shipped_folder();
    let folder = tempfile::tempdir().unwrap();
    for part in ["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
        std::fs::create_dir_all(folder.path().join(part)).unwrap();
        for entry in std::fs::read_dir(source.join(part)).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_file() {
                let to = folder.path().join(part).join(entry.file_name().unwrap());
                std::fs::write(&to, std::fs::read(&entry).unwrap()).unwrap();
            }
        }
    }
    let check = |file: &str, from: &str, to: &str, expected: &[&str]| {
        let path = folder.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let error = Pipeline::load(folder.path(), &LoadOptions::on(device())).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{file} {to}: {error}");
        }
        std::fs::write(&path, text).unwrap();
    };
    check("model_index.json", "StableDiffusionPipeline", "FluxPipeline", &["model_index.json", "_class_name", "Flux"]);
    check("model_index.json", "UNet2DConditionModel", "UNet3D", &["model_index.json", "`unet`", "UNet3D"]);
    check(
        "unet/config.json",
        "\"cross_attention_dim\": 128",
        "\"cross_attention_dim\": 96",
        &["attn2.to_k.weight", "96"],
    );
    check("unet/config.json", "\"act_fn\": \"silu\"", "\"act_fn\": \"mish\"", &["unet/config.json", "act_fn"]);
    check("vae/config.json", "\"layers_per_block\": 1", "\"layers_per_block\": 2", &["vae", "resnets", "missing"]);
    check("scheduler/scheduler_config.json", "\"thresholding\": false", "\"thresholding\": true", &["thresholding"]);
    std::fs::remove_file(folder.path().join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let error = Pipeline::load(folder.path(), &LoadOptions::on(device())).unwrap_err().to_string();
    assert!(error.contains("vae has no diffusion_pytorch_model.safetensors"), "{error}");
}

#[test]
fn bytes_round_half_to_even() {
    // Every midpoint between two bytes, and values below black and above white.
    let x: Vec<f32> = (-3..=258).map(|i| ((i as f32 + 0.5) / 255.0 - 0.5) * 2.0).collect();
    let scaled = |x: f32| (x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
    let is_tie = |&&x: &&f32| scaled(x).round() != scaled(x).round_ties_even();
    assert!(x.iter().filter(is_tie).count() > 10, "too few of the inputs are exact midpoints");
    let expected: Vec<u8> = x.iter().map(|&x| scaled(x).round_ties_even() as u8).collect();
    let bytes = images_u8(&Tensor::from_slice(&x).view([1, 1, 1, -1]));
    assert_eq!(bytes.size(), [1, 1, x.len() as i64, 1]);
    assert_eq!(Vec::<u8>::try_from(bytes.flatten(0, -1)).unwrap(), expected);
}
