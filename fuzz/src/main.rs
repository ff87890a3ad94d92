//! Throws damaged files at everything that reads a plugin before it is trusted: `make fuzz`.
//!
//! A mutational fuzzer on stable Rust. Well-formed files are damaged again and again; an input whose answer is of a kind
//! not seen before joins the files to damage, so that it gets past one check after the other. A panic, a broken promise
//! or a second without an answer ends it, and the input is kept.

mod mutate;
mod targets;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use crate::mutate::{Random, mutate};
use crate::targets::{TARGETS, Target};

/// Throw damaged files at everything that reads a plugin.
#[derive(Parser, Debug)]
#[command(after_help = "Examples:
  fuzz --seconds 600
  fuzz --target onnx --seed 7
  fuzz --target onnx --input fuzz/crashes/onnx-1234")]
struct Args {
    /// component, manifest, onnx or output; all of them one after the other if not given
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// How long each target is run
    #[arg(long, value_name = "N", default_value_t = 600)]
    seconds: u64,
    /// The same seed makes the same damage
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Run one input, as it is
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
}

/// An answer must come within this.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often an input may be slow before it counts.
const TRIES: usize = 3;

/// Files to damage, and kinds of answer, at most; then no more join.
const MAX_FILES: usize = 4096;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("fuzz/ lies in the workspace")?;
    let chosen: Vec<&Target> =
        TARGETS.iter().filter(|target| args.target.as_ref().is_none_or(|name| name == target.name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        bail!("there is no such target: choose one of {}", names.join(", "));
    }
    if let Some(input) = &args.input {
        let bytes = std::fs::read(input).with_context(|| input.display().to_string())?;
        println!("{}", (chosen[0].run)(&bytes));
        return Ok(());
    }
    for target in chosen {
        fuzz(target, root, args)?;
    }
    Ok(())
}

fn fuzz(target: &Target, root: &Path, args: &Args) -> Result<()> {
    let mut files = (target.seeds)(root)?;
    let mut random = Random::new(args.seed);
    let mut kinds: HashMap<String, u64> = HashMap::new();
    for file in &files {
        *kinds.entry(attempt(target, root, file)?).or_default() += 1;
    }
    let started = Instant::now();
    let mut executions = files.len() as u64;
    while started.elapsed().as_secs() < args.seconds {
        let mut bytes = random.pick(&files).clone();
        mutate(&mut bytes, &files, target.words, &mut random);
        let kind = attempt(target, root, &bytes)?;
        executions += 1;
        if kinds.len() < MAX_FILES || kinds.contains_key(&kind) {
            let seen = kinds.entry(kind).or_default();
            *seen += 1;
            if *seen <= 2 && files.len() < MAX_FILES {
                files.push(bytes);
            }
        }
    }
    println!(
        "{}: {executions} executions in {} s, {} kinds of answer, no fault ({})",
        target.name,
        args.seconds,
        kinds.len(),
        target.reads
    );
    Ok(())
}

/// Runs one input; an error says where it is kept. Slow is what is slow each time: a busy machine takes breaks.
fn attempt(target: &Target, root: &Path, bytes: &[u8]) -> Result<String> {
    let mut fault = "was slow";
    for _ in 0..TRIES {
        let started = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))) {
            Ok(kind) if started.elapsed() <= PATIENCE => return Ok(kind),
            Ok(_) => {}
            Err(_) => {
                fault = "panicked";
                break;
            }
        }
    }
    let folder = root.join("fuzz/crashes");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{}-{:016x}", target.name, fnv(bytes)));
    std::fs::write(&file, bytes)?;
    bail!("{} {fault}; try `fuzz --target {0} --input {}`", target.name, file.display())
}

/// FNV-1a, for a name.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
