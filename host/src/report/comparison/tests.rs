//! Tests of comparisons, from runs that are written here.

use std::collections::BTreeMap;

use super::*;
use crate::config::{FineTuneConfig, Layer, RunConfig as _};
use crate::energy::{Energy, Source};
use crate::run::evaluation::{Estimate, Evaluation, Metric, Outcome, Protocol, Values};
use crate::run::record::{FineTuneEpoch, FineTuneMonitor, FineTuneRecord, FineTuneSeconds};
use crate::run::{LockedPlugin, PluginsLock, RunDir, RunInfo};

/// Writes a run of two epochs whose reward rises by `rise` and whose held-out reward falls by it.
fn run(folder: &Path, name: &str, plugin: &str, seed: u64, rise: f64) -> PathBuf {
    let locked = |name: &str, held_out| LockedPlugin {
        name: name.to_owned(),
        sha256: "c0ffee".to_owned(),
        styles: Some(27),
        held_out,
        ..LockedPlugin::default()
    };
    let text = format!("[run]\nseed = {seed}\n[[reward.plugin]]\nsource = \"{plugin}\"\n");
    let config = FineTuneConfig::resolve("tiny-art", &[Layer { origin: "run.toml".to_owned(), text }]).unwrap();
    let lock = PluginsLock { plugins: vec![locked(plugin, false), locked("palette", true)], ..PluginsLock::default() };
    let mut run = RunDir::create(&folder.join(name), &config.to_toml().unwrap(), &lock, &RunInfo::default()).unwrap();
    for epoch in [0, 1] {
        let change = rise * epoch as f64;
        let rewards =
            |change: f64| (0..8).map(|i| -4.0 + change + f64::from(i % 4) / 40.0 * epoch as f64).collect::<Vec<_>>();
        let monitor = FineTuneMonitor {
            reward_mean: -4.0 + change,
            diversity: 0.5 - change / 10.0,
            vendi: Some(20.0 - 5.0 * change),
            rewards: rewards(change),
            held_out_rewards: BTreeMap::from([("palette".to_owned(), rewards(-change))]),
            ..FineTuneMonitor::default()
        };
        let energy = Some(Energy { joules: 3.6e5, source: Source::Estimate });
        let seconds = FineTuneSeconds { sample: 1800.0, reward: 0.0, train: 1800.0 };
        let trained = (epoch > 0).then(|| FineTuneEpoch { seconds, energy, ..FineTuneEpoch::default() });
        run.append_metrics(&FineTuneRecord { epoch, trained, monitor: Some(monitor), warnings: vec![] }).unwrap();
    }
    run.path().to_owned()
}

/// Writes `eval.json`.
fn evaluate(run: &Path, shift: f64) {
    let estimate = |mean: f64, half: f64| Estimate { mean, std: 1.0, ci95: Some([mean - half, mean + half]), n: 24 };
    let metric = |name: &str, encoder: Option<&str>, outcome| Metric {
        name: name.to_owned(),
        encoder: encoder.map(str::to_owned),
        plugin: None,
        held_out: false,
        outcome,
    };
    let ok = |mean, half, baseline: Option<f64>| {
        let baseline = baseline.map(|mean| estimate(mean, half));
        Outcome::Ok(Box::new(Values { value: estimate(mean, half), baseline, ..Values::default() }))
    };
    let metrics = vec![
        metric("ava", None, ok(4.18 + shift, 0.104, Some(4.0))),
        metric("image-reward", None, Outcome::NotRun { reason: "needs its weights: name them".to_owned() }),
        metric("prompt-similarity", Some("clip"), ok(0.241 + shift, 0.0123, Some(0.25))),
        metric("style-similarity-30", Some("dino"), ok(0.29 + shift, 0.02, None)),
        metric("vendi", Some("clip"), ok(12.5 + shift, 1.5, Some(15.0))),
        Metric {
            plugin: Some("palette".to_owned()),
            held_out: true,
            ..metric(
                "reward",
                None,
                Outcome::Ok(Box::new(Values { difference: Some(estimate(0.5 + shift, 0.196)), ..Values::default() })),
            )
        },
    ];
    Evaluation { protocol: Protocol { count: 24, ..Protocol::default() }, metrics }.write(run).unwrap();
}

/// Two runs of one plugin with different seeds, and one of a plugin whose name is a formula and a command.
fn comparison(folder: &Path) -> Comparison {
    let one = run(folder, "one", "kmeans_image", 0, 0.3);
    let two = run(folder, "two", "kmeans_image", 1, 0.5);
    let odd = run(folder, "odd", "=1+1,$x_1$", 0, 0.1);
    evaluate(&one, 0.0);
    evaluate(&two, 0.1);
    let mut comparison = Comparison::read(&[one, two, odd]).unwrap();
    // The paths of this test's folder are in the reasons.
    let folder = format!("{}/", folder.display());
    for table in &mut comparison.tables {
        for cell in table.rows.iter_mut().flat_map(|row| &mut row.cells) {
            cell.note = cell.note.replace(&folder, "");
        }
    }
    comparison
}

#[test]
fn the_tables_are_csv() {
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(comparison(folder.path()).csv());
}

#[test]
fn the_tables_are_latex() {
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(comparison(folder.path()).latex());
}

#[test]
fn runs_of_several_seeds_are_one_row_and_the_data_has_all_runs() {
    let folder = tempfile::tempdir().unwrap();
    let comparison = comparison(folder.path());
    let labels: Vec<&str> = comparison.groups.iter().map(|group| group.label.as_str()).collect();
    assert_eq!(labels, ["kmeans_image", "=1+1,$x_1$"]);
    let document = comparison.document();
    assert_eq!(document["runs"].as_array().unwrap().len(), 3);
    let scores = &document["tables"][0];
    assert_eq!(scores["head"][0], "AVA score");
    let cell = &scores["rows"][0]["cells"][0];
    assert!((cell["value"].as_f64().unwrap() - 4.23).abs() < 1e-9, "{cell}");
    // The standard deviation of 4.18 and 4.28, ddof 1.
    assert!((cell["plus_minus"].as_f64().unwrap() - 0.1 / 2f64.sqrt()).abs() < 1e-9, "{cell}");
    assert!(scores["rows"][1]["cells"][0]["value"].is_null());
    // Those of the runs that were evaluated agree on the untrained model.
    assert_eq!(scores["rows"][2]["label"], "untrained model");
    // By the monitor, the held-out reward fell; by `host eval`, which comes first, it rose.
    let transfer = &document["tables"][5];
    assert_eq!(transfer["head"], json!(["kmeans_image", "=1+1,$x_1$", "palette"]));
    assert!(transfer["rows"][0]["cells"][2]["value"].as_f64().unwrap() > 3.0);
    assert!(transfer["rows"][1]["cells"][2]["value"].as_f64().unwrap() < -3.0);
}

#[test]
fn the_page_has_tables_chart_and_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let (page, chart) = comparison(folder.path()).write(&folder.path().join(FILE)).unwrap();
    let page = std::fs::read_to_string(page).unwrap();
    assert!(chart.unwrap().ends_with("report-comparison.png"));
    for part in
        ["3 runs compared", "4.230 ± 0.071", "ImageReward", "needs its weights", "kmeans_image, two", "host eval odd"]
    {
        assert!(page.contains(part), "{part} is missing");
    }
}
