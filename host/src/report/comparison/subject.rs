//! A run to compare: what its folder says of it, and runs that differ by their seed alone as one group.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::super::cost::Cost;
use super::super::fine_tune::FineTune;
use super::super::training::Training;
use super::super::transfer::{Change, improvement, of_evaluation, of_monitors};
use super::super::{Page, View};
use crate::config::{FineTuneConfig, RunConfig as _};
use crate::run::evaluation::Evaluation;
use crate::run::record::{FineTuneMonitor, FineTuneRecord};
use crate::statistics::Improvement;

/// A fine-tuning run.
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// The reward: its plugins with their weights.
    pub(super) reward: String,
    pub(super) config: FineTuneConfig,
    /// What runs of one group have in common.
    key: String,
    pub(super) epochs: u64,
    /// The first and the last monitor, if there are two.
    pub(super) ends: Option<(FineTuneMonitor, FineTuneMonitor)>,
    /// The share of the way to the upper bound, in percent, by epoch; none without an upper bound.
    pub(super) gaps: Option<Vec<f64>>,
    /// The monitors.
    pub(super) monitors: Vec<FineTuneMonitor>,
    pub(super) changes: Vec<Change>,
    pub(super) cost: Cost,
    pub(super) evaluation: Option<Evaluation>,
}

/// Runs that differ by their seed alone.
pub(super) struct Group {
    pub(super) label: String,
    pub(super) runs: Vec<Subject>,
}

impl Subject {
    /// Reads a run.
    ///
    /// # Errors
    /// If it is no run, or none of `host train`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let page = Page::read(path)?;
        let View::FineTune(view) = page.view() else {
            bail!("{} is no fine-tuning: only runs of `host train` are compared", path.display());
        };
        let ends = view.ends().map(|(first, _, last)| (first.clone(), last.clone()));
        let mut changes = page.evaluation.as_ref().map_or_else(Vec::new, of_evaluation);
        if let Some((first, last)) = &ends {
            let is_new = |change: &Change| changes.iter().all(|other| other.plugin != change.plugin);
            let of_monitors: Vec<Change> = of_monitors(&page.lock, first, last).into_iter().filter(is_new).collect();
            changes.extend(of_monitors);
        }
        let mut unseeded = view.config.clone();
        unseeded.run.seed = 0;
        let digests: Vec<&str> = page.lock.of_reward().map(|plugin| plugin.sha256.as_str()).collect();
        let gaps = || view.monitors().map(|(_, monitor)| view.share_of_gap(monitor)).collect();
        let (reward, gaps) = (reward(&view), gaps());
        let key = format!("{}\n{}", digests.join(" "), unseeded.to_toml()?);
        let (epochs, _) = page.training.epochs();
        let monitors = view.monitors().map(|(_, monitor)| monitor.clone()).collect();
        let Page { name, training, evaluation, .. } = page;
        let Training::FineTune(config, records) = training else { unreachable!("its view is one of a fine-tuning") };
        let cost = Cost::of(&records as &[FineTuneRecord]);
        Ok(Self {
            name,
            path: path.to_owned(),
            reward,
            config: *config,
            key,
            epochs,
            ends,
            gaps,
            monitors,
            changes,
            cost,
            evaluation,
        })
    }

    /// The change of the reward between the first and the last monitor.
    pub(super) fn improvement(&self) -> Option<Improvement> {
        self.ends.as_ref().map(|(first, last)| improvement(first, last))
    }
}

/// Returns the name of a run's reward, with the weights that are not 1.
fn reward(view: &FineTune<'_>) -> String {
    let plugin = |(i, plugin): (usize, &crate::run::LockedPlugin)| match view.weight(i) {
        1.0 => plugin.name.clone(),
        weight => format!("{weight} {}", plugin.name),
    };
    view.lock.of_reward().enumerate().map(plugin).collect::<Vec<_>>().join(" + ")
}

impl Group {
    /// Returns runs by group, in the order of their first runs. A group is named by its reward; where that is not enough, by
    /// the size of its images or its first run too.
    pub(super) fn all(runs: Vec<Subject>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for run in runs {
            match groups.iter_mut().find(|group| group.runs[0].key == run.key) {
                Some(group) => group.runs.push(run),
                None => groups.push(Self { label: run.reward.clone(), runs: vec![run] }),
            }
        }
        let size = |group: &Self| (group.runs[0].config.sample.width, group.runs[0].config.sample.height);
        if groups.iter().any(|group| size(group) != size(&groups[0])) {
            for group in &mut groups {
                let (width, height) = size(group);
                group.label +=
                    &if width == height { format!(" ({width} px)") } else { format!(" ({width} × {height} px)") };
            }
        }
        let labels: Vec<String> = groups.iter().map(|group| group.label.clone()).collect();
        for group in &mut groups {
            if labels.iter().filter(|label| **label == group.label).count() > 1 {
                group.label += &format!(", {}", group.runs[0].name);
            }
        }
        groups
    }

    /// The names of the runs.
    pub(super) fn names(&self) -> String {
        self.runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}
