//! Coverage-guided fuzzing of everything that reads untrusted files: `make fuzz`.
//!
//! A [`Target`] is a function of bytes. libFuzzer calls it with inputs that it mutates from the target's seeds, and keeps
//! those that reach new code; the tests call it with the seeds alone. A panic, a broken invariant, a call of more than
//! ten seconds and a single allocation of more than [`MAX_ALLOCATION`] bytes are faults.
//!
//! # Layout
//! - `plugins`: components, manifests, ONNX files, the output of plugins
//! - `models`: weights, configurations, adapters, tokenizers
//! - `torch_files`: weights in PyTorch's files
//! - `folders`: model folders with odd values in their configurations
//! - `media`: images and recordings
//! - `runs`: a run's metrics and the report drawn from them
//! - `sharing`: what a registry sends: manifests, references, signatures

mod allocator;
mod folders;
mod media;
mod models;
mod plugins;
mod runs;
mod sharing;
mod torch_files;

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

pub use allocator::MAX_ALLOCATION;

/// A reader of untrusted files.
pub struct Target {
    /// Name of its program, its corpus and its dictionary.
    pub name: &'static str,
    /// Returns well-formed inputs to start from, generated or read below the workspace's folder.
    pub seeds: fn(&Path) -> Result<Vec<Vec<u8>>>,
    /// Reads one input, for which it may write files into a folder of its own; returns whether the input is well-formed.
    pub run: fn(&Path, &[u8]) -> bool,
}

/// All targets.
pub const TARGETS: [Target; 16] = [
    Target { name: "adapter_config", seeds: models::adapter_configs, run: models::adapter_config },
    Target { name: "audio", seeds: media::recordings, run: media::audio },
    Target { name: "component", seeds: plugins::components, run: plugins::component },
    Target { name: "config", seeds: models::configs, run: models::config },
    Target { name: "image", seeds: media::images, run: media::image },
    Target { name: "lora", seeds: models::adapters, run: models::lora },
    Target { name: "manifest", seeds: plugins::manifests, run: plugins::manifest },
    Target { name: "metrics", seeds: runs::metrics_files, run: runs::metrics },
    Target { name: "model", seeds: folders::changes, run: folders::model },
    Target { name: "onnx", seeds: plugins::models, run: plugins::onnx },
    Target { name: "output", seeds: plugins::outputs, run: plugins::output },
    Target { name: "registry", seeds: sharing::documents, run: sharing::document },
    Target { name: "report", seeds: runs::metrics_files, run: runs::report },
    Target { name: "safetensors", seeds: models::weights, run: models::safetensors },
    Target { name: "tokenizer", seeds: models::tokenizers, run: models::tokenizer },
    Target { name: "torch_file", seeds: torch_files::archives, run: torch_files::archive },
];

static STARTED: OnceLock<(&'static Target, TempDir)> = OnceLock::new();

/// Selects the target that [`run`] calls, and writes its seeds into its corpus, which libFuzzer reads next.
///
/// # Panics
/// If the target is unknown or a folder cannot be written.
pub fn start(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("the program is named after a target");
    STARTED.get_or_init(|| {
        write_seeds(target).expect("the corpus is writable");
        (target, tempfile::tempdir().expect("the folder for temporary files is writable"))
    });
}

/// Calls the selected target.
///
/// # Panics
/// If [`start`] was not called before, or the target found a fault.
pub fn run(bytes: &[u8]) {
    let (target, folder) = STARTED.get().expect("a target is selected");
    (target.run)(folder.path(), bytes);
}

fn write_seeds(target: &Target) -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    std::fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
    for (i, seed) in (target.seeds)(root())?.iter().enumerate() {
        std::fs::write(corpus.join(format!("seed-{i:02}")), seed)?;
    }
    Ok(())
}

/// The workspace's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("fuzz/ lies in the workspace")
}

/// Returns the files with this extension in a folder, sorted by name.
fn files(folder: &Path, extension: &str) -> Result<Vec<Vec<u8>>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.iter().map(|path| std::fs::read(path).with_context(|| path.display().to_string())).collect()
}

/// Writes a file into a target's folder.
fn put(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).expect("the folder for temporary files is writable");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This also shows that the seeds are valid, so that the fuzzer starts behind the first checks.
    #[test]
    fn every_target_reads_its_seeds() {
        for target in &TARGETS {
            let folder = tempfile::tempdir().expect("a folder");
            let seeds = (target.seeds)(root()).expect("seeds");
            let read = seeds.iter().filter(|seed| (target.run)(folder.path(), seed)).count();
            assert!(read > 0, "{}: none of {} seeds is well-formed", target.name, seeds.len());
            assert!(!(target.run)(folder.path(), b"\x01 not a file of any kind\n"), "{} accepts anything", target.name);
        }
    }

    #[test]
    fn every_target_has_a_program_and_every_dictionary_a_target() {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("readable");
        let manifest: toml::Table = toml::from_str(&manifest).expect("TOML");
        let programs = manifest["bin"].as_array().expect("programs").iter();
        let programs: Vec<&str> = programs.map(|program| program["name"].as_str().expect("a name")).collect();
        assert_eq!(programs, names);
        for name in &names {
            let program = std::fs::read_to_string(folder.join(format!("fuzz_targets/{name}.rs"))).expect("readable");
            assert!(program.contains(&format!("start(\"{name}\")")), "{program}");
        }
        for entry in std::fs::read_dir(folder.join("dictionaries")).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_str().expect("ASCII");
            assert!(names.contains(&name), "{name} is not a target");
        }
    }
}
