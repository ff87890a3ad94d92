//! Confusion matrices of held-out images, drawn as images: a row for each true style, a column for each predicted one.

use image::RgbImage;

use super::canvas::text::{self, Weight};
use super::canvas::{Anchor, Canvas, GROUND, HEADER, INK, MARGIN, MAX_WIDTH, MIN_WIDTH, MUTED, oklab};
use crate::text::number;

/// Minimum and maximum side of a cell in pixels: few styles have larger cells.
const SMALLEST_CELL: u32 = 10;
const LARGEST_CELL: u32 = 84;
/// The side of all cells together, if there is room for it.
const WANTED_SIDE: u32 = 756;
/// Below this side, cells contain no numbers.
const NUMBERED_CELL: u32 = 22;
/// Font sizes of names, of small labels, and of numbers in cells.
const SIZE: f32 = 12.5;
const SMALL: f32 = 11.5;
const CELL_SIZE: f32 = 10.5;
/// Names are cut to this width.
const LONGEST_NAME: f32 = 260.0;
/// Width for recall and number of images, to the right of a row.
const RECALL: u32 = 118;
/// Height for the labels above and below the cells.
const ABOVE: u32 = 44;
const BELOW: u32 = 66;
/// Colors of cells with none and with all of a row's images, in OKLab: lightness, green to red, blue to yellow.
const NONE: [f32; 3] = [0.955, -0.002, -0.006];
const ALL: [f32; 3] = [0.36, -0.02, -0.145];
/// Below this lightness, numbers are white.
const DARK: f32 = 0.68;
/// Number of steps and height of the color key.
const KEY_STEPS: u32 = 100;
const KEY_HEIGHT: f32 = 9.0;

/// Draws `counts`, with a row for each true style and a column for each predicted one, in percent of each row. Columns
/// have the numbers of the rows (or names, if they fit). To the right of each row are its recall and its number of
/// images; the header contains `accuracy`, that of all images.
///
/// # Panics
/// If `counts` does not have a row and a column for each of `styles`.
pub fn confusion_matrix(styles: &[String], counts: &[Vec<usize>], accuracy: f64) -> RgbImage {
    let is_square = counts.len() == styles.len() && counts.iter().all(|row| row.len() == styles.len());
    assert!(is_square, "a confusion matrix has a row and a column for each style");
    let n = styles.len() as u32;
    let names: Vec<String> = styles.iter().enumerate().map(|(i, style)| format!("{}  {}", cut(style), i + 1)).collect();
    let left = MARGIN + widest(&names).ceil() as u32 + 12;
    let room = (MAX_WIDTH - left - RECALL - MARGIN).min(WANTED_SIDE);
    let cell = (room / n.max(1)).clamp(SMALLEST_CELL, LARGEST_CELL);
    // With a few more styles than fit the wanted side, cells stay large enough for numbers.
    let cell = if n * NUMBERED_CELL <= MAX_WIDTH - left - RECALL - MARGIN { cell.max(NUMBERED_CELL) } else { cell };
    let (side, top) = (n * cell, HEADER + ABOVE);
    let width = (left + side + RECALL + MARGIN).max(MIN_WIDTH);
    let mut canvas = Canvas::new(width, top + side + BELOW, 1.0, GROUND);
    let n_images: usize = counts.iter().flatten().sum();
    let right = format!("{} % of {n_images} held-out images predicted correctly", number(100.0 * accuracy, 1));
    canvas.header(width, "true and predicted styles", &right);

    let middle = (left + side / 2) as f32;
    small(&mut canvas, (middle, (HEADER + 16) as f32), Anchor::Middle, "predicted style");
    small(&mut canvas, ((left - 12) as f32, (top - 9) as f32), Anchor::End, "true style");
    let recall_x = (left + side + 58) as f32;
    let count_x = (left + side + RECALL) as f32;
    small(&mut canvas, (recall_x, (top - 9) as f32), Anchor::End, "recall");
    small(&mut canvas, (count_x, (top - 9) as f32), Anchor::End, "images");

    let are_named = widest(styles) <= (cell - 8) as f32;
    let every = if cell >= 18 { 1 } else { 5 };
    for (i, row) in counts.iter().enumerate() {
        let y = top + i as u32 * cell;
        let baseline = (y + cell / 2) as f32 + 4.5;
        if are_named || (i + 1).is_multiple_of(every) {
            let column_x = left as f32 + (i as f32 + 0.5) * cell as f32;
            let label = if are_named { styles[i].clone() } else { (i + 1).to_string() };
            for label_y in [top - 9, top + side + 17] {
                small(&mut canvas, (column_x, label_y as f32), Anchor::Middle, &label);
            }
        }
        let name_size = SIZE.min(cell as f32 + 1.0);
        canvas.text(((left - 12) as f32, baseline), Anchor::End, name_size, Weight::Regular, INK, &names[i]);
        let total: usize = row.iter().sum();
        for (j, &count) in row.iter().enumerate() {
            let share = count as f64 / total.max(1) as f64;
            let (x, lab) = (left + j as u32 * cell, shade(share));
            canvas.rect(x as f32 + 0.5, y as f32 + 0.5, cell as f32 - 1.0, cell as f32 - 1.0, oklab(lab));
            let percent = (100.0 * share).round();
            if percent >= 1.0 && cell >= NUMBERED_CELL {
                let ink = if lab[0] < DARK { [255; 4] } else { INK };
                let at = (x as f32 + cell as f32 / 2.0, (y + cell / 2) as f32 + 3.8);
                let size = CELL_SIZE.max(0.22 * cell as f32);
                canvas.text(at, Anchor::Middle, size, Weight::Regular, ink, &number(percent, 0));
            }
        }
        let recall = match total {
            0 => "–".to_owned(),
            total => format!("{} %", number(100.0 * row[i] as f64 / total as f64, 0)),
        };
        canvas.text((recall_x, baseline), Anchor::End, name_size, Weight::Bold, INK, &recall);
        canvas.text((count_x, baseline), Anchor::End, name_size, Weight::Regular, MUTED, &total.to_string());
    }
    draw_key(&mut canvas, left, top + side + 36);
    canvas.into_rgb()
}

/// Draws the color key, from 0 % to 100 %.
fn draw_key(canvas: &mut Canvas, left: u32, top: u32) {
    let (x, y) = (left as f32 + 26.0, top as f32);
    small(canvas, (left as f32, y + KEY_HEIGHT), Anchor::Start, "0 %");
    for step in 0..KEY_STEPS {
        let ink = oklab(shade(f64::from(step) / f64::from(KEY_STEPS - 1)));
        canvas.rect(x + step as f32, y, 1.0, KEY_HEIGHT, ink);
    }
    let after = (x + KEY_STEPS as f32 + 8.0, y + KEY_HEIGHT);
    small(canvas, after, Anchor::Start, "100 % of the row’s images");
}

fn small(canvas: &mut Canvas, at: (f32, f32), anchor: Anchor, words: &str) {
    canvas.text(at, anchor, SMALL, Weight::Regular, MUTED, words);
}

fn widest(names: &[String]) -> f32 {
    names.iter().map(|name| text::width(name, SIZE, Weight::Regular)).fold(0.0, f32::max)
}

/// Shortens a name so that it fits beside its row.
fn cut(name: &str) -> String {
    text::wrap(name, SIZE, Weight::Regular, LONGEST_NAME, 1).join(" ")
}

/// The color of a share of a row, in OKLab, in which equal steps look equal.
fn shade(share: f64) -> [f32; 3] {
    let depth = share.clamp(0.0, 1.0) as f32;
    std::array::from_fn(|i| NONE[i] + (ALL[i] - NONE[i]) * depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("style {i}")).collect()
    }

    fn count(image: &RgbImage, share: f64) -> usize {
        let [red, green, blue, _] = oklab(shade(share));
        image.pixels().filter(|pixel| pixel.0 == [red, green, blue]).count()
    }

    #[test]
    fn cells_have_the_shares_of_their_rows() {
        let counts = vec![vec![8, 0, 0], vec![0, 0, 8], vec![0, 0, 0]];
        let image = confusion_matrix(&names(3), &counts, 0.5);
        // All of a cell but its edge; numbers and the last step of the key change the count a little.
        let cell = (LARGEST_CELL as usize - 2).pow(2);
        let (all, none) = (count(&image, 1.0), count(&image, 0.0));
        assert!((9 * cell / 5..11 * cell / 5).contains(&all), "two cells of 100 %: {all} pixels of {cell} each");
        assert!((7 * cell..8 * cell).contains(&none), "seven cells of 0 %: {none} pixels of {cell} each");
        let halves = confusion_matrix(&names(2), &[vec![3, 3], vec![2, 2]], 0.5);
        assert!(count(&halves, 0.5) > 3 * cell, "a row's share counts, not its number");
    }

    #[test]
    fn images_of_any_number_of_styles_fit() {
        for n in [0, 1, 2, 27, 60, 120] {
            let image = confusion_matrix(&names(n), &vec![vec![1; n]; n], 0.0);
            assert!(image.width() <= MAX_WIDTH && image.height() > HEADER, "{n}");
        }
    }

    #[test]
    fn the_ramp_darkens_evenly() {
        // Rec. 709's luma falls by about the same at every step.
        let luma = |share: f64| {
            let [red, green, blue, _] = oklab(shade(share)).map(f64::from);
            0.2126 * red + 0.7152 * green + 0.0722 * blue
        };
        let steps: Vec<f64> = (0..10).map(|i| luma(f64::from(i) / 10.0) - luma(f64::from(i + 1) / 10.0)).collect();
        assert!(steps.iter().all(|step| (10.0..30.0).contains(step)), "{steps:?}");
    }
}
