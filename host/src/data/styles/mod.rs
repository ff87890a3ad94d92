//! Images by style, the training data of the CAN and the simple classifier: split before they are balanced, square, at
//! one size, in a cache keyed by their content (the paper's sections on the CAN and the classifiers).
//!
//! # Layout
//!
//! - this file: [`StyleImages`], the opened data set · `listing`: its images, and the key of the cache
//! - `digests`: cached SHA-256 of unchanged files · `square`: [`Fit`] · `cache`: the memory-mapped file
//! - `balance`: the split, and the endless balanced stream · `loader`: batches prefetched by a thread

mod balance;
mod cache;
mod digests;
mod listing;
mod loader;
mod square;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, ensure};
use tch::Tensor;

pub use self::balance::hold_out;
use self::balance::{Split, Stream};
use self::cache::Images;
use self::listing::Listing;
pub use self::listing::{StyleFile, StyleFiles};
pub use self::loader::Loader;
use crate::config::gan::Fit;
use crate::data::images::warn_of_unreadable;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// The source of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder per style, WikiArt's layout: the folders' names are the styles, the images are below them at any depth.
    Folder(PathBuf),
    /// The procedural paintings (`data::art`) in their 27 styles.
    Paintings {
        /// The paintings' seed.
        seed: u64,
        /// Number of paintings of each style, both splits together.
        per_class: usize,
    },
}

/// Options for turning images into batches.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Width and height in pixels.
    pub size: u32,
    /// The method of making an image square.
    pub fit: Fit,
    /// Number of images of each style in a pass: styles with fewer repeat them, styles with more are resampled for each
    /// pass.
    pub per_class: usize,
    /// Fraction of each style's images that is held out, from 0 to below 1; at least one image if it is above 0.
    pub test_share: f64,
    /// The seed of the split.
    pub seed: u64,
}

/// Images by style: cached, split, and ready to be loaded.
#[derive(Debug)]
pub struct StyleImages {
    images: Arc<Images>,
    split: Arc<Split>,
    per_class: usize,
    source: Source,
}

/// Images and their styles, on the CPU.
#[derive(Debug)]
pub struct StyleBatch {
    /// Images, f32 [n, 3, size, size] in [−1, 1].
    pub images: Tensor,
    /// Styles, i64 \[n\]: indices into [`StyleImages::styles`].
    pub styles: Tensor,
}

impl StyleImages {
    /// Opens the images of `source`: from `cache_folder`/images if they are cached, else by reading, squaring and
    /// resizing each of them once.
    ///
    /// Broken images are named in the log and left out; copies of an image within a style are left out too.
    ///
    /// # Errors
    /// If there are fewer than two styles, a style has no readable image or too few to hold any out, the cache cannot
    /// be written or does not fit on the disk, or `interrupt` is set: then no unfinished file is left behind.
    pub fn open(
        source: &Source,
        options: &Options,
        cache_folder: &Path,
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        ensure!(options.size > 0, "images must have at least one pixel per side");
        ensure!(options.per_class > 0, "a pass must have at least one image of each style");
        let share = options.test_share;
        ensure!((0.0..1.0).contains(&share), "the fraction of held-out images must be from 0 to below 1, not {share}");
        let folder = cache_folder.join("images");
        let listing = match source {
            Source::Folder(root) => Listing::of_folder(root, options, &folder, progress, interrupt)?,
            Source::Paintings { seed, per_class } => Listing::of_paintings(*seed, *per_class, options.size),
        };
        let images = Images::open(&listing, options, &folder, progress, interrupt)?;
        let broken: Vec<&str> = images.broken.iter().map(|image| &*image.why).collect();
        warn_of_unreadable(&broken, broken.len() + images.len());
        let split = balance::split(&images.styles, options.test_share, options.seed)?;
        let (images, split) = (Arc::new(images), Arc::new(split));
        Ok(Self { images, split, per_class: options.per_class, source: source.clone() })
    }

    /// Returns the styles' names, sorted; a batch's styles are indices into them.
    pub fn styles(&self) -> &[String] {
        &self.images.names
    }

    /// Returns the SHA-256 of the training data, in hexadecimal: the images' contents, size and preprocessing.
    pub fn digest(&self) -> &str {
        &self.images.key
    }

    /// Returns a short description: `27 styles, 2997 images of wikiart`.
    pub fn summary(&self) -> String {
        let source = match &self.source {
            Source::Folder(folder) => folder.display().to_string(),
            Source::Paintings { .. } => "the procedural paintings".to_owned(),
        };
        format!("{} styles, {} images of {source}", self.styles().len(), self.images.len())
    }

    /// Returns the number of training images, each counted once.
    pub fn n_train(&self) -> usize {
        self.split.training.iter().map(Vec::len).sum()
    }

    /// Returns the number of held-out images.
    pub fn n_test(&self) -> usize {
        self.split.held_out.len()
    }

    /// Returns the number of images that could not be read.
    pub fn n_broken(&self) -> usize {
        self.images.broken.len()
    }

    /// Returns the number of images in a pass: `per_class` of each style.
    pub fn per_pass(&self) -> usize {
        self.styles().len() * self.per_class
    }

    /// Returns the endless stream of training batches from step `first_step` on, prefetched by its own thread.
    ///
    /// Step k has the positions k · `batch_size` to (k + 1) · `batch_size` of the stream of passes, so that a stream
    /// from `first_step` is the stream from 0 without its first `first_step` batches. With `flip`, each image is
    /// mirrored with probability 1/2. The order of pass p depends only on (`seed`, p), the mirroring of step k only on
    /// (`seed`, k).
    ///
    /// # Panics
    /// If `batch_size` is 0.
    pub fn loader(&self, batch_size: usize, flip: bool, seed: u64, first_step: u64) -> Loader {
        assert!(batch_size > 0, "a batch has at least one image");
        let stream = Stream::new(Arc::clone(&self.split), self.per_class, seed);
        Loader::start(Arc::clone(&self.images), stream, batch_size, flip, first_step)
    }

    /// Returns `count` held-out images, or all if there are fewer, evenly spaced in their order by style.
    ///
    /// # Errors
    /// If the cache can no longer be read.
    pub fn some_held_out(&self, count: usize) -> Result<StyleBatch> {
        let held_out = &self.split.held_out;
        let n = count.min(held_out.len());
        let chosen: Vec<usize> = (0..n).map(|i| held_out[i * held_out.len() / n]).collect();
        loader::batch(&self.images, &chosen, &[])
    }

    /// Returns every held-out image once, by style; the last batch may be smaller.
    ///
    /// # Panics
    /// If `batch_size` is 0.
    pub fn test_batches(&self, batch_size: usize) -> impl Iterator<Item = Result<StyleBatch>> {
        let held_out = self.split.held_out.chunks(batch_size);
        held_out.map(|indices| loader::batch(&self.images, indices, &[]))
    }
}

#[cfg(test)]
mod tests;
