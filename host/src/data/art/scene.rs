//! What is painted: the eight subjects as outlines with roles, before any style has touched them.
//!
//! Subjects are large, centred and few in details, so that a silhouette of 64 px still says what it is; they vary in
//! kind, proportion, position, tilt and mirror.

use super::outline::{Outline, Point};
use super::rng::{Rng, cos, sin};

/// What a shape's colour stands for; a palette has one colour for each, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The background's upper part.
    Sky,
    /// The background's lower part: ground or table.
    Ground,
    /// Skin, walls, snow, vases.
    Light,
    /// Cloth, leaves, fur, roofs, mountains.
    Main,
    /// Sun, flowers, fruit, doors, ties.
    Accent,
    /// Hair, hats, trunks, windows.
    Dark,
}

/// Where a shape belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Ground or table.
    Ground,
    /// A part of the subject's silhouette.
    Figure,
    /// Eyes, spots, panes: what a sweeping style leaves out.
    Detail,
}

/// One outline of a scene.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Where its edge runs.
    pub outline: Outline,
    /// Which colour it takes.
    pub role: Role,
    /// Where it belongs.
    pub layer: Layer,
}

/// A subject on its ground, back to front.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The shapes, back to front.
    pub shapes: Vec<Shape>,
    /// Where a halo, a glow or a swirl is centred: a head, a crown, the middle of things.
    pub focus: Point,
    /// The height at which the ground begins (1 where there is none).
    pub horizon: f32,
}

impl Scene {
    /// A scene of one of the eight subjects, by its place in `SUBJECTS`.
    pub fn new(subject: usize, rng: &mut Rng) -> Self {
        let mut scene = Self { shapes: Vec::with_capacity(32), focus: [0.5, 0.4], horizon: 1.0 };
        match subject {
            0 => scene.man(rng),
            1 => scene.woman(rng),
            2 => scene.landscape(rng),
            3 => scene.nature(rng),
            4 => scene.building(rng),
            5 => scene.animal(rng),
            6 => scene.geometry(rng),
            _ => scene.object(rng),
        }
        if rng.chance(0.5) {
            scene.bend(|[x, y]| [1.0 - x, y]);
        }
        scene
    }

    /// Moves every point of the scene.
    pub fn bend(&mut self, f: impl Fn(Point) -> Point) {
        for shape in &mut self.shapes {
            shape.outline = shape.outline.map(&f);
        }
        self.focus = f(self.focus);
    }

    /// Moves every point of the subject, after lines and curves have been cut into pieces of `step`.
    pub fn bend_figure(&mut self, step: f32, f: impl Fn(Point) -> Point) {
        for shape in self.shapes.iter_mut().filter(|shape| shape.layer != Layer::Ground) {
            let points: Vec<Point> = shape.outline.points(step).into_iter().map(&f).collect();
            shape.outline = Outline::polygon(&points);
        }
        self.focus = f(self.focus);
    }

    /// The outlines of the subject's silhouette.
    pub fn figure(&self) -> impl Iterator<Item = &Outline> {
        self.shapes.iter().filter(|shape| shape.layer == Layer::Figure).map(|shape| &shape.outline)
    }

    fn add(&mut self, layer: Layer, role: Role, outline: Outline) {
        self.shapes.push(Shape { outline, role, layer });
    }

    fn put(&mut self, role: Role, outline: Outline) {
        self.add(Layer::Figure, role, outline);
    }

    fn detail(&mut self, role: Role, outline: Outline) {
        self.add(Layer::Detail, role, outline);
    }

    fn ground(&mut self, y: f32, outline: Outline) {
        self.horizon = y;
        self.add(Layer::Ground, Role::Ground, outline);
    }

    fn flat_ground(&mut self, y: f32) {
        self.ground(y, Outline::rect(-0.1, y, 1.1, 1.1));
    }

    /// Two eyes and a mouth on a head.
    fn face(&mut self, x: f32, y: f32, width: f32, height: f32, turn: f32) {
        let x = x + turn * width;
        for side in [-1.0, 1.0] {
            self.detail(Role::Dark, Outline::ellipse(x + side * width * 0.42, y, width * 0.15, width * 0.13));
        }
        self.detail(Role::Accent, Outline::ellipse(x, y + height * 0.52, width * 0.28, width * 0.11));
    }

    /// A bust: broad shoulders, a coat, a hat or a beard or both.
    fn man(&mut self, rng: &mut Rng) {
        if rng.chance(0.5) {
            self.flat_ground(rng.range(0.66, 0.8));
        }
        let (x, y) = (0.5 + rng.range(-0.05, 0.05), rng.range(0.36, 0.41));
        let (w, turn) = (rng.range(0.125, 0.15), rng.range(-0.25, 0.25));
        let h = w * rng.range(1.2, 1.38);
        let (half, top) = (rng.range(0.37, 0.46), y + h + 0.055);
        self.put(
            Role::Main,
            Outline::smooth(&[
                [x - half - 0.03, 1.12],
                [x - half, top + 0.17],
                [x - half * 0.72, top + 0.02],
                [x - 0.1, top - 0.05],
                [x + 0.1, top - 0.05],
                [x + half * 0.72, top + 0.02],
                [x + half, top + 0.17],
                [x + half + 0.03, 1.12],
            ]),
        );
        self.put(Role::Light, Outline::rect(x - 0.065, y + h * 0.6, x + 0.065, top + 0.02));
        let collar = top + rng.range(0.2, 0.3);
        self.put(Role::Light, Outline::polygon(&[[x - 0.1, top - 0.03], [x + 0.1, top - 0.03], [x, collar]]));
        if rng.chance(0.6) {
            self.put(
                Role::Accent,
                Outline::polygon(&[[x - 0.035, top], [x + 0.035, top], [x + 0.045, collar - 0.04], [x, collar + 0.03], [x - 0.045, collar - 0.04]]),
            );
        } else {
            let bow = top + 0.02;
            self.put(
                Role::Accent,
                Outline::polygon(&[[x - 0.1, bow - 0.04], [x + 0.1, bow + 0.04], [x + 0.1, bow - 0.04], [x - 0.1, bow + 0.04]]),
            );
        }
        let (hat, beard) = if rng.chance(0.4) { (true, true) } else { let hat = rng.chance(0.5); (hat, !hat) };
        self.put(Role::Dark, Outline::ellipse(x, y - 0.03, w + 0.014, h * 0.96));
        self.put(Role::Light, Outline::ellipse(x, y + 0.012, w, h));
        if beard {
            let long = rng.range(0.9, 1.35);
            self.put(
                Role::Dark,
                Outline::smooth(&[
                    [x - w * 1.02, y + h * 0.18],
                    [x - w * 0.5, y + h * 0.36],
                    [x, y + h * 0.3],
                    [x + w * 0.5, y + h * 0.36],
                    [x + w * 1.02, y + h * 0.18],
                    [x + w * 0.72, y + h * 0.95],
                    [x, y + h * (0.8 + 0.4 * long)],
                    [x - w * 0.72, y + h * 0.95],
                ]),
            );
        }
        self.face(x, y, w, h, turn);
        let brow = y - h * 0.34;
        if !hat {
            self.put(Role::Dark, Outline::smooth(&[[x - w * 1.08, brow + 0.1], [x - w * 1.1, brow - h * 0.3], [x, brow - h * 0.88], [x + w * 1.1, brow - h * 0.3], [x + w * 1.08, brow + 0.1], [x + w * 0.7, brow - 0.01], [x - w * 0.3, brow - 0.035]]));
        } else if rng.chance(0.4) {
            let crown = brow - rng.range(0.17, 0.22);
            self.put(Role::Dark, Outline::polygon(&[[x - w, brow], [x - w * 1.04, crown], [x + w * 1.04, crown], [x + w, brow]]));
            self.put(Role::Dark, Outline::ellipse(x, brow, w * 1.75, 0.035));
            self.put(Role::Accent, Outline::rect(x - w, brow - 0.075, x + w, brow - 0.03));
        } else if rng.chance(0.5) {
            self.put(Role::Dark, Outline::dome(x, brow + 0.01, w * 1.12, h * 0.85));
            self.put(Role::Dark, Outline::ellipse(x, brow + 0.005, w * 1.6, 0.034));
        } else {
            self.put(Role::Dark, Outline::ellipse(x, brow, w * 2.1, 0.05));
            self.put(Role::Dark, Outline::dome(x, brow, w * 0.98, h * 0.7));
            self.put(Role::Accent, Outline::rect(x - w * 0.97, brow - 0.055, x + w * 0.97, brow - 0.015));
        }
        self.focus = [x, y];
    }

    /// Three quarters of a figure: long hair, a narrow waist, a wide skirt.
    fn woman(&mut self, rng: &mut Rng) {
        if rng.chance(0.5) {
            self.flat_ground(rng.range(0.62, 0.78));
        }
        let (x, y) = (0.5 + rng.range(-0.05, 0.05), rng.range(0.255, 0.295));
        let (w, turn) = (rng.range(0.096, 0.112), rng.range(-0.25, 0.25));
        let h = w * rng.range(1.22, 1.34);
        let (shoulder, waist) = (y + h + 0.05, rng.range(0.62, 0.66));
        let (wide, narrow, skirt) = (rng.range(0.145, 0.165), rng.range(0.082, 0.1), rng.range(0.33, 0.42));
        let (hair, ends) = (w * rng.range(1.55, 1.85), rng.range(0.5, 0.6));
        self.put(
            Role::Dark,
            Outline::smooth(&[
                [x, y - h * 1.2],
                [x + w * 1.2, y - h * 0.72],
                [x + hair * 0.95, y + 0.06],
                [x + hair * 1.12, ends - 0.04],
                [x + hair * 0.6, ends],
                [x, ends - 0.06],
                [x - hair * 0.6, ends],
                [x - hair * 1.12, ends - 0.04],
                [x - hair * 0.95, y + 0.06],
                [x - w * 1.2, y - h * 0.72],
            ]),
        );
        self.put(
            Role::Main,
            Outline::smooth(&[
                [x - skirt, 1.14],
                [x - skirt * 0.93, 0.95],
                [x - skirt * 0.55, waist + 0.12],
                [x - narrow, waist],
                [x - wide * 0.9, shoulder + 0.1],
                [x - wide, shoulder + 0.02],
                [x - 0.06, shoulder - 0.02],
                [x + 0.06, shoulder - 0.02],
                [x + wide, shoulder + 0.02],
                [x + wide * 0.9, shoulder + 0.1],
                [x + narrow, waist],
                [x + skirt * 0.55, waist + 0.12],
                [x + skirt * 0.93, 0.95],
                [x + skirt, 1.14],
            ]),
        );
        self.put(Role::Light, Outline::rect(x - 0.042, y + h * 0.6, x + 0.042, shoulder + 0.02));
        self.put(Role::Light, Outline::dome(x, shoulder - 0.012, 0.1, -0.1));
        let (elbow, hand) = (wide + rng.range(0.055, 0.085), waist + rng.range(0.02, 0.07));
        for side in [-1.0, 1.0] {
            let arm = [[x + side * wide * 0.92, shoulder + 0.05], [x + side * elbow, shoulder + 0.2], [x + side * 0.02, hand]];
            self.put(Role::Light, Outline::ribbon(&arm, 0.036, 0.028));
        }
        self.put(Role::Accent, Outline::rect(x - narrow * 1.05, waist - 0.03, x + narrow * 1.05, waist + 0.012));
        self.put(Role::Light, Outline::ellipse(x, y + 0.01, w, h));
        self.face(x, y + 0.015, w, h, turn);
        self.put(
            Role::Dark,
            Outline::smooth(&[
                [x - w * 1.1, y + h * 0.1],
                [x - w * 0.95, y - h * 0.7],
                [x, y - h * 1.18],
                [x + w * 0.95, y - h * 0.7],
                [x + w * 1.1, y + h * 0.1],
                [x + w * 0.6, y - h * 0.45],
                [x + turn * w, y - h * 0.62],
                [x - w * 0.6, y - h * 0.45],
            ]),
        );
        match rng.below(3) {
            0 => self.put(Role::Dark, Outline::ellipse(x + rng.range(-0.03, 0.03), y - h * 1.3, w * 0.55, w * 0.5)),
            1 => self.put(Role::Accent, Outline::ellipse(x + w * 0.85, y - h * 0.62, 0.042, 0.042)),
            _ => self.put(Role::Accent, Outline::ribbon(&[[x - w * 1.02, y - h * 0.6], [x, y - h * 0.86], [x + w * 1.02, y - h * 0.6]], 0.02, 0.02)),
        }
        self.focus = [x, y];
    }

    /// Mountains across the whole width, a sun, often a river; nothing that grows, nothing that is built.
    fn landscape(&mut self, rng: &mut Rng) {
        let horizon = rng.range(0.66, 0.76);
        let sun = rng.range(0.09, 0.125);
        let (sun_x, sun_y) = (rng.range(0.16, 0.84), rng.range(0.15, 0.24));
        self.put(Role::Accent, Outline::ellipse(sun_x, sun_y, sun, sun));
        let first = rng.range(0.24, 0.36);
        let peaks = [
            (first, rng.range(0.3, 0.42), rng.range(0.34, 0.46), Role::Main),
            (first + rng.range(0.34, 0.44), rng.range(0.26, 0.44), rng.range(0.34, 0.46), Role::Dark),
            (rng.range(0.3, 0.7), rng.range(0.5, 0.56), rng.range(0.3, 0.42), Role::Main),
        ];
        for &(x, top, half, role) in &peaks[..2 + rng.below(2)] {
            let (lean, foot) = (rng.range(-0.03, 0.03), horizon + 0.03);
            let edge = |t: f32, side: f32| [x + lean + (side * half - lean) * t, top + (foot - top) * t];
            self.put(role, Outline::polygon(&[edge(1.0, -1.0), edge(0.5, -0.86), edge(0.0, 0.0), edge(0.45, 1.12), edge(1.0, 1.0)]));
            let low = rng.range(0.26, 0.36);
            self.put(
                Role::Light,
                Outline::polygon(&[
                    edge(0.0, 0.0),
                    edge(low, 1.12),
                    edge(low * 0.66, 0.35),
                    edge(low * 1.1, -0.1),
                    edge(low * 0.7, -0.4),
                    edge(low, -0.86),
                ]),
            );
        }
        self.ground(
            horizon,
            Outline::smooth(&[
                [-0.2, horizon + 0.01],
                [0.15, horizon + rng.range(-0.015, 0.02)],
                [0.5, horizon + rng.range(-0.01, 0.025)],
                [0.85, horizon + rng.range(-0.015, 0.02)],
                [1.2, horizon + 0.01],
                [1.3, 1.2],
                [-0.3, 1.2],
            ]),
        );
        if rng.chance(0.65) {
            let (from, to, swing) = (rng.range(0.35, 0.65), rng.range(0.25, 0.75), rng.range(0.05, 0.13) * rng.sign());
            let depth = 1.08 - horizon;
            let points: Vec<Point> = (0..=8)
                .map(|i| {
                    let t = i as f32 / 8.0;
                    [from + (to - from) * t + swing * sin(t * 1.1) * (0.4 + t), horizon + 0.015 + depth * t]
                })
                .collect();
            self.detail(Role::Light, Outline::ribbon(&points, 0.018, rng.range(0.1, 0.16)));
        }
        self.focus = [sun_x, sun_y];
    }

    /// A large tree or two over tall flowers.
    fn nature(&mut self, rng: &mut Rng) {
        let horizon = rng.range(0.74, 0.82);
        self.flat_ground(horizon);
        let conifers = rng.chance(0.35);
        let x = rng.range(0.3, 0.42);
        let size = rng.range(0.23, 0.27);
        let second = rng.chance(0.75);
        if second {
            let (x, size) = (x + rng.range(0.38, 0.44), size * rng.range(0.62, 0.78));
            self.tree(x, horizon, size, conifers, rng);
        }
        self.tree(if second { x } else { rng.range(0.42, 0.58) }, horizon + 0.05, size, conifers, rng);
        let count = 4 + rng.below(3);
        for i in 0..count {
            let x = (i as f32 + 0.5 + 0.35 * rng.bell()) / count as f32;
            let (y, r) = (rng.range(0.79, 0.87), rng.range(0.042, 0.055));
            let lean = rng.range(-0.03, 0.03);
            self.detail(Role::Dark, Outline::ribbon(&[[x, y], [x + lean, 1.02]], 0.013, 0.013));
            let turn = rng.unit();
            let petals: Vec<Point> = (0..20)
                .map(|k| {
                    let angle = turn + k as f32 / 20.0;
                    let r = r * (1.0 + 0.22 * cos(5.0 * (angle - turn)));
                    [x + r * cos(angle), y + r * sin(angle)]
                })
                .collect();
            self.put(Role::Accent, Outline::smooth(&petals));
            self.detail(Role::Light, Outline::ellipse(x, y, r * 0.4, r * 0.4));
        }
        self.focus = [if second { x } else { 0.5 }, 0.36];
    }

    fn tree(&mut self, x: f32, foot: f32, size: f32, conifer: bool, rng: &mut Rng) {
        let trunk = size * rng.range(0.15, 0.2);
        if conifer {
            let tall = size * 2.5;
            let top = (foot - tall - size * 0.5).max(0.03);
            self.put(Role::Dark, Outline::rect(x - trunk, foot - size * 0.7, x + trunk, foot));
            let step = (foot - size * 0.45 - top) / 3.6;
            for tier in (0..3).rev() {
                let y = top + step * tier as f32;
                let half = size * (0.52 + 0.2 * tier as f32);
                self.put(Role::Main, Outline::polygon(&[[x - half, y + step * 1.6], [x, y], [x + half, y + step * 1.6]]));
            }
        } else {
            let y = foot - size * rng.range(1.75, 1.95);
            self.put(Role::Dark, Outline::polygon(&[[x - trunk * 0.75, y], [x + trunk * 0.75, y], [x + trunk * 1.3, foot], [x - trunk * 1.3, foot]]));
            for side in [-1.0, 1.0] {
                self.put(Role::Dark, Outline::ribbon(&[[x, y + size * 0.95], [x + side * size * 0.5, y + size * 0.4]], 0.02, 0.012));
            }
            let (lobes, turn) = (6 + rng.below(3), rng.unit());
            let crown: Vec<Point> = (0..lobes * 6)
                .map(|k| {
                    let angle = k as f32 / (lobes * 6) as f32;
                    let r = size * (0.93 + 0.1 * cos(angle * lobes as f32 + turn));
                    [x + r * 1.05 * cos(angle), y + r * 0.86 * sin(angle)]
                })
                .collect();
            self.put(Role::Main, Outline::smooth(&crown));
            if rng.chance(0.4) {
                for _ in 0..4 {
                    let (a, r) = (rng.unit(), size * rng.range(0.25, 0.7));
                    self.detail(Role::Accent, Outline::ellipse(x + r * cos(a), y + 0.8 * r * sin(a), 0.026, 0.026));
                }
            }
        }
    }

    /// A house, a church, a temple, a castle tower or blocks.
    fn building(&mut self, rng: &mut Rng) {
        let horizon = rng.range(0.8, 0.87);
        self.flat_ground(horizon);
        let foot = horizon + 0.03;
        let x = 0.5 + rng.range(-0.06, 0.06);
        match rng.below(5) {
            0 => {
                let (half, eaves) = (rng.range(0.26, 0.32), rng.range(0.44, 0.5));
                if rng.chance(0.6) {
                    self.put(Role::Dark, Outline::rect(x + half * 0.45, eaves - 0.26, x + half * 0.75, eaves));
                }
                self.put(Role::Light, Outline::rect(x - half, eaves, x + half, foot));
                let ridge = eaves - rng.range(0.22, 0.3);
                self.put(Role::Main, Outline::polygon(&[[x - half - 0.07, eaves + 0.01], [x, ridge], [x + half + 0.07, eaves + 0.01]]));
                self.windows(x, half, eaves, foot, 2, 1);
                self.door(x, foot, 0.065, 0.17);
            }
            1 => {
                let tower = x - 0.17;
                let (wall, top) = (rng.range(0.48, 0.54), rng.range(0.32, 0.38));
                self.put(Role::Light, Outline::rect(x - 0.2, wall, x + 0.36, foot));
                self.put(Role::Main, Outline::polygon(&[[x - 0.2, wall + 0.01], [x - 0.06, wall - 0.16], [x + 0.28, wall - 0.16], [x + 0.42, wall + 0.01]]));
                self.put(Role::Light, Outline::rect(tower - 0.12, top, tower + 0.12, foot));
                self.put(Role::Main, Outline::polygon(&[[tower - 0.15, top + 0.01], [tower, top - rng.range(0.24, 0.29)], [tower + 0.15, top + 0.01]]));
                self.detail(Role::Dark, Outline::ellipse(tower, top + 0.11, 0.055, 0.055));
                self.windows(x + 0.15, 0.2, wall, foot, 2, 1);
                self.door(tower, foot, 0.06, 0.17);
            }
            2 => {
                let (half, top) = (rng.range(0.3, 0.36), rng.range(0.42, 0.47));
                self.put(Role::Main, Outline::dome(x, top - 0.06, half * 0.62, rng.range(0.22, 0.28)));
                self.put(Role::Accent, Outline::rect(x - 0.025, top - 0.4, x + 0.025, top - 0.24));
                self.put(Role::Light, Outline::polygon(&[[x - half - 0.05, top + 0.06], [x - half * 0.66, top - 0.07], [x + half * 0.66, top - 0.07], [x + half + 0.05, top + 0.06]]));
                self.put(Role::Dark, Outline::rect(x - half, top + 0.05, x + half, foot));
                for i in 0..4 {
                    let x = x - half + 2.0 * half * (i as f32 + 0.5) / 4.0;
                    self.put(Role::Light, Outline::rect(x - 0.043, top + 0.05, x + 0.043, foot));
                }
                self.put(Role::Light, Outline::rect(x - half - 0.05, foot - 0.05, x + half + 0.05, foot + 0.02));
            }
            3 => {
                let (half, top) = (rng.range(0.19, 0.23), rng.range(0.24, 0.3));
                for side in [-1.0, 1.0] {
                    let x = x + side * (half + 0.09);
                    self.put(Role::Main, Outline::rect(x - 0.1, 0.5, x + 0.1, foot));
                    for k in [-1.0, 0.0, 1.0] {
                        self.put(Role::Main, Outline::rect(x + 0.075 * k - 0.025, 0.45, x + 0.075 * k + 0.025, 0.51));
                    }
                }
                self.put(Role::Light, Outline::rect(x - half, top, x + half, foot));
                for k in 0..3 {
                    let x = x - half + half * k as f32;
                    self.put(Role::Light, Outline::rect(x - 0.055, top - 0.08, x + 0.055, top + 0.02));
                }
                if rng.chance(0.7) {
                    self.put(Role::Dark, Outline::rect(x - 0.012, top - 0.24, x + 0.012, top));
                    self.put(Role::Accent, Outline::polygon(&[[x, top - 0.24], [x + 0.15, top - 0.19], [x, top - 0.14]]));
                }
                self.windows(x, half, top, foot - 0.16, 2, 2);
                self.door(x, foot, 0.075, 0.16);
            }
            _ => {
                let (half, top) = (rng.range(0.16, 0.19), rng.range(0.2, 0.28));
                let other = rng.range(0.36, 0.44);
                self.put(Role::Main, Outline::rect(x + 0.02, other, x + 0.38, foot));
                self.windows(x + 0.26, 0.15, other, foot, 2, 3);
                self.put(Role::Light, Outline::rect(x - 0.14 - half, top, x - 0.14 + half, foot));
                self.put(Role::Main, Outline::rect(x - 0.17 - half, top - 0.04, x - 0.11 + half, top + 0.02));
                self.windows(x - 0.14, half, top, foot - 0.12, 2, 3);
                self.door(x - 0.14, foot, 0.055, 0.13);
            }
        }
        self.focus = [x, 0.36];
    }

    fn windows(&mut self, x: f32, half: f32, top: f32, foot: f32, columns: usize, rows: usize) {
        let (cell, tall) = (2.0 * half / columns as f32, (foot - top) / rows as f32);
        for row in 0..rows {
            for column in 0..columns {
                let (x, y) = (x - half + cell * (column as f32 + 0.5), top + tall * (row as f32 + 0.48));
                let (w, h) = (cell * 0.25, (tall * 0.28).min(0.075));
                self.detail(Role::Dark, Outline::rect(x - w, y - h, x + w, y + h));
            }
        }
    }

    fn door(&mut self, x: f32, foot: f32, half: f32, tall: f32) {
        self.put(Role::Accent, Outline::rect(x - half, foot - tall, x + half, foot));
    }

    /// A dog, a horse, a cow or a cat, from the side.
    fn animal(&mut self, rng: &mut Rng) {
        let horizon = rng.range(0.7, 0.8);
        self.flat_ground(horizon);
        let kind = rng.below(4);
        // Body half length, half height, leg length, neck length, head radius.
        let (long, thick, leg, neck, head) = match kind {
            0 => (0.23, 0.11, 0.24, 0.13, 0.1),
            1 => (0.23, 0.115, 0.3, 0.25, 0.088),
            2 => (0.27, 0.145, 0.22, 0.09, 0.105),
            _ => (0.22, 0.1, 0.17, 0.07, 0.105),
        };
        let zoom = rng.range(0.94, 1.08);
        let (long, thick, leg, head) = (long * zoom * rng.range(0.95, 1.05), thick * zoom * rng.range(0.92, 1.08), leg * zoom, head * zoom);
        let foot = rng.range(0.87, 0.92);
        let (x, y) = (0.46 + rng.range(-0.03, 0.03), foot - leg - thick * 0.55);
        let tail = [x - long * 0.92, y - thick * 0.3];
        let (tail_up, width) = match kind {
            0 => ([[tail[0] - 0.07, y - 0.12], [tail[0] - 0.1, y - 0.23]], 0.022),
            3 => ([[tail[0] - 0.12, y - 0.06], [tail[0] - 0.1, y - 0.3]], 0.026),
            _ => ([[tail[0] - 0.07, y + 0.02], [tail[0] - 0.09, y + 0.2]], 0.024),
        };
        self.put(if kind == 1 { Role::Dark } else { Role::Main }, Outline::ribbon(&[tail, tail_up[0], tail_up[1]], width, width));
        for (k, step) in [(-0.78, -0.02), (-0.46, 0.03), (0.46, -0.03), (0.8, 0.02)] {
            let stride = step * rng.range(0.2, 1.6);
            self.put(Role::Main, Outline::ribbon(&[[x + k * long, y], [x + k * long + stride, foot]], 0.045 * zoom, 0.034));
        }
        self.put(Role::Main, Outline::smooth(&[[x - long, y - thick * 0.3], [x - long * 0.5, y - thick], [x + long * 0.5, y - thick * 0.92], [x + long * 1.05, y - thick * 0.6], [x + long, y + thick * 0.6], [x, y + thick * 0.95], [x - long * 0.95, y + thick * 0.6]]));
        let (hx, hy) = (x + long + neck * rng.range(0.45, 0.65), y - thick * 0.5 - neck - rng.range(0.02, 0.05));
        self.put(Role::Main, Outline::ribbon(&[[x + long * 0.75, y - thick * 0.1], [hx - head * 0.15, hy + head * 0.1]], thick * 0.75, head * 0.68));
        if kind == 1 {
            self.put(Role::Dark, Outline::ribbon(&[[x + long * 0.6, y - thick * 0.85], [hx - head * 0.75, hy - head * 0.3]], 0.04, 0.032));
        }
        let ear = |k: f32, tip: f32, rise: f32| Outline::polygon(&[[hx + head * (k - 0.35), hy - head * 0.5], [hx + head * tip, hy - head * rise], [hx + head * (k + 0.35), hy - head * 0.55]]);
        match kind {
            2 => {
                for side in [-1.0, 1.0] {
                    let horn = [[hx + side * head * 0.5, hy - head * 0.6], [hx + side * head * 1.0, hy - head * 0.95], [hx + side * head * 0.95, hy - head * 1.5]];
                    self.put(Role::Light, Outline::ribbon(&horn, 0.026, 0.012));
                }
            }
            0 => {}
            _ => {
                self.put(Role::Main, ear(-0.45, -0.75, 1.55));
                self.put(Role::Main, ear(0.4, 0.6, 1.55));
            }
        }
        self.put(Role::Main, Outline::ellipse(hx, hy, head, head * 0.88));
        let muzzle = if kind == 3 { 0.5 } else { 0.9 };
        self.put(if kind == 0 || kind == 1 { Role::Main } else { Role::Light }, Outline::ellipse(hx + head * muzzle, hy + head * 0.38, head * 0.6, head * 0.45));
        if kind == 0 {
            self.put(Role::Dark, Outline::smooth(&[[hx - head * 0.55, hy - head * 0.75], [hx - head * 0.1, hy - head * 0.4], [hx - head * 0.35, hy + head * 0.75], [hx - head * 0.95, hy + head * 0.5]]));
        }
        self.detail(Role::Dark, Outline::ellipse(hx + head * 0.25, hy - head * 0.2, 0.02, 0.02));
        self.detail(Role::Dark, Outline::ellipse(hx + head * (muzzle + 0.42), hy + head * 0.25, 0.023, 0.02));
        if kind == 2 || rng.chance(0.3) {
            for k in [-0.55, 0.25] {
                let (sx, sy) = (x + (k + 0.2 * rng.bell()) * long, y - thick * rng.range(0.0, 0.35));
                self.detail(Role::Light, Outline::ellipse(sx, sy, long * 0.26, thick * 0.42));
            }
        }
        if kind != 2 {
            self.detail(Role::Accent, Outline::ribbon(&[[hx - head * 0.95, hy + head * 0.55], [hx + head * 0.25, hy + head * 1.12]], 0.024, 0.024));
        }
        self.focus = [x + 0.1, y - 0.12];
    }

    /// A large circle, a triangle and a square, loose in the air.
    fn geometry(&mut self, rng: &mut Rng) {
        let layouts: [[Point; 3]; 4] = [
            [[0.29, 0.3], [0.7, 0.36], [0.45, 0.73]],
            [[0.3, 0.68], [0.5, 0.26], [0.73, 0.68]],
            [[0.3, 0.27], [0.68, 0.5], [0.28, 0.74]],
            [[0.28, 0.42], [0.7, 0.28], [0.64, 0.74]],
        ];
        let places = layouts[rng.below(layouts.len())];
        let order: [usize; 3] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][rng.below(6)];
        let roles = [[Role::Main, Role::Accent, Role::Dark], [Role::Accent, Role::Dark, Role::Main], [Role::Dark, Role::Main, Role::Accent], [Role::Light, Role::Main, Role::Accent]][rng.below(4)];
        for (&place, kind) in places.iter().zip(order) {
            let (x, y) = (place[0] + rng.range(-0.03, 0.03), place[1] + rng.range(-0.03, 0.03));
            let size = rng.range(0.165, 0.2);
            let outline = match kind {
                0 => Outline::ellipse(x, y, size, size),
                1 => Outline::regular(x, y, size * 1.25, 3, 0.75 + rng.range(-0.09, 0.09)),
                _ => Outline::regular(x, y, size * 1.2, 4, 0.125 + rng.range(-0.06, 0.06)),
            };
            self.put(roles[kind], outline);
        }
        if rng.chance(0.5) {
            let (x, y) = (rng.range(0.4, 0.6), rng.range(0.44, 0.56));
            self.put(Role::Light, Outline::ellipse(x, y, 0.06, 0.06));
        }
        self.focus = [0.5, 0.48];
    }

    /// A still life on a table: a vase of flowers, a bowl of fruit, or a jug with fruit.
    fn object(&mut self, rng: &mut Rng) {
        let table = rng.range(0.66, 0.74);
        self.flat_ground(table);
        let x = 0.5 + rng.range(-0.06, 0.06);
        let foot = table + rng.range(0.12, 0.18);
        match rng.below(3) {
            0 => {
                let (w, top) = (rng.range(0.15, 0.19), rng.range(0.47, 0.52));
                let count = 3 + rng.below(3);
                for i in 0..count {
                    let t = (i as f32 + 0.5) / count as f32 - 0.5;
                    let (fx, fy) = (x + t * rng.range(0.62, 0.74), top - rng.range(0.22, 0.3) + t * t * 0.5);
                    self.put(Role::Main, Outline::ribbon(&[[x + t * 0.08, top + 0.02], [x + t * 0.3, top - 0.1], [fx, fy]], 0.015, 0.015));
                    let r = rng.range(0.075, 0.09);
                    self.put(Role::Accent, Outline::ellipse(fx, fy, r, r));
                    self.detail(Role::Dark, Outline::ellipse(fx, fy, r * 0.36, r * 0.36));
                }
                self.vase(x, top, foot, w);
            }
            1 => {
                let (w, rim) = (rng.range(0.3, 0.35), foot - rng.range(0.22, 0.26));
                let roles = [Role::Accent, Role::Main, Role::Accent, Role::Dark];
                let r = w * 0.32;
                for (i, k) in [(0, -0.58), (1, 0.6), (2, 0.02)] {
                    self.put(roles[i], Outline::ellipse(x + k * w, rim - r * 0.55, r, r));
                }
                for (i, k) in [(3, -0.3), (0, 0.32)] {
                    self.put(roles[i], Outline::ellipse(x + k * w, rim - r * 1.75, r, r));
                }
                self.put(Role::Light, Outline::dome(x, rim, w, rim - foot + 0.02));
                self.put(Role::Light, Outline::rect(x - w * 0.35, foot - 0.05, x + w * 0.35, foot + 0.015));
                self.put(Role::Light, Outline::rect(x - w * 1.05, rim - 0.02, x + w * 1.05, rim + 0.025));
                self.detail(Role::Main, Outline::ribbon(&[[x - w * 0.8, rim + 0.08], [x, rim + 0.12], [x + w * 0.8, rim + 0.08]], 0.018, 0.018));
            }
            _ => {
                let (w, top) = (rng.range(0.14, 0.165), rng.range(0.25, 0.31));
                let side = rng.sign();
                let x = x - side * 0.08;
                let handle = [[x + w * 0.3, top + 0.06], [x + w * 1.55, top + 0.12], [x + w * 1.5, top + 0.26], [x + w * 0.8, top + 0.36]];
                self.put(Role::Dark, Outline::ribbon(&handle, 0.026, 0.026));
                self.vase(x, top, foot, w);
                for (k, r) in [(0.3, 0.085), (0.42, 0.075)] {
                    let fx = x + side.max(-0.4) * k + 0.04;
                    self.put(Role::Accent, Outline::ellipse(fx, foot - r + 0.03, r, r));
                    self.detail(Role::Dark, Outline::ribbon(&[[fx, foot - 2.0 * r + 0.05], [fx + 0.02, foot - 2.0 * r]], 0.012, 0.012));
                }
            }
        }
        self.focus = [x, 0.42];
    }

    fn vase(&mut self, x: f32, top: f32, foot: f32, w: f32) {
        let tall = foot - top;
        self.put(
            Role::Light,
            Outline::smooth(&[
                [x - w * 0.62, top],
                [x + w * 0.62, top],
                [x + w * 0.45, top + tall * 0.2],
                [x + w, top + tall * 0.58],
                [x + w * 0.56, foot],
                [x - w * 0.56, foot],
                [x - w, top + tall * 0.58],
                [x - w * 0.45, top + tall * 0.2],
            ]),
        );
        let band = top + tall * 0.56;
        self.detail(Role::Main, Outline::ribbon(&[[x - w * 0.9, band], [x, band + 0.03], [x + w * 0.9, band]], 0.028, 0.028));
    }
}
