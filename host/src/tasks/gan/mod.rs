//! `host can train`: the creative adversarial network (the paper's section on CAN; Gulrajani et al., arXiv 1704.00028, for the
//! Wasserstein form). In a step, D is updated on a batch of real and of generated images, then G on D's output for the
//! same generated images.
//!
//! # Layout
//!
//! - this file: [`Adversarial`], both networks and their training step
//! - [`mod@ambiguity`]: L_SA under a plugin, with its gradient through the encoder into libtorch

pub mod ambiguity;

use std::collections::BTreeMap;

use ambiguity_models::can::{Discriminator, Generator, ImageSource, Share, loss};
use ambiguity_models::params::{NamedTensors, Params};
use ambiguity_models::pipeline::images_u8;
use anyhow::{Error, Result, ensure};
use image::RgbImage;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::{AdamW, Generator as Randomness};

use self::ambiguity::{AmbiguityError, PluginAmbiguity};
use super::image_plan::{Measured, Plan};
use super::image_training::{
    Confusion, EVALUATION_BATCH, ImageTraining, LEARNING_RATE, Networks, Stage, StepMetrics, accuracy, open_data,
};
use super::networks::{self, Trained};
use crate::config::GanConfig;
use crate::config::gan::{Can, GanTask, LossForm};
use crate::context::Context;
use crate::data::images::rgb_images;
use crate::data::styles::{StyleBatch, StyleImages};
use crate::encoders::Encoders;
use crate::interrupt::Interrupt;
use crate::metrics::diversity::mean_pixel_distance;
use crate::optim::Diverged;
use crate::plugin::{Pin, PluginHost};
use crate::random::{Purpose, derive_seed};
use crate::report::grid::{self, Cell, Values};
use crate::rl::reward::{ambiguity, entropy, max_probability};
use crate::run::record::{GanEpoch, GanLosses, GanMeans, GanMonitor, Pace};
use crate::run::{LockedPlugin, PluginsLock};
use crate::statistics::Summary;
use crate::text::{NO_BREAK_SPACE, number, two_digits};
use crate::trainer::{Claim, Monitored, Start};

/// Number of images in a contact sheet.
const SHEET_CELLS: usize = 40;
/// A discriminator that ranks more than this fraction of (real, fake) pairs correctly leaves the log form's generator
/// without a gradient.
const SATURATED: f64 = 0.995;
/// A mean penalty above this means gradient norms of 2 and more, where 1 is wanted.
const LOOSE_PENALTY: f64 = 1.0;

/// Range of the gradient norm ratio in which neither L_SA nor the adversarial loss dominates.
const BALANCED_GRADIENT_NORM_RATIO: std::ops::RangeInclusive<f64> = 0.02..=50.0;

/// Loads the plugin, claims the run's folder, opens the images and builds the networks, with the quickest checks first.
pub fn open(config: GanConfig, start: Start, context: &Context) -> Result<(ImageTraining<Adversarial>, Claim)> {
    let device = context.device(&config.run.device)?;
    config.cuda.apply(device)?;
    let (classifier, lock) = style_classifier(&config, device, start.pins(&context.processes)?, context)?;
    let claim = start.claim(lock, &context.processes)?;
    let data = open_data(&config, context)?;
    Plan::new(GanTask::Can, &config, &data)?.check_fits(device)?;
    let networks = Adversarial::new(&config, &data, classifier, device)?;
    Ok((ImageTraining::new(config, data, networks, device, context)?, claim))
}

/// Returns the plan of a run of this configuration and its measured cost: its plugin is loaded, its images are opened
/// and some steps are run.
pub fn try_out(
    config: &GanConfig,
    pins: BTreeMap<String, Pin>,
    context: &Context,
) -> Result<(StyleImages, Plan, Measured)> {
    let device = context.device(&config.run.device)?;
    config.cuda.apply(device)?;
    let (classifier, _) = style_classifier(config, device, pins, context)?;
    let data = open_data(config, context)?;
    let plan = Plan::new(GanTask::Can, config, &data)?;
    plan.check_fits(device)?;
    let networks = Adversarial::new(config, &data, classifier, device)?;
    let training = ImageTraining::new(config.clone(), data, networks, device, context)?;
    let (data, measured) = Measured::of(training, &plan, device)?;
    Ok((data, plan, measured))
}

/// Loads C of the style ambiguity, with its lock entry.
fn style_classifier(
    config: &GanConfig,
    device: Device,
    pins: BTreeMap<String, Pin>,
    context: &Context,
) -> Result<(StyleClassifier, PluginsLock)> {
    if config.own_head() {
        return Ok((StyleClassifier::OwnHead, PluginsLock::default()));
    }
    let host = PluginHost::of_command(config.plugin, context)?.on(device).pinned(pins);
    let classifier = host.load(&config.can.classifier, BTreeMap::new())?;
    let plugins = vec![LockedPlugin::of(&config.can.classifier, &*classifier)];
    let encoders = Encoders::open(&config.encoders, device, context)?;
    let mut ambiguity = PluginAmbiguity::new(classifier, encoders)?;
    let lock = PluginsLock { prompts: None, plugins, encoders: ambiguity.locked_encoders()? };
    Ok((StyleClassifier::Plugin(Box::new(ambiguity)), lock))
}

/// The classifier C of the style ambiguity.
pub enum StyleClassifier {
    /// The discriminator's own style head, the paper's C = D_C.
    OwnHead,
    /// A plugin with a gradient.
    Plugin(Box<PluginAmbiguity>),
}

/// Generator, discriminator and everything that trains them.
pub struct Adversarial {
    config: GanConfig,
    styles: Vec<String>,
    generator: Trained<Generator>,
    discriminator: Trained<Discriminator>,
    classifier: StyleClassifier,
    /// Latents of the monitor's fixed samples, f32 [count, latent].
    fixed_noise: Tensor,
    /// Mean pairwise distance of held-out real images.
    real_diversity: f64,
    device: Device,
}

impl Adversarial {
    /// Returns networks with fresh weights for the styles of `data`.
    pub fn new(config: &GanConfig, data: &StyleImages, classifier: StyleClassifier, device: Device) -> Result<Self> {
        let seed = |index| derive_seed(config.run.seed, 0, index, Purpose::Weights);
        let adam = &config.can.adam;
        let build = |p: &Params| Generator::new(p, &config.generator());
        let generator = Trained::fresh(seed(0), device, adam, build, Generator::parameters)?;
        let build = |p: &Params| Discriminator::new(p, &config.discriminator(data.styles().len()));
        let discriminator = Trained::fresh(seed(1), device, adam, build, Discriminator::parameters)?;
        let mut randomness = Randomness::cpu(derive_seed(config.run.seed, 0, 0, Purpose::Monitor))?;
        let fixed_noise = randomness.normal(&[config.monitor.count as i64, config.can.latent])?.to_device(device);
        Ok(Self {
            config: config.clone(),
            styles: data.styles().to_vec(),
            generator,
            discriminator,
            classifier,
            fixed_noise,
            real_diversity: real_diversity(data, config.monitor.count)?,
            device,
        })
    }

    /// Returns D's loss, and adds its terms to the metrics.
    fn discriminator_loss(
        &self,
        batch: &StyleBatch,
        share: &Share,
        fake: &Tensor,
        randomness: &mut Randomness,
        metrics: &mut StepMetrics,
    ) -> Result<Tensor> {
        let (can, d) = (&self.config.can, &self.discriminator.network);
        let (on_real, styles) = if self.config.own_head() {
            let output = d.forward_train(&batch.images, ImageSource::Real, share, randomness)?;
            (output.real, Some(output.styles))
        } else {
            (d.real_train(&batch.images, ImageSource::Real, share)?, None)
        };
        let on_fake = d.real_train(fake, ImageSource::Fake, share)?;
        let ordered = share.all_rows(&on_real)?.unsqueeze(1).gt_tensor(&share.all_rows(&on_fake)?.unsqueeze(0));
        let adversarial = match can.loss {
            LossForm::Wasserstein => loss::critic(&on_real, &on_fake),
            LossForm::Log => loss::log_discriminator(&on_real, &on_fake),
        };
        metrics.add("loss/adversarial_discriminator", &adversarial);
        let mut terms = vec![adversarial];
        if can.loss == LossForm::Wasserstein && can.lambda > 0.0 {
            let mix = share.uniform(randomness, &[])?.to_device(self.device);
            let critic = |images: &Tensor| d.real_train(images, ImageSource::Fake, share);
            let penalty = loss::gradient_penalty(&batch.images, fake, &mix, critic)?;
            metrics.add("loss/gradient_penalty", &penalty);
            terms.push(penalty * can.lambda);
        }
        if let Some(styles) = styles {
            let style = loss::style(&styles, &batch.styles, can.label_smoothing);
            metrics.add("loss/style", &style);
            metrics.add("style_accuracy", &accuracy(&styles, &batch.styles));
            terms.push(style * can.style_weight);
        }
        // Not in place: the metrics share the terms.
        let total = terms.into_iter().reduce(|sum, term| sum + term).expect("the adversarial term exists");
        metrics.add("loss/discriminator", &total);
        metrics.add("discriminator_accuracy", &ordered.to_kind(Kind::Float).mean(Kind::Float));
        Ok(total)
    }

    /// Returns G's loss, and adds its terms to the metrics.
    fn generator_loss(
        &mut self,
        share: &Share,
        fake: &Tensor,
        randomness: &mut Randomness,
        metrics: &mut StepMetrics,
    ) -> Result<Tensor> {
        let (can, d) = (&self.config.can, &self.discriminator.network);
        // With a weight of 0, L_SA is not computed here: the monitor measures it.
        let wanted = can.style_ambiguity_weight > 0.0;
        let (on_fake, styles) = if wanted && matches!(self.classifier, StyleClassifier::OwnHead) {
            let output = d.forward_train(fake, ImageSource::Fake, share, randomness)?;
            (output.real, Some(output.styles))
        } else {
            (d.real_train(fake, ImageSource::Fake, share)?, None)
        };
        let adversarial = adversarial_generator(can, &on_fake);
        metrics.add("loss/adversarial_generator", &adversarial);
        let weight = can.style_ambiguity_weight;
        let (total, reported) = match (&mut self.classifier, styles) {
            (StyleClassifier::OwnHead, Some(styles)) => {
                let ambiguity = loss::ambiguity(&styles);
                metrics.add("loss/ambiguity", &ambiguity);
                let total = adversarial + ambiguity * weight;
                let reported = total.shallow_clone();
                (total, reported)
            }
            (StyleClassifier::Plugin(plugin), _) if wanted => {
                let ambiguity = plugin.loss(fake).map_err(diverged)?;
                let value = Tensor::from(ambiguity.value as f32).to_device(self.device);
                metrics.add("loss/ambiguity", &value);
                // The surrogate has the loss's gradient, not its value.
                let reported = adversarial.detach() + value * weight;
                (adversarial + ambiguity.surrogate * weight, reported)
            }
            _ => {
                let reported = adversarial.shallow_clone();
                (adversarial, reported)
            }
        };
        metrics.add("loss/generator", &reported);
        Ok(total)
    }

    /// Returns the gradient norm ratio: the norm of the gradient of the weighted L_SA with respect to generated images,
    /// divided by that of the adversarial loss; none if either is zero.
    fn gradient_norm_ratio(&mut self, images: &Tensor) -> Result<Option<f64>> {
        let (can, d) = (&self.config.can, &self.discriminator.network);
        if can.style_ambiguity_weight == 0.0 {
            return Ok(None);
        }
        let images = images.detach().set_requires_grad(true);
        let norm = |loss: Tensor| -> Result<f64> {
            let gradient = Tensor::f_run_backward(&[loss], &[&images], false, false)?.remove(0);
            Ok(gradient.norm().double_value(&[]))
        };
        let batch = Share::whole(images.size()[0]);
        let adversarial = norm(adversarial_generator(can, &d.real_train(&images, ImageSource::Fake, &batch)?))?;
        let ambiguity = norm(match &mut self.classifier {
            StyleClassifier::OwnHead => loss::ambiguity(&d.forward(&images)?.styles),
            StyleClassifier::Plugin(plugin) => plugin.loss(&images).map_err(diverged)?.surrogate,
        })?;
        Ok((adversarial > 0.0 && ambiguity > 0.0).then(|| can.style_ambiguity_weight * ambiguity / adversarial))
    }

    /// Returns the styles that C classifies.
    fn classifier_styles(&self) -> &[String] {
        match &self.classifier {
            StyleClassifier::OwnHead => &self.styles,
            StyleClassifier::Plugin(plugin) => plugin.description().styles(),
        }
    }

    /// Returns C's distribution for each image, as log-probabilities.
    fn classify(&mut self, images: &Tensor) -> Result<Vec<Vec<f64>>> {
        match &mut self.classifier {
            StyleClassifier::Plugin(plugin) => Ok(plugin.classify(images).map_err(diverged)?.rows),
            StyleClassifier::OwnHead => {
                let logits = no_grad(|| self.discriminator.network.forward(images))?.styles;
                let rows = logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double).to_device(Device::Cpu);
                Ok(Vec::<Vec<f64>>::try_from(&rows)?)
            }
        }
    }
}

impl Networks for Adversarial {
    type Means = GanMeans;
    type Epoch = GanEpoch;
    type Monitor = GanMonitor;

    const TASK: GanTask = GanTask::Can;

    fn step(&mut self, batch: &StyleBatch, share: &Share, randomness: &mut Randomness) -> Result<StepMetrics> {
        let mut metrics = StepMetrics::default();
        let noise = share.normal(randomness, &[self.config.can.latent])?.to_device(self.device);
        let fake = self.generator.network.forward_train(&noise, share)?;

        let of_discriminator = self.discriminator_loss(batch, share, &fake.detach(), randomness, &mut metrics)?;
        self.discriminator.update(&of_discriminator, share)?;

        // The gradient is propagated through D, but not to its weights, which saves a third of the backward pass.
        set_trained(&self.discriminator.optimizer, false);
        let of_generator = self.generator_loss(share, &fake, randomness, &mut metrics);
        set_trained(&self.discriminator.optimizer, true);
        self.generator.update(&of_generator?, share)?;
        Ok(metrics)
    }

    fn summary(means: &GanMeans) -> String {
        let GanLosses { discriminator, generator, ambiguity, .. } = &means.loss;
        let mut text = format!("D {discriminator:.3} G {generator:.3}");
        if let Some(ambiguity) = ambiguity {
            text += &format!(" ambiguity {ambiguity:.3}");
        }
        if let Some(accuracy) = means.style_accuracy {
            text += &format!(" accuracy {:.0} %", 100.0 * accuracy);
        }
        text
    }

    fn record(means: GanMeans, pace: Pace) -> GanEpoch {
        GanEpoch { means, pace }
    }

    fn monitor(&mut self, data: &StyleImages, epoch: u64, interrupt: &Interrupt) -> Result<Monitored<GanMonitor>> {
        let (mut parts, mut rows) = (Vec::new(), Vec::new());
        for noise in self.fixed_noise.split(EVALUATION_BATCH as i64, 0) {
            interrupt.check("")?;
            let images = no_grad(|| self.generator.network.forward(&noise))?;
            rows.extend(self.classify(&images)?);
            parts.push(images);
        }
        let gradient_norm_ratio = self.gradient_norm_ratio(&parts[0])?;
        let images = Tensor::cat(&parts, 0);
        let mean = |of: fn(&[f64]) -> f64| Summary::of(&rows.iter().map(|row| of(row)).collect::<Vec<_>>()).mean;
        let diversity = mean_pixel_distance(&images) / self.real_diversity;
        let names = self.classifier_styles();
        let cells = rgb_images(&images_u8(&images.narrow(0, 0, (SHEET_CELLS as i64).min(images.size()[0]))))?;
        let cells = cells.into_iter().zip(&rows).map(|(image, row)| {
            let likeliest = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
            let title = format!("{} {:.0}{NO_BREAK_SPACE}%", names[likeliest], 100.0 * row[likeliest].exp());
            Cell { image: RgbImage::clone(&image), title, value: Some(-ambiguity(row)) }
        });
        let values = Values { name: "style ambiguity", mean: -mean(ambiguity), count: rows.len() };
        let sheet = grid::contact_sheet(epoch, &cells.collect::<Vec<_>>(), values);
        let mut record = GanMonitor {
            ambiguity: -mean(ambiguity),
            entropy: mean(entropy),
            max_probability: mean(max_probability),
            diversity,
            styles: names.len(),
            gradient_norm_ratio,
            style_accuracy: None,
        };
        let mut images = Vec::new();
        if self.config.own_head() {
            let confusion = Confusion::of(&self.discriminator.network, data, self.device, interrupt)?;
            record.style_accuracy = Some(confusion.accuracy());
            images.extend(confusion.image(epoch, data.styles()));
        }
        Ok(Monitored { record, score: None, diversity: Some(diversity), sheet: Some(sheet), images, kept: None })
    }

    fn warnings(&self, epoch: &GanEpoch, monitor: Option<&GanMonitor>, stage: Stage) -> Vec<String> {
        let (can, min_diversity) = (&self.config.can, self.config.monitor.min_diversity);
        // The gradients of images that are not diverse yet are not meaningful.
        let diverse = monitor.filter(|monitor| monitor.diversity >= min_diversity);
        let ratio = diverse.and_then(|monitor| monitor.gradient_norm_ratio);
        let warnings = [
            warning_of_saturation(can.loss, epoch.means.discriminator_accuracy),
            epoch.means.loss.gradient_penalty.and_then(warning_of_penalty),
            monitor.and_then(|monitor| warning_of_diversity(monitor.diversity, min_diversity, stage)),
            ratio.and_then(|ratio| warning_of_gradient_norms(ratio, can.style_ambiguity_weight)),
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

    fn n_parameters(&self) -> usize {
        self.generator.n_parameters() + self.discriminator.n_parameters()
    }
}

fn set_trained(optimizer: &AdamW, trained: bool) {
    for (_, tensor) in optimizer.parameters() {
        let _ = tensor.set_requires_grad(trained);
    }
}

/// Images that are not finite are the training's fault, not the plugin's.
fn diverged(error: AmbiguityError) -> Error {
    match error {
        AmbiguityError::NotFinite { .. } => Diverged { what: error.to_string(), lower: LEARNING_RATE }.into(),
        error => error.into(),
    }
}

/// Returns G's adversarial loss from D's output for generated images, \[n\].
fn adversarial_generator(can: &Can, on_fake: &Tensor) -> Tensor {
    match can.loss {
        LossForm::Wasserstein => loss::critic_generator(on_fake),
        LossForm::Log => loss::log_generator(on_fake, can.nonsaturating),
    }
}

/// Warns of a discriminator that leaves the log form's generator without a gradient.
fn warning_of_saturation(form: LossForm, accuracy: f64) -> Option<String> {
    (form == LossForm::Log && accuracy > SATURATED).then(|| {
        format!(
            "the discriminator separates {:.1} % of real from generated images, which leaves the generator almost no \
             gradient: lower can.adam.learning_rate, or use can.nonsaturating = true or can.loss = \"wasserstein\"",
            100.0 * accuracy
        )
    })
}

/// Warns of a critic whose gradient norm is far from 1, which the Wasserstein form requires.
fn warning_of_penalty(penalty: f64) -> Option<String> {
    (penalty > LOOSE_PENALTY).then(|| {
        format!(
            "the critic's gradient is far from a norm of 1 (penalty {}): lower can.adam.learning_rate or raise can.lambda",
            number(penalty, 2)
        )
    })
}

/// Warns of generated images that are too similar.
fn warning_of_diversity(share: f64, minimum: f64, stage: Stage) -> Option<String> {
    let what = match stage {
        Stage::Beginning => return None,
        Stage::Overdue => "the generator has not become diverse yet",
        Stage::Diverse => "the generator has collapsed onto few images",
    };
    (share < minimum).then(|| {
        format!(
            "generated images are {:.0} % as diverse as real ones (monitor.min_diversity is {:.0} %): {what}; lower \
             can.adam.learning_rate or can.style_ambiguity_weight",
            100.0 * share,
            100.0 * minimum
        )
    })
}

/// Warns if L_SA has almost no effect, or dominates the adversarial loss.
fn warning_of_gradient_norms(ratio: f64, weight: f64) -> Option<String> {
    (!BALANCED_GRADIENT_NORM_RATIO.contains(&ratio)).then(|| {
        format!(
            "the gradient norm of the style ambiguity is {} times that of the adversarial loss; a \
             can.style_ambiguity_weight of about {}, not {weight}, makes them equal",
            two_digits(ratio),
            two_digits(weight / ratio)
        )
    })
}

/// Returns the mean pairwise distance of `count` held-out images, evenly chosen, so that all styles are among them.
fn real_diversity(data: &StyleImages, count: usize) -> Result<f64> {
    let diversity = mean_pixel_distance(&data.some_held_out(count)?.images);
    ensure!(
        diversity > 0.0,
        "all compared held-out images are identical, so the diversity of generated images has no reference: name \
         images that differ"
    );
    Ok(diversity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_failures_of_gans_are_warned_of_and_nothing_else() {
        let saturated = warning_of_saturation(LossForm::Log, 0.999).expect("it is saturated");
        assert!(
            saturated.starts_with("the discriminator separates 99.9 % of real from generated images"),
            "{saturated}"
        );
        assert_eq!(warning_of_saturation(LossForm::Log, 0.9), None);
        // A critic may separate them all: its gradient does not vanish.
        assert_eq!(warning_of_saturation(LossForm::Wasserstein, 1.0), None);

        let loose = warning_of_penalty(2.5).expect("it is loose");
        assert!(loose.contains("(penalty 2.50)") && loose.contains("can.lambda"), "{loose}");
        assert_eq!(warning_of_penalty(0.2), None);

        let weak = warning_of_gradient_norms(0.0039, 1.0).expect("it is weak");
        assert!(weak.contains("0.0039 times") && weak.contains("of about 260, not 1, makes"), "{weak}");
        assert!(warning_of_gradient_norms(60.0, 10.0).is_some());
        assert_eq!(warning_of_gradient_norms(1.0, 10.0), None);

        let collapsed = warning_of_diversity(0.12, 0.3, Stage::Diverse).expect("they are similar");
        assert!(collapsed.contains("are 12 % as diverse as real ones (monitor.min_diversity is 30 %)"), "{collapsed}");
        assert!(collapsed.contains("has collapsed"), "{collapsed}");
        let early = warning_of_diversity(0.12, 0.3, Stage::Overdue).expect("they are similar");
        assert!(early.contains("has not become diverse yet") && !early.contains("collapsed"), "{early}");
        assert_eq!(warning_of_diversity(0.12, 0.3, Stage::Beginning), None);
        assert_eq!(warning_of_diversity(0.3, 0.3, Stage::Diverse), None);
    }
}
