//! A step of generator and discriminator (the paper's section on CAN; Gulrajani et al., arXiv 1704.00028, for the
//! Wasserstein form): D learns on a batch of real and of made images, then G on what D says of the same made ones.

use ambiguity_models::can::{Discriminator, Generator, ImageSource, loss};
use ambiguity_models::params::NamedTensors;
use ambiguity_models::pipeline::images_u8;
use anyhow::{Error, Result, ensure};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::{AdamW, Generator as Randomness};

use super::ambiguity::{AmbiguityError, PluginAmbiguity};
use super::config::{CanConfig, LossForm};
use super::figures::Figures;
use super::job::{AT_ONCE, Job, LEARNING_RATE, Look, Made, Stage, right_share, told};
use super::networks::{self, Trained};
use crate::canvas::text::{NO_BREAK_SPACE, number, two_digits};
use crate::data::styles::{StyleBatch, StyleImages};
use crate::random::{Purpose, derive_seed};
use crate::reward::{Summary, ambiguity, entropy, max_probability};
use crate::run::Cell;
use crate::train::{Diverged, rgb_images};

/// Images in a grid.
const GRID_CELLS: usize = 40;
/// A discriminator that puts more than this share of (real, made) pairs in the right order leaves the log form's
/// generator without a gradient.
const SATURATED: f64 = 0.995;
/// A mean penalty above this means gradients of a norm of 2 and more, where 1 is wanted.
const LOOSE_PENALTY: f64 = 1.0;

/// Between these multiples of the adversarial loss's draw, L_SA's neither goes under nor drowns it.
const SOUND_PULL: std::ops::RangeInclusive<f64> = 0.02..=50.0;

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
    /// Mean pairwise distance of real images.
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

    /// D's loss and its parts, and the real images' verdicts.
    fn discriminator_loss(
        &self,
        batch: &StyleBatch,
        made: &Tensor,
        randomness: &mut Randomness,
        figures: &mut Figures,
    ) -> Result<Tensor> {
        let (can, d) = (&self.config.can, &self.discriminator.network);
        let (of_real, styles) = if self.config.own_head() {
            let verdict = d.forward_train(&batch.images, ImageSource::Real, randomness)?;
            (verdict.real, Some(verdict.styles))
        } else {
            (d.real_train(&batch.images, ImageSource::Real), None)
        };
        let of_made = d.real_train(made, ImageSource::Fake);
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
                loss::gradient_penalty(&batch.images, made, &mix, |images| d.real_train(images, ImageSource::Fake))?;
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
            let verdict = d.forward_train(made, ImageSource::Fake, randomness)?;
            (verdict.real, Some(verdict.styles))
        } else {
            (d.real_train(made, ImageSource::Fake), None)
        };
        let adversarial = can.adversarial_generator(&of_made);
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
                let ambiguity = plugin.loss(made).map_err(diverged)?;
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

    /// How strongly L_SA, as it is weighted, draws made images, measured by how strongly the adversarial loss does: the
    /// ratio of their gradients' norms in the images. None where either draws nowhere.
    fn pull(&mut self, images: &Tensor) -> Result<Option<f64>> {
        let (can, d) = (&self.config.can, &self.discriminator.network);
        if can.style_ambiguity_weight == 0.0 {
            return Ok(None);
        }
        let images = images.detach().set_requires_grad(true);
        let norm = |loss: Tensor| -> Result<f64> {
            let gradient = Tensor::f_run_backward(&[loss], &[&images], false, false)?.remove(0);
            Ok(gradient.norm().double_value(&[]))
        };
        let adversarial = norm(can.adversarial_generator(&d.real_train(&images, ImageSource::Fake)))?;
        let ambiguity = norm(match &mut self.judge {
            Judge::OwnHead => loss::ambiguity(&d.forward(&images).styles),
            Judge::Plugin(plugin) => plugin.loss(&images).map_err(diverged)?.surrogate,
        })?;
        Ok((adversarial > 0.0 && ambiguity > 0.0).then(|| can.style_ambiguity_weight * ambiguity / adversarial))
    }

    /// The styles that C tells apart.
    fn judged_styles(&self) -> &[String] {
        match &self.judge {
            Judge::OwnHead => &self.styles,
            Judge::Plugin(plugin) => &plugin.description().styles,
        }
    }

    /// C's distribution of each image.
    fn judge(&mut self, images: &Tensor) -> Result<Vec<Vec<f64>>> {
        match &mut self.judge {
            Judge::Plugin(plugin) => Ok(plugin.judge(images).map_err(diverged)?.rows),
            Judge::OwnHead => {
                let logits = no_grad(|| self.discriminator.network.forward(images).styles);
                let rows = logits.to_kind(Kind::Double).softmax(-1, Kind::Double).to_device(Device::Cpu);
                Ok(Vec::<Vec<f64>>::try_from(&rows)?)
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
        let (mut parts, mut rows) = (Vec::new(), Vec::new());
        for noise in self.fixed_noise.split(AT_ONCE as i64, 0) {
            let images = no_grad(|| self.generator.network.forward(&noise, false));
            rows.extend(self.judge(&images)?);
            parts.push(images);
        }
        let pull = self.pull(&parts[0])?;
        let images = Tensor::cat(&parts, 0);
        let mean = |of: fn(&[f64]) -> f64| Summary::of(&rows.iter().map(|row| of(row)).collect::<Vec<_>>()).mean;
        let diversity = pairwise_distance(&images) / self.real_diversity;
        let names = self.judged_styles();
        let mut monitor = serde_json::json!({
            "ambiguity": -mean(ambiguity), "entropy": mean(entropy), "max_probability": mean(max_probability),
            "diversity": diversity, "styles": names.len(),
        });
        if let Some(pull) = pull {
            monitor["ambiguity_pull"] = pull.into();
        }
        let mut counts = None;
        if self.config.own_head() {
            let told = told(&self.discriminator.network, data, self.device)?;
            monitor["style_accuracy"] = told.accuracy().into();
            counts = Some(told);
        }
        let cells = rgb_images(&images_u8(&images.narrow(0, 0, (GRID_CELLS as i64).min(images.size()[0]))))?;
        let cells = cells.into_iter().zip(&rows).map(|(image, row)| {
            let likeliest = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
            let title = format!("{} {:.0}{NO_BREAK_SPACE}%", names[likeliest], 100.0 * row[likeliest]);
            Cell { image: image.as_ref().clone(), title, value: Some(-ambiguity(row)) }
        });
        let made = Made { cells: cells.collect(), mean: -mean(ambiguity), count: rows.len() };
        Ok(Look { monitor, made: Some(made), diversity: Some(diversity), told: counts })
    }

    fn warnings(&self, means: &serde_json::Value, look: Option<&Look>, stage: Stage) -> Vec<String> {
        let CanConfig { can, monitor, .. } = &self.config;
        let diversity = look.and_then(|look| look.diversity);
        let pull = look.and_then(|look| look.monitor["ambiguity_pull"].as_f64());
        // What draws images that are none yet says nothing.
        let pull = pull.filter(|_| diversity >= Some(monitor.min_diversity));
        let warnings = [
            warning_of_saturation(can.loss, means),
            warning_of_penalty(means),
            diversity.and_then(|share| warning_of_diversity(share, monitor.min_diversity, stage)),
            pull.and_then(|pull| warning_of_pull(pull, can.style_ambiguity_weight)),
        ];
        warnings.into_iter().flatten().collect()
    }

    fn not_finite(&self) -> Result<Option<String>> {
        Ok(self.generator.not_finite("generator")?.or(self.discriminator.not_finite("discriminator")?))
    }

    fn state(&self) -> NamedTensors {
        let mut state = NamedTensors::new();
        self.generator.add_to(&mut state, "generator");
        self.discriminator.add_to(&mut state, "discriminator");
        state
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        self.generator.load_from(state, "generator")?;
        self.discriminator.load_from(state, "discriminator")
    }

    fn products(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = networks::generator_files(&self.generator)?;
        files.extend(networks::discriminator_files(&self.discriminator, &self.styles)?);
        if self.config.own_head() {
            let named = ("dcgan", "Style head of a creative adversarial network's discriminator");
            let plugin = networks::plugin(&self.discriminator, named, &self.styles, &self.config.can)?;
            files.push((networks::DCGAN_PLUGIN.to_owned(), plugin));
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

/// Images that are no numbers come of the training, not of the plugin.
fn diverged(error: AmbiguityError) -> Error {
    match error {
        AmbiguityError::NotFinite { .. } => Diverged { what: error.to_string(), lower: LEARNING_RATE }.into(),
        error => error.into(),
    }
}

/// A discriminator that leaves the log form's generator without a gradient.
fn warning_of_saturation(form: LossForm, means: &serde_json::Value) -> Option<String> {
    let accuracy = means["discriminator_accuracy"].as_f64()?;
    (form == LossForm::Log && accuracy > SATURATED).then(|| {
        format!(
            "the discriminator tells {:.1} % of real and made images apart, which leaves the generator little to learn \
             from: lower can.adam.learning_rate, or take can.nonsaturating = true or can.loss = \"wasserstein\"",
            100.0 * accuracy
        )
    })
}

/// A critic that is far from what the Wasserstein form asks of it.
fn warning_of_penalty(means: &serde_json::Value) -> Option<String> {
    let penalty = means["loss"]["gradient_penalty"].as_f64()?;
    (penalty > LOOSE_PENALTY).then(|| {
        format!(
            "the critic's gradient is far from a norm of 1 (penalty {}): lower can.adam.learning_rate or raise can.lambda",
            number(penalty, 2)
        )
    })
}

/// Made images that are too much alike.
fn warning_of_diversity(share: f64, least: f64, stage: Stage) -> Option<String> {
    let what = match stage {
        Stage::Beginning => return None,
        Stage::Overdue => "the generator has not left its beginning",
        Stage::Diverse => "the generator has collapsed onto few images",
    };
    (share < least).then(|| {
        format!(
            "made images differ by {:.0} % as much as real ones (monitor.min_diversity is {:.0} %): {what}; lower \
             can.adam.learning_rate or can.style_ambiguity_weight",
            100.0 * share,
            100.0 * least
        )
    })
}

/// L_SA that does next to nothing, or next to which nothing else does.
fn warning_of_pull(pull: f64, weight: f64) -> Option<String> {
    (!SOUND_PULL.contains(&pull)).then(|| {
        format!(
            "the style ambiguity draws made images {} times as strongly as the adversarial loss does; a \
             can.style_ambiguity_weight of about {}, not {weight}, makes them equal",
            two_digits(pull),
            two_digits(weight / pull)
        )
    })
}

/// How much `count` held-out images differ, evenly chosen, so that all styles are among them.
fn real_diversity(data: &StyleImages, count: usize) -> Result<f64> {
    let diversity = pairwise_distance(&data.some_held_out(count)?.images);
    ensure!(
        diversity > 0.0,
        "all held-out images that were looked at are the same, so there is nothing to hold the diversity of made ones \
         against: give images that differ"
    );
    Ok(diversity)
}

/// Root mean square difference of all pairs of images, averaged; [n, 3, s, s].
fn pairwise_distance(images: &Tensor) -> f64 {
    let n = images.size()[0];
    let flat = images.detach().flatten(1, -1).to_kind(Kind::Float);
    let width = flat.size()[1] as f64;
    // ‖a − b‖² = ‖a‖² + ‖b‖² − 2 ab, about the common mean so that little is canceled.
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

    #[test]
    fn failures_that_gans_are_known_for_are_told_where_they_are_and_only_there() {
        let means = |accuracy: f64, penalty: f64| {
            let loss = serde_json::json!({ "gradient_penalty": penalty });
            serde_json::json!({ "discriminator_accuracy": accuracy, "loss": loss })
        };
        let saturated = warning_of_saturation(LossForm::Log, &means(0.999, 0.0)).expect("it is saturated");
        assert!(saturated.starts_with("the discriminator tells 99.9 % of real and made images apart"), "{saturated}");
        assert_eq!(warning_of_saturation(LossForm::Log, &means(0.9, 0.0)), None);
        // A critic may tell them all: its gradient does not vanish.
        assert_eq!(warning_of_saturation(LossForm::Wasserstein, &means(1.0, 0.0)), None);

        let loose = warning_of_penalty(&means(0.9, 2.5)).expect("it is loose");
        assert!(loose.contains("(penalty 2.50)") && loose.contains("can.lambda"), "{loose}");
        assert_eq!(warning_of_penalty(&means(0.9, 0.2)), None);
        assert_eq!(warning_of_penalty(&serde_json::json!({ "loss": {} })), None);

        let weak = warning_of_pull(0.0039, 1.0).expect("it is weak");
        assert!(weak.contains("0.0039 times") && weak.contains("of about 260, not 1, makes"), "{weak}");
        assert!(warning_of_pull(60.0, 10.0).is_some());
        assert_eq!(warning_of_pull(1.0, 10.0), None);

        let collapsed = warning_of_diversity(0.12, 0.3, Stage::Diverse).expect("they are alike");
        assert!(
            collapsed.contains("differ by 12 % as much as real ones (monitor.min_diversity is 30 %)"),
            "{collapsed}"
        );
        assert!(collapsed.contains("has collapsed"), "{collapsed}");
        let early = warning_of_diversity(0.12, 0.3, Stage::Overdue).expect("they are alike");
        assert!(early.contains("has not left its beginning") && !early.contains("collapsed"), "{early}");
        assert_eq!(warning_of_diversity(0.12, 0.3, Stage::Beginning), None);
        assert_eq!(warning_of_diversity(0.3, 0.3, Stage::Diverse), None);
    }
}
