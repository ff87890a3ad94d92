//! The report of a run as a page and as images, and pages that compare runs: `report.html`, the curves and contact sheets,
//! `report-comparison.html`.
//!
//! # Layout
//!
//! - this file: the page of a run, one file that opens offline, generated from the run's folder alone
//! - [`comparison`]: several runs side by side, as a page and as tables
//! - `page`: what all pages share, these and those of other commands: their look, and how foreign text is escaped
//! - `training`: configuration and records by kind of run · `facts`: what was trained, and the time · [`cost`]: hours, energy
//! - `fine_tune`, `learning`: the curves, tiles and sentences of each kind of run · `curve`, `multiples`: the charts of rewards
//! - `styles`: what the classifier says of images · `transfer`: changes under all plugins · `evaluation`: `eval.json`
//! - [`grid`]: contact sheets and before/after · `sheet`: their images in the page · [`confusion`]: confusion matrices
//! - `plot`: the axis of epochs · `drawing`: charts as SVG or pixels · `canvas`: shapes, text and images in pixels

pub(crate) mod canvas;
pub mod comparison;
pub mod confusion;
pub mod cost;
mod curve;
mod drawing;
mod evaluation;
mod facts;
mod fine_tune;
pub mod grid;
pub(crate) mod learning;
mod multiples;
pub(crate) mod page;
mod plot;
mod sheet;
mod styles;
mod training;
mod transfer;

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use minijinja::{Value, context};
use serde::Serialize;

use self::fine_tune::FineTune;
use self::learning::Learning;
use self::plot::{NARROW, WIDTH};
use self::sheet::Sheet;
use self::training::Training;
use crate::data::png;
use crate::run::evaluation::Evaluation;
use crate::run::{self, BEFORE_AFTER, CONFUSION, PluginsLock, RunError, RunInfo};
use crate::text::counted;

/// The page's file in the run's folder.
pub const FILE: &str = "report.html";
/// The reward curve's file.
const CURVE: &str = "reward-curve.png";
/// The file of the curves of a training that is measured by losses and accuracies.
const LEARNING: &str = "curves.png";

type Result<T, E = RunError> = std::result::Result<T, E>;

/// The files of a written report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The page.
    pub report: PathBuf,
    /// The curves as an image.
    pub curve: PathBuf,
}

/// Writes `reward-curve.png` (for other runs than fine-tuning `curves.png`) and `report.html` into a run's folder.
///
/// It takes no lock, so it also works while the run is training.
pub fn write(run: &Path) -> anyhow::Result<Written> {
    let page = Page::read(run)?;
    let (name, image) = page.curve_image();
    let failed = |source| RunError::Image { path: run.join(name), source };
    let png = png::encode(&image, &[png::software()]).map_err(failed)?;
    let curve = run::write_report_file(run, name, &png)?;
    let report = run::write_report_file(run, FILE, page.render(run)?.as_bytes())?;
    Ok(Written { report, curve })
}

/// The contents of the page.
struct Page {
    name: String,
    lock: PluginsLock,
    info: RunInfo,
    config_text: String,
    training: Training,
    evaluation: Option<Evaluation>,
}

/// The curves, tiles and sentences of a run.
enum View<'a> {
    FineTune(FineTune<'a>),
    Learning(Learning),
}

/// A number at the top of the page.
#[derive(Serialize)]
pub(crate) struct Tile {
    pub(crate) label: &'static str,
    pub(crate) value: String,
    pub(crate) note: String,
    /// `good`, `bad` or empty.
    pub(crate) tone: &'static str,
}

/// The curves of a page, each for a wide and a narrow screen, and what only a fine-tuning has.
#[derive(Serialize)]
struct Parts {
    tiles: Vec<Tile>,
    result: Vec<String>,
    curve_title: &'static str,
    curves: [String; 2],
    /// The charts of held-out plugins by their names.
    held_out: Vec<(String, String)>,
    fine_tune: Option<fine_tune::Details>,
}

/// Returns the name of a run: that of its folder.
fn run_name(run: &Path) -> String {
    let name = fs::canonicalize(run).ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    name.unwrap_or_else(|| run.display().to_string())
}

impl Page {
    fn read(run: &Path) -> anyhow::Result<Self> {
        let config_text = run::config(run)?;
        let info = run::info(run);
        Ok(Self {
            name: run_name(run),
            lock: run::plugins_lock(run)?,
            training: Training::read(run, &config_text, &info.command)?,
            info,
            config_text,
            evaluation: Evaluation::read(run)?,
        })
    }

    /// The curves, tiles and sentences of the run.
    fn view(&self) -> View<'_> {
        let title = &self.info.model;
        View::Learning(match &self.training {
            Training::FineTune(config, records) => {
                return View::FineTune(FineTune { name: &self.name, records, lock: &self.lock, config });
            }
            Training::Gan(config, records) => Learning::of_gan(title, config, records),
            Training::Classifier(_, records) => Learning::of_classifier(title, records),
            Training::Clip(records) => Learning::of_clip(title, records),
            Training::Vae(records) => Learning::of_vae(title, records),
            Training::UNet(records) => Learning::of_unet(title, records),
        })
    }

    fn curve_image(&self) -> (&'static str, RgbImage) {
        match self.view() {
            View::FineTune(view) => (CURVE, view.curve().to_rgb()),
            View::Learning(view) => (LEARNING, view.to_rgb()),
        }
    }

    fn parts(&self) -> Parts {
        match self.view() {
            View::FineTune(view) => {
                let curve = view.curve();
                Parts {
                    tiles: view.tiles(),
                    result: view.result(),
                    curve_title: "Reward by epoch",
                    curves: [WIDTH, NARROW].map(|width| curve.to_svg(width)),
                    held_out: multiples::held_out(view.records),
                    fine_tune: Some(view.details(self.evaluation.as_ref())),
                }
            }
            View::Learning(view) => Parts {
                curves: [WIDTH, NARROW].map(|width| view.to_svg(width)),
                tiles: view.tiles,
                result: view.result,
                curve_title: "By epoch",
                held_out: Vec::new(),
                fine_tune: None,
            },
        }
    }

    fn render(&self, run: &Path) -> Result<String> {
        let mut templates = page::templates();
        templates.add_template("report.html", include_str!("report.html"))?;
        let sheets = run::sheets(run)?;
        let image = |name: &str| run::image(run, name).map(|path| Sheet::read(0, &path, usize::MAX)).transpose();
        let weight = |i: usize| match self.view() {
            View::FineTune(view) => view.weight(i),
            View::Learning(_) => 1.0,
        };
        let script = include_str!("sheets.js");
        let page = templates.get_template("report.html")?.render(context! {
            script => Value::from_safe_string(script.to_owned()),
            script_source => page::script_source(script),
            name => self.name,
            title => self.title(),
            subtitle => self.subtitle(),
            before_after => image(BEFORE_AFTER)?,
            confusion => image(CONFUSION)?,
            sheets => sheet::contact_sheets(&sheets)?,
            n_sheets => sheets.len(),
            warnings => self.training.warnings(),
            facts => facts::facts(&self.training, &self.info),
            plugins => facts::plugins(&self.lock, weight),
            time => facts::time(&self.training.paces()),
            config => self.config_text,
            ..Value::from_serialize(self.parts())
        })?;
        Ok(page)
    }

    /// The page's title, which distinguishes the tabs of a browser.
    fn title(&self) -> String {
        let reward = transfer::reward_name(&self.lock);
        let what = match &self.training {
            Training::FineTune(..) if !reward.is_empty() => &reward,
            Training::FineTune(..) => "fine-tuning",
            Training::Gan(..) => "CAN",
            Training::Classifier(..) => "classifier",
            Training::Clip(_) => "CLIP",
            Training::Vae(_) => "VAE",
            Training::UNet(_) => "UNet",
        };
        format!("{what}, {} – {}", self.epochs(), self.name)
    }

    fn epochs(&self) -> String {
        match self.training.epochs() {
            (done, Some(total)) if total != done => format!("{done} of {}", counted(total, "epoch")),
            (done, _) => counted(done, "epoch"),
        }
    }

    fn subtitle(&self) -> String {
        let epochs = self.epochs();
        if self.info.started == 0 { epochs } else { format!("{} · {epochs}", run::in_words(self.info.started)) }
    }
}

#[cfg(test)]
mod tests;
