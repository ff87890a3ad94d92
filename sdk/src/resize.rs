//! The host's resize: Pillow's bicubic and bilinear filters with antialiasing on 8-bit RGB.
//!
//! The same fixed-point arithmetic as Pillow's `Resample.c` (`ImagingResample`, 8 bits per channel): coefficients
//! rounded to 22 fractional bits, one horizontal and one vertical pass, each rounded to u8. The result equals
//! that of `PIL.Image.resize(size, BICUBIC)`, or `BILINEAR`, of Pillow 13, byte for byte. (Up to Pillow 12 the horizontal pass always
//! came first.)

/// Fractional bits of a coefficient: 32 minus 8 of a sample, minus 2 for overshoot and sign.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// How an output sample is made of the input samples near it. Both filters widen when an image is made smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Linear between the two nearest samples per axis.
    Bilinear,
    /// Keys' cubic kernel with a = -0.5 over four samples per axis.
    Bicubic,
}

impl Filter {
    /// Half the width of the kernel at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The kernel at a distance in samples.
    fn kernel(self, x: f64) -> f64 {
        match self {
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => cubic(x),
        }
    }
}

/// Resizes interleaved RGB rows from `width` × `height` to `new_width` × `new_height` by the bicubic filter.
///
/// # Panics
/// If `rgb` is not 3 · width · height long, or a side is 0.
pub fn resize_bicubic(rgb: &[u8], width: usize, height: usize, new_width: usize, new_height: usize) -> Vec<u8> {
    resize(rgb, width, height, new_width, new_height, Filter::Bicubic)
}

/// Resizes interleaved RGB rows from `width` × `height` to `new_width` × `new_height`.
///
/// # Panics
/// If `rgb` is not 3 · width · height long, or a side is 0.
pub fn resize(rgb: &[u8], width: usize, height: usize, new_width: usize, new_height: usize, filter: Filter) -> Vec<u8> {
    assert_eq!(rgb.len(), 3 * width * height, "an RGB image of {width}x{height} has 3 bytes per pixel");
    assert!(width > 0 && height > 0 && new_width > 0 && new_height > 0, "an image has at least one pixel per side");
    if down_first(width, height, new_width, new_height) {
        let down = resize_columns(rgb, width, height, new_height, filter);
        return resize_rows(&down, width, new_height, new_width, filter);
    }
    let across = (new_width != width).then(|| resize_rows(rgb, width, height, new_width, filter));
    let across = across.as_deref().unwrap_or(rgb);
    if new_height == height { across.to_vec() } else { resize_columns(across, new_width, height, new_height, filter) }
}

/// Whether Pillow 13 does the vertical pass first, as it does if the height shrinks by much more than the width.
fn down_first(width: usize, height: usize, new_width: usize, new_height: usize) -> bool {
    let shrinks = |from: usize, to: usize| from as i64 - to as i64;
    new_width != width && new_height < height && shrinks(height, new_height) > 2 * shrinks(width, new_width)
}

/// The input samples whose weighted sum is one output sample.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// Returns one window for each output sample (`precompute_coeffs` and `normalize_coeffs_8bpc`).
fn windows(size: usize, new_size: usize, filter: Filter) -> Vec<Window> {
    let scale = size as f64 / new_size as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    (0..new_size)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(size);
            let inverse = 1.0 / filter_scale;
            let weight = |x: usize| filter.kernel((x as f64 - center + 0.5) * inverse);
            let mut weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            Window { first, weights: weights.into_iter().map(fixed_point).collect() }
        })
        .collect()
}

/// Keys' cubic kernel with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Rounds half away from zero.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn resize_rows(rgb: &[u8], width: usize, height: usize, new_width: usize, filter: Filter) -> Vec<u8> {
    let windows = windows(width, new_width, filter);
    let mut out = vec![0; 3 * new_width * height];
    for (row, out_row) in rgb.chunks_exact(3 * width).zip(out.chunks_exact_mut(3 * new_width)) {
        for (window, out_pixel) in windows.iter().zip(out_row.chunks_exact_mut(3)) {
            let pixels = &row[3 * window.first..3 * (window.first + window.weights.len())];
            let mut sums = [HALF; 3];
            for (pixel, &weight) in pixels.chunks_exact(3).zip(&window.weights) {
                for (sum, &sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(sample) * weight;
                }
            }
            for (out, sum) in out_pixel.iter_mut().zip(sums) {
                *out = to_u8(sum);
            }
        }
    }
    out
}

fn resize_columns(rgb: &[u8], width: usize, height: usize, new_height: usize, filter: Filter) -> Vec<u8> {
    let stride = 3 * width;
    let mut out = vec![0; stride * new_height];
    let mut sums = vec![HALF; stride];
    for (window, out_row) in windows(height, new_height, filter).iter().zip(out.chunks_exact_mut(stride)) {
        sums.fill(HALF);
        // Whole rows at a time, so that the inner loop runs over neighboring bytes.
        for (row, &weight) in rgb[stride * window.first..].chunks_exact(stride).zip(&window.weights) {
            for (sum, &sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (out, &sum) in out_row.iter_mut().zip(&sums) {
            *out = to_u8(sum);
        }
    }
    out
}
