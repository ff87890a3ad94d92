//! L_SA under a plugin, with its gradient with respect to the images: libtorch computes the embedding, the plugin the
//! distributions and their vector-Jacobian product, and libtorch the rest of the backward pass. A plugin with a gradient
//! with respect to the pixels gets the images themselves, rounded to 8 bits, and the rounding counts as the identity.

use std::sync::Arc;

use image::RgbImage;
use ndarray::Array2;
use tch::{Kind, Tensor, no_grad};

use crate::encoders::{EncoderError, Encoders, array};
use crate::plugin::{Batch, Description, Distributions, Fault, Medium, Plugin, PluginError, Sample};
use crate::rl::reward;
use crate::run::LockedEncoder;

/// A plugin as the classifier C of L_SA.
pub struct PluginAmbiguity {
    plugin: Box<dyn Plugin>,
    encoders: Encoders,
    through: Through,
}

/// What the gradient flows through.
enum Through {
    /// The one encoder that the plugin asks for.
    Encoder {
        /// The name by which it asks.
        declared: String,
        /// The encoder's own name.
        name: String,
    },
    /// The pixels.
    Pixels,
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
    #[error("plugin {plugin} takes {media}, but a CAN generates images: choose a plugin for images")]
    Medium {
        /// The plugin.
        plugin: String,
        /// The media that it takes.
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
    /// If the plugin is a scorer, has no gradient, is not for images, or asks for no encoder or several; or if the encoder
    /// cannot be loaded.
    pub fn new(plugin: Box<dyn Plugin>, mut encoders: Encoders) -> Result<Self, AmbiguityError> {
        let (name, description) = (plugin.source().name.clone(), plugin.description());
        if !description.takes(Medium::Image) {
            return Err(AmbiguityError::Medium { plugin: name, media: description.media_names(", ") });
        }
        if description.scale().is_some() {
            return Err(PluginError::new(name, Fault::NoStyles).into());
        }
        if description.encoders.is_empty() && plugin.pixel_differentiable() {
            return Ok(Self { plugin, encoders, through: Through::Pixels });
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
        let through = Through::Encoder { declared: encoder.clone(), name: encoders.resolve(encoder)? };
        encoders.get(encoder)?;
        Ok(Self { plugin, encoders, through })
    }

    /// Returns the entry of the encoder for `plugins.lock`.
    pub fn locked_encoders(&mut self) -> Result<Vec<LockedEncoder>, EncoderError> {
        let encoder = match &self.through {
            Through::Encoder { name, .. } => Some(name),
            Through::Pixels => None,
        };
        LockedEncoder::all(encoder, &mut self.encoders)
    }

    /// Returns the plugin's description.
    pub fn description(&self) -> &Description {
        self.plugin.description()
    }

    /// Returns the number of styles; L_SA is at least its logarithm.
    pub fn n_styles(&self) -> usize {
        self.description().styles().len()
    }

    /// Returns L_SA of images, f32 [n, 3, s, s] in [-1, 1], with their graph.
    ///
    /// # Errors
    /// If there are no images, they are not finite, or the plugin fails.
    pub fn loss(&mut self, images: &Tensor) -> Result<Ambiguity, AmbiguityError> {
        let (input, mut batch) = self.input(images)?;
        let distributions = self.plugin.classify(&mut batch, &mut self.encoders)?;
        let upstream = upstream(&distributions);
        let gradient = match &self.through {
            Through::Encoder { declared, .. } => {
                let gradient = self.plugin.embedding_vjp(&mut batch, &mut self.encoders, declared, &upstream)?;
                gradient.into_raw_vec_and_offset().0
            }
            Through::Pixels => self.plugin.pixel_vjp(&mut batch, &mut self.encoders, &upstream)?.concat(),
        };
        let gradient = Tensor::f_from_slice(&gradient)
            .and_then(|flat| flat.f_view(&input.size()[..])?.f_to_device(input.device()))
            .map_err(ambiguity_models::Error::from)?;
        // The gradient is a constant here, so the product's gradient with respect to the input equals it, and the chain
        // rule does the rest.
        let surrogate = (input * gradient).sum(Kind::Float);
        Ok(Ambiguity { surrogate, value: mean_cross_entropy(&distributions), distributions })
    }

    /// Returns C(x) of images, [n, 3, s, s] in [-1, 1], without gradients.
    ///
    /// # Errors
    /// As [`PluginAmbiguity::loss`].
    pub fn classify(&mut self, images: &Tensor) -> Result<Distributions, AmbiguityError> {
        let (_, mut batch) = no_grad(|| self.input(images))?;
        Ok(self.plugin.classify(&mut batch, &mut self.encoders)?)
    }

    /// Returns the plugin's input, with its graph for libtorch and without it for the plugin: raw embeddings [n, dim], or
    /// pixel values in [0, 1], [n, s, s, 3].
    fn input(&mut self, images: &Tensor) -> Result<(Tensor, Batch), AmbiguityError> {
        if images.size().first().is_none_or(|&n| n == 0) {
            return Err(ambiguity_models::Error::Input("there are no images to classify".to_owned()).into());
        }
        let images = (images + 1.0) * 0.5;
        let input = match &self.through {
            Through::Encoder { name, .. } => self.encoders.embed_tensor(name, &images)?,
            Through::Pixels => images.permute([0, 2, 3, 1]),
        };
        let rows = array(&input.flatten(1, -1))?;
        if let Some(sample) = rows.rows().into_iter().position(|row| row.iter().any(|x| !x.is_finite())) {
            return Err(AmbiguityError::NotFinite { sample });
        }
        let batch = match &self.through {
            Through::Encoder { name, .. } => Batch::of_embeddings(name, rows),
            Through::Pixels => {
                let (_, height, width, _) = input.size4().map_err(ambiguity_models::Error::from)?;
                Batch::new(rows.rows().into_iter().map(|row| sample(row.iter(), width, height)).collect())
            }
        };
        Ok((input, batch))
    }
}

/// Returns an image of pixel values in [0, 1], which are clamped and rounded to 8 bits.
fn sample<'a>(values: impl Iterator<Item = &'a f32>, width: i64, height: i64) -> Sample {
    let bytes = values.map(|value| (255.0 * value.clamp(0.0, 1.0)).round_ties_even() as u8).collect();
    let image = RgbImage::from_raw(width as u32, height as u32, bytes).expect("three values per pixel");
    Sample { image: Some(Arc::new(image)), ..Sample::default() }
}

/// Returns L_SA: CE(C(x), U) averaged over the images.
pub fn mean_cross_entropy(distributions: &Distributions) -> f64 {
    let sum: f64 = distributions.rows.iter().map(|row| -reward::ambiguity(row)).sum();
    sum / distributions.rows.len() as f64
}

/// Returns dL_SA/d(ln p), p/n − 1/(n N): the gradient −1/(n N) for log-probabilities that are renormalized, as the host does
/// with a plugin's. For a plugin whose rows always sum to 1 the two agree: a softmax's gradient is the same for both.
fn upstream(distributions: &Distributions) -> Array2<f32> {
    let (n_samples, n_styles) = (distributions.rows.len(), distributions.styles);
    Array2::from_shape_fn((n_samples, n_styles), |(i, style)| {
        let p = distributions.rows[i][style].exp();
        ((p - 1.0 / n_styles as f64) / n_samples as f64) as f32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_is_the_derivative_of_the_value() {
        let rows = [vec![0.2f64, 0.5, 0.3], vec![0.9, 0.06, 0.04]].map(|row| row.into_iter().map(f64::ln).collect());
        let rows: Vec<Vec<f64>> = rows.to_vec();
        let value = |rows: &[Vec<f64>]| {
            let normalized = rows.iter().map(|row: &Vec<f64>| {
                let log_sum = row.iter().map(|log_p| log_p.exp()).sum::<f64>().ln();
                row.iter().map(|log_p| log_p - log_sum).collect()
            });
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
    fn the_gradient_is_whole_where_the_softmax_is_saturated() {
        let rows = vec![vec![0.0, -800.0], vec![0.0, -70.0]];
        let upstream = upstream(&Distributions { styles: 2, rows });
        assert!(upstream.rows().into_iter().all(|row| row[1] == -0.25 && row[0] == 0.25), "{upstream}");
    }
}
