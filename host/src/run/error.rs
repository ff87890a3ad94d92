//! The errors of a run's folder.

use std::path::PathBuf;

use crate::fs::FileError;

/// The result type of functions on a run's folder.
pub type Result<T, E = RunError> = std::result::Result<T, E>;

/// An error of a run's folder.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The folder of a new run is not empty.
    #[error("{} is not empty: name another folder with --out", .0.display())]
    NotEmpty(PathBuf),
    /// The folder of a new run already contains a run.
    #[error("{run} holds a run: resume it with --resume {run}, or name another folder with --out", run = .0.display())]
    HoldsRun(PathBuf),
    /// The folder does not contain a run.
    #[error("{} is not a run's folder (it has no config.toml)", .0.display())]
    NotARun(PathBuf),
    /// Another process writes to the folder.
    #[error("another process is writing to {}; wait for it or stop it first", .0.display())]
    Busy(PathBuf),
    /// A folder or file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The contents of a file of the run are invalid.
    #[error("{} is damaged: {message}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The position and the error.
        message: String,
    },
    /// A record without an integer `epoch`, or one that is not a JSON object.
    #[error("a metrics record must be a JSON object with a whole number `epoch`")]
    Record,
    /// A number of a record is not finite.
    #[error("{field} of epoch {epoch} is not a finite number")]
    NotFinite {
        /// The epoch.
        epoch: u64,
        /// The name of the number in the record.
        field: String,
    },
    /// An image could not be encoded.
    #[error("cannot encode {}: {source}", .path.display())]
    Image {
        /// The image's file.
        path: PathBuf,
        /// The encoder's error.
        source: png::EncodingError,
    },
    /// The report's template failed.
    #[error("cannot render the report: {0}")]
    Template(#[from] minijinja::Error),
}
