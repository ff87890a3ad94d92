//! Metrics of images: rewards under plugins, diversity.
//!
//! # Layout
//!
//! - [`scorer`]: scores of images by the plugins of a run.
//! - [`diversity`]: diversity of images.

pub mod diversity;
pub mod scorer;

pub use self::scorer::{Scorer, Scores};
