//! What every command is given besides its own arguments.

use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// What every command is given besides its own arguments.
#[derive(Clone, Debug)]
pub struct Context {
    /// Compute threads.
    pub threads: usize,
    /// Whether the network must not be used.
    pub offline: bool,
    /// Bars and lines on stderr.
    pub progress: Progress,
    /// Set by Ctrl-C.
    pub interrupt: Interrupt,
}
