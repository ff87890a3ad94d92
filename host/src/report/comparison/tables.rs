//! The tables of a comparison: rows are rewards, columns are metrics, as in the paper's Tables 2, 4 and 16; and the transfer
//! matrix.

use std::collections::BTreeSet;

use serde::Serialize;

use super::super::evaluation::{conditions, half_width, title};
use super::super::transfer::{NORMAL, tone};
use super::subject::{Group, Subject};
use crate::energy::KG_CO2_PER_KWH;
use crate::run::evaluation::{Metric, Outcome, Values};
use crate::run::record::FineTuneMonitor;
use crate::statistics::Summary;
use crate::text::{number, signed, two_digits};

/// The metrics of the table of scores that is always complete, and those that are added where they were measured.
const SCORES: [&str; 3] = ["ava", "image-reward", "prompt-similarity"];
const MORE_SCORES: [&str; 2] = ["pick-score", "hps"];
const SIMILARITIES: [&str; 3] = ["style-similarity-30", "style-similarity-15", "style-similarity-10"];
const DIVERSITY: [&str; 3] = ["vendi", "pairwise-distance", "near-duplicates"];
const MORE_DIVERSITY: [&str; 2] = ["coverage", "novelty"];
/// The name of the row of the model without LoRA.
const UNTRAINED: &str = "untrained model";

/// A table.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub(super) title: &'static str,
    /// What the values and their uncertainties are.
    pub(super) caption: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Row>,
}

/// A row of a table.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) label: String,
    /// The names of the runs.
    pub(super) runs: String,
    pub(super) cells: Vec<Cell>,
}

/// A cell: a value, or why there is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Cell {
    pub(super) value: Option<f64>,
    /// Half of the 95 % interval; of several runs, the standard deviation over them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) plus_minus: Option<f64>,
    /// What to know of the value, or why there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) note: String,
    /// The number of runs with a value, if some have none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) part: String,
    /// The value as it is shown.
    #[serde(skip)]
    pub(super) shown: String,
    #[serde(skip)]
    pub(super) shown_plus_minus: String,
    /// `good`, `bad` or empty.
    #[serde(skip)]
    pub(super) tone: &'static str,
}

/// A column: a metric with its encoder.
#[derive(Clone, PartialEq)]
struct Column {
    name: &'static str,
    encoder: Option<String>,
}

/// A value of a run with its uncertainty, or why there is none.
type Found = Result<(f64, Option<f64>), String>;

/// What a column shows of a run.
type Of<'a> = &'a dyn Fn(&Subject) -> Found;

impl Cell {
    fn missing(note: String) -> Self {
        Self { note, ..Self::default() }
    }

    /// Returns the cell of a value with as many decimals as its uncertainty leaves meaningful.
    fn of(value: f64, plus_minus: Option<f64>) -> Self {
        let place = |size: f64, digits: f64| {
            let places = digits - 1.0 - size.abs().log10().floor();
            if places.is_finite() { places.clamp(0.0, 6.0) as usize } else { 2 }
        };
        let (shown, shown_plus_minus) = match plus_minus {
            Some(half) if half > 0.0 => {
                let places = place(half, 2.0);
                (number(value, places), number(half, places))
            }
            Some(half) => (number(value, place(value, 3.0)), number(half, place(value, 3.0))),
            None if value != 0.0 && value.abs() < 1e-3 => {
                let sign = if value < 0.0 { "−" } else { "" };
                (format!("{sign}{}", two_digits(value.abs())), String::new())
            }
            None => (number(value, place(value, 3.0)), String::new()),
        };
        Self { value: Some(value), plus_minus, shown, shown_plus_minus, ..Self::default() }
    }

    /// Returns the cell of the values of a group's runs: one value with its own uncertainty, of several the mean with the
    /// standard deviation (ddof 1).
    fn of_runs(values: &[Found]) -> Self {
        let found: Vec<f64> = values.iter().flatten().map(|(value, _)| *value).collect();
        match (values, &found[..]) {
            ([Ok((value, half))], _) => Self::of(*value, *half),
            (_, []) => Self::missing(values.iter().find_map(|value| value.clone().err()).unwrap_or_default()),
            (_, [value]) => Self { part: format!("1 of {} runs", values.len()), ..Self::of(*value, None) },
            (_, found) => {
                let Summary { mean, std, .. } = Summary::of(found);
                let n = found.len() as f64;
                let cell = Self::of(mean, Some(std * (n / (n - 1.0)).sqrt()));
                let part = format!("{} of {} runs", found.len(), values.len());
                Self { part: if found.len() < values.len() { part } else { String::new() }, ..cell }
            }
        }
    }

    /// The value with its uncertainty, as a page shows it; a dash where there is none.
    pub(super) fn text(&self) -> String {
        let part = if self.part.is_empty() { String::new() } else { format!(" ({})", self.part) };
        match (self.value, &*self.shown_plus_minus) {
            (None, _) => "–".to_owned(),
            (Some(_), "") => format!("{}{part}", self.shown),
            (Some(_), half) => format!("{} ± {half}{part}", self.shown),
        }
    }
}

impl Column {
    fn title(&self) -> String {
        match &self.encoder {
            Some(encoder) => format!("{} ({encoder})", title(self.name)),
            None => title(self.name),
        }
    }

    fn is_of(&self, metric: &Metric) -> bool {
        metric.name == self.name && (self.encoder.is_none() || metric.encoder == self.encoder)
    }

    fn values<'a>(&self, run: &'a Subject) -> Result<&'a Values, String> {
        let Some(evaluation) = &run.evaluation else {
            return Err(format!("{}: `host eval {}` measures it", run.name, run.path.display()));
        };
        match evaluation.metrics.iter().find(|metric| self.is_of(metric)).map(|metric| &metric.outcome) {
            Some(Outcome::Ok(values)) => Ok(values),
            Some(Outcome::NotRun { reason }) => Err(format!("{}: {reason}", run.name)),
            None => Err(format!(
                "{}: eval.json does not have it: `host eval {} --metrics {}` measures it",
                run.name,
                run.path.display(),
                self.name
            )),
        }
    }
}

/// Returns the columns of metrics: those of `always`, and those of `more` that were measured, each under every encoder that was
/// used.
fn columns(groups: &[Group], always: &[&'static str], more: &[&'static str]) -> Vec<Column> {
    let metrics = || {
        let runs = groups.iter().flat_map(|group| &group.runs);
        runs.filter_map(|run| run.evaluation.as_ref()).flat_map(|evaluation| &evaluation.metrics)
    };
    let mut columns: Vec<Column> = Vec::new();
    for &name in always.iter().chain(more) {
        let before = columns.len();
        for metric in metrics().filter(|metric| metric.name == name && metric.values().is_some()) {
            let column = Column { name, encoder: metric.encoder.clone() };
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        if columns.len() == before && always.contains(&name) {
            columns.push(Column { name, encoder: None });
        }
    }
    columns
}

/// Returns the table of columns of `eval.json`.
fn of_metrics(groups: &[Group], title: &'static str, columns: &[Column]) -> Table {
    let row = |group: &Group| {
        let cell = |column: &Column| {
            let value = |run: &Subject| {
                let values = column.values(run)?;
                Ok((values.value.mean, half_width(&values.value)))
            };
            Cell::of_runs(&group.runs.iter().map(value).collect::<Vec<_>>())
        };
        Row { label: group.label.clone(), runs: group.names(), cells: columns.iter().map(cell).collect() }
    };
    let mut rows: Vec<Row> = groups.iter().map(row).collect();
    rows.extend(untrained(groups, columns));
    let caption = format!("{}{}", caption(groups), evaluated(groups));
    Table { title, caption, head: columns.iter().map(Column::title).collect(), rows }
}

/// Returns the row of the model without LoRA, if all runs that evaluated it agree.
fn untrained(groups: &[Group], columns: &[Column]) -> Option<Row> {
    let cell = |column: &Column| {
        let runs = groups.iter().flat_map(|group| &group.runs);
        let found: Vec<_> = runs.filter_map(|run| column.values(run).ok()?.baseline).collect();
        match found.first() {
            None => Some(Cell::missing("the untrained model was not evaluated".to_owned())),
            Some(first) => {
                // Runs with other numbers of threads round differently.
                let agree =
                    found.iter().all(|other| (other.mean - first.mean).abs() <= 1e-5 * first.mean.abs().max(1.0));
                agree.then(|| Cell::of(first.mean, half_width(first)))
            }
        }
    };
    let cells: Vec<Cell> = columns.iter().map(cell).collect::<Option<_>>()?;
    let is_empty = cells.iter().all(|cell| cell.value.is_none());
    (!is_empty).then(|| Row { label: UNTRAINED.to_owned(), runs: String::new(), cells })
}

/// Returns what ± means.
fn caption(groups: &[Group]) -> String {
    let of_one = "± is half of the 95 % interval";
    let of_several = "of several seeds, ± is the standard deviation over the runs";
    match (groups.iter().any(|group| group.runs.len() == 1), groups.iter().any(|group| group.runs.len() > 1)) {
        (true, true) => format!("{of_one}; {of_several}."),
        (false, true) => "± is the standard deviation over the runs of several seeds.".to_owned(),
        _ => format!("{of_one}."),
    }
}

/// Returns the conditions of the runs' evaluations, if they are the same, in a sentence.
fn evaluated(groups: &[Group]) -> String {
    let evaluations = groups.iter().flat_map(|group| &group.runs).filter_map(|run| run.evaluation.as_ref());
    let all: BTreeSet<String> = evaluations.map(|evaluation| conditions(&evaluation.protocol)).collect();
    let mut words = match (all.len(), all.first()) {
        (1, Some(conditions)) => format!(" Evaluated: {conditions}."),
        (0, _) => String::new(),
        _ => " The runs were evaluated under different conditions, which are named with the runs.".to_owned(),
    };
    let outdated = groups.iter().flat_map(|group| &group.runs).filter(|run| run.is_outdated);
    let outdated: Vec<&str> = outdated.map(|run| run.name.as_str()).collect();
    if !outdated.is_empty() {
        words += &format!(" Another LoRA than the run has now was evaluated of: {}.", outdated.join(", "));
    }
    words
}

/// Returns the table of one number of each run.
fn of_runs(groups: &[Group], title: &'static str, caption: &str, columns: &[(&str, Of<'_>)]) -> Table {
    let row = |group: &Group| {
        let cell = |(_, of): &(&str, Of<'_>)| {
            let missing = |run: &Subject| of(run).map_err(|why| format!("{}: {why}", run.name));
            Cell::of_runs(&group.runs.iter().map(missing).collect::<Vec<_>>())
        };
        Row { label: group.label.clone(), runs: group.names(), cells: columns.iter().map(cell).collect() }
    };
    let head = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    Table { title, caption: caption.to_owned(), head, rows: groups.iter().map(row).collect() }
}

/// Returns the tables of a comparison.
pub(super) fn tables(groups: &[Group]) -> Vec<Table> {
    let too_few = || "the monitor ran only once".to_owned();
    let reward = |monitor: &FineTuneMonitor| (monitor.reward_mean, monitor.reward_sem.map(|sem| NORMAL * sem));
    let first = |run: &Subject| run.ends.as_ref().map(|(first, _)| reward(first)).ok_or_else(too_few);
    let last = |run: &Subject| run.ends.as_ref().map(|(_, last)| reward(last)).ok_or_else(too_few);
    let improvement = |run: &Subject| {
        let improvement = run.improvement().ok_or_else(too_few)?;
        Ok((improvement.mean, improvement.sem.map(|sem| NORMAL * sem)))
    };
    let gap = |run: &Subject| {
        let gaps = run.gaps.as_ref().ok_or("the reward has no upper bound")?;
        gaps.last().filter(|_| run.ends.is_some()).map(|gap| (*gap, None)).ok_or_else(too_few)
    };
    let vendi = |run: &Subject| {
        let (first, last) = run.ends.as_ref().ok_or_else(too_few)?;
        let (first, last) =
            first.vendi.zip(last.vendi).filter(|(first, _)| *first > 0.0).ok_or("its monitor has no Vendi score")?;
        Ok((100.0 * last / first, None))
    };
    let diversity = |run: &Subject| {
        let ends = run.ends.as_ref().ok_or_else(too_few)?;
        let (first, last) =
            Some(ends).filter(|(first, _)| first.diversity > 0.0).ok_or("its first images were all alike")?;
        Ok((100.0 * last.diversity / first.diversity, None))
    };
    let hours = |run: &Subject| match run.cost.seconds {
        seconds if seconds > 0.0 => Ok((seconds / 3600.0, None)),
        _ => Err("no epoch was trained".to_owned()),
    };
    let energy = |run: &Subject| run.cost.energy.ok_or_else(|| "its energy was not recorded".to_owned());
    let kilowatt_hours = |run: &Subject| Ok((energy(run)?.kilowatt_hours(), None));
    let co2 = |run: &Subject| Ok((energy(run)?.kg_co2(), None));
    let sources: BTreeSet<String> = groups
        .iter()
        .flat_map(|group| &group.runs)
        .filter_map(|run| Some(run.cost.energy?.source.in_words()))
        .collect();
    let sources: Vec<String> = sources.into_iter().collect();
    let factor = KG_CO2_PER_KWH;
    let cost_caption = match sources.is_empty() {
        true => "Time of the epochs, without the monitors.".to_owned(),
        false => format!(
            "Time of the epochs, without the monitors. Energy {}; {factor} kg CO2 per kWh.",
            sources.join(", or ")
        ),
    };
    let reward_caption = "On the monitor's fixed samples, which share prompts and noise before and after.";
    vec![
        of_metrics(groups, "Scores", &columns(groups, &SCORES, &MORE_SCORES)),
        of_metrics(groups, "Style similarity to the untrained model", &columns(groups, &SIMILARITIES, &[])),
        of_metrics(groups, "Diversity", &columns(groups, &DIVERSITY, &MORE_DIVERSITY)),
        of_runs(
            groups,
            "Reward",
            &format!("{reward_caption} {}", caption(groups)),
            &[
                ("Before", &first),
                ("After", &last),
                ("Improvement", &improvement),
                ("Gap closed, %", &gap),
                ("Vendi score, % of the start", &vendi),
                ("Diversity, % of the start", &diversity),
            ],
        ),
        of_runs(
            groups,
            "Training",
            &cost_caption,
            &[("Hours", &hours), ("Energy, kWh", &kilowatt_hours), ("CO2, kg", &co2)],
        ),
        transfer(groups),
    ]
}

/// Returns the changes of each plugin's reward, in standard errors.
fn transfer(groups: &[Group]) -> Table {
    let mut plugins: Vec<&str> = Vec::new();
    let changes = || groups.iter().flat_map(|group| &group.runs).flat_map(|run| &run.changes);
    for change in changes().filter(|change| !change.held_out).chain(changes()) {
        if !plugins.contains(&change.plugin.as_str()) {
            plugins.push(&change.plugin);
        }
    }
    let row = |group: &Group| {
        let cell = |plugin: &&str| {
            let change = |run: &Subject| run.changes.iter().find(|change| change.plugin == **plugin).cloned();
            let value = |run: &Subject| {
                let errors = change(run).map(|change| change.improvement.standard_errors());
                let eval = format!("`host eval {}` with --plugin measures it", run.path.display());
                let errors = errors.ok_or_else(|| format!("{}: {eval}", run.name))?;
                Ok((errors.ok_or_else(|| format!("{}: all images changed alike", run.name))?, None))
            };
            let found = Cell::of_runs(&group.runs.iter().map(value).collect::<Vec<_>>());
            let is_held_out = group.runs.iter().filter_map(change).all(|change| change.held_out);
            let Some(errors) = found.value else { return found };
            let note = if is_held_out { "held out" } else { "trained" };
            let shown_plus_minus = found.plus_minus.map_or_else(String::new, |half| number(half, 1));
            Cell { shown: signed(errors, 1), shown_plus_minus, tone: tone(errors), note: note.to_owned(), ..found }
        };
        Row { label: group.label.clone(), runs: group.names(), cells: plugins.iter().map(cell).collect() }
    };
    let rows = groups.iter().map(row).collect();
    let caption = "Rows: trained by; columns: evaluated by. Change of the plugin's reward in standard errors, by host eval \
                   where it measured it, else by the monitor; below 3 it may be chance.";
    Table {
        title: "Transfer",
        caption: caption.to_owned(),
        head: plugins.iter().map(|plugin| (*plugin).to_owned()).collect(),
        rows,
    }
}
