//! `host report`: regenerates a run's report from its folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;

use crate::context::Context;
use crate::report;
use crate::run::RunDir;
use crate::text::{shown, to_json};

/// The command that opens a file in the desktop's default application.
const OPENER: &str = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };

/// Regenerate a run's report from its folder, also during training: report.html and reward-curve.png.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host report
  host report runs/2026-03-01-101500-kmeans_image --open")]
pub struct ReportArgs {
    /// The run's folder [default: the newest under runs/]
    run: Option<PathBuf>,
    /// Open the report in the browser
    #[arg(long)]
    open: bool,
    /// Print the paths as JSON
    #[arg(long)]
    json: bool,
}

impl ReportArgs {
    /// Runs the command.
    pub fn run(self, _context: &Context) -> Result<()> {
        let run = match self.run {
            Some(run) => run,
            None => RunDir::newest_under(Path::new("runs"), |_| true)
                .context("there is no run under ./runs: name a run's folder")?,
        };
        let written = report::write(&run)?;
        if self.json {
            let (report, curve) = (written.report.to_string_lossy(), written.curve.to_string_lossy());
            println!("{}", to_json(&json!({ "report": report, "curve": curve })));
        } else {
            println!("{}", shown(&written.report));
        }
        if self.open { open(&written.report) } else { Ok(()) }
    }
}

fn open(report: &Path) -> Result<()> {
    let status = Command::new(OPENER).arg(report).status();
    let status = status.with_context(|| format!("cannot start {OPENER}: open {} in a browser", report.display()))?;
    ensure!(status.success(), "{OPENER} could not open {}: open it in a browser", report.display());
    Ok(())
}
