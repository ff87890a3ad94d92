//! The samples that a new crate starts with, for `host plugin test`.

use std::f32::consts::TAU;
use std::io::Cursor;

use anyhow::Result;
use hound::{SampleFormat, WavSpec, WavWriter};
use image::codecs::gif::GifEncoder;
use image::imageops::crop_imm;
use image::{Delay, DynamicImage, Frame, ImageFormat, RgbImage};
use procedural_art::{STYLES, paint};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::Kind;

/// Side of an image in pixels.
const SIDE: u32 = 96;

/// Number of frames of a video, and its side in pixels.
const FRAMES: u32 = 8;
const VIDEO_SIDE: u32 = 48;

/// Frames per second of a recording.
const RATE: u32 = 8000;

/// Side of an array.
const CELLS: usize = 16;

const NOTE: &str = "The ferry leaves at nine. It is cold on deck. Bring a coat.\n";
const LETTER: &str = "When at last the long rains had gone and the road lay dry and white in the sun, she walked down to \
                      the harbor, as she had every summer of her life, to search for the one red sail among the gray.\n";

/// Returns the names and contents of two samples.
pub(super) fn fixtures(kind: Kind) -> Result<[(&'static str, Vec<u8>); 2]> {
    Ok(match kind {
        Kind::Pixels | Kind::Embedding | Kind::Score => [
            ("impressionism.png", png(&painting("impressionism", 2, SIDE))?),
            ("ukiyo-e.png", png(&painting("ukiyo-e", 1, SIDE))?),
        ],
        Kind::Text => [("note.txt", NOTE.into()), ("letter.txt", LETTER.into())],
        Kind::Audio => [
            // Semitones above A3.
            ("melody.wav", wav(&[0, 4, 7, 12, 11, 7, 4, 0])?),
            ("bass.wav", wav(&[-24, -24, -17, -19, -24, -12, -17, -19])?),
        ],
        Kind::Video => {
            let [sea, street] = ["impressionism", "cubism"].map(|style| painting(style, 2, 2 * VIDEO_SIDE));
            let part = |whole: &RgbImage, x: u32| crop_imm(whole, x, VIDEO_SIDE / 2, VIDEO_SIDE, VIDEO_SIDE).to_image();
            let pan = (0..FRAMES).map(|t| part(&sea, 6 * t));
            let cut = (0..FRAMES).map(|t| if t < FRAMES / 2 { part(&sea, t) } else { part(&street, t) });
            [("pan.gif", gif(pan)?), ("cut.gif", gif(cut)?)]
        }
        Kind::Tensor => [
            ("hills.safetensors", array(|x, y| (TAU * x / 12.0).sin() + 0.5 * (TAU * y / 9.0).cos())?),
            // Neighbors have no relation to each other.
            ("rubble.safetensors", array(|x, y| (1e4 * (12.9898 * x + 78.233 * y).sin()).fract())?),
        ],
    })
}

/// Returns a painting.
fn painting(slug: &str, subject: usize, side: u32) -> RgbImage {
    let style = STYLES.iter().position(|style| style.slug == slug).expect("it is one of the styles");
    paint(style, subject, 7, 0, side)
}

fn png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut png = Cursor::new(vec![]);
    image.write_to(&mut png, ImageFormat::Png)?;
    Ok(png.into_inner())
}

/// Returns a GIF file of eight frames per second.
fn gif(frames: impl Iterator<Item = RgbImage>) -> Result<Vec<u8>> {
    let mut gif = vec![];
    let mut encoder = GifEncoder::new(&mut gif);
    for frame in frames {
        let frame = DynamicImage::ImageRgb8(frame).into_rgba8();
        encoder.encode_frame(Frame::from_parts(frame, 0, 0, Delay::from_numer_denom_ms(125, 1)))?;
    }
    drop(encoder);
    Ok(gif)
}

/// Returns a WAV file of notes, in semitones above A3, each a fading quarter of a second.
fn wav(notes: &[i32]) -> Result<Vec<u8>> {
    let spec = WavSpec { channels: 1, sample_rate: RATE, bits_per_sample: 16, sample_format: SampleFormat::Int };
    let mut wav = Cursor::new(vec![]);
    let mut writer = WavWriter::new(&mut wav, spec)?;
    for note in notes {
        let hertz = 220.0 * (*note as f32 / 12.0).exp2();
        for i in 0..RATE / 4 {
            let seconds = i as f32 / RATE as f32;
            writer.write_sample((16_000.0 * (-8.0 * seconds).exp() * (TAU * hertz * seconds).sin()) as i16)?;
        }
    }
    writer.finalize()?;
    Ok(wav.into_inner())
}

/// Returns a safetensors file of a height map.
fn array(height: impl Fn(f32, f32) -> f32) -> Result<Vec<u8>> {
    let heights = (0..CELLS * CELLS).map(|i| height((i % CELLS) as f32, (i / CELLS) as f32));
    let bytes: Vec<u8> = heights.flat_map(f32::to_le_bytes).collect();
    Ok(safetensors::serialize([("heights", TensorView::new(Dtype::F32, vec![CELLS, CELLS], &bytes)?)], None)?)
}
