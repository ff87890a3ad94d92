//! The animal, the shapes and the object.

use super::super::outline::{Outline, Point};
use super::super::rng::Rng;
use super::{Role, Scene};

impl Scene {
    /// A dog, a horse, a cow or a cat, from the side.
    pub(super) fn animal(&mut self, rng: &mut Rng) {
        let horizon = rng.range(0.7, 0.8);
        self.flat_ground(horizon);
        let kind = rng.below(4);
        // Body half length, half height, leg length, neck length, head radius.
        let (long, thick, leg, neck, head) = match kind {
            0 => (0.23, 0.11, 0.24, 0.13, 0.1),
            1 => (0.23, 0.12, 0.28, 0.19, 0.095),
            2 => (0.27, 0.145, 0.22, 0.09, 0.105),
            _ => (0.22, 0.1, 0.17, 0.07, 0.105),
        };
        let zoom = rng.range(0.94, 1.08);
        let (long, thick, leg, head) =
            (long * zoom * rng.range(0.95, 1.05), thick * zoom * rng.range(0.92, 1.08), leg * zoom, head * zoom);
        let foot = rng.range(0.87, 0.92);
        let (x, y) = (0.46 + rng.range(-0.03, 0.03), foot - leg - thick * 0.55);
        let tail = [x - long * 0.92, y - thick * 0.3];
        let (tail_up, width) = match kind {
            0 => ([[tail[0] - 0.07, y - 0.12], [tail[0] - 0.1, y - 0.23]], 0.022),
            3 => ([[tail[0] - 0.12, y - 0.06], [tail[0] - 0.1, y - 0.3]], 0.026),
            _ => ([[tail[0] - 0.07, y + 0.02], [tail[0] - 0.09, y + 0.2]], 0.024),
        };
        self.put(
            if kind == 1 { Role::Dark } else { Role::Main },
            Outline::ribbon(&[tail, tail_up[0], tail_up[1]], width, width),
        );
        for (k, step) in [(-0.78, -0.02), (-0.46, 0.03), (0.46, -0.03), (0.8, 0.02)] {
            let stride = step * rng.range(0.2, 1.6);
            self.put(
                Role::Main,
                Outline::ribbon(&[[x + k * long, y], [x + k * long + stride, foot]], 0.045 * zoom, 0.034),
            );
        }
        self.put(
            Role::Main,
            Outline::smooth(&[
                [x - long, y - thick * 0.3],
                [x - long * 0.5, y - thick],
                [x + long * 0.5, y - thick * 0.92],
                [x + long * 1.05, y - thick * 0.6],
                [x + long, y + thick * 0.6],
                [x, y + thick * 0.95],
                [x - long * 0.95, y + thick * 0.6],
            ]),
        );
        let (hx, hy) = (x + long + neck * rng.range(0.45, 0.65), y - thick * 0.5 - neck - rng.range(0.02, 0.05));
        self.put(
            Role::Main,
            Outline::ribbon(
                &[[x + long * 0.75, y - thick * 0.1], [hx - head * 0.15, hy + head * 0.1]],
                thick * 0.75,
                head * 0.68,
            ),
        );
        if kind == 1 {
            self.put(
                Role::Dark,
                Outline::ribbon(
                    &[[x + long * 0.6, y - thick * 0.85], [hx - head * 0.75, hy - head * 0.3]],
                    0.04,
                    0.032,
                ),
            );
        }
        let ear = |k: f32, tip: f32, rise: f32| {
            Outline::polygon(&[
                [hx + head * (k - 0.35), hy - head * 0.5],
                [hx + head * tip, hy - head * rise],
                [hx + head * (k + 0.35), hy - head * 0.55],
            ])
        };
        match kind {
            2 => {
                for side in [-1.0, 1.0] {
                    let horn = [
                        [hx + side * head * 0.5, hy - head * 0.6],
                        [hx + side * head * 1.0, hy - head * 0.95],
                        [hx + side * head * 0.95, hy - head * 1.5],
                    ];
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
        self.put(
            if kind == 0 || kind == 1 { Role::Main } else { Role::Light },
            Outline::ellipse(hx + head * muzzle, hy + head * 0.38, head * 0.6, head * 0.45),
        );
        if kind == 0 {
            self.put(
                Role::Dark,
                Outline::smooth(&[
                    [hx - head * 0.55, hy - head * 0.75],
                    [hx - head * 0.1, hy - head * 0.4],
                    [hx - head * 0.35, hy + head * 0.75],
                    [hx - head * 0.95, hy + head * 0.5],
                ]),
            );
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
            self.detail(
                Role::Accent,
                Outline::ribbon(
                    &[[hx - head * 0.95, hy + head * 0.55], [hx + head * 0.25, hy + head * 1.12]],
                    0.024,
                    0.024,
                ),
            );
        }
        self.focus = [x + 0.1, y - 0.12];
    }

    /// A large circle, a triangle and a square, loose in the air.
    pub(super) fn geometry(&mut self, rng: &mut Rng) {
        let layouts: [[Point; 3]; 4] = [
            [[0.29, 0.3], [0.7, 0.36], [0.45, 0.73]],
            [[0.3, 0.68], [0.5, 0.26], [0.73, 0.68]],
            [[0.3, 0.27], [0.68, 0.5], [0.28, 0.74]],
            [[0.28, 0.42], [0.7, 0.28], [0.64, 0.74]],
        ];
        let places = layouts[rng.below(layouts.len())];
        let order: [usize; 3] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][rng.below(6)];
        let roles = [
            [Role::Main, Role::Accent, Role::Dark],
            [Role::Accent, Role::Dark, Role::Main],
            [Role::Dark, Role::Main, Role::Accent],
            [Role::Light, Role::Main, Role::Accent],
        ][rng.below(4)];
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
    pub(super) fn object(&mut self, rng: &mut Rng) {
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
                    self.put(
                        Role::Main,
                        Outline::ribbon(
                            &[[x + t * 0.08, top + 0.02], [x + t * 0.3, top - 0.1], [fx, fy]],
                            0.015,
                            0.015,
                        ),
                    );
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
                self.detail(
                    Role::Main,
                    Outline::ribbon(
                        &[[x - w * 0.8, rim + 0.08], [x, rim + 0.12], [x + w * 0.8, rim + 0.08]],
                        0.018,
                        0.018,
                    ),
                );
            }
            _ => {
                let (w, top) = (rng.range(0.14, 0.165), rng.range(0.25, 0.31));
                let side = rng.sign();
                let x = x - side * 0.08;
                let handle = [
                    [x + w * 0.3, top + 0.06],
                    [x + w * 1.55, top + 0.12],
                    [x + w * 1.5, top + 0.26],
                    [x + w * 0.8, top + 0.36],
                ];
                self.put(Role::Dark, Outline::ribbon(&handle, 0.026, 0.026));
                self.vase(x, top, foot, w);
                for (k, r) in [(0.3, 0.085), (0.42, 0.075)] {
                    let fx = x + side.max(-0.4) * k + 0.04;
                    self.put(Role::Accent, Outline::ellipse(fx, foot - r + 0.03, r, r));
                    self.detail(
                        Role::Dark,
                        Outline::ribbon(&[[fx, foot - 2.0 * r + 0.05], [fx + 0.02, foot - 2.0 * r]], 0.012, 0.012),
                    );
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
        self.detail(
            Role::Main,
            Outline::ribbon(&[[x - w * 0.9, band], [x, band + 0.03], [x + w * 0.9, band]], 0.028, 0.028),
        );
    }
}
