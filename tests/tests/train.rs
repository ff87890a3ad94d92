//! Training: two epochs, a bit-equal resume, a Ctrl-C that loses nothing, and the contents of a run's folder.

use std::path::Path;
use std::time::{Duration, Instant};

use ambiguity_models::safetensors::read_safetensors;
use serde_json::Value;
use test_support::shipped_model;

use crate::support::{command, copy_folder, host, host_ok, tiny_run};

pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Metrics without the fields that differ between any two runs.
pub fn timeless(run: &Path) -> Vec<Value> {
    let mut lines = metrics(run);
    for line in &mut lines {
        let line = line.as_object_mut().expect("an object");
        line.remove("seconds");
        line.remove("images_per_second");
        line.remove("energy");
    }
    lines
}

pub fn assert_same_tensors(a: &Path, b: &Path) {
    let (a_tensors, b_tensors) = (read_safetensors(a).expect("readable"), read_safetensors(b).expect("readable"));
    assert_eq!(a_tensors.keys().collect::<Vec<_>>(), b_tensors.keys().collect::<Vec<_>>());
    for (name, tensor) in &a_tensors {
        assert!(tensor.equal(&b_tensors[name]), "{name} differs between {} and {}", a.display(), b.display());
    }
}

fn assert_same_run(a: &Path, b: &Path) {
    assert_eq!(timeless(a), timeless(b));
    for file in [
        "pytorch_lora_weights.safetensors",
        "best/pytorch_lora_weights.safetensors",
        "checkpoints/epoch-0002/pytorch_lora_weights.safetensors",
        "checkpoints/epoch-0002/state.safetensors",
    ] {
        assert_same_tensors(&a.join(file), &b.join(file));
    }
}

#[test]
fn a_run_resumed_is_a_run_never_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut whole = tiny_run();
    whole.extend(["train", "--out=whole"]);
    whole.rotate_right(2);
    host_ok(folder.path(), &whole);
    let whole = folder.path().join("whole");

    let lines = metrics(&whole);
    assert_eq!(lines.iter().map(|line| line["epoch"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    assert!(lines[0]["monitor"]["reward_mean"].is_f64() && lines[0].get("reward_mean").is_none());
    for line in &lines[1..] {
        for key in ["reward_mean", "reward_std", "reward_min", "reward_max", "approx_kl", "clip_fraction", "grad_norm"]
        {
            assert!(line[key].is_f64(), "{key} in {line}");
        }
        let error = line["ratio_error"].as_f64().expect("a number");
        assert!(error < 1e-5, "the sampler and the update disagree by {error}");
        assert!(line["seconds"]["sample"].is_f64() && line["images_per_second"].as_f64() > Some(0.0));
        let energy = &line["energy"];
        assert!(energy["joules"].as_f64() > Some(0.0) && energy["source"].is_string(), "{energy}");
    }
    for file in [
        "config.toml",
        "plugins.lock",
        "report.html",
        "samples/epoch-0000.png",
        "samples/epoch-0002.png",
        "before-after.png",
        "reward-curve.png",
    ] {
        assert!(whole.join(file).is_file(), "{file} is missing");
    }

    // The same again, in two parts.
    let mut half = vec!["train", "--out=parts"];
    half.extend(tiny_run());
    half.push("--set=train.epochs=1");
    host_ok(folder.path(), &half);
    let ran = host_ok(folder.path(), &["train", "--resume=parts", "--set=train.epochs=2"]);
    assert!(ran.stdout.contains("\ncost: ") && ran.stdout.contains(" kg CO2 (at 0.48 kg per kWh)\n"), "{}", ran.stdout);
    assert_same_run(&whole, &folder.path().join("parts"));

    // And from an earlier checkpoint: what came after it is replayed, and what had come after it is kept.
    let ran = host_ok(folder.path(), &["train", "--resume=parts/checkpoints/epoch-0001"]);
    assert_same_run(&whole, &folder.path().join("parts"));
    let rewound = "parts/rewound/epochs-0002-0002";
    assert!(ran.stderr.contains(&format!("the later epochs of the run are kept in {rewound}")), "{}", ran.stderr);
    let state = "checkpoints/epoch-0002/state.safetensors";
    assert_same_tensors(&whole.join(state), &folder.path().join(rewound).join(state));
    let best = "best/pytorch_lora_weights.safetensors";
    assert_same_tensors(&whole.join(best), &folder.path().join("parts").join(best));

    // Rewound to its first epoch, the run's best is that of this epoch, whatever came later.
    host_ok(folder.path(), &["train", "--resume=parts/checkpoints/epoch-0001", "--set=train.epochs=1"]);
    let parts = folder.path().join("parts");
    assert_same_tensors(&parts.join(best), &parts.join("pytorch_lora_weights.safetensors"));
}

#[test]
fn a_run_without_a_checkpoint_starts_again_from_its_initial_adapter() {
    let folder = tempfile::tempdir().expect("a folder");
    let train = |more: &[&str]| {
        host_ok(folder.path(), &[&["train"][..], &tiny_run(), &["--set=train.epochs=1"], more].concat());
    };
    train(&["--out=first"]);
    train(&["--out=second", "--set=lora.init=first/pytorch_lora_weights.safetensors", "--seed=3"]);
    let second = folder.path().join("second");
    let before = timeless(&second);
    std::fs::remove_dir_all(second.join("checkpoints/epoch-0001")).expect("a checkpoint");
    host_ok(folder.path(), &["train", "--resume=second"]);
    assert_eq!(timeless(&second), before);
    // With a checkpoint, the initial adapter is not needed any more.
    std::fs::remove_dir_all(folder.path().join("first")).expect("a run");
    host_ok(folder.path(), &["train", "--resume=second", "--set=train.epochs=2"]);
}

#[test]
fn resume_refuses_another_recipe() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut start = vec!["train", "--out=run"];
    start.extend(tiny_run());
    start.extend(["--set=train.epochs=1", "--set=train.ema=0"]);
    host_ok(folder.path(), &start);
    let ran = host(folder.path(), &["train", "--resume=run", "--set=train.learning_rate=1e-5"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("train.learning_rate is 0.00001, but the run was started with 0.003"),
        "{}",
        ran.stderr
    );

    host_ok(folder.path(), &["lora", "merge", "--model=tiny-art", "--lora=run", "--out=other"]);
    let more = ["train", "--resume=run", "--model=other", "--set=train.epochs=2"];
    let config = || std::fs::read_to_string(folder.path().join("run/config.toml")).expect("a config");
    let before = config();
    let ran = host(folder.path(), &more);
    assert_eq!((ran.code, config()), (1, before), "what is refused leaves the run as it was");
    assert!(ran.stderr.contains("the run was started with a model of digest"), "{}", ran.stderr);
    let ran = host_ok(folder.path(), &[&more[..], &["--force"]].concat());
    assert!(ran.stderr.contains("resuming anyway"), "{}", ran.stderr);
    // An average that the run did not have starts at its weights.
    host_ok(folder.path(), &["train", "--resume=run", "--force", "--set=train.ema=0.9", "--set=train.epochs=3"]);
}

#[test]
fn resume_refuses_other_prompts_and_other_weights_of_an_encoder() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("prompts.txt"), "a man\na woman\n").expect("writable");
    copy_folder(&shipped_model().join("clip"), &at("clip"));
    let mut start = tiny_run();
    // A plugin whose file records no encoder: the monitor uses it.
    start[1] = "--plugin=palette";
    let own = ["--out=run", "--set=train.epochs=1", "--set=prompts.file=prompts.txt", "--encoder=tiny-art=clip"];
    host_ok(folder.path(), &[&["train"][..], &start, &own].concat());
    let resume = || host(folder.path(), &["train", "--resume=run", "--set=train.epochs=2"]);
    std::fs::write(at("prompts.txt"), "a man\na woman\na horse\n").expect("writable");
    let ran = resume();
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("the run was started with other prompts"), "{}", ran.stderr);
    std::fs::write(at("prompts.txt"), "a man\na woman\n").expect("writable");
    let weights = at("clip/model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("the weights");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&weights, &bytes).expect("writable");
    let ran = resume();
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("encoder tiny-art of weight digest"), "{}", ran.stderr);
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&weights, &bytes).expect("writable");
    assert_eq!(resume().code, 0);
}

#[test]
fn ctrl_c_keeps_what_is_finished() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut arguments = vec!["train", "--out=run"];
    arguments.extend(tiny_run());
    arguments.push("--set=train.epochs=500");
    let child = command(folder.path(), &arguments)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let run = folder.path().join("run");
    let deadline = Instant::now() + Duration::from_secs(120);
    while !run.join("checkpoints/epoch-0001/state.safetensors").is_file() {
        assert!(Instant::now() < deadline, "no checkpoint was written");
        std::thread::sleep(Duration::from_millis(20));
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(kill.success());
    let output = child.wait_with_output();
    let output = output.expect("the child ends");
    assert_eq!(output.status.code(), Some(130));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("resume with `host train --resume run`"), "{stderr}");
    // The finished epochs are resumed.
    let epochs = metrics(&run).len();
    let more = format!("--set=train.epochs={epochs}");
    host_ok(folder.path(), &["train", "--resume", "run", &more]);
    assert_eq!(metrics(&run).len(), epochs + 1);
}

#[test]
fn training_starts_from_a_given_lora() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |out: &str, extra: &[&str]| {
        let mut arguments = vec!["train", out];
        arguments.extend(tiny_run());
        arguments.push("--set=train.epochs=1");
        arguments.extend(extra);
        host_ok(folder.path(), &arguments)
    };
    run("--out=first", &["--set=train.learning_rate=1e-2", "--set=lora.rank=3"]);
    run("--out=second", &["--set=lora.init=\"first\""]);
    let (first, second) = (metrics(&folder.path().join("first")), metrics(&folder.path().join("second")));
    // The second run starts where the first one ended, on the same prompts and noise.
    assert_eq!(first[1]["monitor"]["rewards"], second[0]["monitor"]["rewards"]);
    assert_ne!(first[0]["monitor"]["rewards"], second[0]["monitor"]["rewards"]);
    let info = host_ok(folder.path(), &["lora", "info", "second"]).stdout;
    assert!(info.contains("rank 3, alpha 4 on 56 layers"), "{info}");
    let ran = host(folder.path(), &["train", "--plugin=kmeans_image", "--set=lora.init=\"nowhere\"", "--out=third"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("lora.init: ") && ran.stderr.contains("nowhere"), "{}", ran.stderr);
    assert!(!folder.path().join("third").exists());
}
