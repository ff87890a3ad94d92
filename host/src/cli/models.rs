//! `host models count`: the number of a model's parameters by component.

use std::path::Path;

use ambiguity_models::count::{Component, of_can, of_folder, of_published};
use ambiguity_models::lora::{LoraSpec, Targets};
use ambiguity_models::published::{PUBLISHED, published};
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde_json::json;

use super::completions::models;
use super::numbers::within;
use crate::context::Context;
use crate::text::to_json;
use crate::zoo::model_folder;

/// Show information about models without running them.
#[derive(Args, Debug)]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Count(CountArgs),
}

/// Count a model's parameters by component, from its configuration alone (the paper's Table 17).
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host models count stabilityai/stable-diffusion-2-base
  host models count can-512
  host models count tiny-art --targets all-linear --rank 8
  host models count models/clip-vit-large-patch14 --json --tensors")]
struct CountArgs {
    /// A diffusers or CLIP folder, a shipped model, a published model by its id on the Hub, or can-SIZE
    #[arg(value_name = "DIR|PRESET", add = models())]
    model: String,
    /// Rank of the UNet's LoRA
    #[arg(long, value_name = "R", default_value_t = 4, value_parser = within(1i64..=4096))]
    rank: i64,
    /// Layers with LoRA: attention, attention+feed-forward, all-linear, or comma-separated names
    #[arg(long, value_name = "T", default_value = "attention")]
    targets: Targets,
    /// Number of styles of a CAN's discriminator
    #[arg(long, value_name = "N", default_value_t = 27, value_parser = within(2i64..=65_536))]
    styles: i64,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// List every tensor in it, by its checkpoint name, with its shape
    #[arg(long, requires = "json")]
    tensors: bool,
}

impl ModelsArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let Command::Count(args) = self.command;
        let lora = LoraSpec { rank: args.rank, alpha: args.rank as f64, targets: args.targets };
        // A published model is counted without its files; nothing is downloaded for it.
        let can = args.model.strip_prefix("can-").and_then(|size| size.parse().ok());
        let known = published(&args.model).filter(|_| !Path::new(&args.model).is_dir());
        let components = match (can, known) {
            (Some(size), _) => of_can(size, args.styles)?,
            (None, Some(model)) => of_published(&args.model, model, &lora)?,
            (None, None) => {
                let ids = || PUBLISHED.map(|(id, _)| id).join(", ");
                let folder = model_folder(&args.model, context);
                of_folder(&folder.with_context(|| format!("counted without files: {}", ids()))?, &lora)?
            }
        };
        print!("{}", if args.json { document(&components, args.tensors) } else { table(&components) });
        Ok(())
    }
}

fn document(components: &[Component], tensors: bool) -> String {
    let components = components.iter().map(|part| {
        let mut object = json!({ "name": part.name, "parameters": part.parameters, "trainable": part.trainable });
        if tensors {
            object["tensors"] = json!(part.tensors);
        }
        object
    });
    to_json(&json!({ "components": components.collect::<Vec<_>>() })) + "\n"
}

/// Returns one line per component, and their sum.
fn table(components: &[Component]) -> String {
    let total = |number: fn(&Component) -> usize| components.iter().map(number).sum::<usize>();
    let sum = ("total", total(|part| part.parameters), total(|part| part.trainable));
    let rows = components.iter().map(|part| (part.name.as_str(), part.parameters, part.trainable)).chain([sum]);
    let width = components.iter().map(|part| part.name.len()).max().unwrap_or(0).max("component".len());
    let mut text = format!("{:<width$}  {:>15}  {:>12}\n", "component", "parameters", "trainable");
    for (name, parameters, trainable) in rows {
        text += &format!("{name:<width$}  {:>15}  {:>12}\n", grouped(parameters), grouped(trainable));
    }
    text
}

/// Formats 866740676 as 866,740,676.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_table_has_a_sum() {
        let part = |name: &str, parameters, trainable| Component {
            name: name.to_owned(),
            parameters,
            trainable,
            tensors: BTreeMap::new(),
        };
        insta::assert_snapshot!(table(&[part("vae", 999, 0), part("unet", 1_234_567, 1000)]), @r"
        component       parameters     trainable
        vae                    999             0
        unet             1,234,567         1,000
        total            1,235,566         1,000
        ");
    }
}
