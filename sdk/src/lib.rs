//! Write a style classifier plugin for Ambiguity.
//!
//! A plugin returns the probability of each style for each sample of a batch. The host trains an image generator to
//! make that distribution flat. A plugin is a type with two functions, [`Classifier::describe`] and
//! [`Classifier::classify`], and one line, [`export!`]:
//!
//! ```
//! use ambiguity_sdk::{Batch, Classifier, Description, Distribution, Distributions, Result};
//!
//! /// How red, green or blue an image is.
//! struct Palette;
//!
//! impl Classifier for Palette {
//!     fn describe() -> Result<Description> {
//!         Ok(Description::new("palette", "1.0.0").styles(["red", "green", "blue"]).medium("image"))
//!     }
//!
//!     fn classify(batch: &Batch) -> Result<Distributions> {
//!         (0..batch.len())
//!             .map(|i| {
//!                 let mut sums = [1.0; 3];
//!                 for pixel in batch.image(i)?.rgb.chunks_exact(3) {
//!                     for (sum, &channel) in sums.iter_mut().zip(pixel) {
//!                         *sum += f32::from(channel);
//!                     }
//!                 }
//!                 Distribution::from_weights(sums.to_vec())
//!             })
//!             .collect()
//!     }
//! }
//!
//! ambiguity_sdk::export!(Palette);
//!
//! // The rest belongs in the plugin's tests: `cargo test` runs plugin code natively against a fake host.
//! use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample};
//!
//! let red = FakeSample::image(2, 2, [255, 0, 0].repeat(4));
//! let distributions = FakeHost::new().classify::<Palette>(FakeBatch::new([red])).unwrap();
//! assert!(distributions.row(0)[0] > 0.99);
//! ```
//!
//! Built with `cargo build-plugin -p palette` (target `wasm32-unknown-unknown`, linker `wasm-component-ld`), it is
//! a component without any WASI import, and `host plugin classify palette.wasm image.png` runs it.
//!
//! # Layout
//!
//! - [`Classifier`], [`Gradient`], [`Description`], [`export!`]: a plugin's traits, description and export.
//! - [`Batch`], [`Image`], [`Audio`]: its input.
//! - [`host`]: the other functions of the host: encoders, baked assets, configuration, the log.
//! - [`Distribution`], [`Distributions`], [`Matrix`], [`MatrixView`], [`math`]: values, checked, and arithmetic on flat slices.
//! - [`heads`]: k-means and CLIP-softmax classifiers over one embedding, with exact gradients.
//! - [`Manifest`]: the metadata baked into a plugin that was created without a compiler.
//! - [`testing`]: the fake host.

mod batch;
mod classifier;
mod distribution;
mod error;
mod glue;
pub mod heads;
pub mod host;
mod lanes;
mod manifest;
pub mod math;
mod matrix;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use batch::{Audio, Batch, Image};
pub use classifier::{Classifier, Description, Gradient};
pub use distribution::{Distribution, Distributions, SUM_TOLERANCE};
pub use error::{Error, Result};
#[doc(hidden)]
pub use glue::{Glue, bindings};
pub use manifest::{EncoderPin, Manifest};
pub use matrix::{Matrix, MatrixView};

/// The version of the plugin interface (`wit/plugin.wit`) that this crate implements. [`export!`] writes it into the
/// plugin's custom section `ambiguity:interface`.
pub const INTERFACE_VERSION: &str = "0.1.0";
