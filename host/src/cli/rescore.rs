//! `host rescore`: the images that a run kept, scored by another plugin.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::completions::plugins;
use super::run_args::encoder_layers;
use crate::config::fine_tune::OptionValue;
use crate::config::{FineTuneConfig, RewardPlugin, RunConfig as _};
use crate::context::Context;
use crate::data::images::ImageLoader;
use crate::data::png;
use crate::encoders::Encoders;
use crate::evaluation::images::ImageSet;
use crate::evaluation::values::measure;
use crate::fs::write_atomic;
use crate::interrupt::keeping;
use crate::metrics::{Column, Evaluator};
use crate::plugin::PluginHost;
use crate::plugin::store::plugin_name;
use crate::report::grid::{Cell, titled_sheet};
use crate::report::learning::{Rewards, draw_rewards};
use crate::run::images::{Caption, Sampled, captions, kept_images};
use crate::run::{RunDir, plugins_lock};
use crate::statistics::{Improvement, Summary, rank_correlation, standard_error};
use crate::text::{counted, decimals, number, shown, signed, table, to_json};

/// Number of images of a plugin's call.
const BATCH: usize = 16;
/// Distance from the mean in standard deviations below which an image is on neither side.
const NO_SIDE: f64 = 1e-6;
/// Number of images on the sheet.
const CELLS: usize = 32;

/// Score the images that a run kept with another or an edited plugin, without its model: the reward by epoch that training would
/// have seen, and the images that change sides.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host rescore runs/demo --plugin edited.wasm
  host rescore --plugin clip_softmax --json

A run keeps its images if `run.keep_images` is `png` or `webp`, as in preset tiny-art. An image changes sides if its reward is
above its epoch's mean under one plugin and below it under the other: then its advantage over the epoch has the other sign.")]
pub struct RescoreArgs {
    /// The run's folder [default: the newest run under runs/ of host train]
    run: Option<PathBuf>,
    /// The plugin: a path or a name
    #[arg(long, value_name = "P", required = true, add = plugins())]
    plugin: String,
    /// The folder of an encoder that the plugin asks for by name; may be repeated
    #[arg(long = "encoder", value_name = "NAME=DIR")]
    encoders: Vec<String>,
    /// One of the plugin's options; may be repeated [default: those of the run, if the plugin is one of its own]
    #[arg(long = "config", value_name = "KEY=VALUE")]
    config: Vec<String>,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// The folder for rescore.json, the curve and the sheet [default: rescore/PLUGIN in the run's folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print rescore.json
    #[arg(long)]
    json: bool,
}

/// The images of an epoch, with their rewards under the run's plugins and under the other one.
struct Epoch {
    sampled: Sampled,
    epoch: u64,
    set: ImageSet,
    before: Vec<f64>,
    after: Vec<f64>,
}

/// An image that changes sides.
struct Changed<'a> {
    epoch: &'a Epoch,
    i: usize,
    /// Distances from the epoch's means in standard deviations.
    before: f64,
    after: f64,
}

impl RescoreArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let run = match &self.run {
            Some(run) => run.clone(),
            None => RunDir::newest_under(Path::new("runs"), |info| info.command == "host train")
                .context("there is no run under ./runs: name a run's folder")?,
        };
        let name = plugin_name(&self.plugin);
        let out = self.out.clone().unwrap_or_else(|| run.join("rescore").join(&name));
        for folder in [out.clone(), run.join("rescore")] {
            ensure!(!folder.is_symlink(), "{} is a link: remove it", folder.display());
        }
        let kept = format!("what was scored is kept in {}, and the same command resumes", out.display());
        let epochs = self.scored(&run, &out, context).map_err(|error| keeping(error, kept))?;
        let document = document(&run, &name, &epochs);
        write_atomic(&out.join("rescore.json"), (to_json(&document) + "\n").as_bytes())?;
        self.draw(&run, &name, &epochs, &out)?;
        if self.json {
            println!("{}", to_json(&document));
        } else {
            print!("{}", summary(&name, &epochs));
            println!("{}", shown(&out));
        }
        Ok(())
    }

    /// Returns the plugin with its options.
    fn configured(&self, run: &FineTuneConfig) -> Result<RewardPlugin> {
        let of_run = run.reward.plugin.iter().find(|plugin| plugin.source == self.plugin);
        let mut plugin = of_run.cloned().unwrap_or_else(|| RewardPlugin::of_source(&self.plugin));
        for option in &self.config {
            let (key, value) = option.split_once('=').with_context(|| format!("--config {option}: write KEY=VALUE"))?;
            plugin.config.insert(key.to_owned(), OptionValue::Text(value.to_owned()));
        }
        Ok(plugin)
    }

    fn scored(&self, run: &Path, out: &Path, context: &Context) -> Result<Vec<Epoch>> {
        let mut config = FineTuneConfig::read(&run.join("config.toml"))
            .with_context(|| format!("{}: only fine-tuning runs keep images", run.display()))?;
        config.encoders.extend(FineTuneConfig::resolve("tiny-art", &encoder_layers(&self.encoders)?)?.encoders);
        let device = torch_ext::cuda::device(&self.device)?;
        let encoders = Encoders::open(&config.encoders, device, context)?;
        let host = PluginHost::of_command(config.plugin.limits, context)?.on(device);
        let host = host.pinned(plugins_lock(run)?.pins(true)?);
        let mut evaluator = Evaluator::new(encoders, BATCH, &context.interrupt);
        evaluator.add_plugin(self.configured(&config)?, false, &host)?;
        let column = {
            let plugin = evaluator.plugins().next().context("the plugin was added")?;
            Column::Plugin(plugin.name.to_owned())
        };
        let mut sets = vec![];
        for sampled in Sampled::ALL {
            for (epoch, folder) in kept_images(run, sampled)? {
                let values = out.join("values").join(format!("{}-{epoch:04}", sampled.as_str()));
                let set = ImageSet::of_folder(&folder, &values)?;
                let link = set.files.iter().find(|file| file.is_symlink());
                ensure!(link.is_none(), "{} has links instead of images", folder.display());
                let captions = captions(&folder)?.unwrap_or_default();
                let reward = |caption: &Caption| caption.reward;
                let before: Option<Vec<f64>> = captions.iter().map(reward).collect();
                let before = before.with_context(|| format!("{} lacks rewards in captions.jsonl", folder.display()))?;
                sets.push(Epoch { sampled, epoch, set, before, after: vec![] });
            }
        }
        ensure!(
            !sets.is_empty(),
            "{} kept no images: train with --set run.keep_images=webp, as preset tiny-art does",
            run.display()
        );
        fs_err::create_dir_all(out)?;
        let n: usize = sets.iter().map(|epoch| epoch.set.len()).sum();
        let mut bar = context.progress.bar("scoring", n as u64, "images");
        for epoch in &mut sets {
            let columns = [column.clone()];
            let measured = measure(&epoch.set, &columns, &mut evaluator, context, &mut bar)?;
            epoch.after = measured.means(&column);
        }
        bar.finish();
        Ok(sets)
    }

    /// Draws the curve and the sheet of the images that change sides.
    fn draw(&self, run: &Path, name: &str, epochs: &[Epoch], out: &Path) -> Result<()> {
        let points = |sampled: Sampled, of: fn(&Epoch) -> &[f64]| -> Vec<(u64, f64)> {
            let of_kind = epochs.iter().filter(|epoch| epoch.sampled == sampled);
            of_kind.map(|epoch| (epoch.epoch, Summary::of(of(epoch)).mean)).collect()
        };
        let panel = |title: String, of: fn(&Epoch) -> &[f64]| Rewards {
            title,
            training: points(Sampled::Training, of),
            monitor: points(Sampled::Monitor, of),
        };
        let trained = plugins_lock(run)?.of_reward().map(|plugin| plugin.name.clone()).collect::<Vec<_>>().join(" + ");
        let panels = [
            panel(format!("reward under {trained}, which was trained"), |epoch| &epoch.before),
            panel(format!("reward under {name}"), |epoch| &epoch.after),
        ];
        let write = |file: &str, image: &image::RgbImage, texts: Vec<(String, String)>| -> Result<()> {
            let texts: Vec<_> = texts.into_iter().chain([png::software()]).collect();
            Ok(write_atomic(&out.join(file), &png::encode(image, &texts).context(file.to_owned())?)?)
        };
        write("curve.png", &draw_rewards(&format!("{}: {name}", shown(run)), panels), vec![])?;
        // The monitor has the same samples each time: the last of it is shown.
        let last = epochs.iter().filter(|epoch| epoch.sampled == Sampled::Monitor).map(|epoch| epoch.epoch).max();
        let is_shown =
            |changed: &Changed<'_>| changed.epoch.sampled == Sampled::Training || Some(changed.epoch.epoch) == last;
        let mut changed = changed(epochs);
        changed.retain(is_shown);
        let loader = ImageLoader::default();
        let cell = |changed: &Changed<'_>| -> Result<Cell> {
            let Changed { epoch, i, before, after } = changed;
            let (kind, at) = (epoch.sampled.as_str(), epoch.epoch);
            Ok(Cell {
                image: loader.read(&epoch.set.files[*i])?,
                title: format!("{} → {} ({kind} {at})", signed(*before, 1), signed(*after, 1)),
                value: None,
            })
        };
        let cells = changed.iter().take(CELLS).map(cell).collect::<Result<Vec<_>>>()?;
        if !cells.is_empty() {
            let title = format!("{trained} → {name}");
            let note = format!("{} of {} that change sides, in standard deviations", cells.len(), changed.len());
            let sheet = titled_sheet(&title, &note, &cells);
            write("sides.png", &sheet.image, sheet.texts)?;
        }
        Ok(())
    }
}

/// Returns the images that change sides, those that move most first.
fn changed(epochs: &[Epoch]) -> Vec<Changed<'_>> {
    let mut all = vec![];
    for epoch in epochs {
        let (before, after) = (Summary::of(&epoch.before), Summary::of(&epoch.after));
        for (i, (&was, &is)) in epoch.before.iter().zip(&epoch.after).enumerate() {
            let (was, is) = (before.z_score(was), after.z_score(is));
            if was * is < 0.0 && was.abs().min(is.abs()) > NO_SIDE {
                all.push(Changed { epoch, i, before: was, after: is });
            }
        }
    }
    all.sort_by(|a, b| (b.before - b.after).abs().total_cmp(&(a.before - a.after).abs()));
    all
}

/// Returns the change from the first to the last monitor, before and after.
fn improvements(epochs: &[Epoch]) -> Option<[Improvement; 2]> {
    let mut monitors = epochs.iter().filter(|epoch| epoch.sampled == Sampled::Monitor);
    let first = monitors.next()?;
    let last = monitors.next_back()?;
    let change = |of: fn(&Epoch) -> &[f64]| match of(first).len() == of(last).len() {
        true => Improvement::paired(of(first), of(last)),
        // A plugin failed on some samples of one of them.
        false => {
            let [from, to] = [of(first), of(last)].map(|rewards| Summary::of(rewards).mean);
            Improvement { mean: to - from, sem: None, paired: false }
        }
    };
    Some([change(|epoch| &epoch.before), change(|epoch| &epoch.after)])
}

fn document(run: &Path, plugin: &str, epochs: &[Epoch]) -> Value {
    let of = |epoch: &Epoch| {
        let sides = changed(std::slice::from_ref(epoch)).len();
        json!({
            "epoch": epoch.epoch, "images": epoch.before.len(),
            "trained": { "mean": Summary::of(&epoch.before).mean, "sem": standard_error(&epoch.before) },
            "rescored": { "mean": Summary::of(&epoch.after).mean, "sem": standard_error(&epoch.after) },
            "rank_correlation": rank_correlation(&epoch.before, &epoch.after),
            "changed_sides": sides,
        })
    };
    let of_kind = |kind: Sampled| epochs.iter().filter(|epoch| epoch.sampled == kind).map(of).collect::<Vec<_>>();
    let changed = changed(epochs).into_iter().map(|changed| {
        json!({
            "file": changed.epoch.set.files[changed.i].to_string_lossy(), "prompt": changed.epoch.set.prompts[changed.i],
            "trained": changed.epoch.before[changed.i], "rescored": changed.epoch.after[changed.i],
        })
    });
    let improvement = |improvement: Improvement| json!({ "mean": improvement.mean, "sem": improvement.sem, "standard_errors": improvement.standard_errors() });
    json!({
        "run": run.to_string_lossy(), "plugin": plugin,
        "monitor": of_kind(Sampled::Monitor), "training": of_kind(Sampled::Training),
        "improvement": improvements(epochs).map(|[trained, rescored]| {
            json!({ "trained": improvement(trained), "rescored": improvement(rescored) })
        }),
        "changed_sides": changed.collect::<Vec<_>>(),
    })
}

fn summary(plugin: &str, epochs: &[Epoch]) -> String {
    let mut rows = vec![
        ["IMAGES", "EPOCH", "N", "TRAINED REWARD", "RESCORED", "RANK CORRELATION", "CHANGE SIDES"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for epoch in epochs {
        let means = [&epoch.before, &epoch.after].map(|rewards| {
            let Summary { mean, std, .. } = Summary::of(rewards);
            number(mean, decimals(std))
        });
        let correlation = rank_correlation(&epoch.before, &epoch.after);
        let sides = changed(std::slice::from_ref(epoch)).len();
        let [before, after] = means;
        rows.push(vec![
            epoch.sampled.as_str().to_owned(),
            epoch.epoch.to_string(),
            epoch.before.len().to_string(),
            before,
            after,
            correlation.map_or_else(String::new, |correlation| number(correlation, 2)),
            sides.to_string(),
        ]);
    }
    let mut text = table(&[true, false, false, false, false, false, false], &rows);
    if let Some([trained, rescored]) = improvements(epochs) {
        let words = |improvement: Improvement| {
            let errors = improvement
                .standard_errors()
                .map_or_else(String::new, |errors| format!(" ({} standard errors)", signed(errors, 1)));
            format!("{}{errors}", signed(improvement.mean, decimals(improvement.mean)))
        };
        text.push_str(&format!(
            "fixed prompts and noise, first to last: {} under the trained reward, {} under {plugin}\n",
            words(trained),
            words(rescored)
        ));
    }
    let sides = changed(epochs).len();
    let n: usize = epochs.iter().map(|epoch| epoch.before.len()).sum();
    text.push_str(&format!("{sides} of {} change sides\n", counted(n as u64, "image")));
    text
}
