//! What can go wrong with a run's folder, one sentence each.

use std::io;
use std::path::{Path, PathBuf};

/// The result of working on a run's folder.
pub type Result<T, E = RunError> = std::result::Result<T, E>;

/// What can go wrong with a run's folder.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What is to be written would be mixed with something else.
    #[error("{} is not empty: name another folder with --out", .0.display())]
    NotEmpty(PathBuf),
    /// The same, where a run stands already.
    #[error("{run} holds a run: go on with it by --resume {run}, or name another folder with --out", run = .0.display())]
    HoldsRun(PathBuf),
    /// The folder does not hold a run.
    #[error("{} is not a run's folder (it has no config.toml)", .0.display())]
    NotARun(PathBuf),
    /// Another process writes here.
    #[error("another process is writing to {}; wait for it or stop it first", .0.display())]
    Busy(PathBuf),
    /// The folder or file cannot be written.
    #[error("cannot write {}: {}", .path.display(), reason(.source))]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
    /// The folder or file cannot be read.
    #[error("cannot read {}: {}", .path.display(), reason(.source))]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
    /// A file of the run does not say what it should.
    #[error("{} is damaged: {message}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and how.
        message: String,
    },
    /// A record without a whole number `epoch`, or one that is no JSON object.
    #[error("a metrics record must be a JSON object with a whole number `epoch`")]
    Record,
    /// An image could not be encoded.
    #[error("cannot encode {}: {source}", .path.display())]
    Image {
        /// The image's file.
        path: PathBuf,
        /// Why.
        source: image::ImageError,
    },
    /// The report's template failed.
    #[error("cannot render the report: {0}")]
    Template(#[from] minijinja::Error),
}

impl RunError {
    pub(super) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }

    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }
}

/// The error in words, without the operating system's number and capital.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}
