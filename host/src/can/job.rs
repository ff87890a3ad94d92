//! What CAN and classifier training are to the loop that both share: a step, a look at what has been learned, a state.

use ambiguity_models::can::{Discriminator, loss};
use ambiguity_models::params::NamedTensors;
use anyhow::Result;
use serde_json::Value;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::Generator as Randomness;

use super::figures::Figures;
use crate::data::styles::{StyleBatch, StyleImages};
use crate::run::Cell;

/// What is to be lowered when a training leaves the finite numbers.
pub(super) const LEARNING_RATE: &str = "can.adam.learning_rate";
/// Images that an evaluation takes at once.
pub(super) const AT_ONCE: usize = 64;

/// What is particular to a training.
pub(super) trait Job {
    /// One update of everything on a batch.
    fn step(&mut self, batch: &StyleBatch, randomness: &mut Randomness) -> Result<Figures>;
    /// What has been learned so far.
    fn look(&mut self, data: &StyleImages) -> Result<Look>;
    /// What somebody should know of an epoch's mean figures and its look.
    fn warnings(&self, means: &Value, look: Option<&Look>, stage: Stage) -> Vec<String>;
    /// The name of a network's tensor that holds what is no finite number.
    fn not_finite(&self) -> Result<Option<String>>;
    /// Networks and optimizers.
    fn state(&self) -> NamedTensors;
    /// Goes back to a state.
    fn load_state(&mut self, state: &NamedTensors) -> Result<()>;
    /// The files that the run's folder gets, by name.
    fn products(&self) -> Result<Vec<(String, Vec<u8>)>>;
    /// How many numbers are trained.
    fn parameters(&self) -> usize;
}

/// How far a generator has come; only made images that once were as diverse as `monitor.min_diversity` wants can
/// collapse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// They never were, which is to be expected.
    Beginning,
    /// They never were, in as many steps as should do.
    Overdue,
    /// They once were.
    Diverse,
}

/// A look at what has been learned.
pub(super) struct Look {
    /// What metrics.jsonl has under `monitor`.
    pub(super) monitor: Value,
    /// Made images, where some are made.
    pub(super) made: Option<Made>,
    /// How much made images differ, as a share of how much real ones do.
    pub(super) diversity: Option<f64>,
    /// How the held-out images were told, where a style head is trained.
    pub(super) told: Option<Told>,
}

/// Made images.
pub(super) struct Made {
    /// Some of them, with their style ambiguity.
    pub(super) cells: Vec<Cell>,
    /// The mean style ambiguity of all.
    pub(super) mean: f64,
    /// How many there are.
    pub(super) count: usize,
}

/// How held-out images were told.
pub(super) struct Told {
    /// A row a true style, a column a told one.
    pub(super) counts: Vec<Vec<usize>>,
    /// Mean cross-entropy, nats.
    pub(super) loss: f64,
}

impl Told {
    /// The share that was told right.
    pub(super) fn accuracy(&self) -> f64 {
        let right: usize = (0..self.counts.len()).map(|i| self.counts[i][i]).sum();
        right as f64 / self.counts.iter().flatten().sum::<usize>().max(1) as f64
    }
}

/// Tells every held-out image, in eval mode.
pub(super) fn told(network: &Discriminator, data: &StyleImages, device: Device) -> Result<Told> {
    let n_styles = data.styles().len();
    let mut told = Told { counts: vec![vec![0; n_styles]; n_styles], loss: 0.0 };
    for batch in data.test_batches(AT_ONCE) {
        let batch = batch?;
        let logits = no_grad(|| network.forward(&batch.images.to_device(device)).styles).to_device(Device::Cpu);
        told.loss += loss::style(&logits, &batch.styles, 0.0).double_value(&[]) * batch.styles.numel() as f64;
        let (truth, guess) = (Vec::<i64>::try_from(&batch.styles)?, Vec::<i64>::try_from(&logits.argmax(-1, false))?);
        for (truth, guess) in truth.into_iter().zip(guess) {
            told.counts[truth as usize][guess as usize] += 1;
        }
    }
    told.loss /= data.n_test() as f64;
    Ok(told)
}

/// The share of logits [n, styles] whose largest is the style's own, a scalar.
pub(super) fn right_share(logits: &Tensor, styles: &Tensor) -> Tensor {
    logits.detach().argmax(-1, false).eq_tensor(styles).to_kind(Kind::Float).mean(Kind::Float)
}
