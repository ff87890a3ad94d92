//! `host plugin describe-onnx`: writes into an ONNX model what makes it a plugin.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use super::running::key_value;
use crate::context::Context;
use crate::fs::write_atomic;
use crate::plugin::describe_onnx;
use crate::text::{counted, to_json};

/// Write what describes an ONNX model, and data that lies in other files, into its file.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin describe-onnx model.onnx -o seas.onnx --set styles='[\"land\", \"sea\"]' --set output=logits
  host plugin describe-onnx model.onnx -o model.onnx      the keys of model.toml, into the model

The keys are those of docs/onnx.md; values are JSON, or texts. Keys that are set replace those of a .toml beside the model,
which replace those in the model.")]
pub struct DescribeArgs {
    /// The model
    #[arg(value_name = "FILE.onnx")]
    model: PathBuf,
    /// The file to write, which may be the model itself
    #[arg(short, long, value_name = "FILE.onnx")]
    output: PathBuf,
    /// One key of the description; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl DescribeArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        ensure!(
            self.output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx")),
            "-o {} must end in .onnx, the extension of models",
            self.output.display()
        );
        let (file, description) = describe_onnx(&self.model, self.set.into_iter().collect())?;
        write_atomic(&self.output, &file)?;
        if self.json {
            let (file, name, version) = (self.output.to_string_lossy(), &description.name, &description.version);
            let document = json!({ "plugin": file, "name": name, "version": version, "styles": description.styles() });
            println!("{}", to_json(&document));
            return Ok(());
        }
        let styles = counted(description.styles().len() as u64, "style");
        context.progress.println(format!(
            "{}: {} {}, {styles}",
            self.output.display(),
            description.name,
            description.version
        ));
        Ok(())
    }
}
