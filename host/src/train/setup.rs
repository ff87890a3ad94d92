//! A configuration to a trainer at its first epoch, or where a checkpoint left off.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ambiguity_models::lora::Lora;
use ambiguity_models::params::NamedTensors;
use ambiguity_models::pipeline::Pipeline;
use ambiguity_models::safetensors::{encode_safetensors, read_safetensors, read_safetensors_with_metadata};
use ambiguity_models::scheduler::Ddim;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tch::Device;
use torch_ext::{AdamW, AdamWConfig};

use super::{BEST_FILE, LORA_FILE, Plan, Progress, STATE_FILE, Scorer, Start, Trainer};
use crate::cli::Context as CommandContext;
use crate::config::Config;
use crate::data::prompts::PromptSet;
use crate::encoders::Encoders;
use crate::home::home;
use crate::hub::{Hub, Wanted, is_id};
use crate::random::{Purpose, derive_seed};
use crate::run::{PluginsLock, RunInfo};
use crate::sampler::TextStates;

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
            "{} does not say its image size (unet sample_size, vae block_out_channels): give width and height",
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

impl Trainer {
    /// Loads the plugins, looks at the run's folder, loads model, adapter and checkpoint, and makes the folder or goes on
    /// with it, in this order: what is soon refused comes first, and nothing is written before everything was found to be
    /// good.
    pub fn new(config: Config, start: Start, info: &RunInfo, context: &CommandContext) -> Result<Self> {
        let device = torch_ext::cuda::device(&config.run.device)?;
        let scorer = Scorer::load(&config, encoders(&config.encoders, device, &context.hub)?, device)?;
        let claim = start.claim(PluginsLock { plugins: scorer.locked() })?;
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
                // A checkpoint has a file of its own with the same layers; the one that the run began with may be gone.
                let file = claim.checkpoint().map_or_else(|| PathBuf::from(file), |folder| folder.join(LORA_FILE));
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
        let average = (config.train.ema > 0.0).then(|| values(&lora));
        let mut learned = Learned { lora, optimizer, average, progress: Progress::default() };
        if let Some(folder) = claim.checkpoint() {
            let path = folder.join(STATE_FILE);
            let (tensors, metadata) = read_safetensors_with_metadata(&path)?;
            if let Some(before) = metadata.get("model").filter(|before| **before != model_digest) {
                let (run, path) = (claim.folder().display(), &config.model.path);
                claim.refuse(anyhow!(
                    "{run}: the run was begun with a model of digest {before}, but {path} has {model_digest}"
                ))?;
            }
            let progress = metadata.get("progress").with_context(|| format!("{} has no progress", path.display()))?;
            learned.progress = serde_json::from_str(progress).with_context(|| path.display().to_string())?;
            learned.load(folder, &tensors, device).with_context(|| path.display().to_string())?;
        }
        let resumes = claim.checkpoint().is_some();
        let best = claim.checkpoint().map(|folder| folder.join(BEST_FILE)).filter(|best| best.is_file());
        let best = best.map(fs_err::read).transpose()?;
        let run = claim.open(&config, info)?;
        let Learned { lora, optimizer, average, progress } = learned;
        let mut trainer = Self {
            config,
            pipeline,
            lora,
            optimizer,
            average,
            best,
            ddim,
            text,
            prompts,
            scorer,
            device,
            latent_shape,
            model_digest,
            run,
            progress,
            bars: context.progress.clone(),
            interrupt: context.interrupt.clone(),
            unsaved: None,
        };
        trainer.publish_best()?;
        if resumes {
            let lora = trainer.lora_bytes()?;
            trainer.run.publish(LORA_FILE, &lora)?;
        }
        Ok(trainer)
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

/// What a checkpoint brings back.
struct Learned {
    lora: Lora,
    optimizer: AdamW,
    average: Option<NamedTensors>,
    progress: Progress,
}

impl Learned {
    /// Takes the adapter, its optimizer's state and its average from a checkpoint's folder and the tensors of its state.
    fn load(&mut self, folder: &Path, tensors: &NamedTensors, device: Device) -> Result<()> {
        self.lora.load_values(&read_safetensors(&folder.join(LORA_FILE))?)?;
        self.optimizer.load_state(&with_prefix_removed(tensors, "optimizer."))?;
        if let Some(average) = &mut self.average {
            for (name, value) in with_prefix_removed(tensors, "average.") {
                let own = average.get_mut(&name).with_context(|| format!("unknown tensor {name}"))?;
                *own = value.to_device(device);
            }
        }
        Ok(())
    }
}

/// A copy of an adapter's parameters.
pub(super) fn values(lora: &Lora) -> NamedTensors {
    lora.parameters().into_iter().map(|(name, tensor)| (name, tensor.detach().copy())).collect()
}

fn with_prefix_removed(tensors: &NamedTensors, prefix: &str) -> NamedTensors {
    let strip =
        |(name, tensor): (&String, &tch::Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.shallow_clone()));
    tensors.iter().filter_map(strip).collect()
}
