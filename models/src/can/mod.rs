//! The creative adversarial network of the paper (after Elgammal et al., CAN: Creative Adversarial Networks, arXiv
//! 1706.07068; a DCGAN, Radford et al., arXiv 1511.06434): sizes and counts as its Table 17 has them.
//!
//! # Layout
//! - [`Generator`] makes pictures from noise
//! - [`Discriminator`] tells real ones from made ones, and styles from each other
//! - [`loss`] has the losses of both

mod discriminator;
mod generator;
pub mod loss;

pub use discriminator::{Discriminator, DiscriminatorConfig, Verdict};
pub use generator::{Generator, GeneratorConfig};

use tch::Tensor;

use crate::error::{Error, Result};
use crate::params::{Init, Params};

/// Standard deviation of fresh convolution weights (and, about 1, of BatchNorm's).
const INIT_STD: f64 = 0.02;
/// Kernel of every convolution.
const KERNEL: i64 = 4;

/// log₂ of a picture's side, which must be a power of two of at least 32.
fn log2_of_side(size: i64) -> Result<u32> {
    if size < 32 || !(size as u64).is_power_of_two() {
        return Err(Error::Input(format!(
            "a CAN makes pictures whose side is a power of two of at least 32, not {size}"
        )));
    }
    Ok(size.ilog2())
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

    /// In training by the batch's own statistics, which the running ones follow; else by the running ones.
    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        let (mean, var) = (Some(&self.running_mean), Some(&self.running_var));
        x.batch_norm(weight, bias, mean, var, train, Self::MOMENTUM, Self::EPSILON, true)
    }

    fn parameters(&self, name: &str) -> [(String, Tensor); 2] {
        [("weight", &self.weight), ("bias", &self.bias)]
            .map(|(part, tensor)| (format!("{name}.{part}"), tensor.shallow_clone()))
    }
}

/// max(x, slope · x).
fn leaky_relu(x: &Tensor, slope: f64) -> Tensor {
    // Both parts are differentiable twice, which the gradient penalty needs.
    x.clamp_min(0.0) + x.clamp_max(0.0) * slope
}
