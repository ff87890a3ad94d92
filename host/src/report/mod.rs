//! The report of a run as a page and as images: `report.html`, the curves and contact sheets.
//!
//! # Layout
//!
//! - this file: the page, one file that opens offline, generated from the run's folder alone
//! - `page`: what all pages share, this one and those of other commands: their look, and how foreign text is escaped
//! - `fine_tune`, `learning`: the curves, tiles and sentences of each kind of run · `curve`: the reward curve
//! - [`grid`]: contact sheets and before/after · [`confusion`]: confusion matrices
//! - `drawing`: charts as SVG or pixels · `canvas`: shapes, text and images in pixels

pub(crate) mod canvas;
pub mod confusion;
mod curve;
mod drawing;
mod fine_tune;
pub mod grid;
pub(crate) mod learning;
pub(crate) mod page;

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use minijinja::context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::curve::{NARROW, WIDTH};
use self::fine_tune::FineTune;
use self::grid::{LAYOUT, Layout, Placed};
use self::learning::Learning;
use crate::config::gan::LossForm;
use crate::config::{FineTuneConfig, GanConfig};
use crate::data::png;
use crate::fs::FileError;
use crate::run::record::{
    ClassifierRecord, ClipMonitor, FineTuneRecord, GanRecord, Pace, PretrainRecord, Record, UNetMonitor, VaeMonitor,
};
use crate::run::{self, BEFORE_AFTER, CONFUSION, PluginsLock, RunError, RunInfo};
use crate::text::{counted, number};

/// The page's file in the run's folder.
pub const FILE: &str = "report.html";
/// The reward curve's file.
const CURVE: &str = "reward-curve.png";
/// The file of the curves of a training that is measured by losses and accuracies.
const LEARNING: &str = "curves.png";
/// Maximum number of contact sheets in the page: the first, the last and evenly spaced ones between, so that the file
/// stays small.
const MAX_SHEETS: usize = 12;

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
}

/// A run's configuration and records, by its kind.
enum Training {
    FineTune(Box<FineTuneConfig>, Vec<FineTuneRecord>),
    Gan(Box<GanConfig>, Vec<GanRecord>),
    Classifier(Box<GanConfig>, Vec<ClassifierRecord>),
    Clip(Vec<PretrainRecord<ClipMonitor>>),
    Vae(Vec<PretrainRecord<VaeMonitor>>),
    UNet(Vec<PretrainRecord<UNetMonitor>>),
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

/// A plugin's row.
#[derive(Serialize)]
struct PluginRow {
    name: String,
    source: String,
    sha256: String,
    interface: String,
    styles: Option<u32>,
    weight: String,
}

/// A sheet of images.
#[derive(Serialize)]
struct Sheet {
    epoch: u64,
    uri: String,
    note: String,
    /// The images on it, if the file says where they are; else the page shows the file.
    thumbs: Vec<Thumb>,
}

/// An image of a sheet, as a part of the sheet's file.
#[derive(Serialize)]
struct Thumb {
    /// The style that cuts it out: sizes and positions in percent.
    style: String,
    title: String,
    value: String,
    change: String,
    /// `good`, `bad` or empty.
    tone: &'static str,
}

/// The share of one part in the time.
#[derive(Serialize)]
struct TimePart {
    name: &'static str,
    share: f64,
    words: String,
}

/// Where the time of a training epoch went.
struct EpochPace {
    /// Seconds by part.
    parts: Vec<(&'static str, f64)>,
    images_per_second: Option<f64>,
}

impl Training {
    fn read(run: &Path, config: &str, command: &str) -> anyhow::Result<Self> {
        fn parse<C: DeserializeOwned>(run: &Path, text: &str) -> Result<Box<C>> {
            let damaged = |error: toml::de::Error| RunError::Damaged {
                path: run.join("config.toml"),
                message: error.message().to_owned(),
            };
            toml::from_str(text).map(Box::new).map_err(damaged)
        }
        /// The tables by which the kinds of configurations are distinguished.
        #[derive(Deserialize)]
        struct Kind {
            can: Option<toml::Table>,
            pretrain: Option<toml::Table>,
        }
        let kind: Box<Kind> = parse(run, config)?;
        Ok(match (kind.can.is_some(), kind.pretrain.is_some()) {
            (true, _) if command == "host classifier train" => {
                Self::Classifier(parse(run, config)?, run::records(run)?)
            }
            (true, _) => Self::Gan(parse(run, config)?, run::records(run)?),
            (_, true) if command.starts_with("host pretrain clip") => Self::Clip(run::records(run)?),
            (_, true) if command.starts_with("host pretrain vae") => Self::Vae(run::records(run)?),
            (_, true) => Self::UNet(run::records(run)?),
            _ => Self::FineTune(parse(run, config)?, run::records(run)?),
        })
    }

    fn warnings(&self) -> Vec<(u64, String)> {
        fn of<T, M>(records: &[Record<T, M>]) -> Vec<(u64, String)> {
            let warnings = |record: &Record<T, M>| {
                let epoch = record.epoch;
                record.warnings.iter().map(move |warning| (epoch, warning.clone())).collect::<Vec<_>>()
            };
            records.iter().flat_map(warnings).collect()
        }
        match self {
            Self::FineTune(_, records) => of(records),
            Self::Gan(_, records) => of(records),
            Self::Classifier(_, records) => of(records),
            Self::Clip(records) => of(records),
            Self::Vae(records) => of(records),
            Self::UNet(records) => of(records),
        }
    }

    /// The last trained epoch, and the configured number of epochs.
    fn epochs(&self) -> (u64, Option<u64>) {
        fn last<T, M>(records: &[Record<T, M>]) -> u64 {
            records.iter().filter(|record| record.trained.is_some()).map(|record| record.epoch).max().unwrap_or(0)
        }
        match self {
            Self::FineTune(config, records) => (last(records), Some(config.train.epochs)),
            Self::Gan(config, records) => (last(records), Some(config.can.epochs)),
            Self::Classifier(config, records) => (last(records), Some(config.can.epochs)),
            Self::Clip(records) => (last(records), None),
            Self::Vae(records) => (last(records), None),
            Self::UNet(records) => (last(records), None),
        }
    }

    fn paces(&self) -> Vec<EpochPace> {
        let of_pace = |pace: &Pace| EpochPace {
            parts: vec![("data", pace.seconds.data), ("train", pace.seconds.train)],
            images_per_second: Some(pace.images_per_second),
        };
        fn of_pretraining<M>(records: &[PretrainRecord<M>]) -> Vec<EpochPace> {
            let trained = records.iter().filter_map(|record| record.trained.as_ref());
            let pace = |seconds| EpochPace { parts: vec![("train", seconds)], images_per_second: None };
            trained.map(|epoch| pace(epoch.train_seconds)).collect()
        }
        match self {
            Self::FineTune(_, records) => {
                let trained = records.iter().filter_map(|record| record.trained.as_ref());
                let of = trained.map(|epoch| {
                    let seconds = &epoch.seconds;
                    let parts = vec![("sample", seconds.sample), ("reward", seconds.reward), ("train", seconds.train)];
                    EpochPace { parts, images_per_second: Some(epoch.images_per_second) }
                });
                of.collect()
            }
            Self::Gan(_, records) => {
                records.iter().filter_map(|record| Some(of_pace(&record.trained.as_ref()?.pace))).collect()
            }
            Self::Classifier(_, records) => {
                records.iter().filter_map(|record| Some(of_pace(&record.trained.as_ref()?.pace))).collect()
            }
            Self::Clip(records) => of_pretraining(records),
            Self::Vae(records) => of_pretraining(records),
            Self::UNet(records) => of_pretraining(records),
        }
    }
}

impl Page {
    fn read(run: &Path) -> anyhow::Result<Self> {
        let config_text = run::config(run)?;
        let info = run::info(run);
        let name = fs::canonicalize(run).ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Ok(Self {
            name: name.unwrap_or_else(|| run.display().to_string()),
            lock: run::plugins_lock(run)?,
            training: Training::read(run, &config_text, &info.command)?,
            info,
            config_text,
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

    fn render(&self, run: &Path) -> Result<String> {
        let mut templates = page::templates();
        templates.add_template("report.html", include_str!("report.html"))?;
        let sheets = run::sheets(run)?;
        let image = |name: &str| run::image(run, name).map(|path| Sheet::read(0, &path)).transpose();
        let curves = |to_svg: &dyn Fn(f32) -> String| [to_svg(WIDTH), to_svg(NARROW)];
        let (tiles, result, curves, curve_title) = match self.view() {
            View::FineTune(view) => {
                let curve = view.curve();
                (view.tiles(), view.result(), curves(&|width| curve.to_svg(width)), "Reward by epoch")
            }
            View::Learning(view) => {
                let curves = curves(&|width| view.to_svg(width));
                (view.tiles, view.result, curves, "By epoch")
            }
        };
        let shown = chosen(&sheets).map(|(epoch, path)| Sheet::read(*epoch, path));
        let page = templates.get_template("report.html")?.render(context! {
            name => self.name,
            title => self.title(),
            subtitle => self.subtitle(),
            tiles,
            result,
            curve_title,
            wide_curve => curves[0],
            narrow_curve => curves[1],
            before_after => image(BEFORE_AFTER)?,
            confusion => image(CONFUSION)?,
            sheets => shown.collect::<Result<Vec<_>>>()?,
            n_sheets => sheets.len(),
            warnings => self.training.warnings(),
            facts => self.facts(),
            plugins => self.plugins(),
            time => self.time(),
            config => self.config_text,
        })?;
        Ok(page)
    }

    /// The page's title, which distinguishes the tabs of a browser.
    fn title(&self) -> String {
        let plugins: Vec<&str> = self.lock.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
        let what = match &self.training {
            Training::FineTune(..) if !plugins.is_empty() => plugins.join(" + "),
            Training::FineTune(..) => "fine-tuning".to_owned(),
            Training::Gan(..) => "CAN".to_owned(),
            Training::Classifier(..) => "classifier".to_owned(),
            Training::Clip(_) => "CLIP".to_owned(),
            Training::Vae(_) => "VAE".to_owned(),
            Training::UNet(_) => "UNet".to_owned(),
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

    /// The facts about the run: what was trained, on what data and device.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = Facts::default();
        let (model, device) = (&self.info.model, &self.info.device);
        match &self.training {
            Training::FineTune(config, records) => {
                facts.add("Model", if model.is_empty() { &config.model.path } else { model });
                facts.add_some("Preset", self.info.preset.as_ref());
                facts.add("Images", format!("{} × {} px", config.sample.width, config.sample.height));
                facts.add("Samples per epoch", config.sample.per_epoch());
                facts.add("Learning rate", config.train.learning_rate);
                facts.add("LoRA rank", config.lora.rank);
                facts.add("Seed", config.run.seed);
                let trained = || records.iter().filter_map(|record| record.trained.as_ref());
                let ratio_error = trained().next().map(|epoch| epoch.update.ratio_error);
                let words = ratio_error.map(|error| format!("{error:.1e}").replace('-', "−"));
                facts.add_some("First-update ratio error", words);
                let skipped = total(trained().map(|epoch| epoch.skipped));
                facts.add_some("Skipped samples", (skipped > 0).then_some(skipped));
            }
            Training::Gan(config, records) => {
                let can = &config.can;
                facts.add("Model", model);
                facts.add_some("Preset", self.info.preset.as_ref());
                facts.add("Data", data_name(&can.data));
                facts.add("Loss", format!("{:?}", can.loss).to_lowercase());
                let penalized = can.loss == LossForm::Wasserstein;
                facts.add_some("Gradient penalty", penalized.then_some(can.lambda));
                facts.add("Classifier C", &can.classifier);
                facts.add("Weight of the style ambiguity", can.style_ambiguity_weight);
                facts.add_steps(config, total(records.iter().filter_map(|r| Some(r.trained.as_ref()?.pace.steps))));
            }
            Training::Classifier(config, records) => {
                facts.add("Model", model);
                facts.add_some("Preset", self.info.preset.as_ref());
                facts.add("Data", data_name(&config.can.data));
                facts.add_steps(config, total(records.iter().filter_map(|r| Some(r.trained.as_ref()?.pace.steps))));
            }
            Training::Clip(_) | Training::Vae(_) | Training::UNet(_) => facts.add("Model", model),
        }
        facts.add("Device", if device.is_empty() { "cpu" } else { device });
        facts.add_some("Threads", Some(self.info.threads).filter(|threads| *threads > 0));
        facts.add_some("Program", Some(&self.info.version).filter(|v| !v.is_empty()).map(|v| format!("host {v}")));
        facts.0
    }

    fn plugins(&self) -> Vec<PluginRow> {
        let weight = |i: usize| match self.view() {
            View::FineTune(view) => view.weight(i),
            View::Learning(_) => 1.0,
        };
        let row = |(i, plugin): (usize, &run::LockedPlugin)| PluginRow {
            name: plugin.name.clone(),
            source: plugin.source.clone(),
            sha256: plugin.sha256.clone(),
            interface: plugin.interface.clone(),
            styles: plugin.styles,
            weight: weight(i).to_string(),
        };
        self.lock.plugins.iter().enumerate().map(row).collect()
    }

    /// How the time of the training epochs was spent, and the speed.
    fn time(&self) -> Option<(Vec<TimePart>, String)> {
        let paces = self.training.paces();
        let mut sums: Vec<(&'static str, f64)> = Vec::new();
        for (name, seconds) in paces.iter().flat_map(|pace| &pace.parts) {
            match sums.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += seconds,
                None => sums.push((name, *seconds)),
            }
        }
        let total: f64 = sums.iter().map(|(_, seconds)| seconds).sum();
        if total <= 0.0 {
            return None;
        }
        let speeds: Vec<f64> = paces.iter().filter_map(|pace| pace.images_per_second).collect();
        let mut words = format!("{} in {}", duration(total), counted(paces.len() as u64, "epoch"));
        if !speeds.is_empty() {
            let mean = speeds.iter().sum::<f64>() / speeds.len() as f64;
            words += &format!(", {} images/s", number(mean, if mean < 10.0 { 2 } else { 1 }));
        }
        let part = |(name, seconds): (&'static str, f64)| TimePart {
            name,
            share: 100.0 * seconds / total,
            words: format!("{}, {} %", duration(seconds), number(100.0 * seconds / total, 0)),
        };
        Some((sums.into_iter().map(part).collect(), words))
    }
}

/// Returns the sum of counts; damaged ones may add up to more than there is room for.
fn total(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add)
}

/// Facts by name, in the order in which they are shown.
#[derive(Default)]
struct Facts(Vec<(&'static str, String)>);

impl Facts {
    fn add(&mut self, name: &'static str, value: impl Display) {
        self.0.push((name, value.to_string()));
    }

    fn add_some(&mut self, name: &'static str, value: Option<impl Display>) {
        self.0.extend(value.map(|value| (name, value.to_string())));
    }

    /// Adds the steps of a training on images.
    fn add_steps(&mut self, config: &GanConfig, steps: u64) {
        self.add("Batch", config.can.batch_size);
        self.add_some("Steps", Some(steps).filter(|steps| *steps > 0));
        self.add("Learning rate", config.can.adam.learning_rate);
        self.add("Seed", config.run.seed);
    }
}

fn data_name(data: &str) -> &str {
    if data.is_empty() { "procedural paintings" } else { data }
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 60.0 => format!("{} s", number(seconds, 1)),
        seconds if seconds < 3600.0 => format!("{} min {} s", (seconds / 60.0) as u64, (seconds % 60.0) as u64),
        _ => format!("{} h {} min", (seconds / 3600.0) as u64, (seconds / 60.0) as u64 % 60),
    }
}

/// Returns the first, the last and evenly spaced ones between.
fn chosen<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let count = all.len().min(MAX_SHEETS);
    (0..count).map(move |i| &all[if count > 1 { i * (all.len() - 1) / (count - 1) } else { 0 }])
}

impl Sheet {
    /// Reads a PNG file and, if it has one, its layout.
    fn read(epoch: u64, path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|error| FileError::read(path, error))?;
        let layout: Layout =
            png::text(&bytes, LAYOUT).and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        let size = png::dimensions(&bytes).unwrap_or_default();
        let thumbs: Option<Vec<Thumb>> = layout.cells.iter().map(|placed| Thumb::of(placed, size)).collect();
        let uri = page::data_uri(&bytes);
        Ok(Self { epoch, uri, note: layout.note, thumbs: thumbs.unwrap_or_default() })
    }
}

impl Thumb {
    /// Returns an image of a sheet of this size; none if it is not on it.
    fn of(placed: &Placed, (sheet_width, sheet_height): (u32, u32)) -> Option<Self> {
        let [x, y, width, height] = placed.at;
        let is_on =
            |start: u32, length: u32, all| length > 0 && start.checked_add(length).is_some_and(|end| end <= all);
        if !is_on(x, width, sheet_width) || !is_on(y, height, sheet_height) {
            return None;
        }
        // A position in percent is a share of what the sheet is larger than the image by.
        let share = |start: u32, room: u32| 100.0 * f64::from(start) / f64::from(room.max(1));
        let style = format!(
            "aspect-ratio:{width}/{height};background-size:{:.4}% auto;background-position:{:.4}% {:.4}%",
            100.0 * f64::from(sheet_width) / f64::from(width),
            share(x, sheet_width - width),
            share(y, sheet_height - height)
        );
        let (title, value, change) = (placed.title.clone(), placed.value.clone(), placed.change.clone());
        let tone = match change.chars().next() {
            Some('+') => "good",
            Some('−') => "bad",
            _ => "",
        };
        Some(Self { style, title, value, change, tone })
    }
}

#[cfg(test)]
mod tests;
