//! `host lora …`: inspects a LoRA, merges it into a model's weights, or removes it again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ambiguity_models::lora::LoraFile;
use ambiguity_models::safetensors::{digest_safetensors, read_metadata, write_safetensors};
use ambiguity_models::weights::{DIFFUSERS_STEM, read_folder};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Kind;

use super::completions::models;
use super::numbers::within;
use crate::context::Context;
use crate::fs::{is_inside, new_folder};
use crate::text::{counted, escaped, shown, to_json};
use crate::zoo::model_folder;

/// Inspect a LoRA, merge it into a model, or remove it again.
#[derive(Args, Debug)]
pub struct LoraArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Info(InfoArgs),
    /// Write a copy of a model with a LoRA merged into its UNet's weights: the same images without the LoRA's cost
    #[command(after_help = "Example:
  host lora merge --model stable-diffusion-2-base --lora runs/2026-03-01-kmeans_image --out ambiguous")]
    Merge(MergeArgs),
    /// Write a copy of a merged model with the LoRA removed again, exact except for the rounding of the weights' type
    #[command(after_help = "Example:
  host lora unmerge --model ambiguous --lora runs/2026-03-01-kmeans_image --out plain")]
    Unmerge(MergeArgs),
}

/// Show a LoRA's rank, alpha, layers, parameters and the norm of its weight update.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host lora info runs/2026-03-01-kmeans_image
  host lora info pytorch_lora_weights.safetensors --json")]
struct InfoArgs {
    /// A run's or checkpoint's folder, or a file in the format of diffusers or peft
    #[arg(value_name = "DIR|FILE")]
    lora: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct MergeArgs {
    /// A diffusers folder, the name of a shipped model, or an id on the Hub
    #[arg(long, value_name = "DIR|NAME|ID", add = models())]
    model: String,
    /// A run's or checkpoint's folder, or a file in the format of diffusers or peft
    #[arg(long, value_name = "DIR|FILE")]
    lora: PathBuf,
    /// Scale of the LoRA's weight update
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = within(-1e6..=1e6))]
    lora_scale: f64,
    /// A new folder for the model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print one JSON document about the result
    #[arg(long)]
    json: bool,
}

impl LoraArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        match self.command {
            Command::Info(args) => args.run(),
            Command::Merge(args) => args.run(Change::Merge, context),
            Command::Unmerge(args) => args.run(Change::Unmerge, context),
        }
    }
}

impl InfoArgs {
    fn run(self) -> Result<()> {
        let lora = LoraFile::read(&self.lora)?;
        // The layers by peft's target names: `to_k` for ….attn1.to_k, `to_out.0` for ….attn1.to_out.0.
        let mut targets = BTreeMap::<&str, usize>::new();
        let mut ranks = BTreeMap::<String, usize>::new();
        let mut norms = Vec::with_capacity(lora.layers.len());
        for layer in &lora.layers {
            *targets.entry(target(&layer.module)).or_default() += 1;
            *ranks.entry(format!("rank {}, alpha {}", layer.rank(), layer.alpha)).or_default() += 1;
            let delta = layer.b.f_matmul(&layer.a)? * layer.scaling;
            norms.push((delta.norm().to_kind(Kind::Double).double_value(&[]), layer.module.as_str()));
        }
        norms.sort_by(|a, b| b.0.total_cmp(&a.0));
        let total = norms.iter().map(|(norm, _)| norm * norm).sum::<f64>().sqrt();
        if self.json {
            let layers = lora.layers.iter().map(|layer| {
                json!({ "module": layer.module, "rank": layer.rank(), "alpha": layer.alpha, "scaling": layer.scaling })
            });
            let document = json!({
                "file": lora.path.to_string_lossy(),
                "parameters": lora.n_parameters(),
                "norm": total,
                "targets": targets,
                "layers": layers.collect::<Vec<_>>(),
            });
            println!("{}", to_json(&document));
            return Ok(());
        }
        println!("{}", shown(&lora.path));
        for (what, n) in &ranks {
            println!("  {what} on {}", counted(*n as u64, "layer"));
        }
        let targets: Vec<String> = targets.iter().map(|(name, n)| format!("{} ({n})", escaped(name))).collect();
        println!("  targets: {}", targets.join(", "));
        println!("  {} parameters", lora.n_parameters());
        println!("  norm of the weight update: {total:.4}; largest in:");
        for (norm, module) in norms.iter().take(3) {
            println!("    {norm:.4}  {}", escaped(module));
        }
        Ok(())
    }
}

/// Returns the end of a layer's name that is its target in peft.
fn target(module: &str) -> &str {
    let starts = module.rmatch_indices('.').map(|(at, _)| at + 1).chain([0]);
    let mut ends = starts.map(|at| &module[at..]);
    let last = ends.next().unwrap_or(module);
    if last.parse::<u32>().is_ok() { ends.next().unwrap_or(last) } else { last }
}

impl MergeArgs {
    fn run(self, change: Change, context: &Context) -> Result<()> {
        ensure!(self.lora_scale != 0.0, "--lora-scale is 0, with which nothing would change");
        let folder = model_folder(&self.model, context)?;
        let mut lora = LoraFile::read(&self.lora)?;
        let unet = folder.join("unet");
        let weights = format!("{DIFFUSERS_STEM}.safetensors");
        let this = Merged { sha256: digest_safetensors(&lora.path)?, scale: self.lora_scale };
        let merged = change.apply(merged_into(&unet.join(&weights))?, this, &folder)?;
        ensure!(
            !is_inside(&self.out, &folder)?,
            "{} is inside the model's own folder: name another one",
            self.out.display()
        );
        let mut tensors = read_folder(&unet, DIFFUSERS_STEM)?;
        let sign = if change == Change::Merge { 1.0 } else { -1.0 };
        lora.merge_into(&mut tensors, sign * self.lora_scale)?;
        new_folder(&self.out)?;
        copy_but_weights(&folder, &self.out, &unet)?;
        let record = serde_json::to_string(&merged)?;
        write_safetensors(&self.out.join("unet").join(weights), &tensors, &[("format", "pt"), (MERGED_KEY, &record)])?;
        let n_layers = lora.layers.len();
        if self.json {
            let (out, model) = (self.out.to_string_lossy(), folder.to_string_lossy());
            println!("{}", to_json(&json!({ "out": out, "model": model, "layers": n_layers, "merged": merged })));
        } else {
            println!("{}: {} of {}", shown(&self.out), counted(n_layers as u64, "layer"), shown(&folder));
        }
        Ok(())
    }
}

/// The metadata entry of a UNet's weights that lists the LoRAs merged into them, as JSON.
const MERGED_KEY: &str = "merged_loras";

/// A LoRA that is part of a model's weights.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Merged {
    /// The digest of the LoRA's tensors.
    sha256: String,
    scale: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Merge,
    Unmerge,
}

impl Change {
    /// Returns the LoRAs of the new model. Weights without a record may have been merged elsewhere, so that anything can
    /// be removed from them.
    fn apply(self, merged: Option<Vec<Merged>>, lora: Merged, model: &Path) -> Result<Vec<Merged>> {
        let (is_recorded, mut merged) = (merged.is_some(), merged.unwrap_or_default());
        let found = merged.iter().position(|other| other.sha256 == lora.sha256);
        let model = model.display();
        match (self, found) {
            (Self::Merge, Some(i)) => bail!(
                "this LoRA is already merged into {model} at scale {}: merge it into the original model instead, or remove \
                 it first with `host lora unmerge`",
                merged[i].scale
            ),
            (Self::Merge, None) => merged.push(lora),
            (Self::Unmerge, Some(i)) => {
                let scale = merged.remove(i).scale;
                ensure!(
                    scale == lora.scale,
                    "this LoRA was merged into {model} at scale {scale}: pass --lora-scale {scale}"
                );
            }
            (Self::Unmerge, None) => ensure!(!is_recorded, "this LoRA is not among those merged into {model}"),
        }
        Ok(merged)
    }
}

/// Returns the record of the LoRAs merged into a UNet's weights, if the file exists and has one.
fn merged_into(weights: &Path) -> Result<Option<Vec<Merged>>> {
    if !weights.is_file() {
        return Ok(None);
    }
    let metadata = read_metadata(weights)?;
    let record = metadata.get(MERGED_KEY).map(|text| serde_json::from_str(text));
    record.transpose().with_context(|| format!("{}: `{MERGED_KEY}`", weights.display()))
}

/// Copies a model's folder without hidden files and without the weights in `without`.
fn copy_but_weights(from: &Path, to: &Path, without: &Path) -> Result<()> {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|name| !name.to_string_lossy().starts_with('.')) else { continue };
        let target = to.join(name);
        if path.is_dir() {
            copy_but_weights(&path, &target, without)?;
        } else if from != without || name == "config.json" {
            fs_err::copy(&path, &target).with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lora_is_merged_once_and_removed_as_it_was_merged() {
        let lora = |sha256: &str, scale| Merged { sha256: sha256.to_owned(), scale };
        let (model, is) = (Path::new("model"), |merged: Result<Vec<Merged>>, wanted: &[Merged]| {
            assert_eq!(merged.expect("it is possible"), wanted);
        });
        is(Change::Merge.apply(None, lora("a", 1.0), model), &[lora("a", 1.0)]);
        is(Change::Merge.apply(Some(vec![lora("a", 1.0)]), lora("b", 0.5), model), &[lora("a", 1.0), lora("b", 0.5)]);
        is(Change::Unmerge.apply(Some(vec![lora("a", 1.0), lora("b", 0.5)]), lora("a", 1.0), model), &[lora("b", 0.5)]);
        is(Change::Unmerge.apply(None, lora("a", 1.0), model), &[]);
        for (change, of, said) in [
            (Change::Merge, lora("a", 0.5), "already merged into model at scale 1"),
            (Change::Unmerge, lora("a", 0.5), "at scale 1: pass --lora-scale 1"),
            (Change::Unmerge, lora("b", 1.0), "not among those merged"),
        ] {
            let message = change.apply(Some(vec![lora("a", 1.0)]), of, model).expect_err("it is refused").to_string();
            assert!(message.contains(said), "{message}");
        }
    }

    #[test]
    fn targets_are_named_as_peft_does() {
        assert_eq!(target("a.attn1.to_k"), "to_k");
        assert_eq!(target("a.attn1.to_out.0"), "to_out.0");
        assert_eq!(target("conv"), "conv");
    }
}
