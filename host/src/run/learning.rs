//! The curves, figures and sentences of a CAN's or a classifier's run, from its metrics.

use image::RgbImage;
use serde_json::Value;

use super::curve::{LEFT, Plot, RIGHT, Range, WIDTH};
use super::drawing::{Drawing, Ink};
use super::report::Tile;
use crate::can::config::OWN_HEAD;
use crate::canvas::Anchor;
use crate::canvas::text::{self, NO_BREAK_SPACE, Weight, decimals, number};

/// Height of a panel, and from one panel to the next.
const PANEL: f32 = 170.0;
const STRIDE: f32 = PANEL + 62.0;
/// Size of a series' last value.
const VALUE_SIZE: f32 = 13.0;

/// What was measured in a run, and what it was told.
pub(super) struct Learning<'a> {
    /// What was trained.
    pub(super) title: &'a str,
    /// The lines of metrics.jsonl.
    pub(super) records: &'a [Value],
    /// `[can]`.
    pub(super) can: &'a toml::Table,
    /// How many styles the plugin tells apart, where C is one.
    pub(super) styles: Option<u32>,
    /// The share of the real images' diversity below which a run warns or stops.
    pub(super) min_diversity: Option<f64>,
}

/// Some series on one axis.
struct Panel {
    title: &'static str,
    series: Vec<Series>,
    /// A level with its name.
    level: Option<(f64, String, Ink)>,
    /// Whether values are shares.
    percent: bool,
}

/// How ambiguous made images are, nats.
struct Ambiguity {
    classifier: String,
    /// What the last value is held against, with its epoch.
    from: (u64, f64),
    now: f64,
}

/// One quantity by epoch.
struct Series {
    name: &'static str,
    ink: Ink,
    points: Vec<(u64, f64)>,
}

impl Learning<'_> {
    /// The curves as an image of 1800 pixels in width.
    pub(super) fn to_rgb(&self) -> RgbImage {
        self.draw(true).to_rgb(2.0)
    }

    /// The curves as an `svg` element without a title.
    pub(super) fn to_svg(&self) -> String {
        self.draw(false).to_svg()
    }

    /// A quantity by epoch; `path` leads to it in a record.
    fn series(&self, name: &'static str, path: &str, ink: Ink) -> Series {
        let point = |record: &Value| Some((record["epoch"].as_u64()?, record.pointer(path)?.as_f64()?));
        Series { name, ink, points: self.records.iter().filter_map(point).collect() }
    }

    /// The first and last value of a quantity.
    fn ends(&self, path: &str) -> Option<(f64, f64)> {
        let points = self.series("", path, Ink::Text).points;
        Some((points.first()?.1, points.last()?.1))
    }

    /// What the ambiguity came from, and where it is now. An untrained head is ambiguous of all images, so under the
    /// discriminator's own the most that it was, while the head learned, stands for the beginning.
    fn ambiguity(&self) -> Option<Ambiguity> {
        let points = self.series("", "/monitor/ambiguity", Ink::Text).points;
        let classifier = self.can.get("classifier").and_then(toml::Value::as_str).unwrap_or(OWN_HEAD).to_owned();
        let from = match classifier.as_str() {
            OWN_HEAD => *points.iter().max_by(|a, b| a.1.total_cmp(&b.1))?,
            _ => *points.first()?,
        };
        Some(Ambiguity { classifier, from, now: points.last()?.1 })
    }

    /// ln N, the least that the ambiguity can be.
    fn least_ambiguity(&self) -> Option<(f64, u32)> {
        let styles = self.styles.or_else(|| {
            let styles = self.records.iter().find_map(|record| record.pointer("/monitor/styles"))?;
            u32::try_from(styles.as_u64()?).ok()
        })?;
        Some((f64::from(styles).ln(), styles))
    }

    fn panels(&self) -> Vec<Panel> {
        let panel = |title, series: Vec<Series>| Panel { title, series, level: None, percent: false };
        let percent = |panel: Panel| Panel { percent: true, ..panel };
        let mut panels = vec![
            panel(
                "adversarial losses",
                vec![
                    self.series("discriminator", "/loss/adversarial_discriminator", Ink::Reward),
                    self.series("generator", "/loss/adversarial_generator", Ink::Ceiling),
                ],
            ),
            Panel {
                level: self.least_ambiguity().map(|(least, n)| (least, format!("least: ln {n}"), Ink::Ceiling)),
                ..panel(
                    "style ambiguity of made images, nats",
                    vec![
                        self.series("in training", "/loss/ambiguity", Ink::Training),
                        self.series("fixed noise", "/monitor/ambiguity", Ink::Reward),
                    ],
                )
            },
            panel(
                "cross-entropy, nats",
                vec![
                    self.series("in training", "/loss", Ink::Training),
                    self.series("held-out images", "/monitor/loss", Ink::Reward),
                ],
            ),
            panel("gradient penalty", vec![self.series("critic", "/loss/gradient_penalty", Ink::Reward)]),
            Panel {
                level: Some((0.5, "neither is told from the other: 50 %".to_owned(), Ink::Ceiling)),
                ..percent(panel(
                    "real and made images told apart",
                    vec![self.series("discriminator", "/discriminator_accuracy", Ink::Reward)],
                ))
            },
            percent(panel(
                "style accuracy on real images",
                vec![
                    self.series("in training", "/style_accuracy", Ink::Training),
                    self.series("held-out images", "/monitor/style_accuracy", Ink::Reward),
                ],
            )),
            percent(panel(
                "accuracy",
                vec![
                    self.series("in training", "/accuracy", Ink::Training),
                    self.series("held-out images", "/monitor/accuracy", Ink::Reward),
                ],
            )),
            Panel {
                level: self
                    .min_diversity
                    .map(|limit| (limit, format!("limit {} %", number(100.0 * limit, 0)), Ink::Limit)),
                ..percent(panel(
                    "diversity, share of the real images\u{2019}",
                    vec![self.series("fixed noise", "/monitor/diversity", Ink::Diversity)],
                ))
            },
        ];
        for panel in &mut panels {
            panel.series.retain(|series| !series.points.is_empty());
        }
        panels.retain(|panel| !panel.series.is_empty());
        panels
    }

    fn draw(&self, with_title: bool) -> Drawing {
        let panels = self.panels();
        let top = if with_title { 96.0 } else { 44.0 };
        let last_epoch = self.records.iter().filter_map(|record| record["epoch"].as_u64()).max().unwrap_or(0).max(1);
        let mut plot = Plot { shapes: Vec::new(), last_epoch };
        if with_title {
            plot.text((LEFT, 32.0), Anchor::Start, 18.0, Weight::Bold, Ink::Text, self.title.to_owned());
        }
        let mut bottom = top + PANEL;
        for (i, panel) in panels.iter().enumerate() {
            let top = top + i as f32 * STRIDE;
            bottom = top + PANEL;
            panel.draw(&mut plot, top, bottom);
        }
        plot.epoch_axis(bottom);
        let titles: Vec<_> = panels.iter().map(|panel| panel.title).collect();
        Drawing {
            width: WIDTH as u32,
            height: (bottom + 58.0) as u32,
            shapes: plot.shapes,
            description: format!("{} by epoch: {}", self.title, titles.join(", ")),
        }
    }

    pub(super) fn tiles(&self) -> Vec<Tile> {
        let mut tiles = Vec::new();
        let percent = |share: f64| format!("{} %", number(100.0 * share, 1));
        for (label, path) in [("Accuracy", "/monitor/accuracy"), ("Style accuracy", "/monitor/style_accuracy")] {
            let Some((from, to)) = self.ends(path) else { continue };
            let tone = if to > from { "good" } else { "" };
            tiles.push(Tile {
                label,
                value: percent(to),
                note: format!("held-out images; from {}", percent(from)),
                tone,
            });
        }
        if let Some(Ambiguity { classifier, from: (_, from), now }) = self.ambiguity() {
            let least = self.least_ambiguity().map(|(least, n)| format!("; least ln {n} = {}", number(least, 3)));
            let from_words = if classifier == OWN_HEAD { "highest" } else { "from" };
            let note = format!("{from_words} {}{}", number(from, 3), least.unwrap_or_default());
            let tone = if now < from { "good" } else { "" };
            tiles.push(Tile { label: "Style ambiguity", value: number(now, 3), note, tone });
        }
        if let Some((_, to)) = self.ends("/monitor/diversity") {
            let limit = self.min_diversity.unwrap_or(0.0);
            tiles.push(Tile {
                label: "Diversity",
                value: format!("{} %", number(100.0 * to, 0)),
                note: format!("of the real images\u{2019}; limit {} %", number(100.0 * limit, 0)),
                tone: if to < limit { "bad" } else { "good" },
            });
        }
        tiles
    }

    /// The result in sentences.
    pub(super) fn result(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        let percent = |share: f64| format!("{}{NO_BREAK_SPACE}%", number(100.0 * share, 1));
        for (what, path) in [
            ("The classifier", "/monitor/accuracy"),
            ("The discriminator\u{2019}s style head", "/monitor/style_accuracy"),
        ] {
            if let Some((from, to)) = self.ends(path) {
                sentences.push(format!(
                    "{what} tells {} of the held-out images right; untrained it told {}.",
                    percent(to),
                    percent(from)
                ));
            }
        }
        if let Some(Ambiguity { classifier, from: (epoch, from), now }) = self.ambiguity() {
            let (from, now) = (number(from, 3), number(now, 3));
            let course = match classifier.as_str() {
                OWN_HEAD => {
                    format!(
                        "under the discriminator\u{2019}s own head is {now} (at its highest, in epoch {epoch}, {from})"
                    )
                }
                plugin => format!("under {plugin} went from {from} to {now}"),
            };
            let least = self.least_ambiguity();
            let least = least.map(|(least, n)| format!(", where ln {n} = {} is the least there is", number(least, 3)));
            sentences.push(format!("The style ambiguity of made images {course}{}.", least.unwrap_or_default()));
        }
        if let Some((_, share)) = self.ends("/monitor/diversity") {
            sentences.push(format!(
                "Made images differ from each other by {}{NO_BREAK_SPACE}% as much as real ones.",
                number(100.0 * share, 0)
            ));
        }
        if sentences.is_empty() {
            sentences.push("Nothing was measured yet.".to_owned());
        }
        sentences
    }
}

impl Panel {
    fn draw(&self, plot: &mut Plot, top: f32, bottom: f32) {
        let factor = if self.percent { 100.0 } else { 1.0 };
        let values = self.series.iter().flat_map(|series| &series.points).map(|(_, value)| factor * value);
        let range = Range::of(values);
        let range = self.level.as_ref().map_or(range, |(level, ..)| range.including(factor * level)).padded();
        let range = if self.percent { Range { low: 0.0, high: range.high.max(1.0) } } else { range };
        let y = |value: f64| bottom - range.share(factor * value) * (bottom - top);
        let unit = if self.percent { ", %" } else { "" };
        plot.panel_axis(&range, &format!("{}{unit}", self.title), |value| bottom - range.share(value) * (bottom - top));
        if let Some((level, words, ink)) = &self.level {
            plot.line(vec![(LEFT, y(*level)), (RIGHT, y(*level))], *ink, 1.5, Some([6.0, 5.0]));
            // Below it: curves begin at such a level more often than they end there, and rise.
            plot.text((LEFT + 8.0, y(*level) + 15.0), Anchor::Start, 12.5, Weight::Regular, *ink, words.clone());
        }
        let mut x = RIGHT;
        for series in self.series.iter().rev() {
            let width = text::width(series.name, 12.5, Weight::Regular);
            plot.text((x, top - 12.0), Anchor::End, 12.5, Weight::Regular, series.ink, series.name.to_owned());
            plot.dot((x - width - 9.0, top - 16.5), 4.0, series.ink, None);
            x -= width + 34.0;
        }
        let decimals = if self.percent { 1 } else { decimals(range.high - range.low) };
        for series in &self.series {
            let points = series.points.iter().map(|&(epoch, value)| (plot.x(epoch), y(value))).collect();
            plot.line(points, series.ink, 2.2, None);
            for &(epoch, value) in &series.points {
                let note = format!("epoch {epoch}: {} {}", series.name, number(factor * value, decimals));
                plot.dot((plot.x(epoch), y(value)), 2.6, series.ink, Some(note));
            }
        }
        // The last value of each series, from the one that matters most, unless it would cover another's.
        let mut taken: Vec<f32> = Vec::new();
        for series in self.series.iter().rev() {
            let Some(&(epoch, value)) = series.points.last() else { continue };
            let at = (plot.x(epoch) + 12.0, y(value) + 4.5);
            if taken.iter().all(|other| (other - at.1).abs() >= VALUE_SIZE) {
                let words = number(factor * value, decimals);
                plot.text(at, Anchor::Start, VALUE_SIZE, Weight::Bold, series.ink, words);
                taken.push(at.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn can_records() -> Vec<Value> {
        vec![
            json!({"epoch": 0, "monitor": {"ambiguity": 3.3, "diversity": 0.01, "style_accuracy": 0.04, "styles": 27}}),
            json!({"epoch": 1, "loss": {"adversarial_discriminator": -1.0, "adversarial_generator": 0.5, "ambiguity": 3.9},
                   "style_accuracy": 0.4}),
            json!({"epoch": 2, "loss": {"adversarial_discriminator": -2.0, "adversarial_generator": 0.9, "ambiguity": 3.6},
                   "style_accuracy": 0.6,
                   "monitor": {"ambiguity": 3.5, "diversity": 0.8, "style_accuracy": 0.55, "styles": 27}}),
        ]
    }

    fn learning<'a>(records: &'a [Value], can: &'a toml::Table) -> Learning<'a> {
        Learning { title: "CAN of 64 px", records, can, styles: None, min_diversity: Some(0.3) }
    }

    #[test]
    fn a_can_has_its_panels_and_a_classifier_its_own() {
        let can = toml::Table::new();
        let titles =
            |records: &[Value]| learning(records, &can).panels().iter().map(|panel| panel.title).collect::<Vec<_>>();
        assert_eq!(titles(&can_records()).len(), 4);
        let records = [
            json!({"epoch": 0, "monitor": {"accuracy": 0.1, "loss": 3.0}}),
            json!({"epoch": 1, "loss": 2.0, "accuracy": 0.5}),
        ];
        assert_eq!(titles(&records), ["cross-entropy, nats", "accuracy"]);
        assert!(titles(&[]).is_empty());
    }

    #[test]
    fn figures_are_in_words_and_images() {
        let (records, can) = (can_records(), toml::Table::new());
        let plugin = toml::toml! { classifier = "clip_softmax" };
        let of_plugin = learning(&records, &plugin).result().join(" ");
        assert!(of_plugin.contains("under clip_softmax went from 3.300 to 3.500, where"), "{of_plugin}");
        let learning = learning(&records, &can);
        let result = learning.result().join(" ");
        assert!(
            result.contains("tells 55.0\u{a0}% of the held-out images right; untrained it told 4.0\u{a0}%"),
            "{result}"
        );
        let of_own_head = "own head is 3.500 (at its highest, in epoch 2, 3.500), where ln 27 = 3.296 is the least";
        assert!(result.contains(of_own_head), "{result}");
        assert_eq!(learning.tiles().len(), 3);
        assert!(learning.to_svg().contains("least: ln 27"));
        assert_eq!(learning.to_rgb().width(), 1800);
    }
}
