//! The reward curve: the monitor's rewards, the training samples' rewards, their upper bound, and the diversity.

use image::RgbImage;

use super::canvas::Anchor;
use super::canvas::text::{self, Weight};
use super::drawing::{Drawing, Ink, Shape};
use crate::run::record::{FineTuneMonitor, FineTuneRecord};
use crate::text::{decimals, number};

/// The upper bound of the mean reward.
#[derive(Clone, Debug, PartialEq)]
pub struct UpperBound {
    /// The bound in nats.
    pub reward: f64,
    /// Its formula, such as `−ln 27`.
    pub formula: String,
}

/// The data of a reward curve.
#[derive(Clone, Debug)]
pub struct Curve<'a> {
    /// Title: what was trained.
    pub title: String,
    /// The measurements.
    pub records: &'a [FineTuneRecord],
    /// The upper bound of the reward, if known.
    pub upper_bound: Option<UpperBound>,
    /// The share of the untrained model's diversity below which a run warns or stops.
    pub min_diversity: Option<f64>,
}

impl Curve<'_> {
    /// The curve as an image of 1800 pixels in width.
    pub fn to_rgb(&self) -> RgbImage {
        self.draw(true, WIDTH).to_rgb(2.0)
    }

    /// The curve as an `svg` element of this width without a title; its colors are the page's.
    pub(super) fn to_svg(&self, width: f32) -> String {
        self.draw(false, width).to_svg()
    }

    /// Draws the curve; an image file needs its own title, a page already has one.
    fn draw(&self, with_title: bool, width: f32) -> Drawing {
        let mut plot = Plot { shapes: Vec::new(), last_epoch: self.last_epoch(), width };
        let legend = self.legend(&mut plot, if with_title { 60.0 } else { 18.0 });
        let top = legend + 48.0;
        let with_diversity = !self.shares().is_empty();
        let reward_bottom = top + 320.0;
        let bottom = if with_diversity { reward_bottom + 168.0 } else { reward_bottom };
        if with_title {
            plot.text((LEFT, 32.0), Anchor::Start, 18.0, Weight::Bold, Ink::Text, self.title.clone());
        }
        self.reward_panel(&mut plot, top, reward_bottom);
        if with_diversity {
            self.diversity_panel(&mut plot, reward_bottom + 58.0, bottom);
        }
        plot.epoch_axis(bottom);
        Drawing {
            width: width as u32,
            height: (bottom + 58.0) as u32,
            shapes: plot.shapes,
            description: format!("{}: monitor reward and diversity by epoch", self.title),
        }
    }

    fn last_epoch(&self) -> u64 {
        self.records.iter().map(|record| record.epoch).max().unwrap_or(0).max(1)
    }

    /// The monitor's measurements by epoch.
    fn monitors(&self) -> impl DoubleEndedIterator<Item = (u64, &FineTuneMonitor)> {
        self.records.iter().filter_map(|record| Some((record.epoch, record.monitor.as_ref()?)))
    }

    /// The mean reward of the training samples by epoch.
    fn training(&self) -> impl Iterator<Item = (u64, f64)> {
        self.records.iter().filter_map(|record| Some((record.epoch, record.trained.as_ref()?.reward_mean)))
    }

    /// The diversity by epoch as a share of the first.
    fn shares(&self) -> Vec<(u64, f64)> {
        let Some((_, first)) = self.monitors().next().filter(|(_, first)| first.diversity > 0.0) else {
            return Vec::new();
        };
        self.monitors().map(|(epoch, monitor)| (epoch, monitor.diversity / first.diversity)).collect()
    }

    /// Draws the legend with its first baseline at `y`, and returns its last.
    fn legend(&self, plot: &mut Plot, y: f32) -> f32 {
        let (mut x, mut y) = (LEFT, y);
        let mut entry = |plot: &mut Plot, ink: Ink, line: bool, words: &str| {
            let length = 28.0 + text::width(words, 12.5, Weight::Regular);
            if x > LEFT && x + length > plot.width {
                (x, y) = (LEFT, y + LEGEND_LINE);
            }
            let middle = y - 4.5;
            if line {
                plot.line(vec![(x, middle), (x + 20.0, middle)], ink, 2.5, None);
            }
            plot.dot((x + 10.0, middle), if line { 4.0 } else { 2.6 }, ink, None);
            plot.text((x + 28.0, y), Anchor::Start, 12.5, Weight::Regular, Ink::Muted, words.to_owned());
            x += length + 28.0;
        };
        entry(plot, Ink::Reward, true, "fixed prompts and noise, ±2 standard errors");
        if self.training().next().is_some() {
            entry(plot, Ink::Training, false, "the epoch's own samples");
        }
        y
    }

    fn reward_panel(&self, plot: &mut Plot, top: f32, bottom: f32) {
        let band = |point: &FineTuneMonitor| 2.0 * point.reward_sem.unwrap_or(0.0);
        let bounds =
            self.monitors().flat_map(|(_, point)| [point.reward_mean - band(point), point.reward_mean + band(point)]);
        let range = Range::of(bounds.chain(self.training().map(|(_, reward)| reward)));
        // A distant upper bound would flatten the curve; then it is named at the edge instead.
        let upper_bound = self.upper_bound.as_ref();
        let shown = upper_bound.filter(|upper_bound| upper_bound.reward - range.high <= 1.5 * (range.high - range.low));
        let decimals = decimals(range.high - range.low);
        let range = shown.map_or(range, |upper_bound| range.including(upper_bound.reward)).padded();
        let y = |value: f64| bottom - range.share(value) * (bottom - top);

        plot.panel_axis(&range, "mean reward", TITLE_LIFT, y);
        if let Some(upper_bound) = upper_bound {
            let words = format!("upper bound {} = {}", upper_bound.formula, number(upper_bound.reward, decimals));
            if shown.is_some() {
                plot.line(
                    vec![(LEFT, y(upper_bound.reward)), (plot.right(), y(upper_bound.reward))],
                    Ink::UpperBound,
                    1.5,
                    Some([6.0, 5.0]),
                );
                plot.text(
                    (LEFT + 8.0, y(upper_bound.reward) - 7.0),
                    Anchor::Start,
                    12.5,
                    Weight::Regular,
                    Ink::UpperBound,
                    words,
                );
            } else {
                let at = (LEFT + 8.0, top + 12.0);
                plot.text(at, Anchor::Start, 12.5, Weight::Regular, Ink::UpperBound, format!("↑ {words}"));
            }
        }
        for (epoch, reward) in self.training() {
            let note = format!("epoch {epoch}: {} in training", number(reward, decimals));
            plot.dot((plot.x(epoch), y(reward)), 2.2, Ink::Training, Some(note));
        }
        let upper = self.monitors().map(|(epoch, point)| (plot.x(epoch), y(point.reward_mean + band(point))));
        let lower = self.monitors().rev().map(|(epoch, point)| (plot.x(epoch), y(point.reward_mean - band(point))));
        let outline: Vec<_> = upper.chain(lower).collect();
        plot.shapes.push(Shape::Area { points: outline, ink: Ink::RewardBand });
        let line = self.monitors().map(|(epoch, point)| (plot.x(epoch), y(point.reward_mean))).collect();
        plot.line(line, Ink::Reward, 2.5, None);
        for (epoch, point) in self.monitors() {
            let error = point.reward_sem.map_or(String::new(), |sem| format!(" ± {}", number(sem, decimals)));
            let note = format!("epoch {epoch}: {}{error}", number(point.reward_mean, decimals));
            plot.marker((plot.x(epoch), y(point.reward_mean)), Ink::Reward, note);
        }
        if let Some((epoch, last)) = self.monitors().next_back() {
            let at = (plot.x(epoch) + 12.0, y(last.reward_mean) + 4.5);
            plot.text(at, Anchor::Start, 13.0, Weight::Bold, Ink::Reward, number(last.reward_mean, decimals));
        }
    }

    fn diversity_panel(&self, plot: &mut Plot, top: f32, bottom: f32) {
        let shares = self.shares();
        let highest = shares.iter().map(|(_, share)| *share).fold(1.0, f64::max);
        let range = Range { low: 0.0, high: highest * 1.08 };
        let y = |value: f64| bottom - range.share(value) * (bottom - top);
        let words = "diversity, share of the untrained model's".to_owned();
        plot.text((LEFT, top - 14.0), Anchor::Start, 12.5, Weight::Regular, Ink::Muted, words);
        for tick in [0.0, 0.5, 1.0] {
            plot.tick(y(tick), format!("{} %", tick * 100.0), tick == 0.0);
        }
        if let Some(limit) = self.min_diversity.filter(|limit| *limit > 0.0) {
            plot.line(vec![(LEFT, y(limit)), (plot.right(), y(limit))], Ink::Limit, 1.5, Some([6.0, 5.0]));
            let at = (LEFT + 8.0, y(limit) - 7.0);
            let words = format!("limit {} %", number(limit * 100.0, 0));
            plot.text(at, Anchor::Start, 12.5, Weight::Regular, Ink::Limit, words);
        }
        let line: Vec<_> = shares.iter().map(|&(epoch, share)| (plot.x(epoch), y(share))).collect();
        let ground = [shares.last(), shares.first()].into_iter().flatten().map(|&(epoch, _)| (plot.x(epoch), y(0.0)));
        let outline = line.iter().copied().chain(ground).collect();
        plot.shapes.push(Shape::Area { points: outline, ink: Ink::DiversityArea });
        plot.line(line, Ink::Diversity, 2.5, None);
        for &(epoch, share) in &shares {
            let note = format!("epoch {epoch}: {} %", number(share * 100.0, 0));
            plot.marker((plot.x(epoch), y(share)), Ink::Diversity, note);
        }
        if let Some(&(epoch, share)) = shares.last() {
            let at = (plot.x(epoch) + 12.0, y(share) + 4.5);
            let words = format!("{} %", number(share * 100.0, 0));
            plot.text(at, Anchor::Start, 13.0, Weight::Bold, Ink::Diversity, words);
        }
    }
}

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
    fn ticks(&self, max_ticks: usize) -> (Vec<f64>, usize) {
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
    use image::Rgb;

    use super::*;
    use crate::run::record::FineTuneEpoch;

    fn records(points: &[(u64, f64, f64)]) -> Vec<FineTuneRecord> {
        let last = points.last().map_or(0, |point| point.0);
        let record = |epoch| {
            let monitor = points.iter().find(|point| point.0 == epoch).map(|&(_, reward_mean, diversity)| {
                FineTuneMonitor { reward_mean, reward_sem: Some(0.02), diversity, ..FineTuneMonitor::default() }
            });
            let trained = (epoch > 0).then(|| FineTuneEpoch { reward_mean: -3.8, ..FineTuneEpoch::default() });
            FineTuneRecord { epoch, trained, monitor, warnings: Vec::new() }
        };
        if points.is_empty() { Vec::new() } else { (0..=last).map(record).collect() }
    }

    fn curve(records: &[FineTuneRecord], upper_bound: f64) -> Curve<'_> {
        let upper_bound = Some(UpperBound { reward: upper_bound, formula: "−ln 27".into() });
        Curve { title: "kmeans_image".into(), records, upper_bound, min_diversity: Some(0.6) }
    }

    #[test]
    fn the_image_has_its_size_and_its_inks() {
        let records = records(&[(0, -4.0, 0.5), (10, -3.7, 0.48), (20, -3.5, 0.45)]);
        let image = curve(&records, -3.296).to_rgb();
        assert_eq!(image.dimensions(), (1800, 1308));
        for (name, color) in
            [("reward", [0x2a, 0x5b, 0xd7]), ("upper bound", [0xb2, 0x5a, 0x00]), ("limit", [0xc0, 0x2f, 0x3c])]
        {
            let near = |pixel: &Rgb<u8>| pixel.0.iter().zip(color).all(|(a, b): (&u8, u8)| a.abs_diff(b) < 60);
            assert!(image.pixels().filter(|pixel| near(pixel)).count() > 200, "{name} is drawn");
        }
    }

    #[test]
    fn a_far_upper_bound_is_named_but_does_not_flatten_the_curve() {
        let records = records(&[(0, -4.0, 0.5), (10, -3.99, 0.48)]);
        assert!(curve(&records, -1.0).to_svg(WIDTH).contains("↑ upper bound −ln 27 = −1.000"));
        assert!(curve(&records, -3.985).to_svg(NARROW).contains(">upper bound −ln 27 = −3.985<"));
    }

    #[test]
    fn nothing_measured_is_drawn_as_empty_axes() {
        for points in [&[][..], &[(0, -4.0, 0.5)], &[(0, f64::NAN, 0.0)]] {
            let records = records(points);
            assert_eq!(curve(&records, -3.296).to_rgb().width(), 1800);
        }
    }

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
