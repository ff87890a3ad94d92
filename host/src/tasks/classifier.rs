//! `host classifier train`: the simple classifier, the discriminator's convolutions and style head trained by cross-entropy on
//! real images alone (the paper's section 3.4).

use ambiguity_models::can::{Discriminator, Share, loss};
use ambiguity_models::params::{NamedTensors, Params};
use anyhow::Result;
use tch::Device;
use torch_ext::Generator as Randomness;

use super::image_plan::{Measured, Plan};
use super::image_training::{Confusion, ImageTraining, Networks, Stage, StepMetrics, accuracy, open_data};
use super::networks::{self, Trained};
use crate::config::GanConfig;
use crate::config::gan::{Can, GanTask};
use crate::context::Context;
use crate::data::styles::{StyleBatch, StyleImages};
use crate::interrupt::Interrupt;
use crate::random::{Purpose, derive_seed};
use crate::run::PluginsLock;
use crate::run::record::{ClassifierEpoch, ClassifierMeans, ClassifierMonitor, Pace};
use crate::text::number;
use crate::trainer::{Claim, Monitored, Start};

/// A held-out cross-entropy above this multiple of that of guessing is divergence, not overfitting.
const DIVERGENCE_FACTOR: f64 = 10.0;

/// The classifier and its optimizer.
pub struct Classifier {
    can: Can,
    styles: Vec<String>,
    network: Trained<Discriminator>,
    device: Device,
}

/// Claims the run's folder, opens the images and builds the network.
pub fn open(config: GanConfig, start: Start, context: &Context) -> Result<(ImageTraining<Classifier>, Claim)> {
    let device = context.device(&config.run.device)?;
    config.cuda.apply(device)?;
    let claim = start.claim(PluginsLock::default(), &context.processes)?;
    let data = open_data(&config, context)?;
    Plan::new(GanTask::Classifier, &config, &data)?.check_fits(device)?;
    let network = Classifier::new(&config, &data, device)?;
    Ok((ImageTraining::new(config, data, network, device, context)?, claim))
}

/// Returns the plan of a run of this configuration and its measured cost: its images are opened and some steps are run.
pub fn try_out(config: &GanConfig, context: &Context) -> Result<(StyleImages, Plan, Measured)> {
    let device = context.device(&config.run.device)?;
    config.cuda.apply(device)?;
    let data = open_data(config, context)?;
    let plan = Plan::new(GanTask::Classifier, config, &data)?;
    plan.check_fits(device)?;
    let network = Classifier::new(config, &data, device)?;
    let training = ImageTraining::new(config.clone(), data, network, device, context)?;
    let (data, measured) = Measured::of(training, &plan, device)?;
    Ok((data, plan, measured))
}

impl Classifier {
    /// Returns a network with fresh weights for the styles of `data`.
    pub fn new(config: &GanConfig, data: &StyleImages, device: Device) -> Result<Self> {
        let seed = derive_seed(config.run.seed, 0, 0, Purpose::Weights);
        let build = |p: &Params| Discriminator::new(p, &config.discriminator(data.styles().len()));
        let network = Trained::fresh(seed, device, &config.can.adam, build, Discriminator::parameters)?;
        Ok(Self { can: config.can.clone(), styles: data.styles().to_vec(), network, device })
    }
}

impl Networks for Classifier {
    type Means = ClassifierMeans;
    type Epoch = ClassifierEpoch;
    type Monitor = ClassifierMonitor;

    const TASK: GanTask = GanTask::Classifier;

    fn step(&mut self, batch: &StyleBatch, share: &Share, randomness: &mut Randomness) -> Result<StepMetrics> {
        let mut metrics = StepMetrics::default();
        let logits = self.network.network.styles_train(&batch.images, share, randomness)?;
        let loss = loss::style(&logits, &batch.styles, self.can.label_smoothing);
        metrics.add("loss", &loss);
        metrics.add("accuracy", &accuracy(&logits, &batch.styles));
        self.network.update(&loss, share)?;
        Ok(metrics)
    }

    fn summary(means: &ClassifierMeans) -> String {
        format!("loss {:.3} accuracy {:.0} %", means.loss, 100.0 * means.accuracy)
    }

    fn record(means: ClassifierMeans, pace: Pace) -> ClassifierEpoch {
        ClassifierEpoch { means, pace }
    }

    fn monitor(
        &mut self,
        data: &StyleImages,
        epoch: u64,
        interrupt: &Interrupt,
    ) -> Result<Monitored<ClassifierMonitor>> {
        let confusion = Confusion::of(&self.network.network, data, self.device, interrupt)?;
        Ok(Monitored {
            record: ClassifierMonitor { accuracy: confusion.accuracy(), loss: confusion.loss },
            score: None,
            diversity: None,
            sheet: None,
            images: confusion.image(epoch, data.styles()).into_iter().collect(),
            kept: None,
        })
    }

    fn warnings(&self, _: &ClassifierEpoch, monitor: Option<&ClassifierMonitor>, _: Stage) -> Vec<String> {
        monitor.and_then(|monitor| warning_of_loss(monitor.loss, self.styles.len())).into_iter().collect()
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

    fn n_parameters(&self) -> usize {
        self.network.n_parameters()
    }
}

/// Warns of a classifier that is worse than guessing.
fn warning_of_loss(loss: f64, n_styles: usize) -> Option<String> {
    let guessing = (n_styles as f64).ln();
    (loss > DIVERGENCE_FACTOR * guessing).then(|| {
        format!(
            "the cross-entropy on held-out images is {}, guessing has {guessing:.2}: training diverges; lower \
             can.adam.learning_rate",
            number(loss, 2)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_classifier_that_is_worse_than_guessing_is_warned_of() {
        let warning = warning_of_loss(1.8e10, 27).expect("a warning");
        assert!(warning.contains("is 1.80e10, guessing has 3.30"), "{warning}");
        assert_eq!(warning_of_loss(3.4, 27), None);
    }
}
