//! What `host doctor` looks at: each check says what it found, whether that will do, and the remedy where it won't.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

/// The libtorch this binary is written for, without its patch number.
const LIBTORCH: &str = "2.11";
/// Less free disk space than this is a warning: an epoch's checkpoints and images fill it.
const FREE_BYTES: u64 = 2_000_000_000;
/// Less memory than this is a warning: the small model trains in about half of it.
const MEMORY_BYTES: u64 = 4_000_000_000;
/// What plugins are built for.
pub const WASM_TARGETS: [&str; 2] = ["wasm32-unknown-unknown", "wasm32-wasip2"];

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There and usable.
    Ok,
    /// Works, but something that some commands need is not there.
    Warn,
    /// Something is missing that the common commands need.
    Missing,
}

/// One line of the doctor's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it went.
    pub status: Status,
    /// What is there.
    pub found: String,
    /// What to do about it.
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

/// Where the doctor looks.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The folder of what ships (see [`crate::home`]).
    pub home: Option<PathBuf>,
    /// The folder with libtorch/ and onnxruntime/, as `make setup` makes it.
    pub deps: Option<PathBuf>,
    /// The folder the user is in.
    pub working_folder: PathBuf,
    /// The libtorch that the environment variable LIBTORCH names.
    pub named_libtorch: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> std::io::Result<Self> {
        let home = crate::zoo::home::home();
        let deps = crate::zoo::home::dependencies();
        let named_libtorch = std::env::var_os("LIBTORCH").filter(|name| !name.is_empty()).map(PathBuf::from);
        Ok(Self { home, deps, working_folder: std::env::current_dir()?, named_libtorch })
    }
}

/// All checks, in the order they are shown. Call it before anything else asks for CUDA.
pub fn examine(around: &Surroundings) -> Vec<Check> {
    let library = torch_ext::library_path().map(|path| path.canonicalize().unwrap_or(path));
    let mut checks = vec![libtorch(&torch_ext::torch_version(), library.as_deref())];
    checks.extend(named_libtorch(around));
    checks.push(cuda());
    checks.push(onnx_runtime(around.deps.as_deref()));
    checks.push(weights(around.home.as_deref()));
    checks.push(plugins(around.home.as_deref()));
    checks.push(wasm_targets(&installed_targets(&around.working_folder)));
    checks.push(processor());
    checks.push(memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()));
    checks.push(runs_folder(&around.working_folder));
    checks.push(disk_space("disk", &around.working_folder));
    checks.extend(around.deps.as_deref().map(|deps| disk_space("disk of .deps", deps)));
    checks
}

fn libtorch(version: &str, path: Option<&Path>) -> Check {
    let name = "libtorch";
    let place = path.map_or_else(|| "an unknown file".to_owned(), |path| path.display().to_string());
    let found = format!("{version}, {place}");
    if version.starts_with(&format!("{LIBTORCH}.")) {
        return Check::ok(name, found);
    }
    let remedy = format!("this program is written for {LIBTORCH}: unset LD_LIBRARY_PATH, or run `make setup build`");
    Check::missing(name, found, remedy)
}

/// The libtorch that LIBTORCH or the link .deps/libtorch names, by the version its own files tell.
fn named_libtorch(around: &Surroundings) -> Option<Check> {
    let link = around.deps.as_ref().map(|deps| deps.join("libtorch")).filter(|folder| folder.is_symlink());
    let (by, folder) = match (&around.named_libtorch, link) {
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
            format!("{by} {}, which is {version} where {LIBTORCH} is needed", folder.display()),
            remedy,
        ),
        None => Check::missing(name, format!("{by} {}, which holds no libtorch", folder.display()), remedy),
    })
}

/// The version of the libtorch in a folder: `build-version` (libtorch archives), `version.py` (Python), else a header.
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

/// The number in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  …`.
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
            Check::ok(name, format!("{version}, {}", library.display()))
        }
        None => Check::warn(name, "not found; .onnx plugins cannot be run", "`make setup`"),
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
        let found = format!("{} is too short to hold weights", empty.display());
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

/// The wasm targets that Rust has; an error where there is no Rust.
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

fn memory(meminfo: &str) -> Check {
    let name = "memory";
    let bytes = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let (Some(total), Some(available)) = (bytes("MemTotal:"), bytes("MemAvailable:")) else {
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
        (working_folder, format!("{} can be made", runs.display()))
    };
    match tempfile::NamedTempFile::new_in(folder) {
        Ok(_) => Check::ok(name, found),
        Err(error) => {
            let remedy = "go to a folder of your own, or give `--out DIR`";
            Check::missing(name, format!("{} cannot be written: {}", folder.display(), error.kind()), remedy)
        }
    }
}

fn disk_space(name: &'static str, folder: &Path) -> Check {
    match rustix::fs::statvfs(folder) {
        Ok(disk) => free_space(name, folder, disk.f_bavail.saturating_mul(disk.f_frsize)),
        Err(error) => Check::warn(name, format!("{}: {error}", folder.display()), "look at it by hand"),
    }
}

fn free_space(name: &'static str, folder: &Path, free: u64) -> Check {
    let found = format!("{} free at {}", gigabytes(free), folder.display());
    if free < FREE_BYTES {
        return Check::warn(name, found, "make room: a run wants 2 GB");
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
    fn another_libtorch_than_ours_is_said() {
        assert_eq!(libtorch("2.11.0", Some(Path::new("/l/libtorch_cpu.so"))).status, Status::Ok);
        let check = libtorch("2.1.10", None);
        assert_eq!(check.status, Status::Missing);
        assert!(check.remedy.unwrap().contains("2.11"));
    }

    #[test]
    fn a_named_libtorch_tells_its_version_in_three_ways() {
        let root = folder();
        let around = |named: &str| Surroundings {
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
            let check = named_libtorch(&around(named)).unwrap();
            (check.status, check.found.replace(&root.path().display().to_string(), "ROOT"))
        };
        assert_eq!(found("archive"), (Status::Ok, "LIBTORCH names ROOT/archive, 2.11.0+cpu".to_owned()));
        assert_eq!(found("plain"), (Status::Ok, "LIBTORCH names ROOT/plain, 2.11.0".to_owned()));
        let wrong = "LIBTORCH names ROOT/python, which is 2.9.1+cu130 where 2.11 is needed";
        assert_eq!(found("python"), (Status::Missing, wrong.to_owned()));
        assert_eq!(found("nowhere").0, Status::Missing);
    }

    #[test]
    fn a_link_in_deps_names_a_libtorch_too() {
        let root = folder();
        write(root.path(), "named/build-version", b"2.5.0\n");
        std::fs::create_dir(root.path().join(".deps")).unwrap();
        std::os::unix::fs::symlink(root.path().join("named"), root.path().join(".deps/libtorch")).unwrap();
        let around = Surroundings {
            home: None,
            deps: Some(root.path().join(".deps")),
            working_folder: root.path().to_owned(),
            named_libtorch: None,
        };
        let check = named_libtorch(&around).unwrap();
        assert_eq!(check.status, Status::Missing);
        assert!(check.found.starts_with(".deps/libtorch names /") && check.found.contains("2.5.0"), "{}", check.found);
    }

    #[test]
    fn weights_and_plugins_are_looked_for_in_the_home_folder() {
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
        assert!(weights(Some(root.path())).found.contains("too short"));
    }

    #[test]
    fn onnx_runtime_is_known_by_its_file_name() {
        let root = folder();
        assert_eq!(onnx_runtime(Some(root.path())).status, Status::Warn);
        assert_eq!(onnx_runtime(None).status, Status::Warn);
        write(root.path(), "onnxruntime/lib/libonnxruntime.so", b"");
        write(root.path(), "onnxruntime/lib/libonnxruntime.so.1.32.0", b"");
        assert!(onnx_runtime(Some(root.path())).found.starts_with("1.32.0, "));
    }

    #[test]
    fn little_room_and_little_memory_are_warnings() {
        assert_eq!(free_space("disk", Path::new("/"), 1_999_999_999).status, Status::Warn);
        assert_eq!(free_space("disk", Path::new("/"), 2_000_000_000).status, Status::Ok);
        assert_eq!(disk_space("disk", Path::new("/no such folder")).status, Status::Warn);
        let meminfo = |kib: u64| format!("MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   {kib} kB\n");
        assert_eq!(memory(&meminfo(8_000_000)).found, "8.2 GB of 16.4 GB available");
        assert_eq!(memory(&meminfo(1_000_000)).status, Status::Warn);
        assert_eq!(memory("").status, Status::Ok);
    }

    #[test]
    fn targets_missing_from_rust_are_named() {
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
    fn a_folder_of_ones_own_can_hold_runs() {
        let root = folder();
        assert!(runs_folder(root.path()).found.ends_with("runs can be made"));
        std::fs::create_dir(root.path().join("runs")).unwrap();
        assert!(runs_folder(root.path()).found.ends_with("runs can be written"));
        assert_eq!(runs_folder(Path::new("/proc")).status, Status::Missing);
        assert_eq!(std::fs::read_dir(root.path().join("runs")).unwrap().count(), 0);
    }
}
