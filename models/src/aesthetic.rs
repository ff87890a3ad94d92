//! The aesthetic predictor of LAION (Schuhmann et al., LAION-5B, arXiv 2210.08402; `improved-aesthetic-predictor`,
//! sac+logos+ava1): from an image's CLIP embedding to the mean rating, 1 to 10, that people would give the image.
//!
//! Five linear layers with nothing between them. (Its dropout acts in training only, its activations were commented out
//! upstream.) The published weights are for CLIP ViT-L/14.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::layers::{Linear, normalized};
use crate::params::Params;
use crate::weights::load_weights;

/// Width of CLIP ViT-L/14's embeddings.
const WIDTH: i64 = 768;
/// The index of each layer in upstream's `Sequential`, and the width of its output.
const LAYERS: [(i64, i64); 5] = [(0, 1024), (2, 128), (4, 64), (6, 16), (7, 1)];

/// Linear layers from a vector to one number: the head of the aesthetic predictor and of ImageReward.
#[derive(Debug)]
pub struct Mlp {
    layers: Vec<Linear>,
}

impl Mlp {
    /// Reads or initializes `layers.0`, `.2`, `.4`, `.6` and `.7` for vectors of `width` numbers.
    pub fn new(p: &Params, width: i64) -> Result<Self> {
        let mut n_in = width;
        let mut layers = Vec::with_capacity(LAYERS.len());
        for (index, n_out) in LAYERS {
            layers.push(Linear::new(&p.at("layers").at(index), n_in, n_out, true)?);
            n_in = n_out;
        }
        Ok(Self { layers })
    }

    /// [n, width] to \[n\].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.layers.iter().fold(x.shallow_clone(), |x, layer| layer.forward(&x)).squeeze_dim(-1)
    }
}

/// The predictor, in f32.
#[derive(Debug)]
pub struct AestheticPredictor {
    mlp: Mlp,
    device: Device,
}

impl AestheticPredictor {
    /// Loads `sac+logos+ava1-l14-linearMSE.pth`, `aesthetic-model.pth` or the same tensors in a safetensors file, or a
    /// folder with one of these.
    ///
    /// # Errors
    /// If the file cannot be read, or a tensor is missing, unknown or of another shape; the message names it.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        let p = load_weights(path, device, Kind::Float)?;
        let predictor = Self::new(&p, device)?;
        p.finish()?;
        Ok(predictor)
    }

    /// Reads or initializes the layers.
    pub fn new(p: &Params, device: Device) -> Result<Self> {
        Ok(Self { mlp: Mlp::new(p, WIDTH)?, device })
    }

    /// Raw projected image embeddings of CLIP ViT-L/14, [n, 768] of any type and device, to ratings \[n\], f32 on the
    /// predictor's device. The embeddings are divided by their lengths here.
    ///
    /// # Errors
    /// If the embeddings have another shape.
    pub fn score(&self, embeddings: &Tensor) -> Result<Tensor> {
        if embeddings.size().len() != 2 || embeddings.size()[1] != WIDTH {
            let found = embeddings.size();
            return Err(Error::Input(format!(
                "the aesthetic predictor takes embeddings [n, {WIDTH}], found {found:?}"
            )));
        }
        let x = embeddings.to_device(self.device).to_kind(Kind::Float);
        Ok(self.mlp.forward(&normalized(&x)))
    }
}
