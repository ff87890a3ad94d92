//! `host plugin verify`: who signed a plugin.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;

use super::sign::files_of;
use crate::cli::completions::plugins;
use crate::context::Context;
use crate::plugin::store::reference::is_reference;
use crate::plugin::store::signature::{Key, MAX_FILE, signature_file};
use crate::plugin::store::trust::{Trust, TrustedKey};
use crate::plugin::store::{Published, Store};
use crate::text::to_json;

/// Check a plugin's signature: that of FILE.minisig beside a file, or those in a registry. Exits with 1 if no trusted key
/// signed it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin verify ./sea.wasm                                     by a key of `host plugin trust`
  host plugin verify ./sea.wasm --key team.pub
  host plugin verify oci://registry.example.com/team/sea:1.2.0")]
pub struct VerifyArgs {
    /// A plugin: a path, a name, or a reference to a registry
    #[arg(value_name = "P|REF", add = plugins())]
    plugin: String,
    /// The public key that must have signed it, base64 or NAME.pub [default: the trusted keys]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Print one JSON document about the signature
    #[arg(long)]
    json: bool,
}

impl VerifyArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let store = Store::of_command(context)?;
        let key = self.key.as_ref().map(|key| {
            let path = Path::new(key);
            let read = if path.is_file() { Key::open(path) } else { Key::read(key) }?;
            let name = path
                .file_stem()
                .filter(|_| path.is_file())
                .map_or("the key", |stem| stem.to_str().unwrap_or("the key"));
            let (name, namespace, key) = (name.to_owned(), "*".to_owned(), read.to_base64());
            anyhow::Ok(TrustedKey { name, namespace, key, expires: None })
        });
        let trust = Trust::demanding(key.transpose()?, store.project().map(|project| &project.trust))?;
        let reference = store.meaning(&self.plugin).to_owned();
        let (signer, comment) = if is_reference(&reference) {
            let found = store.trusting(trust).find(&reference)?;
            let signer = found.published.and_then(|Published { signer, .. }| signer);
            (signer.context("its signature was accepted")?, None)
        } else {
            let (signer, comment) = verify_files(&store.find(&reference)?.path, &trust)?;
            (signer, Some(comment))
        };
        if self.json {
            let document =
                json!({ "plugin": self.plugin, "signer": signer.name, "key": signer.id, "comment": comment });
            println!("{}", to_json(&document));
        } else {
            let comment = comment.map(|comment| format!(": {comment}")).unwrap_or_default();
            println!("{} is signed by {signer}{comment}", self.plugin);
        }
        Ok(())
    }
}

/// Verifies the signatures beside a plugin's files; returns who signed them, and the comment of the first.
fn verify_files(path: &Path, trust: &Trust) -> Result<(crate::plugin::store::trust::Signer, String)> {
    let mut found = None;
    for file in files_of(path) {
        let beside: PathBuf = signature_file(&file);
        ensure!(beside.is_file(), "{} is not signed: there is no {}", file.display(), beside.display());
        ensure!(
            fs_err::metadata(&beside)?.len() <= MAX_FILE as u64,
            "{} is too long for a signature",
            beside.display()
        );
        let text = fs_err::read_to_string(&beside)?;
        let verified = trust.verify_file(&fs_err::read(&file)?, &text);
        let (signer, verified) = verified.with_context(|| file.display().to_string())?;
        if let Some((first, _)) = &found {
            ensure!(*first == signer, "{} is signed by {signer}, the model by {first}", file.display());
        } else {
            found = Some((signer, verified.comment));
        }
    }
    found.context("a plugin has a file")
}
