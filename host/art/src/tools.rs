//! Tools that the styles share: palettes, laying in a scene, modeling with light, contours, brushwork, grounds and
//! frames.

use super::canvas::{Canvas, Plane, Rgb, lift, mix, scale};
use super::outline::{Outline, Point};
use super::rng::{Noise, Rng, cos, sin};
use super::scene::{Layer, Role, Scene, Shape};

/// The colors of sky, ground, light, main, accent and dark: the sky's, then one for each role.
#[derive(Clone, Copy, Debug)]
pub struct Palette([Rgb; 6]);

impl Palette {
    /// Creates a palette from 0xRRGGBB codes, shifted a little as a whole and a little more for each color.
    pub fn new(codes: [u32; 6], jitter: f32, rng: &mut Rng) -> Self {
        let tilt = [rng.bell() * jitter, rng.bell() * jitter, rng.bell() * jitter];
        let brightness = rng.bell() * jitter;
        Self(codes.map(|code| {
            let own = rng.bell() * jitter;
            let mut color = super::canvas::hex(code);
            for (channel, tilt) in color.iter_mut().zip(tilt) {
                *channel = (*channel + tilt + brightness + own + rng.bell() * jitter * 0.6).clamp(0.0, 1.0);
            }
            color
        }))
    }

    /// Creates one of several palettes.
    pub fn any(choices: &[[u32; 6]], jitter: f32, rng: &mut Rng) -> Self {
        let codes = rng.pick(choices);
        Self::new(codes, jitter, rng)
    }

    /// The color of a role.
    pub fn of(&self, role: Role) -> Rgb {
        self.0[role as usize]
    }

    /// The color of the sky.
    pub fn sky(&self) -> Rgb {
        self.0[0]
    }

    /// The color of the ground.
    pub fn ground(&self) -> Rgb {
        self.0[1]
    }

    /// The color of light things.
    pub fn light(&self) -> Rgb {
        self.0[2]
    }

    /// The main color.
    pub fn main(&self) -> Rgb {
        self.0[3]
    }

    /// The accent.
    pub fn accent(&self) -> Rgb {
        self.0[4]
    }

    /// The dark color.
    pub fn dark(&self) -> Rgb {
        self.0[5]
    }
}

/// Lays the scene in, flat: sky, ground, subject, details.
pub fn lay_in(canvas: &mut Canvas, scene: &Scene, palette: &Palette) {
    canvas.clear(palette.sky());
    for shape in &scene.shapes {
        canvas.fill(&shape.outline, palette.of(shape.role));
    }
}

/// Lays in the shapes of one layer, flat.
pub fn lay_in_layer(canvas: &mut Canvas, scene: &Scene, palette: &Palette, layer: Layer) {
    for shape in scene.shapes.iter().filter(|shape| shape.layer == layer) {
        canvas.fill(&shape.outline, palette.of(shape.role));
    }
}

/// A light: its direction, its strength, and the tints of its light and its shade.
#[derive(Clone, Copy, Debug)]
pub struct Light {
    /// The direction to the light, x to the right and y down, of length about 1.
    pub towards: Point,
    /// Contrast of light and shade.
    pub depth: f32,
    /// Tint of full light.
    pub warm: Rgb,
    /// Tint of full shade.
    pub shade: Rgb,
}

impl Light {
    /// The color of a point that faces the light by `t` (−1 … 1).
    pub fn on(&self, color: Rgb, t: f32) -> Rgb {
        let t = t * self.depth;
        if t > 0.0 { mix(color, self.warm, t * 0.75) } else { mix(color, self.shade, -t) }
    }
}

/// Fills a shape as if it were round, lit from one side.
pub fn model(canvas: &mut Canvas, shape: &Shape, color: Rgb, light: &Light) {
    let [left, top, right, bottom] = shape.outline.bounds();
    let (left, right, top, bottom) = (left.max(-0.1), right.min(1.1), top.max(-0.1), bottom.min(1.1));
    let (cx, cy) = ((left + right) / 2.0, (top + bottom) / 2.0);
    let (inverse_x, inverse_y) = (2.0 / (right - left).max(0.02), 2.0 / (bottom - top).max(0.02));
    canvas.fill_with(&shape.outline, |x, y, _| {
        let (u, v) = ((x - cx) * inverse_x, (y - cy) * inverse_y);
        let facing = (u * light.towards[0] + v * light.towards[1]).clamp(-1.0, 1.0);
        // A little rim of reflected light keeps shadows from turning black.
        light.on(color, facing - 0.25 * (u * u * 0.6 + v * v * 0.4).min(1.0))
    });
}

/// Models every shape of the subject, details flat.
pub fn model_figure(canvas: &mut Canvas, scene: &Scene, palette: &Palette, light: &Light) {
    for shape in &scene.shapes {
        match shape.layer {
            Layer::Ground => {}
            Layer::Figure => model(canvas, shape, palette.of(shape.role), light),
            Layer::Detail => canvas.fill(&shape.outline, palette.of(shape.role)),
        }
    }
}

/// The subject's silhouette, softened.
pub fn silhouette(canvas: &mut Canvas, scene: &Scene, softness: f32) -> Plane {
    let mut plane = canvas.coverage(scene.figure());
    if softness > 0.0 {
        plane.blur(softness);
    }
    plane
}

/// Darkens the canvas where the subject casts a shadow; call it before the subject is painted.
pub fn cast_shadow(canvas: &mut Canvas, scene: &Scene, offset: Point, softness: f32, strength: f32) {
    let plane = silhouette(canvas, scene, softness);
    canvas.shade(|x, y, color| scale(color, 1.0 - strength * plane.at(x - offset[0], y - offset[1])));
}

/// Draws the contours of the subject's larger parts, where no later part covers them.
pub fn contours(canvas: &mut Canvas, scene: &Scene, width: f32, color: Rgb) {
    let base = canvas.copy();
    for shape in scene.shapes.iter().filter(|shape| shape.layer == Layer::Figure) {
        canvas.fill_with(&shape.outline, |x, y, _| base.sample(x, y));
        let [left, top, right, bottom] = shape.outline.bounds();
        if (right - left).min(bottom - top) > 0.07 {
            canvas.stroke(&shape.outline, width, color);
        }
    }
    for shape in scene.shapes.iter().filter(|shape| shape.layer == Layer::Detail) {
        canvas.fill_with(&shape.outline, |x, y, _| base.sample(x, y));
    }
}

/// Fills and outlines each shape in turn, as a woodcut or a comic does; small details stay flat.
pub fn inked(canvas: &mut Canvas, scene: &Scene, width: f32, ink: Rgb, mut fill: impl FnMut(&mut Canvas, &Shape)) {
    for shape in &scene.shapes {
        fill(canvas, shape);
        let [left, top, right, bottom] = shape.outline.bounds();
        if shape.layer != Layer::Detail && (right - left).min(bottom - top) > 0.05 {
            canvas.stroke(&shape.outline, width, ink);
        }
    }
}

/// The layout of a field of brush dabs.
#[derive(Clone, Copy, Debug)]
pub struct Brush {
    /// Number of dabs across the canvas's width and height.
    pub grid: [usize; 2],
    /// Length of a dab.
    pub length: f32,
    /// Half the width of a dab.
    pub radius: f32,
    /// Variation of a dab's color.
    pub jitter: f32,
    /// Opacity of a dab.
    pub opacity: f32,
}

/// Covers the canvas with dabs of the colors of `base`, in a jittered grid, laid in shuffled rows.
///
/// `direction(x, y)` is a vector of any length; where `base` changes within a dab's length the dab is shortened, so
/// that edges stay sharp.
pub fn brushwork(
    canvas: &mut Canvas,
    base: &Canvas,
    brush: &Brush,
    rng: &mut Rng,
    direction: impl Fn(f32, f32) -> Point,
) {
    let [columns, rows] = brush.grid;
    // Rows in steps of a number prime to most counts, so that neighbors overlap both ways.
    let stride = if rows % 7 == 0 { 5 } else { 7 };
    for k in 0..rows {
        let row = k * stride % rows;
        for column in 0..columns {
            let x =
                (column as f32 + 0.5 + 0.45 * rng.bell() + if row % 2 == 0 { 0.25 } else { -0.25 }) / columns as f32;
            let y = (row as f32 + 0.5 + 0.45 * rng.bell()) / rows as f32;
            let [dx, dy] = direction(x, y);
            let norm = brush.length * rng.range(0.4, 0.6) / (dx * dx + dy * dy).sqrt().max(1e-4);
            let color = base.pick(x, y);
            let reach = |sign: f32| {
                let far = base.pick(x + sign * dx * norm, y + sign * dy * norm);
                let apart = (far[0] - color[0]).abs() + (far[1] - color[1]).abs() + (far[2] - color[2]).abs();
                if apart > 0.35 { 0.25 * sign * norm } else { sign * norm }
            };
            let (back, forth) = (reach(-1.0), reach(1.0));
            let tone = rng.bell() * brush.jitter;
            let color = [0, 1, 2].map(|channel| color[channel] + tone + rng.bell() * brush.jitter * 0.6);
            canvas.dab(
                [x + dx * back, y + dy * back],
                [x + dx * forth, y + dy * forth],
                brush.radius,
                brush.radius * 0.7,
                color,
                brush.opacity,
            );
        }
    }
}

/// Varies the tone in soft clouds.
pub fn mottle(canvas: &mut Canvas, rng: &mut Rng, cells: usize, amount: f32) {
    let noise = Noise::new(rng, cells);
    canvas.shade(|x, y, color| lift(color, amount * noise.at(x, y)));
}

/// Darkens (or tints) towards the edges: `color` at the corners by `amount`, nothing within `inner` of the center.
pub fn vignette(canvas: &mut Canvas, center: Point, inner: f32, outer: f32, color: Rgb, amount: f32) {
    canvas.shade(|x, y, own| {
        let (dx, dy) = (x - center[0], y - center[1]);
        let t = super::rng::smoothstep(inner * inner, outer * outer, dx * dx + dy * dy);
        mix(own, color, amount * t)
    });
}

/// Draws a plain frame.
pub fn frame(canvas: &mut Canvas, from: f32, to: f32, color: Rgb) {
    for bar in [
        Outline::rect(from, from, 1.0 - from, to),
        Outline::rect(from, 1.0 - to, 1.0 - from, 1.0 - from),
        Outline::rect(from, from, to, 1.0 - from),
        Outline::rect(1.0 - to, from, 1.0 - from, 1.0 - from),
    ] {
        canvas.fill(&bar, color);
    }
}

/// Returns the points of an arc: part of a circle from `from` to `to` (turns).
pub fn arc(center: Point, radius: f32, from: f32, to: f32, steps: usize) -> Vec<Point> {
    (0..=steps)
        .map(|i| {
            let angle = from + (to - from) * i as f32 / steps as f32;
            [center[0] + radius * cos(angle), center[1] + radius * sin(angle)]
        })
        .collect()
}

/// Returns a line that wanders: `steps` pieces of `stride`, its heading (turns) changing by up to `bend` at each.
pub fn wander(rng: &mut Rng, start: Point, heading: f32, steps: usize, stride: f32, bend: f32) -> Vec<Point> {
    let mut points = vec![start];
    let (mut at, mut heading, mut turn) = (start, heading, rng.bell() * bend);
    for _ in 0..steps {
        turn = 0.6 * turn + 0.7 * rng.bell() * bend;
        heading += turn;
        at = [at[0] + stride * cos(heading), at[1] + stride * sin(heading)];
        points.push(at);
    }
    points
}

/// Returns an outline with every edge moved a little, as by a loaded brush.
pub fn wobble(outline: &Outline, rng: &mut Rng, step: f32, amount: f32) -> Outline {
    let points: Vec<Point> =
        outline.points(step).into_iter().map(|[x, y]| [x + rng.bell() * amount, y + rng.bell() * amount]).collect();
    Outline::smooth(&points)
}
