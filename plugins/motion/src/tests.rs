use super::*;
use ambiguity_sdk::Image;
use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};

/// Returns a video of a smooth pattern at 10 frames per second; `place` maps a frame and a position in [-½, ½]² to the
/// pattern's own.
fn video(n: usize, place: impl Fn(usize, [f32; 2]) -> [f32; 2]) -> FakeSample {
    let frame = |t: usize| {
        let pixel = |i: usize| {
            let [x, y] = place(t, [i % 48, i / 48].map(|p| (p as f32 + 0.5) / 48.0 - 0.5));
            let wave = (9.0 * x + 4.0 * y).sin() + (7.0 * y - 5.0 * x).cos() + (13.0 * y).sin();
            [((wave / 3.0 + 1.0) * 127.0) as u8; 3]
        };
        Image { width: 48, height: 48, rgb: (0..48 * 48).flat_map(pixel).collect() }
    };
    FakeSample::video((0..n).map(frame).collect(), 10.0)
}

fn likeliest(sample: FakeSample) -> &'static str {
    let host = FakeHost::new();
    let plugin = host.load::<Motion>().expect("it needs nothing");
    STYLES[plugin.classify(&FakeBatch::new([sample])).expect("a video").likeliest(0)]
}

#[test]
fn motions_are_what_a_viewer_says() {
    let pan = |u: f32, v: f32| video(8, move |t, [x, y]| [x - u * t as f32, y - v * t as f32]);
    assert_eq!(likeliest(pan(0.0, 0.0)), "still");
    assert_eq!(likeliest(pan(-0.02, 0.0)), "left");
    assert_eq!(likeliest(pan(0.02, 0.0)), "right");
    assert_eq!(likeliest(pan(0.0, -0.02)), "up");
    assert_eq!(likeliest(pan(0.0, 0.02)), "down");
    let zoom = |rate: f32| video(8, move |t, [x, y]| [x, y].map(|p| p * (1.0 - rate).powi(t as i32)));
    assert_eq!(likeliest(zoom(0.04)), "in");
    assert_eq!(likeliest(zoom(-0.04)), "out");
    let jumps = numbers(3, 8, 2);
    assert_eq!(likeliest(video(8, |t, [x, y]| [x + 0.1 * jumps.row(t)[0], y + 0.1 * jumps.row(t)[1]])), "erratic");
}

#[test]
fn one_frame_and_flat_frames_are_still() {
    assert_eq!(likeliest(video(1, |_, p| p)), "still");
    assert_eq!(likeliest(video(5, |_, _| [0.0, 0.0])), "still");
}
