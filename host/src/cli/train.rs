//! `host train`: DDPO fine-tuning.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use toml::Value;

use super::Context;
use crate::config::{Config, Layer, preset_names, resolve};
use crate::hub::Hub;
use crate::run::{RunInfo, default_folder, unix_seconds};
use crate::train::{
    Outcome, Plan, Start, Trainer, check_resumable, gibibytes, measure, model_folder, native_size, refuse,
};

/// Models up to this many pixels are small ones, trained by the small preset unless another is named.
const SMALL_MODEL_PIXELS: u32 = 64;

/// Fine-tune a diffusion model (LoRA, DDPO) until a classifier cannot tell the styles of its pictures.
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
    /// A TOML file over the preset
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One key over all files, as in train.epochs=4; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The folder of an encoder that plugins ask for by name; may be repeated
    #[arg(long = "encoder", value_name = "NAME=DIR")]
    encoders: Vec<String>,
    /// The run's folder [default: runs/DATE-PLUGIN]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// The seed of all randomness
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Go on with a run (its folder, or one of its checkpoints) [default: the newest under runs/]
    #[arg(long, value_name = "CHECKPOINT|DIR", num_args = 0..=1, conflicts_with_all = ["preset", "seed"])]
    resume: Option<Option<PathBuf>>,
    /// Go on with a run although its model, a plugin or a key that matters has changed
    #[arg(long, requires = "resume")]
    force: bool,
    /// Print the resolved configuration, and the memory and time it takes, tried once; train nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl TrainArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let (config, start, preset) = match &self.resume {
            Some(target) => self.resumed(Start::resume(target.as_deref(), self.force)?)?,
            None => self.fresh(&context.hub)?,
        };
        if self.dry_run {
            return describe(&config, context, self.json);
        }
        let info = RunInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: unix_seconds(SystemTime::now()),
            preset,
            model: config.model.path.clone(),
            device: config.run.device.clone(),
            threads: usize::try_from(tch::get_num_threads())?,
        };
        let trainer = Trainer::new(config, &start, info, context)?;
        let folder = trainer.folder().to_owned();
        let outcome = trainer.run()?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&outcome.to_json(&folder))?);
        } else {
            print!("{}", summary(&outcome, &folder));
        }
        Ok(())
    }

    fn fresh(&self, hub: &Hub) -> Result<(Config, Start, Option<String>)> {
        let mut layers = Vec::new();
        let preset = match (&self.preset, &self.model, &self.config) {
            (Some(preset), _, _) => preset.clone(),
            (None, None, None) => {
                tracing::info!("no model and no config named: training the small model that ships (preset tiny-art)");
                "tiny-art".to_owned()
            }
            (None, Some(model), None) => {
                let size = native_size(&model_folder(model, hub)?)?;
                let preset = if size <= SMALL_MODEL_PIXELS { "tiny-art" } else { "paper-512" };
                tracing::info!(
                    "{model} makes {size} px pictures: taking preset {preset} at that size (--preset takes another)"
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
        let out = match &self.out {
            Some(out) => out.clone(),
            None => {
                let stem = Path::new(&first.source).file_stem().unwrap_or_default().to_string_lossy().into_owned();
                default_folder(Path::new("runs"), &stem, SystemTime::now())
            }
        };
        Ok((config, Start::New(out), Some(preset)))
    }

    fn resumed(&self, start: Start) -> Result<(Config, Start, Option<String>)> {
        let Start::Resume { folder, .. } = &start else { bail!("only a run's folder can be resumed") };
        let path = folder.join("config.toml");
        let before = Config::read(&path)?;
        let text = fs_err::read_to_string(&path)?;
        let mut layers = vec![Layer { origin: path.display().to_string(), text }];
        layers.extend(self.layers()?);
        let now = resolve("paper-512", &layers)?;
        if let Err(error) = check_resumable(&before, &now) {
            refuse(self.force, error)?;
        }
        Ok((now, start, None))
    }

    /// What stands over the preset: the file, then the flags, then `--set`.
    fn layers(&self) -> Result<Vec<Layer>> {
        let mut layers = Vec::new();
        if let Some(path) = &self.config {
            let text = fs_err::read_to_string(path)?;
            layers.push(Layer { origin: path.display().to_string(), text });
        }
        let mut flag = |origin: &str, text: String| layers.push(Layer { origin: format!("--{origin}"), text });
        if let Some(model) = &self.model {
            flag("model", format!("model.path = {}", quoted(model)));
        }
        if let Some(device) = &self.device {
            flag("device", format!("run.device = {}", quoted(device)));
        }
        if let Some(seed) = self.seed {
            flag("seed", format!("run.seed = {seed}"));
        }
        for encoder in &self.encoders {
            let (name, folder) = encoder
                .split_once('=')
                .with_context(|| format!("--encoder {encoder}: write NAME=DIR, as in --encoder clip=/models/clip"))?;
            flag("encoder", format!("[encoders]\n{} = {}", quoted(name), quoted(folder)));
        }
        if !self.plugins.is_empty() {
            let tables = self.plugins.iter().map(|plugin| {
                let (source, weight) = plugin_and_weight(plugin);
                format!("[[reward.plugin]]\nsource = {}\nweight = {weight:?}\n", quoted(source))
            });
            flag("plugin", tables.collect());
        }
        for set in &self.sets {
            layers.push(Layer::set(set)?);
        }
        Ok(layers)
    }
}

/// `P` or `P=WEIGHT`.
fn plugin_and_weight(plugin: &str) -> (&str, f64) {
    match plugin.rsplit_once('=').map(|(source, weight)| (source, weight.parse())) {
        Some((source, Ok(weight))) => (source, weight),
        _ => (plugin, 1.0),
    }
}

fn quoted(text: &str) -> Value {
    Value::from(text)
}

/// The resolved configuration, what an epoch consists of, and what one try of each part took.
fn describe(config: &Config, context: &Context, json: bool) -> Result<()> {
    let folder = model_folder(&config.model.path, &context.hub)?;
    let plan = Plan::new(config, &folder)?;
    plan.check_fits(torch_ext::cuda::device(&config.run.device)?)?;
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
        "time: about {:.1} s an epoch (a step of a picture {:.4} s sampled, {:.4} s trained; decoding one {:.4} s), the \
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
