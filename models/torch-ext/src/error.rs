//! The one error type of this crate.

/// An error of libtorch, the dynamic linker or a check of this crate, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Keeps the first line: the rest of libtorch's messages are stack frames and hints for C++ programmers.
    pub(crate) fn from_libtorch(message: &str) -> Self {
        Self(format!("libtorch: {}", message.lines().find(|line| !line.trim().is_empty()).unwrap_or("no message")))
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        match error {
            tch::TchError::Torch(message) => Self::from_libtorch(&message),
            other => Self(other.to_string()),
        }
    }
}
