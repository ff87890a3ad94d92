//! `report.html`: a run on one page that opens offline, made from the run's folder alone.

use std::fs;
use std::path::{Path, PathBuf};

use minijinja::{Environment, context};
use serde::Serialize;
use serde_json::Value;

use super::curve::{Ceiling, Curve};
use super::error::{Result, RunError};
use super::history::{History, MonitorPoint};
use super::info::{self, RunInfo};
use super::learning::Learning;
use super::{
    BEFORE_AFTER, CONFIG, CONFUSION, CURVE, LEARNING, PluginsLock, SAMPLES, encode_png, files, numbered, read_lock,
    read_metrics, read_optional, time,
};
use crate::canvas::text::{decimals, number};
use crate::reward::paired_rise;

/// The page's file in the run's folder.
pub const FILE: &str = "report.html";
/// Contact sheets in the page: the first, the last and evenly chosen ones between, so that the file stays small.
const MOST_GRIDS: usize = 12;
/// A rise below so many standard errors may be chance.
const CLEAR_RISE: f64 = 3.0;

/// Where a report was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The page.
    pub report: PathBuf,
    /// The reward's or the learning curves as a picture.
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
    let picture = learning.map_or_else(|| page.curve().to_rgb(), |learning| learning.to_rgb());
    files::write_atomic(&written.curve, &encode_png(&written.curve, &picture)?)?;
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

    /// The weight of the plugin at a place in the configuration, which is its place in the lock.
    fn weight(&self, index: usize) -> f64 {
        let plugin = self.config("reward", "plugin").and_then(|plugins| plugins.as_array()?.get(index));
        let weight = plugin.and_then(|plugin| plugin.get("weight"));
        weight.and_then(|weight| weight.as_float().or(weight.as_integer().map(|whole| whole as f64))).unwrap_or(1.0)
    }

    /// −ln N, weighted and summed over the plugins; unknown if one plugin's number of styles is.
    fn ceiling(&self) -> Option<Ceiling> {
        let plugins = &self.lock.plugins;
        let terms: Option<Vec<_>> =
            plugins.iter().enumerate().map(|(i, plugin)| Some((self.weight(i), plugin.styles?))).collect();
        let terms = terms.filter(|terms| !terms.is_empty())?;
        let reward = terms.iter().map(|(weight, styles)| -weight * f64::from(*styles).ln()).sum();
        let formula = |(weight, styles): &(f64, u32)| match *weight {
            1.0 => format!("−ln {styles}"),
            weight => format!("−{weight} ln {styles}"),
        };
        Some(Ceiling { reward, formula: terms.iter().map(formula).collect::<Vec<_>>().join(" ") })
    }

    fn curve(&self) -> Curve<'_> {
        let plugins: Vec<_> = self.lock.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
        let title = if plugins.is_empty() { self.name.clone() } else { format!("Reward of {}", plugins.join(" + ")) };
        Curve { title, history: &self.history, ceiling: self.ceiling(), min_diversity: self.min_diversity() }
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
        let picture =
            |name: &str| Some(run.join(name)).filter(|path| path.is_file()).map(|path| data_uri(&path)).transpose();
        let learning = self.learning();
        let page = templates.get_template("report.html")?.render(context! {
            name => self.name,
            subtitle => self.subtitle(),
            tiles => learning.as_ref().map_or_else(|| self.tiles(), Learning::tiles),
            result => learning.as_ref().map_or_else(|| self.result(), Learning::result),
            curve_title => if learning.is_some() { "By epoch" } else { "Reward by epoch" },
            curve => learning.as_ref().map_or_else(|| self.curve().to_svg(), Learning::to_svg),
            before_after => picture(BEFORE_AFTER)?,
            confusion => picture(CONFUSION)?,
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
        let epochs =
            match self.config("train", "epochs").or(self.config("can", "epochs")).and_then(toml::Value::as_integer) {
                Some(total) if total as u64 != done => format!("{done} of {total} epochs"),
                _ => format!("{done} epochs"),
            };
        if self.info.started == 0 { epochs } else { format!("{} · {epochs}", time::in_words(self.info.started)) }
    }

    /// The first and the last look at the fixed samples.
    fn ends(&self) -> Option<(&MonitorPoint, &MonitorPoint)> {
        let (first, last) = (self.history.monitor.first()?, self.history.monitor.last()?);
        (first.epoch < last.epoch).then_some((first, last))
    }

    /// The share of the way to the ceiling that was gone, in per cent.
    fn gap_closed(&self) -> Option<f64> {
        let ((first, last), ceiling) = (self.ends()?, self.ceiling()?);
        let gap = ceiling.reward - first.reward_mean;
        (gap > 1e-9).then(|| 100.0 * (last.reward_mean - first.reward_mean) / gap)
    }

    fn tiles(&self) -> Vec<Tile> {
        let Some((first, last)) = self.ends() else { return Vec::new() };
        let rise = Rise::between(first, last);
        let decimals = decimals(rise.mean);
        let mut tiles = vec![Tile {
            label: "Reward",
            value: number(last.reward_mean, decimals),
            note: format!("from {}", number(first.reward_mean, decimals)),
            tone: "",
        }];
        if let Some(errors) = rise.standard_errors() {
            tiles.push(Tile {
                label: "Rise",
                value: signed(rise.mean, decimals),
                note: format!("{} standard errors{}", number(errors, 1), if rise.paired { ", paired" } else { "" }),
                tone: match errors {
                    errors if errors >= CLEAR_RISE => "good",
                    errors if errors <= -CLEAR_RISE => "bad",
                    _ => "",
                },
            });
        }
        if let (Some(closed), Some(ceiling)) = (self.gap_closed(), self.ceiling()) {
            tiles.push(Tile {
                label: "Gap closed",
                value: format!("{} %", number(closed, 0)),
                note: format!("to {} = {}", ceiling.formula, number(ceiling.reward, decimals)),
                tone: "",
            });
        }
        if let Some(share) = diversity_share(first, last) {
            let limit = self.min_diversity();
            tiles.push(Tile {
                label: "Diversity",
                value: format!("{} %", number(share, 0)),
                note: limit.map_or("of the start".to_owned(), |limit| {
                    format!("of the start; limit {} %", number(100.0 * limit, 0))
                }),
                tone: if limit.is_some_and(|limit| share < 100.0 * limit) { "bad" } else { "good" },
            });
        }
        if let (Some(from), Some(to)) = (first.top_probability, last.top_probability) {
            tiles.push(Tile {
                label: "Top probability",
                value: number(to, 2),
                note: format!("from {}", number(from, 2)),
                tone: "",
            });
        }
        tiles
    }

    /// The result in sentences.
    fn result(&self) -> Vec<String> {
        let Some((first, last)) = self.ends() else {
            return vec!["The fixed samples were not yet looked at after training began.".to_owned()];
        };
        let rise = Rise::between(first, last);
        let decimals = decimals(rise.mean);
        let n = last.rewards.len();
        let samples = if n > 0 { format!("{n} fixed samples") } else { "the fixed samples".to_owned() };
        let errors = rise.standard_errors();
        let verb = match errors {
            Some(errors) if errors.abs() < CLEAR_RISE => "went",
            _ if rise.mean >= 0.0 => "rose",
            _ => "fell",
        };
        let mut sentence = format!(
            "On {samples} (same prompts, same noise) the mean reward {verb} from {} to {} in {} epochs",
            number(first.reward_mean, decimals),
            number(last.reward_mean, decimals),
            last.epoch
        );
        if let (Some(errors), Some(sem)) = (errors, rise.sem) {
            let paired = if rise.paired { "paired by sample" } else { "unpaired" };
            sentence += &format!(
                ", a change of {} ± {} ({paired}), which is {} standard errors",
                signed(rise.mean, decimals),
                number(sem, decimals),
                number(errors, 1)
            );
            if errors.abs() < CLEAR_RISE {
                sentence += " and may be chance";
            }
        }
        let mut sentences = vec![sentence + "."];
        if let (Some(closed), Some(ceiling)) = (self.gap_closed(), self.ceiling()) {
            sentences.push(format!(
                "That is {} % of the way to the ceiling {} = {}, which a classifier without any preference would give.",
                number(closed, 0),
                ceiling.formula,
                number(ceiling.reward, decimals)
            ));
        }
        if let (Some(from), Some(to)) = (first.entropy, last.entropy) {
            let most = match &self.lock.plugins[..] {
                [plugin] => plugin.styles.map(|styles| format!(" of at most {}", number(f64::from(styles).ln(), 2))),
                _ => None,
            };
            let mut sentence = format!(
                "The mean entropy went from {} to {}{} nats",
                number(from, 2),
                number(to, 2),
                most.unwrap_or_default()
            );
            if let (Some(from), Some(to)) = (first.top_probability, last.top_probability) {
                sentence +=
                    &format!(", the probability of the likeliest style from {} to {}", number(from, 2), number(to, 2));
            }
            sentences.push(sentence + ".");
        }
        if let Some(share) = diversity_share(first, last) {
            let held = match self.min_diversity() {
                Some(limit) if share < 100.0 * limit => {
                    format!(", below the limit of {} %: the model has collapsed", number(100.0 * limit, 0))
                }
                Some(limit) => format!("; the limit is {} %", number(100.0 * limit, 0)),
                None => String::new(),
            };
            sentences
                .push(format!("The pictures are {} % as diverse as the untrained model's{held}.", number(share, 0)));
        }
        if let Some(best) =
            self.history.best(self.min_diversity()).filter(|best| best.epoch > 0 && best.epoch != last.epoch)
        {
            sentences.push(format!(
                "The highest reward whose diversity held was {}, at epoch {}: its LoRA is in best/.",
                number(best.reward_mean, decimals),
                best.epoch
            ));
        }
        sentences
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
        let facts = [
            ("Model", or_config(&self.info.model, "model", "path")),
            ("Preset", self.info.preset.clone()),
            ("Pictures", size),
            ("Samples an epoch", per_epoch),
            (
                "Data",
                text("can", "data").map(|data| if data.is_empty() { "procedural paintings".to_owned() } else { data }),
            ),
            ("Loss", text("can", "loss").filter(|_| self.info.model.starts_with("CAN"))),
            ("Batch", text("can", "batch_size")),
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
        let row = |(i, plugin): (usize, &super::LockedPlugin)| PluginRow {
            name: plugin.name.clone(),
            source: plugin.source.clone(),
            sha256: plugin.sha256.clone(),
            interface: plugin.interface.clone(),
            styles: plugin.styles,
            weight: self.weight(i).to_string(),
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
        let mut words = format!("{} in {} epochs", duration(total), self.history.epochs.len());
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

/// The difference of two looks at the fixed samples.
struct Rise {
    mean: f64,
    sem: Option<f64>,
    /// Whether it is of differences sample by sample.
    paired: bool,
}

impl Rise {
    fn between(first: &MonitorPoint, last: &MonitorPoint) -> Self {
        if first.rewards.len() == last.rewards.len() && first.rewards.len() > 1 {
            let (mean, sem) = paired_rise(&first.rewards, &last.rewards);
            return Self { mean, sem: Some(sem), paired: true };
        }
        let sem = first.reward_sem.zip(last.reward_sem).map(|(first, last)| first.hypot(last));
        Self { mean: last.reward_mean - first.reward_mean, sem, paired: false }
    }

    fn standard_errors(&self) -> Option<f64> {
        self.sem.filter(|sem| *sem > 0.0).map(|sem| self.mean / sem)
    }
}

/// The last diversity in per cent of the first.
fn diversity_share(first: &MonitorPoint, last: &MonitorPoint) -> Option<f64> {
    first.diversity.zip(last.diversity).filter(|(first, _)| *first > 0.0).map(|(first, last)| 100.0 * last / first)
}

fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    if value > 0.0 { format!("+{text}") } else { text }
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
        let mut run = RunDir::create(&folder.join("run"), config, &PluginsLock { plugins: vec![plugin] }).unwrap();
        for &(epoch, mean, diversity) in points {
            let rewards: Vec<f64> =
                (0..16).map(|i| mean + f64::from(i % 4) / 30.0 + epoch as f64 * f64::from(i % 3) / 99.0).collect();
            let monitor = json!({
                "reward_mean": mean, "reward_sem": 0.02, "entropy": 2.0, "top_probability": 0.4, "diversity": diversity,
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
        run.save_grid(0, std::slice::from_ref(&cell)).unwrap();
        run.save_grid(10, std::slice::from_ref(&cell)).unwrap();
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
        let result = Page::read(run.path()).unwrap().result().join(" ");
        assert!(result.contains("the model has collapsed") && result.contains("at epoch 5"), "{result}");
        let folder = tempfile::tempdir().unwrap();
        let run = run_with(folder.path(), &[(0, -4.0, 0.5), (1, -4.013, 0.5)]);
        let result = Page::read(run.path()).unwrap().result().join(" ");
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
        let ceiling = page.ceiling().unwrap();
        assert_eq!(ceiling.formula, "−ln 27 −0.5 ln 10");
        assert!((ceiling.reward + 27f64.ln() + 0.5 * 10f64.ln()).abs() < 1e-12);
    }
}
