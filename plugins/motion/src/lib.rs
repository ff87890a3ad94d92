//! Classifies a video by its motion: still; a pan to the left, right, up or down; a zoom in or out; or erratic. Needs
//! frames alone, no encoder.
//!
//! Each pair of neighboring frames, small and gray, is compared by least squares (Lucas and Kanade, 1981): the velocity
//! (u, v) of the image's center and the rate z at which it grows explain the difference of the frames as
//! −(Iₓ (u + z x) + I_y (v + z y)). The means of u, v and z over the video, in image sides per second, are the evidence for
//! pans and zooms; what they vary by from frame to frame, and what they leave unexplained, is the evidence for erratic
//! motion.

use ambiguity_sdk::{
    Batch, Classifier, Description, Distribution, Distributions, Host, Medium, Plugin, PluginOption, Result, export,
};

/// The plugin; see the module.
pub struct Motion {
    sharpness: f32,
}

export!(Motion: Classifier);

/// What moves is the image's content: a camera that pans to the right moves it to the left.
const STYLES: [&str; 8] = ["still", "left", "right", "up", "down", "in", "out", "erratic"];

const SHARPNESS: PluginOption<f64> =
    PluginOption::new("sharpness", 4.0, "Multiplies the logits: above 4 for clearer decisions");

/// Side in pixels to which frames are resized.
const SIDE: usize = 32;

/// Maximum number of frames that are compared, spread evenly over the video; neighbors are always compared in pairs.
const PAIRS: usize = 24;

/// The speed at which a motion is as likely as stillness, in image sides per second.
const SLOW: f32 = 0.05;

/// Rates of growth count this much more than shifts, since the borders of a zoom move by half a side alone.
const ZOOM: f32 = 2.0;

impl Plugin for Motion {
    fn new(host: &Host) -> Result<Self> {
        Ok(Self { sharpness: SHARPNESS.get(host)? as f32 })
    }

    fn describe(&self) -> Description {
        Description::new("motion", env!("CARGO_PKG_VERSION")).medium(Medium::Video).option(SHARPNESS)
    }
}

impl Classifier for Motion {
    fn styles(&self) -> Vec<String> {
        STYLES.map(String::from).to_vec()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        (0..batch.len()).map(|i| Distribution::softmax(self.logits(batch, i)?)).collect()
    }
}

impl Motion {
    /// Returns the logits of one video.
    fn logits(&self, batch: &Batch, i: usize) -> Result<Vec<f32>> {
        let video = batch.video(i)?;
        let n_pairs = video.frames.saturating_sub(1).min(PAIRS);
        let rate = video.frame_rate as f32;
        let mut motions = Vec::with_capacity(n_pairs);
        for pair in 0..n_pairs {
            let frame = (video.frames - 2) * pair / (n_pairs - 1).max(1);
            let [before, after] = [gray(batch, i, frame)?, gray(batch, i, frame + 1)?];
            motions.push(motion(&before, &after).map(|x| x * rate));
        }
        let n = motions.len().max(1) as f32;
        let mean = |part: usize| motions.iter().map(|motion| motion[part]).sum::<f32>() / n;
        let [u, v, z, rest] = [0, 1, 2, 3].map(mean);
        let around = |part: usize, mean: f32| motions.iter().map(|motion| (motion[part] - mean).abs()).sum::<f32>() / n;
        let spread = around(0, u) + around(1, v) + ZOOM * around(2, z);
        // A score of 1 is a motion far above the slowest; opposite directions have opposite signs.
        let strength = |x: f32| x / (x.abs() + SLOW);
        let [left, right, up, down] = [-u, u, -v, v].map(strength);
        let [zoom_in, zoom_out] = [ZOOM * z, -ZOOM * z].map(strength);
        let erratic = strength(spread + rest);
        let moving = [left, right, up, down, zoom_in, zoom_out, erratic].into_iter().fold(0.0, f32::max);
        let logits = [1.0 - 2.0 * moving, left, right, up, down, zoom_in, zoom_out, erratic];
        Ok(logits.map(|logit| logit * self.sharpness).to_vec())
    }
}

/// Returns a frame's lightness in [0, 1], SIDE × SIDE.
fn gray(batch: &Batch, i: usize, frame: usize) -> Result<Vec<f32>> {
    let image = batch.frame_resized(i, frame, SIDE, SIDE)?;
    let lightness =
        |rgb: &[u8]| (0.299 * f32::from(rgb[0]) + 0.587 * f32::from(rgb[1]) + 0.114 * f32::from(rgb[2])) / 255.0;
    Ok(image.rgb.chunks_exact(3).map(lightness).collect())
}

/// Returns the motion between two frames: u, v and z per frame, in sides of the image, and the distance by which the
/// content of the image would have to move to explain the rest.
fn motion(before: &[f32], after: &[f32]) -> [f32; 4] {
    // The normal equations of the least squares, and its right side.
    let (mut a, mut b) = ([[0.0f32; 3]; 3], [0.0f32; 3]);
    let at = |image: &[f32], x: usize, y: usize| image[y * SIDE + x];
    let (mut squares, mut gradients) = (0.0, 0.0);
    for y in 1..SIDE - 1 {
        for x in 1..SIDE - 1 {
            let mean = |x: usize, y: usize| 0.5 * (at(before, x, y) + at(after, x, y));
            let dx = 0.5 * (mean(x + 1, y) - mean(x - 1, y));
            let dy = 0.5 * (mean(x, y + 1) - mean(x, y - 1));
            let dt = at(after, x, y) - at(before, x, y);
            // The position relative to the center, in sides of the image.
            let [px, py] = [x, y].map(|p| (p as f32 + 0.5) / SIDE as f32 - 0.5);
            let row = [dx, dy, SIDE as f32 * (dx * px + dy * py)];
            for (i, left) in row.iter().enumerate() {
                row.iter().enumerate().for_each(|(j, right)| a[i][j] += left * right);
                b[i] -= left * dt;
            }
            squares += dt * dt;
            gradients += dx * dx + dy * dy;
        }
    }
    // A flat image has no gradients, and no motion can be seen in it.
    let ridge = 1e-4 * (a[0][0] + a[1][1] + a[2][2]) + 1e-6;
    (0..3).for_each(|i| a[i][i] += ridge);
    let [u, v, z] = solve(a, b);
    let explained = u * b[0] + v * b[1] + z * b[2];
    let rest = ((squares - explained).max(0.0) / (gradients + 1e-3)).sqrt();
    // Small errors of the linearization are no motion.
    [u / SIDE as f32, v / SIDE as f32, z, 0.3 * rest / SIDE as f32]
}

/// Solves a symmetric, positive definite system by elimination.
fn solve(mut a: [[f32; 3]; 3], mut b: [f32; 3]) -> [f32; 3] {
    for i in 0..3 {
        for j in i + 1..3 {
            let factor = a[j][i] / a[i][i];
            (i..3).for_each(|k| a[j][k] -= factor * a[i][k]);
            b[j] -= factor * b[i];
        }
    }
    for i in (0..3).rev() {
        b[i] = (b[i] - (i + 1..3).map(|k| a[i][k] * b[k]).sum::<f32>()) / a[i][i];
    }
    b
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
