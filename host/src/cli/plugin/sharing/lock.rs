//! `host plugin lock`: what a configuration's or a project's plugins are today.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use tch::Device;

use crate::cli::plugin::encoders;
use crate::cli::run_args::{file, project_layers};
use crate::config::{FineTuneConfig, PluginLimits, RunConfig as _};
use crate::context::Context;
use crate::data::prompts::PromptSet;
use crate::fs::write_atomic;
use crate::metrics::Evaluator;
use crate::plugin::PluginHost;
use crate::plugin::store::Project;
use crate::run::{LOCK_FILE, LockedEncoder, LockedPlugin, PluginsLock};
use crate::text::{counted, to_json};

/// Write plugins.lock: the versions and digests of the plugins that a run's configuration names, of their encoders and of
/// the prompts, for `host train --locked`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin lock --config run.toml       writes plugins.lock beside run.toml
  host plugin lock                         for the plugins of ambiguity.toml, beside it
  host plugin lock --config run.toml --check      exits with 1 if plugins.lock says something else

host train --config run.toml --locked uses the locked versions, and refuses everything that differs.")]
pub struct LockArgs {
    /// The configuration of a run [default: the plugins of ambiguity.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The preset that the configuration overrides
    #[arg(long, value_name = "NAME", default_value = "paper-512", requires = "config")]
    preset: String,
    /// The file [default: plugins.lock beside the configuration or ambiguity.toml]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Compare with the file instead of writing it
    #[arg(long)]
    check: bool,
    /// Print the lock as one JSON document
    #[arg(long)]
    json: bool,
}

impl LockArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let (lock, folder) = match &self.config {
            Some(config) => {
                let folder = config.parent().unwrap_or(Path::new("")).to_owned();
                (of_run(config, &self.preset, context)?, folder)
            }
            None => of_project(context)?,
        };
        let path = self.output.clone().unwrap_or_else(|| folder.join(LOCK_FILE));
        if self.json {
            println!("{}", to_json(&lock));
        }
        if self.check {
            let before = PluginsLock::open(&path)?;
            if let Some(conflict) = before.conflict(&lock) {
                bail!("{} is not what is there today: {conflict}; `host plugin lock` writes it anew", path.display());
            }
            return Ok(());
        }
        write_atomic(&path, lock.to_toml().as_bytes())?;
        let plugins = counted(lock.plugins.len() as u64, "plugin");
        let encoders = counted(lock.encoders.len() as u64, "encoder");
        context.progress.println(format!("{} has {plugins} and {encoders}", path.display()));
        Ok(())
    }
}

/// Returns the lock that a run of a configuration would have.
fn of_run(path: &Path, preset: &str, context: &Context) -> Result<PluginsLock> {
    let layers = [project_layers()?, vec![file(path)?]].concat();
    let config = FineTuneConfig::resolve(preset, &layers)?;
    config.check()?;
    ensure!(!config.reward.plugin.is_empty(), "{} has no [[reward.plugin]]", path.display());
    let prompts = PromptSet::new(&config.prompts)?;
    let mut evaluator = Evaluator::of_run(&config, Device::Cpu, &BTreeMap::new(), context)?;
    Ok(PluginsLock { prompts: Some(prompts.digest()), ..evaluator.lock()? })
}

/// Returns the lock of a project's plugins, and the project's folder.
fn of_project(context: &Context) -> Result<(PluginsLock, PathBuf)> {
    let project = Project::find()?
        .context("there is no ambiguity.toml here or above: name the configuration of a run with --config")?;
    ensure!(!project.plugins.is_empty(), "{}: ambiguity.toml has no [plugins]", project.folder.display());
    let host = PluginHost::of_command(PluginLimits::preset(), context)?;
    let mut encoders = encoders(&[], Device::Cpu, context)?;
    let (mut plugins, mut names) = (vec![], vec![]);
    for name in project.plugins.keys() {
        let plugin = host.load(name, BTreeMap::new())?;
        names.extend(plugin.description().encoders.iter().cloned());
        plugins.push(LockedPlugin::of(name, &*plugin));
    }
    let encoders = LockedEncoder::all(&names, &mut encoders)?;
    Ok((PluginsLock { prompts: None, plugins, encoders }, project.folder))
}
