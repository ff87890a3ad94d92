//! Translates wasmtime's errors into faults.

use wasmtime::{Trap, WasmBacktrace};

use super::guest::Guest;
use crate::plugin::error::Fault;
use crate::plugin::limits::Limits;

/// Maximum number of functions that a message names.
const MAX_FUNCTIONS: usize = 5;

/// Wasmtime's message for a call that passes more data than allowed; wasmtime has no error type for it.
const HANDOVER: &str = "too much data is being copied between the host and the guest";

/// Prefixes of the names of functions that are not the plugin's own: Rust's runtime, and the interface's glue code.
const MACHINERY: [&str; 7] = ["__rust", "rust_", "core::", "std::", "alloc::", "abort", "ambiguity:plugin/"];

/// Returns the fault of a failed call, given the guest's state after it.
pub(super) fn explain(error: wasmtime::Error, guest: &mut Guest, limits: &Limits, fuel: u64) -> Fault {
    let functions = functions(&error);
    if let Some(requested) = guest.memory.denied {
        return Fault::Memory { requested_mib: requested.div_ceil(1 << 20), limit_mib: limits.memory_mib };
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
                "it accessed memory out of bounds; in Rust, most often by endless recursion or too large local arrays";
            Fault::Trap { reason: reason.to_owned(), functions }
        }
        Some(Trap::UnreachableCodeReached) => match guest.last_error.take() {
            Some(message) => Fault::Panic { message: one_line(&message), functions },
            None => Fault::Trap { reason: "it aborted without a message".to_owned(), functions },
        },
        Some(trap) => Fault::Trap { reason: trap.to_string(), functions },
        None if error.root_cause().to_string().contains(HANDOVER) => Fault::Handover { limit_mib: limits.output_mib },
        None => Fault::Trap { reason: first_line(&error.root_cause().to_string()), functions },
    }
}

/// Returns the plugin's own functions at the point of failure, innermost first.
fn functions(error: &wasmtime::Error) -> Vec<String> {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else {
        return vec![];
    };
    // The alternate form leaves out the hash that Rust's mangling appends.
    let names = backtrace.frames().iter().filter_map(|frame| frame.func_name());
    let names = names.map(|name| format!("{:#}", rustc_demangle::demangle(name)));
    let mut names: Vec<String> = names.filter(|name| !is_machinery(name)).collect();
    names.dedup();
    names.truncate(MAX_FUNCTIONS);
    names
}

fn is_machinery(name: &str) -> bool {
    // `<T as core::ops::Fn>::call` and closures of it are recognized by the first name inside the brackets.
    let within = name.trim_start_matches(['<', '&', '(']);
    MACHINERY.iter().any(|prefix| within.starts_with(prefix)) || name.contains("ambiguity_sdk::glue::")
}

/// Joins the lines of a panic's message.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machinery_is_separated_from_a_plugins_own_functions() {
        for name in
            ["core::panicking::panic_fmt", "<core::fmt::Arguments>::new", "ambiguity:plugin/classifier@0.1.0#classify"]
        {
            assert!(is_machinery(name), "{name}");
        }
        for name in ["kmeans::baked", "<palette::Palette as ambiguity_sdk::classifier::Classifier>::classify"] {
            assert!(!is_machinery(name), "{name}");
        }
        assert_eq!(one_line("panicked at src/lib.rs:1:2:\nno\n  left: 1"), "panicked at src/lib.rs:1:2: no left: 1");
    }
}
