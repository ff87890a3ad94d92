//! The cost of a run before it starts: memory from the configuration, memory and time from some steps.

use ambiguity_models::can::{Discriminator, Generator};
use ambiguity_models::params::Params;
use anyhow::{Result, ensure};
use serde::Serialize;
use tch::{Device, Tensor};

use super::image_training::{ImageTraining, Networks, steps_per_epoch};
use crate::config::GanConfig;
use crate::config::gan::GanTask;
use crate::data::styles::StyleImages;
use crate::memory;
use crate::text::gibibytes;

/// Bytes of an f32 parameter with its gradient and Adam's two moments.
const BYTES_OF_A_PARAMETER: u64 = 4 * 4;
/// Number of steps that are timed.
const TIMED_STEPS: u32 = 1;

/// The work of an epoch, and the minimum memory.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Number of trained parameters of all networks.
    pub parameters: u64,
    /// Number of training steps of an epoch.
    pub steps_per_epoch: u64,
    /// Weights, gradients and Adam's moments, in bytes; activations come on top.
    pub memory: u64,
}

/// The measured cost of some steps.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Seconds of a step.
    pub step_seconds: f64,
    /// Seconds of an epoch without its monitor.
    pub epoch_seconds: f64,
    /// Peak memory of the process in bytes; none where the system does not report it.
    pub peak_bytes: Option<u64>,
}

impl Plan {
    /// Counts from the configuration; no network is built.
    pub fn new(task: GanTask, config: &GanConfig, data: &StyleImages) -> Result<Self> {
        let count = |parameters: Vec<(String, Tensor)>| -> u64 {
            parameters.iter().map(|(_, tensor)| tensor.size().iter().product::<i64>() as u64).sum()
        };
        let discriminator = Discriminator::new(&Params::shapes(), &config.discriminator(data.styles().len()))?;
        let mut parameters = count(discriminator.parameters());
        if task == GanTask::Can {
            parameters += count(Generator::new(&Params::shapes(), &config.generator())?.parameters());
        }
        Ok(Self {
            parameters,
            steps_per_epoch: steps_per_epoch(config, data),
            memory: parameters * BYTES_OF_A_PARAMETER,
        })
    }

    /// Refuses, with the numbers, a run that cannot fit into the memory of the machine or of the GPU.
    pub fn check_fits(&self, device: Device) -> Result<()> {
        memory::available(device).map_or(Ok(()), |available| self.check_fits_into(available))
    }

    fn check_fits_into(&self, available: u64) -> Result<()> {
        ensure!(
            self.memory <= available,
            "{} parameters need at least {} with their gradients and Adam's moments, {} are free: lower \
             can.generator_channels, can.discriminator_channels or can.head",
            self.parameters,
            gibibytes(self.memory),
            gibibytes(available)
        );
        Ok(())
    }
}

impl Measured {
    /// Times some steps of a training that is then discarded; returns its images too.
    pub fn of<N: Networks>(training: ImageTraining<N>, plan: &Plan, device: Device) -> Result<(StyleImages, Self)> {
        let (data, step_seconds) = training.time_steps(TIMED_STEPS)?;
        let epoch_seconds = step_seconds * plan.steps_per_epoch as f64;
        Ok((data, Self { step_seconds, epoch_seconds, peak_bytes: memory::peak(device) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_with_its_numbers() {
        let plan = Plan { parameters: 1 << 30, steps_per_epoch: 1, memory: 16 << 30 };
        plan.check_fits_into(16 << 30).expect("it fits");
        let message = plan.check_fits_into(8 << 30).expect_err("it does not fit").to_string();
        assert!(
            message.starts_with("1073741824 parameters need at least 16.00 GiB")
                && message.contains("8.00 GiB are free"),
            "{message}"
        );
    }
}
