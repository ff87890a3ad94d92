//! The flags of all commands that train in a run's folder, and their layers of configuration.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use toml::Value;

use crate::config::{Layer, RunConfig};
use crate::context::Context;
use crate::hardware;
use crate::plugin::store::{PROJECT_FILE, Project};
use crate::run::{LOCK_FILE, PluginsLock, RunInfo, default_folder, unix_seconds};
use crate::trainer::Start;

/// The start of a run, and the layers over its preset.
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// A TOML file that overrides the preset
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// One key that overrides all files, as in monitor.every=4; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The run's folder [default: runs/DATE-WHAT]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// The seed of all randomness
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Resume a run (its folder, or one of its checkpoints) [default: the newest under runs/]
    #[arg(long, value_name = "CHECKPOINT|DIR", num_args = 0..=1, conflicts_with_all = ["preset", "seed"])]
    resume: Option<Option<PathBuf>>,
    /// Resume a run although its data, a plugin or a key that matters has changed
    #[arg(long, requires = "resume")]
    force: bool,
    /// Use the plugins of plugins.lock, and refuse the run if anything in it is otherwise [default: beside --config, or
    /// beside ambiguity.toml]
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    locked: Option<Option<PathBuf>>,
    /// Print the resolved configuration and the estimated cost of the run, without training
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl RunArgs {
    /// Whether a run is resumed.
    pub(super) fn resumes(&self) -> bool {
        self.resume.is_some()
    }

    /// Returns the start of a new run, in the given folder, or in one named by today's date and `what`.
    pub(super) fn new_run(&self, what: &str) -> Start {
        match &self.out {
            Some(out) => Start::New(out.clone()),
            None => Start::NewNumbered(default_folder(Path::new("runs"), what, SystemTime::now())),
        }
    }

    /// Returns a start with the plugins of `--locked`.
    pub(super) fn locked(&self, start: Start) -> Result<Start> {
        let Some(named) = &self.locked else { return Ok(start) };
        let path = match (named, &self.config) {
            (Some(path), _) => path.clone(),
            (None, Some(config)) => config.with_file_name(LOCK_FILE),
            (None, None) => {
                let project =
                    Project::find()?.context("--locked needs a lock: name its file, or the --config beside it")?;
                project.folder.join(LOCK_FILE)
            }
        };
        let lock = PluginsLock::open(&path)?;
        Ok(Start::Locked { start: Box::new(start), lock, path })
    }

    /// Returns the run of `command` to resume, with its own configuration overridden by `over`; keys that affect
    /// training must not change.
    pub(super) fn resumed<C: RunConfig>(
        &self,
        command: &str,
        over: Vec<Layer>,
        resolve: impl FnOnce(&[Layer]) -> Result<C>,
    ) -> Result<(C, Start)> {
        let start = Start::resume(self.resume.as_ref().and_then(Option::as_deref), command, self.force)?;
        let Start::Resume { folder, .. } = &start else { bail!("only a run's folder can be resumed") };
        let path = folder.join("config.toml");
        let before = C::read(&path)?;
        let mut layers = vec![file(&path)?];
        layers.extend(over);
        let now = resolve(&layers)?;
        if let Err(error) = before.check_resumable(&now, C::FREE_KEYS) {
            start.refuse(error)?;
        }
        Ok((now, start))
    }

    /// Returns the layers over the preset: the file, then the flags, including the command's `own`, then `--set`.
    pub(super) fn layers(&self, own: Vec<Layer>) -> Result<Vec<Layer>> {
        // A resumed run has the encoders that it was started with.
        let mut layers = if self.resumes() { vec![] } else { project_layers()? };
        layers.extend(self.config.as_deref().map(file).transpose()?);
        if let Some(device) = &self.device {
            layers.push(flag("device", format!("run.device = {}", quoted(device))));
        }
        if let Some(seed) = self.seed {
            layers.push(flag("seed", format!("run.seed = {seed}")));
        }
        layers.extend(own);
        for set in &self.sets {
            layers.push(Layer::set(set)?);
        }
        Ok(layers)
    }
}

/// Returns the configuration and the start that the first process resolves, for all of them.
pub(super) fn shared<C: RunConfig, P>(
    resolve: impl FnOnce() -> Result<(C, Start, Option<P>)>,
    context: &Context,
) -> Result<(C, Start, Option<P>)> {
    let mut own = None;
    let text = context.processes.from_first(|| {
        let (config, _, _) = own.insert(resolve()?);
        config.to_toml()
    })?;
    own.map_or_else(|| Ok((C::of_table(toml::from_str(&text)?, &[])?, Start::OfFirst, None)), Ok)
}

/// Returns the notes of a run of `command` that starts now.
pub(super) fn run_info(
    command: &str,
    preset: Option<String>,
    model: String,
    device: &str,
    context: &Context,
) -> Result<RunInfo> {
    let processor = context.device(device)?;
    Ok(RunInfo {
        command: command.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: unix_seconds(SystemTime::now()),
        preset,
        model,
        device: device.to_owned(),
        hardware: hardware::name(processor).unwrap_or_default(),
        memory: hardware::memory(processor).unwrap_or_default(),
        threads: usize::try_from(tch::get_num_threads())?,
        processes: context.processes.count(),
    })
}

/// Returns the layer of the encoders that the project's file names, if the working folder is a project's.
pub(super) fn project_layers() -> Result<Vec<Layer>> {
    let Some(project) = Project::find()? else { return Ok(vec![]) };
    let lines = project.encoders.iter().map(|(name, place)| format!("{} = {}\n", quoted(name), quoted(place)));
    let text: String = ["[encoders]\n".to_owned()].into_iter().chain(lines).collect();
    Ok(vec![Layer { origin: project.folder.join(PROJECT_FILE).display().to_string(), text }])
}

/// Returns the layers of `--encoder NAME=DIR`.
pub(super) fn encoder_layers(encoders: &[String]) -> Result<Vec<Layer>> {
    let layer = |encoder: &String| {
        let (name, folder) = encoder
            .split_once('=')
            .with_context(|| format!("--encoder {encoder}: write NAME=DIR, as in --encoder clip=/models/clip"))?;
        Ok(flag("encoder", format!("[encoders]\n{} = {}", quoted(name), quoted(folder))))
    };
    encoders.iter().map(layer).collect()
}

/// Returns a flag's layer.
pub(super) fn flag(name: &str, text: String) -> Layer {
    Layer { origin: format!("--{name}"), text }
}

/// Returns a text as a TOML value.
pub(super) fn quoted(text: &str) -> Value {
    Value::from(text)
}

/// Reads the layer of a TOML file.
pub(super) fn file(path: &Path) -> Result<Layer> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Layer { origin: path.display().to_string(), text })
}
