//! How red, green or blue an image is, with the gradient with respect to its pixels: the softmax of `SHARPNESS` times the
//! mean of each channel.

use ambiguity_sdk::{
    Batch, Classifier, Description, Distribution, Distributions, Host, Medium, PixelGradient, Plugin, Result, export,
};

/// The plugin.
pub struct Primary;

export!(Primary: Classifier, PixelGradient);

/// Factor of the logits.
const SHARPNESS: f32 = 8.0;

impl Plugin for Primary {
    fn new(_host: &Host) -> Result<Self> {
        Ok(Self)
    }

    fn describe(&self) -> Description {
        Description::new("primary", env!("CARGO_PKG_VERSION")).medium(Medium::Image)
    }
}

impl Classifier for Primary {
    fn styles(&self) -> Vec<String> {
        ["red", "green", "blue"].map(String::from).to_vec()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        (0..batch.len()).map(|i| distribution(batch, i)).collect()
    }
}

impl PixelGradient for Primary {
    fn pixel_vjp(&self, batch: &Batch, i: usize, upstream: &[f32]) -> Result<Vec<f32>> {
        let n_values = batch.image(i)?.rgb.len();
        let sum: f32 = upstream.iter().sum();
        let log_p = distribution(batch, i)?;
        let d_logits = upstream.iter().zip(log_p.log_probabilities()).map(|(u, log_p)| u - log_p.exp() * sum);
        let d_pixels: Vec<f32> = d_logits.map(|d| d * SHARPNESS * 3.0 / n_values as f32).collect();
        Ok((0..n_values).map(|at| d_pixels[at % 3]).collect())
    }
}

fn distribution(batch: &Batch, i: usize) -> Result<Distribution> {
    let rgb = batch.image(i)?.rgb;
    let mean = |channel: usize| {
        let sum: f32 = rgb.iter().skip(channel).step_by(3).map(|&x| f32::from(x) / 255.0).sum();
        SHARPNESS * sum * 3.0 / rgb.len() as f32
    };
    Distribution::softmax((0..3).map(mean).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::Image;
    use ambiguity_sdk::testing::{FakeHost, numbers};

    #[test]
    fn the_gradient_is_exact() {
        let rgb = numbers(3, 1, 48).into_vec().into_iter().map(|x| (128.0 + 100.0 * x) as u8).collect();
        let host = FakeHost::new();
        let plugin = host.load::<Primary>().expect("it needs nothing");
        let error = plugin.pixel_gradient_error(&Image { width: 4, height: 4, rgb }).expect("an image");
        assert!(error < 0.01, "{error}");
    }
}
