//! Held-out figures, samples and grids.

use std::path::Path;

use ambiguity_models::clip::{Clip, Preprocessor, Tokenizer};
use ambiguity_models::scheduler::{Ddim, LastStep};
use ambiguity_models::unet::UNet;
use ambiguity_models::vae::Vae;
use anyhow::{Context, Result};
use image::RgbImage;
use tch::{Kind, Tensor, no_grad};

use super::data::{N_PAIRS, Paintings, full_texts, style_of, style_texts, subject_of, subject_texts};
use super::journal::Figures;

/// Images in one call of a network.
const CHUNK: usize = 108;

/// CLIP as a judge: embeddings of the texts that stand for styles, subjects and pairs.
pub struct Judge {
    styles: Tensor,
    subjects: Tensor,
    pairs: Tensor,
    preprocessor: Preprocessor,
}

impl Judge {
    /// Embeds the texts.
    pub fn new(clip: &Clip, tokenizer: &Tokenizer) -> Self {
        let embed = |texts: Vec<String>| no_grad(|| normalized(&clip.embed_texts(&tokenizer.encode_batch(&texts))));
        Self {
            styles: embed(style_texts()),
            subjects: embed(subject_texts()),
            pairs: embed(full_texts()),
            preprocessor: Preprocessor::clip(clip.config.vision_config.image_size as usize),
        }
    }

    /// Shares of held-out paintings whose style, subject, and both are told by their embeddings.
    pub fn paintings(&self, clip: &Clip, paintings: &Paintings) -> Result<Figures> {
        let mut correct = [0.0; 3];
        for first in (0..paintings.len()).step_by(CHUNK) {
            let count = CHUNK.min(paintings.len() - first);
            let embeddings = self.embed(clip, &paintings.range(first, count))?;
            let labels = |f: fn(usize) -> usize| (first..first + count).map(|i| f(i % N_PAIRS)).collect::<Vec<_>>();
            correct[0] += hits(&embeddings, &self.styles, &labels(style_of));
            correct[1] += hits(&embeddings, &self.subjects, &labels(subject_of));
            correct[2] += hits(&embeddings, &self.pairs, &labels(|pair| pair));
        }
        let [style, subject, pair] = correct.map(|n| n / paintings.len() as f64);
        Ok(Figures::default()
            .add("style_accuracy", style)
            .add("subject_accuracy", subject)
            .add("caption_accuracy", pair))
    }

    /// Share of images (f32 [n, 3, s, s] on [0, 1]) that show their style.
    pub fn styles(&self, clip: &Clip, images: &Tensor, labels: &[usize]) -> Result<f64> {
        Ok(hits(&self.embed(clip, images)?, &self.styles, labels) / labels.len() as f64)
    }

    /// Share of images that show their subject.
    pub fn subjects(&self, clip: &Clip, images: &Tensor, labels: &[usize]) -> Result<f64> {
        Ok(hits(&self.embed(clip, images)?, &self.subjects, labels) / labels.len() as f64)
    }

    fn embed(&self, clip: &Clip, images: &Tensor) -> Result<Tensor> {
        let pixels = self.preprocessor.pixels_from_tensor(images)?;
        Ok(no_grad(|| normalized(&clip.embed_images(&pixels))))
    }
}

/// Rows of length 1.
pub fn normalized(embeddings: &Tensor) -> Tensor {
    embeddings / embeddings.linalg_norm(2, [-1i64].as_slice(), true, None)
}

fn hits(images: &Tensor, texts: &Tensor, labels: &[usize]) -> f64 {
    let labels: Vec<i64> = labels.iter().map(|&label| label as i64).collect();
    let chosen = images.matmul(&texts.tr()).argmax(1, false);
    chosen.eq_tensor(&Tensor::from_slice(&labels)).sum(Kind::Float).double_value(&[])
}

/// Mean peak signal-to-noise ratio in dB over images on [0, 1], each by itself.
pub fn psnr(a: &Tensor, b: &Tensor) -> Tensor {
    let error = (a - b).square().mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
    error.clamp_min(1e-10).log10() * -10.0
}

/// Images from noise by DDIM at eta 0 with guidance: f32 [n, 3, s, s] on [0, 1].
pub struct Sampling<'a> {
    /// The scheduler, with its number of steps.
    pub ddim: &'a Ddim,
    /// Classifier-free guidance.
    pub guidance: f64,
}

impl Sampling<'_> {
    /// `noise` [n, 4, h, w], `text` [n, length, width], `null` [1, length, width].
    pub fn images(&self, unet: &UNet, vae: &Vae, noise: &Tensor, text: &Tensor, null: &Tensor) -> Tensor {
        no_grad(|| {
            let n = noise.size()[0];
            let text = Tensor::cat(&[&null.expand([n, -1, -1], false), text], 0);
            let mut latents = noise.shallow_clone();
            for (i, &timestep) in self.ddim.timesteps().iter().enumerate() {
                let both = Tensor::cat(&[&latents, &latents], 0);
                let timesteps = Tensor::full([2 * n], timestep, (Kind::Int64, noise.device()));
                let output = unet.forward(&both, &timesteps, &text);
                let (without, with) = (output.narrow(0, 0, n), output.narrow(0, n, n));
                let guided = &without + (with - &without) * self.guidance;
                latents = self.ddim.step(&guided, i, &latents, 0.0, None, LastStep::FinalAlpha).prev_sample;
            }
            let images = vae.decode(&(latents / vae.config().scaling_factor));
            (images / 2.0 + 0.5).clamp(0.0, 1.0)
        })
    }
}

/// Writes images (f32 [n, 3, s, s] on [0, 1]) as one PNG, `columns` side by side.
pub fn write_grid(path: &Path, images: &Tensor, columns: usize) -> Result<()> {
    let (n, _, height, width) = images.size4()?;
    let rows = (n as usize).div_ceil(columns);
    let mut grid =
        RgbImage::from_pixel((columns as i64 * width) as u32, (rows as i64 * height) as u32, image::Rgb([255; 3]));
    let bytes = (images * 255.0).round().to_kind(Kind::Uint8).permute([0, 2, 3, 1]).contiguous();
    for i in 0..n {
        let pixels = Vec::<u8>::try_from(bytes.get(i).view([-1]))?;
        let tile = RgbImage::from_raw(width as u32, height as u32, pixels).context("a tile has 3 bytes a pixel")?;
        let (x, y) = (i % columns as i64 * width, i / columns as i64 * height);
        image::imageops::replace(&mut grid, &tile, x, y);
    }
    if let Some(folder) = path.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let temporary = path.with_extension("tmp.png");
    grid.save(&temporary).with_context(|| format!("can't write {}", temporary.display()))?;
    fs_err::rename(&temporary, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psnr_is_that_of_each_image_alone() {
        let a = Tensor::zeros([2, 3, 4, 4], (Kind::Float, tch::Device::Cpu));
        let b = Tensor::from_slice(&[0.1f32, 0.01]).view([2, 1, 1, 1]).expand([2, 3, 4, 4], false);
        let decibels = Vec::<f32>::try_from(psnr(&a, &b)).unwrap();
        assert!((decibels[0] - 20.0).abs() < 1e-4 && (decibels[1] - 40.0).abs() < 1e-4, "{decibels:?}");
    }

    #[test]
    fn hits_are_images_nearest_to_their_own_text() {
        let texts = Tensor::eye(3, (Kind::Float, tch::Device::Cpu));
        let images = Tensor::from_slice2(&[[0.9f32, 0.1, 0.0], [0.2, 0.8, 0.0], [0.5, 0.1, 0.4]]);
        assert_eq!(hits(&images, &texts, &[0, 1, 2]), 2.0);
    }

    #[test]
    fn a_grid_has_its_images_in_reading_order() {
        let images = Tensor::from_slice(&[0.0f32, 0.5, 1.0]).view([3, 1, 1, 1]).expand([3, 3, 2, 2], false);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples/grid.png");
        write_grid(&path, &images, 2).unwrap();
        let grid = image::open(&path).unwrap().to_rgb8();
        assert_eq!(grid.dimensions(), (4, 4));
        assert_eq!([(0, 0), (2, 0), (0, 2), (2, 2)].map(|(x, y)| grid.get_pixel(x, y).0[0]), [0, 128, 255, 255]);
    }
}
