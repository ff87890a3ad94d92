use super::*;
use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};

const RATE: u32 = 16_000;

fn likeliest(channels: usize, pcm: Vec<f32>) -> &'static str {
    STYLES[classify(FakeSample::audio(RATE, channels, pcm)).expect("a recording").likeliest(0)]
}

fn classify(sample: FakeSample) -> Result<Distributions> {
    FakeHost::new().load::<Melody>()?.classify(&FakeBatch::new([sample]))
}

fn tone(hertz: f32, loudness: f32) -> Vec<f32> {
    (0..RATE / 2).map(|i| loudness * (TAU * hertz * i as f32 / RATE as f32).sin()).collect()
}

#[test]
fn sounds_are_what_a_listener_says() {
    assert_eq!(likeliest(1, tone(110.0, 0.5)), "low tone");
    assert_eq!(likeliest(1, tone(880.0, 0.5)), "middle tone");
    assert_eq!(likeliest(1, tone(4000.0, 0.5)), "high tone");
    assert_eq!(likeliest(1, tone(880.0, 1e-4)), "silence");
    assert_eq!(likeliest(1, vec![0.0; 4000]), "silence");
    // White noise has most of its power in the widest register.
    assert_eq!(likeliest(1, numbers(3, 1, 8000).into_vec()), "high noise");
}

#[test]
fn channels_are_mixed_and_short_recordings_are_heard() {
    let stereo = tone(880.0, 0.5).into_iter().flat_map(|x| [x, 0.0]).collect();
    assert_eq!(likeliest(2, stereo), "middle tone");
    let opposite = tone(880.0, 0.5).into_iter().flat_map(|x| [x, -x]).collect();
    assert_eq!(likeliest(2, opposite), "silence");
    assert_eq!(likeliest(1, tone(880.0, 0.5)[..500].to_vec()), "middle tone");
    let message = classify(FakeSample::audio(RATE, 1, vec![])).expect_err("nothing to hear").to_string();
    assert_eq!(message, "the recording is empty");
}

#[test]
fn the_transform_is_the_definition() {
    let wave: Vec<(f32, f32)> = numbers(1, 16, 2).rows().map(|row| (row[0], row[1])).collect();
    let mut fast = wave.clone();
    fourier(&mut fast);
    for (k, found) in fast.iter().enumerate() {
        let (mut re, mut im) = (0.0, 0.0);
        for (j, x) in wave.iter().enumerate() {
            let (sin, cos) = (-std::f64::consts::TAU * (j * k) as f64 / 16.0).sin_cos();
            re += f64::from(x.0) * cos - f64::from(x.1) * sin;
            im += f64::from(x.0) * sin + f64::from(x.1) * cos;
        }
        assert!((f64::from(found.0) - re).abs() < 1e-5 && (f64::from(found.1) - im).abs() < 1e-5, "bin {k}");
    }
}
