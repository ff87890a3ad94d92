//! Tensors whose elements are written by Rust code.

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Returns an f32 tensor on the CPU, initially zero, whose elements, in row-major order, are written by `write`.
///
/// Nothing of it runs on libtorch's threads. Threads that prepare data beside the training thread create tensors with
/// it: each thread that copies with libtorch gets its own set of OpenMP threads, and once there are more of these than
/// cores, all of them, also those of the training thread, sleep between operations instead of spinning.
pub fn filled(size: &[i64], write: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let tensor = Tensor::f_empty(size, (Kind::Float, Device::Cpu))?;
    let n = tensor.numel();
    if n == 0 {
        write(&mut []);
        return Ok(tensor);
    }
    let first = tensor.data_ptr().cast::<f32>();
    // SAFETY: the tensor is fresh and contiguous, so it has n floats, and there is no other reference to them. Zero
    // bytes are valid floats.
    let floats = unsafe {
        first.write_bytes(0, n);
        std::slice::from_raw_parts_mut(first, n)
    };
    write(floats);
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_one_after_the_other() {
        let tensor = filled(&[2, 3], |floats| floats[4] = 5.0).unwrap();
        assert_eq!(Vec::<Vec<f32>>::try_from(&tensor).unwrap(), [[0.0, 0.0, 0.0], [0.0, 5.0, 0.0]]);
    }

    /// Number of threads of this process with this name; by default a thread has the name of the thread that started
    /// it.
    #[cfg(target_os = "linux")]
    fn threads_named(name: &str) -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|found| found.trim_end() == name).count()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn no_threads_come_of_it() {
        let name = "fills-alone";
        let fill = || {
            let tensor = filled(&[32, 3, 64, 64], |floats| floats.fill(1.0)).unwrap();
            (tensor, threads_named(name))
        };
        let (tensor, threads) = std::thread::Builder::new().name(name.to_owned()).spawn(fill).unwrap().join().unwrap();
        assert_eq!(tensor.sum(Kind::Float).double_value(&[]), tensor.numel() as f64);
        assert_eq!(threads, 1);
    }

    #[test]
    fn nothing_may_be_written() {
        let tensor = filled(&[0, 3], |floats| assert!(floats.is_empty())).unwrap();
        assert_eq!(tensor.size(), [0, 3]);
    }

    #[test]
    fn a_negative_size_is_an_error() {
        filled(&[-1], |_| ()).unwrap_err();
    }
}
