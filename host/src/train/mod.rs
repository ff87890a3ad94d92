//! `host train`: the main loop of DDPO fine-tuning.
//!
//! An epoch samples trajectories, decodes and judges them, and updates the LoRA. All randomness is a function of
//! (seed, epoch, sample), so a checkpoint needs no generator's state: adapter, optimizer and counters are enough to go
//! on bit by bit.

mod meter;
mod plan;
mod record;
mod score;
mod setup;
mod start;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ambiguity_models::lora::Lora;
use ambiguity_models::params::NamedTensors;
use ambiguity_models::pipeline::{Pipeline, images_u8};
use ambiguity_models::scheduler::{Ddim, LastStep};
use anyhow::{Context as _, Result, bail};
use image::RgbImage;
use tch::{Device, Tensor, no_grad};
use torch_ext::AdamW;

use crate::config::{Config, OnCollapse};
use crate::data::prompts::PromptSet;
use crate::ddpo::{Ddpo, Hooks, UpdateStatistics};
use crate::interrupt::Interrupt;
use crate::plugin::Sample;
use crate::progress::{Bar, Progress as ProgressBars};
use crate::reward::{Summary, advantages, combine, paired_rise, standard_error};
use crate::run::{Cell, RunDir, Values, grid};
use crate::sampler::{Denoiser, Sampler, SeededNoise, TextStates, Trajectories};

pub use plan::{Measured, Plan, available_memory, gibibytes, measure, peak_memory};
pub use record::{EpochRecord, MonitorRecord, Seconds, TrainedRecord};
pub use score::{Scorer, Scores, locked};
pub use setup::{encoder_folder, encoders, model_folder, native_size};
pub use start::{Claim, Diverged, Start, stopped};

use meter::Meter;
use record::Progress;

/// The command that fine-tunes.
pub const COMMAND: &str = "host train";
/// The largest |ratio − 1| of a first update that f32 arithmetic explains.
const MAX_RATIO_ERROR: f64 = 1e-5;
/// Rewards that spread less than this are all the same.
const MIN_REWARD_STD: f64 = 1e-9;
/// Optimizer steps dropped in a row before the run stops.
const MAX_DROPPED_STEPS: usize = 3;
/// Latents decoded at once.
const DECODE_SLICE: i64 = 16;
/// Images in a grid.
const GRID_CELLS: usize = 32;
/// Images in the comparison of before and after.
const COMPARED: usize = 16;
/// Name of the adapter's file.
const LORA_FILE: &str = ambiguity_models::lora::LORA_FILE;
/// Name of the optimizer's and counters' file.
const STATE_FILE: &str = "state.safetensors";
/// Name of the best adapter's file in a checkpoint.
const BEST_FILE: &str = "best.safetensors";

/// A run in progress.
pub struct Trainer {
    config: Config,
    pipeline: Pipeline,
    lora: Lora,
    optimizer: AdamW,
    /// Moving average of the adapter, where there is one.
    average: Option<NamedTensors>,
    /// The adapter with the highest monitored reward, as best/ has it.
    best: Option<Vec<u8>>,
    ddim: Ddim,
    text: TextStates,
    prompts: PromptSet,
    scorer: Scorer,
    device: Device,
    latent_shape: [i64; 3],
    /// What tells the model's weights from others'.
    model_digest: String,
    run: RunDir,
    progress: Progress,
    bars: ProgressBars,
    interrupt: Interrupt,
    /// The last finished epoch's checkpoint, kept until it is on the disk.
    unsaved: Option<Unsaved>,
}

/// A checkpoint that is not on the disk yet.
struct Unsaved {
    epoch: u64,
    files: Vec<(&'static str, Vec<u8>)>,
}

/// What a finished run has to say.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The monitor of the untrained model.
    pub first: MonitorRecord,
    /// The last monitor.
    pub last: MonitorRecord,
    /// Mean of the paired differences of the fixed samples, and its standard error.
    pub rise: (f64, f64),
    /// The highest reward there can be.
    pub ceiling: f64,
    /// Whether it ended early since the model collapsed.
    pub collapsed: bool,
}

impl Outcome {
    /// For `--json`.
    pub fn to_json(&self, folder: &Path) -> serde_json::Value {
        serde_json::json!({
            "run": folder, "first": self.first, "last": self.last, "rise": self.rise.0, "rise_sem": self.rise.1,
            "ceiling": self.ceiling, "collapsed": self.collapsed,
        })
    }
}

impl Trainer {
    /// Trains until the last epoch, a collapse that is to stop it, or an interrupt.
    pub fn run(mut self) -> Result<Outcome> {
        let mut first = self.recorded_monitor(0)?;
        if first.is_none() {
            let monitor = self.monitor(0)?.context(
                "plugins failed on some of the monitor's samples before training began: mend the plugin (try `host plugin \
                 classify`)",
            )?;
            self.run.append_metrics(&EpochRecord {
                epoch: 0,
                trained: None,
                monitor: Some(monitor.clone()),
                warnings: Vec::new(),
            })?;
            first = Some(monitor);
        }
        let first = first.expect("it was recorded or just measured");
        self.progress.first_diversity = Some(first.diversity);
        let mut last = first.clone();
        let mut collapsed = false;
        let bar = self.epoch_bar();
        while self.progress.epoch < self.config.train.epochs && !collapsed {
            let epoch = self.progress.epoch + 1;
            let monitor = match self.epoch(epoch, &bar) {
                Ok(Some((monitor, warned_of_collapse))) => {
                    collapsed = warned_of_collapse && self.config.monitor.on_collapse == OnCollapse::Stop;
                    monitor
                }
                Ok(None) => return Err(self.keep_and_stop(None)),
                Err(error) => return Err(self.keep_and_stop(Some(error))),
            };
            last = monitor.unwrap_or(last);
        }
        bar.finish();
        self.save_unsaved()?;
        if self.progress.epoch > 0 {
            self.save_comparison(&first, &last)?;
        }
        self.run.write_report()?;
        let rise = paired_rise(&first.rewards, &last.rewards);
        Ok(Outcome { first, last, rise, ceiling: self.scorer.ceiling(), collapsed })
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        self.run.path()
    }

    /// One epoch: sample, judge, learn, write down. `None` if interrupted.
    fn epoch(&mut self, epoch: u64, bar: &Bar) -> Result<Option<(Option<MonitorRecord>, bool)>> {
        let n = self.config.sample.per_epoch();
        let mut meter = Meter::new(bar, &self.config, epoch);
        let mut clock = Instant::now();
        let prompts: Vec<usize> = (0..n as u64).map(|i| self.prompts.draw(self.config.run.seed, epoch, i)).collect();
        let mut noise = SeededNoise::of_epoch(self.latent_shape, self.config.run.seed, epoch, n);
        meter.phase("sampling");
        let sampled = self.sampler().sample(&prompts, &mut noise, &self.interrupt, &mut |rows| meter.sampled(rows))?;
        let Some(trajectories) = sampled else { return Ok(None) };
        let mut seconds = Seconds { sample: lap(&mut clock), ..Seconds::default() };

        meter.phase("judging");
        let images = self.decode(&trajectories)?;
        let samples = self.samples(&trajectories.prompts, &images, epoch);
        let scores = self.scorer.score(samples)?;
        let summary = Summary::of(&scores.weighted_sum());
        seconds.reward = lap(&mut clock);
        let mut warnings = self.check_rewards(&scores, n, summary)?;

        meter.phase("training");
        let advantages = self.advantages(&trajectories.prompts, &scores, n);
        let Some(update) = self.update(epoch, &trajectories, &advantages, &mut meter)? else { return Ok(None) };
        seconds.train = lap(&mut clock);
        self.check_update(epoch, &update, &mut warnings)?;

        self.progress.epoch = epoch;
        let rewards = scores.plugins.iter().map(|plugin| (plugin.name.clone(), Summary::of(&plugin.rewards).mean));
        let trained = TrainedRecord::new(summary, rewards.collect(), scores.skipped, update, n, seconds);
        let is_last = epoch == self.config.train.epochs;
        let mut monitor = None;
        let mut collapsed = false;
        if is_last || epoch.is_multiple_of(self.config.monitor.every) {
            meter.phase("looking");
            monitor = self.monitor(epoch)?;
            match &monitor {
                Some(record) => collapsed = self.check_collapse(record, &mut warnings),
                None => warnings.push(
                    "the monitor was left out: a plugin failed on some of its samples, and a rise is measured on the same \
                     ones each time"
                        .to_owned(),
                ),
            }
        }
        for warning in &warnings {
            tracing::warn!("epoch {epoch}: {warning}");
        }
        bar.message(format!("epoch {epoch}: reward {:.4}", trained.reward_mean));
        self.finish_epoch(
            EpochRecord { epoch, trained: Some(trained), monitor: monitor.clone(), warnings },
            collapsed,
        )?;
        Ok(Some((monitor, collapsed)))
    }

    /// Metrics, best, newest, checkpoint: in this order, so that a run killed between two of them replays the epoch.
    fn finish_epoch(&mut self, record: EpochRecord, collapsed: bool) -> Result<()> {
        let epoch = record.epoch;
        let lora = self.lora_bytes()?;
        if let Some(monitor) = &record.monitor
            && !collapsed
            && self.progress.best_reward.is_none_or(|best| monitor.reward_mean > best)
        {
            self.progress.best_reward = Some(monitor.reward_mean);
            self.best = Some(lora.clone());
            self.publish_best()?;
        }
        self.run.append_metrics(&record)?;
        let mut files = vec![(LORA_FILE, self.raw_lora_bytes()?), (STATE_FILE, self.state_bytes()?)];
        files.extend(self.best.clone().map(|best| (BEST_FILE, best)));
        self.unsaved = Some(Unsaved { epoch, files });
        if epoch.is_multiple_of(self.config.checkpoint.every) || epoch == self.config.train.epochs || collapsed {
            self.save_unsaved()?;
        }
        Ok(self.run.publish(LORA_FILE, &lora)?)
    }

    /// `best/`, as it is at this epoch: another one's may stand there, which the run was taken back from.
    fn publish_best(&mut self) -> Result<()> {
        let name = format!("best/{LORA_FILE}");
        match &self.best {
            Some(best) => Ok(self.run.publish(&name, best)?),
            None if self.progress.best_reward.is_none() => Ok(self.run.unpublish(&name)?),
            // A checkpoint of an earlier version does not have it.
            None => Ok(()),
        }
    }

    fn save_unsaved(&mut self) -> Result<()> {
        if let Some(Unsaved { epoch, files }) = &self.unsaved {
            let keep = match self.config.checkpoint.keep {
                0 => usize::MAX,
                keep => keep,
            };
            self.run.save_checkpoint(*epoch, files, keep)?;
            self.unsaved = None;
        }
        Ok(())
    }

    /// Drops the part epoch, keeps the last whole one, and says how to go on.
    fn keep_and_stop(&mut self, cause: Option<anyhow::Error>) -> anyhow::Error {
        let saved = self.save_unsaved();
        let epochs = (self.progress.epoch + 1, self.config.train.epochs);
        stopped(&mut self.run, COMMAND, epochs, saved, cause)
    }

    fn denoiser(&self) -> Denoiser<'_> {
        Denoiser { unet: &self.pipeline.unet, text: &self.text, guidance: self.config.sample.guidance }
    }

    fn sampler(&self) -> Sampler<'_> {
        Sampler {
            denoiser: self.denoiser(),
            ddim: &self.ddim,
            eta: self.config.sample.eta,
            last_step: LastStep::Stochastic,
            micro_batch: self.config.sample.micro_batch,
            device: self.device,
        }
    }

    fn decode(&self, trajectories: &Trajectories) -> Result<Vec<Arc<RgbImage>>> {
        let images = no_grad(|| self.pipeline.decode(&trajectories.last(), DECODE_SLICE));
        rgb_images(&images_u8(&images))
    }

    fn samples(&self, prompts: &[usize], images: &[Arc<RgbImage>], epoch: u64) -> Vec<Sample> {
        let sample = |(i, (&prompt, image)): (usize, (&usize, &Arc<RgbImage>))| Sample {
            prompt: self.prompts.all()[prompt].clone(),
            metadata: BTreeMap::from([
                ("seed".to_owned(), self.config.run.seed.to_string()),
                ("epoch".to_owned(), epoch.to_string()),
                ("sample".to_owned(), i.to_string()),
            ]),
            image: Some(Arc::clone(image)),
            ..Sample::default()
        };
        prompts.iter().zip(images).enumerate().map(sample).collect()
    }

    fn advantages(&mut self, prompts: &[usize], scores: &Scores, n: usize) -> Vec<Option<f64>> {
        let rewards = combine(&scores.plugins, self.config.train.reward_normalization);
        let clip = self.config.train.advantage_clip;
        let kept_prompts: Vec<usize> = scores.kept.iter().map(|&i| prompts[i]).collect();
        let values = if self.config.train.per_prompt_statistics {
            self.progress.prompt_statistics.advantages(&kept_prompts, &rewards, clip)
        } else {
            advantages(&rewards, clip)
        };
        let mut of_samples = vec![None; n];
        for (&i, value) in scores.kept.iter().zip(values) {
            of_samples[i] = Some(value);
        }
        of_samples
    }

    fn update(
        &mut self,
        epoch: u64,
        trajectories: &Trajectories,
        advantages: &[Option<f64>],
        meter: &mut Meter<'_>,
    ) -> Result<Option<UpdateStatistics>> {
        let mut ddpo = Ddpo {
            unet: &mut self.pipeline.unet,
            text: &self.text,
            guidance: self.config.sample.guidance,
            lora: &self.lora,
            ddim: &self.ddim,
            eta: self.config.sample.eta,
            config: &self.config.train,
            n_timesteps: self.config.n_train_timesteps(),
        };
        let decay = self.config.train.ema;
        let parameters = self.lora.parameters();
        let average = &mut self.average;
        let mut after_step = || {
            let Some(average) = average else { return };
            no_grad(|| {
                for (name, value) in &parameters {
                    let mean = average.get_mut(name).expect("the average was made from these parameters");
                    *mean = &*mean * decay + value * (1.0 - decay);
                }
            });
        };
        let seeds = (self.config.run.seed, epoch);
        let mut done = |rows| meter.trained(rows);
        let mut hooks = Hooks { interrupt: &self.interrupt, done: &mut done, after_step: &mut after_step };
        ddpo.train_epoch(&mut self.optimizer, trajectories, advantages, seeds, &mut hooks)
    }

    fn check_rewards(&self, scores: &Scores, n: usize, summary: Summary) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let share = scores.skipped as f64 / n as f64;
        if share > self.config.plugin.max_skipped || scores.kept.len() < 2 {
            bail!(
                "plugins failed on {} of {n} samples, more than plugin.max_skipped = {} allows: mend the plugin (try `host \
                 plugin classify`) or raise the share",
                scores.skipped,
                self.config.plugin.max_skipped
            );
        }
        if scores.skipped > 0 {
            warnings.push(format!("{} samples were left out since a plugin failed on them", scores.skipped));
        }
        if summary.std < MIN_REWARD_STD {
            warnings.push(format!(
                "all rewards are {:.6}, so there is nothing to learn from: does the plugin give every image the same \
                 distribution? Try `host plugin classify` on different images",
                summary.mean
            ));
        }
        Ok(warnings)
    }

    fn check_update(&mut self, epoch: u64, update: &UpdateStatistics, warnings: &mut Vec<String>) -> Result<()> {
        tracing::debug!("epoch {epoch}: max |ratio - 1| over the first update is {:.2e}", update.ratio_error);
        if epoch == 1 {
            tracing::info!("ratio check: max |ratio - 1| = {:.1e} over the first update", update.ratio_error);
        }
        if update.ratio_error > MAX_RATIO_ERROR {
            warnings.push(format!(
                "ratios of the first update are off 1 by {:.1e} (f32 gives less than {MAX_RATIO_ERROR:.0e}): sampling and \
                 training do not compute the same, which a clip range of {} does not forgive; use model.dtype = \"f32\" or the \
                 same micro_batch for both",
                update.ratio_error, self.config.train.clip_range
            ));
        }
        if update.clip_fraction > 0.5 {
            warnings.push(format!(
                "{:.0} % of ratios were clipped: lower train.learning_rate or widen train.clip_range",
                100.0 * update.clip_fraction
            ));
        }
        if update.dropped_steps == 0 {
            self.progress.dropped_in_a_row = 0;
            return Ok(());
        }
        warnings.push(format!("{} optimizer steps were dropped, their gradient was not finite", update.dropped_steps));
        self.progress.dropped_in_a_row += update.dropped_steps;
        if self.progress.dropped_in_a_row >= MAX_DROPPED_STEPS {
            let what = format!("{} optimizer steps in a row had no finite gradient", self.progress.dropped_in_a_row);
            bail!(Diverged { what, lower: "train.learning_rate" });
        }
        Ok(())
    }

    fn check_collapse(&self, monitor: &MonitorRecord, warnings: &mut Vec<String>) -> bool {
        let first = self.progress.first_diversity.unwrap_or(monitor.diversity);
        let share = monitor.diversity / first;
        let collapsed = share < self.config.monitor.min_diversity;
        if collapsed {
            warnings.push(format!(
                "diversity is {:.0} % of the untrained model's (monitor.min_diversity is {:.0} %): the model collapses onto \
                 few images; best/ holds the last good LoRA, and train.kl or fewer epochs hold it back",
                100.0 * share,
                100.0 * self.config.monitor.min_diversity
            ));
        }
        collapsed
    }

    /// Samples and judges the fixed prompts and noise, with the averaged adapter where there is one. None where plugins
    /// failed on some and are to be skipped.
    fn monitor(&mut self, epoch: u64) -> Result<Option<MonitorRecord>> {
        let (prompts, images) = self.monitor_images()?;
        let samples = self.samples(&prompts, &images, epoch);
        let (scores, diversity) = self.scorer.score_and_diversity(samples)?;
        if scores.skipped > 0 {
            return Ok(None);
        }
        let rewards = scores.weighted_sum();
        let summary = Summary::of(&rewards);
        let mean = |values: &[f64]| Summary::of(values).mean;
        let record = MonitorRecord {
            reward_mean: summary.mean,
            reward_sem: standard_error(summary.std, rewards.len() as f64),
            entropy: mean(&scores.entropy),
            max_probability: mean(&scores.max_probability),
            diversity,
            rewards: rewards.clone(),
        };
        let cells: Vec<Cell> = scores
            .kept
            .iter()
            .zip(&rewards)
            .take(GRID_CELLS)
            .map(|(&i, &reward)| self.cell(prompts[i], &images[i], reward))
            .collect();
        self.run.save_grid(epoch, &cells, Values { name: "reward", mean: summary.mean, count: rewards.len() })?;
        Ok(Some(record))
    }

    fn cell(&self, prompt: usize, image: &Arc<RgbImage>, reward: f64) -> Cell {
        Cell { image: RgbImage::clone(image), title: self.title(prompt).to_owned(), value: Some(reward) }
    }

    fn title(&self, prompt: usize) -> &str {
        match self.prompts.all()[prompt].as_str() {
            "" => "(no prompt)",
            prompt => prompt,
        }
    }

    fn monitor_images(&mut self) -> Result<(Vec<usize>, Vec<Arc<RgbImage>>)> {
        let n = self.config.monitor.count;
        let prompts: Vec<usize> = (0..n).map(|i| self.prompts.monitored(i)).collect();
        let mut noise = SeededNoise::of_monitor(self.latent_shape, self.config.run.seed, n);
        let raw = self.average.is_some().then(|| self.lora_values());
        if let Some(average) = &self.average {
            self.lora.load_values(average)?;
        }
        // A monitor is never interrupted: it is short, and half of one is of no use.
        let sampled = self.sampler().sample(&prompts, &mut noise, &Interrupt::default(), &mut |_| {});
        if let Some(raw) = raw {
            self.lora.load_values(&raw)?;
        }
        let trajectories = sampled?.context("the monitor's sampling was not interrupted")?;
        let images = self.decode(&trajectories)?;
        Ok((prompts, images))
    }

    /// The untrained and the trained model's images of the same prompts and noise.
    fn save_comparison(&mut self, first: &MonitorRecord, last: &MonitorRecord) -> Result<()> {
        let (prompts, after) = self.monitor_images()?;
        self.lora.enable(&mut self.pipeline.unet, false);
        let before = self.monitor_images();
        self.lora.enable(&mut self.pipeline.unet, true);
        let (_, before) = before?;
        let images = |images: Vec<Arc<RgbImage>>| -> Vec<RgbImage> {
            images.into_iter().take(COMPARED).map(Arc::unwrap_or_clone).collect()
        };
        let titles: Vec<&str> = prompts.iter().map(|&prompt| self.title(prompt)).collect();
        let rewards: Vec<(f64, f64)> = first.rewards.iter().copied().zip(last.rewards.iter().copied()).collect();
        let image = grid::compare(&images(before), &images(after), &titles, &rewards);
        self.run.save_before_after(&image)?;
        Ok(())
    }

    fn recorded_monitor(&self, epoch: u64) -> Result<Option<MonitorRecord>> {
        Ok(self.run.recorded_monitor(epoch)?.map(serde_json::from_value).transpose()?)
    }

    fn lora_values(&self) -> NamedTensors {
        setup::values(&self.lora)
    }

    /// The adapter as it is published: its average where there is one.
    fn lora_bytes(&mut self) -> Result<Vec<u8>> {
        let Some(average) = &self.average else { return self.raw_lora_bytes() };
        let raw = self.lora_values();
        self.lora.load_values(average)?;
        let bytes = self.lora.to_bytes();
        self.lora.load_values(&raw)?;
        Ok(bytes?)
    }

    fn raw_lora_bytes(&self) -> Result<Vec<u8>> {
        Ok(self.lora.to_bytes()?)
    }

    fn epoch_bar(&self) -> Bar {
        let total = self.config.train.epochs * self.config.sample.per_epoch() as u64;
        let mut bar = self.bars.bar("training", total, "images");
        bar.skip(self.progress.epoch * self.config.sample.per_epoch() as u64);
        bar
    }
}

/// u8 [n, h, w, 3] to images.
pub fn rgb_images(images: &Tensor) -> Result<Vec<Arc<RgbImage>>> {
    let size = images.size();
    let (height, width) = (u32::try_from(size[1])?, u32::try_from(size[2])?);
    let bytes: Vec<u8> = Vec::try_from(images.to_device(Device::Cpu).flatten(0, -1))?;
    let images = bytes.chunks_exact((width * height * 3) as usize).map(|rgb| {
        Arc::new(RgbImage::from_raw(width, height, rgb.to_vec()).expect("the chunk is as long as the image"))
    });
    Ok(images.collect())
}

fn lap(clock: &mut Instant) -> f64 {
    let seconds = clock.elapsed().as_secs_f64();
    *clock = Instant::now();
    seconds
}
