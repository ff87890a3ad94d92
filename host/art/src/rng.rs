//! Random numbers and trigonometry of a painting, with the same bits on every machine.
//!
//! The system's `sin` and `exp` may differ in the last bit from one C library to the next. Nothing here calls them:
//! only +, −, ×, ÷, √ and rounding, which IEEE 754 defines. In addition, outlines are rounded to 1/256 px before they
//! are drawn.

/// SplitMix64 (Steele, Lea and Flood 2014), seeded with the arguments of the painting.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Creates a generator for one painting; every argument changes the whole stream.
    pub fn new(seed: u64, style: u64, subject: u64, index: u64) -> Self {
        let mut rng = Self(seed ^ 0x6172_7469_7374_7321);
        for part in [style, subject, index] {
            rng.0 = rng.next() ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        rng
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Draws a uniform number in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Draws a uniform number in [low, high).
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Draws a number with a triangular distribution in (−1, 1), most often near 0.
    pub fn bell(&mut self) -> f32 {
        self.unit() - self.unit()
    }

    /// Draws a uniform integer in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (((self.next() >> 32) * n as u64) >> 32) as usize
    }

    /// Returns true with probability p.
    pub fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    /// Returns −1 or 1.
    pub fn sign(&mut self) -> f32 {
        if self.chance(0.5) { 1.0 } else { -1.0 }
    }

    /// Returns one of the values.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Sine of an angle in turns (1 = 360°), within 0.0011: two parabolas and one correction.
pub fn sin(turns: f32) -> f32 {
    let x = turns - (turns + 0.5).floor();
    let y = 8.0 * x - 16.0 * x * x.abs();
    0.225 * (y * y.abs() - y) + y
}

/// Cosine of an angle in turns.
pub fn cos(turns: f32) -> f32 {
    sin(turns + 0.25)
}

/// A smooth step: 0 below `low`, 1 above `high`.
pub fn smoothstep(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Smooth value noise in [−1, 1] over the unit square: `cells` lattice cells a side.
#[derive(Debug)]
pub struct Noise {
    cells: usize,
    lattice: Vec<f32>,
}

impl Noise {
    /// Draws new noise.
    pub fn new(rng: &mut Rng, cells: usize) -> Self {
        let lattice = (0..(cells + 1) * (cells + 1)).map(|_| rng.range(-1.0, 1.0)).collect();
        Self { cells, lattice }
    }

    /// The value at a point of the unit square (clamped to it).
    pub fn at(&self, x: f32, y: f32) -> f32 {
        let n = self.cells as f32;
        let (x, y) = (x.clamp(0.0, 0.9999) * n, y.clamp(0.0, 0.9999) * n);
        let (i, j) = (x as usize, y as usize);
        let (s, t) = (smoothstep(0.0, 1.0, x - i as f32), smoothstep(0.0, 1.0, y - j as f32));
        let at = |i: usize, j: usize| self.lattice[j * (self.cells + 1) + i];
        let top = at(i, j) + (at(i + 1, j) - at(i, j)) * s;
        let bottom = at(i, j + 1) + (at(i + 1, j + 1) - at(i, j + 1)) * s;
        top + (bottom - top) * t
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sine_is_close_to_the_true_one() {
        for step in -400..400 {
            let turns = step as f32 / 100.0;
            let truth = f64::from(turns) * std::f64::consts::TAU;
            assert!((f64::from(sin(turns)) - truth.sin()).abs() < 1.5e-3, "{turns}");
            assert!((f64::from(cos(turns)) - truth.cos()).abs() < 1.5e-3, "{turns}");
        }
    }

    #[test]
    fn draws_stay_in_their_ranges() {
        let mut rng = Rng::new(1, 2, 3, 4);
        for _ in 0..10_000 {
            assert!((0.0..1.0).contains(&rng.unit()));
            assert!(rng.below(7) < 7);
        }
    }
}
