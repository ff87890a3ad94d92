//! The target `torch_file` of `ambiguity_fuzz` as a program of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(init: ambiguity_fuzz::start("torch_file"), |bytes: &[u8]| ambiguity_fuzz::run(bytes));
