use std::path::Path;

use tch::no_grad;

use super::*;
use crate::clip::{Activation, Clip};
use crate::csd::Csd;
use crate::preference::{Hps, PickScore};
use crate::safetensors::write_safetensors;
use crate::weights::TRANSFORMERS_STEM;

/// The weights of a network of the script, by the names that it has there.
fn weights(reference: &Reference, name: &str, seed: u64) -> NamedTensors {
    drawn_tensors(seed, &serde_json::from_str(&reference.metadata[name]).unwrap())
}

fn normal(seed: u64, n: i64) -> Tensor {
    Generator::cpu(seed).unwrap().normal(&[n, 3, 32, 32]).unwrap()
}

fn write(folder: &Path, tensors: &NamedTensors) {
    write_safetensors(&folder.join("model.safetensors"), tensors, &[("format", "pt")]).unwrap();
}

#[test]
fn open_clips_names_are_read() {
    let reference = Reference::read("metric_open_clip.safetensors");
    let folder = tempfile::tempdir().unwrap();
    for (name, activation, seed) in [("gelu", Activation::Gelu, 90), ("quick_gelu", Activation::QuickGelu, 91)] {
        let mut tensors = weights(&reference, name, seed);
        tensors.insert("input_resolution".to_owned(), Tensor::from(32i64));
        write(folder.path(), &tensors);
        let clip = Clip::load_open_clip(folder.path(), activation, device(), Kind::Float).unwrap();
        assert_eq!(clip.config.vision_config.num_attention_heads, 3);
        no_grad(|| {
            let images = clip.embed_images(&normal(92, 3));
            assert_close("images", &images, reference.tensor(&format!("images.{name}")), 1e-5);
            let texts = clip.embed_texts(reference.tensor("ids"));
            assert_close("texts", &texts, reference.tensor(&format!("texts.{name}")), 1e-5);
        });
        let renamed = tensors.iter().map(|(name, tensor)| (format!("module.{name}"), tensor.shallow_clone())).collect();
        write(folder.path(), &renamed);
        Clip::load_open_clip(folder.path(), activation, device(), Kind::Float).unwrap();
        tensors.remove("input_resolution");
        tensors.insert("visual.ln_mid.weight".to_owned(), Tensor::from(1.0f32));
        write(folder.path(), &tensors);
        let message = Clip::load_open_clip(folder.path(), activation, device(), Kind::Float).unwrap_err().to_string();
        assert!(message.contains("the first is `visual.ln_mid.weight`"), "{message}");
    }
}

#[test]
fn scores_are_those_of_the_two_repositories() {
    let reference = Reference::read("metric_open_clip.safetensors");
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &weights(&reference, "gelu", 90));
    let hps = Hps::load(folder.path(), device(), Kind::Float).unwrap();
    let (pixels, ids) = (normal(92, 3), reference.tensor("ids"));
    let cosines = reference.tensor("cosines.gelu");
    let scores = no_grad(|| hps.score(&pixels, ids).unwrap());
    assert_close("HPS", &scores, cosines, 1e-5);
    let first = no_grad(|| hps.score(&pixels, &ids.narrow(0, 0, 1)).unwrap());
    assert_close("the first prompt for all", &first.narrow(0, 0, 1), &scores.narrow(0, 0, 1), 1e-5);

    // The same network as transformers stores it.
    let tensors = crate::clip::open_clip::to_transformers(weights(&reference, "gelu", 90)).unwrap();
    let other = tempfile::tempdir().unwrap();
    write(other.path(), &tensors);
    hps.clip.config.write(&other.path().join("config.json")).unwrap();
    let pick_score = PickScore::load(other.path(), device(), Kind::Float).unwrap();
    let scores = no_grad(|| pick_score.score(&pixels, ids).unwrap());
    assert_close("PickScore", &scores, &(cosines * reference.tensor("logit_scale.gelu").exp()), 1e-5);
    assert_eq!(crate::weights::read_folder(other.path(), TRANSFORMERS_STEM).unwrap().len(), tensors.len());

    let message = |pixels: &Tensor, ids: &Tensor| hps.score(pixels, ids).unwrap_err().to_string();
    let gray = message(&pixels.narrow(1, 0, 1), ids);
    assert_eq!(gray, "CLIP takes pixels [n, 3, 32, 32], found [3, 1, 32, 32]");
    let two = message(&pixels, &ids.narrow(0, 0, 2));
    assert_eq!(two, "CLIP takes token ids [3, up to 12] for 3 images, found [2, 12]");
    assert_eq!(message(&pixels, &(ids + 1)), "CLIP knows the token ids below 60, found 60");
}

#[test]
fn hps_resizes_the_longer_side_and_pads() {
    let reference = Reference::read("metric_open_clip.safetensors");
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &weights(&reference, "gelu", 90));
    let hps = Hps::load(folder.path(), device(), Kind::Float).unwrap();
    let sources = reference.part("source.");
    let images: Vec<_> = sources.values().map(|image| Vec::<u8>::try_from(image.flatten(0, 2)).unwrap()).collect();
    let shape = |image: &Tensor| (image.size()[1] as usize, image.size()[0] as usize);
    let images: Vec<_> = images.iter().zip(sources.values().map(shape)).map(|(rgb, (w, h))| (&rgb[..], w, h)).collect();
    let found = hps.pixels(&images).unwrap();
    for (i, name) in sources.keys().enumerate() {
        let wanted = reference.tensor(&format!("padded.{name}"));
        assert_close(name, &found.narrow(0, i as i64, 1), wanted, 1e-6);
    }
    let mut fine = hps.pixels(&[(&[9; 3 * 400], 400, 1), (&[0; 3], 1, 1)]).unwrap();
    assert_eq!((fine.size(), fine.isfinite().all().int64_value(&[])), (vec![2, 3, 32, 32], 1));
    fine = fine.narrow(0, 1, 1);
    let black = fine.amax([2i64, 3].as_slice(), false);
    assert!(black.equal(&fine.amin([2i64, 3].as_slice(), false)));
    assert!(hps.pixels(&[]).is_err());
    let short = hps.pixels(&[(&[0; 10], 2, 2)]).unwrap_err().to_string();
    assert_eq!(short, "image 0 of 2x2 pixels has 10 bytes of RGB");
}

#[test]
fn styles_match_the_repositorys_computation() {
    let reference = Reference::read("metric_open_clip.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let tensors = weights(&reference, "csd", 93);
    let prefixed = tensors.iter().map(|(name, tensor)| (format!("module.{name}"), tensor.shallow_clone())).collect();
    for tensors in [&tensors, &prefixed] {
        write(folder.path(), tensors);
        let csd = Csd::load(folder.path(), device(), Kind::Float).unwrap();
        let found = no_grad(|| csd.embed(&normal(94, 2)).unwrap());
        assert_close("styles", &found, reference.tensor("styles"), 1e-5);
        let message = csd.embed(&normal(94, 2).narrow(2, 0, 16)).unwrap_err().to_string();
        assert_eq!(message, "CSD takes pixels [n, 3, 32, 32], found [2, 3, 16, 32]");
        assert_eq!(csd.preprocessor(), crate::preprocess::Preprocessor::clip(32));
    }
    let mut tensors = tensors;
    tensors.remove("last_layer_style");
    write(folder.path(), &tensors);
    let message = Csd::load(folder.path(), device(), Kind::Float).unwrap_err().to_string();
    assert!(message.starts_with("tensor `last_layer_style` is missing from"), "{message}");
}
