//! Builds the task from a configuration.

use std::path::PathBuf;

use ambiguity_models::lora::{LORA_FILE, Lora};
use ambiguity_models::pipeline::Pipeline;
use ambiguity_models::scheduler::{Ddim, LastStep};
use anyhow::{Context as _, Result, ensure};
use torch_ext::{AdamW, AdamWConfig};

use super::{FineTune, LEARNING_RATE, Plan};
use crate::config::{FineTuneConfig, Train};
use crate::context::Context;
use crate::data::prompts::PromptSet;
use crate::energy::Meter;
use crate::metrics::Evaluator;
use crate::optim::{Ema, StepGuard};
use crate::policy::{Policy, PromptEmbeddings};
use crate::random::{Purpose, derive_seed};
use crate::rl::advantage::PromptStatistics;
use crate::run::PluginsLock;
use crate::trainer::{Claim, Start};
use crate::zoo::{load_pipeline, model_folder};

impl FineTune {
    /// Loads plugins and model, claims the run's folder, and attaches the LoRA, with the quickest checks first.
    pub fn open(config: FineTuneConfig, start: Start, context: &Context) -> Result<(Self, Claim)> {
        let processes = &context.processes;
        check_shares(&config, processes.count())?;
        let device = context.device(&config.run.device)?;
        config.cuda.apply(device)?;
        let prompts = PromptSet::new(&config.prompts)?;
        let pins = start.pins(processes)?;
        let mut evaluator = processes.first_before_others(|| Evaluator::of_run(&config, device, &pins, context))?;
        let lock = PluginsLock { prompts: Some(prompts.digest()), ..evaluator.lock()? };
        let claim = start.claim(lock, processes)?;
        let folder = processes.first_before_others(|| model_folder(&config.model.path, context))?;
        Plan::new(&config, &folder)?.check_fits(device)?;
        let pipeline = load_pipeline(&folder, &config.model.load_options(device))?;
        let (width, height) = (i64::from(config.sample.width), i64::from(config.sample.height));
        let [h, w] = pipeline.latent_size(width, height).context("sample.width and sample.height")?;
        let latent_shape = [pipeline.unet.config().in_channels, h, w];
        let ddim = Ddim::new(&pipeline.scheduler, config.sample.steps).context("sample.steps")?;
        let embeddings = PromptEmbeddings::encode(&pipeline, prompts.all())?;
        let Pipeline { mut unet, vae, text_encoder, .. } = pipeline;
        drop(text_encoder);
        let lora = match config.lora.init.as_str() {
            "" => {
                let seed = derive_seed(config.run.seed, 0, 0, Purpose::Weights);
                Lora::attach(&mut unet, &config.lora.spec(), seed)?
            }
            file => {
                // A checkpoint has its own file with the same layers; the file that the run started from may be gone.
                let file = claim.checkpoint().map_or_else(|| PathBuf::from(file), |(_, folder)| folder.join(LORA_FILE));
                Lora::load(&mut unet, &file).context("lora.init")?
            }
        };
        let optimizer = AdamW::new(lora.parameters(), optimizer_config(&config.train))?;
        tracing::info!(
            "{}: LoRA of rank {} on {} layers, {} parameters",
            folder.display(),
            lora.rank_and_alpha().0,
            lora.n_layers(),
            lora.n_parameters()
        );
        let parameters = optimizer.parameters().iter().map(|(name, tensor)| (name, tensor));
        let ema = (config.train.ema > 0.0).then(|| Ema::new(parameters, config.train.ema));
        let policy = Policy {
            unet,
            prompts: embeddings,
            ddim,
            guidance_scale: config.sample.guidance,
            eta: config.sample.eta,
            last_step: LastStep::Stochastic,
        };
        let model_digest = Pipeline::digest(&folder)?;
        processes.compare("the model's weights", &model_digest)?;
        let task = Self {
            model_digest,
            policy,
            vae,
            lora,
            optimizer,
            guard: StepGuard::new(LEARNING_RATE),
            ema,
            prompts,
            diversity_encoder: evaluator.diversity_encoder()?,
            evaluator,
            latent_shape,
            prompt_statistics: PromptStatistics::default(),
            first: None,
            first_vendi: None,
            counteracted: 0,
            energy: Meter::new(device, context.threads),
            interrupt: context.interrupt.clone(),
            processes: processes.clone(),
            config,
        };
        Ok((task, claim))
    }
}

/// Checks that every process has a share of an epoch's samples and of the monitor's.
fn check_shares(config: &FineTuneConfig, processes: usize) -> Result<()> {
    for (key, n) in [("sample.batches_per_epoch", config.sample.per_epoch()), ("monitor.count", config.monitor.count)] {
        ensure!(n >= processes, "{processes} processes share {n} samples: raise {key}, or start fewer processes");
    }
    Ok(())
}

fn optimizer_config(train: &Train) -> AdamWConfig {
    AdamWConfig {
        learning_rate: train.learning_rate,
        beta1: train.beta1,
        beta2: train.beta2,
        weight_decay: train.weight_decay,
        epsilon: train.epsilon,
    }
}
