//! `host plugin test`: compares a built plugin's distributions for its fixtures with snapshots.

mod snapshot;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use self::snapshot::{Difference, Snapshot};
use super::inputs::{Prompts, fixtures, read_sample};
use super::running::RunningArgs;
use crate::cli::numbers::within;
use crate::context::Context;
use crate::data::images::ImageLoader;
use crate::fs::write_atomic;
use crate::plugin::distributions::probabilities;
use crate::plugin::{Batch, Sample, Values};
use crate::text::{table, to_json};

/// Compare a plugin's distributions, or scores, for its fixtures with their snapshots.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin test .                       compare with snapshots/*.snap; exits with 1 if anything differs
  host plugin test . --accept              write the current distributions as the snapshots
  host plugin test DIR --plugin kmeans_image --tolerance 1e-4

DIR is a plugin crate (the output of `cargo build-plugin` is run) or a folder with one .wasm or .onnx file.
Its fixtures are DIR/fixtures/*.png, .jpg, .txt, .wav, .gif, .webp and .safetensors; their prompts are those of
DIR/fixtures/captions.jsonl, if there is one. Each one's snapshot is DIR/snapshots/FIXTURE.snap.")]
pub struct TestArgs {
    /// A plugin crate's folder, or a folder with one plugin file
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// Another plugin than the one in DIR: a path or a name
    #[arg(long, value_name = "P")]
    plugin: Option<String>,
    /// Write the current distributions, and remove snapshots without a fixture
    #[arg(long)]
    accept: bool,
    /// Maximum difference between a probability and its snapshot; of a score, relative to it if it is above 1. A plugin alone returns the same bits everywhere; an
    /// encoder's last digits depend on the machine
    #[arg(long, value_name = "P", default_value_t = 1e-5, value_parser = within(0.0..=1.0))]
    tolerance: f64,
    #[command(flatten)]
    running: RunningArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The outcome of one fixture.
#[derive(Debug)]
enum Outcome {
    Same,
    Missing,
    Different(Vec<Difference>),
    Written,
    Removed,
    /// A snapshot without a fixture.
    Orphan,
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Missing => "no snapshot",
            Self::Different(_) => "different",
            Self::Written => "written",
            Self::Removed => "removed, it has no fixture",
            Self::Orphan => "no fixture",
        }
    }
}

impl TestArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        ensure!(self.folder.is_dir(), "there is no folder {}", self.folder.display());
        let fixtures = fixtures(&self.folder)?;
        // A separator at the end makes it a folder, even if a plugin has that name.
        let reference = self.plugin.clone().unwrap_or_else(|| format!("{}/", self.folder.display()));
        let (mut plugin, mut encoders) = self.running.open(&reference, context)?;
        let snapshots = self.folder.join("snapshots");
        let (mut outcomes, loader, mut prompts) = (vec![], ImageLoader::default(), Prompts::new(None));
        for fixture in &fixtures {
            context.interrupt.check("nothing more was written")?;
            // Each fixture is a batch of its own, so that other fixtures do not affect it.
            let sample = read_sample(fixture, plugin.description(), &loader)?;
            let sample = Sample { prompt: prompts.of(fixture)?, ..sample };
            let output = plugin
                .run(&mut Batch::new(vec![sample]), &mut encoders)
                .with_context(|| fixture.display().to_string())?;
            let found = match output.values {
                Values::Distributions(distributions) => {
                    let row = distributions.rows.first().map(|row| probabilities(row)).unwrap_or_default();
                    Snapshot::new(plugin.description().styles(), &row)
                }
                Values::Scores { scores, .. } => Snapshot::new(&["score".to_owned()], &scores),
            };
            let outcome = self.compare(&snapshot_of(&snapshots, fixture), fixture, &found)?;
            outcomes.push((fixture.clone(), outcome));
        }
        for orphan in orphans(&snapshots, &fixtures) {
            let outcome = match self.accept {
                true => fs_err::remove_file(&orphan).map(|()| Outcome::Removed)?,
                false => Outcome::Orphan,
            };
            outcomes.push((orphan, outcome));
        }
        match self.json {
            true => self.print_document(&plugin.source().name, &outcomes),
            false => self.print_outcomes(&outcomes),
        }
        self.check(&outcomes)
    }

    /// Compares one fixture's distribution with its snapshot, or writes it.
    fn compare(&self, path: &Path, fixture: &Path, found: &Snapshot) -> Result<Outcome> {
        let kept = match path.is_file() {
            true => {
                let text = fs_err::read_to_string(path)?;
                Some(Snapshot::parse(&text).with_context(|| path.display().to_string())?)
            }
            false => None,
        };
        let outcome = match kept {
            None => Outcome::Missing,
            Some(kept) => match kept.differences(found, self.tolerance) {
                differences if differences.is_empty() => return Ok(Outcome::Same),
                differences => Outcome::Different(differences),
            },
        };
        if !self.accept {
            return Ok(outcome);
        }
        let name = fixture.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        fs_err::create_dir_all(path.parent().expect("a snapshot is in a folder"))?;
        write_atomic(path, found.text(&name).as_bytes())?;
        Ok(Outcome::Written)
    }

    fn print_outcomes(&self, outcomes: &[(PathBuf, Outcome)]) {
        let rows: Vec<Vec<String>> =
            outcomes.iter().map(|(file, outcome)| vec![self.shown(file), outcome.word().to_owned()]).collect();
        for (line, (_, outcome)) in table(&[true, true], &rows).lines().zip(outcomes) {
            println!("{line}");
            if let Outcome::Different(differences) = outcome {
                print!("{}", diff(differences));
            }
        }
    }

    fn print_document(&self, plugin: &str, outcomes: &[(PathBuf, Outcome)]) {
        let files = outcomes.iter().map(|(file, outcome)| {
            let differences = match outcome {
                Outcome::Different(differences) => differences.iter().map(Difference::document).collect(),
                _ => vec![],
            };
            json!({ "file": file.to_string_lossy(), "outcome": outcome.word(), "differences": differences })
        });
        let files: Vec<_> = files.collect();
        println!("{}", to_json(&json!({ "plugin": plugin, "tolerance": self.tolerance, "files": files })));
    }

    /// Returns a file's path relative to DIR.
    fn shown(&self, file: &Path) -> String {
        file.strip_prefix(&self.folder).unwrap_or(file).display().to_string()
    }

    /// Returns an error with a remedy if anything differs or is missing.
    fn check(&self, outcomes: &[(PathBuf, Outcome)]) -> Result<()> {
        let count = |is_it: fn(&Outcome) -> bool| outcomes.iter().filter(|(_, outcome)| is_it(outcome)).count();
        let problems = [
            (
                count(|outcome| matches!(outcome, Outcome::Different(_))),
                "a distribution that differs from its snapshot",
            ),
            (count(|outcome| matches!(outcome, Outcome::Missing)), "a fixture without a snapshot"),
            (count(|outcome| matches!(outcome, Outcome::Orphan)), "a snapshot without a fixture"),
        ];
        let found: Vec<String> =
            problems.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} x {what}")).collect();
        if found.is_empty() {
            return Ok(());
        }
        let found = found.join(", ");
        bail!("{found}; if this is intended, write the snapshots with `host plugin test {} --accept`", {
            self.folder.display()
        })
    }
}

fn snapshot_of(snapshots: &Path, fixture: &Path) -> PathBuf {
    let name = fixture.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    snapshots.join(format!("{name}.snap"))
}

/// Returns the snapshots without a fixture, sorted.
fn orphans(snapshots: &Path, fixtures: &[PathBuf]) -> Vec<PathBuf> {
    let wanted: BTreeSet<PathBuf> = fixtures.iter().map(|fixture| snapshot_of(snapshots, fixture)).collect();
    let files = std::fs::read_dir(snapshots).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_orphan = |path: &PathBuf| path.extension().is_some_and(|e| e == "snap") && !wanted.contains(path);
    let mut files: Vec<PathBuf> = files.filter(is_orphan).collect();
    files.sort();
    files
}

/// Returns the differences of one fixture as a table.
fn diff(differences: &[Difference]) -> String {
    let header = ["style", "was", "is", "difference"].map(str::to_owned).to_vec();
    let rows: Vec<_> = std::iter::once(header).chain(differences.iter().map(Difference::cells)).collect();
    table(&[true, false, false, false], &rows).lines().map(|line| format!("  {line}\n")).collect()
}
