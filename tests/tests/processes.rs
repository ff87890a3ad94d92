//! Several processes that train together: the same run as one process makes, and one end for all when one of them ends.
//!
//! `make test` kills a few times; `KILLS=20` (`make kill-test`) sets the number of kills.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ambiguity_host::random::{Purpose, derive_seed};
use ambiguity_models::safetensors::read_safetensors;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::support::{command, host, host_ok, ran, tiny_can, tiny_run};
use crate::train::{assert_same_tensors, metrics, timeless};

/// The files of tensors of a run of three epochs.
const FILES: [&str; 3] = [
    "pytorch_lora_weights.safetensors",
    "best/pytorch_lora_weights.safetensors",
    "checkpoints/epoch-0003/state.safetensors",
];

/// The arguments of a run whose calls of the UNet are the same in one process and in two. Each process has one thread: on some
/// processors the rounding of a matrix product depends on the number of threads, and on that of its rows.
fn run(more: &[&'static str]) -> Vec<&'static str> {
    let mut arguments = vec!["train"];
    arguments.extend(tiny_run());
    arguments.extend(["--set=sample.micro_batch=4", "--set=train.micro_batch=4", "--set=train.epochs=3"]);
    arguments.extend(["--set=monitor.count=8", "--held-out=palette", "--threads=1"]);
    // Computed from the embeddings of all processes' images.
    arguments.extend(["--set=train.vendi_weight=0.5", "--set=train.vendi_target=0.9"]);
    arguments.extend(more);
    arguments
}

fn assert_same_run(a: &Path, b: &Path) {
    assert_eq!(timeless(a), timeless(b));
    for file in FILES {
        assert_same_tensors(&a.join(file), &b.join(file));
    }
    for folder in ["images/training/epoch-0003", "images/monitor/epoch-0003", "samples"] {
        let files = |run: &Path| {
            let mut files: Vec<_> = std::fs::read_dir(run.join(folder)).expect("a folder").flatten().collect();
            files.sort_by_key(std::fs::DirEntry::file_name);
            let content = |file: std::fs::DirEntry| (file.file_name(), std::fs::read(file.path()).expect("readable"));
            files.into_iter().map(content).collect::<Vec<_>>()
        };
        let (a, b) = (files(a), files(b));
        assert!(!a.is_empty() && a == b, "{folder} differs");
    }
}

/// Starts a process of a launcher's two.
fn launched(folder: &Path, rank: usize, port: u16, arguments: &[&str]) -> Child {
    let mut command = command(folder, arguments);
    command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
    command.env("WORLD_SIZE", "2").env("LOCAL_WORLD_SIZE", "2");
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

/// Returns a port that was free a moment ago.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Returns the process that another one has started, once it is there.
fn child_of(parent: u32) -> Option<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let children = std::fs::read_to_string(&path).ok()?;
        if let Some(child) = children.split_whitespace().next() {
            return child.parse().ok();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args([format!("-{name}"), process.to_string()]).status().expect("kill runs");
    assert!(sent.success(), "kill -{name} {process}");
}

/// Waits until a run has a line for each of the first `n` epochs, the untrained model's among them.
fn wait_for_epochs(run: &Path, n: usize) {
    let end = Instant::now() + Duration::from_secs(120);
    let lines = || std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
    while lines() < n {
        assert!(Instant::now() < end, "{} gets no {n} epochs", run.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn two_processes_make_the_run_of_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    host_ok(path, &run(&["--out=one"]));
    let ran_two = host_ok(path, &run(&["--out=two", "--nproc=2"]));
    assert_same_run(&path.join("one"), &path.join("two"));
    assert_eq!(ran_two.stdout.matches("reward on the fixed samples").count(), 1, "{}", ran_two.stdout);
    assert_eq!(ran_two.stderr.matches("ratio check").count(), 1, "only the first process prints: {}", ran_two.stderr);
    assert!(std::fs::read_to_string(path.join("two/run.toml")).expect("notes").contains("processes = 2"));

    // Diversity is a part of what is trained, and not of the reward.
    host_ok(path, &run(&["--out=without", "--set=train.vendi_weight=0", "--set=train.vendi_target=0"]));
    let line = |run: &str| metrics(&path.join(run)).swap_remove(1);
    assert_eq!(line("without")["reward_mean"], line("one")["reward_mean"]);
    assert_ne!(line("without")["loss"], line("one")["loss"]);

    // The same by a launcher's variables; the second process prints nothing.
    let port = free_port();
    let arguments = run(&["--out=launched"]);
    let second = launched(path, 1, port, &arguments);
    let first = launched(path, 0, port, &arguments).wait_with_output().expect("it ends");
    let second = ran(&second.wait_with_output().expect("it ends"));
    let first = ran(&first);
    assert_eq!((first.code, second.code), (0, 0), "{}\n{}", first.stderr, second.stderr);
    assert_eq!((second.stdout.as_str(), second.stderr.as_str()), ("", ""));
    assert_same_run(&path.join("one"), &path.join("launched"));

    // With calls of other sizes, and shares of other sizes, sums round otherwise.
    let uneven = &["--set=sample.batches_per_epoch=3", "--set=monitor.count=5", "--set=sample.micro_batch=64"];
    host_ok(path, &run(&[&uneven[..], &["--out=uneven-one"]].concat()));
    host_ok(path, &run(&[&uneven[..], &["--out=uneven-three", "--nproc=3"]].concat()));
    let rewards = |run: &str| {
        metrics(&path.join(run)).iter().map(|line| line["monitor"]["reward_mean"].as_f64()).collect::<Vec<_>>()
    };
    for (a, b) in rewards("uneven-one").into_iter().zip(rewards("uneven-three")) {
        let (a, b) = (a.expect("a number"), b.expect("a number"));
        assert!((a - b).abs() < 1e-5 * a.abs(), "{a} {b}");
    }
    let tensors = |run: &str| read_safetensors(&path.join(run).join(FILES[0])).expect("readable");
    let (one, three) = (tensors("uneven-one"), tensors("uneven-three"));
    let square = |tensor: &Tensor| tensor.square().sum(Kind::Double).double_value(&[]);
    let difference: f64 = one.iter().map(|(name, tensor)| square(&(tensor - &three[name]))).sum();
    let error = (difference / one.values().map(square).sum::<f64>()).sqrt();
    assert!(error < 1e-3, "the weights differ by {error:.1e} of their norm");
}

/// Before and after are compared on 16 images.
#[test]
fn there_may_be_more_processes_than_compared_images() {
    let folder = tempfile::tempdir().expect("a folder");
    let more =
        ["--nproc=17", "--set=sample.batch_size=1", "--set=sample.batches_per_epoch=17", "--set=monitor.count=17"];
    let mut arguments = run(&more);
    arguments.extend(["--set=train.batch_size=17", "--set=train.epochs=1", "--set=sample.steps=2", "--out=run"]);
    host_ok(folder.path(), &arguments);
    assert!(folder.path().join("run/before-after.png").is_file());
}

#[test]
fn a_run_resumes_on_another_number_of_processes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    host_ok(path, &run(&["--out=whole"]));
    host_ok(path, &run(&["--out=parts", "--nproc=2", "--set=train.epochs=1"]));
    host_ok(path, &["train", "--resume=parts", "--set=train.epochs=2"]);
    host_ok(path, &["train", "--resume=parts", "--nproc=2", "--set=train.epochs=3"]);
    assert_same_run(&path.join("whole"), &path.join("parts"));
}

/// BatchNorm's statistics and the gradients are those of the whole batch, of which each process has some images.
#[test]
fn networks_are_trained_by_several_processes_as_by_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let train = |command: &str, out: &str, more: &[&str]| {
        let out = format!("--out={out}");
        host_ok(path, &[&[command, "train", &out][..], &tiny_can(), more].concat())
    };
    let tensors = |file: &str| read_safetensors(&path.join(file)).expect("readable");
    let square = |tensor: &Tensor| tensor.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
    // Adam magnifies the rounding of gradients near 0, of which an untrained generator has many: the losses are compared closely.
    let same = |a: &str, b: &str, folder: &str| {
        let (one, other) = (tensors(&format!("{a}/{folder}")), tensors(&format!("{b}/{folder}")));
        let difference: f64 = one.iter().map(|(name, tensor)| square(&(tensor - &other[name]))).sum();
        let error = (difference / one.values().map(square).sum::<f64>()).sqrt();
        assert!(error < 3e-2, "{folder}: the weights of {a} and {b} differ by {error:.1e} of their norm");
        let lines = [a, b].map(|run| metrics(&path.join(run)));
        for (a, b) in lines[0].iter().zip(&lines[1]) {
            let numbers = |line: &Value| {
                let parts = [&line["loss"], &line["monitor"]].map(|part| part.as_object().cloned().unwrap_or_default());
                parts.into_iter().flatten().filter_map(|(_, value)| value.as_f64()).collect::<Vec<_>>()
            };
            let (a, b) = (numbers(a), numbers(b));
            assert_eq!(a.len(), b.len());
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 5e-3 * a.abs().max(1.0)), "{a:?}\n{b:?}");
        }
    };
    train("can", "one", &[]);
    // 16 images do not divide by three.
    let ran_three = train("can", "three", &["--nproc=3"]);
    assert_eq!(ran_three.stdout.matches("report: three/report.html").count(), 1, "{}", ran_three.stdout);
    same("one", "three", "generator/model.safetensors");
    same("one", "three", "discriminator/model.safetensors");
    // On one process for an epoch, then on two.
    train("can", "parts", &["--set=can.epochs=1"]);
    host_ok(path, &["can", "train", "--resume=parts", "--nproc=2", "--set=can.epochs=2"]);
    same("one", "parts", "generator/model.safetensors");

    let plugin = &["--classifier=kmeans_image", "--set=can.epochs=1"];
    train("can", "plugin-one", plugin);
    train("can", "plugin-two", &[&plugin[..], &["--nproc=2"]].concat());
    same("plugin-one", "plugin-two", "generator/model.safetensors");

    train("classifier", "classifier-one", &[]);
    train("classifier", "classifier-two", &["--nproc=2"]);
    same("classifier-one", "classifier-two", "discriminator/model.safetensors");

    let too_many = [&["can", "train", "--nproc=17", "--out=none"][..], &tiny_can()].concat();
    let refused = host(path, &too_many);
    assert_eq!(refused.code, 1);
    let wanted = "17 processes share the 16 images of a batch: raise can.batch_size, or start fewer processes";
    assert!(refused.stderr.contains(wanted), "{}", refused.stderr);
}

/// Within a step the processes wait for each other in the middle of a forward or backward pass.
#[test]
fn a_process_that_is_killed_in_a_step_of_a_can_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let arguments = [&["can", "train", "--nproc=2", "--out=run", "--set=can.epochs=1000"][..], &tiny_can()].concat();
    for (name, code, wanted) in [
        ("KILL", 1, "error: process 1 is gone: it was ended, or its machine was; stopped in epoch"),
        ("INT", 130, "interrupted; "),
    ] {
        let mut command = command(path, &arguments);
        let process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        wait_for_epochs(&path.join("run"), 2);
        signal(name, child_of(process.id()).expect("it has started the other"));
        let ended = ran(&process.wait_with_output().expect("it ends"));
        assert_eq!(ended.code, code, "{}", ended.stderr);
        assert!(ended.stderr.contains(wanted), "{}", ended.stderr);
        assert!(ended.stderr.contains("host can train --resume run"), "{}", ended.stderr);
        std::fs::remove_dir_all(path.join("run")).expect("removed");
    }
}

#[test]
fn two_processes_evaluate_as_one_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    host_ok(path, &run(&["--out=run", "--set=train.epochs=1"]));
    let evaluated = |out: &str, more: &[&str]| {
        let arguments =
            ["eval", "run", "--count=20", "--pairs=2", "--metrics=reward,entropy,vendi", "--micro-batch=8", "--json"];
        let out = format!("--out={out}");
        let ran = host_ok(path, &[&arguments[..], &[&out], more].concat());
        serde_json::from_str::<Value>(&ran.stdout).expect("JSON")
    };
    let one = evaluated("one", &[]);
    assert_eq!(evaluated("two", &["--nproc=2"]), one);
    // What is there is not computed again, whoever computed it.
    let written = |folder: &str| std::fs::metadata(path.join(folder)).expect("a folder").modified().expect("a time");
    let before = written("two/eval");
    assert_eq!(evaluated("two", &["--nproc=3"]), one);
    assert_eq!(written("two/eval"), before);
}

#[test]
fn kills_of_any_process_change_nothing() {
    let n_kills = std::env::var("KILLS").map_or(3, |n| n.parse().expect("KILLS is a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let killed = path.join("killed");
    let clock = Instant::now();
    host_ok(path, &run(&["--out=whole", "--nproc=2"]));
    let whole = clock.elapsed();
    let (mut kills, mut round) = (0u64, 0);
    while kills < n_kills {
        drop(std::fs::remove_dir_all(&killed));
        let mut arguments = run(&["--out=killed", "--nproc=2"]);
        while kills < n_kills {
            let random = derive_seed(kills, round, 0, Purpose::Data) as u32;
            let moment = whole.mul_f64(f64::from(random % 1000) / 1000.0);
            let mut process =
                command(path, &arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
            let clock = Instant::now();
            while clock.elapsed() < moment && process.try_wait().expect("it is ours").is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            // The first process or the one that it has started.
            let victim = if random.is_multiple_of(2) { Some(process.id()) } else { child_of(process.id()) };
            let is_running = process.try_wait().expect("it is ours").is_none();
            if let Some(victim) = victim.filter(|_| is_running) {
                drop(Command::new("kill").args(["-KILL", &victim.to_string()]).status());
            }
            let was_killed = !process.wait().expect("it ends").success();
            kills += u64::from(was_killed);
            if killed.join("config.toml").is_file() {
                arguments = vec!["train", "--resume=killed", "--timeout=60"];
                // On another number of processes every other time.
                arguments.extend((kills % 2 == 0).then_some("--nproc=2"));
            }
            if !was_killed {
                break;
            }
        }
        round += 1;
        // A process whose first one was killed may still hold nothing, but takes a moment to end.
        host_ok(path, &arguments);
        assert_same_run(&path.join("whole"), &killed);
    }
    eprintln!("{kills} kills in {round} runs");
}

#[test]
fn all_processes_end_with_the_one_that_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let endless = |out: &'static str, more: &[&'static str]| {
        let arguments = run(&[&["--nproc=2", "--set=train.epochs=1000", out], more].concat());
        let mut command = command(path, &arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    // Killed: the other one says so, and keeps the last whole epoch.
    let process = endless("--out=killed", &[]);
    wait_for_epochs(&path.join("killed"), 3);
    signal("KILL", child_of(process.id()).expect("it has started the other"));
    let ended = ran(&process.wait_with_output().expect("it ends"));
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("error: process 1 is gone: it was ended, or its machine was; stopped in epoch"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("resume with `host train --resume killed`"), "{}", ended.stderr);
    assert!(metrics(&path.join("killed")).len() >= 3);

    // Interrupted: both stop, whoever got the signal.
    let process = endless("--out=interrupted", &[]);
    wait_for_epochs(&path.join("interrupted"), 2);
    signal("INT", child_of(process.id()).expect("it has started the other"));
    let ended = ran(&process.wait_with_output().expect("it ends"));
    assert_eq!(ended.code, 130, "{}", ended.stderr);
    assert!(!ended.stderr.contains("stopping at"), "the first got no signal: {}", ended.stderr);
    assert!(
        ended.stderr.contains("interrupted; ") && ended.stderr.contains("are kept in interrupted"),
        "{}",
        ended.stderr
    );

    // Stopped: named after the timeout, and ended.
    let process = endless("--out=stopped", &["--timeout=2"]);
    wait_for_epochs(&path.join("stopped"), 2);
    let other = child_of(process.id()).expect("it has started the other");
    signal("STOP", other);
    let ended = ran(&process.wait_with_output().expect("it ends"));
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    let wanted = "process 1 did not come within 2 s (--timeout) and gives no sign of life: it is stopped";
    assert!(ended.stderr.contains(wanted), "{}", ended.stderr);
    assert!(!Path::new(&format!("/proc/{other}")).exists(), "the stopped process is still there");
}

#[test]
fn a_process_that_fails_gives_its_reason_to_the_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let plugins = test_support::root().join("plugins");
    // The same name on two machines, and other bytes.
    for (machine, plugin) in [("a", "kmeans_image.wasm"), ("b", "kmeans_text.wasm")] {
        std::fs::create_dir(path.join(machine)).expect("a folder");
        std::fs::copy(plugins.join(plugin), path.join(machine).join("plugin.wasm")).expect("copied");
    }
    let port = free_port();
    let mut arguments = run(&["--out=run", "--plugin=plugin.wasm"]);
    arguments.retain(|argument| *argument != "--plugin=kmeans_image");
    let second = launched(&path.join("b"), 1, port, &arguments);
    let first = launched(&path.join("a"), 0, port, &arguments);
    let first = ran(&first.wait_with_output().expect("it ends"));
    let second = ran(&second.wait_with_output().expect("it ends"));
    assert_eq!((first.code, second.code), (1, 1));
    let wanted = "plugins, encoders and prompts of process 1 differ from those of process 0";
    assert!(first.stderr.contains(wanted), "{}", first.stderr);
    assert_eq!(second.stderr, "");
    assert!(!path.join("a/run").exists() && !path.join("b/run").exists());
}

#[test]
fn what_a_launcher_sets_wrongly_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |variables: &[(&str, &str)], more: &[&'static str], wanted: &str| {
        let output = command(folder.path(), &run(more)).envs(variables.iter().copied()).output().expect("it starts");
        let refused = ran(&output);
        assert!(refused.code == 1 && refused.stderr.starts_with("error: "), "{}", refused.stderr);
        assert!(refused.stderr.contains(wanted), "{}", refused.stderr);
    };
    refused(&[("WORLD_SIZE", "2")], &[], "WORLD_SIZE is 2, but RANK is not set");
    let two = [("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")];
    refused(&two, &["--timeout=1"], "process 1 of 2 cannot reach the others at 127.0.0.1:1");
    refused(&two, &["--nproc=2"], "leave --nproc out");
    let many = host(folder.path(), &run(&["--nproc=5", "--set=monitor.count=4"]));
    assert!(many.stderr.contains("5 processes share 4 samples: raise monitor.count"), "{}", many.stderr);
    assert!(!folder.path().join("runs").exists());
}
