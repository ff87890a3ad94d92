//! The networks of the paper's metrics. Each is loaded when its first image comes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_models::aesthetic::AestheticPredictor;
use ambiguity_models::clip::Tokenizer;
use ambiguity_models::image_reward::{ImageReward, MAX_LENGTH, WordPiece};
use ambiguity_models::preference::{Hps, PickScore};
use anyhow::{Context as _, Result, ensure};
use image::RgbImage;
use ndarray::ArrayView2;
use tch::{Device, Kind, Tensor, no_grad};

use super::evaluator::Network;
use crate::data::prompts::warn_of_truncated;
use crate::encoders::Encoders;
use crate::plugin::Batch;

/// The width of the embeddings of CLIP ViT-L/14.
const CLIP_L_WIDTH: usize = 768;

/// The aesthetic predictor of LAION, on the embeddings of CLIP ViT-L/14.
pub struct Aesthetic {
    path: PathBuf,
    encoder: String,
    device: Device,
    predictor: Option<AestheticPredictor>,
}

impl Aesthetic {
    /// Returns the predictor of a weight file or its folder, which reads the embeddings of `encoder`.
    pub fn new(path: &Path, encoder: &str, device: Device) -> Self {
        Self { path: path.to_owned(), encoder: encoder.to_owned(), device, predictor: None }
    }

    /// Returns the scores of raw embeddings, n × 768.
    ///
    /// # Errors
    /// If the weights cannot be read, or the embeddings have another width.
    pub fn of_embeddings(&mut self, embeddings: ArrayView2<'_, f32>) -> Result<Vec<f64>> {
        let (n, width) = embeddings.dim();
        ensure!(
            width == CLIP_L_WIDTH,
            "the aesthetic predictor reads embeddings of CLIP ViT-L/14, which have {CLIP_L_WIDTH} numbers; these have {width}"
        );
        let predictor = match &mut self.predictor {
            Some(predictor) => predictor,
            none => none.insert(AestheticPredictor::load(&self.path, self.device)?),
        };
        let flat: Vec<f32> = embeddings.iter().copied().collect();
        let rows = Tensor::from_slice(&flat).f_view([n as i64, width as i64])?;
        numbers(&no_grad(|| predictor.score(&rows))?)
    }
}

impl Network for Aesthetic {
    fn score(&mut self, batch: &mut Batch, encoders: &mut Encoders) -> Result<Vec<f64>> {
        let embeddings = batch.embedding(&self.encoder, encoders)?;
        self.of_embeddings(embeddings.view())
    }
}

/// ImageReward v1.0, with BERT's vocabulary.
pub struct ImageRewardNetwork {
    weights: PathBuf,
    vocabulary: PathBuf,
    device: Device,
    loaded: Option<(ImageReward, WordPiece)>,
}

impl ImageRewardNetwork {
    /// Returns the network of a weight file and BERT's vocab.txt.
    pub fn new(weights: &Path, vocabulary: &Path, device: Device) -> Self {
        Self { weights: weights.to_owned(), vocabulary: vocabulary.to_owned(), device, loaded: None }
    }
}

impl Network for ImageRewardNetwork {
    fn score(&mut self, batch: &mut Batch, _: &mut Encoders) -> Result<Vec<f64>> {
        if self.loaded.is_none() {
            let network = ImageReward::load(&self.weights, self.device, Kind::Float)?;
            self.loaded = Some((network, WordPiece::load(&self.vocabulary, MAX_LENGTH)?));
        }
        let (network, tokenizer) = self.loaded.as_ref().context("it was loaded just now")?;
        let (ids, mask) = tokenizer.encode_batch(&prompts(batch));
        let pixels = network.preprocessor().pixels(&raw(&images(batch)?))?;
        let [pixels, ids, mask] = [pixels, ids, mask].map(|tensor| tensor.f_to_device(self.device));
        let (pixels, ids, mask) = (pixels?, ids?, mask?);
        numbers(&no_grad(|| network.score(&pixels, &ids, &mask))?)
    }
}

/// A CLIP that scores human preference by image and prompt, with CLIP's vocabulary.
pub struct PreferenceNetwork {
    kind: Preference,
    weights: PathBuf,
    vocabulary: PathBuf,
    device: Device,
    loaded: Option<(LoadedPreference, Tokenizer)>,
}

enum Preference {
    PickScore,
    Hps,
}

enum LoadedPreference {
    PickScore(PickScore),
    Hps(Hps),
}

impl PreferenceNetwork {
    /// Returns PickScore's network of a CLIP folder.
    pub fn pick_score(folder: &Path, device: Device) -> Self {
        Self::new(Preference::PickScore, folder, folder, device)
    }

    /// Returns HPS v2.1's network of a weight file, and of the folder with CLIP's vocab.json and merges.txt.
    pub fn hps(weights: &Path, vocabulary: &Path, device: Device) -> Self {
        Self::new(Preference::Hps, weights, vocabulary, device)
    }

    fn new(kind: Preference, weights: &Path, vocabulary: &Path, device: Device) -> Self {
        Self { kind, weights: weights.to_owned(), vocabulary: vocabulary.to_owned(), device, loaded: None }
    }
}

impl Network for PreferenceNetwork {
    fn score(&mut self, batch: &mut Batch, _: &mut Encoders) -> Result<Vec<f64>> {
        if self.loaded.is_none() {
            let (weights, device) = (&self.weights, self.device);
            let network = match self.kind {
                Preference::PickScore => LoadedPreference::PickScore(PickScore::load(weights, device, Kind::Float)?),
                Preference::Hps => LoadedPreference::Hps(Hps::load(weights, device, Kind::Float)?),
            };
            self.loaded = Some((network, Tokenizer::load(&self.vocabulary)?));
        }
        let (network, tokenizer) = self.loaded.as_ref().context("it was loaded just now")?;
        let prompts = prompts(batch);
        warn_of_truncated(tokenizer, &prompts);
        let ids = tokenizer.encode_batch(&prompts).f_to_device(self.device)?;
        let images = images(batch)?;
        let pixels = match network {
            LoadedPreference::PickScore(network) => network.preprocessor().pixels(&raw(&images))?,
            LoadedPreference::Hps(network) => network.pixels(&raw(&images))?,
        };
        let pixels = pixels.f_to_device(self.device)?;
        let scores = no_grad(|| match network {
            LoadedPreference::PickScore(network) => network.score(&pixels, &ids),
            LoadedPreference::Hps(network) => network.score(&pixels, &ids),
        });
        numbers(&scores?)
    }
}

fn prompts(batch: &Batch) -> Vec<String> {
    batch.samples().iter().map(|sample| sample.prompt.clone()).collect()
}

fn images(batch: &Batch) -> Result<Vec<Arc<RgbImage>>> {
    let images: Option<Vec<_>> = batch.samples().iter().map(|sample| sample.image.clone()).collect();
    images.context("a sample has no image")
}

/// Returns images as bytes, width and height.
fn raw(images: &[Arc<RgbImage>]) -> Vec<(&[u8], usize, usize)> {
    images.iter().map(|image| (&image.as_raw()[..], image.width() as usize, image.height() as usize)).collect()
}

fn numbers(scores: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::<f64>::try_from(&scores.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)?)
}
