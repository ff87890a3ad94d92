//! `host report`: regenerates a run's report from its folder, and compares runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::context::Context;
use crate::report;
use crate::report::comparison::{self, Comparison};
use crate::run::RunDir;
use crate::text::{shown, to_json};

/// The command that opens a file in the desktop's default application.
const OPENER: &str = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };

/// Regenerate a run's report from its folder, also during training: report.html and reward-curve.png. Several runs are
/// compared on one page.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host report
  host report runs/2026-03-01-101500-kmeans_image --open
  host report runs/kmeans runs/clip runs/dcgan --out comparison.html
  host report runs/kmeans runs/clip runs/dcgan --latex > tables.tex")]
pub struct ReportArgs {
    /// The runs' folders [default: the newest under runs/]
    #[arg(value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page that compares several runs [default: report-comparison.html]; its chart lies beside it as PNG
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the tables of fine-tuning runs as CSV, and write no page
    #[arg(long, conflicts_with_all = ["latex", "json", "open", "out"])]
    csv: bool,
    /// Print the tables of fine-tuning runs as LaTeX, and write no page
    #[arg(long, conflicts_with_all = ["json", "open", "out"])]
    latex: bool,
    /// Open the report in the browser
    #[arg(long)]
    open: bool,
    /// Print the paths and, of several runs, their data as JSON
    #[arg(long)]
    json: bool,
}

impl ReportArgs {
    /// Runs the command.
    pub fn run(mut self, _context: &Context) -> Result<()> {
        if self.runs.is_empty() {
            let newest = RunDir::newest_under(Path::new("runs"), |_| true);
            self.runs.push(newest.context("there is no run under ./runs: name a run's folder")?);
        }
        if self.csv || self.latex {
            let comparison = Comparison::read(&self.runs)?;
            print!("{}", if self.csv { comparison.csv() } else { comparison.latex() });
            return Ok(());
        }
        let (page, document) = match &self.runs[..] {
            [run] => {
                ensure!(self.out.is_none(), "--out is the page that compares runs: name several");
                let written = report::write(run)?;
                let document = json!({ "report": text(&written.report), "curve": text(&written.curve) });
                (written.report, document)
            }
            runs => {
                let comparison = Comparison::read(runs)?;
                let (page, chart) = comparison.write(&self.out.unwrap_or_else(|| comparison::FILE.into()))?;
                let mut document = comparison.document();
                document["report"] = text(&page);
                document["chart"] = chart.as_deref().map_or(Value::Null, text);
                (page, document)
            }
        };
        if self.json {
            println!("{}", to_json(&document));
        } else {
            println!("{}", shown(&page));
        }
        if self.open { open(&page) } else { Ok(()) }
    }
}

fn text(path: &Path) -> Value {
    path.to_string_lossy().into()
}

fn open(report: &Path) -> Result<()> {
    let status = Command::new(OPENER).arg(report).status();
    let status = status.with_context(|| format!("cannot start {OPENER}: open {} in a browser", report.display()))?;
    ensure!(status.success(), "{OPENER} could not open {}: open it in a browser", report.display());
    Ok(())
}
