//! Square images of one size.

use ambiguity_sdk::resize::resize_bicubic;
use image::{RgbImage, imageops};

use crate::config::gan::Fit;

/// Returns an image as three planes, u8 [3, size, size], resized once with antialiasing.
///
/// A padded image is resized before it gets its borders: a narrow image never becomes a huge square in memory, and the
/// filter does not blend the black border into the image.
pub(super) fn square(image: &RgbImage, size: u32, fit: Fit) -> Vec<u8> {
    let (width, height) = image.dimensions();
    let resized = |image: &RgbImage, to: (u32, u32)| {
        let (width, height) = image.dimensions();
        if (width, height) == to {
            return image.as_raw().clone();
        }
        resize_bicubic(image.as_raw(), width as usize, height as usize, to.0 as usize, to.1 as usize)
    };
    match fit {
        Fit::Crop => {
            let side = width.min(height);
            let (x, y) = ((width - side) / 2, (height - side) / 2);
            let middle = imageops::crop_imm(image, x, y, side, side).to_image();
            planes(&resized(&middle, (size, size)), (size, size), size)
        }
        Fit::Pad => {
            let longer = width.max(height);
            let scaled = |side: u32| {
                let rounded = (u64::from(side) * u64::from(size) + u64::from(longer) / 2) / u64::from(longer);
                (rounded as u32).max(1)
            };
            let to = (scaled(width), scaled(height));
            planes(&resized(image, to), to, size)
        }
    }
}

/// Returns three black planes with interleaved rows of `width` × `height` in the middle.
fn planes(rgb: &[u8], (width, height): (u32, u32), size: u32) -> Vec<u8> {
    let (left, top) = (((size - width) / 2) as usize, ((size - height) / 2) as usize);
    let (width, size) = (width as usize, size as usize);
    let mut planes = vec![0; 3 * size * size];
    for (y, row) in rgb.chunks_exact(3 * width).enumerate() {
        let at = (top + y) * size + left;
        for (x, pixel) in row.chunks_exact(3).enumerate() {
            for (channel, &value) in pixel.iter().enumerate() {
                planes[channel * size * size + at + x] = value;
            }
        }
    }
    planes
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    /// Left half red, right half blue, 8 × 4.
    fn wide() -> RgbImage {
        RgbImage::from_fn(8, 4, |x, _| if x < 4 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) })
    }

    #[test]
    fn padding_keeps_the_whole_image_between_black_bars() {
        let planes = square(&wide(), 8, Fit::Pad);
        for (channel, columns) in [(0, 0..4), (1, 0..0), (2, 4..8)] {
            for (i, &value) in planes[channel * 64..(channel + 1) * 64].iter().enumerate() {
                let (x, y) = (i % 8, i / 8);
                let inside = (2..6).contains(&y) && columns.contains(&x);
                assert_eq!(value, if inside { 255 } else { 0 }, "channel {channel} at {x}, {y}");
            }
        }
    }

    #[test]
    fn cropping_keeps_the_middle() {
        let planes = square(&wide(), 4, Fit::Crop);
        assert_eq!(planes[..4], [255, 255, 0, 0]);
        assert_eq!(planes[32..36], [0, 0, 255, 255]);
    }

    #[test]
    fn images_of_any_shape_become_squares_and_resizing_uses_one_filter() {
        for (width, height) in [(1, 1), (1, 900), (300, 2), (17, 31), (64, 64)] {
            let image = RgbImage::from_pixel(width, height, Rgb([9, 99, 199]));
            for fit in [Fit::Pad, Fit::Crop] {
                assert_eq!(square(&image, 16, fit).len(), 3 * 16 * 16, "{width}x{height} {fit:?}");
            }
        }
        let image = RgbImage::from_fn(40, 40, |x, y| Rgb([(6 * x) as u8, (6 * y) as u8, (x * y) as u8]));
        let expected = resize_bicubic(image.as_raw(), 40, 40, 16, 16);
        let expected: Vec<u8> = (0..3).flat_map(|c| expected.iter().skip(c).step_by(3).copied()).collect();
        assert_eq!(square(&image, 16, Fit::Pad), expected);
        assert_eq!(square(&image, 16, Fit::Crop), expected);
    }
}
