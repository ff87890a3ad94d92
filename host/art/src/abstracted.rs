//! Styles at the edge of abstraction: abstract expressionism, action painting, color field, minimalism, new realism.
//!
//! In all of them the subject's silhouette stays: it is carried by a mass of color, not by drawing.

use super::canvas::{Canvas, Rgb, hex, lift, mix};
use super::outline::{Outline, Point};
use super::rng::{Noise, Rng, smoothstep};
use super::scene::{Layer, Role, Scene};
use super::tools::{Palette, lay_in_layer, mottle, silhouette, wander, wobble};

/// Slabs of house paint: raw ochre and rose behind, the subject in gestures of black, red and white.
pub fn abstract_expressionism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xe4d4b0, 0xc8a468, 0xf8f0dc, 0xb82818, 0xe8a820, 0x141214],
            [0xe0d0bc, 0xd89c90, 0xf8f0e0, 0x2c4c80, 0xe85820, 0x161416],
        ],
        0.035,
        rng,
    );
    canvas.clear(palette.sky());
    let tones = [
        palette.ground(),
        hex(0x8c9898),
        mix(palette.sky(), hex(0xffffff), 0.5),
        mix(palette.accent(), palette.sky(), 0.45),
    ];
    for (k, &tone) in tones.iter().cycle().take(7).enumerate() {
        let start = [rng.range(-0.1, 0.5), (k as f32 + 0.5) / 7.0 + 0.06 * rng.bell()];
        let heading = rng.range(-0.08, 0.08);
        let slab = wander(rng, start, heading, 4, 0.15, 0.04);
        let width = rng.range(0.055, 0.1);
        canvas.fill(&Outline::ribbon(&slab, width, width * rng.range(0.6, 1.0)), tone);
    }
    for shape in scene.shapes.iter().filter(|shape| shape.layer == Layer::Figure) {
        let loose = wobble(&shape.outline, rng, 0.12, 0.02);
        canvas.fill(&loose, palette.of(shape.role));
    }
    // Gestures: a loaded brush goes around the large masses, overshooting.
    for shape in scene.shapes.iter().filter(|shape| shape.layer == Layer::Figure) {
        let [left, top, right, bottom] = shape.outline.bounds();
        if (right.min(1.0) - left.max(0.0)).min(bottom.min(1.0) - top.max(0.0)) < 0.12 {
            continue;
        }
        let points = shape.outline.points(0.07);
        let n = points.len();
        let (from, part) = (rng.below(n), n * 2 / 3);
        let stroke: Vec<Point> = (0..=part)
            .map(|k| {
                let [x, y] = points[(from + k) % n];
                [x + 0.014 * rng.bell(), y + 0.014 * rng.bell()]
            })
            .collect();
        canvas.sweep(&stroke, 0.032, 0.012, palette.dark());
    }
    dark_details(canvas, scene, &palette, rng);
    for _ in 0..3 {
        let (start, heading) = ([rng.range(0.0, 1.0), rng.range(0.0, 1.0)], rng.unit());
        let color = rng.pick(&[palette.dark(), palette.accent(), palette.main()]);
        let stroke = wander(rng, start, heading, 3, 0.1, 0.1);
        canvas.sweep(&stroke, rng.range(0.025, 0.035), 0.012, color);
    }
}

/// Eyes and windows, as quick touches.
fn dark_details(canvas: &mut Canvas, scene: &Scene, palette: &Palette, rng: &mut Rng) {
    for shape in scene.shapes.iter().filter(|shape| shape.layer == Layer::Detail && shape.role == Role::Dark) {
        let touch = wobble(&shape.outline, rng, 0.06, 0.008);
        canvas.fill(&touch, palette.dark());
    }
}

/// Skeins of enamel: the subject poured in solid black and color, drips and splashes across everything.
pub fn action_painting(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let palette = Palette::any(
        &[
            [0xece4d0, 0xdcd0b4, 0xa88450, 0x34383c, 0xd03820, 0x101014],
            [0xe8e4dc, 0xd4d0c8, 0x8094a8, 0x283c68, 0xe8a018, 0x101014],
        ],
        0.03,
        rng,
    );
    canvas.clear(palette.sky());
    lay_in_layer(canvas, scene, &palette, Layer::Ground);
    mottle(canvas, rng, 6, 0.04);
    let enamels = [palette.accent(), hex(0x8c9090), palette.main(), hex(0xe8b838)];
    let pour = |canvas: &mut Canvas, rng: &mut Rng, color: Rgb, radius: f32| {
        let (start, heading) = ([rng.unit(), rng.unit()], rng.unit());
        let skein = wander(rng, start, heading, 13, 0.065, 0.13);
        canvas.sweep(&skein, radius, radius * 0.8, color);
        for k in 0..3 {
            let [x, y] = skein[3 + 4 * k];
            canvas.disc([x + 0.07 * rng.bell(), y + 0.07 * rng.bell()], rng.range(0.016, 0.032), color);
        }
    };
    for k in 0..6 {
        pour(canvas, rng, enamels[k % 4], 0.019);
    }
    for shape in scene.shapes.iter().filter(|shape| shape.layer == Layer::Figure) {
        let poured = wobble(&shape.outline, rng, 0.08, 0.022);
        canvas.fill(&poured, palette.of(shape.role));
        // Splashes fly off the edge.
        let points = shape.outline.points(0.1);
        for _ in 0..2 {
            let [x, y] = points[rng.below(points.len())];
            canvas.disc([x + 0.06 * rng.bell(), y + 0.06 * rng.bell()], rng.range(0.016, 0.03), palette.of(shape.role));
        }
    }
    dark_details(canvas, scene, &palette, rng);
    for k in 0..5 {
        let color = [hex(0xf8f4e8), palette.accent(), hex(0xf8f4e8), palette.dark(), hex(0xe8b838)][k];
        pour(canvas, rng, color, 0.0165);
    }
}

/// Two or three breathing fields of near hues; the subject is a field among them.
pub fn color_field(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    // Border, upper field, lower field, then the subject's two.
    let choices: [[u32; 5]; 6] = [
        [0x7a1420, 0xd83a20, 0xa81c28, 0xffb850, 0x3c0814],
        [0x141c50, 0x2c50b0, 0x1c3080, 0xa8d0f4, 0x0c0c30],
        [0xb86c10, 0xf8c820, 0xe89018, 0x7c1c14, 0xfff0a0],
        [0x341448, 0x7c3c94, 0x50206c, 0xf494b4, 0x180828],
        [0x0c2c24, 0x2c7458, 0x184c40, 0xd8d878, 0x04140c],
        [0xd8c8b0, 0xf0e0c8, 0xe0a890, 0x8c2430, 0x40204c],
    ];
    let [border, upper, lower, first, second] = rng.pick(&choices).map(|code| {
        let tone = 0.035 * rng.bell();
        let color = hex(code);
        [0, 1, 2].map(|channel| color[channel] + tone + 0.03 * rng.bell())
    });
    let split = if scene.horizon < 0.95 { scene.horizon.clamp(0.55, 0.8) } else { rng.range(0.58, 0.72) };
    let breath = Noise::new(rng, 4);
    let field = |x: f32, y: f32, top: f32, bottom: f32| {
        let inside = (x - 0.06).min(0.94 - x).min(y - top).min(bottom - y) + 0.006 * breath.at(x, y);
        smoothstep(-0.02, 0.03, inside)
    };
    canvas.shade(|x, y, _| {
        let color = mix(border, upper, field(x, y, 0.06, split - 0.015));
        let color = mix(color, lower, field(x, y, split + 0.015, 0.94));
        lift(color, 0.025 * breath.at(y, x))
    });
    let under = canvas.copy();
    for shape in scene.shapes.iter().filter(|shape| shape.layer == Layer::Figure) {
        canvas.fill(&shape.outline, if matches!(shape.role, Role::Main | Role::Dark) { second } else { first });
    }
    canvas.blur(0.013);
    let whole = silhouette(canvas, scene, 0.03);
    canvas.shade(|x, y, color| mix(under.sample(x, y), color, smoothstep(0.0, 0.2, whole.at(x, y))));
}

/// One flat silhouette on white, one thin plane under it; inner details are left out or cut out.
pub fn minimalism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let white = [[0.96, 0.955, 0.94], [0.93, 0.93, 0.93], [0.965, 0.95, 0.92]][rng.below(3)];
    let color = rng.pick(&[hex(0x181818), hex(0xc82420), hex(0x1c40a8), hex(0xe8b010), hex(0x2c6c54)]);
    let color = [0, 1, 2].map(|channel| color[channel] + 0.03 * rng.bell());
    scene.bend(|[x, y]| [0.5 + (x - 0.5) * 0.84, 0.5 + (y - 0.5) * 0.84]);
    canvas.clear(white);
    let ground = mix(white, hex(0x9c9c9c), 0.35);
    canvas.fill(&Outline::rect(-0.1, scene.horizon.min(0.9), 1.1, 1.1), ground);
    for shape in &scene.shapes {
        match (shape.layer, shape.role) {
            (Layer::Figure, Role::Light) => canvas.fill(&shape.outline, mix(color, white, 0.55)),
            (Layer::Figure, _) => canvas.fill(&shape.outline, color),
            _ => {}
        }
    }
}

/// Torn posters, layer under layer: strips of weathered paper with white torn edges, a loud print across them that
/// changes its inks from strip to strip.
pub fn new_realism(canvas: &mut Canvas, scene: &mut Scene, rng: &mut Rng) {
    let inks = [
        [0xd8d0c0, 0x9c9484, 0xfaf0dc, 0xe03c50, 0xf8c818, 0x202024],
        [0xc8ccc8, 0x908c80, 0xfcf4e4, 0x1c50c8, 0xf07020, 0x202024],
        [0xd4c8a8, 0xa09078, 0xf8f0e0, 0x108878, 0xe83858, 0x241c28],
    ];
    let first = rng.below(3);
    let prints = [first, (first + 1 + rng.below(2)) % 3].map(|k| Palette::new(inks[k], 0.03, rng));
    let rough = Noise::new(rng, 9);
    let papers = [prints[0].sky(), hex(0xa8b4b0), hex(0xcbb08c)];
    let torn = hex(0xf8f6ee);
    let edges: [(f32, f32); 2] =
        [0.34, 0.68].map(|place| (place + 0.12 * rng.bell(), rng.range(0.08, 0.25) * rng.sign()));
    // Which strip, and how far from its torn edge.
    let strip = |x: f32, y: f32| {
        let mut place = 0;
        let mut edge = 1.0f32;
        for (at, lean) in edges {
            let d = x - at - lean * (y - 0.5) - 0.035 * rough.at(x, y);
            place += usize::from(d > 0.0);
            edge = edge.min(d.abs());
        }
        (place, edge)
    };
    canvas.shade(|x, y, _| papers[strip(x, y).0]);
    mottle(canvas, rng, 6, 0.05);
    for shape in &scene.shapes {
        let [one, two] = [prints[0].of(shape.role), prints[1].of(shape.role)];
        if shape.layer == Layer::Ground {
            canvas.fill_with(&shape.outline, |_, _, under| mix(under, prints[0].ground(), 0.75));
        } else {
            canvas.fill_with(&shape.outline, |x, y, _| if strip(x, y).0 == 1 { two } else { one });
        }
    }
    canvas.shade(|x, y, color| mix(color, torn, smoothstep(0.028, 0.014, strip(x, y).1)));
    // At two corners the paper has come off altogether.
    let side = rng.sign();
    for (right, low) in [(side > 0.0, false), (side < 0.0, true)] {
        let corner = |u: f32, v: f32| [if right { 1.0 - u } else { u }, if low { 1.0 - v } else { v }];
        let (wide, tall) = (rng.range(0.16, 0.26), rng.range(0.16, 0.26));
        let scrap = Outline::polygon(&[
            corner(-0.05, -0.05),
            corner(wide, -0.05),
            corner(wide * 0.75, tall * 0.4),
            corner(wide * 0.45, tall * 0.55),
            corner(wide * 0.3, tall * 0.9),
            corner(-0.05, tall),
        ]);
        canvas.fill(&scrap, hex(0x746c60));
        canvas.stroke(&scrap, 0.026, torn);
    }
}
