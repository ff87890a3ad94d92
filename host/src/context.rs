//! The context that every command receives besides its own arguments.

use std::path::PathBuf;

use anyhow::Result;
use tch::Device;

use crate::interrupt::Interrupt;
use crate::processes::Processes;
use crate::progress::Progress;

/// The context that every command receives besides its own arguments.
#[derive(Clone, Debug)]
pub struct Context {
    /// Number of compute threads.
    pub threads: usize,
    /// Whether the network must not be used.
    pub offline: bool,
    /// Progress bars and lines on stderr.
    pub progress: Progress,
    /// The interrupt that Ctrl-C sets.
    pub interrupt: Interrupt,
    /// The binary `host`, if this process is one: plugins are compiled in a process of its own.
    pub program: Option<PathBuf>,
    /// The processes that work on the command, as this one sees them.
    pub processes: Processes,
}

impl Context {
    /// Returns the context of a program that uses this library: one thread, no network, nothing on stderr.
    pub fn quiet() -> Self {
        Self {
            threads: 1,
            offline: true,
            progress: Progress::new(true),
            interrupt: Interrupt::default(),
            program: None,
            processes: Processes::default(),
        }
    }

    /// Returns the device of a configuration: of `cuda`, this process's own GPU, which is then connected with those of the others.
    ///
    /// # Errors
    /// If there is no such device; as [`Processes::use_gpus`].
    pub fn device(&self, device: &str) -> Result<Device> {
        let device = torch_ext::cuda::device(&self.processes.device(device))?;
        self.processes.use_gpus(device)?;
        Ok(device)
    }
}
