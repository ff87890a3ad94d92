//! Write a plugin for Ambiguity: a style classifier, or a scalar reward.
//!
//! The host trains a generator on what plugins return. A *classifier* returns the probability of each style for each
//! sample of a batch, and the host trains the generator to make that distribution flat. A *scorer* returns one number. A
//! plugin is a type that implements [`Plugin`] and [`Classifier`] or [`Scorer`], and one line, [`export!`]:
//!
//! ```
//! use ambiguity_sdk::{Batch, Classifier, Description, Distribution, Distributions, Host, Medium, Plugin, Result};
//!
//! /// How red, green or blue an image is.
//! struct Palette;
//!
//! ambiguity_sdk::export!(Palette: Classifier);
//!
//! impl Plugin for Palette {
//!     fn new(_host: &Host) -> Result<Self> {
//!         Ok(Self)
//!     }
//!
//!     fn describe(&self) -> Description {
//!         Description::new("palette", "1.0.0").medium(Medium::Image)
//!     }
//! }
//!
//! impl Classifier for Palette {
//!     fn styles(&self) -> Vec<String> {
//!         ["red", "green", "blue"].map(String::from).to_vec()
//!     }
//!
//!     fn classify(&self, batch: &Batch) -> Result<Distributions> {
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
//! // The rest belongs in the plugin's tests: `cargo test` runs plugin code natively against a fake host.
//! use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample};
//!
//! let host = FakeHost::new();
//! let red = FakeSample::image(2, 2, [255, 0, 0].repeat(4));
//! let distributions = host.load::<Palette>().unwrap().classify(&FakeBatch::new([red])).unwrap();
//! assert!(distributions.probabilities(0)[0] > 0.99);
//! ```
//!
//! Built with `cargo build-plugin` (target `wasm32-unknown-unknown`, linker `wasm-component-ld`), it is a component
//! without any WASI import, and `host plugin classify palette.wasm image.png` runs it.
//!
//! # Layout
//!
//! - [`Plugin`], [`Classifier`], [`Scorer`], [`Gradient`], [`PixelGradient`], [`export!`]: the traits and the export.
//! - [`Description`], [`PluginOption`], [`Scale`], [`Medium`]: what a plugin says of itself.
//! - [`Batch`], [`Image`], [`Audio`], [`Video`], [`Tensor`]: its input.
//! - [`Host`]: the other functions of the host: baked assets, configuration, the log.
//! - [`Distribution`], [`Distributions`], [`Matrix`], [`MatrixView`], [`math`]: values, checked, and arithmetic on flat slices.
//! - [`heads`]: classifiers over one embedding, with exact gradients.
//! - [`resize`]: the filter of `image-resized`.
//! - [`Manifest`]: the metadata baked into a plugin that was created without a compiler.
//! - [`testing`]: the fake host.

mod batch;
mod distribution;
mod error;
mod glue;
pub mod heads;
mod host;
mod lanes;
mod manifest;
pub mod math;
mod matrix;
mod plugin;
pub mod resize;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use batch::{Audio, Batch, Image, Tensor, Video};
pub use distribution::{Distribution, Distributions, SUM_TOLERANCE};
pub use error::{Error, Result};
#[doc(hidden)]
pub use glue::{Glue, bindings, check_kinds};
pub use host::{EncoderInfo, Host, Level, TokenFeatures};
pub use manifest::{EncoderPin, Manifest};
pub use matrix::{Matrix, MatrixView};
pub use plugin::{
    Classifier, Description, Gradient, Medium, OptionInfo, OptionType, OptionValue, PixelGradient, Plugin,
    PluginOption, Scale, Scorer,
};

/// The least version of the plugin interface (`wit/plugin.wit`) that a plugin of this crate needs, whatever the crate's
/// own version. [`export!`] writes it into the plugin's custom section `ambiguity:interface`. A function that is added to
/// the interface later needs a feature of this crate, which raises the version for the plugins that use it alone.
pub const INTERFACE_VERSION: &str = "0.2.0";
