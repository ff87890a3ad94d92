//! Contact sheets by epoch, and the same noise before and after, with prompts and rewards in the picture.

use std::borrow::Cow;

use image::RgbImage;
use image::imageops::{self, FilterType};

use super::canvas::{Anchor, Canvas, Rgba};
use super::text::{self, Weight};

const GROUND: Rgba = [0xfb, 0xfa, 0xf8, 255];
const INK: Rgba = [0x1d, 0x22, 0x2b, 255];
const MUTED: Rgba = [0x66, 0x6f, 0x7d, 255];
const BETTER: Rgba = [0x0b, 0x80, 0x52, 255];
const WORSE: Rgba = [0xb4, 0x2a, 0x36, 255];
const RULE: Rgba = [0xdd, 0xdd, 0xdb, 255];

/// Space round the sheet and between its cells, in pixels.
const MARGIN: u32 = 28;
const GAP: u32 = 18;
/// Height of the header.
const HEADER: u32 = 60;
/// The widest a sheet gets.
const MAX_WIDTH: u32 = 1500;
/// Pictures below this are scaled up by a whole factor; those above `LARGEST` are scaled down.
const SMALLEST: u32 = 160;
const LARGEST: u32 = 320;
/// Size and distance of lines of words.
const SIZE: f32 = 13.0;
const LINE: u32 = 17;

/// One picture of a contact sheet.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The picture.
    pub image: RgbImage,
    /// Its prompt.
    pub title: String,
    /// Its reward.
    pub value: Option<f64>,
}

/// A contact sheet of an epoch: each picture with its reward and prompt under it.
pub fn contact_sheet(epoch: u64, cells: &[Cell]) -> RgbImage {
    let pictures: Vec<_> = cells.iter().map(|cell| Scaled::new(&cell.image)).collect();
    let (cell_width, cell_height) = largest(pictures.iter());
    let title_lines = 2 * u32::from(cells.iter().any(|cell| !cell.title.is_empty()));
    let value_lines = u32::from(cells.iter().any(|cell| cell.value.is_some()));
    let words = if title_lines + value_lines > 0 { (title_lines + value_lines) * LINE + 6 } else { 0 };

    let (columns, rows) = layout(cells.len() as u32, (cell_width, cell_height + words));
    let width = 2 * MARGIN + columns * cell_width + (columns - 1) * GAP;
    let height = HEADER + rows * (cell_height + words + GAP) - GAP + MARGIN;
    let mut canvas = Canvas::new(width, height, 1.0, GROUND);

    let name = if epoch == 0 { "epoch 0, untrained".to_owned() } else { format!("epoch {epoch}") };
    let values: Vec<f64> = cells.iter().filter_map(|cell| cell.value).collect();
    let mean = mean(&values).map(|mean| format!("mean reward {}", text::number(mean, 3)));
    header(&mut canvas, width, &name, &mean.unwrap_or_default());

    for (i, (cell, picture)) in cells.iter().zip(&pictures).enumerate() {
        let x = MARGIN + (i as u32 % columns) * (cell_width + GAP);
        let y = HEADER + (i as u32 / columns) * (cell_height + words + GAP);
        canvas.picture(x, y, &picture.image, picture.factor);
        let mut baseline = y + cell_height + LINE;
        if let Some(value) = cell.value {
            let at = (x as f32, baseline as f32);
            canvas.text(at, Anchor::Start, SIZE, Weight::Bold, INK, &text::number(value, 3));
        }
        baseline += value_lines * LINE;
        for line in text::wrap(&cell.title, SIZE - 1.0, Weight::Regular, cell_width as f32, 2) {
            canvas.text((x as f32, baseline as f32), Anchor::Start, SIZE - 1.0, Weight::Regular, MUTED, &line);
            baseline += LINE;
        }
    }
    canvas.into_rgb()
}

/// Pictures from the same prompts and noise in two rows, `untrained` and `trained`, with the reward under each.
///
/// `before`, `after` and `titles` go together by index, as do the `rewards`, (before, after), which may be empty; what
/// one of them lacks at the end is left out. More columns than fit are continued below.
pub fn compare(
    before: &[RgbImage],
    after: &[RgbImage],
    titles: &[impl AsRef<str>],
    rewards: &[(f64, f64)],
) -> RgbImage {
    const LABELS: u32 = 92;
    const TITLES: u32 = 2 * LINE + 4;
    let count = before.len().min(after.len());
    let rows = [before, after].map(|row| row[..count].iter().map(Scaled::new).collect::<Vec<_>>());
    let (cell_width, cell_height) = largest(rows.iter().flatten());
    let value_height = if rewards.is_empty() { 8 } else { LINE + 10 };
    let row_height = cell_height + value_height;
    let block_height = TITLES + 2 * row_height + GAP;

    let most = ((MAX_WIDTH - 2 * MARGIN - LABELS + GAP) / (cell_width + GAP)).max(1);
    let blocks = (count as u32).div_ceil(most).max(1);
    let columns = (count as u32).div_ceil(blocks).max(1);
    let width = (2 * MARGIN + LABELS + columns * (cell_width + GAP) - GAP).max(560);
    let mut canvas = Canvas::new(width, HEADER + blocks * block_height - GAP + MARGIN / 2, 1.0, GROUND);

    let means = mean(&rewards.iter().map(|r| r.0).collect::<Vec<_>>())
        .zip(mean(&rewards.iter().map(|r| r.1).collect::<Vec<_>>()))
        .map(|(from, to)| format!("mean reward {} → {}", text::number(from, 3), text::number(to, 3)));
    header(&mut canvas, width, "same prompts, same noise", &means.unwrap_or_default());

    for i in 0..count {
        let (block, column) = (i as u32 / columns, i as u32 % columns);
        let x = MARGIN + LABELS + column * (cell_width + GAP);
        let top = HEADER + block * block_height;
        let title = titles.get(i).map_or("", AsRef::as_ref);
        let lines = text::wrap(title, SIZE - 1.0, Weight::Regular, cell_width as f32, 2);
        for (line, baseline) in lines.iter().rev().zip([top + TITLES - 10, top + TITLES - 10 - LINE]) {
            canvas.text((x as f32, baseline as f32), Anchor::Start, SIZE - 1.0, Weight::Regular, MUTED, line);
        }
        for (row, (name, pictures)) in ["untrained", "trained"].iter().zip(&rows).enumerate() {
            let y = top + TITLES + row as u32 * row_height;
            if column == 0 {
                let at = ((x - 14) as f32, (y + cell_height / 2 + 5) as f32);
                canvas.text(at, Anchor::End, SIZE, Weight::Bold, INK, name);
            }
            canvas.picture(x, y, &pictures[i].image, pictures[i].factor);
            if let Some(&(from, to)) = rewards.get(i) {
                let baseline = (y + cell_height + LINE) as f32;
                let value = text::number(if row == 0 { from } else { to }, 3);
                canvas.text((x as f32, baseline), Anchor::Start, SIZE, Weight::Bold, INK, &value);
                if row == 1 {
                    let change = text::number(to - from, 3);
                    let (change, ink) = if to >= from { (format!("+{change}"), BETTER) } else { (change, WORSE) };
                    let right = (x + cell_width) as f32;
                    canvas.text((right, baseline), Anchor::End, SIZE, Weight::Regular, ink, &change);
                }
            }
        }
    }
    canvas.into_rgb()
}

/// A picture at the size at which it is shown: `factor` pixels for each of its own.
struct Scaled<'a> {
    image: Cow<'a, RgbImage>,
    factor: u32,
}

impl<'a> Scaled<'a> {
    fn new(image: &'a RgbImage) -> Self {
        let side = image.width().max(image.height()).max(1);
        if side <= LARGEST {
            return Self { image: Cow::Borrowed(image), factor: SMALLEST.div_ceil(side) };
        }
        let shrunk = |length: u32| (length * LARGEST / side).max(1);
        let small = imageops::resize(image, shrunk(image.width()), shrunk(image.height()), FilterType::CatmullRom);
        Self { image: Cow::Owned(small), factor: 1 }
    }

    fn size(&self) -> (u32, u32) {
        (self.image.width() * self.factor, self.image.height() * self.factor)
    }
}

fn largest<'a>(pictures: impl Iterator<Item = &'a Scaled<'a>>) -> (u32, u32) {
    pictures.map(Scaled::size).fold((SMALLEST, 0), |(width, height), size| (width.max(size.0), height.max(size.1)))
}

/// Columns and rows for `count` cells of a size: few empty cells, and a sheet somewhat wider than high.
fn layout(count: u32, (width, height): (u32, u32)) -> (u32, u32) {
    const WANTED_ASPECT: f32 = 1.5;
    let most = ((MAX_WIDTH - 2 * MARGIN + GAP) / (width + GAP)).clamp(1, count.max(1));
    let cost = |columns: u32| {
        let rows = count.div_ceil(columns).max(1);
        let aspect = (columns * (width + GAP)) as f32 / (rows * (height + GAP)) as f32;
        (rows * columns - count.max(1)) as f32 / columns as f32 + 1.5 * (aspect / WANTED_ASPECT).ln().abs()
    };
    let columns = (1..=most).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(1);
    (columns, count.div_ceil(columns).max(1))
}

fn header(canvas: &mut Canvas, width: u32, left: &str, right: &str) {
    let right_edge = (width - MARGIN) as f32;
    canvas.text((MARGIN as f32, 33.0), Anchor::Start, 17.0, Weight::Bold, INK, left);
    canvas.text((right_edge, 33.0), Anchor::End, 14.0, Weight::Regular, MUTED, right);
    canvas.rect(MARGIN as f32, 45.0, right_edge - MARGIN as f32, 1.0, RULE);
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn cells(count: usize, size: u32) -> Vec<Cell> {
        let cell = |i: usize| Cell {
            image: RgbImage::from_pixel(size, size, Rgb([200, 30, i as u8])),
            title: format!("a painting of a man, number {i}"),
            value: Some(-3.0 - i as f64 / 10.0),
        };
        (0..count).map(cell).collect()
    }

    fn count_exact(picture: &RgbImage, color: [u8; 3]) -> usize {
        picture.pixels().filter(|pixel| pixel.0 == color).count()
    }

    #[test]
    fn small_pictures_are_scaled_up_whole_and_all_are_there() {
        let sheet = contact_sheet(12, &cells(16, 64));
        for i in 0..16 {
            assert_eq!(count_exact(&sheet, [200, 30, i]), 192 * 192, "picture {i}");
        }
        assert!(sheet.width() <= MAX_WIDTH);
    }

    #[test]
    fn large_pictures_are_scaled_down_and_odd_counts_fit() {
        for (count, size) in [(1, 512), (7, 512), (5, 16), (30, 64)] {
            let sheet = contact_sheet(0, &cells(count, size));
            assert!(sheet.width() <= MAX_WIDTH && sheet.height() > HEADER, "{count} of {size}");
            assert!(count_exact(&sheet, [200, 30, count as u8 - 1]) >= (SMALLEST * SMALLEST) as usize);
        }
    }

    #[test]
    fn an_empty_sheet_is_still_a_picture() {
        assert!(contact_sheet(1, &[]).width() > 0);
        assert!(compare(&[], &[], &[] as &[&str], &[]).width() > 0);
    }

    #[test]
    fn a_comparison_has_both_rows_and_continues_below() {
        let before = vec![RgbImage::from_pixel(64, 64, Rgb([255, 0, 0])); 12];
        let after = vec![RgbImage::from_pixel(64, 64, Rgb([0, 0, 255])); 12];
        let picture = compare(&before, &after, &["a man"; 12], &[(-4.0, -3.5); 12]);
        assert_eq!(count_exact(&picture, [255, 0, 0]), 12 * 192 * 192);
        assert_eq!(count_exact(&picture, [0, 0, 255]), 12 * 192 * 192);
        assert!(picture.width() <= MAX_WIDTH);
    }
}
