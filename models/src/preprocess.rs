//! Preprocessing of images for CLIP, DINO and DINOv2, as transformers' `CLIPImageProcessor`, `ViTImageProcessor` and
//! `BitImageProcessor` on Pillow do it.

use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::json::{JsonObject, MAX_SIDE, write_json};
use ambiguity_sdk::resize::{Filter, resize};

/// CLIP's mean of red, green and blue on [0, 1].
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// CLIP's standard deviation of red, green and blue on [0, 1].
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// The largest number of pixels of a resized image; a long and thin image has more of them then than before.
const MAX_RESIZED: usize = 1 << 26;
/// The filters by Pillow's numbers.
const PIL_FILTERS: [(i64, Filter); 2] = [(2, Filter::Bilinear), (3, Filter::Bicubic)];
/// transformers' mean and standard deviation of each color for a `ViTImageProcessor` that states none.
const VIT_MEAN_AND_STD: [f64; 3] = [0.5; 3];

/// The size that an image is resized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// Length of the shorter side in pixels; the aspect ratio stays.
    ShortestEdge(usize),
    /// Both sides in pixels; the image is stretched.
    Exact {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
    },
}

/// Resize, center crop, rescaling to [0, 1], and normalization by mean and standard deviation.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessor {
    /// The resize, unless switched off.
    pub resize: Option<Resize>,
    /// The filter of the resize.
    pub filter: Filter,
    /// Height and width of the center crop, unless switched off.
    pub crop: Option<(usize, usize)>,
    /// Factor that a value of 0…255 is multiplied by.
    pub rescale_factor: f64,
    /// Value that is then subtracted, per channel.
    pub mean: [f64; 3],
    /// Value that is then divided by, per channel.
    pub std: [f64; 3],
}

impl Preprocessor {
    /// CLIP's preprocessing to `size` × `size` pixels.
    pub fn clip(size: usize) -> Self {
        Self {
            resize: Some(Resize::ShortestEdge(size)),
            filter: Filter::Bicubic,
            crop: Some((size, size)),
            rescale_factor: 1.0 / 255.0,
            mean: CLIP_MEAN,
            std: CLIP_STD,
        }
    }

    /// Reads preprocessor_config.json (or transformers 5's processor_config.json); without either, CLIP's constants
    /// with `image_size`, which is the vision configuration's.
    pub fn load(dir: &Path, image_size: i64) -> Result<Self> {
        Ok(Self::read_if_present(dir)?.unwrap_or_else(|| Self::clip(image_size as usize)))
    }

    /// Reads preprocessor_config.json, or transformers 5's processor_config.json.
    ///
    /// # Errors
    /// If the folder has neither, or a value is not supported; the message names the file and the key.
    pub fn read(dir: &Path) -> Result<Self> {
        let missing = || Error::Input(format!("{} has no preprocessor_config.json", dir.display()));
        Self::read_if_present(dir)?.ok_or_else(missing)
    }

    fn read_if_present(dir: &Path) -> Result<Option<Self>> {
        if let Some(object) = JsonObject::read_if_present(&dir.join("preprocessor_config.json"))? {
            return Self::from_object(&object).map(Some);
        }
        let whole = JsonObject::read_if_present(&dir.join("processor_config.json"))?;
        let object = whole.map(|whole| whole.object("image_processor")).transpose()?.flatten();
        object.map(|object| Self::from_object(&object)).transpose()
    }

    /// Refuses a folder's preprocessing whose images never fit a model that takes `side` × `side` pixels.
    ///
    /// Without a crop the shape of an image decides: see [`Preprocessor::expect_side`].
    pub fn check_side(&self, dir: &Path, side: usize) -> Result<()> {
        let found = match (self.crop, self.resize) {
            (Some((height, width)), _) => Some(("crop_size", height, width)),
            (None, Some(Resize::Exact { height, width })) => Some(("size", height, width)),
            (None, Some(Resize::ShortestEdge(edge))) => Some(("size", edge, edge)),
            (None, None) => None,
        };
        match found.filter(|&(_, height, width)| (height, width) != (side, side)) {
            None => Ok(()),
            Some((key, height, width)) => {
                let message = format!(
                    "the preprocessor's `{key}` is {height}x{width} (224x224 if the key is absent), but the model takes \
                     images of {side}x{side} pixels"
                );
                Err(Error::Config { path: dir.to_owned(), message })
            }
        }
    }

    /// Refuses images (width, height) that do not become `side` × `side` pixels: without a crop, those that are not
    /// square.
    pub fn expect_side(&self, images: impl IntoIterator<Item = (usize, usize)>, side: usize) -> Result<()> {
        for (i, (width, height)) in images.into_iter().enumerate() {
            let (new_width, new_height) = self.output_size(width, height);
            if (new_width, new_height) != (side, side) {
                let message = format!(
                    "image {i} of {width}x{height} pixels becomes {new_width}x{new_height}, but the model takes \
                     {side}x{side}: crop it, or set `do_center_crop` in the encoder's preprocessor_config.json"
                );
                return Err(Error::Input(message));
            }
        }
        Ok(())
    }

    fn from_object(object: &JsonObject) -> Result<Self> {
        let vit = is_vit(object)?;
        let filter = match object.int("resample", 0..=5)? {
            None if vit => Filter::Bilinear,
            None => Filter::Bicubic,
            Some(number) => {
                PIL_FILTERS.iter().find(|(known, _)| *known == number).map(|&(_, filter)| filter).ok_or_else(|| {
                    object.error("resample", format!("is {number}, only 2 (bilinear) or 3 (bicubic) is supported"))
                })?
            }
        };
        let square = |side| Resize::Exact { height: side, width: side };
        let resize = match object.value("size") {
            None if vit => square(224),
            None => Resize::ShortestEdge(224),
            Some(Value::Object(_)) => {
                let size = object.object("size")?.unwrap_or_else(|| object.empty("size"));
                if size.value("shortest_edge").is_some() {
                    if size.value("longest_edge").is_some() {
                        return Err(size.error("longest_edge", "is not supported beside shortest_edge"));
                    }
                    Resize::ShortestEdge(side(&size, "shortest_edge", 224)?)
                } else {
                    let (height, width) = height_and_width(&size)?;
                    Resize::Exact { height, width }
                }
            }
            Some(_) if vit => square(side(object, "size", 224)?),
            Some(_) => Resize::ShortestEdge(side(object, "size", 224)?),
        };
        let crop = match object.value("crop_size") {
            Some(Value::Object(_)) => {
                height_and_width(&object.object("crop_size")?.unwrap_or_else(|| object.empty("crop_size")))?
            }
            _ => {
                let side = side(object, "crop_size", 224)?;
                (side, side)
            }
        };
        let rescale = object.flag("do_rescale", true)?;
        let normalize = object.flag("do_normalize", true)?;
        let std = object.rgb("image_std", 1e-6..=1e6)?.unwrap_or(if vit { VIT_MEAN_AND_STD } else { CLIP_STD });
        let mean = object.rgb("image_mean", -1e6..=1e6)?.unwrap_or(if vit { VIT_MEAN_AND_STD } else { CLIP_MEAN });
        let factor = object.number("rescale_factor", 1e-6..=1e6)?.unwrap_or(1.0 / 255.0);
        Ok(Self {
            resize: object.flag("do_resize", true)?.then_some(resize),
            filter,
            crop: object.flag("do_center_crop", !vit)?.then_some(crop),
            rescale_factor: if rescale { factor } else { 1.0 },
            mean: if normalize { mean } else { [0.0; 3] },
            std: if normalize { std } else { [1.0; 3] },
        })
    }

    /// Writes `dir`/preprocessor_config.json, which transformers loads as a `CLIPImageProcessor`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let mut value = json!({
            "image_processor_type": "CLIPImageProcessor",
            "feature_extractor_type": "CLIPFeatureExtractor",
            "do_convert_rgb": true,
            "do_resize": self.resize.is_some(),
            "do_center_crop": self.crop.is_some(),
            "do_rescale": true,
            "do_normalize": true,
            "resample": PIL_FILTERS.iter().find(|(_, filter)| *filter == self.filter).map(|(number, _)| number),
            "rescale_factor": self.rescale_factor,
            "image_mean": self.mean,
            "image_std": self.std,
        });
        match self.resize {
            Some(Resize::ShortestEdge(edge)) => value["size"] = json!({ "shortest_edge": edge }),
            Some(Resize::Exact { height, width }) => value["size"] = json!({ "height": height, "width": width }),
            None => {}
        }
        if let Some((height, width)) = self.crop {
            value["crop_size"] = json!({ "height": height, "width": width });
        }
        write_json(&dir.join("preprocessor_config.json"), &value)
    }

    /// Converts interleaved RGB images (bytes, width, height) to f32 [n, 3, height, width] on the CPU, in parallel.
    ///
    /// # Errors
    /// If an image is empty, does not have 3 bytes per pixel or is too long and thin to be resized, or if, without a
    /// crop, the results differ in shape.
    pub fn pixels(&self, images: &[(&[u8], usize, usize)]) -> Result<Tensor> {
        for (i, &(rgb, width, height)) in images.iter().enumerate() {
            if width == 0 || height == 0 || rgb.len() != 3 * width * height {
                let bytes = rgb.len();
                return Err(Error::Input(format!("image {i} of {width}x{height} pixels has {bytes} bytes of RGB")));
            }
            let (new_width, new_height) = self.resized_size(width, height);
            if new_width.saturating_mul(new_height) > MAX_RESIZED {
                let message = format!(
                    "image {i} of {width}x{height} pixels is too long and thin: it would be resized to \
                     {new_width}x{new_height}"
                );
                return Err(Error::Input(message));
            }
        }
        let Some(&(_, width, height)) = images.first() else {
            return Err(Error::Input("there are no images to preprocess".to_owned()));
        };
        let (out_width, out_height) = self.output_size(width, height);
        let different = images.iter().position(|&(_, w, h)| self.output_size(w, h) != (out_width, out_height));
        if let Some(i) = different {
            return Err(Error::Input(format!("image {i} has another shape than image 0, and they are not cropped")));
        }
        let table = self.table();
        let plane = out_width * out_height;
        let mut pixels = vec![0f32; images.len() * 3 * plane];
        pixels.par_chunks_exact_mut(3 * plane).zip(images).for_each(|(out, &image)| {
            let cropped = self.resized_and_cropped(image);
            for (channel, (out, table)) in out.chunks_exact_mut(plane).zip(&table).enumerate() {
                for (out, pixel) in out.iter_mut().zip(cropped.chunks_exact(3)) {
                    *out = table[usize::from(pixel[channel])];
                }
            }
        });
        let shape = [images.len() as i64, 3, out_height as i64, out_width as i64];
        Ok(Tensor::f_from_slice(&pixels)?.f_view(shape)?)
    }

    /// The same for images that gradients flow through: [n, 3, h, w] on [0, 1] to normalized pixels, resized by
    /// the same filter with antialiasing in floating point, without rounding to integers.
    ///
    /// # Errors
    /// If the images are smaller than the crop, or the tensor has another shape.
    pub fn pixels_from_tensor(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = images
            .size4()
            .map_err(|_| Error::Input(format!("images must have shape [n, 3, h, w], found {:?}", images.size())))?;
        if channels != 3 {
            return Err(Error::Input(format!("images must have 3 channels, found {channels}")));
        }
        let (new_width, new_height) = self.resized_size(width as usize, height as usize);
        let resized = resize_tensor(images, new_width, new_height, self.filter)?;
        let cropped = match self.crop {
            None => resized,
            Some((crop_height, crop_width)) if crop_height <= new_height && crop_width <= new_width => {
                let (top, left) = ((new_height - crop_height) / 2, (new_width - crop_width) / 2);
                resized.f_narrow(2, top as i64, crop_height as i64)?.f_narrow(3, left as i64, crop_width as i64)?
            }
            Some((h, w)) => {
                let message = format!("images of {new_width}x{new_height} pixels are smaller than the crop of {w}x{h}");
                return Err(Error::Input(message));
            }
        };
        let per_channel = |values: [f64; 3]| {
            let values = Tensor::from_slice(&values).view([1, 3, 1, 1]);
            values.to_kind(cropped.kind()).to_device(cropped.device())
        };
        let scaled = &cropped * (self.rescale_factor * 255.0);
        Ok((scaled - per_channel(self.mean)) / per_channel(self.std))
    }

    /// Width and height after resize and crop.
    fn output_size(&self, width: usize, height: usize) -> (usize, usize) {
        match self.crop {
            Some((crop_height, crop_width)) => (crop_width, crop_height),
            None => self.resized_size(width, height),
        }
    }

    /// Width and height after the resize; the longer side is rounded down, as upstream.
    fn resized_size(&self, width: usize, height: usize) -> (usize, usize) {
        match self.resize {
            None => (width, height),
            Some(Resize::Exact { height, width }) => (width, height),
            Some(Resize::ShortestEdge(edge)) if width <= height => (edge, scaled_side(edge, height, width)),
            Some(Resize::ShortestEdge(edge)) => (scaled_side(edge, width, height), edge),
        }
    }

    fn resized_and_cropped(&self, (rgb, width, height): (&[u8], usize, usize)) -> Vec<u8> {
        let (new_width, new_height) = self.resized_size(width, height);
        let resized = resize(rgb, width, height, new_width, new_height, self.filter);
        let Some((crop_height, crop_width)) = self.crop else { return resized };
        if (crop_height, crop_width) == (new_height, new_width) {
            return resized;
        }
        let (top, left) = (crop_start(new_height, crop_height), crop_start(new_width, crop_width));
        let mut out = vec![0; 3 * crop_width * crop_height];
        // Pixels outside the image stay black.
        let columns = left.max(0)..(left + crop_width as isize).min(new_width as isize);
        let out_left = (columns.start - left) as usize;
        let length = 3 * columns.len();
        for (y, out_row) in out.chunks_exact_mut(3 * crop_width).enumerate() {
            let row = top + y as isize;
            if (0..new_height as isize).contains(&row) {
                let start = 3 * (row as usize * new_width + columns.start as usize);
                out_row[3 * out_left..3 * out_left + length].copy_from_slice(&resized[start..start + length]);
            }
        }
        out
    }

    /// The normalized value of each of the 256 values, by channel: computed in f64 up to the rescaling and in f32 after
    /// it, as upstream.
    fn table(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            let (mean, std) = (self.mean[channel] as f32, self.std[channel] as f32);
            std::array::from_fn(|level| ((level as f64 * self.rescale_factor) as f32 - mean) / std)
        })
    }
}

/// f32 or f64 images [n, c, h, w] to [n, c, new_height, new_width]: the filter of [`resize`] without rounding,
/// differentiable. 16-bit images are resized in f32.
pub fn resize_tensor(images: &Tensor, new_width: usize, new_height: usize, filter: Filter) -> Result<Tensor> {
    let kind = images.kind();
    if images.size().ends_with(&[new_height as i64, new_width as i64]) {
        return Ok(images.shallow_clone());
    }
    let wide = if kind == Kind::Double { images.shallow_clone() } else { images.f_to_kind(Kind::Float)? };
    let size = [new_height as i64, new_width as i64];
    let resized = match filter {
        Filter::Bilinear => wide.f_internal_upsample_bilinear2d_aa(size, false, None::<f64>, None::<f64>)?,
        Filter::Bicubic => wide.f_internal_upsample_bicubic2d_aa(size, false, None::<f64>, None::<f64>)?,
    };
    Ok(resized.f_to_kind(kind)?)
}

/// Whether a file is that of a `ViTImageProcessor`, whose defaults are its own; other files have those of
/// `CLIPImageProcessor`, which are also `BitImageProcessor`'s.
fn is_vit(object: &JsonObject) -> Result<bool> {
    let kind = match object.text("image_processor_type")? {
        Some(kind) => Some(kind),
        None => object.text("feature_extractor_type")?,
    };
    Ok(kind.is_some_and(|kind| kind.starts_with("ViTImageProcessor") || kind.starts_with("ViTFeatureExtractor")))
}

/// `int(edge * long / short)` upstream.
fn scaled_side(edge: usize, long: usize, short: usize) -> usize {
    edge * long / short
}

/// Where the crop starts, negative if the image is smaller: `(size - crop) // 2`, where `size` is padded first.
fn crop_start(size: usize, crop: usize) -> isize {
    let (size, crop) = (size as isize, crop as isize);
    (size - crop).div_euclid(2)
}

fn height_and_width(object: &JsonObject) -> Result<(usize, usize)> {
    for key in ["height", "width"] {
        if object.value(key).is_none() {
            return Err(object.error(key, "is missing"));
        }
    }
    Ok((side(object, "height", 1)?, side(object, "width", 1)?))
}

fn side(object: &JsonObject, key: &str, default: i64) -> Result<usize> {
    Ok(object.int(key, 1..=MAX_SIDE)?.unwrap_or(default) as usize)
}
