//! The errors of building and running networks.

use std::path::PathBuf;

/// Errors of this crate. Every message names the file and the key or tensor that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint lacks a tensor that the network needs.
    #[error("tensor `{name}` is missing from {source_name}")]
    MissingTensor {
        /// Full checkpoint name.
        name: String,
        /// The checkpoint's file, or `random initialization`.
        source_name: String,
    },
    /// The checkpoint contains tensors that the network, as configured, does not have.
    #[error(
        "{source_name} contains {count} tensor(s) that this network does not have, the first is `{name}`: do its config.json and its weights belong together?"
    )]
    UnknownTensor {
        /// Full checkpoint name of the first one in alphabetical order.
        name: String,
        /// Number of such tensors.
        count: usize,
        /// The file.
        source_name: String,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("tensor `{name}` in {source_name} has shape {found:?}, the configuration implies {wanted:?}")]
    Shape {
        /// Full checkpoint name.
        name: String,
        /// The file.
        source_name: String,
        /// Shape in the file.
        found: Vec<i64>,
        /// Shape that the configuration implies.
        wanted: Vec<i64>,
    },
    /// The network cannot be built from a configuration file.
    #[error("{path}: {message}", path = .path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The key, and what is wrong with it.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A safetensors file is damaged or contains a type that is not supported.
    #[error("{path}: not a readable safetensors file: {message}", path = .path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The reader's message.
        message: String,
    },
    /// A file of PyTorch is damaged or contains more than tensors and plain values.
    #[error("{path}: not a readable PyTorch file: {message}", path = .path.display())]
    TorchFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The input does not fit the network.
    #[error("{0}")]
    Input(String),
    /// libtorch reported an error.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// The shim over libtorch reported an error.
    #[error(transparent)]
    TorchExt(#[from] torch_ext::Error),
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;
