//! Batches of samples to classify, with their embeddings, which are computed once however many plugins use them.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::RgbImage;
use ndarray::Array2;

use crate::data::audio::Audio;
use crate::encoders::{EncoderError, Encoders};

/// One sample to classify.
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
}

/// Samples that are classified together.
#[derive(Debug, Default)]
pub struct Batch {
    samples: Vec<Sample>,
    embeddings: BTreeMap<String, Arc<Array2<f32>>>,
}

impl Batch {
    /// Returns a batch of these samples.
    pub fn new(samples: Vec<Sample>) -> Self {
        Self { samples, embeddings: BTreeMap::new() }
    }

    /// Returns a batch that has only embeddings, one row per sample, by the encoder with this resolved name (see
    /// [`Encoders::resolve`]): for images that exist only as tensors.
    pub fn of_embeddings(encoder: &str, embeddings: Array2<f32>) -> Self {
        let samples = vec![Sample::default(); embeddings.nrows()];
        Self { samples, embeddings: BTreeMap::from([(encoder.to_owned(), Arc::new(embeddings))]) }
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

    /// Returns the raw embeddings, len × dim, of the images (in a batch without images: of the texts) by the named
    /// encoder. They are computed at the first call.
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

    fn mixed(&self, medium: &'static str, lacks: impl Fn(&Sample) -> bool) -> EncoderError {
        EncoderError::Medium { sample: self.samples.iter().position(lacks).unwrap_or(0), medium }
    }
}
