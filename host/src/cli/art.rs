//! `host art`: the procedural paintings as a folder of PNGs with captions, or as one contact sheet.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;

use crate::context::Context;
use crate::data::art::{contact_sheet, write_folder};
use crate::text::{counted, to_json};
use procedural_art::{STYLES, SUBJECTS};

/// Paint the 27 styles × 8 subjects: a folder of PNGs with captions, or a contact sheet.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host art --out paintings --per-class 64             27 folders of 64 paintings, and captions.jsonl
  host art --grid sheet.png --size 128                every style and subject on one sheet

The same seed produces the same bytes on every machine and with any number of threads.")]
pub struct ArtArgs {
    /// A new or empty folder for STYLE/NNNN.png and captions.jsonl
    #[arg(long, value_name = "DIR", required_unless_present = "grid")]
    out: Option<PathBuf>,
    /// A PNG with one painting of every style (rows) and subject (columns)
    #[arg(long, value_name = "FILE")]
    grid: Option<PathBuf>,
    /// Number of paintings of each style, cycling through the subjects
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    per_class: u32,
    /// Width and height in pixels
    #[arg(long, value_name = "PX", default_value_t = 64, value_parser = clap::value_parser!(u32).range(16..=1024))]
    size: u32,
    /// Seed of the paintings
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON document about what was written
    #[arg(long)]
    json: bool,
}

impl ArtArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        if let Some(file) = &self.grid {
            let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
            ensure!(
                parent.is_none_or(|parent| parent.is_dir()),
                "there is no folder for {}: create it first",
                file.display()
            );
            let sheet = contact_sheet(self.size, self.seed);
            let partial = file.with_extension("partial.png");
            sheet.save(&partial).with_context(|| format!("writing {}", partial.display()))?;
            fs_err::rename(&partial, file)?;
            context.progress.println(format!(
                "{}: {} styles × {} subjects at {} px",
                file.display(),
                STYLES.len(),
                SUBJECTS.len(),
                self.size
            ));
        }
        let mut document = json!({ "grid": self.grid, "styles": STYLES.len(), "size": self.size, "seed": self.seed });
        let Some(out) = &self.out else {
            if self.json {
                println!("{}", to_json(&document));
            }
            return Ok(());
        };
        let total = STYLES.len() as u64 * u64::from(self.per_class);
        let bar = context.progress.bar("painting", total, "paintings");
        let written =
            write_folder(out, self.per_class as usize, self.size, self.seed, |_, _| bar.inc(1), &context.interrupt);
        bar.finish();
        let written = written?;
        let seconds = written.time.max(Duration::from_millis(1)).as_secs_f64();
        context.progress.println(format!(
            "{}: {} of {} px ({} styles × {}) and captions.jsonl in {seconds:.1} s, {:.0} per second",
            out.display(),
            counted(written.paintings as u64, "painting"),
            self.size,
            STYLES.len(),
            self.per_class,
            written.paintings as f64 / seconds,
        ));
        if self.json {
            document["out"] = json!(out.to_string_lossy());
            document["paintings"] = json!(written.paintings);
            println!("{}", to_json(&document));
        }
        Ok(())
    }
}
