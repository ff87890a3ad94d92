//! Sheets of images in the page: the images of a sheet's file are cut out and packed again, at their own size, so that the
//! page arranges them itself and stays small.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, RgbImage};
use serde::Serialize;

use super::Result;
use super::grid::{LAYOUT, Layout, Placed};
use super::page::{data_uri, jpeg_uri};
use crate::data::images::ImageLoader;
use crate::data::png;
use crate::fs::FileError;

/// Maximum number of contact sheets in the page: the first, the last and evenly spaced ones between.
const MAX_SHEETS: usize = 24;
/// Number of characters of the contact sheets in the page above which fewer of them are shown.
const MAX_CHARACTERS: usize = 3_500_000;
/// Quality of the packed images, of 100.
const QUALITY: u8 = 90;
/// The side of JPEG's blocks: images begin at its multiples, so that they do not blur into each other.
const BLOCK: u32 = 8;
/// Maximum factor by which a sheet scales its images up.
const MAX_FACTOR: u32 = 16;

/// A sheet of images.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sheet {
    pub(super) epoch: u64,
    pub(super) uri: String,
    note: String,
    /// The images on it, if the file says where they are; else the page shows the file.
    pub(super) thumbs: Vec<Thumb>,
}

/// An image of a sheet, as a part of the packed file.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Thumb {
    /// The style that cuts it out: sizes and positions in percent.
    pub(super) style: String,
    pub(super) title: String,
    pub(super) value: String,
    pub(super) change: String,
    /// `good`, `bad` or empty.
    pub(super) tone: &'static str,
}

impl Sheet {
    /// Reads a PNG file and, if it has one, its layout, of which the first `max` images are shown.
    pub(super) fn read(epoch: u64, path: &Path, max: usize) -> Result<Self> {
        let bytes = fs::read(path).map_err(|error| FileError::read(path, error))?;
        let mut layout: Layout =
            png::text(&bytes, LAYOUT).and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        layout.cells.truncate(max);
        let fits = png::dimensions(&bytes).is_some_and(|size| layout.cells.iter().all(|cell| is_on(cell, size)));
        // A file that is none is shown as a broken image.
        let image = (fits && !layout.cells.is_empty()).then(|| ImageLoader::default().read(path).ok()).flatten();
        Ok(match image.and_then(|image| pack(&image, &layout.cells)) {
            Some((uri, thumbs)) => Self { epoch, uri, note: layout.note, thumbs },
            None => Self { epoch, uri: data_uri(&bytes), note: layout.note, thumbs: Vec::new() },
        })
    }
}

/// Whether an image is on a sheet of this size.
pub(super) fn is_on(placed: &Placed, (sheet_width, sheet_height): (u32, u32)) -> bool {
    let [x, y, width, height] = placed.at;
    let is_within =
        |start: u32, length: u32, all| length > 0 && start.checked_add(length).is_some_and(|end| end <= all);
    is_within(x, width, sheet_width) && is_within(y, height, sheet_height)
}

/// Cuts images out of a sheet and packs them, without what the sheet scaled them up by; none if they cannot be encoded.
fn pack(sheet: &RgbImage, cells: &[Placed]) -> Option<(String, Vec<Thumb>)> {
    let factor = (1..=MAX_FACTOR).rev().find(|&factor| cells.iter().all(|cell| is_scaled(sheet, cell, factor)))?;
    let size = |cell: &Placed| (cell.at[2] / factor, cell.at[3] / factor);
    let (width, height) =
        cells.iter().map(size).fold((1, 1), |(width, height), size| (width.max(size.0), height.max(size.1)));
    let pitch = (width.next_multiple_of(BLOCK), height.next_multiple_of(BLOCK));
    let columns = (cells.len() as f64).sqrt().ceil() as u32;
    let rows = (cells.len() as u32).div_ceil(columns);
    let mut packed = RgbImage::new(columns * pitch.0, rows * pitch.1);
    let mut thumbs = Vec::with_capacity(cells.len());
    for (i, cell) in cells.iter().enumerate() {
        let at = (i as u32 % columns * pitch.0, i as u32 / columns * pitch.1);
        let (width, height) = size(cell);
        for (x, y) in (0..pitch.1).flat_map(|y| (0..pitch.0).map(move |x| (x, y))) {
            // Beyond its edge an image's last pixels are repeated, which blocks encode well.
            let from = (cell.at[0] + x.min(width - 1) * factor, cell.at[1] + y.min(height - 1) * factor);
            packed.put_pixel(at.0 + x, at.1 + y, *sheet.get_pixel(from.0, from.1));
        }
        thumbs.push(Thumb::of(cell, [at.0, at.1, width, height], packed.dimensions()));
    }
    let mut bytes = Cursor::new(Vec::new());
    let (width, height) = packed.dimensions();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
    image::ImageEncoder::write_image(encoder, &packed, width, height, ExtendedColorType::Rgb8).ok()?;
    Some((jpeg_uri(bytes.get_ref()), thumbs))
}

/// Whether an image on a sheet has squares of `factor` × `factor` equal pixels.
fn is_scaled(sheet: &RgbImage, cell: &Placed, factor: u32) -> bool {
    let [left, top, width, height] = cell.at;
    let is_equal = |x: u32, y: u32| {
        let corner = (left + x / factor * factor, top + y / factor * factor);
        sheet.get_pixel(left + x, top + y) == sheet.get_pixel(corner.0, corner.1)
    };
    let fits = width.is_multiple_of(factor) && height.is_multiple_of(factor);
    fits && (0..height).all(|y| (0..width).all(|x| is_equal(x, y)))
}

impl Thumb {
    /// Returns the part `at` of a packed file.
    pub(super) fn of(placed: &Placed, at: [u32; 4], (packed_width, packed_height): (u32, u32)) -> Self {
        let [x, y, width, height] = at;
        // A position in percent is a share of what the file is larger than the image by.
        let share = |start: u32, room: u32| 100.0 * f64::from(start) / f64::from(room.max(1));
        let style = format!(
            "aspect-ratio:{width}/{height};background-size:{:.4}% auto;background-position:{:.4}% {:.4}%",
            100.0 * f64::from(packed_width) / f64::from(width),
            share(x, packed_width - width),
            share(y, packed_height - height)
        );
        let (title, value, change) = (placed.title.clone(), placed.value.clone(), placed.change.clone());
        let tone = match change.chars().next() {
            Some('+') => "good",
            Some('−') => "bad",
            _ => "",
        };
        Self { style, title, value, change, tone }
    }
}

/// Reads as many contact sheets as the page has room for: the first, the last and evenly spaced ones between.
pub(super) fn contact_sheets(all: &[(u64, PathBuf)]) -> Result<Vec<Sheet>> {
    let mut read: BTreeMap<u64, Sheet> = BTreeMap::new();
    let mut count = all.len().min(MAX_SHEETS);
    loop {
        for (epoch, path) in chosen(all, count) {
            if !read.contains_key(epoch) {
                read.insert(*epoch, Sheet::read(*epoch, path, usize::MAX)?);
            }
        }
        let sheets: Vec<Sheet> = chosen(all, count).filter_map(|(epoch, _)| read.get(epoch).cloned()).collect();
        let characters: usize = sheets.iter().map(|sheet| sheet.uri.len()).sum();
        if characters <= MAX_CHARACTERS || count <= 2 {
            return Ok(sheets);
        }
        count = (count * MAX_CHARACTERS / characters).clamp(2, count - 1);
    }
}

/// Returns the first, the last and evenly spaced ones between, `count` of all.
fn chosen<T>(all: &[T], count: usize) -> impl Iterator<Item = &T> {
    let count = all.len().min(count);
    (0..count).map(move |i| &all[if count > 1 { i * (all.len() - 1) / (count - 1) } else { 0 }])
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn placed(at: [u32; 4]) -> Placed {
        Placed { at, title: String::new(), value: String::new(), change: String::new() }
    }

    #[test]
    fn a_layout_that_is_not_its_sheets_is_found() {
        for at in [[0, 0, 0, 5], [6, 0, 5, 5], [0, 6, 5, 5], [u32::MAX, 0, 5, 5]] {
            assert!(!is_on(&placed(at), (10, 10)), "{at:?}");
        }
        assert!(is_on(&placed([5, 0, 5, 10]), (10, 10)));
        let style = Thumb::of(&placed([5, 0, 5, 10]), [5, 0, 5, 10], (10, 10)).style;
        assert_eq!(style, "aspect-ratio:5/10;background-size:200.0000% auto;background-position:100.0000% 0.0000%");
    }

    #[test]
    fn images_are_packed_at_their_own_size() {
        let checks = |x: u32, y: u32| Rgb([if (x / 2 + y / 2).is_multiple_of(2) { 250 } else { 5 }, 9, 9]);
        let sheet = RgbImage::from_fn(40, 20, checks);
        let cells = [placed([0, 0, 20, 20]), placed([20, 0, 20, 20])];
        assert!(is_scaled(&sheet, &cells[0], 2) && !is_scaled(&sheet, &cells[0], 4));
        let (uri, thumbs) = pack(&sheet, &cells).expect("it encodes");
        assert!(uri.starts_with("data:image/jpeg;base64,"));
        // Two images of 10 pixels, each in 16 by 16.
        assert!(
            thumbs[0].style.starts_with("aspect-ratio:10/10;background-size:320.0000% auto"),
            "{}",
            thumbs[0].style
        );
        assert!(thumbs[1].style.contains("background-position:72.7273% 0.0000%"), "{}", thumbs[1].style);
    }

    #[test]
    fn sheets_are_chosen_from_the_first_to_the_last() {
        let all: Vec<u64> = (0..100).collect();
        let some: Vec<_> = chosen(&all, 12).copied().collect();
        assert_eq!((some.len(), some[0], some[11]), (12, 0, 99));
        assert_eq!(chosen(&[7], 12).count(), 1);
        assert_eq!(chosen::<u64>(&[], 12).count(), 0);
    }
}
