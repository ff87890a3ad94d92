//! Styles of light: baroque, rococo, romanticism, symbolism, contemporary realism.

use super::canvas::{Canvas, hex, lift, mix, scale};
use super::outline::Outline;
use super::rng::{Noise, Rng, cos, sin, smoothstep};
use super::scene::{Layer, Scene};
use super::tools::{Light, Palette, arc, cast_shadow, lay_in_layer, model_figure, mottle, silhouette, vignette};

/// Chiaroscuro: one beam from above, warm flesh, red and gold out of near black, a curtain at the side.
pub fn baroque(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0x2e1c10, 0x40280f, 0xf0c690, 0xa02a18, 0xe8b038, 0x3a2012],
            [0x281a12, 0x38240f, 0xecc088, 0x8a4a18, 0xd83a20, 0x361f14],
        ],
        0.03,
        rng,
    );
    let side = rng.sign();
    canvas.clear(palette.sky());
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    let (bx, slope) = (0.5 - side * 0.42, side * rng.range(0.45, 0.6));
    canvas.shade(|x, y, color| {
        let off = (x - bx - slope * y) / (0.2 + 0.3 * y);
        mix(color, hex(0x9a6a34), 0.55 / (1.0 + 3.0 * off * off) * (1.0 - 0.4 * y))
    });
    cast_shadow(canvas, scene, [0.05 * side, 0.03], 0.03, 0.6);
    let light = Light { towards: [-0.85 * side, -0.55], depth: 0.85, warm: hex(0xfff0c8), shade: hex(0x120804) };
    model_figure(canvas, scene, &palette, &light);
    // The curtain hangs on the dark side.
    let edge = |x: f32| if side > 0.0 { x } else { 1.0 - x };
    let swag = Outline::smooth(&[
        [edge(1.12), -0.1],
        [edge(0.62), -0.12],
        [edge(0.72), 0.06],
        [edge(0.84), 0.2],
        [edge(0.9), 0.45],
        [edge(1.0), 0.62],
        [edge(1.14), 0.6],
    ]);
    let fold = rng.range(0.0, 1.0);
    canvas.fill_with(&swag, |x, y, _| {
        let wave = sin((edge(x) * 1.3 - y * 0.55) * 5.0 + fold);
        mix(hex(0x4a0c08), hex(0xa82c1c), 0.5 + 0.5 * wave)
    });
    vignette(canvas, [0.5 - 0.1 * side, 0.42], 0.34, 0.8, hex(0x0c0603), 0.85);
}

/// Pastel and airy: powder blue and rose in an oval of cream with gilt scrolls.
pub fn rococo(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xa8d0ec, 0xc4dca4, 0xfff2e6, 0xec88ac, 0xf4c858, 0x946848],
            [0xb4c4f0, 0xd0e0ac, 0xfff4ea, 0xf09880, 0x6cacdc, 0x8c6048],
        ],
        0.03,
        rng,
    );
    scene.bend(|[x, y]| [0.5 + (x - 0.5) * 0.88, 0.5 + (y - 0.5) * 0.88]);
    canvas.clear(palette.sky());
    let clouds = Noise::new(rng, 4);
    canvas.shade(|x, y, color| mix(color, hex(0xfff4ee), smoothstep(0.0, 0.8, clouds.at(x, y)) * 0.6));
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    canvas.blur(0.012);
    let light = Light { towards: [-0.6, -0.7], depth: 0.5, warm: hex(0xffffff), shade: hex(0xa888a0) };
    model_figure(canvas, scene, &palette, &light);
    canvas.blur(0.003);
    let (cream, gold) = (hex(0xfaf0dc), hex(0xcf9f48));
    let oval = |x: f32, y: f32| {
        let (dx, dy) = ((x - 0.5) / 0.475, (y - 0.5) / 0.485);
        dx * dx + dy * dy
    };
    canvas.shade(|x, y, color| {
        let d = oval(x, y);
        let ring = smoothstep(0.88, 0.92, d) * (1.0 - smoothstep(1.04, 1.08, d));
        mix(mix(color, cream, smoothstep(0.98, 1.02, d)), gold, ring * 0.9)
    });
    for (sx, sy) in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)] {
        let at = |u: f32, v: f32| [if sx > 0.5 { 1.0 - u } else { u }, if sy > 0.5 { 1.0 - v } else { v }];
        let curl = |c: [f32; 2], r: f32, from: f32, to: f32| -> Vec<[f32; 2]> {
            arc(c, r, from, to, 12).into_iter().map(|[u, v]| at(u, v)).collect()
        };
        canvas.sweep(&curl([0.085, 0.085], 0.05, 0.1, 0.85), 0.02, 0.011, gold);
        canvas.disc(at(0.088, 0.088), 0.022, palette.main());
        canvas.sweep(&curl([0.02, 0.2], 0.035, -0.25, 0.2), 0.014, 0.008, gold);
        canvas.sweep(&curl([0.2, 0.02], 0.035, 0.5, 0.05), 0.014, 0.008, gold);
    }
}

/// A burning sky over a storm, everything else against the light.
pub fn romanticism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::new([0x3c3a58, 0x2c2018, 0x6a4438, 0x46262a, 0xffc860, 0x1c1218], 0.03, rng);
    let glow = [rng.range(0.25, 0.75), rng.range(0.42, 0.56)];
    let (storm, swirl) = (Noise::new(rng, 3), Noise::new(rng, 5));
    canvas.shade(|x, y, _| {
        let (dx, dy) = (x - glow[0], (y - glow[1]) * 1.35);
        let d = (dx * dx + dy * dy).sqrt() + 0.07 * swirl.at(x, y);
        let sky = mix(hex(0x3a3c60), hex(0xc05a34), smoothstep(0.72, 0.3, d));
        let sky = mix(sky, hex(0xffb050), smoothstep(0.42, 0.14, d));
        let sky = mix(sky, hex(0xfff0b8), smoothstep(0.2, 0.02, d));
        mix(sky, palette.sky(), smoothstep(0.1, 0.75, storm.at(x, y * 1.0)) * smoothstep(0.1, 0.45, d) * 0.85)
    });
    for shape in scene.shapes.iter().filter(|shape| shape.layer == Layer::Ground) {
        let horizon = scene.horizon;
        canvas.fill_with(&shape.outline, |x, y, _| {
            let near = (x - glow[0]) * (x - glow[0]) * 3.0;
            mix(palette.ground(), hex(0xc07040), 0.6 / (1.0 + near * 4.0) * smoothstep(horizon + 0.3, horizon, y))
        });
    }
    // The rim of light around what stands before the sun.
    let halo = silhouette(canvas, scene, 0.012);
    canvas.shade(|x, y, color| mix(color, hex(0xffd488), 0.75 * smoothstep(0.02, 0.4, halo.at(x, y))));
    let towards = if glow[0] < 0.5 { -1.0 } else { 1.0 };
    let light = Light { towards: [towards * 0.8, -0.3], depth: 0.55, warm: hex(0xf0a058), shade: hex(0x140c14) };
    model_figure(canvas, scene, &palette, &light);
    vignette(canvas, glow, 0.35, 0.95, hex(0x120a14), 0.6);
}

/// Night violet, golden rings out of the focus, stars: a vision.
pub fn symbolism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::new([0x2a1450, 0x182450, 0xe4c8e4, 0x8850bc, 0xf4cc4c, 0x140a2c], 0.035, rng);
    canvas.clear(palette.sky());
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    let (focus, phase, horizon) = (scene.focus, rng.unit(), scene.horizon);
    canvas.shade(|x, y, color| {
        let (dx, dy) = (x - focus[0], y - focus[1]);
        let d = (dx * dx + dy * dy).sqrt();
        let fade = 1.0 / (1.0 + 5.0 * d * d);
        let ring = 0.5 + 0.5 * cos(d * 7.5 + phase);
        let ring = ring * ring * fade * if y > horizon { 0.25 } else { 0.62 };
        mix(mix(color, hex(0x7a3080), 0.5 * fade), hex(0xe8b040), ring)
    });
    for _ in 0..7 {
        let star = [rng.unit(), rng.range(0.03, 0.6)];
        canvas.disc(star, rng.range(0.018, 0.026), hex(0xfff0b0));
    }
    let light = Light { towards: [-0.3, -0.9], depth: 0.6, warm: hex(0xffe8c0), shade: hex(0x140838) };
    model_figure(canvas, scene, &palette, &light);
    canvas.blur(0.005);
    vignette(canvas, [0.5, 0.45], 0.4, 0.85, hex(0x0a0420), 0.6);
}

/// Cool daylight in a room: clean modeling, a window's light on the wall, one clear shadow.
pub fn contemporary_realism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xb4c2cc, 0x8a9298, 0xe2c0a4, 0x40607e, 0xc87848, 0x2c3640],
            [0xbcc4c0, 0x94948c, 0xe0bca0, 0x4e6c62, 0xd09048, 0x2e3230],
        ],
        0.03,
        rng,
    );
    let side = rng.sign();
    canvas.clear(palette.sky());
    canvas.shade(|x, y, color| lift(color, 0.05 - 0.1 * y + side * 0.05 * (0.5 - x)));
    // Two panes of light lie slantwise on the wall.
    let (left, top, slant) = (rng.range(0.06, 0.14), rng.range(0.05, 0.12), rng.range(0.1, 0.16));
    for pane in 0..2 {
        let x = left + 0.2 * pane as f32;
        let at = |x: f32, y: f32| [if side > 0.0 { x } else { 1.0 - x }, y];
        let light = Outline::polygon(&[
            at(x, top),
            at(x + 0.16, top + 0.03),
            at(x + 0.16 + slant, top + 0.5),
            at(x + slant, top + 0.47),
        ]);
        canvas.fill_with(&light, |_, _, under| mix(under, hex(0xfffcf0), 0.62));
    }
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    let horizon = scene.horizon;
    canvas.shade(|_, y, color| if y > horizon { lift(color, 0.08 - 0.3 * (y - horizon)) } else { color });
    cast_shadow(canvas, scene, [0.07 * side, 0.035], 0.014, 0.42);
    let light = Light { towards: [-0.8 * side, -0.5], depth: 0.62, warm: hex(0xffffff), shade: hex(0x1c2634) };
    model_figure(canvas, scene, &palette, &light);
    mottle(canvas, rng, 6, 0.012);
    canvas.shade(|_, _, color| scale(color, 1.02));
}
