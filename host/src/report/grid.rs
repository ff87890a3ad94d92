//! Contact sheets by epoch, and comparisons of the same noise before and after training, with prompts and rewards.

use std::borrow::Cow;

use image::RgbImage;
use image::imageops::{self, FilterType};
use serde::{Deserialize, Serialize};

use super::canvas::text::{self, Weight};
use super::canvas::{Anchor, Canvas, GROUND, HEADER, INK, MARGIN, MAX_WIDTH, MIN_WIDTH, MUTED, Rgba};
use crate::data::png::Sheet;
use crate::text::{decimals, number, signed};

const BETTER: Rgba = [0x0b, 0x80, 0x52, 255];
const WORSE: Rgba = [0xb4, 0x2a, 0x36, 255];

/// Space between cells, in pixels.
const GAP: u32 = 18;
/// Maximum side of an image; larger images are scaled down.
const LARGEST: u32 = 320;
/// Font sizes of rewards and of titles, and the distance of lines.
const SIZE: f32 = 13.0;
const TITLE_SIZE: f32 = 12.0;
const LINE: u32 = 17;

/// An image of a contact sheet.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The image.
    pub image: RgbImage,
    /// The image's prompt.
    pub title: String,
    /// The image's reward, or another value.
    pub value: Option<f64>,
}

/// A description of the values of a sheet.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// Name of the values.
    pub name: &'a str,
    /// Mean over all images.
    pub mean: f64,
    /// Number of all images; a sheet may show some of them.
    pub count: usize,
}

/// The name of the text in a sheet's file that contains its [`Layout`].
pub(super) const LAYOUT: &str = "layout";

/// Where the images of a sheet are and what is said of each, as a sheet's file contains it, for a page that arranges them
/// itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Layout {
    /// The right end of the header.
    pub(super) note: String,
    /// The images; of a comparison, those of one prompt and noise follow each other: untrained, trained.
    pub(super) cells: Vec<Placed>,
}

/// An image on a sheet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Placed {
    /// Left, top, width and height in pixels.
    pub(super) at: [u32; 4],
    pub(super) title: String,
    pub(super) value: String,
    /// The change of the value by training.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) change: String,
}

impl Layout {
    fn sheet(self, image: RgbImage) -> Sheet {
        let json = serde_json::to_string(&self).expect("texts and numbers serialize");
        Sheet { image, texts: vec![(LAYOUT.to_owned(), json)] }
    }
}

/// Draws the contact sheet of an epoch: each image with its value and prompt under it.
pub fn contact_sheet(epoch: u64, cells: &[Cell], values: Values<'_>) -> Sheet {
    let name = if epoch == 0 { "epoch 0, untrained".to_owned() } else { format!("epoch {epoch}") };
    let decimals = decimals_of(cells.iter().filter_map(|cell| cell.value));
    let Values { name: of, mean, count } = values;
    let of_all = if cells.len() < count { format!(" of all {count}:") } else { String::new() };
    titled_sheet(&name, &format!("mean {of}{of_all} {}", number(mean, decimals)), cells)
}

/// Draws a contact sheet with a header of two texts: each image with its value and prompt under it.
pub fn titled_sheet(name: &str, note: &str, cells: &[Cell]) -> Sheet {
    let smallest = smallest_side(cells.len());
    let images: Vec<_> = cells.iter().map(|cell| Scaled::new(&cell.image, smallest)).collect();
    let (cell_width, cell_height) = largest(images.iter(), smallest);
    let titles: Vec<_> = cells.iter().map(|cell| title_lines(&cell.title, cell_width)).collect();
    let value_lines = u32::from(cells.iter().any(|cell| cell.value.is_some()));
    let lines = titles.iter().map(Vec::len).max().unwrap_or(0) as u32 + value_lines;
    let words = if lines > 0 { lines * LINE + 6 } else { 0 };

    let (columns, rows) = layout(cells.len() as u32, (cell_width, cell_height + words));
    let width = (2 * MARGIN + columns * cell_width + (columns - 1) * GAP).max(MIN_WIDTH);
    let height = HEADER + rows * (cell_height + words + GAP) - GAP + MARGIN;
    let mut canvas = Canvas::new(width, height, 1.0, GROUND);

    canvas.header(width, name, note);
    let decimals = decimals_of(cells.iter().filter_map(|cell| cell.value));
    let mut layout = Layout { note: note.to_owned(), cells: vec![] };

    for (i, ((cell, image), title)) in cells.iter().zip(&images).zip(&titles).enumerate() {
        let x = MARGIN + (i as u32 % columns) * (cell_width + GAP);
        let y = HEADER + (i as u32 / columns) * (cell_height + words + GAP);
        canvas.image(x, y, &image.image, image.factor);
        let (side, value) = (image.size(), cell.value.map_or_else(String::new, |value| number(value, decimals)));
        let at = [x, y, side.0, side.1];
        layout.cells.push(Placed { at, title: cell.title.clone(), value, change: String::new() });
        let mut baseline = y + cell_height + LINE;
        if let Some(value) = cell.value {
            let at = (x as f32, baseline as f32);
            canvas.text(at, Anchor::Start, SIZE, Weight::Bold, INK, &number(value, decimals));
        }
        baseline += value_lines * LINE;
        for line in title {
            canvas.text((x as f32, baseline as f32), Anchor::Start, TITLE_SIZE, Weight::Regular, MUTED, line);
            baseline += LINE;
        }
    }
    layout.sheet(canvas.into_rgb())
}

/// Draws images of the same prompts and noise in two rows, `untrained` and `trained`, with the reward under each.
///
/// `before`, `after`, `titles` and `rewards`, (before, after), correspond by index; `rewards` may be empty. Rewards
/// without an image are included in the header's mean, so that a few images can represent all samples. Columns that do
/// not fit are continued below.
pub fn compare(before: &[RgbImage], after: &[RgbImage], titles: &[impl AsRef<str>], rewards: &[(f64, f64)]) -> Sheet {
    const LABELS: u32 = 92;
    let count = before.len().min(after.len());
    let smallest = smallest_side(count);
    let rows =
        [before, after].map(|row| row[..count].iter().map(|image| Scaled::new(image, smallest)).collect::<Vec<_>>());
    let (cell_width, cell_height) = largest(rows.iter().flatten(), smallest);
    let titles: Vec<&str> = (0..count).map(|i| titles.get(i).map_or("", |title| title.as_ref())).collect();
    let lines_of: Vec<_> = titles.iter().map(|title| title_lines(title, cell_width)).collect();
    let title_height = lines_of.iter().map(Vec::len).max().unwrap_or(0) as u32 * LINE + 4;
    let row_height = cell_height + if rewards.is_empty() { 10 } else { LINE + 10 };
    let block_height = title_height + 2 * row_height + GAP;

    let max_columns = ((MAX_WIDTH - 2 * MARGIN - LABELS + GAP) / (cell_width + GAP)).max(1);
    let blocks = (count as u32).div_ceil(max_columns).max(1);
    let columns = (count as u32).div_ceil(blocks).max(1);
    let width = (2 * MARGIN + LABELS + columns * (cell_width + GAP) - GAP).max(MIN_WIDTH);
    let mut canvas = Canvas::new(width, HEADER + blocks * block_height, 1.0, GROUND);

    let of_all = if count < rewards.len() { format!(" of all {}", rewards.len()) } else { String::new() };
    let means = mean(rewards.iter().map(|reward| reward.0)).zip(mean(rewards.iter().map(|reward| reward.1)));
    let decimals = decimals_of(rewards.iter().flat_map(|reward| [reward.0, reward.1]));
    let means =
        means.map(|(from, to)| format!("mean reward{of_all}: {} → {}", number(from, decimals), number(to, decimals)));
    let note = means.unwrap_or_default();
    canvas.header(width, "same prompts, same noise", &note);
    let mut layout = Layout { note, cells: vec![] };

    for (i, lines) in lines_of.iter().enumerate() {
        let (block, column) = (i as u32 / columns, i as u32 % columns);
        let x = MARGIN + LABELS + column * (cell_width + GAP);
        let top = HEADER + block * block_height + title_height;
        for (line, words) in lines.iter().rev().enumerate() {
            let at = (x as f32, (top - 8 - line as u32 * LINE) as f32);
            canvas.text(at, Anchor::Start, TITLE_SIZE, Weight::Regular, MUTED, words);
        }
        for (row, name) in ["untrained", "trained"].into_iter().enumerate() {
            let y = top + row as u32 * row_height;
            if column == 0 {
                let at = ((x - 14) as f32, (y + cell_height / 2 + 5) as f32);
                canvas.text(at, Anchor::End, SIZE, Weight::Bold, INK, name);
            }
            let image = &rows[row][i];
            canvas.image(x, y, &image.image, image.factor);
            let (side, title) = (image.size(), titles[i].to_owned());
            let mut placed = Placed { at: [x, y, side.0, side.1], title, value: String::new(), change: String::new() };
            if let Some(&(from, to)) = rewards.get(i) {
                let baseline = (y + cell_height + LINE) as f32;
                placed.value = number(if row == 0 { from } else { to }, decimals);
                canvas.text((x as f32, baseline), Anchor::Start, SIZE, Weight::Bold, INK, &placed.value);
                if row == 1 {
                    placed.change = signed(to - from, decimals);
                    let ink = match placed.change.chars().next() {
                        Some('+') => BETTER,
                        Some('−') => WORSE,
                        _ => MUTED,
                    };
                    let right = (x + cell_width) as f32;
                    canvas.text((right, baseline), Anchor::End, SIZE, Weight::Regular, ink, &placed.change);
                }
            }
            layout.cells.push(placed);
        }
    }
    layout.sheet(canvas.into_rgb())
}

/// An image to be drawn with `factor` × `factor` pixels for each of its own.
struct Scaled<'a> {
    image: Cow<'a, RgbImage>,
    factor: u32,
}

impl<'a> Scaled<'a> {
    fn new(image: &'a RgbImage, smallest: u32) -> Self {
        let side = image.width().max(image.height()).max(1);
        if side <= LARGEST {
            return Self { image: Cow::Borrowed(image), factor: smallest.div_ceil(side) };
        }
        let shrunk = |length: u32| (length * LARGEST / side).max(1);
        let small = imageops::resize(image, shrunk(image.width()), shrunk(image.height()), FilterType::CatmullRom);
        Self { image: Cow::Owned(small), factor: 1 }
    }

    fn size(&self) -> (u32, u32) {
        (self.image.width() * self.factor, self.image.height() * self.factor)
    }
}

fn largest<'a>(images: impl Iterator<Item = &'a Scaled<'a>>, smallest: u32) -> (u32, u32) {
    images.map(Scaled::size).fold((smallest, 0), |(width, height), size| (width.max(size.0), height.max(size.1)))
}

/// Columns and rows for `count` cells of the given size, with few empty cells and a sheet somewhat wider than high.
fn layout(count: u32, (width, height): (u32, u32)) -> (u32, u32) {
    const WANTED_ASPECT: f32 = 1.5;
    let max_columns = ((MAX_WIDTH - 2 * MARGIN + GAP) / (width + GAP)).clamp(1, count.max(1));
    let cost = |columns: u32| {
        let rows = count.div_ceil(columns).max(1);
        let aspect = (columns * (width + GAP)) as f32 / (rows * (height + GAP)) as f32;
        (rows * columns - count.max(1)) as f32 / columns as f32 + 1.5 * (aspect / WANTED_ASPECT).ln().abs()
    };
    let columns = (1..=max_columns).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(1);
    (columns, count.div_ceil(columns).max(1))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// The number of decimals that distinguishes rewards.
fn decimals_of(values: impl Iterator<Item = f64> + Clone) -> usize {
    let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max));
    decimals(high - low)
}

/// The minimum side of a drawn image, to which small images are scaled up by an integer factor; larger for few images.
fn smallest_side(count: usize) -> u32 {
    if count <= 12 { 160 } else { 128 }
}

/// Wraps a title to at most two lines.
fn title_lines(title: &str, width: u32) -> Vec<String> {
    text::wrap(title, TITLE_SIZE, Weight::Regular, width as f32, 2)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const VALUES: Values<'_> = Values { name: "reward", mean: -3.5, count: 60 };

    fn cells(count: usize, size: u32) -> Vec<Cell> {
        let cell = |i: usize| Cell {
            image: RgbImage::from_pixel(size, size, Rgb([200, 30, i as u8])),
            title: format!("a painting of a man, number {i}"),
            value: Some(-3.0 - i as f64 / 10.0),
        };
        (0..count).map(cell).collect()
    }

    fn count_exact(image: &RgbImage, color: [u8; 3]) -> usize {
        image.pixels().filter(|pixel| pixel.0 == color).count()
    }

    #[test]
    fn small_images_are_scaled_up_whole_and_all_are_there() {
        let sheet = contact_sheet(12, &cells(12, 64), VALUES).image;
        for i in 0..12 {
            assert_eq!(count_exact(&sheet, [200, 30, i]), 192 * 192, "image {i}");
        }
        assert!(sheet.width() <= MAX_WIDTH);
    }

    #[test]
    fn large_images_are_scaled_down_and_odd_counts_fit() {
        for (count, size) in [(1, 512), (7, 512), (5, 16), (30, 64)] {
            let sheet = contact_sheet(0, &cells(count, size), VALUES).image;
            assert!(sheet.width() <= MAX_WIDTH && sheet.height() > HEADER, "{count} of {size}");
            assert!(count_exact(&sheet, [200, 30, count as u8 - 1]) >= 128 * 128);
        }
    }

    #[test]
    fn an_empty_sheet_is_still_an_image() {
        assert!(contact_sheet(1, &[], VALUES).image.width() > 0);
        assert!(compare(&[], &[], &[] as &[&str], &[]).image.width() > 0);
    }

    #[test]
    fn a_comparison_has_both_rows_and_continues_below() {
        let before = vec![RgbImage::from_pixel(64, 64, Rgb([255, 0, 0])); 16];
        let after = vec![RgbImage::from_pixel(64, 64, Rgb([0, 0, 255])); 16];
        let image = compare(&before, &after, &["a man"; 16], &[(-4.0, -3.5); 64]).image;
        assert_eq!(count_exact(&image, [255, 0, 0]), 16 * 128 * 128);
        assert_eq!(count_exact(&image, [0, 0, 255]), 16 * 128 * 128);
        assert!(image.width() <= MAX_WIDTH && image.height() > 4 * 128);
    }

    fn layout(sheet: &Sheet) -> Layout {
        let (_, json) = sheet.texts.iter().find(|(name, _)| name == LAYOUT).expect("a sheet has a layout");
        serde_json::from_str(json).expect("it is JSON")
    }

    #[test]
    fn a_layout_says_where_the_images_are() {
        let sheet = contact_sheet(3, &cells(7, 64), VALUES);
        for (i, placed) in layout(&sheet).cells.iter().enumerate() {
            let [x, y, width, height] = placed.at;
            let corners = [(x, y), (x + width - 1, y + height - 1)];
            assert!(corners.iter().all(|&(x, y)| sheet.image.get_pixel(x, y).0 == [200, 30, i as u8]), "{placed:?}");
            assert_eq!(placed.title, format!("a painting of a man, number {i}"));
        }
        let [before, after] = [[255, 0, 0], [0, 0, 255]].map(|color| vec![RgbImage::from_pixel(64, 32, Rgb(color)); 3]);
        let sheet = compare(&before, &after, &["a man"; 3], &[(-4.0, -3.5), (-3.5, -4.0), (-3.5, -3.500_01)]);
        let cells = layout(&sheet).cells;
        for (i, placed) in cells.iter().enumerate() {
            let [x, y, width, height] = placed.at;
            let color = if i % 2 == 0 { [255, 0, 0] } else { [0, 0, 255] };
            assert_eq!(sheet.image.get_pixel(x, y).0, color);
            assert_eq!(sheet.image.get_pixel(x + width - 1, y + height - 1).0, color);
        }
        let changes: Vec<&str> = cells.iter().map(|cell| cell.change.as_str()).collect();
        assert_eq!(changes, ["", "+0.500", "", "−0.500", "", "0.000"], "what is rounded to zero has no sign");
    }

    #[test]
    fn a_change_that_is_rounded_to_zero_is_neither_green_nor_red() {
        let image = || vec![RgbImage::from_pixel(64, 64, Rgb([9; 3])); 2];
        let inked = |rewards: [(f64, f64); 2], ink: Rgba| {
            let sheet = compare(&image(), &image(), &["a man"; 2], &rewards).image;
            count_exact(&sheet, [ink[0], ink[1], ink[2]])
        };
        let clear = [(-4.0, -3.5), (-3.5, -4.0)];
        assert!(inked(clear, BETTER) > 0 && inked(clear, WORSE) > 0);
        let none = [(-4.0, -4.000_01), (-3.0, -2.999_99)];
        assert_eq!((inked(none, BETTER), inked(none, WORSE)), (0, 0));
    }
}
