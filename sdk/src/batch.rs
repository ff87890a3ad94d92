//! A plugin's input: a batch of samples, requested one by one.

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

/// A batch of samples, numbered from 0. Only what is requested is copied, so a plugin that processes one image at a
/// time needs memory for one.
pub struct Batch<'a>(backend::Batch<'a>);

impl<'a> Batch<'a> {
    #[doc(hidden)]
    pub fn from_backend(batch: backend::Batch<'a>) -> Self {
        Self(batch)
    }

    /// Returns the number of samples; at least one.
    pub fn len(&self) -> usize {
        self.0.len() as usize
    }

    /// Returns whether the batch is empty; the host never passes an empty batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the prompt that sample `i` was generated from; empty if there was none.
    pub fn prompt(&self, i: usize) -> String {
        self.0.prompt(i as u32)
    }

    /// Returns a metadata value of sample `i` ("seed", "title", …), if the run provides it.
    pub fn metadata(&self, i: usize, key: &str) -> Option<String> {
        self.0.metadata(i as u32, key)
    }

    /// Returns the image of sample `i`, as generated; an error if the sample is not an image.
    pub fn image(&self, i: usize) -> Result<Image> {
        self.0.image(i as u32).map_err(Error::new)
    }

    /// Returns the image of sample `i`, resized by the host's one filter (bicubic with antialiasing).
    pub fn image_resized(&self, i: usize, width: usize, height: usize) -> Result<Image> {
        self.0.image_resized(i as u32, width as u32, height as u32).map_err(Error::new)
    }

    /// Returns the text of sample `i`; an error if the sample is not a text.
    pub fn text(&self, i: usize) -> Result<String> {
        self.0.text(i as u32).map_err(Error::new)
    }

    /// Returns the recording of sample `i`; an error if the sample is not a recording.
    pub fn audio(&self, i: usize) -> Result<Audio> {
        self.0.audio(i as u32).map_err(Error::new)
    }

    /// Returns the raw embeddings, `len() × dim`, of the images (in a batch without images: the texts) by an encoder
    /// that [`Classifier::describe`](crate::Classifier::describe) declared. Not normalized. The host computes them once
    /// per batch, however many plugins use them.
    pub fn embedding(&self, encoder: &str) -> Result<Matrix> {
        self.0.embedding(encoder).map_err(Error::new)
    }
}
