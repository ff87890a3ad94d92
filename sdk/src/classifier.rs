//! What a plugin is.

use crate::batch::Batch;
use crate::distribution::Distributions;
use crate::error::Result;
use crate::matrix::Matrix;

/// A style classifier. Each batch meets a fresh instance of the plugin, so nothing is remembered in between, and the
/// same batch gives the same distributions: there is no clock and no randomness.
pub trait Classifier {
    /// What the plugin is and needs. Asked once, when it is loaded, before there is any batch or encoder: it may read
    /// the baked assets and the configuration.
    fn describe() -> Result<Description>;

    /// One distribution per sample over the styles described.
    fn classify(batch: &Batch) -> Result<Distributions>;
}

/// A classifier over one embedding that can also say how its distributions change with it: what training by gradient
/// needs. `export!(MyPlugin, gradient)` exports both.
pub trait Gradient: Classifier {
    /// The vector–Jacobian product: `upstream` is dL/d(distributions), samples × styles; the result is
    /// dL/d(raw embedding), samples × dim.
    fn embedding_vjp(batch: &Batch, upstream: &Matrix) -> Result<Matrix>;
}

/// What a plugin is and needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// A short name.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// The styles, in the order of a distribution's entries; at least two, all different.
    pub styles: Vec<String>,
    /// What it classifies: "image", "text", "audio".
    pub media: Vec<String>,
    /// The encoders whose embeddings it asks for, by name; "clip" is the run's default one.
    pub encoders: Vec<String>,
}

impl Description {
    /// A description with a name and version (`env!("CARGO_PKG_VERSION")`), to be filled by the methods below.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { name: name.into(), version: version.into(), styles: vec![], media: vec![], encoders: vec![] }
    }

    /// With these styles.
    pub fn styles(mut self, styles: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.styles = styles.into_iter().map(Into::into).collect();
        self
    }

    /// With one more medium that the plugin classifies.
    pub fn medium(mut self, medium: impl Into<String>) -> Self {
        self.media.push(medium.into());
        self
    }

    /// With one more encoder that the plugin asks for.
    pub fn encoder(mut self, encoder: impl Into<String>) -> Self {
        self.encoders.push(encoder.into());
        self
    }
}
