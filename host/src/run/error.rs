//! What can go wrong with a run's folder, one sentence each.

use std::path::PathBuf;

use crate::fs::FileError;

/// The result of working on a run's folder.
pub type Result<T, E = RunError> = std::result::Result<T, E>;

/// What can go wrong with a run's folder.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What is to be written would be mixed with something else.
    #[error("{} is not empty: name another folder with --out", .0.display())]
    NotEmpty(PathBuf),
    /// The same, where a run stands already.
    #[error("{run} holds a run: resume it with --resume {run}, or name another folder with --out", run = .0.display())]
    HoldsRun(PathBuf),
    /// The folder does not hold a run.
    #[error("{} is not a run's folder (it has no config.toml)", .0.display())]
    NotARun(PathBuf),
    /// Another process writes here.
    #[error("another process is writing to {}; wait for it or stop it first", .0.display())]
    Busy(PathBuf),
    /// A folder or file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of the run does not say what it should.
    #[error("{} is damaged: {message}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and how.
        message: String,
    },
    /// A record without a whole number `epoch`, or one that is not a JSON object.
    #[error("a metrics record must be a JSON object with a whole number `epoch`")]
    Record,
    /// A number of a record is not finite.
    #[error("{field} of epoch {epoch} is not a finite number")]
    NotFinite {
        /// The epoch.
        epoch: u64,
        /// The number's place in the record.
        field: String,
    },
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
