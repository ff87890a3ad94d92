//! What `host eval` evaluates: a run, a LoRA, a model or given images, with the settings of the run that it is from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ambiguity_models::lora::lora_file;
use anyhow::{Context as _, Result, bail, ensure};
use tch::Device;

use super::EvalArgs;
use crate::cli::run_args::{encoder_layers, project_layers};
use crate::config::fine_tune::preset_of_size;
use crate::config::{FineTuneConfig, Layer, PluginLimits, RewardPlugin, RunConfig as _};
use crate::context::Context;
use crate::data::prompts::PromptSet;
use crate::encoders::{ALIAS, SHIPPED};
use crate::evaluation::images::{ImageSet, Model};
use crate::generator::Settings;
use crate::metrics::Evaluator;
use crate::plugin::Pin;
use crate::run::{PluginsLock, RunDir, RunInfo, plugins_lock};
use crate::zoo::weights::CLIP_L;
use crate::zoo::{model_folder, native_size};

/// What is evaluated, with its settings.
pub(super) struct Evaluated {
    /// The folder for `eval.json`.
    pub(super) base: PathBuf,
    /// What was named.
    pub(super) folder: PathBuf,
    pub(super) kind: Kind,
    /// The plugins of the run, and whether each was held out.
    pub(super) plugins: Vec<(RewardPlugin, bool)>,
    pub(super) encoders: BTreeMap<String, String>,
    /// Encoders that the run does not have: what its plugins call `clip` stays what it was.
    pub(super) more_encoders: BTreeMap<String, String>,
    pub(super) limits: Option<PluginLimits>,
    pub(super) pins: BTreeMap<String, Pin>,
    lock: PluginsLock,
    has_run: bool,
}

/// A model whose images are generated, or given images.
pub(super) enum Kind {
    Model(Box<Model>),
    Given(ImageSet),
}

/// Where a LoRA and its settings are from.
struct Trained {
    lora: Option<PathBuf>,
    run: Option<PathBuf>,
}

impl Evaluated {
    /// Whether it is from a run, whose plugins are known: others are held out.
    pub(super) fn has_run(&self) -> bool {
        self.has_run
    }

    /// Warns of plugins and encoders that are not those of the run any more.
    pub(super) fn warn_of_changed(&self, evaluator: &mut Evaluator) -> Result<()> {
        let now = evaluator.lock()?;
        for (was, is) in self.lock.plugins.iter().zip(&now.plugins) {
            if was.sha256 != is.sha256 {
                tracing::warn!(
                    "plugin {} has changed since the run: its reward here is not the one that was trained",
                    is.source
                );
            }
        }
        for was in &self.lock.encoders {
            if now.encoders.iter().any(|is| is.name == was.name && is.digest != was.digest) {
                tracing::warn!("encoder {} has changed since the run: rewards that depend on it have too", was.name);
            }
        }
        Ok(())
    }
}

impl EvalArgs {
    /// Returns what is evaluated.
    pub(super) fn evaluated(&self, device: Device, context: &Context) -> Result<Evaluated> {
        let what = match (&self.what, &self.model) {
            (Some(what), _) => Some(what.clone()),
            (None, Some(_)) => None,
            (None, None) => {
                let is_fine_tuning = |info: &RunInfo| info.command.is_empty() || info.command == "host train";
                let newest = RunDir::newest_under(Path::new("runs"), is_fine_tuning);
                let message = "there is no run under ./runs: name a run, a LoRA or a folder of images, or a --model";
                Some(newest.context(message)?)
            }
        };
        if let Some(what) = &what {
            ensure!(what.exists(), "{} does not exist: name a run, a LoRA or a folder of images", what.display());
            if what.is_dir() && !what.join("config.toml").is_file() && !has_lora(what) {
                return self.given(what);
            }
            ensure!(
                what.is_dir() || has_lora(what),
                "{} is neither a folder nor a LoRA (.safetensors): name the folder of an image",
                what.display()
            );
        }
        let trained = match &what {
            Some(what) if what.join("config.toml").is_file() => {
                read_config(what)?;
                ensure!(has_lora(what), "{} has no LoRA yet: train it for an epoch first", what.display());
                Trained { lora: Some(what.clone()), run: Some(what.clone()) }
            }
            Some(lora) => {
                let run = lora.ancestors().skip(1).take(3).find(|folder| folder.join("config.toml").is_file());
                Trained { lora: Some(lora.clone()), run: run.map(Path::to_owned) }
            }
            None => Trained { lora: None, run: None },
        };
        self.generated(what.as_deref(), &trained, device, context)
    }

    fn given(&self, folder: &Path) -> Result<Evaluated> {
        let base = self.out.clone().unwrap_or_else(|| folder.to_owned());
        let set = ImageSet::of_folder(folder, &base.join(".eval").join("values"))?;
        let layers = [project_layers()?, encoder_layers(&self.encoders)?].concat();
        let mut encoders = FineTuneConfig::resolve("tiny-art", &layers)?.encoders;
        let more_encoders = encoders.remove_entry(CLIP_L.name).into_iter().collect();
        Ok(Evaluated {
            base,
            folder: folder.to_owned(),
            kind: Kind::Given(set),
            plugins: vec![],
            encoders,
            more_encoders,
            limits: None,
            pins: BTreeMap::new(),
            lock: PluginsLock::default(),
            has_run: false,
        })
    }

    fn generated(
        &self,
        what: Option<&Path>,
        trained: &Trained,
        device: Device,
        context: &Context,
    ) -> Result<Evaluated> {
        let mut config = match &trained.run {
            Some(run) => read_config(run)?,
            None => self.defaults(context)?,
        };
        let mut more_encoders = BTreeMap::new();
        for (name, place) in encoder_places(&self.encoders)? {
            // What plugins call `clip` stays what it was, and the weights of a metric are no encoder of plugins.
            let is_of_run = config.encoders.contains_key(&name);
            ensure!(
                is_of_run || trained.run.is_none() || ![ALIAS, SHIPPED].contains(&&*name),
                "--encoder {name}=… would change what the run's plugins call {name}: choose another name for it"
            );
            let is_of_plugins = is_of_run || trained.run.is_none() && name != CLIP_L.name;
            if is_of_plugins { &mut config.encoders } else { &mut more_encoders }.insert(name, place);
        }
        if let Some(model) = &self.model {
            config.model.path = model.clone();
        }
        let model = model_folder(&config.model.path, context)?;
        if let Some(file) = &self.prompts {
            config.prompts.file = file.display().to_string();
        }
        let prompts = PromptSet::new(&config.prompts)?.all().to_vec();
        let sample = &config.sample;
        let settings = Settings {
            model,
            lora: trained.lora.clone(),
            lora_scale: 1.0,
            load: config.model.load_options(device),
            prompts,
            steps: self.steps.unwrap_or(sample.steps),
            eta: self.eta.unwrap_or(sample.eta),
            guidance: self.guidance.unwrap_or(sample.guidance),
            width: self.width.unwrap_or(sample.width),
            height: self.height.unwrap_or(sample.height),
            micro_batch: self.micro_batch.unwrap_or(sample.micro_batch),
        };
        let base = match (&self.out, what) {
            (Some(out), _) => out.clone(),
            (None, Some(file)) if file.is_file() => file.parent().unwrap_or(Path::new(".")).to_owned(),
            (None, Some(folder)) => folder.to_owned(),
            (None, None) => bail!("name a folder for eval.json and the images with --out"),
        };
        let lock = trained.run.as_deref().map(plugins_lock).transpose()?.unwrap_or_default();
        let mut plugins: Vec<_> = config.reward.plugin.iter().map(|plugin| (plugin.clone(), false)).collect();
        plugins.extend(config.monitor.held_out.iter().map(|source| (RewardPlugin::of_source(source), true)));
        Ok(Evaluated {
            folder: what.unwrap_or(&base).to_owned(),
            base,
            kind: Kind::Model(Box::new(Model::new(&config.model.path, settings, self.seed.unwrap_or(0))?)),
            plugins,
            encoders: config.encoders,
            more_encoders,
            limits: Some(config.plugin.limits),
            pins: lock.pins(true)?,
            lock,
            has_run: trained.run.is_some(),
        })
    }

    /// Returns the settings of a model without a run: those of the preset that training it would have.
    fn defaults(&self, context: &Context) -> Result<FineTuneConfig> {
        let model = self.model.as_deref().context("this LoRA is in no run's folder: name its model with --model")?;
        let size = native_size(&model_folder(model, context)?)?;
        let preset = preset_of_size(size);
        tracing::info!("{model} generates {size} px images: steps, guidance and prompts are those of preset {preset}");
        let size = Layer {
            origin: "the model's native size".to_owned(),
            text: format!("[sample]\nwidth = {size}\nheight = {size}\n"),
        };
        FineTuneConfig::resolve(preset, &[project_layers()?, vec![size]].concat())
    }
}

/// Reads the configuration of a run.
fn read_config(run: &Path) -> Result<FineTuneConfig> {
    let config = FineTuneConfig::read(&run.join("config.toml"));
    config.with_context(|| format!("{}: only runs of `host train` are evaluated", run.display()))
}

/// Returns the places of `--encoder NAME=DIR` by name.
fn encoder_places(encoders: &[String]) -> Result<BTreeMap<String, String>> {
    let config = FineTuneConfig::resolve("tiny-art", &encoder_layers(encoders)?)?;
    Ok(config.encoders)
}

/// Whether a path is a LoRA's file, or a folder with one.
fn has_lora(path: &Path) -> bool {
    lora_file(path).is_ok_and(|file| file.extension().is_some_and(|extension| extension == "safetensors"))
}
