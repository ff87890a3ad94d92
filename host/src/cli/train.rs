//! `host train`: DDPO fine-tuning.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Result, bail};
use clap::Args;

use super::Context;
use super::run_args::{RunArgs, encoder_layers, flag, quoted};
use crate::config::{Config, Layer, RunConfig as _, preset_names, resolve};
use crate::hub::Hub;
use crate::run::{RunInfo, unix_seconds};
use crate::train::{
    COMMAND, Outcome, Plan, Scorer, Start, Trainer, encoders, gibibytes, measure, model_folder, native_size,
};

/// Models up to this many pixels are small ones, trained by the small preset unless another is named.
const SMALL_MODEL_PIXELS: u32 = 64;

/// Fine-tune a diffusion model (LoRA, DDPO) until a classifier cannot tell the styles of its images.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host train --plugin kmeans_image.wasm
  host train --plugin kmeans_image --plugin palette=0.5 --preset tiny-art --set train.epochs=4 --out runs/two
  host train --plugin clip_softmax --model stable-diffusion-2-base --preset paper-512 --device cuda
  host train --resume runs/two")]
pub struct TrainArgs {
    /// A classifier plugin, a path or a name, with its weight if that is not 1; may be repeated
    #[arg(long = "plugin", value_name = "P[=WEIGHT]")]
    plugins: Vec<String>,
    /// The preset below everything else: paper-512, paper-256, paper-128, paper-64 or tiny-art
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(preset_names()))]
    preset: Option<String>,
    /// A diffusers folder, the name of a shipped model, or an id on the Hub
    #[arg(long, value_name = "DIR|NAME|ID")]
    model: Option<String>,
    /// The folder of an encoder that plugins ask for by name; may be repeated
    #[arg(long = "encoder", value_name = "NAME=DIR")]
    encoders: Vec<String>,
    #[command(flatten)]
    run: RunArgs,
}

impl TrainArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let (config, start, preset) = match self.run.resumes() {
            true => {
                let (config, start) =
                    self.run.resumed(COMMAND, self.layers()?, |layers| resolve("paper-512", layers))?;
                (config, start, None)
            }
            false => self.fresh(&context.hub)?,
        };
        if self.run.dry_run {
            return describe(&config, context, self.run.json);
        }
        let info = RunInfo {
            command: COMMAND.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: unix_seconds(SystemTime::now()),
            preset,
            model: config.model.path.clone(),
            device: config.run.device.clone(),
            threads: usize::try_from(tch::get_num_threads())?,
        };
        let trainer = Trainer::new(config, start, &info, context)?;
        let folder = trainer.folder().to_owned();
        let outcome = trainer.run()?;
        if self.run.json {
            println!("{}", serde_json::to_string_pretty(&outcome.to_json(&folder))?);
        } else {
            print!("{}", summary(&outcome, &folder));
        }
        Ok(())
    }

    fn fresh(&self, hub: &Hub) -> Result<(Config, Start, Option<String>)> {
        let mut layers = Vec::new();
        let preset = match (&self.preset, &self.model, &self.run.config) {
            (Some(preset), _, _) => preset.clone(),
            (None, None, None) => {
                tracing::info!("no model and no config named: training the small model that ships (preset tiny-art)");
                "tiny-art".to_owned()
            }
            (None, Some(model), None) => {
                let size = native_size(&model_folder(model, hub)?)?;
                let preset = if size <= SMALL_MODEL_PIXELS { "tiny-art" } else { "paper-512" };
                tracing::info!(
                    "{model} makes {size} px images: taking preset {preset} at that size (--preset takes another)"
                );
                layers.push(Layer {
                    origin: "the model's own size".to_owned(),
                    text: format!("[sample]\nwidth = {size}\nheight = {size}\n"),
                });
                preset.to_owned()
            }
            (None, _, Some(_)) => "paper-512".to_owned(),
        };
        layers.extend(self.layers()?);
        let config = resolve(&preset, &layers)?;
        let Some(first) = config.reward.plugin.first() else {
            bail!("no classifier: name one with --plugin, as in --plugin kmeans_image.wasm");
        };
        let what = Path::new(&first.source).file_stem().unwrap_or_default().to_string_lossy();
        let start = self.run.new_run(&what);
        Ok((config, start, Some(preset)))
    }

    /// What stands over the preset.
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
        self.run.layers(own)
    }
}

/// `P` or `P=WEIGHT`.
fn plugin_and_weight(plugin: &str) -> (&str, f64) {
    match plugin.rsplit_once('=').map(|(source, weight)| (source, weight.parse())) {
        Some((source, Ok(weight))) => (source, weight),
        _ => (plugin, 1.0),
    }
}

/// The resolved configuration, what an epoch consists of, and what one try of each part took.
fn describe(config: &Config, context: &Context, json: bool) -> Result<()> {
    let folder = model_folder(&config.model.path, &context.hub)?;
    let plan = Plan::new(config, &folder)?;
    let device = torch_ext::cuda::device(&config.run.device)?;
    plan.check_fits(device)?;
    // The plugins must be ones that a run could take.
    drop(Scorer::load(config, encoders(&config.encoders, device, &context.hub)?, device)?);
    let measured = measure(config, &folder, &context.interrupt)?;
    if json {
        let document = serde_json::json!({ "config": config, "plan": plan, "measured": measured });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    print!("{}", config.to_toml()?);
    eprintln!(
        "an epoch: {} samples, {} UNet rows forward, {} forward and backward, {} optimizer steps; {} epochs",
        plan.samples_per_epoch,
        plan.unet_rows_sampled_per_epoch,
        plan.unet_rows_trained_per_epoch,
        plan.optimizer_steps_per_epoch,
        config.train.epochs
    );
    eprintln!(
        "memory: {} at least (frozen weights {}, LoRA and optimizer {}, trajectories {}){}",
        gibibytes(plan.memory.total()),
        gibibytes(plan.memory.frozen_weights),
        gibibytes(plan.memory.trained_weights),
        gibibytes(plan.memory.trajectories),
        measured
            .peak_bytes
            .map_or_else(String::new, |peak| format!("; one call of each kind took {}", gibibytes(peak)))
    );
    eprintln!(
        "time: about {:.1} s an epoch (a step of an image {:.4} s sampled, {:.4} s trained; decoding one {:.4} s), the \
         plugins' own and the monitor's not counted",
        measured.epoch_seconds, measured.sampled_step_seconds, measured.trained_step_seconds, measured.decode_seconds
    );
    Ok(())
}

fn summary(outcome: &Outcome, folder: &Path) -> String {
    let Outcome { first, last, rise: (rise, sem), ceiling, collapsed } = outcome;
    let gap = 100.0 * rise / (ceiling - first.reward_mean);
    let mut text = format!(
        "reward on the fixed samples: {:.4} -> {:.4} (rise {rise:.4} ± {sem:.4}, {:.1} standard errors; {gap:.0} % of the gap \
         to {ceiling:.4})\ndiversity: {:.0} % of the untrained model's\n",
        first.reward_mean,
        last.reward_mean,
        rise / sem,
        100.0 * last.diversity / first.diversity,
    );
    if *collapsed {
        text.push_str("the run was stopped since the model collapsed: best/ holds the last good LoRA\n");
    }
    let folder = folder.display();
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
    fn a_plugin_may_carry_its_weight() {
        assert_eq!(plugin_and_weight("kmeans_image.wasm"), ("kmeans_image.wasm", 1.0));
        assert_eq!(plugin_and_weight("palette=0.5"), ("palette", 0.5));
        assert_eq!(plugin_and_weight("odd=name.wasm"), ("odd=name.wasm", 1.0));
    }
}
