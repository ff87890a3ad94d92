//! Classifies an image by its palette: warm or cold, vivid or muted, light or dark. Needs pixels alone, no encoder.
//!
//! The image's mean lightness, mean chroma and mean warmth in Oklab (Björn Ottosson, "A perceptual color space for
//! image processing", 2020) are three axes through a neutral point; each axis has a style at either end, and the
//! logits are the image's position towards that end. The distribution is flat for an image of medium lightness and
//! chroma that is as warm as it is cold. The option `sharpness` multiplies the logits.

use ambiguity_sdk::{
    Batch, Classifier, Description, Distribution, Distributions, Error, Host, Image, Medium, Plugin, PluginOption,
    Result, export,
};

/// The plugin; see the module.
pub struct Palette {
    sharpness: f32,
}

export!(Palette: Classifier);

const SHARPNESS: PluginOption<f64> =
    PluginOption::new("sharpness", 3.0, "Multiplies the logits, 0 to 100: above 3 for clearer decisions");

/// The ends of the axes: warmth, chroma, lightness.
const STYLES: [&str; 6] = ["warm", "cold", "vivid", "muted", "light", "dark"];

/// Side in pixels to which the image is resized.
const SIDE: usize = 64;

/// The direction of warmth in Oklab's plane of (a, b): orange, 55 degrees.
const WARM: [f32; 2] = [0.573_576_4, 0.819_152];

/// The neutral point of each axis, and the distance from it at which an image is clearly of one style.
const WARMTH: (f32, f32) = (0.0, 0.08);
const CHROMA: (f32, f32) = (0.09, 0.09);
const LIGHTNESS: (f32, f32) = (0.6, 0.35);

impl Plugin for Palette {
    fn new(host: &Host) -> Result<Self> {
        let sharpness = SHARPNESS.get(host)?;
        if !(0.0..=100.0).contains(&sharpness) {
            return Err(Error::new(format!("sharpness is {sharpness}, it must be a number from 0 to 100")));
        }
        Ok(Self { sharpness: sharpness as f32 })
    }

    fn describe(&self) -> Description {
        Description::new("palette", env!("CARGO_PKG_VERSION")).medium(Medium::Image).option(SHARPNESS)
    }
}

impl Classifier for Palette {
    fn styles(&self) -> Vec<String> {
        STYLES.map(String::from).to_vec()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        let (sharpness, linear) = (self.sharpness, linear_light());
        (0..batch.len())
            .map(|i| {
                let axes = axes(&batch.image_resized(i, SIDE, SIDE)?, &linear);
                Distribution::softmax(axes.iter().flat_map(|x| [x * sharpness, -x * sharpness]).collect())
            })
            .collect()
    }
}

/// Returns warmth, chroma and lightness of an image, each 0 at the neutral point.
fn axes(image: &Image, linear: &[f32; 256]) -> [f32; 3] {
    let mut sums = [0.0; 3];
    for pixel in image.rgb.chunks_exact(3) {
        let [lightness, a, b] = oklab([0, 1, 2].map(|i| linear[usize::from(pixel[i])]));
        sums[0] += a * WARM[0] + b * WARM[1];
        sums[1] += (a * a + b * b).sqrt();
        sums[2] += lightness;
    }
    let n_pixels = (image.width * image.height) as f32;
    let axis = |i: usize, (neutral, reach): (f32, f32)| (sums[i] / n_pixels - neutral) / reach;
    [axis(0, WARMTH), axis(1, CHROMA), axis(2, LIGHTNESS)]
}

/// Returns sRGB's u8 values as linear light in [0, 1] (IEC 61966-2-1).
fn linear_light() -> [f32; 256] {
    std::array::from_fn(|i| {
        let x = i as f32 / 255.0;
        if x <= 0.040_45 { x / 12.92 } else { ((x + 0.055) / 1.055).powf(2.4) }
    })
}

/// Converts linear sRGB to Oklab: lightness in [0, 1], and the plane of colors.
fn oklab([r, g, b]: [f32; 3]) -> [f32; 3] {
    let l = (0.412_221_46 * r + 0.536_332_54 * g + 0.051_445_995 * b).cbrt();
    let m = (0.211_903_5 * r + 0.680_699_5 * g + 0.107_396_96 * b).cbrt();
    let s = (0.088_302_46 * r + 0.281_718_85 * g + 0.629_978_7 * b).cbrt();
    [
        0.210_454_26 * l + 0.793_617_8 * m - 0.004_072_047 * s,
        1.977_998_5 * l - 2.428_592_2 * m + 0.450_593_7 * s,
        0.025_904_037 * l + 0.782_771_77 * m - 0.808_675_77 * s,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample};

    fn plain(color: [u8; 3]) -> FakeSample {
        FakeSample::image(2, 3, color.repeat(6))
    }

    fn likeliest(color: [u8; 3]) -> &'static str {
        let host = FakeHost::new();
        let palette = host.load::<Palette>().expect("it needs nothing");
        STYLES[palette.classify(&FakeBatch::new([plain(color)])).expect("an image").likeliest(0)]
    }

    #[test]
    fn oklab_is_the_published_one() {
        // sRGB red, from the definition's own test values: L 0.6280, a 0.2249, b 0.1258.
        let found = oklab([1.0, 0.0, 0.0]);
        for (found, expected) in found.iter().zip([0.627_955, 0.224_863, 0.125_846]) {
            assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
        }
    }

    #[test]
    fn plain_colors_are_what_a_person_says() {
        let table = [([0, 0, 0], "dark"), ([255, 255, 255], "light"), ([255, 120, 0], "warm"), ([0, 80, 220], "cold")];
        for (color, style) in table.into_iter().chain([([0, 230, 60], "vivid"), ([128, 128, 128], "muted")]) {
            assert_eq!(likeliest(color), style, "{color:?}");
        }
    }

    #[test]
    fn sharpness_0_is_flat_and_others_are_checked() {
        let host = FakeHost::new().option("sharpness", "0");
        let palette = host.load::<Palette>().expect("a sharpness");
        let found = palette.classify(&FakeBatch::new([plain([255, 0, 0])])).expect("an image");
        assert!(found.probabilities(0).iter().all(|p| (p - 1.0 / 6.0).abs() < 1e-6));
        let message = |value: &str| {
            FakeHost::new().option("sharpness", value).load::<Palette>().err().expect("no sharpness").to_string()
        };
        assert_eq!(message("101"), "sharpness is 101, it must be a number from 0 to 100");
        assert_eq!(message("very"), "the option `sharpness` is `very`, which is no number");
    }
}
