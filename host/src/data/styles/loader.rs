//! Batches, prefetched by a thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tch::Tensor;
use torch_ext::filled;

use super::StyleBatch;
use super::balance::Stream;
use super::cache::Images;

/// Number of prefetched batches.
const PREFETCHED: usize = 4;

/// The endless stream of training batches; its thread ends when it is dropped.
#[derive(Debug)]
pub struct Loader {
    /// The queue of batches; `None` only while the loader is dropped.
    batches: Option<Receiver<Result<StyleBatch>>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    waited: Duration,
}

impl Loader {
    pub(super) fn start(images: Arc<Images>, stream: Stream, batch_size: usize, flip: bool, first_step: u64) -> Self {
        let (sender, receiver) = sync_channel(PREFETCHED);
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || fill(&images, stream, batch_size, flip, first_step, &sender, &flag));
        Self { batches: Some(receiver), thread: Some(thread), stop, waited: Duration::ZERO }
    }

    /// Returns the next batch; blocks while the thread is behind.
    ///
    /// # Errors
    /// If the cache can no longer be read; all further calls then fail too.
    #[expect(clippy::should_implement_trait, reason = "the stream never ends, so an iterator's `None` would mislead")]
    pub fn next(&mut self) -> Result<StyleBatch> {
        let started = Instant::now();
        let batch = self.batches.as_ref().and_then(|batches| batches.recv().ok());
        self.waited += started.elapsed();
        batch.context("the image loader has stopped after an error")?
    }

    /// Returns the total time that [`next`](Self::next) blocked: the time that training lost to loading.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Without a receiver, the thread does not wait for space in the queue.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported already.
            drop(thread.join());
        }
    }
}

/// Produces batches until an error or the end of the loader.
fn fill(
    images: &Images,
    mut stream: Stream,
    batch_size: usize,
    flip: bool,
    first_step: u64,
    sender: &SyncSender<Result<StyleBatch>>,
    stop: &AtomicBool,
) {
    for step in first_step.. {
        let indices = stream.step(step, batch_size);
        let mirrored = if flip { stream.mirrored(step, batch_size) } else { Vec::new() };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let batch = batch(images, &indices, &mirrored);
        let failed = batch.is_err();
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

/// Returns the batch of some images, mirrored where `mirrored` is true; an empty `mirrored` mirrors none.
pub(super) fn batch(images: &Images, indices: &[usize], mirrored: &[bool]) -> Result<StyleBatch> {
    images.check()?;
    let size = images.size;
    let batch = filled(&[indices.len() as i64, 3, size as i64, size as i64], |floats| {
        for (i, (&image, floats)) in indices.iter().zip(floats.chunks_exact_mut(3 * size * size)).enumerate() {
            for (float, &byte) in floats.iter_mut().zip(images.planes(image)) {
                *float = to_float(byte);
            }
            if mirrored.get(i).is_some_and(|mirrored| *mirrored) {
                floats.chunks_exact_mut(size).for_each(<[f32]>::reverse);
            }
        }
    })?;
    let styles: Vec<i64> = indices.iter().map(|&image| images.style(image)).collect();
    Ok(StyleBatch { images: batch, styles: Tensor::f_from_slice(&styles)? })
}

/// Maps 0..=255 to [−1, 1], bit-identical to torchvision's `ToTensor` and `Normalize(0.5, 0.5)`.
fn to_float(byte: u8) -> f32 {
    (f32::from(byte) / 255.0 - 0.5) / 0.5
}
