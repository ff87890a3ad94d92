//! Classifies a recording by its spectrum: tone or noise, each low, middle or high; or silence.
//!
//! The power spectra of Hann-windowed frames, spread evenly over the recording and all channels mixed, are averaged. The
//! probability of a register is its share of the power; within it, noise has the register's spectral flatness
//! (geometric over arithmetic mean of the bins), tone has the rest. Loudness scales all of them; silence has the rest.

use ambiguity_sdk::{
    Audio, Batch, Classifier, Description, Distribution, Distributions, Error, Host, Medium, Plugin, Result, export,
};
use std::f32::consts::TAU;

/// The plugin; see the module.
pub struct Melody;

export!(Melody: Classifier);

/// The styles; registers in order, tone before noise.
const STYLES: [&str; 7] =
    ["low tone", "low noise", "middle tone", "middle noise", "high tone", "high noise", "silence"];

/// Lower bounds of the middle and the high register, in Hz: about middle C, and three octaves above.
const REGISTERS: [f32; 2] = [261.6, 2093.0];

/// Number of samples of a frame; a power of 2.
const FRAME: usize = 2048;

/// Maximum number of frames that are analyzed.
const FRAMES: usize = 64;

/// Mean square at which silence is as likely as sound: 50 dB below full scale.
const QUIET: f32 = 1e-5;

/// The part of the uniform distribution in each distribution: a register without any power has no probability of 0.
const EPSILON: f32 = 1e-6;

impl Plugin for Melody {
    fn new(_host: &Host) -> Result<Self> {
        Ok(Self)
    }

    fn describe(&self) -> Description {
        Description::new("melody", env!("CARGO_PKG_VERSION")).medium(Medium::Audio)
    }
}

impl Classifier for Melody {
    fn styles(&self) -> Vec<String> {
        STYLES.map(String::from).to_vec()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        (0..batch.len()).map(|i| Distribution::smoothed(weights(&batch.audio(i)?)?, EPSILON)).collect()
    }
}

/// Returns the probabilities, up to rounding.
fn weights(audio: &Audio) -> Result<Vec<f32>> {
    if audio.channels == 0 || audio.sample_rate == 0 || audio.pcm.len() < audio.channels {
        return Err(Error::new("the recording is empty"));
    }
    let power = spectrum(audio);
    let frequency = |bin: usize| bin as f32 * audio.sample_rate as f32 / FRAME as f32;
    let register = |bin: usize| REGISTERS.iter().filter(|&&edge| frequency(bin) >= edge).count();
    let total: f32 = power[1..].iter().sum();
    // The Hann window's mean square is 3/8, and a real signal has its other half at the negative frequencies.
    let mean_square = total * 2.0 / (FRAME * FRAME) as f32 / 0.375;
    let sound = mean_square / (mean_square + QUIET);
    let mut weights = Vec::with_capacity(STYLES.len());
    for i in 0..=REGISTERS.len() {
        let bins: Vec<f32> = (1..power.len()).filter(|&bin| register(bin) == i).map(|bin| power[bin]).collect();
        let sum: f32 = bins.iter().sum();
        let share = if total > 0.0 { sound * sum / total } else { 0.0 };
        let noise = if sum > 0.0 { flatness(&bins, sum) } else { 0.0 };
        weights.extend([share * (1.0 - noise), share * noise]);
    }
    weights.push(1.0 - sound);
    Ok(weights)
}

/// Returns the geometric over the arithmetic mean: 1 for white noise, near 0 for a tone.
fn flatness(bins: &[f32], sum: f32) -> f32 {
    let (n, mean) = (bins.len() as f32, sum / bins.len() as f32);
    let log_mean = bins.iter().map(|&power| (power / mean).max(1e-12).ln()).sum::<f32>() / n;
    log_mean.exp().min(1.0)
}

/// Returns the mean power of each frequency bin from 0 to half the sample rate.
fn spectrum(audio: &Audio) -> Vec<f32> {
    let n_samples = audio.pcm.len() / audio.channels;
    let last = n_samples.saturating_sub(FRAME);
    let n_frames = FRAMES.min(last / (FRAME / 2) + 1);
    let window: Vec<f32> = (0..FRAME).map(|i| 0.5 - 0.5 * (TAU * i as f32 / FRAME as f32).cos()).collect();
    let mut power = vec![0.0; FRAME / 2 + 1];
    for frame in 0..n_frames {
        let start = last * frame / (n_frames - 1).max(1);
        let mut wave = vec![(0.0, 0.0); FRAME];
        let samples = audio.pcm.chunks_exact(audio.channels).skip(start);
        for ((wave, window), channels) in wave.iter_mut().zip(&window).zip(samples) {
            wave.0 = window * channels.iter().sum::<f32>() / audio.channels as f32;
        }
        fourier(&mut wave);
        power.iter_mut().zip(&wave).for_each(|(sum, (re, im))| *sum += (re * re + im * im) / n_frames as f32);
    }
    power
}

/// Computes the discrete Fourier transform of 2ⁿ complex numbers in place (Cooley and Tukey, decimation in time).
fn fourier(wave: &mut [(f32, f32)]) {
    let n = wave.len();
    for i in 0..n {
        let j = i.reverse_bits() >> (usize::BITS - n.trailing_zeros());
        if i < j {
            wave.swap(i, j);
        }
    }
    let mut half = 1;
    while half < n {
        let turns: Vec<(f32, f32)> = (0..half).map(|k| (-TAU * k as f32 / (2 * half) as f32).sin_cos()).collect();
        for block in wave.chunks_exact_mut(2 * half) {
            let (even, odd) = block.split_at_mut(half);
            for ((a, b), &(sin, cos)) in even.iter_mut().zip(odd).zip(&turns) {
                let turned = (b.0 * cos - b.1 * sin, b.0 * sin + b.1 * cos);
                *b = (a.0 - turned.0, a.1 - turned.1);
                *a = (a.0 + turned.0, a.1 + turned.1);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
