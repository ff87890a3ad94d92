//! The curves, tiles and sentences of a training that is measured by losses and accuracies: a CAN, a classifier, a
//! pretraining.

use std::borrow::Cow;

use image::RgbImage;

use super::Tile;
use super::canvas::Anchor;
use super::canvas::text::{self, Weight};
use super::drawing::{Drawing, Ink};
use super::plot::{LEFT, LEGEND_LINE, Plot, Range, TITLE_LIFT, WIDTH};
use crate::config::GanConfig;
use crate::config::gan::OWN_HEAD;
use crate::run::record::{
    ClassifierRecord, ClipMonitor, GanMonitor, GanRecord, PretrainEpoch, PretrainRecord, Record, UNetMonitor,
    VaeMonitor,
};
use crate::text::{NO_BREAK_SPACE, decimals, number};

/// Height of a panel, and distance from one panel to the next.
const PANEL: f32 = 170.0;
const STRIDE: f32 = PANEL + 62.0;
/// Distance of the names of two series, in which the dot of the second is.
const NAME_GAP: f32 = 34.0;
/// Font size of the last value of a series.
const VALUE_SIZE: f32 = 13.0;

/// The measurements of a run.
pub(super) struct Learning {
    /// Title: what was trained.
    title: String,
    last_epoch: u64,
    panels: Vec<Panel>,
    pub(super) tiles: Vec<Tile>,
    /// The result in sentences.
    pub(super) result: Vec<String>,
}

/// Series on a common axis.
pub(crate) struct Panel {
    title: Cow<'static, str>,
    series: Vec<Series>,
    /// A horizontal line with its label.
    level: Option<(f64, String, Ink)>,
    /// Whether values are shares.
    percent: bool,
}

/// Values by epoch.
type Points = Vec<(u64, f64)>;

/// A quantity by epoch.
pub(crate) struct Series {
    name: Cow<'static, str>,
    ink: Ink,
    points: Points,
}

/// Reads a series from records.
fn series<T, M>(
    name: &'static str,
    ink: Ink,
    records: &[Record<T, M>],
    of: impl Fn(&Record<T, M>) -> Option<f64>,
) -> Series {
    Series {
        name: name.into(),
        ink,
        points: records.iter().filter_map(|record| Some((record.epoch, of(record)?))).collect(),
    }
}

fn panel(title: impl Into<Cow<'static, str>>, series: Vec<Series>) -> Panel {
    Panel { title: title.into(), series, level: None, percent: false }
}

fn percent_panel(title: &'static str, series: Vec<Series>) -> Panel {
    Panel { percent: true, ..panel(title, series) }
}

/// The first and the last monitor, if there is any.
fn ends<T, M>(records: &[Record<T, M>]) -> Option<(&M, &M)> {
    let mut monitors = records.iter().filter_map(|record| record.monitor.as_ref());
    let first = monitors.next()?;
    Some((first, monitors.next_back().unwrap_or(first)))
}

fn percent(share: f64) -> String {
    format!("{}{NO_BREAK_SPACE}%", number(100.0 * share, 1))
}

/// The tile and the sentence about an accuracy on held-out images.
fn accuracy(label: &'static str, what: &str, from: f64, to: f64) -> (Tile, String) {
    let tile = Tile {
        label,
        value: percent(to),
        note: format!("held-out images; from {}", percent(from)),
        tone: if to > from { "good" } else { "" },
    };
    let sentence = format!(
        "{what} predicts the style of {} of the held-out images; untrained it predicted that of {}.",
        percent(to),
        percent(from)
    );
    (tile, sentence)
}

/// The mean rewards under a plugin by epoch.
pub(crate) struct Rewards {
    pub(crate) title: String,
    pub(crate) training: Vec<(u64, f64)>,
    pub(crate) monitor: Vec<(u64, f64)>,
}

/// Draws the rewards under two plugins by epoch, one panel above the other, for an image file.
pub(crate) fn draw_rewards(title: &str, rewards: [Rewards; 2]) -> RgbImage {
    let of = |Rewards { title, training, monitor }| {
        let training = Series { name: "training".into(), ink: Ink::Training, points: training };
        let monitor = Series { name: "fixed prompts and noise".into(), ink: Ink::Reward, points: monitor };
        panel(title, vec![training, monitor])
    };
    Learning::new::<(), ()>(title, &[], rewards.map(of).into()).to_rgb()
}

impl Learning {
    fn new<T, M>(title: &str, records: &[Record<T, M>], panels: Vec<Panel>) -> Self {
        let mut panels = panels;
        for panel in &mut panels {
            panel.series.retain(|series| !series.points.is_empty());
        }
        panels.retain(|panel| !panel.series.is_empty());
        let points = panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.points);
        let epochs = points.map(|(epoch, _)| *epoch).chain(records.iter().map(|record| record.epoch));
        let last_epoch = epochs.max().unwrap_or(0).max(1);
        Self { title: title.to_owned(), last_epoch, panels, tiles: Vec::new(), result: Vec::new() }
    }

    fn add(&mut self, (tile, sentence): (Tile, String)) {
        self.tiles.push(tile);
        self.result.push(sentence);
    }

    /// The measurements of a CAN's run.
    pub(super) fn of_gan(title: &str, config: &GanConfig, records: &[GanRecord]) -> Self {
        let trained = |of: fn(&crate::run::record::GanMeans) -> Option<f64>| {
            move |record: &GanRecord| of(&record.trained.as_ref()?.means)
        };
        let monitor = |of: fn(&GanMonitor) -> Option<f64>| move |record: &GanRecord| of(record.monitor.as_ref()?);
        let limit = config.monitor.min_diversity;
        let minimum = ends(records).map(|(_, last)| (last.styles, (last.styles as f64).ln()));
        let panels = vec![
            panel(
                "adversarial losses",
                vec![
                    series("discriminator", Ink::Reward, records, trained(|m| Some(m.loss.adversarial_discriminator))),
                    series("generator", Ink::UpperBound, records, trained(|m| Some(m.loss.adversarial_generator))),
                ],
            ),
            Panel {
                level: minimum.map(|(n, minimum)| (minimum, format!("minimum: ln {n}"), Ink::UpperBound)),
                ..panel(
                    "style ambiguity of generated images, nats",
                    vec![
                        series("in training", Ink::Training, records, trained(|m| m.loss.ambiguity)),
                        series("fixed noise", Ink::Reward, records, monitor(|m| Some(m.ambiguity))),
                    ],
                )
            },
            panel(
                "gradient penalty",
                vec![series("critic", Ink::Reward, records, trained(|m| m.loss.gradient_penalty))],
            ),
            Panel {
                level: Some((0.5, "not separated: 50 %".to_owned(), Ink::UpperBound)),
                ..percent_panel(
                    "real separated from generated images",
                    vec![series("discriminator", Ink::Reward, records, trained(|m| Some(m.discriminator_accuracy)))],
                )
            },
            percent_panel(
                "style accuracy on real images",
                vec![
                    series("in training", Ink::Training, records, trained(|m| m.style_accuracy)),
                    series("held-out images", Ink::Reward, records, monitor(|m| m.style_accuracy)),
                ],
            ),
            Panel {
                level: Some((limit, format!("limit {} %", number(100.0 * limit, 0)), Ink::Limit)),
                ..percent_panel(
                    "diversity, share of the real images\u{2019}",
                    vec![series("fixed noise", Ink::Diversity, records, monitor(|m| Some(m.diversity)))],
                )
            },
        ];
        let mut learning = Self::new(title, records, panels);
        let Some((first, last)) = ends(records) else { return learning.or_nothing() };
        if let (Some(from), Some(to)) = (first.style_accuracy, last.style_accuracy) {
            learning.add(accuracy("Style accuracy", "The discriminator\u{2019}s style head", from, to));
        }
        learning.add(ambiguity(&config.can.classifier, records, first, last));
        let share = number(100.0 * last.diversity, 0);
        learning.add((
            Tile {
                label: "Diversity",
                value: format!("{share} %"),
                note: format!("of the real images\u{2019}; limit {} %", number(100.0 * limit, 0)),
                tone: if last.diversity < limit { "bad" } else { "good" },
            },
            format!("Generated images are {share}{NO_BREAK_SPACE}% as diverse as real ones."),
        ));
        learning
    }

    /// The measurements of a classifier's run.
    pub(super) fn of_classifier(title: &str, records: &[ClassifierRecord]) -> Self {
        let panels = vec![
            panel(
                "cross-entropy, nats",
                vec![
                    series("in training", Ink::Training, records, |r| Some(r.trained.as_ref()?.means.loss)),
                    series("held-out images", Ink::Reward, records, |r| Some(r.monitor.as_ref()?.loss)),
                ],
            ),
            percent_panel(
                "accuracy",
                vec![
                    series("in training", Ink::Training, records, |r| Some(r.trained.as_ref()?.means.accuracy)),
                    series("held-out images", Ink::Reward, records, |r| Some(r.monitor.as_ref()?.accuracy)),
                ],
            ),
        ];
        let mut learning = Self::new(title, records, panels);
        let Some((first, last)) = ends(records) else { return learning.or_nothing() };
        learning.add(accuracy("Accuracy", "The classifier", first.accuracy, last.accuracy));
        learning
    }

    /// The measurements of CLIP's pretraining.
    pub(super) fn of_clip(title: &str, records: &[PretrainRecord<ClipMonitor>]) -> Self {
        let panels = vec![
            loss_panel(records),
            percent_panel(
                "zero-shot accuracy on held-out paintings",
                vec![
                    series("style", Ink::Reward, records, |r| Some(r.monitor.as_ref()?.style_accuracy)),
                    series("subject", Ink::UpperBound, records, |r| Some(r.monitor.as_ref()?.subject_accuracy)),
                    series("caption", Ink::Diversity, records, |r| Some(r.monitor.as_ref()?.caption_accuracy)),
                ],
            ),
        ];
        let mut learning = Self::new(title, records, panels);
        let Some((first, last)) = ends(records) else { return learning.or_nothing() };
        learning.add(accuracy("Style accuracy", "CLIP, zero-shot,", first.style_accuracy, last.style_accuracy));
        learning
    }

    /// The measurements of the autoencoder's pretraining.
    pub(super) fn of_vae(title: &str, records: &[PretrainRecord<VaeMonitor>]) -> Self {
        let psnr = series("held-out paintings", Ink::Reward, records, |r| Some(r.monitor.as_ref()?.psnr));
        let panels = vec![loss_panel(records), panel("peak signal-to-noise ratio, dB", vec![psnr])];
        let mut learning = Self::new(title, records, panels);
        let Some((first, last)) = ends(records) else { return learning.or_nothing() };
        let (from, to) = (number(first.psnr, 1), number(last.psnr, 1));
        learning.add((
            Tile { label: "PSNR", value: format!("{to} dB"), note: format!("from {from} dB"), tone: "" },
            format!("Held-out paintings are reconstructed at {to} dB; untrained it was {from} dB."),
        ));
        learning
    }

    /// The measurements of the UNet's pretraining.
    pub(super) fn of_unet(title: &str, records: &[PretrainRecord<UNetMonitor>]) -> Self {
        let panels = vec![
            loss_panel(records),
            panel(
                "loss of the averaged weights on held-out latents",
                vec![series("held-out latents", Ink::Reward, records, |r| Some(r.monitor.as_ref()?.held_out_loss))],
            ),
            percent_panel(
                "zero-shot accuracy on samples",
                vec![
                    series("style", Ink::Reward, records, |r| Some(r.monitor.as_ref()?.styled_style_accuracy)),
                    series("subject", Ink::UpperBound, records, |r| Some(r.monitor.as_ref()?.styled_subject_accuracy)),
                    series("plain subject", Ink::Diversity, records, |r| {
                        Some(r.monitor.as_ref()?.plain_subject_accuracy)
                    }),
                ],
            ),
        ];
        let mut learning = Self::new(title, records, panels);
        let Some((first, last)) = ends(records) else { return learning.or_nothing() };
        let (from, to) = (percent(first.styled_style_accuracy), percent(last.styled_style_accuracy));
        learning.add((
            Tile { label: "Style accuracy", value: to.clone(), note: format!("of samples; from {from}"), tone: "" },
            format!("CLIP predicts the style of the prompt for {to} of the samples; untrained it was {from}."),
        ));
        learning
    }

    fn or_nothing(mut self) -> Self {
        self.result.push("Nothing was measured yet.".to_owned());
        self
    }

    /// The curves as an image of 1800 pixels in width.
    pub(super) fn to_rgb(&self) -> RgbImage {
        self.draw(true, WIDTH).to_rgb(2.0)
    }

    /// The curves as an `svg` element of this width without a title.
    pub(super) fn to_svg(&self, width: f32) -> String {
        self.draw(false, width).to_svg()
    }

    fn draw(&self, with_title: bool, width: f32) -> Drawing {
        let mut plot = Plot { shapes: Vec::new(), last_epoch: self.last_epoch, width };
        // On a narrow drawing the names of the series have a line of their own.
        let names = if plot.is_narrow() { LEGEND_LINE } else { 0.0 };
        let (top, stride) = (names + if with_title { 96.0 } else { 44.0 }, STRIDE + names);
        if with_title {
            plot.text((LEFT, 32.0), Anchor::Start, 18.0, Weight::Bold, Ink::Text, self.title.clone());
        }
        let mut bottom = top + PANEL;
        for (i, panel) in self.panels.iter().enumerate() {
            let top = top + i as f32 * stride;
            bottom = top + PANEL;
            panel.draw(&mut plot, top, bottom);
        }
        plot.epoch_axis(bottom);
        let titles: Vec<_> = self.panels.iter().map(|panel| panel.title.as_ref()).collect();
        Drawing {
            width: width as u32,
            height: (bottom + 58.0) as u32,
            shapes: plot.shapes,
            description: format!("{} by epoch: {}", self.title, titles.join(", ")),
        }
    }
}

fn loss_panel<M>(records: &[PretrainRecord<M>]) -> Panel {
    let loss = |record: &Record<PretrainEpoch, M>| Some(record.trained.as_ref()?.loss);
    panel("loss", vec![series("in training", Ink::Training, records, loss)])
}

/// The tile and the sentence about the style ambiguity of generated images. An untrained head is ambiguous about all
/// images, so with the discriminator's own head the maximum, reached while the head was learning, replaces the first
/// value.
fn ambiguity(classifier: &str, records: &[GanRecord], first: &GanMonitor, last: &GanMonitor) -> (Tile, String) {
    let monitors = records.iter().filter_map(|record| Some((record.epoch, record.monitor.as_ref()?.ambiguity)));
    let (epoch, from) = match classifier {
        OWN_HEAD => monitors.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, first.ambiguity)),
        _ => (0, first.ambiguity),
    };
    let (n, minimum) = (last.styles, number((last.styles as f64).ln(), 3));
    let (from_words, now_words) = (number(from, 3), number(last.ambiguity, 3));
    let (note, course) = match classifier {
        OWN_HEAD => (
            format!("highest {from_words}"),
            format!(
                "under the discriminator\u{2019}s own head is {now_words} (at its highest, in epoch {epoch}, {from_words})"
            ),
        ),
        plugin => (format!("from {from_words}"), format!("under {plugin} went from {from_words} to {now_words}")),
    };
    let tile = Tile {
        label: "Style ambiguity",
        value: now_words,
        note: format!("{note}; minimum ln {n} = {minimum}"),
        tone: if last.ambiguity < from { "good" } else { "" },
    };
    (tile, format!("The style ambiguity of generated images {course}, where ln {n} = {minimum} is the minimum."))
}

impl Panel {
    /// The width of the names of the series, each with its dot before it.
    fn names_width(&self) -> f32 {
        let widths = self.series.iter().map(|series| text::width(&series.name, 12.5, Weight::Regular) + NAME_GAP);
        widths.sum::<f32>() - NAME_GAP / 2.0
    }

    fn draw(&self, plot: &mut Plot, top: f32, bottom: f32) {
        let factor = if self.percent { 100.0 } else { 1.0 };
        let values = self.series.iter().flat_map(|series| &series.points).map(|(_, value)| factor * value);
        let range = Range::of(values);
        let range = self.level.as_ref().map_or(range, |(level, ..)| range.including(factor * level)).padded();
        let range = if self.percent { Range { low: 0.0, high: range.high.max(1.0) } } else { range };
        let y = |value: f64| bottom - range.share(factor * value) * (bottom - top);
        let unit = if self.percent { ", %" } else { "" };
        let (lift, mut x) = match plot.is_narrow() {
            true => (TITLE_LIFT + LEGEND_LINE, LEFT + self.names_width()),
            false => (TITLE_LIFT, plot.right()),
        };
        let title = format!("{}{unit}", self.title);
        plot.panel_axis(&range, &title, lift, |value| bottom - range.share(value) * (bottom - top));
        if let Some((level, words, ink)) = &self.level {
            plot.line(vec![(LEFT, y(*level)), (plot.right(), y(*level))], *ink, 1.5, Some([6.0, 5.0]));
            // Below the line: curves start at such a level, and then increase, more often than they end there.
            plot.text((LEFT + 8.0, y(*level) + 15.0), Anchor::Start, 12.5, Weight::Regular, *ink, words.clone());
        }
        for series in self.series.iter().rev() {
            let width = text::width(&series.name, 12.5, Weight::Regular);
            plot.text((x, top - 12.0), Anchor::End, 12.5, Weight::Regular, series.ink, series.name.to_string());
            plot.dot((x - width - 9.0, top - 16.5), 4.0, series.ink, None);
            x -= width + NAME_GAP;
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
        // The last value of each series, the most important series first, unless it would cover another value.
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
    use crate::config::gan::GanTask;
    use crate::run::record::{ClassifierEpoch, ClassifierMonitor, GanEpoch, GanMeans};

    use super::*;

    fn config(classifier: &str) -> GanConfig {
        let mut config = GanConfig::resolve(GanTask::Can, "tiny-art", &[]).expect("the preset");
        config.can.classifier = classifier.to_owned();
        config
    }

    fn gan_records() -> Vec<GanRecord> {
        let trained = |style_accuracy| {
            let means = GanMeans { style_accuracy: Some(style_accuracy), ..GanMeans::default() };
            Some(GanEpoch { means, ..GanEpoch::default() })
        };
        let monitor = |ambiguity, diversity, accuracy| {
            let style_accuracy = Some(accuracy);
            Some(GanMonitor { ambiguity, diversity, styles: 27, style_accuracy, ..GanMonitor::default() })
        };
        let record = |epoch, trained, monitor| GanRecord { epoch, trained, monitor, warnings: Vec::new() };
        vec![
            record(0, None, monitor(3.3, 0.01, 0.04)),
            record(1, trained(0.4), None),
            record(2, trained(0.6), monitor(3.5, 0.8, 0.55)),
        ]
    }

    #[test]
    fn a_gan_has_its_panels_and_a_classifier_its_own() {
        let titles =
            |learning: &Learning| learning.panels.iter().map(|panel| panel.title.to_string()).collect::<Vec<_>>();
        assert_eq!(titles(&Learning::of_gan("CAN", &config(OWN_HEAD), &gan_records())).len(), 5);
        let monitor = Some(ClassifierMonitor { accuracy: 0.1, loss: 3.0 });
        let records = [
            ClassifierRecord { epoch: 0, trained: None, monitor, warnings: vec![] },
            ClassifierRecord { epoch: 1, trained: Some(ClassifierEpoch::default()), monitor: None, warnings: vec![] },
        ];
        assert_eq!(titles(&Learning::of_classifier("simple", &records)), ["cross-entropy, nats", "accuracy"]);
        let nothing = Learning::of_classifier("simple", &[]);
        assert!(titles(&nothing).is_empty() && nothing.result == ["Nothing was measured yet."]);
    }

    #[test]
    fn measurements_are_in_words_and_images() {
        let of_plugin = Learning::of_gan("CAN", &config("clip_softmax"), &gan_records()).result.join(" ");
        assert!(of_plugin.contains("under clip_softmax went from 3.300 to 3.500, where"), "{of_plugin}");
        let learning = Learning::of_gan("CAN", &config(OWN_HEAD), &gan_records());
        let result = learning.result.join(" ");
        assert!(
            result.contains(
                "predicts the style of 55.0\u{a0}% of the held-out images; untrained it predicted that of 4.0\u{a0}%"
            ),
            "{result}"
        );
        let own_head = "own head is 3.500 (at its highest, in epoch 2, 3.500), where ln 27 = 3.296 is the minimum";
        assert!(result.contains(own_head), "{result}");
        assert_eq!(learning.tiles.len(), 3);
        assert!(learning.to_svg(WIDTH).contains("minimum: ln 27"));
        assert_eq!(learning.to_rgb().width(), 1800);
    }
}
