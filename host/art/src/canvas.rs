//! The canvas: float RGB in [0, 1]; outlines are rasterized by tiny-skia, brush dabs and discs by their distance
//! function.

use image::{Rgb as Pixel, RgbImage};
use tiny_skia::{FillRule, LineCap, LineJoin, Mask, Path, Stroke, Transform};

use super::outline::{Outline, Point};

/// A color, sRGB, each channel in [0, 1].
pub type Rgb = [f32; 3];

/// A color from 0xRRGGBB.
pub const fn hex(code: u32) -> Rgb {
    [(code >> 16 & 255) as f32 / 255.0, (code >> 8 & 255) as f32 / 255.0, (code & 255) as f32 / 255.0]
}

/// `a` at t = 0, `b` at t = 1.
pub fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t]
}

/// The color, k times as bright.
pub fn scale(a: Rgb, k: f32) -> Rgb {
    [a[0] * k, a[1] * k, a[2] * k]
}

/// The color with the same amount added to each channel.
pub fn lift(a: Rgb, amount: f32) -> Rgb {
    [a[0] + amount, a[1] + amount, a[2] + amount]
}

/// Weight of each neighbor of a pixel in the last filter, which is softer than a box filter alone, as a lens is.
const SOFTNESS: f32 = 0.12;

/// A square canvas.
#[derive(Debug)]
pub struct Canvas {
    size: usize,
    pixels: Vec<Rgb>,
    mask: Mask,
}

impl Canvas {
    /// A canvas of one color.
    pub fn new(size: u32, color: Rgb) -> Self {
        let mask = Mask::new(size, size).expect("a painting has at least one pixel");
        Self { size: size as usize, pixels: vec![color; (size * size) as usize], mask }
    }

    /// Covers everything with one color.
    pub fn clear(&mut self, color: Rgb) {
        self.pixels.fill(color);
    }

    /// Recolors every pixel by f(x, y, color), with x and y in unit coordinates.
    pub fn shade(&mut self, f: impl Fn(f32, f32, Rgb) -> Rgb) {
        let step = 1.0 / self.size as f32;
        for (j, row) in self.pixels.chunks_exact_mut(self.size).enumerate() {
            let y = (j as f32 + 0.5) * step;
            for (i, pixel) in row.iter_mut().enumerate() {
                *pixel = f((i as f32 + 0.5) * step, y, *pixel);
            }
        }
    }

    /// Fills an outline with one color.
    pub fn fill(&mut self, outline: &Outline, color: Rgb) {
        self.fill_with(outline, |_, _, _| color);
    }

    /// Fills an outline with f(x, y, color underneath).
    pub fn fill_with(&mut self, outline: &Outline, f: impl Fn(f32, f32, Rgb) -> Rgb) {
        if let Some(path) = outline.path(self.size) {
            self.fill_path(&path, f);
        }
    }

    /// Draws along an outline, `width` wide (unit coordinates), with round joins.
    pub fn stroke(&mut self, outline: &Outline, width: f32, color: Rgb) {
        self.stroke_with(outline, width, |_, _, _| color);
    }

    /// Draws along an outline with f(x, y, color underneath).
    pub fn stroke_with(&mut self, outline: &Outline, width: f32, f: impl Fn(f32, f32, Rgb) -> Rgb) {
        let stroke = Stroke {
            width: (width * self.size as f32).max(0.25),
            line_cap: LineCap::Round,
            line_join: LineJoin::Round,
            ..Stroke::default()
        };
        if let Some(path) = outline.path(self.size).and_then(|path| path.stroke(&stroke, 1.0)) {
            self.fill_path(&path, f);
        }
    }

    fn fill_path(&mut self, path: &Path, f: impl Fn(f32, f32, Rgb) -> Rgb) {
        let size = self.size as f32;
        let bounds = path.bounds();
        let clip = |v: f32| v.clamp(0.0, size) as usize;
        let (left, top) = (clip(bounds.left() - 1.0), clip(bounds.top() - 1.0));
        let (right, bottom) = (clip(bounds.right() + 2.0), clip(bounds.bottom() + 2.0));
        if left >= right || top >= bottom {
            return;
        }
        self.mask.fill_path(path, FillRule::Winding, true, Transform::identity());
        let step = 1.0 / size;
        for j in top..bottom {
            let y = (j as f32 + 0.5) * step;
            let row = j * self.size;
            let coverage = &mut self.mask.data_mut()[row + left..row + right];
            let pixels = &mut self.pixels[row + left..row + right];
            for (i, (coverage, pixel)) in coverage.iter_mut().zip(pixels).enumerate() {
                if *coverage > 0 {
                    let color = f(((left + i) as f32 + 0.5) * step, y, *pixel);
                    *pixel = mix(*pixel, color, f32::from(*coverage) / 255.0);
                    *coverage = 0;
                }
            }
        }
    }

    /// Draws a brush dab from a to b, radius `from` at a and `to` at b, with round ends.
    pub fn dab(&mut self, a: Point, b: Point, from: f32, to: f32, color: Rgb, opacity: f32) {
        let size = self.size as f32;
        let (ax, ay, bx, by) = (a[0] * size, a[1] * size, b[0] * size, b[1] * size);
        let (from, to) = (from * size, to * size);
        let reach = from.max(to) + 1.0;
        let clip = |v: f32| v.clamp(0.0, size) as usize;
        let (left, right) = (clip(ax.min(bx) - reach), clip(ax.max(bx) + reach + 1.0));
        let (top, bottom) = (clip(ay.min(by) - reach), clip(ay.max(by) + reach + 1.0));
        let (dx, dy) = (bx - ax, by - ay);
        let inverse = 1.0 / (dx * dx + dy * dy).max(1e-6);
        for j in top..bottom {
            let y = j as f32 + 0.5 - ay;
            for i in left..right {
                let x = i as f32 + 0.5 - ax;
                let t = ((x * dx + y * dy) * inverse).clamp(0.0, 1.0);
                let (ox, oy) = (x - dx * t, y - dy * t);
                let inside = from + (to - from) * t + 0.5;
                let square = ox * ox + oy * oy;
                if square < inside * inside {
                    let coverage = (inside - square.sqrt()).min(1.0) * opacity;
                    let pixel = &mut self.pixels[j * self.size + i];
                    *pixel = mix(*pixel, color, coverage);
                }
            }
        }
    }

    /// Draws a dab along points, with the radius changing from `from` to `to`.
    pub fn sweep(&mut self, points: &[Point], from: f32, to: f32, color: Rgb) {
        let n = (points.len() - 1).max(1) as f32;
        for (i, pair) in points.windows(2).enumerate() {
            let radius = |i: usize| from + (to - from) * i as f32 / n;
            self.dab(pair[0], pair[1], radius(i), radius(i + 1), color, 1.0);
        }
    }

    /// Draws a disc.
    pub fn disc(&mut self, center: Point, radius: f32, color: Rgb) {
        self.dab(center, center, radius, radius, color, 1.0);
    }

    /// The color at a point (clamped to the canvas), interpolated between the four nearest pixels.
    pub fn sample(&self, x: f32, y: f32) -> Rgb {
        let size = self.size as f32;
        let (x, y) = ((x * size - 0.5).clamp(0.0, size - 1.001), (y * size - 0.5).clamp(0.0, size - 1.001));
        let (i, j) = (x as usize, y as usize);
        let (s, t) = (x - i as f32, y - j as f32);
        let at = |i: usize, j: usize| self.pixels[j.min(self.size - 1) * self.size + i.min(self.size - 1)];
        mix(mix(at(i, j), at(i + 1, j), s), mix(at(i, j + 1), at(i + 1, j + 1), s), t)
    }

    /// The color of the pixel at a point (clamped to the canvas).
    pub fn pick(&self, x: f32, y: f32) -> Rgb {
        let size = self.size as f32;
        let at = |v: f32| (v * size).clamp(0.0, size - 1.0) as usize;
        self.pixels[at(y) * self.size + at(x)]
    }

    /// Softens everything by about `radius` (unit coordinates).
    pub fn blur(&mut self, radius: f32) {
        for channel in 0..3 {
            let mut plane = Plane { size: self.size, values: self.pixels.iter().map(|pixel| pixel[channel]).collect() };
            plane.blur(radius);
            for (pixel, value) in self.pixels.iter_mut().zip(plane.values) {
                pixel[channel] = value;
            }
        }
    }

    /// Coverage of each pixel by any of the outlines.
    pub fn coverage<'a>(&mut self, outlines: impl Iterator<Item = &'a Outline>) -> Plane {
        for outline in outlines {
            if let Some(path) = outline.path(self.size) {
                self.mask.fill_path(&path, FillRule::Winding, true, Transform::identity());
            }
        }
        let values = self.mask.data().iter().map(|&coverage| f32::from(coverage) / 255.0).collect();
        self.mask.clear();
        Plane { size: self.size, values }
    }

    /// A copy for reading colors while painting over the original.
    pub fn copy(&self) -> Self {
        Self { size: self.size, pixels: self.pixels.clone(), mask: self.mask.clone() }
    }

    /// The finished image in 8 bits, after a last anti-aliasing filter of a fixed size in pixels.
    pub fn finish(mut self) -> RgbImage {
        let n = self.size;
        let filter = |before: Rgb, here: Rgb, after: Rgb| {
            [0, 1, 2].map(|channel| here[channel] + SOFTNESS * (before[channel] - 2.0 * here[channel] + after[channel]))
        };
        for j in 0..n {
            let row = j * n;
            let mut left = self.pixels[row];
            for i in 0..n {
                let here = self.pixels[row + i];
                self.pixels[row + i] = filter(left, here, self.pixels[row + (i + 1).min(n - 1)]);
                left = here;
            }
        }
        let mut above = self.pixels[..n].to_vec();
        for j in 0..n {
            for (i, above) in above.iter_mut().enumerate() {
                let here = self.pixels[j * n + i];
                self.pixels[j * n + i] = filter(*above, here, self.pixels[(j + 1).min(n - 1) * n + i]);
                *above = here;
            }
        }
        let size = self.size as u32;
        RgbImage::from_fn(size, size, |i, j| {
            let pixel = self.pixels[j as usize * self.size + i as usize];
            Pixel(pixel.map(|v| (v.clamp(0.0, 1.0) * 255.0 + 0.5) as u8))
        })
    }
}

/// One value per pixel: a coverage, a light, a depth.
#[derive(Clone, Debug)]
pub struct Plane {
    size: usize,
    values: Vec<f32>,
}

impl Plane {
    /// The value at a point (clamped to the canvas), interpolated between the four nearest pixels.
    pub fn at(&self, x: f32, y: f32) -> f32 {
        let size = self.size as f32;
        let (x, y) = ((x * size - 0.5).clamp(0.0, size - 1.001), (y * size - 0.5).clamp(0.0, size - 1.001));
        let (i, j) = (x as usize, y as usize);
        let (s, t) = (x - i as f32, y - j as f32);
        let at = |i: usize, j: usize| self.values[j.min(self.size - 1) * self.size + i.min(self.size - 1)];
        let top = at(i, j) + (at(i + 1, j) - at(i, j)) * s;
        let bottom = at(i, j + 1) + (at(i + 1, j + 1) - at(i, j + 1)) * s;
        top + (bottom - top) * t
    }

    /// Applies two box filters in each direction, with a radius that is a real number of pixels, so that every size is
    /// softened alike.
    pub fn blur(&mut self, radius: f32) {
        let radius = radius * self.size as f32;
        let mut line = vec![0.0; self.size];
        for _ in 0..2 {
            for j in 0..self.size {
                box_filter(&mut self.values, j * self.size, 1, radius, &mut line);
            }
            for i in 0..self.size {
                box_filter(&mut self.values, i, self.size, radius, &mut line);
            }
        }
    }
}

/// Box-filters one row or column in place; the edge values continue beyond the edge.
fn box_filter(values: &mut [f32], start: usize, stride: usize, radius: f32, line: &mut [f32]) {
    let n = line.len();
    for (i, value) in line.iter_mut().enumerate() {
        *value = values[start + i * stride];
    }
    let whole = radius as usize;
    let part = radius - whole as f32;
    let norm = 1.0 / (2.0 * radius + 1.0);
    let at = |i: isize| line[i.clamp(0, n as isize - 1) as usize];
    let reach = whole as isize;
    let mut sum: f32 = (-reach..=reach).map(at).sum();
    for i in 0..n as isize {
        let edges = at(i - reach - 1) + at(i + reach + 1);
        values[start + i as usize * stride] = (sum + part * edges) * norm;
        sum += at(i + reach + 1) - at(i - reach);
    }
}
