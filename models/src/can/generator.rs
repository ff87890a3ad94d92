//! The generator: from noise to images.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{BatchNorm2d, Convolution, INIT_STD, KERNEL, Share, Statistics, leaky_relu, log2_of_side};
use crate::error::Result;
use crate::params::{Init, Params};

/// Stride of every convolution but the first; it doubles the side.
const STRIDE: i64 = 2;

/// The configuration of a [`Generator`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Side of the images in pixels, a power of two of at least 32.
    pub size: i64,
    /// Dimension of the noise; 100 in the paper.
    pub latent: i64,
    /// Number of channels of the first, 4×4 feature map; 2048 in the paper. Each doubling of the side halves it.
    pub channels: i64,
    /// Slope of the activation below zero: 0.2 in the paper's text, 0 (ReLU) in its code.
    pub slope: f64,
}

/// Transposed convolutions from 1×1 to the image, each but the last followed by BatchNorm and an activation; tanh.
#[derive(Debug)]
pub struct Generator {
    config: GeneratorConfig,
    blocks: Vec<Block>,
    out: Tensor,
}

#[derive(Debug)]
struct Block {
    /// [in, out, k, k].
    weight: Tensor,
    norm: BatchNorm2d,
    /// 1 for the first block, which turns 1×1 into 4×4, else [`STRIDE`].
    stride: i64,
}

impl Generator {
    /// Reads or initializes `blocks.N.conv.weight`, `blocks.N.norm.*` and `out.conv.weight`.
    pub fn new(p: &Params, config: &GeneratorConfig) -> Result<Self> {
        let n_doublings = i64::from(log2_of_side(config.size)?) - 3;
        let convolution = |p: &Params, n_in: i64, n_out: i64| {
            let init = Init::Normal { mean: 0.0, std: INIT_STD };
            p.at("conv").tensor("weight", &[n_in, n_out, KERNEL, KERNEL], init)
        };
        let mut blocks = Vec::new();
        let (mut n_in, mut n_out) = (config.latent, config.channels);
        for i in 0..=n_doublings {
            let p = p.at("blocks").at(i);
            let (weight, norm) = (convolution(&p, n_in, n_out)?, BatchNorm2d::new(&p.at("norm"), n_out)?);
            blocks.push(Block { weight, norm, stride: if i == 0 { 1 } else { STRIDE } });
            (n_in, n_out) = (n_out, n_out / 2);
        }
        Ok(Self { config: *config, blocks, out: convolution(&p.at("out"), n_in, 3)? })
    }

    /// Noise [n, latent], standard normal, to images [n, 3, size, size] in [-1, 1], with the running statistics.
    pub fn forward(&self, noise: &Tensor) -> Result<Tensor> {
        self.images(noise, Statistics::Running)
    }

    /// As [`Generator::forward`], in training: with the statistics of the batch of which the noise is a share.
    pub fn forward_train(&self, noise: &Tensor, share: &Share) -> Result<Tensor> {
        self.images(noise, Statistics::Updated(share))
    }

    fn images(&self, noise: &Tensor, statistics: Statistics<'_>) -> Result<Tensor> {
        let mut x = noise.reshape([-1, self.config.latent, 1, 1]);
        for Block { weight, norm, stride } in &self.blocks {
            x = leaky_relu(norm.forward(&transposed(&x, weight, *stride), statistics)?, self.config.slope);
        }
        Ok(transposed(&x, &self.out, STRIDE).tanh())
    }

    /// The transposed convolutions in evaluation mode; each is followed by an activation but the last, which has no
    /// bias.
    pub(crate) fn convolutions(&self) -> Vec<Convolution> {
        let blocks = self.blocks.iter().map(|Block { weight, norm, stride }| {
            let (weight, bias) = norm.folded(weight, 1);
            Convolution { weight, bias: Some(bias), stride: *stride, padding: padding(*stride) }
        });
        let out =
            Convolution { weight: self.out.shallow_clone(), bias: None, stride: STRIDE, padding: padding(STRIDE) };
        blocks.chain([out]).collect()
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &GeneratorConfig {
        &self.config
    }

    /// The trainable parameters by checkpoint name; BatchNorm's running statistics are not among them.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, block)| {
            let conv = (format!("blocks.{i}.conv.weight"), block.weight.shallow_clone());
            [conv].into_iter().chain(block.norm.parameters(&format!("blocks.{i}.norm")))
        });
        blocks.chain([("out.conv.weight".to_owned(), self.out.shallow_clone())]).collect()
    }
}

fn transposed(x: &Tensor, weight: &Tensor, stride: i64) -> Tensor {
    x.conv_transpose2d(weight, None::<&Tensor>, stride, padding(stride), 0, 1, 1)
}

/// The padding of a transposed convolution of [`KERNEL`] that turns 1 into 4 (stride 1) or doubles the side (stride 2).
fn padding(stride: i64) -> i64 {
    stride - 1
}
