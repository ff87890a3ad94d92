//! Videos from animated GIF, WebP and PNG files.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, DynamicImage, Frame, ImageError, ImageFormat, RgbImage};

use super::images::on_white;

/// A video: frames of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Video {
    /// The frames; at least one.
    pub frames: Vec<RgbImage>,
    /// Frames per second.
    pub frame_rate: f64,
}

/// Maximum number of pixels of all frames of a video.
const MAX_PIXELS: u64 = 1 << 28;

/// The time of a frame that has none, in seconds, as browsers show it.
const DEFAULT_DELAY: f64 = 0.1;

/// Why a video could not be read.
#[derive(Debug, thiserror::Error)]
pub enum VideoError {
    /// The file could not be read.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not an animation, or damaged.
    #[error("{path} is not a readable video: {why}", path = .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// Reads an animated GIF, WebP or PNG file. The frame rate is that of the frames' mean time; transparent parts are white.
///
/// # Errors
/// If the file cannot be read, is of another format, or has too many pixels in all.
pub fn read_video(path: &Path) -> Result<Video, VideoError> {
    let bytes = std::fs::read(path).map_err(|source| VideoError::Io { path: path.to_owned(), source })?;
    decode(&bytes).map_err(|why| VideoError::Broken { path: path.to_owned(), why })
}

fn decode(bytes: &[u8]) -> Result<Video, String> {
    let bytes = Cursor::new(bytes);
    let broken = |error: ImageError| error.to_string();
    let frames = match image::guess_format(bytes.get_ref()) {
        Ok(ImageFormat::Gif) => GifDecoder::new(bytes).map_err(broken)?.into_frames(),
        Ok(ImageFormat::WebP) => {
            let decoder = WebPDecoder::new(bytes).map_err(broken)?;
            if !decoder.has_animation() {
                return Err("it is a WebP image without an animation".to_owned());
            }
            decoder.into_frames()
        }
        Ok(ImageFormat::Png) => {
            let decoder = PngDecoder::new(bytes).map_err(broken)?;
            if !decoder.is_apng().map_err(broken)? {
                return Err("it is a PNG image without an animation".to_owned());
            }
            decoder.apng().map_err(broken)?.into_frames()
        }
        _ => return Err("it is no animated GIF, WebP or PNG file; `ffmpeg -i FILE out.webp` writes one".to_owned()),
    };
    let (mut images, mut pixels, mut seconds) = (vec![], 0u64, 0.0);
    for frame in frames {
        let frame: Frame = frame.map_err(broken)?;
        let delay = Duration::from(frame.delay()).as_secs_f64();
        seconds += if delay > 0.0 { delay } else { DEFAULT_DELAY };
        let (image, _) = on_white(DynamicImage::ImageRgba8(frame.into_buffer()));
        pixels += u64::from(image.width()) * u64::from(image.height());
        if pixels > MAX_PIXELS {
            return Err(format!("its frames have more than {} megapixels in all", MAX_PIXELS >> 20));
        }
        images.push(image);
    }
    if images.is_empty() {
        return Err("it has no frames".to_owned());
    }
    Ok(Video { frame_rate: images.len() as f64 / seconds, frames: images })
}

#[cfg(test)]
mod tests {
    use image::codecs::gif::GifEncoder;
    use image::{Delay, Rgba, RgbaImage};

    use super::*;

    #[test]
    fn animations_have_frames_and_a_rate() {
        let mut bytes = vec![];
        let mut encoder = GifEncoder::new(&mut bytes);
        for (level, alpha) in [(0, 255), (200, 255), (0, 0)] {
            let image = RgbaImage::from_pixel(4, 3, Rgba([level, level, level, alpha]));
            let delay = Delay::from_saturating_duration(Duration::from_millis(50));
            encoder.encode_frame(Frame::from_parts(image, 0, 0, delay)).expect("a frame");
        }
        drop(encoder);
        let video = decode(&bytes).expect("a GIF");
        assert!(video.frames.len() == 3 && (video.frame_rate - 20.0).abs() < 1e-9, "{}", video.frame_rate);
        assert_eq!(video.frames[1].get_pixel(0, 0).0, [200; 3]);
    }

    #[test]
    fn what_is_not_animated_is_named() {
        let mut png = Cursor::new(vec![]);
        RgbImage::new(2, 2).write_to(&mut png, ImageFormat::Png).expect("a PNG");
        assert_eq!(decode(png.get_ref()).expect_err("still"), "it is a PNG image without an animation");
        assert!(decode(b"....ftypmp42").expect_err("an MP4").starts_with("it is no animated GIF"));
    }
}
