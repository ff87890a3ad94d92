//! `host doctor`: what is installed, what is missing, and how to fix it.

mod checks;

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use self::checks::{Check, Environment, Status, WASM_TARGETS, run_checks};
use crate::context::Context;
use crate::text::{escaped, shown, to_json};

/// Check what is installed and what is missing, and how to fix it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host doctor
  host doctor --fix
  host doctor --json

Exits with 1 when something that the common commands need is missing; a warning alone is not a failure.")]
pub struct DoctorArgs {
    /// Fix what can be fixed from here: add Rust's wasm targets, create the folder runs/
    #[arg(long)]
    fix: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl DoctorArgs {
    /// Runs the command.
    pub fn run(self, _context: &Context) -> Result<()> {
        let environment = Environment::of_process()?;
        let mut checks = run_checks(&environment);
        if self.fix && fix(&checks, &environment) {
            checks = run_checks(&environment);
        }
        let missing: Vec<&str> =
            checks.iter().filter(|check| check.status == Status::Missing).map(|check| check.name).collect();
        let text = if self.json {
            to_json(&json!({ "ok": missing.is_empty(), "checks": checks })) + "\n"
        } else {
            render(&checks)
        };
        std::io::stdout().lock().write_all(text.as_bytes())?;
        ensure!(missing.is_empty(), "not in order: {}", missing.join(", "));
        Ok(())
    }
}

/// Returns a line for each check: status, name, what was found, remedy.
fn render(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, status, found, remedy } in checks {
        let status = match status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Missing => "missing",
        };
        text += &format!("{status:<7}  {name:<width$}  {}", escaped(found));
        if let Some(remedy) = remedy {
            text += &format!("; remedy: {}", escaped(remedy));
        }
        text.push('\n');
    }
    text
}

/// Fixes what this command can and reports the rest on stderr; returns whether anything was changed.
fn fix(checks: &[Check], environment: &Environment) -> bool {
    let mut changed = false;
    for check in checks.iter().filter(|check| check.status != Status::Ok) {
        if check.name == "wasm targets" {
            eprintln!("rustup target add {}", WASM_TARGETS.join(" "));
            // The output of rustup goes to the log.
            let status = Command::new("rustup")
                .args(["target", "add"])
                .args(WASM_TARGETS)
                .current_dir(&environment.working_folder)
                .stdout(Stdio::from(std::io::stderr()))
                .status();
            match status {
                Ok(status) if status.success() => changed = true,
                Ok(_) => eprintln!("cannot fix wasm targets: rustup's error is above"),
                Err(error) => eprintln!("cannot fix wasm targets: rustup does not run: {error}"),
            }
        } else if let Some(remedy) = &check.remedy {
            eprintln!("cannot fix {} from here: {}", check.name, escaped(remedy));
        }
    }
    let runs = environment.working_folder.join("runs");
    if !runs.exists() && std::fs::create_dir(&runs).is_ok() {
        eprintln!("created {}", shown(&runs));
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_a_line() {
        let check = |name, status, found: &str, remedy: Option<&str>| Check {
            name,
            status,
            found: found.to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let checks = [
            check("libtorch", Status::Ok, "2.11.0, /x/libtorch_cpu.so", None),
            check("ONNX Runtime", Status::Warn, "not found; .onnx plugins cannot run", Some("`make setup`")),
            check("runs", Status::Missing, "/ cannot be written", Some("change to a writable folder")),
        ];
        let wanted = "\
ok       libtorch      2.11.0, /x/libtorch_cpu.so
warn     ONNX Runtime  not found; .onnx plugins cannot run; remedy: `make setup`
missing  runs          / cannot be written; remedy: change to a writable folder
";
        assert_eq!(render(&checks), wanted);
    }
}
