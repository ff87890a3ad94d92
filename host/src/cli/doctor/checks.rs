//! The checks of `host doctor`: each returns what it found, its status, and a remedy if one is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use tch::Device;

use crate::memory;

/// The required version of libtorch, without its patch number.
const LIBTORCH: &str = "2.11";
/// Minimum free disk space without a warning: a run's checkpoints and images need it.
const FREE_BYTES: u64 = 2_000_000_000;
/// Minimum memory without a warning: training the small model takes about half of it.
const MEMORY_BYTES: u64 = 4_000_000_000;
/// The targets that plugins are built for.
pub const WASM_TARGETS: [&str; 2] = ["wasm32-unknown-unknown", "wasm32-wasip2"];

/// The status of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Installed and usable.
    Ok,
    /// Usable, but something that some commands need is missing.
    Warn,
    /// Something that the common commands need is missing.
    Missing,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The name of the checked part.
    pub name: &'static str,
    /// The status.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// How to fix it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), remedy: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Missing, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// The folders and variables that are checked.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The folder of shipped models and plugins (see [`crate::zoo::home`]).
    pub home: Option<PathBuf>,
    /// The folder with libtorch/ and onnxruntime/ that `make setup` creates.
    pub deps: Option<PathBuf>,
    /// The working folder.
    pub working_folder: PathBuf,
    /// The libtorch that the environment variable LIBTORCH names.
    pub named_libtorch: Option<PathBuf>,
}

impl Environment {
    /// Returns the environment of this process.
    pub fn of_process() -> std::io::Result<Self> {
        let home = crate::zoo::home::home();
        let deps = crate::zoo::home::dependencies();
        let named_libtorch = std::env::var_os("LIBTORCH").filter(|name| !name.is_empty()).map(PathBuf::from);
        Ok(Self { home, deps, working_folder: std::env::current_dir()?, named_libtorch })
    }
}

/// Runs all checks, in the order of the output. Call it before anything else uses CUDA.
pub fn run_checks(environment: &Environment) -> Vec<Check> {
    let library = torch_ext::library_path().map(|path| path.canonicalize().unwrap_or(path));
    let mut checks = vec![libtorch(&torch_ext::torch_version(), library.as_deref())];
    checks.extend(named_libtorch(environment));
    checks.push(cuda());
    checks.push(onnx_runtime(environment.deps.as_deref()));
    checks.push(weights(environment.home.as_deref()));
    checks.push(plugins(environment.home.as_deref()));
    checks.push(wasm_targets(&installed_targets(&environment.working_folder)));
    checks.push(processor());
    checks.push(memory(memory::total(), memory::available(Device::Cpu)));
    checks.push(runs_folder(&environment.working_folder));
    checks.push(disk_space("disk", &environment.working_folder));
    checks.extend(environment.deps.as_deref().map(|deps| disk_space("disk of .deps", deps)));
    checks
}

fn libtorch(version: &str, path: Option<&Path>) -> Check {
    let name = "libtorch";
    let place = path.map_or_else(|| "an unknown file".to_owned(), |path| path.display().to_string());
    let found = format!("{version}, {place}");
    if version.starts_with(&format!("{LIBTORCH}.")) {
        return Check::ok(name, found);
    }
    let remedy = format!("this program needs {LIBTORCH}: unset LD_LIBRARY_PATH, or run `make setup build`");
    Check::missing(name, found, remedy)
}

/// Checks the libtorch that LIBTORCH or the link .deps/libtorch names, by the version in its files.
fn named_libtorch(environment: &Environment) -> Option<Check> {
    let link = environment.deps.as_ref().map(|deps| deps.join("libtorch")).filter(|folder| folder.is_symlink());
    let (by, folder) = match (&environment.named_libtorch, link) {
        (Some(folder), _) => ("LIBTORCH names", folder.clone()),
        (None, Some(link)) => (".deps/libtorch names", std::fs::read_link(&link).unwrap_or(link)),
        (None, None) => return None,
    };
    let name = "named libtorch";
    let remedy = format!("name a libtorch {LIBTORCH}, or none and run `make setup`");
    Some(match version_in(&folder) {
        Some(version) if version.starts_with(&format!("{LIBTORCH}.")) => {
            Check::ok(name, format!("{by} {}, {version}", folder.display()))
        }
        Some(version) => Check::missing(
            name,
            format!("{by} {}, which is {version}, but {LIBTORCH} is needed", folder.display()),
            remedy,
        ),
        None => Check::missing(name, format!("{by} {}, which contains no libtorch", folder.display()), remedy),
    })
}

/// Returns the version of the libtorch in a folder: from `build-version` (libtorch archives), `version.py` (Python),
/// or a header.
fn version_in(folder: &Path) -> Option<String> {
    let line = |file: &str, start: &str| {
        let text = std::fs::read_to_string(folder.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(start).map(|rest| rest.trim().to_owned()))
    };
    if let Some(version) = line("build-version", "") {
        return Some(version);
    }
    if let Some(version) = line("version.py", "__version__ = ") {
        return Some(version.trim_matches(['\'', '"']).to_owned());
    }
    let part = |part: &str| line("include/torch/headeronly/version.h", &format!("#define TORCH_VERSION_{part} "));
    Some(format!("{}.{}.{}", part("MAJOR")?, part("MINOR")?, part("PATCH")?))
}

fn cuda() -> Check {
    let name = "CUDA";
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok().and_then(|text| driver_version(&text));
    let Some(driver) = driver else {
        return Check::ok(name, "no NVIDIA driver here; everything runs on the CPU");
    };
    match torch_ext::cuda::device("cuda") {
        Ok(_) => {
            let count = tch::Cuda::device_count();
            let plural = if count == 1 { "device" } else { "devices" };
            Check::ok(name, format!("{count} {plural}, driver {driver}"))
        }
        Err(error) => Check::warn(name, format!("driver {driver}, but {error}"), "`make setup-cuda` to use the GPU"),
    }
}

/// Returns the number in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  …`.
fn driver_version(text: &str) -> Option<String> {
    let words = text.lines().next()?.split_whitespace();
    let number = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    words.into_iter().find(number).map(str::to_owned)
}

fn onnx_runtime(deps: Option<&Path>) -> Check {
    let name = "ONNX Runtime";
    let folder = deps.map(|deps| deps.join("onnxruntime/lib"));
    let library = folder.and_then(|folder| {
        let names = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        names.max_by_key(|path| path.file_name().map(|name| (name.len(), name.to_owned())))
    });
    match library {
        Some(library) => {
            let file = library.file_name().unwrap_or_default().to_string_lossy();
            let version = file.split_once(".so.").map_or("of an unknown version", |(_, version)| version);
            let for_gpu = deps.is_some_and(|deps| deps.join("onnxruntime-cuda/lib").is_dir());
            let also = if for_gpu { "; another one for GPUs" } else { "" };
            Check::ok(name, format!("{version}, {}{also}", library.display()))
        }
        None => Check::warn(name, "not found; .onnx plugins cannot run", "`make setup`"),
    }
}

fn weights(home: Option<&Path>) -> Check {
    let name = "shipped weights";
    let Some(home) = home else {
        let remedy = "set AMBIGUITY_HOME to the folder that has models/weights, or `git checkout models/weights`";
        return Check::missing(name, "no folder above the executable has models/weights", remedy);
    };
    let folder = home.join("models/weights/tiny-art");
    let files = safetensors_below(&folder);
    let bytes: u64 = files.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    if files.is_empty() {
        let remedy = "`git checkout models/weights`, or set AMBIGUITY_HOME to the folder that has models/weights";
        return Check::missing(name, format!("{} has no .safetensors files", folder.display()), remedy);
    }
    if let Some(empty) = files.iter().find(|file| file.metadata().is_ok_and(|metadata| metadata.len() < 1024)) {
        let found = format!("{} is too small to contain weights", empty.display());
        return Check::missing(name, found, "`git checkout models/weights`");
    }
    Check::ok(name, format!("tiny-art, {} files, {:.1} MB, {}", files.len(), bytes as f64 / 1e6, folder.display()))
}

fn safetensors_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(safetensors_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn plugins(home: Option<&Path>) -> Check {
    let name = "shipped plugins";
    let folder = home.map(|home| home.join("plugins"));
    let mut names: Vec<String> = folder
        .iter()
        .flat_map(std::fs::read_dir)
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "wasm"))
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    match (names.is_empty(), folder) {
        (false, _) => Check::ok(name, names.join(", ")),
        (true, Some(folder)) => Check::missing(name, format!("none in {}", folder.display()), "`git checkout plugins`"),
        (true, None) => Check::missing(name, "not found", "set AMBIGUITY_HOME to the folder that has plugins"),
    }
}

/// Returns the wasm targets that Rust has installed; an error if Rust is missing.
fn installed_targets(folder: &Path) -> Result<Vec<&'static str>, String> {
    let mut installed = Vec::new();
    for target in WASM_TARGETS {
        let answer =
            Command::new("rustc").args(["--print", "target-libdir", "--target", target]).current_dir(folder).output();
        let answer = answer.map_err(|error| error.to_string())?;
        if Path::new(String::from_utf8_lossy(&answer.stdout).trim()).is_dir() {
            installed.push(target);
        }
    }
    Ok(installed)
}

fn wasm_targets(installed: &Result<Vec<&'static str>, String>) -> Check {
    let name = "wasm targets";
    let Ok(installed) = installed else {
        let remedy = "rustup from https://rustup.rs, only to write plugins in Rust";
        return Check::warn(name, "rustc is not on PATH", remedy);
    };
    let missing: Vec<_> = WASM_TARGETS.into_iter().filter(|target| !installed.contains(target)).collect();
    if missing.is_empty() {
        return Check::ok(name, installed.join(", "));
    }
    let remedy = "`host doctor --fix`, or `rustup target add` it; only to write plugins in Rust";
    Check::warn(name, format!("{} not installed", missing.join(" and ")), remedy)
}

fn processor() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Check::ok("processor", format!("{cores} {}", if cores == 1 { "core" } else { "cores" }))
}

fn memory(total: Option<u64>, available: Option<u64>) -> Check {
    let name = "memory";
    let (Some(total), Some(available)) = (total, available) else {
        return Check::ok(name, "unknown");
    };
    let found = format!("{} of {} available", gigabytes(available), gigabytes(total));
    if available < MEMORY_BYTES {
        return Check::warn(name, found, "close other programs, or lower sample.micro_batch if training is killed");
    }
    Check::ok(name, found)
}

fn runs_folder(working_folder: &Path) -> Check {
    let name = "runs";
    let runs = working_folder.join("runs");
    let (folder, found) = if runs.is_dir() {
        (runs.as_path(), format!("{} can be written", runs.display()))
    } else {
        (working_folder, format!("{} can be created", runs.display()))
    };
    match tempfile::NamedTempFile::new_in(folder) {
        Ok(_) => Check::ok(name, found),
        Err(error) => {
            let remedy = "change to a writable folder, or use `--out DIR`";
            Check::missing(name, format!("{} cannot be written: {}", folder.display(), error.kind()), remedy)
        }
    }
}

fn disk_space(name: &'static str, folder: &Path) -> Check {
    match rustix::fs::statvfs(folder) {
        Ok(disk) => free_space(name, folder, disk.f_bavail.saturating_mul(disk.f_frsize)),
        Err(error) => Check::warn(name, format!("{}: {error}", folder.display()), "check it manually"),
    }
}

fn free_space(name: &'static str, folder: &Path, free: u64) -> Check {
    let found = format!("{} free at {}", gigabytes(free), folder.display());
    if free < FREE_BYTES {
        return Check::warn(name, found, "free some space: a run needs 2 GB");
    }
    Check::ok(name, found)
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn write(root: &Path, file: &str, bytes: &[u8]) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn another_libtorch_version_is_reported() {
        assert_eq!(libtorch("2.11.0", Some(Path::new("/l/libtorch_cpu.so"))).status, Status::Ok);
        let check = libtorch("2.1.10", None);
        assert_eq!(check.status, Status::Missing);
        assert!(check.remedy.unwrap().contains("2.11"));
    }

    #[test]
    fn a_named_libtorch_has_its_version_in_one_of_three_files() {
        let root = folder();
        let environment = |named: &str| Environment {
            home: None,
            deps: None,
            working_folder: root.path().to_owned(),
            named_libtorch: Some(root.path().join(named)),
        };
        write(root.path(), "archive/build-version", b"2.11.0+cpu\n");
        write(root.path(), "python/version.py", b"from typing import Optional\n__version__ = '2.9.1+cu130'\n");
        let header = b"#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 0\n";
        write(root.path(), "plain/include/torch/headeronly/version.h", header);
        let found = |named: &str| {
            let check = named_libtorch(&environment(named)).unwrap();
            (check.status, check.found.replace(&root.path().display().to_string(), "ROOT"))
        };
        assert_eq!(found("archive"), (Status::Ok, "LIBTORCH names ROOT/archive, 2.11.0+cpu".to_owned()));
        assert_eq!(found("plain"), (Status::Ok, "LIBTORCH names ROOT/plain, 2.11.0".to_owned()));
        let wrong = "LIBTORCH names ROOT/python, which is 2.9.1+cu130, but 2.11 is needed";
        assert_eq!(found("python"), (Status::Missing, wrong.to_owned()));
        assert_eq!(found("nowhere").0, Status::Missing);
    }

    #[test]
    fn a_link_in_deps_names_a_libtorch_too() {
        let root = folder();
        write(root.path(), "named/build-version", b"2.5.0\n");
        std::fs::create_dir(root.path().join(".deps")).unwrap();
        std::os::unix::fs::symlink(root.path().join("named"), root.path().join(".deps/libtorch")).unwrap();
        let environment = Environment {
            home: None,
            deps: Some(root.path().join(".deps")),
            working_folder: root.path().to_owned(),
            named_libtorch: None,
        };
        let check = named_libtorch(&environment).unwrap();
        assert_eq!(check.status, Status::Missing);
        assert!(check.found.starts_with(".deps/libtorch names /") && check.found.contains("2.5.0"), "{}", check.found);
    }

    #[test]
    fn weights_and_plugins_are_in_the_home_folder() {
        let root = folder();
        assert_eq!(weights(None).status, Status::Missing);
        assert_eq!(weights(Some(root.path())).status, Status::Missing);
        assert_eq!(plugins(None).status, Status::Missing);
        assert_eq!(plugins(Some(root.path())).status, Status::Missing);
        write(root.path(), "models/weights/tiny-art/clip/model.safetensors", &[0; 1_500_000]);
        write(root.path(), "models/weights/tiny-art/diffusion/unet/diffusion_pytorch_model.safetensors", &[0; 500_000]);
        write(root.path(), "plugins/palette.wasm", b"");
        write(root.path(), "plugins/kmeans_image.wasm", b"");
        write(root.path(), "plugins/kmeans/Cargo.toml", b"");
        let check = weights(Some(root.path()));
        assert_eq!(check.status, Status::Ok);
        assert!(check.found.starts_with("tiny-art, 2 files, 2.0 MB"), "{}", check.found);
        assert_eq!(plugins(Some(root.path())).found, "kmeans_image, palette");
        write(root.path(), "models/weights/tiny-art/clip/model.safetensors", b"version https://git-lfs");
        assert!(weights(Some(root.path())).found.contains("too small"));
    }

    #[test]
    fn onnx_runtime_has_its_version_in_its_file_name() {
        let root = folder();
        assert_eq!(onnx_runtime(Some(root.path())).status, Status::Warn);
        assert_eq!(onnx_runtime(None).status, Status::Warn);
        write(root.path(), "onnxruntime/lib/libonnxruntime.so", b"");
        write(root.path(), "onnxruntime/lib/libonnxruntime.so.1.32.0", b"");
        assert!(onnx_runtime(Some(root.path())).found.starts_with("1.32.0, "));
    }

    #[test]
    fn little_space_and_little_memory_are_warnings() {
        assert_eq!(free_space("disk", Path::new("/"), 1_999_999_999).status, Status::Warn);
        assert_eq!(free_space("disk", Path::new("/"), 2_000_000_000).status, Status::Ok);
        assert_eq!(disk_space("disk", Path::new("/no such folder")).status, Status::Warn);
        let memory_of = |available| memory(Some(16_400_000_000), Some(available));
        assert_eq!(memory_of(8_200_000_000).found, "8.2 GB of 16.4 GB available");
        assert_eq!((memory_of(4_000_000_000).status, memory_of(3_999_999_999).status), (Status::Ok, Status::Warn));
        assert_eq!(memory(None, None).status, Status::Ok);
    }

    #[test]
    fn missing_wasm_targets_are_named() {
        assert_eq!(wasm_targets(&Ok(WASM_TARGETS.to_vec())).status, Status::Ok);
        let check = wasm_targets(&Ok(vec!["wasm32-wasip2"]));
        assert_eq!((check.status, check.found.as_str()), (Status::Warn, "wasm32-unknown-unknown not installed"));
        assert_eq!(wasm_targets(&Err("no such file".to_owned())).status, Status::Warn);
    }

    #[test]
    fn the_drivers_version_is_read_from_its_first_line() {
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\nGCC version: 12.2.0\n";
        assert_eq!(driver_version(text).as_deref(), Some("580.65.06"));
        assert_eq!(driver_version(""), None);
    }

    #[test]
    fn a_writable_folder_can_contain_runs() {
        let root = folder();
        assert!(runs_folder(root.path()).found.ends_with("runs can be created"));
        std::fs::create_dir(root.path().join("runs")).unwrap();
        assert!(runs_folder(root.path()).found.ends_with("runs can be written"));
        assert_eq!(runs_folder(Path::new("/proc")).status, Status::Missing);
        assert_eq!(std::fs::read_dir(root.path().join("runs")).unwrap().count(), 0);
    }
}
