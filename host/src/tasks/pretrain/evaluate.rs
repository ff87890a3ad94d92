//! Evaluation: zero-shot accuracy, PSNR and image grids.

use ambiguity_models::clip::{Clip, Preprocessor, Tokenizer};
use anyhow::Result;
use image::RgbImage;
use tch::{Kind, Tensor, no_grad};

use super::data::{N_PAIRS, Paintings, full_texts, style_of, style_texts, subject_of, subject_texts};
use crate::data::images::rgb_images;
use crate::run::record::ClipMonitor;

/// Number of images in one call of a network.
const CHUNK: usize = 108;

/// Zero-shot classification by embeddings of the texts of styles, subjects and pairs.
pub(super) struct ZeroShot {
    styles: Tensor,
    subjects: Tensor,
    pairs: Tensor,
    preprocessor: Preprocessor,
}

impl ZeroShot {
    /// Embeds the texts.
    pub(super) fn new(clip: &Clip, tokenizer: &Tokenizer) -> Self {
        let embed = |texts: Vec<String>| no_grad(|| normalized(&clip.embed_texts(&tokenizer.encode_batch(&texts))));
        Self {
            styles: embed(style_texts()),
            subjects: embed(subject_texts()),
            pairs: embed(full_texts()),
            preprocessor: Preprocessor::clip(clip.config.vision_config.image_size as usize),
        }
    }

    /// Returns the fractions of held-out paintings whose style, subject, and both are predicted correctly.
    pub(super) fn paintings(&self, clip: &Clip, paintings: &Paintings) -> Result<ClipMonitor> {
        let mut correct = [0.0; 3];
        for first in (0..paintings.len()).step_by(CHUNK) {
            let count = CHUNK.min(paintings.len() - first);
            let embeddings = self.embed(clip, &paintings.range(first, count))?;
            let labels = |f: fn(usize) -> usize| (first..first + count).map(|i| f(i % N_PAIRS)).collect::<Vec<_>>();
            correct[0] += hits(&embeddings, &self.styles, &labels(style_of));
            correct[1] += hits(&embeddings, &self.subjects, &labels(subject_of));
            correct[2] += hits(&embeddings, &self.pairs, &labels(|pair| pair));
        }
        let [style_accuracy, subject_accuracy, caption_accuracy] = correct.map(|n| n / paintings.len() as f64);
        Ok(ClipMonitor { style_accuracy, subject_accuracy, caption_accuracy })
    }

    /// Returns the fraction of images (f32 [n, 3, s, s] in [0, 1]) whose predicted style is the label.
    pub(super) fn styles(&self, clip: &Clip, images: &Tensor, labels: &[usize]) -> Result<f64> {
        Ok(hits(&self.embed(clip, images)?, &self.styles, labels) / labels.len() as f64)
    }

    /// Returns the fraction of images whose predicted subject is the label.
    pub(super) fn subjects(&self, clip: &Clip, images: &Tensor, labels: &[usize]) -> Result<f64> {
        Ok(hits(&self.embed(clip, images)?, &self.subjects, labels) / labels.len() as f64)
    }

    fn embed(&self, clip: &Clip, images: &Tensor) -> Result<Tensor> {
        let pixels = self.preprocessor.pixels_from_tensor(images)?;
        Ok(no_grad(|| normalized(&clip.embed_images(&pixels))))
    }
}

/// Normalizes rows to length 1.
pub(super) fn normalized(embeddings: &Tensor) -> Tensor {
    embeddings / embeddings.linalg_norm(2, [-1i64].as_slice(), true, None)
}

fn hits(images: &Tensor, texts: &Tensor, labels: &[usize]) -> f64 {
    let labels: Vec<i64> = labels.iter().map(|&label| label as i64).collect();
    let chosen = images.matmul(&texts.tr()).argmax(1, false);
    chosen.eq_tensor(&Tensor::from_slice(&labels)).sum(Kind::Float).double_value(&[])
}

/// Returns the peak signal-to-noise ratio in dB of each image in [0, 1].
pub(super) fn psnr(a: &Tensor, b: &Tensor) -> Tensor {
    let error = (a - b).square().mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
    error.clamp_min(1e-10).log10() * -10.0
}

/// Returns a grid of images (f32 [n, 3, s, s] in [0, 1]), `columns` per row.
pub(super) fn image_grid(images: &Tensor, columns: usize) -> Result<RgbImage> {
    let (n, _, height, width) = images.size4()?;
    let rows = (n as usize).div_ceil(columns);
    let mut grid =
        RgbImage::from_pixel((columns as i64 * width) as u32, (rows as i64 * height) as u32, image::Rgb([255; 3]));
    let bytes = (images * 255.0).round().to_kind(Kind::Uint8).permute([0, 2, 3, 1]).contiguous();
    for (i, tile) in rgb_images(&bytes)?.iter().enumerate() {
        let (x, y) = ((i % columns) as i64 * width, (i / columns) as i64 * height);
        image::imageops::replace(&mut grid, &**tile, x, y);
    }
    Ok(grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psnr_is_per_image() {
        let a = Tensor::zeros([2, 3, 4, 4], (Kind::Float, tch::Device::Cpu));
        let b = Tensor::from_slice(&[0.1f32, 0.01]).view([2, 1, 1, 1]).expand([2, 3, 4, 4], false);
        let decibels = Vec::<f32>::try_from(psnr(&a, &b)).unwrap();
        assert!((decibels[0] - 20.0).abs() < 1e-4 && (decibels[1] - 40.0).abs() < 1e-4, "{decibels:?}");
    }

    #[test]
    fn hits_are_images_closest_to_their_own_text() {
        let texts = Tensor::eye(3, (Kind::Float, tch::Device::Cpu));
        let images = Tensor::from_slice2(&[[0.9f32, 0.1, 0.0], [0.2, 0.8, 0.0], [0.5, 0.1, 0.4]]);
        assert_eq!(hits(&images, &texts, &[0, 1, 2]), 2.0);
    }

    #[test]
    fn a_grid_has_its_images_in_reading_order() {
        let images = Tensor::from_slice(&[0.0f32, 0.5, 1.0]).view([3, 1, 1, 1]).expand([3, 3, 2, 2], false);
        let grid = image_grid(&images, 2).unwrap();
        assert_eq!(grid.dimensions(), (4, 4));
        assert_eq!([(0, 0), (2, 0), (0, 2), (2, 2)].map(|(x, y)| grid.get_pixel(x, y).0[0]), [0, 128, 255, 255]);
    }
}
