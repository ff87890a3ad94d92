//! The loop that CAN and classifier training share: steps over balanced images, figures, looks at what came of it,
//! checkpoints, and going on from them to the last bit.
//!
//! Every draw of a step comes from a generator seeded by (seed, step), so a checkpoint needs no generator's state:
//! networks, optimizers and the number of finished epochs say everything. An interrupted epoch is replayed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use ambiguity_models::safetensors::{encode_safetensors, read_safetensors_with_metadata};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Device;
use torch_ext::Generator as Randomness;

use super::adversarial::{Adversarial, Judge};
use super::ambiguity::PluginAmbiguity;
use super::config::{CanConfig, Task};
use super::figures::{Sums, in_short};
use super::job::{Job, LEARNING_RATE, Look, Made, Stage};
use super::networks::{DCGAN_PLUGIN, SIMPLE_PLUGIN};
use super::plan::{Measured, Plan, measure};
use super::simple::Simple;
use crate::cli::Context as CommandContext;
use crate::config::OnCollapse;
use crate::data::styles::{StyleBatch, StyleImages};
use crate::interrupt::Interrupt;
use crate::plugin::{PluginHost, cache_folder};
use crate::progress::{Bar, Progress as ProgressBars};
use crate::random::{Purpose, derive_seed};
use crate::run::{PluginsLock, RunDir, RunInfo, Values, confusion_matrix};
use crate::train::{Claim, Diverged, Start, encoders, locked, stopped};

/// Steps after which the figures are read off the device, and looked at for what is no number.
const READ_EVERY: u64 = 10;
/// Steps after which made images should differ: small networks take some hundred. It does not hang on the run's length,
/// since a run that is prolonged is to say the same as one that was so long from the start.
const OVERDUE: u64 = 1000;
/// Training that waits longer than this share of its time for images is told so.
const MUCH_WAITING: f64 = 0.1;
/// Seconds below which an epoch's waiting says nothing.
const SHORT_EPOCH: f64 = 10.0;
/// Name of the checkpoint's file.
const STATE_FILE: &str = "state.safetensors";

/// What, besides tensors, the next epoch depends on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// Finished epochs.
    epoch: u64,
    /// The highest diversity that made images had: what was above `monitor.min_diversity` can collapse.
    #[serde(default)]
    best_diversity: f64,
}

impl Progress {
    /// Takes note of a look's diversity, and says whether it has fallen below `least`.
    fn collapsed(&mut self, diversity: Option<f64>, least: f64) -> bool {
        let Some(diversity) = diversity else { return false };
        let collapsed = self.best_diversity >= least && diversity < least;
        self.best_diversity = self.best_diversity.max(diversity);
        collapsed
    }
}

/// What a finished run has to say.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The plugin in the run's folder, where one was written.
    pub plugin: Option<&'static str>,
    /// What the monitor measured first.
    pub first: Value,
    /// What it measured last.
    pub last: Value,
    /// Finished epochs.
    pub epochs: u64,
    /// Whether it ended early since the generator collapsed.
    pub collapsed: bool,
}

impl Outcome {
    /// For `--json`.
    pub fn to_json(&self, folder: &Path) -> Value {
        json!({
            "run": folder, "epochs": self.epochs, "first": self.first, "last": self.last, "collapsed": self.collapsed,
            "plugin": self.plugin.map(|plugin| folder.join(plugin)), "report": folder.join("report.html"),
        })
    }
}

/// A run in progress.
pub struct Trainer {
    task: Task,
    config: CanConfig,
    data: StyleImages,
    job: Box<dyn Job>,
    device: Device,
    run: RunDir,
    progress: Progress,
    bars: ProgressBars,
    interrupt: Interrupt,
    /// The state after the last finished epoch, until it is on the disk.
    unsaved: Option<[(&'static str, Vec<u8>); 1]>,
}

impl Trainer {
    /// Loads the plugin, looks at the run's folder, loads the images, makes the networks, and makes the folder or goes on
    /// with it, in this order: what is soon refused comes first, and nothing is written before everything was found to be
    /// good.
    pub fn new(task: Task, config: CanConfig, start: Start, info: &RunInfo, context: &CommandContext) -> Result<Self> {
        let device = torch_ext::cuda::device(&config.run.device)?;
        let (judge, lock) = judge(task, &config, device, context)?;
        let claim = start.claim(lock)?;
        let data = open_data(&config, context)?;
        Plan::new(task, &config, &data)?.check_fits(device)?;
        let mut job = job(task, &config, &data, judge, device)?;
        tracing::info!(
            "{} styles, {} images to train on, {} held out; {} parameters",
            data.styles().len(),
            data.n_train(),
            data.n_test(),
            job.parameters()
        );
        let progress = match claim.checkpoint() {
            Some(folder) => restored(&mut *job, folder, &data, &claim)?,
            None => Progress::default(),
        };
        let resumes = claim.checkpoint().is_some();
        let run = claim.open(&config, info)?;
        let mut trainer = Self {
            task,
            config,
            data,
            job,
            device,
            run,
            progress,
            bars: context.progress.clone(),
            interrupt: context.interrupt.clone(),
            unsaved: None,
        };
        if resumes {
            trainer.publish()?;
        }
        Ok(trainer)
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        self.run.path()
    }

    /// Trains until the last epoch, a collapse that is to stop it, or an interrupt.
    pub fn run(mut self) -> Result<Outcome> {
        let mut first = self.run.recorded_monitor(0)?;
        if first.is_none() {
            let look = self.job.look(&self.data)?;
            self.save_look(0, &look)?;
            self.run.append_metrics(&json!({ "epoch": 0, "monitor": look.monitor }))?;
            first = Some(look.monitor);
        }
        let first = first.expect("it was recorded or just measured");
        let mut last = self.run.recorded_monitor(self.progress.epoch)?.unwrap_or_else(|| first.clone());
        let mut collapsed = false;
        let n_steps = steps_per_epoch(&self.config, &self.data);
        let (batch_size, flip) = (self.config.can.batch_size, self.config.can.flip);
        let first_step = self.progress.epoch * n_steps;
        let mut bar = self.bars.bar("training", self.config.can.epochs * n_steps * batch_size as u64, "images");
        bar.skip(first_step * batch_size as u64);
        let mut loader = self.data.loader(batch_size, flip, self.config.run.seed, first_step);
        while self.progress.epoch < self.config.can.epochs && !collapsed {
            match self.epoch(self.progress.epoch + 1, &mut loader, &bar) {
                Ok(Some((monitor, has_collapsed))) => {
                    last = monitor.unwrap_or(last);
                    collapsed = has_collapsed && self.config.monitor.on_collapse == OnCollapse::Stop;
                }
                Ok(None) => return Err(self.keep_and_stop(None)),
                Err(error) => return Err(self.keep_and_stop(Some(error))),
            }
        }
        bar.finish();
        self.save_checkpoint()?;
        self.run.write_report()?;
        let plugin = match self.task {
            Task::Can => self.config.own_head().then_some(DCGAN_PLUGIN),
            Task::Classifier => Some(SIMPLE_PLUGIN),
        };
        Ok(Outcome { plugin, first, last, epochs: self.progress.epoch, collapsed })
    }

    /// One epoch: steps, figures, a look where it is due. None if interrupted.
    fn epoch(
        &mut self,
        epoch: u64,
        loader: &mut crate::data::styles::Loader,
        bar: &Bar,
    ) -> Result<Option<(Option<Value>, bool)>> {
        let n_steps = steps_per_epoch(&self.config, &self.data);
        let (began, waited_before) = (Instant::now(), loader.waited());
        let mut sums = Sums::default();
        for i in 0..n_steps {
            if self.interrupt.requested() {
                return Ok(None);
            }
            let step = (epoch - 1) * n_steps + i;
            let batch = loader.next()?;
            let batch =
                StyleBatch { images: batch.images.to_device(self.device), styles: batch.styles.to_device(self.device) };
            let mut randomness = Randomness::cpu(derive_seed(self.config.run.seed, 0, step, Purpose::Update))?;
            sums.add(self.job.step(&batch, &mut randomness)?);
            bar.inc(self.config.can.batch_size as u64);
            if (i + 1) % READ_EVERY == 0 || i + 1 == n_steps {
                sums.read(step + 1)?;
                bar.message(format!("epoch {epoch}/{} {}", self.config.can.epochs, in_short(&sums.means())));
            }
        }
        // Before anything of this epoch is kept: the figures are those from before the last update.
        if let Some(tensor) = self.job.not_finite()? {
            bail!(Diverged {
                what: format!("{tensor} is not finite after step {}", epoch * n_steps),
                lower: LEARNING_RATE
            });
        }
        let seconds = began.elapsed().as_secs_f64();
        let waited = (loader.waited() - waited_before).as_secs_f64();
        let mut record = sums.means();
        let is_last = epoch == self.config.can.epochs;
        let clock = Instant::now();
        let look = (is_last || epoch.is_multiple_of(self.config.monitor.every))
            .then(|| self.job.look(&self.data))
            .transpose()?;
        let stage = match self.progress.best_diversity >= self.config.monitor.min_diversity {
            true => Stage::Diverse,
            false if epoch * n_steps >= OVERDUE => Stage::Overdue,
            false => Stage::Beginning,
        };
        let warnings = self.job.warnings(&record, look.as_ref(), stage);
        let diversity = look.as_ref().and_then(|look| look.diversity);
        let collapsed = self.progress.collapsed(diversity, self.config.monitor.min_diversity);
        if waited > MUCH_WAITING * seconds && seconds > SHORT_EPOCH {
            // Not among the record's warnings, which no two runs may differ in.
            tracing::warn!(
                "epoch {epoch}: training waited for images {:.0} % of its time: is the disk of the cache slow? \
                 XDG_CACHE_HOME moves it",
                100.0 * waited / seconds
            );
        }
        for warning in &warnings {
            tracing::warn!("epoch {epoch}: {warning}");
        }
        record["epoch"] = epoch.into();
        record["steps"] = n_steps.into();
        record["images_per_second"] = (n_steps as f64 * self.config.can.batch_size as f64 / seconds).into();
        record["seconds"] = json!({
            "data": waited, "train": seconds - waited, "monitor": clock.elapsed().as_secs_f64(),
        });
        if let Some(look) = &look {
            record["monitor"] = look.monitor.clone();
            self.save_look(epoch, look)?;
        }
        if !warnings.is_empty() {
            record["warnings"] = json!(warnings);
        }
        self.run.append_metrics(&record)?;
        self.progress.epoch = epoch;
        self.unsaved = Some([(STATE_FILE, self.state_bytes()?)]);
        let stops = collapsed && self.config.monitor.on_collapse == OnCollapse::Stop;
        if epoch.is_multiple_of(self.config.checkpoint.every) || is_last || stops {
            self.save_checkpoint()?;
        }
        Ok(Some((look.map(|look| look.monitor), collapsed)))
    }

    fn save_look(&mut self, epoch: u64, look: &Look) -> Result<()> {
        if let Some(Made { cells, mean, count }) = &look.made {
            self.run.save_grid(epoch, cells, Values { name: "style ambiguity", mean: *mean, count: *count })?;
        }
        if let Some(told) = look.told.as_ref().filter(|_| epoch > 0) {
            let image = confusion_matrix(self.data.styles(), &told.counts, told.accuracy());
            self.run.save_confusion(&image)?;
        }
        Ok(())
    }

    /// The checkpoint of the last finished epoch, and the networks as they are then.
    fn save_checkpoint(&mut self) -> Result<()> {
        if self.unsaved.is_none() {
            return Ok(());
        }
        let keep = match self.config.checkpoint.keep {
            0 => usize::MAX,
            keep => keep,
        };
        self.save_state(keep)?;
        self.publish()
    }

    fn save_state(&mut self, keep: usize) -> Result<()> {
        if let Some(files) = &self.unsaved {
            self.run.save_checkpoint(self.progress.epoch, files, keep)?;
            self.unsaved = None;
        }
        Ok(())
    }

    /// Writes the networks as they are.
    fn publish(&mut self) -> Result<()> {
        for (name, bytes) in self.job.products()? {
            self.run.publish(&name, &bytes)?;
        }
        Ok(())
    }

    /// Drops the part epoch, keeps the last whole one, and says how to go on.
    fn keep_and_stop(&mut self, cause: Option<anyhow::Error>) -> anyhow::Error {
        // The networks are amid the next epoch, so only the checkpoint is written.
        let saved = self.save_state(usize::MAX);
        let epochs = (self.progress.epoch + 1, self.config.can.epochs);
        stopped(&mut self.run, self.task.command(), epochs, saved, cause)
    }

    fn state_bytes(&self) -> Result<Vec<u8>> {
        let progress = serde_json::to_string(&self.progress)?;
        let (styles, images) = (serde_json::to_string(self.data.styles())?, self.data.in_words());
        let metadata = [
            ("progress", progress.as_str()),
            ("data", self.data.digest()),
            ("images", &images),
            ("styles", &styles),
        ];
        Ok(encode_safetensors(Path::new(STATE_FILE), &self.job.state(), &metadata)?)
    }
}

/// Takes the networks from a checkpoint's folder, whose images must be these, and gives the progress that it had made.
fn restored(job: &mut dyn Job, folder: &Path, data: &StyleImages, claim: &Claim) -> Result<Progress> {
    let path = folder.join(STATE_FILE);
    let (tensors, metadata) = read_safetensors_with_metadata(&path)?;
    let said = |key: &str| metadata.get(key).with_context(|| format!("{} has no {key}", path.display()));
    if said("data")? != data.digest() {
        let (run, before, now) = (claim.folder().display(), said("images")?, data.in_words());
        let short = |digest: &str| digest.chars().take(8).collect::<String>();
        let (digest, own) = (short(said("data")?), short(data.digest()));
        let error = anyhow!(
            "{run}: the run was begun with {before} (digest {digest}…), these are {now} ({own}…): name by --data the \
             images that it was begun with, or start a new run"
        );
        // Nothing could be learned of other styles by a head that has those.
        ensure!(said("styles")? == &serde_json::to_string(data.styles())?, "{error}");
        claim.refuse(error)?;
    }
    job.load_state(&tensors).with_context(|| path.display().to_string())?;
    serde_json::from_str(said("progress")?).with_context(|| path.display().to_string())
}

/// Steps of an epoch.
pub(super) fn steps_per_epoch(config: &CanConfig, data: &StyleImages) -> u64 {
    match config.can.steps_per_epoch {
        0 => (data.per_pass() / config.can.batch_size).max(1) as u64,
        steps => steps,
    }
}

/// Fresh networks and what trains them.
fn job(task: Task, config: &CanConfig, data: &StyleImages, judge: Judge, device: Device) -> Result<Box<dyn Job>> {
    Ok(match task {
        Task::Can => Box::new(Adversarial::new(config, data, judge, device)?),
        Task::Classifier => Box::new(Simple::new(config, data, device)?),
    })
}

/// What a run of this configuration would consist of and take: its plugin is loaded, its images are opened and some
/// steps are tried.
pub fn try_out(task: Task, config: &CanConfig, context: &CommandContext) -> Result<(StyleImages, Plan, Measured)> {
    let device = torch_ext::cuda::device(&config.run.device)?;
    let (judge, _) = judge(task, config, device, context)?;
    let data = open_data(config, context)?;
    let plan = Plan::new(task, config, &data)?;
    plan.check_fits(device)?;
    let mut job = job(task, config, &data, judge, device)?;
    let measured = measure(&mut *job, config, &data, device, &context.interrupt)?;
    Ok((data, plan, measured))
}

/// C of the style ambiguity, ready to judge, and what is locked of it.
fn judge(task: Task, config: &CanConfig, device: Device, context: &CommandContext) -> Result<(Judge, PluginsLock)> {
    if task == Task::Classifier || config.own_head() {
        return Ok((Judge::OwnHead, PluginsLock::default()));
    }
    let host = PluginHost::new(config.plugin.limits(), cache_folder())?.on(device);
    let classifier = host.load(&config.can.classifier, BTreeMap::new())?;
    let lock = PluginsLock { plugins: vec![locked(&config.can.classifier, &*classifier)] };
    let encoders = encoders(&config.encoders, device, &context.hub)?;
    Ok((Judge::Plugin(Box::new(PluginAmbiguity::new(classifier, encoders)?)), lock))
}

/// The images, cached for this size.
fn open_data(config: &CanConfig, context: &CommandContext) -> Result<StyleImages> {
    let cache = cache_folder().and_then(|plugins| Some(plugins.parent()?.to_owned()));
    let cache = cache.context("there is no folder for the cache of images: set XDG_CACHE_HOME or HOME")?;
    StyleImages::open(&config.source(), &config.data_options(), &cache, &context.progress, &context.interrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_diverse_collapses() {
        let mut progress = Progress::default();
        let looks = [Some(0.1), None, Some(0.3), Some(0.5), None, Some(0.2)];
        let collapsed = looks.map(|diversity| progress.collapsed(diversity, 0.3));
        assert_eq!(collapsed, [false, false, false, false, false, true]);
        // By another limit, what was below it from the beginning has not collapsed.
        assert!(!progress.collapsed(Some(0.4), 0.6));
        assert!(progress.collapsed(Some(0.4), 0.5));
    }
}
