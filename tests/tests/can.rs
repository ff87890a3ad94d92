//! CAN and classifier training: the contents of a run's folder, a bit-equal resume, their plugins, and what is refused.

use std::path::Path;
use std::process::Command;

use ambiguity_models::safetensors::{encode_safetensors, read_safetensors_with_metadata};
use serde_json::Value;
use tch::no_grad;

use crate::support::{command, host, host_ok, ran, tiny_can};
use crate::train::{assert_same_tensors, metrics, timeless};

/// Runs `host COMMAND train` with the tiny settings and `more`, and returns its output.
fn train(folder: &Path, command: &str, more: &[&str]) -> String {
    let arguments = [&[command, "train"][..], &tiny_can(), more].concat();
    host_ok(folder, &arguments).stdout
}

fn classified(folder: &Path, plugin: &str, image: &str) -> Value {
    let ran = host_ok(folder, &["plugin", "classify", plugin, image, "--json"]);
    serde_json::from_str(&ran.stdout).expect("one JSON document")
}

#[test]
fn a_can_is_trained_resumed_sampled_and_used_as_a_plugin() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = train(folder.path(), "can", &["--out=whole"]);
    assert!(said.contains("plugin: whole/dcgan.onnx") && said.contains("style accuracy"), "{said}");
    let whole = folder.path().join("whole");
    let lines = metrics(&whole);
    assert_eq!(lines.iter().map(|line| line["epoch"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    let loss = &lines[2]["loss"];
    for key in ["adversarial_discriminator", "adversarial_generator", "gradient_penalty", "style", "ambiguity"] {
        assert!(loss[key].is_f64(), "{key} in {loss}");
    }
    let sum = |parts: &[(&str, f64)]| -> f64 {
        parts.iter().map(|(key, weight)| weight * loss[key].as_f64().expect("a number")).sum()
    };
    let wanted = |key: &str| loss[key].as_f64().expect("a number");
    let config: toml::Table =
        std::fs::read_to_string(whole.join("config.toml")).expect("a config").parse().expect("TOML");
    let can = |key: &str| config["can"][key].as_float().expect("a number");
    let discriminator =
        sum(&[("adversarial_discriminator", 1.0), ("gradient_penalty", can("lambda")), ("style", can("style_weight"))]);
    assert!((discriminator - wanted("discriminator")).abs() < 1e-4 * discriminator.abs().max(1.0), "{loss}");
    let generator = sum(&[("adversarial_generator", 1.0), ("ambiguity", can("style_ambiguity_weight"))]);
    assert!((generator - wanted("generator")).abs() < 1e-4 * generator.abs().max(1.0), "{loss}");
    for key in ["ambiguity", "entropy", "max_probability", "diversity", "style_accuracy"] {
        assert!(lines[0]["monitor"][key].is_f64() && lines[2]["monitor"][key].is_f64(), "{key}");
    }
    for file in ["report.html", "confusion.png", "samples/epoch-0002.png", "generator/model.onnx", "plugins.lock"] {
        assert!(whole.join(file).is_file(), "{file} is missing");
    }

    // The same again, in two parts, and from an earlier checkpoint.
    train(folder.path(), "can", &["--out=parts", "--set=can.epochs=1"]);
    host_ok(folder.path(), &["can", "train", "--resume=parts", "--set=can.epochs=2"]);
    let parts = folder.path().join("parts");
    let same = || {
        assert_eq!(timeless(&whole), timeless(&parts));
        for file in ["generator/model.safetensors", "checkpoints/epoch-0002/state.safetensors"] {
            assert_same_tensors(&whole.join(file), &parts.join(file));
        }
        let onnx = |run: &Path| std::fs::read(run.join("dcgan.onnx")).expect("a plugin");
        assert!(onnx(&whole) == onnx(&parts), "the plugins differ");
    };
    same();
    host_ok(folder.path(), &["can", "train", "--resume=parts/checkpoints/epoch-0001"]);
    same();

    // What a run would take, before it is started.
    let arguments = [&["can", "train", "--dry-run", "--json", "--out=none"][..], &tiny_can()].concat();
    let said: Value = serde_json::from_str(&host_ok(folder.path(), &arguments).stdout).expect("one JSON document");
    assert_eq!((&said["data"]["per_pass"], &said["plan"]["steps_per_epoch"]), (&Value::from(162), &Value::from(6)));
    assert_eq!(said["plan"]["memory"].as_u64(), said["plan"]["parameters"].as_u64().map(|n| 16 * n));
    assert!(said["measured"]["epoch_seconds"].as_f64() > Some(0.0), "{said}");
    assert!(!folder.path().join("none").exists());

    // Another recipe, other images.
    let ran = host(folder.path(), &["can", "train", "--resume=parts", "--set=can.lambda=1"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("can.lambda is 1.0, but the run was started with 10.0"), "{}", ran.stderr);
    let config = || std::fs::read_to_string(parts.join("config.toml")).expect("a config");
    let before = config();
    for command in [&["train"][..], &["classifier", "train"]] {
        let ran = host(folder.path(), &[command, &["--resume=parts", "--set=run.device=cpu"]].concat());
        assert_eq!(ran.code, 1);
        let wanted = "parts is a run of `host can train`: resume it with `host can train --resume parts`";
        assert!(ran.stderr.contains(wanted), "{}", ran.stderr);
    }
    assert_eq!(config(), before);

    let sample = |out: &str, count: &str, seed: &str| {
        let ran = host_ok(
            folder.path(),
            &[
                "can",
                "sample",
                "--generator=whole",
                &format!("--count={count}"),
                seed,
                &format!("--out={out}"),
                "--json",
            ],
        );
        let said: Value = serde_json::from_str(&ran.stdout).expect("one JSON document");
        assert_eq!((said["images"].as_u64(), said["size"].as_u64()), (count.parse().ok(), Some(32)));
    };
    sample("three", "3", "--seed=5");
    sample("one", "1", "--seed=6");
    let image = |path: &str| image::open(folder.path().join(path)).expect("an image").into_rgb8();
    assert_eq!(image("three/0001.png"), image("one/0000.png"), "image i has seed N + i");
    assert_ne!(image("three/0000.png"), image("three/0001.png"));

    // The run's folder contains one plugin; its generator is not another.
    let prediction = classified(folder.path(), "whole", "one/0000.png");
    assert_eq!(prediction["styles"].as_array().map(Vec::len), Some(27));
}

#[test]
fn a_plugins_gradient_trains_the_generator() {
    let folder = tempfile::tempdir().expect("a folder");
    train(folder.path(), "can", &["--out=run", "--classifier=kmeans_image", "--set=can.epochs=1"]);
    let run = folder.path().join("run");
    let lines = metrics(&run);
    assert!(lines[1]["loss"]["ambiguity"].is_f64() && lines[1]["loss"].get("style").is_none(), "{}", lines[1]);
    assert!(!run.join("dcgan.onnx").exists(), "the head is not trained, so no plugin of it is written");
    let lock = std::fs::read_to_string(run.join("plugins.lock")).expect("a lock");
    assert!(lock.contains("kmeans_image"), "{lock}");

    let arguments = [&["can", "train"][..], &tiny_can(), &["--out=other", "--classifier=palette"]].concat();
    let ran = host(folder.path(), &arguments);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("plugin `palette`") && ran.stderr.contains("gradient"), "{}", ran.stderr);
    assert!(!folder.path().join("other").exists());
}

#[test]
fn the_simple_classifier_learns_a_folder_of_images() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out=art", "--per-class=8", "--size=32"]);
    // Two styles that are easy to distinguish, a broken image, and an image of another shape.
    for style in std::fs::read_dir(folder.path().join("art")).expect("a folder").flatten() {
        if style.path().is_dir() && !["baroque", "minimalism"].contains(&style.file_name().to_string_lossy().as_ref()) {
            std::fs::remove_dir_all(style.path()).expect("a folder");
        }
    }
    std::fs::write(folder.path().join("art/baroque/broken.jpg"), "no image").expect("a file");
    image::RgbImage::new(90, 40).save(folder.path().join("art/baroque/wide.png")).expect("a file");
    let more = ["--data=art", "--out=run", "--set=can.steps_per_epoch=40", "--set=can.discriminator_channels=4"];
    let arguments = [&["classifier", "train"][..], &tiny_can(), &more].concat();
    let ran = host_ok(folder.path(), &arguments);
    assert!(ran.stdout.contains("plugin: run/simple.onnx"), "{}", ran.stdout);
    assert!(ran.stderr.contains("broken.jpg"), "{}", ran.stderr);
    let run = folder.path().join("run");
    let last = metrics(&run).pop().expect("epochs");
    assert!(last["monitor"]["accuracy"].as_f64() >= Some(0.75), "{last}");
    assert!(run.join("confusion.png").is_file() && run.join("report.html").is_file());
    let prediction = classified(folder.path(), "run/simple.onnx", "art/minimalism/0000.png");
    assert_eq!(prediction["styles"], serde_json::json!(["baroque", "minimalism"]));
    assert!(prediction["samples"][0]["distribution"][1].as_f64() > Some(0.5), "{prediction}");

    // The images are identified by their contents.
    std::fs::remove_file(folder.path().join("art/baroque/0003.png")).expect("a file");
    let config = || std::fs::read_to_string(run.join("config.toml")).expect("a config");
    let before = config();
    let ran = host(folder.path(), &["classifier", "train", "--resume=run", "--set=can.epochs=3"]);
    assert_eq!(ran.code, 1);
    let wanted = "the run was started with 2 styles, 17 images of art (digest ";
    assert!(
        ran.stderr.contains(wanted) && ran.stderr.contains("these are 2 styles, 16 images of art"),
        "{}",
        ran.stderr
    );
    let ran = host(folder.path(), &["classifier", "train", "--resume=run", "--set=can.data=", "--force"]);
    assert!(ran.code == 1 && ran.stderr.contains("these are 27 styles"), "{}", ran.stderr);
    assert_eq!(config(), before, "what is refused leaves the run as it was");
}

#[test]
fn the_log_form_trains_and_a_collapse_stops_a_run() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, nonsaturating) in [("plain", "false"), ("non", "true")] {
        let more = [format!("--out={name}"), format!("--set=can.nonsaturating={nonsaturating}")];
        train(folder.path(), "can", &["--set=can.loss=log", "--set=monitor.min_diversity=0", &more[0], &more[1]]);
        let last = metrics(&folder.path().join(name)).pop().expect("epochs");
        let (loss, number) = (&last["loss"], |value: &Value| value.as_f64().expect("a number"));
        assert!(loss.get("gradient_penalty").is_none(), "{loss}");
        // log(1 − D) is below 0, −log D above it; the discriminator's is a sum of two cross-entropies.
        assert_eq!(number(&loss["adversarial_generator"]) > 0.0, nonsaturating == "true", "{loss}");
        assert!(number(&loss["adversarial_discriminator"]) > 0.0, "{loss}");
        assert!(number(&last["monitor"]["gradient_norm_ratio"]) > 0.0, "{last}");
    }
    // Under far too high a learning rate the diversity jumps: a limit between a peak and the next epoch is a collapse.
    let wild = ["--set=can.adam.learning_rate=0.02", "--set=can.steps_per_epoch=2", "--set=can.epochs=12"];
    train(folder.path(), "can", &[&["--out=wild"], &wild[..]].concat());
    let lines = metrics(&folder.path().join("wild"));
    let shares: Vec<f64> = lines.iter().filter_map(|line| line["monitor"]["diversity"].as_f64()).collect();
    // From the first epoch on: the untrained generator does not count.
    let is_peak = |i: usize| shares[i] > 1.05 * shares[i + 1] && shares[1..i].iter().all(|share| *share < shares[i]);
    let peak = (1..12).find(|&i| is_peak(i)).expect("some epoch is above all before it and above the next one");
    let limit = format!("--set=monitor.min_diversity={}", (shares[peak] + shares[peak + 1]) / 2.0);
    let stop = "--set=monitor.on_collapse=stop";
    let said = train(folder.path(), "can", &[&["--out=stopped", &limit, stop], &wild[..]].concat());
    assert!(said.starts_with(&format!("{} epochs, stopped: collapsed\n", peak + 1)), "{said}");
    let stopped = folder.path().join("stopped");
    let last = metrics(&stopped).pop().expect("epochs");
    assert!(last["warnings"].to_string().contains("the generator has collapsed"), "{last}");
    assert!(stopped.join(format!("checkpoints/epoch-{:04}", peak + 1)).is_dir());
}

#[test]
fn a_run_without_a_checkpoint_starts_again_and_a_forced_one_keeps_its_plugin() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out=one", "--per-class=6", "--size=32", "--seed=1"]);
    host_ok(folder.path(), &["art", "--out=two", "--per-class=6", "--size=32", "--seed=2"]);
    train(folder.path(), "can", &["--out=run", "--data=one", "--set=can.epochs=1"]);
    std::fs::remove_dir_all(folder.path().join("run/checkpoints/epoch-0001")).expect("a checkpoint");
    // Nothing of the run on the other images is kept, so this is a run on these alone.
    host_ok(folder.path(), &["can", "train", "--resume=run", "--data=two"]);
    train(folder.path(), "can", &["--out=whole", "--data=two", "--set=can.epochs=1"]);
    assert_eq!(timeless(&folder.path().join("run")), timeless(&folder.path().join("whole")));

    let resume = |more: &[&str]| host(folder.path(), &[&["can", "train", "--resume=run"][..], more].concat());
    let ran = resume(&["--classifier=kmeans_image", "--set=can.epochs=2", "--force"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let ran = resume(&["--set=can.epochs=3"]);
    assert_eq!(ran.code, 0, "it resumes with the plugin that was forced: {}", ran.stderr);
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_not_reported_as_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    train(folder.path(), "can", &["--out=run", "--set=can.epochs=1"]);
    let report = std::fs::read(folder.path().join("run/report.html")).expect("a report");
    // A full disk for a file of a checkpoint's size: the limit is about 500 kB, in the shell's blocks of 512 bytes.
    let limited = "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\"";
    let host = command(folder.path(), &["can", "train", "--resume=run", "--set=can.epochs=3"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", limited]).arg(host.get_program()).args(host.get_args()).current_dir(folder.path());
    shell.envs(host.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ran = ran(&shell.output().expect("a shell"));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let (kept, why) = ("1 of 3 epochs are kept in run", "error: cannot write run/checkpoints/epoch-0002");
    assert!(ran.stderr.contains(kept) && ran.stderr.contains(why), "{}", ran.stderr);
    assert_eq!(std::fs::read(folder.path().join("run/report.html")).expect("a report"), report, "the report is kept");
    host_ok(folder.path(), &["can", "train", "--resume=run", "--set=can.epochs=3"]);
    train(folder.path(), "can", &["--out=whole", "--set=can.epochs=3"]);
    assert_eq!(timeless(&folder.path().join("run")), timeless(&folder.path().join("whole")));
}

#[test]
fn what_is_no_longer_finite_is_not_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = ["--set=can.steps_per_epoch=1", "--set=checkpoint.keep=1"];
    let start = ["classifier", "train", "--out=run"];
    host_ok(folder.path(), &[&start[..], &tiny_can(), &settings, &["--set=can.epochs=1"]].concat());
    // With a moment that is NaN, a step with a finite loss leaves weights that are not.
    let checkpoint = folder.path().join("run/checkpoints/epoch-0001");
    let state = checkpoint.join("state.safetensors");
    let (tensors, metadata) = read_safetensors_with_metadata(&state).expect("a checkpoint");
    let (_, moment) = tensors.iter().find(|(name, _)| name.contains("exp_avg_sq")).expect("a moment");
    let _ = no_grad(|| moment.shallow_clone().fill_(f64::NAN));
    let metadata: Vec<_> = metadata.iter().map(|(key, text)| (&**key, &**text)).collect();
    std::fs::write(&state, encode_safetensors(&state, &tensors, &metadata).expect("it encodes")).expect("writable");
    let sums = Command::new("sha256sum").arg("state.safetensors").current_dir(&checkpoint).output().expect("coreutils");
    std::fs::write(checkpoint.join("SHA256SUMS"), sums.stdout).expect("writable");

    let ran = host(folder.path(), &["classifier", "train", "--resume=run", "--set=can.epochs=2"]);
    assert_eq!(ran.code, 1);
    let wanted = "stopped in epoch 2; 1 of 2 epochs are kept in run; resume from this checkpoint or an earlier one with a \
                  lower can.adam.learning_rate: `host classifier train --resume run/checkpoints/epoch-0001 --force --set \
                  can.adam.learning_rate=…`";
    assert!(ran.stderr.contains(wanted) && ran.stderr.contains("is not finite after step 2"), "{}", ran.stderr);
    let kept: Vec<_> = std::fs::read_dir(folder.path().join("run/checkpoints")).expect("a folder").flatten().collect();
    assert_eq!(kept.iter().map(|entry| entry.file_name()).collect::<Vec<_>>(), ["epoch-0001"]);
}

#[test]
fn what_cannot_be_trained_on_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("empty/style")).expect("a folder");
    let check = |more: &[&str], words: &str| {
        let ran = host(folder.path(), &[&["can", "train", "--out=run"][..], &tiny_can(), more].concat());
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        let errors: Vec<&str> = ran.stderr.lines().filter(|line| !line.starts_with(" WARN")).collect();
        assert!(errors.len() == 1 && errors[0].contains(words), "{}", ran.stderr);
        assert!(!folder.path().join("run").exists());
    };
    check(&["--data=nowhere"], "--data nowhere: there is no such folder");
    check(&["--data=empty"], "empty has no folder with images (png, jpg, webp, gif, bmp, tiff)");
    std::fs::write(folder.path().join("file"), "").expect("a file");
    check(&["--data=file"], "--data file: it is not a folder");
    check(&["--set=can.size=48"], "a power of two of at least 32");
    let wanted = "--set can.size=-64: invalid value: integer `-64`, expected a whole number from 0 to 4294967295";
    check(&["--set=can.size=-64"], wanted);
    check(&["--set=can.generator_channels=100000"], "can.generator_channels is 100000: it must be from 1 to 65536");
    check(&["--set=can.authors=[\"a\\u001bb\"]"], "can.authors contains control characters");
    check(&["--set=can.loss=hinge"], "--set can.loss=hinge: unknown variant `hinge`, expected `wasserstein` or `log`");
    check(&["--classifier=nowhere"], "plugin `nowhere`: not found in");
    check(&["--classifier=nowhere", "--dry-run"], "plugin `nowhere`: not found in");
    // What is quickly checked comes first.
    let ran = host(folder.path(), &[&["can", "train", "--out=empty", "--data=empty"][..], &tiny_can()].concat());
    assert!(ran.stderr.contains("empty is not empty: name another folder with --out"), "{}", ran.stderr);
    std::fs::create_dir_all(folder.path().join("odd/a\nb")).expect("a folder");
    std::fs::create_dir_all(folder.path().join("odd/c")).expect("a folder");
    for style in ["a\nb", "c"] {
        image::RgbImage::new(4, 4).save(folder.path().join("odd").join(style).join("x.png")).expect("a file");
    }
    check(&["--data=odd"], "the folder \"odd/a\\nb\" has control characters in its name");
    let ran = host(folder.path(), &["can", "sample", "--generator=empty", "--out=images"]);
    assert!(ran.stderr.contains("empty has no generator"), "{}", ran.stderr);
}
