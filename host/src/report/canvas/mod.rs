//! An opaque canvas of pixels for shapes (tiny-skia), text (ab_glyph) and images, and what all sheets of images have in
//! common.

mod color;
mod fonts;
pub(crate) mod text;

use ab_glyph::{Font, point};
use image::{Rgb, RgbImage};
use tiny_skia::{
    Color, FillRule, LineCap, LineJoin, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, StrokeDash, Transform,
};

pub(crate) use self::color::{group_color, oklab};
use self::text::Weight;

/// The point of a line of text that is placed at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// Red, green, blue and opacity.
pub(crate) type Rgba = [u8; 4];

/// Background color of a sheet.
pub(crate) const GROUND: Rgba = [0xfb, 0xfa, 0xf8, 255];
/// Color of names and values.
pub(crate) const INK: Rgba = [0x1d, 0x22, 0x2b, 255];
/// Color of prompts and notes.
pub(crate) const MUTED: Rgba = [0x66, 0x6f, 0x7d, 255];
/// Color of lines between parts.
pub(crate) const RULE: Rgba = [0xdd, 0xdd, 0xdb, 255];

/// Margin around a sheet, in pixels.
pub(crate) const MARGIN: u32 = 28;
/// Height of a sheet's header, in pixels.
pub(crate) const HEADER: u32 = 60;
/// Maximum width of a sheet.
pub(crate) const MAX_WIDTH: u32 = 1500;
/// Minimum width of a sheet, so that there is room for the header.
pub(crate) const MIN_WIDTH: u32 = 560;

/// An opaque image with a unit of `scale` pixels for drawing.
pub(crate) struct Canvas {
    pixmap: Pixmap,
    scale: f32,
}

impl Canvas {
    /// Creates a canvas of one color; `width` and `height` are in units.
    pub(crate) fn new(width: u32, height: u32, scale: f32, background: Rgba) -> Self {
        let pixels = |units: u32| ((units.max(1) as f32 * scale).ceil() as u32).max(1);
        let mut pixmap =
            Pixmap::new(pixels(width), pixels(height)).expect("the sides are at least 1 and far below 2^31");
        pixmap.fill(color(background));
        Self { pixmap, scale }
    }

    /// Draws a line through points.
    pub(crate) fn line(&mut self, points: &[(f32, f32)], ink: Rgba, width: f32, dash: Option<[f32; 2]>) {
        let Some(path) = path(points, false) else { return };
        let stroke = Stroke {
            width,
            line_cap: if dash.is_some() { LineCap::Butt } else { LineCap::Round },
            line_join: LineJoin::Round,
            dash: dash.and_then(|dash| StrokeDash::new(dash.to_vec(), 0.0)),
            ..Stroke::default()
        };
        self.pixmap.stroke_path(&path, &paint(ink), &stroke, Transform::from_scale(self.scale, self.scale), None);
    }

    /// Draws a filled polygon.
    pub(crate) fn area(&mut self, points: &[(f32, f32)], ink: Rgba) {
        // tiny-skia warns about an empty area, such as the band of a single point.
        if let Some(path) =
            path(points, true).filter(|path| path.bounds().width() > 0.0 && path.bounds().height() > 0.0)
        {
            self.fill(&path, ink);
        }
    }

    /// Draws a filled circle.
    pub(crate) fn dot(&mut self, center: (f32, f32), radius: f32, ink: Rgba) {
        if let Some(path) = PathBuilder::from_circle(center.0, center.1, radius) {
            self.fill(&path, ink);
        }
    }

    /// Draws a filled rectangle.
    pub(crate) fn rect(&mut self, x: f32, y: f32, width: f32, height: f32, ink: Rgba) {
        if let Some(rect) = Rect::from_xywh(x, y, width, height) {
            self.fill(&PathBuilder::from_rect(rect), ink);
        }
    }

    fn fill(&mut self, path: &Path, ink: Rgba) {
        let transform = Transform::from_scale(self.scale, self.scale);
        self.pixmap.fill_path(path, &paint(ink), FillRule::Winding, transform, None);
    }

    /// Draws a line of text; `y` is the baseline.
    pub(crate) fn text(&mut self, at: (f32, f32), anchor: Anchor, size: f32, weight: Weight, ink: Rgba, words: &str) {
        let shift = match anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => 0.5,
            Anchor::End => 1.0,
        };
        let mut x = (at.0 - shift * text::width(words, size, weight)) * self.scale;
        let y = (at.1 * self.scale).round();
        for glyph in text::glyphs(words, size * self.scale, weight) {
            let positioned = glyph.id.with_scale_and_position(glyph.scale, point(x, y));
            if let Some(outline) = glyph.font.outline_glyph(positioned) {
                let bounds = outline.px_bounds();
                outline.draw(|dx, dy, coverage| {
                    self.blend(bounds.min.x as i64 + i64::from(dx), bounds.min.y as i64 + i64::from(dy), ink, coverage);
                });
            }
            x += glyph.advance();
        }
    }

    /// Draws the header of a sheet, `width` units wide: a title on the left, and a number on the right.
    pub(crate) fn header(&mut self, width: u32, left: &str, right: &str) {
        let right_edge = (width - MARGIN) as f32;
        self.text((MARGIN as f32, 33.0), Anchor::Start, 17.0, Weight::Bold, INK, left);
        self.text((right_edge, 33.0), Anchor::End, 14.0, Weight::Regular, MUTED, right);
        self.rect(MARGIN as f32, 45.0, right_edge - MARGIN as f32, 1.0, RULE);
    }

    /// Draws an image with its corner at (`x`, `y`) and `factor` × `factor` pixels of the canvas for each of its
    /// pixels.
    pub(crate) fn image(&mut self, x: u32, y: u32, image: &RgbImage, factor: u32) {
        let width = self.pixmap.width();
        let height = self.pixmap.height();
        let data = self.pixmap.data_mut();
        for (column, row) in (0..image.height() * factor).flat_map(|r| (0..image.width() * factor).map(move |c| (c, r)))
        {
            let (left, top) = (x + column, y + row);
            if left < width && top < height {
                let Rgb([red, green, blue]) = *image.get_pixel(column / factor, row / factor);
                let at = (top as usize * width as usize + left as usize) * 4;
                data[at..at + 4].copy_from_slice(&[red, green, blue, 255]);
            }
        }
    }

    /// Blends an ink into one pixel; outside the canvas nothing happens.
    fn blend(&mut self, x: i64, y: i64, ink: Rgba, coverage: f32) {
        let (width, height) = (i64::from(self.pixmap.width()), i64::from(self.pixmap.height()));
        if !(0..width).contains(&x) || !(0..height).contains(&y) {
            return;
        }
        let at = (y * width + x) as usize * 4;
        let opacity = coverage.clamp(0.0, 1.0) * f32::from(ink[3]) / 255.0;
        for (pixel, ink) in self.pixmap.data_mut()[at..at + 3].iter_mut().zip(ink) {
            *pixel = (f32::from(*pixel) * (1.0 - opacity) + f32::from(ink) * opacity).round() as u8;
        }
    }

    /// Returns the finished image.
    pub(crate) fn into_rgb(self) -> RgbImage {
        let (width, height) = (self.pixmap.width(), self.pixmap.height());
        // The background is opaque, so premultiplied colors equal plain ones.
        let pixels = self.pixmap.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        RgbImage::from_raw(width, height, pixels).expect("three bytes per pixel were collected")
    }
}

fn color([red, green, blue, alpha]: Rgba) -> Color {
    Color::from_rgba8(red, green, blue, alpha)
}

fn paint(ink: Rgba) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color(color(ink));
    paint
}

fn path(points: &[(f32, f32)], closed: bool) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (i, &(x, y)) in points.iter().enumerate() {
        if i == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
    }
    if closed {
        path.close();
    }
    path.finish()
}
