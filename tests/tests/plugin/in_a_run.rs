//! What a failing plugin does to a run, by `plugin.on_error`.

use std::fs;
use std::path::Path;

use super::built;
use crate::support::{Ran, host, tiny_run};
use crate::train::metrics;

/// A run of three epochs of two batches, whose only plugin fails in the second epoch.
fn run(folder: &Path, fault: &str, settings: &[&str]) -> Ran {
    let plugin = built("hostile");
    let config =
        format!("[[reward.plugin]]\nsource = '{}'\nweight = 1.0\nconfig = {{ fault = '{fault}' }}\n", plugin.display());
    fs::write(folder.join("run.toml"), config).expect("writable");
    let mut arguments = vec!["train", "--out=run", "--config=run.toml"];
    arguments.extend(tiny_run().into_iter().filter(|argument| !argument.starts_with("--plugin")));
    arguments.extend(["--set=train.epochs=3", "--set=monitor.every=3"]);
    arguments.extend(settings);
    host(folder, &arguments)
}

#[test]
fn abort_stops_after_a_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = run(folder.path(), "second-epoch", &["--set=checkpoint.every=100"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    for words in ["the second epoch is not to my taste", "plugin `hostile`", "1 of 3 epochs are kept in run"] {
        assert!(ran.stderr.contains(words), "no `{words}` in {}", ran.stderr);
    }
    // The first epoch is kept although no checkpoint was due after it.
    assert!(folder.path().join("run/checkpoints/epoch-0001/state.safetensors").is_file());
    assert!(!folder.path().join("run/checkpoints/epoch-0002").exists());
    assert_eq!(metrics(&folder.path().join("run")).len(), 2, "the untrained epoch 0 and epoch 1");
}

#[test]
fn skip_leaves_the_batch_out_and_counts_it_and_stops_above_the_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let skip = "--set=plugin.on_error=skip";
    let ran = run(folder.path(), "second-epoch-batch", &[skip, "--set=plugin.max_skipped=0.5"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines = metrics(&folder.path().join("run"));
    let skipped: Vec<Option<u64>> = lines.iter().map(|line| line["skipped"].as_u64()).collect();
    assert_eq!(skipped, [None, Some(0), Some(4), Some(0)]);
    assert!(ran.stderr.contains("4 samples were left out because a plugin failed on them"), "{}", ran.stderr);

    let folder = tempfile::tempdir().expect("a folder");
    let ran = run(folder.path(), "second-epoch-batch", &[skip]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let message = "plugins failed on 4 of 8 samples, more than plugin.max_skipped = 0.25 allows";
    assert!(ran.stderr.contains(message), "{}", ran.stderr);
    assert!(folder.path().join("run/checkpoints/epoch-0001/state.safetensors").is_file());
}

/// The monitor compares the same samples each time, so an evaluation that lacks some is left out.
#[test]
fn skip_leaves_out_a_monitor_that_lacks_samples() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = ["--set=plugin.on_error=skip", "--set=plugin.max_skipped=0.5", "--set=monitor.every=1"];
    let ran = run(folder.path(), "second-epoch-batch", &settings);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let monitored: Vec<bool> =
        metrics(&folder.path().join("run")).iter().map(|line| line["monitor"].is_object()).collect();
    assert_eq!(monitored, [true, true, false, true]);
    assert!(ran.stderr.contains("epoch 2: the monitor was left out"), "{}", ran.stderr);
}
