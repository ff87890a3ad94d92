//! The error type of plugins.

use std::fmt::{self, Debug, Display, Formatter};

/// A message for the plugin's user. `?` converts any error of a library into one; [`Error::new`] creates one from text.
/// By convention it is lowercase, has no final dot, and contains the value at fault.
pub struct Error(String);

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns an error with this message.
    pub fn new(message: impl Display) -> Self {
        Self(message.to_string())
    }

    /// Returns the same error with the failed action as a prefix: "reading the manifest: …".
    pub fn context(self, doing: impl Display) -> Self {
        Self(format!("{doing}: {}", self.0))
    }
}

// `Error` itself does not implement `std::error::Error`: only then can every type that does convert into it.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Debug for Error {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
