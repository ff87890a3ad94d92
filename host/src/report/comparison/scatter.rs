//! Reward improvement against diversity: each run's way from its start, and the runs that no other one beats in both.

use super::super::canvas::Anchor;
use super::super::canvas::text::{self, Weight};
use super::super::drawing::{Drawing, Ink, Shape};
use super::super::plot::{LEFT, NARROW, Range, WIDTH};
use super::subject::{Group, Subject};
use crate::statistics::Improvement;
use crate::text::number;

/// Height of the chart, and what its panel leaves free.
const HEIGHT: f32 = 440.0;
const TOP: f32 = 40.0;
const BELOW: f32 = 60.0;
const RIGHT: f32 = 24.0;
/// Size of labels, and the room of a line of them.
const SIZE: f32 = 12.5;
const LINE: f32 = 15.0;
/// Distance of a label from its point.
const GAP: f32 = 11.0;

/// The chart of a comparison.
pub(super) struct Scatter {
    ways: Vec<Way>,
    /// The titles of the axes.
    titles: [&'static str; 2],
}

/// A run's way through the chart.
struct Way {
    /// The run, for the note of its end.
    name: String,
    /// The words beside its end; of several seeds, only one run has them.
    label: Option<String>,
    /// Diversity in percent of the start, and improvement, by monitor.
    points: Vec<(f64, f64)>,
}

/// A number of each monitor of a run; none if one is missing.
type Measure = fn(&Subject) -> Option<Vec<f64>>;

/// The values of a run's monitors in percent of the first; none if one is missing.
fn percent(values: Option<Vec<f64>>) -> Option<Vec<f64>> {
    let values = values?;
    let first = *values.first().filter(|first| **first > 0.0)?;
    Some(values.iter().map(|value| 100.0 * value / first).collect())
}

fn vendi(run: &Subject) -> Option<Vec<f64>> {
    percent(run.monitors.iter().map(|monitor| monitor.vendi).collect())
}

fn distance(run: &Subject) -> Option<Vec<f64>> {
    percent(run.monitors.iter().map(|monitor| Some(monitor.diversity)).collect())
}

/// The improvements of a run's monitors over the first, in standard errors.
fn errors(run: &Subject) -> Option<Vec<f64>> {
    let first = run.monitors.first()?;
    let of = |rewards: &Vec<f64>| Improvement::paired(&first.rewards, rewards).standard_errors().unwrap_or(0.0);
    Some(run.monitors.iter().map(|monitor| of(&monitor.rewards)).collect())
}

impl Scatter {
    /// Returns the chart of groups, of one measure each for all runs: the Vendi score and the gap that was closed where all
    /// runs have them. None if no run has two monitors.
    pub(super) fn of(groups: &[Group]) -> Option<Self> {
        let runs = || groups.iter().flat_map(|group| &group.runs).filter(|run| run.ends.is_some());
        let x: (&str, Measure) = match runs().all(|run| vendi(run).is_some()) {
            true => ("Vendi score, % of the start", vendi),
            false => ("diversity, % of the start", distance),
        };
        let y: (&str, Measure) = match runs().all(|run| run.gaps.is_some()) {
            true => ("gap to the upper bound closed, %", |run| run.gaps.clone()),
            false => ("improvement of the reward, standard errors", errors),
        };
        let way = |group: &Group, run: &Subject| {
            let points = x.1(run)?.into_iter().zip(y.1(run)?).collect();
            let name = match group.runs.len() {
                1 => group.label.clone(),
                _ => format!("{}, {}", group.label, run.name),
            };
            Some(Way { name, label: None, points })
        };
        let of_group = |group: &Group| {
            let runs = group.runs.iter().filter(|run| run.ends.is_some());
            let mut ways: Vec<Way> = runs.filter_map(|run| way(group, run)).collect();
            let height = |way: &Way| way.points.last().map_or(f64::NEG_INFINITY, |end| end.1);
            if let Some(highest) = ways.iter_mut().max_by(|a, b| height(a).total_cmp(&height(b))) {
                highest.label = Some(group.label.clone());
            }
            ways
        };
        let ways: Vec<Way> = groups.iter().flat_map(of_group).collect();
        (!ways.is_empty()).then_some(Self { ways, titles: [x.0, y.0] })
    }

    /// The chart for wide and for narrow screens, as `svg` elements.
    pub(super) fn to_svgs(&self) -> [String; 2] {
        [WIDTH, NARROW].map(|width| self.draw(width).to_svg())
    }

    /// The chart as an image of 1800 pixels in width.
    pub(super) fn to_rgb(&self) -> image::RgbImage {
        self.draw(WIDTH).to_rgb(2.0)
    }

    /// The ends of the ways that no other one beats in both, from the least to the largest diversity.
    fn front(&self) -> Vec<(f64, f64)> {
        let ends: Vec<(f64, f64)> = self.ways.iter().filter_map(|way| way.points.last().copied()).collect();
        let beats = |a: &(f64, f64), b: &(f64, f64)| a.0 >= b.0 && a.1 >= b.1 && a != b;
        let mut front: Vec<_> =
            ends.iter().filter(|end| !ends.iter().any(|other| beats(other, end))).copied().collect();
        front.sort_by(|a, b| a.0.total_cmp(&b.0));
        front.dedup();
        front
    }

    fn draw(&self, width: f32) -> Drawing {
        let points = || self.ways.iter().flat_map(|way| &way.points);
        let x_range = Range::of(points().map(|point| point.0)).including(95.0).including(105.0).padded();
        let y_range = Range::of(points().map(|point| point.1)).including(0.0).padded();
        let (right, bottom) = (width - RIGHT, HEIGHT - BELOW);
        let place = |&(x, y): &(f64, f64)| {
            (LEFT + x_range.share(x) * (right - LEFT), bottom - y_range.share(y) * (bottom - TOP))
        };
        let mut shapes = Vec::new();
        let line = |points, ink, width, dash| Shape::Line { points, ink, width, dash };
        let label = |at, anchor, weight, ink, words: String| Shape::Text { at, anchor, size: SIZE, weight, ink, words };
        let (ticks, decimals) = y_range.ticks(8);
        for tick in ticks {
            let y = place(&(100.0, tick)).1.round();
            let ink = if tick == 0.0 { Ink::Axis } else { Ink::Grid };
            shapes.push(line(vec![(LEFT, y), (right, y)], ink, 1.0, None));
            let at = (LEFT - 10.0, y + 4.5);
            shapes.push(label(at, Anchor::End, Weight::Regular, Ink::Muted, number(tick, decimals)));
        }
        let (ticks, decimals) = x_range.ticks(if width > NARROW { 10 } else { 4 });
        for tick in ticks {
            let x = place(&(tick, 0.0)).0.round();
            shapes.push(line(vec![(x, TOP), (x, bottom)], Ink::Grid, 1.0, None));
            shapes.push(label((x, bottom + 20.0), Anchor::Middle, Weight::Regular, Ink::Muted, number(tick, decimals)));
        }
        let middle = (LEFT + right) / 2.0;
        shapes.push(label(
            (middle, bottom + 44.0),
            Anchor::Middle,
            Weight::Regular,
            Ink::Muted,
            self.titles[0].to_owned(),
        ));
        shapes.push(label((LEFT, TOP - 16.0), Anchor::Start, Weight::Regular, Ink::Muted, self.titles[1].to_owned()));
        for way in &self.ways {
            shapes.push(line(way.points.iter().map(place).collect(), Ink::Training, 1.5, None));
            for point in &way.points {
                shapes.push(Shape::Dot { at: place(point), radius: 2.2, ink: Ink::Training, note: None });
            }
        }
        let front = self.front();
        if front.len() > 1 {
            shapes.push(line(front.iter().map(place).collect(), Ink::UpperBound, 1.5, Some([6.0, 5.0])));
        }
        // Labels that cover no other label and no point.
        let mut taken: Vec<[f32; 4]> = Vec::new();
        for way in &self.ways {
            let Some(end) = way.points.last() else { continue };
            let (x, y) = place(end);
            taken.push([x - 6.0, y - 6.0, x + 6.0, y + 6.0]);
            let note = format!("{}: {} %, {}", way.name, number(end.0, 0), number(end.1, 1));
            shapes.push(Shape::Dot { at: (x, y), radius: 7.0, ink: Ink::Ground, note: None });
            shapes.push(Shape::Dot { at: (x, y), radius: 5.0, ink: Ink::Reward, note: Some(note) });
        }
        for way in &self.ways {
            let (Some(end), Some(words)) = (way.points.last(), &way.label) else { continue };
            let (words, (x, y)) = (text::wrap(words, SIZE, Weight::Bold, right - LEFT, 1).join(" "), place(end));
            let length = text::width(&words, SIZE, Weight::Bold);
            let box_at = |left: f32, baseline: f32| [left, baseline - 11.0, left + length, baseline + 3.0];
            let sides = [-1.0, 1.0, -2.0, 2.0, 0.0].into_iter().flat_map(|row| {
                let baseline = y + 4.5 + row * LINE;
                [box_at(x + GAP, baseline), box_at(x - GAP - length, baseline), box_at(x - length / 2.0, baseline)]
            });
            let fits = |place: &[f32; 4]| {
                let inside = place[0] >= LEFT && place[2] <= width && place[1] >= TOP && place[3] <= bottom;
                let apart = |other: &[f32; 4]| {
                    place[2] < other[0] || place[0] > other[2] || place[3] < other[1] || place[1] > other[3]
                };
                inside && taken.iter().all(apart)
            };
            let first = box_at((x + GAP).min(width - length), y + 4.5);
            let at = sides.into_iter().find(fits).unwrap_or(first);
            taken.push(at);
            shapes.push(label((at[0], at[3] - 3.0), Anchor::Start, Weight::Bold, Ink::Text, words));
        }
        let description = format!("{} against {} by run", self.titles[1], self.titles[0]);
        Drawing { width: width as u32, height: HEIGHT as u32, shapes, description }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_of_what_nothing_beats() {
        let way = |x, y| {
            let label = Some("<a>".to_owned());
            Way { name: String::new(), label, points: vec![(100.0, 0.0), (x, y)] }
        };
        let ways = vec![way(90.0, 10.0), way(50.0, 30.0), way(80.0, 10.0), way(60.0, 20.0)];
        let scatter = Scatter { ways, titles: ["x", "y"] };
        assert_eq!(scatter.front(), [(50.0, 30.0), (60.0, 20.0), (90.0, 10.0)]);
        let [wide, narrow] = scatter.to_svgs();
        assert!(wide.contains("&lt;a&gt;") && !narrow.contains("<a>"));
        assert_eq!(scatter.to_rgb().width(), 1800);
    }
}
