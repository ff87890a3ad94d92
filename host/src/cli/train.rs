//! `host train`: DDPO fine-tuning.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::completions::{models, plugins};
use super::processes::ProcessArgs;
use super::run_args::{RunArgs, encoder_layers, flag, quoted, run_info, shared};
use crate::config::fine_tune::{preset_names, preset_of_size};
use crate::config::{FineTuneConfig, Layer, RunConfig as _};
use crate::context::Context;
use crate::data::prompts::PromptSet;
use crate::metrics::Evaluator;
use crate::plugin::store::plugin_name;
use crate::plugin::store::reference::is_reference;
use crate::processes::Processes;
use crate::report::cost::Cost;
use crate::run::record::{FineTuneEpoch, FineTuneMonitor};
use crate::run::{self, PluginsLock};
use crate::statistics::Improvement;
use crate::tasks::fine_tune::{COMMAND, FineTune, Plan, measure};
use crate::text::{counted, gibibytes, shown, to_json};
use crate::trainer::{Ends, Outcome, Start, Trainer};
use crate::zoo::{model_folder, native_size};

/// Fine-tune a diffusion model (LoRA, DDPO) until a classifier cannot predict the styles of its images.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host train --plugin kmeans_image.wasm
  host train --plugin kmeans_image --plugin palette=0.5 --preset tiny-art --set train.epochs=4 --out runs/two
  host train --plugin simple --held-out clip_softmax --held-out dcgan
  host train --plugin clip_softmax --model stable-diffusion-2-base --preset paper-512 --device cuda
  host train --plugin kmeans_image --nproc 2
  host train --resume runs/two")]
pub struct TrainArgs {
    /// A plugin, a classifier or a scorer: a path or a name, with its weight if it is not 1; may be repeated
    #[arg(long = "plugin", value_name = "P[=WEIGHT]", add = plugins())]
    plugins: Vec<String>,
    /// A plugin that takes no part in the reward: the monitor shows whether an improvement is one under it too; may be repeated
    #[arg(long = "held-out", value_name = "P", add = plugins())]
    held_out: Vec<String>,
    /// The base preset: paper-512, paper-256, paper-128, paper-64 or tiny-art
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(preset_names()))]
    preset: Option<String>,
    /// A diffusers folder, the name of a shipped model, or an id on the Hub
    #[arg(long, value_name = "DIR|NAME|ID", add = models())]
    model: Option<String>,
    /// The folder of an encoder that plugins ask for by name; may be repeated
    #[arg(long = "encoder", value_name = "NAME=DIR")]
    encoders: Vec<String>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    pub(super) processes: ProcessArgs,
}

impl TrainArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let resolved = || {
            let (config, start, preset) = match self.run.resumes() {
                true => {
                    let resolve = |layers: &[Layer]| FineTuneConfig::resolve("paper-512", layers);
                    let (config, start) = self.run.resumed(COMMAND, self.layers()?, resolve)?;
                    (config, start, None)
                }
                false => self.fresh(context)?,
            };
            Ok((config, self.run.locked(start)?, preset))
        };
        let (config, start, preset) = shared(resolved, context)?;
        if self.run.dry_run {
            let is_first = context.processes.is_first();
            return if is_first { describe(&config, &start, context, self.run.json) } else { Ok(()) };
        }
        let info = run_info(COMMAND, preset, config.model.path.clone(), &config.run.device, context)?;
        let (task, claim) = FineTune::open(config.clone(), start, context)?;
        let outcome = Trainer::new(task, claim, &config, &info, context)?.run()?;
        if !context.processes.is_first() {
            return Ok(());
        }
        if self.run.json {
            println!("{}", to_json(&document(&outcome)));
        } else {
            print!("{}", summary(&outcome));
        }
        Ok(())
    }

    fn fresh(&self, context: &Context) -> Result<(FineTuneConfig, Start, Option<String>)> {
        let mut layers = Vec::new();
        let preset = match (&self.preset, &self.model, &self.run.config) {
            (Some(preset), _, _) => preset.clone(),
            (None, None, None) => {
                tracing::info!("no model and no config named: training the shipped small model (preset tiny-art)");
                "tiny-art".to_owned()
            }
            (None, Some(model), None) => {
                let size = native_size(&model_folder(model, context)?)?;
                let preset = preset_of_size(size);
                tracing::info!(
                    "{model} generates {size} px images: using preset {preset} at that size (--preset names another)"
                );
                layers.push(Layer {
                    origin: "the model's native size".to_owned(),
                    text: format!("[sample]\nwidth = {size}\nheight = {size}\n"),
                });
                preset.to_owned()
            }
            (None, _, Some(_)) => "paper-512".to_owned(),
        };
        layers.extend(self.layers()?);
        let config = FineTuneConfig::resolve(&preset, &layers)?;
        let Some(first) = config.reward.plugin.first() else {
            bail!("no classifier: name one with --plugin, as in --plugin kmeans_image.wasm");
        };
        let start = self.run.new_run(&plugin_name(&first.source));
        Ok((config, start, Some(preset)))
    }

    /// Returns the layers over the preset.
    fn layers(&self) -> Result<Vec<Layer>> {
        let mut own = Vec::new();
        if let Some(model) = &self.model {
            own.push(flag("model", format!("model.path = {}", quoted(model))));
        }
        own.extend(encoder_layers(&self.encoders)?);
        if !self.plugins.is_empty() {
            let tables = self.plugins.iter().map(|plugin| {
                let (source, weight) = plugin_and_weight(plugin);
                format!("[[reward.plugin]]\nsource = {}\nweight = {weight:?}\n", quoted(source))
            });
            own.push(flag("plugin", tables.collect()));
        }
        if !self.held_out.is_empty() {
            let sources: Vec<toml::Value> = self.held_out.iter().map(|source| quoted(source)).collect();
            own.push(flag("held-out", format!("monitor.held_out = {}", toml::Value::Array(sources))));
        }
        self.run.layers(own)
    }
}

/// Parses `P` or `P=WEIGHT`.
fn plugin_and_weight(plugin: &str) -> (&str, f64) {
    match plugin.rsplit_once('=').map(|(source, weight)| (source, weight.parse())) {
        // The end of a range of versions, such as `:>=1.2`, is no weight.
        Some((source, _)) if is_reference(source) && source.ends_with([':', '<', '>', ' ', ',']) => (plugin, 1.0),
        Some((source, Ok(weight))) => (source, weight),
        _ => (plugin, 1.0),
    }
}

/// Prints the resolved configuration, the work of an epoch, and the measured cost of one call of each part.
fn describe(config: &FineTuneConfig, start: &Start, context: &Context, json: bool) -> Result<()> {
    let folder = model_folder(&config.model.path, context)?;
    let plan = Plan::new(config, &folder)?;
    let device = torch_ext::cuda::device(&config.run.device)?;
    plan.check_fits(device)?;
    // Loading checks that the plugins fit the run.
    let mut evaluator = Evaluator::of_run(config, device, &start.pins(&Processes::default())?, context)?;
    let prompts = PromptSet::new(&config.prompts)?.digest();
    start.check_locked(&PluginsLock { prompts: Some(prompts), ..evaluator.lock()? })?;
    drop(evaluator);
    let measured = measure(config, &folder, &context.interrupt)?;
    if json {
        let document = json!({ "config": config, "plan": plan, "measured": measured });
        println!("{}", to_json(&document));
        return Ok(());
    }
    print!("{}", config.to_toml()?);
    eprintln!(
        "per epoch: {}, {} UNet rows forward, {} forward and backward, {}; {}",
        counted(plan.samples_per_epoch as u64, "sample"),
        plan.unet_rows_sampled_per_epoch,
        plan.unet_rows_trained_per_epoch,
        counted(plan.optimizer_steps_per_epoch as u64, "optimizer step"),
        counted(config.train.epochs, "epoch")
    );
    eprintln!(
        "memory: at least {} (frozen weights {}, LoRA and optimizer {}, trajectories {}){}",
        gibibytes(plan.memory.total()),
        gibibytes(plan.memory.frozen_weights),
        gibibytes(plan.memory.trained_weights),
        gibibytes(plan.memory.trajectories),
        measured
            .peak_bytes
            .map_or_else(String::new, |peak| format!("; one call of each kind took {}", gibibytes(peak)))
    );
    eprintln!(
        "time: about {:.1} s per epoch (per image: sampling step {:.4} s, training step {:.4} s, decoding {:.4} s), \
         without plugins and monitor",
        measured.epoch_seconds, measured.sampled_step_seconds, measured.trained_step_seconds, measured.decode_seconds
    );
    Ok(())
}

/// Returns the change of the reward on the monitor's fixed samples.
fn improvement(outcome: &Outcome<FineTune>) -> Improvement {
    Improvement::paired(&outcome.ends.first.rewards, &outcome.ends.last.rewards)
}

fn document(outcome: &Outcome<FineTune>) -> Value {
    let improvement = improvement(outcome);
    json!({
        "run": outcome.folder.to_string_lossy(), "first": outcome.ends.first, "last": outcome.ends.last,
        "improvement": improvement.mean, "improvement_sem": improvement.sem,
        "upper_bound": outcome.task.upper_bound(), "collapsed": outcome.collapsed,
    })
}

fn summary(outcome: &Outcome<FineTune>) -> String {
    let Ends { first, last } = &outcome.ends;
    let (bound, improvement) = (outcome.task.upper_bound(), improvement(outcome));
    let gap = bound.map_or_else(String::new, |bound| {
        let gap = 100.0 * improvement.mean / (bound - first.reward_mean);
        format!("; {gap:.0} % of the gap to {bound:.4}")
    });
    let errors = improvement.sem.zip(improvement.standard_errors());
    let errors = errors.map_or_else(String::new, |(sem, errors)| format!(" ± {sem:.4}, {errors:.1} standard errors"));
    let mut text = format!(
        "reward on the fixed samples: {:.4} -> {:.4} (improvement {:.4}{errors}{gap})\n\
         diversity: {:.0} % of the untrained model's\n",
        first.reward_mean,
        last.reward_mean,
        improvement.mean,
        100.0 * last.diversity / first.diversity,
    );
    if outcome.collapsed {
        text.push_str("the run was stopped because the model collapsed: best/ contains the last good LoRA\n");
    }
    let records = run::records::<FineTuneEpoch, FineTuneMonitor>(&outcome.folder).unwrap_or_default();
    text.push_str(&format!("cost: {}\n", Cost::of(&records).in_words()));
    let folder = shown(&outcome.folder);
    text.push_str(&format!("LoRA:         {folder}/pytorch_lora_weights.safetensors\n"));
    text.push_str(&format!("before/after: {folder}/before-after.png\n"));
    text.push_str(&format!("curve:        {folder}/reward-curve.png\n"));
    text.push_str(&format!("report:       {folder}/report.html\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_may_have_a_weight() {
        assert_eq!(plugin_and_weight("kmeans_image.wasm"), ("kmeans_image.wasm", 1.0));
        assert_eq!(plugin_and_weight("palette=0.5"), ("palette", 0.5));
        assert_eq!(plugin_and_weight("odd=name.wasm"), ("odd=name.wasm", 1.0));
    }
}
