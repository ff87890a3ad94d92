//! A step of generator and discriminator (the paper's section on CAN; Gulrajani et al., arXiv 1704.00028, for the
//! Wasserstein form): D learns on a batch of real and of made pictures, then G on what D says of the same made ones.

use ambiguity_models::can::{Discriminator, Generator, Pictures, loss};
use ambiguity_models::params::NamedTensors;
use ambiguity_models::pipeline::images_u8;
use anyhow::Result;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::{AdamW, Generator as Randomness};

use super::ambiguity::PluginAmbiguity;
use super::config::{CanConfig, LossForm};
use super::networks::{self, Trained};
use super::trainer::{Figures, Job, Look, add_state, load_state, right_share, told};
use crate::canvas::text::NO_BREAK_SPACE;
use crate::data::styles::{StyleBatch, StyleImages};
use crate::plugin::Distributions;
use crate::random::{Purpose, derive_seed};
use crate::reward::{Summary, ambiguity, entropy, top_probability};
use crate::run::Cell;
use crate::train::rgb_images;

/// Pictures in a grid.
const GRID_CELLS: usize = 40;
/// Pictures that an evaluation takes at once.
const AT_ONCE: usize = 64;
/// A discriminator that puts more than this share of (real, made) pairs in the right order leaves the log form's
/// generator without a gradient.
const SATURATED: f64 = 0.995;
/// A mean penalty above this means gradients of a norm of 2 and more, where 1 is wanted.
const LOOSE_PENALTY: f64 = 1.0;

/// C of the style ambiguity.
pub enum Judge {
    /// The discriminator's own style head, the paper's C = D_C.
    OwnHead,
    /// A plugin with a gradient.
    Plugin(Box<PluginAmbiguity>),
}

/// Both networks and all that trains them.
pub struct Adversarial {
    config: CanConfig,
    styles: Vec<String>,
    generator: Trained<Generator>,
    discriminator: Trained<Discriminator>,
    judge: Judge,
    /// f32 [count, latent], the same at every look.
    fixed_noise: Tensor,
    /// Mean pairwise distance of real pictures.
    real_diversity: f64,
    device: Device,
}

impl Adversarial {
    /// Fresh networks for the styles of `data`.
    pub fn new(config: &CanConfig, data: &StyleImages, judge: Judge, device: Device) -> Result<Self> {
        let seed = |index| derive_seed(config.run.seed, 0, index, Purpose::Weights);
        let generator = Trained::fresh(seed(0), device, &config.can.adam, |p| Generator::new(p, &config.generator()))?;
        let of_styles = config.discriminator(data.styles().len());
        let discriminator = Trained::fresh(seed(1), device, &config.can.adam, |p| Discriminator::new(p, &of_styles))?;
        let mut randomness = Randomness::cpu(derive_seed(config.run.seed, 0, 0, Purpose::Monitor))?;
        let fixed_noise = randomness.normal(&[config.monitor.count as i64, config.can.latent])?.to_device(device);
        Ok(Self {
            config: config.clone(),
            styles: data.styles().to_vec(),
            generator,
            discriminator,
            judge,
            fixed_noise,
            real_diversity: real_diversity(data, config.monitor.count)?,
            device,
        })
    }

    /// D's loss and its parts, and the real pictures' verdicts.
    fn discriminator_loss(
        &self,
        batch: &StyleBatch,
        made: &Tensor,
        randomness: &mut Randomness,
        figures: &mut Figures,
    ) -> Result<Tensor> {
        let (can, d) = (&self.config.can, &self.discriminator.network);
        let (of_real, styles) = if self.config.own_head() {
            let verdict = d.forward_train(&batch.images, Pictures::Real, randomness)?;
            (verdict.real, Some(verdict.styles))
        } else {
            (d.real_train(&batch.images, Pictures::Real), None)
        };
        let of_made = d.real_train(made, Pictures::Made);
        let ordered = of_real.detach().unsqueeze(1).gt_tensor(&of_made.detach().unsqueeze(0));
        let adversarial = match can.loss {
            LossForm::Wasserstein => loss::critic(&of_real, &of_made),
            LossForm::Log => loss::log_discriminator(&of_real, &of_made),
        };
        figures.add("loss/adversarial_discriminator", &adversarial);
        let mut terms = vec![adversarial];
        if can.loss == LossForm::Wasserstein && can.lambda > 0.0 {
            let mix = randomness.uniform(&[batch.images.size()[0]])?.to_device(self.device);
            let penalty =
                loss::gradient_penalty(&batch.images, made, &mix, |images| d.real_train(images, Pictures::Made))?;
            figures.add("loss/gradient_penalty", &penalty);
            terms.push(penalty * can.lambda);
        }
        if let Some(styles) = styles {
            let style = loss::style(&styles, &batch.styles, can.label_smoothing);
            figures.add("loss/style", &style);
            figures.add("style_accuracy", &right_share(&styles, &batch.styles));
            terms.push(style * can.style_weight);
        }
        // Not in place: the figures hold the terms.
        let total = terms.into_iter().reduce(|sum, term| sum + term).expect("there is the adversarial one");
        figures.add("loss/discriminator", &total);
        figures.add("discriminator_accuracy", &ordered.to_kind(Kind::Float).mean(Kind::Float));
        Ok(total)
    }

    /// G's loss and its parts.
    fn generator_loss(&mut self, made: &Tensor, randomness: &mut Randomness, figures: &mut Figures) -> Result<Tensor> {
        let (can, d) = (&self.config.can, &self.discriminator.network);
        // What a weight of 0 leaves out of the sum is not computed: it is watched by the monitor.
        let wanted = can.style_ambiguity_weight > 0.0;
        let (of_made, styles) = if wanted && matches!(self.judge, Judge::OwnHead) {
            let verdict = d.forward_train(made, Pictures::Made, randomness)?;
            (verdict.real, Some(verdict.styles))
        } else {
            (d.real_train(made, Pictures::Made), None)
        };
        let adversarial = match can.loss {
            LossForm::Wasserstein => loss::critic_generator(&of_made),
            LossForm::Log => loss::log_generator(&of_made, can.nonsaturating),
        };
        figures.add("loss/adversarial_generator", &adversarial);
        let weight = can.style_ambiguity_weight;
        let (total, watched) = match (&mut self.judge, styles) {
            (Judge::OwnHead, Some(styles)) => {
                let ambiguity = loss::ambiguity(&styles);
                figures.add("loss/ambiguity", &ambiguity);
                let total = adversarial + ambiguity * weight;
                let watched = total.shallow_clone();
                (total, watched)
            }
            (Judge::Plugin(plugin), _) if wanted => {
                let ambiguity = plugin.loss(made)?;
                let value = Tensor::from(ambiguity.value as f32).to_device(self.device);
                figures.add("loss/ambiguity", &value);
                // The surrogate has the loss's gradient, not its value.
                let watched = adversarial.detach() + value * weight;
                (adversarial + ambiguity.surrogate * weight, watched)
            }
            _ => {
                let watched = adversarial.shallow_clone();
                (adversarial, watched)
            }
        };
        figures.add("loss/generator", &watched);
        Ok(total)
    }

    fn judge(&mut self, images: &Tensor) -> Result<Distributions> {
        match &mut self.judge {
            Judge::Plugin(plugin) => Ok(plugin.judge(images)?),
            Judge::OwnHead => {
                let logits = no_grad(|| self.discriminator.network.forward(images).styles);
                let rows = logits.to_kind(Kind::Double).softmax(-1, Kind::Double).to_device(Device::Cpu);
                let rows = Vec::<Vec<f64>>::try_from(&rows)?;
                Ok(Distributions { styles: self.styles.len(), rows })
            }
        }
    }
}

impl Job for Adversarial {
    fn step(&mut self, batch: &StyleBatch, randomness: &mut Randomness) -> Result<Figures> {
        let mut figures = Figures::default();
        let noise = randomness.normal(&[batch.images.size()[0], self.config.can.latent])?.to_device(self.device);
        let made = self.generator.network.forward(&noise, true);

        self.discriminator.optimizer.zero_grad();
        self.discriminator_loss(batch, &made.detach(), randomness, &mut figures)?.f_backward()?;
        self.discriminator.optimizer.step()?;

        // The gradient goes through D without stopping at its weights, which saves a third of the backward pass.
        self.generator.optimizer.zero_grad();
        set_trained(&self.discriminator.optimizer, false);
        let generator_loss = self.generator_loss(&made, randomness, &mut figures);
        set_trained(&self.discriminator.optimizer, true);
        generator_loss?.f_backward()?;
        self.generator.optimizer.step()?;
        Ok(figures)
    }

    fn look(&mut self, data: &StyleImages) -> Result<Look> {
        let images = no_grad(|| {
            let parts = self.fixed_noise.split(AT_ONCE as i64, 0);
            let parts: Vec<_> = parts.iter().map(|noise| self.generator.network.forward(noise, false)).collect();
            Tensor::cat(&parts, 0)
        });
        let distributions = self.judge(&images)?;
        let rows = &distributions.rows;
        let mean = |of: fn(&[f64]) -> f64| Summary::of(&rows.iter().map(|row| of(row)).collect::<Vec<_>>()).mean;
        let diversity = pairwise_distance(&images);
        let mut monitor = serde_json::json!({
            "ambiguity": -mean(ambiguity), "entropy": mean(entropy), "top_probability": mean(top_probability),
            "diversity": diversity / self.real_diversity, "styles": distributions.styles,
        });
        let mut counts = None;
        if self.config.own_head() {
            let told = told(&self.discriminator.network, data, self.device)?;
            monitor["style_accuracy"] = told.accuracy().into();
            counts = Some(told);
        }
        let names = match &self.judge {
            Judge::OwnHead => &self.styles,
            Judge::Plugin(plugin) => &plugin.description().styles,
        };
        let cells = rgb_images(&images_u8(&images.narrow(0, 0, (GRID_CELLS as i64).min(images.size()[0]))))?;
        let cells = cells.into_iter().zip(rows).map(|(image, row)| {
            let likeliest = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
            let title = format!("{} {:.0}{NO_BREAK_SPACE}%", names[likeliest], 100.0 * row[likeliest]);
            Cell { image: image.as_ref().clone(), title, value: Some(ambiguity(row)) }
        });
        Ok(Look { monitor, cells: cells.collect(), told: counts })
    }

    fn warnings(&self, means: &serde_json::Value, look: Option<&Look>) -> (Vec<String>, bool) {
        let mut warnings = Vec::new();
        let accuracy = means["discriminator_accuracy"].as_f64().unwrap_or(0.5);
        if self.config.can.loss == LossForm::Log && accuracy > SATURATED {
            warnings.push(format!(
                "the discriminator tells {:.1} % of real and made pictures apart, which leaves the generator little to learn \
                 from: lower can.adam.learning_rate, or take can.nonsaturating = true or can.loss = \"wasserstein\"",
                100.0 * accuracy
            ));
        }
        let penalty = means["loss"]["gradient_penalty"].as_f64().unwrap_or(0.0);
        if penalty > LOOSE_PENALTY {
            warnings.push(format!(
                "the critic's gradient is far from a norm of 1 (penalty {penalty:.2}): lower can.adam.learning_rate or \
                 raise can.lambda"
            ));
        }
        let diversity = look.and_then(|look| look.monitor["diversity"].as_f64());
        let collapsed = diversity.is_some_and(|share| share < self.config.monitor.min_diversity);
        if let (true, Some(share)) = (collapsed, diversity) {
            warnings.push(format!(
                "made pictures differ by {:.0} % as much as real ones (monitor.min_diversity is {:.0} %): the generator has \
                 collapsed onto few pictures, or has not left its beginning; lower can.adam.learning_rate or \
                 can.style_ambiguity_weight",
                100.0 * share,
                100.0 * self.config.monitor.min_diversity
            ));
        }
        (warnings, collapsed)
    }

    fn state(&self) -> NamedTensors {
        let mut state = NamedTensors::new();
        add_state(&mut state, "generator", &self.generator);
        add_state(&mut state, "discriminator", &self.discriminator);
        state
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        load_state(state, "generator", &mut self.generator)?;
        load_state(state, "discriminator", &mut self.discriminator)
    }

    fn products(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = networks::generator_files(&self.generator)?;
        files.extend(networks::discriminator_files(&self.discriminator, &self.styles)?);
        if self.config.own_head() {
            let named = ("dcgan", "Style head of a creative adversarial network's discriminator");
            let plugin = networks::plugin(&self.discriminator, named, &self.styles, &self.config.can)?;
            files.push(("dcgan.onnx".to_owned(), plugin));
        }
        Ok(files)
    }

    fn parameters(&self) -> usize {
        self.generator.n_parameters() + self.discriminator.n_parameters()
    }
}

fn set_trained(optimizer: &AdamW, trained: bool) {
    for (_, tensor) in optimizer.parameters() {
        let _ = tensor.set_requires_grad(trained);
    }
}

/// The distance of `count` held-out pictures, evenly chosen, so that all styles are among them.
fn real_diversity(data: &StyleImages, count: usize) -> Result<f64> {
    let stride = (data.n_test() / count).max(1);
    let chosen = data.test_batches(1).step_by(stride).take(count);
    let images = chosen.map(|picture| Ok(picture?.images)).collect::<Result<Vec<_>>>()?;
    Ok(pairwise_distance(&Tensor::cat(&images, 0)))
}

/// Root mean square difference of all pairs of pictures, averaged; [n, 3, s, s].
fn pairwise_distance(images: &Tensor) -> f64 {
    let n = images.size()[0];
    let flat = images.detach().flatten(1, -1).to_kind(Kind::Float);
    let width = flat.size()[1] as f64;
    // ‖a − b‖² = ‖a‖² + ‖b‖² − 2 ab, about the common mean so that little is cancelled.
    let flat = &flat - flat.mean_dim([0i64].as_slice(), true, Kind::Float);
    let norms = flat.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let products = flat.matmul(&flat.tr()).to_kind(Kind::Double);
    let squares: Tensor = norms.unsqueeze(0) + norms.unsqueeze(1) - products * 2.0;
    let distances = (squares.clamp_min(0.0) / width).sqrt();
    let distances: Tensor = &distances - Tensor::diag_embed(&distances.diagonal(0, 0, 1), 0, 0, 1);
    distances.sum(Kind::Double).double_value(&[]) / (n * (n - 1)).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_is_the_mean_over_pairs() {
        let images = Tensor::from_slice(&[0.0f32, 0.0, 1.0, 1.0, 0.0, 2.0]).view([3, 1, 1, 2]);
        let wanted = (1.0 + 2.0f64.sqrt() + 1.0) / 3.0;
        assert!((pairwise_distance(&images) - wanted).abs() < 1e-6, "{}", pairwise_distance(&images));
    }
}
