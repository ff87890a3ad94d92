//! A run that is killed at any moment and resumed is the same as one that was never stopped.
//!
//! `make test` kills a few times; `KILLS=20` (`make kill-test`) sets the number of kills of each training.

use std::path::Path;
use std::time::{Duration, Instant};

use ambiguity_host::random::{Purpose, derive_seed};

use crate::support::{command, host_ok, tiny_can, tiny_run};
use crate::train::{assert_same_tensors, timeless};

/// The moment of a kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// This long after the start.
    After(Duration),
    /// While a checkpoint is being written: this long after its temporary folder appears.
    Writing(Duration),
}

/// A training that is killed.
struct Subject {
    /// The arguments that start it, without its folder.
    begin: Vec<&'static str>,
    /// The arguments that resume it, without its folder.
    resume: Vec<&'static str>,
    /// The files of tensors that must be the same at the end.
    files: &'static [&'static str],
}

#[test]
fn kills_change_nothing() {
    let mut begin = vec!["train"];
    begin.extend(tiny_run());
    begin.push("--set=train.epochs=3");
    let files = &[
        "pytorch_lora_weights.safetensors",
        "best/pytorch_lora_weights.safetensors",
        "checkpoints/epoch-0003/state.safetensors",
    ];
    kill(&Subject { begin, resume: vec!["train"], files }, 3);
}

#[test]
fn kills_of_a_can_change_nothing() {
    let mut begin = vec!["can", "train"];
    begin.extend(tiny_can());
    begin.push("--set=can.epochs=3");
    let files =
        &["generator/model.safetensors", "discriminator/model.safetensors", "checkpoints/epoch-0003/state.safetensors"];
    kill(&Subject { begin, resume: vec!["can", "train"], files }, 2);
}

/// Kills and resumes it `KILLS` times, or `n_kills` times if that is not set, and compares it with an undisturbed run.
fn kill(subject: &Subject, n_kills: u64) {
    let n_kills = std::env::var("KILLS").map_or(n_kills, |n| n.parse().expect("KILLS is a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let run = |out: &'static str| [&subject.begin[..], &[out]].concat();
    let clock = Instant::now();
    host_ok(folder.path(), &run("--out=whole"));
    let whole = clock.elapsed();
    let killed = folder.path().join("killed");
    let mut kills = 0;
    let mut round = 0;
    while kills < n_kills {
        // Each round is a whole run; it is resumed until it ends or was killed often enough.
        drop(std::fs::remove_dir_all(&killed));
        let mut arguments = run("--out=killed");
        while kills < n_kills {
            let random = derive_seed(kills, round, 0, Purpose::Data) as u32;
            let share = f64::from(random % 1000) / 1000.0;
            let moment = match kills % 3 {
                2 => Moment::Writing(Duration::from_micros(u64::from(random % 3000))),
                _ => Moment::After(whole.mul_f64(share)),
            };
            let was_killed = kill_at(folder.path(), &arguments, moment);
            kills += u64::from(was_killed);
            arguments = if killed.join("config.toml").is_file() {
                [&subject.resume[..], &["--resume=killed"]].concat()
            } else {
                run("--out=killed")
            };
            if !was_killed {
                break;
            }
        }
        round += 1;
        host_ok(folder.path(), &arguments);
        let whole = folder.path().join("whole");
        assert_eq!(timeless(&whole), timeless(&killed), "after {kills} kills");
        for file in subject.files {
            assert_same_tensors(&whole.join(file), &killed.join(file));
        }
    }
    eprintln!("{kills} kills in {round} runs");
}

/// Starts the command and kills it at that moment; returns whether it was still running then.
fn kill_at(folder: &Path, arguments: &[&str], moment: Moment) -> bool {
    let null = std::process::Stdio::null;
    let mut child = command(folder, arguments).stdout(null()).stderr(null()).spawn().expect("the binary starts");
    let clock = Instant::now();
    let due = loop {
        if child.try_wait().expect("the child is ours").is_some() {
            break None;
        }
        match moment {
            Moment::After(time) if clock.elapsed() >= time => break Some(Duration::ZERO),
            Moment::Writing(delay) if is_writing(&folder.join("killed/checkpoints")) => break Some(delay),
            _ => std::thread::sleep(Duration::from_micros(200)),
        }
    };
    if let Some(delay) = due {
        std::thread::sleep(delay);
        child.kill().expect("the child is ours");
    }
    !child.wait().expect("the child ends").success()
}

fn is_writing(checkpoints: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(checkpoints) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with('.'))
}
