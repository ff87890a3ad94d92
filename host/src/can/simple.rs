//! A step of the simple classifier: the discriminator's convolutions and style head, trained by cross-entropy on real
//! images alone (the paper's section 3.4).

use ambiguity_models::can::{Discriminator, loss};
use ambiguity_models::params::NamedTensors;
use anyhow::Result;
use tch::Device;
use torch_ext::Generator as Randomness;

use super::config::{Can, CanConfig};
use super::figures::Figures;
use super::job::{Job, Look, Stage, right_share, told};
use super::networks::{self, Trained};
use crate::canvas::text::number;
use crate::data::styles::{StyleBatch, StyleImages};
use crate::random::{Purpose, derive_seed};

/// A held-out cross-entropy of so many times that of guessing is no overfitting any more.
const ASTRAY: f64 = 10.0;

/// The classifier and what trains it.
pub struct Simple {
    can: Can,
    styles: Vec<String>,
    network: Trained<Discriminator>,
    device: Device,
}

impl Simple {
    /// A fresh network for the styles of `data`.
    pub fn new(config: &CanConfig, data: &StyleImages, device: Device) -> Result<Self> {
        let seed = derive_seed(config.run.seed, 0, 0, Purpose::Weights);
        let of_styles = config.discriminator(data.styles().len());
        let network = Trained::fresh(seed, device, &config.can.adam, |p| Discriminator::new(p, &of_styles))?;
        Ok(Self { can: config.can.clone(), styles: data.styles().to_vec(), network, device })
    }
}

impl Job for Simple {
    fn step(&mut self, batch: &StyleBatch, randomness: &mut Randomness) -> Result<Figures> {
        let mut figures = Figures::default();
        self.network.optimizer.zero_grad();
        let logits = self.network.network.styles_train(&batch.images, randomness)?;
        let loss = loss::style(&logits, &batch.styles, self.can.label_smoothing);
        figures.add("loss", &loss);
        figures.add("accuracy", &right_share(&logits, &batch.styles));
        loss.f_backward()?;
        self.network.optimizer.step()?;
        Ok(figures)
    }

    fn look(&mut self, data: &StyleImages) -> Result<Look> {
        let told = told(&self.network.network, data, self.device)?;
        let monitor = serde_json::json!({ "accuracy": told.accuracy(), "loss": told.loss });
        Ok(Look { monitor, made: None, diversity: None, told: Some(told) })
    }

    fn warnings(&self, _means: &serde_json::Value, look: Option<&Look>, _stage: Stage) -> Vec<String> {
        let loss = look.and_then(|look| look.told.as_ref()).map(|told| told.loss);
        loss.and_then(|loss| warning_of_loss(loss, self.styles.len())).into_iter().collect()
    }

    fn not_finite(&self) -> Result<Option<String>> {
        self.network.not_finite("classifier")
    }

    fn state(&self) -> NamedTensors {
        let mut state = NamedTensors::new();
        self.network.add_to(&mut state, "classifier");
        state
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        self.network.load_from(state, "classifier")
    }

    fn products(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = networks::discriminator_files(&self.network, &self.styles)?;
        let named = ("simple", "Style classifier trained by cross-entropy on images alone");
        let plugin = networks::plugin(&self.network, named, &self.styles, &self.can)?;
        files.push((networks::SIMPLE_PLUGIN.to_owned(), plugin));
        Ok(files)
    }

    fn parameters(&self) -> usize {
        self.network.n_parameters()
    }
}

/// A classifier that knows less than one that guesses.
fn warning_of_loss(loss: f64, n_styles: usize) -> Option<String> {
    let guessing = (n_styles as f64).ln();
    (loss > ASTRAY * guessing).then(|| {
        format!(
            "the cross-entropy of held-out images is {}, where guessing gives {guessing:.2}: training goes astray; lower \
             can.adam.learning_rate",
            number(loss, 2)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_classifier_that_is_worse_than_guessing_is_told() {
        let warning = warning_of_loss(1.8e10, 27).expect("it is far worse");
        assert!(warning.contains("is 1.80e10, where guessing gives 3.30"), "{warning}");
        assert_eq!(warning_of_loss(3.4, 27), None);
    }
}
