//! What all charts by epoch share: the axis of epochs, ticks, lines and points, and ranges of values.

use super::canvas::Anchor;
use super::canvas::text::Weight;
use super::drawing::{Ink, Shape};
use crate::text::number;

/// The width of drawings for image files and wide screens, and that for narrow screens.
pub(super) const WIDTH: f32 = 900.0;
pub(super) const NARROW: f32 = 400.0;
/// The left edge of the panels.
pub(super) const LEFT: f32 = 68.0;
/// Room for the newest values, right of the panels.
const VALUES: f32 = 92.0;
/// Distance of a panel's title from the panel.
pub(super) const TITLE_LIFT: f32 = 12.0;
/// Distance of the lines of a legend.
pub(super) const LEGEND_LINE: f32 = 20.0;

/// Shapes on the common epoch axis.
pub(super) struct Plot {
    pub(super) shapes: Vec<Shape>,
    pub(super) last_epoch: u64,
    pub(super) width: f32,
}

impl Plot {
    /// The right edge of the panels.
    pub(super) fn right(&self) -> f32 {
        self.width - VALUES
    }

    /// Whether there is little room beside the panels' titles.
    pub(super) fn is_narrow(&self) -> bool {
        self.width <= NARROW
    }

    pub(super) fn x(&self, epoch: u64) -> f32 {
        /// Distance of the first and last points from the panel's edges.
        const INSET: f32 = 8.0;
        LEFT + INSET + (self.right() - LEFT - 2.0 * INSET) * (epoch as f64 / self.last_epoch as f64) as f32
    }

    pub(super) fn line(&mut self, points: Vec<(f32, f32)>, ink: Ink, width: f32, dash: Option<[f32; 2]>) {
        self.shapes.push(Shape::Line { points, ink, width, dash });
    }

    pub(super) fn dot(&mut self, at: (f32, f32), radius: f32, ink: Ink, note: Option<String>) {
        self.shapes.push(Shape::Dot { at, radius, ink, note });
    }

    /// Draws a measured point: a dot with a halo, so that it stands out from its line.
    pub(super) fn marker(&mut self, at: (f32, f32), ink: Ink, note: String) {
        self.dot(at, 5.5, Ink::Ground, None);
        self.dot(at, 4.0, ink, Some(note));
    }

    pub(super) fn text(&mut self, at: (f32, f32), anchor: Anchor, size: f32, weight: Weight, ink: Ink, words: String) {
        self.shapes.push(Shape::Text { at, anchor, size, weight, ink, words });
    }

    pub(super) fn tick(&mut self, y: f32, label: String, is_axis: bool) {
        let y = y.round();
        self.line(vec![(LEFT, y), (self.right(), y)], if is_axis { Ink::Axis } else { Ink::Grid }, 1.0, None);
        self.text((LEFT - 10.0, y + 4.5), Anchor::End, 12.5, Weight::Regular, Ink::Muted, label);
    }

    /// Draws a panel's axis and, `lift` above the panel, its name.
    pub(super) fn panel_axis(&mut self, range: &Range, name: &str, lift: f32, y: impl Fn(f64) -> f32) {
        let (ticks, decimals) = range.ticks(8);
        for tick in ticks {
            self.tick(y(tick), number(tick, decimals), false);
        }
        self.text((LEFT, y(range.high) - lift), Anchor::Start, 12.5, Weight::Regular, Ink::Muted, name.to_owned());
    }

    pub(super) fn epoch_axis(&mut self, bottom: f32) {
        self.line(vec![(LEFT, bottom), (self.right(), bottom)], Ink::Axis, 1.0, None);
        let max_ticks = if self.is_narrow() { 5 } else { 10 };
        let (ticks, _) = Range { low: 0.0, high: self.last_epoch as f64 }.ticks(max_ticks);
        for epoch in ticks.into_iter().filter(|tick| tick.fract() == 0.0) {
            let x = self.x(epoch as u64);
            self.line(vec![(x, bottom), (x, bottom + 5.0)], Ink::Axis, 1.0, None);
            self.text((x, bottom + 21.0), Anchor::Middle, 12.5, Weight::Regular, Ink::Muted, number(epoch, 0));
        }
        let middle = (LEFT + self.right()) / 2.0;
        self.text((middle, bottom + 44.0), Anchor::Middle, 12.5, Weight::Regular, Ink::Muted, "epoch".to_owned());
    }
}

/// A range of values on an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Range {
    /// Returns the range of the values except infinite and absurd ones; it is never empty.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Self {
        /// Larger values would make the range infinite.
        const LARGEST: f64 = 1e100;
        let (low, high) = values
            .filter(|value| value.abs() <= LARGEST)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return Self { low: -1.0, high: 0.0 };
        }
        // For equal values: wide compared with differences of rewards, which are small, and with the values' precision.
        let size = low.abs().max(high.abs()).max(1.0);
        let spare = if high - low < 1e-9 * size { f64::max(0.005, 1e-6 * size) } else { 0.0 };
        Self { low: low - spare, high: high + spare }
    }

    pub(super) fn including(self, value: f64) -> Self {
        Self { low: self.low.min(value), high: self.high.max(value) }
    }

    pub(super) fn padded(self) -> Self {
        let spare = 0.07 * (self.high - self.low);
        Self { low: self.low - spare, high: self.high + spare }
    }

    pub(super) fn share(&self, value: f64) -> f32 {
        ((value - self.low) / (self.high - self.low)) as f32
    }

    /// Returns up to about `max_ticks` round numbers in the range, and the decimals that distinguish them.
    pub(super) fn ticks(&self, max_ticks: usize) -> (Vec<f64>, usize) {
        let rough = (self.high - self.low) / max_ticks.max(1) as f64;
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * magnitude);
        let decimals = (-(step.log10() + 1e-9).floor()).max(0.0) as usize;
        let (first, last) = ((self.low / step - 1e-9).ceil() as i64, (self.high / step + 1e-9).floor() as i64);
        ((first..=last).map(|i| i as f64 * step).collect(), decimals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        let (ticks, decimals) = Range { low: -4.07, high: -3.27 }.ticks(6);
        assert_eq!((ticks.len(), decimals), (4, 1));
        assert!((ticks[0] + 4.0).abs() < 1e-9, "{ticks:?}");
        let (ticks, decimals) = Range { low: -1.6102, high: -1.6071 }.ticks(6);
        assert!((3..=7).contains(&ticks.len()) && decimals == 3, "{ticks:?} {decimals}");
        // Equal values, however large, and values whose difference is infinite.
        for values in [&[1e20, 1e20][..], &[-1e100], &[f64::MAX, f64::MIN, 3.0], &[0.0]] {
            let (ticks, decimals) = Range::of(values.iter().copied()).padded().ticks(8);
            assert!((3..=12).contains(&ticks.len()) && decimals < 12, "{values:?}: {ticks:?} {decimals}");
        }
    }
}
