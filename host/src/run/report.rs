//! `report.html`: a run on one page that opens offline, made from the run's folder alone.

use std::fs;
use std::path::{Path, PathBuf};

use minijinja::{Environment, context};
use serde::Serialize;
use serde_json::Value;

use super::error::{Result, RunError};
use super::fine_tuning::FineTuning;
use super::history::History;
use super::info::{self, RunInfo};
use super::learning::Learning;
use super::{
    BEFORE_AFTER, CONFIG, CONFUSION, CURVE, LEARNING, PluginsLock, SAMPLES, encode_png, files, numbered, read_lock,
    read_metrics, read_optional, time,
};
use crate::canvas::text::number;

/// The page's file in the run's folder.
pub const FILE: &str = "report.html";
/// Contact sheets in the page: the first, the last and evenly chosen ones between, so that the file stays small.
const MOST_GRIDS: usize = 12;
/// Where a report was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The page.
    pub report: PathBuf,
    /// The reward's or the learning curves as an image.
    pub curve: PathBuf,
}

/// Writes `reward-curve.png` (of a CAN's or a classifier's run `curves.png`) and `report.html` into a run's folder.
///
/// It takes no lock: a run that is training can be looked at.
pub fn write(run: &Path) -> Result<Written> {
    let page = Page::read(run)?;
    let learning = page.learning();
    let name = if learning.is_some() { LEARNING } else { CURVE };
    let written = Written { report: run.join(FILE), curve: run.join(name) };
    let image = learning.map_or_else(|| page.fine_tuning().curve().to_rgb(), |learning| learning.to_rgb());
    files::write_atomic(&written.curve, &encode_png(&written.curve, &image)?)?;
    files::write_atomic(&written.report, page.render(run)?.as_bytes())?;
    Ok(written)
}

/// What the page is made of.
struct Page {
    name: String,
    records: Vec<Value>,
    history: History,
    lock: PluginsLock,
    info: RunInfo,
    config_text: String,
    config: toml::Table,
}

/// A figure that is seen first.
#[derive(Serialize)]
pub(super) struct Tile {
    pub(super) label: &'static str,
    pub(super) value: String,
    pub(super) note: String,
    /// `good`, `bad` or nothing.
    pub(super) tone: &'static str,
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

/// A contact sheet.
#[derive(Serialize)]
struct Grid {
    epoch: u64,
    uri: String,
}

/// A part of the time.
#[derive(Serialize)]
struct TimePart {
    name: String,
    share: f64,
    words: String,
}

impl Page {
    fn read(run: &Path) -> Result<Self> {
        if !run.join(CONFIG).is_file() {
            return Err(RunError::NotARun(run.to_owned()));
        }
        let config_text = read_optional(&run.join(CONFIG))?;
        let damaged =
            |path: PathBuf, error: toml::de::Error| RunError::Damaged { path, message: error.message().to_owned() };
        let config = toml::from_str(&config_text).map_err(|error| damaged(run.join(CONFIG), error))?;
        let info = toml::from_str(&read_optional(&run.join(info::FILE))?)
            .map_err(|error| damaged(run.join(info::FILE), error))?;
        let name = fs::canonicalize(run).ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let records = read_metrics(run)?;
        Ok(Self {
            name: name.unwrap_or_else(|| run.display().to_string()),
            history: History::from_records(&records),
            records,
            lock: read_lock(run)?,
            info,
            config_text,
            config,
        })
    }

    /// A value of the configuration by its section and key.
    fn config(&self, section: &str, key: &str) -> Option<&toml::Value> {
        self.config.get(section)?.get(key)
    }

    fn min_diversity(&self) -> Option<f64> {
        self.config("monitor", "min_diversity")?.as_float()
    }

    /// The figures of a fine-tuning.
    fn fine_tuning(&self) -> FineTuning<'_> {
        FineTuning {
            name: &self.name,
            history: &self.history,
            lock: &self.lock,
            config: &self.config,
            min_diversity: self.min_diversity(),
        }
    }

    /// The curves of a CAN's or a classifier's run; nothing for a fine-tuning.
    fn learning(&self) -> Option<Learning<'_>> {
        let can = self.config.get("can")?.as_table()?;
        let styles = self.lock.plugins.first().and_then(|plugin| plugin.styles);
        Some(Learning {
            title: &self.info.model,
            records: &self.records,
            can,
            styles,
            min_diversity: self.min_diversity(),
        })
    }

    fn render(&self, run: &Path) -> Result<String> {
        let mut templates = Environment::new();
        templates.add_template("report.html", include_str!("report.html"))?;
        let grids = numbered(&run.join(SAMPLES), ".png")?;
        let image =
            |name: &str| Some(run.join(name)).filter(|path| path.is_file()).map(|path| data_uri(&path)).transpose();
        let (learning, fine_tuning) = (self.learning(), self.fine_tuning());
        let page = templates.get_template("report.html")?.render(context! {
            name => self.name,
            subtitle => self.subtitle(),
            tiles => learning.as_ref().map_or_else(|| fine_tuning.tiles(), Learning::tiles),
            result => learning.as_ref().map_or_else(|| fine_tuning.result(), Learning::result),
            curve_title => if learning.is_some() { "By epoch" } else { "Reward by epoch" },
            curve => learning.as_ref().map_or_else(|| fine_tuning.curve().to_svg(), Learning::to_svg),
            before_after => image(BEFORE_AFTER)?,
            confusion => image(CONFUSION)?,
            grids => chosen(&grids).map(|(epoch, path)| Ok(Grid { epoch: *epoch, uri: data_uri(path)? })).collect::<Result<Vec<_>>>()?,
            n_grids => grids.len(),
            warnings => self.history.warnings,
            facts => self.facts(),
            plugins => self.plugins(),
            time => self.time(),
            config => self.config_text,
        })?;
        Ok(page)
    }

    fn subtitle(&self) -> String {
        let done = self.history.epochs.last().map_or(0, |point| point.epoch);
        let word = |n: u64| if n == 1 { "epoch" } else { "epochs" };
        let epochs =
            match self.config("train", "epochs").or(self.config("can", "epochs")).and_then(toml::Value::as_integer) {
                Some(total) if total as u64 != done => format!("{done} of {total} {}", word(total as u64)),
                _ => format!("{done} {}", word(done)),
            };
        if self.info.started == 0 { epochs } else { format!("{} · {epochs}", time::in_words(self.info.started)) }
    }

    /// What was trained, on what.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let text = |section: &str, key: &str| {
            self.config(section, key).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        let or_config = |own: &str, section: &str, key: &str| {
            if own.is_empty() { text(section, key) } else { Some(own.to_owned()) }
        };
        let size = text("sample", "width")
            .zip(text("sample", "height"))
            .map(|(width, height)| format!("{width} × {height} px"));
        let per_epoch = self
            .config("sample", "batch_size")
            .and_then(toml::Value::as_integer)
            .zip(self.config("sample", "batches_per_epoch").and_then(toml::Value::as_integer))
            .map(|(size, batches)| (size * batches).to_string());
        let ratio_error = self.history.epochs.first().and_then(|epoch| epoch.ratio_error);
        let skipped: u64 = self.history.epochs.iter().map(|epoch| epoch.skipped).sum();
        // What a simple classifier has no use for.
        let can = |key: &str| text("can", key).filter(|_| self.info.model.starts_with("CAN"));
        let steps: u64 = self.records.iter().filter_map(|record| record["steps"].as_u64()).sum();
        let facts = [
            ("Model", or_config(&self.info.model, "model", "path")),
            ("Preset", self.info.preset.clone()),
            ("Images", size),
            ("Samples an epoch", per_epoch),
            (
                "Data",
                text("can", "data").map(|data| if data.is_empty() { "procedural paintings".to_owned() } else { data }),
            ),
            ("Loss", can("loss")),
            ("Gradient penalty", can("lambda").filter(|_| can("loss").as_deref() == Some("wasserstein"))),
            ("Classifier C", can("classifier")),
            ("Weight of the style ambiguity", can("style_ambiguity_weight")),
            ("Batch", text("can", "batch_size")),
            ("Steps", (steps > 0).then(|| steps.to_string())),
            ("Learning rate", text("train", "learning_rate").or_else(|| self.can_learning_rate())),
            ("LoRA rank", text("lora", "rank")),
            ("Seed", text("run", "seed")),
            ("Device", or_config(&self.info.device, "run", "device")),
            ("Threads", (self.info.threads > 0).then(|| self.info.threads.to_string())),
            ("First-update ratio error", ratio_error.map(|error| format!("{error:.1e}").replace('-', "−"))),
            ("Skipped samples", (skipped > 0).then(|| skipped.to_string())),
            ("Program", (!self.info.version.is_empty()).then(|| format!("host {}", self.info.version))),
        ];
        facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    fn can_learning_rate(&self) -> Option<String> {
        Some(self.config("can", "adam")?.get("learning_rate")?.to_string())
    }

    fn plugins(&self) -> Vec<PluginRow> {
        let fine_tuning = self.fine_tuning();
        let row = |(i, plugin): (usize, &super::LockedPlugin)| PluginRow {
            name: plugin.name.clone(),
            source: plugin.source.clone(),
            sha256: plugin.sha256.clone(),
            interface: plugin.interface.clone(),
            styles: plugin.styles,
            weight: fine_tuning.weight(i).to_string(),
        };
        self.lock.plugins.iter().enumerate().map(row).collect()
    }

    /// Where the time of the training epochs went, and how fast it was.
    fn time(&self) -> Option<(Vec<TimePart>, String)> {
        let mut parts: Vec<(String, f64)> = Vec::new();
        for (name, seconds) in self.history.epochs.iter().flat_map(|epoch| &epoch.seconds) {
            match parts.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += seconds,
                None => parts.push((name.clone(), *seconds)),
            }
        }
        let total: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
        if total <= 0.0 {
            return None;
        }
        let speeds: Vec<f64> = self.history.epochs.iter().filter_map(|epoch| epoch.images_per_second).collect();
        let n = self.history.epochs.len();
        let mut words = format!("{} in {n} {}", duration(total), if n == 1 { "epoch" } else { "epochs" });
        if !speeds.is_empty() {
            let mean = speeds.iter().sum::<f64>() / speeds.len() as f64;
            words += &format!(", {} images/s", number(mean, if mean < 10.0 { 2 } else { 1 }));
        }
        let part = |(name, seconds): (String, f64)| TimePart {
            name,
            share: 100.0 * seconds / total,
            words: format!("{}, {} %", duration(seconds), number(100.0 * seconds / total, 0)),
        };
        Some((parts.into_iter().map(part).collect(), words))
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 60.0 => format!("{} s", number(seconds, 1)),
        seconds if seconds < 3600.0 => format!("{} min {} s", (seconds / 60.0) as u64, (seconds % 60.0) as u64),
        _ => format!("{} h {} min", (seconds / 3600.0) as u64, (seconds / 60.0) as u64 % 60),
    }
}

/// The first, the last and evenly chosen ones between.
fn chosen<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let count = all.len().min(MOST_GRIDS);
    (0..count).map(move |i| &all[if count > 1 { i * (all.len() - 1) / (count - 1) } else { 0 }])
}

/// A PNG file as a URI that holds it.
fn data_uri(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|error| RunError::read(path, error))?;
    Ok(format!("data:image/png;base64,{}", base64(&bytes)))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|i| u32::from(chunk.get(i).copied().unwrap_or(0)));
        let bits = a << 16 | b << 8 | c;
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
    use serde_json::json;

    use super::*;
    use crate::run::{Cell, LockedPlugin, RunDir};

    /// A run with `monitor` records (epoch, mean, diversity), rewards ± 0.1 round the mean.
    fn run_with(folder: &Path, points: &[(u64, f64, f64)]) -> RunDir {
        let plugin = LockedPlugin {
            name: "kmeans_image".into(),
            source: "plugins/kmeans_image.wasm".into(),
            sha256: "c0ffee".into(),
            interface: "0.1.0".into(),
            styles: Some(27),
        };
        let config =
            "[train]\nepochs = 10\n[monitor]\nmin_diversity = 0.6\n[[reward.plugin]]\nsource = \"<k>\"\nweight = 1.0\n";
        let mut run =
            RunDir::create(&folder.join("run"), config, &PluginsLock { plugins: vec![plugin] }, &RunInfo::default())
                .unwrap();
        for &(epoch, mean, diversity) in points {
            let rewards: Vec<f64> =
                (0..16).map(|i| mean + f64::from(i % 4) / 30.0 + epoch as f64 * f64::from(i % 3) / 99.0).collect();
            let monitor = json!({
                "reward_mean": mean, "reward_sem": 0.02, "entropy": 2.0, "max_probability": 0.4, "diversity": diversity,
                "rewards": rewards
            });
            let mut record = json!({"epoch": epoch, "monitor": monitor});
            if epoch > 0 {
                record["seconds"] = json!({"sample": 2.0, "reward": 1.0, "train": 5.0});
                record["warnings"] = json!(["a <warning> at last"]);
            }
            run.append_metrics(&record).unwrap();
        }
        run
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (bytes, expected) in cases {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn the_page_has_everything_in_itself() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = run_with(folder.path(), &[(0, -4.0, 0.5), (5, -3.7, 0.48), (10, -3.5, 0.46)]);
        let cell = Cell { image: RgbImage::from_pixel(8, 8, Rgb([1, 2, 3])), title: "a man".into(), value: Some(-3.0) };
        let values = crate::run::Values { name: "reward", mean: -3.0, count: 1 };
        run.save_grid(0, std::slice::from_ref(&cell), values).unwrap();
        run.save_grid(10, std::slice::from_ref(&cell), values).unwrap();
        run.save_before_after(&cell.image).unwrap();
        let page = fs::read_to_string(run.write_report().unwrap()).unwrap();
        assert!(run.path().join(CURVE).is_file());
        for part in [
            "rose from −4.000 to −3.500 in 10 epochs",
            "paired by sample",
            "% of the way to the ceiling −ln 27 = −3.296",
            "92 % as diverse",
            "c0ffee",
            "<svg",
            "data:image/png;base64,",
            "a &lt;warning&gt; at last",
            "min_diversity = 0.6",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(part), "{part} is missing");
        }
        for outside in ["http://", "https://", "src=\"/", "@import", "<link"] {
            assert!(!page.contains(outside), "{outside} would be loaded");
        }
        assert!(page.matches("data:image/png;base64,").count() >= 3);
    }

    #[test]
    fn a_run_that_has_nothing_yet_has_a_page_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = run_with(folder.path(), &[]);
        let page = fs::read_to_string(run.write_report().unwrap()).unwrap();
        assert!(page.contains("not yet looked at"), "{page}");
    }

    #[test]
    fn collapse_and_chance_are_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let run = run_with(folder.path(), &[(0, -4.0, 0.5), (5, -3.6, 0.4), (10, -3.5, 0.1)]);
        let result = Page::read(run.path()).unwrap().fine_tuning().result().join(" ");
        assert!(result.contains("the model has collapsed") && result.contains("at epoch 5"), "{result}");
        let folder = tempfile::tempdir().unwrap();
        let run = run_with(folder.path(), &[(0, -4.0, 0.5), (1, -4.013, 0.5)]);
        let result = Page::read(run.path()).unwrap().fine_tuning().result().join(" ");
        assert!(result.contains("may be chance"), "{result}");
    }

    #[test]
    fn grids_are_chosen_from_the_first_to_the_last() {
        let all: Vec<u64> = (0..100).collect();
        let some: Vec<_> = chosen(&all).copied().collect();
        assert_eq!((some.len(), some[0], some[11]), (12, 0, 99));
        assert_eq!(chosen(&[7]).count(), 1);
        assert_eq!(chosen::<u64>(&[]).count(), 0);
    }

    #[test]
    fn several_plugins_have_a_weighted_ceiling() {
        let folder = tempfile::tempdir().unwrap();
        let run = run_with(folder.path(), &[]);
        let mut page = Page::read(run.path()).unwrap();
        page.lock.plugins.push(page.lock.plugins[0].clone());
        page.lock.plugins[1].styles = Some(10);
        page.config = toml::from_str("[[reward.plugin]]\nweight = 1.0\n[[reward.plugin]]\nweight = 0.5\n").unwrap();
        let ceiling = page.fine_tuning().ceiling().unwrap();
        assert_eq!(ceiling.formula, "−ln 27 −0.5 ln 10");
        assert!((ceiling.reward + 27f64.ln() + 0.5 * 10f64.ln()).abs() < 1e-12);
    }
}
