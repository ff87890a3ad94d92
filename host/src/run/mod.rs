//! The folder of a run. This is the only code that writes under `runs/`.
//!
//! # Layout
//!
//! - this file: [`RunDir`], which creates, resumes, rewinds and fills the folder, and the functions that read one
//! - [`record`]: the lines of `metrics.jsonl` · [`evaluation`]: `eval.json`
//! - `info`: [`RunInfo`], command, device and time of the start · `lock`: [`PluginsLock`], the plugins
//! - [`images`]: the images that a run keeps
//! - `events`: TensorBoard's files · `time`: dates · `error`: [`RunError`]
//!
//! ```
//! use ambiguity_host::run::record::{ClassifierEpoch, ClassifierMonitor, ClassifierRecord, Record};
//! use ambiguity_host::run::{PluginsLock, RunDir, RunInfo, records};
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("first");
//! let mut run = RunDir::create(&path, "seed = 1\n", &PluginsLock::default(), &RunInfo::default())?;
//! let record = |epoch| ClassifierRecord {
//!     epoch,
//!     trained: Some(ClassifierEpoch::default()),
//!     monitor: None,
//!     warnings: vec![],
//! };
//! run.append_metrics(&record(1))?;
//! run.save_checkpoint(1, &[("state.safetensors", vec![1, 2, 3])], 3)?;
//! run.append_metrics(&record(2))?;
//! drop(run);
//!
//! let mut run = RunDir::open(&path)?;
//! let (epoch, _checkpoint) = run.checkpoints()?.pop().expect("saved above");
//! run.rewind(Some(epoch))?;
//! assert_eq!(records::<ClassifierEpoch, ClassifierMonitor>(&path)?.len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
pub mod evaluation;
mod events;
pub mod images;
mod info;
mod lock;
pub mod record;
mod time;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use self::error::{Result, RunError};
use self::events::EventWriter;
use self::images::{IMAGES, Sampled, kept_images};
pub use self::info::RunInfo;
pub use self::lock::{LockedEncoder, LockedPlugin, MAX_NAMED_STYLES, PluginsLock};
use self::record::{Record, first_null};
pub use self::time::{default_folder, in_words, unix_seconds};
use crate::data::png::{self, Sheet};
use crate::fs::{
    FileError, is_temporary, read_optional, remove_file, remove_folder, sweep, write_atomic, write_folder_atomic,
};
use crate::text::escaped_json;

/// File of the resolved configuration, with every default.
const CONFIG: &str = "config.toml";
/// File of the plugins by digest.
pub const LOCK_FILE: &str = "plugins.lock";
/// File of the records: one JSON object per line, one line per epoch.
const METRICS: &str = "metrics.jsonl";
/// Folder of the contact sheets by epoch.
const SAMPLES: &str = "samples";
/// Folder of the checkpoints, which are folders by epoch.
const CHECKPOINTS: &str = "checkpoints";
/// File in a checkpoint with the digests of its other files, as `sha256sum` writes and checks them.
const SUMS: &str = "SHA256SUMS";
/// Folder of the LoRA with the highest monitor reward.
const BEST: &str = "best";
/// Folder of what came after a checkpoint from which the run was resumed, although it had later ones.
const REWOUND: &str = "rewound";
/// Image of samples from the same noise before and after training.
pub const BEFORE_AFTER: &str = "before-after.png";
/// Image of the confusion matrix of held-out images.
pub const CONFUSION: &str = "confusion.png";

/// A run's folder, held by this process alone until it is dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    events: EventWriter,
    /// The locked folder; `None` on filesystems without locks.
    _held: Option<File>,
}

impl RunDir {
    /// Starts a run in `path`, which may exist if it is empty, with the configuration in it and the plugins locked.
    pub fn create(path: &Path, config_toml: &str, lock: &PluginsLock, info: &RunInfo) -> Result<Self> {
        Self::check_vacant(path)?;
        let existed = path.exists();
        fs::create_dir_all(path).map_err(|e| FileError::write(path, e))?;
        let run = Self::hold(path)?;
        // Another process may have used the folder in the meantime; its files must not be removed below.
        Self::check_vacant(path)?;
        let filled = (|| {
            sweep(path)?;
            for folder in [SAMPLES, CHECKPOINTS] {
                let folder = path.join(folder);
                fs::create_dir_all(&folder).map_err(|e| FileError::write(&folder, e))?;
            }
            run.write_plugins_lock(lock)?;
            write_atomic(&path.join(info::FILE), info.to_toml().as_bytes())?;
            // The configuration is written last: a folder with one is a complete run.
            run.write_config(config_toml)
        })();
        if let Err(error) = filled {
            // All contents of the folder were just created by the lines above.
            drop(if existed { empty(path) } else { fs::remove_dir_all(path) });
            return Err(error);
        }
        Ok(run)
    }

    /// As [`RunDir::create`]; where `path` is taken, in `path-2`, `path-3` and so on: runs that start within a second have
    /// the same default folder.
    pub fn create_numbered(path: &Path, config_toml: &str, lock: &PluginsLock, info: &RunInfo) -> Result<Self> {
        let mut free = path.to_owned();
        for number in 2.. {
            match Self::create(&free, config_toml, lock, info) {
                Err(RunError::NotEmpty(_) | RunError::HoldsRun(_) | RunError::Busy(_)) => {
                    let mut name = path.as_os_str().to_owned();
                    name.push(format!("-{number}"));
                    free = name.into();
                }
                created => return created,
            }
        }
        unreachable!("the numbers do not end")
    }

    /// Returns an error if `path` is not empty, so that no run can be started in it. Writes nothing.
    ///
    /// A process that was killed while it started a run leaves no run: what it left counts as nothing.
    pub fn check_vacant(path: &Path) -> Result<()> {
        if path.join(CONFIG).exists() {
            return Err(RunError::HoldsRun(path.to_owned()));
        }
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(FileError::write(path, error).into()),
        };
        for entry in entries {
            let entry = entry.map_err(|error| FileError::read(path, error))?;
            let is_left_over = match &*entry.file_name().to_string_lossy() {
                // Fails unless it is an empty folder.
                SAMPLES | CHECKPOINTS => fs::read_dir(entry.path()).is_ok_and(|mut entries| entries.next().is_none()),
                name => [LOCK_FILE, info::FILE].contains(&name) || is_temporary(name),
            };
            if !is_left_over {
                return Err(RunError::NotEmpty(path.to_owned()));
            }
        }
        Ok(())
    }

    /// Opens a run to resume it; removes partially written files of a killed process.
    ///
    /// Call [`rewind`](Self::rewind) next, with the epoch of the checkpoint from which training resumes.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join(CONFIG).is_file() {
            return Err(RunError::NotARun(path.to_owned()));
        }
        let run = Self::hold(path)?;
        for folder in [path.to_owned(), path.join(SAMPLES), path.join(CHECKPOINTS), path.join(BEST)] {
            sweep(&folder)?;
        }
        for sampled in Sampled::ALL {
            sweep(&path.join(IMAGES).join(sampled.as_str()))?;
        }
        // An incomplete last line would corrupt the line that is appended to it.
        let text = read(path, METRICS)?;
        let whole = whole_lines(&text);
        if whole.len() < text.len() {
            write_atomic(&path.join(METRICS), whole.as_bytes())?;
        }
        Ok(run)
    }

    /// Returns the run under `runs` that was written to last, among those whose [`RunInfo`] is `wanted`.
    pub fn newest_under(runs: &Path, wanted: impl Fn(&RunInfo) -> bool) -> Option<PathBuf> {
        let written = |run: &Path| {
            let modified = |name: &str| fs::metadata(run.join(name)).and_then(|file| file.modified()).ok();
            modified(CONFIG).map(|config| modified(METRICS).map_or(config, |metrics| metrics.max(config)))
        };
        let folders = fs::read_dir(runs).ok()?.flatten().map(|entry| entry.path());
        let folders = folders.filter(|path| wanted(&info(path)));
        let (_, newest) = folders.filter_map(|path| Some((written(&path)?, path))).max()?;
        Some(newest)
    }

    fn hold(path: &Path) -> Result<Self> {
        let folder = File::open(path).map_err(|e| FileError::read(path, e))?;
        let held = match folder.try_lock() {
            Ok(()) => Some(folder),
            Err(TryLockError::WouldBlock) => return Err(RunError::Busy(path.to_owned())),
            // Some network filesystems have no locks; training without one is better than an error.
            Err(TryLockError::Error(_)) => None,
        };
        Ok(Self { path: path.to_owned(), events: EventWriter::new(path), _held: held })
    }

    /// Path of the run's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces `config.toml`, for a run that is resumed with more epochs.
    pub fn write_config(&self, toml: &str) -> Result<()> {
        Ok(write_atomic(&self.path.join(CONFIG), toml.as_bytes())?)
    }

    /// Replaces `plugins.lock`, for a run that is resumed with other plugins.
    pub fn write_plugins_lock(&self, lock: &PluginsLock) -> Result<()> {
        Ok(write_atomic(&self.path.join(LOCK_FILE), lock.to_toml().as_bytes())?)
    }

    /// The plugins that the run was started with.
    pub fn plugins_lock(&self) -> Result<PluginsLock> {
        plugins_lock(&self.path)
    }

    /// Takes away the checkpoints, contact sheets, kept images and metrics that were written after `epoch`, or all of them if it is
    /// none; TensorBoard hides its later events.
    ///
    /// If there are later checkpoints, all of that is moved into a new folder under `rewound/`, which is returned;
    /// otherwise it is removed, since training writes the same again. Published files ([`publish`](Self::publish)) stay,
    /// since their names contain no epoch: the trainer publishes those of its checkpoint again.
    pub fn rewind(&mut self, epoch: Option<u64>) -> Result<Option<PathBuf>> {
        let is_later = |(at, _): &(u64, PathBuf)| Some(*at) > epoch;
        let checkpoints: Vec<_> = self.checkpoints()?.into_iter().filter(is_later).collect();
        let sheets = sheets(&self.path)?.into_iter().filter(is_later);
        let mut kept = Vec::new();
        for sampled in Sampled::ALL {
            kept.extend(
                kept_images(&self.path, sampled)?.into_iter().filter(is_later).map(|(at, path)| (sampled, at, path)),
            );
        }
        let path = self.path.join(METRICS);
        let text = read(&self.path, METRICS)?;
        // Lines are kept verbatim: a number that is read and written again may change in its last digit.
        let (mut earlier, mut later) = (String::new(), String::new());
        for (i, line) in whole_lines(&text).split_inclusive('\n').enumerate() {
            let value = serde_json::from_str(line).map_err(|error| damaged_line(&path, i, &error))?;
            if Some(record_epoch(&value)?) <= epoch { &mut earlier } else { &mut later }.push_str(line);
        }
        let rewound = match &checkpoints[..] {
            [] => None,
            [.., (last, _)] => Some(self.new_rewound(epoch.map_or(0, |epoch| epoch + 1), *last)?),
        };
        let renamed = |from: &Path, to: PathBuf| fs::rename(from, &to).map_err(|e| FileError::write(&to, e));
        if let Some(rewound) = &rewound {
            write_atomic(&rewound.join(METRICS), later.as_bytes())?;
        }
        for (at, sheet) in sheets {
            match &rewound {
                Some(rewound) => renamed(&sheet, rewound.join(SAMPLES).join(sheet_name(at)))?,
                None => remove_file(&sheet)?,
            }
        }
        for (sampled, at, images) in kept {
            match &rewound {
                Some(rewound) => {
                    let folder = rewound.join(IMAGES).join(sampled.as_str());
                    fs::create_dir_all(&folder).map_err(|e| FileError::write(&folder, e))?;
                    renamed(&images, folder.join(epoch_name(at)))?;
                }
                None => remove_folder(&images)?,
            }
        }
        if let Some(rewound) = &rewound {
            // Last, so that an interrupted call finds them and moves the rest; the newest before the others for the same reason.
            for (at, checkpoint) in checkpoints.iter().rev() {
                renamed(checkpoint, rewound.join(CHECKPOINTS).join(epoch_name(*at)))?;
            }
        }
        if earlier != text {
            write_atomic(&path, earlier.as_bytes())?;
        }
        self.events.purge_from(epoch.map_or(0, |epoch| epoch + 1));
        Ok(rewound)
    }

    /// Creates a folder for the epochs from `first` to `last` under `rewound/`.
    fn new_rewound(&self, first: u64, last: u64) -> Result<PathBuf> {
        let parent = self.path.join(REWOUND);
        fs::create_dir_all(&parent).map_err(|e| FileError::write(&parent, e))?;
        let name = format!("epochs-{first:04}-{last:04}");
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let mut free = std::iter::once(name.clone()).chain(numbered).map(|name| parent.join(name));
        let folder = free.find(|folder| !folder.exists()).expect("the numbers do not end");
        for folder in [SAMPLES, CHECKPOINTS].map(|name| folder.join(name)) {
            fs::create_dir_all(&folder).map_err(|e| FileError::write(&folder, e))?;
        }
        Ok(folder)
    }

    /// Appends one record to `metrics.jsonl`, and its numbers to TensorBoard.
    ///
    /// The line is on the disk when this function returns. In TensorBoard nested names are joined by `/`:
    /// `monitor/reward_mean`.
    ///
    /// # Errors
    /// If a number is not finite; then nothing is written.
    pub fn append_metrics<T: Serialize, M: Serialize>(&mut self, record: &Record<T, M>) -> Result<()> {
        let value = serde_json::to_value(record).map_err(|_| RunError::Record)?;
        if let Some(field) = first_null(&value, "") {
            return Err(RunError::NotFinite { epoch: record.epoch, field });
        }
        let path = self.path.join(METRICS);
        let line = escaped_json(&value.to_string()) + "\n";
        (|| {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.write_all(line.as_bytes())?;
            file.sync_all()
        })()
        .map_err(|e| FileError::write(&path, e))?;
        let mut scalars = Vec::new();
        collect_scalars(&value, "", &mut scalars);
        let written = self.events.scalars(SystemTime::now(), record.epoch, &scalars);
        Ok(written.map_err(|e| FileError::write(&self.path, e))?)
    }

    /// Writes `checkpoints/epoch-NNNN/` with `files` (name, bytes) and their digests, all or nothing, then removes all but
    /// the `keep` newest.
    pub fn save_checkpoint(&mut self, epoch: u64, files: &[(&str, Vec<u8>)], keep: usize) -> Result<PathBuf> {
        let path = self.path.join(CHECKPOINTS).join(epoch_name(epoch));
        let line = |(name, bytes): &(&str, Vec<u8>)| format!("{:x}  {name}\n", Sha256::digest(bytes));
        let sums: String = files.iter().map(line).collect();
        let files = files.iter().map(|(name, bytes)| (*name, &bytes[..]));
        write_folder_atomic(&path, files.chain([(SUMS, sums.as_bytes())]))?;
        self.prune_checkpoints(keep)?;
        Ok(path)
    }

    /// Removes all checkpoints but the `keep` newest, of which there is at least one.
    pub fn prune_checkpoints(&mut self, keep: usize) -> Result<()> {
        for (_, old) in self.checkpoints()?.iter().rev().skip(keep.max(1)) {
            remove_folder(old)?;
        }
        Ok(())
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
        fs::create_dir_all(folder).map_err(|e| FileError::write(folder, e))?;
        Ok(write_atomic(&path, bytes)?)
    }

    /// Removes a file of the run by its name, if it exists.
    pub fn unpublish(&mut self, name: &str) -> Result<()> {
        Ok(remove_file(&self.path.join(name))?)
    }

    /// Writes `samples/epoch-NNNN.png`, a contact sheet of images, and shows it in TensorBoard.
    pub fn save_sheet(&mut self, epoch: u64, sheet: &Sheet) -> Result<()> {
        let path = self.path.join(SAMPLES).join(sheet_name(epoch));
        let png = encode_png(&path, sheet, self.origin(Some(epoch)))?;
        write_atomic(&path, &png)?;
        let shown = self.events.image(SystemTime::now(), epoch, "samples", &png, sheet.image.dimensions());
        Ok(shown.map_err(|e| FileError::write(&self.path, e))?)
    }

    /// Writes an image of the run by its name, such as [`CONFUSION`].
    pub fn save_image(&mut self, name: &str, image: &Sheet) -> Result<()> {
        let path = self.path.join(name);
        Ok(write_atomic(&path, &encode_png(&path, image, self.origin(None))?)?)
    }

    /// The texts that every image of the run has: the model, the seed, the plugins, and the epoch of a sheet.
    fn origin(&self, epoch: Option<u64>) -> Vec<(String, String)> {
        /// The part of the configuration that is read here.
        #[derive(Deserialize)]
        struct Seeded {
            run: Seed,
        }
        #[derive(Deserialize)]
        struct Seed {
            seed: u64,
        }
        let model = Some(info(&self.path).model).filter(|model| !model.is_empty());
        let seed = config(&self.path).ok().and_then(|text| toml::from_str::<Seeded>(&text).ok());
        let plugins = plugins_lock(&self.path).unwrap_or_default().in_words();
        let texts = [
            ("epoch", epoch.map(|epoch| epoch.to_string())),
            ("seed", seed.map(|config| config.run.seed.to_string())),
            ("model", model),
            ("plugin", Some(plugins).filter(|plugins| !plugins.is_empty())),
        ];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?)));
        texts.chain([png::software()]).collect()
    }
}

/// Reads the [`RunInfo`] of a run; an empty one if the file is missing or damaged.
pub fn info(run: &Path) -> RunInfo {
    read(run, info::FILE).ok().and_then(|text| toml::from_str(&text).ok()).unwrap_or_default()
}

/// Reads the text of a run's `config.toml`.
///
/// # Errors
/// [`RunError::NotARun`] if there is none.
pub fn config(run: &Path) -> Result<String> {
    if !run.join(CONFIG).is_file() {
        return Err(RunError::NotARun(run.to_owned()));
    }
    read(run, CONFIG)
}

/// Reads the plugins that a run is trained with.
pub fn plugins_lock(run: &Path) -> Result<PluginsLock> {
    PluginsLock::from_toml(&read(run, LOCK_FILE)?)
        .map_err(|error| RunError::Damaged { path: run.join(LOCK_FILE), message: error.message().to_owned() })
}

/// Returns an error if a file of a checkpoint is not as it was written.
pub fn check_checkpoint(checkpoint: &Path) -> Result<()> {
    let path = checkpoint.join(SUMS);
    let damaged = |path: PathBuf, message: &str| RunError::Damaged { path, message: message.to_owned() };
    let sums = read(checkpoint, SUMS)?;
    if sums.is_empty() {
        return Err(damaged(path, "it is missing or empty"));
    }
    for line in sums.lines() {
        let Some((digest, name)) = line.split_once("  ").filter(|(_, name)| !name.contains('/')) else {
            return Err(damaged(path, "a line is not a digest and the name of a file"));
        };
        let path = checkpoint.join(name);
        let mut hash = Sha256::new();
        let read = File::open(&path).and_then(|mut file| io::copy(&mut file, &mut hash));
        read.map_err(|error| FileError::read(&path, error))?;
        if format!("{:x}", hash.finalize()) != digest {
            return Err(damaged(path, &format!("its SHA-256 is not the one in {SUMS}")));
        }
    }
    Ok(())
}

/// Reads all records of a run's `metrics.jsonl`, without an incomplete last line.
pub fn records<T, M>(run: &Path) -> Result<Vec<Record<T, M>>>
where
    T: Serialize + DeserializeOwned,
    M: Serialize + DeserializeOwned,
{
    let path = run.join(METRICS);
    let text = read(run, METRICS)?;
    let lines = whole_lines(&text).lines().enumerate();
    lines.map(|(i, line)| Record::parse(line).map_err(|error| damaged_line(&path, i, &error))).collect()
}

/// Returns the contact sheets of a run by epoch, the newest last.
pub fn sheets(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join(SAMPLES);
    if folder.is_symlink() {
        return Ok(Vec::new());
    }
    let mut sheets = numbered(&folder, ".png")?;
    sheets.retain(|(_, path)| is_regular(path));
    Ok(sheets)
}

/// Returns the path of a file of a run by its name, such as [`CONFUSION`], if there is one.
pub fn file(run: &Path, name: &str) -> Option<PathBuf> {
    Some(run.join(name)).filter(|path| is_regular(path))
}

/// Reads a text file of a run; it is empty if there is none.
///
/// A run may come from somebody else: what it contains is shown in reports, so no link out of it is followed, and no pipe
/// is waited for.
fn read(run: &Path, name: &str) -> Result<String> {
    let path = run.join(name);
    if path.symlink_metadata().is_ok() && !is_regular(&path) {
        return Err(RunError::Damaged { path, message: "it is not a regular file".to_owned() });
    }
    Ok(read_optional(&path)?)
}

/// Whether there is a file of this name that is no link, folder, pipe or device.
fn is_regular(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file())
}

/// Writes a file of the report into a run's folder. It takes no lock, so it also works while the run is training.
pub fn write_report_file(run: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = run.join(name);
    write_atomic(&path, bytes)?;
    Ok(path)
}

/// The name of an epoch, such as `epoch-0012`.
fn epoch_name(epoch: u64) -> String {
    format!("epoch-{epoch:04}")
}

/// The name of an epoch's contact sheet.
fn sheet_name(epoch: u64) -> String {
    format!("{}.png", epoch_name(epoch))
}

/// Returns the entries of `folder` named `epoch-N` and `suffix`, by number; none if the folder does not exist.
fn numbered(folder: &Path, suffix: &str) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FileError::read(folder, error).into()),
    };
    let number = |name: &str| name.strip_prefix("epoch-")?.strip_suffix(suffix)?.parse().ok();
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| FileError::read(folder, e))?;
        found.extend(entry.file_name().to_str().and_then(number).map(|epoch| (epoch, entry.path())));
    }
    found.sort();
    Ok(found)
}

fn damaged_line(path: &Path, i: usize, error: &serde_json::Error) -> RunError {
    RunError::Damaged { path: path.to_owned(), message: format!("line {} is not a record ({error})", i + 1) }
}

/// Returns `text` up to its last complete line: a process that is killed while appending leaves an incomplete line.
fn whole_lines(text: &str) -> &str {
    &text[..text.rfind('\n').map_or(0, |end| end + 1)]
}

fn record_epoch(record: &Value) -> Result<u64> {
    record.get("epoch").and_then(Value::as_u64).ok_or(RunError::Record)
}

/// Collects the finite numbers of a record except its epoch, with nested names joined by `/`.
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

/// Encodes an image of a run as PNG with its texts and more; errors name `path`.
fn encode_png(path: &Path, sheet: &Sheet, more: Vec<(String, String)>) -> Result<Vec<u8>> {
    let texts: Vec<_> = sheet.texts.iter().cloned().chain(more).collect();
    png::encode(&sheet.image, &texts).map_err(|source| RunError::Image { path: path.to_owned(), source })
}

/// Removes the contents of a folder, not the folder itself.
fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
