//! A plugin's input: a batch of samples, requested one by one.

use crate::error::{Error, Result};
use crate::host::{EncoderInfo, Host, backend};
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

/// The properties of a video, whose frames are requested one at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Video {
    /// Width of every frame in pixels.
    pub width: usize,
    /// Height of every frame in pixels.
    pub height: usize,
    /// Number of frames; at least one.
    pub frames: usize,
    /// Frames per second.
    pub frame_rate: f64,
}

/// A row-major array of any number of dimensions.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Size of each dimension, the outermost first; empty for a single number.
    pub shape: Vec<usize>,
    /// The elements; the last dimension varies fastest. As many as the product of `shape`.
    pub data: Vec<f32>,
}

impl Tensor {
    /// Returns an array; an error unless there are as many elements as the product of `shape`.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Result<Self> {
        let product = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if product != Some(data.len()) {
            return Err(Error::new(format!("an array of shape {shape:?} cannot have {} elements", data.len())));
        }
        Ok(Self { shape, data })
    }
}

/// A batch of samples, numbered from 0, all of one medium. Only what is requested is copied, so a plugin that processes
/// one image at a time needs memory for one.
pub struct Batch<'a> {
    host: Host<'a>,
    samples: backend::Batch<'a>,
}

impl<'a> Batch<'a> {
    pub(crate) fn from_backend(host: Host<'a>, samples: backend::Batch<'a>) -> Self {
        Self { host, samples }
    }

    /// Returns the host, for its log.
    pub fn host(&self) -> &Host<'a> {
        &self.host
    }

    /// Returns the number of samples; at least one.
    pub fn len(&self) -> usize {
        self.samples.len() as usize
    }

    /// Returns whether the batch is empty; the host never passes an empty batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the prompt that sample `i` was generated from; empty if there was none.
    pub fn prompt(&self, i: usize) -> String {
        self.samples.prompt(i as u32)
    }

    /// Returns the keys of the metadata of sample `i`, sorted.
    pub fn metadata_keys(&self, i: usize) -> Vec<String> {
        self.samples.metadata_keys(i as u32)
    }

    /// Returns a metadata value of sample `i` ("seed", "title", …), if the run provides it.
    pub fn metadata(&self, i: usize, key: &str) -> Option<String> {
        self.samples.metadata(i as u32, key)
    }

    /// Returns the image of sample `i`, as generated; an error if the sample is not an image.
    pub fn image(&self, i: usize) -> Result<Image> {
        self.samples.image(i as u32).map_err(Error::new)
    }

    /// Returns the image of sample `i`, resized by the host's one filter (bicubic with antialiasing).
    pub fn image_resized(&self, i: usize, width: usize, height: usize) -> Result<Image> {
        self.samples.image_resized(i as u32, width as u32, height as u32).map_err(Error::new)
    }

    /// Returns the text of sample `i`; an error if the sample is not a text.
    pub fn text(&self, i: usize) -> Result<String> {
        self.samples.text(i as u32).map_err(Error::new)
    }

    /// Returns the recording of sample `i`; an error if the sample is not a recording.
    pub fn audio(&self, i: usize) -> Result<Audio> {
        self.samples.audio(i as u32).map_err(Error::new)
    }

    /// Returns the properties of the video of sample `i`; an error if the sample is not a video.
    pub fn video(&self, i: usize) -> Result<Video> {
        self.samples.video(i as u32).map_err(Error::new)
    }

    /// Returns one frame, numbered from 0, of the video of sample `i`.
    pub fn frame(&self, i: usize, frame: usize) -> Result<Image> {
        self.samples.frame(i as u32, frame as u32).map_err(Error::new)
    }

    /// Returns one frame of the video of sample `i`, resized as by [`Batch::image_resized`].
    pub fn frame_resized(&self, i: usize, frame: usize, width: usize, height: usize) -> Result<Image> {
        self.samples.frame_resized(i as u32, frame as u32, width as u32, height as u32).map_err(Error::new)
    }

    /// Returns the array of sample `i`; an error if the sample is not an array.
    pub fn tensor(&self, i: usize) -> Result<Tensor> {
        self.samples.tensor(i as u32).map_err(Error::new)
    }

    /// Returns the samples' raw embeddings, `len() × dim`, by an encoder that the plugin's description declares: of their
    /// images, or of their texts. Not normalized. The host computes them once per batch, however many plugins use them.
    pub fn embedding(&self, encoder: &str) -> Result<Matrix> {
        self.samples.embedding(encoder).map_err(Error::new)
    }

    /// Returns the raw embeddings, `len() × dim`, of the samples' prompts.
    pub fn prompt_embedding(&self, encoder: &str) -> Result<Matrix> {
        self.samples.prompt_embedding(encoder).map_err(Error::new)
    }

    /// Returns the features of the tokens of sample `i`, `tokens × width`: the encoder's last hidden state. An image's
    /// tokens are the class token and its patches, row after row. An error if the encoder has none.
    pub fn token_features(&self, encoder: &str, i: usize) -> Result<Matrix> {
        self.samples.token_features(encoder, i as u32).map_err(Error::new)
    }

    /// Returns information about an encoder that the plugin's description declares.
    pub fn encoder_info(&self, encoder: &str) -> Result<EncoderInfo> {
        self.samples.encoder_info(encoder).map_err(Error::new)
    }

    /// Returns the raw embeddings of texts, `texts.len() × dim`, not normalized. The host caches them, so the same class
    /// names in every batch cost next to nothing.
    pub fn embed_texts<S: AsRef<str>>(&self, encoder: &str, texts: &[S]) -> Result<Matrix> {
        let texts: Vec<String> = texts.iter().map(|text| text.as_ref().to_owned()).collect();
        self.samples.embed_texts(encoder, &texts).map_err(Error::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_has_the_elements_of_its_shape() {
        assert!(Tensor::new(vec![2, 3], vec![0.0; 6]).is_ok() && Tensor::new(vec![], vec![1.0]).is_ok());
        let message = Tensor::new(vec![2, 3], vec![0.0; 5]).expect_err("five are not six").to_string();
        assert_eq!(message, "an array of shape [2, 3] cannot have 5 elements");
        assert!(Tensor::new(vec![usize::MAX, 2], vec![]).is_err());
    }
}
