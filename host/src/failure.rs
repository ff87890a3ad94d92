//! Panics as errors, and failures of libtorch and of the standard output in words.
//!
//! tch's operations panic where libtorch throws, and memory can run out in any of them. So panics are caught where
//! something is to be kept or printed, and not at each operation: around a part of a training and around a command.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

use anyhow::{Result, anyhow};

/// What makes a command need less memory.
const LOWER: &str = "lower sample.micro_batch and train.micro_batch (can.batch_size for a CAN, --micro-batch for `host \
                     sample` and `host eval`), or use train.gradient_checkpointing = true or model.dtype = \"bf16\"";
/// Where the stack frames begin in libtorch's message of an error.
const FRAMES: [&str; 2] = ["\nException raised from ", "\nframe #0: "];
/// Where libtorch's message begins in the text of a panic of tch, which quotes it.
const TCH_ERROR: &str = "Torch(\"";

/// Where the cause begins in the text of a panic of `println!`.
const PRINT_ERROR: &str = "failed printing to stdout: ";

/// The standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to the standard output: {cause}")]
pub struct StdoutError {
    cause: String,
}

impl StdoutError {
    /// Whether the reader has closed it, as `head` does after its lines, which is no failure of the command.
    pub fn is_closed(&self) -> bool {
        self.cause.starts_with("Broken pipe")
    }
}

/// Runs `f`, and returns a panic as an error.
///
/// # Errors
/// Those of `f`, and its panic's message; of a panic of tch the first line of libtorch's message, and of `println!` a
/// [`StdoutError`].
pub fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    // The state that a panic leaves half changed is dropped by the callers, or saved only as it was before.
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
        let text = text_of(&*payload).unwrap_or("a panic without a message");
        if let Some(cause) = text.strip_prefix(PRINT_ERROR) {
            let cause = cause.split(" (os error").next().unwrap_or_default().to_owned();
            return Err(StdoutError { cause }.into());
        }
        Err(anyhow!(libtorchs(text).unwrap_or_else(|| text.to_owned())))
    })
}

/// From now on panics of tch and `println!` are printed only to the debug log: the error that [`caught`] returns says what
/// failed.
pub fn quiet_expected_panics() {
    let hook = take_hook();
    let is_expected = |text: &str| libtorchs(text).is_some() || text.starts_with(PRINT_ERROR);
    set_hook(Box::new(move |info| match text_of(info.payload()).filter(|text| is_expected(text)) {
        Some(_) => tracing::debug!("{info}"),
        None => hook(info),
    }));
}

/// Returns a message as a user reads it: memory that ran out as a sentence, another failure of libtorch as its first line
/// (hints for C++ programmers and stack frames follow it), and any other message as it is.
pub fn in_words(message: &str) -> String {
    let has_frames = FRAMES.iter().any(|frames| message.contains(frames));
    let first_line = || if has_frames { message.lines().next().unwrap_or_default() } else { message };
    out_of_memory(message).unwrap_or_else(|| first_line().to_owned())
}

fn text_of(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied())
}

/// Returns the first line of libtorch's message if a panic's text is of tch.
fn libtorchs(panic: &str) -> Option<String> {
    let (_, quoted) = panic.split_once(TCH_ERROR)?;
    // Rust's Debug escapes quotes and line breaks.
    let text = quoted.strip_suffix("\")").unwrap_or(quoted).replace("\\n", "\n").replace("\\\"", "\"");
    Some(format!("libtorch: {}", text.lines().next().unwrap_or_default()))
}

/// Returns a sentence if a message of libtorch says that memory ran out.
fn out_of_memory(message: &str) -> Option<String> {
    let on_gpu = ["CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"];
    let on_cpu =
        ["DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "std::bad_alloc"];
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    if says(&on_gpu) {
        let asked = between(message, "Tried to allocate ", ". ").map(|size| format!(": {size} more were needed"));
        let free = between(message, " of which ", " is free").zip(between(message, "total capacity of ", " of which"));
        let free = free.map(|(free, total)| format!(", {free} of {total} are free"));
        return Some(format!("out of GPU memory{}{}; {LOWER}", asked.unwrap_or_default(), free.unwrap_or_default()));
    }
    if says(&on_cpu) {
        let bytes = between(message, "you tried to allocate ", " bytes").and_then(|bytes| bytes.parse::<u64>().ok());
        let gibibytes = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let asked = bytes.map(|bytes| format!(": {:.2} GiB more were needed", gibibytes(bytes)));
        return Some(format!("out of memory{}; {LOWER}", asked.unwrap_or_default()));
    }
    None
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    Some(text.split_once(before)?.1.split_once(after)?.0)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::text::sentence;

    #[test]
    fn gpu_memory_that_ran_out_is_a_sentence_with_numbers() {
        let message = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which \
                       3.21 GiB is free. Including non-PyTorch memory, this process has 75.90 GiB memory in use.\n\
                       Exception raised from malloc at ../c10/cuda/CUDACachingAllocator.cpp:1";
        let words = format!("out of GPU memory: 20.00 GiB more were needed, 3.21 GiB of 79.11 GiB are free; {LOWER}");
        assert_eq!(in_words(message), words);
        assert!(words.contains("sample.micro_batch") && words.contains("train.micro_batch"));
        assert!(words.contains("gradient_checkpointing") && words.contains("bf16"));
    }

    #[test]
    fn libtorchs_other_messages_of_the_same_are_known() {
        let cuda = "CUDA error: out of memory\nCUDA kernel errors might be reported later";
        let cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`";
        for message in [cuda, cublas] {
            assert_eq!(in_words(message), format!("out of GPU memory; {LOWER}"));
        }
        let linux = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried \
                     to allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)\nframe #0: f";
        let other = "DefaultCPUAllocator: not enough memory: you tried to allocate 3221225472 bytes.";
        for message in [linux, other] {
            assert_eq!(in_words(message), format!("out of memory: 3.00 GiB more were needed; {LOWER}"));
        }
        assert_eq!(in_words("libtorch: std::bad_alloc"), format!("out of memory; {LOWER}"));
    }

    #[test]
    fn another_failure_of_libtorch_is_its_first_line_and_other_messages_stay() {
        for frames in ["Exception raised from add at x.cpp:1:\nframe #0: f", "frame #0: f"] {
            let message = format!("CUDA error: an assert\nFor debugging, do that\n{frames}");
            assert_eq!(in_words(&message), "CUDA error: an assert");
        }
        let toml = "unknown key\n  |\n1 | key = 1\n  | ^^^";
        assert_eq!(in_words(toml), toml);
    }

    #[test]
    fn a_panic_for_lack_of_memory_is_the_sentence() {
        // 4 PiB: more than any process can address.
        let error = caught(|| Ok(Tensor::zeros([1 << 50], (Kind::Float, Device::Cpu)))).expect_err("it is too large");
        assert_eq!(sentence(&error), format!("out of memory: 4194304.00 GiB more were needed; {LOWER}"));
    }

    #[test]
    fn another_panic_of_tch_is_libtorchs_first_line() {
        let (a, b) = (Tensor::from_slice(&[1.0, 2.0]), Tensor::from_slice(&[1.0, 2.0, 3.0]));
        let error = caught(|| Ok(a.dot(&b))).expect_err("the lengths differ");
        let text = sentence(&error);
        assert!(text.starts_with("libtorch: ") && text.contains("size"), "{text}");
        assert!(!text.contains('\n') && !text.contains("frame #"), "{text}");
    }

    #[test]
    fn any_other_panic_is_its_message() {
        let error = caught::<()>(|| panic!("{} on purpose", "broken")).expect_err("it panicked");
        assert_eq!(error.to_string(), "broken on purpose");
        let error = caught::<()>(|| panic!("on purpose")).expect_err("it panicked");
        assert_eq!(error.to_string(), "on purpose");
    }
}
