//! `host report`: a page written from a run's folder alone, and one that compares runs.

use std::fs;
use std::path::Path;

use ambiguity_host::config::{FineTuneConfig, RunConfig as _};
use ambiguity_host::run::record::{FineTuneEpoch, FineTuneMonitor, FineTuneRecord};
use ambiguity_host::run::{LockedPlugin, PluginsLock, RunDir, RunInfo};
use serde_json::{Value, json};

use crate::support::{command, host, host_ok};

/// Writes the folder of a run of two epochs, without training.
fn fake_run(path: &Path) {
    let plugin = LockedPlugin {
        name: "kmeans_image".to_owned(),
        source: "kmeans_image.wasm".to_owned(),
        sha256: "c0ffee".to_owned(),
        interface: "0.2.0".to_owned(),
        styles: Some(27),
        ..LockedPlugin::default()
    };
    let config = FineTuneConfig::resolve("tiny-art", &[]).and_then(|config| config.to_toml()).expect("the preset");
    let lock = PluginsLock { plugins: vec![plugin], ..PluginsLock::default() };
    let mut run = RunDir::create(path, &config, &lock, &RunInfo::default()).expect("a run");
    for (epoch, reward_mean) in [(0, -4.0), (2, -3.5)] {
        let reward_sem = Some(0.02);
        let monitor = FineTuneMonitor { reward_mean, reward_sem, diversity: 0.5, ..FineTuneMonitor::default() };
        let trained = (epoch > 0).then(FineTuneEpoch::default);
        let record = FineTuneRecord { epoch, trained, monitor: Some(monitor), warnings: Vec::new() };
        run.append_metrics(&record).expect("a line of metrics");
    }
}

#[test]
fn a_report_is_written_from_the_folder_and_its_path_is_printed() {
    let folder = tempfile::tempdir().expect("a folder");
    fake_run(&folder.path().join("runs/one"));
    assert_eq!(host_ok(folder.path(), &["report"]).stdout, "runs/one/report.html\n");
    let page = fs::read_to_string(folder.path().join("runs/one/report.html")).expect("the report");
    assert!(page.contains("rose from −4.000 to −3.500 in 2 epochs") && page.contains("c0ffee"), "{page}");

    let ran = host_ok(folder.path(), &["report", "runs/one", "--json"]);
    let paths: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(paths, json!({"report": "runs/one/report.html", "curve": "runs/one/reward-curve.png"}));
}

#[test]
fn runs_are_compared_on_a_page_and_in_tables() {
    let folder = tempfile::tempdir().expect("a folder");
    fake_run(&folder.path().join("runs/one"));
    fake_run(&folder.path().join("runs/two"));
    let both = ["report", "runs/one", "runs/two"];
    assert_eq!(host_ok(folder.path(), &both).stdout, "report-comparison.html\n");
    let page = fs::read_to_string(folder.path().join("report-comparison.html")).expect("the page");
    assert!(page.contains("2 runs compared") && page.contains("`host eval runs&#x2f;one` measures it"), "{page}");
    assert!(folder.path().join("report-comparison.png").is_file());

    let ran = host_ok(folder.path(), &[&both[..], &["--out", "c.html", "--json"]].concat());
    let data: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((&data["report"], &data["chart"]), (&json!("c.html"), &json!("c.png")));
    assert_eq!((&data["runs"][0]["improvement"], &data["tables"][3]["title"]), (&json!(0.5), &json!("Reward")));

    let csv = host_ok(folder.path(), &["report", "runs/one", "--csv"]).stdout;
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("Reward,Runs,AVA score,AVA score ±,"), "{csv}");
    assert!(lines[1].starts_with("kmeans_image,one,") && lines[1].contains(",-4,0.0392,-3.5,0.0392,0.5,"), "{csv}");
    let latex = host_ok(folder.path(), &[&both[..], &["--latex"]].concat()).stdout;
    assert!(latex.contains("kmeans\\_image & $-4.00 \\pm 0.00$ & $-3.50 \\pm 0.00$ & $0.500"), "{latex}");

    let ran = host(folder.path(), &["report", "runs/one", "--out", "c.html"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("--out is the page that compares runs: name several"),
        "{}",
        ran.stderr
    );
    let ran = host(folder.path(), &["report", "runs/one", "nowhere"]);
    assert!(ran.code == 1 && ran.stderr.contains("nowhere is not a run's folder"), "{}", ran.stderr);
}

#[test]
fn a_folder_that_is_not_a_run_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = host(folder.path(), &["report", "nowhere"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("nowhere is not a run's folder (it has no config.toml)"), "{}", ran.stderr);
    let ran = host(folder.path(), &["report"]);
    assert!(ran.code == 1 && ran.stderr.contains("there is no run under ./runs"), "{}", ran.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn open_shows_the_report_in_the_browser() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("a folder");
    fake_run(&folder.path().join("run"));
    let opener = folder.path().join("xdg-open");
    fs::write(&opener, "#!/bin/sh\necho \"$1\" > opened\n").expect("writable");
    fs::set_permissions(&opener, fs::Permissions::from_mode(0o755)).expect("made executable");
    let mut report = command(folder.path(), &["report", "run", "--open"]);
    assert!(
        report
            .env("PATH", format!("{}:/bin:/usr/bin", folder.path().display()))
            .status()
            .expect("the binary starts")
            .success()
    );
    assert_eq!(fs::read_to_string(folder.path().join("opened")).expect("it was called"), "run/report.html\n");

    let ran = command(folder.path(), &["report", "run", "--open"])
        .env("PATH", "/nowhere")
        .output()
        .expect("the binary starts");
    assert_eq!(ran.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(stderr.contains("cannot start xdg-open: open run/report.html in a browser"), "{stderr}");
}
