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
    /// `--resume` with what may follow it: a run's folder, a checkpoint's folder, or nothing for the newest run.
    pub fn resume(target: Option<&Path>, force: bool) -> Result<Self> {
        let Some(target) = target else {
            let newest = RunDir::newest_under(Path::new("runs"));
            let folder = newest.context("there is no run under ./runs to resume: name its folder, --resume DIR")?;
            return Ok(Self::Resume { folder, epoch: None, force });
        };
        if target.join("config.toml").is_file() {
            return Ok(Self::Resume { folder: target.to_owned(), epoch: None, force });
        }
        let epoch = target.file_name().and_then(|name| name.to_str()?.strip_prefix("epoch-")?.parse().ok());
        let folder = target.parent().and_then(Path::parent);
        match (epoch, folder) {
            (Some(epoch), Some(folder)) if target.is_dir() => {
                let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                Ok(Self::Resume { folder: folder.to_owned(), epoch: Some(epoch), force })
            }
            _ => bail!(
                "{} is neither a run's folder (it has no config.toml) nor a checkpoint (checkpoints/epoch-NNNN)",
                target.display()
            ),
        }
    }

    /// The run's folder: a new one, or that of the run to go on with, whose plugins must be the same.
    pub fn open(&self, config: &impl RunConfig, lock: &PluginsLock, info: &RunInfo) -> Result<RunDir> {
        match self {
            Self::New(folder) => {
                let mut run = RunDir::create(folder, &config.to_toml()?, lock)?;
                run.write_info(info)?;
                Ok(run)
            }
            Self::Resume { folder, .. } => {
                let run = RunDir::open(folder)?;
                if let Some(conflict) = run.plugins_lock()?.conflict(lock) {
                    self.refuse(anyhow!("{}: {conflict}", folder.display()))?;
                }
                run.write_config(&config.to_toml()?)?;
                Ok(run)
            }
        }
    }

    /// The checkpoint to go on from. A resumed run that has none yet is taken back to its beginning.
    pub fn checkpoint(&self, run: &mut RunDir) -> Result<Option<(u64, PathBuf)>> {
        let Self::Resume { epoch, .. } = self else { return Ok(None) };
        let checkpoints = run.checkpoints()?;
        let found = match epoch {
            Some(epoch) => {
                let found = checkpoints.into_iter().find(|(found, _)| found == epoch);
                Some(found.with_context(|| format!("{} has no checkpoint of epoch {epoch}", run.path().display()))?)
            }
            None => checkpoints.into_iter().max(),
        };
        if found.is_none() {
            tracing::info!("no checkpoint yet: {} starts again from its first epoch", run.path().display());
            run.rewind(0)?;
        }
        Ok(found)
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

/// Ends a run before its last epoch, by an interrupt or by `cause`: writes the report, and says what is kept and how
/// `command` goes on.
pub fn stopped(run: &mut RunDir, command: &str, (done, epochs): (u64, u64), cause: Option<Error>) -> Error {
    // What stopped the run is what its user must hear of, not this.
    if let Err(error) = run.write_report() {
        tracing::warn!("no report: {error}");
    }
    let folder = run.path().display();
    let kept = format!("{done} of {epochs} epochs are kept in {folder}; go on with `{command} --resume {folder}`");
    match cause {
        None => Interrupted { kept }.into(),
        Some(error) => error.context(format!("stopped in epoch {}; {kept}", done + 1)),
    }
}
