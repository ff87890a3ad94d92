//! A configuration to a trainer at its first epoch, or where a checkpoint left off.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ambiguity_models::lora::Lora;
use ambiguity_models::params::NamedTensors;
use ambiguity_models::pipeline::Pipeline;
use ambiguity_models::safetensors::{encode_safetensors, read_safetensors, read_safetensors_with_metadata};
use ambiguity_models::scheduler::Ddim;
use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};
use tch::Device;
use torch_ext::{AdamW, AdamWConfig};

use super::{LORA_FILE, Plan, Progress, STATE_FILE, Scorer, Trainer};
use crate::cli::Context as CommandContext;
use crate::config::Config;
use crate::data::prompts::PromptSet;
use crate::encoders::Encoders;
use crate::home::home;
use crate::hub::{Hub, Wanted, is_id};
use crate::random::{Purpose, derive_seed};
use crate::run::{PluginsLock, RunDir, RunInfo};
use crate::sampler::TextStates;

/// Keys that a resumed run may change: they alter what is kept or how fast it goes, not what is learnt.
const FREE_KEYS: [&str; 15] = [
    "run.device",
    "model.path",
    "encoders",
    "train.epochs",
    "train.micro_batch",
    "train.gradient_checkpointing",
    "sample.micro_batch",
    "checkpoint.every",
    "checkpoint.keep",
    "monitor.every",
    "monitor.on_collapse",
    "monitor.min_diversity",
    "plugin.timeout_ms",
    "plugin.memory_mib",
    "plugin.max_skipped",
];

/// Where a run begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// In a new folder.
    New(PathBuf),
    /// In a run's folder, at a checkpoint's epoch or at the newest one.
    Resume {
        /// The run's folder.
        folder: PathBuf,
        /// The checkpoint's epoch; the newest if none.
        epoch: Option<u64>,
        /// Whether another model, plugin or key is warned of instead of refused.
        force: bool,
    },
}

impl Start {
    /// `--resume` with what may follow it: a run's folder, a checkpoint's folder, or nothing for the newest run.
    pub fn resume(target: Option<&Path>, force: bool) -> Result<Self> {
        let Some(target) = target else {
            let newest = RunDir::newest_under(Path::new("runs"));
            let folder = newest.context("there is no run under ./runs to resume: name its folder, --resume DIR")?;
            return Ok(Self::Resume { folder, epoch: None, force });
        };
        if target.join("config.toml").is_file() {
            return Ok(Self::Resume { folder: target.to_owned(), epoch: None, force });
        }
        let epoch = target.file_name().and_then(|name| name.to_str()?.strip_prefix("epoch-")?.parse().ok());
        let folder = target.parent().and_then(Path::parent);
        match (epoch, folder) {
            (Some(epoch), Some(folder)) if target.is_dir() => {
                let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                Ok(Self::Resume { folder: folder.to_owned(), epoch: Some(epoch), force })
            }
            _ => bail!(
                "{} is neither a run's folder (it has no config.toml) nor a checkpoint (checkpoints/epoch-NNNN)",
                target.display()
            ),
        }
    }
}

/// The folder of a model: an existing folder, a shipped model's name, or an id on the Hub.
pub fn model_folder(path: &str, hub: &Hub) -> Result<PathBuf> {
    ensure!(!path.is_empty(), "no model: name a diffusers folder with --model, or take --preset tiny-art");
    let folder = Path::new(path);
    if folder.is_dir() {
        return Ok(folder.to_owned());
    }
    let shipped = home().map(|home| home.join("models/weights").join(path).join("diffusion"));
    match shipped {
        Some(shipped) if !path.contains(['/', '\\']) && shipped.is_dir() => Ok(shipped),
        _ if is_id(path) => hub.folder(path, Wanted::Pipeline),
        _ => bail!(
            "there is no model {path}: it is neither a folder nor the name of a shipped model (tiny-art) nor an id on the \
             Hub (OWNER/NAME)"
        ),
    }
}

/// The width and height in pixels that a diffusers folder's model was made for, from its configurations.
pub fn native_size(folder: &Path) -> Result<u32> {
    let read = |part: &str| -> Result<serde_json::Value> {
        let path = folder.join(part).join("config.json");
        let text = fs_err::read_to_string(&path)?;
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
    };
    let sample_size = read("unet")?["sample_size"].as_u64();
    let n_levels = read("vae")?["block_out_channels"].as_array().map(Vec::len);
    match (sample_size, n_levels) {
        (Some(latents), Some(levels)) if levels > 0 => Ok(u32::try_from(latents << (levels - 1))?),
        _ => bail!(
            "{} does not say its picture size (unet sample_size, vae block_out_channels): give width and height",
            folder.display()
        ),
    }
}

/// The folder of an encoder: an existing folder, or an id on the Hub.
pub fn encoder_folder(name: &str, path: &str, hub: &Hub) -> Result<PathBuf> {
    match Path::new(path) {
        folder if folder.is_dir() => {
            let is_clip = folder.join("config.json").is_file();
            ensure!(is_clip, "{} is no encoder folder: it has no config.json", folder.display());
            Ok(folder.to_owned())
        }
        _ if is_id(path) => hub.folder(path, Wanted::Clip),
        _ => bail!("encoder {name}: {path} is neither a folder nor an id on the Hub (OWNER/NAME)"),
    }
}

/// The encoders that a run's plugins may ask for: the shipped ones, and `folders` by name.
pub fn encoders(folders: &BTreeMap<String, String>, device: Device, hub: &Hub) -> Result<Encoders> {
    let mut encoders = Encoders::shipped(device);
    for (name, folder) in folders {
        encoders.add_clip(name, &encoder_folder(name, folder, hub)?, device);
    }
    Ok(encoders)
}

/// Refuses a resumed run whose configuration differs in a key that decides what is learnt.
pub fn check_resumable(before: &Config, now: &Config) -> Result<()> {
    check_same_keys(&toml::Table::try_from(before)?, &toml::Table::try_from(now)?, &FREE_KEYS)
}

/// Refuses another value of a key, unless the key or its whole section is among the free ones.
pub fn check_same_keys(before: &toml::Table, now: &toml::Table, free: &[&str]) -> Result<()> {
    for (section, values) in now {
        let Some(values) = values.as_table() else { continue };
        for (key, value) in values {
            let path = format!("{section}.{key}");
            if free.contains(&path.as_str()) || free.contains(&section.as_str()) {
                continue;
            }
            let old = before.get(section).and_then(|section| section.get(key));
            ensure!(
                old == Some(value),
                "{path} is {value}, but the run was begun with {}: start a new run, or leave the key as it was",
                old.map_or_else(|| "nothing".to_owned(), ToString::to_string)
            );
        }
    }
    Ok(())
}

/// What stands against going on with a run: an error, or, where the user insists, a warning.
pub fn refuse(force: bool, error: Error) -> Result<()> {
    if !force {
        return Err(error.context("this would be another run (--force goes on all the same)"));
    }
    tracing::warn!("{error}; going on all the same");
    Ok(())
}

impl Trainer {
    /// Loads plugins, model and adapter, and makes or reopens the run's folder, in this order: nothing is written
    /// before everything was found to be good.
    pub fn new(config: Config, start: &Start, info: RunInfo, context: &CommandContext) -> Result<Self> {
        let device = torch_ext::cuda::device(&config.run.device)?;
        let scorer = Scorer::load(&config, encoders(&config.encoders, device, &context.hub)?, device)?;
        let folder = model_folder(&config.model.path, &context.hub)?;
        Plan::new(&config, &folder)?.check_fits(device)?;
        let mut pipeline = Pipeline::load(&folder, device, config.model.dtype.kind(), config.model.memory_format)?;
        let (width, height) = (i64::from(config.sample.width), i64::from(config.sample.height));
        let [h, w] = pipeline.latent_size(width, height).context("sample.width and sample.height")?;
        let latent_shape = [pipeline.unet.config().in_channels, h, w];
        let ddim = Ddim::new(&pipeline.scheduler, config.sample.steps).context("sample.steps")?;
        let prompts = PromptSet::new(&config.prompts)?;
        let text = TextStates::encode(&pipeline, prompts.all())?;
        pipeline.drop_text_encoder();
        let lora = match config.lora.init.as_str() {
            "" => {
                let seed = derive_seed(config.run.seed, 0, 0, Purpose::Weights);
                Lora::attach(&mut pipeline.unet, &config.lora.spec(), seed)?
            }
            file => {
                // A resumed run has a file of its own with the same layers; the one that it began with may be gone.
                let own = match start {
                    Start::Resume { folder, .. } => Some(folder.join(LORA_FILE)).filter(|own| own.is_file()),
                    Start::New(_) => None,
                };
                let file = own.unwrap_or_else(|| PathBuf::from(file));
                Lora::load(&mut pipeline.unet, &file).context("lora.init")?
            }
        };
        let optimizer = AdamW::new(
            lora.parameters(),
            AdamWConfig {
                learning_rate: config.train.learning_rate,
                beta1: config.train.beta1,
                beta2: config.train.beta2,
                weight_decay: config.train.weight_decay,
                epsilon: config.train.epsilon,
            },
        )?;
        tracing::info!(
            "{}: LoRA of rank {} on {} layers, {} parameters",
            folder.display(),
            lora.rank_and_alpha().0,
            lora.n_layers(),
            lora.n_parameters()
        );
        let model_digest = Pipeline::digest(&folder)?;
        let lock = PluginsLock { plugins: scorer.locked() };
        let run = match start {
            Start::New(folder) => {
                let mut run = RunDir::create(folder, &config.to_toml()?, &lock)?;
                run.write_info(&info)?;
                run
            }
            Start::Resume { folder, force, .. } => {
                let run = RunDir::open(folder)?;
                if let Some(conflict) = run.plugins_lock()?.conflict(&lock) {
                    refuse(*force, anyhow!("{}: {conflict}", folder.display()))?;
                }
                run.write_config(&config.to_toml()?)?;
                run
            }
        };
        let mut trainer = Self {
            config,
            pipeline,
            lora,
            optimizer,
            average: None,
            ddim,
            text,
            prompts,
            scorer,
            device,
            latent_shape,
            model_digest,
            run,
            progress: Progress::default(),
            bars: context.progress.clone(),
            interrupt: context.interrupt.clone(),
            unsaved: None,
        };
        if trainer.config.train.ema > 0.0 {
            trainer.average = Some(trainer.lora_values());
        }
        if let Start::Resume { epoch, force, .. } = start {
            trainer.restore(*epoch, *force)?;
        }
        Ok(trainer)
    }

    fn restore(&mut self, epoch: Option<u64>, force: bool) -> Result<()> {
        let checkpoints = self.run.checkpoints()?;
        let found = match epoch {
            Some(epoch) => {
                let found = checkpoints.into_iter().find(|(found, _)| *found == epoch);
                Some(
                    found
                        .with_context(|| format!("{} has no checkpoint of epoch {epoch}", self.run.path().display()))?,
                )
            }
            None => checkpoints.into_iter().max(),
        };
        let Some((epoch, folder)) = found else {
            tracing::info!("no checkpoint yet: {} starts again from its first epoch", self.run.path().display());
            return Ok(self.run.rewind(0)?);
        };
        let state_path = folder.join(STATE_FILE);
        let (tensors, metadata) = read_safetensors_with_metadata(&state_path)?;
        if let Some(before) = metadata.get("model").filter(|before| **before != self.model_digest) {
            let (run, path) = (self.run.path().display(), &self.config.model.path);
            let now = &self.model_digest;
            refuse(force, anyhow!("{run}: the run was begun with a model of digest {before}, but {path} has {now}"))?;
        }
        self.lora.load_values(&read_safetensors(&folder.join(LORA_FILE))?)?;
        let progress = metadata.get("progress").with_context(|| format!("{} has no progress", state_path.display()))?;
        self.progress = serde_json::from_str(progress).with_context(|| state_path.display().to_string())?;
        self.optimizer.load_state(&with_prefix_removed(&tensors, "optimizer."))?;
        if let Some(average) = &mut self.average {
            for (name, value) in with_prefix_removed(&tensors, "average.") {
                let own = average
                    .get_mut(&name)
                    .with_context(|| format!("{}: unknown tensor {name}", state_path.display()))?;
                *own = value.to_device(self.device);
            }
        }
        self.run.rewind(epoch)?;
        let lora = self.lora_bytes()?;
        self.run.publish(LORA_FILE, &lora)?;
        tracing::info!("resumed after epoch {epoch} from {}", folder.display());
        Ok(())
    }

    /// Optimizer, average and counters, as one safetensors file.
    pub(super) fn state_bytes(&self) -> Result<Vec<u8>> {
        let mut tensors = NamedTensors::new();
        for (name, tensor) in self.optimizer.state() {
            tensors.insert(format!("optimizer.{name}"), tensor);
        }
        for (name, tensor) in self.average.iter().flatten() {
            tensors.insert(format!("average.{name}"), tensor.shallow_clone());
        }
        let progress = serde_json::to_string(&self.progress)?;
        Ok(encode_safetensors(
            Path::new(STATE_FILE),
            &tensors,
            &[("progress", &progress), ("model", &self.model_digest)],
        )?)
    }
}

fn with_prefix_removed(tensors: &NamedTensors, prefix: &str) -> NamedTensors {
    let strip =
        |(name, tensor): (&String, &tch::Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.shallow_clone()));
    tensors.iter().filter_map(strip).collect()
}
