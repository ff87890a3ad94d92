//! The context that every command receives besides its own arguments.

use std::path::PathBuf;

use crate::interrupt::Interrupt;
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
}
