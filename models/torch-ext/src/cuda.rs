//! CUDA at run time: one binary, which needs no CUDA library until a CUDA device is requested.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use tch::Device;

use crate::error::{Error, Result};
use crate::{ffi, library_path};

const NAME: &str = "libtorch_cuda.so";

/// Loads libtorch's CUDA libraries once. It must come before the first `tch::Cuda` call of the process, since libtorch
/// checks for CUDA only once and caches the result; if in doubt, call this function first.
///
/// After an error the CPU still works.
pub fn load() -> Result<()> {
    // A cache of the dynamic linker's answer, which is also global.
    static LOADED: OnceLock<Result<()>> = OnceLock::new();
    LOADED.get_or_init(open).clone()
}

fn open() -> Result<()> {
    // The file beside the running libtorch_cpu comes first, since both must be of the same build.
    let beside = library_path().and_then(|path| Some(path.parent()?.join(NAME))).filter(|path| path.is_file());
    let path = beside.unwrap_or_else(|| PathBuf::from(NAME));
    // SAFETY: the initializers of libtorch_cuda register its operators and are meant to run at any time.
    match unsafe { Library::open(Some(&path), RTLD_LAZY | RTLD_GLOBAL) } {
        Ok(library) => {
            // It registered functions with libtorch_cpu, so it stays loaded until the process ends.
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(explain(&path, &error)),
    }
}

fn explain(path: &Path, error: &libloading::Error) -> Error {
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Error::new(format!(
        "CUDA is not available: {} does not load ({cause}); `make setup-cuda` brings libtorch's CUDA libraries, or set \
         LD_LIBRARY_PATH to the torch/lib folder of a Python torch 2.11 with CUDA 13",
        path.display()
    ))
}

/// Parses a device: `cpu`, `cuda` (the first one) or `cuda:N`. CUDA is loaded if the device needs
/// it, and the device must exist.
pub fn device(spec: &str) -> Result<Device> {
    let index = match spec.split_once(':') {
        None if spec == "cpu" => return Ok(Device::Cpu),
        None if spec == "cuda" => 0,
        Some(("cuda", index)) => index.parse::<usize>().map_err(|_| unknown(spec))?,
        _ => return Err(unknown(spec)),
    };
    load()?;
    let count = tch::Cuda::device_count();
    if count <= 0 {
        return Err(Error::new(format!(
            "device {spec}: CUDA is loaded but sees no GPU: is the NVIDIA driver (580 or newer) installed, and does \
             `nvidia-smi` list a GPU?"
        )));
    }
    if index >= usize::try_from(count).unwrap_or(0) {
        return Err(Error::new(format!(
            "device {spec} does not exist: the highest of the {count} is cuda:{}",
            count - 1
        )));
    }
    Ok(Device::Cuda(index))
}

/// Returns free and total memory of a CUDA device in bytes, from the CUDA runtime that libtorch uses. It makes the
/// device the current one.
pub fn memory(index: usize) -> Result<(u64, u64)> {
    load()?;
    type SetDevice = unsafe extern "C" fn(i32) -> i32;
    type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> i32;
    let missing = |error: libloading::Error| Error::new(format!("cannot query the GPU's memory: {error}"));
    // SAFETY: libtorch_cuda is loaded, and with it the runtime, whose functions have had these types since CUDA 3.
    unsafe {
        let library = Library::this();
        let set_device = library.get::<SetDevice>(b"cudaSetDevice\0").map_err(missing)?;
        let mem_get_info = library.get::<MemGetInfo>(b"cudaMemGetInfo\0").map_err(missing)?;
        let (mut free, mut total) = (0, 0);
        let code = match set_device(i32::try_from(index).unwrap_or(-1)) {
            0 => mem_get_info(&mut free, &mut total),
            code => code,
        };
        if code != 0 {
            return Err(Error::new(format!("cannot query the GPU's memory (CUDA error {code})")));
        }
        Ok((free as u64, total as u64))
    }
}

/// Returns the address of a CUDA device on its machine's PCI bus, such as `0000:3b:00.0`.
pub fn bus_address(index: usize) -> Result<String> {
    load()?;
    type BusId = unsafe extern "C" fn(*mut c_char, i32, i32) -> i32;
    let missing = |error: libloading::Error| Error::new(format!("cannot query the GPU's address: {error}"));
    let mut text = [0u8; 32];
    // SAFETY: libtorch_cuda is loaded, and with it the runtime, whose function has had this type since CUDA 4. It writes at most
    // as many bytes as it is told, with a NUL.
    let code = unsafe {
        let library = Library::this();
        let bus_id = library.get::<BusId>(b"cudaDeviceGetPCIBusId\0").map_err(missing)?;
        bus_id(text.as_mut_ptr().cast(), text.len() as i32, i32::try_from(index).unwrap_or(-1))
    };
    match CStr::from_bytes_until_nul(&text) {
        Ok(text) if code == 0 => Ok(text.to_string_lossy().into_owned()),
        _ => Err(Error::new(format!("cannot query the GPU's address (CUDA error {code})"))),
    }
}

/// Returns the largest number of bytes that libtorch has reserved on a CUDA device so far, for tensors and for reuse.
pub fn peak_memory(index: usize) -> Result<u64> {
    load()?;
    let index = i8::try_from(index).map_err(|_| Error::new(format!("there is no CUDA device {index}")))?;
    let mut bytes = 0;
    // SAFETY: `bytes` lives through the call.
    unsafe { ffi::check(ffi::ext_cuda_peak(index, &mut bytes))? };
    Ok(bytes)
}

/// Waits until a device has done all that was launched on it; on the CPU that is always so.
pub fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// How NVIDIA's libraries compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numerics {
    /// Products and convolutions of f32 round their inputs to TF32, 10 bits of mantissa, which tensor cores take.
    pub tf32: bool,
    /// cuDNN tries all its algorithms at the first call with new shapes and keeps the fastest.
    pub cudnn_benchmark: bool,
    /// Every operation computes the same bits on each run, or is an error if it cannot.
    pub deterministic: bool,
}

impl Numerics {
    /// Returns the setting of the process.
    pub fn current() -> Result<Self> {
        let [mut tf32, mut cudnn_benchmark, mut deterministic] = [false; 3];
        // SAFETY: the three live through the call.
        unsafe { ffi::check(ffi::ext_numerics(&mut tf32, &mut cudnn_benchmark, &mut deterministic))? };
        Ok(Self { tf32, cudnn_benchmark, deterministic })
    }

    /// Makes this the setting of the process. It is to be called before the first operation on a GPU.
    pub fn set(self) -> Result<()> {
        // SAFETY: it takes no pointers. With `deterministic` it sets an environment variable, once, early.
        unsafe { ffi::check(ffi::ext_set_numerics(self.tf32, self.cudnn_benchmark, self.deterministic)) }
    }
}

fn unknown(spec: &str) -> Error {
    Error::new(format!("unknown device `{spec}`: it is cpu, cuda or cuda:N"))
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn the_cpu_needs_nothing_and_nonsense_is_refused() {
        assert_eq!(device("cpu").unwrap(), Device::Cpu);
        for bad in ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "mps"] {
            let text = device(bad).unwrap_err().to_string();
            assert_eq!(text, format!("unknown device `{bad}`: it is cpu, cuda or cuda:N"));
        }
    }

    #[test]
    fn the_setting_of_the_process_is_the_one_that_was_set() {
        let before = Numerics::current().unwrap();
        for bits in [0b001, 0b010, 0b100, 0b111, 0b000] {
            let [tf32, cudnn_benchmark, deterministic] = [1, 2, 4].map(|bit| bits & bit > 0);
            let wanted = Numerics { tf32, cudnn_benchmark, deterministic };
            wanted.set().unwrap();
            assert_eq!(Numerics::current().unwrap(), wanted);
        }
        before.set().unwrap();
    }

    /// Passes with and without a GPU: either there is a device, or the error states what to do and the CPU still works.
    #[test]
    fn cuda_is_there_or_says_why_not() {
        match device("cuda") {
            Ok(found) => {
                assert_eq!(found, Device::Cuda(0));
                assert_eq!((Tensor::ones([2], (Kind::Float, found)) * 2.0).sum(Kind::Float).double_value(&[]), 4.0);
                assert!(device("cuda:4096").unwrap_err().to_string().contains("does not exist"));
                let (free, total) = memory(0).unwrap();
                assert!(0 < free && free <= total);
                synchronize(found);
                assert!(bus_address(0).unwrap().contains(':') && bus_address(4096).is_err());
                assert!(0 < peak_memory(0).unwrap() && peak_memory(0).unwrap() <= total);
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("make setup-cuda") || text.contains("nvidia-smi"), "{text}");
                assert!(!text.contains('\n'), "{text}");
                assert_eq!(load().err(), load().err());
                assert!(memory(0).is_err() && peak_memory(0).is_err() && bus_address(0).is_err());
            }
        }
        assert_eq!(Tensor::ones([2], (Kind::Float, Device::Cpu)).sum(Kind::Float).double_value(&[]), 2.0);
    }
}
