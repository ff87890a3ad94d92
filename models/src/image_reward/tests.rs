use serde_json::Value;
use tch::no_grad;
use test_support::{Reference, assert_close, device, reference_path};
use torch_ext::Generator;

use super::*;
use crate::params::NamedTensors;
use crate::safetensors::write_safetensors;
use crate::tests::drawn;

fn small() -> ImageRewardConfig {
    ImageRewardConfig {
        image_size: 32,
        patch_size: 8,
        vision_width: 128,
        vision_intermediate_size: 192,
        vision_layers: 3,
        vision_heads: 2,
        vocab_size: 50,
        max_position_embeddings: 20,
        hidden_size: 192,
        intermediate_size: 160,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        layer_norm_eps: 1e-12,
    }
}

/// The reference's tensors by name.
fn weights() -> NamedTensors {
    let params = drawn(80, Kind::Float, |p| ImageReward::new(p, &small()).map(drop));
    ImageReward::new(&params, &small()).unwrap();
    params.finish().unwrap()
}

fn pixels() -> Tensor {
    Generator::cpu(82).unwrap().normal(&[3, 3, 32, 32]).unwrap()
}

#[test]
fn rewards_match_blip_of_transformers() {
    let reference = Reference::read("metric_image_reward.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let mut weights = weights();
    // What the published file has beside them.
    for name in ["vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_encoder.embeddings.position_ids"] {
        weights.insert(format!("blip.{name}"), Tensor::from_slice(&[1.0f32]));
    }
    write_safetensors(&folder.path().join("ImageReward.safetensors"), &weights, &[]).unwrap();
    let network = ImageReward::load(folder.path(), device(), Kind::Float).unwrap();
    assert_eq!(network.config, small());
    let (ids, mask) = (reference.tensor("ids"), reference.tensor("mask"));
    no_grad(|| {
        let image = network.visual_encoder.forward(&pixels());
        assert_close("image", &image, reference.tensor("image"), 1e-5);
        let features = network.features(&pixels(), ids, mask).unwrap();
        assert_close("features", &features, reference.tensor("features"), 1e-5);
        let rewards = network.score(&pixels(), ids, mask).unwrap();
        assert_close("rewards", &rewards, reference.tensor("rewards"), 1e-5);
        // One prompt for all images.
        let first = network.score(&pixels(), &ids.narrow(0, 0, 1), &mask.narrow(0, 0, 1)).unwrap();
        assert_close("the first reward", &first.narrow(0, 0, 1), &rewards.narrow(0, 0, 1), 1e-5);
        assert_eq!(first.size(), [3]);
    });
}

#[test]
fn the_published_network_has_its_number_of_parameters() {
    let p = Params::shapes();
    ImageReward::new(&p, &ImageRewardConfig::v1()).unwrap();
    let parameters: usize = p.finish().unwrap().values().map(Tensor::numel).sum();
    // BLIP's two projections to 256 numbers, which the reward does not need.
    let projections = 256 * (1024 + 768) + 2 * 256;
    assert_eq!(parameters + projections, 446_665_953);
}

#[test]
fn med_config_tells_what_shapes_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ImageReward.safetensors");
    write_safetensors(&path, &weights(), &[]).unwrap();
    let load = |text: &str| {
        std::fs::write(folder.path().join("med_config.json"), text).unwrap();
        ImageReward::load(&path, device(), Kind::Float)
    };
    let text = r#"{"num_attention_heads": 6, "layer_norm_eps": 1e-6, "hidden_size": 192, "hidden_act": "gelu"}"#;
    let config = load(text).unwrap().config;
    assert_eq!((config.num_attention_heads, config.layer_norm_eps), (6, 1e-6));
    for (text, wanted) in [
        (r#"{"num_attention_heads": 5}"#, "its transformer of texts is 192 wide, which 5 heads do not divide"),
        (r#"{"num_attention_heads": 0}"#, "key `num_attention_heads` must be from 1"),
        (r#"{"hidden_size": 768}"#, "key `hidden_size` is 768, only 192 is supported"),
        (r#"{"hidden_act": "relu"}"#, "key `hidden_act` is \"relu\""),
    ] {
        let message = load(text).unwrap_err().to_string();
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn files_and_inputs_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let message = |change: &dyn Fn(&mut NamedTensors)| {
        let mut weights = weights();
        change(&mut weights);
        write_safetensors(&path, &weights, &[]).unwrap();
        ImageReward::load(&path, Device::Cpu, Kind::Float).unwrap_err().to_string()
    };
    let one = || Tensor::from_slice(&[1.0f32]);
    let put = |name: &'static str| move |weights: &mut NamedTensors| drop(weights.insert(name.to_owned(), one()));
    for (message, wanted) in [
        (message(&|weights| weights.clear()), "tensor `blip.visual_encoder.patch_embed.proj.weight` is missing"),
        (message(&put("blip.visual_encoder.pos_embed")), "tensor `blip.visual_encoder.pos_embed` in"),
        (message(&put("blip.visual_encoder.norm.weight")), "of images is 1 wide, which 0 heads do not divide"),
        (message(&put("blip.text_encoder.pooler.dense.bias")), "the first is `blip.text_encoder.pooler.dense.bias`"),
        (message(&put("mlp.layers.7.weight")), "has shape [1], the configuration implies [1, 16]"),
    ] {
        assert!(message.contains(wanted), "{message}");
    }
    let network = ImageReward::new(&Params::random(1, Device::Cpu).unwrap(), &small()).unwrap();
    let ids = |shape: &[i64], id: i64| Tensor::full(shape, id, (Kind::Int64, Device::Cpu));
    for (pixels, ids, mask, wanted) in [
        (
            pixels().narrow(1, 0, 1),
            ids(&[3, 5], 1),
            ids(&[3, 5], 1),
            "takes pixels [n, 3, 32, 32], found [3, 1, 32, 32]",
        ),
        (pixels().narrow(2, 0, 24), ids(&[3, 5], 1), ids(&[3, 5], 1), "takes images of 32x32 pixels, found 32x24"),
        (pixels(), ids(&[2, 5], 1), ids(&[2, 5], 1), "takes token ids and mask [3, length], found [2, 5] and [2, 5]"),
        (pixels(), ids(&[3, 21], 1), ids(&[3, 21], 1), "found [3, 21] and [3, 21]"),
        (pixels(), ids(&[3, 5], 1), ids(&[3, 4], 1), "found [3, 5] and [3, 4]"),
        (pixels(), ids(&[3, 5], 50), ids(&[3, 5], 1), "knows the token ids below 50, found 50"),
        (pixels(), ids(&[3, 5], -1), ids(&[3, 5], 1), "knows the token ids below 50, found -1"),
    ] {
        let message = network.score(&pixels, &ids, &mask).unwrap_err().to_string();
        assert!(message.starts_with("ImageReward ") && message.contains(wanted), "{message}");
    }
}

#[test]
fn token_ids_match_transformers() {
    let text = std::fs::read_to_string(reference_path("metric_word_piece.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let texts = |key: &str| -> Vec<String> { serde_json::from_value(cases[key].clone()).unwrap() };
    let numbers = |key: &str| -> Vec<Vec<i64>> { serde_json::from_value(cases[key].clone()).unwrap() };
    let (vocab, prompts) = (texts("vocab"), texts("prompts"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vocab.txt");
    std::fs::write(&file, vocab.join("\n") + "\n").unwrap();
    let tokenizer = WordPiece::load(&file, MAX_LENGTH).unwrap();
    assert_eq!(tokenizer.vocab_size(), vocab.len() + 2);
    for ((prompt, ids), mask) in prompts.iter().zip(numbers("ids")).zip(numbers("mask")) {
        assert_eq!(tokenizer.encode(prompt), (ids, mask), "{prompt:?}");
    }
    let (ids, mask) = tokenizer.encode_batch(&prompts);
    assert_eq!((ids.size(), mask.size()), (vec![14, 35], vec![14, 35]));
    assert_eq!(Vec::<i64>::try_from(ids.flatten(0, -1)).unwrap(), numbers("ids").concat());

    std::fs::write(&file, vocab.join("\n").replace("[SEP]", "sep")).unwrap();
    let message = WordPiece::load(&file, MAX_LENGTH).unwrap_err().to_string();
    assert!(message.ends_with("vocab.txt: the vocabulary has no special token `[SEP]`"), "{message}");
    assert!(WordPiece::load(&file, 1).unwrap_err().to_string().contains("length must be at least 2"));
    assert!(WordPiece::load(folder.path(), MAX_LENGTH).is_err());
}
