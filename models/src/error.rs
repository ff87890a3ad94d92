//! What can go wrong while a network is built or run.

use std::path::PathBuf;

/// Errors of this crate. Every message names the file and the key or tensor that is at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint lacks a tensor that the network needs.
    #[error("tensor `{name}` is missing from {source_name}")]
    MissingTensor {
        /// Full checkpoint name.
        name: String,
        /// The file, or `random initialization`.
        source_name: String,
    },
    /// The checkpoint holds tensors that the network, as configured, has no place for.
    #[error(
        "{source_name} holds {count} tensor(s) this network does not have, the first is `{name}`: do its config.json and its weights belong together?"
    )]
    UnknownTensor {
        /// Full checkpoint name of the first one in order.
        name: String,
        /// How many there are.
        count: usize,
        /// The file.
        source_name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` in {source_name} has shape {found:?}, the configuration wants {wanted:?}")]
    Shape {
        /// Full checkpoint name.
        name: String,
        /// The file.
        source_name: String,
        /// Shape in the file.
        found: Vec<i64>,
        /// Shape the configuration implies.
        wanted: Vec<i64>,
    },
    /// A configuration file is not what this network can be built from.
    #[error("{path}: {message}", path = .path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong, with the key.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// A safetensors file is damaged or holds a type we do not read.
    #[error("{path}: not a readable safetensors file: {message}", path = .path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The reader's word.
        message: String,
    },
    /// The input does not fit the network.
    #[error("{0}")]
    Input(String),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// The shim over libtorch refused an operation.
    #[error(transparent)]
    TorchExt(#[from] torch_ext::Error),
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;
