//! The files of a model: weights, configurations, adapters, tokenizers.

use std::path::Path;

use ambiguity_models::clip::{
    Clip, ClipConfig, PadRule, Preprocessor, TextConfig, TextTransformer, Tokenizer, VisionConfig, VisionTransformer,
};
use ambiguity_models::dino::{Dino, DinoConfig};
use ambiguity_models::lora::LoraFile;
use ambiguity_models::params::{NamedTensors, Params};
use ambiguity_models::published::{PUBLISHED, Published};
use ambiguity_models::safetensors::{digest_safetensors, encode_safetensors, read_safetensors_with_metadata};
use ambiguity_models::scheduler::{Ddim, LastStep, SchedulerConfig};
use ambiguity_models::unet::{UNet, UNetConfig};
use ambiguity_models::vae::{Vae, VaeConfig};
use anyhow::{Context as _, Result};
use tch::{Device, Kind, Tensor};

use crate::put;

/// Encodes a file with these tensors and this metadata.
fn encode(tensors: &[(&str, Tensor)], metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let tensors: NamedTensors =
        tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect();
    Ok(encode_safetensors("seed".as_ref(), &tensors, metadata)?)
}

fn ones(size: &[i64], kind: Kind) -> Tensor {
    Tensor::ones(size, (kind, Device::Cpu))
}

/// Returns small files, together with every type and with an empty, a scalar and a four-dimensional tensor.
pub fn weights(_: &Path) -> Result<Vec<Vec<u8>>> {
    let kinds = [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Int, Kind::Int16];
    let mut seeds = vec![encode(&[], &[("format", "pt")])?];
    for kind in kinds.into_iter().chain([Kind::Int8, Kind::Uint8, Kind::Bool]) {
        seeds.push(encode(&[("a.weight", ones(&[2, 3], kind)), ("a.bias", ones(&[], kind))], &[])?);
    }
    seeds.push(encode(&[("a", ones(&[0, 3], Kind::Float)), ("b", ones(&[1, 2, 1, 1], Kind::Float))], &[])?);
    Ok(seeds)
}

pub fn safetensors(folder: &Path, bytes: &[u8]) -> bool {
    put(folder, "model.safetensors", bytes);
    let file = folder.join("model.safetensors");
    let Ok((tensors, metadata)) = read_safetensors_with_metadata(&file) else { return false };
    let digest = digest_safetensors(&file).expect("it was readable a moment ago");
    // The tensors are written as the same ones, in whatever order the file had them.
    let metadata: Vec<(&str, &str)> = metadata.iter().map(|(key, value)| (&**key, &**value)).collect();
    let written = encode_safetensors(&file, &tensors, &metadata).expect("its own tensors");
    put(folder, "again.safetensors", &written);
    assert_eq!(digest_safetensors(&folder.join("again.safetensors")).expect("its own file"), digest);
    true
}

/// A reader of a configuration: the file's name, and a function of the file's folder and path that reads it, uses what it
/// read, writes it and reads it again.
type ConfigReader = (&'static str, fn(&Path, &Path) -> Option<()>);

/// The readers of configurations by the first byte of an input.
const CONFIG_READERS: [ConfigReader; 8] = [
    ("config.json", unet),
    ("config.json", vae),
    ("config.json", clip),
    ("config.json", text_tower),
    ("config.json", image_tower),
    ("scheduler_config.json", scheduler),
    ("preprocessor_config.json", preprocessor),
    ("config.json", dino),
];

/// Returns the configurations that ship, and those of the published models, each after the number of its reader.
pub fn configs(root: &Path) -> Result<Vec<Vec<u8>>> {
    let shipped = root.join("models/weights/tiny-art");
    let read = |file: &str| std::fs::read(shipped.join(file)).with_context(|| file.to_owned());
    let clip = read("clip/config.json")?;
    let mut seeds = vec![
        (0, read("diffusion/unet/config.json")?),
        (1, read("diffusion/vae/config.json")?),
        (2, clip.clone()),
        (3, read("diffusion/text_encoder/config.json")?),
        (4, clip),
        (5, read("diffusion/scheduler/scheduler_config.json")?),
        (6, read("clip/preprocessor_config.json")?),
        (6, br#"{"image_processor_type": "ViTImageProcessor", "resample": 2, "size": 32}"#.to_vec()),
        (
            7,
            br#"{"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}"#
                .to_vec(),
        ),
        (7, br#"{"model_type": "dinov2", "image_size": 518, "mlp_ratio": 4, "use_swiglu_ffn": true}"#.to_vec()),
    ];
    for (_, published) in PUBLISHED {
        match published {
            Published::Diffusion { unet, vae, text_encoder } => {
                seeds.extend([(0, unet), (1, vae), (3, text_encoder)].map(|(kind, text)| (kind, text.into())));
            }
            Published::Clip(config) => seeds.push((2, config.into())),
        }
    }
    Ok(seeds.into_iter().map(|(kind, text)| [vec![kind], text].concat()).collect())
}

pub fn config(folder: &Path, bytes: &[u8]) -> bool {
    let Some((kind, text)) = bytes.split_first() else { return false };
    let (name, read) = CONFIG_READERS[usize::from(*kind) % CONFIG_READERS.len()];
    put(folder, name, text);
    read(folder, &folder.join(name)).is_some()
}

fn unet(folder: &Path, file: &Path) -> Option<()> {
    let config = UNetConfig::read(file).ok()?;
    UNet::new(&Params::shapes(), &config).expect("a network can be built from every valid configuration");
    config.save(folder).expect("writable");
    assert_eq!(UNetConfig::read(file).expect("its own file"), config);
    Some(())
}

fn vae(folder: &Path, file: &Path) -> Option<()> {
    let config = VaeConfig::read(file).ok()?;
    Vae::new(&Params::shapes(), &config).expect("a network can be built from every valid configuration");
    assert!(config.downscale() >= 1);
    config.save(folder).expect("writable");
    assert_eq!(VaeConfig::read(file).expect("its own file"), config);
    Some(())
}

fn clip(_: &Path, file: &Path) -> Option<()> {
    let config = ClipConfig::read(file).ok()?;
    Clip::new(&Params::shapes(), &config).expect("a network can be built from every valid configuration");
    config.write(file).expect("writable");
    assert_eq!(ClipConfig::read(file).expect("its own file"), config);
    Some(())
}

fn text_tower(_: &Path, file: &Path) -> Option<()> {
    let config = TextConfig::read(file).ok()?;
    TextTransformer::new(&Params::shapes(), &config).expect("a network can be built from every valid configuration");
    config.write(file).expect("writable");
    assert_eq!(TextConfig::read(file).expect("its own file"), config);
    Some(())
}

fn image_tower(_: &Path, file: &Path) -> Option<()> {
    let config = VisionConfig::read(file).ok()?;
    VisionTransformer::new(&Params::shapes(), &config).expect("a network can be built from every valid configuration");
    Some(())
}

fn dino(_: &Path, file: &Path) -> Option<()> {
    let config = DinoConfig::read(file).ok()?;
    Dino::new(&Params::shapes(), &config).expect("a network can be built from every valid configuration");
    Some(())
}

fn scheduler(folder: &Path, file: &Path) -> Option<()> {
    let config = SchedulerConfig::read(file).ok()?;
    for steps in [1, 2, 50] {
        // The schedule may have fewer timesteps.
        let Ok(ddim) = Ddim::new(&config, steps) else { continue };
        let n = config.num_train_timesteps;
        assert!(ddim.timesteps().iter().all(|t| (0..n).contains(t)), "{:?}", ddim.timesteps());
        assert!(ddim.alphas_cumprod().iter().all(|alpha| (0.0..=1.0).contains(alpha)));
        for step in 0..steps {
            let std = ddim.std(step, 1.0, LastStep::Stochastic);
            assert!(std.is_finite() && std >= 0.0, "{std} at step {step} of {steps}");
        }
    }
    config.save(folder).expect("writable");
    assert_eq!(SchedulerConfig::read(file).expect("its own file"), config);
    Some(())
}

fn preprocessor(folder: &Path, _: &Path) -> Option<()> {
    let read = Preprocessor::load(folder, 32).ok()?;
    for (width, height) in [(5, 3), (1, 4)] {
        let image = vec![128; 3 * width * height];
        let pixels = read.pixels(&[(&image, width, height)]).expect("a small image can be resized to every valid size");
        assert_eq!(pixels.size()[..2], [1, 3]);
        assert_eq!(pixels.isfinite().all().int64_value(&[]), 1);
    }
    read.save(folder).expect("writable");
    Preprocessor::load(folder, 32).expect("its own file");
    Some(())
}

/// Name of a layer that the adapters are for.
const LAYER: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";

/// Encodes an adapter of a layer [3, 4] with these names.
fn adapter(a: &str, b: &str, metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    encode(&[(a, ones(&[2, 4], Kind::Float)), (b, ones(&[3, 2], Kind::Float))], metadata)
}

/// Returns an adapter in each known form.
pub fn adapters(_: &Path) -> Result<Vec<Vec<u8>>> {
    let hints = "{\"unet.lora_alpha\": 4, \"unet.r\": 2, \"unet.use_rslora\": true, \
        \"unet.alpha_pattern\": {\"attn1.to_q\": 1.5}}";
    let alpha = ones(&[], Kind::Float);
    let (old, older) = (format!("unet.{LAYER}.lora.down.weight"), LAYER.replace(".to_q", ".processor.to_q_lora"));
    Ok(vec![
        adapter(
            &format!("unet.{LAYER}.lora_A.weight"),
            &format!("unet.{LAYER}.lora_B.weight"),
            &[("format", "pt"), ("lora_adapter_metadata", hints)],
        )?,
        adapter(
            &format!("base_model.model.{LAYER}.lora_A.weight"),
            &format!("base_model.model.{LAYER}.lora_B.weight"),
            &[],
        )?,
        adapter(&format!("{older}.down.weight"), &format!("{older}.up.weight"), &[])?,
        encode(
            &[
                (&old, ones(&[2, 4], Kind::Half)),
                (&old.replace("down", "up"), ones(&[3, 2], Kind::Half)),
                (&format!("unet.{LAYER}.alpha"), alpha),
            ],
            &[],
        )?,
    ])
}

/// Reads an adapter and merges it into a checkpoint of one layer.
fn read_and_merge(path: &Path) -> bool {
    let Ok(mut file) = LoraFile::read(path) else { return false };
    assert!(file.n_parameters() > 0 && file.layers.iter().all(|layer| layer.rank() > 0));
    assert!(file.layers.iter().all(|layer| layer.alpha.is_finite() && layer.scaling.is_finite()));
    let mut weights = NamedTensors::from([(format!("{LAYER}.weight"), ones(&[3, 4], Kind::Float))]);
    if file.merge_into(&mut weights, 1.0).is_ok() {
        assert_eq!(weights.values().next().map(Tensor::size), Some(vec![3, 4]));
    }
    true
}

pub fn lora(folder: &Path, bytes: &[u8]) -> bool {
    put(folder, "pytorch_lora_weights.safetensors", bytes);
    read_and_merge(folder)
}

/// Returns configurations as peft writes them beside an adapter.
pub fn adapter_configs(_: &Path) -> Result<Vec<Vec<u8>>> {
    Ok(vec![
        b"{\"lora_alpha\": 4, \"r\": 2, \"use_rslora\": true, \"rank_pattern\": {}, \
            \"alpha_pattern\": {\"^attn1.to_q\": 1.5, \"to_k\": 2}, \"target_modules\": [\"to_q\"]}"
            .to_vec(),
        b"{}".to_vec(),
    ])
}

pub fn adapter_config(folder: &Path, bytes: &[u8]) -> bool {
    let weights = folder.join("adapter_model.safetensors");
    if !weights.exists() {
        let names = ["A", "B"].map(|part| format!("base_model.model.{LAYER}.lora_{part}.weight"));
        put(folder, "adapter_model.safetensors", &adapter(&names[0], &names[1], &[]).expect("small tensors"));
    }
    put(folder, "adapter_config.json", bytes);
    read_and_merge(folder)
}

/// The files of a tokenizer's folder. An input contains them in this order, separated by zero bytes; empty files are left
/// out.
const TOKENIZER_FILES: [&str; 6] =
    ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"];

pub fn tokenizers(_: &Path) -> Result<Vec<Vec<u8>>> {
    let tokens =
        ["!", "a", "b", "c", "!</w>", "a</w>", "b</w>", "c</w>", "ab", "abc</w>", "<|startoftext|>", "<|endoftext|>"];
    let vocab = tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id));
    let merges = [("a", "b"), ("ab", "c</w>")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    let tokenizer = Tokenizer::from_vocab(vocab, &merges, 8, PadRule::Token("!".to_owned()))?;
    let folder = tempfile::tempdir()?;
    tokenizer.save(folder.path())?;
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name));
    let (vocab, merges, whole, config) =
        (read("vocab.json")?, read("merges.txt")?, read("tokenizer.json")?, read("tokenizer_config.json")?);
    let map = r#"{"pad_token": {"content": "!"}}"#;
    let model = r#"{"text_config": {"max_position_embeddings": 9}}"#;
    Ok(vec![
        format!("{vocab}\0{merges}\0\0{config}").into_bytes(),
        format!("\0\0{whole}\0{config}").into_bytes(),
        format!("{vocab}\0{merges}\0\0\0{map}\0{model}").into_bytes(),
    ])
}

pub fn tokenizer(folder: &Path, bytes: &[u8]) -> bool {
    let mut texts = bytes.split(|byte| *byte == 0);
    for name in TOKENIZER_FILES {
        match texts.next() {
            Some(text) if !text.is_empty() => put(folder, name, text),
            _ => drop(std::fs::remove_file(folder.join(name))),
        }
    }
    let Ok(tokenizer) = Tokenizer::load(folder) else { return false };
    let text = "abc Cab! \u{e9}\u{1f3a8} <|endoftext|> it's";
    let ids = tokenizer.encode(text);
    assert_eq!(ids.len(), tokenizer.max_length());
    tokenizer.save(folder).expect("writable");
    assert_eq!(Tokenizer::load(folder).expect("its own files").encode(text), ids);
    true
}
