//! TensorBoard's event files: TFRecord framing and the few protobuf messages that scalars and images need.
//!
//! Formats: `tensorflow/core/lib/io/record_writer.h` (length, masked CRC32C, data, masked CRC32C),
//! `tensorboard/compat/proto/event.proto` and `summary.proto`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

/// An event at a step: it has one of the last three fields.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(uint64, tag = "2")]
    step: u64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// The value of a tag at a step: a number or an image.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(uint32, tag = "1")]
    height: u32,
    #[prost(uint32, tag = "2")]
    width: u32,
    #[prost(uint32, tag = "3")]
    colorspace: u32,
    #[prost(bytes, tag = "4")]
    encoded_image_string: Vec<u8>,
}

/// An event file that is being written; the file appears with the first event.
#[derive(Debug)]
pub(super) struct EventWriter {
    folder: PathBuf,
    file: Option<File>,
    /// TensorBoard hides what earlier files say of this step and later ones.
    purge_step: Option<u64>,
}

impl EventWriter {
    /// A writer of a new file in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), file: None, purge_step: None }
    }

    /// Starts another file whose first event hides `step` and later ones in the files before it.
    pub(super) fn purge_from(&mut self, step: u64) {
        self.file = None;
        self.purge_step = Some(step);
    }

    /// Writes scalars of one step.
    pub(super) fn scalars(&mut self, now: SystemTime, step: u64, scalars: &[(String, f64)]) -> io::Result<()> {
        let value = scalars.iter().map(|(tag, value)| Value {
            tag: tag.clone(),
            simple_value: Some(*value as f32),
            image: None,
        });
        self.write(now, step, Summary { value: value.collect() })
    }

    /// Writes a PNG of one step; `size` is (width, height) in pixels.
    pub(super) fn image(
        &mut self,
        now: SystemTime,
        step: u64,
        tag: &str,
        png: &[u8],
        size: (u32, u32),
    ) -> io::Result<()> {
        /// `colorspace` of an RGB image in summary.proto.
        const RGB: u32 = 3;
        let image = Image { height: size.1, width: size.0, colorspace: RGB, encoded_image_string: png.to_vec() };
        let value = Value { tag: tag.to_owned(), simple_value: None, image: Some(image) };
        self.write(now, step, Summary { value: vec![value] })
    }

    fn write(&mut self, now: SystemTime, step: u64, summary: Summary) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(self.start(now)?);
        }
        let file = self.file.as_mut().expect("made on the lines above");
        file.write_all(&record(&Event { summary: Some(summary), ..event(now, step) }))
    }

    /// Opens the next file, with the events that must come first.
    fn start(&self, now: SystemTime) -> io::Result<File> {
        /// `SessionLog.START` in event.proto.
        const START: i32 = 1;
        // TensorBoard reads files in the order of their names, so the new one must sort after all there are, even within a second.
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let newest = event_files(&self.folder)?.iter().filter_map(|path| file_seconds(path)).max();
        let seconds = newest.map_or(seconds, |newest| seconds.max(newest + 1));
        let path = self.folder.join(format!("events.out.tfevents.{seconds:010}.host.{}.v2", std::process::id()));
        let mut file = File::create_new(path)?;
        file.write_all(&record(&Event { file_version: Some("brain.Event:2".to_owned()), ..event(now, 0) }))?;
        if let Some(step) = self.purge_step {
            file.write_all(&record(&Event { session_log: Some(SessionLog { status: START }), ..event(now, step) }))?;
        }
        Ok(file)
    }
}

/// The event files of a folder.
fn event_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("events.out.tfevents.")) {
            files.push(path);
        }
    }
    Ok(files)
}

/// The seconds in an event file's name.
fn file_seconds(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.split('.').nth(3)?.parse().ok()
}

/// Returns an event with its time and step alone.
fn event(now: SystemTime, step: u64) -> Event {
    let wall_time = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Event { wall_time, step, ..Event::default() }
}

/// Returns an event as a TFRecord: length, its check sum, data, its check sum.
fn record(event: &Event) -> Vec<u8> {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc32c(&length).to_le_bytes(), &data, &masked_crc32c(&data).to_le_bytes()].concat()
}

/// Returns the CRC32C (Castagnoli, reflected 0x82f63b78).
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ 0x82f6_3b78 & (crc & 1).wrapping_neg())
    })
}

/// The check sum rotated and shifted, as record_writer.h has it, so that a check sum of check sums stays sound.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn crc32c_has_the_values_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    /// The bytes that TensorBoard's own writer makes of the same event:
    /// `RecordWriter(f).write(Event(wall_time=1.5, step=300, summary=Summary(value=[Summary.Value(tag="a", simple_value=0.5)])).SerializeToString())`.
    #[test]
    fn a_scalar_is_framed_as_tensorboard_frames_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::new(folder.path());
        writer.scalars(UNIX_EPOCH + Duration::from_millis(1500), 300, &[("a".into(), 0.5)]).unwrap();
        let bytes = fs::read(&event_files(folder.path()).unwrap()[0]).unwrap();
        let version =
            Event { file_version: Some("brain.Event:2".into()), ..event(UNIX_EPOCH + Duration::from_millis(1500), 0) };
        let scalar = bytes.strip_prefix(&record(&version)[..]).unwrap();
        let expected = "1800000000000000a37f4b2209000000000000f83f10ac022a0a0a080a0161150000003f64076a3f";
        let hex: String = scalar.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn files_within_a_second_sort_in_the_order_of_their_making() {
        let folder = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut writer = EventWriter::new(folder.path());
        writer.scalars(now, 1, &[("a".into(), 1.0)]).unwrap();
        writer.purge_from(1);
        writer.scalars(now, 1, &[("a".into(), 2.0)]).unwrap();
        let mut files = event_files(folder.path()).unwrap();
        files.sort();
        assert_eq!(files.len(), 2);
        assert!(
            fs::metadata(&files[1]).unwrap().len() > fs::metadata(&files[0]).unwrap().len(),
            "the second has a purge"
        );
    }
}
