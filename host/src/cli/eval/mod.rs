//! `host eval`: the metrics of a run, of a LoRA, of a model, or of given images.

mod subject;
mod table;
mod weights;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use tch::Device;

use self::subject::{Evaluated, Kind};
use self::weights::{WeightsArgs, add_weights};
use super::completions::{models, plugins};
use super::numbers::within;
use super::processes::ProcessArgs;
use crate::config::{PluginLimits, RewardPlugin};
use crate::context::Context;
use crate::encoders::Encoders;
use crate::evaluation::{Request, Subject, evaluate};
use crate::metrics::Evaluator;
use crate::metrics::catalog::{Available, Name, PAIRS};
use crate::plugin::PluginHost;
use crate::text::{shown, to_json};
use crate::zoo::encoder_folder;

/// Number of images to generate.
const COUNT: usize = 100;
/// Number of images of a plugin's call.
const BATCH: usize = 16;

/// Evaluate a run, a LoRA, a model or a folder of images: rewards also under plugins that were held out, diversity, and the
/// paper's metrics, with their uncertainty and beside the untrained model.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host eval runs/demo --plugin simple --plugin clip_softmax
  host eval runs/demo/best --count 200 --reference paintings/
  host eval pytorch_lora_weights.safetensors --model stable-diffusion-2-base --device cuda --fetch
  host eval --model tiny-art --plugin kmeans_image --out evaluations/tiny-art --nproc 2
  host eval images/ --metrics vendi,near-duplicates
  host eval --embeddings clip-l.safetensors --metrics ava,vendi

eval.json is written into the folder of what is evaluated, or into that of --out; images and numbers are kept in eval/ beside it,
so that the same command resumes after an interruption, and computes only what is new with further metrics.

For a folder of images, captions.jsonl in it has the prompts: {\"file\": \"0000.png\", \"caption\": \"painting of a woman\"}.")]
pub struct EvalArgs {
    /// A run's folder, a checkpoint, a LoRA, or a folder of images [default: the newest run under runs/]
    #[arg(value_name = "RUN|LORA|DIR", conflicts_with = "embeddings")]
    what: Option<PathBuf>,
    /// A diffusers folder, the name of a shipped model, or an id on the Hub [default: that of the run]
    #[arg(long, value_name = "DIR|NAME|ID", add = models())]
    model: Option<String>,
    /// A plugin that took no part in the training; may be repeated
    #[arg(long = "plugin", value_name = "P", add = plugins())]
    plugins: Vec<String>,
    /// The folder of an encoder that plugins ask for by name; may be repeated
    #[arg(long = "encoder", value_name = "NAME=DIR")]
    encoders: Vec<String>,
    /// The metrics, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    metrics: Vec<Name>,
    /// A folder of reference images, such as those of the training art, for coverage and novelty
    #[arg(long, value_name = "DIR")]
    reference: Option<PathBuf>,
    /// Evaluate the model without the LoRA too [default: with a LoRA]
    #[arg(long, overrides_with = "no_baseline")]
    baseline: bool,
    /// Evaluate the LoRA alone
    #[arg(long, overrides_with = "baseline")]
    no_baseline: bool,
    /// Number of images to generate [default: 100]
    #[arg(long, value_name = "N", value_parser = within(2usize..=1_000_000))]
    count: Option<usize>,
    /// Number of image pairs of the style similarity [default: 40]
    #[arg(long, value_name = "N", value_parser = within(1usize..=1_000_000))]
    pairs: Option<usize>,
    /// Number of DDIM steps [default: that of the run]
    #[arg(long, value_name = "N", value_parser = within(1usize..=1000))]
    steps: Option<usize>,
    /// DDIM's eta; 0: deterministic, 1: as much noise as DDPM [default: that of the run]
    #[arg(long, value_name = "ETA", value_parser = within(0.0..=1.0))]
    eta: Option<f64>,
    /// Scale of classifier-free guidance; 1 or less: none [default: that of the run]
    #[arg(long, value_name = "G", value_parser = within(0.0..=1000.0))]
    guidance: Option<f64>,
    /// Width in pixels [default: that of the run]
    #[arg(long, value_name = "PX", value_parser = within(1u32..=65_536))]
    width: Option<u32>,
    /// Height in pixels [default: that of the run]
    #[arg(long, value_name = "PX", value_parser = within(1u32..=65_536))]
    height: Option<u32>,
    /// Seed of the noise, which no training has [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// A text file with one prompt per line [default: the prompts of the run]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Maximum number of UNet rows per call [default: that of the run]
    #[arg(long, value_name = "N", value_parser = within(1usize..=1_000_000))]
    micro_batch: Option<usize>,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    #[command(flatten)]
    weights: WeightsArgs,
    /// Given embeddings instead of images: safetensors, key `embeddings`, raw image embeddings of CLIP ViT-L/14, f32 [n, 768]
    #[arg(long, value_name = "FILE", requires = "metrics", conflicts_with_all = ["plugins", "reference", "encoders", "out"])]
    embeddings: Option<PathBuf>,
    /// The folder for eval.json and the images
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) processes: ProcessArgs,
    /// Print eval.json
    #[arg(long)]
    json: bool,
}

impl EvalArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let device = context.device(&self.device)?;
        let processes = &context.processes;
        if let Some(embeddings) = &self.embeddings {
            ensure!(processes.count() == 1, "--embeddings is quick work for one process: leave --nproc out");
            let evaluation = weights::of_embeddings(embeddings, &self.names(), &self.weights, device, context)?;
            match self.json {
                true => println!("{}", to_json(&evaluation)),
                false => print!("{}", table::of(&evaluation)),
            }
            return Ok(());
        }
        let evaluated = processes.first_before_others(|| self.evaluated(device, context))?;
        if matches!(evaluated.kind, Kind::Given(_)) {
            self.refuse_of_models()?;
        }
        let (mut evaluator, mut available) =
            processes.first_before_others(|| self.evaluator(&evaluated, device, context))?;
        let (subject, work) = match evaluated.kind {
            Kind::Given(set) => {
                available.prompts = set.has_prompts();
                let folder = evaluated.folder.clone();
                (Subject::Given { set, folder }, evaluated.base.join(".eval"))
            }
            Kind::Model(model) => {
                available.prompts = true;
                available.pairs = model.settings.lora.is_some() && !self.no_baseline;
                (Subject::Model(model), evaluated.base.join("eval"))
            }
        };
        available.reference = self.reference.is_some();
        ensure!(!work.is_symlink(), "{} is a link: name another folder with --out", work.display());
        processes.first_before_others(|| {
            if processes.is_first() {
                fs_err::create_dir_all(&work)?;
            }
            ensure!(
                work.is_dir(),
                "process {} does not see {}: name a folder that all see with --out",
                processes.rank(),
                work.display()
            );
            Ok(())
        })?;
        let request = Request {
            subject,
            work,
            metrics: self.names(),
            count: self.count.unwrap_or(COUNT),
            pairs: self.pairs.unwrap_or(PAIRS),
            baseline: !self.no_baseline,
            reference: self.reference.clone(),
        };
        let Some(evaluation) = evaluate(&request, &mut evaluator, &available, context)? else { return Ok(()) };
        for sentence in evaluator.encoders().unfamiliar() {
            tracing::warn!("{sentence}");
        }
        let written = evaluation.write(&evaluated.base)?;
        if self.json {
            println!("{}", to_json(&evaluation));
        } else {
            print!("{}", table::of(&evaluation));
            println!("{}", shown(&written));
        }
        Ok(())
    }

    /// Returns an error if an option for generating images is given, which a folder of images has no use for.
    fn refuse_of_models(&self) -> Result<()> {
        let given = [
            ("--model", self.model.is_some()),
            ("--count", self.count.is_some()),
            ("--pairs", self.pairs.is_some()),
            ("--steps", self.steps.is_some()),
            ("--eta", self.eta.is_some()),
            ("--guidance", self.guidance.is_some()),
            ("--width", self.width.is_some()),
            ("--height", self.height.is_some()),
            ("--seed", self.seed.is_some()),
            ("--prompts", self.prompts.is_some()),
            ("--micro-batch", self.micro_batch.is_some()),
            ("--baseline", self.baseline),
            ("--no-baseline", self.no_baseline),
        ];
        let given: Vec<&str> = given.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| *name).collect();
        ensure!(given.is_empty(), "{} is for generated images, but these are given: leave it out", given.join(", "));
        Ok(())
    }

    /// Returns the metrics that are asked for.
    fn names(&self) -> BTreeSet<Name> {
        if self.metrics.is_empty() { Name::ALL.into() } else { self.metrics.iter().copied().collect() }
    }

    /// Returns the plugins of the run and the held-out ones, the encoders and networks that are at hand, and what is missing.
    fn evaluator(&self, evaluated: &Evaluated, device: Device, context: &Context) -> Result<(Evaluator, Available)> {
        let mut encoders = Encoders::open(&evaluated.encoders, device, context)?;
        for (name, place) in &evaluated.more_encoders {
            encoders.add_clip_of_metrics(name, &encoder_folder(name, place, context)?, device);
        }
        let mut evaluator = Evaluator::new(encoders, BATCH, &context.interrupt);
        let limits = evaluated.limits.unwrap_or_else(PluginLimits::preset);
        let host = PluginHost::of_command(limits, context)?.on(device).pinned(evaluated.pins.clone());
        for (plugin, held_out) in &evaluated.plugins {
            evaluator.add_plugin(plugin.clone(), *held_out, &host)?;
        }
        for source in &self.plugins {
            evaluator.add_plugin(RewardPlugin::of_source(source), evaluated.has_run(), &host)?;
            ensure!(
                !evaluator.repeats_last(),
                "--plugin {source} is a plugin of the run, which is evaluated anyway, or is named twice: name others"
            );
        }
        evaluated.warn_of_changed(&mut evaluator)?;
        let mut available = Available::default();
        // The encoder of the run's own diversity comes first; the shipped one measures where no other is named.
        let mut names: Vec<String> = evaluator.diversity_encoder().into_iter().collect();
        let named = evaluated.encoders.keys().chain(evaluated.more_encoders.keys()).cloned();
        names = if evaluated.plugins.is_empty() && !evaluated.encoders.is_empty() { vec![] } else { names };
        for name in names.into_iter().chain(named) {
            available.add_encoder(&name);
            available.add_text_encoder(&name);
        }
        add_weights(&self.weights, &self.names(), &mut evaluator, &mut available, device, context)?;
        Ok((evaluator, available))
    }
}
