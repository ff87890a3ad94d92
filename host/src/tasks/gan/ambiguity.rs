//! L_SA under a plugin, with its gradient with respect to the images: libtorch computes the embedding, the plugin the
//! distributions and their vector-Jacobian product, and libtorch the rest of the backward pass.

use ndarray::Array2;
use tch::{Kind, Tensor, no_grad};

use crate::encoders::{EncoderError, Encoders, array};
use crate::plugin::{Batch, Classifier, Description, Distributions, Fault, PluginError};
use crate::rl::reward;
use crate::run::LockedEncoder;

/// The medium that a generator produces.
const MEDIUM: &str = "image";

/// A plugin as the classifier C of L_SA.
pub struct PluginAmbiguity {
    plugin: Box<dyn Classifier>,
    encoders: Encoders,
    /// The resolved name of the one encoder that the plugin asks for.
    encoder: String,
}

/// L_SA of a batch.
#[derive(Debug)]
pub struct Ambiguity {
    /// A scalar on the encoder's device whose gradient with respect to the images is that of L_SA; its value is not
    /// L_SA. It is linear in the gradient, so it may be weighted.
    pub surrogate: Tensor,
    /// CE(C(x), U) averaged over the images; at least the logarithm of the number of styles.
    pub value: f64,
    /// C(x), one per image.
    pub distributions: Distributions,
}

/// Why L_SA could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum AmbiguityError {
    /// The plugin has no gradient, or failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The encoder is missing, or failed.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// libtorch failed, or there are no images.
    #[error(transparent)]
    Tensor(#[from] ambiguity_models::Error),
    /// The plugin is not for images.
    #[error("plugin {plugin} classifies {media}, but a CAN generates images: choose a plugin for images")]
    Medium {
        /// The plugin.
        plugin: String,
        /// The media that it classifies.
        media: String,
    },
    /// The plugin asks for no encoder or for several, but a gradient needs exactly one.
    #[error("plugin {plugin} asks for {found}, but a gradient flows through exactly one: choose another plugin")]
    OneEncoder {
        /// The plugin.
        plugin: String,
        /// The encoders that it asks for.
        found: String,
    },
    /// The images are not finite.
    #[error("the embedding of image {sample} of a batch is not finite")]
    NotFinite {
        /// The first such image of the batch.
        sample: usize,
    },
}

impl PluginAmbiguity {
    /// Wraps a plugin, and loads the encoder that it asks for.
    ///
    /// # Errors
    /// If the plugin has no gradient, is not for images, or asks for no encoder or several; or if the encoder cannot be
    /// loaded.
    pub fn new(plugin: Box<dyn Classifier>, mut encoders: Encoders) -> Result<Self, AmbiguityError> {
        let (name, description) = (plugin.source().name.clone(), plugin.description());
        if !description.media.iter().any(|medium| medium == MEDIUM) {
            return Err(AmbiguityError::Medium { plugin: name, media: description.media.join(", ") });
        }
        if !plugin.differentiable() {
            return Err(PluginError::new(name, Fault::NoGradient).into());
        }
        let [encoder] = &description.encoders[..] else {
            let found = match &description.encoders[..] {
                [] => "no encoder".to_owned(),
                several => format!("the encoders {}", several.join(", ")),
            };
            return Err(AmbiguityError::OneEncoder { plugin: name, found });
        };
        let encoder = encoders.resolve(encoder)?;
        encoders.get(&encoder)?;
        Ok(Self { plugin, encoders, encoder })
    }

    /// Returns the entry of the encoder for `plugins.lock`.
    pub fn locked_encoders(&mut self) -> Result<Vec<LockedEncoder>, EncoderError> {
        LockedEncoder::all([&self.encoder], &mut self.encoders)
    }

    /// Returns the plugin's description.
    pub fn description(&self) -> &Description {
        self.plugin.description()
    }

    /// Returns the number of styles; L_SA is at least its logarithm.
    pub fn n_styles(&self) -> usize {
        self.description().styles.len()
    }

    /// Returns L_SA of images, f32 [n, 3, s, s] in [-1, 1], with their graph.
    ///
    /// # Errors
    /// If there are no images, they are not finite, or the plugin fails.
    pub fn loss(&mut self, images: &Tensor) -> Result<Ambiguity, AmbiguityError> {
        let (embeddings, mut batch) = self.embed(images)?;
        let distributions = self.plugin.classify(&mut batch, &mut self.encoders)?.distributions;
        let gradient = self.plugin.embedding_vjp(&mut batch, &mut self.encoders, &upstream(&distributions))?;
        let shape = [gradient.nrows() as i64, gradient.ncols() as i64];
        let gradient = Tensor::f_from_slice(&gradient.into_raw_vec_and_offset().0)
            .and_then(|flat| flat.f_view(shape)?.f_to_device(embeddings.device()))
            .map_err(ambiguity_models::Error::from)?;
        // The gradient is a constant here, so the product's gradient with respect to the embeddings equals it, and the
        // chain rule does the rest.
        let surrogate = (embeddings * gradient).sum(Kind::Float);
        Ok(Ambiguity { surrogate, value: mean_cross_entropy(&distributions), distributions })
    }

    /// Returns C(x) of images, [n, 3, s, s] in [-1, 1], without gradients.
    ///
    /// # Errors
    /// As [`PluginAmbiguity::loss`].
    pub fn classify(&mut self, images: &Tensor) -> Result<Distributions, AmbiguityError> {
        let (_, mut batch) = no_grad(|| self.embed(images))?;
        Ok(self.plugin.classify(&mut batch, &mut self.encoders)?.distributions)
    }

    /// Returns raw embeddings [n, dim], with their graph for libtorch and without it for the plugin.
    fn embed(&mut self, images: &Tensor) -> Result<(Tensor, Batch), AmbiguityError> {
        if images.size().first().is_none_or(|&n| n == 0) {
            return Err(ambiguity_models::Error::Input("there are no images to classify".to_owned()).into());
        }
        let embeddings = self.encoders.embed_tensor(&self.encoder, &((images + 1.0) * 0.5))?;
        let rows = array(&embeddings)?;
        if let Some(sample) = rows.rows().into_iter().position(|row| row.iter().any(|x| !x.is_finite())) {
            return Err(AmbiguityError::NotFinite { sample });
        }
        let batch = Batch::of_embeddings(&self.encoder, rows);
        Ok((embeddings, batch))
    }
}

/// Returns L_SA: CE(C(x), U) averaged over the images, with probabilities floored as in rewards.
pub fn mean_cross_entropy(distributions: &Distributions) -> f64 {
    let sum: f64 = distributions.rows.iter().map(|row| -reward::ambiguity(row)).sum();
    sum / distributions.rows.len() as f64
}

/// Returns dL_SA/dp, (1 − 1 / (N p)) / n: the equivalent of −1 / (n N p) for probabilities that are divided by their
/// sum, as the host does with a plugin's. For a plugin whose rows always sum to 1 the two agree, but this form is more
/// precise, since nearly all of it cancels in f64.
///
/// p is not floored as in the value, but only where 1 / p would overflow: the gradient of a softmax has p again as a
/// factor, and p · 1 / p is exact however saturated it is. A floor would remove the gradient exactly where an image is
/// least ambiguous.
fn upstream(distributions: &Distributions) -> Array2<f32> {
    let (n_samples, n_styles) = (distributions.rows.len(), distributions.styles);
    Array2::from_shape_fn((n_samples, n_styles), |(i, style)| {
        let p = distributions.rows[i][style].max(f64::from(f32::MIN_POSITIVE));
        ((1.0 - 1.0 / (n_styles as f64 * p)) / n_samples as f64) as f32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_is_the_derivative_of_the_value() {
        let rows = vec![vec![0.2, 0.5, 0.3], vec![0.9, 0.06, 0.04]];
        let value = |rows: &[Vec<f64>]| {
            let normalized = rows.iter().map(|row| row.iter().map(|p| p / row.iter().sum::<f64>()).collect());
            mean_cross_entropy(&Distributions { styles: 3, rows: normalized.collect() })
        };
        let upstream = upstream(&Distributions { styles: 3, rows: rows.clone() });
        for ((i, style), &found) in upstream.indexed_iter() {
            let at = |step: f64| {
                let mut rows = rows.clone();
                rows[i][style] += step;
                value(&rows)
            };
            let wanted = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((f64::from(found) - wanted).abs() < 1e-6, "sample {i}, style {style}: {found} is not {wanted}");
        }
    }

    #[test]
    fn upstream_is_finite_and_not_floored_where_the_softmax_is_saturated() {
        let upstream = upstream(&Distributions { styles: 2, rows: vec![vec![1.0, 0.0], vec![1.0 - 1e-30, 1e-30]] });
        assert!(upstream.iter().all(|u| u.is_finite()), "{upstream}");
        assert!((f64::from(upstream[(1, 1)]) * 1e-30 + 0.25).abs() < 1e-6, "p · 1 / p over n N: {upstream}");
    }
}
