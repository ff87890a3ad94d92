//! Batches of samples, with their embeddings, which are computed once however many plugins use them.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::RgbImage;
use ndarray::Array2;

use crate::data::array::Array;
use crate::data::audio::Audio;
use crate::data::video::Video;
use crate::encoders::{EncoderError, Encoders, IMAGES_PER_CALL};

/// One sample, which is of one medium.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The prompt that it was generated from; empty for the null prompt and for a sample without a prompt.
    pub prompt: String,
    /// Metadata by name: "seed", "title", …
    pub metadata: BTreeMap<String, String>,
    /// The image, if the sample is one.
    pub image: Option<Arc<RgbImage>>,
    /// The text, if the sample is one.
    pub text: Option<String>,
    /// The recording, if the sample is one.
    pub audio: Option<Arc<Audio>>,
    /// The video, if the sample is one.
    pub video: Option<Arc<Video>>,
    /// The array, if the sample is one.
    pub array: Option<Arc<Array>>,
}

/// Samples that a plugin gets in one call.
#[derive(Debug, Default)]
pub struct Batch {
    samples: Vec<Sample>,
    embeddings: BTreeMap<String, Arc<Array2<f32>>>,
    /// The last token features that were computed.
    tokens: Option<Tokens>,
}

/// The token features of some samples of a batch.
#[derive(Debug)]
struct Tokens {
    encoder: String,
    /// Index of the first sample.
    first: usize,
    features: Vec<Array2<f32>>,
}

impl Batch {
    /// Returns a batch of these samples.
    pub fn new(samples: Vec<Sample>) -> Self {
        Self { samples, embeddings: BTreeMap::new(), tokens: None }
    }

    /// Returns a batch that has only embeddings, one row per sample, by the encoder with this resolved name (see
    /// [`Encoders::resolve`]): for images that exist only as tensors.
    pub fn of_embeddings(encoder: &str, embeddings: Array2<f32>) -> Self {
        let samples = vec![Sample::default(); embeddings.nrows()];
        Self { embeddings: BTreeMap::from([(encoder.to_owned(), Arc::new(embeddings))]), ..Self::new(samples) }
    }

    /// Returns the samples in order.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Returns whether the batch has no samples.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Returns the raw embeddings, len × dim, of the samples by the named encoder: of their images, or of their texts. They
    /// are computed at the first call.
    pub fn embedding(&mut self, encoder: &str, encoders: &mut Encoders) -> Result<Arc<Array2<f32>>, EncoderError> {
        let name = encoders.resolve(encoder)?;
        if let Some(embeddings) = self.embeddings.get(&name) {
            return Ok(Arc::clone(embeddings));
        }
        let n_images = self.samples.iter().filter(|sample| sample.image.is_some()).count();
        let embeddings = if n_images > 0 {
            let images: Option<Vec<_>> = self.samples.iter().map(|sample| sample.image.clone()).collect();
            encoders.embed_images(&name, &images.ok_or_else(|| self.mixed("image", |s| s.image.is_none()))?)?
        } else {
            let texts: Option<Vec<_>> = self.samples.iter().map(|sample| sample.text.clone()).collect();
            encoders.embed_texts(&name, &texts.ok_or_else(|| self.mixed("text", |s| s.text.is_none()))?)?
        };
        let embeddings = Arc::new(embeddings);
        self.embeddings.insert(name, Arc::clone(&embeddings));
        Ok(embeddings)
    }

    /// Returns the raw embeddings, len × dim, of the samples' prompts by the named encoder, which caches them.
    pub fn prompt_embedding(&self, encoder: &str, encoders: &mut Encoders) -> Result<Array2<f32>, EncoderError> {
        let prompts: Vec<String> = self.samples.iter().map(|sample| sample.prompt.clone()).collect();
        encoders.embed_texts(encoder, &prompts)
    }

    /// Returns the features of the tokens of sample `i`, tokens × width, by the named encoder. They are computed for
    /// several samples at once, of which the last are kept.
    ///
    /// # Panics
    /// If there is no sample `i`.
    pub fn token_features(
        &mut self,
        encoder: &str,
        i: usize,
        encoders: &mut Encoders,
    ) -> Result<&Array2<f32>, EncoderError> {
        let name = encoders.resolve(encoder)?;
        let first = i / IMAGES_PER_CALL * IMAGES_PER_CALL;
        if !self.tokens.as_ref().is_some_and(|tokens| tokens.encoder == name && tokens.first == first) {
            let samples = &self.samples[first..self.samples.len().min(first + IMAGES_PER_CALL)];
            let encoder = encoders.get(&name)?;
            let features = if samples[0].image.is_some() {
                let images: Option<Vec<_>> = samples.iter().map(|sample| sample.image.clone()).collect();
                encoder.image_tokens(&images.ok_or_else(|| self.mixed("image", |s| s.image.is_none()))?)?
            } else {
                let texts: Option<Vec<_>> = samples.iter().map(|sample| sample.text.clone()).collect();
                encoder.text_tokens(&texts.ok_or_else(|| self.mixed("text", |s| s.text.is_none()))?)?
            };
            self.tokens = Some(Tokens { encoder: name, first, features });
        }
        let tokens = self.tokens.as_ref().expect("they are those of the samples around `i`");
        Ok(&tokens.features[i - first])
    }

    fn mixed(&self, medium: &'static str, lacks: impl Fn(&Sample) -> bool) -> EncoderError {
        EncoderError::Medium { sample: self.samples.iter().position(lacks).unwrap_or(0), medium }
    }
}
