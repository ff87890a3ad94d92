//! The one training loop: epochs, monitor, health checks, checkpoints, resume and Ctrl-C, for every [`Task`].
//!
//! All randomness of a task is a function of (seed, epoch, index), so a checkpoint stores no generator state: its
//! tensors and counters suffice to resume bit-identically. An interrupted epoch is replayed.
//!
//! # Layout
//!
//! - this file: [`Task`], the interface of a task, and [`Trainer`], the loop
//! - [`start`]: how a run starts, resumes and stops

pub mod start;

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use ambiguity_models::params::NamedTensors;
use ambiguity_models::safetensors::{encode_safetensors, read_safetensors_with_metadata};
use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use self::start::stopped;
pub use self::start::{Claim, Start};
use crate::config::{Checkpoint, RunConfig};
use crate::context::Context;
use crate::data::png::Sheet;
use crate::failure::caught;
use crate::processes::Processes;
use crate::progress::{Bar, Progress as ProgressBars};
use crate::report;
use crate::run::images::{KeptImages, Sampled};
use crate::run::record::Record;
use crate::run::{self, RunDir, RunInfo};

/// The file name of a checkpoint's tensors and counters.
const STATE_FILE: &str = "state.safetensors";
/// The file name of the best product in a checkpoint.
const BEST_FILE: &str = "best.safetensors";

/// A task that the [`Trainer`] trains.
pub trait Task {
    /// The record of an epoch of training.
    type Epoch: Serialize + DeserializeOwned + Clone + Debug;
    /// The record of a monitor.
    type Monitor: Serialize + DeserializeOwned + Clone + Debug;

    /// Returns the command that resumes from a run's or a checkpoint's folder, and whether it then accepts
    /// `--force --set KEY=VALUE`.
    fn resume_command(&self, folder: &Path) -> (String, bool);

    /// Returns the length of the training and the periods of its checkpoints and monitors.
    fn schedule(&self) -> Schedule;

    /// Trains one epoch.
    ///
    /// # Errors
    /// [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop,
    /// [`Diverged`](crate::optim::Diverged) if a value is not finite. The task is then in the middle of an epoch and is
    /// not trained further.
    fn train_epoch(&mut self, epoch: u64, bar: &Bar) -> Result<Trained<Self::Epoch>>;

    /// Evaluates the model, on the same fixed samples or held-out data each time; returns none if that failed and the
    /// configuration allows skipping. Epoch 0 is the untrained model.
    ///
    /// # Errors
    /// As [`Task::train_epoch`].
    fn monitor(&mut self, epoch: u64) -> Result<Option<Monitored<Self::Monitor>>>;

    /// Returns the warnings of an epoch and its monitor; `best_diversity` is the maximum over the monitors so far.
    fn warnings(
        &self,
        epoch: u64,
        trained: &Self::Epoch,
        monitor: Option<&Self::Monitor>,
        best_diversity: f64,
    ) -> Vec<String>;

    /// Reacts to a monitor that found the model collapsed, unless the run stops then; returns a warning that says what
    /// changes.
    fn counteract(&mut self) -> Option<String>;

    /// Returns the task's part of a checkpoint.
    fn state(&self) -> Result<State>;

    /// Restores the state of a checkpoint. `claim` refuses a checkpoint that does not belong to this run.
    fn restore(&mut self, checkpoint: &Saved, claim: &Claim) -> Result<()>;

    /// Returns the files for the run's folder, by name. If monitors have a score, the first file is also kept as the
    /// best.
    fn products(&mut self) -> Result<Vec<(String, Vec<u8>)>>;

    /// Returns the images of a finished run, by name.
    fn last_images(&mut self, _ends: &Ends<Self::Monitor>) -> Result<Vec<(&'static str, Sheet)>> {
        Ok(Vec::new())
    }
}

/// The length of a training and the periods of its checkpoints and monitors.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Number of epochs.
    pub epochs: u64,
    /// The checkpoints to write and keep.
    pub checkpoint: Checkpoint,
    /// Number of epochs between two monitors; the last epoch always has one.
    pub monitor_every: u64,
    /// The fraction of the reference's diversity below which the model has collapsed, and whether the run then stops.
    pub collapse: Option<(f64, bool)>,
    /// The progress of an epoch: its total and its unit (plural).
    pub progress: (u64, &'static str),
}

/// The result of an epoch of training.
#[derive(Debug)]
pub struct Trained<T> {
    /// The record for `metrics.jsonl`.
    pub record: T,
    /// The text of the progress bar.
    pub message: String,
    /// Warnings about the epoch.
    pub warnings: Vec<String>,
    /// The epoch's images, if they are kept.
    pub kept: Option<KeptImages>,
}

/// The result of a monitor.
#[derive(Debug)]
pub struct Monitored<M> {
    /// The record for `metrics.jsonl`.
    pub record: M,
    /// The score that selects the best checkpoint, higher is better; none where no best checkpoint is kept.
    pub score: Option<f64>,
    /// Diversity as a fraction of the reference's (the untrained model's or the real images'); none where it is not
    /// measured.
    pub diversity: Option<f64>,
    /// The contact sheet.
    pub sheet: Option<Sheet>,
    /// Other images for the run's folder, by name.
    pub images: Vec<(&'static str, Sheet)>,
    /// The monitor's images, if they are kept.
    pub kept: Option<KeptImages>,
}

/// A task's part of a checkpoint; the trainer adds its counters.
#[derive(Debug, Default)]
pub struct State {
    /// Tensors of `state.safetensors`.
    pub tensors: NamedTensors,
    /// Metadata of `state.safetensors`, by key.
    pub metadata: Vec<(&'static str, String)>,
    /// Further files, by name.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

/// A task's checkpoint, loaded.
#[derive(Debug)]
pub struct Saved {
    /// The checkpoint's folder.
    pub folder: PathBuf,
    /// Tensors of `state.safetensors`.
    pub tensors: NamedTensors,
    metadata: HashMap<String, String>,
}

impl Saved {
    fn read(folder: &Path) -> Result<Self> {
        let (tensors, metadata) = read_safetensors_with_metadata(&folder.join(STATE_FILE))?;
        Ok(Self { folder: folder.to_owned(), tensors, metadata: metadata.into_iter().collect() })
    }

    /// Returns a metadata text.
    pub fn text(&self, key: &str) -> Result<&str> {
        let text = self.metadata.get(key);
        Ok(text.with_context(|| format!("{} has no {key}", self.folder.join(STATE_FILE).display()))?)
    }

    /// Returns a metadata value that is JSON.
    pub fn json<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        serde_json::from_str(self.text(key)?)
            .with_context(|| format!("`{key}` of {}", self.folder.join(STATE_FILE).display()))
    }
}

/// The trainer's own state of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    /// Number of finished epochs.
    epoch: u64,
    /// The highest score of a monitor whose diversity had not collapsed.
    best_score: Option<f64>,
    /// The maximum diversity of the monitors: only a model that was diverse can collapse.
    best_diversity: f64,
}

impl Progress {
    /// Records a monitor's diversity, and returns whether it has fallen below `minimum`.
    fn collapsed(&mut self, diversity: Option<f64>, minimum: f64) -> bool {
        let Some(diversity) = diversity else { return false };
        let collapsed = self.best_diversity >= minimum && diversity < minimum;
        self.best_diversity = self.best_diversity.max(diversity);
        collapsed
    }
}

/// The first and the last monitor of a run.
#[derive(Clone, Debug)]
pub struct Ends<M> {
    /// The monitor of the untrained model.
    pub first: M,
    /// The newest monitor.
    pub last: M,
}

/// The outcome of a finished run.
#[derive(Debug)]
pub struct Outcome<T: Task> {
    /// The task, trained.
    pub task: T,
    /// The run's folder.
    pub folder: PathBuf,
    /// The first and the last monitor.
    pub ends: Ends<T::Monitor>,
    /// Number of finished epochs.
    pub epochs: u64,
    /// Whether the run ended early because the model collapsed.
    pub collapsed: bool,
}

/// A checkpoint and the products of the same epoch that are not on the disk yet.
struct Unsaved {
    epoch: u64,
    checkpoint: Vec<(&'static str, Vec<u8>)>,
    products: Vec<(String, Vec<u8>)>,
}

/// A run in progress.
pub struct Trainer<T: Task> {
    task: T,
    schedule: Schedule,
    /// The run's folder, in the first process.
    run: Option<RunDir>,
    processes: Processes,
    progress: Progress,
    /// The first product at the best monitor, the content of `best/`.
    best: Option<Vec<u8>>,
    bars: ProgressBars,
    unsaved: Option<Unsaved>,
}

impl<T: Task> Trainer<T> {
    /// Returns a trainer at its task's first epoch, or at the checkpoint of the claimed run. Nothing is written before
    /// everything has been loaded and compared.
    pub fn new(mut task: T, claim: Claim, config: &impl RunConfig, info: &RunInfo, context: &Context) -> Result<Self> {
        let (mut progress, mut best) = (Progress::default(), None);
        let resumes = claim.checkpoint().is_some();
        if let Some((epoch, folder)) = claim.checkpoint() {
            let saved;
            (progress, saved) = read_checkpoint(epoch, folder)
                .map_err(|error| claim.without_checkpoint(error, |folder| task.resume_command(folder).0))?;
            task.restore(&saved, &claim).with_context(|| saved.folder.join(STATE_FILE).display().to_string())?;
            let file = Some(folder.join(BEST_FILE)).filter(|file| file.is_file());
            best = file.map(fs_err::read).transpose()?;
        }
        let run = context.processes.is_first().then(|| claim.open(config, info)).transpose()?;
        let (schedule, processes, bars) = (task.schedule(), context.processes.clone(), context.progress.clone());
        let mut trainer = Self { task, schedule, run, processes, progress, best, bars, unsaved: None };
        let keep = trainer.kept_checkpoints();
        if let Some(run) = trainer.run.as_mut().filter(|_| resumes) {
            // A process that was killed may have left more checkpoints than are kept.
            run.prune_checkpoints(keep)?;
            // The files there may be of a later epoch than the checkpoint to which the run was rewound.
            let products = trainer.task.products()?;
            trainer.publish_best(&products)?;
            trainer.publish(&products)?;
        }
        trainer.compare("the weights", || trainer.checkpoint(&trainer.progress))?;
        Ok(trainer)
    }

    /// The run's folder; empty in processes that do not write.
    pub fn folder(&self) -> &Path {
        self.run.as_ref().map_or(Path::new(""), RunDir::path)
    }

    /// Checks that all processes have the same state.
    fn compare(&self, what: &str, checkpoint: impl FnOnce() -> Result<Vec<(&'static str, Vec<u8>)>>) -> Result<()> {
        if self.processes.count() == 1 {
            return Ok(());
        }
        let mut hash = Sha256::new();
        for (_, bytes) in checkpoint()? {
            hash.update(bytes);
        }
        self.processes.compare(what, &format!("{:x}", hash.finalize()))
    }

    /// Trains until the last epoch, a collapse that stops the run, or an interrupt.
    pub fn run(mut self) -> Result<Outcome<T>> {
        let mut collapsed = false;
        let first_epoch = self.progress.epoch;
        let (per_epoch, unit) = self.schedule.progress;
        let mut bar = self.bars.bar("training", self.schedule.epochs * per_epoch, unit);
        bar.skip(self.progress.epoch * per_epoch);
        let mut ends = match caught(|| self.ends()) {
            Ok(ends) => ends,
            Err(error) => return Err(self.stop(error)),
        };
        while self.progress.epoch < self.schedule.epochs && !collapsed {
            match caught(|| self.epoch(&bar)) {
                Ok((monitor, has_collapsed)) => {
                    ends.last = monitor.unwrap_or(ends.last);
                    collapsed = has_collapsed && matches!(self.schedule.collapse, Some((_, true)));
                }
                Err(error) => return Err(self.stop(error)),
            }
        }
        bar.finish();
        let ended = caught(|| {
            self.save_unsaved()?;
            let images_missing = self.processes.from_first(|| Ok(!self.folder().join(run::BEFORE_AFTER).is_file()))?;
            if self.progress.epoch > first_epoch || images_missing {
                let images = self.task.last_images(&ends)?;
                if let Some(run) = &mut self.run {
                    images.iter().try_for_each(|(name, image)| run.save_image(name, image))?;
                }
            }
            if let Some(run) = &self.run {
                report::write(run.path())?;
            }
            Ok(())
        });
        if let Err(error) = ended {
            return Err(self.stop(error));
        }
        let (folder, epochs) = (self.folder().to_owned(), self.progress.epoch);
        Ok(Outcome { task: self.task, folder, ends, epochs, collapsed })
    }

    /// Returns the monitor of the untrained model, measured if it is not recorded yet, and the newest monitor.
    fn ends(&mut self) -> Result<Ends<T::Monitor>> {
        let recorded = self.processes.from_first(|| {
            let recorded = run::records::<T::Epoch, T::Monitor>(self.folder())?;
            let mut monitors = recorded.into_iter().filter_map(|record| record.monitor);
            let first = monitors.next();
            let last = monitors.next_back().or_else(|| first.clone());
            Ok(first.zip(last).map(|ends| serde_json::to_string(&ends)).transpose()?)
        })?;
        if let Some(recorded) = recorded {
            let (first, last) = serde_json::from_str(&recorded)?;
            return Ok(Ends { first, last });
        }
        let monitored = self.task.monitor(0)?.context(
            "plugins failed on some of the monitor's samples before training began: fix the plugin (try `host plugin \
             classify`)",
        )?;
        self.save_images(0, &monitored)?;
        if let Some((minimum, _)) = self.schedule.collapse {
            self.progress.collapsed(monitored.diversity, minimum);
        }
        let first = monitored.record;
        if let Some(run) = &mut self.run {
            let monitor = Some(first.clone());
            run.append_metrics(&Record::<T::Epoch, _> { epoch: 0, trained: None, monitor, warnings: Vec::new() })?;
        }
        Ok(Ends { last: first.clone(), first })
    }

    /// Runs one epoch: train, monitor, check, record. Returns the monitor and whether the model has collapsed.
    fn epoch(&mut self, bar: &Bar) -> Result<(Option<T::Monitor>, bool)> {
        let epoch = self.progress.epoch + 1;
        let Trained { record, message, mut warnings, kept } = self.task.train_epoch(epoch, bar)?;
        bar.message(format!("epoch {epoch}/{} {message}", self.schedule.epochs));
        let mut next = Progress { epoch, ..self.progress.clone() };
        let is_last = epoch == self.schedule.epochs;
        let (mut monitored, mut collapsed) = (None, false);
        if is_last || epoch.is_multiple_of(self.schedule.monitor_every) {
            monitored = self.task.monitor(epoch)?;
            if monitored.is_none() {
                warnings.push(
                    "the monitor was left out: a plugin failed on some of its samples, and an improvement is measured on \
                     the same ones each time"
                        .to_owned(),
                );
            }
        }
        let monitor = monitored.as_ref().map(|monitored| &monitored.record);
        warnings.extend(self.task.warnings(epoch, &record, monitor, next.best_diversity));
        if let (Some(monitored), Some((minimum, stops))) = (&monitored, self.schedule.collapse) {
            collapsed = next.collapsed(monitored.diversity, minimum);
            if collapsed && !stops {
                warnings.extend(self.task.counteract());
            }
        }
        for warning in &warnings {
            tracing::warn!("epoch {epoch}: {warning}");
        }
        // In this order (best, metrics, checkpoint, products), a run killed between two of them replays the epoch.
        let products = self.task.products()?;
        if let Some((run, kept)) = self.run.as_mut().zip(kept.as_ref()) {
            run.keep_images(Sampled::Training, epoch, kept)?;
        }
        if let Some(monitored) = &monitored {
            self.save_images(epoch, monitored)?;
            let score = monitored.score.filter(|score| !collapsed && next.best_score.is_none_or(|best| *score > best));
            if score.is_some() {
                next.best_score = score;
                self.best = products.first().map(|(_, bytes)| bytes.clone());
                self.publish_best(&products)?;
            }
        }
        let monitor = monitored.map(|monitored| monitored.record);
        if let Some(run) = &mut self.run {
            run.append_metrics(&Record { epoch, trained: Some(record), monitor: monitor.clone(), warnings })?;
        }
        let checkpoint = self.checkpoint(&next)?;
        let is_due = is_last || collapsed || epoch.is_multiple_of(self.schedule.checkpoint.every);
        if is_due {
            self.compare(&format!("the weights after epoch {epoch}"), || Ok(checkpoint.clone()))?;
        }
        self.progress = next;
        self.unsaved = Some(Unsaved { epoch, checkpoint, products });
        if is_due {
            self.save_unsaved()?;
        }
        Ok((monitor, collapsed))
    }

    fn save_images(&mut self, epoch: u64, monitored: &Monitored<T::Monitor>) -> Result<()> {
        let Some(run) = &mut self.run else { return Ok(()) };
        if let Some(sheet) = &monitored.sheet {
            run.save_sheet(epoch, sheet)?;
        }
        for (name, image) in &monitored.images {
            run.save_image(name, image)?;
        }
        if let Some(kept) = &monitored.kept {
            run.keep_images(Sampled::Monitor, epoch, kept)?;
        }
        Ok(())
    }

    /// Returns the files of a checkpoint.
    fn checkpoint(&self, progress: &Progress) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let State { tensors, metadata, mut files } = self.task.state()?;
        let progress = serde_json::to_string(progress)?;
        let mut texts = vec![("progress", progress.as_str())];
        texts.extend(metadata.iter().map(|(key, text)| (*key, text.as_str())));
        files.push((STATE_FILE, encode_safetensors(Path::new(STATE_FILE), &tensors, &texts)?));
        files.extend(self.best.clone().map(|best| (BEST_FILE, best)));
        Ok(files)
    }

    /// Returns the number of checkpoints to keep.
    fn kept_checkpoints(&self) -> usize {
        match self.schedule.checkpoint.keep {
            0 => usize::MAX,
            keep => keep,
        }
    }

    fn save_unsaved(&mut self) -> Result<()> {
        let keep = self.kept_checkpoints();
        let (Some(Unsaved { epoch, checkpoint, products }), Some(run)) = (self.unsaved.take(), &mut self.run) else {
            return Ok(());
        };
        if let Err(error) = run.save_checkpoint(epoch, &checkpoint, keep) {
            // The disk may have space again when the run is stopped.
            self.unsaved = Some(Unsaved { epoch, checkpoint, products });
            return Err(error.into());
        }
        self.publish(&products)
    }

    fn publish(&mut self, products: &[(String, Vec<u8>)]) -> Result<()> {
        let Some(run) = &mut self.run else { return Ok(()) };
        products.iter().try_for_each(|(name, bytes)| Ok(run.publish(name, bytes)?))
    }

    /// Writes `best/` as of this epoch, or removes it: its content may be of a later epoch, before the run was rewound.
    fn publish_best(&mut self, products: &[(String, Vec<u8>)]) -> Result<()> {
        let (Some((name, _)), Some(run)) = (products.first(), &mut self.run) else { return Ok(()) };
        let name = format!("best/{name}");
        match &self.best {
            Some(best) => Ok(run.publish(&name, best)?),
            None => Ok(run.unpublish(&name)?),
        }
    }

    /// Drops the unfinished epoch, keeps the last finished one, and returns an error that says how to resume.
    fn stop(&mut self, cause: anyhow::Error) -> anyhow::Error {
        let saved = self.save_unsaved();
        let Some(run) = &self.run else { return cause };
        // On a full disk the report that there is stays. A failed one is only a warning: the error to return is what
        // stopped the run.
        if saved.is_ok()
            && let Err(error) = report::write(run.path())
        {
            tracing::warn!("no report: {error}");
        }
        let epochs = ((self.progress.epoch + 1).min(self.schedule.epochs), self.schedule.epochs);
        stopped(run, |folder| self.task.resume_command(folder), epochs, saved, cause)
    }
}

/// Reads a checkpoint whose folder is of `epoch`, and compares its files with their digests.
fn read_checkpoint(epoch: u64, folder: &Path) -> Result<(Progress, Saved)> {
    run::check_checkpoint(folder)?;
    let saved = Saved::read(folder)?;
    let progress: Progress = saved.json("progress")?;
    ensure!(progress.epoch == epoch, "{} is a checkpoint of epoch {}", folder.display(), progress.epoch);
    Ok((progress, saved))
}

#[cfg(test)]
mod tests;
