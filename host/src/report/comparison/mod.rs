//! Several runs side by side: the paper's tables, the transfer matrix, and reward against diversity, as a page
//! (`report-comparison.html`), CSV, LaTeX and JSON. All numbers are those of `eval.json` and `metrics.jsonl`.
//!
//! # Layout
//!
//! - this file: [`Comparison`], and its page
//! - `subject`: runs, and those that differ by their seed alone as groups
//! - `tables`: the tables · `formats`: CSV and LaTeX · `scatter`: the chart

mod formats;
mod scatter;
mod subject;
mod tables;

use std::path::{Path, PathBuf};

use anyhow::Result;
use minijinja::context;
use serde::Serialize;
use serde_json::{Value, json};

use self::scatter::Scatter;
use self::subject::{Group, Subject};
use self::tables::{Table, tables};
use super::evaluation::conditions;
use super::page;
use super::sheet::Sheet;
use crate::data::png;
use crate::fs::write_atomic;
use crate::run::{self, BEFORE_AFTER, RunError};
use crate::text::counted;

/// The page's file.
pub const FILE: &str = "report-comparison.html";
/// Number of images in a group's before/after row, twice the number of pairs.
const COMPARED: usize = 12;

/// Runs to compare.
pub struct Comparison {
    groups: Vec<Group>,
    tables: Vec<Table>,
}

/// A group in the page.
#[derive(Serialize)]
struct Shown {
    label: String,
    runs: Vec<Member>,
    before_after: Option<Sheet>,
}

/// A run in the page.
#[derive(Serialize)]
struct Member {
    name: String,
    seed: u64,
    words: String,
    /// The conditions of its evaluation.
    conditions: Option<String>,
}

impl Comparison {
    /// Reads runs from their folders.
    ///
    /// # Errors
    /// If a folder is no run, or no run of `host train`.
    pub fn read(runs: &[PathBuf]) -> Result<Self> {
        let groups = Group::all(runs.iter().map(|run| Subject::read(run)).collect::<Result<_>>()?);
        Ok(Self { tables: tables(&groups), groups })
    }

    /// Writes the page and beside it the chart of reward against diversity as a PNG file; returns their paths. There is no
    /// chart if no run has two monitors.
    pub fn write(&self, page: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
        let scatter = Scatter::of(&self.groups);
        write_atomic(page, self.render(scatter.as_ref())?.as_bytes())?;
        let Some(scatter) = scatter else { return Ok((page.to_owned(), None)) };
        let chart = page.with_extension("png");
        write_atomic(&chart, &png::encode(&scatter.to_rgb(), &[png::software()])?)?;
        Ok((page.to_owned(), Some(chart)))
    }

    /// The tables as CSV.
    pub fn csv(&self) -> String {
        formats::csv(&self.tables)
    }

    /// The tables as LaTeX.
    pub fn latex(&self) -> String {
        formats::latex(&self.tables)
    }

    /// The data.
    pub fn document(&self) -> Value {
        let run = |group: &Group, run: &Subject| {
            let improvement = run.improvement();
            json!({
                "run": run.path.to_string_lossy(), "group": group.label, "seed": run.config.run.seed,
                "epochs": run.epochs,
                "first": run.ends.as_ref().map(|(first, _)| first), "last": run.ends.as_ref().map(|(_, last)| last),
                "improvement": improvement.map(|improvement| improvement.mean),
                "improvement_sem": improvement.and_then(|improvement| improvement.sem),
                "seconds": run.cost.seconds, "energy": run.cost.energy,
                "kg_co2": run.cost.energy.map(|energy| energy.kg_co2()),
                "evaluation": run.evaluation,
            })
        };
        let runs = self.groups.iter().flat_map(|group| group.runs.iter().map(move |member| run(group, member)));
        json!({ "runs": runs.collect::<Vec<_>>(), "tables": self.tables })
    }

    fn render(&self, scatter: Option<&Scatter>) -> Result<String, RunError> {
        let mut templates = page::templates();
        templates.add_template("comparison.html", include_str!("comparison.html"))?;
        let groups = self.groups.iter().map(Shown::of).collect::<Result<Vec<_>, RunError>>()?;
        let n_runs: usize = self.groups.iter().map(|group| group.runs.len()).sum();
        // The cells of a table are texts with a tone and a note.
        let table = |table: &Table| {
            let row = |row: &tables::Row| {
                let cell = |cell: &tables::Cell| context! { text => cell.text(), tone => cell.tone, note => cell.note };
                context! { label => row.label, cells => row.cells.iter().map(cell).collect::<Vec<_>>() }
            };
            let missing = table.rows.iter().flat_map(|row| {
                let cells = table.head.iter().zip(&row.cells).filter(|(_, cell)| cell.value.is_none());
                cells.map(|(name, cell)| format!("{name}, {}", cell.note)).collect::<Vec<_>>()
            });
            context! {
                title => table.title,
                caption => table.caption,
                head => table.head,
                rows => table.rows.iter().map(row).collect::<Vec<_>>(),
                missing => missing.collect::<Vec<_>>(),
            }
        };
        let page = templates.get_template("comparison.html")?.render(context! {
            title => format!("{} compared", counted(n_runs as u64, "run")),
            subtitle => self.groups.iter().map(|group| group.label.as_str()).collect::<Vec<_>>().join(" · "),
            groups,
            tables => self.tables.iter().filter(|table| !table.head.is_empty()).map(table).collect::<Vec<_>>(),
            scatter => scatter.map(Scatter::to_svgs),
        })?;
        Ok(page)
    }
}

impl Shown {
    fn of(group: &Group) -> Result<Self, RunError> {
        let member = |run: &Subject| {
            let sample = &run.config.sample;
            Member {
                name: run.name.clone(),
                seed: run.config.run.seed,
                words: format!(
                    "{}, {} × {} px, model {}",
                    counted(run.epochs, "epoch"),
                    sample.width,
                    sample.height,
                    run.config.model.path
                ),
                conditions: run.evaluation.as_ref().map(|evaluation| conditions(&evaluation.protocol)),
            }
        };
        let images = group.runs.iter().find_map(|run| run::image(&run.path, BEFORE_AFTER));
        let before_after = images.map(|path| Sheet::read(0, &path, COMPARED)).transpose()?;
        Ok(Self {
            label: group.label.clone(),
            runs: group.runs.iter().map(member).collect(),
            before_after: before_after.filter(|sheet| !sheet.thumbs.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests;
