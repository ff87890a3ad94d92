//! `host can`: trains and samples the creative adversarial network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use serde_json::json;
use tch::{Tensor, no_grad};
use torch_ext::Generator as Randomness;

use super::numbers::within;
use super::processes::ProcessArgs;
use super::run_args::{RunArgs, encoder_layers, flag, quoted, run_info, shared};
use super::samples::{Sample, SheetArgs, is_shown, write_image, write_sheet};
use crate::config::gan::{GanTask, preset_names};
use crate::config::{GanConfig, Layer, RunConfig as _};
use crate::context::Context;
use crate::data::images::rgb_images;
use crate::fs::new_folder;
use crate::plugin::Pin;
use crate::run::record::{ClassifierMonitor, GanMonitor};
use crate::tasks::networks::{DCGAN_PLUGIN, SIMPLE_PLUGIN, load_generator};
use crate::tasks::{classifier, gan};
use crate::text::{counted, gibibytes, shown, to_json, two_digits};
use crate::trainer::{Ends, Outcome, Start, Task, Trainer};

/// Number of images that are generated per call.
const IMAGES_PER_CALL: usize = 32;

/// Train a creative adversarial network, or generate images with one.
#[derive(Args, Debug)]
pub struct CanArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<CanTrainArgs>),
    Sample(CanSampleArgs),
}

impl CanArgs {
    /// Returns the flags of a command that several processes can work on.
    pub(super) fn processes(&self) -> Option<&ProcessArgs> {
        match &self.command {
            Command::Train(args) => Some(&args.training.processes),
            Command::Sample(_) => None,
        }
    }

    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        match self.command {
            Command::Train(args) => args.run(context),
            Command::Sample(args) => args.run(context),
        }
    }
}

/// Train a generator until a classifier cannot predict the styles of its images, and a discriminator that predicts
/// styles.
///
/// Writes generator/ and discriminator/ and, if C is the discriminator's own head, dcgan.onnx: a plugin for
/// `host train`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host can train --out runs/can
  host can train --data wikiart --preset paper-64 --device cuda
  host can train --nproc 2
  host can train --data wikiart --preset can-as-code --set can.size=128 --classifier clip_softmax.wasm
  host can train --resume runs/can")]
struct CanTrainArgs {
    /// Classifier C of the style ambiguity: dcgan (the discriminator's own head), or a differentiable plugin
    #[arg(long, value_name = "dcgan|P")]
    classifier: Option<String>,
    /// The folder of an encoder that the plugin asks for by name; may be repeated
    #[arg(long = "encoder", value_name = "NAME=DIR")]
    encoders: Vec<String>,
    #[command(flatten)]
    training: TrainingArgs,
}

impl CanTrainArgs {
    fn run(self, context: &Context) -> Result<()> {
        let mut layers = encoder_layers(&self.encoders)?;
        if let Some(classifier) = &self.classifier {
            layers.push(flag("classifier", format!("can.classifier = {}", quoted(classifier))));
        }
        self.training.run(GanTask::Can, layers, context)
    }
}

/// The arguments of CAN and classifier training.
#[derive(Args, Debug)]
pub(super) struct TrainingArgs {
    /// A folder with a folder of images for each style [default: the procedural paintings]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The base preset: paper-512, paper-256, paper-128, paper-64, can-as-code or tiny-art
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(preset_names()))]
    preset: Option<String>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    pub(super) processes: ProcessArgs,
}

impl TrainingArgs {
    /// Trains, with `layers` from the command's own flags.
    pub(super) fn run(self, task: GanTask, layers: Vec<Layer>, context: &Context) -> Result<()> {
        let resolved = || {
            let layers = self.layers(layers)?;
            let (config, start, preset) = match self.run.resumes() {
                true => {
                    let resolve = |layers: &[Layer]| GanConfig::resolve(task, "paper-512", layers);
                    let (config, start) = self.run.resumed(task.command(), layers, resolve)?;
                    (config, start, None)
                }
                false => self.fresh(task, &layers)?,
            };
            Ok((config, self.run.locked(start)?, preset))
        };
        let (config, start, preset) = shared(resolved, context)?;
        if self.run.dry_run {
            return describe(task, &config, start.pins(&context.processes)?, self.run.json, context);
        }
        let model = match task {
            GanTask::Can => format!("CAN of {} px", config.can.size),
            GanTask::Classifier => format!("simple classifier of {} px", config.can.size),
        };
        let is_first = context.processes.is_first();
        let info = run_info(task.command(), preset, model, &config.run.device, context)?;
        match task {
            GanTask::Can => {
                let (training, claim) = gan::open(config.clone(), start, context)?;
                let outcome = Trainer::new(training, claim, &config, &info, context)?.run()?;
                let plugin = config.own_head().then_some(DCGAN_PLUGIN);
                self.print(&outcome, plugin, gan_summary(&config, &outcome.ends), is_first)
            }
            GanTask::Classifier => {
                let (training, claim) = classifier::open(config.clone(), start, context)?;
                let outcome = Trainer::new(training, claim, &config, &info, context)?.run()?;
                self.print(&outcome, Some(SIMPLE_PLUGIN), classifier_summary(&outcome.ends), is_first)
            }
        }
    }

    /// Prints the result of a run; `details` are its metrics as text.
    fn print<T: Task>(
        &self,
        outcome: &Outcome<T>,
        plugin: Option<&str>,
        details: String,
        is_first: bool,
    ) -> Result<()> {
        let Outcome { folder, ends, epochs, collapsed, .. } = outcome;
        if !is_first {
            return Ok(());
        }
        if self.run.json {
            let document = json!({
                "run": folder.to_string_lossy(), "epochs": epochs, "first": ends.first, "last": ends.last, "collapsed": collapsed,
                "plugin": plugin.map(|plugin| folder.join(plugin).to_string_lossy().into_owned()),
                "report": folder.join("report.html").to_string_lossy(),
            });
            println!("{}", to_json(&document));
            return Ok(());
        }
        let stopped = if *collapsed { ", stopped: collapsed" } else { "" };
        println!("{}{stopped}", counted(*epochs, "epoch"));
        print!("{details}");
        let folder = shown(folder);
        println!("report: {folder}/report.html");
        if let Some(plugin) = plugin {
            println!("plugin: {folder}/{plugin}");
        }
        Ok(())
    }

    fn fresh(&self, task: GanTask, layers: &[Layer]) -> Result<(GanConfig, Start, Option<String>)> {
        let preset = match &self.preset {
            Some(preset) => preset.clone(),
            None if self.run.config.is_none() && !GanConfig::names_data(layers) => {
                tracing::info!(
                    "no data and no config named: training small networks on the procedural paintings (preset tiny-art)"
                );
                "tiny-art".to_owned()
            }
            None => {
                tracing::info!(
                    "no preset named: using paper-512, networks of the paper's width, which need a GPU (--preset \
                     tiny-art has small ones at 64 px)"
                );
                "paper-512".to_owned()
            }
        };
        let config = GanConfig::resolve(task, &preset, layers)?;
        let what = match (task, config.own_head()) {
            (GanTask::Classifier, _) => "classifier".to_owned(),
            (GanTask::Can, true) => "can".to_owned(),
            (GanTask::Can, false) => {
                let stem = Path::new(&config.can.classifier).file_stem().unwrap_or_default();
                format!("can-{}", stem.to_string_lossy())
            }
        };
        Ok((config, self.run.new_run(&what), Some(preset)))
    }

    /// Returns the layers over the preset.
    fn layers(&self, mut own: Vec<Layer>) -> Result<Vec<Layer>> {
        if let Some(data) = &self.data {
            let what = if data.exists() { "it is not a folder" } else { "there is no such folder" };
            ensure!(data.is_dir(), "--data {}: {what}", data.display());
            own.push(flag("data", format!("can.data = {}", quoted(&data.to_string_lossy()))));
        }
        self.run.layers(own)
    }
}

/// Prints the resolved configuration, the number of images, and the measured cost of some steps.
fn describe(
    task: GanTask,
    config: &GanConfig,
    pins: BTreeMap<String, Pin>,
    json: bool,
    context: &Context,
) -> Result<()> {
    let (data, plan, measured) = match task {
        GanTask::Can => gan::try_out(config, pins, context)?,
        GanTask::Classifier => classifier::try_out(config, context)?,
    };
    if !context.processes.is_first() {
        return Ok(());
    }
    if json {
        let counts = json!({
            "styles": data.styles(), "train": data.n_train(), "held_out": data.n_test(), "broken": data.n_broken(),
            "per_pass": data.per_pass(),
        });
        let document = json!({ "config": config, "data": counts, "plan": plan, "measured": measured });
        println!("{}", to_json(&document));
        return Ok(());
    }
    print!("{}", config.to_toml()?);
    eprintln!(
        "images: {} for training and {} held out, of {} styles; {} broken; {} per pass",
        data.n_train(),
        data.n_test(),
        data.styles().len(),
        data.n_broken(),
        data.per_pass()
    );
    let peak = measured.peak_bytes.map_or_else(String::new, |peak| format!("; some steps took {}", gibibytes(peak)));
    eprintln!("memory: at least {} for {} parameters{peak}", gibibytes(plan.memory), plan.parameters);
    eprintln!(
        "time: about {} s per epoch of {} ({} s each), {}",
        two_digits(measured.epoch_seconds),
        counted(plan.steps_per_epoch, "step"),
        two_digits(measured.step_seconds),
        counted(config.can.epochs, "epoch")
    );
    Ok(())
}

fn classifier_summary(ends: &Ends<ClassifierMonitor>) -> String {
    let (from, to) = (ends.first.accuracy, ends.last.accuracy);
    format!("accuracy on held-out images: {:.1} % → {:.1} %\n", 100.0 * from, 100.0 * to)
}

fn gan_summary(config: &GanConfig, ends: &Ends<GanMonitor>) -> String {
    let Ends { first, last } = ends;
    let mut text = String::new();
    if let (Some(from), Some(to)) = (first.style_accuracy, last.style_accuracy) {
        let (from, to) = (100.0 * from, 100.0 * to);
        text += &format!("style accuracy of the discriminator on held-out images: {from:.1} % → {to:.1} %\n");
    }
    // An untrained head is ambiguous about all images.
    let from = if config.own_head() { String::new() } else { format!("{:.4} → ", first.ambiguity) };
    let (n, to) = (last.styles, last.ambiguity);
    let minimum = (n as f64).ln();
    text += &format!("style ambiguity of generated images: {from}{to:.4}; the minimum is ln {n} = {minimum:.4}\n");
    // The gradients of images that are not diverse yet are not meaningful.
    let diverse = last.diversity >= config.monitor.min_diversity;
    if let Some(ratio) = last.gradient_norm_ratio.filter(|_| diverse) {
        let ratio = two_digits(ratio);
        text += &format!("gradient norm ratio of the style ambiguity to the adversarial loss: {ratio}\n");
    }
    text + &format!(
        "generated images are {:.0} % as diverse as real ones\nmore images: host can sample --generator RUN --count 64 --out \
         images\n",
        100.0 * last.diversity
    )
}

/// Generate images with a trained generator.
#[derive(Args, Debug)]
#[command(after_help = "Example: host can sample --generator runs/can --count 64 --out images")]
struct CanSampleArgs {
    /// The folder of a run of `host can train`, or of a generator (config.json, model.safetensors)
    #[arg(long, value_name = "DIR")]
    generator: PathBuf,
    /// Number of images
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = within(1u64..=1_000_000))]
    count: u64,
    /// Seed; image i has seed N + i
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// A new folder for 0000.png …
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    sheet: SheetArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl CanSampleArgs {
    fn run(self, context: &Context) -> Result<()> {
        let device = torch_ext::cuda::device(&self.device)?;
        let generator = load_generator(&self.generator, device)?;
        let sheet = self.sheet.path(&self.out, usize::try_from(self.count)?)?;
        new_folder(&self.out)?;
        let model = self.generator.display().to_string();
        let mut samples = vec![];
        let bar = context.progress.bar("sampling", self.count, "images");
        let latent = generator.config().latent;
        let mut written = 0;
        while written < self.count {
            context.interrupt.check(format!("{written} images are in {}", self.out.display()))?;
            let n = (IMAGES_PER_CALL as u64).min(self.count - written);
            let noise = (0..n)
                .map(|i| Ok(Randomness::cpu(self.seed.wrapping_add(written + i))?.normal(&[latent])?))
                .collect::<Result<Vec<_>>>()?;
            let noise = Tensor::stack(&noise, 0).to_device(device);
            let images = no_grad(|| generator.forward(&noise))?;
            for image in rgb_images(&ambiguity_models::pipeline::images_u8(&images))? {
                let seed = self.seed.wrapping_add(written).to_string();
                let texts = [("seed", &seed), ("model", &model)].map(|(name, text)| (name.to_owned(), text.clone()));
                let sample = Sample { image, title: format!("seed {seed}"), texts: texts.into() };
                write_image(&self.out, written, &sample)?;
                samples.extend(is_shown(written as usize).then_some(sample));
                written += 1;
            }
            bar.inc(n);
        }
        bar.finish();
        if let Some(sheet) = &sheet {
            write_sheet(sheet, &model, &samples, written as usize)?;
        }
        let (size, out) = (generator.config().size, shown(&self.out));
        if self.json {
            let sheet = sheet.as_ref().map(|sheet| sheet.to_string_lossy());
            let document =
                json!({ "out": self.out.to_string_lossy(), "images": written, "size": size, "sheet": sheet });
            println!("{}", to_json(&document));
        } else {
            let sheet = sheet.map_or_else(String::new, |sheet| format!("; all on {}", shown(&sheet)));
            println!("{} of {size}×{size} in {out}{sheet}", counted(written, "image"));
        }
        Ok(())
    }
}
