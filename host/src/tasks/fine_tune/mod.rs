//! `host train`: DDPO fine-tuning of a LoRA. An epoch samples trajectories, decodes and scores them, and updates the
//! LoRA.
//!
//! # Layout
//!
//! - this file: [`FineTune`], the task
//! - `health`: reward hacking, collapse, updates that do not fit
//! - `setup`: builds the task from a configuration
//! - `plan`: memory and time of a run before it starts · `meter`: progress within an epoch

mod health;
mod meter;
mod plan;
mod setup;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ambiguity_models::lora::{LORA_FILE, Lora};
use ambiguity_models::params::NamedTensors;
use ambiguity_models::pipeline::images_u8;
use ambiguity_models::safetensors::read_safetensors;
use ambiguity_models::vae::Vae;
use anyhow::{Context as _, Result, anyhow, ensure};
use image::RgbImage;
use tch::no_grad;
use torch_ext::AdamW;

use self::health::{First, counteracting_kl, styles_monitor, vendi_weight};
use self::meter::Meter;
pub use self::plan::{Measured, Plan, measure};
use crate::config::fine_tune::{KeepImages, OnCollapse};
use crate::config::{FineTuneConfig, RewardNormalization, Train};
use crate::data::images::rgb_images;
use crate::data::png::Sheet;
use crate::data::prompts::PromptSet;
use crate::energy::{self, Energy, Running, Source};
use crate::interrupt::Interrupt;
use crate::metrics::agreement::Agreement;
use crate::metrics::diversity::{contributions_to_vendi, nearest_in_group, vendi_and_mean_distance};
use crate::metrics::{Column, Evaluator, Scores};
use crate::optim::{Ema, StepGuard, add_under, under};
use crate::plugin::Sample;
use crate::policy::Policy;
use crate::processes::Processes;
use crate::progress::Bar;
use crate::report::grid::{self, Cell, Values};
use crate::rl::advantage::{PromptStatistics, advantages, weight_by_diversity};
use crate::rl::objective::{Ddpo, Hooks, UpdateStatistics};
use crate::rl::reward::{PluginRewards, combine, entropy, max_probability};
use crate::rl::rollout::{SeededNoise, Trajectories, rollout};
use crate::run::BEFORE_AFTER;
use crate::run::images::{ImageFormat, KeptImage, KeptImages};
use crate::run::record::{FineTuneEpoch, FineTuneMonitor, FineTuneSeconds};
use crate::statistics::{Summary, standard_error};
use crate::text::counted;
use crate::trainer::{Claim, Ends, Monitored, Saved, Schedule, State, Task, Trained};

/// The command that fine-tunes.
pub const COMMAND: &str = "host train";
/// The configuration's key of the learning rate.
const LEARNING_RATE: &str = "train.learning_rate";
/// Rewards whose standard deviation is below this count as equal.
const MIN_REWARD_STD: f64 = 1e-9;
/// Number of latents that are decoded per call.
const DECODE_SLICE: i64 = 16;
/// Number of images in a contact sheet.
const SHEET_CELLS: usize = 32;
/// Number of images in the before/after comparison.
const COMPARED: usize = 16;

/// A model, its LoRA, and the evaluator of its images.
pub struct FineTune {
    config: FineTuneConfig,
    policy: Policy,
    vae: Vae,
    lora: Lora,
    optimizer: AdamW,
    guard: StepGuard,
    ema: Option<Ema>,
    prompts: PromptSet,
    evaluator: Evaluator,
    /// The encoder by which diversity is measured.
    diversity_encoder: String,
    latent_shape: [i64; 3],
    /// The digest of the model's weights.
    model_digest: String,
    prompt_statistics: PromptStatistics,
    /// The monitor of the untrained model.
    first: Option<First>,
    /// The Vendi score of the first epoch's samples.
    first_vendi: Option<f64>,
    /// Number of monitors that found a collapse which the run counteracted.
    counteracted: u32,
    /// The meter of the device's energy.
    energy: Option<energy::Meter>,
    interrupt: Interrupt,
    /// The processes that share the samples.
    processes: Processes,
}

impl Task for FineTune {
    type Epoch = FineTuneEpoch;
    type Monitor = FineTuneMonitor;

    fn resume_command(&self, folder: &Path) -> (String, bool) {
        (format!("{COMMAND} --resume {}", folder.display()), true)
    }

    fn schedule(&self) -> Schedule {
        let FineTuneConfig { train, checkpoint, monitor, sample, .. } = &self.config;
        Schedule {
            epochs: train.epochs,
            checkpoint: checkpoint.clone(),
            monitor_every: monitor.every,
            collapse: Some((monitor.min_diversity, monitor.on_collapse == OnCollapse::Stop)),
            progress: (sample.per_epoch() as u64, "images"),
        }
    }

    fn train_epoch(&mut self, epoch: u64, bar: &Bar) -> Result<Trained<FineTuneEpoch>> {
        let (n, seed) = (self.config.sample.per_epoch(), self.config.run.seed);
        let mut meter = Meter::new(bar, &self.config, epoch, self.processes.count());
        let mut clock = Instant::now();
        let energy = self.energy.as_ref().map(energy::Meter::start);
        let prompts: Vec<usize> = (0..n as u64).map(|i| self.prompts.draw(seed, epoch, i)).collect();
        let share = self.share(n);
        let mut noise = SeededNoise::of_epoch(self.latent_shape, seed, epoch, share.clone());
        meter.phase("sampling");
        let trajectories = self.rollout(&prompts[share.clone()], &mut noise, &mut |rows| meter.sampled(rows))?;
        let mut seconds = FineTuneSeconds { sample: lap(&mut clock), ..FineTuneSeconds::default() };

        meter.phase("scoring");
        let images = self.decode(&trajectories)?;
        let samples = self.samples(&trajectories.prompts, &images, share.start, epoch);
        let Train { diversity_weight, vendi_weight, .. } = self.config.train;
        let more = (diversity_weight > 0.0 || vendi_weight > 0.0).then(|| self.embedding_column());
        let scores = self.evaluator.score(samples, share.start, more.as_slice(), &self.processes)?;
        let reward = Summary::of(&scores.weighted_sum());
        seconds.reward = lap(&mut clock);
        let warnings = self.check_rewards(&scores, n, reward)?;

        meter.phase("training");
        let trajectories = trajectories.shared(share, prompts, &self.processes)?;
        let advantages = self.advantages(&trajectories.prompts, &scores, n);
        let update = self.update(epoch, &trajectories, &advantages, &mut meter)?;
        seconds.train = lap(&mut clock);
        tracing::debug!("epoch {epoch}: max |ratio - 1| over the first update is {:.2e}", update.ratio_error);
        if epoch == 1 {
            tracing::info!("ratio check: max |ratio - 1| = {:.1e} over the first update", update.ratio_error);
        }

        let record = FineTuneEpoch {
            reward_mean: reward.mean,
            reward_std: reward.std,
            reward_min: reward.min,
            reward_max: reward.max,
            rewards: means_by_plugin(&scores),
            skipped: scores.skipped as u64,
            update,
            images_per_second: n as f64 / seconds.total(),
            seconds,
            energy: self.energy_of_all(energy.and_then(Running::stop))?,
        };
        let kept = self.kept_images(&trajectories.prompts, images, &scores)?;
        Ok(Trained { message: format!("reward {:.4}", record.reward_mean), record, warnings, kept })
    }

    /// Samples and scores the fixed prompts and noise, with the EMA of the LoRA if there is one. None if a plugin
    /// failed on some samples and failures are to be skipped.
    fn monitor(&mut self, epoch: u64) -> Result<Option<Monitored<FineTuneMonitor>>> {
        let n = self.config.monitor.count;
        let share = self.share(n);
        let (prompts, images) = self.monitor_images(n)?;
        let samples = self.samples(&prompts[share.clone()], &images, share.start, epoch);
        let held_out: Vec<String> = self.held_out().map(str::to_owned).collect();
        let mut more: Vec<Column> = held_out.iter().cloned().map(Column::Plugin).collect();
        more.push(self.embedding_column());
        let scores = self.evaluator.score(samples, share.start, &more, &self.processes)?;
        if scores.skipped > 0 {
            return Ok(None);
        }
        let rewards = scores.weighted_sum();
        let mean = |values: &[f64]| Summary::of(values).mean;
        let embeddings = scores.measured.rows(&self.embedding_column()).mapv(|value| value as f32);
        let (vendi, diversity) = vendi_and_mean_distance(embeddings.view());
        let rows = self.classifier().map(|name| {
            let rows = scores.measured.rows(&Column::Plugin(name));
            rows.rows().into_iter().map(|row| row.to_vec()).collect::<Vec<_>>()
        });
        let mean_of =
            |f: fn(&[f64]) -> f64| rows.as_ref().map(|rows| mean(&rows.iter().map(|row| f(row)).collect::<Vec<_>>()));
        // A held-out plugin that failed has no rewards.
        let of_held_out = |name: String| Some((name.clone(), scores.measured.rewards_of(&name)?));
        let held_out_rewards: BTreeMap<String, Vec<f64>> = held_out.into_iter().filter_map(of_held_out).collect();
        let shown = self.images_of_all(&images, SHEET_CELLS)?;
        let cells = shown.iter().zip(&rewards).enumerate().map(|(i, (image, &reward))| Cell {
            image: RgbImage::clone(image),
            title: self.title(prompts[i]).to_owned(),
            value: Some(reward),
        });
        let values = Values { name: "reward", mean: mean(&rewards), count: rewards.len() };
        let sheet = grid::contact_sheet(epoch, &cells.collect::<Vec<_>>(), values);
        if self.first.is_none() {
            self.warn_of_opposition(&scores);
        }
        let of_now = || First { diversity, rewards: rewards.clone(), held_out: held_out_rewards.clone() };
        let first_diversity = self.first.get_or_insert_with(of_now).diversity;
        Ok(Some(Monitored {
            score: Some(mean(&rewards)),
            diversity: Some(diversity / first_diversity),
            sheet: Some(sheet),
            images: Vec::new(),
            kept: self.kept_images(&prompts, images, &scores)?,
            record: FineTuneMonitor {
                reward_mean: mean(&rewards),
                reward_sem: standard_error(&rewards),
                plugin_rewards: means_by_plugin(&scores),
                entropy: mean_of(entropy),
                max_probability: mean_of(max_probability),
                diversity,
                vendi: Some(vendi),
                held_out: held_out_rewards.iter().map(|(name, rewards)| (name.clone(), mean(rewards))).collect(),
                rewards,
                held_out_rewards,
                styles: self.classifier().zip(rows.as_deref()).map(|(plugin, rows)| styles_monitor(plugin, rows)),
            },
        }))
    }

    fn warnings(
        &self,
        _epoch: u64,
        trained: &FineTuneEpoch,
        monitor: Option<&FineTuneMonitor>,
        _best_diversity: f64,
    ) -> Vec<String> {
        let mut warnings = health::of_update(&trained.update, &self.config);
        let share = monitor.zip(self.first.as_ref()).map(|(monitor, first)| monitor.diversity / first.diversity);
        let minimum = self.config.monitor.min_diversity;
        warnings.extend(share.filter(|share| *share < minimum).map(|share| {
            format!(
                "diversity is {:.0} % of the untrained model's (monitor.min_diversity is {:.0} %): the model collapses onto \
                 few images; best/ contains the last good LoRA, and train.kl or fewer epochs counteract the collapse",
                100.0 * share,
                100.0 * minimum
            )
        }));
        warnings.extend(monitor.zip(self.first.as_ref()).and_then(|(monitor, first)| first.hacking(monitor)));
        warnings
    }

    /// Changes the learning rate or the weight of the KL divergence, as the configuration says.
    fn counteract(&mut self) -> Option<String> {
        self.counteracted += 1;
        self.apply_counteracting()
    }

    fn state(&self) -> Result<State> {
        let mut state = State { files: vec![(LORA_FILE, self.lora.to_bytes()?)], ..State::default() };
        add_under(&mut state.tensors, "optimizer", self.optimizer.state());
        if let Some(ema) = &self.ema {
            let tensors = ema.tensors().iter().map(|(name, tensor)| (name, tensor.shallow_clone()));
            add_under(&mut state.tensors, "ema", tensors);
        }
        state.metadata = vec![
            ("model", self.model_digest.clone()),
            ("prompt_statistics", serde_json::to_string(&self.prompt_statistics)?),
            ("first", serde_json::to_string(&self.first)?),
            ("first_vendi", serde_json::to_string(&self.first_vendi)?),
            ("counteracted", self.counteracted.to_string()),
            ("dropped_in_a_row", self.guard.dropped_in_a_row.to_string()),
        ];
        Ok(state)
    }

    fn restore(&mut self, saved: &Saved, claim: &Claim) -> Result<()> {
        let before = saved.text("model")?;
        if before != self.model_digest {
            let (run, path, now) = (claim.folder().display(), &self.config.model.path, &self.model_digest);
            claim
                .refuse(anyhow!("{run}: the run was started with a model of digest {before}, but {path} has {now}"))?;
        }
        self.lora.load_values(&read_safetensors(&saved.folder.join(LORA_FILE))?)?;
        self.optimizer.load_state(&under(&saved.tensors, "optimizer"))?;
        if let Some(ema) = &mut self.ema {
            match under(&saved.tensors, "ema") {
                // The run had no EMA so far, and the user insists.
                saved if saved.is_empty() => {
                    ema.load(
                        &self.optimizer.parameters().iter().map(|(name, t)| (name.clone(), t.detach())).collect(),
                    )?;
                }
                saved => ema.load(&saved).context("train.ema")?,
            }
        }
        self.prompt_statistics = saved.json("prompt_statistics")?;
        self.first = saved.json("first")?;
        if self.config.train.vendi_target > 0.0 {
            self.first_vendi = saved.json("first_vendi").context("train.vendi_target")?;
        }
        self.counteracted = saved.json("counteracted")?;
        self.apply_counteracting();
        self.guard.dropped_in_a_row = saved.json("dropped_in_a_row")?;
        Ok(())
    }

    /// The newest LoRA: its EMA if there is one.
    fn products(&mut self) -> Result<Vec<(String, Vec<u8>)>> {
        let bytes = self.averaged(|task| Ok(task.lora.to_bytes()?))?;
        Ok(vec![(LORA_FILE.to_owned(), bytes)])
    }

    /// The before/after comparison: images of the untrained and the trained model from the same prompts and noise.
    fn last_images(&mut self, ends: &Ends<FineTuneMonitor>) -> Result<Vec<(&'static str, Sheet)>> {
        let n = COMPARED.min(self.config.monitor.count);
        let (prompts, after) = self.monitor_images(n)?;
        self.lora.enable(&mut self.policy.unet, false);
        let before = self.monitor_images(n);
        self.lora.enable(&mut self.policy.unet, true);
        let (before, after) = (self.images_of_all(&before?.1, n)?, self.images_of_all(&after, n)?);
        if !self.processes.is_first() {
            return Ok(vec![]);
        }
        let owned = |images: Vec<Arc<RgbImage>>| images.into_iter().map(Arc::unwrap_or_clone).collect::<Vec<_>>();
        let titles: Vec<&str> = prompts.iter().map(|&prompt| self.title(prompt)).collect();
        let rewards = ends.first.rewards.iter().copied().zip(ends.last.rewards.iter().copied());
        let compared = grid::compare(&owned(before), &owned(after), &titles, &rewards.collect::<Vec<_>>());
        Ok(vec![(BEFORE_AFTER, compared)])
    }
}

/// Returns the mean reward of each plugin.
fn means_by_plugin(scores: &Scores) -> BTreeMap<String, f64> {
    scores.plugins.iter().map(|plugin| (plugin.name.clone(), Summary::of(&plugin.rewards).mean)).collect()
}

impl FineTune {
    /// Returns the upper bound of the reward.
    pub fn upper_bound(&self) -> Option<f64> {
        self.evaluator.upper_bound()
    }

    /// The column of the embeddings by which diversity is measured.
    fn embedding_column(&self) -> Column {
        Column::Embedding(self.diversity_encoder.clone())
    }

    /// The names of the held-out plugins.
    fn held_out(&self) -> impl Iterator<Item = &str> {
        self.evaluator.plugins().filter(|plugin| plugin.weight.is_none()).map(|plugin| plugin.name)
    }

    /// The name of the first classifier of the reward.
    fn classifier(&self) -> Option<String> {
        let mut plugins = self.evaluator.plugins();
        plugins.find(|plugin| plugin.weight.is_some() && !plugin.styles.is_empty()).map(|plugin| plugin.name.to_owned())
    }

    /// Warns of plugins that oppose the reward on the untrained model's images: those of the reward itself, and those held out.
    fn warn_of_opposition(&self, scores: &Scores) {
        let names: Vec<(String, bool)> =
            self.evaluator.plugins().map(|plugin| (plugin.name.to_owned(), plugin.weight.is_none())).collect();
        let of_plugin = |(name, _): &(String, bool)| Some((name.clone(), scores.measured.rewards_of(name)?));
        let plugins: Vec<(String, Vec<f64>)> = names.iter().filter_map(of_plugin).collect();
        let is_held_out = |name: &str| names.iter().any(|(other, held_out)| other == name && *held_out);
        for agreement in Agreement::of_all(&plugins) {
            let concerns_reward = !(is_held_out(&agreement.a) && is_held_out(&agreement.b));
            if let Some(warning) = agreement.warning().filter(|_| concerns_reward) {
                tracing::warn!("{warning}");
            }
        }
    }

    /// Applies what the run does against a collapse, of which it has found `counteracted`; returns what that is.
    fn apply_counteracting(&mut self) -> Option<String> {
        match self.config.monitor.on_collapse {
            OnCollapse::LowerLearningRate => {
                let learning_rate = self.config.train.learning_rate * 0.5f64.powi(self.counteracted as i32);
                self.optimizer.set_learning_rate(learning_rate);
                Some(format!("the learning rate is halved to {learning_rate:e} against the collapse"))
            }
            OnCollapse::RaiseKl => {
                let kl = counteracting_kl(&self.config, self.counteracted);
                Some(format!("the weight of the KL divergence is raised to {kl} against the collapse"))
            }
            OnCollapse::Warn | OnCollapse::Stop => None,
        }
    }

    /// Returns the images on which every plugin ran, if they are to be kept.
    fn kept_images(
        &self,
        prompts: &[usize],
        images: Vec<Arc<RgbImage>>,
        scores: &Scores,
    ) -> Result<Option<KeptImages>> {
        let format = match self.config.run.keep_images {
            KeepImages::None => return Ok(None),
            KeepImages::Png => ImageFormat::Png,
            KeepImages::Webp => ImageFormat::Webp,
        };
        let images = self.images_of_all(&images, prompts.len())?;
        if images.is_empty() {
            return Ok(None);
        }
        let rewards = scores.weighted_sum();
        let kept = scores.kept.iter().enumerate().map(|(row, &i)| KeptImage {
            image: Arc::clone(&images[i]),
            prompt: self.prompts.all()[prompts[i]].clone(),
            reward: rewards[row],
            rewards: scores.plugins.iter().map(|plugin| (plugin.name.clone(), plugin.rewards[row])).collect(),
        });
        Ok(Some(KeptImages { format, images: kept.collect() }))
    }

    /// Returns this process's share of `n` samples.
    fn share(&self, n: usize) -> Range<usize> {
        self.processes.share(n, self.config.sample.batch_size)
    }

    /// Returns the first `most` images of all processes, each of which has its own share; none but in the first process.
    fn images_of_all(&self, images: &[Arc<RgbImage>], most: usize) -> Result<Vec<Arc<RgbImage>>> {
        if self.processes.count() == 1 {
            return Ok(images.iter().take(most).cloned().collect());
        }
        let start = self.processes.gather(images.len())?[..self.processes.rank()].iter().sum::<usize>();
        let wanted = images.iter().take(most.saturating_sub(start));
        let raw: Vec<_> = wanted.map(|image| (image.width(), image.height(), image.as_raw().clone())).collect();
        let Some(all) = self.processes.gather_to_first(raw)? else { return Ok(vec![]) };
        let image = |(width, height, raw)| {
            RgbImage::from_raw(width, height, raw).map(Arc::new).context("an image of another process is incomplete")
        };
        all.concat().into_iter().map(image).collect()
    }

    /// Returns the energy that all processes used, of which this one used `own`.
    fn energy_of_all(&self, own: Option<Energy>) -> Result<Option<Energy>> {
        // The counters of a machine's CPUs count all its processes.
        let counts = |energy: &Energy| energy.source != Source::Rapl || self.processes.is_first_of_machine();
        let all = self.processes.gather(own.filter(counts))?;
        Ok(Energy::sum(all.into_iter().flatten()))
    }

    fn rollout(&self, prompts: &[usize], noise: &mut SeededNoise, done: &mut dyn FnMut(usize)) -> Result<Trajectories> {
        rollout(&self.policy, prompts, noise, self.config.sample.micro_batch, &self.interrupt, done)
    }

    fn decode(&self, trajectories: &Trajectories) -> Result<Vec<Arc<RgbImage>>> {
        let mut images = Vec::new();
        for latents in trajectories.last().split(DECODE_SLICE, 0) {
            self.interrupt.check("")?;
            images.extend(rgb_images(&images_u8(&no_grad(|| self.vae.decode_latents(&latents, DECODE_SLICE))))?);
        }
        Ok(images)
    }

    /// Returns the samples of a share of prompts and images that begins at `start`.
    fn samples(&self, prompts: &[usize], images: &[Arc<RgbImage>], start: usize, epoch: u64) -> Vec<Sample> {
        let sample = |(i, (&prompt, image)): (usize, (&usize, &Arc<RgbImage>))| Sample {
            prompt: self.prompts.all()[prompt].clone(),
            metadata: BTreeMap::from([
                ("seed".to_owned(), self.config.run.seed.to_string()),
                ("epoch".to_owned(), epoch.to_string()),
                ("sample".to_owned(), (start + i).to_string()),
            ]),
            image: Some(Arc::clone(image)),
            ..Sample::default()
        };
        prompts.iter().zip(images).enumerate().map(sample).collect()
    }

    fn title(&self, prompt: usize) -> &str {
        match self.prompts.all()[prompt].as_str() {
            "" => "(no prompt)",
            prompt => prompt,
        }
    }

    /// Returns the first `n` of the monitor's fixed prompts, and the images of this process's share of them.
    fn monitor_images(&mut self, n: usize) -> Result<(Vec<usize>, Vec<Arc<RgbImage>>)> {
        let prompts: Vec<usize> = (0..n).map(|i| self.prompts.monitored(i)).collect();
        let share = self.share(n);
        if share.is_empty() {
            // There are more processes than images to compare.
            return Ok((prompts, vec![]));
        }
        let mut noise = SeededNoise::of_monitor(self.latent_shape, self.config.run.seed, share.clone());
        let trajectories = self.averaged(|task| task.rollout(&prompts[share], &mut noise, &mut |_| {}))?;
        let images = self.decode(&trajectories)?;
        Ok((prompts, images))
    }

    /// Runs `action` with the EMA of the LoRA in place of the trained weights, if there is an EMA.
    fn averaged<R>(&mut self, action: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let Some(ema) = &self.ema else { return action(self) };
        let trained: NamedTensors =
            self.lora.parameters().into_iter().map(|(name, tensor)| (name, tensor.detach().copy())).collect();
        self.lora.load_values(ema.tensors())?;
        let result = action(self);
        self.lora.load_values(&trained)?;
        result
    }

    /// Returns the advantage of each sample; none for samples that a plugin failed on.
    fn advantages(&mut self, prompts: &[usize], scores: &Scores, n: usize) -> Vec<Option<f64>> {
        let train = &self.config.train;
        let mut rewards = combine(&scores.plugins, train.reward_normalization);
        if train.vendi_weight > 0.0 {
            let added = contributions_to_vendi(scores.measured.rows(&self.embedding_column()).view());
            let vendi = Summary::of(&added).mean.exp();
            let first = *self.first_vendi.get_or_insert(vendi);
            let weight = vendi_weight(train, vendi / first);
            tracing::debug!(
                "the samples' Vendi score is {vendi:.2}, {:.2} of the first epoch's: its weight is {weight:.2}",
                vendi / first
            );
            let reward = |name: &str, weight, rewards| PluginRewards { name: name.to_owned(), weight, rewards };
            let both = [reward("reward", 1.0, rewards), reward("vendi", weight, added)];
            rewards = combine(&both, RewardNormalization::Zscore);
        }
        let kept_prompts: Vec<usize> = scores.kept.iter().map(|&i| prompts[i]).collect();
        let mut values = match train.per_prompt_statistics {
            true => self.prompt_statistics.advantages(&kept_prompts, &rewards, train.advantage_clip),
            false => advantages(&rewards, train.advantage_clip),
        };
        if train.diversity_weight > 0.0 {
            let nearest = nearest_in_group(scores.measured.rows(&self.embedding_column()).view(), &kept_prompts);
            weight_by_diversity(&mut values, &nearest, train.diversity_weight);
        }
        let mut all = vec![None; n];
        for (&i, value) in scores.kept.iter().zip(values) {
            all[i] = Some(value);
        }
        all
    }

    fn update(
        &mut self,
        epoch: u64,
        trajectories: &Trajectories,
        advantages: &[Option<f64>],
        meter: &mut Meter<'_>,
    ) -> Result<UpdateStatistics> {
        let Self { config, policy, lora, optimizer, guard, ema, interrupt, counteracted, processes, .. } = self;
        let mut after_step = |optimizer: &AdamW| match ema {
            Some(ema) => ema.update(optimizer.parameters()),
            None => Ok(()),
        };
        let mut done = |rows| meter.trained(rows);
        let mut hooks = Hooks { interrupt, done: &mut done, after_step: &mut after_step };
        let train = Train { kl: counteracting_kl(config, *counteracted), ..config.train.clone() };
        let mut ddpo = Ddpo { policy, lora, config: &train, n_timesteps: config.n_train_timesteps(), processes };
        ddpo.train_epoch(optimizer, guard, trajectories, advantages, (config.run.seed, epoch), &mut hooks)
    }

    fn check_rewards(&self, scores: &Scores, n: usize, reward: Summary) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let (share, allowed) = (scores.skipped as f64 / n as f64, self.config.plugin.max_skipped);
        ensure!(
            share <= allowed && scores.kept.len() > 1,
            "plugins failed on {} of {n} samples, more than plugin.max_skipped = {allowed} allows: fix the plugin (try `host \
             plugin classify`) or raise the share",
            scores.skipped
        );
        if scores.skipped > 0 {
            let n = counted(scores.skipped as u64, "sample");
            let (were, them) = if scores.skipped == 1 { ("was", "it") } else { ("were", "them") };
            warnings.push(format!("{n} {were} left out because a plugin failed on {them}"));
        }
        if reward.std < MIN_REWARD_STD {
            warnings.push(format!(
                "all rewards are {:.6}, so there is no learning signal: does the plugin return the same distribution \
                 for every image? Try `host plugin classify` on different images",
                reward.mean
            ));
        }
        Ok(warnings)
    }
}

fn lap(clock: &mut Instant) -> f64 {
    let seconds = clock.elapsed().as_secs_f64();
    *clock = Instant::now();
    seconds
}
