//! Styles of the visible brush: realism, impressionism, pointillism, post-impressionism, fauvism, expressionism.

use super::canvas::{Canvas, Rgb, hex, mix};
use super::outline::Point;
use super::rng::{Noise, Rng, cos, sin, smoothstep};
use super::scene::{Layer, Scene};
use super::tools::{
    Brush, Light, Palette, brushwork, contours, lay_in, lay_in_layer, model_figure, mottle, silhouette,
};

/// States the subject once more, thinly, so that the brush does not swallow it.
fn restate(canvas: &mut Canvas, scene: &Scene, base: &Canvas, strength: f32) {
    let keep = silhouette(canvas, scene, 0.0);
    canvas.shade(|x, y, color| mix(color, base.sample(x, y), strength * keep.at(x, y)));
}

/// Earth and overcast light, laid with a broad, dry brush.
pub fn realism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xb0ac98, 0x70603c, 0xd8a878, 0x5c4428, 0xa06030, 0x2c2218],
            [0xa8a89c, 0x646038, 0xd4a67c, 0x48502c, 0x9c5434, 0x302418],
        ],
        0.03,
        rng,
    );
    let clouds = Noise::new(rng, 4);
    canvas.shade(|x, y, _| mix(palette.sky(), hex(0x787468), 0.45 * smoothstep(-0.2, 0.8, clouds.at(x, y))));
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    let light = Light { towards: [-0.6, -0.7], depth: 0.6, warm: hex(0xf4dcb0), shade: hex(0x20180e) };
    model_figure(canvas, scene, &palette, &light);
    let base = canvas.copy();
    let brush = Brush { grid: [11, 15], length: 0.13, radius: 0.036, jitter: 0.045, opacity: 0.75 };
    let turn = rng.range(-0.1, 0.1);
    brushwork(canvas, &base, &brush, rng, |x, y| [cos(turn + 0.1 * y), sin(turn + 0.12 * x)]);
    restate(canvas, scene, &base, 0.6);
    mottle(canvas, rng, 7, 0.025);
}

/// Broken, luminous color in short level touches; violet where others use black.
pub fn impressionism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xb8d4f8, 0x98d094, 0xfff0dc, 0x7468c4, 0xff9078, 0x4c4c94],
            [0xf4c8b4, 0x98c4d4, 0xfffaec, 0x4c88b8, 0xff9848, 0x5c4c94],
        ],
        0.035,
        rng,
    );
    let haze = Noise::new(rng, 3);
    lay_in(canvas, scene, &palette);
    canvas.shade(|x, y, color| mix(color, hex(0xfff4e0), 0.14 + 0.12 * haze.at(x, y)));
    canvas.blur(0.006);
    let base = canvas.copy();
    let brush = Brush { grid: [14, 22], length: 0.085, radius: 0.024, jitter: 0.085, opacity: 0.85 };
    let slope = rng.range(-0.35, 0.35);
    brushwork(canvas, &base, &brush, rng, |_, _| [1.0, slope]);
    restate(canvas, scene, &base, 0.35);
}

/// Pure dots in rows over a light ground.
pub fn pointillism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xa8d0f4, 0xa4d058, 0xffd8a8, 0x3c58c4, 0xff7838, 0x50307c],
            [0xfccc74, 0x68ac68, 0xfff4e4, 0xb83478, 0xf06820, 0x2c4890],
        ],
        0.03,
        rng,
    );
    lay_in(canvas, scene, &palette);
    let base = canvas.copy();
    canvas.shade(|_, _, color| mix(color, hex(0xfff8e8), 0.4));
    let rows = 20;
    let pitch = 1.0 / rows as f32;
    for row in 0..rows {
        for column in 0..=rows {
            let x = (column as f32 + if row % 2 == 0 { 0.5 } else { 0.0 } + 0.14 * rng.bell()) * pitch;
            let y = (row as f32 + 0.5 + 0.14 * rng.bell()) * pitch;
            let color = base.pick(x, y);
            let tone = 0.07 * rng.bell();
            // Every third dot leans to the complement, as Seurat's do.
            let lean: Rgb = if (row + 2 * column) % 3 == 0 { [0.1, -0.02, -0.09] } else { [-0.04, 0.01, 0.05] };
            let color = [0, 1, 2].map(|channel| color[channel] * 0.97 + tone + lean[channel]);
            canvas.disc([x, y], pitch * 0.56, color);
        }
    }
}

/// Thick strokes that turn around suns and heads: ultramarine, chrome yellow, emerald.
pub fn post_impressionism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0x2c5cb8, 0xc8a430, 0xf8d888, 0x2c7850, 0xffdc40, 0x142450],
            [0x3878c0, 0x5c9040, 0xfce0a0, 0xc05820, 0xffe050, 0x182858],
        ],
        0.035,
        rng,
    );
    lay_in(canvas, scene, &palette);
    let centers: [Point; 3] =
        [[rng.range(0.1, 0.35), rng.range(0.08, 0.3)], [rng.range(0.65, 0.9), rng.range(0.1, 0.35)], scene.focus];
    for center in &centers[..2] {
        canvas.shade(|x, y, color| {
            let (dx, dy) = (x - center[0], y - center[1]);
            let near = smoothstep(0.17, 0.03, (dx * dx + dy * dy).sqrt());
            let apart = (color[0] - palette.sky()[0]).abs() + (color[2] - palette.sky()[2]).abs();
            if apart < 0.02 { mix(color, hex(0xe8e8b0), 0.8 * near) } else { color }
        });
    }
    let base = canvas.copy();
    let horizon = scene.horizon;
    let brush = Brush { grid: [14, 22], length: 0.12, radius: 0.022, jitter: 0.1, opacity: 0.95 };
    brushwork(canvas, &base, &brush, rng, |x, y| {
        if y > horizon {
            return [1.0, 0.25 * sin(x * 1.5)];
        }
        let mut flow = [0.05, 0.0];
        for (k, center) in centers.iter().enumerate() {
            let (dx, dy) = (x - center[0], y - center[1]);
            let swirl = if k == 1 { -1.0 } else { 1.0 } / (dx * dx + dy * dy + 0.02);
            flow = [flow[0] - dy * swirl, flow[1] + dx * swirl];
        }
        flow
    });
    restate(canvas, scene, &base, 0.5);
    contours(canvas, scene, 0.016, hex(0x182454));
}

/// Wild color in broad patches: a pink sky, greener greens, outlines of blue, bare canvas between.
pub fn fauvism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xff80a8, 0x18b068, 0xffb428, 0x2858e0, 0xf02820, 0x58209c],
            [0xffa030, 0xf04c88, 0xf8e838, 0x10a078, 0x2850e8, 0x881c60],
        ],
        0.04,
        rng,
    );
    lay_in(canvas, scene, &palette);
    let patches = Noise::new(rng, 5);
    let other = mix(palette.sky(), hex(0xffe468), 0.6);
    let sky = palette.sky();
    canvas.shade(|x, y, color| {
        let apart = (color[0] - sky[0]).abs() + (color[1] - sky[1]).abs() + (color[2] - sky[2]).abs();
        if apart < 0.02 && patches.at(x, y) > 0.25 { other } else { color }
    });
    let base = canvas.copy();
    canvas.shade(|_, _, color| mix(color, hex(0xfff0dc), 0.25));
    let turn = rng.unit();
    let brush = Brush { grid: [10, 15], length: 0.13, radius: 0.037, jitter: 0.09, opacity: 1.0 };
    brushwork(canvas, &base, &brush, rng, |x, y| {
        let angle = turn + if y > 0.6 { 0.2 } else { 0.0 } + 0.12 * sin(x);
        [cos(angle), sin(angle)]
    });
    restate(canvas, scene, &base, 0.55);
    contours(canvas, scene, 0.027, hex(0x182c80));
}

/// Everything sways: a sky of burning bands, bent forms, thick black contours.
pub fn expressionism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xe06020, 0x243c78, 0xf4dc60, 0x1c7c60, 0xe81830, 0x18142c],
            [0xd83c28, 0x403080, 0xf8e070, 0x3060c0, 0xf0a010, 0x18142c],
        ],
        0.035,
        rng,
    );
    let (p, q) = (rng.unit(), rng.unit());
    let swing = rng.range(0.022, 0.03);
    scene.bend_figure(0.04, |[x, y]| [x + swing * sin(y * 2.2 + p), y + swing * sin(x * 1.9 + q)]);
    let bend = Noise::new(rng, 4);
    let (low, high) = (mix(palette.sky(), hex(0x801830), 0.55), mix(palette.sky(), hex(0xffd850), 0.7));
    canvas.shade(|x, y, _| {
        let wave = sin(y * 5.5 + 0.28 * sin(x * 1.4 + p) + 0.22 * bend.at(x, y));
        if wave > 0.0 {
            mix(palette.sky(), high, smoothstep(0.1, 0.8, wave))
        } else {
            mix(palette.sky(), low, smoothstep(0.1, 0.8, -wave))
        }
    });
    for shape in &scene.shapes {
        let color = palette.of(shape.role);
        match shape.layer {
            Layer::Ground => canvas.fill_with(&shape.outline, |x, y, _| {
                let wave = sin((x * 0.8 + y * 1.2) * 3.6 + 0.3 * bend.at(x, y) + q);
                mix(
                    color,
                    if wave > 0.0 { hex(0x5090b0) } else { hex(0x101838) },
                    0.45 * smoothstep(0.1, 0.8, wave.abs()),
                )
            }),
            Layer::Figure => {
                canvas.fill_with(&shape.outline, |x, y, _| {
                    let wave = sin((x - y) * 3.4 + p);
                    mix(color, hex(0xfff0a0), 0.22 * smoothstep(0.0, 0.8, wave))
                });
                canvas.stroke(&shape.outline, 0.036, hex(0x0c0a14));
            }
            Layer::Detail => canvas.fill(&shape.outline, color),
        }
    }
}
