//! L_SA under a plugin, with its gradient in the images: the embedding by libtorch, the distributions and their
//! vector-Jacobian product by the plugin, and back into libtorch.

use ndarray::Array2;
use tch::{Kind, Tensor, no_grad};

use crate::encoders::{EncoderError, Encoders, array};
use crate::plugin::{Batch, Classifier, Description, Distributions, Fault, PluginError};
use crate::rl::reward;

/// The medium of a generator.
const MEDIUM: &str = "image";

/// A plugin as the classifier C of L_SA.
pub struct PluginAmbiguity {
    plugin: Box<dyn Classifier>,
    encoders: Encoders,
    /// The real name of the one encoder that the plugin asks for.
    encoder: String,
}

/// L_SA of a batch.
#[derive(Debug)]
pub struct Ambiguity {
    /// A scalar on the encoder's device whose gradient in the images is that of L_SA; its value is not L_SA's. A
    /// weight times it has a weight times the gradient.
    pub surrogate: Tensor,
    /// CE(C(x), U) averaged over the images; at least ln of the styles' number.
    pub value: f64,
    /// C(x), one per image.
    pub distributions: Distributions,
}

/// Why there is no L_SA.
#[derive(Debug, thiserror::Error)]
pub enum AmbiguityError {
    /// The plugin has no gradient, or failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The encoder is not there, or failed.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// libtorch failed, or the images are none.
    #[error(transparent)]
    Tensor(#[from] ambiguity_models::Error),
    /// The plugin is for something else.
    #[error("plugin {plugin} classifies {media}, but a CAN generates images: choose a plugin for images")]
    Medium {
        /// The plugin.
        plugin: String,
        /// What it classifies.
        media: String,
    },
    /// The plugin has no embedding, or several, through which a gradient could flow.
    #[error("plugin {plugin} asks for {found}, but a gradient flows through exactly one: choose another plugin")]
    OneEncoder {
        /// The plugin.
        plugin: String,
        /// The encoders that it asks for.
        found: String,
    },
    /// The images are no longer numbers.
    #[error("the embedding of image {sample} of a batch is not finite")]
    NotFinite {
        /// The first such image of the batch.
        sample: usize,
    },
}

impl PluginAmbiguity {
    /// Takes a plugin, and loads the encoder that it asks for.
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

    /// What the plugin says of itself.
    pub fn description(&self) -> &Description {
        self.plugin.description()
    }

    /// Number of styles; L_SA is at least its logarithm.
    pub fn n_styles(&self) -> usize {
        self.description().styles.len()
    }

    /// L_SA of images, f32 [n, 3, s, s] on [-1, 1] with the graph that made them.
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
        // The gradient is a constant here, so that of the product in the embeddings is it, and the chain rule does the
        // rest.
        let surrogate = (embeddings * gradient).sum(Kind::Float);
        Ok(Ambiguity { surrogate, value: mean_cross_entropy(&distributions), distributions })
    }

    /// C(x) of images, [n, 3, s, s] on [-1, 1], without gradients.
    ///
    /// # Errors
    /// As [`PluginAmbiguity::loss`].
    pub fn classify(&mut self, images: &Tensor) -> Result<Distributions, AmbiguityError> {
        let (_, mut batch) = no_grad(|| self.embed(images))?;
        Ok(self.plugin.classify(&mut batch, &mut self.encoders)?.distributions)
    }

    /// Raw embeddings [n, dim], with their graph for libtorch and without it for the plugin.
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

/// L_SA: CE(C(x), U) averaged over the images, with probabilities floored as rewards have it.
pub fn mean_cross_entropy(distributions: &Distributions) -> f64 {
    let sum: f64 = distributions.rows.iter().map(|row| -reward::ambiguity(row)).sum();
    sum / distributions.rows.len() as f64
}

/// dL_SA/dp, (1 − 1 / (N p)) / n: what −1 / (n N p) is for probabilities that are divided by their sum, as the host does
/// with a plugin's. A plugin whose rows sum to 1 whatever the embedding gives the same for both, to more digits here,
/// where nearly all is canceled in f64.
///
/// p is not floored as in the value, but only where 1 / p would overflow: the gradient of a softmax has p again as a
/// factor, and p · 1 / p is exact however saturated it is. A floor would take the gradient away just where an image is
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
