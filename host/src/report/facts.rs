//! What was trained, with which plugins, and where the time went.

use std::fmt::Display;

use serde::Serialize;

use super::cost::{Cost, co2_in_words, duration, energy_in_words};
use super::training::{EpochPace, Training};
use crate::config::GanConfig;
use crate::config::gan::LossForm;
use crate::run::{PluginsLock, RunInfo};
use crate::text::{counted, gibibytes, number};

/// A plugin's row.
#[derive(Serialize)]
pub(super) struct PluginRow {
    name: String,
    source: String,
    version: Option<String>,
    sha256: String,
    interface: String,
    styles: Option<u32>,
    /// The weight of its reward; none for a plugin that is held out.
    weight: Option<String>,
}

/// The share of one part in the time.
#[derive(Serialize)]
pub(super) struct TimePart {
    name: &'static str,
    share: f64,
    words: String,
}

/// Facts by name, in the order in which they are shown.
#[derive(Default)]
struct Facts(Vec<(&'static str, String)>);

/// Returns the facts about a run: what was trained, on what data and device.
pub(super) fn facts(training: &Training, info: &RunInfo) -> Vec<(&'static str, String)> {
    let mut facts = Facts::default();
    let (model, device) = (&info.model, &info.device);
    match training {
        Training::FineTune(config, records) => {
            facts.add("Model", if model.is_empty() { &config.model.path } else { model });
            facts.add_some("Preset", info.preset.as_ref());
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
            facts.add_some("Preset", info.preset.as_ref());
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
            facts.add_some("Preset", info.preset.as_ref());
            facts.add("Data", data_name(&config.can.data));
            facts.add_steps(config, total(records.iter().filter_map(|r| Some(r.trained.as_ref()?.pace.steps))));
        }
        Training::Clip(_) | Training::Vae(_) | Training::UNet(_) => facts.add("Model", model),
    }
    facts.add("Device", if device.is_empty() { "cpu" } else { device });
    facts.add_some("Processor", Some(&info.hardware).filter(|name| !name.is_empty()));
    facts.add_some("Memory", Some(info.memory).filter(|bytes| *bytes > 0).map(gibibytes));
    facts.add_some("Threads", Some(info.threads).filter(|threads| *threads > 0));
    facts.add_some("Processes", Some(info.processes).filter(|processes| *processes > 1));
    if let Training::FineTune(_, records) = training {
        let cost = Cost::of(records);
        facts.add_some("Training time", (cost.seconds > 0.0).then(|| duration(cost.seconds)));
        facts.add_some("Energy", cost.energy.as_ref().map(energy_in_words));
        facts.add_some("Emissions", cost.energy.as_ref().map(co2_in_words));
    }
    facts.add_some("Program", Some(&info.version).filter(|v| !v.is_empty()).map(|v| format!("host {v}")));
    facts.0
}

/// Returns the plugins of a run, those held out last; `weight` is that of a plugin of the reward by its index.
pub(super) fn plugins(lock: &PluginsLock, weight: impl Fn(usize) -> f64) -> Vec<PluginRow> {
    let of_reward = lock.of_reward().enumerate().map(|(i, plugin)| (plugin, Some(weight(i).to_string())));
    let held_out = lock.plugins.iter().filter(|plugin| plugin.held_out).map(|plugin| (plugin, None));
    let row = |(plugin, weight): (&crate::run::LockedPlugin, _)| PluginRow {
        name: plugin.name.clone(),
        source: plugin.source.clone(),
        version: plugin.version.clone(),
        sha256: plugin.sha256.clone(),
        interface: plugin.interface.clone(),
        styles: plugin.styles,
        weight,
    };
    of_reward.chain(held_out).map(row).collect()
}

/// Returns how the time of the training epochs was spent, and the speed.
pub(super) fn time(paces: &[EpochPace]) -> Option<(Vec<TimePart>, String)> {
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

/// Returns the sum of counts; damaged ones may add up to more than there is room for.
fn total(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add)
}

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
