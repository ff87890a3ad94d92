//! NVIDIA's management library, which its driver brings, loaded at run time: the name, the memory and the energy of a GPU.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Arc;

use libloading::Library;

/// The library's name, as the driver installs it.
const NAME: &str = "libnvidia-ml.so.1";
/// Number of bytes for a GPU's name, those of NVML's own constant.
const NAME_BYTES: usize = 96;

/// A GPU. The library stays loaded as long as a GPU is in use.
#[derive(Clone, Debug)]
pub struct Gpu {
    library: Arc<Library>,
    /// NVML's handle, an address that only NVML reads.
    handle: usize,
}

type Handle = *mut c_void;

/// `nvmlMemory_t`, in bytes.
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

impl Gpu {
    /// Returns the GPU that CUDA calls by this index; none without NVIDIA's driver. Among different GPUs, the numbers of CUDA and
    /// NVML agree with `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    pub fn of_cuda(index: usize) -> Option<Self> {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let name = physical(index, visible.as_deref())?;
        // SAFETY: the initializers of NVML may run at any time.
        let library = Arc::new(unsafe { Library::new(NAME) }.ok()?);
        // SAFETY: the functions have had these types since NVML's version 2 of them (2013).
        unsafe {
            let init = library.get::<unsafe extern "C" fn() -> i32>(b"nvmlInit_v2\0").ok()?;
            checked(init())?;
            let mut handle: Handle = std::ptr::null_mut();
            match name.parse::<u32>() {
                Ok(number) => {
                    type ByIndex = unsafe extern "C" fn(u32, *mut Handle) -> i32;
                    checked(library.get::<ByIndex>(b"nvmlDeviceGetHandleByIndex_v2\0").ok()?(number, &mut handle))?;
                }
                Err(_) => {
                    type ByUuid = unsafe extern "C" fn(*const c_char, *mut Handle) -> i32;
                    let name = CString::new(name).ok()?;
                    let by_uuid = library.get::<ByUuid>(b"nvmlDeviceGetHandleByUUID\0").ok()?;
                    checked(by_uuid(name.as_ptr(), &mut handle))?;
                }
            }
            Some(Self { library: Arc::clone(&library), handle: handle as usize })
        }
    }

    /// Returns the GPU's name, such as `NVIDIA H200`.
    pub fn name(&self) -> Option<String> {
        type Name = unsafe extern "C" fn(Handle, *mut c_char, u32) -> i32;
        let mut name = [0 as c_char; NAME_BYTES];
        // SAFETY: NVML writes at most as many bytes as its last argument says, with a NUL at the end.
        unsafe {
            let read = self.library.get::<Name>(b"nvmlDeviceGetName\0").ok()?;
            checked(read(self.handle as Handle, name.as_mut_ptr(), NAME_BYTES as u32))?;
            Some(CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned())
        }
    }

    /// Returns the bytes of the GPU's memory.
    pub fn memory(&self) -> Option<u64> {
        type Info = unsafe extern "C" fn(Handle, *mut Memory) -> i32;
        let mut memory = Memory::default();
        // SAFETY: NVML fills the structure that it is given, which is its `nvmlMemory_t`.
        unsafe {
            let read = self.library.get::<Info>(b"nvmlDeviceGetMemoryInfo\0").ok()?;
            checked(read(self.handle as Handle, &mut memory))?;
        }
        Some(memory.total)
    }

    /// Returns the joules that the GPU has used since its driver was loaded; none for GPUs before Volta.
    pub fn joules(&self) -> Option<f64> {
        type Energy = unsafe extern "C" fn(Handle, *mut u64) -> i32;
        let mut millijoules = 0;
        // SAFETY: NVML writes one number.
        unsafe {
            let read = self.library.get::<Energy>(b"nvmlDeviceGetTotalEnergyConsumption\0").ok()?;
            checked(read(self.handle as Handle, &mut millijoules))?;
        }
        Some(millijoules as f64 / 1e3)
    }

    /// Returns the watts that the GPU uses now.
    pub fn watts(&self) -> Option<f64> {
        type Power = unsafe extern "C" fn(Handle, *mut u32) -> i32;
        let mut milliwatts = 0;
        // SAFETY: NVML writes one number.
        unsafe {
            let read = self.library.get::<Power>(b"nvmlDeviceGetPowerUsage\0").ok()?;
            checked(read(self.handle as Handle, &mut milliwatts))?;
        }
        Some(f64::from(milliwatts) / 1e3)
    }
}

/// NVML's success is 0.
fn checked(code: i32) -> Option<()> {
    (code == 0).then_some(())
}

/// Returns what NVML calls the GPU that CUDA calls by `index`, where CUDA_VISIBLE_DEVICES is `visible`: a number or a UUID.
fn physical(index: usize, visible: Option<&str>) -> Option<String> {
    match visible.map(str::trim).filter(|visible| !visible.is_empty()) {
        None => Some(index.to_string()),
        Some(visible) => visible.split(',').nth(index).map(|name| name.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_the_number_that_is_visible_to_cuda() {
        let name = |index, visible| physical(index, visible);
        assert_eq!(name(1, None).as_deref(), Some("1"));
        assert_eq!(name(1, Some("")).as_deref(), Some("1"));
        assert_eq!(name(1, Some("3, 5")).as_deref(), Some("5"));
        assert_eq!(name(0, Some("GPU-0f-1")).as_deref(), Some("GPU-0f-1"));
        assert_eq!(name(2, Some("3,5")), None);
    }
}
