//! The rewards of held-out plugins by epoch: a small chart for each, with the band of its uncertainty.

use super::canvas::Anchor;
use super::canvas::text::Weight;
use super::drawing::{Drawing, Ink, Shape};
use super::plot::{NARROW, Plot, Range, TITLE_LIFT};
use crate::run::record::{FineTuneMonitor, FineTuneRecord};
use crate::statistics::{Summary, standard_error};
use crate::text::{decimals, number};

/// Height of a chart's panel, and of what is above it.
const PANEL: f32 = 140.0;
const ABOVE: f32 = 34.0;

/// A plugin's mean reward at an epoch, with its standard error.
struct Point {
    epoch: u64,
    mean: f64,
    sem: f64,
}

/// Returns a chart as an `svg` element for each plugin that is held out, with the plugin's name.
pub(super) fn held_out(records: &[FineTuneRecord]) -> Vec<(String, String)> {
    let monitors = || records.iter().filter_map(|record| Some((record.epoch, record.monitor.as_ref()?)));
    let Some((_, first)) = monitors().next() else { return Vec::new() };
    let last_epoch = records.iter().map(|record| record.epoch).max().unwrap_or(0).max(1);
    let chart = |(name, _): (&String, &Vec<f64>)| {
        let point = |(epoch, monitor): (u64, &FineTuneMonitor)| {
            let rewards = monitor.held_out_rewards.get(name).filter(|rewards| !rewards.is_empty())?;
            Some(Point { epoch, mean: Summary::of(rewards).mean, sem: standard_error(rewards).unwrap_or(0.0) })
        };
        let points: Vec<Point> = monitors().filter_map(point).collect();
        (name.clone(), draw(name, &points, last_epoch).to_svg())
    };
    first.held_out_rewards.iter().map(chart).collect()
}

fn draw(name: &str, points: &[Point], last_epoch: u64) -> Drawing {
    let mut plot = Plot { shapes: Vec::new(), last_epoch, width: NARROW };
    let (top, bottom) = (ABOVE, ABOVE + PANEL);
    let ends = points.iter().flat_map(|point| [point.mean - 2.0 * point.sem, point.mean + 2.0 * point.sem]);
    let range = Range::of(ends).padded();
    let y = |value: f64| bottom - range.share(value) * (bottom - top);
    let decimals = decimals(range.high - range.low);
    plot.panel_axis(&range, "mean reward", TITLE_LIFT, y);
    let upper = points.iter().map(|point| (plot.x(point.epoch), y(point.mean + 2.0 * point.sem)));
    let lower = points.iter().rev().map(|point| (plot.x(point.epoch), y(point.mean - 2.0 * point.sem)));
    let outline: Vec<_> = upper.chain(lower).collect();
    plot.shapes.push(Shape::Area { points: outline, ink: Ink::HeldOutBand });
    let line = points.iter().map(|point| (plot.x(point.epoch), y(point.mean))).collect();
    plot.line(line, Ink::HeldOut, 2.5, None);
    for point in points {
        let (mean, sem) = (number(point.mean, decimals), number(point.sem, decimals));
        let note = format!("epoch {}: {mean} ± {sem}", point.epoch);
        plot.marker((plot.x(point.epoch), y(point.mean)), Ink::HeldOut, note);
    }
    if let Some(last) = points.last() {
        let at = (plot.x(last.epoch) + 12.0, y(last.mean) + 4.5);
        plot.text(at, Anchor::Start, 13.0, Weight::Bold, Ink::HeldOut, number(last.mean, decimals));
    }
    plot.epoch_axis(bottom);
    Drawing {
        width: NARROW as u32,
        height: (bottom + 58.0) as u32,
        shapes: plot.shapes,
        description: format!("reward of {name} by epoch, ±2 standard errors"),
    }
}
