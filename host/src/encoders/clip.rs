//! CLIP folders as encoders.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ambiguity_models::clip::{Clip, Preprocessor, Tokenizer};
use ambiguity_sdk::{Medium, TokenFeatures};
use image::RgbImage;
use ndarray::Array2;
use tch::{Device, Kind, Tensor, no_grad};

use super::familiar::Familiar;
use super::{Encoder, EncoderError, EncoderInfo, Encoders, Loader, SHIPPED, array};
use crate::context::Context;
use crate::data::prompts::warn_of_truncated;
use crate::zoo::encoder_folder;
use crate::zoo::home::home;

/// A CLIP folder (config.json, model.safetensors, tokenizer, preprocessor), in f32.
pub struct ClipEncoder {
    clip: Clip,
    tokenizer: Tokenizer,
    preprocessor: Preprocessor,
    device: Device,
    info: EncoderInfo,
    familiar: Option<Familiar>,
    /// Whether the log contains the warning that long texts are truncated.
    warned: Cell<bool>,
}

impl ClipEncoder {
    /// Loads a folder.
    pub fn load(folder: &Path, device: Device) -> ambiguity_models::Result<Self> {
        let clip = Clip::load(folder, device, Kind::Float)?;
        let image_size = clip.config.vision_config.image_size;
        let (vision, text) = (&clip.config.vision_config, &clip.config.text_config);
        let patches = vision.image_size / vision.patch_size;
        let features =
            |medium, tokens: i64, width: i64| TokenFeatures { medium, tokens: tokens as usize, width: width as usize };
        let info = EncoderInfo {
            media: vec![Medium::Image, Medium::Text],
            dim: clip.config.projection_dim as usize,
            logit_scale: Some(clip.logit_scale_exp() as f32),
            image_size: Some(image_size as usize),
            token_features: vec![
                features(Medium::Image, 1 + patches * patches, vision.hidden_size),
                features(Medium::Text, text.max_position_embeddings, text.hidden_size),
            ],
            digest: Clip::digest(folder)?,
            properties: vec![],
        };
        let tokenizer = Tokenizer::load(folder)?;
        clip.config.text_config.check_tokenizer(&folder.join("config.json"), &tokenizer)?;
        let preprocessor = Preprocessor::load(folder, image_size)?;
        preprocessor.check_side(folder, image_size as usize)?;
        let familiar = Familiar::read(folder, info.dim)?;
        Ok(Self { clip, tokenizer, preprocessor, device, info, familiar, warned: Cell::new(false) })
    }
}

impl ClipEncoder {
    /// Returns the side of the square input image in pixels.
    fn side(&self) -> usize {
        self.clip.config.vision_config.image_size as usize
    }

    /// Returns images as the network takes them, on its device.
    fn pixels(&self, images: &[Arc<RgbImage>]) -> Result<Tensor, EncoderError> {
        let sizes = images.iter().map(|image| (image.width() as usize, image.height() as usize));
        self.preprocessor.expect_side(sizes, self.side())?;
        let raw = images.iter().map(|image| (&image.as_raw()[..], image.width() as usize, image.height() as usize));
        let pixels = self.preprocessor.pixels(&raw.collect::<Vec<_>>())?;
        Ok(pixels.f_to_device(self.device).map_err(ambiguity_models::Error::from)?)
    }

    /// Returns texts as the network takes them, on its device.
    fn ids(&self, texts: &[String]) -> Result<Tensor, EncoderError> {
        if !self.warned.get() && warn_of_truncated(&self.tokenizer, texts) {
            self.warned.set(true);
        }
        let ids = self.tokenizer.encode_batch(texts);
        Ok(ids.f_to_device(self.device).map_err(ambiguity_models::Error::from)?)
    }
}

/// Returns the matrices of a tensor [n, rows, columns].
fn matrices(tensor: &Tensor) -> Result<Vec<Array2<f32>>, EncoderError> {
    let n = tensor.size()[0];
    Ok((0..n).map(|i| array(&tensor.select(0, i))).collect::<Result<_, _>>()?)
}

impl Encoder for ClipEncoder {
    fn info(&self) -> EncoderInfo {
        self.info.clone()
    }

    fn embed_images(&self, images: &[Arc<RgbImage>]) -> Result<Array2<f32>, EncoderError> {
        let pixels = self.pixels(images)?;
        Ok(array(&no_grad(|| self.clip.embed_images(&pixels)))?)
    }

    fn embed_texts(&self, texts: &[String]) -> Result<Array2<f32>, EncoderError> {
        let ids = self.ids(texts)?;
        Ok(array(&no_grad(|| self.clip.embed_texts(&ids)))?)
    }

    fn image_tokens(&self, images: &[Arc<RgbImage>]) -> Result<Vec<Array2<f32>>, EncoderError> {
        let pixels = self.pixels(images)?;
        matrices(&no_grad(|| self.clip.vision.hidden_states(&pixels)))
    }

    fn text_tokens(&self, texts: &[String]) -> Result<Vec<Array2<f32>>, EncoderError> {
        let ids = self.ids(texts)?;
        matrices(&no_grad(|| self.clip.text.hidden_states(&ids).0))
    }

    fn familiar(&self) -> Option<&Familiar> {
        self.familiar.as_ref()
    }

    fn unknown_words(&self, text: &str) -> Vec<String> {
        let is_word = |letter: char| letter.is_alphanumeric();
        let words = text.split(|letter: char| !is_word(letter)).filter(|word| !word.is_empty());
        // A tokenizer has the words of its training as whole tokens; others become pieces.
        let is_known = |word: &&str| self.tokenizer.id(&format!("{}</w>", word.to_lowercase())).is_some();
        words.filter(|word| !is_known(word)).map(str::to_owned).collect()
    }

    fn embed_tensor(&self, images: &Tensor) -> Result<Tensor, EncoderError> {
        if let [_, _, height, width] = images.size()[..] {
            self.preprocessor.expect_side([(width as usize, height as usize)], self.side())?;
        }
        // The weights are constants, without gradients.
        let images = images.f_to_device(self.device).and_then(|images| images.f_to_kind(Kind::Float));
        let pixels = self.preprocessor.pixels_from_tensor(&images.map_err(ambiguity_models::Error::from)?)?;
        Ok(self.clip.embed_images(&pixels))
    }
}

impl Encoders {
    /// Opens the encoders that plugins may ask for: the shipped ones and the named ones (a folder, or an id on the
    /// Hub).
    ///
    /// # Errors
    /// If a named encoder is neither a folder with a `config.json` nor an id, or cannot be downloaded.
    pub fn open(named: &BTreeMap<String, String>, device: Device, context: &Context) -> anyhow::Result<Self> {
        let mut encoders = Self::shipped(device);
        for (name, path) in named {
            encoders.add_clip(name, &encoder_folder(name, path, context)?, device);
        }
        Ok(encoders)
    }

    /// Returns the shipped encoders that exist, on `device`.
    pub fn shipped(device: Device) -> Self {
        let mut encoders = Self::new();
        let folder = home().map(|home| home.join("models/weights").join(SHIPPED).join("clip"));
        if let Some(folder) = folder.filter(|folder| folder.join("config.json").is_file()) {
            encoders.add_clip(SHIPPED, &folder, device);
        }
        encoders
    }

    /// Adds a CLIP folder for metrics, which is loaded at its first use; no plugin's `clip` means it.
    pub fn add_clip_of_metrics(&mut self, name: &str, folder: &Path, device: Device) {
        let loader: Loader = Arc::new(move |folder| Ok(Box::new(ClipEncoder::load(folder, device)?)));
        self.add_of_metrics(name, folder, loader);
    }

    /// Adds a CLIP folder, which is loaded at its first use.
    pub fn add_clip(&mut self, name: &str, folder: &Path, device: Device) {
        let loader: Loader = Arc::new(move |folder| Ok(Box::new(ClipEncoder::load(folder, device)?)));
        self.add_folder(name, folder, loader);
    }
}
