//! The traits that a plugin implements, and its description.

use crate::batch::Batch;
use crate::distribution::Distributions;
use crate::error::Result;
use crate::matrix::Matrix;

/// A style classifier. Each batch runs in a fresh instance of the plugin, so no state is kept between batches, and the
/// same batch always has the same distributions: there is no clock and no randomness.
pub trait Classifier {
    /// Returns the plugin's description. It is called once, when the plugin is loaded, before any batch or encoder
    /// exists: it may read the baked assets and the configuration.
    fn describe() -> Result<Description>;

    /// Returns one distribution over the described styles per sample.
    fn classify(batch: &Batch) -> Result<Distributions>;
}

/// A classifier over one embedding that also has the gradient of its distributions, which training by gradient needs.
/// `export!(MyPlugin, gradient)` exports both.
pub trait Gradient: Classifier {
    /// Returns the vector–Jacobian product: `upstream` is dL/d(distributions), samples × styles; the result is
    /// dL/d(raw embedding), samples × dim.
    fn embedding_vjp(batch: &Batch, upstream: &Matrix) -> Result<Matrix>;
}

/// A plugin's description: its name, its styles, and what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// A short name.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// The styles, in the order of a distribution's entries; at least two, all different.
    pub styles: Vec<String>,
    /// The media that it classifies: "image", "text", "audio".
    pub media: Vec<String>,
    /// The names of the encoders whose embeddings it uses; "clip" is the run's default one.
    pub encoders: Vec<String>,
}

impl Description {
    /// Returns a description with a name and version (`env!("CARGO_PKG_VERSION")`), for the methods below to complete.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { name: name.into(), version: version.into(), styles: vec![], media: vec![], encoders: vec![] }
    }

    /// Sets the styles.
    pub fn styles(mut self, styles: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.styles = styles.into_iter().map(Into::into).collect();
        self
    }

    /// Adds a medium that the plugin classifies.
    pub fn medium(mut self, medium: impl Into<String>) -> Self {
        self.media.push(medium.into());
        self
    }

    /// Adds an encoder that the plugin uses.
    pub fn encoder(mut self, encoder: impl Into<String>) -> Self {
        self.encoders.push(encoder.into());
        self
    }
}
