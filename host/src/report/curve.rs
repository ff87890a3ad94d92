//! The reward curve: the monitor's rewards, the training samples' rewards, their upper bound, the diversity and the Vendi
//! score.

use image::RgbImage;

use super::canvas::Anchor;
use super::canvas::text::{self, Weight};
use super::drawing::{Drawing, Ink, Shape};
use super::plot::{LEFT, LEGEND_LINE, Plot, Range, TITLE_LIFT, WIDTH};
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
        let with_diversity = !self.shares(DIVERSITY).is_empty();
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

    /// A measure of diversity by epoch as a share of the first.
    fn shares(&self, of: fn(&FineTuneMonitor) -> Option<f64>) -> Vec<(u64, f64)> {
        let mut values = self.monitors().filter_map(|(epoch, monitor)| Some((epoch, of(monitor)?))).peekable();
        let Some((_, first)) = values.peek().copied().filter(|(_, first)| *first > 0.0) else { return Vec::new() };
        values.map(|(epoch, value)| (epoch, value / first)).collect()
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
        let measures = [
            ("diversity", Ink::Diversity, self.shares(DIVERSITY)),
            ("Vendi score", Ink::Vendi, self.shares(|monitor| monitor.vendi)),
        ];
        let points = || measures.iter().flat_map(|(.., shares)| shares);
        let highest = points().map(|(_, share)| *share).fold(1.0, f64::max);
        let range = Range { low: 0.0, high: highest * 1.08 };
        let y = |value: f64| bottom - range.share(value) * (bottom - top);
        let mut x = LEFT;
        for (name, ink, _) in measures.iter().filter(|(.., shares)| !shares.is_empty()) {
            plot.dot((x + 4.0, top - 18.5), 4.0, *ink, None);
            plot.text((x + 14.0, top - 14.0), Anchor::Start, 12.5, Weight::Regular, *ink, (*name).to_owned());
            x += 28.0 + text::width(name, 12.5, Weight::Regular);
        }
        let words = if plot.is_narrow() { "share of the start's" } else { "share of the untrained model's" };
        plot.text((x, top - 14.0), Anchor::Start, 12.5, Weight::Regular, Ink::Muted, words.to_owned());
        for tick in [0.0, 0.5, 1.0] {
            plot.tick(y(tick), format!("{} %", tick * 100.0), tick == 0.0);
        }
        if let Some(limit) = self.min_diversity.filter(|limit| *limit > 0.0) {
            plot.line(vec![(LEFT, y(limit)), (plot.right(), y(limit))], Ink::Limit, 1.5, Some([6.0, 5.0]));
            let at = (LEFT + 8.0, y(limit) - 7.0);
            let words = format!("limit {} %", number(limit * 100.0, 0));
            plot.text(at, Anchor::Start, 12.5, Weight::Regular, Ink::Limit, words);
        }
        let mut taken: Option<f32> = None;
        for (name, ink, shares) in &measures {
            let line: Vec<_> = shares.iter().map(|&(epoch, share)| (plot.x(epoch), y(share))).collect();
            if *ink == Ink::Diversity {
                let ground =
                    [shares.last(), shares.first()].into_iter().flatten().map(|&(epoch, _)| (plot.x(epoch), y(0.0)));
                let outline = line.iter().copied().chain(ground).collect();
                plot.shapes.push(Shape::Area { points: outline, ink: Ink::DiversityArea });
            }
            plot.line(line, *ink, 2.5, None);
            for &(epoch, share) in shares {
                let note = format!("epoch {epoch}: {name} {} %", number(share * 100.0, 0));
                plot.marker((plot.x(epoch), y(share)), *ink, note);
            }
            if let Some(&(epoch, share)) = shares.last() {
                let wanted = y(share) + 4.5;
                // The second value makes room for the first.
                let apart = |other: f32| if wanted < other { other - VALUE_LINE } else { other + VALUE_LINE };
                let clear = taken.filter(|other| (other - wanted).abs() < VALUE_LINE).map_or(wanted, apart);
                taken = Some(clear);
                let words = format!("{} %", number(share * 100.0, 0));
                plot.text((plot.x(epoch) + 12.0, clear), Anchor::Start, 13.0, Weight::Bold, *ink, words);
            }
        }
    }
}

/// The measure of diversity that a run stops by.
const DIVERSITY: fn(&FineTuneMonitor) -> Option<f64> = |monitor| Some(monitor.diversity);
/// Distance of two values at the end of curves.
const VALUE_LINE: f32 = 15.0;

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::super::plot::NARROW;
    use super::*;
    use crate::run::record::FineTuneEpoch;

    fn records(points: &[(u64, f64, f64)]) -> Vec<FineTuneRecord> {
        let last = points.last().map_or(0, |point| point.0);
        let record = |epoch| {
            let monitor = points.iter().find(|point| point.0 == epoch).map(|&(_, reward_mean, diversity)| {
                let vendi = Some(30.0 * diversity);
                FineTuneMonitor { reward_mean, reward_sem: Some(0.02), diversity, vendi, ..FineTuneMonitor::default() }
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
}
