//! Model folders whose configurations contain odd values beside honest weights: what is accepted can be run.

use std::path::Path;
use std::sync::Arc;

use ambiguity_host::encoders::Encoders;
use ambiguity_models::pipeline::{LoadOptions, Pipeline, images_u8};
use ambiguity_models::scheduler::{Ddim, LastStep};
use anyhow::{Context as _, Result};
use image::RgbImage;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::put;

/// The shipped configurations that are changed, those of the pipeline first.
const CONFIGS: [&str; 9] = [
    "diffusion/model_index.json",
    "diffusion/scheduler/scheduler_config.json",
    "diffusion/text_encoder/config.json",
    "diffusion/tokenizer/tokenizer_config.json",
    "diffusion/unet/config.json",
    "diffusion/vae/config.json",
    "clip/config.json",
    "clip/preprocessor_config.json",
    "clip/tokenizer_config.json",
];
/// Number of configurations of the pipeline.
const N_PIPELINE: usize = 6;
/// The other files of the two folders.
const OTHERS: [&str; 10] = [
    "diffusion/text_encoder/model.safetensors",
    "diffusion/tokenizer/vocab.json",
    "diffusion/tokenizer/merges.txt",
    "diffusion/tokenizer/tokenizer.json",
    "diffusion/unet/diffusion_pytorch_model.safetensors",
    "diffusion/vae/diffusion_pytorch_model.safetensors",
    "clip/model.safetensors",
    "clip/vocab.json",
    "clip/merges.txt",
    "clip/tokenizer.json",
];
/// Number of bytes of one change: the value's place (two bytes), and what it becomes.
const CHANGE: usize = 3;
/// Side of the latents in a run.
const SIDE: i64 = 16;

/// Returns what a value becomes.
fn odd(value: &Value, choice: u8) -> Value {
    let number = value.as_f64().unwrap_or(2.0);
    let whole = number as i64;
    let choices = [
        json!(0),
        json!(-1),
        json!(1),
        json!(whole.saturating_add(1)),
        json!(whole / 2),
        json!(whole.saturating_mul(2)),
        json!(1 << 20),
        json!(1i64 << 31),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(-0.0),
        json!(1e-300),
        json!(number * 1.5),
        json!(1e300),
        Value::Null,
        json!(true),
        json!("NaN"),
        json!([]),
        json!([value, value]),
        json!({}),
    ];
    choices[usize::from(choice) % choices.len()].clone()
}

/// Adds the places of all values inside `value`, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(list) => list.iter().enumerate().map(|(i, value)| (i.to_string(), value)).collect(),
        _ => vec![],
    };
    for (key, value) in children {
        let place = format!("{at}/{key}");
        places(value, &place, found);
        found.push(place);
    }
}

fn shipped(root: &Path, name: &str) -> Result<Value> {
    let path = root.join("models/weights/tiny-art").join(name);
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&text)?)
}

/// Returns inputs that change nothing, and one for each value of each configuration.
pub fn changes(root: &Path) -> Result<Vec<Vec<u8>>> {
    let mut seeds = vec![];
    for (kind, name) in (0u8..).zip(CONFIGS) {
        seeds.push(vec![kind]);
        let mut found = vec![];
        places(&shipped(root, name)?, "", &mut found);
        seeds.extend((0..found.len() as u16).map(|i| {
            let [low, high] = i.to_le_bytes();
            vec![kind, low, high, low.wrapping_mul(7).wrapping_add(kind)]
        }));
    }
    Ok(seeds)
}

pub fn model(folder: &Path, bytes: &[u8]) -> bool {
    let Some((kind, changes)) = bytes.split_first() else { return false };
    if !changes.len().is_multiple_of(CHANGE) {
        return false;
    }
    let root = crate::root();
    if !folder.join("clip").exists() {
        lay_out(root, folder);
    }
    let kind = usize::from(*kind) % CONFIGS.len();
    let name = CONFIGS[kind];
    let original = shipped(root, name).expect("it ships");
    let mut config = original.clone();
    for change in changes.chunks_exact(CHANGE) {
        let mut found = vec![];
        places(&config, "", &mut found);
        let place = usize::from(u16::from_le_bytes([change[0], change[1]]));
        if let Some(value) = found.get(place % found.len().max(1)).and_then(|place| config.pointer_mut(place)) {
            *value = odd(value, change[2]);
        }
    }
    put(folder, name, config.to_string().as_bytes());
    let is_read = if kind < N_PIPELINE { run_pipeline(folder) } else { run_encoder(folder) };
    put(folder, name, original.to_string().as_bytes());
    is_read
}

/// Fills a folder with the shipped model: configurations are copied, all else is linked.
fn lay_out(root: &Path, folder: &Path) {
    for part in ["clip", "diffusion/scheduler", "diffusion/text_encoder", "diffusion/tokenizer", "diffusion/unet"] {
        std::fs::create_dir_all(folder.join(part)).expect("a new folder");
    }
    std::fs::create_dir_all(folder.join("diffusion/vae")).expect("a new folder");
    let shipped = root.join("models/weights/tiny-art");
    for name in CONFIGS {
        std::fs::copy(shipped.join(name), folder.join(name)).expect("a new file");
    }
    for name in OTHERS {
        std::os::unix::fs::symlink(shipped.join(name), folder.join(name)).expect("a new link");
    }
}

/// Generates a small image in two steps.
fn run_pipeline(folder: &Path) -> bool {
    let cpu = Device::Cpu;
    let read = Pipeline::load(&folder.join("diffusion"), &LoadOptions::on(cpu));
    let Ok(pipeline) = read else { return false };
    let Ok(ddim) = Ddim::new(&pipeline.scheduler, 2) else { return false };
    let text = pipeline.encode_prompts(&["painting of a man"]).expect("a prompt");
    let channels = pipeline.unet.config().in_channels;
    let images = tch::no_grad(|| {
        let mut latents = Tensor::ones([1, channels, SIDE, SIDE], (Kind::Float, cpu));
        for (step, &timestep) in ddim.timesteps().iter().enumerate() {
            let noise = pipeline.unet.forward(&latents, &Tensor::from_slice(&[timestep]), &text);
            latents = ddim.step(&noise, step, &latents, 0.0, None, LastStep::FinalAlpha).prev_sample;
        }
        images_u8(&pipeline.vae.decode_latents(&latents, 1))
    });
    assert_eq!(images.size()[3], 3);
    true
}

/// Embeds an image and a text.
fn run_encoder(folder: &Path) -> bool {
    let mut encoders = Encoders::new();
    encoders.add_clip("clip", &folder.join("clip"), Device::Cpu);
    if encoders.get("clip").is_err() {
        return false;
    }
    let image = Arc::new(RgbImage::from_pixel(40, 40, image::Rgb([90, 120, 200])));
    let rows = encoders.embed_images("clip", &[image]).expect("a square image");
    let texts = encoders.embed_texts("clip", &["painting of a man".to_owned()]).expect("a text");
    assert_eq!(rows.shape(), texts.shape());
    true
}
