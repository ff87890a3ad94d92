use tch::{Kind, Tensor};

use super::tokenizer::Cases;
use super::{Checkpoint, Reference, assert_close, device, shipped_model};
use crate::clip::{Clip, ClipConfig, ProjectedVision, TextConfig, TextTransformer, Tokenizer};
use crate::params::Params;
use crate::safetensors::{digest_safetensors, read_safetensors, write_safetensors};

const F32: f64 = 1e-5;
const BF16: f64 = 2e-2;

fn check_clip(name: &str) {
    let checkpoint = Checkpoint::read(name);
    let data = &checkpoint.data;
    for (kind, tolerance) in [(Kind::Float, F32), (Kind::BFloat16, BF16)] {
        let clip = Clip::load(checkpoint.dir(), device(), kind).unwrap();
        let (last, _) = clip.text.hidden_states(&data["ids"]);
        assert_close("last hidden state", &last, &data["last_hidden_state"], tolerance);
        assert_close("text embeddings", &clip.embed_texts(&data["ids"]), &data["text_embeds"], tolerance);
        assert_close("image embeddings", &clip.embed_images(&data["pixels"]), &data["image_embeds"], tolerance);
        assert!((clip.logit_scale_exp() / 2.6592f64.exp() - 1.0).abs() < tolerance);
    }
}

#[test]
fn clip_with_quick_gelu_matches_transformers() {
    check_clip("clip_quick.safetensors");
}

#[test]
fn clip_with_gelu_and_the_old_eos_rule_matches_transformers() {
    check_clip("clip_gelu.safetensors");
}

#[test]
fn gradients_match_transformers() {
    let checkpoint = Checkpoint::read("clip_quick.safetensors");
    let data = &checkpoint.data;
    let config = ClipConfig::read(&checkpoint.dir().join("config.json")).unwrap();
    let p = Params::load(&checkpoint.dir().join("model.safetensors"), device(), Kind::Float).unwrap();
    let clip = Clip::new(&p, &config).unwrap();
    let parameters = p.finish().unwrap();
    for tensor in parameters.values() {
        let _ = tensor.set_requires_grad(true);
    }
    let pixels = data["pixels"].copy().set_requires_grad(true);
    let square = |t: Tensor| t.square().sum(Kind::Float);
    let loss = (square(clip.embed_images(&pixels)) + square(clip.embed_texts(&data["ids"]))).log();
    loss.backward();
    let grad = |name: &str| parameters[name].grad();
    assert_close("pixels", &pixels.grad(), &data["pixels_grad"], F32);
    let tokens = grad("text_model.embeddings.token_embedding.weight");
    assert_close("token embedding", &tokens, &data["tokens_grad"], F32);
    assert_close("fc2", &grad("vision_model.encoder.layers.0.mlp.fc2.weight"), &data["fc2_grad"], F32);
}

#[test]
fn text_encoder_alone_matches_transformers_with_and_without_prefix() {
    let checkpoint = Checkpoint::read("clip_text.safetensors");
    let data = &checkpoint.data;
    let check = |kind, tolerance| {
        let text = TextTransformer::load(checkpoint.dir(), device(), kind).unwrap();
        let (last, pooled) = text.hidden_states(&data["ids"]);
        assert_close("last hidden state", &last, &data["last_hidden_state"], tolerance);
        assert_close("pooled", &pooled, &data["pooled"], tolerance);
    };
    check(Kind::Float, F32);
    check(Kind::BFloat16, BF16);
    // The layout of older files: below `text_model.`, with a buffer that is not a weight.
    let file = checkpoint.dir().join("model.safetensors");
    let bare = read_safetensors(&file).unwrap();
    assert!(bare.contains_key("final_layer_norm.weight"));
    let mut old: std::collections::BTreeMap<_, _> =
        bare.into_iter().map(|(name, t)| (format!("text_model.{name}"), t)).collect();
    let positions = Tensor::arange(12, (Kind::Int64, device())).view([1, 12]);
    old.insert("text_model.embeddings.position_ids".to_owned(), positions);
    write_safetensors(&file, &old, &[]).unwrap();
    check(Kind::Float, F32);
}

#[test]
fn vision_with_projection_matches_transformers() {
    let checkpoint = Checkpoint::read("clip_vision.safetensors");
    let vision = ProjectedVision::load(checkpoint.dir(), device(), Kind::Float).unwrap();
    let embeddings = vision.embed_images(&checkpoint.data["pixels"]);
    assert_close("image embeddings", &embeddings, &checkpoint.data["image_embeds"], F32);
}

#[test]
fn digest_is_that_of_the_tensors_alone() {
    let checkpoint = Checkpoint::read("clip_quick.safetensors");
    let digest = Clip::digest(checkpoint.dir()).unwrap();
    assert_eq!(digest, checkpoint.metadata["digest"]);
    let file = checkpoint.dir().join("model.safetensors");
    let mut tensors = read_safetensors(&file).unwrap();
    write_safetensors(&file, &tensors, &[("note", "other metadata")]).unwrap();
    assert_eq!(digest_safetensors(&file).unwrap(), digest);
    let scale = &tensors["logit_scale"] + 1e-3;
    tensors.insert("logit_scale".to_owned(), scale);
    write_safetensors(&file, &tensors, &[]).unwrap();
    assert_ne!(digest_safetensors(&file).unwrap(), digest);
}

#[test]
fn fresh_weights_have_the_names_of_a_checkpoint_and_upstream_deviations() {
    let checkpoint = Checkpoint::read("clip_quick.safetensors");
    let file = checkpoint.dir().join("config.json");
    let mut config = ClipConfig::read(&file).unwrap();
    config.text_config.vocab_size = 2000;
    let p = Params::random(7, device()).unwrap();
    let clip = Clip::new(&p, &config).unwrap();
    let fresh = p.finish().unwrap();
    let checkpoint = read_safetensors(&checkpoint.dir().join("model.safetensors")).unwrap();
    assert!(fresh.keys().eq(checkpoint.keys()));
    let check = |name: &str, std: f64| {
        let found = fresh[name].std(true).double_value(&[]);
        assert!((found / std - 1.0).abs() < 0.1, "{name}: standard deviation {found}, wanted {std}");
    };
    let hidden = 32f64;
    check("text_model.embeddings.token_embedding.weight", 0.02);
    check("vision_model.embeddings.patch_embedding.weight", 0.02);
    check("text_model.encoder.layers.1.self_attn.q_proj.weight", 1.0 / (hidden * 4.0).sqrt());
    check("text_model.encoder.layers.1.self_attn.out_proj.weight", 1.0 / hidden.sqrt());
    check("text_model.encoder.layers.0.mlp.fc1.weight", 1.0 / (2.0 * hidden).sqrt());
    check("text_model.encoder.layers.0.mlp.fc2.weight", 1.0 / (hidden * 4.0).sqrt());
    check("visual_projection.weight", 1.0 / hidden.sqrt());
    assert!((clip.logit_scale_exp() - 1.0 / 0.07).abs() < 1e-2);
}

#[test]
fn written_configurations_read_back_equal() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let clip = ClipConfig::read(&Checkpoint::read("clip_gelu.safetensors").dir().join("config.json")).unwrap();
    clip.write(&file).unwrap();
    assert_eq!(ClipConfig::read(&file).unwrap(), clip);
    assert_eq!(TextConfig::read(&file).unwrap(), clip.text_config);
    clip.text_config.write(&file).unwrap();
    assert_eq!(TextConfig::read(&file).unwrap(), clip.text_config);
}

#[test]
fn shipped_folders_match_transformers() {
    let reference = Reference::read("clip_shipped.safetensors");
    let clip = Clip::load(&shipped_model().join("clip"), device(), Kind::Float).unwrap();
    let text = TextTransformer::load(&shipped_model().join("diffusion/text_encoder"), device(), Kind::Float).unwrap();
    // In this copy only the model's config.json states the length, and nothing the padding.
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.json", "vocab.json", "merges.txt"] {
        std::fs::copy(shipped_model().join("clip").join(name), copy.path().join(name)).unwrap();
    }
    let tokenizer = Tokenizer::load(copy.path()).unwrap();
    assert_eq!(tokenizer.max_length(), 16);
    let ids = tokenizer.encode_batch(&Cases::read().texts()).to_device(device());
    assert_close("text embeddings", &clip.embed_texts(&ids), reference.tensor("text_embeds"), F32);
    assert_close("pooled", &text.hidden_states(&ids).1, reference.tensor("encoder_pooled"), F32);
}
