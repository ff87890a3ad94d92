//! Images and recordings, as `host` reads them from a user's folder.

use std::io::Cursor;
use std::path::Path;

use ambiguity_host::data::audio::read_wav;
use ambiguity_host::data::images::ImageLoader;
use anyhow::Result;
use hound::{SampleFormat, WavSpec, WavWriter};
use image::{DynamicImage, ImageFormat};

use crate::put;

/// Returns a small image of each format and pixel type.
pub fn images(_: &Path) -> Result<Vec<Vec<u8>>> {
    let colored = DynamicImage::ImageRgba8(image::RgbaImage::from_fn(9, 5, |x, y| {
        image::Rgba([25 * x as u8, 50 * y as u8, (x * y) as u8, 200])
    }));
    let kinds = [
        (colored.clone(), ImageFormat::Png),
        (colored.to_rgb8().into(), ImageFormat::Png),
        (colored.to_luma8().into(), ImageFormat::Png),
        (colored.to_rgba16().into(), ImageFormat::Png),
        (colored.to_rgb8().into(), ImageFormat::Jpeg),
        (colored.to_luma8().into(), ImageFormat::Jpeg),
        (colored.clone(), ImageFormat::WebP),
        (colored.to_rgb8().into(), ImageFormat::WebP),
        (colored.clone(), ImageFormat::Gif),
        (colored.clone(), ImageFormat::Bmp),
        (colored.to_rgb8().into(), ImageFormat::Bmp),
        (colored.to_luma8().into(), ImageFormat::Bmp),
        (colored.clone(), ImageFormat::Tiff),
        (colored.to_rgb16().into(), ImageFormat::Tiff),
        (colored.to_luma8().into(), ImageFormat::Tiff),
    ];
    let encode = |(image, format): (DynamicImage, ImageFormat)| {
        let mut bytes = Cursor::new(vec![]);
        image.write_to(&mut bytes, format)?;
        Ok(bytes.into_inner())
    };
    kinds.into_iter().map(encode).collect()
}

pub fn image(folder: &Path, bytes: &[u8]) -> bool {
    put(folder, "image", bytes);
    match ImageLoader::default().read(&folder.join("image")) {
        Ok(image) => {
            assert_eq!(image.as_raw().len(), 3 * image.width() as usize * image.height() as usize);
            true
        }
        Err(_) => false,
    }
}

/// Returns a short recording of each sample type.
pub fn recordings(_: &Path) -> Result<Vec<Vec<u8>>> {
    let mut seeds = vec![];
    for bits_per_sample in [8, 16, 24, 32] {
        let spec = WavSpec { channels: 2, sample_rate: 8000, bits_per_sample, sample_format: SampleFormat::Int };
        let mut bytes = Cursor::new(vec![]);
        let mut writer = WavWriter::new(&mut bytes, spec)?;
        [0, 1, -1, 100].into_iter().try_for_each(|sample: i32| writer.write_sample(sample))?;
        writer.finalize()?;
        seeds.push(bytes.into_inner());
    }
    let spec = WavSpec { channels: 1, sample_rate: 8000, bits_per_sample: 32, sample_format: SampleFormat::Float };
    let mut bytes = Cursor::new(vec![]);
    let mut writer = WavWriter::new(&mut bytes, spec)?;
    [0.0f32, 0.5, -1.0].into_iter().try_for_each(|sample| writer.write_sample(sample))?;
    writer.finalize()?;
    seeds.push(bytes.into_inner());
    Ok(seeds)
}

pub fn audio(folder: &Path, bytes: &[u8]) -> bool {
    put(folder, "audio.wav", bytes);
    match read_wav(&folder.join("audio.wav")) {
        Ok(audio) => {
            assert!(!audio.pcm.is_empty() && audio.sample_rate > 0 && audio.channels > 0);
            assert!(audio.pcm.len().is_multiple_of(audio.channels.into()), "{}", audio.pcm.len());
            assert!(audio.pcm.iter().all(|sample| (-1.0..=1.0).contains(sample)));
            true
        }
        Err(_) => false,
    }
}
