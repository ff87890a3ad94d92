//! The map of a fit: the embeddings in their first two principal components, colored by cluster or class.

use image::RgbImage;
use linfa::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array2, ArrayView2};

use crate::plugin::fit::{FitError, PrincipalComponents};
use crate::report::canvas::text::{self, Weight};
use crate::report::canvas::{Anchor, Canvas, GROUND, HEADER, INK, MARGIN, MUTED, RULE, group_color};
use crate::text::number;

/// Sides of the map in pixels.
const WIDTH: u32 = 760;
const HEIGHT: u32 = 560;
/// Space between the map's edge and the outermost points.
const INSET: f32 = 18.0;
/// Height of a line of the legend, and width of a column of it.
const LINE: u32 = 19;
const COLUMN: u32 = 250;
/// Maximum number of columns of the legend.
const COLUMNS: u32 = 2;
/// Font sizes of the legend and of the numbers on the map.
const SIZE: f32 = 12.5;
const NUMBER_SIZE: f32 = 11.5;

/// Embeddings in two dimensions, and their groups.
pub(super) struct Map<'a> {
    /// The points, n × 2.
    points: Array2<f64>,
    /// The share of the variance along each axis.
    explained: [f64; 2],
    /// The group of each point.
    groups: &'a [usize],
    /// The groups' names.
    names: Vec<&'a str>,
}

impl<'a> Map<'a> {
    /// Returns the map of embeddings.
    ///
    /// # Errors
    /// If the embeddings are all the same.
    pub(super) fn of(points: ArrayView2<'_, f32>, groups: &'a [usize], names: Vec<&'a str>) -> Result<Self, FitError> {
        let found = PrincipalComponents { dimensions: 2 }.fit(&DatasetBase::from(points))?;
        let projected = found.project(points);
        // Points on a line have one component.
        let coordinate = |i: usize, axis: usize| projected.get((i, axis)).copied().unwrap_or(0.0);
        let explained = [0, 1].map(|axis| found.explained.get(axis).copied().unwrap_or(0.0));
        let points = Array2::from_shape_fn((points.nrows(), 2), |(i, axis)| coordinate(i, axis));
        Ok(Self { points, explained, groups, names })
    }

    /// Draws the map with its legend.
    pub(super) fn draw(&self) -> RgbImage {
        let n = self.names.len();
        let per_column = (HEIGHT / LINE) as usize;
        let columns = (n.div_ceil(per_column) as u32).clamp(1, COLUMNS);
        let width = 2 * MARGIN + WIDTH + MARGIN + columns * COLUMN;
        let mut canvas = Canvas::new(width, HEADER + HEIGHT + MARGIN, 1.0, GROUND);
        let [first, second] = self.explained.map(|share| number(100.0 * share, 0));
        let of = format!("principal components 1 and 2: {first} % and {second} % of the variance");
        canvas.header(width, "map of the embeddings", &of);
        let (left, top) = (MARGIN as f32, HEADER as f32);
        for (x, y, w, h) in [
            (left, top, WIDTH as f32, 1.0),
            (left, top + HEIGHT as f32 - 1.0, WIDTH as f32, 1.0),
            (left, top, 1.0, HEIGHT as f32),
            (left + WIDTH as f32 - 1.0, top, 1.0, HEIGHT as f32),
        ] {
            canvas.rect(x, y, w, h, RULE);
        }
        let places = self.places(left, top);
        let radius = if places.len() > 2000 { 2.0 } else { 3.0 };
        // In a scattered order, so that no group covers another one.
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_by_key(|&i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for i in order {
            let [red, green, blue, _] = group_color(self.groups[i], n);
            canvas.dot(places[i], radius, [red, green, blue, 210]);
        }
        // A number that would cover another one is left out; the legend has it.
        let mut numbered: Vec<(f32, f32)> = vec![];
        for group in 0..n {
            let Some((x, y)) = self.middle(group, &places) else { continue };
            if numbered.iter().any(|(other_x, other_y)| (x - other_x).hypot(y - other_y) < 20.0) {
                continue;
            }
            numbered.push((x, y));
            canvas.dot((x, y), 9.5, group_color(group, n));
            canvas.dot((x, y), 8.0, GROUND);
            let label = (group + 1).to_string();
            canvas.text((x, y + 4.0), Anchor::Middle, NUMBER_SIZE, Weight::Bold, INK, &label);
        }
        self.legend(&mut canvas, MARGIN + WIDTH + MARGIN, per_column, columns as usize);
        canvas.into_rgb()
    }

    fn legend(&self, canvas: &mut Canvas, left: u32, per_column: usize, columns: usize) {
        let n = self.names.len();
        let shown = if n > columns * per_column { columns * per_column - 1 } else { n };
        let at = |i: usize| {
            let (column, line) = ((i / per_column) as u32, (i % per_column) as u32);
            ((left + column * COLUMN) as f32, (HEADER + line * LINE) as f32 + 13.0)
        };
        for (group, name) in self.names.iter().enumerate().take(shown) {
            let (x, y) = at(group);
            canvas.dot((x + 5.0, y - 4.5), 5.0, group_color(group, n));
            canvas.text((x + 34.0, y), Anchor::End, SIZE, Weight::Regular, MUTED, &(group + 1).to_string());
            let room = COLUMN as f32 - 56.0;
            let name = text::wrap(name, SIZE, Weight::Regular, room, 1).join(" ");
            canvas.text((x + 42.0, y), Anchor::Start, SIZE, Weight::Regular, INK, &name);
        }
        if shown < n {
            let more = format!("{} more are not listed", n - shown);
            canvas.text(at(shown), Anchor::Start, SIZE, Weight::Regular, MUTED, &more);
        }
    }

    /// Returns the points' places on the canvas. Both axes have the same scale.
    fn places(&self, left: f32, top: f32) -> Vec<(f32, f32)> {
        let range = |axis: usize| {
            let column = self.points.column(axis);
            let (low, high) =
                column.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)));
            ((low + high) / 2.0, (high - low).max(f64::MIN_POSITIVE))
        };
        let ((x, width), (y, height)) = (range(0), range(1));
        let (room_x, room_y) = (WIDTH as f32 - 2.0 * INSET, HEIGHT as f32 - 2.0 * INSET);
        let scale = (f64::from(room_x) / width).min(f64::from(room_y) / height);
        let (middle_x, middle_y) = (left + WIDTH as f32 / 2.0, top + HEIGHT as f32 / 2.0);
        let place = |row: ndarray::ArrayView1<'_, f64>| {
            (middle_x + ((row[0] - x) * scale) as f32, middle_y - ((row[1] - y) * scale) as f32)
        };
        self.points.rows().into_iter().map(place).collect()
    }

    /// Returns the median of a group's places, by coordinate; none if it has none.
    fn middle(&self, group: usize, places: &[(f32, f32)]) -> Option<(f32, f32)> {
        let of_group = || places.iter().zip(self.groups).filter(|(_, g)| **g == group).map(|(place, _)| *place);
        let (mut xs, mut ys): (Vec<f32>, Vec<f32>) = of_group().unzip();
        xs.sort_by(f32::total_cmp);
        ys.sort_by(f32::total_cmp);
        Some((*xs.get(xs.len() / 2)?, *ys.get(ys.len() / 2)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_lie_apart_in_their_colors() {
        let points = Array2::from_shape_fn((40, 5), |(i, j)| {
            (if i % 2 == 0 && j == 3 { 5.0 } else { 0.0 }) + ((i * 7 + j * 3) % 11) as f32 / 11.0
        });
        let groups: Vec<usize> = (0..40).map(|i| i % 2).collect();
        let map = Map::of(points.view(), &groups, vec!["near", "far"]).expect("two groups");
        assert!(map.explained[0] > 0.8 && map.explained[1] < 0.2, "{:?}", map.explained);
        let image = map.draw();
        // Left and right of the middle there are dots of one color each, on the map itself.
        let has = |group: usize, from: u32, to: u32| {
            let [red, green, blue, _] = group_color(group, 2);
            let near = |pixel: &image::Rgb<u8>| pixel.0.iter().zip([red, green, blue]).all(|(a, b)| a.abs_diff(b) < 40);
            (from..to).any(|x| (HEADER..HEADER + HEIGHT).any(|y| near(image.get_pixel(x, y))))
        };
        let (left, middle, right) = (MARGIN + 2, MARGIN + WIDTH / 2, MARGIN + WIDTH - 2);
        assert_ne!(has(0, left, middle), has(0, middle, right));
        assert_ne!(has(1, left, middle), has(1, middle, right));
    }

    #[test]
    fn a_line_and_many_groups_can_be_drawn() {
        let line = Array2::from_shape_fn((300, 3), |(i, _)| i as f32);
        let names: Vec<String> =
            (0..150).map(|i| format!("group {i} with a long name that does not fit its line")).collect();
        let groups: Vec<usize> = (0..300).map(|i| i / 2).collect();
        let map = Map::of(line.view(), &groups, names.iter().map(String::as_str).collect()).expect("a line");
        assert!(map.draw().width() < 1500);
        let same = Array2::from_elem((3, 3), 1.0f32);
        assert!(Map::of(same.view(), &[0, 1, 1], vec!["a", "b"]).is_err());
    }
}
