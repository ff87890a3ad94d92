//! From what wasmtime reports to what happened.

use wasmtime::{Trap, WasmBacktrace};

use super::guest::Guest;
use crate::plugin::error::Fault;
use crate::plugin::limits::Limits;

/// How many functions a message names.
const MAX_FUNCTIONS: usize = 5;

/// Functions of Rust's own machinery that say nothing about a plugin.
const MACHINERY: [&str; 9] = [
    "rust_",
    "__rust",
    "core::panicking",
    "core::option::",
    "core::result::",
    "std::panicking",
    "std::sys::",
    "__rustc",
    "abort",
];

/// What a failed call means, given what the guest left behind.
pub(super) fn explain(error: wasmtime::Error, guest: &mut Guest, limits: &Limits, fuel: u64) -> Fault {
    let functions = functions(&error);
    if let Some(wanted) = guest.memory.denied {
        return Fault::Memory { wanted_mib: wanted.div_ceil(1 << 20), limit_mib: limits.memory_mib };
    }
    let error = match error.downcast::<Fault>() {
        Ok(Fault::Trap { reason, .. }) => return Fault::Trap { reason, functions },
        Ok(Fault::Timeout { limit_ms, .. }) => return Fault::Timeout { limit_ms, functions },
        Ok(fault) => return fault,
        Err(error) => error,
    };
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Fault::Fuel { budget: fuel, functions },
        Some(Trap::StackOverflow) => Fault::Stack { functions },
        Some(Trap::MemoryOutOfBounds) => {
            let reason =
                "it used memory outside its own; in Rust, most often endless recursion or too large local arrays";
            Fault::Trap { reason: reason.to_owned(), functions }
        }
        Some(Trap::UnreachableCodeReached) => match guest.last_error.take() {
            Some(message) => Fault::Panic { message, functions },
            None => Fault::Trap { reason: "it aborted without a message".to_owned(), functions },
        },
        Some(trap) => Fault::Trap { reason: trap.to_string(), functions },
        None => Fault::Trap { reason: first_line(&error.root_cause().to_string()), functions },
    }
}

/// The plugin's own functions at the point of failure, innermost first.
fn functions(error: &wasmtime::Error) -> Vec<String> {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else {
        return vec![];
    };
    let names = backtrace.frames().iter().filter_map(|frame| frame.func_name()).map(tidy);
    let mut names: Vec<String> =
        names.filter(|name| !MACHINERY.iter().any(|prefix| name.starts_with(prefix))).collect();
    names.dedup();
    names.truncate(MAX_FUNCTIONS);
    names
}

/// A function's name without the hash that Rust's mangling appends.
fn tidy(name: &str) -> String {
    let name = rustc_hash(name).unwrap_or(name);
    name.to_owned()
}

fn rustc_hash(name: &str) -> Option<&str> {
    let (name, hash) = name.rsplit_once("::h")?;
    (hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(name)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
