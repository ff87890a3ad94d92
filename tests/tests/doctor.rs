//! `host doctor`.

use serde_json::Value;

use crate::support::command;

/// Returns the exit code, and the names and statuses of all checks, with the given working folder and home.
fn statuses(folder: &std::path::Path, home: &std::path::Path) -> (i32, Vec<(String, String)>) {
    let mut doctor = command(folder, &["doctor", "--json"]);
    doctor.env("AMBIGUITY_HOME", home).env_remove("LIBTORCH");
    let output = doctor.output().expect("the binary starts");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let code = output.status.code().unwrap_or(-1);
    assert_eq!(answer["ok"].as_bool(), Some(code == 0), "{answer}");
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let checks = answer["checks"].as_array().expect("checks");
    for check in checks {
        assert_eq!(check["status"] != "ok", check["remedy"].is_string(), "a remedy wherever one is needed: {check}");
    }
    (code, checks.iter().map(|check| (text(check, "name"), text(check, "status"))).collect())
}

#[test]
fn what_ships_is_found_and_its_absence_is_a_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let (code, checks) = statuses(folder.path(), crate::support::root());
    assert_eq!(code, 0, "{checks:?}");
    let status = |checks: &[(String, String)], name: &str| {
        let found = checks.iter().find(|(found, _)| found == name);
        found.unwrap_or_else(|| panic!("no check {name} in {checks:?}")).1.clone()
    };
    for name in ["libtorch", "ONNX Runtime", "shipped weights", "shipped plugins", "wasm targets", "runs"] {
        assert_eq!(status(&checks, name), "ok", "{name}");
    }
    let (code, checks) = statuses(folder.path(), folder.path());
    assert_eq!(code, 1);
    assert_eq!(status(&checks, "shipped weights"), "missing");
    assert_eq!(status(&checks, "shipped plugins"), "missing");
    assert!(!folder.path().join("runs").exists(), "checking changes nothing");
}

#[test]
fn fix_creates_the_runs_folder_and_names_what_it_cannot_fix() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = command(folder.path(), &["doctor", "--fix"]).env("AMBIGUITY_HOME", folder.path()).output();
    let stderr = String::from_utf8_lossy(&output.expect("the binary starts").stderr).into_owned();
    assert!(folder.path().join("runs").is_dir(), "{stderr}");
    assert!(stderr.contains("cannot fix shipped weights from here"), "{stderr}");
    assert!(stderr.ends_with("error: not in order: shipped weights, shipped plugins\n"), "{stderr}");
}
