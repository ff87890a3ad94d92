//! `host plugin card`: writes a page about a plugin, as Markdown and as HTML.

mod contents;
mod page;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

pub(super) use self::contents::{Card, Given, collect};
use super::running::RunningArgs;
use crate::cli::completions::plugins;
use crate::context::Context;
use crate::fs::write_atomic;
use crate::text::{counted, shown, to_json};

/// Write a page about a plugin: its styles, what it asks for and may do, its cost, an audit, and what it predicts.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin card kmeans_image                  kmeans_image.card.md and kmeans_image.card.html
  host plugin card . -o target                   a plugin crate, with what it predicts of fixtures/
  host plugin card ./mine.wasm photos/ a.png     with what it predicts of files of your own
  host plugin card jpeg_size --config quality=75 --json

The Markdown is for a forge or a registry. The HTML is one file that opens without a network and has the images in it.
The same plugin, encoders and samples make the same pages to the last byte. Files that exist are replaced.")]
pub struct CardArgs {
    /// A plugin: a path, a name, or a plugin crate's folder
    #[arg(add = plugins())]
    plugin: String,
    /// Samples besides those of fixtures/ in the plugin's folder: files of a medium that the plugin takes, as of
    /// `host plugin classify`, or folders of them
    #[arg(value_name = "SAMPLE")]
    samples: Vec<PathBuf>,
    /// Existing folder of the two files
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    #[command(flatten)]
    running: RunningArgs,
    /// Print the card as one JSON document
    #[arg(long)]
    json: bool,
}

impl CardArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        ensure!(self.output.is_dir(), "there is no folder {}", self.output.display());
        let (mut plugin, mut encoders) = self.running.open(&self.plugin, context)?;
        let signer = plugin.source().published.as_ref().and_then(|published| published.signer.as_ref());
        let signer = signer.map(ToString::to_string);
        let given = Given {
            reference: &self.plugin,
            samples: &self.samples,
            config: self.running.config(),
            signer: signer.as_deref(),
        };
        let card = collect(&mut *plugin, &mut encoders, given, context)?;
        let [markdown, html] = card.write(&self.output)?;
        if self.json {
            let mut document = card.document()?;
            document["files"] = json!([markdown.to_string_lossy(), html.to_string_lossy()]);
            println!("{}", to_json(&document));
            return Ok(());
        }
        let warnings = match card.warnings() {
            0 => "no warnings".to_owned(),
            n => counted(n as u64, "warning"),
        };
        context.progress.println(format!("{}, {}: {warnings}", shown(&markdown), shown(&html)));
        Ok(())
    }
}

impl Card {
    /// Writes `PLUGIN.card.md` and `PLUGIN.card.html` into a folder, and returns their paths.
    fn write(&self, folder: &Path) -> Result<[PathBuf; 2]> {
        let files = ["md", "html"].map(|extension| folder.join(format!("{}.card.{extension}", self.file_stem())));
        let files = files.map(|path| path.strip_prefix(".").map(Path::to_owned).unwrap_or(path));
        for (path, text) in files.iter().zip([self.markdown()?, self.html()?]) {
            write_atomic(path, text.as_bytes())?;
        }
        Ok(files)
    }
}
