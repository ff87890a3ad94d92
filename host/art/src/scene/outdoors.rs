//! The landscape, nature and the building.

use super::super::outline::{Outline, Point};
use super::super::rng::{Rng, cos, sin};
use super::{Role, Scene};

impl Scene {
    /// Mountains across the whole width, a sun, often a river; nothing that grows, nothing that is built.
    pub(super) fn landscape(&mut self, rng: &mut Rng) {
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
            self.put(
                role,
                Outline::polygon(&[
                    edge(1.0, -1.0),
                    edge(0.5, -0.86),
                    edge(0.0, 0.0),
                    edge(0.45, 1.12),
                    edge(1.0, 1.0),
                ]),
            );
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
    pub(super) fn nature(&mut self, rng: &mut Rng) {
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
                self.put(
                    Role::Main,
                    Outline::polygon(&[[x - half, y + step * 1.6], [x, y], [x + half, y + step * 1.6]]),
                );
            }
        } else {
            let y = foot - size * rng.range(1.75, 1.95);
            self.put(
                Role::Dark,
                Outline::polygon(&[
                    [x - trunk * 0.75, y],
                    [x + trunk * 0.75, y],
                    [x + trunk * 1.3, foot],
                    [x - trunk * 1.3, foot],
                ]),
            );
            for side in [-1.0, 1.0] {
                self.put(
                    Role::Dark,
                    Outline::ribbon(&[[x, y + size * 0.95], [x + side * size * 0.5, y + size * 0.4]], 0.02, 0.012),
                );
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
    pub(super) fn building(&mut self, rng: &mut Rng) {
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
                self.put(
                    Role::Main,
                    Outline::polygon(&[[x - half - 0.07, eaves + 0.01], [x, ridge], [x + half + 0.07, eaves + 0.01]]),
                );
                self.windows(x, half, eaves, foot, 2, 1);
                self.door(x, foot, 0.065, 0.17);
            }
            1 => {
                let tower = x - 0.17;
                let (wall, top) = (rng.range(0.48, 0.54), rng.range(0.32, 0.38));
                self.put(Role::Light, Outline::rect(x - 0.2, wall, x + 0.36, foot));
                self.put(
                    Role::Main,
                    Outline::polygon(&[
                        [x - 0.2, wall + 0.01],
                        [x - 0.06, wall - 0.16],
                        [x + 0.28, wall - 0.16],
                        [x + 0.42, wall + 0.01],
                    ]),
                );
                self.put(Role::Light, Outline::rect(tower - 0.12, top, tower + 0.12, foot));
                self.put(
                    Role::Main,
                    Outline::polygon(&[
                        [tower - 0.15, top + 0.01],
                        [tower, top - rng.range(0.24, 0.29)],
                        [tower + 0.15, top + 0.01],
                    ]),
                );
                self.detail(Role::Dark, Outline::ellipse(tower, top + 0.11, 0.055, 0.055));
                self.windows(x + 0.15, 0.2, wall, foot, 2, 1);
                self.door(tower, foot, 0.06, 0.17);
            }
            2 => {
                let (half, top) = (rng.range(0.3, 0.36), rng.range(0.42, 0.47));
                self.put(Role::Main, Outline::dome(x, top - 0.06, half * 0.62, rng.range(0.22, 0.28)));
                self.put(Role::Accent, Outline::rect(x - 0.025, top - 0.4, x + 0.025, top - 0.24));
                self.put(
                    Role::Light,
                    Outline::polygon(&[
                        [x - half - 0.05, top + 0.06],
                        [x - half * 0.66, top - 0.07],
                        [x + half * 0.66, top - 0.07],
                        [x + half + 0.05, top + 0.06],
                    ]),
                );
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
                    self.put(
                        Role::Accent,
                        Outline::polygon(&[[x, top - 0.24], [x + 0.15, top - 0.19], [x, top - 0.14]]),
                    );
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
}
