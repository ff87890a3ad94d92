//! The functions that a plugin can call: the imported interfaces of `wit/plugin.wit`, on a batch and the encoders.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ambiguity_sdk::TokenFeatures;
use ambiguity_sdk::resize::resize_bicubic;
use image::RgbImage;
use ndarray::Array2;
use wasmtime::component::Resource;

use super::bindings::ambiguity::plugin::{assets, config, encoders, log, samples, types};
use super::nan::InvalidFlag;
use crate::data::video::Video;
use crate::encoders::{EncoderError, Encoders, TEXTS_PER_CALL};
use crate::plugin::artifact::Artifact;
use crate::plugin::batch::{Batch, Sample};
use crate::plugin::error::{Fault, quoted, quoted_name};
use crate::plugin::limits::{HOST_DISCOUNT, LOG_KIB, LOG_LINES, Limits, MAX_INSTANCES, mib};

/// The guest's handle to the one batch of a call.
pub enum BatchHandle {}

/// Maximum side in pixels to which the host resamples an image for a plugin: a larger one would not fit its memory
/// anyway.
const MAX_SIDE: u32 = 8192;

/// The data that is the same for all calls of a plugin.
pub(super) struct Facts {
    pub(super) plugin: String,
    pub(super) artifact: Arc<Artifact>,
    pub(super) config: BTreeMap<String, String>,
    /// The baked matrices that were requested so far, decoded.
    tensors: Mutex<BTreeMap<String, Arc<types::Matrix>>>,
}

impl Facts {
    pub(super) fn new(plugin: &str, artifact: Arc<Artifact>, config: BTreeMap<String, String>) -> Self {
        Self { plugin: plugin.to_owned(), artifact, config, tensors: Mutex::default() }
    }

    /// Returns a baked matrix.
    fn tensor(&self, name: &str) -> Result<Arc<types::Matrix>, String> {
        let mut tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = tensors.get(name) {
            return Ok(Arc::clone(tensor));
        }
        let tensor = Arc::new(matrix(&self.artifact.tensor(name)?));
        tensors.insert(name.to_owned(), Arc::clone(&tensor));
        Ok(tensor)
    }
}

/// The state of one instance: the data that it may request, and the information for a message if it fails. The batch
/// and the encoders are moved in for a call and out again after it.
pub(super) struct Guest {
    pub(super) facts: Arc<Facts>,
    pub(super) batch: Batch,
    pub(super) encoders: Encoders,
    /// The encoders that the plugin declared; none while it describes itself.
    pub(super) declared: Option<Arc<[String]>>,
    pub(super) memory: MemoryCap,
    limits: Limits,
    /// Number of pixels resampled for it so far.
    resampled: u64,
    /// Number of texts embedded for it so far.
    texts: usize,
    /// Number of bytes of these texts.
    text_bytes: usize,
    /// What it has written to the log so far.
    logged: Logged,
    /// Whether nothing of what it writes to the log is shown.
    is_silent: bool,
    /// Index of the sample that it requested last.
    pub(super) sample: Option<usize>,
    /// The last message that it logged as an error: a panic's, if it panicked.
    pub(super) last_error: Option<String>,
    /// The fault of its last failed request, if any.
    pub(super) fault: Option<Fault>,
    started: Instant,
    /// The time of the host's work for it, which is not its own.
    host_time: Duration,
    /// The time of the work that it chose the size of, which counts in part.
    chosen_time: Duration,
}

/// The number of lines that a plugin wrote to the log, and their bytes; those that were shown and those that were not.
#[derive(Default)]
struct Logged {
    lines: usize,
    bytes: usize,
    lost_lines: usize,
    lost_bytes: usize,
}

/// Limits the memories of an instance together; records the peak and a denied request, both in bytes.
#[derive(Debug, Default)]
pub(super) struct MemoryCap {
    pub(super) limit: usize,
    pub(super) peak: usize,
    pub(super) denied: Option<usize>,
    /// Why the machine did not give what was granted.
    pub(super) lacking: Option<String>,
    /// The size of all memories.
    total: usize,
    /// The size of all memories before the last request.
    before: usize,
}

type Answer<T> = wasmtime::Result<Result<T, String>>;

impl Guest {
    pub(super) fn new(facts: Arc<Facts>, limits: Limits) -> Self {
        Self {
            facts,
            batch: Batch::default(),
            encoders: Encoders::default(),
            declared: None,
            memory: MemoryCap { limit: mib(limits.memory_mib), ..MemoryCap::default() },
            limits,
            resampled: 0,
            texts: 0,
            text_bytes: 0,
            logged: Logged::default(),
            is_silent: false,
            sample: None,
            last_error: None,
            fault: None,
            started: Instant::now(),
            host_time: Duration::ZERO,
            chosen_time: Duration::ZERO,
        }
    }

    /// Returns the guest of a second call on the same batch: what the first one wrote to the log is not written again.
    pub(super) fn again(self) -> Self {
        let Self { facts, batch, encoders, declared, limits, .. } = self;
        Self { batch, encoders, declared, is_silent: true, ..Self::new(facts, limits) }
    }

    /// Returns the time that counts for the plugin's limit: that of its own code, and a part of the time that the host spent
    /// on texts and resampling for it.
    pub(super) fn own_time(&self) -> Duration {
        self.started.elapsed().saturating_sub(self.host_time) + self.chosen_time / HOST_DISCOUNT
    }

    /// Checks the plugin's time between two parts of the host's work.
    fn check_time(&self) -> wasmtime::Result<()> {
        let limit_ms = self.limits.timeout_ms;
        match self.own_time() < Duration::from_millis(limit_ms) {
            true => Ok(()),
            false => {
                let what = format!(
                    "embeddings of texts, or resampled images, that took {:.1} s; a tenth of it counts for \
                     `plugin.timeout_ms` = {limit_ms}",
                    self.chosen_time.as_secs_f64()
                );
                Err(wasmtime::Error::new(Fault::HostWork { what }))
            }
        }
    }

    /// Writes to the log how much of what the plugin wrote is not shown.
    pub(super) fn report_lost_lines(&mut self) {
        let Logged { lost_lines, lost_bytes, .. } = std::mem::take(&mut self.logged);
        if lost_lines > 0 {
            tracing::warn!(
                "plugin {}: {lost_lines} more lines ({} kB) of one call are not shown; the limit is {LOG_LINES} lines and \
                 {LOG_KIB} KiB",
                self.facts.plugin,
                lost_bytes.div_ceil(1000)
            );
        }
    }

    /// Whether the log has room for one more message of the plugin.
    fn has_room(&mut self, message: &str) -> bool {
        let logged = &mut self.logged;
        let room = logged.lines < LOG_LINES && logged.bytes + message.len() <= LOG_KIB << 10;
        match room {
            true => (logged.lines, logged.bytes) = (logged.lines + 1, logged.bytes + message.len()),
            false => {
                (logged.lost_lines, logged.lost_bytes) = (logged.lost_lines + 1, logged.lost_bytes + message.len())
            }
        }
        room
    }

    fn sample(&mut self, i: u32) -> wasmtime::Result<&Sample> {
        self.sample = Some(i as usize);
        let n_samples = self.batch.len();
        self.batch.samples().get(i as usize).ok_or_else(|| {
            let reason = format!("it asked for sample {i} of a batch of {n_samples}");
            wasmtime::Error::new(Fault::Trap { reason, functions: vec![] })
        })
    }

    /// Runs the host's own work, which does not count against the plugin's time.
    fn on_host_time<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let started = Instant::now();
        // A NaN that the host makes is not the plugin's.
        let flag = InvalidFlag::lower();
        let result = work(self);
        drop(flag);
        self.host_time += started.elapsed();
        result
    }

    /// Runs work of the host whose size the plugin chose, so that a part of its time counts.
    fn on_chosen_time<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let started = Instant::now();
        let result = work(self);
        self.chosen_time += started.elapsed();
        result
    }

    /// Runs `work` with an encoder that the plugin declared. After a failure the plugin receives the message; the fault
    /// itself is kept, so that the user sees it if the plugin then fails.
    fn with_encoder<T>(
        &mut self,
        encoder: &str,
        work: impl FnOnce(&mut Self) -> Result<T, EncoderError>,
    ) -> Result<T, String> {
        let declared = match &self.declared {
            None => return Err("no encoders are available while a plugin describes itself".to_owned()),
            Some(declared) => declared.iter().any(|name| name == encoder),
        };
        let result = match declared {
            true => self.on_host_time(work).map_err(Fault::Encoder),
            false => Err(Fault::UndeclaredEncoder { encoder: quoted_name(encoder) }),
        };
        result.map_err(|fault| {
            let message = fault.to_string();
            self.fault = Some(fault);
            message
        })
    }
}

impl samples::HostBatch for Guest {
    fn len(&mut self, _: Resource<BatchHandle>) -> wasmtime::Result<u32> {
        Ok(self.batch.len() as u32)
    }

    fn prompt(&mut self, _: Resource<BatchHandle>, i: u32) -> wasmtime::Result<String> {
        Ok(self.sample(i)?.prompt.clone())
    }

    fn metadata_keys(&mut self, _: Resource<BatchHandle>, i: u32) -> wasmtime::Result<Vec<String>> {
        Ok(self.sample(i)?.metadata.keys().cloned().collect())
    }

    fn metadata(&mut self, _: Resource<BatchHandle>, i: u32, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.sample(i)?.metadata.get(&key).cloned())
    }

    fn image(&mut self, _: Resource<BatchHandle>, i: u32) -> Answer<types::Image> {
        Ok(match &self.sample(i)?.image {
            None => Err(format!("sample {i} is not an image")),
            Some(image) => Ok(self::image(image)),
        })
    }

    fn image_resized(&mut self, _: Resource<BatchHandle>, i: u32, width: u32, height: u32) -> Answer<types::Image> {
        let Some(image) = self.sample(i)?.image.clone() else {
            return Ok(Err(format!("sample {i} is not an image")));
        };
        self.resized(&image, width, height)
    }

    fn text(&mut self, _: Resource<BatchHandle>, i: u32) -> Answer<String> {
        Ok(self.sample(i)?.text.clone().ok_or_else(|| format!("sample {i} is not a text")))
    }

    fn audio(&mut self, _: Resource<BatchHandle>, i: u32) -> Answer<types::Audio> {
        let audio = self.sample(i)?.audio.as_deref().ok_or_else(|| format!("sample {i} is not a recording"));
        Ok(audio.map(|audio| types::Audio {
            sample_rate: audio.sample_rate,
            channels: audio.channels.into(),
            pcm: audio.pcm.clone(),
        }))
    }

    fn video(&mut self, _: Resource<BatchHandle>, i: u32) -> Answer<types::Video> {
        Ok(self.the_video(i)?.map(|video| types::Video {
            width: video.frames[0].width(),
            height: video.frames[0].height(),
            frames: video.frames.len() as u32,
            frame_rate: video.frame_rate,
        }))
    }

    fn frame(&mut self, _: Resource<BatchHandle>, i: u32, frame: u32) -> Answer<types::Image> {
        let video = self.the_video(i)?;
        Ok(video.and_then(|video| Ok(image(frame_of(&video, i, frame)?))))
    }

    fn frame_resized(
        &mut self,
        _: Resource<BatchHandle>,
        i: u32,
        frame: u32,
        width: u32,
        height: u32,
    ) -> Answer<types::Image> {
        let video = match self.the_video(i)? {
            Ok(video) => video,
            Err(message) => return Ok(Err(message)),
        };
        match frame_of(&video, i, frame) {
            Ok(frame) => self.resized(frame, width, height),
            Err(message) => Ok(Err(message)),
        }
    }

    fn tensor(&mut self, _: Resource<BatchHandle>, i: u32) -> Answer<types::Tensor> {
        let array = self.sample(i)?.array.as_deref().ok_or_else(|| format!("sample {i} is not an array"));
        Ok(array.map(|array| types::Tensor { shape: array.shape.clone(), data: array.data.clone() }))
    }

    fn embedding(&mut self, _: Resource<BatchHandle>, encoder: String) -> Answer<types::Matrix> {
        let embeddings = self.with_encoder(&encoder, |guest| guest.batch.embedding(&encoder, &mut guest.encoders));
        Ok(embeddings.map(|embeddings| matrix(&embeddings)))
    }

    fn prompt_embedding(&mut self, _: Resource<BatchHandle>, encoder: String) -> Answer<types::Matrix> {
        let embeddings =
            self.with_encoder(&encoder, |guest| guest.batch.prompt_embedding(&encoder, &mut guest.encoders));
        Ok(embeddings.map(|embeddings| matrix(&embeddings)))
    }

    fn token_features(&mut self, _: Resource<BatchHandle>, encoder: String, i: u32) -> Answer<types::Matrix> {
        self.sample(i)?;
        // The plugin may ask for the samples in any order, so that each request may be a call of the encoder.
        let features = self.on_chosen_time(|guest| {
            guest.with_encoder(&encoder, |guest| {
                Ok(matrix(guest.batch.token_features(&encoder, i as usize, &mut guest.encoders)?))
            })
        });
        self.check_time()?;
        Ok(features)
    }

    fn drop(&mut self, _: Resource<BatchHandle>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl Guest {
    /// Returns the video of sample `i`.
    fn the_video(&mut self, i: u32) -> Answer<Arc<Video>> {
        Ok(self.sample(i)?.video.clone().ok_or_else(|| format!("sample {i} is not a video")))
    }

    /// Returns an image resized by the one filter.
    fn resized(&mut self, image: &RgbImage, width: u32, height: u32) -> Answer<types::Image> {
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            return Ok(Err(format!("cannot resize to {width} x {height}: sides must be between 1 and {MAX_SIDE}")));
        }
        let area = |width: u32, height: u32| u64::from(width) * u64::from(height);
        self.resampled += area(width, height).max(area(image.width(), image.height()));
        let limit = self.limits.resample_megapixels.saturating_mul(1 << 20);
        if self.resampled > limit.saturating_mul(self.batch.len() as u64) {
            let limit = self.limits.resample_megapixels;
            let what = format!("resampled images of more than {limit} megapixels for each sample");
            return Err(wasmtime::Error::new(Fault::HostWork { what }));
        }
        let size = [image.width(), image.height(), width, height].map(|n| n as usize);
        let resize = |_: &mut Self| resize_bicubic(image.as_raw(), size[0], size[1], size[2], size[3]);
        let rgb = self.on_chosen_time(|guest| guest.on_host_time(resize));
        self.check_time()?;
        Ok(Ok(types::Image { width, height, rgb }))
    }
}

/// Returns a frame of the video of sample `i`.
fn frame_of(video: &Video, i: u32, frame: u32) -> Result<&RgbImage, String> {
    let n_frames = video.frames.len();
    let message = || format!("the video of sample {i} has no frame {frame}, but {n_frames} frames");
    video.frames.get(frame as usize).ok_or_else(message)
}

fn image(image: &RgbImage) -> types::Image {
    types::Image { width: image.width(), height: image.height(), rgb: image.as_raw().clone() }
}

impl samples::Host for Guest {}

impl types::Host for Guest {}

impl encoders::Host for Guest {
    fn info(&mut self, encoder: String) -> Answer<encoders::EncoderInfo> {
        let info = self.with_encoder(&encoder, |guest| Ok(guest.encoders.get(&encoder)?.info()));
        let features = |features: TokenFeatures| encoders::TokenFeatures {
            medium: features.medium.name().to_owned(),
            tokens: features.tokens as u32,
            width: features.width as u32,
        };
        Ok(info.map(|info| encoders::EncoderInfo {
            media: info.media.iter().map(|medium| medium.name().to_owned()).collect(),
            dim: info.dim as u32,
            logit_scale: info.logit_scale,
            image_size: info.image_size.map(|size| size as u32),
            token_features: info.token_features.into_iter().map(features).collect(),
            digest: info.digest,
            properties: info.properties,
        }))
    }

    fn embed_texts(&mut self, encoder: String, texts: Vec<String>) -> Answer<types::Matrix> {
        self.texts += texts.len();
        if self.texts > self.limits.texts {
            let what = format!("embeddings of more than {} texts in one call", self.limits.texts);
            return Err(wasmtime::Error::new(Fault::HostWork { what }));
        }
        self.text_bytes = texts.iter().fold(self.text_bytes, |sum, text| sum.saturating_add(text.len()));
        if self.text_bytes > mib(self.limits.text_mib) {
            let what = format!("embeddings of more than {} MiB of texts in one call", self.limits.text_mib);
            return Err(wasmtime::Error::new(Fault::HostWork { what }));
        }
        // Loading the encoder is not of the plugin's choosing.
        let dim = match self.with_encoder(&encoder, |guest| Ok(guest.encoders.get(&encoder)?.info().dim)) {
            Ok(dim) => dim,
            Err(message) => return Ok(Err(message)),
        };
        let mut embeddings = types::Matrix { rows: texts.len() as u32, cols: dim as u32, data: vec![] };
        // The clock is looked at between two calls.
        for texts in texts.chunks(TEXTS_PER_CALL) {
            let part = self.on_chosen_time(|guest| {
                guest.with_encoder(&encoder, |guest| guest.encoders.embed_texts(&encoder, texts))
            });
            match part {
                Ok(part) => embeddings.data.extend(part.iter()),
                Err(message) => return Ok(Err(message)),
            }
            self.check_time()?;
        }
        Ok(Ok(embeddings))
    }
}

impl assets::Host for Guest {
    fn names(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.facts.artifact.assets().map(|(name, _)| name.to_owned()).collect())
    }

    fn bytes(&mut self, name: String) -> Answer<Vec<u8>> {
        let artifact = &self.facts.artifact;
        Ok(artifact.asset(&name).map(<[u8]>::to_vec).ok_or_else(|| artifact.no_asset(&name)))
    }

    fn tensor(&mut self, name: String) -> Answer<types::Matrix> {
        Ok(self.facts.tensor(&name).map(|tensor| types::Matrix::clone(&tensor)))
    }
}

impl config::Host for Guest {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.facts.config.get(&key).cloned())
    }
}

impl log::Host for Guest {
    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        if let log::Level::Error = level {
            // If the plugin is about to fail, the fault's message quotes this one.
            self.last_error = Some(quoted(&joined(&message)));
        }
        // What the log does not show takes none of its room.
        let shown = match level {
            log::Level::Debug | log::Level::Error => tracing::enabled!(tracing::Level::DEBUG),
            log::Level::Info => tracing::enabled!(tracing::Level::INFO),
            log::Level::Warn => tracing::enabled!(tracing::Level::WARN),
        };
        if !shown || self.is_silent {
            return Ok(());
        }
        let message = quoted(&message);
        if !self.has_room(&message) {
            return Ok(());
        }
        let plugin = &self.facts.plugin;
        match level {
            log::Level::Debug | log::Level::Error => tracing::debug!("plugin {plugin}: {message}"),
            log::Level::Info => tracing::info!("plugin {plugin}: {message}"),
            log::Level::Warn => tracing::warn!("plugin {plugin}: {message}"),
        }
        Ok(())
    }
}

impl wasmtime::ResourceLimiter for MemoryCap {
    fn memory_growing(&mut self, current: usize, desired: usize, most: Option<usize>) -> wasmtime::Result<bool> {
        if most.is_some_and(|most| desired > most) {
            // The plugin's own limit of its memory.
            return Ok(false);
        }
        let total = self.total.saturating_sub(current).saturating_add(desired);
        if total > self.limit {
            self.denied = Some(total);
            return Ok(false);
        }
        (self.before, self.total, self.peak) = (self.total, total, self.peak.max(total));
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.total = self.before;
        self.lacking = Some(error.root_cause().to_string());
        Ok(())
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= 100_000)
    }

    fn instances(&self) -> usize {
        MAX_INSTANCES as usize
    }

    fn tables(&self) -> usize {
        MAX_INSTANCES as usize
    }

    fn memories(&self) -> usize {
        MAX_INSTANCES as usize
    }
}

/// Joins the lines of a message, as a panic's.
fn joined(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

pub(super) fn matrix(array: &Array2<f32>) -> types::Matrix {
    // One copy if the rows are contiguous, as they nearly always are.
    let data = array.as_slice().map_or_else(|| array.iter().copied().collect(), <[f32]>::to_vec);
    types::Matrix { rows: array.nrows() as u32, cols: array.ncols() as u32, data }
}

#[cfg(test)]
mod tests {
    use wasmtime::ResourceLimiter as _;

    use super::*;

    #[test]
    fn all_memories_share_one_limit() {
        let mut cap = MemoryCap { limit: 1000, ..MemoryCap::default() };
        let mut grows = |from, to, most| cap.memory_growing(from, to, most).expect("an answer");
        assert!(grows(0, 400, None) && grows(0, 400, Some(500)) && grows(400, 600, None));
        // Beyond its own limit it is refused without blame; beyond the cap, the total is what it asked for.
        assert!(!grows(400, 501, Some(500)));
        assert_eq!((cap.denied, cap.peak), (None, 1000));
        assert!(!cap.memory_growing(600, 601, None).expect("an answer"));
        assert_eq!((cap.denied, cap.peak), (Some(1001), 1000));
    }

    #[test]
    fn memory_that_the_machine_does_not_give_is_not_counted() {
        let mut cap = MemoryCap { limit: 1000, ..MemoryCap::default() };
        assert!(cap.memory_growing(0, 900, None).expect("an answer"));
        cap.memory_grow_failed(wasmtime::Error::msg("Cannot allocate memory")).expect("an answer");
        assert_eq!((cap.denied, cap.lacking.as_deref()), (None, Some("Cannot allocate memory")));
        assert!(cap.memory_growing(0, 900, None).expect("an answer"));
    }
}
