//! The help texts of the commands, and `--dry-run`.

use crate::support::{command, host, host_ok, ran};

#[test]
fn help_is_a_snapshot() {
    let folder = tempfile::tempdir().expect("a folder");
    insta::assert_snapshot!("help", host_ok(folder.path(), &["--help"]).stdout);
    insta::assert_snapshot!("help_train", host_ok(folder.path(), &["train", "--help"]).stdout);
}

#[test]
fn every_command_has_an_example_in_its_help() {
    let folder = tempfile::tempdir().expect("a folder");
    let commands: Vec<String> = commands(&host_ok(folder.path(), &["--help"]).stdout);
    assert!(commands.len() >= 7, "{commands:?}");
    for command in &commands {
        let help = host_ok(folder.path(), &[command, "--help"]).stdout;
        if help.contains("Commands:") {
            for sub in self::commands(&help) {
                let help = host_ok(folder.path(), &[command, &sub, "--help"]).stdout;
                assert!(help.contains("Example"), "host {command} {sub} --help has no example");
            }
        } else {
            assert!(help.contains("Example"), "host {command} --help has no example");
        }
    }
}

fn commands(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or_default();
    let names = list.lines().take_while(|line| line.starts_with("  "));
    let names = names.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn a_dry_run_prints_a_config_that_can_be_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = host_ok(folder.path(), &["train", "--plugin=kmeans_image", "--dry-run"]);
    std::fs::write(folder.path().join("run.toml"), &ran.stdout).expect("writable");
    let again = host_ok(folder.path(), &["train", "--config=run.toml", "--dry-run"]);
    assert_eq!(ran.stdout, again.stdout);
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn no_plugin_is_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = host(folder.path(), &["train", "-q"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (1, "error: no classifier: name one with --plugin, as in --plugin kmeans_image.wasm\n")
    );
}

#[test]
fn a_closed_or_full_standard_output_is_no_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    for arguments in [&["plugin", "list"][..], &["models", "count", "tiny-art", "--json"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let closed = ran(&command(folder.path(), arguments).stdout(writer).output().expect("the binary starts"));
        assert_eq!((closed.code, closed.stderr.as_str()), (141, ""));
        let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else {
            eprintln!("skipped: this system has no /dev/full");
            continue;
        };
        let ran = ran(&command(folder.path(), arguments).stdout(full).output().expect("the binary starts"));
        assert_eq!(ran.code, 1);
        assert_eq!(ran.stderr, "error: cannot write to the standard output: No space left on device\n");
    }
}
