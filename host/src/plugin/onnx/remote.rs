//! Models in a process of their own, whose memory and time are limited: one operator of ONNX Runtime may take gigabytes or
//! minutes, and nothing within a process can end it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Error, Read, Seek as _, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::runtime::{Model, Numbers};
use crate::plugin::confined::{Launcher, Worker, is_out_of_memory, limit_resources};
use crate::plugin::error::Fault;
use crate::plugin::limits::{LOAD_LIMIT, ONNX_MEMORY_MIB, mib};

/// What the process does, for messages.
const WORK: &str = "runs it";

/// Time that the process gets beyond the limit of a call, in which it may end a run between two operators by itself: it then
/// need not load the model again.
const GRACE: Duration = Duration::from_millis(500);

/// Time between two looks at Ctrl-C while the model is loaded.
const PERIOD: Duration = Duration::from_millis(20);

/// Maximum number of bytes of a message's header.
const MAX_HEADER: usize = 1 << 16;

/// Maximum number of an output's values that are passed: more than any number of samples and styles.
const MAX_VALUES: usize = 1 << 26;

/// A model, in this process or in one of its own.
pub(super) enum Runner {
    Here(Model),
    Remote(Remote),
}

impl Runner {
    /// Loads a model onto a device: on the CPU into a process that `launcher` starts, if there is one.
    pub(super) fn load(
        bytes: &[u8],
        input: &str,
        output: &str,
        device: Device,
        launcher: Option<&Launcher>,
    ) -> Result<Self, Fault> {
        match (launcher, device) {
            (Some(launcher), Device::Cpu) => Ok(Self::Remote(Remote::load(launcher, bytes, input, output)?)),
            _ => Ok(Self::Here(Model::load(bytes, input, output, device)?)),
        }
    }

    /// Runs the model; see [`Model::run`].
    pub(super) fn run(
        &mut self,
        numbers: Numbers,
        shape: &[usize],
        left: Duration,
        limit_ms: u64,
    ) -> Result<(Vec<i64>, Vec<f32>, Duration), Fault> {
        match self {
            Self::Here(model) => model.run(numbers, shape, left, limit_ms),
            Self::Remote(remote) => remote.run(&numbers, shape, left, limit_ms),
        }
    }

    /// Returns the memory in bytes that it may use, if it is limited.
    pub(super) fn memory(&self) -> Option<usize> {
        match self {
            Self::Here(_) => None,
            Self::Remote(remote) => Some(mib(remote.opening.memory_mib)),
        }
    }
}

/// What the process receives first; the model's bytes follow.
#[derive(Serialize, Deserialize)]
struct Opening {
    input: String,
    output: String,
    memory_mib: usize,
}

/// One call; the input's values follow.
#[derive(Serialize, Deserialize)]
struct Call {
    shape: Vec<usize>,
    is_bytes: bool,
    left: Duration,
    limit_ms: u64,
}

/// The answer to the opening and to each call.
#[derive(Serialize, Deserialize)]
enum Answer {
    /// The model is ready.
    Loaded,
    /// The output's values follow; none if there are more than [`MAX_VALUES`].
    Output(Vec<i64>),
    /// A fault, with its text.
    Failed(Kind, String),
}

/// The faults that loading and running may have.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Kind {
    Timeout,
    Unusable,
    Runtime,
    Trap,
    Output,
}

/// A model in a process of its own, which is started again after it was ended.
pub(super) struct Remote {
    launcher: Launcher,
    /// The model; a file without a name, so that no memory is held for the case that the process was ended.
    model: File,
    opening: Opening,
    running: Option<Running>,
}

/// The process, and what it reads and writes.
struct Running {
    worker: Worker,
    to: BufWriter<ChildStdin>,
    from: BufReader<ChildStdout>,
}

/// Why a process was ended.
enum Ended {
    Late,
    Interrupted,
}

impl Remote {
    fn load(launcher: &Launcher, bytes: &[u8], input: &str, output: &str) -> Result<Self, Fault> {
        let failed = |error: Error| Fault::Sandbox(format!("writing a model for the process that {WORK}: {error}"));
        let mut model = tempfile::tempfile().map_err(failed)?;
        model.write_all(bytes).map_err(failed)?;
        let memory_mib = ONNX_MEMORY_MIB + 4 * (bytes.len() >> 20);
        let opening = Opening { input: input.to_owned(), output: output.to_owned(), memory_mib };
        let mut remote = Self { launcher: launcher.clone(), model, opening, running: None };
        remote.start(LOAD_LIMIT)?;
        Ok(remote)
    }

    /// Starts the process, and waits until the model is ready.
    fn start(&mut self, limit: Duration) -> Result<(), Fault> {
        let mut worker = self.launcher.start("onnx", Stdio::piped(), Stdio::piped())?;
        let (to, from) = (worker.process.stdin.take(), worker.process.stdout.take());
        let (to, from) = (to.expect("it is a pipe"), from.expect("it is a pipe"));
        let mut running = Running { worker, to: BufWriter::new(to), from: BufReader::new(from) };
        let (model, opening) = (&mut self.model, &self.opening);
        let interrupt = self.launcher.interrupt.clone();
        let (answer, ended) = running.watched(
            limit,
            || interrupt.requested(),
            |to, from| {
                model.rewind()?;
                write_header(to, opening)?;
                to.write_all(&model.metadata()?.len().to_le_bytes())?;
                io::copy(model, to)?;
                to.flush()?;
                read_header::<Answer>(from)
            },
        );
        match (answer, ended) {
            (_, Some(Ended::Interrupted)) => Err(Fault::Interrupted),
            (_, Some(Ended::Late)) => Err(Fault::Unusable(format!("it was not loaded within {} s", limit.as_secs()))),
            (Ok(Answer::Loaded), None) => {
                self.running = Some(running);
                Ok(())
            }
            (Ok(Answer::Failed(kind, text)), None) => Err(self.fault(kind, text, 0)),
            (Ok(Answer::Output(_)) | Err(_), None) => Err(running.worker.fault(WORK, self.opening.memory_mib)),
        }
    }

    fn run(
        &mut self,
        numbers: &Numbers,
        shape: &[usize],
        left: Duration,
        limit_ms: u64,
    ) -> Result<(Vec<i64>, Vec<f32>, Duration), Fault> {
        if self.running.is_none() {
            self.start(LOAD_LIMIT)?;
        }
        let started = Instant::now();
        // Whatever goes wrong now, the process is dropped, and thereby ended.
        let mut running = self.running.take().expect("it was started");
        let call = Call { shape: shape.to_vec(), is_bytes: matches!(numbers, Numbers::Bytes(_)), left, limit_ms };
        let (answer, ended) = running.watched(
            left + GRACE,
            || false,
            |to, from| {
                write_header(to, &call)?;
                match numbers {
                    Numbers::Floats(values) => to.write_all(bytemuck::cast_slice(values))?,
                    Numbers::Bytes(values) => to.write_all(values)?,
                }
                to.flush()?;
                let answer = read_header(from)?;
                let values = match &answer {
                    Answer::Output(shape) => read_floats(from, n_values(shape).unwrap_or(0))?,
                    _ => vec![],
                };
                Ok((answer, values))
            },
        );
        match (answer, ended) {
            (_, Some(_)) => Err(Fault::Timeout { limit_ms, functions: vec![] }),
            (Ok((Answer::Output(shape), values)), None) => {
                self.running = Some(running);
                Ok((shape, values, started.elapsed()))
            }
            (Ok((Answer::Failed(kind, text), _)), None) => {
                self.running = Some(running);
                Err(self.fault(kind, text, limit_ms))
            }
            (Ok((Answer::Loaded, _)) | Err(_), None) => Err(running.worker.fault(WORK, self.opening.memory_mib)),
        }
    }

    /// Returns the fault that the process answered.
    fn fault(&self, kind: Kind, text: String, limit_ms: u64) -> Fault {
        match kind {
            Kind::Timeout => Fault::Timeout { limit_ms, functions: vec![] },
            Kind::Unusable | Kind::Trap if is_out_of_memory(&text) => {
                Fault::Unusable(format!("it needs more than the {} MiB that a model gets", self.opening.memory_mib))
            }
            Kind::Unusable => Fault::Unusable(text),
            Kind::Runtime => Fault::Runtime(text),
            Kind::Trap => Fault::Trap { reason: text, functions: vec![] },
            Kind::Output => Fault::Output(text),
        }
    }
}

impl Running {
    /// Runs `work` with the process's pipes; after `limit`, or once `interrupted`, the process is killed, which ends `work`.
    fn watched<T>(
        &mut self,
        limit: Duration,
        interrupted: impl Fn() -> bool + Send,
        work: impl FnOnce(&mut BufWriter<ChildStdin>, &mut BufReader<ChildStdout>) -> io::Result<T>,
    ) -> (io::Result<T>, Option<Ended>) {
        let Self { worker, to, from } = self;
        let (done, finished) = channel::<()>();
        std::thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let started = Instant::now();
                let ended = loop {
                    let left = limit.saturating_sub(started.elapsed());
                    match finished.recv_timeout(left.min(PERIOD)) {
                        Err(RecvTimeoutError::Disconnected) | Ok(()) => return None,
                        Err(RecvTimeoutError::Timeout) if interrupted() => break Ended::Interrupted,
                        Err(RecvTimeoutError::Timeout) if left.is_zero() => break Ended::Late,
                        Err(RecvTimeoutError::Timeout) => {}
                    }
                };
                drop(worker.process.kill());
                Some(ended)
            });
            let result = work(to, from);
            // Closing the channel wakes the watch, which then ends.
            drop(done);
            (result, watch.join().expect("the watch only waits and kills"))
        })
    }
}

/// Runs the model on stdin on the inputs that follow it, within limits of memory: the other side of [`Remote`].
///
/// # Errors
/// If stdin cannot be read, or stdout not be written.
pub(in crate::plugin) fn serve(threads: usize) -> io::Result<()> {
    let mut from = BufReader::new(io::stdin());
    let opening: Opening = read_header(&mut from)?;
    limit_resources(threads, opening.memory_mib, None)?;
    let mut size = [0; 8];
    from.read_exact(&mut size)?;
    let mut bytes = vec![0; usize::try_from(u64::from_le_bytes(size)).map_err(Error::other)?];
    from.read_exact(&mut bytes)?;
    let mut to = BufWriter::new(io::stdout());
    let loaded = Model::load(&bytes, &opening.input, &opening.output, Device::Cpu);
    drop(bytes);
    let mut model = match loaded {
        Ok(model) => model,
        Err(fault) => return answer(&mut to, &failed(fault), &[]),
    };
    answer(&mut to, &Answer::Loaded, &[])?;
    // The calls are read by a thread of their own, which ends this process with the other one, even during a run.
    let (send, calls) = channel();
    std::thread::Builder::new().name("calls".to_owned()).spawn(move || {
        while let Ok(call) = read_call(&mut from) {
            if send.send(call).is_err() {
                break;
            }
        }
        // SAFETY: `_exit` takes a number and does not return. `exit` would run destructors of ONNX Runtime while it computes.
        unsafe { libc::_exit(0) }
    })?;
    for (Call { shape, left, limit_ms, .. }, numbers) in calls {
        match model.run(numbers, &shape, left, limit_ms) {
            Ok((shape, values, _)) => {
                let is_passed = n_values(&shape).is_some_and(|n| n == values.len());
                answer(&mut to, &Answer::Output(shape), if is_passed { &values } else { &[] })?;
            }
            Err(fault) => answer(&mut to, &failed(fault), &[])?,
        }
    }
    Ok(())
}

fn failed(fault: Fault) -> Answer {
    let (kind, text) = match fault {
        Fault::Timeout { .. } => (Kind::Timeout, String::new()),
        Fault::Runtime(text) => (Kind::Runtime, text),
        Fault::Trap { reason, .. } => (Kind::Trap, reason),
        Fault::Output(text) => (Kind::Output, text),
        other => (Kind::Unusable, other.to_string()),
    };
    // A message may quote a file.
    Answer::Failed(kind, text.chars().take(MAX_HEADER / 16).collect())
}

/// Returns the number of values of an output that are passed.
fn n_values(shape: &[i64]) -> Option<usize> {
    let n = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(usize::try_from(dim).ok()?))?;
    (n <= MAX_VALUES).then_some(n)
}

fn answer(to: &mut impl Write, header: &Answer, values: &[f32]) -> io::Result<()> {
    write_header(to, header)?;
    to.write_all(bytemuck::cast_slice(values))?;
    to.flush()
}

fn read_call(from: &mut impl Read) -> io::Result<(Call, Numbers)> {
    let call: Call = read_header(from)?;
    let n =
        call.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)).ok_or_else(|| Error::other("too large"))?;
    let numbers = if call.is_bytes {
        let mut values = vec![0; n];
        from.read_exact(&mut values)?;
        Numbers::Bytes(values)
    } else {
        Numbers::Floats(read_floats(from, n)?)
    };
    Ok((call, numbers))
}

fn read_floats(from: &mut impl Read, n: usize) -> io::Result<Vec<f32>> {
    let mut values = vec![0.0f32; n];
    from.read_exact(bytemuck::cast_slice_mut(&mut values))?;
    Ok(values)
}

/// Writes a header: its length in bytes, and JSON.
fn write_header(to: &mut impl Write, header: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(header)?;
    to.write_all(&u32::try_from(text.len()).map_err(Error::other)?.to_le_bytes())?;
    to.write_all(&text)
}

fn read_header<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_HEADER {
        return Err(Error::other("a header is too long"));
    }
    let mut text = vec![0; length];
    from.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
