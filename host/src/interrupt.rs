//! Ctrl-C: the first one asks long work to stop at its next safe point, the second one ends the process immediately.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The error that long work returns once it has stopped safely; the binary exits with 130 on it.
#[derive(Debug, Default, thiserror::Error)]
#[error("interrupted{}{kept}", if .kept.is_empty() { "" } else { "; " })]
pub struct Interrupted {
    /// What is kept and how to resume: "the last checkpoint is …; resume with `host train --resume …`".
    pub kept: String,
}

/// Returns the error unchanged, or, if it is an interruption, one that says what is kept.
pub fn keeping(error: anyhow::Error, kept: impl Into<String>) -> anyhow::Error {
    if error.is::<Interrupted>() { Interrupted { kept: kept.into() }.into() } else { error }
}

/// Whether the user asked to stop; cheap to clone and to query.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Returns an interrupt that SIGINT, SIGTERM and SIGHUP set, and says so on stderr unless `is_quiet`. Call it once per process,
    /// from `main`.
    pub fn on_signals(is_quiet: bool) -> Result<Self, ctrlc::Error> {
        let interrupt = Self::default();
        let flag = interrupt.clone();
        ctrlc::set_handler(move || {
            if flag.0.swap(true, Ordering::SeqCst) {
                // SAFETY: `_exit` takes a number and does not return. `exit` would run libtorch's destructors while its
                // threads still compute.
                unsafe { libc::_exit(130) }
            }
            if is_quiet {
                return;
            }
            eprintln!("\nstopping at the next safe point (Ctrl-C again stops immediately) …");
        })?;
        Ok(interrupt)
    }

    /// Whether the user asked to stop.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Returns an error if the user asked to stop; `kept` says what is kept (see also [`keeping`]).
    pub fn check(&self, kept: impl Into<String>) -> Result<(), Interrupted> {
        if self.requested() { Err(Interrupted { kept: kept.into() }) } else { Ok(()) }
    }

    /// Asks to stop, as a signal does.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
