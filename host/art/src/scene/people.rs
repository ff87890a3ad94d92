//! The man and the woman.

use super::super::outline::Outline;
use super::super::rng::Rng;
use super::{Role, Scene};

impl Scene {
    /// Two eyes and a mouth on a head.
    fn face(&mut self, x: f32, y: f32, width: f32, height: f32, turn: f32) {
        let x = x + turn * width;
        for side in [-1.0, 1.0] {
            self.detail(Role::Dark, Outline::ellipse(x + side * width * 0.42, y, width * 0.15, width * 0.13));
        }
        self.detail(Role::Accent, Outline::ellipse(x, y + height * 0.52, width * 0.28, width * 0.11));
    }

    /// A bust: broad shoulders, a coat, a hat or a beard or both.
    pub(super) fn man(&mut self, rng: &mut Rng) {
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
                Outline::polygon(&[
                    [x - 0.035, top],
                    [x + 0.035, top],
                    [x + 0.045, collar - 0.04],
                    [x, collar + 0.03],
                    [x - 0.045, collar - 0.04],
                ]),
            );
        } else {
            let bow = top + 0.02;
            self.put(
                Role::Accent,
                Outline::polygon(&[
                    [x - 0.1, bow - 0.04],
                    [x + 0.1, bow + 0.04],
                    [x + 0.1, bow - 0.04],
                    [x - 0.1, bow + 0.04],
                ]),
            );
        }
        let (hat, beard) = if rng.chance(0.4) {
            (true, true)
        } else {
            let hat = rng.chance(0.5);
            (hat, !hat)
        };
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
            self.put(
                Role::Dark,
                Outline::smooth(&[
                    [x - w * 1.08, brow + 0.1],
                    [x - w * 1.1, brow - h * 0.3],
                    [x, brow - h * 0.88],
                    [x + w * 1.1, brow - h * 0.3],
                    [x + w * 1.08, brow + 0.1],
                    [x + w * 0.7, brow - 0.01],
                    [x - w * 0.3, brow - 0.035],
                ]),
            );
        } else if rng.chance(0.4) {
            let crown = brow - rng.range(0.17, 0.22);
            self.put(
                Role::Dark,
                Outline::polygon(&[[x - w, brow], [x - w * 1.04, crown], [x + w * 1.04, crown], [x + w, brow]]),
            );
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
    pub(super) fn woman(&mut self, rng: &mut Rng) {
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
            let arm = [
                [x + side * wide * 0.92, shoulder + 0.05],
                [x + side * elbow, shoulder + 0.2],
                [x + side * 0.02, hand],
            ];
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
            _ => self.put(
                Role::Accent,
                Outline::ribbon(
                    &[[x - w * 1.02, y - h * 0.6], [x, y - h * 0.86], [x + w * 1.02, y - h * 0.6]],
                    0.02,
                    0.02,
                ),
            ),
        }
        self.focus = [x, y];
    }
}
