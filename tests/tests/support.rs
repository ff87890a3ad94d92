//! Shared by these tests: functions that run the binary. It runs on the CPU, whatever the device of the other tests, since
//! they compare bytes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub use test_support::root;

/// The built binary, beside this test's own executable.
pub fn host_binary() -> PathBuf {
    let test = std::env::current_exe().expect("a test has an executable");
    let profile = test.ancestors().nth(2).expect("target/release/deps/TEST");
    let host = profile.join("host");
    assert!(host.is_file(), "{} is not built: run `cargo build --release` first", host.display());
    host
}

/// The exit code and the output of a call of the binary.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `host` in `folder` on one thread, without the settings of the caller's environment.
pub fn host(folder: &Path, arguments: &[&str]) -> Ran {
    let output = command(folder, arguments).output().expect("the binary starts");
    ran(&output)
}

/// The command that [`host`] runs.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(host_binary());
    command.current_dir(folder).args(["--threads", "1"]).args(arguments);
    command.env("AMBIGUITY_HOME", root()).env("XDG_DATA_HOME", folder).env("XDG_CACHE_HOME", folder.join("cache"));
    command.env("XDG_CONFIG_HOME", folder.join("config")).env("DOCKER_CONFIG", folder.join("docker"));
    command.env_remove("HOST_LOG").env_remove("AMBIGUITY_TRUST").env("COLUMNS", "100").env("NO_COLOR", "1");
    command
}

/// The exit code and the output of a finished process.
pub fn ran(output: &Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `host` and asserts that it succeeds.
pub fn host_ok(folder: &Path, arguments: &[&str]) -> Ran {
    let ran = host(folder, arguments);
    assert_eq!(ran.code, 0, "host {}\n{}\n{}", arguments.join(" "), ran.stdout, ran.stderr);
    ran
}

/// Copies a folder with all that is in it over another one, which need not exist.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// The settings of a training run that takes seconds.
pub fn tiny_run() -> Vec<&'static str> {
    vec![
        "--preset=tiny-art",
        "--plugin=kmeans_image",
        "--set=sample.steps=4",
        "--set=sample.batch_size=4",
        "--set=sample.batches_per_epoch=2",
        "--set=train.batch_size=4",
        "--set=train.epochs=2",
        "--set=monitor.count=4",
        "--set=monitor.every=1",
    ]
}

/// The settings of a CAN's training, or a classifier's, that takes a second or two.
pub fn tiny_can() -> Vec<&'static str> {
    vec![
        "--preset=tiny-art",
        "--set=can.size=32",
        "--set=can.per_class=6",
        "--set=can.test_share=0.25",
        "--set=can.generator_channels=32",
        "--set=can.discriminator_channels=2",
        "--set=can.head=[8, 8]",
        "--set=can.batch_size=16",
        "--set=can.steps_per_epoch=6",
        "--set=can.epochs=2",
        "--set=monitor.count=4",
        "--set=monitor.every=1",
    ]
}
