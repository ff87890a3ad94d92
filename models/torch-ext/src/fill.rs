//! Tensors whose numbers Rust writes.

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// An f32 tensor on the CPU that begins as zeros and whose numbers, in row-major order, `write` writes.
///
/// Nothing of it runs on libtorch's threads. So it is what a thread beside the training one makes tensors with: each
/// thread that copies with libtorch gets a set of OpenMP threads of its own, and once there are more of these than
/// cores, all of them, those of training too, sleep between operations where they would have waited awake.
pub fn filled(size: &[i64], write: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let tensor = Tensor::f_empty(size, (Kind::Float, Device::Cpu))?;
    let n = tensor.numel();
    if n == 0 {
        write(&mut []);
        return Ok(tensor);
    }
    let first = tensor.data_ptr().cast::<f32>();
    // SAFETY: the tensor is fresh and contiguous, so its n floats lie there, and nobody else knows of them. Zeros are
    // floats.
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

    /// The threads of this process that have this name; one that is not told otherwise has its maker's.
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
