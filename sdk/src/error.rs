//! Why a plugin could not do what it was asked for.

use std::fmt::{self, Debug, Display, Formatter};

/// A message for whoever runs the plugin. Any error of a library turns into one with `?`; [`Error::new`] makes one from
/// text. By custom: lowercase, no final dot, with the value at fault.
pub struct Error(String);

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error that says `message`.
    pub fn new(message: impl Display) -> Self {
        Self(message.to_string())
    }

    /// The same error with what was being done in front: "reading the manifest: …".
    pub fn context(self, doing: impl Display) -> Self {
        Self(format!("{doing}: {}", self.0))
    }
}

// `Error` itself is no `std::error::Error`: only so may everything that is one convert into it.
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
