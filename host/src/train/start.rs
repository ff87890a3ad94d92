//! Where a run begins, goes on and stops: what all trainings that have a run's folder share.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail};

use crate::config::RunConfig;
use crate::interrupt::Interrupted;
use crate::run::{PluginsLock, RunDir, RunInfo};

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
    /// `--resume` of a run of `command`, with what may follow it: a run's folder, a checkpoint's folder, or nothing for
    /// the newest run.
    pub fn resume(target: Option<&Path>, command: &str, force: bool) -> Result<Self> {
        let Some(target) = target else {
            let newest = RunDir::newest_under(Path::new("runs"), |info| info.command == command);
            let folder = newest.with_context(|| {
                format!("there is no run of `{command}` under ./runs to resume: name its folder, --resume DIR")
            })?;
            return Ok(Self::Resume { folder, epoch: None, force });
        };
        let (folder, epoch) = run_and_epoch(target)?;
        let begun = RunDir::info(&folder).command;
        // Without its notes, the configuration is left to tell.
        if !begun.is_empty() && begun != command {
            let (folder, target) = (folder.display(), target.display());
            bail!("{folder} is a run of `{begun}`: go on with `{begun} --resume {target}`");
        }
        Ok(Self::Resume { folder, epoch, force })
    }

    /// What is to be known before long work begins: that a new run's folder is free, or that nobody else writes to the
    /// resumed one and its plugins are those of `lock`. What is written to a run's folder is written later, by
    /// [`Claim::open`] and [`Start::go_on`].
    pub fn claim(&self, lock: PluginsLock) -> Result<Claim> {
        match self {
            Self::New(folder) => {
                RunDir::check_vacant(folder)?;
                Ok(Claim::New { folder: folder.clone(), lock })
            }
            Self::Resume { folder, .. } => {
                let run = RunDir::open(folder)?;
                if let Some(conflict) = run.plugins_lock()?.conflict(&lock) {
                    self.refuse(anyhow!("{}: {conflict}", folder.display()))?;
                }
                Ok(Claim::Resumed(run))
            }
        }
    }

    /// The checkpoint to go on from; none for a new run, or a resumed one that has none yet.
    pub fn checkpoint(&self, run: &RunDir) -> Result<Option<(u64, PathBuf)>> {
        let Self::Resume { epoch, .. } = self else { return Ok(None) };
        let checkpoints = run.checkpoints()?;
        match epoch {
            Some(epoch) => {
                let found = checkpoints.into_iter().find(|(found, _)| found == epoch);
                Ok(Some(found.with_context(|| format!("{} has no checkpoint of epoch {epoch}", run.path().display()))?))
            }
            None => Ok(checkpoints.into_iter().max()),
        }
    }

    /// Makes a resumed run one of `config` that has come to the end of `checkpoint`, or is at its beginning where that is
    /// none. To be called once everything was found to be good: before, the folder is as it was.
    pub fn go_on(&self, run: &mut RunDir, config: &impl RunConfig, checkpoint: Option<&(u64, PathBuf)>) -> Result<()> {
        if let Self::New(_) = self {
            return Ok(());
        }
        run.write_config(&config.to_toml()?)?;
        match checkpoint {
            Some((epoch, folder)) => {
                tracing::info!("resumed after epoch {epoch} from {}", folder.display());
                run.rewind(*epoch)?;
            }
            None => {
                tracing::info!("no checkpoint yet: {} starts again from its first epoch", run.path().display());
                run.rewind(0)?;
            }
        }
        Ok(())
    }

    /// What stands against going on with a run: an error, or, where the user insists, a warning.
    pub fn refuse(&self, error: Error) -> Result<()> {
        if !matches!(self, Self::Resume { force: true, .. }) {
            return Err(error.context("this would be another run (--force goes on all the same)"));
        }
        tracing::warn!("{error}; going on all the same");
        Ok(())
    }
}

/// The run and the epoch that `--resume` names.
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

/// A run's folder that can be written to.
#[derive(Debug)]
pub enum Claim {
    /// It is free.
    New {
        /// The folder, which need not exist.
        folder: PathBuf,
        /// The run's plugins.
        lock: PluginsLock,
    },
    /// It is held by this process.
    Resumed(RunDir),
}

impl Claim {
    /// The run: a new one is made.
    pub fn open(self, config: &impl RunConfig, info: &RunInfo) -> Result<RunDir> {
        match self {
            Self::New { folder, lock } => Ok(RunDir::create(&folder, &config.to_toml()?, &lock, info)?),
            Self::Resumed(run) => Ok(run),
        }
    }
}

/// Training has left the finite numbers: the same again would end the same.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Diverged {
    /// Where, and when.
    pub what: String,
    /// The key that holds it back.
    pub lower: &'static str,
}

/// Ends a run before its last epoch, by an interrupt or by `cause`: writes the report, and says what is kept and how
/// `command` goes on.
pub fn stopped(run: &mut RunDir, command: &str, (done, epochs): (u64, u64), cause: Option<Error>) -> Error {
    // What stopped the run is what its user must hear of, not this.
    if let Err(error) = run.write_report() {
        tracing::warn!("no report: {error}");
    }
    let folder = run.path().display();
    let kept = format!("{done} of {epochs} epochs are kept in {folder}");
    let go_on = format!("go on with `{command} --resume {folder}`");
    let Some(error) = cause else { return Interrupted { kept: format!("{kept}; {go_on}") }.into() };
    let go_on = match error.downcast_ref::<Diverged>() {
        None => go_on,
        Some(Diverged { lower, .. }) => match run.checkpoints().unwrap_or_default().last() {
            None => format!("start again with a lower {lower}"),
            Some((_, newest)) => format!(
                "go on from this checkpoint or an earlier one with a lower {lower}: `{command} --resume {} --force --set \
                 {lower}=…`",
                newest.display()
            ),
        },
    };
    error.context(format!("stopped in epoch {}; {kept}; {go_on}", done + 1))
}
