//! `host doctor`: what is there, what is missing, and what to do about it.

mod checks;

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use self::checks::{Check, Status, Surroundings, WASM_TARGETS, examine};
use crate::context::Context;

/// Say what is there and what is missing, and how to mend it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host doctor
  host doctor --fix
  host doctor --json

Exits with 1 when something is missing that the common commands need; a warning alone is no failure.")]
pub struct DoctorArgs {
    /// Mend what can be mended here: add Rust's wasm targets, make the folder runs/
    #[arg(long)]
    fix: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl DoctorArgs {
    /// Runs the command.
    pub fn run(self, _context: &Context) -> Result<()> {
        let around = Surroundings::of_process()?;
        let mut checks = examine(&around);
        if self.fix && fix(&checks, &around) {
            checks = examine(&around);
        }
        let missing: Vec<&str> =
            checks.iter().filter(|check| check.status == Status::Missing).map(|check| check.name).collect();
        let text = if self.json {
            format!("{:#}\n", json!({ "ok": missing.is_empty(), "checks": checks }))
        } else {
            render(&checks)
        };
        std::io::stdout().lock().write_all(text.as_bytes())?;
        ensure!(missing.is_empty(), "not in order: {}", missing.join(", "));
        Ok(())
    }
}

/// A line for each check: status, name, what was found, the remedy.
fn render(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, status, found, remedy } in checks {
        let status = match status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Missing => "missing",
        };
        text += &format!("{status:<7}  {name:<width$}  {found}");
        if let Some(remedy) = remedy {
            text += &format!("; remedy: {remedy}");
        }
        text.push('\n');
    }
    text
}

/// Mends what this command can and says on stderr what it cannot; whether anything was changed.
fn fix(checks: &[Check], around: &Surroundings) -> bool {
    let mut changed = false;
    for check in checks.iter().filter(|check| check.status != Status::Ok) {
        if check.name == "wasm targets" {
            eprintln!("rustup target add {}", WASM_TARGETS.join(" "));
            // What rustup prints belongs to the log.
            let status = Command::new("rustup")
                .args(["target", "add"])
                .args(WASM_TARGETS)
                .current_dir(&around.working_folder)
                .stdout(Stdio::from(std::io::stderr()))
                .status();
            match status {
                Ok(status) if status.success() => changed = true,
                Ok(_) => eprintln!("cannot mend wasm targets: rustup says why above"),
                Err(error) => eprintln!("cannot mend wasm targets: rustup does not run: {error}"),
            }
        } else if let Some(remedy) = &check.remedy {
            eprintln!("cannot mend {} from here: {remedy}", check.name);
        }
    }
    let runs = around.working_folder.join("runs");
    if !runs.exists() && std::fs::create_dir(&runs).is_ok() {
        eprintln!("made {}", runs.display());
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_each() {
        let check = |name, status, found: &str, remedy: Option<&str>| Check {
            name,
            status,
            found: found.to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let checks = [
            check("libtorch", Status::Ok, "2.11.0, /x/libtorch_cpu.so", None),
            check("ONNX Runtime", Status::Warn, "not found; .onnx plugins cannot be run", Some("`make setup`")),
            check("runs", Status::Missing, "/ cannot be written", Some("go to a folder of your own")),
        ];
        let wanted = "\
ok       libtorch      2.11.0, /x/libtorch_cpu.so
warn     ONNX Runtime  not found; .onnx plugins cannot be run; remedy: `make setup`
missing  runs          / cannot be written; remedy: go to a folder of your own
";
        assert_eq!(render(&checks), wanted);
    }
}
