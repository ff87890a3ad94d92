//! Scores an image by its size as a JPEG file, in kB of 1000 bytes: the compressibility of DDPO's paper (Black et al., 2023,
//! section 6.1: JPEG of quality 95, after which a smaller file is a better image). A negative weight rewards images that
//! compress badly instead. Needs pixels alone, no encoder.

use ambiguity_sdk::{
    Batch, Description, Error, Host, Image, Medium, Plugin, PluginOption, Result, Scale, Scorer, export,
};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

/// The plugin; see the module.
pub struct JpegSize {
    quality: u8,
}

export!(JpegSize: Scorer);

const QUALITY: PluginOption<i64> = PluginOption::new("quality", 95, "The quality of the JPEG file, 1 to 100");

impl Plugin for JpegSize {
    fn new(host: &Host) -> Result<Self> {
        let quality = QUALITY.get(host)?;
        match u8::try_from(quality) {
            Ok(quality @ 1..=100) => Ok(Self { quality }),
            _ => Err(Error::new(format!("quality is {quality}, it must be a number from 1 to 100"))),
        }
    }

    fn describe(&self) -> Description {
        let description = Description::new("jpeg_size", env!("CARGO_PKG_VERSION")).medium(Medium::Image);
        description.option(QUALITY).property("unit", "kB")
    }
}

impl Scorer for JpegSize {
    fn scale(&self) -> Scale {
        Scale::lower_is_better().at_least(0.0)
    }

    fn score(&self, batch: &Batch) -> Result<Vec<f64>> {
        (0..batch.len()).map(|i| self.kilobytes(&batch.image(i)?)).collect()
    }
}

impl JpegSize {
    /// Returns the size of an image's file in kB.
    fn kilobytes(&self, image: &Image) -> Result<f64> {
        let side = |side: usize| u16::try_from(side).map_err(|_| Error::new("a JPEG's sides are at most 65535 pixels"));
        let mut file = Vec::new();
        let mut encoder = Encoder::new(&mut file, self.quality);
        // As Pillow and libjpeg do by default.
        encoder.set_sampling_factor(SamplingFactor::F_2_2);
        encoder.encode(&image.rgb, side(image.width)?, side(image.height)?, ColorType::Rgb)?;
        Ok(file.len() as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};

    fn sizes(host: FakeHost) -> Vec<f64> {
        let noise = numbers(1, 64, 64 * 3).into_vec().into_iter().map(|x| ((x + 1.0) * 127.5) as u8).collect();
        let ramp = (0..64 * 64).flat_map(|i| [(i % 64 * 4) as u8; 3]).collect();
        let samples = [vec![128; 64 * 64 * 3], ramp, noise].map(|rgb| FakeSample::image(64, 64, rgb));
        host.load::<JpegSize>().and_then(|plugin| plugin.score(&FakeBatch::new(samples))).expect("three images")
    }

    #[test]
    fn what_has_more_in_it_is_larger() {
        let [flat, ramp, noise] = sizes(FakeHost::new())[..] else { panic!("three scores") };
        assert!(flat < ramp && 2.0 * ramp < noise, "{flat} {ramp} {noise}");
        let [_, _, worse] = sizes(FakeHost::new().option("quality", "30"))[..] else { panic!("three scores") };
        assert!(worse < 0.6 * noise, "{worse} {noise}");
    }

    #[test]
    fn qualities_are_those_of_jpeg() {
        let message = FakeHost::new().option("quality", "0").load::<JpegSize>().err().expect("too low").to_string();
        assert_eq!(message, "quality is 0, it must be a number from 1 to 100");
    }
}
