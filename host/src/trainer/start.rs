//! How a run starts, resumes and stops.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use tempfile::TempDir;

use crate::config::RunConfig;
use crate::interrupt::Interrupted;
use crate::optim::Diverged;
use crate::plugin::Pin;
use crate::processes::Processes;
use crate::run::{self, PluginsLock, RunDir, RunInfo};
use crate::text::{counted, sentence};

/// The start of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// In a new folder.
    New(PathBuf),
    /// In a new folder, or where that is taken in one with a number behind its name.
    NewNumbered(PathBuf),
    /// In a run's folder, at a checkpoint's epoch or at the newest one.
    Resume {
        /// The run's folder.
        folder: PathBuf,
        /// The checkpoint's epoch; the newest if none.
        epoch: Option<u64>,
        /// Whether a changed model, plugin or key is a warning instead of an error.
        force: bool,
    },
    /// As another start, with the plugins that a lock names and no others.
    Locked {
        /// The start.
        start: Box<Start>,
        /// The lock.
        lock: PluginsLock,
        /// The lock's file.
        path: PathBuf,
    },
    /// In the folder of the first process, which alone writes.
    OfFirst,
}

/// Returns the newest run of a command in a folder; one without its notes may be of any command.
pub(super) fn newest_of(runs: &Path, command: &str) -> Option<PathBuf> {
    RunDir::newest_under(runs, |info| info.command.is_empty() || info.command == command)
}

impl Start {
    /// Resolves `--resume` for a run of `command`; `target` is a run's folder, a checkpoint's folder, or none for the
    /// newest run.
    pub fn resume(target: Option<&Path>, command: &str, force: bool) -> Result<Self> {
        let Some(target) = target else {
            let folder = newest_of(Path::new("runs"), command).with_context(|| {
                format!("there is no run of `{command}` under ./runs to resume: name its folder, --resume DIR")
            })?;
            return Ok(Self::Resume { folder, epoch: None, force });
        };
        let (folder, epoch) = run_and_epoch(target)?;
        let started_by = run::info(&folder).command;
        // Without its notes, the run's configuration reveals the command.
        if !started_by.is_empty() && started_by != command {
            let (folder, target) = (folder.display(), target.display());
            bail!("{folder} is a run of `{started_by}`: resume it with `{started_by} --resume {target}`");
        }
        Ok(Self::Resume { folder, epoch, force })
    }

    /// Returns what references to registries mean: what the lock says, or that of the resumed run, to which the first of the
    /// processes has access.
    ///
    /// # Errors
    /// If the lock of the resumed run cannot be read.
    pub fn pins(&self, processes: &Processes) -> Result<BTreeMap<String, Pin>> {
        let lock = processes.from_first(|| {
            Ok(match self {
                Self::New(_) | Self::NewNumbered(_) | Self::OfFirst => None,
                Self::Resume { folder, .. } => Some((run::plugins_lock(folder)?.to_toml(), true)),
                Self::Locked { lock, .. } => Some((lock.to_toml(), false)),
            })
        })?;
        lock.map_or_else(|| Ok(BTreeMap::new()), |(text, is_own)| PluginsLock::from_toml(&text)?.pins(is_own))
    }

    /// Checks that a lock allows a run with these plugins, if the start has one.
    ///
    /// # Errors
    /// What is otherwise.
    pub fn check_locked(&self, lock: &PluginsLock) -> Result<()> {
        let Self::Locked { lock: locked, path, .. } = self else { return Ok(()) };
        match locked.forbids(lock) {
            Some(conflict) => bail!("{} forbids this: {conflict}; `host plugin lock` writes it anew", path.display()),
            None => Ok(()),
        }
    }

    /// Checks, before long work starts, that a new run's folder is free, or that no other process writes to the resumed
    /// run and its plugins are those of `lock`; finds the checkpoint to resume from. The first process does that, and the others
    /// get the checkpoint from it.
    ///
    /// # Errors
    /// If the folder is taken, or the plugins are not those of the run, or differ between the processes.
    pub fn claim(self, lock: PluginsLock, processes: &Processes) -> Result<Claim> {
        processes.compare("plugins, encoders and prompts", &lock.to_toml())?;
        if processes.count() == 1 {
            return self.claim_folder(lock);
        }
        let mut own = None;
        let of_first = processes.from_first(|| {
            let claim = self.claim_folder(lock.clone())?;
            let checkpoint =
                claim.checkpoint().map(|(epoch, folder)| anyhow::Ok((epoch, files(folder)?))).transpose()?;
            let forced = claim.start.is_forced();
            own = Some(claim);
            Ok((checkpoint, forced))
        })?;
        if let Some(own) = own {
            return Ok(own);
        }
        let (checkpoint, forced) = of_first;
        let received = checkpoint.map(|(epoch, files)| Received::new(epoch, &files)).transpose()?;
        Ok(Claim { start: Self::OfFirst, lock, resumed: None, received, forced })
    }

    fn claim_folder(self, lock: PluginsLock) -> Result<Claim> {
        let resumed = match &self {
            Self::Locked { .. } => {
                self.check_locked(&lock)?;
                let Self::Locked { start, .. } = self else { unreachable!("it is one") };
                return start.claim_folder(lock);
            }
            Self::OfFirst => bail!("this process has no folder of its own"),
            Self::New(folder) => {
                RunDir::check_vacant(folder)?;
                None
            }
            Self::NewNumbered(_) => None,
            Self::Resume { folder, epoch, .. } => {
                let run = RunDir::open(folder)?;
                let conflict = run.plugins_lock()?.conflict(&lock);
                let checkpoint = checkpoint(&run, *epoch)?;
                if let Some(conflict) = conflict {
                    self.refuse(anyhow!("{}: {conflict}", folder.display()))?;
                }
                Some((run, checkpoint))
            }
        };
        let forced = self.is_forced();
        Ok(Claim { start: self, lock, resumed, received: None, forced })
    }

    fn folder(&self) -> &Path {
        match self {
            Self::New(folder) | Self::NewNumbered(folder) | Self::Resume { folder, .. } => folder,
            Self::Locked { start, .. } => start.folder(),
            Self::OfFirst => Path::new(""),
        }
    }

    /// Returns the reason against resuming a run as an error, or, with `--force`, warns of it.
    pub fn refuse(&self, error: Error) -> Result<()> {
        refuse(error, self.is_forced())
    }

    fn is_forced(&self) -> bool {
        matches!(self, Self::Resume { force: true, .. })
    }
}

fn refuse(error: Error, forced: bool) -> Result<()> {
    if !forced {
        return Err(error.context("this would be another run (--force resumes it anyway)"));
    }
    tracing::warn!("{error}; resuming anyway");
    Ok(())
}

/// Returns the files of a checkpoint.
fn files(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![];
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.file_name().to_string_lossy().into_owned(), fs_err::read(entry.path())?));
    }
    Ok(files)
}

/// A checkpoint that this process got from the first one.
#[derive(Debug)]
struct Received {
    epoch: u64,
    folder: TempDir,
}

impl Received {
    fn new(epoch: u64, files: &[(String, Vec<u8>)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for (name, bytes) in files {
            fs_err::write(folder.path().join(name), bytes)?;
        }
        Ok(Self { epoch, folder })
    }
}

/// A run's folder that is reserved for this process and not written to yet: a checkpoint is loaded and compared first,
/// [`Claim::open`] comes last.
#[derive(Debug)]
pub struct Claim {
    start: Start,
    lock: PluginsLock,
    /// The resumed run, locked by this process, with the epoch and folder of the checkpoint to resume from, if it has
    /// one.
    resumed: Option<(RunDir, Option<(u64, PathBuf)>)>,
    /// The checkpoint of the first process, in the others.
    received: Option<Received>,
    /// Whether a changed model, plugin or key is a warning instead of an error.
    forced: bool,
}

impl Claim {
    /// Returns the epoch and the folder of the checkpoint to resume from.
    pub fn checkpoint(&self) -> Option<(u64, &Path)> {
        if let Some(Received { epoch, folder }) = &self.received {
            return Some((*epoch, folder.path()));
        }
        let (_, checkpoint) = self.resumed.as_ref()?;
        checkpoint.as_ref().map(|(epoch, folder)| (*epoch, &**folder))
    }

    /// Returns the error of a checkpoint that cannot be resumed from, with the command, which `resume` returns for a
    /// folder, that resumes from the checkpoint before it.
    pub(super) fn without_checkpoint(&self, cause: Error, resume: impl Fn(&Path) -> String) -> Error {
        let Some((run, Some((epoch, _)))) = &self.resumed else { return cause };
        let earlier = run.checkpoints().unwrap_or_default().into_iter().rfind(|(at, _)| at < epoch);
        let how = match earlier {
            Some((_, folder)) => format!("resume from the checkpoint before it: `{}`", resume(&folder)),
            None => "there is no checkpoint before it: start a new run".to_owned(),
        };
        anyhow!("{}; {how}", sentence(&cause))
    }

    /// Returns the run's folder; the one of a new run may still get a number.
    pub fn folder(&self) -> &Path {
        self.start.folder()
    }

    /// As [`Start::refuse`].
    pub fn refuse(&self, error: Error) -> Result<()> {
        refuse(error, self.forced)
    }

    /// Opens the run: a new one is created; a resumed one gets `config` and is rewound to its checkpoint's epoch, or to
    /// the start if it has no checkpoint.
    pub fn open(self, config: &impl RunConfig, info: &RunInfo) -> Result<RunDir> {
        let config = config.to_toml()?;
        let Some((mut run, checkpoint)) = self.resumed else {
            return Ok(match &self.start {
                Start::NewNumbered(folder) => RunDir::create_numbered(folder, &config, &self.lock, info)?,
                start => RunDir::create(start.folder(), &config, &self.lock, info)?,
            });
        };
        // Rewinding comes first: if the process stops in between, opening can be repeated.
        if let Some(rewound) = run.rewind(checkpoint.as_ref().map(|(epoch, _)| *epoch))? {
            tracing::warn!("the later epochs of the run are kept in {}", rewound.display());
        }
        run.write_plugins_lock(&self.lock)?;
        run.write_config(&config)?;
        match checkpoint {
            Some((epoch, folder)) => tracing::info!("resumed after epoch {epoch} from {}", folder.display()),
            None => tracing::info!("no checkpoint yet: {} starts again from its first epoch", run.path().display()),
        }
        Ok(run)
    }
}

/// Returns a run's checkpoint of an epoch, or its newest one, if any.
fn checkpoint(run: &RunDir, epoch: Option<u64>) -> Result<Option<(u64, PathBuf)>> {
    let checkpoints = run.checkpoints()?;
    let Some(epoch) = epoch else { return Ok(checkpoints.into_iter().max()) };
    let found = checkpoints.into_iter().find(|(found, _)| *found == epoch);
    Ok(Some(found.with_context(|| format!("{} has no checkpoint of epoch {epoch}", run.path().display()))?))
}

/// Returns the run and the epoch that `--resume` names.
fn run_and_epoch(target: &Path) -> Result<(PathBuf, Option<u64>)> {
    if target.join("config.toml").is_file() {
        return Ok((target.to_owned(), None));
    }
    let epoch = target.file_name().and_then(|name| name.to_str()?.strip_prefix("epoch-")?.parse().ok());
    let folder = target.parent().and_then(Path::parent);
    match (epoch, folder) {
        (Some(epoch), Some(folder)) if target.is_dir() => {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            Ok((folder.to_owned(), Some(epoch)))
        }
        _ => bail!(
            "{} is neither a run's folder (it has no config.toml) nor a checkpoint (checkpoints/epoch-NNNN)",
            target.display()
        ),
    }
}

/// Returns the error of a run that `cause` ended in `epoch` of `epochs`: it says what is kept and how to resume, with
/// the command that `resume` returns for a folder. `saved` is the result of saving the last finished epoch.
pub(super) fn stopped(
    run: &RunDir,
    resume: impl Fn(&Path) -> (String, bool),
    (epoch, epochs): (u64, u64),
    saved: Result<()>,
    cause: Error,
) -> Error {
    let newest = run.checkpoints().unwrap_or_default().pop();
    let folder = run.path().display();
    let kept = format!(
        "{} of {} are kept in {folder}",
        newest.as_ref().map_or(0, |(epoch, _)| *epoch),
        counted(epochs, "epoch")
    );
    let (command, can_force) = resume(run.path());
    let how = format!("resume with `{command}`");
    let (cause, unsaved) = match (cause.is::<Interrupted>(), saved) {
        (true, Ok(())) => return Interrupted { kept: format!("{kept}; {how}") }.into(),
        (true, Err(unsaved)) => (unsaved, None),
        (false, saved) => (cause, saved.err()),
    };
    let how = match (cause.downcast_ref::<Diverged>(), newest.filter(|_| can_force)) {
        (None, _) => how,
        (Some(Diverged { lower, .. }), None) => format!("start again with a lower {lower}"),
        (Some(Diverged { lower, .. }), Some((_, newest))) => format!(
            "resume from this checkpoint or an earlier one with a lower {lower}: `{} --force --set {lower}=…`",
            resume(&newest).0
        ),
    };
    let what = match unsaved.map(|unsaved| sentence(&unsaved)) {
        None => sentence(&cause),
        // Most likely the same full disk.
        Some(unsaved) if sentence(&cause) == unsaved => format!("{unsaved}, so the last epoch is not kept"),
        Some(unsaved) => format!("{}; the last epoch is not kept: {unsaved}", sentence(&cause)),
    };
    anyhow!("{what}; stopped in epoch {epoch}; {kept}; {how}")
}
