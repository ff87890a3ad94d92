//! The models of a diffusers `StableDiffusionPipeline` folder: from text to latents and from latents to images.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::clip::{TextConfig, TextTransformer, Tokenizer};
use crate::error::{Error, Result};
use crate::json::JsonObject;
use crate::params::MemoryFormat;
use crate::safetensors::hex;
use crate::scheduler::SchedulerConfig;
use crate::unet::UNet;
use crate::vae::Vae;
use crate::weights::{DIFFUSERS_STEM, TRANSFORMERS_STEM, digest_folder, load_folder};

/// Tokenizer, text encoder, denoiser, autoencoder and noise schedule of one pipeline.
#[derive(Debug)]
pub struct Pipeline {
    /// The tokenizer, from texts to token ids.
    pub tokenizer: Tokenizer,
    /// The text encoder, from token ids to prompt embeddings.
    pub text_encoder: TextTransformer,
    /// The denoiser.
    pub unet: UNet,
    /// The autoencoder.
    pub vae: Vae,
    /// The noise schedule that the UNet was trained with.
    pub scheduler: SchedulerConfig,
    /// What the pipeline reads otherwise than its files say, in sentences.
    pub notes: Vec<String>,
}

/// How the networks of a pipeline are loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadOptions {
    /// The device of all networks.
    pub device: Device,
    /// Type of UNet and text encoder.
    pub kind: Kind,
    /// Type of the VAE; the published ones overflow in f16.
    pub vae_kind: Kind,
    /// Whether the VAE decodes large images in tiles, see [`Vae::set_tiling`].
    pub vae_tiling: bool,
    /// Memory format of the convolutions of UNet and VAE.
    pub format: MemoryFormat,
}

impl LoadOptions {
    /// All networks in f32 on a device, in the contiguous format, without tiles.
    pub fn on(device: Device) -> Self {
        let kind = Kind::Float;
        Self { device, kind, vae_kind: kind, vae_tiling: false, format: MemoryFormat::Contiguous }
    }
}

/// The parts in model_index.json, with their supported classes.
const PARTS: [(&str, &[&str]); 4] = [
    ("text_encoder", &["CLIPTextModel"]),
    ("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"]),
    ("unet", &["UNet2DConditionModel"]),
    ("vae", &["AutoencoderKL"]),
];

impl Pipeline {
    /// Reads a folder in diffusers' layout. Every error names the file and the key or tensor.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self> {
        let LoadOptions { device, kind, vae_kind, vae_tiling, format } = *options;
        check_index(dir)?;
        let path = dir.join("scheduler/scheduler_config.json");
        let mut scheduler = SchedulerConfig::read(&path)?;
        let notes =
            scheduler.for_stable_diffusion().into_iter().map(|note| format!("{}: {note}", path.display())).collect();
        let tokenizer = Tokenizer::load(&dir.join("tokenizer"))?;
        let text_dir = dir.join("text_encoder");
        let text_config = TextConfig::read(&text_dir.join("config.json"))?;
        let params = load_folder(&text_dir, TRANSFORMERS_STEM, device, kind)?;
        let text_encoder = TextTransformer::new(&params, &text_config)?;
        params.finish()?;
        let unet = UNet::load(&dir.join("unet"), device, kind, format)?;
        let mut vae = Vae::load(&dir.join("vae"), device, vae_kind, format)?;
        vae.set_tiling(vae_tiling);
        let pipeline = Self { tokenizer, text_encoder, unet, vae, scheduler, notes };
        pipeline.check_fit(dir, &text_config)?;
        Ok(pipeline)
    }

    /// The digest that identifies the weights of a folder: the sha256, in hex, over its parts' names and digests.
    pub fn digest(dir: &Path) -> Result<String> {
        let mut hash = Sha256::new();
        for (part, stem) in [("unet", DIFFUSERS_STEM), ("vae", DIFFUSERS_STEM), ("text_encoder", TRANSFORMERS_STEM)] {
            hash.update(format!("{part} {}\n", digest_folder(&dir.join(part), stem)?));
        }
        Ok(hex(&hash.finalize()))
    }

    /// Refuses parts that are each valid but do not fit together.
    fn check_fit(&self, dir: &Path, text: &TextConfig) -> Result<()> {
        let (unet, vae) = (self.unet.config(), self.vae.config());
        let pairs = [
            (
                "unet/config.json",
                "cross_attention_dim",
                unet.cross_attention_dim,
                "text_encoder/config.json",
                "hidden_size",
                text.hidden_size,
            ),
            (
                "unet/config.json",
                "in_channels",
                unet.in_channels,
                "vae/config.json",
                "latent_channels",
                vae.latent_channels,
            ),
            (
                "unet/config.json",
                "out_channels",
                unet.out_channels,
                "vae/config.json",
                "latent_channels",
                vae.latent_channels,
            ),
        ];
        for (file, key, value, other_file, other_key, other) in pairs {
            if value != other {
                let message = format!("`{key}` is {value}, but `{other_key}` of {other_file} is {other}");
                return Err(Error::Config { path: dir.join(file), message });
            }
        }
        text.check_tokenizer(&dir.join("text_encoder/config.json"), &self.tokenizer)
    }

    /// Computes the prompt embeddings, [n, length, dim], in the text encoder's type and on its device, without
    /// gradients.
    pub fn encode_prompts(&self, prompts: &[&str]) -> Result<Tensor> {
        if prompts.is_empty() {
            return Err(Error::Input("no prompts to encode".to_owned()));
        }
        let ids = self.tokenizer.encode_batch(prompts);
        Ok(tch::no_grad(|| self.text_encoder.hidden_states(&ids).0))
    }

    /// Returns height and width of the latents of an image of this size in pixels.
    pub fn latent_size(&self, width: i64, height: i64) -> Result<[i64; 2]> {
        let factor = self.vae.config().downscale();
        if width < factor || height < factor || width % factor != 0 || height % factor != 0 {
            return Err(Error::Input(format!("{width}×{height} pixels: this VAE needs multiples of {factor}")));
        }
        Ok([height / factor, width / factor])
    }
}

/// Converts images [n, 3, H, W] in about [-1, 1] to bytes [n, H, W, 3]: round-half-even of 255 · clamp(x / 2 + ½).
pub fn images_u8(images: &Tensor) -> Tensor {
    let unit: Tensor = images.to_kind(Kind::Float) / 2.0 + 0.5;
    (unit.clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8).permute([0, 2, 3, 1]).contiguous()
}

/// Says what a folder without model_index.json is.
fn what_else(dir: &Path) -> String {
    let config = JsonObject::read(&dir.join("config.json")).ok();
    let class = config.and_then(|config| {
        let architecture = config.value("architectures").and_then(|names| names[0].as_str().map(str::to_owned));
        config.text("_class_name").ok().flatten().or(architecture)
    });
    let whole = std::fs::read_dir(dir).into_iter().flatten().flatten().find(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|extension| extension == "safetensors" || extension == "ckpt")
    });
    match (class, whole) {
        (Some(class), _) => format!("it is one part of a model, a {class}; name the folder of the whole pipeline"),
        (None, Some(file)) => format!(
            "{} may be a checkpoint in one file; convert it with diffusers' `StableDiffusionPipeline.from_single_file(FILE)\
             .save_pretrained(DIR)`",
            file.file_name().display()
        ),
        (None, None) => "it is not a diffusers pipeline".to_owned(),
    }
}

/// Checks that a folder is a pipeline whose parts have supported classes, from its model_index.json alone.
pub fn check_index(dir: &Path) -> Result<()> {
    let path = dir.join("model_index.json");
    if !path.is_file() {
        return Err(Error::Input(format!("{} has no model_index.json: {}", dir.display(), what_else(dir))));
    }
    let index = JsonObject::read(&path)?;
    index.only("_class_name", Value::from("StableDiffusionPipeline"))?;
    for (part, classes) in PARTS {
        let entry: Vec<Option<String>> = index.get(part, Vec::new())?;
        match entry.get(1).and_then(Option::as_deref) {
            Some(class) if classes.contains(&class) => {}
            Some(class) => return Err(index.error(part, format!("is a {class}, only {} is supported", classes[0]))),
            None => return Err(index.error(part, format!("is missing, a {} is expected", classes[0]))),
        }
    }
    Ok(())
}
