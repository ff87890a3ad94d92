//! `host plugin score`: scores files with a plugin.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::inputs::{Inputs, Prompts, run_on_files};
use super::running::RunningArgs;
use crate::cli::completions::plugins;
use crate::context::Context;
use crate::plugin::{Fault, PluginError, Values};
use crate::text::{number, shown, table, to_json};

/// Score images, texts, recordings, videos or arrays with a plugin.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin score jpeg_size images/*.png
  host plugin score clip_score image.png --prompt 'a painting of a boat'
  host plugin score clip_score images/ --json      with the prompts of images/captions.jsonl

A run's reward is the score, or its negative if lower scores are better, times the plugin's weight.")]
pub struct ScoreArgs {
    /// A plugin: a path or a name
    #[arg(add = plugins())]
    plugin: String,
    /// Files of a medium that the plugin takes, as of `host plugin classify`; folders of them; or `-`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The prompt of all files [default: that of captions.jsonl in a file's folder, else none]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    #[command(flatten)]
    running: RunningArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Number of decimals of a score.
const DECIMALS: usize = 5;

impl ScoreArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let (mut plugin, mut encoders) = self.running.open(&self.plugin, context)?;
        let Some(scale) = plugin.description().scale() else {
            return Err(PluginError::new(&plugin.source().name, Fault::NoScores).into());
        };
        let inputs = Inputs::find(&self.files, &plugin.description().media)?;
        let mut prompts = Prompts::new(self.prompt);
        let (mut samples, mut fuel, mut milliseconds) = (vec![], None, 0.0);
        run_on_files(&inputs, &mut prompts, &mut *plugin, &mut encoders, context, |files, output| {
            fuel = output.fuel.map(|used| fuel.unwrap_or(0) + used).or(fuel);
            milliseconds += output.milliseconds;
            if let Values::Scores { scores, .. } = output.values {
                samples.extend(files.into_iter().zip(scores));
            }
        })?;
        if self.json {
            let documents =
                samples.iter().map(|(file, score)| json!({ "file": file.to_string_lossy(), "score": score }));
            let document = json!({
                "plugin": plugin.source().name,
                "higher_is_better": scale.higher_is_better,
                "samples": documents.collect::<Vec<_>>(),
                "fuel": fuel,
                "milliseconds": milliseconds,
            });
            println!("{}", to_json(&document));
        } else {
            let rows = samples.iter().map(|(file, score)| vec![shown(file), number(*score, DECIMALS)]);
            print!("{}", table(&[true, false], &rows.collect::<Vec<_>>()));
            let unit = plugin.description().properties.iter().find(|(key, _)| key == "unit");
            let unit = unit.map(|(_, unit)| format!("in {unit}, ")).unwrap_or_default();
            println!("  {unit}{} is better", if scale.higher_is_better { "higher" } else { "lower" });
        }
        Ok(())
    }
}
