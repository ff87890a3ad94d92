//! Compiles plugins in a process of its own, whose memory and time are limited: what the counts of `budget` let pass by
//! mistake ends there, and so does Ctrl-C.

use std::io::{Read as _, Seek as _, Write as _};
use std::time::{Duration, Instant};

use wasmtime::Engine;
use wasmtime::component::Component;

use super::failure::first_line;
use super::{Nans, engine};
use crate::plugin::confined::{Launcher, limit_resources};
use crate::plugin::error::Fault;
use crate::plugin::limits::{COMPILE_DEADLINE, COMPILE_MIB, LOAD_LIMIT, Limits};

/// What the process does, for messages.
const WORK: &str = "compiles it";

/// What the output begins with: compiled code, or the message of an error, follows.
const CODE: u8 = 0;
const MESSAGE: u8 = 1;

/// Time between two looks at the process.
const PERIOD: Duration = Duration::from_millis(2);

/// Why there is no compiled component.
pub(super) enum Failure {
    /// The compiler refuses it, with this message.
    Refused(String),
    /// It was not compiled to the end.
    Fault(Fault),
}

/// Compiles a component: in a process that `launcher` starts, otherwise in this one.
pub(super) fn compile(
    launcher: Option<&Launcher>,
    engine: &Engine,
    nans: Nans,
    component: &[u8],
) -> Result<Component, Failure> {
    let refused = |error: wasmtime::Error| Failure::Refused(message(&error));
    let Some(launcher) = launcher else {
        return Component::from_binary(engine, component).map_err(refused);
    };
    let kind = match nans {
        Nans::AsComputed => "compiler",
        Nans::Canonical => "canonical-compiler",
    };
    let code = run(launcher, kind, component, COMPILE_DEADLINE)?;
    // SAFETY: the code is what `Engine::precompile_component` of this very program returned.
    unsafe { Component::deserialize(engine, code) }.map_err(refused)
}

/// Runs the compiler's process; returns the compiled code.
fn run(launcher: &Launcher, kind: &str, component: &[u8], deadline: Duration) -> Result<Vec<u8>, Failure> {
    let io = |error: std::io::Error| {
        Failure::Fault(Fault::Sandbox(format!("exchanging files with the process that {WORK}: {error}")))
    };
    // Files instead of pipes: nobody waits for the other to read.
    let (mut input, mut output) = (tempfile::tempfile().map_err(io)?, tempfile::tempfile().map_err(io)?);
    input.write_all(component).and_then(|()| input.rewind()).map_err(io)?;
    let mut worker = launcher.start(kind, input, output.try_clone().map_err(io)?).map_err(Failure::Fault)?;
    let started = Instant::now();
    let status = loop {
        match worker.process.try_wait().map_err(io)? {
            Some(status) => break status,
            None if launcher.interrupt.requested() => return Err(Failure::Fault(Fault::Interrupted)),
            None if started.elapsed() >= deadline => {
                let what = format!("it was not compiled within {} s", deadline.as_secs());
                return Err(Failure::Fault(Fault::Unusable(what)));
            }
            None => std::thread::sleep(PERIOD),
        }
    };
    let mut answer = vec![];
    output.rewind().and_then(|()| output.read_to_end(&mut answer)).map_err(io)?;
    match (status.success(), answer.first().copied()) {
        (true, Some(CODE)) => Ok(answer.split_off(1)),
        (true, Some(MESSAGE)) => Err(Failure::Refused(String::from_utf8_lossy(&answer[1..]).into_owned())),
        _ => Err(Failure::Fault(worker.fault(WORK, COMPILE_MIB))),
    }
}

/// Compiles the component on stdin to stdout within limits of memory and time: the other side of [`compile`].
///
/// # Errors
/// If stdin cannot be read, or stdout not be written. A component that is refused is an answer.
pub(in crate::plugin) fn serve(limits: &Limits, nans: Nans, threads: usize) -> std::io::Result<()> {
    // The deadline is the other process's; these are seconds of computing.
    limit_resources(threads, COMPILE_MIB, Some(LOAD_LIMIT.as_secs()))?;
    let mut component = vec![];
    std::io::stdin().lock().read_to_end(&mut component)?;
    let (kind, answer) = match engine(limits, nans).and_then(|engine| engine.precompile_component(&component)) {
        Ok(code) => (CODE, code),
        Err(error) => (MESSAGE, message(&error).into_bytes()),
    };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&[kind])?;
    stdout.write_all(&answer)?;
    stdout.flush()
}

fn message(error: &wasmtime::Error) -> String {
    first_line(&error.root_cause().to_string())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::interrupt::Interrupt;
    use crate::plugin::confined::tests::script;

    fn compiled(body: &str, deadline: Duration, interrupt: &Interrupt) -> Result<Vec<u8>, String> {
        run(&script(body, interrupt), "compiler", b"component", deadline).map_err(|failure| match failure {
            Failure::Refused(message) => format!("refused: {message}"),
            Failure::Fault(fault) => fault.to_string(),
        })
    }

    #[test]
    fn the_answer_of_the_process_is_its_code_or_its_message() {
        let answer = |body| compiled(body, Duration::from_secs(60), &Interrupt::default());
        let code = answer("printf '\\0'; cat; echo \" $*\"");
        assert_eq!(code, Ok(b"component compiler --threads 1\n".to_vec()));
        assert_eq!(answer("printf '\\1no such type'"), Err("refused: no such type".to_owned()));
        for cut in ["exit 0", "printf '\\0code'; exit 1"] {
            assert!(answer(cut).expect_err(cut).starts_with("the sandbox failed: the process that compiles it failed"));
        }
    }

    #[test]
    fn a_late_process_is_killed_and_so_is_an_interrupted_one() {
        let started = Instant::now();
        let late = compiled("exec sleep 600", Duration::from_millis(50), &Interrupt::default());
        assert!(late.expect_err("it sleeps").ends_with("it was not compiled within 0 s"));
        let interrupt = Interrupt::default();
        interrupt.request();
        let ended = compiled("exec sleep 600", Duration::from_secs(600), &interrupt);
        assert_eq!(ended.expect_err("it sleeps"), "interrupted while it was loaded");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
