//! `host plugin keygen`: a pair of keys to sign with.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;

use super::{PASSWORD, password};
use crate::context::Context;
use crate::fs::{FileError, write_atomic};
use crate::plugin::store::signature::{Key, generate};
use crate::text::to_json;

/// Make a pair of minisign keys: NAME.key, which signs and stays secret, and NAME.pub, which others verify with.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin keygen team                  asks for a password
  host plugin keygen team --no-password    for a CI that keeps secrets itself

AMBIGUITY_KEY_PASSWORD is the password where there is no terminal. The keys are those of the tool `minisign`.")]
pub struct KeygenArgs {
    /// The files' name, without extension; may be a path
    #[arg(value_name = "NAME")]
    name: PathBuf,
    /// Write the secret key without a password
    #[arg(long)]
    no_password: bool,
    /// Print one JSON document about the keys
    #[arg(long)]
    json: bool,
}

impl KeygenArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let [secret_file, public_file] = ["key", "pub"].map(|extension| with_extension(&self.name, extension));
        for file in [&secret_file, &public_file] {
            ensure!(!file.exists(), "{} exists: keys are never overwritten, name other ones", file.display());
        }
        let password = match self.no_password {
            true => None,
            false => Some(new_password()?),
        };
        let (secret, public) = generate(password)?;
        let key = Key::read(&public)?;
        // Nobody else may read it, from its first byte.
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&secret_file);
        let written = opened.and_then(|mut file| file.write_all(secret.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|source| FileError::write(&secret_file, source))?;
        write_atomic(&public_file, public.as_bytes())?;
        if self.json {
            let files = [&secret_file, &public_file].map(|file| file.to_string_lossy());
            let document =
                json!({ "id": key.id(), "key": key.to_base64(), "secret_file": files[0], "public_file": files[1] });
            println!("{}", to_json(&document));
        } else {
            let (secret_file, public_file) = (secret_file.display(), public_file.display());
            context.progress.println(format!("key {}: {secret_file} signs and stays secret", key.id()));
            context.progress.println(format!(
                "give {public_file} to others: `host plugin trust add NAME {public_file} --namespace REGISTRY/NAMESPACE`"
            ));
        }
        Ok(())
    }
}

/// Returns a path with an extension behind the name, dots in it included.
fn with_extension(name: &Path, extension: &str) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

/// Asks for a new password, twice on a terminal.
fn new_password() -> Result<String> {
    let given = password("password of the new key: ").context("use --no-password for a key without one")?;
    ensure!(!given.is_empty(), "the password is empty; use --no-password for a key without one");
    if std::env::var_os(PASSWORD).is_none() {
        ensure!(given == password("once more: ")?, "the two passwords differ");
    }
    Ok(given)
}
