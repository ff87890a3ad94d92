//! A run's folder: the only code that writes under `runs/`.
//!
//! # Layout
//!
//! - this file: [`RunDir`], which creates, resumes, rewinds and fills the folder
//! - `info`: [`RunInfo`], on what and when it was started · `lock`: [`PluginsLock`], with which plugins
//! - `history`: [`History`], the metrics as numbers by epoch
//! - `confusion`: how a classifier tells styles
//! - `grid`: contact sheets and before/after images · `curve`: the reward curve · `fine_tuning`: its figures in words ·
//!   `learning`: a CAN's or classifier's curves and figures · `report`: the page that shows it all
//! - `events`: TensorBoard's files · `files`: atomic writing · `drawing`: charts as pixels or SVG
//!
//! ```
//! use ambiguity_host::run::{PluginsLock, RunDir, RunInfo};
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("first");
//! let mut run = RunDir::create(&path, "seed = 1\n", &PluginsLock::default(), &RunInfo::default())?;
//! run.append_metrics(&serde_json::json!({"epoch": 1, "reward_mean": -3.5}))?;
//! run.save_checkpoint(1, &[("state.safetensors", vec![1, 2, 3])], 3)?;
//! run.append_metrics(&serde_json::json!({"epoch": 2, "reward_mean": -3.4}))?;
//! drop(run);
//!
//! let mut run = RunDir::open(&path)?;
//! let (epoch, _checkpoint) = run.checkpoints()?.pop().expect("saved above");
//! run.rewind(Some(epoch))?;
//! assert_eq!(run.read_metrics()?.len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod confusion;
pub mod curve;
mod drawing;
mod error;
mod events;
mod files;
mod fine_tuning;
pub mod grid;
mod history;
mod info;
mod learning;
mod lock;
pub mod report;
mod time;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use image::{ImageFormat, RgbImage};
use serde::Serialize;
use serde_json::Value;

pub use self::confusion::confusion_matrix;
pub use self::error::{Result, RunError};
use self::events::EventWriter;
pub use self::grid::{Cell, Values};
pub use self::history::{EpochPoint, History, MonitorPoint};
pub use self::info::RunInfo;
pub use self::lock::{LockedPlugin, PluginsLock};
pub use self::time::{default_folder, unix_seconds};

/// The resolved configuration, with every default.
const CONFIG: &str = "config.toml";
/// The plugins by digest.
const LOCK: &str = "plugins.lock";
/// One JSON object a line, one line an epoch.
const METRICS: &str = "metrics.jsonl";
/// Contact sheets by epoch.
const SAMPLES: &str = "samples";
/// Folders by epoch.
const CHECKPOINTS: &str = "checkpoints";
/// The LoRA with the highest monitor reward.
const BEST: &str = "best";
/// The same noise before and after.
const BEFORE_AFTER: &str = "before-after.png";
/// How held-out images were told.
const CONFUSION: &str = "confusion.png";
/// The learning curves of a CAN or a classifier.
const LEARNING: &str = "curves.png";
/// The reward curve.
const CURVE: &str = "reward-curve.png";

/// A run's folder, held by this process alone until it is dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    events: EventWriter,
    /// The folder itself, locked; `None` on filesystems without locks.
    _held: Option<File>,
}

impl RunDir {
    /// Starts a run in `path`, which may exist if it is empty, with the configuration in it and the plugins locked.
    pub fn create(path: &Path, config_toml: &str, lock: &PluginsLock, info: &RunInfo) -> Result<Self> {
        Self::check_vacant(path)?;
        let existed = path.exists();
        fs::create_dir_all(path).map_err(|e| RunError::write(path, e))?;
        let run = Self::hold(path)?;
        // Another process may have had it in the meantime; what it made is not to be cleared away below.
        Self::check_vacant(path)?;
        let filled = (|| {
            for folder in [SAMPLES, CHECKPOINTS] {
                let folder = path.join(folder);
                fs::create_dir(&folder).map_err(|e| RunError::write(&folder, e))?;
            }
            run.write_plugins_lock(lock)?;
            files::write_atomic(&path.join(info::FILE), info.to_toml().as_bytes())?;
            // The configuration comes last: a folder with one is a whole run.
            run.write_config(config_toml)
        })();
        if let Err(error) = filled {
            // What stands here now was made a moment ago by the lines above.
            drop(if existed { empty(path) } else { fs::remove_dir_all(path) });
            return Err(error);
        }
        Ok(run)
    }

    /// An error if no run can be started in `path` since something is there. Nothing is written.
    pub fn check_vacant(path: &Path) -> Result<()> {
        if path.join(CONFIG).exists() {
            return Err(RunError::HoldsRun(path.to_owned()));
        }
        match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
            Ok(true) => Err(RunError::NotEmpty(path.to_owned())),
            Ok(false) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(RunError::write(path, error)),
        }
    }

    /// Opens a run to go on with it; removes what a killed process left half-written.
    ///
    /// Call [`rewind`](Self::rewind) next, with the epoch of the checkpoint that training goes on from.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join(CONFIG).is_file() {
            return Err(RunError::NotARun(path.to_owned()));
        }
        let run = Self::hold(path)?;
        for folder in [path.to_owned(), path.join(SAMPLES), path.join(CHECKPOINTS), path.join(BEST)] {
            files::sweep(&folder)?;
        }
        // A torn last line would spoil the line that is appended to it.
        let metrics = path.join(METRICS);
        let text = read_optional(&metrics)?;
        let whole = whole_lines(&text);
        if whole.len() < text.len() {
            files::write_atomic(&metrics, whole.as_bytes())?;
        }
        Ok(run)
    }

    /// The run under `runs` that was written to last, of those that `wanted` takes by their notes.
    pub fn newest_under(runs: &Path, wanted: impl Fn(&RunInfo) -> bool) -> Option<PathBuf> {
        let written = |run: &Path| {
            let modified = |name: &str| fs::metadata(run.join(name)).and_then(|file| file.modified()).ok();
            modified(CONFIG).map(|config| modified(METRICS).map_or(config, |metrics| metrics.max(config)))
        };
        let folders = fs::read_dir(runs).ok()?.flatten().map(|entry| entry.path());
        let folders = folders.filter(|path| wanted(&Self::info(path)));
        let (_, newest) = folders.filter_map(|path| Some((written(&path)?, path))).max()?;
        Some(newest)
    }

    fn hold(path: &Path) -> Result<Self> {
        let folder = File::open(path).map_err(|e| RunError::read(path, e))?;
        let held = match folder.try_lock() {
            Ok(()) => Some(folder),
            Err(TryLockError::WouldBlock) => return Err(RunError::Busy(path.to_owned())),
            // Some network filesystems have no locks; training there is still better than refusing to.
            Err(TryLockError::Error(_)) => None,
        };
        Ok(Self { path: path.to_owned(), events: EventWriter::new(path), _held: held })
    }

    /// Where the run is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of `config.toml`.
    pub fn config(&self) -> Result<String> {
        let path = self.path.join(CONFIG);
        fs::read_to_string(&path).map_err(|e| RunError::read(&path, e))
    }

    /// Replaces `config.toml`, for a run that goes on with more epochs.
    pub fn write_config(&self, toml: &str) -> Result<()> {
        files::write_atomic(&self.path.join(CONFIG), toml.as_bytes())
    }

    /// Replaces `plugins.lock`, for a run that goes on with other plugins.
    pub fn write_plugins_lock(&self, lock: &PluginsLock) -> Result<()> {
        files::write_atomic(&self.path.join(LOCK), lock.to_toml().as_bytes())
    }

    /// The plugins that the run was started with.
    pub fn plugins_lock(&self) -> Result<PluginsLock> {
        read_lock(&self.path)
    }

    /// Notes on what and when the run in `path` was started; none of them where they are missing or damaged.
    pub fn info(path: &Path) -> RunInfo {
        fs::read_to_string(path.join(info::FILE)).ok().and_then(|text| toml::from_str(&text).ok()).unwrap_or_default()
    }

    /// Drops what was written after `epoch`, or all where that is none: checkpoints, contact sheets, metrics; TensorBoard
    /// hides its part.
    ///
    /// What was published ([`publish`](Self::publish)) stays, since it has no epoch in its name: the trainer publishes
    /// again what its checkpoint has.
    pub fn rewind(&mut self, epoch: Option<u64>) -> Result<()> {
        // Checkpoints first, the newest before the others: where this is broken off, the next time drops the rest.
        for (_, checkpoint) in self.checkpoints()?.into_iter().rev().filter(|(at, _)| Some(*at) > epoch) {
            files::remove_folder(&checkpoint)?;
        }
        for (_, grid) in self.grids()?.into_iter().filter(|(at, _)| Some(*at) > epoch) {
            fs::remove_file(&grid).map_err(|e| RunError::write(&grid, e))?;
        }
        let path = self.path.join(METRICS);
        let text = read_optional(&path)?;
        // The lines are kept as they stand: a number that is read and written again may change in its last digit.
        let mut kept = String::new();
        for (line, record) in whole_lines(&text).split_inclusive('\n').zip(self.read_metrics()?) {
            if Some(record_epoch(&record)?) <= epoch {
                kept.push_str(line);
            }
        }
        if kept != text {
            files::write_atomic(&path, kept.as_bytes())?;
        }
        self.events.purge_from(epoch.map_or(0, |epoch| epoch + 1));
        Ok(())
    }

    /// Appends one record, an object with a whole number `epoch`, to `metrics.jsonl`, and its numbers to TensorBoard.
    ///
    /// The line is on the disk when this returns. In TensorBoard nested names are joined by `/`: `monitor/reward_mean`.
    pub fn append_metrics(&mut self, record: &impl Serialize) -> Result<()> {
        let record = serde_json::to_value(record).map_err(|_| RunError::Record)?;
        let epoch = record_epoch(&record)?;
        let path = self.path.join(METRICS);
        let line = format!("{record}\n");
        (|| {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.write_all(line.as_bytes())?;
            file.sync_all()
        })()
        .map_err(|e| RunError::write(&path, e))?;
        let mut scalars = Vec::new();
        collect_scalars(&record, "", &mut scalars);
        self.events.scalars(SystemTime::now(), epoch, &scalars).map_err(|e| RunError::write(&self.path, e))
    }

    /// All records of `metrics.jsonl`, without a torn last line.
    pub fn read_metrics(&self) -> Result<Vec<Value>> {
        read_metrics(&self.path)
    }

    /// What the monitor measured at an epoch, if it looked then.
    pub fn recorded_monitor(&self, epoch: u64) -> Result<Option<Value>> {
        let records = self.read_metrics()?;
        let record = records.into_iter().find(|record| record["epoch"] == epoch && record["monitor"].is_object());
        Ok(record.map(|mut record| record["monitor"].take()))
    }

    /// The metrics as numbers by epoch.
    pub fn history(&self) -> Result<History> {
        Ok(History::from_records(&self.read_metrics()?))
    }

    /// Writes `checkpoints/epoch-NNNN/` with `files` (name, bytes), all or nothing, then removes all but the `keep` newest.
    pub fn save_checkpoint(&mut self, epoch: u64, files: &[(&str, Vec<u8>)], keep: usize) -> Result<PathBuf> {
        let path = self.path.join(CHECKPOINTS).join(epoch_name(epoch));
        files::write_folder_atomic(&path, files)?;
        for (_, old) in self.checkpoints()?.iter().rev().skip(keep.max(1)) {
            files::remove_folder(old)?;
        }
        Ok(path)
    }

    /// The checkpoints by epoch, the newest last.
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found = numbered(&self.path.join(CHECKPOINTS), "")?;
        found.retain(|(_, path)| path.is_dir());
        Ok(found)
    }

    /// Writes a file of the run by its name, such as `best/pytorch_lora_weights.safetensors`, all or nothing.
    pub fn publish(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let folder = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(folder).map_err(|e| RunError::write(folder, e))?;
        files::write_atomic(&path, bytes)
    }

    /// Removes a file of the run by its name, if it is there.
    pub fn unpublish(&mut self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RunError::write(&path, error)),
            _ => Ok(()),
        }
    }

    /// Writes `samples/epoch-NNNN.png`, a contact sheet of images with their titles and values, and shows it in TensorBoard.
    pub fn save_grid(&mut self, epoch: u64, cells: &[Cell], values: Values<'_>) -> Result<PathBuf> {
        let path = self.path.join(SAMPLES).join(format!("{}.png", epoch_name(epoch)));
        let image = grid::contact_sheet(epoch, cells, values);
        let png = encode_png(&path, &image)?;
        files::write_atomic(&path, &png)?;
        self.events
            .image(SystemTime::now(), epoch, "samples", &png, image.dimensions())
            .map_err(|e| RunError::write(&self.path, e))?;
        Ok(path)
    }

    /// The contact sheets by epoch, the newest last.
    pub fn grids(&self) -> Result<Vec<(u64, PathBuf)>> {
        numbered(&self.path.join(SAMPLES), ".png")
    }

    /// Writes `before-after.png`: images from the same prompts and noise, untrained and trained, see [`grid::compare`].
    pub fn save_before_after(&mut self, image: &RgbImage) -> Result<PathBuf> {
        self.save_image(BEFORE_AFTER, image)
    }

    /// Writes `confusion.png`, how held-out images were told, see [`confusion_matrix`].
    pub fn save_confusion(&mut self, image: &RgbImage) -> Result<PathBuf> {
        self.save_image(CONFUSION, image)
    }

    fn save_image(&mut self, name: &str, image: &RgbImage) -> Result<PathBuf> {
        let path = self.path.join(name);
        files::write_atomic(&path, &encode_png(&path, image)?)?;
        Ok(path)
    }

    /// Writes the curves as an image and `report.html` from what the folder holds; returns the report's path.
    pub fn write_report(&mut self) -> Result<PathBuf> {
        Ok(report::write(&self.path)?.report)
    }
}

/// `epoch-0012`.
fn epoch_name(epoch: u64) -> String {
    format!("epoch-{epoch:04}")
}

/// The entries of `folder` named `epoch-N` and `suffix`, by number; a folder that is not there has none.
fn numbered(folder: &Path, suffix: &str) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(RunError::read(folder, error)),
    };
    let number = |name: &str| name.strip_prefix("epoch-")?.strip_suffix(suffix)?.parse().ok();
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| RunError::read(folder, e))?;
        found.extend(entry.file_name().to_str().and_then(number).map(|epoch| (epoch, entry.path())));
    }
    found.sort();
    Ok(found)
}

fn read_lock(run: &Path) -> Result<PluginsLock> {
    let path = run.join(LOCK);
    PluginsLock::from_toml(&read_optional(&path)?)
        .map_err(|error| RunError::Damaged { path, message: error.message().to_owned() })
}

fn read_metrics(run: &Path) -> Result<Vec<Value>> {
    let path = run.join(METRICS);
    let text = read_optional(&path)?;
    let lines = whole_lines(&text).lines().enumerate();
    lines
        .map(|(line, text)| {
            serde_json::from_str(text).map_err(|error| RunError::Damaged {
                path: path.clone(),
                message: format!("line {} is no JSON object ({error})", line + 1),
            })
        })
        .collect()
}

/// The part of `text` that ends with a whole line: a process killed while it appended leaves half a line.
fn whole_lines(text: &str) -> &str {
    &text[..text.rfind('\n').map_or(0, |end| end + 1)]
}

fn read_optional(path: &Path) -> Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(RunError::read(path, error)),
    }
}

fn record_epoch(record: &Value) -> Result<u64> {
    record.get("epoch").and_then(Value::as_u64).ok_or(RunError::Record)
}

/// The finite numbers of a record but its epoch, nested names joined by `/`.
fn collect_scalars(value: &Value, name: &str, scalars: &mut Vec<(String, f64)>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields.iter().filter(|(field, _)| !(name.is_empty() && *field == "epoch")) {
                let name = if name.is_empty() { field.clone() } else { format!("{name}/{field}") };
                collect_scalars(value, &name, scalars);
            }
        }
        Value::Number(number) => scalars.extend(number.as_f64().map(|number| (name.to_owned(), number))),
        _ => {}
    }
}

fn encode_png(path: &Path, image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = io::Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|source| RunError::Image { path: path.to_owned(), source })?;
    Ok(bytes.into_inner())
}

/// Removes what is in a folder, not the folder.
fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
