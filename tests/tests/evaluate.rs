//! Evaluation: `host eval`, `host rescore` and `host plugin agree`, and that a kill loses nothing that was computed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ambiguity_host::random::{Purpose, derive_seed};
use ambiguity_host::run::evaluation::{Evaluation, Metric, Values};
use ambiguity_models::dino::{Dino, DinoConfig};
use ambiguity_models::params::{NamedTensors, Params};
use ambiguity_models::safetensors::write_safetensors;
use serde_json::{Value, json};
use tch::{Device, Tensor};
use tempfile::TempDir;

use crate::support::{command, copy_folder, host, host_ok, tiny_run};

/// A run with a held-out plugin and kept images, made once.
static RUN: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let mut train = vec!["train", "--out=run"];
    train.extend(tiny_run());
    train.extend(["--set=monitor.held_out=[\"simple\"]", "--set=run.keep_images=png"]);
    host_ok(folder.path(), &train);
    folder
});

/// Returns a folder with a copy of the run.
fn run() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    copy_folder(&RUN.path().join("run"), &run);
    (folder, run)
}

/// Writes the folder of a small DINO with random weights.
fn write_dino(folder: &Path) {
    std::fs::create_dir_all(folder).expect("a folder");
    let write = |name: &str, text: Value| std::fs::write(folder.join(name), text.to_string()).expect("writable");
    write(
        "config.json",
        json!({
            "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-12, "qkv_bias": true,
        }),
    );
    write(
        "preprocessor_config.json",
        json!({
            "do_resize": true, "do_normalize": true, "size": 32, "resample": 2, "image_processor_type": "ViTImageProcessor",
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        }),
    );
    let config = DinoConfig::read(&folder.join("config.json")).expect("a configuration");
    let params = Params::random(1, Device::Cpu).expect("parameters");
    Dino::new(&params, &config).expect("a network");
    let tensors = params.finish().expect("all");
    write_safetensors(&folder.join("model.safetensors"), &tensors, &[]).expect("writable");
}

fn evaluation(folder: &Path) -> Evaluation {
    Evaluation::read(folder).expect("readable").expect("there is one")
}

fn find<'a>(evaluation: &'a Evaluation, name: &str, by: &str) -> &'a Metric {
    let is_by = |metric: &&Metric| {
        metric.name == name && [&metric.encoder, &metric.plugin].iter().any(|of| of.as_deref() == Some(by))
    };
    evaluation.metrics.iter().find(is_by).unwrap_or_else(|| panic!("{name} by {by}: {:#?}", evaluation.metrics))
}

fn values<'a>(evaluation: &'a Evaluation, name: &str, by: &str) -> &'a Values {
    find(evaluation, name, by).values().unwrap_or_else(|| panic!("{name} was not measured"))
}

/// The arguments of an evaluation of `run`, which takes seconds.
const EVAL: [&str; 6] = ["eval", "run", "--plugin=clip_softmax", "--count=20", "--pairs=2", "--dino=dino"];

#[test]
fn a_run_is_evaluated_beside_the_untrained_model_and_under_held_out_plugins() {
    let (folder, run) = run();
    write_dino(&folder.path().join("dino"));
    let reference = run.join("images/monitor/epoch-0000").display().to_string();
    let printed = host_ok(folder.path(), &[&EVAL[..], &["--reference", &reference]].concat());
    let found = evaluation(&run);
    assert_eq!((found.protocol.count, found.protocol.steps, found.protocol.pairs), (20, Some(4), Some(2)));
    assert_eq!((found.protocol.prompts.len(), found.protocol.width), (20, Some(64)));
    // Each plugin of the run and each held-out one has a reward, with a paired difference.
    for (plugin, held_out) in [("kmeans_image", false), ("simple", true), ("clip_softmax", true)] {
        let metric = find(&found, "reward", plugin);
        let values = metric.values().expect("measured");
        let (baseline, difference) = (values.baseline.expect("a LoRA"), values.difference.expect("a LoRA"));
        assert_eq!((metric.held_out, values.value.n), (held_out, 20));
        assert!((values.value.mean - baseline.mean - difference.mean).abs() < 1e-9);
        assert_eq!(values.by_prompt.len(), 20);
        assert!(values.value.mean <= -(10f64.ln()), "{plugin}: {}", values.value.mean);
    }
    for encoder in ["tiny-art", "dino"] {
        let vendi = values(&found, "vendi", encoder).value;
        assert!(vendi.mean > 1.0 && vendi.mean <= 20.0, "{encoder}: {vendi:?}");
        let [low, high] = vendi.ci95.expect("many images");
        assert!(low < vendi.mean && vendi.mean < high);
    }
    let novelty = values(&found, "novelty", "tiny-art").value;
    assert!(novelty.mean > 0.0 && novelty.mean < 1.0, "{novelty:?}");
    // The monitor has four images: too few for a radius.
    assert!(find(&found, "coverage", "tiny-art").values().is_none());
    // The images of the pairs are of different models or numbers of steps.
    let first_of = |set: &str| {
        let sets = std::fs::read_dir(run.join("eval")).expect("there").map(|entry| entry.expect("there").path());
        let mut sets = sets.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(set)));
        let set = sets.next().unwrap_or_else(|| panic!("no set {set}"));
        image::open(set.join("0000.png")).expect("an image").into_rgb8()
    };
    let pairs = ["trained-30", "baseline-30", "baseline-15", "baseline-10"].map(first_of);
    for (i, image) in pairs.iter().enumerate() {
        assert!(pairs[..i].iter().all(|other| other != image), "pair image {i} is one of the others");
    }
    for steps in [30, 15, 10] {
        let similarity = values(&found, &format!("style-similarity-{steps}"), "dino").value;
        assert!(similarity.n == 2 && similarity.mean <= 1.0 + 1e-6, "{similarity:?}");
    }
    for missing in ["ava", "image-reward", "pick-score", "hps"] {
        let metric = found.metrics.iter().find(|metric| metric.name == missing).expect("it is listed");
        let reason = format!("{:?}", metric.outcome);
        assert!(reason.contains("or run `host eval --fetch`"), "{reason}");
        assert!(printed.stdout.contains(&format!("not run: {missing}: needs ")), "{}", printed.stdout);
    }
    assert!(
        printed.stdout.starts_with("20 images, 4 steps, eta 1, guidance 1, 64×64 px, seed 0\n"),
        "{}",
        printed.stdout
    );

    // Everything is there already: nothing is generated again, not even without the model.
    let images = |folder: &Path| -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> =
            std::fs::read_dir(folder.join("eval")).expect("there").map(|entry| entry.expect("there").path()).collect();
        all.sort();
        all
    };
    let before = images(&run);
    let again = host_ok(folder.path(), &[&EVAL[..], &["--json", "--metrics=reward,vendi"]].concat());
    let document: Value = serde_json::from_str(&again.stdout).expect("JSON");
    let reward = values(&found, "reward", "simple").value.mean;
    let named = |metric: &&Value| metric["name"] == "reward" && metric["plugin"] == "simple";
    let metrics = document["metrics"].as_array().expect("a list");
    assert_eq!(metrics.iter().find(named).expect("there")["mean"], json!(reward));
    assert_eq!(images(&run), before);
    // Another encoder of the same name has other numbers, and the run's plugins keep their own `clip`.
    let clip = test_support::shipped_model().join("clip");
    let place = |name: &str| format!("--encoder={name}={}", clip.display());
    let ran = host(folder.path(), &[&EVAL[..], &[&place("clip")]].concat());
    assert!(ran.code == 1 && ran.stderr.contains("would change what the run's plugins call clip"), "{}", ran.stderr);
    // An edited configuration of an encoder is another encoder.
    let file = folder.path().join("dino/preprocessor_config.json");
    let text = std::fs::read_to_string(&file).expect("there");
    std::fs::write(&file, text.replace("0.485", "0.1")).expect("writable");
    host_ok(folder.path(), &[&EVAL[..], &["--metrics=vendi"]].concat());
    let vendi = values(&found, "vendi", "dino").value.mean;
    assert_ne!(values(&evaluation(&run), "vendi", "dino").value.mean, vendi);
}

#[test]
fn given_images_and_embeddings_are_evaluated() {
    let (folder, run) = run();
    let images = run.join("images/monitor/epoch-0000");
    copy_folder(&images, &folder.path().join("images"));
    host_ok(
        folder.path(),
        &["eval", "images", "--plugin=simple", "--metrics=reward,prompt-similarity,near-duplicates"],
    );
    let found = evaluation(&folder.path().join("images"));
    assert_eq!((found.protocol.count, found.protocol.steps, found.protocol.width), (4, None, Some(64)));
    // The run recorded the same images' rewards.
    let records = crate::train::metrics(&run);
    let held_out = &records[0]["monitor"]["held_out"]["simple"];
    let reward = values(&found, "reward", "simple").value.mean;
    assert!((reward - held_out.as_f64().expect("a number")).abs() < 1e-9, "{reward} {held_out}");
    assert_eq!(values(&found, "prompt-similarity", "tiny-art").value.n, 4);

    let rows = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 2.0, 3.0, 0.0]).view([3, 2]);
    let tensors = NamedTensors::from([("embeddings".to_owned(), rows)]);
    write_safetensors(&folder.path().join("e.safetensors"), &tensors, &[]).expect("writable");
    let ran =
        host_ok(folder.path(), &["eval", "--embeddings=e.safetensors", "--metrics=vendi,near-duplicates", "--json"]);
    let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    // Two of three embeddings have the same direction: the eigenvalues are 2/3 and 1/3.
    let entropy = -(2.0 / 3.0 * (2f64 / 3.0).ln() + 1.0 / 3.0 * (1f64 / 3.0).ln());
    assert!((document["metrics"][0]["mean"].as_f64().expect("a number") - entropy.exp()).abs() < 1e-6, "{document}");
    assert!((document["metrics"][1]["mean"].as_f64().expect("a number") - 2.0 / 3.0).abs() < 1e-9);
}

#[test]
fn the_aesthetic_score_of_embeddings_is_that_of_the_published_weights() {
    let Some(shared) = test_support::shared("aesthetic/sac+logos+ava1-l14-linearMSE.pth") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let reference = test_support::Reference::read("metric_aesthetic.safetensors");
    let tensors = NamedTensors::from([("embeddings".to_owned(), reference.tensor("embeddings").shallow_clone())]);
    write_safetensors(&folder.path().join("e.safetensors"), &tensors, &[]).expect("writable");
    let aesthetic = format!("--aesthetic={}", shared.display());
    let arguments = ["eval", "--embeddings=e.safetensors", "--metrics=ava", &aesthetic, "--json"];
    let document: Value = serde_json::from_str(&host_ok(folder.path(), &arguments).stdout).expect("JSON");
    let wanted = reference.tensor("scores").mean(tch::Kind::Double).double_value(&[]);
    let found = document["metrics"][0]["mean"].as_f64().expect("a number");
    assert!((found - wanted).abs() < 1e-4, "{found} {wanted}");
}

#[test]
fn kept_images_are_rescored_as_the_run_would_have_been() {
    let (folder, run) = run();
    let ran = host_ok(folder.path(), &["rescore", "run", "--plugin=simple", "--json"]);
    let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let records = crate::train::metrics(&run);
    let monitors = document["monitor"].as_array().expect("a list");
    assert_eq!(monitors.len(), 3);
    for (monitor, record) in monitors.iter().zip(&records) {
        let number = |value: &Value| value.as_f64().expect("a number");
        // `simple` was held out: the run has its rewards of the monitor's images.
        let held_out = number(&record["monitor"]["held_out"]["simple"]);
        assert!((number(&monitor["rescored"]["mean"]) - held_out).abs() < 1e-9);
        assert!((number(&monitor["trained"]["mean"]) - number(&record["monitor"]["reward_mean"])).abs() < 1e-9);
    }
    assert_eq!(document["training"].as_array().expect("a list").len(), 2);
    for file in ["rescore.json", "curve.png"] {
        assert!(run.join("rescore/simple").join(file).is_file(), "{file}");
    }
    // The same plugin changes nothing.
    let same = host_ok(folder.path(), &["rescore", "run", "--plugin=kmeans_image", "--json"]);
    let same: Value = serde_json::from_str(&same.stdout).expect("JSON");
    assert_eq!(same["changed_sides"], json!([]));
    assert_eq!(same["improvement"]["trained"], same["improvement"]["rescored"]);
    let printed = host_ok(folder.path(), &["rescore", "run", "--plugin=simple"]).stdout;
    assert!(printed.contains("fixed prompts and noise, first to last: "), "{printed}");

    let ran = host(folder.path(), &["rescore", "elsewhere", "--plugin=simple"]);
    assert_eq!(ran.code, 1);
    std::fs::remove_dir_all(run.join("images")).expect("removable");
    let ran = host(folder.path(), &["rescore", "run", "--plugin=simple"]);
    assert!(ran.code == 1 && ran.stderr.contains("run kept no images: train with --set run.keep_images=webp"));
}

/// Kills a command at random moments until it ends, and returns how often.
fn kill_until_it_ends(folder: &Path, arguments: &[&str], whole: Duration) -> u64 {
    let mut kills = 0;
    loop {
        let mut child =
            command(folder, arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        // The first one is early enough to come before the end on any machine.
        let random = f64::from(derive_seed(kills, 0, 0, Purpose::Data) as u32 % 1000) / 1000.0;
        let share = if kills == 0 { 0.3 } else { random };
        let (clock, moment) = (Instant::now(), whole.mul_f64(share));
        while clock.elapsed() < moment && child.try_wait().expect("it is ours").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let has_ended = child.try_wait().expect("it is ours").is_some_and(|status| status.success());
        if has_ended || kills == 12 {
            drop(child.kill());
            drop(child.wait());
            return kills;
        }
        child.kill().expect("it is ours");
        child.wait().expect("it ends");
        kills += 1;
    }
}

#[test]
fn kills_of_an_evaluation_and_of_a_rescoring_lose_nothing() {
    let (whole, killed) = (run(), run());
    for (folder, _) in [&whole, &killed] {
        write_dino(&folder.path().join("dino"));
    }
    let rescore = ["rescore", "run", "--plugin=clip_softmax"];
    for (arguments, file) in [(&EVAL[..], "eval.json"), (&rescore[..], "rescore/clip_softmax/rescore.json")] {
        let clock = Instant::now();
        host_ok(whole.0.path(), arguments);
        let kills = kill_until_it_ends(killed.0.path(), arguments, clock.elapsed());
        host_ok(killed.0.path(), arguments);
        let read = |run: &Path| std::fs::read_to_string(run.join(file)).expect("written");
        assert!(kills > 0, "it was never killed");
        assert_eq!(read(&whole.1), read(&killed.1), "after {kills} kills");
        eprintln!("{file}: {kills} kills");
    }
    // What is there is taken: an image that was generated is not generated again.
    let image = |run: &Path| {
        let mut sets = std::fs::read_dir(run.join("eval")).expect("there").map(|entry| entry.expect("there").path());
        sets.find(|path| path.to_string_lossy().contains("trained-4-steps")).expect("a set").join("0000.png")
    };
    let path = image(&killed.1);
    let modified = |path: &Path| std::fs::metadata(path).expect("there").modified().expect("a time");
    let before = modified(&path);
    host_ok(killed.0.path(), &EVAL);
    assert_eq!(modified(&path), before);
}

#[test]
fn plugins_that_oppose_each_other_are_named() {
    let (folder, run) = run();
    let images = run.join("images/training").display().to_string();
    // 16 images of two epochs; a plugin agrees with itself under another name.
    std::fs::copy(test_support::root().join("plugins/simple.onnx"), folder.path().join("again.onnx")).expect("copied");
    let arguments = ["plugin", "agree", "simple", "./again.onnx", "clip_softmax", &images, "--sheet=s.png", "--json"];
    let ran = host_ok(folder.path(), &arguments);
    let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(document["images"], 16);
    let pairs = document["pairs"].as_array().expect("a list");
    assert_eq!(pairs.len(), 3);
    assert!((pairs[0]["rank_correlation"].as_f64().expect("a number") - 1.0).abs() < 1e-12, "{}", pairs[0]);
    assert_eq!(pairs[0]["opposes"], false);
    assert!(folder.path().join("s.png").is_file());
    let table = host_ok(folder.path(), &arguments[..arguments.len() - 1]).stdout;
    assert!(table.starts_with("16 images\n") && table.contains("RANK CORRELATION"), "{table}");
    let ran = host(folder.path(), &["plugin", "agree", "simple", &images]);
    assert!(ran.code == 1 && ran.stderr.contains("name at least two plugins to compare"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_evaluated_is_one_sentence() {
    let (folder, _) = run();
    let message = |arguments: &[&str]| {
        let ran = host(folder.path(), arguments);
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        ran.stderr
    };
    assert!(message(&["eval", "nowhere"]).contains("nowhere does not exist: name a run, a LoRA or a folder of images"));
    assert!(message(&["eval"]).contains("there is no run under ./runs"));
    assert!(message(&["eval", "--model=tiny-art"]).contains("name a folder for eval.json and the images with --out"));
    let lora = "run/pytorch_lora_weights.safetensors";
    std::fs::copy(folder.path().join(lora), folder.path().join("alone.safetensors")).expect("copied");
    assert!(
        message(&["eval", "alone.safetensors"])
            .contains("this LoRA is in no run's folder: name its model with --model")
    );
    assert!(
        message(&["eval", "run", "--plugin=kmeans_image"])
            .contains("is a plugin of the run, which is evaluated anyway")
    );
    std::fs::create_dir(folder.path().join("images")).expect("a folder");
    std::fs::copy(folder.path().join("run/before-after.png"), folder.path().join("images/a.png")).expect("copied");
    let refused = message(&["eval", "images", "--count=3", "--steps=2"]);
    assert!(refused.contains("--count, --steps is for generated images, but these are given"), "{refused}");
    assert!(message(&["eval", "images/a.png"]).contains("is neither a folder nor a LoRA"));
    let ran = host(folder.path(), &["eval", "run", "--metrics=vendy"]);
    assert!(ran.code == 2 && ran.stderr.contains("did you mean `vendi`?"), "{}", ran.stderr);
}
