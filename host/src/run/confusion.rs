//! How a classifier tells held-out pictures, as a picture: a row for each true style, a column for each told one.

use image::RgbImage;

use crate::canvas::text::{self, Weight};
use crate::canvas::{Anchor, Canvas, GROUND, HEADER, INK, MARGIN, MIN_WIDTH, MUTED, Rgba};

/// Side of a cell, in pixels.
const CELL: u32 = 28;
/// Sizes of names and of numbers in cells.
const SIZE: f32 = 12.5;
const CELL_SIZE: f32 = 10.5;
/// Names are cut to this width.
const LONGEST_NAME: f32 = 260.0;
/// Room for the share that was told right, behind a row.
const RECALL: u32 = 64;
/// Room for the columns' numbers, above and below.
const NUMBERS: u32 = 24;
/// Lightest and darkest colour of a cell.
const LIGHT: [f32; 3] = [240.0, 241.0, 243.0];
const DARK: [f32; 3] = [23.0, 60.0, 120.0];
/// From this share on, numbers are white.
const DARK_FROM: f64 = 0.45;

/// Draws `counts`, a row a true style and a column a told one, in per cent of each row. Columns are numbered as rows are;
/// behind each row stands the share of it that was told right, and `accuracy` in the header.
pub fn confusion_matrix(styles: &[String], counts: &[Vec<usize>], accuracy: f64) -> RgbImage {
    let n = styles.len() as u32;
    let named = |i: usize| format!("{}  {}", cut(&styles[i]), i + 1);
    let names: Vec<String> = (0..styles.len()).map(named).collect();
    let widest = names.iter().map(|name| text::width(name, SIZE, Weight::Regular)).fold(0.0, f32::max);
    let left = MARGIN + widest.ceil() as u32 + 10;
    let top = HEADER + NUMBERS + 20;
    let width = (left + n * CELL + RECALL + MARGIN).max(MIN_WIDTH);
    let mut canvas = Canvas::new(width, top + n * CELL + NUMBERS + MARGIN, 1.0, GROUND);
    let n_pictures: usize = counts.iter().flatten().sum();
    let accuracy = format!("{} % of {n_pictures} told right", text::number(100.0 * accuracy, 1));
    canvas.header(width, "held-out pictures", &accuracy);
    let small = |canvas: &mut Canvas, at: (f32, f32), anchor: Anchor, words: &str| {
        canvas.text(at, anchor, 11.5, Weight::Regular, MUTED, words);
    };
    small(&mut canvas, (left as f32, (HEADER + 14) as f32), Anchor::Start, "told as, % of each row");
    let recall_x = (left + n * CELL + RECALL - 8) as f32;
    small(&mut canvas, (recall_x, (top - 8) as f32), Anchor::End, "right");

    for (i, row) in counts.iter().enumerate() {
        let y = top + i as u32 * CELL;
        let baseline = (y + CELL / 2) as f32 + 4.5;
        let column_x = (left + i as u32 * CELL + CELL / 2) as f32;
        for number_y in [top - 8, top + n * CELL + 16] {
            small(&mut canvas, (column_x, number_y as f32), Anchor::Middle, &(i + 1).to_string());
        }
        canvas.text(((left - 10) as f32, baseline), Anchor::End, SIZE, Weight::Regular, INK, &names[i]);
        let total = row.iter().sum::<usize>();
        for (j, &count) in row.iter().enumerate() {
            let share = count as f64 / total.max(1) as f64;
            let x = left + j as u32 * CELL;
            canvas.rect(x as f32 + 0.5, y as f32 + 0.5, CELL as f32 - 1.0, CELL as f32 - 1.0, shade(share));
            let percent = (100.0 * share).round();
            if percent >= 1.0 {
                let ink = if share >= DARK_FROM { [255; 4] } else { INK };
                let at = ((x + CELL / 2) as f32, (y + CELL / 2) as f32 + 3.8);
                canvas.text(at, Anchor::Middle, CELL_SIZE, Weight::Regular, ink, &text::number(percent, 0));
            }
        }
        let recall = if total == 0 {
            "none".to_owned()
        } else {
            format!("{} %", text::number(100.0 * row[i] as f64 / total as f64, 0))
        };
        canvas.text((recall_x, baseline), Anchor::End, SIZE, Weight::Bold, INK, &recall);
    }
    canvas.into_rgb()
}

/// A name that is not too long to stand beside its row.
fn cut(name: &str) -> String {
    text::wrap(name, SIZE, Weight::Regular, LONGEST_NAME, 1).join(" ")
}

/// The square root lets small shares be seen.
fn shade(share: f64) -> Rgba {
    let depth = share.clamp(0.0, 1.0).sqrt() as f32;
    let [r, g, b] = std::array::from_fn(|i| (LIGHT[i] + (DARK[i] - LIGHT[i]) * depth).round() as u8);
    [r, g, b, 255]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_diagonal_is_dark_where_all_is_told_right() {
        let styles = ["one", "two", "three"].map(str::to_owned);
        let counts = vec![vec![8, 0, 0], vec![0, 0, 8], vec![0, 0, 0]];
        let picture = confusion_matrix(&styles, &counts, 0.5);
        let dark =
            |pixel: &image::Rgb<u8>| pixel.0.iter().zip(DARK).all(|(a, b): (&u8, f32)| (f32::from(*a) - b).abs() < 2.0);
        let n_dark = picture.pixels().filter(|pixel| dark(pixel)).count();
        let cell = ((CELL - 1) * (CELL - 1)) as usize;
        assert!((cell..2 * cell).contains(&n_dark), "two cells of 100 %, with white numbers in them: {n_dark}");
    }
}
