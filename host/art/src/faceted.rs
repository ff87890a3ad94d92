//! Styles of planes: analytical cubism, cubism, synthetic cubism.

use super::canvas::{Canvas, Rgb, hex, lift, mix, scale};
use super::outline::{Outline, Point};
use super::rng::{Rng, cos, sin, smoothstep};
use super::scene::{Layer, Scene};
use super::tools::{Palette, contours, lay_in, lay_in_layer, vignette};

/// A broken mirror: the plane cut into cells around seeds, each with a shift, a tone and a slope of its own.
struct Facets {
    seeds: Vec<Facet>,
    axis: Point,
}

#[derive(Clone, Copy)]
struct Facet {
    at: Point,
    shift: Point,
    tone: f32,
    slope: Point,
}

/// The cell of the broken mirror that a point lies in.
struct Cell {
    facet: Facet,
    /// Approximate distance to the nearest edge in unit coordinates.
    edge: f32,
}

impl Facets {
    /// Creates about `side`² cells on a jittered grid, with shifts of up to `shift`.
    fn new(rng: &mut Rng, side: usize, shift: f32, tone: f32) -> Self {
        let mut seeds = Vec::with_capacity(side * side);
        for j in 0..side {
            for i in 0..side {
                let place = |k: usize, rng: &mut Rng| (k as f32 + 0.5 + 0.85 * rng.bell()) / side as f32;
                let angle = rng.unit();
                seeds.push(Facet {
                    at: [place(i, rng), place(j, rng)],
                    shift: [rng.bell() * shift, rng.bell() * shift],
                    tone: rng.bell() * tone,
                    slope: [cos(angle), sin(angle)],
                });
            }
        }
        // Cells are stretched along a slanting axis, as shards are.
        let angle = rng.range(0.1, 0.2) * rng.sign();
        Self { seeds, axis: [cos(angle), sin(angle)] }
    }

    fn at(&self, x: f32, y: f32) -> Cell {
        let [c, s] = self.axis;
        let mut best = [f32::MAX; 2];
        let mut facet = self.seeds[0];
        let mut other = facet;
        for seed in &self.seeds {
            let (dx, dy) = (x - seed.at[0], y - seed.at[1]);
            let (u, v) = ((dx * c + dy * s) * 0.72, (dy * c - dx * s) * 1.3);
            let d = u * u + v * v;
            if d < best[0] {
                best = [d, best[0]];
                other = facet;
                facet = *seed;
            } else if d < best[1] {
                best[1] = d;
                other = *seed;
            }
        }
        let (dx, dy) = (facet.at[0] - other.at[0], facet.at[1] - other.at[1]);
        Cell { facet, edge: (best[1] - best[0]) / (2.0 * (dx * dx + dy * dy).sqrt().max(0.02)) }
    }
}

/// Breaks the canvas into facets: each shows the image a little aside, tilted from light to dark, with dark edges.
fn shatter(canvas: &mut Canvas, facets: &Facets, slope: f32, edge: Rgb, width: f32, strength: f32) {
    let base = canvas.copy();
    canvas.shade(|x, y, _| {
        let Cell { facet, edge: distance } = facets.at(x, y);
        let color = base.sample(x + facet.shift[0], y + facet.shift[1]);
        let along = (x - facet.at[0]) * facet.slope[0] + (y - facet.at[1]) * facet.slope[1];
        let color = lift(color, facet.tone + (slope * along).clamp(-0.16, 0.16));
        mix(color, edge, strength * smoothstep(width, width * 0.35, distance))
    });
}

/// Ochre and slate shards: the subject seen from all sides at once.
pub fn analytical_cubism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0x74654a, 0x544a36, 0xecd8a8, 0xb89860, 0xdcb470, 0x241c12],
            [0x6a6a68, 0x4e4e48, 0xe8dcc0, 0xb4a480, 0xd4b078, 0x202022],
        ],
        0.02,
        rng,
    );
    lay_in(canvas, scene, &palette);
    contours(canvas, scene, 0.016, hex(0x241c12));
    let facets = Facets::new(rng, 4, 0.035, 0.045);
    shatter(canvas, &facets, 0.8, hex(0x1c160e), 0.014, 0.5);
    vignette(canvas, [0.5, 0.5], 0.42, 0.8, hex(0x4c4230), 0.7);
}

/// Bright planes and black lines, hue against hue.
pub fn cubism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0x4c84b8, 0x30886c, 0xfcd89c, 0xe05428, 0xfccc30, 0x1c2848],
            [0x5c9c88, 0x886c9c, 0xfce0b0, 0x3058b0, 0xf06438, 0x241c40],
        ],
        0.035,
        rng,
    );
    canvas.clear(palette.sky());
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    let facets = Facets::new(rng, 4, 0.0, 0.16);
    shatter(canvas, &facets, 0.7, hex(0x14101c), 0.016, 0.95);
    let planes = Facets::new(rng, 4, 0.0, 0.11);
    for shape in scene.shapes.iter().filter(|shape| shape.layer != Layer::Ground) {
        let color = palette.of(shape.role);
        canvas.fill_with(&shape.outline, |x, y, _| {
            let cell = planes.at(x, y);
            let tone = cell.facet.tone;
            [color[0] + tone * 1.6, color[1] + tone, color[2] - tone]
        });
        if shape.layer == Layer::Figure {
            canvas.stroke(&shape.outline, 0.026, hex(0x14101c));
        }
    }
}

/// Papers cut and pasted: newsprint, wood grain, wallpaper; the subject in flat halves, light and dark.
pub fn synthetic_cubism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xd0c098, 0x6c8468, 0xf4e8cc, 0x3c64a0, 0xd08038, 0x241e1c],
            [0xc8bca4, 0x8c7454, 0xf4ead0, 0x4c7858, 0xc84c38, 0x242024],
        ],
        0.03,
        rng,
    );
    canvas.clear(palette.sky());
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    let ink = hex(0x241c18);
    for k in 0..5 {
        let center = [[0.2, 0.22], [0.8, 0.28], [0.22, 0.72], [0.8, 0.76], [0.5, 0.12]][k];
        let (x, y) = (center[0] + 0.08 * rng.bell(), center[1] + 0.08 * rng.bell());
        let (w, h, angle) = (rng.range(0.16, 0.24), rng.range(0.17, 0.26), rng.range(-0.06, 0.06));
        let (c, s) = (cos(angle), sin(angle));
        let corner = |u: f32, v: f32| [x + u * w * c - v * h * s, y + u * w * s + v * h * c];
        let paper = Outline::polygon(&[corner(-1.0, -1.0), corner(1.0, -1.0), corner(1.0, 1.0), corner(-1.0, 1.0)]);
        let plain = [palette.ground(), hex(0xb08850), hex(0x94a498)][rng.below(3)];
        let kind = (k + rng.below(2)) % 3;
        canvas.fill_with(&paper, |px, py, _| {
            let (u, v) = ((px - x) * c + (py - y) * s, (py - y) * c - (px - x) * s);
            match kind {
                0 => {
                    // Columns of print.
                    let line = smoothstep(-0.2, 0.4, sin(v * 10.5));
                    let column = smoothstep(0.02, 0.035, (u + 0.02).abs());
                    mix(hex(0xece2c8), hex(0x9c9488), 0.75 * line * column)
                }
                1 => mix(hex(0xa8743f), hex(0x805428), 0.5 + 0.5 * sin(v * 9.0 + 0.35 * sin(u * 3.0))),
                _ => plain,
            }
        });
        canvas.stroke(&paper, 0.014, hex(0x50443a));
    }
    let split = rng.range(-0.05, 0.05);
    let (focus, lean) = (scene.focus[0], rng.range(-0.3, 0.3));
    for shape in scene.shapes.iter().filter(|shape| shape.layer != Layer::Ground) {
        let color = palette.of(shape.role);
        let (day, night) = (lift(color, 0.06), mix(scale(color, 0.62), hex(0x302840), 0.15));
        canvas.fill_with(&shape.outline, |x, y, _| {
            mix(day, night, smoothstep(-0.008, 0.008, x - focus - split - lean * (y - 0.5)))
        });
        if shape.layer == Layer::Figure {
            canvas.stroke(&shape.outline, 0.024, ink);
        }
    }
}
