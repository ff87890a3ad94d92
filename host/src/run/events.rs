//! TensorBoard's event files: TFRecord framing and the few protobuf messages that scalars and images need.
//!
//! Formats: `tensorflow/core/lib/io/record_writer.h` (length, masked CRC32C, data, masked CRC32C),
//! `tensorboard/compat/proto/event.proto` and `summary.proto`. Written by hand: five messages don't need a code generator.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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
        let summary = scalars.iter().flat_map(|(tag, value)| {
            let mut message = field_bytes(1, tag.as_bytes());
            message.extend(field_f32(2, *value as f32));
            field_bytes(1, &message)
        });
        self.write(now, &event(now, step, &field_bytes(5, &summary.collect::<Vec<_>>())))
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
        const RGB: u64 = 3;
        let mut image = field_varint(1, u64::from(size.1));
        image.extend(field_varint(2, u64::from(size.0)));
        image.extend(field_varint(3, RGB));
        image.extend(field_bytes(4, png));
        let mut value = field_bytes(1, tag.as_bytes());
        value.extend(field_bytes(4, &image));
        self.write(now, &event(now, step, &field_bytes(5, &field_bytes(1, &value))))
    }

    fn write(&mut self, now: SystemTime, event: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(self.start(now)?);
        }
        let file = self.file.as_mut().expect("made on the lines above");
        file.write_all(&record(event))
    }

    /// Opens the next file, with the events that must come first.
    fn start(&self, now: SystemTime) -> io::Result<File> {
        /// `SessionLog.START` in event.proto.
        const START: u64 = 1;
        // TensorBoard reads files in the order of their names, so the new one must sort after all there are, even within a second.
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let newest = event_files(&self.folder)?.iter().filter_map(|path| file_seconds(path)).max();
        let seconds = newest.map_or(seconds, |newest| seconds.max(newest + 1));
        let path = self.folder.join(format!("events.out.tfevents.{seconds:010}.host.{}.v2", std::process::id()));
        let mut file = File::create_new(path)?;
        file.write_all(&record(&event(now, 0, &field_bytes(3, b"brain.Event:2"))))?;
        if let Some(step) = self.purge_step {
            file.write_all(&record(&event(now, step, &field_bytes(7, &field_varint(1, START)))))?;
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

/// An `Event` with its time, step and one more field.
fn event(now: SystemTime, step: u64, what: &[u8]) -> Vec<u8> {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut message = vec![(1 << 3) | 1];
    message.extend(seconds.to_le_bytes());
    message.extend(field_varint(2, step));
    message.extend(what);
    message
}

/// A TFRecord: length, its check sum, data, its check sum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(data.len() + 16);
    bytes.extend(length);
    bytes.extend(masked_crc32c(&length).to_le_bytes());
    bytes.extend(data);
    bytes.extend(masked_crc32c(data).to_le_bytes());
    bytes
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn field_varint(number: u8, value: u64) -> Vec<u8> {
    let mut out = vec![number << 3];
    varint(value, &mut out);
    out
}

fn field_bytes(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![(number << 3) | 2];
    varint(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

fn field_f32(number: u8, value: f32) -> Vec<u8> {
    let mut out = vec![(number << 3) | 5];
    out.extend(value.to_le_bytes());
    out
}

/// CRC32C (Castagnoli, reflected 0x82f63b78), by byte.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc: u32, byte| CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
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
        let scalar = &bytes[record(&event(UNIX_EPOCH, 0, &field_bytes(3, b"brain.Event:2"))).len()..];
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
