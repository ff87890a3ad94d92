//! The split into training and held-out images, and the endless balanced stream of training images.

use std::sync::Arc;

use anyhow::{Result, ensure};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use super::cache::CachedStyle;
use crate::random::{Purpose, derive_seed};

/// The purpose of a random draw.
#[derive(Clone, Copy)]
enum Draw {
    /// The held-out images of a style.
    Split,
    /// The images of a pass and their order.
    Pass,
    /// The mirrored images of a step.
    Mirror,
}

/// Training and held-out images, by their indices in the cache.
#[derive(Debug)]
pub(super) struct Split {
    /// Training images by style, at least one each.
    pub(super) training: Vec<Vec<u32>>,
    /// Held-out images in ascending order, hence by style.
    pub(super) held_out: Vec<usize>,
}

/// Holds out round(`test_share` · m) of each style's m images, at least one where the share is above 0.
pub(super) fn split(styles: &[CachedStyle], test_share: f64, seed: u64) -> Result<Split> {
    let mut split = Split { training: Vec::with_capacity(styles.len()), held_out: Vec::new() };
    let mut first = 0;
    for (i, style) in styles.iter().enumerate() {
        let images: Vec<usize> = (first..first + style.files.len()).collect();
        let (held_out, training) = hold_out(&style.name, i, images, style.n_broken, test_share, seed)?;
        split.held_out.extend(held_out);
        split.training.push(training.into_iter().map(|image| image as u32).collect());
        first += style.files.len();
    }
    Ok(split)
}

/// Divides the images of the style with the number `style` into held-out ones, sorted, and those to train on, shuffled.
/// `test_share` of them are held out, rounded, and at least one if it is above 0; the choice depends on `seed` and `style`.
///
/// # Errors
/// If none are left to train on; the message names the style, and counts its `n_broken` unreadable images.
pub fn hold_out(
    name: &str,
    style: usize,
    mut images: Vec<usize>,
    n_broken: usize,
    test_share: f64,
    seed: u64,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let n = images.len();
    let n_held_out = (test_share * n as f64).round() as usize;
    let n_held_out = if test_share > 0.0 { n_held_out.max(1) } else { 0 };
    let broken = match n_broken {
        0 => String::new(),
        n => format!(" and {n} unreadable"),
    };
    ensure!(
        n_held_out < n,
        "the style {name} has {n} {}{broken}: too few to hold {n_held_out} out and train on the rest",
        if n == 1 { "image" } else { "images" }
    );
    shuffle(&mut images, &mut generator(seed, Draw::Split, style as u64));
    let training = images.split_off(n_held_out);
    images.sort_unstable();
    Ok((images, training))
}

/// The stream of passes: each has `per_class` images of every style, shuffled together, and is a function of its
/// number.
pub(super) struct Stream {
    split: Arc<Split>,
    per_class: usize,
    seed: u64,
    /// The current pass and its images.
    pass: Option<(u64, Vec<u32>)>,
}

impl Stream {
    pub(super) fn new(split: Arc<Split>, per_class: usize, seed: u64) -> Self {
        Self { split, per_class, seed, pass: None }
    }

    /// Returns the images of a step.
    pub(super) fn step(&mut self, step: u64, batch_size: usize) -> Vec<usize> {
        let first = step * batch_size as u64;
        (first..first + batch_size as u64).map(|position| self.at(position)).collect()
    }

    /// Returns which images of a step are mirrored.
    pub(super) fn mirrored(&self, step: u64, batch_size: usize) -> Vec<bool> {
        let mut generator = generator(self.seed, Draw::Mirror, step);
        (0..batch_size).map(|_| generator.next_u64() >> 63 == 1).collect()
    }

    /// Returns the image at a position of the stream.
    fn at(&mut self, position: u64) -> usize {
        let per_pass = (self.split.training.len() * self.per_class) as u64;
        let (pass, within) = (position / per_pass, (position % per_pass) as usize);
        if self.pass.as_ref().is_none_or(|(current, _)| *current != pass) {
            self.pass = Some((pass, self.draw(pass)));
        }
        let (_, images) = self.pass.as_ref().expect("drawn on the line above");
        images[within] as usize
    }

    /// Draws a pass: of each style whole permutations, one after the other, then the beginning of another one.
    fn draw(&self, pass: u64) -> Vec<u32> {
        let mut generator = generator(self.seed, Draw::Pass, pass);
        let mut images = Vec::with_capacity(self.split.training.len() * self.per_class);
        for style in &self.split.training {
            let mut missing = self.per_class;
            while missing > 0 {
                let mut permutation = style.clone();
                shuffle(&mut permutation, &mut generator);
                permutation.truncate(missing);
                missing -= permutation.len();
                images.extend(permutation);
            }
        }
        shuffle(&mut images, &mut generator);
        images
    }
}

fn generator(seed: u64, draw: Draw, index: u64) -> Xoshiro256PlusPlus {
    // Other uses of a seed count their epochs from 0.
    let kind = (1 << 32) + draw as u64;
    Xoshiro256PlusPlus::seed_from_u64(derive_seed(seed, kind, index, Purpose::Data))
}

/// Shuffles by Fisher and Yates. An index is the high half of a product, whose bias at these lengths is below 2⁻³².
fn shuffle<T>(items: &mut [T], generator: &mut impl RngCore) {
    for i in (1..items.len()).rev() {
        let j = (u128::from(generator.next_u64()) * (i as u128 + 1)) >> 64;
        items.swap(i, j as usize);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn styles(counts: &[usize]) -> Vec<CachedStyle> {
        let style = |(i, &n): (usize, &usize)| CachedStyle {
            name: format!("style {i}"),
            files: (0..n).map(|k| k.to_string()).collect(),
            n_broken: 0,
        };
        counts.iter().enumerate().map(style).collect()
    }

    fn stream(counts: &[usize], per_class: usize, seed: u64) -> Stream {
        Stream::new(Arc::new(split(&styles(counts), 0.2, 1).unwrap()), per_class, seed)
    }

    #[test]
    fn splits_are_disjoint_whole_and_the_same_for_the_same_seed() {
        let counts = [10, 3, 27, 100];
        let styles = styles(&counts);
        let one = split(&styles, 0.1, 7).unwrap();
        let held_out_of =
            |first: usize, n: usize| one.held_out.iter().filter(|i| (first..first + n).contains(i)).count();
        assert_eq!([(0, 10), (10, 3), (13, 27), (40, 100)].map(|(first, n)| held_out_of(first, n)), [1, 1, 3, 10]);
        let training = one.training.iter().flatten().map(|&i| i as usize);
        let all: BTreeSet<usize> = training.chain(one.held_out.iter().copied()).collect();
        assert_eq!(all, (0..140).collect());
        assert_eq!(one.training.iter().map(Vec::len).sum::<usize>() + one.held_out.len(), 140);
        assert_eq!(split(&styles, 0.1, 7).unwrap().held_out, one.held_out);
        assert_ne!(split(&styles, 0.1, 8).unwrap().held_out, one.held_out);
        assert!(split(&styles, 0.0, 7).unwrap().held_out.is_empty());
    }

    #[test]
    fn a_style_with_too_few_images_is_named() {
        let mut styles = styles(&[10, 1]);
        let error = split(&styles, 0.1, 7).unwrap_err().to_string();
        assert_eq!(error, "the style style 1 has 1 image: too few to hold 1 out and train on the rest");
        styles[1].n_broken = 4;
        let error = split(&styles, 0.1, 7).unwrap_err().to_string();
        assert!(error.contains("has 1 image and 4 unreadable: too few"), "{error}");
        assert_eq!(split(&styles, 0.0, 7).unwrap().training[1].len(), 1);
    }

    #[test]
    fn every_pass_is_balanced_and_repeats_evenly() {
        // 20 each, from 4, 8, 16 and 80 training images.
        let mut stream = stream(&[5, 10, 20, 100], 20, 3);
        let training = stream.split.training.clone();
        for pass in 0..3 {
            let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
            for image in stream.step(pass, 80) {
                *counts.entry(image).or_default() += 1;
            }
            for (style, (minimum, maximum)) in training.iter().zip([(5, 5), (2, 3), (1, 2), (0, 1)]) {
                let times: Vec<usize> =
                    style.iter().map(|&image| counts.get(&(image as usize)).copied().unwrap_or(0)).collect();
                assert_eq!(times.iter().sum::<usize>(), 20);
                assert!(times.iter().all(|times| (minimum..=maximum).contains(times)), "{times:?}");
            }
        }
        let held_out: BTreeSet<usize> = stream.split.held_out.iter().copied().collect();
        assert!((0..9).flat_map(|step| stream.step(step, 80)).all(|image| !held_out.contains(&image)));
    }

    #[test]
    fn passes_differ_and_are_shuffled_and_resampled() {
        let mut stream = stream(&[100, 100], 20, 3);
        let passes = [0, 1].map(|pass| stream.step(pass, 40));
        assert_ne!(passes[0], passes[1]);
        let sets = passes.clone().map(BTreeSet::from_iter);
        assert_ne!(sets[0], sets[1], "other images are drawn");
        let switches = passes[0].windows(2).filter(|pair| (pair[0] < 100) != (pair[1] < 100)).count();
        assert!((10..30).contains(&switches), "styles take turns {switches} times in 40");
        assert_ne!(self::stream(&[100, 100], 20, 4).step(0, 40), passes[0], "the seed counts");
    }

    #[test]
    fn any_step_can_be_drawn_first() {
        let mut whole = stream(&[7, 9, 30], 5, 3);
        let steps: Vec<_> = (0..30).map(|step| whole.step(step, 4)).collect();
        for first in [1, 3, 4, 17, 29] {
            assert_eq!(stream(&[7, 9, 30], 5, 3).step(first, 4), steps[first as usize], "step {first}");
        }
        // Another batch size divides the same stream.
        assert_eq!(stream(&[7, 9, 30], 5, 3).step(0, 120), steps.concat());
    }

    #[test]
    fn a_shuffle_is_even() {
        let mut counts = [[0; 4]; 4];
        for seed in 0..4000 {
            let mut items = [0, 1, 2, 3];
            shuffle(&mut items, &mut generator(seed, Draw::Pass, 0));
            items.iter().enumerate().for_each(|(position, &item)| counts[position][item] += 1);
        }
        // 1000 expected; five standard deviations are 137.
        assert!(counts.iter().flatten().all(|count| (863..1137).contains(count)), "{counts:?}");
    }
}
