//! Networks that embed images alone: DINO and CSD.

use std::path::Path;
use std::sync::Arc;

use ambiguity_models::csd::Csd;
use ambiguity_models::dino::Dino;
use ambiguity_models::preprocess::Preprocessor;
use ambiguity_models::weights::digest_weights;
use ambiguity_sdk::Medium;
use image::RgbImage;
use ndarray::Array2;
use tch::{Device, Kind, Tensor, no_grad};

use super::{Encoder, EncoderError, EncoderInfo, Encoders, Loader, array};

/// A network that embeds images alone, in f32.
pub struct VisionEncoder {
    network: Network,
    preprocessor: Preprocessor,
    device: Device,
    info: EncoderInfo,
}

enum Network {
    Dino(Dino),
    Csd(Csd),
}

impl VisionEncoder {
    /// Loads a folder of DINO or DINOv2 (config.json, preprocessor_config.json and weights).
    pub fn dino(folder: &Path, device: Device) -> ambiguity_models::Result<Self> {
        let network = Dino::load(folder, device, Kind::Float)?;
        let info = EncoderInfo {
            media: vec![Medium::Image],
            dim: network.config.hidden_size as usize,
            image_size: None,
            digest: digest_weights(folder)?,
            ..EncoderInfo::default()
        };
        Ok(Self { network: Network::Dino(network), preprocessor: Dino::preprocessor(folder)?, device, info })
    }

    /// Loads CSD's weights: a file, or the folder of one.
    pub fn csd(path: &Path, device: Device) -> ambiguity_models::Result<Self> {
        let network = Csd::load(path, device, Kind::Float)?;
        let info = EncoderInfo {
            media: vec![Medium::Image],
            dim: network.config.projection_dim as usize,
            image_size: Some(network.config.image_size as usize),
            digest: digest_weights(path)?,
            ..EncoderInfo::default()
        };
        Ok(Self { preprocessor: network.preprocessor(), network: Network::Csd(network), device, info })
    }
}

impl Encoder for VisionEncoder {
    fn info(&self) -> EncoderInfo {
        self.info.clone()
    }

    fn embed_images(&self, images: &[Arc<RgbImage>]) -> Result<Array2<f32>, EncoderError> {
        let raw = images.iter().map(|image| (&image.as_raw()[..], image.width() as usize, image.height() as usize));
        let pixels = self.preprocessor.pixels(&raw.collect::<Vec<_>>())?;
        let pixels: Tensor = pixels.f_to_device(self.device).map_err(ambiguity_models::Error::from)?;
        let embedded = no_grad(|| match &self.network {
            Network::Dino(dino) => dino.embed(&pixels),
            Network::Csd(csd) => csd.embed(&pixels),
        });
        Ok(array(&embedded?)?)
    }

    fn embed_texts(&self, _texts: &[String]) -> Result<Array2<f32>, EncoderError> {
        Err(EncoderError::NoTexts)
    }
}

impl Encoders {
    /// Adds a folder of DINO or DINOv2 for metrics, which is loaded at its first use; no plugin's `clip` means it.
    pub fn add_dino(&mut self, name: &str, folder: &Path, device: Device) {
        let loader: Loader = Arc::new(move |folder| Ok(Box::new(VisionEncoder::dino(folder, device)?)));
        self.add_of_metrics(name, folder, loader);
    }

    /// Adds CSD's weights for metrics, which are loaded at their first use; no plugin's `clip` means them.
    pub fn add_csd(&mut self, name: &str, path: &Path, device: Device) {
        let loader: Loader = Arc::new(move |path| Ok(Box::new(VisionEncoder::csd(path, device)?)));
        self.add_of_metrics(name, path, loader);
    }
}
