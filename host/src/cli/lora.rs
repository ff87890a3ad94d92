//! `host lora …`: inspects a LoRA, merges it into a model's weights, or removes it again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ambiguity_models::lora::LoraFile;
use ambiguity_models::safetensors::write_safetensors;
use ambiguity_models::weights::{DIFFUSERS_STEM, read_folder};
use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use serde_json::json;
use tch::Kind;

use crate::context::Context;
use crate::fs::new_folder;
use crate::text::escaped;
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
    #[arg(long, value_name = "DIR|NAME|ID")]
    model: String,
    /// A run's or checkpoint's folder, or a file in the format of diffusers or peft
    #[arg(long, value_name = "DIR|FILE")]
    lora: PathBuf,
    /// Scale of the LoRA's weight update
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    lora_scale: f64,
    /// A new folder for the model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl LoraArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        match self.command {
            Command::Info(args) => args.run(),
            Command::Merge(args) => args.run(1.0, context),
            Command::Unmerge(args) => args.run(-1.0, context),
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
                "file": lora.path,
                "parameters": lora.n_parameters(),
                "norm": total,
                "targets": targets,
                "layers": layers.collect::<Vec<_>>(),
            });
            println!("{document:#}");
            return Ok(());
        }
        println!("{}", escaped(&lora.path.to_string_lossy()));
        for (what, n) in &ranks {
            println!("  {what} on {n} layers");
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
    fn run(self, sign: f64, context: &Context) -> Result<()> {
        let folder = model_folder(&self.model, context)?;
        let lora = LoraFile::read(&self.lora)?;
        let unet = folder.join("unet");
        let mut tensors = read_folder(&unet, DIFFUSERS_STEM)?;
        lora.merge_into(&mut tensors, sign * self.lora_scale)?;
        ensure!(
            !self.out.starts_with(&folder),
            "{} is inside the model's own folder: name another one",
            self.out.display()
        );
        new_folder(&self.out)?;
        copy_but_weights(&folder, &self.out, &unet)?;
        let file = self.out.join("unet").join(format!("{DIFFUSERS_STEM}.safetensors"));
        write_safetensors(&file, &tensors, &[("format", "pt")])?;
        println!("{}: {} layers of {}", self.out.display(), lora.layers.len(), folder.display());
        Ok(())
    }
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
    fn targets_are_named_as_peft_does() {
        assert_eq!(target("a.attn1.to_k"), "to_k");
        assert_eq!(target("a.attn1.to_out.0"), "to_out.0");
        assert_eq!(target("conv"), "conv");
    }
}
