//! The samples that a plugin is probed with: degenerate samples of reward hacking, and real ones.

use std::sync::Arc;

use image::imageops::{FilterType, crop_imm, resize};
use image::{Rgb, RgbImage};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use crate::data::array::Array;
use crate::data::audio::Audio;
use crate::data::video::Video;
use crate::plugin::{Medium, Sample};
use procedural_art::{STYLES, paint};

/// Side of an image, in pixels.
const SIDE: u32 = 128;

/// The styles and subject indices of the paintings among the probes.
const PAINTINGS: [(&str, usize); 6] =
    [("baroque", 1), ("color-field-painting", 6), ("cubism", 0), ("impressionism", 2), ("pop-art", 5), ("ukiyo-e", 3)];

/// Sample rate of a recording.
const RATE: u32 = 16_000;
/// Number of frames of a video, which is one second long.
const VIDEO_FRAMES: u32 = 12;
/// The shape of an array.
const LATENT: [u32; 3] = [4, 32, 32];
/// Number of frames of a recording.
const FRAMES: usize = 32_000;

/// The kind of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A degenerate sample that should not be rewarded: blank, noisy or repetitive.
    Worthless,
    /// A sample of the kind that the plugin is for.
    Real,
}

/// One probe.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) sample: Sample,
}

/// Returns the probes of a medium.
pub(super) fn probes(medium: Medium) -> Vec<Probe> {
    match medium {
        Medium::Image => images(),
        Medium::Text => texts(),
        Medium::Audio => recordings(),
        Medium::Video => videos(),
        Medium::Tensor => arrays(),
    }
}

fn videos() -> Vec<Probe> {
    let flat = |_: u32| RgbImage::from_pixel(SIDE, SIDE, Rgb([128; 3]));
    let blink = |t: u32| RgbImage::from_pixel(SIDE, SIDE, Rgb([(255 * (t % 2)) as u8; 3]));
    let noise = |t: u32| {
        let mut rng = SplitMix64::seed_from_u64(u64::from(t));
        RgbImage::from_fn(SIDE, SIDE, |_, _| Rgb([0; 3].map(|_: u8| (rng.next_u32() >> 24) as u8)))
    };
    let whole = |subject: usize| paint(subject, subject, 1, 0, 2 * SIDE);
    let (first, second) = (whole(1), whole(2));
    let pan = |t: u32| crop_imm(&first, 4 * t, 0, SIDE, SIDE).to_image();
    let fall = |t: u32| crop_imm(&second, 0, SIDE - 4 * t, SIDE, SIDE).to_image();
    let zoom = |t: u32| {
        let side = SIDE + 6 * t;
        resize(
            &crop_imm(&first, SIDE - side / 2, SIDE - side / 2, side, side).to_image(),
            SIDE,
            SIDE,
            FilterType::Triangle,
        )
    };
    let cut = |t: u32| crop_imm(if t % 4 < 2 { &first } else { &second }, 0, 0, SIDE, SIDE).to_image();
    let still = |_: u32| crop_imm(&first, 20, 30, SIDE, SIDE).to_image();
    let probe = |kind: Kind, name: &str, frame: &dyn Fn(u32) -> RgbImage| {
        let video = Video { frames: (0..VIDEO_FRAMES).map(frame).collect(), frame_rate: f64::from(VIDEO_FRAMES) };
        let sample = Sample { video: Some(Arc::new(video)), ..Sample::default() };
        Probe { name: name.to_owned(), kind, sample }
    };
    vec![
        probe(Kind::Worthless, "gray", &flat),
        probe(Kind::Worthless, "blinking", &blink),
        probe(Kind::Worthless, "noise", &noise),
        probe(Kind::Worthless, "one frame, repeated", &still),
        probe(Kind::Real, "a pan", &pan),
        probe(Kind::Real, "a fall", &fall),
        probe(Kind::Real, "a zoom", &zoom),
        probe(Kind::Real, "cuts", &cut),
    ]
}

/// Arrays of the shape of a latent.
fn arrays() -> Vec<Probe> {
    let [channels, height, width] = LATENT;
    let numbers = |seed: u64| {
        let mut rng = SplitMix64::seed_from_u64(seed);
        // The sum of twelve uniform numbers is nearly normal.
        move || (0..12).map(|_| rng.next_u32() as f32 / u32::MAX as f32).sum::<f32>() - 6.0
    };
    let image = |subject: usize| {
        let painted = paint(subject, subject, 1, 0, width);
        let of = |c: u32, y: u32, x: u32| f32::from(painted.get_pixel(x, y).0[c as usize % 3]) / 127.5 - 1.0;
        (0..channels * height * width).map(|i| of(i / (height * width), i / width % height, i % width)).collect()
    };
    let fill = |value: f32| vec![value; (channels * height * width) as usize];
    let mut noise = numbers(1);
    let ramp = (0..channels * height * width).map(|i| (i % width) as f32 / width as f32).collect();
    let probe = |kind: Kind, name: &str, data: Vec<f32>| {
        let sample = Sample { array: Some(Arc::new(Array { shape: LATENT.to_vec(), data })), ..Sample::default() };
        Probe { name: name.to_owned(), kind, sample }
    };
    let noise = (0..channels * height * width).map(|_| noise()).collect();
    vec![
        probe(Kind::Worthless, "zeros", fill(0.0)),
        probe(Kind::Worthless, "ones", fill(1.0)),
        probe(Kind::Worthless, "noise", noise),
        probe(Kind::Worthless, "ramp", ramp),
        probe(Kind::Real, "painting, 1", image(1)),
        probe(Kind::Real, "painting, 2", image(2)),
        probe(Kind::Real, "painting, 3", image(3)),
        probe(Kind::Real, "painting, 4", image(4)),
    ]
}

fn images() -> Vec<Probe> {
    let flat = |value: u8| RgbImage::from_pixel(SIDE, SIDE, Rgb([value; 3]));
    let level = |n: u32| (n * 255 / (SIDE - 1)) as u8;
    let noise = |seed: u64, side: u32| {
        let mut rng = SplitMix64::seed_from_u64(seed);
        RgbImage::from_fn(side, side, |_, _| Rgb([0; 3].map(|_: u8| (rng.next_u32() >> 24) as u8)))
    };
    let worthless = [
        ("gray", flat(128)),
        ("black", flat(0)),
        ("white", flat(255)),
        ("noise", noise(1, SIDE)),
        ("blur", resize(&noise(2, 4), SIDE, SIDE, FilterType::CatmullRom)),
        ("gradient, gray", RgbImage::from_fn(SIDE, SIDE, |x, _| Rgb([level(x); 3]))),
        ("gradient, color", RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([level(x), level(y), 128]))),
    ];
    let painting = |(slug, subject): (&str, usize)| {
        let style = STYLES.iter().position(|style| style.slug == slug).expect("it is one of the styles");
        (format!("painting, {slug}"), paint(style, subject, 1, 0, SIDE))
    };
    let probe = |kind: Kind, name: String, image: RgbImage| {
        // A plugin may compare an image with its prompt.
        let prompt = "a painting".to_owned();
        let sample = Sample { image: Some(Arc::new(image)), prompt, ..Sample::default() };
        Probe { name, kind, sample }
    };
    let worthless = worthless.into_iter().map(|(name, image)| probe(Kind::Worthless, name.to_owned(), image));
    let paintings = PAINTINGS.map(painting).into_iter().map(|(name, image)| probe(Kind::Real, name, image));
    worthless.chain(paintings).collect()
}

fn texts() -> Vec<Probe> {
    let mut rng = SplitMix64::seed_from_u64(3);
    let letters: String = (0..120)
        .map(|_| match rng.next_u32() % 27 {
            26 => ' ',
            n => char::from(b'a' + n as u8),
        })
        .collect();
    let lorem = "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et \
                 dolore magna aliqua.";
    let worthless = [
        ("empty", String::new()),
        ("one word, repeated", ["very"; 24].join(" ")),
        ("random letters", letters),
        ("lorem ipsum", lorem.to_owned()),
    ];
    let real = [
        ("a plain sentence", "The ferry leaves the harbour at nine and is back before dark."),
        (
            "a verse",
            "O moon above the silver reeds,\nwhat sorrow do you softly keep?\nThe river hums, the willow pleads,\nand all the little valleys sleep.",
        ),
        (
            "a notice",
            "Notice is hereby given that the annual meeting will be held on the third of May. Members shall present their cards.",
        ),
        (
            "a conversation",
            "“You came!” she laughed. “Did you doubt it?” he asked. “Every minute,” she said, and took his coat.",
        ),
        (
            "a report",
            "Sales rose by 4 % in the second quarter. Costs fell in all regions but one, where transport was interrupted twice.",
        ),
        (
            "a description",
            "A painting of an old mill beside a frozen stream, two crows on its roof, and behind it a pale, immense winter sky.",
        ),
    ];
    let text = |kind: Kind, name: &str, text: String| {
        let sample = Sample { text: Some(text), ..Sample::default() };
        Probe { name: name.to_owned(), kind, sample }
    };
    let worthless = worthless.into_iter().map(|(name, words)| text(Kind::Worthless, name, words));
    worthless.chain(real.map(|(name, words)| text(Kind::Real, name, words.to_owned()))).collect()
}

fn recordings() -> Vec<Probe> {
    let mut rng = SplitMix64::seed_from_u64(4);
    let noise: Vec<f32> = (0..FRAMES).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0).collect();
    let tone = |hertz: f32| (0..FRAMES).map(|i| 0.5 * wave(hertz, i)).collect::<Vec<f32>>();
    let click = (0..FRAMES).map(|i| if i % 4000 == 0 { 1.0 } else { 0.0 }).collect();
    let worthless = [
        ("silence", vec![0.0; FRAMES]),
        ("noise", noise),
        ("one tone", tone(440.0)),
        ("hum", tone(50.0)),
        ("clicks", click),
    ];
    // Semitones above A3, a quarter of a second each, and the number of overtones.
    let real: [(&str, &[&[i32]], usize); 5] = [
        ("a melody, flute", &[&[0], &[4], &[7], &[12], &[11], &[7], &[4], &[0]], 2),
        ("a melody, reed", &[&[0], &[3], &[5], &[7], &[3], &[8], &[7], &[5]], 8),
        ("a bass line", &[&[-24], &[-24], &[-17], &[-19], &[-24], &[-12], &[-17], &[-19]], 4),
        (
            "chords",
            &[&[0, 4, 7], &[0, 4, 7], &[5, 9, 12], &[7, 11, 14], &[0, 4, 7], &[-3, 0, 4], &[2, 5, 9], &[0, 4, 7]],
            3,
        ),
        ("a high melody", &[&[24], &[28], &[31], &[36], &[31], &[28], &[26], &[24]], 3),
    ];
    let sound = |kind: Kind, name: &str, pcm: Vec<f32>| {
        let audio = Audio { sample_rate: RATE, channels: 1, pcm };
        Probe { name: name.to_owned(), kind, sample: Sample { audio: Some(Arc::new(audio)), ..Sample::default() } }
    };
    let worthless = worthless.into_iter().map(|(name, pcm)| sound(Kind::Worthless, name, pcm));
    worthless.chain(real.map(|(name, notes, overtones)| sound(Kind::Real, name, played(notes, overtones)))).collect()
}

/// Returns a sine wave's value at a frame.
fn wave(hertz: f32, frame: usize) -> f32 {
    (hertz * frame as f32 / RATE as f32 * std::f32::consts::TAU).sin()
}

/// Returns a sequence of notes, each with a decaying envelope.
fn played(notes: &[&[i32]], overtones: usize) -> Vec<f32> {
    let length = FRAMES / notes.len();
    let value = |i: usize| {
        let fading = (-4.0 * (i % length) as f32 / length as f32).exp();
        let voices = notes[i / length].iter().flat_map(|&semitones| {
            let hertz = 220.0 * (semitones as f32 / 12.0).exp2();
            (1..=overtones).map(move |n| wave(hertz * n as f32, i) / n as f32)
        });
        0.2 * fading * voices.sum::<f32>()
    };
    (0..length * notes.len()).map(|i| value(i).clamp(-1.0, 1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_medium_has_worthless_and_real_probes() {
        for medium in Medium::ALL {
            let probes = probes(medium);
            for kind in [Kind::Worthless, Kind::Real] {
                assert!(probes.iter().filter(|probe| probe.kind == kind).count() >= 4, "{medium}");
            }
        }
    }

    #[test]
    fn probes_are_the_same_each_time() {
        let pixels = || probes(Medium::Image).into_iter().map(|probe| probe.sample.image).collect::<Vec<_>>();
        assert!(pixels() == pixels());
    }
}
