//! What a run will take, before it is begun: memory out of the configuration, memory and time out of some tries.

use std::time::Instant;

use ambiguity_models::can::{Discriminator, Generator};
use ambiguity_models::params::Params;
use anyhow::{Result, ensure};
use serde::Serialize;
use tch::Device;
use torch_ext::Generator as Randomness;

use super::config::{CanConfig, Task};
use super::job::Job;
use super::networks::Network;
use super::trainer::steps_per_epoch;
use crate::data::styles::{StyleBatch, StyleImages};
use crate::interrupt::Interrupt;
use crate::train::{available_memory, gibibytes, peak_memory};

/// f32 weights, their gradients, and Adam's two moments.
const BYTES_OF_A_PARAMETER: u64 = 4 * 4;
/// Steps that are tried; the first one warms up.
const TRIES: u32 = 2;

/// What an epoch consists of, and what must be in memory at least.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Numbers that are trained, both networks together.
    pub parameters: u64,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: u64,
    /// Weights, gradients and Adam's moments, bytes; feature maps come on top.
    pub memory: u64,
}

/// What some tries of a step took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Seconds of a step.
    pub step_seconds: f64,
    /// Seconds of an epoch, its look at what has been learned not counted.
    pub epoch_seconds: f64,
    /// The most memory that the process had, bytes; none where the system does not tell.
    pub peak_bytes: Option<u64>,
}

impl Plan {
    /// Counts; no network is made.
    pub fn new(task: Task, config: &CanConfig, data: &StyleImages) -> Result<Self> {
        let count = |network: &dyn Network| -> u64 {
            network.parameters().iter().map(|(_, tensor)| tensor.size().iter().product::<i64>() as u64).sum()
        };
        let discriminator = Discriminator::new(&Params::shapes(), &config.discriminator(data.styles().len()))?;
        let mut parameters = count(&discriminator);
        if task == Task::Can {
            parameters += count(&Generator::new(&Params::shapes(), &config.generator())?);
        }
        Ok(Self {
            parameters,
            steps_per_epoch: steps_per_epoch(config, data),
            memory: parameters * BYTES_OF_A_PARAMETER,
        })
    }

    /// Refuses, with the numbers, what cannot fit into the memory of the machine or of the GPU.
    pub fn check_fits(&self, device: Device) -> Result<()> {
        available_memory(device).map_or(Ok(()), |available| self.check_fits_into(available))
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

/// Tries some steps on the run's own images; what they teach is thrown away.
pub(super) fn measure(
    job: &mut dyn Job,
    config: &CanConfig,
    data: &StyleImages,
    device: Device,
    interrupt: &Interrupt,
) -> Result<Measured> {
    let mut loader = data.loader(config.can.batch_size, config.can.flip, config.run.seed, 0);
    let mut began = Instant::now();
    for i in 0..TRIES {
        interrupt.check("nothing was begun")?;
        let batch = loader.next()?;
        let batch = StyleBatch { images: batch.images.to_device(device), styles: batch.styles.to_device(device) };
        job.step(&batch, &mut Randomness::cpu(u64::from(i))?)?;
        // The device is waited for.
        job.not_finite()?;
        if i == 0 {
            began = Instant::now();
        }
    }
    let step_seconds = began.elapsed().as_secs_f64() / f64::from(TRIES - 1);
    let epoch_seconds = step_seconds * steps_per_epoch(config, data) as f64;
    Ok(Measured { step_seconds, epoch_seconds, peak_bytes: peak_memory(device) })
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
