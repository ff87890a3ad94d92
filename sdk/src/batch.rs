//! What a plugin is given: some samples, asked for one by one.

use crate::error::{Error, Result};
use crate::host::backend;
use crate::matrix::Matrix;

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Interleaved RGB8, row after row from the top; `width * height * 3` bytes.
    pub rgb: Vec<u8>,
}

/// A recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Audio {
    /// Frames per second.
    pub sample_rate: u32,
    /// Number of channels.
    pub channels: usize,
    /// Interleaved samples in [-1, 1].
    pub pcm: Vec<f32>,
}

/// Some samples, numbered from 0. Everything is pulled: what is not asked for is not copied, and a plugin that takes
/// one image at a time needs memory for one.
pub struct Batch<'a>(backend::Batch<'a>);

impl<'a> Batch<'a> {
    #[doc(hidden)]
    pub fn from_backend(batch: backend::Batch<'a>) -> Self {
        Self(batch)
    }

    /// How many samples there are; at least one.
    pub fn len(&self) -> usize {
        self.0.len() as usize
    }

    /// Whether there are none; the host never asks about an empty batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The prompt that sample `i` was generated from; empty where there was none.
    pub fn prompt(&self, i: usize) -> String {
        self.0.prompt(i as u32)
    }

    /// A named fact about sample `i` ("seed", "title", …), if the run carries it.
    pub fn metadata(&self, i: usize, key: &str) -> Option<String> {
        self.0.metadata(i as u32, key)
    }

    /// The image of sample `i`, as generated; an error if the sample is none.
    pub fn image(&self, i: usize) -> Result<Image> {
        self.0.image(i as u32).map_err(Error::new)
    }

    /// The image of sample `i`, stretched by the host's one filter (bicubic with antialiasing).
    pub fn image_resized(&self, i: usize, width: usize, height: usize) -> Result<Image> {
        self.0.image_resized(i as u32, width as u32, height as u32).map_err(Error::new)
    }

    /// The text of sample `i`; an error if the sample is none.
    pub fn text(&self, i: usize) -> Result<String> {
        self.0.text(i as u32).map_err(Error::new)
    }

    /// The recording of sample `i`; an error if the sample is none.
    pub fn audio(&self, i: usize) -> Result<Audio> {
        self.0.audio(i as u32).map_err(Error::new)
    }

    /// `len() × dim`: the images' (in a batch without images: the texts') raw embeddings by an encoder that
    /// [`Classifier::describe`](crate::Classifier::describe) declared. Not normalized. The host computes them once per
    /// batch, however many plugins ask.
    pub fn embedding(&self, encoder: &str) -> Result<Matrix> {
        self.0.embedding(encoder).map_err(Error::new)
    }
}
