//! Shared by the tests of all crates: the device that they run on, the reference tensors of `tests/reference` and the
//! relative error by which numbers are compared. Its functions panic where something is missing, as a test does.

pub mod registry;
pub mod server;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

/// The environment variable that names the device of the tests: `cpu` (the default), `cuda` or `cuda:N`.
pub const DEVICE_VARIABLE: &str = "AMBIGUITY_TEST_DEVICE";

/// The device that the tests run on, as [`DEVICE_VARIABLE`] names it.
///
/// The tolerances are those of true f32, which convolutions on CUDA have only where TF32 is off.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let name = std::env::var(DEVICE_VARIABLE).unwrap_or_else(|_| "cpu".to_owned());
        let device = torch_ext::cuda::device(&name).unwrap_or_else(|error| panic!("{DEVICE_VARIABLE}: {error}"));
        let tf32_is_off = std::env::var("NVIDIA_TF32_OVERRIDE").is_ok_and(|value| value == "0");
        assert!(device == Device::Cpu || tf32_is_off, "tests on {name} need NVIDIA_TF32_OVERRIDE=0");
        device
    })
}

/// The environment variable that names the workspace's root for tests that run on another machine than they were built
/// on.
pub const ROOT_VARIABLE: &str = "AMBIGUITY_TEST_ROOT";

/// The workspace's root: the folder that [`ROOT_VARIABLE`] names, else the one that the tests were built in.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    let built_in =
        || Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/support is in the workspace");
    ROOT.get_or_init(|| std::env::var_os(ROOT_VARIABLE).map_or_else(|| built_in().to_owned(), PathBuf::from))
}

/// The folder of the shipped model, which contains `clip` and `diffusion`.
pub fn shipped_model() -> PathBuf {
    root().join("models/weights/tiny-art")
}

/// A file or folder of `../shared/reference` beside the workspace, which is optional: a test without it prints that it is
/// skipped, and returns.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared/reference").join(name);
    if !path.exists() {
        eprintln!("skipped: ../shared/reference/{name} does not exist beside the workspace");
    }
    path.exists().then_some(path)
}

/// The path of a file in `tests/reference`.
pub fn reference_path(name: &str) -> PathBuf {
    root().join("tests/reference").join(name)
}

/// A safetensors file of `tests/reference`, written by one of the `make_*.py` beside it.
#[derive(Debug)]
pub struct Reference {
    /// The tensors by name, on [`device`], in the file's own types.
    pub tensors: BTreeMap<String, Tensor>,
    /// The file's string metadata.
    pub metadata: HashMap<String, String>,
    folder: TempDir,
}

impl Reference {
    /// Reads `tests/reference/NAME`. It also lets libtorch run on one thread here: the networks of the tests are too
    /// small to share among threads, and the tests run side by side already.
    pub fn read(name: &str) -> Self {
        tch::set_num_threads(1);
        let path = reference_path(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a reference is a safetensors file");
        let file = SafeTensors::deserialize(&bytes).expect("a reference is a safetensors file");
        let tensors = file.iter().map(|(name, view)| {
            let kind = match view.dtype() {
                Dtype::F16 => Kind::Half,
                Dtype::F32 => Kind::Float,
                Dtype::F64 => Kind::Double,
                Dtype::I64 => Kind::Int64,
                Dtype::U8 => Kind::Uint8,
                other => panic!("the reference `{name}` has type {other:?}"),
            };
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            (name.to_owned(), Tensor::from_data_size(view.data(), &shape, kind).to_device(device()))
        });
        let metadata = header.metadata().clone().unwrap_or_default();
        Self { tensors: tensors.collect(), metadata, folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the reference has no `{name}`"))
    }

    /// The tensors whose names begin with `prefix`, without it.
    pub fn part(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let own = |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.copy()));
        self.tensors.iter().filter_map(own).collect()
    }

    /// The metadata entry `name`, a configuration that the reference implementation wrote, as a file.
    pub fn config(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.json"));
        std::fs::write(&path, &self.metadata[name]).expect("a temporary folder is writable");
        path
    }
}

/// Returns ‖found − wanted‖₂ / ‖wanted‖₂, computed in f64 on the CPU.
pub fn relative_error(found: &Tensor, wanted: &Tensor) -> f64 {
    assert_eq!(found.size(), wanted.size());
    let double = |tensor: &Tensor| tensor.detach().to_device(Device::Cpu).to_kind(Kind::Double);
    let (found, wanted) = (double(found), double(wanted));
    ((found - &wanted).norm() / wanted.norm()).double_value(&[])
}

/// Fails, naming `what`, if the relative error is above `tolerance` or not a number.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, wanted: &Tensor, tolerance: f64) {
    let error = relative_error(found, wanted);
    assert!(error <= tolerance, "{what}: relative error {error:.2e} is above {tolerance:.0e}");
}
