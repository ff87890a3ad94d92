//! The flags of commands that several processes can work on.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use super::numbers::within;
use crate::context::Context;
use crate::processes::{Backend, Place, Processes};

/// How processes work together.
#[derive(Args, Clone, Debug)]
pub struct ProcessArgs {
    /// Number of processes on this machine, which this one starts; several machines, or a launcher: see docs/processes.md
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = within(1usize..=1024))]
    nproc: usize,
    /// Seconds that a process waits for the others
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = within(1u64..=86_400))]
    timeout: u64,
    /// What carries tensors between GPUs: nccl, or gloo, through the CPU [default: nccl where each process has a GPU of its own]
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    backend: Option<Backend>,
}

impl ProcessArgs {
    /// Number of processes that the command starts, if it starts any.
    pub fn starts(&self) -> Option<usize> {
        (self.nproc > 1).then_some(self.nproc)
    }

    /// Connects this process with the others: those of `place`, or those that it starts.
    ///
    /// # Errors
    /// If a process cannot be started, or does not come.
    pub fn connect(&self, place: Option<Place>, context: &Context) -> Result<Processes> {
        let timeout = Duration::from_secs(self.timeout);
        match (place, self.starts()) {
            (None, None) => Ok(Processes::default()),
            (None, Some(count)) => Processes::start(count, context.program.as_deref(), timeout, self.backend),
            (Some(place), starts) => {
                ensure!(
                    starts.is_none(),
                    "a launcher has started the processes (WORLD_SIZE is set): leave --nproc out"
                );
                Processes::join(place, timeout, self.backend)
            }
        }
    }
}
