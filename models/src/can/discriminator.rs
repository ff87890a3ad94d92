//! The discriminator: from images to two outputs, real or fake and the style.

use serde::Serialize;
use tch::Tensor;
use torch_ext::Generator as Randomness;

use super::{BatchNorm2d, Convolution, INIT_STD, KERNEL, Share, Statistics, leaky_relu, log2_of_side};
use crate::error::Result;
use crate::layers::Linear;
use crate::params::{Init, Params};

/// Slope of every LeakyReLU below zero.
pub(crate) const SLOPE: f64 = 0.2;

/// Stride and padding of every convolution, which halves the side.
const STRIDE: i64 = 2;
const PADDING: i64 = 1;

/// The configuration of a [`Discriminator`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DiscriminatorConfig {
    /// Side of the images in pixels, a power of two of at least 32.
    pub size: i64,
    /// Number of channels of the first feature map; 32 in the paper.
    pub channels: i64,
    /// Number of channels of the last two feature maps; 512 in the paper.
    pub max_channels: i64,
    /// Widths of the style head's two hidden layers; 1024 and 512 in the paper.
    pub head: [i64; 2],
    /// Dropout probability of the style head's hidden layers; 0.3 in the paper.
    pub dropout: f64,
    /// Number of styles.
    pub n_styles: i64,
}

/// Strided convolutions down to 4×4, each followed by BatchNorm and LeakyReLU, and two heads.
#[derive(Debug)]
pub struct Discriminator {
    config: DiscriminatorConfig,
    blocks: Vec<(Tensor, BatchNorm2d)>,
    real_head: Linear,
    style_head: [Linear; 3],
}

/// Where the images of a training batch come from. BatchNorm's running statistics, with which the style head classifies
/// images after training, are updated by real images alone; PyTorch would update them with every batch, so that they
/// would lie between those of real and fake images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// The dataset.
    Real,
    /// The generator, or an interpolation between real and fake images.
    Fake,
}

impl ImageSource {
    fn statistics(self, share: &Share) -> Statistics<'_> {
        match self {
            Self::Real => Statistics::Updated(share),
            Self::Fake => Statistics::Batch(share),
        }
    }
}

/// What a [`Discriminator`] returns.
#[derive(Debug)]
pub struct DiscriminatorOutput {
    /// Logits of being real, \[n\].
    pub real: Tensor,
    /// Logits of the styles, [n, styles].
    pub styles: Tensor,
}

impl Discriminator {
    /// Reads or initializes `blocks.N.conv.weight`, `blocks.N.norm.*`, `real_head.*` and `style_head.{0,1,2}.*`.
    pub fn new(p: &Params, config: &DiscriminatorConfig) -> Result<Self> {
        let n_doublings = log2_of_side(config.size)? - 5;
        let mut widths = vec![3, config.channels];
        for _ in 0..n_doublings {
            widths.push((2 * widths[widths.len() - 1]).min(config.max_channels));
        }
        widths.extend([config.max_channels; 2]);
        let mut blocks = Vec::new();
        for (i, pair) in widths.windows(2).enumerate() {
            let p = p.at("blocks").at(i);
            let init = Init::Normal { mean: 0.0, std: INIT_STD };
            let weight = p.at("conv").tensor("weight", &[pair[1], pair[0], KERNEL, KERNEL], init)?;
            blocks.push((weight, BatchNorm2d::new(&p.at("norm"), pair[1])?));
        }
        let features = config.max_channels * 4 * 4;
        let style = |i: i64, n_in, n_out| Linear::new(&p.at("style_head").at(i), n_in, n_out, true);
        Ok(Self {
            config: *config,
            blocks,
            real_head: Linear::new(&p.at("real_head"), features, 1, true)?,
            style_head: [
                style(0, features, config.head[0])?,
                style(1, config.head[0], config.head[1])?,
                style(2, config.head[1], config.n_styles)?,
            ],
        })
    }

    /// Images [n, 3, size, size] in [-1, 1] to both outputs, with the running statistics and without dropout.
    pub fn forward(&self, images: &Tensor) -> Result<DiscriminatorOutput> {
        let features = self.features(images, Statistics::Running)?;
        let styles = self.styles(&features, None)?;
        Ok(DiscriminatorOutput { real: self.real(&features), styles })
    }

    /// The forward pass of training: BatchNorm with the batch's statistics, dropout with `randomness`. The images are the own
    /// rows of the share.
    pub fn forward_train(
        &self,
        images: &Tensor,
        source: ImageSource,
        share: &Share,
        randomness: &mut Randomness,
    ) -> Result<DiscriminatorOutput> {
        let features = self.features(images, source.statistics(share))?;
        let styles = self.styles(&features, Some((share, randomness)))?;
        Ok(DiscriminatorOutput { real: self.real(&features), styles })
    }

    /// Returns the style logits alone, [n, styles], in training on real images.
    pub fn styles_train(&self, images: &Tensor, share: &Share, randomness: &mut Randomness) -> Result<Tensor> {
        self.styles(&self.features(images, Statistics::Updated(share))?, Some((share, randomness)))
    }

    /// Returns the logits of being real alone, \[n\], in training.
    pub fn real_train(&self, images: &Tensor, source: ImageSource, share: &Share) -> Result<Tensor> {
        Ok(self.real(&self.features(images, source.statistics(share))?))
    }

    fn real(&self, features: &Tensor) -> Tensor {
        self.real_head.forward(features).squeeze_dim(1)
    }

    /// The style head, with dropout if `training` has the share of the batch and the randomness.
    fn styles(&self, features: &Tensor, mut training: Option<(&Share, &mut Randomness)>) -> Result<Tensor> {
        let mut x = features.shallow_clone();
        for (i, layer) in self.style_head.iter().enumerate() {
            x = layer.forward(&x);
            if i < 2 {
                x = leaky_relu(x, SLOPE);
                if let Some((share, randomness)) = &mut training {
                    x = self.dropout(x, share, randomness)?;
                }
            }
        }
        Ok(x)
    }

    fn features(&self, images: &Tensor, statistics: Statistics<'_>) -> Result<Tensor> {
        let mut x = images.shallow_clone();
        for (weight, norm) in &self.blocks {
            x = leaky_relu(norm.forward(&x.conv2d(weight, None::<&Tensor>, STRIDE, PADDING, 1, 1), statistics)?, SLOPE);
        }
        Ok(x.flatten(1, -1))
    }

    /// Dropout: zeroes random elements and scales the others up, so that the mean stays.
    fn dropout(&self, x: Tensor, share: &Share, randomness: &mut Randomness) -> Result<Tensor> {
        let dropped = self.config.dropout;
        if dropped == 0.0 {
            return Ok(x);
        }
        let kept = share.uniform(randomness, &x.size()[1..])?.ge(dropped).to_device(x.device()).to_kind(x.kind());
        Ok(x * kept / (1.0 - dropped))
    }

    /// The convolutions in evaluation mode; each is followed by an activation.
    pub(crate) fn convolutions(&self) -> Vec<Convolution> {
        let folded = self.blocks.iter().map(|(weight, norm)| norm.folded(weight, 0));
        folded
            .map(|(weight, bias)| Convolution { weight, bias: Some(bias), stride: STRIDE, padding: PADDING })
            .collect()
    }

    /// The layers from the flattened features to the style logits; each but the last is followed by an activation.
    pub(crate) fn style_head(&self) -> &[Linear; 3] {
        &self.style_head
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &DiscriminatorConfig {
        &self.config
    }

    /// The trainable parameters by checkpoint name; BatchNorm's running statistics are not among them.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let mut parameters = Vec::new();
        for (i, (weight, norm)) in self.blocks.iter().enumerate() {
            parameters.push((format!("blocks.{i}.conv.weight"), weight.shallow_clone()));
            parameters.extend(norm.parameters(&format!("blocks.{i}.norm")));
        }
        for layer in self.style_head.iter().chain([&self.real_head]) {
            parameters.push((format!("{}.weight", layer.name), layer.weight.shallow_clone()));
            let bias = layer.bias.as_ref().map(Tensor::shallow_clone);
            parameters.extend(bias.map(|bias| (format!("{}.bias", layer.name), bias)));
        }
        parameters
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;
    use test_support::device;

    use super::*;

    #[test]
    fn dropout_scales_what_it_keeps_so_that_the_mean_stays() {
        let config =
            DiscriminatorConfig { size: 32, channels: 2, max_channels: 4, head: [6, 5], dropout: 0.3, n_styles: 3 };
        let discriminator = Discriminator::new(&Params::random(1, device()).unwrap(), &config).unwrap();
        let x = Randomness::cpu(2).unwrap().normal(&[400, 250]).unwrap().to_device(device());
        let batch = Share::whole(400);
        let dropped = discriminator.dropout(x.shallow_clone(), &batch, &mut Randomness::cpu(3).unwrap()).unwrap();
        // The same random numbers: elements below the share are dropped, and the others are divided by 1 - share.
        let kept = Randomness::cpu(3).unwrap().uniform(&[400, 250]).unwrap().ge(0.3).to_device(device());
        assert!(dropped.not_equal(0.0).equal(&kept));
        let wanted = x.masked_select(&kept) / 0.7;
        assert!((dropped.masked_select(&kept) - wanted).abs().max().double_value(&[]) < 1e-6);
        // By the numbers alone: a share of 0.3 of 100 000, within four standard deviations.
        let share = 1.0 - kept.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!((share - 0.3).abs() < 4.0 * (0.3 * 0.7 / 1e5f64).sqrt(), "{share}");
        let ones = discriminator.dropout(x.ones_like(), &batch, &mut Randomness::cpu(3).unwrap()).unwrap();
        let mean = ones.mean(Kind::Float).double_value(&[]);
        assert!((mean - 1.0).abs() < 4.0 * (0.3 / 0.7 / 1e5f64).sqrt(), "{mean}");
    }
}
