//! Scores of human preference by a fine-tuned CLIP: PickScore and HPSv2. Both compare the embeddings of an image and its
//! prompt; a higher score is an image that people would rather choose.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::clip::{Activation, Clip, ClipConfig};
use crate::error::{Error, Result};
use crate::layers::normalized;
use crate::preprocess::{CLIP_MEAN, CLIP_STD, Preprocessor, resize_tensor};
use crate::weights::load_weights;
use ambiguity_sdk::resize::Filter;

/// PickScore (Kirstain et al., Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation, arXiv
/// 2305.01569): `yuvalkirstain/PickScore_v1`, a CLIP-H in transformers' format.
#[derive(Debug)]
pub struct PickScore {
    /// The fine-tuned CLIP.
    pub clip: Clip,
}

impl PickScore {
    /// Loads a folder's config.json and weights: safetensors, or pytorch_model.bin.
    ///
    /// # Errors
    /// If a key or tensor is missing, unknown or of another shape; the message names it and the file.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> Result<Self> {
        let config = ClipConfig::read(&dir.join("config.json"))?;
        let p = load_weights(dir, device, kind)?;
        let clip = Clip::new(&p, &config)?;
        p.finish()?;
        Ok(Self { clip })
    }

    /// The preprocessing of images: CLIP's, to the network's size.
    pub fn preprocessor(&self) -> Preprocessor {
        Preprocessor::clip(self.clip.config.vision_config.image_size as usize)
    }

    /// Normalized pixels [n, 3, s, s] and token ids of the prompts, i64 [n, len], to exp(`logit_scale`) · cosine, \[n\], f32.
    /// Ids of one row are those of all images.
    ///
    /// # Errors
    /// If the tensors do not fit each other or the network.
    pub fn score(&self, pixels: &Tensor, ids: &Tensor) -> Result<Tensor> {
        Ok(cosine(&self.clip, pixels, ids)? * self.clip.logit_scale_exp())
    }
}

/// HPSv2 (Wu et al., Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences of Text-to-Image
/// Synthesis, arXiv 2306.09341): `HPS_v2.1_compressed.pt` or `HPS_v2_compressed.pt` of `xswu/HPSv2`, a CLIP ViT-H/14 in
/// open_clip's naming.
#[derive(Debug)]
pub struct Hps {
    /// The fine-tuned CLIP.
    pub clip: Clip,
}

impl Hps {
    /// Loads the file of PyTorch (its dictionary `state_dict`, or the whole), the same tensors in a safetensors file, or a
    /// folder with one of these.
    ///
    /// # Errors
    /// As [`Clip::load_open_clip`].
    pub fn load(path: &Path, device: Device, kind: Kind) -> Result<Self> {
        Ok(Self { clip: Clip::load_open_clip(path, Activation::Gelu, device, kind)? })
    }

    /// Converts interleaved RGB images (bytes, width, height) to f32 [n, 3, s, s] on the CPU, as upstream's
    /// `ResizeMaxSize` does, which differs from CLIP's preprocessing: the longer side is resized to `s` by bicubic, in
    /// floating point and without clamping, and the shorter side is padded with black on both ends.
    ///
    /// The resize is antialiased, as in torchvision 0.17 and later, on which upstream's result depends. (Upstream leaves an
    /// image whose longer side is already `s` without padding, and then fails; here it is padded.)
    ///
    /// # Errors
    /// If there are no images, or an image is empty or does not have 3 bytes per pixel.
    pub fn pixels(&self, images: &[(&[u8], usize, usize)]) -> Result<Tensor> {
        padded_pixels(images, self.clip.config.vision_config.image_size as usize)
    }

    /// Pixels [n, 3, s, s] as [`Hps::pixels`] makes them and token ids of the prompts, i64 [n, len], to cosines, \[n\], f32,
    /// as upstream returns them. Ids of one row are those of all images.
    ///
    /// # Errors
    /// If the tensors do not fit each other or the network.
    pub fn score(&self, pixels: &Tensor, ids: &Tensor) -> Result<Tensor> {
        cosine(&self.clip, pixels, ids)
    }
}

fn padded_pixels(images: &[(&[u8], usize, usize)], size: usize) -> Result<Tensor> {
    let mut all = Vec::with_capacity(images.len());
    for (i, &(rgb, width, height)) in images.iter().enumerate() {
        if width == 0 || height == 0 || rgb.len() != 3 * width * height {
            let bytes = rgb.len();
            return Err(Error::Input(format!("image {i} of {width}x{height} pixels has {bytes} bytes of RGB")));
        }
        let scale = size as f64 / width.max(height) as f64;
        let scaled = |side: usize| ((side as f64 * scale).round_ties_even() as usize).clamp(1, size);
        let (new_width, new_height) = (scaled(width), scaled(height));
        let bytes = Tensor::f_from_slice(rgb)?.f_view([1, height as i64, width as i64, 3])?;
        let unit = bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0;
        let resized = resize_tensor(&unit, new_width, new_height, Filter::Bicubic)?;
        let (x, y) = ((size - new_width) as i64, (size - new_height) as i64);
        all.push(resized.f_constant_pad_nd([x / 2, x - x / 2, y / 2, y - y / 2])?);
    }
    if all.is_empty() {
        return Err(Error::Input("there are no images to preprocess".to_owned()));
    }
    let per_channel = |values: [f64; 3]| Tensor::from_slice(&values.map(|value| value as f32)).view([1, 3, 1, 1]);
    Ok((Tensor::f_cat(&all, 0)? - per_channel(CLIP_MEAN)) / per_channel(CLIP_STD))
}

/// Cosines of the embeddings of images and prompts, \[n\], f32.
fn cosine(clip: &Clip, pixels: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (side, text) = (clip.config.vision_config.image_size, &clip.config.text_config);
    let n = match pixels.size()[..] {
        [n, 3, height, width] if (height, width) == (side, side) => n,
        _ => return Err(Error::Input(format!("CLIP takes pixels [n, 3, {side}, {side}], found {:?}", pixels.size()))),
    };
    let shape = ids.size();
    let fits = shape.len() == 2 && (shape[0] == n || shape[0] == 1);
    if !fits || !(1..=text.max_position_embeddings).contains(&shape[1]) {
        let most = text.max_position_embeddings;
        return Err(Error::Input(format!("CLIP takes token ids [{n}, up to {most}] for {n} images, found {shape:?}")));
    }
    let highest = if ids.numel() == 0 { 0 } else { ids.max().int64_value(&[]) };
    if highest >= text.vocab_size || (ids.numel() > 0 && ids.min().int64_value(&[]) < 0) {
        return Err(Error::Input(format!("CLIP knows the token ids below {}, found {highest}", text.vocab_size)));
    }
    let embedding = |raw: Tensor| normalized(&raw.to_kind(Kind::Float));
    let (image, text) = (embedding(clip.embed_images(pixels)), embedding(clip.embed_texts(ids)));
    Ok((image * text).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float))
}
