//! `host plugin pull`: a plugin of a registry as a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;

use super::reference;
use crate::context::Context;
use crate::fs::write_atomic;
use crate::plugin::store::reference::Reference;
use crate::plugin::{Limits, PluginHost};
use crate::text::to_json;

/// Copy a plugin from a registry into a file, after its digest, its signature and its description were checked.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin pull oci://registry.example.com/team/sea:1.2.0
  host plugin pull oci://registry.example.com/team/sea:^1.2 -o plugins/sea.wasm
  host plugin pull oci://ghcr.io/team/sea@sha256:9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab

Every command takes such a reference where it takes a plugin: pulling is needed only to have the file.")]
pub struct PullArgs {
    /// The plugin: oci://REGISTRY/NAMESPACE/NAME, then :VERSION, :RANGE, @sha256:DIGEST, or nothing for the highest version
    #[arg(value_name = "REF", value_parser = reference)]
    reference: Reference,
    /// The file, or an existing folder [default: NAME.wasm or NAME.onnx here]
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// Replace another file of that name
    #[arg(long)]
    force: bool,
    /// Print one JSON document about what was pulled
    #[arg(long)]
    json: bool,
}

impl PullArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let host = PluginHost::of_command(Limits::default(), context)?;
        let found = host.store().find(&self.reference.to_string())?;
        // What is no plugin is refused before a file is written.
        let plugin = host.load_found(&found, BTreeMap::new(), None)?;
        let published = found.published.context("it is from a registry")?;
        let file_name = PathBuf::from(found.path.file_name().context("it has a name")?);
        let target = match &self.output {
            None => file_name,
            Some(output) if output.is_dir() => output.join(file_name),
            Some(output) => {
                ensure!(
                    output.extension() == file_name.extension(),
                    "-o {} must end in .{}, as the plugin's file does",
                    output.display(),
                    file_name.extension().unwrap_or_default().display()
                );
                output.clone()
            }
        };
        let side = found.path.with_extension("toml");
        let files = [(found.path.clone(), target.clone()), (side, target.with_extension("toml"))];
        let files: Vec<_> = files.into_iter().filter(|(from, _)| from.is_file()).collect();
        let contents = files.iter().map(|(from, to)| Ok((to, fs_err::read(from)?))).collect::<Result<Vec<_>>>()?;
        for (to, bytes) in &contents {
            self.check_free(to, bytes)?;
        }
        for (to, bytes) in &contents {
            write_atomic(to, bytes)?;
        }
        let sha256 = &plugin.source().sha256;
        if self.json {
            let document = json!({
                "reference": published.reference(), "version": published.version, "manifest": published.manifest,
                "sha256": sha256, "signer": published.signer, "path": target.to_string_lossy(),
            });
            println!("{}", to_json(&document));
        } else {
            let signer = published.signer.as_ref().map_or("not signed".to_owned(), |signer| match &signer.name {
                Some(_) => format!("signed by {signer}"),
                None => format!("with a signature of {signer}"),
            });
            let (reference, digest) = (published.reference(), &sha256[..12]);
            context.progress.println(format!("{reference} (sha256 {digest}…, {signer}) as {}", target.display()));
        }
        Ok(())
    }

    fn check_free(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let is_free = self.force || !path.exists() || fs_err::read(path)? == bytes;
        ensure!(is_free, "{} exists with another content; --force replaces it", path.display());
        Ok(())
    }
}
