//! Images to numbers: rewards under plugins, diversity.
//!
//! # Layout
//!
//! - [`scorer`]: the plugins of a run over images.
//! - [`diversity`]: how much images differ from each other.

pub mod diversity;
pub mod scorer;

pub use self::scorer::{Scorer, Scores};
