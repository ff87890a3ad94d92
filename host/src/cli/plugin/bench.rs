//! `host plugin bench`: measures the cost of a plugin.

use std::f32::consts::TAU;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use image::imageops::crop_imm;
use serde_json::{Value, json};

use super::running::{RunningArgs, count, embedded, heading, mib};
use crate::cli::completions::plugins;
use crate::cli::numbers::within;
use crate::context::Context;
use crate::data::array::Array;
use crate::data::audio::Audio;
use crate::data::video::Video;
use crate::encoders::Encoders;
use crate::plugin::{Description, Limits, Medium, Plugin, PluginHost, Sample};
use crate::text::{size, table, to_json};
use procedural_art::{STYLES, SUBJECTS, paint};

/// Measure a plugin's cost: loading, instantiating, and running it by batch size.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin bench kmeans_image
  host plugin bench ./mine.wasm --batch 1 --batch 256 --size 512 --json

Times are medians. The encoders' time, which all plugins of a run share, has its own column. Fuel, about
one unit per WebAssembly instruction, is the same on every machine.")]
pub struct BenchArgs {
    /// A plugin: a path, a name, or a plugin crate's folder
    #[arg(add = plugins())]
    plugin: String,
    /// Number of samples in a batch; may be repeated
    #[arg(long = "batch", value_name = "N", default_values_t = [1, 8, 64], value_parser = clap::value_parser!(u32).range(1..=4096))]
    batches: Vec<u32>,
    /// Side of the images, in pixels
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..=4096))]
    size: u32,
    /// Minimum seconds for each measurement, of at least three calls
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = within(0.0..=3600.0))]
    seconds: f64,
    #[command(flatten)]
    running: RunningArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Minimum and maximum number of calls of a measurement.
const CALLS: (usize, usize) = (3, 1000);

/// Number of distinct samples; a larger batch repeats them.
const DISTINCT: usize = 27;

/// Sample rate of a recording, which is one second long.
const RATE: u32 = 16_000;

/// Number of frames of a video, which is one second long.
const FRAMES: u32 = 16;

/// The shape of an array: that of a latent of Stable Diffusion at 512 pixels.
const LATENT: [u32; 3] = [4, 64, 64];

/// The cost of a batch size, per sample.
struct Cost {
    batch: usize,
    encoders: f64,
    milliseconds: f64,
    fuel: Option<u64>,
    memory: Option<usize>,
}

impl BenchArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        // The first load compiles within limits of memory and time; those that are measured do not start a process.
        drop(self.running.open(&self.plugin, context)?);
        let compile = self.median(context, || self.load(None))?;
        let cache = tempfile::tempdir().context("creating a folder for the cache")?;
        self.load(Some(cache.path()))?;
        let cached = self.median(context, || self.load(Some(cache.path())))?;
        let mut plugin = self.load(Some(cache.path()))?;
        let has_instances = plugin.describe_again()?.is_some();
        let instantiate = match has_instances {
            true => Some(self.median(context, || Ok(plugin.describe_again()?))?),
            false => None,
        };
        let mut encoders = self.running.encoders(context)?;
        let samples = self.samples(plugin.description())?;
        let mut costs = vec![];
        for &batch in &self.batches {
            costs.push(self.cost(context, batch as usize, &samples, &mut *plugin, &mut encoders)?);
        }
        let times = [compile, cached].map(|time| time.as_secs_f64() * 1e3);
        let instantiate = instantiate.map(|time| time.as_secs_f64() * 1e3);
        match self.json {
            true => println!("{}", to_json(&self.document(&*plugin, times, instantiate, &costs))),
            false => print!("{}", self.layout(&*plugin, times, instantiate, &costs)?),
        }
        Ok(())
    }

    /// Loads the plugin from scratch, with nothing but the cache folder's content from earlier loads.
    fn load(&self, cache: Option<&Path>) -> Result<Box<dyn Plugin>> {
        let host = PluginHost::new(Limits::default(), cache.map(Path::to_owned))?;
        self.running.load(&self.running.on_device(host)?, &self.plugin)
    }

    /// Returns the median time of calls of `work`.
    fn median<T>(&self, context: &Context, mut work: impl FnMut() -> Result<T>) -> Result<Duration> {
        let (started, mut times) = (Instant::now(), vec![]);
        while times.len() < CALLS.0 || (times.len() < CALLS.1 && started.elapsed().as_secs_f64() < self.seconds) {
            context.interrupt.check("nothing was written")?;
            let call = Instant::now();
            work()?;
            times.push(call.elapsed());
        }
        times.sort();
        Ok(times[times.len() / 2])
    }

    fn samples(&self, description: &Description) -> Result<Vec<Sample>> {
        let has = |medium: Medium| description.takes(medium);
        let image = |i: usize, side: u32| paint(i % STYLES.len(), i % SUBJECTS.len(), 1, i as u64, side);
        // A plugin may ask for the prompts of images, too.
        let line = |i: usize| {
            let (style, subject) = (STYLES[i % STYLES.len()].spoken, SUBJECTS[i % SUBJECTS.len()].phrase);
            format!("A painting of {subject} in the manner of {style}, seen at dusk by a traveler, number {i}.")
        };
        let sample = |i: usize| {
            if has(Medium::Image) {
                Sample { image: Some(Arc::new(image(i, self.size))), prompt: line(i), ..Sample::default() }
            } else if has(Medium::Text) {
                Sample { text: Some(line(i)), ..Sample::default() }
            } else if has(Medium::Audio) {
                let tone = |t: usize| (t as f32 * (220 + 20 * i) as f32 * TAU / RATE as f32).sin();
                let pcm = (0..RATE as usize).map(|t| 0.5 * tone(t)).collect();
                Sample { audio: Some(Arc::new(Audio { sample_rate: RATE, channels: 1, pcm })), ..Sample::default() }
            } else if has(Medium::Video) {
                let whole = image(i, self.size + FRAMES);
                let frame = |t: u32| crop_imm(&whole, t, t, self.size, self.size).to_image();
                let video = Video { frames: (0..FRAMES).map(frame).collect(), frame_rate: f64::from(FRAMES) };
                Sample { video: Some(Arc::new(video)), ..Sample::default() }
            } else {
                let value = |n: u32| ((n * (i as u32 + 3)) as f32 / 40.0).sin();
                let [channels, height, width] = LATENT;
                let data = (0..channels * height * width).map(value).collect();
                Sample { array: Some(Arc::new(Array { shape: LATENT.to_vec(), data })), ..Sample::default() }
            }
        };
        if description.media.is_empty() {
            bail!("the plugin names no medium");
        }
        Ok((0..DISTINCT).map(sample).collect())
    }

    fn cost(
        &self,
        context: &Context,
        n_samples: usize,
        samples: &[Sample],
        plugin: &mut dyn Plugin,
        encoders: &mut Encoders,
    ) -> Result<Cost> {
        let batch: Vec<Sample> = samples.iter().cycle().take(n_samples).cloned().collect();
        // Loads the encoders and fills the plugin's caches.
        plugin.run(&mut embedded(batch.clone(), plugin, encoders)?, encoders)?;
        let embed = match plugin.description().encoders.is_empty() {
            true => Duration::ZERO,
            false => self.median(context, || embedded(batch.clone(), plugin, encoders))?,
        };
        let mut ready = embedded(batch, plugin, encoders)?;
        let mut fuel = None;
        let time = self.median(context, || {
            fuel = plugin.run(&mut ready, encoders)?.fuel;
            Ok(())
        })?;
        let per_sample = |time: Duration| time.as_secs_f64() * 1e3 / n_samples as f64;
        Ok(Cost {
            batch: n_samples,
            encoders: per_sample(embed),
            milliseconds: per_sample(time),
            fuel: fuel.map(|fuel| fuel / n_samples as u64),
            memory: plugin.peak_memory(),
        })
    }

    fn document(&self, plugin: &dyn Plugin, times: [f64; 2], instantiate: Option<f64>, costs: &[Cost]) -> Value {
        let batches = costs.iter().map(|cost| {
            json!({
                "batch": cost.batch,
                "encoder_milliseconds": cost.encoders,
                "milliseconds": cost.milliseconds,
                "fuel": cost.fuel,
                "peak_memory": cost.memory,
            })
        });
        json!({
            "plugin": plugin.source().name,
            "sha256": plugin.source().sha256,
            "load_milliseconds": times[0],
            "cached_load_milliseconds": times[1],
            "instantiate_milliseconds": instantiate,
            "size": self.size,
            "batches": batches.collect::<Vec<_>>(),
        })
    }

    fn layout(&self, plugin: &dyn Plugin, times: [f64; 2], instantiate: Option<f64>, costs: &[Cost]) -> Result<String> {
        let bytes = fs_err::metadata(&plugin.source().path)?.len() as usize;
        let mut text = format!("{}, {}\n\n", heading(plugin.description()), size(bytes));
        let mut rows = vec![
            vec!["load, compiling".to_owned(), format!("{:.2} ms", times[0])],
            vec!["load, from the cache".to_owned(), format!("{:.2} ms", times[1])],
        ];
        if let Some(instantiate) = instantiate {
            rows.push(vec!["instantiate and describe".to_owned(), format!("{instantiate:.3} ms")]);
        }
        text += &table(&[true, false], &rows);
        let header = ["batch", "encoders ms", "plugin ms", "fuel", "memory"].map(str::to_owned).to_vec();
        let rows = costs.iter().map(|cost| {
            vec![
                cost.batch.to_string(),
                if cost.encoders > 0.0 { format!("{:.3}", cost.encoders) } else { "-".to_owned() },
                format!("{:.4}", cost.milliseconds),
                cost.fuel.map_or_else(|| "-".to_owned(), count),
                cost.memory.map_or_else(|| "-".to_owned(), mib),
            ]
        });
        let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
        let has = |wanted: Medium| plugin.description().takes(wanted);
        let medium = match () {
            () if has(Medium::Image) => format!("images of {0} x {0}", self.size),
            () if has(Medium::Text) => "texts of some twenty words".to_owned(),
            () if has(Medium::Audio) => "recordings of one second".to_owned(),
            () if has(Medium::Video) => format!("videos of {FRAMES} frames of {0} x {0}", self.size),
            () => format!("arrays of {LATENT:?}"),
        };
        let costs = table(&[false; 5], &rows);
        text += &format!("\n{costs}\n  times and fuel: per sample ({medium}); memory: of the instance\n");
        Ok(text)
    }
}
