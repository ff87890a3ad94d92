//! Metrics of images. The training's monitor and `host eval` are two callers of one [`Evaluator`].
//!
//! # Layout
//!
//! - [`evaluator`]: the plugins, encoders and networks; what they say of each image
//! - [`measured`]: the result, column by column
//! - [`agreement`]: whether plugins reward the same images
//! - [`catalog`]: the metrics by name, and what each needs
//! - [`networks`]: the networks of the paper's metrics
//! - [`summary`]: from columns to values with uncertainty
//! - [`diversity`]: diversity of images · [`reference`](mod@reference): images compared with reference images

pub mod agreement;
pub mod catalog;
pub mod diversity;
pub mod evaluator;
pub mod measured;
pub mod networks;
pub mod reference;
pub mod summary;

pub use self::evaluator::{Evaluator, Network, Scores};
pub use self::measured::{Column, Measured};
