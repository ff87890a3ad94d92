//! The processes that train or evaluate together, on one machine or on several: PyTorch's c10d under `torchrun`, or any launcher
//! that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or processes that this program starts itself.
//!
//! Every process does the same, on its share of the samples. They exchange what all must know, in the same order in each: an
//! exchange waits for everyone. The first process alone writes and prints. A process that fails leaves a note before it ends, so
//! that the others can say why they end too; one that is gone or stuck is named by its rank.
//!
//! # Layout
//!
//! - this file: [`Processes`]
//! - `launch`: how processes find each other, or are started

mod launch;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::distributed::{ProcessGroup, Store};

use self::launch::Children;
pub use self::launch::{Place, threads_of_each};
use crate::interrupt::Interrupted;
use crate::text::{counted, sentence};

/// How long a process whose connection broke is given to leave its note.
const NOTE_WAIT: Duration = Duration::from_secs(1);
/// The pause between two looks for notes.
const NOTE_PAUSE: Duration = Duration::from_millis(50);
/// The time between two signs of life of a process, and that after which one that gave none is gone.
const LIFE_PERIOD: Duration = Duration::from_millis(500);
const LIFE_WAIT: Duration = Duration::from_secs(3);

/// How long NCCL may take to connect the GPUs, and for one operation, which begins when all processes are there.
const NCCL_WAIT: Duration = Duration::from_secs(120);

/// What carries sums and rows of tensors between GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// NCCL, directly.
    Nccl,
    /// Gloo, through the CPU.
    Gloo,
}

/// The processes that work together, as one of them sees it; cheap to clone. By default there is one.
#[derive(Clone, Debug, Default)]
pub struct Processes(Option<Arc<Group>>);

#[derive(Debug)]
struct Group {
    place: Place,
    connection: Mutex<ProcessGroup>,
    /// What the user wants to carry tensors between GPUs.
    backend: Option<Backend>,
    store: Arc<Store>,
    timeout: Duration,
    /// Ends the thread that gives signs of life, when it is dropped.
    _life: Sender<()>,
    /// Number of exchanges that this process has begun.
    exchanges: AtomicU64,
    /// Microseconds that these took, waiting for the others included.
    microseconds: AtomicU64,
    /// The processes that this one started.
    children: Mutex<Children>,
}

/// What a process that ends before the others leaves for them.
#[derive(Debug, Serialize, Deserialize)]
enum Note {
    /// The user asked to stop.
    Interrupted,
    /// It failed, with this sentence.
    Failed(String),
}

/// The error of a process that ends because another one did.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Elsewhere {
    /// The rank of the process that is to blame, if it is known.
    rank: Option<usize>,
    what: String,
}

impl Processes {
    /// The rank of this process, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |group| group.place.rank)
    }

    /// Number of processes.
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(1, |group| group.place.count)
    }

    /// Whether this is the process that writes and prints.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether this is the first process on its machine.
    pub fn is_first_of_machine(&self) -> bool {
        self.0.as_ref().is_none_or(|group| group.place.local_rank == 0)
    }

    /// Returns the device that this process uses where the configuration says `device`: of `cuda`, the GPU of its place on the
    /// machine.
    pub fn device(&self, device: &str) -> String {
        match &self.0 {
            Some(group) if device == "cuda" => format!("cuda:{}", group.place.local_rank),
            _ => device.to_owned(),
        }
    }

    /// Returns this process's share of `n` samples, which are batches of `batch` but for the last one: whole batches where there
    /// are enough, so that it computes the batches that a single process would.
    pub fn share(&self, n: usize, batch: usize) -> Range<usize> {
        share(n, batch, self.rank(), self.count())
    }

    /// Whether this process works on the item of a number, of those that the processes take in turn.
    pub fn is_own(&self, item: usize) -> bool {
        self.rank_of(item) == self.rank()
    }

    /// Returns the rank of the process that works on the item of a number, of those that the processes take in turn.
    pub fn rank_of(&self, item: usize) -> usize {
        item % self.count()
    }

    /// Returns the values of all processes by rank.
    ///
    /// # Errors
    /// [`Elsewhere`] if another process has ended or does not come, [`Interrupted`] if the user stopped another one.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, value: T) -> Result<Vec<T>> {
        let Some(group) = &self.0 else { return Ok(vec![value]) };
        let bytes = postcard::to_stdvec(&value)?;
        group.exchange(|connection| {
            let length = Tensor::from_slice(&[bytes.len() as i64]);
            let lengths = Vec::<i64>::try_from(&connection.gather(&length)?.view([-1]))?;
            let all = connection.gather(&padded(&bytes, lengths.iter().copied().max().unwrap_or(0)))?;
            decode_rows(&all, &lengths)
        })
    }

    /// As [`Processes::gather`], for the first process alone: the others get none.
    pub fn gather_to_first<T: Serialize + DeserializeOwned>(&self, value: T) -> Result<Option<Vec<T>>> {
        let Some(group) = &self.0 else { return Ok(Some(vec![value])) };
        let bytes = postcard::to_stdvec(&value)?;
        group.exchange(|connection| {
            let length = Tensor::from_slice(&[bytes.len() as i64]);
            let lengths = Vec::<i64>::try_from(&connection.gather(&length)?.view([-1]))?;
            let all = connection.gather_to_first(&padded(&bytes, lengths.iter().copied().max().unwrap_or(0)))?;
            all.map(|all| decode_rows(&all, &lengths)).transpose()
        })
    }

    /// Returns what `make` returns in the first process, where alone it runs; its error ends all.
    ///
    /// # Errors
    /// That of `make`, and those of [`Processes::gather`].
    pub fn from_first<T: Serialize + DeserializeOwned>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(group) = &self.0 else { return make() };
        let made = self.is_first().then(make).transpose()?;
        let bytes = made.as_ref().map(postcard::to_stdvec).transpose()?.unwrap_or_default();
        let received = group.exchange(|connection| {
            let mut length = Tensor::from_slice(&[bytes.len() as i64]);
            connection.broadcast(&mut length)?;
            let length = length.int64_value(&[0]);
            let mut all = padded(&bytes, length);
            connection.broadcast(&mut all)?;
            Ok(Vec::<u8>::try_from(&all.narrow(0, 0, length))?)
        })?;
        made.map_or_else(|| Ok(postcard::from_bytes(&received)?), Ok)
    }

    /// Sends rows of a tensor, [n, ...], to the processes that need them: `sent[i]` of them, in order, to process i. Returns those
    /// that the processes send to this one, by rank, `received[i]` of process i.
    ///
    /// # Errors
    /// As [`Processes::gather`].
    pub fn exchange_rows(&self, rows: &Tensor, sent: &[usize], received: &[usize]) -> Result<Tensor> {
        let Some(group) = &self.0 else { return Ok(rows.shallow_clone()) };
        let rows = rows.contiguous();
        group.exchange(|connection| Ok(connection.exchange_rows(&rows, sent, received)?))
    }

    /// Runs `action` in the first process and then in the others, so that what it downloads or caches is there for them.
    ///
    /// # Errors
    /// Those of `action`, and those of [`Processes::gather`].
    pub fn first_before_others<R>(&self, action: impl FnOnce() -> Result<R>) -> Result<R> {
        if !self.is_first() {
            self.wait()?;
            return action();
        }
        let result = action()?;
        self.wait()?;
        Ok(result)
    }

    /// Waits for all processes.
    ///
    /// # Errors
    /// As [`Processes::gather`].
    pub fn wait(&self) -> Result<()> {
        self.gather(()).map(drop)
    }

    /// Replaces a tensor by its sum over the processes, the same bits in all of them.
    ///
    /// # Errors
    /// As [`Processes::gather`].
    pub fn sum(&self, tensor: &mut Tensor) -> Result<()> {
        let Some(group) = &self.0 else { return Ok(()) };
        // The same tensor if it is contiguous.
        let mut contiguous = tensor.contiguous();
        group.exchange(|connection| Ok(connection.sum(&mut contiguous)?))?;
        if !tensor.is_contiguous() {
            tensor.f_copy_(&contiguous)?;
        }
        Ok(())
    }

    /// Lets NCCL carry sums and rows if each process has a GPU of its own, of which this process's is `device`.
    ///
    /// # Errors
    /// If NCCL does not connect the GPUs, or the user wants it and a process has no GPU of its own; as [`Processes::gather`].
    pub fn use_gpus(&self, device: Device) -> Result<()> {
        let Some(group) = &self.0 else { return Ok(()) };
        let has_nccl = group.connection.lock().unwrap_or_else(PoisonError::into_inner).has_nccl();
        if has_nccl || group.backend == Some(Backend::Gloo) {
            return Ok(());
        }
        let gpu = match device {
            Device::Cuda(index) => Some((machine(), torch_ext::cuda::bus_address(index)?)),
            _ => None,
        };
        let gpus: BTreeSet<(String, String)> = self.gather(gpu)?.into_iter().flatten().collect();
        if gpus.len() < self.count() {
            ensure!(
                group.backend.is_none(),
                "--backend nccl: {} processes have {}, each needs one of its own",
                self.count(),
                counted(gpus.len() as u64, "GPU")
            );
            return Ok(());
        }
        let connected = group.exchange(|connection| {
            let connected = connection.use_nccl(&group.store, device, group.timeout.min(NCCL_WAIT));
            connected.map_err(|error| anyhow!("{error}; --backend gloo sends through the CPU instead"))
        });
        if connected.is_ok() {
            tracing::debug!("NCCL connects {} GPUs", gpus.len());
        }
        connected
    }

    /// Returns a handle of the group, for operations within [`Processes::together`]; none of a single process.
    pub fn group(&self) -> Option<ProcessGroup> {
        self.0.as_ref().map(|group| group.connection.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Runs work of which operations of [`Processes::group`] are a part.
    ///
    /// # Errors
    /// Those of `work`, and as [`Processes::gather`].
    pub fn together<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        match &self.0 {
            Some(group) => group.together(|_| work()),
            None => work(),
        }
    }

    /// Checks that `what` is the same in all processes, by a digest.
    ///
    /// # Errors
    /// If it is not, with the ranks that differ; as [`Processes::gather`].
    pub fn compare(&self, what: &str, digest: &str) -> Result<()> {
        let digests = self.gather(digest.to_owned())?;
        let differ: Vec<String> =
            (1..digests.len()).filter(|&i| digests[i] != digests[0]).map(|i| i.to_string()).collect();
        ensure!(
            differ.is_empty(),
            "{what} of process {} differ from those of process 0: start all processes with the same files",
            differ.join(", ")
        );
        Ok(())
    }

    /// Tells the other processes that this one ends with an error, and ends those that it started. Returns whether somebody else
    /// prints why.
    pub fn leave(&self, error: &Error) -> bool {
        let Some(group) = &self.0 else { return false };
        let elsewhere = error.downcast_ref::<Elsewhere>();
        let is_told = elsewhere.is_some() || {
            let note = match error.is::<Interrupted>() {
                true => Note::Interrupted,
                false => Note::Failed(sentence(error)),
            };
            let note = serde_json::to_string(&note).unwrap_or_default();
            group.store.set(&note_key(self.rank()), &note).is_ok()
        };
        group.children.lock().unwrap_or_else(PoisonError::into_inner).end();
        // If the first process is gone, the second one speaks.
        let first_is_gone = elsewhere.is_some_and(|elsewhere| elsewhere.rank == Some(0)) && self.rank() == 1;
        !self.is_first() && is_told && !first_is_gone
    }

    /// Waits for the processes that this one started, which have finished too.
    ///
    /// # Errors
    /// If one of them failed although this one did not.
    pub fn finish(&self) -> Result<()> {
        let Some(group) = &self.0 else { return Ok(()) };
        let exchanges = group.exchanges.load(Ordering::SeqCst);
        let seconds = group.microseconds.load(Ordering::SeqCst) as f64 / 1e6;
        tracing::debug!("{exchanges} exchanges between processes took {seconds:.3} s, waiting for each other included");
        group.children.lock().unwrap_or_else(PoisonError::into_inner).wait(group.timeout)
    }
}

impl Group {
    /// Runs operations that wait for all processes.
    fn exchange<R>(&self, operations: impl FnOnce(&mut ProcessGroup) -> Result<R>) -> Result<R> {
        let clock = Instant::now();
        let done = self.together(operations);
        self.microseconds.fetch_add(clock.elapsed().as_micros() as u64, Ordering::SeqCst);
        done
    }

    /// Runs work among which are operations that wait for all processes.
    fn together<R>(&self, work: impl FnOnce(&mut ProcessGroup) -> Result<R>) -> Result<R> {
        let at = self.exchanges.fetch_add(1, Ordering::SeqCst) + 1;
        let begun = self.store.set(&exchange_key(self.place.rank), &at.to_string());
        begun.map_err(|error| self.lost(at, &error.into()))?;
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut connection).map_err(|error| if connection.is_broken() { self.lost(at, &error) } else { error })
    }

    /// Returns the error of an exchange that another process broke: its own note, or what is known of it.
    fn lost(&self, at: u64, error: &Error) -> Error {
        let timed_out = error.to_string().contains("imed out");
        let end = Instant::now() + NOTE_WAIT;
        loop {
            match self.notes() {
                // The process that serves the store is gone, and nobody else can be asked.
                Err(_) => {
                    return Elsewhere {
                        rank: Some(0),
                        what: "process 0 is gone: it was ended, or its machine was".to_owned(),
                    }
                    .into();
                }
                Ok(notes) => match notes.into_iter().next() {
                    Some((_, Note::Interrupted)) => return Interrupted::default().into(),
                    Some((rank, Note::Failed(why))) => {
                        return Elsewhere { rank: Some(rank), what: format!("process {rank} failed: {why}") }.into();
                    }
                    None if timed_out || Instant::now() > end => break,
                    None => thread::sleep(NOTE_PAUSE),
                },
            }
        }
        let number =
            |key: String| self.store.get(&key).ok().flatten().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let others: Vec<usize> = (0..self.place.count).filter(|rank| *rank != self.place.rank).collect();
        let lives = || others.iter().map(|rank| number(life_key(*rank))).collect::<Vec<_>>();
        let before = lives();
        thread::sleep(LIFE_WAIT);
        let silent: Vec<usize> = others
            .iter()
            .zip(before.iter().zip(lives()))
            .filter(|(_, (a, b))| *a == b)
            .map(|(rank, _)| *rank)
            .collect();
        let behind: Vec<usize> = others.iter().copied().filter(|rank| number(exchange_key(*rank)) < at).collect();
        let named = |ranks: &[usize]| ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let late = |ranks: &[usize]| {
            format!("process {} did not come within {} s (--timeout)", named(ranks), self.timeout.as_secs())
        };
        let (rank, what) = match (silent.first(), timed_out, behind.first()) {
            (Some(rank), false, _) => {
                (Some(rank), format!("process {} is gone: it was ended, or its machine was", named(&silent)))
            }
            (Some(rank), true, _) => (
                Some(rank),
                format!("{} and gives no sign of life: it is stopped, or its machine is gone", late(&silent)),
            ),
            (None, true, Some(rank)) => {
                (Some(rank), format!("{}, although it lives: it is slow, or stuck", late(&behind)))
            }
            (None, ..) => (None, format!("the connection of the processes broke: {}", sentence(error))),
        };
        Elsewhere { rank: rank.copied(), what }.into()
    }

    /// Returns the notes of the other processes.
    fn notes(&self) -> Result<Vec<(usize, Note)>> {
        let others = (0..self.place.count).filter(|rank| *rank != self.place.rank);
        let mut notes = vec![];
        for rank in others {
            if let Some(note) = self.store.get(&note_key(rank))? {
                notes.push((rank, serde_json::from_str(&note)?));
            }
        }
        Ok(notes)
    }
}

/// Gives signs of life of a process until the sender is dropped.
fn give_signs_of_life(rank: usize, store: &Arc<Store>) -> Sender<()> {
    let (sender, dropped) = channel::<()>();
    let store = Arc::clone(store);
    thread::spawn(move || {
        let mut signs = 0u64;
        while dropped.recv_timeout(LIFE_PERIOD) == Err(RecvTimeoutError::Timeout) {
            signs += 1;
            if store.set(&life_key(rank), &signs.to_string()).is_err() {
                break;
            }
        }
    });
    sender
}

/// Returns what identifies this machine among those of a network: the kernel's number of this start of it.
fn machine() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn life_key(rank: usize) -> String {
    format!("life/{rank}")
}

fn exchange_key(rank: usize) -> String {
    format!("exchange/{rank}")
}

fn note_key(rank: usize) -> String {
    format!("note/{rank}")
}

fn share(n: usize, batch: usize, rank: usize, count: usize) -> Range<usize> {
    let batches = n.div_ceil(batch.max(1));
    let (units, unit) = if batches >= count { (batches, batch) } else { (n, 1) };
    let bound = |rank: usize| (rank * units / count * unit).min(n);
    bound(rank)..bound(rank + 1)
}

/// Returns bytes as a tensor of `length`, filled up with zeros.
fn padded(bytes: &[u8], length: i64) -> Tensor {
    // Gloo refuses tensors without elements.
    let tensor = Tensor::zeros([length.max(1)], (Kind::Uint8, Device::Cpu));
    tensor.narrow(0, 0, bytes.len() as i64).copy_(&Tensor::from_slice(bytes));
    tensor
}

fn decode_rows<T: DeserializeOwned>(all: &Tensor, lengths: &[i64]) -> Result<Vec<T>> {
    let decode = |(rank, &length): (usize, &i64)| {
        let bytes = Vec::<u8>::try_from(&all.get(rank as i64).narrow(0, 0, length))?;
        postcard::from_bytes(&bytes).with_context(|| format!("what process {rank} sent cannot be read"))
    };
    lengths.iter().enumerate().map(decode).collect()
}

#[cfg(test)]
pub(crate) mod tests;
