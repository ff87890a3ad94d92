//! Styles of line and flat color: art nouveau, naive art, pop art, ukiyo-e.

use super::canvas::{Canvas, hex, mix, scale};
use super::outline::Outline;
use super::rng::{Rng, cos, sin, smoothstep};
use super::scene::{Layer, Role, Scene};
use super::tools::{Palette, frame, inked};

/// A poster: an ornamented ring behind the subject, strong brown contours, muted flats, a border of leaves.
pub fn art_nouveau(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xe8d8a0, 0x98a068, 0xfae4c0, 0x587c50, 0xd08830, 0x6a3c20],
            [0xe4d4b0, 0xb09868, 0xf8e0c4, 0x4c7c80, 0xc86848, 0x5c3828],
        ],
        0.025,
        rng,
    );
    scene.bend(|[x, y]| [0.5 + (x - 0.5) * 0.86, 0.5 + (y - 0.5) * 0.9]);
    canvas.clear(palette.sky());
    let ink = hex(0x40240f);
    let (cx, cy) = (0.5, scene.focus[1].clamp(0.36, 0.5));
    let ring = Outline::ellipse(cx, cy, 0.38, 0.38);
    canvas.fill(&ring, mix(palette.accent(), palette.sky(), 0.3));
    canvas.stroke(&ring, 0.07, palette.main());
    canvas.stroke(&Outline::ellipse(cx, cy, 0.3, 0.3), 0.015, ink);
    let turn = rng.unit();
    for k in 0..14 {
        let angle = turn + k as f32 / 14.0;
        canvas.disc([cx + 0.38 * cos(angle), cy + 0.38 * sin(angle)], 0.026, palette.light());
    }
    inked(canvas, scene, 0.026, ink, |canvas, shape| canvas.fill(&shape.outline, palette.of(shape.role)));
    frame(canvas, 0.0, 0.075, palette.main());
    for k in 0..8 {
        let t = (k as f32 + 0.5) / 8.0;
        for (x, y, dx, dy) in [(t, 0.037, 1.0, 0.5), (t, 0.963, 1.0, -0.5), (0.037, t, 0.5, 1.0), (0.963, t, -0.5, 1.0)]
        {
            canvas.dab(
                [x - 0.028 * dx, y - 0.028 * dy],
                [x + 0.028 * dx, y + 0.028 * dy],
                0.022,
                0.008,
                palette.accent(),
                1.0,
            );
        }
    }
    frame(canvas, 0.07, 0.085, ink);
}

/// A bright world seen with a child's eye: puffed clouds, a flowered meadow, dotted cloth, white seams.
pub fn naive_art(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0x78c8f4, 0x58b838, 0xfcd0a0, 0xe84030, 0xfce040, 0x4c3018],
            [0x80d0f0, 0x70c040, 0xfcd4a8, 0x3858c8, 0xff7048, 0x503018],
        ],
        0.03,
        rng,
    );
    canvas.clear(palette.sky());
    for k in 0..3 {
        let (x, y) = (0.18 + 0.32 * k as f32 + 0.1 * rng.bell(), rng.range(0.06, 0.26));
        for (dx, r) in [(-0.075, 0.042), (0.0, 0.06), (0.075, 0.045)] {
            canvas.disc([x + dx, y], r, hex(0xffffff));
        }
    }
    let seam = hex(0xfffcf2);
    let spots: Vec<[f32; 2]> = (0..30)
        .map(|k| [((k % 6) as f32 + 0.5 * ((k / 6) % 2) as f32 + 0.3) / 6.0, (k / 6) as f32 / 5.0 + 0.1])
        .collect();
    inked(canvas, scene, 0.022, seam, |canvas, shape| {
        let color = palette.of(shape.role);
        canvas.fill(&shape.outline, color);
        match (shape.layer, shape.role) {
            (Layer::Ground, _) => {
                let [_, top, ..] = shape.outline.bounds();
                for (k, [x, y]) in spots.iter().enumerate() {
                    let petal = [hex(0xff5888), hex(0xfff070), hex(0xffffff)][k % 3];
                    let y = top.max(0.0) + 0.05 + (1.0 - top) * y;
                    canvas.disc([*x, y], 0.024, petal);
                }
            }
            (Layer::Figure, Role::Main) => {
                let dots = mix(color, hex(0xffffff), 0.75);
                canvas.fill_with(&shape.outline, |x, y, under| {
                    let row = (y * 7.5).floor();
                    let (u, v) = (x * 7.5 + 0.5 * (row - 2.0 * (row / 2.0).floor()), y * 7.5);
                    let (du, dv) = (u - u.floor() - 0.5, v - v.floor() - 0.5);
                    mix(under, dots, smoothstep(0.1, 0.04, du * du + dv * dv))
                });
            }
            _ => {}
        }
    });
}

/// A comic panel: primaries, black ink, Ben-Day dots in the background, a burst.
pub fn pop_art(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xffe010, 0x00a8e8, 0xffd0b0, 0xe81858, 0xffffff, 0x101014],
            [0xff48a0, 0xffe010, 0xfff4c0, 0x1090f0, 0x50d870, 0x101014],
            [0x18b8f0, 0xff3898, 0xffec90, 0xff7818, 0xffffff, 0x101014],
        ],
        0.02,
        rng,
    );
    let (sky, focus, turn) = (palette.sky(), scene.focus, rng.unit());
    let dot = mix(sky, hex(0xffffff), 0.6);
    let burst = rng.chance(0.4);
    canvas.shade(|x, y, _| {
        let (u, v) = (x * 8.0, y * 8.0);
        let (u, v) = (u + v, u - v);
        let (du, dv) = (u * 0.5 - (u * 0.5).floor() - 0.5, v * 0.5 - (v * 0.5).floor() - 0.5);
        let dots = mix(sky, dot, smoothstep(0.085, 0.045, du * du + dv * dv));
        if burst {
            // Rays: the sign of a sine of the angle, computed by double-angle polynomials, without an arctangent.
            let (dx, dy) = (x - focus[0], y - focus[1]);
            let n = (dx * dx + dy * dy).sqrt().max(1e-4);
            let (c, s) = (dx / n * cos(turn) - dy / n * sin(turn), dx / n * sin(turn) + dy / n * cos(turn));
            let (c2, s2) = (c * c - s * s, 2.0 * c * s);
            let s6 = s2 * (3.0 - 4.0 * s2 * s2);
            let s12 = 2.0 * s6 * c2 * (4.0 * c2 * c2 - 3.0);
            mix(sky, dot, smoothstep(-0.25, 0.25, s12))
        } else {
            dots
        }
    });
    let halftone = mix(palette.light(), palette.main(), 0.75);
    inked(canvas, scene, 0.028, hex(0x18181e), |canvas, shape| {
        canvas.fill(&shape.outline, palette.of(shape.role));
        if shape.layer == Layer::Figure && shape.role == Role::Light {
            // Dots only where the shade would be.
            let [left, _, right, _] = shape.outline.bounds();
            if right - left > 0.2 {
                canvas.fill_with(&shape.outline, |x, y, under| {
                    let (u, v) = (x * 10.0, y * 10.0);
                    let (du, dv) = (u - u.floor() - 0.5, v - v.floor() - 0.5);
                    let shade = smoothstep(0.5, 0.85, (x - left) / (right - left));
                    mix(under, halftone, smoothstep(0.02, -0.02, (du * du + dv * dv) - 0.1 * shade))
                });
            }
        }
    });
    frame(canvas, 0.0, 0.034, hex(0x18181e));
}

/// A woodblock print: paper, a Prussian-blue gradation above, waves below, fine dark lines, a red seal.
pub fn ukiyo_e(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xf0e4c4, 0x34649c, 0xfaeccc, 0x5c7c94, 0xd04830, 0x1c2838],
            [0xf0e2c8, 0x2c6890, 0xf8e8cc, 0x7c8c60, 0xd85c38, 0x20283c],
        ],
        0.025,
        rng,
    );
    let (paper, water) = (palette.sky(), palette.ground());
    let ink = hex(0x182030);
    canvas.clear(paper);
    let band = rng.range(0.3, 0.4);
    canvas.shade(|_, y, color| {
        let color = mix(color, hex(0x24508c), smoothstep(band, 0.0, y));
        mix(color, hex(0xe8b088), 0.4 * smoothstep(0.2, 0.0, (y - 0.58).abs()))
    });
    inked(canvas, scene, 0.02, ink, |canvas, shape| match shape.layer {
        Layer::Ground => canvas.fill_with(&shape.outline, |x, y, _| {
            // Seigaiha: fans of two rings, each row half a fan aside.
            let row = (y / 0.08).floor();
            let x = x / 0.2 + 0.5 * (row - 2.0 * (row / 2.0).floor());
            let (dx, dy) = ((x - x.floor() - 0.5) * 0.2, (row + 1.0) * 0.08 - y);
            let d = (dx * dx + dy * dy).sqrt();
            let ring = smoothstep(0.024, 0.008, (d - 0.08).abs()).max(smoothstep(0.04, 0.024, d));
            mix(water, hex(0xdce6e0), 0.6 * ring)
        }),
        _ => {
            let color = palette.of(shape.role);
            let [_, top, _, bottom] = shape.outline.bounds();
            canvas
                .fill_with(&shape.outline, |_, y, _| scale(color, 1.06 - 0.16 * smoothstep(top, bottom.min(1.05), y)));
        }
    });
    let x = if rng.chance(0.5) { 0.85 } else { 0.04 };
    canvas.fill(&Outline::rect(x, 0.05, x + 0.11, 0.25), hex(0xc8281c));
    canvas.dab([x + 0.055, 0.09], [x + 0.055, 0.2], 0.014, 0.014, hex(0xf4dcc8), 1.0);
    canvas.dab([x + 0.033, 0.13], [x + 0.077, 0.13], 0.012, 0.012, hex(0xf4dcc8), 1.0);
}
