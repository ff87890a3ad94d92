//! The contact sheet of a fit: one row of images per cluster or class, and what is drawn of all of them below.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use image::RgbImage;
use image::imageops::{self, FilterType};
use rayon::prelude::*;

use crate::data::images::ImageLoader;
use crate::data::png;
use crate::fs::write_atomic;
use crate::report::canvas::text::{self, Weight};
use crate::report::canvas::{Anchor, Canvas, GROUND, HEADER, INK, MARGIN, MAX_WIDTH, MUTED, RULE};

/// Side of an image's square in pixels.
const SIDE: u32 = 96;
/// Space around an image.
const GAP: u32 = 6;
/// Width of the column of names.
const LABELS: u32 = 210;
/// Space between the nearest images and the farthest.
const BREAK: u32 = 24;
/// Number of images in a row.
const SHOWN: usize = 11;
/// Number of the farthest images among them.
const FARTHEST: usize = 3;
/// Maximum number of clusters on a sheet.
const MAX_ROWS: usize = 200;
/// Font size of names.
const SIZE: f32 = 13.0;
/// Font size of notes.
const NOTE_SIZE: f32 = 12.0;

/// One cluster or class of a sheet.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Its name.
    pub name: String,
    /// Notes below the name, such as its size.
    pub notes: Vec<String>,
    /// Its images, in the sheet's order.
    pub files: Vec<PathBuf>,
}

/// The order of the images in a row: the words for the first ones and for the last ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub first: &'static str,
    pub last: &'static str,
    /// The plural noun of the rows.
    pub rows: &'static str,
}

/// A contact sheet.
pub(super) struct Sheet<'a> {
    pub title: &'a str,
    pub order: Order,
    pub rows: &'a [Row],
    /// Images below the rows.
    pub below: &'a [RgbImage],
}

/// Draws the sheet and writes it as a PNG.
pub(super) fn write(path: &Path, sheet: &Sheet<'_>, loader: &ImageLoader) -> Result<()> {
    let Sheet { title, order, rows, below } = sheet;
    let mut all = vec![draw(title, *order, rows, loader)];
    all.extend(below.iter().cloned());
    let bytes = png::encode(&stack(&all), &[png::software()]);
    write_atomic(path, &bytes.with_context(|| format!("encoding the contact sheet {}", path.display()))?)?;
    Ok(())
}

/// Places images below each other.
fn stack(images: &[RgbImage]) -> RgbImage {
    let width = images.iter().map(RgbImage::width).max().unwrap_or(1);
    let mut canvas = Canvas::new(width, images.iter().map(RgbImage::height).sum(), 1.0, GROUND);
    let mut top = 0;
    for image in images {
        canvas.image(0, top, image, 1);
        top += image.height();
    }
    canvas.into_rgb()
}

fn draw(title: &str, order: Order, rows: &[Row], loader: &ImageLoader) -> RgbImage {
    let left_out = rows.len().saturating_sub(MAX_ROWS);
    let rows = &rows[..rows.len() - left_out];
    let widest = rows.iter().map(|row| row.files.len()).max().unwrap_or(0);
    let whole = widest <= SHOWN;
    let columns = widest.min(SHOWN) as u32;
    let edge = if whole { 0 } else { BREAK };
    let width = (2 * MARGIN + LABELS + columns * (SIDE + GAP) + edge).clamp(900, MAX_WIDTH);
    let mut canvas = Canvas::new(width, HEADER + rows.len() as u32 * (SIDE + 2 * GAP) + MARGIN, 1.0, GROUND);
    let order = match (whole, left_out) {
        (true, 0) => format!("{} first", order.first),
        (false, 0) => format!("{} first, then the {FARTHEST} {}", order.first, order.last),
        (_, n) => format!("the first {MAX_ROWS} {}, {n} more are not shown", order.rows),
    };
    canvas.header(width, title, &order);
    for (i, row) in rows.iter().enumerate() {
        let top = HEADER + i as u32 * (SIDE + 2 * GAP);
        if i > 0 {
            canvas.rect(MARGIN as f32, (top - GAP) as f32, (width - 2 * MARGIN) as f32, 1.0, RULE);
        }
        let mut baseline = (top + 18) as f32;
        let room = (LABELS - 16) as f32;
        for line in text::wrap(&row.name, SIZE, Weight::Bold, room, 3) {
            canvas.text((MARGIN as f32, baseline), Anchor::Start, SIZE, Weight::Bold, INK, &line);
            baseline += 17.0;
        }
        for line in row.notes.iter().flat_map(|note| text::wrap(note, NOTE_SIZE, Weight::Regular, room, 2)) {
            canvas.text((MARGIN as f32, baseline), Anchor::Start, NOTE_SIZE, Weight::Regular, MUTED, &line);
            baseline += 16.0;
        }
        let near = if row.files.len() <= SHOWN { row.files.len() } else { SHOWN - FARTHEST };
        let far = if row.files.len() <= SHOWN { 0 } else { FARTHEST };
        let shown: Vec<&PathBuf> = row.files[..near].iter().chain(&row.files[row.files.len() - far..]).collect();
        // The cell of an image that can no longer be read stays empty.
        let images: Vec<_> = shown.par_iter().map(|file| loader.read_with(file, |image| fit(&image)).ok()).collect();
        for (column, image) in images.iter().enumerate() {
            let Some(image) = image else { continue };
            let x = MARGIN + LABELS + column as u32 * (SIDE + GAP) + if column >= near { BREAK } else { 0 };
            let (left, over) = ((SIDE - image.width()) / 2, (SIDE - image.height()) / 2);
            canvas.image(x + left, top + over, image, 1);
        }
    }
    canvas.into_rgb()
}

/// Resizes an image to fit a square of [`SIDE`]; scaling up by an integer factor keeps the pixels sharp.
fn fit(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let side = width.max(height).max(1);
    let scaled = |length: u32| (length * SIDE / side).max(1);
    let filter = if SIDE.is_multiple_of(side) { FilterType::Nearest } else { FilterType::CatmullRom };
    imageops::resize(image, scaled(width), scaled(height), filter)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const ORDER: Order = Order { first: "closest to the center", last: "farthest", rows: "clusters" };

    fn row(folder: &Path, name: &str, count: u8) -> Row {
        let file = |i: u8| {
            let path = folder.join(format!("{name}-{i}.png"));
            RgbImage::from_pixel(32, 16, Rgb([200, count, i])).save(&path).expect("writable");
            path
        };
        Row { name: name.to_owned(), notes: vec![format!("{count} images")], files: (0..count).map(file).collect() }
    }

    #[test]
    fn a_row_has_the_nearest_and_the_farthest() {
        let folder = tempfile::tempdir().expect("a folder");
        let rows = [row(folder.path(), "many", 40), row(folder.path(), "one", 1)];
        let sheet = draw("two clusters", ORDER, &rows, &ImageLoader::default());
        let area = |count: u8, i: u8| sheet.pixels().filter(|pixel| pixel.0 == [200, count, i]).count();
        let shown: Vec<u8> = (0..40).filter(|&i| area(40, i) > 0).collect();
        assert_eq!(shown, [0, 1, 2, 3, 4, 5, 6, 7, 37, 38, 39]);
        // 32 x 16 pixels grow to 96 x 48.
        assert_eq!((area(40, 39), area(1, 0)), (96 * 48, 96 * 48));
        assert!(sheet.width() <= MAX_WIDTH);
    }

    /// Each character that the compiled-in font lacks once was the same empty box.
    #[test]
    fn names_in_any_script_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let sheet = |name: &str| {
            let row = Row { name: name.to_owned(), ..row(folder.path(), "images", 1) };
            draw("one cluster", ORDER, &[row], &ImageLoader::default())
        };
        assert_ne!(sheet("水墨"), sheet("花鳥"));
        assert_ne!(sheet("🌊"), sheet("🌋"));
    }

    #[test]
    fn images_fill_the_square() {
        let size = |width, height| fit(&RgbImage::new(width, height)).dimensions();
        assert_eq!(
            [size(64, 64), size(512, 256), size(1, 2000), size(30, 10)],
            [(96, 96), (96, 48), (1, 96), (96, 32)]
        );
    }

    #[test]
    fn no_rows_and_a_missing_file_still_make_an_image() {
        let missing = Row { name: "missing".into(), notes: vec![], files: vec!["nowhere.png".into()] };
        let width = |rows: &[Row]| draw("none or one", ORDER, rows, &ImageLoader::default()).width();
        assert!(width(&[]) > 0 && width(&[missing]) > 0);
    }

    #[test]
    fn images_are_stacked() {
        let both = stack(&[RgbImage::from_pixel(20, 10, Rgb([1, 2, 3])), RgbImage::from_pixel(30, 5, Rgb([4, 5, 6]))]);
        assert_eq!(
            (both.dimensions(), both.get_pixel(19, 9).0, both.get_pixel(29, 14).0),
            ((30, 15), [1, 2, 3], [4, 5, 6])
        );
    }
}
