//! A drawing as a list of shapes with named inks, rendered to pixels or SVG: one chart for the image file and the page.

use std::fmt::Write;

use image::RgbImage;

use super::canvas::text::Weight;
use super::canvas::{Anchor, Canvas, Rgba};
use crate::text::escaped;

/// The purpose of a shape; the image file has one color for each, the page one for light and one for dark mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// Titles and values.
    Text,
    /// Labels.
    Muted,
    /// Lines behind the data.
    Grid,
    /// The lines of the axes.
    Axis,
    /// The monitor's reward.
    Reward,
    /// The uncertainty of the monitor's reward.
    RewardBand,
    /// The rewards of the training samples.
    Training,
    /// The upper bound of the reward.
    UpperBound,
    /// The diversity.
    Diversity,
    /// The area under the diversity.
    DiversityArea,
    /// The Vendi score.
    Vendi,
    /// The reward of a plugin that is held out.
    HeldOut,
    /// The uncertainty of the same.
    HeldOutBand,
    /// The minimum of the diversity.
    Limit,
    /// The background, for halos.
    Ground,
}

impl Ink {
    /// The name of the ink's class in the page's style sheet.
    fn class(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Muted => "muted",
            Self::Grid => "grid",
            Self::Axis => "axis",
            Self::Reward => "reward",
            Self::RewardBand => "reward-band",
            Self::Training => "training",
            Self::UpperBound => "upper-bound",
            Self::Diversity => "diversity",
            Self::DiversityArea => "diversity-area",
            Self::Vendi => "vendi",
            Self::HeldOut => "held-out",
            Self::HeldOutBand => "held-out-band",
            Self::Limit => "limit",
            Self::Ground => "ground",
        }
    }

    /// The ink's color in the image file; the page's light colors are the same.
    fn color(self) -> Rgba {
        match self {
            Self::Text => [0x1d, 0x22, 0x2b, 255],
            Self::Muted => [0x66, 0x6f, 0x7d, 255],
            Self::Grid => [0xea, 0xec, 0xf0, 255],
            Self::Axis => [0xb9, 0xc0, 0xca, 255],
            Self::Reward => [0x2a, 0x5b, 0xd7, 255],
            Self::RewardBand => [0x2a, 0x5b, 0xd7, 40],
            Self::Training => [0x66, 0x70, 0x7f, 255],
            Self::UpperBound => [0xad, 0x57, 0x00, 255],
            Self::Diversity => [0x0b, 0x7d, 0x6e, 255],
            Self::DiversityArea => [0x0b, 0x7d, 0x6e, 26],
            Self::Vendi => [0x7a, 0x4b, 0xc2, 255],
            Self::HeldOut => [0xa8, 0x2f, 0x7c, 255],
            Self::HeldOutBand => [0xa8, 0x2f, 0x7c, 40],
            Self::Limit => [0xc0, 0x2f, 0x3c, 255],
            Self::Ground => [255, 255, 255, 255],
        }
    }
}

/// A shape; positions and sizes are in units of the drawing, with y downwards.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// A line through points.
    Line { points: Vec<(f32, f32)>, ink: Ink, width: f32, dash: Option<[f32; 2]> },
    /// A filled polygon.
    Area { points: Vec<(f32, f32)>, ink: Ink },
    /// A filled circle; the page shows `note` as its tooltip.
    Dot { at: (f32, f32), radius: f32, ink: Ink, note: Option<String> },
    /// A line of text; `at` is on its baseline.
    Text { at: (f32, f32), anchor: Anchor, size: f32, weight: Weight, ink: Ink, words: String },
}

/// Shapes on a background; later ones cover earlier ones.
#[derive(Clone, Debug)]
pub(super) struct Drawing {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) shapes: Vec<Shape>,
    /// Description of the drawing for screen readers.
    pub(super) description: String,
}

impl Drawing {
    /// Renders the drawing to an image with `scale` pixels per unit.
    pub(super) fn to_rgb(&self, scale: f32) -> RgbImage {
        let mut canvas = Canvas::new(self.width, self.height, scale, Ink::Ground.color());
        for shape in &self.shapes {
            match shape {
                Shape::Line { points, ink, width, dash } => canvas.line(points, ink.color(), *width, *dash),
                Shape::Area { points, ink } => canvas.area(points, ink.color()),
                Shape::Dot { at, radius, ink, .. } => canvas.dot(*at, *radius, ink.color()),
                Shape::Text { at, anchor, size, weight, ink, words } => {
                    canvas.text(*at, *anchor, *size, *weight, ink.color(), words);
                }
            }
        }
        canvas.into_rgb()
    }

    /// Renders the drawing to an `svg` element whose colors come from the page: each shape has the class `ink-NAME`.
    pub(super) fn to_svg(&self) -> String {
        let mut svg = format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
            self.width,
            self.height,
            escape(&self.description)
        );
        for shape in &self.shapes {
            shape.write_svg(&mut svg).expect("writing to a string does not fail");
        }
        svg.push_str("</svg>");
        svg
    }
}

impl Shape {
    fn write_svg(&self, svg: &mut String) -> std::fmt::Result {
        match self {
            Self::Line { points, ink, width, dash } => {
                let dash = dash.map_or(String::new(), |[on, off]| format!(" stroke-dasharray=\"{on} {off}\""));
                let class = ink.class();
                write!(svg, "<polyline class=\"line ink-{class}\" stroke-width=\"{width}\"{dash} points=\"")?;
                write_points(svg, points)?;
                write!(svg, "\"/>")
            }
            Self::Area { points, ink } => {
                write!(svg, "<polygon class=\"ink-{}\" points=\"", ink.class())?;
                write_points(svg, points)?;
                write!(svg, "\"/>")
            }
            Self::Dot { at: (x, y), radius, ink, note } => {
                write!(svg, "<circle class=\"ink-{}\" cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{radius}\">", ink.class())?;
                if let Some(note) = note {
                    write!(svg, "<title>{}</title>", escape(note))?;
                }
                write!(svg, "</circle>")
            }
            Self::Text { at: (x, y), anchor, size, weight, ink, words } => {
                let anchor = match anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                let weight = if *weight == Weight::Bold { " font-weight=\"600\"" } else { "" };
                write!(
                    svg,
                    "<text class=\"ink-{}\" x=\"{x:.2}\" y=\"{y:.2}\" font-size=\"{size}\" text-anchor=\"{anchor}\"{weight}>{}</text>",
                    ink.class(),
                    escape(words)
                )
            }
        }
    }
}

fn write_points(svg: &mut String, points: &[(f32, f32)]) -> std::fmt::Result {
    points.iter().try_for_each(|(x, y)| write!(svg, "{x:.2},{y:.2} "))
}

fn escape(text: &str) -> String {
    escaped(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_escaped_and_pixels_are_drawn() {
        let words = Shape::Text {
            at: (2.0, 12.0),
            anchor: Anchor::Start,
            size: 12.0,
            weight: Weight::Bold,
            ink: Ink::Text,
            words: "a <b> & c".into(),
        };
        let drawing = Drawing { width: 80, height: 16, shapes: vec![words], description: "\"it\"".into() };
        assert!(drawing.to_svg().contains("a &lt;b&gt; &amp; c"));
        assert!(drawing.to_svg().contains("aria-label=\"&quot;it&quot;\""));
        let image = drawing.to_rgb(2.0);
        assert_eq!(image.dimensions(), (160, 32));
        assert!(image.pixels().any(|pixel| pixel.0[0] < 64), "letters are dark");
    }
}
