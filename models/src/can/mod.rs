//! The creative adversarial network of the paper (after Elgammal et al., CAN: Creative Adversarial Networks, arXiv
//! 1706.07068; a DCGAN, Radford et al., arXiv 1511.06434): sizes and parameter counts are those of the
//! paper's Table 17.
//!
//! # Layout
//! - [`Generator`] generates images from noise
//! - [`Discriminator`] separates real images from fake ones and classifies styles
//! - [`loss`] contains the losses of both

mod discriminator;
mod generator;
pub mod loss;

pub(crate) use discriminator::SLOPE;
pub use discriminator::{Discriminator, DiscriminatorConfig, DiscriminatorOutput, ImageSource};
pub use generator::{Generator, GeneratorConfig};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Statistics {
    /// The running statistics.
    Running,
    /// The batch's own, which also update the running ones.
    Updated,
    /// The batch's own; the running ones stay as they are.
    Batch,
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

    fn forward(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        let running = (statistics != Statistics::Batch).then_some((&self.running_mean, &self.running_var));
        let (mean, var) = running.unzip();
        let train = statistics != Statistics::Running;
        x.batch_norm(weight, bias, mean, var, train, Self::MOMENTUM, Self::EPSILON, true)
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
