//! What a failing plugin does to a run, by `plugin.on_error`.

use std::fs;
use std::path::Path;

use super::built;
use crate::support::{Ran, host, tiny_run};
use crate::train::{metrics, timeless};

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

    // In two processes, one of which leaves out its whole share.
    let settings = [
        skip,
        "--threads=1",
        "--set=plugin.max_skipped=0.5",
        "--set=sample.micro_batch=4",
        "--set=train.micro_batch=4",
        "--set=monitor.count=8",
    ];
    let [one, two] = ["--nproc=1", "--nproc=2"].map(|nproc| {
        let folder = tempfile::tempdir().expect("a folder");
        let ran = run(folder.path(), "second-epoch-batch", &[&settings[..], &[nproc]].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        timeless(&folder.path().join("run"))
    });
    assert_eq!(one, two);

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

/// What the monitor alone evaluates decides nothing: its failure is a warning, and training goes its way.
#[test]
fn a_held_out_plugin_that_fails_is_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let train = |out: &str, more: &[&str]| {
        let mut arguments = vec!["train".to_owned(), format!("--out={out}")];
        arguments.extend(tiny_run().into_iter().chain(more.iter().copied()).map(str::to_owned));
        let ran = host(folder.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (ran, metrics(&folder.path().join(out)))
    };
    // `palette` reads every pixel: more than this, while k-means needs a tenth of it.
    let (ran, failing) = train("failing", &["--set=plugin.fuel=500000", "--held-out=palette", "--held-out=simple"]);
    assert!(ran.stderr.contains("this held-out plugin is left out of the monitor"), "{}", ran.stderr);
    let (_, alone) = train("alone", &["--set=plugin.fuel=500000"]);
    for (failing, alone) in failing.iter().zip(&alone) {
        let held_out = failing["monitor"]["held_out"].as_object().expect("the others are evaluated");
        assert_eq!(held_out.keys().collect::<Vec<_>>(), ["simple"]);
        assert_eq!(failing["monitor"]["rewards"], alone["monitor"]["rewards"]);
    }
}

/// A classifier and two scorers, of weights of both signs: each reward is logged apart, and the total is their weighted sum.
#[test]
fn scorers_and_classifiers_train_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = "[[reward.plugin]]\nsource = 'kmeans_image'\n[[reward.plugin]]\nsource = 'jpeg_size'\nweight = -0.5\n\
                  config = { quality = 80 }\n[[reward.plugin]]\nsource = 'clip_score'\nweight = 2.0\n";
    fs::write(folder.path().join("run.toml"), config).expect("writable");
    let mut arguments = vec!["train", "--out=run", "--config=run.toml"];
    arguments.extend(tiny_run().into_iter().filter(|argument| !argument.starts_with("--plugin")));
    arguments.extend(["--set=train.epochs=1", "--set=monitor.every=1"]);
    let ran = host(folder.path(), &arguments);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines = metrics(&folder.path().join("run"));
    let (rewards, monitor) = (&lines[1]["rewards"], &lines[1]["monitor"]);
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let sum = |of: &serde_json::Value| {
        number(&of["kmeans_image"]) - 0.5 * number(&of["jpeg_size"]) + 2.0 * number(&of["clip_score"])
    };
    assert!((sum(rewards) - number(&lines[1]["reward_mean"])).abs() < 1e-9, "{rewards}");
    assert!((sum(&monitor["plugin_rewards"]) - number(&monitor["reward_mean"])).abs() < 1e-9, "{monitor}");
    // Smaller files are better, so the reward of a size is negative.
    assert!(number(&rewards["jpeg_size"]) < 0.0 && number(&rewards["clip_score"]).abs() <= 1.0, "{rewards}");
    // Badly compressible images have no best reward, so there is no upper bound.
    assert!(!ran.stdout.contains("of the gap to"), "{}", ran.stdout);
}

/// Scorers alone have no entropy, and a bounded one has an upper bound.
#[test]
fn a_scorer_trains_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut arguments = vec!["train", "--out=run", "--plugin=clip_score"];
    arguments.extend(tiny_run().into_iter().filter(|argument| !argument.starts_with("--plugin")));
    arguments.extend(["--set=train.epochs=1", "--set=monitor.every=1", "--set=train.reward_normalization=zscore"]);
    let ran = host(folder.path(), &arguments);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(metrics(&folder.path().join("run"))[1]["monitor"].get("entropy").is_none());
    assert!(ran.stdout.contains("of the gap to 1.0000"), "{}", ran.stdout);
    let page = fs::read_to_string(folder.path().join("run/report.html")).expect("a report");
    assert!(!page.contains("entropy went from"), "a scorer has no entropy");
}

/// Options are refused before the run has a folder, by plugin, option and what there is.
#[test]
fn options_that_a_plugin_does_not_have_are_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |config: &str| {
        let config = format!("[[reward.plugin]]\nsource = 'jpeg_size'\nconfig = {config}\n");
        fs::write(folder.path().join("run.toml"), config).expect("writable");
        let ran = host(folder.path(), &["train", "--out=run", "--config=run.toml", "--preset=tiny-art"]);
        assert!(ran.code == 1 && !folder.path().join("run").exists(), "{}", ran.stderr);
        ran.stderr
    };
    assert_eq!(
        refused("{ qualty = 80 }"),
        "error: plugin `jpeg_size`: it has no option `qualty`: did you mean `quality`? (it has quality (integer, default \
         95))\n"
    );
    assert_eq!(
        refused("{ quality = 80.5 }"),
        "error: plugin `jpeg_size`: its option `quality` is `80.5`, which is no integer: The quality of the JPEG file, 1 to \
         100\n"
    );
    assert!(refused("{ quality = 101 }").contains("quality is 101, it must be a number from 1 to 100"));
    assert!(refused("{ quality = [1] }").contains("a plugin's option is a text, a number or a boolean"));
    let palette = host(folder.path(), &["plugin", "classify", "palette", "x.png", "--config", "sharpnes=3"]);
    assert!(palette.stderr.contains("it has no option `sharpnes`: did you mean `sharpness`?"), "{}", palette.stderr);
}
