//! The sheet of the samples that moved most: the image, its reward before and after, and the probabilities that changed.

use std::path::Path;

use anyhow::{Context as _, Result};
use image::RgbImage;
use image::imageops::{self, FilterType};

use super::compare::{Comparison, Row, amount};
use super::outputs::{Movement, Outcome, StyleChange};
use super::report::{failure, verdict};
use super::samples::Samples;
use crate::data::png;
use crate::fs::write_atomic;
use crate::plugin::Sample;
use crate::report::canvas::text::{self, Weight};
use crate::report::canvas::{Anchor, Canvas, GROUND, HEADER, INK, MARGIN, MUTED, RULE, Rgba};
use crate::text::{decimals, number, signed};

/// Side of an image's square in pixels.
const SIDE: u32 = 144;
/// Space above and below a row.
const GAP: u32 = 10;
/// Left end and width of the names and numbers.
const NUMBERS: u32 = MARGIN + SIDE + 20;
const NUMBERS_WIDTH: u32 = 280;
/// Left end and width of the styles' names, and the largest width of the bars to the right of them.
const STYLES: u32 = NUMBERS + NUMBERS_WIDTH + 20;
const STYLES_WIDTH: u32 = 170;
const BARS: u32 = STYLES + STYLES_WIDTH + 12;
const BARS_WIDTH: u32 = 230;
/// Width of the sheet, with room for the percentages.
const WIDTH: u32 = BARS + BARS_WIDTH + 150 + MARGIN;
/// Height of one style, which has two bars of this height.
const STYLE: u32 = 29;
const BAR: f32 = 9.0;
/// Font sizes of names and of numbers, and the distance of lines.
const SIZE: f32 = 14.0;
const NOTE_SIZE: f32 = 12.0;
const SMALL: f32 = 10.0;
const LINE: f32 = 19.0;
/// The baseline of the colors' names.
const LEGEND: f32 = 61.0;
/// Background of a text.
const PAPER: Rgba = [255, 255, 255, 255];
/// Color of what the new plugin returns; the old one's is [`MUTED`].
const NEW: Rgba = [0x2a, 0x5b, 0xd7, 255];

/// Draws the sheet of these samples and writes it as a PNG.
pub(super) fn write(path: &Path, comparison: &Comparison, rows: &[&Row], samples: &mut Samples) -> Result<()> {
    let mut images = vec![];
    for row in rows {
        images.push(samples.read(row.index)?.as_ref().and_then(|sample| thumbnail(sample).or_else(|| page(sample))));
    }
    let bytes = png::encode(&draw(comparison, rows, &images), &[png::software()]);
    write_atomic(path, &bytes.with_context(|| format!("encoding {}", path.display()))?)?;
    Ok(())
}

/// Returns an image, or the first frame of a video, resized to fit a square of [`SIDE`]. Scaling up by an integer factor keeps
/// the pixels sharp.
fn thumbnail(sample: &Sample) -> Option<RgbImage> {
    let frame = || sample.video.as_ref()?.frames.first();
    let image = sample.image.as_deref().or_else(frame)?;
    let side = image.width().max(image.height()).max(1);
    let scaled = |length: u32| (u64::from(length) * u64::from(SIDE) / u64::from(side)).max(1) as u32;
    let filter = if SIDE.is_multiple_of(side) { FilterType::Nearest } else { FilterType::CatmullRom };
    Some(imageops::resize(image, scaled(image.width()), scaled(image.height()), filter))
}

/// Returns the beginning of a text as an image.
fn page(sample: &Sample) -> Option<RgbImage> {
    const MARGIN: f32 = 10.0;
    let words = sample.text.as_deref()?;
    let mut canvas = Canvas::new(SIDE, SIDE, 1.0, PAPER);
    for (i, line) in text::wrap(words, NOTE_SIZE, Weight::Regular, SIDE as f32 - 2.0 * MARGIN, 8).iter().enumerate() {
        let at = (MARGIN, 2.0 * MARGIN + i as f32 * 16.0);
        canvas.text(at, Anchor::Start, NOTE_SIZE, Weight::Regular, MUTED, line);
    }
    Some(canvas.into_rgb())
}

pub(super) fn draw(comparison: &Comparison, rows: &[&Row], images: &[Option<RgbImage>]) -> RgbImage {
    let height = HEADER + rows.len().max(1) as u32 * (SIDE + 2 * GAP) + 3 * LINE as u32 + MARGIN;
    let mut canvas = Canvas::new(WIDTH, height, 1.0, GROUND);
    let title = |described: &super::description::Described| {
        format!("{} {}", described.description.name, described.description.version)
    };
    let title = format!("{} → {}", title(&comparison.old), title(&comparison.new));
    let title = text::wrap(&title, 17.0, Weight::Bold, (WIDTH - 2 * MARGIN) as f32 * 0.7, 1);
    let (shown, n) = (rows.len(), comparison.rows.len());
    let note =
        if shown == 0 { "no sample moved".to_owned() } else { format!("the {shown} of {n} samples that moved most") };
    canvas.header(WIDTH, &title.concat(), &note);
    if comparison.compared().any(|(_, movement)| movement.distribution.is_some()) {
        let mut left = BARS as f32;
        for (name, ink) in [("OLD", MUTED), ("NEW", NEW)] {
            canvas.rect(left, LEGEND - BAR, BAR, BAR, ink);
            canvas.text((left + 14.0, LEGEND), Anchor::Start, SMALL, Weight::Regular, ink, name);
            left += 60.0;
        }
    }
    for (i, (row, image)) in rows.iter().zip(images).enumerate() {
        let top = HEADER + 2 * GAP + i as u32 * (SIDE + 2 * GAP);
        if i > 0 {
            canvas.rect(MARGIN as f32, (top - GAP) as f32, (WIDTH - 2 * MARGIN) as f32, 1.0, RULE);
        }
        if let Some(image) = image {
            let (left, over) = ((SIDE - image.width()) / 2, (SIDE - image.height()) / 2);
            canvas.image(MARGIN + left, top + over, image, 1);
        }
        let mut baseline = top as f32 + 16.0;
        for line in text::wrap(&row.name, SIZE, Weight::Bold, NUMBERS_WIDTH as f32, 2) {
            canvas.text((NUMBERS as f32, baseline), Anchor::Start, SIZE, Weight::Bold, INK, &line);
            baseline += LINE;
        }
        for (line, ink) in lines(comparison, row) {
            for line in text::wrap(&line, NOTE_SIZE, Weight::Regular, NUMBERS_WIDTH as f32, 3) {
                canvas.text((NUMBERS as f32, baseline), Anchor::Start, NOTE_SIZE, Weight::Regular, ink, &line);
                baseline += LINE;
            }
        }
        if let Some(distribution) = row.outcome.movement().and_then(|movement| movement.distribution.as_ref()) {
            bars(&mut canvas, top, &distribution.styles);
        }
    }
    let bottom = (height - MARGIN) as f32;
    let verdict = text::wrap(&verdict(comparison), NOTE_SIZE, Weight::Regular, (WIDTH - 2 * MARGIN) as f32, 1).concat();
    canvas.text((MARGIN as f32, bottom), Anchor::Start, NOTE_SIZE, Weight::Regular, MUTED, &verdict);
    canvas.into_rgb()
}

/// Returns the lines below a sample's name.
fn lines(comparison: &Comparison, row: &Row) -> Vec<(String, Rgba)> {
    let movement = match &row.outcome {
        Outcome::Failed { .. } => return vec![(failure(&row.outcome).unwrap_or_default(), INK)],
        Outcome::Both(movement) => movement,
    };
    let mut lines = vec![(changed("reward", movement.rewards), INK)];
    if movement.reward() != 0.0 && comparison.reward_unit().is_some() {
        let relative = amount(comparison.relative_reward(movement));
        lines.push((format!("{relative} standard deviations of OLD's rewards"), MUTED));
    }
    lines.extend(details(movement).into_iter().map(|line| (line, MUTED)));
    if let Some(gradient) = comparison.relative_gradient(movement).filter(|gradient| *gradient > 0.0) {
        lines.push((format!("gradient moved by {} of OLD's norm", amount(gradient)), MUTED));
    }
    lines
}

fn details(movement: &Movement) -> Vec<String> {
    let distribution = movement.distribution.as_ref().map(|change| {
        [changed("entropy", change.entropies), format!("total variation {}", amount(change.total_variation))]
    });
    distribution.into_iter().flatten().collect()
}

/// Returns a number before and after, and its change.
fn changed(what: &str, [old, new]: [f64; 2]) -> String {
    let places = decimals(new - old);
    format!("{what} {} → {} ({})", number(old, places), number(new, places), signed(new - old, places))
}

/// Draws the probabilities of styles, the old one above the new one, relative to the largest of them.
fn bars(canvas: &mut Canvas, top: u32, styles: &[StyleChange]) {
    let all = styles.iter().flat_map(|style| style.probabilities).flatten();
    let largest = all.fold(f64::MIN_POSITIVE, f64::max);
    let changes = styles.iter().map(|style| style.change().abs() * 100.0);
    let places = changes.filter(|change| *change > 0.0).fold(f64::NAN, f64::min);
    let places = decimals(places) - 1;
    for (i, style) in styles.iter().enumerate() {
        let top = (top + i as u32 * STYLE) as f32;
        let name = text::wrap(&style.style, NOTE_SIZE, Weight::Regular, STYLES_WIDTH as f32, 1).concat();
        let right = (STYLES + STYLES_WIDTH) as f32;
        canvas.text((right, top + 15.0), Anchor::End, NOTE_SIZE, Weight::Regular, INK, &name);
        for (probability, (ink, over)) in style.probabilities.into_iter().zip([(MUTED, 1.0), (NEW, 12.0)]) {
            let width = probability.map_or(0.0, |p| (p / largest) as f32 * BARS_WIDTH as f32).max(1.0);
            canvas.rect(BARS as f32, top + over, width, BAR, ink);
            let percent = probability.map_or_else(|| "none".to_owned(), |p| format!("{} %", number(p * 100.0, places)));
            let at = (BARS as f32 + width + 8.0, top + over + 9.0);
            canvas.text(at, Anchor::Start, SMALL, Weight::Regular, ink, &percent);
        }
    }
}
