//! What all commands have in common: help texts, `--json`, logs, completion, `--version`; and `host cache`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{command, host, host_ok, ran, root};

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

/// The commands by their words, without those that only group others.
fn all_commands(folder: &Path) -> Vec<Vec<String>> {
    let (mut all, mut open) = (vec![], vec![vec![]]);
    while let Some(words) = open.pop() {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = host_ok(folder, &arguments).stdout;
        match help.contains("Commands:") {
            true => open.extend(commands(&help).into_iter().map(|command| [words.clone(), vec![command]].concat())),
            false => all.push(words),
        }
    }
    all
}

#[test]
fn every_command_that_ends_with_a_result_prints_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = all_commands(folder.path());
    assert!(all.len() > 25, "{all:?}");
    for words in all {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        let has_json = host_ok(folder.path(), &arguments).stdout.contains("--json");
        assert!(has_json || words == ["completions"], "{words:?} has no --json");
    }
}

#[test]
fn errors_are_json_too() {
    let folder = tempfile::tempdir().expect("a folder");
    for (arguments, code, said) in [
        (&["plugin", "inspect", "kmeans_imge", "--json"][..], 1, "did you mean `kmeans_image`?"),
        (&["plugin", "inspect", "--json"], 2, "the following required arguments were not provided: <PLUGIN>"),
        (&["plugin", "list", "--json", "--log-file", "no/such/folder.log"], 1, "--log-file no/such/folder.log: "),
    ] {
        let ran = host(folder.path(), arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{arguments:?}");
        let last = ran.stderr.lines().last().unwrap_or_default();
        let document: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {}", ran.stderr));
        assert_eq!(document["exit_code"], code, "{document}");
        assert!(document["error"].as_str().is_some_and(|error| error.contains(said)), "{document}");
    }
    // What follows `--` is no flag.
    let ran = host(folder.path(), &["plugin", "inspect", "kmeans_imge", "--", "--json"]);
    assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
}

#[test]
fn the_log_is_kept_in_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = |arguments: &[&str]| {
        host(folder.path(), &[&["--log-file", "host.log", "-q"], arguments].concat());
        fs::read_to_string(folder.path().join("host.log")).expect("it was written")
    };
    let first = log(&["art", "--out", "art", "--per-class", "1"]);
    assert!(first.contains(" INFO host 0.1.0 (") && first.contains("art --out art --per-class 1"), "{first}");
    assert!(first.contains("27 paintings of 64 px"), "what -q leaves out of stderr is there: {first}");
    let second = log(&["plugin", "inspect", "nothing"]);
    assert!(second.starts_with(&first), "it is appended");
    assert!(
        second.lines().all(|line| line.starts_with("20") && line.contains("Z ")),
        "every line has its time: {second}"
    );
    assert!(second.contains("ERROR") && second.contains("plugin `nothing`: not found in "), "{second}");
    assert!(!second.contains('\u{1b}'), "no colors");
}

#[test]
fn the_version_names_commit_and_interface() {
    let folder = tempfile::tempdir().expect("a folder");
    let version = host_ok(folder.path(), &["--version"]).stdout;
    let rest = version.strip_prefix("host 0.1.0 (commit ").unwrap_or_else(|| panic!("{version}"));
    let (commit, rest) = rest.split_once(", ").expect("two parts");
    assert_eq!(rest, "plugin interface 0.2.0)\n");
    let in_checkout = root().join(".git").exists();
    assert!(!in_checkout || commit.trim_end_matches("-dirty").chars().all(|c| c.is_ascii_hexdigit()), "{version}");
}

#[test]
fn shells_complete_the_names_of_plugins_and_models() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(root().join("plugins/palette.wasm"), folder.path().join("kmine.wasm")).expect("a copy");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(host_ok(folder.path(), &["completions", shell]).stdout.contains("HOST_COMPLETE"), "{shell}");
    }
    assert_eq!(host(folder.path(), &["completions", "cmd.com"]).code, 2);
    let complete = |words: &[&str]| {
        let mut command = command(folder.path(), &[]);
        // The first arguments of `command` are the program's; a shell passes the typed words alone.
        command = std::process::Command::new(command.get_program());
        command.current_dir(folder.path()).env("AMBIGUITY_HOME", root()).env("XDG_DATA_HOME", folder.path());
        command.env("HOST_COMPLETE", "fish").args(["--", "host"]).args(words);
        let ran = ran(&command.output().expect("the binary starts"));
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        let word = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
        ran.stdout.lines().map(word).collect::<Vec<_>>()
    };
    for words in [&["plugin", "inspect", "km"][..], &["train", "--plugin", "km"], &["plugin", "classify", "km"]] {
        assert_eq!(complete(words), ["kmeans_image", "kmeans_text", "kmine", "kmine.wasm"], "{words:?}");
    }
    assert_eq!(complete(&["sample", "--model", "ti"]), ["tiny-art"]);
    assert_eq!(complete(&["plugin", "uninst"]), ["uninstall"]);
}

#[test]
fn the_caches_are_listed_and_cleared() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = folder.path().join("hub/models--owner--name--small/blobs");
    fs::create_dir_all(&hub).expect("a new folder");
    fs::write(hub.join("abc"), [0; 4000]).expect("writable");
    let cache = |arguments: &[&str]| {
        let mut command = command(folder.path(), &[&["cache"], arguments].concat());
        command.env("HF_HUB_CACHE", folder.path().join("hub")).stdin(std::process::Stdio::null());
        ran(&command.output().expect("the binary starts"))
    };
    let names = || {
        let document: Value = serde_json::from_str(&cache(&["list", "--json"]).stdout).expect("one JSON document");
        let caches = document["caches"].as_array().expect("a list").clone();
        caches.into_iter().map(|cache| (cache["name"].as_str().expect("a name").to_owned(), cache)).collect::<Vec<_>>()
    };
    assert_eq!(names()[0].1["bytes"], 4000);
    host_ok(folder.path(), &["plugin", "inspect", "palette"]);
    let listed = names();
    assert_eq!(listed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["plugins", "owner/name--small"]);
    assert!(listed[0].1["bytes"].as_u64().is_some_and(|bytes| bytes > 10_000), "{listed:?}");
    assert!(cache(&["list"]).stdout.contains("compiled plugins"));

    let refused = cache(&["clear"]);
    assert_eq!((refused.code, names().len()), (1, 2));
    assert_eq!(refused.stderr, "error: this would remove plugins: pass --yes to do it without a question\n");
    let unknown = cache(&["clear", "plugin", "--yes"]);
    assert_eq!(unknown.stderr, "error: `plugin` is not kept; did you mean `plugins`?\n");
    assert!(cache(&["clear", "--yes"]).stdout.starts_with("removed "));
    assert_eq!(names().len(), 1, "a downloaded model, which other programs use, is kept unless it is named");
    let removed: Value =
        serde_json::from_str(&cache(&["clear", "owner/name--small", "--yes", "--json"]).stdout).expect("JSON");
    assert_eq!(removed["bytes"], 4000);
    assert_eq!((names().len(), cache(&["list"]).stdout.as_str()), (0, "nothing is kept\n"));
}

#[test]
fn a_dry_run_prints_a_config_that_can_be_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = host_ok(folder.path(), &["train", "--plugin=kmeans_image", "--dry-run"]);
    fs::write(folder.path().join("run.toml"), &ran.stdout).expect("writable");
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
        let Ok(full) = fs::File::options().write(true).open("/dev/full") else {
            eprintln!("skipped: this system has no /dev/full");
            continue;
        };
        let ran = ran(&command(folder.path(), arguments).stdout(full).output().expect("the binary starts"));
        assert_eq!(ran.code, 1);
        let said = "cannot write to the standard output: No space left on device";
        let is_json = arguments.contains(&"--json");
        let wanted =
            if is_json { format!("{{\"error\":\"{said}\",\"exit_code\":1}}\n") } else { format!("error: {said}\n") };
        assert_eq!(ran.stderr, wanted);
    }
}
