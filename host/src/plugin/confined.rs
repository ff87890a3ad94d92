//! Processes of the binary itself that work for it within limits of memory and time, and end at Ctrl-C, whatever a compiler
//! or ONNX Runtime makes of a hostile file.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::error::{Fault, quoted};
use crate::context::Context;
use crate::interrupt::Interrupt;

/// Address space that a thread reserves and that is not used: its stack, and an arena of malloc.
const PER_THREAD: u64 = 80 << 20;

/// What a process writes whose memory ran out, in Rust and in C++.
const NO_MEMORY: [&str; 4] =
    ["memory allocation of", "bad_alloc", "Failed to allocate memory", "Cannot allocate memory"];

/// Whether a message says that memory ran out.
pub(super) fn is_out_of_memory(message: &str) -> bool {
    NO_MEMORY.iter().any(|text| message.contains(text))
}

/// Starts processes.
#[derive(Clone, Debug)]
pub(super) struct Launcher {
    program: PathBuf,
    /// Its first arguments; the kind of work and the number of threads follow.
    arguments: Vec<String>,
    threads: usize,
    pub(super) interrupt: Interrupt,
}

impl Launcher {
    /// Returns what starts processes of this binary; None if this process is another program, which uses the library.
    pub(super) fn of(context: &Context) -> Option<Self> {
        let program = context.program.clone()?;
        let arguments = vec!["plugin".to_owned(), "serve".to_owned()];
        Some(Self { program, arguments, threads: context.threads, interrupt: context.interrupt.clone() })
    }

    /// Starts `host plugin serve KIND`.
    pub(super) fn start(&self, kind: &str, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Result<Worker, Fault> {
        let failed =
            |error: std::io::Error| Fault::Sandbox(format!("cannot start {}: {error}", self.program.display()));
        let errors = tempfile::tempfile().map_err(failed)?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args([kind, "--threads", &self.threads.to_string()]);
        command.stdin(stdin).stdout(stdout).stderr(errors.try_clone().map_err(failed)?);
        // Ctrl-C of a terminal reaches this process alone, which ends the other one.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Worker { process: command.spawn().map_err(failed)?, errors })
    }
}

/// A process that works for this one; it is killed when this is dropped.
pub(super) struct Worker {
    pub(super) process: Child,
    /// What it writes to stderr.
    errors: File,
}

impl Worker {
    /// Returns the fault of a process that ended without an answer; `work` is what it did, as in "compiles it".
    pub(super) fn fault(&mut self, work: &str, limit_mib: usize) -> Fault {
        let mut errors = vec![];
        // What cannot be read is not shown; a process that has not ended yet is of no use.
        drop(self.errors.rewind().and_then(|()| self.errors.read_to_end(&mut errors)));
        drop(self.process.kill());
        match self.process.wait() {
            Ok(status) => fault(status, &String::from_utf8_lossy(&errors), work, limit_mib),
            Err(error) => Fault::Sandbox(format!("waiting for the process that {work}: {error}")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn fault(status: ExitStatus, errors: &str, work: &str, limit_mib: usize) -> Fault {
    if is_out_of_memory(errors) {
        return Fault::Unusable(format!("the process that {work} needs more than {limit_mib} MiB"));
    }
    #[cfg(unix)]
    match std::os::unix::process::ExitStatusExt::signal(&status) {
        Some(libc::SIGXCPU) => {
            return Fault::Unusable(format!("the process that {work} computed for too long"));
        }
        Some(libc::SIGKILL) => {
            return Fault::Sandbox(format!(
                "the system killed the process that {work}, most often because the machine is out of memory; try again \
                 when more of it is free"
            ));
        }
        _ => {}
    }
    let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed nothing");
    Fault::Sandbox(format!("the process that {work} failed ({status}): {}", quoted(last)))
}

/// Limits the address space that this process may still map, and the seconds that each of its threads computes, if given.
///
/// # Errors
/// If the system refuses the limits.
#[cfg(target_os = "linux")]
pub(super) fn limit_resources(threads: usize, memory_mib: usize, seconds: Option<u64>) -> std::io::Result<()> {
    let threads = threads.max(1) as u64;
    let mapped = crate::memory::mapped().unwrap_or(0);
    let limit = |resource, value: u64| {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: the pointer is to a value on the stack that lives during the call.
        match unsafe { libc::setrlimit(resource, &limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    limit(libc::RLIMIT_AS, mapped + ((memory_mib as u64) << 20) + threads * PER_THREAD)?;
    if let Some(seconds) = seconds {
        limit(libc::RLIMIT_CPU, seconds * threads)?;
    }
    limit(libc::RLIMIT_CORE, 0)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn limit_resources(_: usize, _: usize, _: Option<u64>) -> std::io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
pub(super) mod tests {
    use super::*;

    /// Returns what starts a shell script instead of the binary.
    pub(in crate::plugin) fn script(body: &str, interrupt: &Interrupt) -> Launcher {
        let arguments = ["-c", body, "host"].map(str::to_owned).to_vec();
        Launcher { program: "/bin/sh".into(), arguments, threads: 1, interrupt: interrupt.clone() }
    }

    #[test]
    fn a_process_that_ends_without_an_answer_is_named_for_its_cause() {
        let fault = |body: &str| {
            let launcher = script(body, &Interrupt::default());
            let mut worker = launcher.start("tests", Stdio::null(), Stdio::null()).expect("it starts");
            // As after an answer that is missing.
            drop(worker.process.wait());
            worker.fault("tests it", 7).to_string()
        };
        let memory = "the process that tests it needs more than 7 MiB";
        assert!(fault("echo 'memory allocation of 9 bytes failed' >&2; kill -ABRT $$").ends_with(memory));
        assert!(fault("kill -XCPU $$").ends_with("the process that tests it computed for too long"));
        // The machine's memory is not the plugin's fault.
        let killed = fault("kill -KILL $$");
        assert!(killed.starts_with("the sandbox failed: ") && killed.contains("the machine is out of memory"));
        let other = fault("printf 'first\\nno libtorch\\n' >&2; exit 127");
        assert!(other.starts_with("the sandbox failed: ") && other.ends_with(": no libtorch"), "{other}");
        assert!(fault("exit 0").ends_with("it printed nothing"));
    }
}
