//! ONNX Runtime, a shared library that is loaded with the first ONNX plugin; the binary runs without it.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use half::f16;
use ort::environment::Environment;
use ort::ep::{CUDA, ExecutionProvider as _};
use ort::logging::LogLevel;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType};
use tch::Device;

use crate::plugin::error::Fault;
use crate::plugin::limits::LOAD_LIMIT;
use crate::zoo::home::dependencies;

/// The environment variable that names a library to be loaded instead of the one that `make setup` installs.
const VARIABLE: &str = "ORT_DYLIB_PATH";

/// The file name of the library; a version may follow it.
const LIBRARY: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// The input of one call.
pub(super) enum Numbers {
    Floats(Vec<f32>),
    Bytes(Vec<u8>),
}

/// A model, ready to run.
pub(super) struct Model {
    session: Session,
    input: String,
    output: String,
}

impl Model {
    /// Loads a model onto a device.
    pub(super) fn load(bytes: &[u8], input: &str, output: &str, device: Device) -> Result<Self, Fault> {
        let environment = environment(device)?;
        let failed =
            |error: ort::Error| Fault::Unusable(format!("ONNX Runtime cannot load it: {}", first_line(&error)));
        let mut builder = session_builder(&environment, device).map_err(failed)?;
        let canceler = builder.canceler();
        let (session, late) = within(LOAD_LIMIT, || drop(canceler.cancel()), || builder.commit_from_memory(bytes));
        if late {
            return Err(Fault::Unusable(format!("it was not loaded within {} s", LOAD_LIMIT.as_secs())));
        }
        Ok(Self { session: session.map_err(failed)?, input: input.to_owned(), output: output.to_owned() })
    }

    /// Runs the model within `left`, the remaining part of the limit `limit_ms`; returns the output's shape and values,
    /// and the time that it took.
    pub(super) fn run(
        &mut self,
        numbers: Numbers,
        shape: &[usize],
        left: Duration,
        limit_ms: u64,
    ) -> Result<(Vec<i64>, Vec<f32>, Duration), Fault> {
        let started = Instant::now();
        let failed = |error: ort::Error| Fault::Trap { reason: first_line(&error), functions: vec![] };
        let input = self.session.inputs().iter().find(|input| input.name() == self.input);
        let element = input.and_then(|input| input.dtype().tensor_type());
        let shape = shape.to_vec();
        let value: SessionInputValue<'_> = match (numbers, element) {
            (Numbers::Floats(data), Some(TensorElementType::Float16)) => {
                let data: Vec<f16> = data.into_iter().map(f16::from_f32).collect();
                Tensor::from_array((shape, data)).map_err(failed)?.into()
            }
            (Numbers::Floats(data), Some(TensorElementType::Float64)) => {
                let data: Vec<f64> = data.into_iter().map(f64::from).collect();
                Tensor::from_array((shape, data)).map_err(failed)?.into()
            }
            (Numbers::Floats(data), _) => Tensor::from_array((shape, data)).map_err(failed)?.into(),
            (Numbers::Bytes(data), _) => Tensor::from_array((shape, data)).map_err(failed)?.into(),
        };
        let options = RunOptions::new().map_err(failed)?;
        let inputs = vec![(Cow::from(self.input.as_str()), value)];
        let (outputs, late) =
            within(left, || drop(options.terminate()), || self.session.run_with_options(inputs, &options));
        if late {
            return Err(Fault::Timeout { limit_ms, functions: vec![] });
        }
        let outputs = outputs.map_err(failed)?;
        let output = outputs.get(&self.output).ok_or_else(|| Fault::Output("it returned no output".to_owned()))?;
        let (shape, data) = match output.dtype().tensor_type() {
            Some(TensorElementType::Float16) => {
                let (shape, data) = output.try_extract_tensor::<f16>().map_err(failed)?;
                (shape.to_vec(), data.iter().copied().map(f16::to_f32).collect())
            }
            Some(TensorElementType::Float64) => {
                let (shape, data) = output.try_extract_tensor::<f64>().map_err(failed)?;
                (shape.to_vec(), data.iter().map(|&value| value as f32).collect())
            }
            _ => {
                let (shape, data) = output.try_extract_tensor::<f32>().map_err(failed)?;
                (shape.to_vec(), data.to_vec())
            }
        };
        Ok((shape, data, started.elapsed()))
    }
}

fn session_builder(environment: &Environment, device: Device) -> ort::Result<ort::session::builder::SessionBuilder> {
    let builder = Session::builder(environment)?
        .with_log_level(LogLevel::Warning)?
        .with_intra_threads(rayon::current_num_threads())?
        .with_inter_threads(1)?
        // Idle threads that spin would slow down libtorch, which runs in turns with it.
        .with_intra_op_spinning(false)?
        .with_deterministic_compute(true)?
        // The bytes were checked as an ONNX file, so they must not be loaded as any other format.
        .with_config_entry("session.load_model_format", "ONNX")?;
    let Device::Cuda(index) = device else { return Ok(builder) };
    if !CUDA::is_available()? {
        tracing::warn!(
            "this ONNX Runtime has no CUDA provider, so that the ONNX plugin runs on the CPU: run `make setup-cuda` and \
             leave {VARIABLE} unset, or name one that has it"
        );
        return Ok(builder);
    }
    let index = i32::try_from(index).map_err(ort::Error::wrap)?;
    Ok(builder.with_execution_providers([CUDA::default().with_device_id(index).build().error_on_failure()])?)
}

/// Runs `work`; calls `expire` once if it is not done within `limit`. Returns the result and whether it was late.
fn within<T>(limit: Duration, expire: impl Fn() + Send, work: impl FnOnce() -> T) -> (T, bool) {
    let (done, finished) = channel::<()>();
    std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let late = finished.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if late {
                expire();
            }
            late
        });
        let result = work();
        // Closing the channel wakes the watch, which then ends.
        drop(done);
        (result, watch.join().expect("the watch only waits and calls"))
    })
}

/// Returns the process's only ONNX Runtime, which is for the device of its first model: the library allows no second one, not even
/// after the first was dropped.
fn environment(device: Device) -> Result<Environment, Fault> {
    static LOADED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*loaded {
        return Ok(environment.clone());
    }
    let environment = load(&library(device)?)?;
    *loaded = Some(environment.clone());
    Ok(environment)
}

fn load(library: &Path) -> Result<Environment, Fault> {
    let failed = |detail: String| {
        let remedy = "run `make setup`, or name another libonnxruntime.so with ORT_DYLIB_PATH";
        Fault::Runtime(format!("ONNX Runtime does not load from {}: {detail}; {remedy}", library.display()))
    };
    let builder = ort::init_from(library).map_err(|error| failed(error.to_string()))?;
    let log = |level: LogLevel, _: &str, _: &str, _: &str, message: &str| match level {
        LogLevel::Error | LogLevel::Fatal | LogLevel::Warning => tracing::debug!("ONNX Runtime: {message}"),
        LogLevel::Info | LogLevel::Verbose => tracing::trace!("ONNX Runtime: {message}"),
    };
    let environment = builder.with_name("ambiguity").with_telemetry(false).with_logger(Arc::new(log)).build();
    let environment = environment.map_err(|error| failed(first_line(&error)))?;
    environment.set_log_level(LogLevel::Warning);
    Ok(environment)
}

/// Returns the library's file: the one that the environment names, otherwise the one that `make setup` installed, or for a GPU
/// `make setup-cuda`.
fn library(device: Device) -> Result<PathBuf, Fault> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let dependencies = dependencies();
    let folder = |name: &str| dependencies.as_ref().map(|dependencies| dependencies.join(name).join("lib"));
    let for_gpu = folder("onnxruntime-cuda").filter(|_| device.is_cuda()).and_then(|folder| library_in(&folder));
    let folder = folder("onnxruntime");
    for_gpu.or_else(|| library_in(folder.as_deref()?)).ok_or_else(|| {
        let place =
            folder.map_or_else(|| "no .deps folder".to_owned(), |folder| format!("not in {}", folder.display()));
        Fault::Runtime(format!(
            "ONNX plugins need ONNX Runtime, which was not found ({place}): run `make setup`, or name a \
             libonnxruntime.so with {VARIABLE}"
        ))
    })
}

/// Returns the library in a folder, with or without a version after its name.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let plain = folder.join(LIBRARY);
    if plain.is_file() {
        return Some(plain);
    }
    let files = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_library = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LIBRARY));
    files.filter(is_library).max()
}

fn first_line(error: &ort::Error) -> String {
    error.message().lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_with_a_version_after_its_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(library_in(folder.path()), None);
        let versioned = folder.path().join(format!("{LIBRARY}.1.32.0"));
        std::fs::write(&versioned, "").expect("writable");
        std::fs::write(folder.path().join("libonnxruntime_providers_shared.so"), "").expect("writable");
        assert_eq!(library_in(folder.path()), Some(versioned));
        let plain = folder.path().join(LIBRARY);
        std::fs::write(&plain, "").expect("writable");
        assert_eq!(library_in(folder.path()), Some(plain));
        assert_eq!(library_in(&folder.path().join("missing")), None);
    }

    #[test]
    fn a_missing_library_is_named_with_what_to_do() {
        let message = load(Path::new("/no/such/libonnxruntime.so")).map(drop).expect_err("no such file").to_string();
        assert!(message.starts_with("ONNX Runtime does not load from /no/such/libonnxruntime.so: "), "{message}");
        assert!(message.contains("run `make setup`"), "{message}");
    }

    #[test]
    fn late_work_is_canceled_once() {
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let expire = || {
            calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        };
        let (seven, late) = within(Duration::from_secs(60), expire, || 7);
        assert_eq!((seven, late), (7, false));
        let ((), late) = within(Duration::from_millis(1), expire, || std::thread::sleep(Duration::from_millis(200)));
        assert!(late);
        assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 1);
    }
}
