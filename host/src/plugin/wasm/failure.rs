//! Translates wasmtime's errors into faults.

use std::path::Path;

use wasmparser::{Validator, WasmFeatures};
use wasmtime::{Trap, WasmBacktrace};

use super::guest::Guest;
use crate::plugin::confined::is_out_of_memory;
use crate::plugin::error::{Fault, quoted_name};
use crate::plugin::limits::Limits;

/// Maximum number of functions that a message names.
const MAX_FUNCTIONS: usize = 5;

/// Maximum number of stack frames that are looked at for the names of functions.
const MAX_FRAMES: usize = 100;

/// Maximum number of characters of a mangled name that are demangled.
const MAX_MANGLED: usize = 2000;

/// Wasmtime's message for a call that passes more data than allowed; wasmtime has no error type for it.
const HANDOVER: &str = "too much data is being copied between the host and the guest";

/// Prefixes of the names of functions that are not the plugin's own: Rust's runtime, and the interface's glue code.
const MACHINERY: [&str; 7] = ["__rust", "rust_", "core::", "std::", "alloc::", "abort", "ambiguity:plugin/"];

/// The features of WebAssembly that the sandbox's engine has, as it is built and configured here. A component of any of
/// them compiles; the name of a feature that is missing here would be left out of a message.
const FEATURES: WasmFeatures = WasmFeatures::WASM3
    .union(WasmFeatures::COMPONENT_MODEL)
    .difference(WasmFeatures::EXCEPTIONS.union(WasmFeatures::THREADS).union(WasmFeatures::GC_TYPES));

/// Returns the fault of a component that does not compile: the features that it needs and this host does not have, if it
/// is valid with them, and otherwise that it is damaged.
pub(super) fn not_compiled(path: &Path, component: &[u8], message: String) -> Fault {
    let needed = missing_features(component);
    match needed.is_empty() {
        true => Fault::Damaged { path: path.to_owned(), detail: message },
        false => Fault::Features { features: needed.join(" and ") },
    }
}

/// Returns the features without which a component is invalid and which the engine does not have; none if it is invalid
/// with all features too.
fn missing_features(component: &[u8]) -> Vec<String> {
    let all = WasmFeatures::all();
    let valid = |features| Validator::new_with_features(features).validate_all(component).is_ok();
    if !valid(all) {
        return vec![];
    }
    let others = all.difference(FEATURES).iter_names();
    let needed = others.filter(|(_, feature)| !valid(all.difference(*feature)));
    needed.map(|(name, _)| name.to_lowercase().replace('_', " ")).collect()
}

/// Returns the fault of a failed call, given the guest's state after it.
pub(super) fn explain(error: wasmtime::Error, guest: &mut Guest, limits: &Limits, fuel: u64) -> Fault {
    let functions = functions(&error);
    let error = match error.downcast::<Fault>() {
        Ok(Fault::Trap { reason, .. }) => return Fault::Trap { reason, functions },
        Ok(Fault::Timeout { limit_ms, .. }) => return Fault::Timeout { limit_ms, functions },
        Ok(fault) => return fault,
        Err(error) => error,
    };
    let lacking = guest.memory.lacking.take().or_else(|| {
        // Its first memory is reserved before it asks for any.
        Some(error.root_cause().to_string()).filter(|cause| is_out_of_memory(cause))
    });
    if let Some(cause) = lacking {
        return Fault::Sandbox(format!("the machine has no memory left for the plugin ({cause})"));
    }
    // A plugin that gets no memory usually aborts. One that goes on and uses up its fuel or its stack failed for that.
    let own_cause = matches!(error.downcast_ref::<Trap>(), Some(Trap::OutOfFuel | Trap::StackOverflow));
    if let (false, Some(requested)) = (own_cause, guest.memory.denied) {
        return Fault::Memory { requested_mib: requested.div_ceil(1 << 20), limit_mib: limits.memory_mib };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Fault::Fuel { budget: fuel, functions },
        Some(Trap::StackOverflow) => Fault::Stack { functions },
        Some(Trap::MemoryOutOfBounds) => {
            let reason =
                "it accessed memory out of bounds; in Rust, most often by endless recursion or too large local arrays";
            Fault::Trap { reason: reason.to_owned(), functions }
        }
        Some(Trap::UnreachableCodeReached) => match guest.last_error.take() {
            Some(message) => Fault::Panic { message, functions },
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
    let names = names.map(|name| format!("{:#}", rustc_demangle::demangle(beginning(name))));
    let names = names.filter(|name| !is_machinery(name)).map(|name| quoted_name(&name));
    let mut names: Vec<String> = names.take(MAX_FRAMES).collect();
    names.dedup();
    names.truncate(MAX_FUNCTIONS);
    names
}

fn is_machinery(name: &str) -> bool {
    // `<T as core::ops::Fn>::call` and closures of it are recognized by the first name inside the brackets.
    let within = name.trim_start_matches(['<', '&', '(']);
    MACHINERY.iter().any(|prefix| within.starts_with(prefix)) || name.contains("ambiguity_sdk::glue::")
}

/// Returns the beginning of a function's name, which may be as long as its file.
fn beginning(name: &str) -> &str {
    name.char_indices().nth(MAX_MANGLED).map_or(name, |(end, _)| &name[..end])
}

pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machinery_is_separated_from_a_plugins_own_functions() {
        for name in
            ["core::panicking::panic_fmt", "<core::fmt::Arguments>::new", "ambiguity:plugin/classifier@0.2.0#classify"]
        {
            assert!(is_machinery(name), "{name}");
        }
        for name in ["melody::spectrum", "<palette::Palette as ambiguity_sdk::plugin::Classifier>::classify"] {
            assert!(!is_machinery(name), "{name}");
        }
    }
}
