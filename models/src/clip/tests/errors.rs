use serde_json::json;
use tch::{Kind, Tensor};

use super::{Checkpoint, device};
use crate::clip::{Clip, ClipConfig, PadRule, Tokenizer};
use crate::params::NamedTensors;
use crate::safetensors::{read_safetensors, write_safetensors};

fn message_after(change: impl FnOnce(&mut NamedTensors)) -> String {
    let checkpoint = Checkpoint::read("clip_quick.safetensors");
    let file = checkpoint.dir().join("model.safetensors");
    let mut tensors = read_safetensors(&file).unwrap();
    change(&mut tensors);
    write_safetensors(&file, &tensors, &[]).unwrap();
    let message = Clip::load(checkpoint.dir(), device(), Kind::Float).unwrap_err().to_string();
    assert!(message.contains(&file.display().to_string()), "no file in: {message}");
    message
}

#[test]
fn missing_unknown_and_misshapen_tensors_are_named() {
    let name = "vision_model.encoder.layers.1.mlp.fc2.bias";
    let message = message_after(|tensors| drop(tensors.remove(name)));
    assert!(message.starts_with(&format!("tensor `{name}` is missing from ")), "{message}");

    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device()));
    let message = message_after(|tensors| drop(tensors.insert(name.to_owned(), zeros(&[31]))));
    assert!(message.contains(name) && message.contains("[31]") && message.contains("[32]"), "{message}");

    let more = "vision_model.encoder.layers.2.mlp.fc2.bias";
    let message = message_after(|tensors| drop(tensors.insert(more.to_owned(), zeros(&[32]))));
    assert!(message.contains("1 tensor(s)") && message.contains(more), "{message}");
}

#[test]
fn broken_configurations_name_file_and_key() {
    let cases = [
        ("text_config.hidden_act", json!("swish"), "key `text_config.hidden_act` is `swish`"),
        ("vision_config.hidden_size", json!("wide"), "key `vision_config.hidden_size` must be a whole number"),
        (
            "vision_config.num_hidden_layers",
            json!(0),
            "key `vision_config.num_hidden_layers` must be from 1 to 128, found 0",
        ),
        ("vision_config.patch_size", json!(64), "key `vision_config.patch_size` is 64, more than image_size 32"),
        ("text_config.num_attention_heads", json!(5), "does not divide hidden_size 32"),
        ("model_type", json!("blip"), "key `model_type` is `blip`"),
        ("vision_config.image_size", json!(1i64 << 40), "key `vision_config.image_size` must be from 1 to 2048"),
        ("text_config.layer_norm_eps", json!(-1), "key `text_config.layer_norm_eps` must be from 0 to 1, found -1"),
        ("text_config", json!([1]), "key `text_config` must be an object, found a list"),
    ];
    for (key, value, wanted) in cases {
        let checkpoint = Checkpoint::read("clip_quick.safetensors");
        checkpoint.set_config(key, value);
        let message = Clip::load(checkpoint.dir(), device(), Kind::Float).unwrap_err().to_string();
        assert!(message.contains("config.json: ") && message.contains(wanted), "{message}");
    }
}

#[test]
fn a_tokenizer_with_higher_ids_or_longer_texts_is_refused() {
    let checkpoint = Checkpoint::read("clip_quick.safetensors");
    let config = ClipConfig::read(&checkpoint.dir().join("config.json")).unwrap().text_config;
    let check = |highest: i64, length: i64| {
        let ids = [("<|startoftext|>", 0), ("<|endoftext|>", highest as u32)].map(|(token, id)| (token.to_owned(), id));
        let tokenizer = Tokenizer::from_vocab(ids, &[], length as usize, PadRule::EndOfText).unwrap();
        config.check_tokenizer("config.json".as_ref(), &tokenizer).map_err(|error| error.to_string())
    };
    let (n, length) = (config.vocab_size, config.max_position_embeddings);
    assert_eq!(check(n - 1, length), Ok(()));
    let message = format!("config.json: `vocab_size` is {n}, but the tokenizer's vocabulary is {}", n + 1);
    assert_eq!(check(n, length), Err(message));
    assert!(check(n - 1, length + 1).unwrap_err().contains("`max_position_embeddings` is"));
}

#[test]
fn absent_files_are_named() {
    let checkpoint = Checkpoint::read("clip_quick.safetensors");
    let message = |name: &str| {
        std::fs::remove_file(checkpoint.dir().join(name)).unwrap();
        Clip::load(checkpoint.dir(), device(), Kind::Float).unwrap_err().to_string()
    };
    assert!(message("model.safetensors").ends_with(" has no model.safetensors"));
    assert!(message("config.json").contains("config.json: "));
}
