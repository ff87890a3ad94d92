//! Styles of the Renaissance: early, northern, high, and mannerism.

use super::canvas::{Canvas, Rgb, hex, lift, mix, scale};
use super::outline::Outline;
use super::rng::{Noise, Rng, cos, sin, smoothstep};
use super::scene::{Layer, Scene};
use super::tools::{Light, Palette, frame, lay_in_layer, model, model_figure, silhouette, vignette};

/// Tempera on gold: a tooled gold ground, a halo, lapis and vermilion, under an arched frame.
pub fn early_renaissance(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xe0b030, 0x8a6c38, 0xf6d4a8, 0x2448a8, 0xc82c20, 0x4a2a18],
            [0xdcaa2c, 0x7c7440, 0xf4d0a4, 0xb82c28, 0x2850b0, 0x4c2c1c],
        ],
        0.025,
        rng,
    );
    let gold = palette.sky();
    // A diaper of lozenges is pressed into the gold.
    canvas.shade(|x, y, _| {
        let lozenge = sin((x + y) * 5.5) * sin((x - y) * 5.5);
        let sheen = 0.1 * (1.0 - (x - 0.35) * (x - 0.35) * 4.0 - y * 0.6);
        lift(scale(gold, 1.0 + 0.1 * smoothstep(-0.35, 0.35, lozenge) - 0.05), sheen)
    });
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    let halo = Outline::ellipse(scene.focus[0], scene.focus[1] - 0.01, 0.27, 0.27);
    canvas.fill(&halo, hex(0xfae89c));
    canvas.stroke(&halo, 0.03, hex(0xa86a14));
    let light = Light { towards: [-0.7, -0.6], depth: 0.4, warm: hex(0xfff4dc), shade: hex(0x2c1c28) };
    for shape in &scene.shapes {
        if shape.layer == Layer::Figure {
            model(canvas, shape, palette.of(shape.role), &light);
            canvas.stroke(&shape.outline, 0.012, hex(0x4a2c14));
        } else if shape.layer == Layer::Detail {
            canvas.fill(&shape.outline, palette.of(shape.role));
        }
    }
    let (wood, gilt) = (hex(0x6a3a18), hex(0xf0cc60));
    let arch = |x: f32, y: f32, inset: f32| {
        let radius = 0.5 - inset;
        if y < 0.47 {
            let (dx, dy) = (x - 0.5, (y - 0.47) * 1.04);
            radius - (dx * dx + dy * dy).sqrt()
        } else {
            (radius - (x - 0.5).abs()).min(1.0 - inset - y)
        }
    };
    canvas.shade(|x, y, color| {
        let inner = smoothstep(0.008, -0.008, arch(x, y, 0.065));
        let outer = smoothstep(0.008, -0.008, arch(x, y, 0.03));
        mix(mix(color, gilt, inner), wood, outer)
    });
}

/// Oil on panel: crisp light on deep green, red cloth, a window on far hills, a dark frame with a gilt slip.
pub fn northern_renaissance(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0x1c3c2c, 0x3a3420, 0xf4dcc4, 0xb01c1c, 0xf0c040, 0x4a3428],
            [0x20382e, 0x40361f, 0xf2d8c0, 0x96281c, 0xe8e0d0, 0x54382a],
        ],
        0.025,
        rng,
    );
    scene.bend(|[x, y]| [0.5 + (x - 0.5) * 0.86, 0.52 + (y - 0.52) * 0.86]);
    let side = rng.sign();
    canvas.clear(palette.sky());
    canvas.shade(|x, y, color| lift(color, 0.07 * (1.0 - y) * (1.0 - side * (x - 0.5))));
    // The window, with sky, hills and a lead cross.
    let at = |x: f32| if side > 0.0 { x } else { 1.0 - x };
    let (x0, x1) = (at(0.66).min(at(0.9)), at(0.66).max(at(0.9)));
    canvas.fill(&Outline::rect(x0 - 0.02, 0.1, x1 + 0.02, 0.42), hex(0x6a5a40));
    canvas.fill_with(&Outline::rect(x0, 0.12, x1, 0.4), |x, y, _| {
        let hill = 0.29 + 0.02 * sin(x * 4.0);
        if y > hill {
            mix(hex(0x5c8a70), hex(0x6f9cae), smoothstep(0.4, 0.29, y))
        } else {
            mix(hex(0x7ab0d8), hex(0xe8f0e8), y * 3.2)
        }
    });
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    let light = Light { towards: [-0.8 * side, -0.55], depth: 0.62, warm: hex(0xfffaf0), shade: hex(0x181010) };
    for shape in &scene.shapes {
        match shape.layer {
            Layer::Ground => {}
            Layer::Figure => {
                canvas.stroke(&shape.outline, 0.012, hex(0x1c1410));
                model(canvas, shape, palette.of(shape.role), &light);
            }
            Layer::Detail => canvas.fill(&shape.outline, palette.of(shape.role)),
        }
    }
    frame(canvas, 0.0, 0.075, hex(0x3a2010));
    frame(canvas, 0.05, 0.08, hex(0xd8a83c));
    frame(canvas, 0.0, 0.022, hex(0x6a4424));
}

/// Sfumato: smoky edges, olive and umber, a blue-green distance behind.
pub fn high_renaissance(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::new([0xa2aa80, 0x5c5428, 0xecc088, 0x643018, 0xb87830, 0x2c1c0e], 0.025, rng);
    let (hills, far) = (Noise::new(rng, 4), Noise::new(rng, 6));
    let line = scene.horizon.min(0.66) - 0.08;
    canvas.shade(|x, y, _| {
        let sky = mix(hex(0x7f9c92), hex(0xd8cc98), smoothstep(0.0, line, y));
        let ridge = line - 0.1 + 0.09 * far.at(x, 0.2);
        let near = line + 0.02 + 0.07 * hills.at(x, 0.7);
        let land = mix(sky, hex(0x6f9490), smoothstep(ridge - 0.015, ridge + 0.02, y) * 0.75);
        mix(
            land,
            mix(palette.ground(), hex(0x7a7840), smoothstep(1.0, near, y)),
            smoothstep(near - 0.015, near + 0.03, y),
        )
    });
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    // A dusk behind the subject makes it stand out.
    let dusk = silhouette(canvas, scene, 0.06);
    canvas.shade(|x, y, color| scale(color, 1.0 - 0.25 * dusk.at(x, y)));
    let light = Light { towards: [-0.6, -0.75], depth: 0.75, warm: hex(0xfff0c8), shade: hex(0x22140a) };
    model_figure(canvas, scene, &palette, &light);
    canvas.blur(0.009);
    vignette(canvas, [0.48, 0.4], 0.32, 0.82, hex(0x1c1408), 0.72);
}

/// Elongated and serpentine in acid colors: pink, chartreuse and turquoise shot with light before slate.
pub fn mannerism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0x343a4c, 0x4c5264, 0xf8c4c8, 0x86d43c, 0x38c8d0, 0x702058],
            [0x3a3648, 0x545066, 0xf4d0b0, 0xf088b0, 0x98dc40, 0x1c5c74],
        ],
        0.035,
        rng,
    );
    let (sway, phase) = (rng.range(0.045, 0.065) * rng.sign(), rng.range(-0.08, 0.08));
    scene.bend_figure(0.06, |[x, y]| [0.5 + (x - 0.5) * 0.7 + sway * sin(y * 1.15 + phase), 0.56 + (y - 0.56) * 1.14]);
    let storm = Noise::new(rng, 4);
    canvas.shade(|x, y, _| lift(palette.sky(), 0.14 * storm.at(x, y) + 0.06 * (1.0 - y)));
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    // Folds of a hanging cloth on either side.
    for side in [0.0f32, 1.0] {
        let edge = move |x: f32| if side > 0.5 { 1.0 - x } else { x };
        let cloth = Outline::smooth(&[
            [edge(-0.1), -0.1],
            [edge(0.16), -0.1],
            [edge(0.1), 0.3],
            [edge(0.15), 0.65],
            [edge(0.09), 1.1],
            [edge(-0.1), 1.1],
        ]);
        canvas.fill_with(&cloth, |x, y, _| {
            mix(hex(0x3c1448), hex(0xc04890), 0.5 + 0.5 * cos(edge(x) * 9.0 + 0.2 * sin(y * 1.5)))
        });
    }
    // Shot silk: shade turns to another hue, not to black.
    let shade: Rgb = mix(palette.dark(), hex(0x2838a0), 0.5);
    let light = Light { towards: [-0.75, -0.5], depth: 0.8, warm: hex(0xffffe8), shade };
    model_figure(canvas, scene, &palette, &light);
}
