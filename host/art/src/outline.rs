//! Outlines in unit coordinates (0..1, y down), of which scenes consist and which styles bend.

use tiny_skia::{Path, PathBuilder};

use super::rng::{cos, sin};

/// A point of the unit square.
pub type Point = [f32; 2];

#[derive(Clone, Copy, Debug)]
enum Segment {
    Line(Point),
    Cubic(Point, Point, Point),
}

/// A closed outline of lines and cubic curves.
#[derive(Clone, Debug)]
pub struct Outline {
    start: Point,
    segments: Vec<Segment>,
}

/// The circle constant: with control points at this share of the radius a cubic curve is a quarter circle.
const KAPPA: f32 = 0.552_284_8;

impl Outline {
    /// A polygon.
    pub fn polygon(points: &[Point]) -> Self {
        Self { start: points[0], segments: points[1..].iter().map(|&point| Segment::Line(point)).collect() }
    }

    /// An axis-parallel rectangle.
    pub fn rect(x0: f32, y0: f32, x1: f32, y1: f32) -> Self {
        Self::polygon(&[[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    }

    /// An ellipse.
    pub fn ellipse(x: f32, y: f32, rx: f32, ry: f32) -> Self {
        let (kx, ky) = (rx * KAPPA, ry * KAPPA);
        Self {
            start: [x + rx, y],
            segments: vec![
                Segment::Cubic([x + rx, y + ky], [x + kx, y + ry], [x, y + ry]),
                Segment::Cubic([x - kx, y + ry], [x - rx, y + ky], [x - rx, y]),
                Segment::Cubic([x - rx, y - ky], [x - kx, y - ry], [x, y - ry]),
                Segment::Cubic([x + kx, y - ry], [x + rx, y - ky], [x + rx, y]),
            ],
        }
    }

    /// The upper half of an ellipse; the lower one if `ry` is negative.
    pub fn dome(x: f32, y: f32, rx: f32, ry: f32) -> Self {
        let (kx, ky) = (rx * KAPPA, ry * KAPPA);
        Self {
            start: [x - rx, y],
            segments: vec![
                Segment::Cubic([x - rx, y - ky], [x - kx, y - ry], [x, y - ry]),
                Segment::Cubic([x + kx, y - ry], [x + rx, y - ky], [x + rx, y]),
            ],
        }
    }

    /// A closed smooth curve through the points (Catmull–Rom).
    pub fn smooth(points: &[Point]) -> Self {
        let n = points.len();
        let at = |i: usize| points[i % n];
        let segments = (0..n)
            .map(|i| {
                let (a, b, c, d) = (at(i + n - 1), at(i), at(i + 1), at(i + 2));
                let first = [b[0] + (c[0] - a[0]) / 6.0, b[1] + (c[1] - a[1]) / 6.0];
                let second = [c[0] - (d[0] - b[0]) / 6.0, c[1] - (d[1] - b[1]) / 6.0];
                Segment::Cubic(first, second, c)
            })
            .collect();
        Self { start: points[0], segments }
    }

    /// A band along a polyline, `from` wide at its start and `to` at its end (half widths).
    pub fn ribbon(points: &[Point], from: f32, to: f32) -> Self {
        let n = points.len();
        let mut left = Vec::with_capacity(2 * n);
        let mut right = Vec::with_capacity(n);
        for (i, &[x, y]) in points.iter().enumerate() {
            let (before, after) = (points[i.saturating_sub(1)], points[(i + 1).min(n - 1)]);
            let (dx, dy) = (after[0] - before[0], after[1] - before[1]);
            let length = (dx * dx + dy * dy).sqrt().max(1e-6);
            let width = from + (to - from) * i as f32 / (n - 1) as f32;
            let (nx, ny) = (-dy / length * width, dx / length * width);
            left.push([x + nx, y + ny]);
            right.push([x - nx, y - ny]);
        }
        left.extend(right.into_iter().rev());
        Self::polygon(&left)
    }

    /// A regular polygon, turned by `turns`.
    pub fn regular(x: f32, y: f32, radius: f32, corners: usize, turns: f32) -> Self {
        let points: Vec<Point> = (0..corners)
            .map(|corner| {
                let angle = turns + corner as f32 / corners as f32;
                [x + radius * cos(angle), y + radius * sin(angle)]
            })
            .collect();
        Self::polygon(&points)
    }

    /// The same outline with every control point moved.
    pub fn map(&self, f: impl Fn(Point) -> Point) -> Self {
        let segments = self
            .segments
            .iter()
            .map(|segment| match *segment {
                Segment::Line(a) => Segment::Line(f(a)),
                Segment::Cubic(a, b, c) => Segment::Cubic(f(a), f(b), f(c)),
            })
            .collect();
        Self { start: f(self.start), segments }
    }

    /// The outline as points at most about `step` apart, for bending and for brush strokes along it.
    pub fn points(&self, step: f32) -> Vec<Point> {
        let mut points = vec![self.start];
        let mut from = self.start;
        let line = |from: Point, to: Point, points: &mut Vec<Point>| {
            let n = (distance(from, to) / step).ceil().max(1.0);
            for i in 1..=n as usize {
                let t = i as f32 / n;
                points.push([from[0] + (to[0] - from[0]) * t, from[1] + (to[1] - from[1]) * t]);
            }
        };
        for segment in &self.segments {
            match *segment {
                Segment::Line(to) => {
                    line(from, to, &mut points);
                    from = to;
                }
                Segment::Cubic(a, b, c) => {
                    let length = distance(from, a) + distance(a, b) + distance(b, c);
                    let n = (length / step).ceil().max(2.0);
                    for i in 1..=n as usize {
                        let t = i as f32 / n;
                        let s = 1.0 - t;
                        let weights = [s * s * s, 3.0 * s * s * t, 3.0 * s * t * t, t * t * t];
                        let axis =
                            |k: usize| from[k] * weights[0] + a[k] * weights[1] + b[k] * weights[2] + c[k] * weights[3];
                        points.push([axis(0), axis(1)]);
                    }
                    from = c;
                }
            }
        }
        line(from, self.start, &mut points);
        points.pop();
        points
    }

    /// Left, top, right and bottom of the control points.
    pub fn bounds(&self) -> [f32; 4] {
        let mut bounds = [self.start[0], self.start[1], self.start[0], self.start[1]];
        let mut add = |point: Point| {
            bounds =
                [bounds[0].min(point[0]), bounds[1].min(point[1]), bounds[2].max(point[0]), bounds[3].max(point[1])];
        };
        for segment in &self.segments {
            match *segment {
                Segment::Line(a) => add(a),
                Segment::Cubic(a, b, c) => [a, b, c].into_iter().for_each(&mut add),
            }
        }
        bounds
    }

    /// The path in pixels of a canvas of this size, each coordinate rounded to 1/256 px. None if it is empty.
    pub fn path(&self, size: usize) -> Option<Path> {
        let scale = size as f32 * 256.0;
        let pixel = |v: f32| (v * scale).round() / 256.0;
        let mut path = PathBuilder::with_capacity(self.segments.len() + 2, 3 * self.segments.len() + 2);
        path.move_to(pixel(self.start[0]), pixel(self.start[1]));
        for segment in &self.segments {
            match *segment {
                Segment::Line([x, y]) => path.line_to(pixel(x), pixel(y)),
                Segment::Cubic(a, b, c) => {
                    path.cubic_to(pixel(a[0]), pixel(a[1]), pixel(b[0]), pixel(b[1]), pixel(c[0]), pixel(c[1]))
                }
            }
        }
        path.close();
        path.finish()
    }
}

/// The distance of two points.
pub fn distance(a: Point, b: Point) -> f32 {
    let (dx, dy) = (a[0] - b[0], a[1] - b[1]);
    (dx * dx + dy * dy).sqrt()
}
