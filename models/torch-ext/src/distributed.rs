//! Processes that work together, by PyTorch's c10d: a [`Store`] of keys and values over TCP, in which they find each other, and
//! the collective operations of a [`ProcessGroup`]: Gloo's on the CPU, and NCCL's between GPUs. Every process of a group calls the
//! same operations in the same order.

use std::ffi::CString;
use std::ptr::null_mut;
use std::time::Duration;

use tch::{Device, Tensor};

use crate::error::{Error, Result};
use crate::ffi::{self, CGroup, CStore};

/// A key-value store over TCP: one process serves it, the others are its clients.
#[derive(Debug)]
pub struct Store(*mut CStore);

// SAFETY: c10d's stores take a lock around each request.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Serves a store on a port; 0 takes a free one.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn serve(port: u16, timeout: Duration) -> Result<Self> {
        Self::new("127.0.0.1", port, true, "", timeout)
    }

    /// Connects to the store of a host; its keys get a prefix, unless that is empty. `serves` is whether this process serves it.
    ///
    /// # Errors
    /// If nobody serves the store within the timeout.
    pub fn connect(host: &str, port: u16, serves: bool, prefix: &str, timeout: Duration) -> Result<Self> {
        Self::new(host, port, serves, prefix, timeout)
    }

    fn new(host: &str, port: u16, serves: bool, prefix: &str, timeout: Duration) -> Result<Self> {
        let (host, prefix, mut out) = (c_string(host)?, c_string(prefix)?, null_mut());
        // SAFETY: the strings live during the call, and on success `out` is a store that we own.
        unsafe {
            ffi::check(ffi::ext_store_new(
                host.as_ptr(),
                port,
                serves,
                prefix.as_ptr(),
                milliseconds(timeout),
                &mut out,
            ))?;
        }
        Ok(Self(out))
    }

    /// Returns the port of the store.
    pub fn port(&self) -> u16 {
        // SAFETY: the store is alive as long as `self`.
        unsafe { ffi::ext_store_port(self.0) }
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// If the process that serves the store is gone.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: key and value live during the call.
        unsafe { ffi::check(ffi::ext_store_set(self.0, key.as_ptr(), value.as_ptr(), value.len())) }
    }

    /// Returns the value of a key, or none if it is not set yet.
    ///
    /// # Errors
    /// If the process that serves the store is gone.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let key = c_string(key)?;
        // SAFETY: the key lives during the call.
        ffi::string(|out| unsafe { ffi::ext_store_get(self.0, key.as_ptr(), out) })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: `new` made the store, and nobody else frees it.
        unsafe { ffi::ext_store_free(self.0) }
    }
}

/// A group of processes, which Gloo connects. A clone is the same group.
#[derive(Debug)]
pub struct ProcessGroup {
    group: *mut CGroup,
    size: usize,
}

// SAFETY: c10d's groups are bound to no thread, and put operations into a queue under a lock.
unsafe impl Send for ProcessGroup {}
// SAFETY: as above.
unsafe impl Sync for ProcessGroup {}

impl Clone for ProcessGroup {
    fn clone(&self) -> Self {
        // SAFETY: the group is alive as long as `self`, and the clone owns what is returned.
        Self { group: unsafe { ffi::ext_group_clone(self.group) }, size: self.size }
    }
}

impl ProcessGroup {
    /// Connects `size` processes through a store that `host` serves; each of them calls this with its own rank. An operation
    /// fails if another process is not there within the timeout.
    ///
    /// # Errors
    /// If a process does not come.
    pub fn connect(store: &Store, host: &str, rank: usize, size: usize, timeout: Duration) -> Result<Self> {
        let (host, mut group) = (c_string(host)?, null_mut());
        let count = |n: usize| i32::try_from(n).map_err(|_| Error::new(format!("{n} processes are too many")));
        let (rank, n) = (count(rank)?, count(size)?);
        // SAFETY: store and host live during the call, and on success `group` is ours.
        unsafe {
            ffi::check(ffi::ext_group_new(store.0, host.as_ptr(), rank, n, milliseconds(timeout), &mut group))?;
        }
        Ok(Self { group, size })
    }

    /// Lets NCCL carry sums and rows of tensors on a GPU, which would go through the CPU otherwise. Every process calls this before
    /// the group is cloned, each with a GPU of its own.
    ///
    /// # Errors
    /// If NCCL is not loaded, does not find a way between the GPUs, or another process does not come within the timeout.
    pub fn use_nccl(&mut self, store: &Store, device: Device, timeout: Duration) -> Result<()> {
        let index = match device {
            Device::Cuda(index) => i8::try_from(index).map_err(|_| Error::new(format!("there is no {device:?}")))?,
            _ => -1,
        };
        // SAFETY: group and store live during the call.
        unsafe { ffi::check(ffi::ext_group_use_nccl(self.group, store.0, index, milliseconds(timeout))) }
    }

    /// Whether NCCL carries what is on a GPU.
    pub fn has_nccl(&self) -> bool {
        // SAFETY: the group is alive as long as `self`.
        unsafe { ffi::ext_group_has_nccl(self.group) }
    }

    /// Replaces a contiguous tensor by its sum over the processes.
    ///
    /// # Errors
    /// If another process is gone, or is not there within the timeout.
    pub fn sum(&mut self, tensor: &mut Tensor) -> Result<()> {
        contiguous(tensor)?;
        // SAFETY: the tensor lives during the call, which waits for the operation.
        unsafe { ffi::check(ffi::ext_group_sum(self.group, tensor.as_mut_ptr())) }
    }

    /// Returns the sum of a tensor over the processes, each of which has a loss of its own. The gradient is that of the sum of
    /// their losses, and can be differentiated again; a backward pass is an operation in which all processes take part.
    ///
    /// # Errors
    /// As [`ProcessGroup::sum`].
    pub fn differentiable_sum(&self, tensor: &Tensor) -> Result<Tensor> {
        // SAFETY: the tensor lives during the call.
        ffi::tensor(|out| unsafe { ffi::ext_group_differentiable_sum(self.group, tensor.as_ptr(), out) })
    }

    /// Whether an operation has failed, after which the processes are no longer in step.
    pub fn is_broken(&self) -> bool {
        // SAFETY: the group is alive as long as `self`.
        unsafe { ffi::ext_group_is_broken(self.group) }
    }

    /// Returns the tensors of all processes, [processes, ...]; they have one shape.
    ///
    /// # Errors
    /// As [`ProcessGroup::sum`].
    pub fn gather(&mut self, tensor: &Tensor) -> Result<Tensor> {
        on_cpu(tensor)?;
        // SAFETY: the tensor lives during the call.
        ffi::tensor(|out| unsafe { ffi::ext_group_gather(self.group, tensor.as_ptr(), out) })
    }

    /// As [`ProcessGroup::gather`], in the first process alone; the others get none.
    ///
    /// # Errors
    /// As [`ProcessGroup::sum`].
    pub fn gather_to_first(&mut self, tensor: &Tensor) -> Result<Option<Tensor>> {
        on_cpu(tensor)?;
        let mut out = null_mut();
        // SAFETY: the tensor lives during the call; `out` is null or a tensor that we now own.
        unsafe {
            ffi::check(ffi::ext_group_gather_to_first(self.group, tensor.as_ptr(), &mut out))?;
            Ok((!out.is_null()).then(|| Tensor::from_ptr(out)))
        }
    }

    /// Sends `sent[i]` of the rows of a tensor, [n, ...], in order, to process i, and returns those that the processes send to
    /// this one, by rank, `received[i]` of process i.
    ///
    /// # Errors
    /// If the counts do not fit, and as [`ProcessGroup::sum`].
    pub fn exchange_rows(&mut self, tensor: &Tensor, sent: &[usize], received: &[usize]) -> Result<Tensor> {
        contiguous(tensor)?;
        let n = tensor.size().first().copied().unwrap_or(0) as usize;
        if [sent.len(), received.len()] != [self.size; 2] || sent.iter().sum::<usize>() != n {
            return Err(Error::new(format!("{n} rows cannot be sent as {sent:?} to {} processes", self.size)));
        }
        let counts = |counts: &[usize]| counts.iter().map(|&n| n as i64).collect::<Vec<_>>();
        let (sent, received) = (counts(sent), counts(received));
        // SAFETY: the tensor and the counts, one per process, live during the call.
        ffi::tensor(|out| unsafe {
            ffi::ext_group_exchange_rows(self.group, tensor.as_ptr(), sent.as_ptr(), received.as_ptr(), out)
        })
    }

    /// Replaces a contiguous CPU tensor by that of the first process, which has the same shape.
    ///
    /// # Errors
    /// As [`ProcessGroup::sum`].
    pub fn broadcast(&mut self, tensor: &mut Tensor) -> Result<()> {
        on_cpu(tensor)?;
        // SAFETY: as in `sum`.
        unsafe { ffi::check(ffi::ext_group_broadcast(self.group, tensor.as_mut_ptr())) }
    }

    /// Returns the number of processes.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: `connect` or `clone` made this handle, and nobody else frees it.
        unsafe { ffi::ext_group_free(self.group) }
    }
}

fn contiguous(tensor: &Tensor) -> Result<()> {
    match tensor.is_contiguous() {
        true => Ok(()),
        false => Err(Error::new("the processes exchange contiguous tensors")),
    }
}

fn on_cpu(tensor: &Tensor) -> Result<()> {
    match tensor.device() {
        Device::Cpu => contiguous(tensor),
        _ => Err(Error::new("Gloo works on CPU tensors")),
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(format!("{text:?} contains a NUL")))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::{Mutex, Once, PoisonError};
    use std::thread;

    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    use tch::Kind;

    use super::*;
    use crate::cuda;

    const TIMEOUT: Duration = Duration::from_secs(20);

    /// Runs `work` as each of three processes, here threads with a store and a group of their own.
    fn three<R: Send>(timeout: Duration, work: impl Fn(usize, &Store, ProcessGroup) -> R + Sync) -> Vec<R> {
        // One group at a time: real processes have one each.
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let server = Store::serve(0, TIMEOUT).expect("a free port");
        let port = server.port();
        thread::scope(|scope| {
            let process = |rank| {
                let work = &work;
                scope.spawn(move || {
                    let store =
                        Store::connect("127.0.0.1", port, false, "start-0", TIMEOUT).expect("the server is there");
                    let group = ProcessGroup::connect(&store, "127.0.0.1", rank, 3, timeout).expect("all three come");
                    work(rank, &store, group)
                })
            };
            let processes = [0, 1, 2].map(process);
            processes.map(|process| process.join().expect("it does not panic")).into()
        })
    }

    #[test]
    fn three_processes_sum_gather_and_broadcast() {
        let all = three(TIMEOUT, |rank, store, mut group| {
            let mut sum = Tensor::from_slice(&[rank as f64, 0.5]);
            group.sum(&mut sum).expect("all are there");
            let gathered = group.gather(&Tensor::from_slice(&[rank as i64, -1])).expect("all are there");
            let to_first = group.gather_to_first(&Tensor::from(rank as i64)).expect("all are there");
            let mut from_first = Tensor::from_slice(&[7 + rank as i64]);
            group.broadcast(&mut from_first).expect("all are there");
            store.set(&format!("at/{rank}"), "done").expect("the server is there");
            let numbers = |tensor: &Tensor| Vec::<i64>::try_from(&tensor.flatten(0, -1)).expect("integers");
            let sum = Vec::<f64>::try_from(&sum).expect("numbers");
            (
                sum,
                numbers(&gathered),
                to_first.map(|t| numbers(&t)),
                numbers(&from_first),
                store.get("none").expect("no error"),
            )
        });
        for (rank, (sum, gathered, to_first, from_first, none)) in all.into_iter().enumerate() {
            assert_eq!((sum, gathered), (vec![3.0, 1.5], vec![0, -1, 1, -1, 2, -1]));
            assert_eq!(to_first, (rank == 0).then(|| vec![0, 1, 2]));
            assert_eq!((from_first, none), (vec![7], None));
        }
    }

    /// The rows [rank, 0], [rank, 1], …
    fn numbered_rows(rank: usize, n: i64) -> Tensor {
        let options = (Kind::Int64, Device::Cpu);
        Tensor::stack(&[Tensor::full([n], rank as i64, options), Tensor::arange(n, options)], 1)
    }

    #[test]
    fn rows_are_sent_to_those_who_need_them() {
        // Process i has the rows [i, 0], [i, 1], … and sends as many to each as here; the second one sends nothing.
        let sent = [[1, 2, 0], [0, 0, 0], [2, 0, 1]];
        let all = three(TIMEOUT, |rank, _, mut group| {
            let n = sent[rank].iter().sum::<usize>() as i64;
            let rows = numbered_rows(rank, n);
            let received = [0, 1, 2].map(|from: usize| sent[from][rank]);
            let rows = group.exchange_rows(&rows, &sent[rank], &received).expect("all are there");
            assert!(group.exchange_rows(&rows, &[1, 2], &received).is_err() && !group.is_broken());
            Vec::<i64>::try_from(&rows.flatten(0, -1)).expect("integers")
        });
        assert_eq!(all, [vec![0, 0, 2, 0, 2, 1], vec![0, 1, 0, 2], vec![2, 2]]);
    }

    #[test]
    fn a_sum_over_processes_has_first_and_second_derivatives() {
        // With s = Σ xᵢ over the processes and losses (i + 1) s², the sum of the losses is 6 s².
        let all = three(TIMEOUT, |rank, _, group| {
            let x = Tensor::from(rank as f64 + 0.5).set_requires_grad(true);
            let sum = group.differentiable_sum(&x).expect("all are there");
            let loss = sum.square() * (rank as f64 + 1.0);
            let first = Tensor::f_run_backward(&[loss], &[&x], true, true).expect("all are there").remove(0);
            // Now the loss of each process is the first derivative, 12 s.
            let second = Tensor::f_run_backward(&[first.shallow_clone()], &[&x], false, false).expect("all are there");
            [&sum, &first, &second[0]].map(|tensor| tensor.double_value(&[]))
        });
        assert_eq!(all, [[4.5, 54.0, 36.0]; 3]);
    }

    #[test]
    fn a_process_that_does_not_come_is_an_error() {
        let all = three(Duration::from_millis(300), |rank, _, mut group| {
            if rank == 1 {
                thread::sleep(Duration::from_secs(2));
                return None;
            }
            let text = group.sum(&mut Tensor::from(1.0)).expect_err("one is missing").to_string();
            assert!(group.is_broken() && group.clone().is_broken());
            Some(text)
        });
        assert_eq!(all.iter().flatten().count(), 2, "{all:?}");
        let store = Store::connect("127.0.0.1", 1, false, "", Duration::from_millis(200));
        assert!(store.is_err());
    }

    /// Loads NCCL's functions for threads and CPU memory; not if CUDA has brought the real ones.
    fn has_nccl_on_the_cpu() -> bool {
        if cuda::load().is_ok() {
            eprintln!("skipped: CUDA has brought the real NCCL");
            return false;
        }
        static LOADED: Once = Once::new();
        LOADED.call_once(|| {
            let folder = tempfile::tempdir().expect("a folder");
            let library = folder.path().join("libnccl-on-the-cpu.so");
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/nccl.cpp");
            let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
            let mut command = Command::new(compiler);
            command.args(["-std=c++17", "-shared", "-fPIC", source, "-o"]).arg(&library);
            assert!(command.status().expect("a C++ compiler built this crate").success());
            // SAFETY: the library has no initializers but those of its variables.
            let loaded = unsafe { Library::open(Some(&library), RTLD_NOW | RTLD_GLOBAL) }.expect("a library");
            // Its functions are in use until the end.
            std::mem::forget(loaded);
        });
        true
    }

    #[test]
    fn nccl_sums_and_sends_rows() {
        if !has_nccl_on_the_cpu() {
            return;
        }
        let sent = [[1, 2, 0], [0, 0, 0], [2, 0, 1]];
        let all = three(TIMEOUT, |rank, store, mut group| {
            assert!(!group.has_nccl());
            group.use_nccl(store, Device::Cpu, TIMEOUT).expect("all three come");
            assert!(group.has_nccl() && group.clone().has_nccl());
            // Gloo sums what is small.
            let sums = [2, 1 << 14].map(|n| {
                let mut sum = Tensor::arange(n, (Kind::Double, Device::Cpu)) + rank as f64;
                group.sum(&mut sum).expect("all are there");
                (sum - Tensor::arange(n, (Kind::Double, Device::Cpu)) * 3.0 - 3.0).abs().max().double_value(&[])
            });
            let n = sent[rank].iter().sum::<usize>() as i64;
            let received = [0, 1, 2].map(|from: usize| sent[from][rank]);
            let rows = numbered_rows(rank, n);
            let rows = group.exchange_rows(&rows, &sent[rank], &received).expect("all are there");
            // The gradient is a sum too: with s = Σ x over the processes and losses (i + 1) s², that of 6 s².
            let x = Tensor::full([1 << 14], rank as f64 + 0.5, (Kind::Double, Device::Cpu)).set_requires_grad(true);
            let squares = group.differentiable_sum(&x).expect("all are there").square();
            (squares * (rank as f64 + 1.0)).sum(Kind::Double).backward();
            let numbers = Vec::<i64>::try_from(&rows.flatten(0, -1)).expect("integers");
            (sums, numbers, [x.grad().min(), x.grad().max()].map(|x| x.double_value(&[])))
        });
        let rows = [vec![0, 0, 2, 0, 2, 1], vec![0, 1, 0, 2], vec![2, 2]];
        for (found, rows) in all.into_iter().zip(rows) {
            assert_eq!(found, ([0.0; 2], rows, [54.0; 2]));
        }
    }

    #[test]
    fn an_operation_of_nccl_that_fails_breaks_the_group() {
        if !has_nccl_on_the_cpu() {
            return;
        }
        let all = three(TIMEOUT, |_, store, mut group| {
            group.use_nccl(store, Device::Cpu, TIMEOUT).expect("all three come");
            let mut tensor = Tensor::ones([1 << 14], (Kind::Int, Device::Cpu));
            let text = group.sum(&mut tensor).expect_err("a process is gone").to_string();
            (text, group.is_broken())
        });
        assert_eq!(all, [(); 3].map(|()| ("libtorch: NCCL: a sum failed: remote process exited".to_owned(), true)));
    }

    /// The real NCCL, with the one GPU that a test has.
    #[test]
    fn nccl_of_one_gpu_sums_and_sends_to_itself() {
        let gpu = match cuda::device("cuda") {
            Ok(gpu) => gpu,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let store = Store::serve(0, TIMEOUT).expect("a free port");
        let mut group = ProcessGroup::connect(&store, "127.0.0.1", 0, 1, TIMEOUT).expect("it is alone");
        group.use_nccl(&store, gpu, TIMEOUT).expect("NCCL is there");
        let x = Tensor::arange(6, (Kind::Float, gpu)).view([3, 2]);
        let mut sum = x.copy();
        group.sum(&mut sum).expect("it is alone");
        assert_eq!((&sum, group.exchange_rows(&x, &[3], &[3]).expect("it is alone")), (&x, x.copy()));
    }
}
