//! CSD, style descriptors (Somepalli et al., Measuring Style Similarity in Diffusion Models, arXiv 2404.01292): images to
//! embeddings whose cosine is a similarity of style rather than of content.
//!
//! CLIP's image tower (ViT-L/14, in OpenAI's naming), fine-tuned, and a projection of its own for style. The published file
//! is `tomg-group-umd/CSD-ViT-L`; its second projection, for content, is ignored.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::clip::open_clip::{to_transformers, vision_config, without_prefix};
use crate::clip::{Activation, VisionConfig, VisionTransformer};
use crate::error::{Error, Result};
use crate::layers::normalized;
use crate::params::{Init, NamedTensors, Params};
use crate::preprocess::Preprocessor;
use crate::weights::{axis_length, read_weights};

/// The name of the projection for style.
const STYLE: &str = "last_layer_style";

/// The network.
#[derive(Debug)]
pub struct Csd {
    /// The configuration of the image tower; its `projection_dim` is the width of the embedding.
    pub config: VisionConfig,
    backbone: VisionTransformer,
    /// [hidden, projection].
    style: Tensor,
}

impl Csd {
    /// Loads a file of PyTorch (its dictionary `model_state_dict`, or the whole), a safetensors file, or a folder with one
    /// of these. Names may begin with `module.`.
    ///
    /// # Errors
    /// If a tensor is missing, unknown or of another shape than the others imply; the message names it and the file.
    pub fn load(path: &Path, device: Device, kind: Kind) -> Result<Self> {
        let rename = |(name, tensor): (String, Tensor)| match name.strip_prefix("backbone.") {
            Some(rest) => (format!("visual.{rest}"), tensor),
            None => (name, tensor),
        };
        let tensors: NamedTensors = without_prefix(read_weights(path)?, "module.")
            .into_iter()
            .filter(|(name, _)| !name.starts_with("last_layer_content"))
            .map(rename)
            .collect();
        let width = axis_length(path, &tensors, STYLE, 1)?;
        let config = vision_config(path, &tensors, Activation::QuickGelu, width)?;
        let p = Params::from_tensors(to_transformers(tensors)?, &path.display().to_string(), device, kind);
        let csd = Self::new(&p, &config)?;
        p.finish()?;
        Ok(csd)
    }

    /// Reads or initializes the image tower, in transformers' naming, and the projection.
    pub fn new(p: &Params, config: &VisionConfig) -> Result<Self> {
        let init = Init::Normal { mean: 0.0, std: (config.hidden_size as f64).powf(-0.5) };
        Ok(Self {
            backbone: VisionTransformer::new(p, config)?,
            style: p.tensor(STYLE, &[config.hidden_size, config.projection_dim], init)?,
            config: config.clone(),
        })
    }

    /// The preprocessing of images: CLIP's, to the network's size.
    pub fn preprocessor(&self) -> Preprocessor {
        Preprocessor::clip(self.config.image_size as usize)
    }

    /// Normalized pixels [n, 3, s, s] to embeddings [n, projection] of length 1.
    ///
    /// # Errors
    /// If the pixels have another shape than the network takes.
    pub fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let side = self.config.image_size;
        match pixels.size()[..] {
            [_, 3, height, width] if (height, width) == (side, side) => {
                Ok(normalized(&self.backbone.forward(pixels).f_matmul(&self.style)?))
            }
            _ => Err(Error::Input(format!("CSD takes pixels [n, 3, {side}, {side}], found {:?}", pixels.size()))),
        }
    }
}
