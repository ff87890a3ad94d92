//! `host plugin build`: a CLIP softmax plugin from a list of styles, without a compiler.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tch::Device;

use super::check_component_name;
use super::running::warn_of_unfamiliar;
use crate::context::Context;
use crate::encoders::Encoders;
use crate::fs::{read_text, write_atomic};
use crate::plugin::Artifact;
use crate::plugin::build::{bake_clip_softmax, read_styles};
use crate::plugin::store::short_name;
use crate::text::{counted, size};

/// Build a plugin from style names or prompts: it classifies by the similarity of an image to each in CLIP's space.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin build light.toml                       # light.wasm
  host plugin build light.toml -o plugins/light.wasm

light.toml, in which everything except the styles is optional:

  title = 'Four kinds of light'
  name = 'light'                         # default: the file's name
  version = '1.0.0'
  authors = ['Ada']
  license = 'CC0-1.0'
  encoder = 'clip'                       # the run's default; or a name such as tiny-art
  medium = 'image'                       # or 'text'
  temperature = 0.01                     # divides the cosine similarities; default: the encoder's own
  template = 'a painting in {} light'    # or a list of them
  styles = ['morning', 'noon', 'evening', 'candle']

Instead of the list, a table has each style's own prompts, whose embeddings are averaged:

  [styles]
  morning = ['a misty morning', 'sunrise over a field']
  candle = 'a face by candlelight'")]
pub struct BuildArgs {
    /// The file of styles
    #[arg(value_name = "STYLES.toml")]
    styles: PathBuf,
    /// The plugin's file [default: STYLES.wasm]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON document about the result
    #[arg(long)]
    json: bool,
}

impl BuildArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let origin = self.styles.display().to_string();
        let stem = short_name(&origin);
        let output = self.output.unwrap_or_else(|| PathBuf::from(format!("{stem}.wasm")));
        check_component_name(&output)?;
        let text = read_text(&self.styles)?;
        let manifest = read_styles(&origin, &text, &stem)?;
        let plugin = bake_clip_softmax(&manifest)?;
        write_atomic(&output, &plugin)?;
        let prompts = manifest.prompts().map_err(|e| anyhow::anyhow!("{e}"))?;
        let n_prompts = prompts.iter().map(Vec::len).sum::<usize>();
        let encoder = manifest.encoder_name().map_err(|e| anyhow::anyhow!("{e}"))?;
        let bytes = plugin.len();
        // The prompts are embedded when the plugin runs; what its encoder knows of them is known already, if it is here.
        let mut encoders = Encoders::shipped(Device::Cpu);
        if encoders.resolve(encoder).is_ok() {
            encoders.note_texts(encoder, &prompts.concat())?;
            warn_of_unfamiliar(&encoders);
        }
        if self.json {
            let artifact = Artifact::parse(&output, plugin)?;
            let document = json!({
                "plugin": output,
                "bytes": bytes,
                "sha256": artifact.sha256,
                "name": manifest.name,
                "styles": manifest.styles,
                "prompts": prompts,
                "encoder": encoder,
                "temperature": manifest.temperature,
            });
            println!("{document:#}");
            return Ok(());
        }
        let temperature = match manifest.temperature {
            Some(temperature) => format!("temperature {temperature}"),
            None => "the encoder's own temperature".to_owned(),
        };
        context.progress.println(format!(
            "{}: {}, {}, encoder {encoder}, {temperature}; {}",
            output.display(),
            counted(manifest.styles.len() as u64, "style"),
            counted(n_prompts as u64, "prompt"),
            size(bytes)
        ));
        Ok(())
    }
}
