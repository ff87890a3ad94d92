//! Audio recordings from WAV files.

use std::path::{Path, PathBuf};

use hound::{SampleFormat, WavReader};

/// A recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Audio {
    /// Frames per second.
    pub sample_rate: u32,
    /// Number of channels; the length of `pcm` is a multiple of it.
    pub channels: u16,
    /// Interleaved samples in [-1, 1].
    pub pcm: Vec<f32>,
}

/// Why a recording could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AudioError {
    /// The file could not be opened, or is not a supported WAV file.
    #[error("{path} is not a readable recording: {source}", path = .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The decoder's error.
        source: hound::Error,
    },
    /// The header states no sampling.
    #[error("{path} is not a readable recording: its header states {rate} frames per second and {channels} channels", path = .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Frames per second.
        rate: u32,
        /// Number of channels.
        channels: u16,
    },
    /// The file has a header but no samples.
    #[error("{path} is an empty recording", path = .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A sample of a file of floats is not finite.
    #[error("{path}: sample {index} is {value}, it must be a finite number", path = .path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Index of the sample, all channels counted.
        index: usize,
        /// The sample, infinite or NaN.
        value: f32,
    },
}

/// Reads a WAV file: integers of 8 to 32 bits, whose minimum becomes -1, or 32-bit floats, clamped to [-1, 1].
pub fn read_wav(path: &Path) -> Result<Audio, AudioError> {
    let broken = |source| AudioError::Broken { path: path.to_owned(), source };
    let mut reader = WavReader::open(path).map_err(broken)?;
    let spec = reader.spec();
    if spec.sample_rate == 0 || spec.channels == 0 {
        return Err(AudioError::Header { path: path.to_owned(), rate: spec.sample_rate, channels: spec.channels });
    }
    let pcm: Result<Vec<f32>, hound::Error> = match spec.sample_format {
        SampleFormat::Int => {
            let full_scale = 2f32.powi(i32::from(spec.bits_per_sample) - 1);
            reader.samples::<i32>().map(|sample| Ok(sample? as f32 / full_scale)).collect()
        }
        SampleFormat::Float => reader.samples::<f32>().collect(),
    };
    let mut pcm = pcm.map_err(broken)?;
    if pcm.is_empty() {
        return Err(AudioError::Empty { path: path.to_owned() });
    }
    if let Some(index) = pcm.iter().position(|sample| !sample.is_finite()) {
        return Err(AudioError::NotFinite { path: path.to_owned(), index, value: pcm[index] });
    }
    pcm.iter_mut().for_each(|sample| *sample = sample.clamp(-1.0, 1.0));
    Ok(Audio { sample_rate: spec.sample_rate, channels: spec.channels, pcm })
}

#[cfg(test)]
mod tests {
    use hound::{WavSpec, WavWriter};

    use super::*;

    fn written<T: hound::Sample + Copy>(
        bits: u16,
        sample_format: SampleFormat,
        samples: &[T],
    ) -> Result<Audio, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.wav");
        let spec = WavSpec { channels: 2, sample_rate: 8000, bits_per_sample: bits, sample_format };
        let mut writer = WavWriter::create(&path, spec).expect("writable");
        samples.iter().for_each(|&sample| writer.write_sample(sample).expect("writable"));
        writer.finalize().expect("writable");
        read_wav(&path).map_err(|error| error.to_string().replace(&path.display().to_string(), "a.wav"))
    }

    #[test]
    fn all_formats_have_the_same_scale() {
        for bits in [8, 16, 24, 32] {
            let full = 2f64.powi(bits - 1);
            let samples = [-full, -full / 2.0, 0.0, full / 2.0].map(|sample| sample as i32);
            let audio = written(bits as u16, SampleFormat::Int, &samples).expect("it reads");
            assert_eq!((audio.sample_rate, audio.channels, audio.pcm), (8000, 2, vec![-1.0, -0.5, 0.0, 0.5]), "{bits}");
        }
        let audio = written(32, SampleFormat::Float, &[0.25f32, -3.0]).expect("it reads");
        assert_eq!(audio.pcm, [0.25, -1.0], "clamped to [-1, 1]");
    }

    #[test]
    fn invalid_recordings_are_refused() {
        let nothing: [i32; 0] = [];
        assert_eq!(written(16, SampleFormat::Int, &nothing), Err("a.wav is an empty recording".to_owned()));
        let found = written(32, SampleFormat::Float, &[0.0, f32::NAN]);
        assert_eq!(found, Err("a.wav: sample 1 is NaN, it must be a finite number".to_owned()));
        let message = read_wav("missing.wav".as_ref()).expect_err("no such file").to_string();
        assert!(message.starts_with("missing.wav is not a readable recording: "), "{message}");
    }

    /// A file that the fuzzer wrote: hound reads it.
    #[test]
    fn a_rate_of_zero_is_refused() {
        let fmt = [&1u16.to_le_bytes()[..], &2u16.to_le_bytes(), &[0; 8], &2u16.to_le_bytes(), &8u16.to_le_bytes()];
        let bytes = [b"RIFF\x26\0\0\0WAVEfmt \x10\0\0\0".to_vec(), fmt.concat(), b"data\x02\0\0\0ab".to_vec()];
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.wav");
        std::fs::write(&path, bytes.concat()).expect("writable");
        let message = read_wav(&path).expect_err("no rate").to_string();
        let said = "is not a readable recording: its header states 0 frames per second and 2 channels";
        assert!(message.ends_with(said), "{message}");
    }
}
