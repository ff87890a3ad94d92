//! The creative adversarial network of the paper (after Elgammal et al., CAN: Creative Adversarial Networks, arXiv
//! 1706.07068; a DCGAN, Radford et al., arXiv 1511.06434): sizes and parameter counts are those of the
//! paper's Table 17.
//!
//! # Layout
//! - [`Generator`] generates images from noise
//! - [`Discriminator`] separates real images from fake ones and classifies styles
//! - [`loss`] contains the losses of both
//! - [`Share`] is what one of several processes computes of a training batch

mod discriminator;
mod generator;
pub mod loss;
mod share;

pub(crate) use discriminator::SLOPE;
pub use discriminator::{Discriminator, DiscriminatorConfig, DiscriminatorOutput, ImageSource};
pub use generator::{Generator, GeneratorConfig};
pub use share::Share;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::params::{Init, Params};

/// Standard deviation of initial convolution weights (around 0) and BatchNorm weights (around 1).
const INIT_STD: f64 = 0.02;
/// Kernel size of every convolution.
const KERNEL: i64 = 4;

/// Returns log₂ of an image's side, which must be a power of two of at least 32.
fn log2_of_side(size: i64) -> Result<u32> {
    if size < 32 || !(size as u64).is_power_of_two() {
        return Err(Error::Input(format!(
            "a CAN generates images whose side is a power of two of at least 32, not {size}"
        )));
    }
    Ok(size.ilog2())
}

/// The statistics with which BatchNorm normalizes.
#[derive(Clone, Copy, Debug)]
enum Statistics<'a> {
    /// The running statistics.
    Running,
    /// Those of the batch of which this is a share; they also update the running ones.
    Updated(&'a Share),
    /// As above; the running ones stay as they are.
    Batch(&'a Share),
}

/// `torch.nn.BatchNorm2d` (Ioffe and Szegedy, arXiv 1502.03167) with PyTorch's momentum and epsilon.
#[derive(Debug)]
struct BatchNorm2d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm2d {
    const MOMENTUM: f64 = 0.1;
    const EPSILON: f64 = 1e-5;

    fn new(p: &Params, channels: i64) -> Result<Self> {
        Ok(Self {
            weight: p.tensor("weight", &[channels], Init::Normal { mean: 1.0, std: INIT_STD })?,
            bias: p.tensor("bias", &[channels], Init::Zeros)?,
            running_mean: p.tensor("running_mean", &[channels], Init::Zeros)?,
            running_var: p.tensor("running_var", &[channels], Init::Ones)?,
        })
    }

    fn forward(&self, x: &Tensor, statistics: Statistics<'_>) -> Result<Tensor> {
        let (share, updates) = match statistics {
            Statistics::Running => (None, true),
            Statistics::Updated(share) => (Some(share), true),
            Statistics::Batch(share) => (Some(share), false),
        };
        if let Some(moments) = share.and_then(|share| share.moments(x)) {
            let (mean, variance, n) = moments?;
            if updates {
                self.update(&mean, &(&variance * (n / (n - 1.0))));
            }
            return Ok(self.normalized(x, &mean, &variance));
        }
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        let (mean, var) = updates.then_some((&self.running_mean, &self.running_var)).unzip();
        Ok(x.f_batch_norm(weight, bias, mean, var, share.is_some(), Self::MOMENTUM, Self::EPSILON, true)?)
    }

    /// Moves the running statistics towards those of a batch, of which the variance is unbiased.
    fn update(&self, mean: &Tensor, variance: &Tensor) {
        tch::no_grad(|| {
            for (running, new) in [(&self.running_mean, mean), (&self.running_var, variance)] {
                let _ = running.shallow_clone().lerp_(&new.to_kind(running.kind()), Self::MOMENTUM);
            }
        });
    }

    /// Normalizes features [n, channels, h, w] by a batch's mean and variance, with their gradients.
    fn normalized(&self, x: &Tensor, mean: &Tensor, variance: &Tensor) -> Tensor {
        let along_channels = |tensor: &Tensor| tensor.to_kind(x.kind()).view([1, -1, 1, 1]);
        let scale = &self.weight * (variance + Self::EPSILON).rsqrt();
        let shift = &self.bias - mean * &scale;
        // One pass over the features.
        along_channels(&shift).addcmul(x, &along_channels(&scale))
    }

    /// Folds this layer, in evaluation mode, into the convolution before it, whose `weight` has the output's channels
    /// in axis `out`. Returns weight and bias in f64.
    fn folded(&self, weight: &Tensor, out: usize) -> (Tensor, Tensor) {
        tch::no_grad(|| {
            let [gain, bias, mean, var] = [&self.weight, &self.bias, &self.running_mean, &self.running_var]
                .map(|tensor| tensor.to_kind(Kind::Double));
            let scale = gain / (var + Self::EPSILON).sqrt();
            let mut along = [1; 4];
            along[out] = -1;
            (weight.to_kind(Kind::Double) * scale.view(along), bias - mean * scale)
        })
    }

    fn parameters(&self, name: &str) -> [(String, Tensor); 2] {
        [("weight", &self.weight), ("bias", &self.bias)]
            .map(|(part, tensor)| (format!("{name}.{part}"), tensor.shallow_clone()))
    }
}

/// A convolution in evaluation mode, with the BatchNorm after it folded in.
pub(crate) struct Convolution {
    /// [out, in, k, k]; [in, out, k, k] of a transposed convolution.
    pub(crate) weight: Tensor,
    /// \[out\], if a BatchNorm was folded in.
    pub(crate) bias: Option<Tensor>,
    pub(crate) stride: i64,
    /// Padding on every side.
    pub(crate) padding: i64,
}

/// max(x, slope · x).
fn leaky_relu(mut x: Tensor, slope: f64) -> Tensor {
    // In place: the argument is a layer's output, which the layer's own gradient does not need.
    if slope == 0.0 { x.relu_() } else { torch_ext::leaky_relu(x, slope).expect("a layer's output is not a leaf") }
}
