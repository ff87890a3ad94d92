//! What is classified: samples, and their embeddings, computed once however many plugins ask.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::RgbImage;
use ndarray::Array2;

use crate::data::audio::Audio;
use crate::encoders::{EncoderError, Encoders};

/// One thing to classify.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The prompt that it was generated from; empty for the null prompt and where there was none.
    pub prompt: String,
    /// Facts by name: "seed", "title", …
    pub metadata: BTreeMap<String, String>,
    /// The image, if it is one.
    pub image: Option<Arc<RgbImage>>,
    /// The text, if it is one.
    pub text: Option<String>,
    /// The recording, if it is one.
    pub audio: Option<Arc<Audio>>,
}

/// Samples that are classified together.
#[derive(Debug, Default)]
pub struct Batch {
    samples: Vec<Sample>,
    embeddings: BTreeMap<String, Arc<Array2<f32>>>,
}

impl Batch {
    /// A batch of samples.
    pub fn new(samples: Vec<Sample>) -> Self {
        Self { samples, embeddings: BTreeMap::new() }
    }

    /// A batch of nothing but embeddings, a row each, by the encoder of that real name (see [`Encoders::resolve`]): what
    /// is left of images that exist as tensors alone.
    pub fn of_embeddings(encoder: &str, embeddings: Array2<f32>) -> Self {
        let samples = vec![Sample::default(); embeddings.nrows()];
        Self { samples, embeddings: BTreeMap::from([(encoder.to_owned(), Arc::new(embeddings))]) }
    }

    /// The samples in order.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The images' (in a batch without images: the texts') raw embeddings, len × dim, by the named encoder.
    /// Computed at the first call.
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
