//! The commands by which teams share plugins: registries, signatures, trust and locks.

pub(super) mod keygen;
pub(super) mod lock;
pub(super) mod outdated;
pub(super) mod pull;
pub(super) mod push;
pub(super) mod search;
pub(super) mod sign;
pub(super) mod trust;
pub(super) mod update;
pub(super) mod verify;
pub(super) mod versions;

use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::plugin::store::reference::Reference;
use crate::plugin::store::signature::Signer;

/// The variable with the password of a secret key, where nobody is there to ask.
const PASSWORD: &str = "AMBIGUITY_KEY_PASSWORD";

/// Reads a reference to a registry, as an argument.
fn reference(text: &str) -> Result<Reference, String> {
    text.parse()
}

/// Opens a secret key; its password, if it has one, is the environment's, or is asked for.
fn secret_key(file: &Path) -> Result<Signer> {
    Signer::open(file, || password(&format!("password of {}: ", file.display())))
}

/// Returns the password of the environment, or asks for it on the terminal.
fn password(prompt: &str) -> Result<String> {
    if let Ok(password) = std::env::var(PASSWORD) {
        return Ok(password);
    }
    if !std::io::stdin().is_terminal() {
        bail!("the key has a password, and there is no terminal to ask for it: set {PASSWORD}");
    }
    rpassword::prompt_password(prompt).context("reading the password")
}
