//! `host plugin agree`: whether plugins reward the same images.

use std::path::{Path, PathBuf};

use ambiguity_models::pipeline::LoadOptions;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;
use tch::Device;

use crate::cli::completions::{models, plugins};
use crate::cli::numbers::within;
use crate::cli::run_args::project_layers;
use crate::config::fine_tune::{FineTuneConfig, preset_of_size};
use crate::config::{PluginLimits, RewardPlugin};
use crate::context::Context;
use crate::data::images::{ImageLoader, has_image_extension};
use crate::data::png;
use crate::data::prompts::PromptSet;
use crate::encoders::Encoders;
use crate::evaluation::images::{Generation, ImageSet, Model};
use crate::evaluation::values::measure;
use crate::fs::write_atomic;
use crate::generator::Settings;
use crate::interrupt::keeping;
use crate::metrics::agreement::Agreement;
use crate::metrics::{Column, Evaluator};
use crate::plugin::PluginHost;
use crate::plugin::store::is_plugin_folder;
use crate::report::grid::{Cell, titled_sheet};
use crate::rl::reward::entropy;
use crate::statistics::Summary;
use crate::text::{counted, decimals, number, shown, signed, table, to_json};
use crate::zoo::{model_folder, native_size};

/// Number of images of a plugin's call.
const BATCH: usize = 16;
/// Number of images on the sheet.
const CELLS: usize = 24;
/// The shipped model.
const MODEL: &str = "tiny-art";
/// Number of its images.
const COUNT: usize = 192;

/// Compare the rewards of plugins on the same images: their rank correlations, the spread of each, and the images on which two
/// differ most.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin agree kmeans_image clip_softmax simple
  host plugin agree mine.wasm simple paintings/ --sheet differ.png
  host plugin agree kmeans_image simple --model stable-diffusion-2-base --count 64 --json

Plugins whose rank correlation is negative oppose each other: training for one is likely to lower the reward of the other.")]
pub struct AgreeArgs {
    /// Two or more plugins, by path or name; and images or folders of them instead of a model's
    #[arg(required = true, value_name = "P|IMAGES", num_args = 2.., add = plugins())]
    named: Vec<PathBuf>,
    /// The model whose untrained images are compared: a diffusers folder, a shipped model's name, or an id on the
    /// Hub [default: tiny-art]
    #[arg(long, value_name = "DIR|NAME|ID", add = models())]
    model: Option<String>,
    /// Number of images to generate [default: 192]
    #[arg(long, value_name = "N", value_parser = within(2usize..=1_000_000))]
    count: Option<usize>,
    /// Seed of the noise [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The folder of an encoder that plugins ask for by name; may be repeated
    #[arg(long = "encoder", value_name = "NAME=DIR")]
    encoders: Vec<super::EncoderFolder>,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// A sheet of the images on which the two plugins differ most that agree least
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// A plugin with its rewards, and the entropies of a classifier.
struct Rewarded {
    name: String,
    rewards: Vec<f64>,
    entropies: Option<Vec<f64>>,
    styles: usize,
}

impl AgreeArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let is_image = |path: &&PathBuf| {
            let is_folder = path.is_dir() && !is_plugin_folder(path);
            is_folder || (has_image_extension(path) && path.is_file())
        };
        let (images, plugins): (Vec<&PathBuf>, Vec<&PathBuf>) = self.named.iter().partition(is_image);
        ensure!(plugins.len() > 1, "name at least two plugins to compare");
        let device = torch_ext::cuda::device(&self.device)?;
        let encoders: Encoders = super::encoders(&self.encoders, device, context)?;
        let host = PluginHost::of_command(PluginLimits::preset(), context)?.on(device);
        let mut evaluator = Evaluator::new(encoders, BATCH, &context.interrupt);
        for plugin in plugins {
            evaluator.add_plugin(RewardPlugin::of_source(&plugin.to_string_lossy()), true, &host)?;
        }
        ensure!(
            images.is_empty() || self.model.is_none() && self.count.is_none() && self.seed.is_none(),
            "--model, --count and --seed are for generated images, but images are named: leave them out"
        );
        let work = tempfile::tempdir()?;
        let nothing = "nothing was written";
        let set = if images.is_empty() {
            let model = self.model.as_deref().unwrap_or(MODEL);
            let (count, seed) = (self.count.unwrap_or(COUNT), self.seed.unwrap_or(0));
            generated(model, count, seed, device, work.path(), context).map_err(|error| keeping(error, nothing))?
        } else {
            given(&images, &work.path().join("values"))?
        };
        ensure!(set.len() > 1, "rank correlations need at least two images");
        let plugins = rewarded(&set, &mut evaluator, context).map_err(|error| keeping(error, nothing))?;
        for sentence in evaluator.encoders().unfamiliar() {
            tracing::warn!("{sentence}");
        }
        let rewards: Vec<(String, Vec<f64>)> =
            plugins.iter().map(|plugin| (plugin.name.clone(), plugin.rewards.clone())).collect();
        let agreements = Agreement::of_all(&rewards);
        if let Some(path) = &self.sheet {
            write_sheet(path, &set, &plugins, &agreements)?;
        }
        if self.json {
            println!("{}", to_json(&self.document(&set, &plugins, &agreements)));
        } else {
            print!("{}", tables(&set, &plugins, &agreements));
            if let Some(path) = &self.sheet {
                println!("{}", shown(path));
            }
        }
        Ok(())
    }

    fn document(&self, set: &ImageSet, plugins: &[Rewarded], agreements: &[Agreement]) -> serde_json::Value {
        let summary = |values: &[f64]| {
            let Summary { mean, std, min, max } = Summary::of(values);
            json!({ "mean": mean, "std": std, "min": min, "max": max })
        };
        let plugins = plugins.iter().map(|plugin| {
            json!({
                "name": plugin.name, "styles": plugin.styles, "reward": summary(&plugin.rewards),
                "entropy": plugin.entropies.as_deref().map(summary),
            })
        });
        let pairs = agreements.iter().map(|pair| {
            json!({
                "a": pair.a, "b": pair.b, "rank_correlation": pair.rank_correlation, "ci95": pair.ci95,
                "opposes": pair.opposes(),
            })
        });
        json!({
            "images": set.len(), "plugins": plugins.collect::<Vec<_>>(), "pairs": pairs.collect::<Vec<_>>(),
            "sheet": self.sheet.as_ref().map(|path| path.to_string_lossy()),
        })
    }
}

/// Compares each of some plugins with each later one on images of the shipped small model.
pub(super) fn on_shipped_model(
    plugins: &[RewardPlugin],
    encoders: Encoders,
    host: &PluginHost,
    context: &Context,
) -> Result<Vec<Agreement>> {
    let mut evaluator = Evaluator::new(encoders, BATCH, &context.interrupt);
    for plugin in plugins {
        evaluator.add_plugin(plugin.clone(), true, host)?;
    }
    let work = tempfile::tempdir()?;
    let set = generated(MODEL, COUNT, 0, Device::Cpu, work.path(), context)?;
    let plugins = rewarded(&set, &mut evaluator, context)?;
    let rewards: Vec<(String, Vec<f64>)> = plugins.into_iter().map(|plugin| (plugin.name, plugin.rewards)).collect();
    Ok(Agreement::of_all(&rewards))
}

/// Generates images of an untrained model as its preset samples them.
fn generated(name: &str, count: usize, seed: u64, device: Device, work: &Path, context: &Context) -> Result<ImageSet> {
    let folder = model_folder(name, context)?;
    let size = native_size(&folder)?;
    let config = FineTuneConfig::resolve(preset_of_size(size), &project_layers()?)?;
    let settings = Settings {
        model: folder,
        lora: None,
        lora_scale: 1.0,
        load: LoadOptions::on(device),
        prompts: PromptSet::new(&config.prompts)?.all().to_vec(),
        steps: config.sample.steps,
        eta: config.sample.eta,
        guidance: config.sample.guidance,
        width: size,
        height: size,
        micro_batch: config.sample.micro_batch,
    };
    let (steps, eta) = (settings.steps, settings.eta);
    let model = Model::new(name, settings, seed)?;
    Generation::new(&model, work).images(false, steps, eta, count, context)
}

/// Returns given images: files, and folders as `host eval` reads them.
fn given(named: &[&PathBuf], values: &Path) -> Result<ImageSet> {
    let mut set = ImageSet { files: vec![], prompts: vec![], values: values.to_owned() };
    for path in named {
        if path.is_dir() {
            let folder = ImageSet::of_folder(path, values)?;
            set.files.extend(folder.files);
            set.prompts.extend(folder.prompts);
        } else {
            set.files.push((*path).clone());
            set.prompts.push(String::new());
        }
    }
    Ok(set)
}

fn rewarded(set: &ImageSet, evaluator: &mut Evaluator, context: &Context) -> Result<Vec<Rewarded>> {
    let names: Vec<(String, usize)> =
        evaluator.plugins().map(|plugin| (plugin.name.to_owned(), plugin.styles.len())).collect();
    let columns: Vec<Column> = names.iter().map(|(name, _)| Column::Plugin(name.clone())).collect();
    let mut bar = context.progress.bar("scoring", set.len() as u64, "images");
    let measured = measure(set, &columns, evaluator, context, &mut bar)?;
    bar.finish();
    let of = |((name, styles), column): ((String, usize), &Column)| {
        let entropies = || measured.rows(column).rows().into_iter().map(|row| entropy(&row.to_vec())).collect();
        Rewarded { name, rewards: measured.means(column), entropies: (styles > 0).then(entropies), styles }
    };
    Ok(names.into_iter().zip(&columns).map(of).collect())
}

fn tables(set: &ImageSet, plugins: &[Rewarded], agreements: &[Agreement]) -> String {
    let mut rows = vec![["PLUGIN", "STYLES", "REWARD", "SPREAD", "ENTROPY", "SPREAD"].map(str::to_owned).to_vec()];
    for plugin in plugins {
        let of = |values: &[f64]| {
            let Summary { mean, std, .. } = Summary::of(values);
            [number(mean, decimals(std)), number(std, decimals(std))]
        };
        let styles = if plugin.styles > 0 { plugin.styles.to_string() } else { "scorer".to_owned() };
        let mut row = vec![plugin.name.clone(), styles];
        row.extend(of(&plugin.rewards));
        row.extend(plugin.entropies.as_deref().map(of).unwrap_or_default());
        rows.push(row);
    }
    let mut text = format!("{}\n", counted(set.len() as u64, "image"));
    text.push_str(&table(&[true, false, false, false, false, false], &rows));
    text.push('\n');
    let mut rows = vec![["PLUGIN", "PLUGIN", "RANK CORRELATION", "95 %", ""].map(str::to_owned).to_vec()];
    for pair in agreements {
        let rank = pair.rank_correlation.map_or_else(|| "none".to_owned(), |rank| number(rank, 2));
        let interval =
            pair.ci95.map_or_else(String::new, |[low, high]| format!("{} to {}", number(low, 2), number(high, 2)));
        let verdict = if pair.opposes() { "oppose each other" } else { "" };
        rows.push(vec![pair.a.clone(), pair.b.clone(), rank, interval, verdict.to_owned()]);
    }
    text.push_str(&table(&[true, true, false, false, true], &rows));
    text
}

/// Writes the sheet of the images on which the two plugins differ most that agree least.
fn write_sheet(path: &Path, set: &ImageSet, plugins: &[Rewarded], agreements: &[Agreement]) -> Result<()> {
    let rank = |pair: &&Agreement| pair.rank_correlation.unwrap_or(f64::INFINITY);
    let pair = agreements.iter().min_by(|a, b| rank(a).total_cmp(&rank(b))).context("there are two plugins")?;
    let z_scores = |name: &str| -> Vec<f64> {
        let plugin = plugins.iter().find(|plugin| plugin.name == name);
        let rewards = plugin.map(|plugin| &plugin.rewards[..]).unwrap_or_default();
        let summary = Summary::of(rewards);
        rewards.iter().map(|&reward| summary.z_score(reward)).collect()
    };
    let (a, b) = (z_scores(&pair.a), z_scores(&pair.b));
    let mut order: Vec<usize> = (0..set.len()).collect();
    order.sort_by(|&i, &j| (b[j] - a[j]).abs().total_cmp(&(b[i] - a[i]).abs()));
    let loader = ImageLoader::default();
    let cell = |&i: &usize| -> Result<Cell> {
        let title = format!("{} · {}", signed(a[i], 1), signed(b[i], 1));
        Ok(Cell { image: loader.read(&set.files[i])?, title, value: None })
    };
    let cells = order.iter().take(CELLS).map(cell).collect::<Result<Vec<_>>>()?;
    let note = "rewards in standard deviations; the images that differ most";
    let sheet = titled_sheet(&format!("{} · {}", pair.a, pair.b), note, &cells);
    let texts: Vec<_> = sheet.texts.into_iter().chain([png::software()]).collect();
    let bytes = png::encode(&sheet.image, &texts).with_context(|| path.display().to_string())?;
    Ok(write_atomic(path, &bytes)?)
}
