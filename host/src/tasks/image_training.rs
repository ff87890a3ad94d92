//! Training on real images by style: what the CAN and the simple classifier share.
//!
//! Every draw of a step comes from a generator seeded by (seed, step).

use std::path::Path;
use std::time::Instant;

use ambiguity_models::can::{Discriminator, Share, loss};
use ambiguity_models::params::NamedTensors;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::Generator as Randomness;

use crate::config::gan::GanTask;
use crate::config::{GanConfig, OnCollapse};
use crate::context::Context;
use crate::data::png::Sheet;
use crate::data::styles::{Loader, Options, Source, StyleBatch, StyleImages};
use crate::interrupt::Interrupt;
use crate::optim::Diverged;
use crate::plugin::user_cache;
use crate::processes::Processes;
use crate::progress::Bar;
use crate::random::{Purpose, derive_seed};
use crate::report::confusion::confusion_matrix;
use crate::run::CONFUSION;
use crate::run::record::{Pace, PaceSeconds};
use crate::trainer::{Claim, Monitored, Saved, Schedule, State, Task, Trained};

/// The configuration's key of the learning rate.
pub const LEARNING_RATE: &str = "can.adam.learning_rate";
/// Number of images in a batch of an evaluation.
pub const EVALUATION_BATCH: usize = 64;
/// Number of steps after which the metrics are read from the device, and checked.
const READ_EVERY: u64 = 10;
/// Number of steps after which generated images should be diverse: small networks need some hundred. It does not
/// depend on the run's length, since a run that is extended must warn as one that had that length from the start.
const OVERDUE: u64 = 1000;
/// Maximum fraction of training time spent waiting for images, without a warning.
const MAX_WAITING: f64 = 0.1;
/// Epochs of fewer seconds are too short to measure the waiting.
const SHORT_EPOCH: f64 = 10.0;

/// Networks that are trained on images by style.
pub trait Networks {
    /// The means of an epoch's steps.
    type Means: Serialize + DeserializeOwned + Clone + std::fmt::Debug;
    /// The epoch's record: the means and the speed.
    type Epoch: Serialize + DeserializeOwned + Clone + std::fmt::Debug;
    /// The record of a monitor.
    type Monitor: Serialize + DeserializeOwned + Clone + std::fmt::Debug;

    /// The task.
    const TASK: GanTask;

    /// Updates the networks on a batch, of which the images are this process's share. The metrics are means over the share.
    fn step(&mut self, batch: &StyleBatch, share: &Share, randomness: &mut Randomness) -> Result<StepMetrics>;
    /// Returns the means as a short text for the progress bar.
    fn summary(means: &Self::Means) -> String;
    /// Returns the epoch's record.
    fn record(means: Self::Means, pace: Pace) -> Self::Epoch;
    /// Evaluates the networks.
    ///
    /// # Errors
    /// [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop.
    fn monitor(&mut self, data: &StyleImages, epoch: u64, interrupt: &Interrupt) -> Result<Monitored<Self::Monitor>>;
    /// Returns the warnings of an epoch and its monitor.
    fn warnings(&self, epoch: &Self::Epoch, monitor: Option<&Self::Monitor>, stage: Stage) -> Vec<String>;
    /// Returns the name of a tensor with a value that is not finite, if any.
    fn not_finite(&self) -> Result<Option<String>>;
    /// Returns the state of networks and optimizers.
    fn state(&self) -> NamedTensors;
    /// Restores a state.
    fn load_state(&mut self, state: &NamedTensors) -> Result<()>;
    /// Returns the files for the run's folder, by name.
    fn products(&self) -> Result<Vec<(String, Vec<u8>)>>;
    /// Returns the number of trained parameters.
    fn n_parameters(&self) -> usize;
}

/// The stage of a generator's training; only generated images that were at least as diverse as `monitor.min_diversity`
/// can collapse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// They have not been diverse yet, as expected.
    Beginning,
    /// They have not been diverse yet, although the number of steps should suffice.
    Overdue,
    /// They have been diverse.
    Diverse,
}

/// A training of networks on images by style.
pub struct ImageTraining<N> {
    config: GanConfig,
    data: StyleImages,
    networks: N,
    /// Batches from the next step on; created when the first epoch starts.
    loader: Option<Loader>,
    /// This process's share of every batch.
    share: Share,
    device: Device,
    interrupt: Interrupt,
    /// The processes that share the batches.
    processes: Processes,
}

impl<N: Networks> ImageTraining<N> {
    /// Returns a training of networks with fresh weights.
    ///
    /// # Errors
    /// If there are more processes than images in a batch.
    pub fn new(config: GanConfig, data: StyleImages, networks: N, device: Device, context: &Context) -> Result<Self> {
        let (n, processes) = (config.can.batch_size, &context.processes);
        ensure!(
            n >= processes.count(),
            "{} processes share the {n} images of a batch: raise can.batch_size, or start fewer processes",
            processes.count()
        );
        let share = match processes.group() {
            None => Share::whole(n as i64),
            Some(group) => {
                let rows = processes.share(n, 1);
                Share::of_processes(rows.start as i64..rows.end as i64, n as i64, group)
            }
        };
        tracing::info!(
            "{} styles, {} images to train on, {} held out; {} parameters",
            data.styles().len(),
            data.n_train(),
            data.n_test(),
            networks.n_parameters()
        );
        let (interrupt, processes) = (context.interrupt.clone(), processes.clone());
        Ok(Self { config, data, networks, loader: None, share, device, interrupt, processes })
    }

    /// Returns the images, and the seconds of a step on them, measured over `n_steps` steps after a warm-up step; the
    /// updated weights are discarded.
    pub fn time_steps(mut self, n_steps: u32) -> Result<(StyleImages, f64)> {
        let mut loader = self.data.loader(self.config.can.batch_size, self.config.can.flip, self.config.run.seed, 0);
        let mut began = Instant::now();
        for i in 0..=n_steps {
            self.interrupt.check("nothing was started")?;
            self.step(&loader.next()?, &mut Randomness::cpu(u64::from(i))?)?;
            // This waits for the device.
            self.networks.not_finite()?;
            if i == 0 {
                began = Instant::now();
            }
        }
        let seconds = began.elapsed().as_secs_f64() / f64::from(n_steps);
        drop(loader);
        Ok((self.data, seconds))
    }

    /// Updates the networks on this process's share of a batch; the metrics are means over the share.
    fn step(&mut self, batch: &StyleBatch, randomness: &mut Randomness) -> Result<StepMetrics> {
        let Self { networks, share, device, .. } = self;
        let own = |tensor: &Tensor| share.rows(tensor).to_device(*device);
        let own = StyleBatch { images: own(&batch.images), styles: own(&batch.styles) };
        self.processes.together(|| networks.step(&own, share, randomness))
    }

    /// Runs one epoch's steps; returns their means, the seconds in total and the seconds spent waiting for images.
    fn steps(&mut self, epoch: u64, bar: &Bar) -> Result<(N::Means, f64, f64)> {
        let can = self.config.can.clone();
        let n_steps = steps_per_epoch(&self.config, &self.data);
        let first_step = (epoch - 1) * n_steps;
        let make = || self.data.loader(can.batch_size, can.flip, self.config.run.seed, first_step);
        let mut loader = self.loader.take().unwrap_or_else(make);
        let (began, waited_before) = (Instant::now(), loader.waited());
        let mut totals = Totals::default();
        for step in first_step..first_step + n_steps {
            self.interrupt.check("")?;
            let batch = loader.next()?;
            let mut randomness = Randomness::cpu(derive_seed(self.config.run.seed, 0, step, Purpose::Update))?;
            totals.add(self.step(&batch, &mut randomness)?);
            bar.inc(can.batch_size as u64);
            let done = step + 1 - first_step;
            if done.is_multiple_of(READ_EVERY) || done == n_steps {
                totals.read(step + 1, &self.share, &self.processes)?;
                bar.message(format!("epoch {epoch}/{} {}", can.epochs, N::summary(&totals.means()?)));
            }
        }
        let waited = (loader.waited() - waited_before).as_secs_f64();
        self.loader = Some(loader);
        // Checked before anything of this epoch is kept: the metrics are those before the last update.
        if let Some(tensor) = self.networks.not_finite()? {
            let what = format!("{tensor} is not finite after step {}", first_step + n_steps);
            bail!(Diverged { what, lower: LEARNING_RATE });
        }
        Ok((totals.means()?, began.elapsed().as_secs_f64(), waited))
    }
}

impl<N: Networks> Task for ImageTraining<N> {
    type Epoch = N::Epoch;
    type Monitor = N::Monitor;

    fn resume_command(&self, folder: &Path) -> (String, bool) {
        (format!("{} --resume {}", N::TASK.command(), folder.display()), true)
    }

    fn schedule(&self) -> Schedule {
        let GanConfig { can, checkpoint, monitor, .. } = &self.config;
        let images = steps_per_epoch(&self.config, &self.data) * can.batch_size as u64;
        Schedule {
            epochs: can.epochs,
            checkpoint: checkpoint.clone(),
            monitor_every: monitor.every,
            collapse: Some((monitor.min_diversity, monitor.on_collapse == OnCollapse::Stop)),
            progress: (images, "images"),
        }
    }

    fn train_epoch(&mut self, epoch: u64, bar: &Bar) -> Result<Trained<N::Epoch>> {
        let (means, seconds, waited) = self.steps(epoch, bar)?;
        if waited > MAX_WAITING * seconds && seconds > SHORT_EPOCH {
            // Not among the record's warnings, which must be the same for repeated runs.
            tracing::warn!(
                "epoch {epoch}: training waited for images {:.0} % of its time: is the disk of the cache slow? \
                 XDG_CACHE_HOME moves it",
                100.0 * waited / seconds
            );
        }
        let steps = steps_per_epoch(&self.config, &self.data);
        let pace = Pace {
            steps,
            images_per_second: steps as f64 * self.config.can.batch_size as f64 / seconds,
            seconds: PaceSeconds { data: waited, train: seconds - waited },
        };
        let message = N::summary(&means);
        Ok(Trained { record: N::record(means, pace), message, warnings: Vec::new(), kept: None })
    }

    fn monitor(&mut self, epoch: u64) -> Result<Option<Monitored<N::Monitor>>> {
        let Self { networks, data, interrupt, processes, .. } = self;
        let mut own = None;
        let (record, score, diversity) = processes.from_first(|| {
            let Monitored { record, score, diversity, .. } = own.insert(networks.monitor(data, epoch, interrupt)?);
            Ok((serde_json::to_string(record)?, *score, *diversity))
        })?;
        // The other processes decide by what the first one found, and write nothing.
        Ok(Some(match own {
            Some(monitored) => monitored,
            None => {
                let record = serde_json::from_str(&record)?;
                Monitored { record, score, diversity, sheet: None, images: Vec::new(), kept: None }
            }
        }))
    }

    fn warnings(
        &self,
        epoch: u64,
        trained: &N::Epoch,
        monitor: Option<&N::Monitor>,
        best_diversity: f64,
    ) -> Vec<String> {
        let stage = match best_diversity >= self.config.monitor.min_diversity {
            true => Stage::Diverse,
            false if epoch * steps_per_epoch(&self.config, &self.data) >= OVERDUE => Stage::Overdue,
            false => Stage::Beginning,
        };
        self.networks.warnings(trained, monitor, stage)
    }

    fn counteract(&mut self) -> Option<String> {
        None
    }

    fn state(&self) -> Result<State> {
        let metadata = vec![
            ("data", self.data.digest().to_owned()),
            ("images", self.data.summary()),
            ("styles", serde_json::to_string(self.data.styles())?),
        ];
        Ok(State { tensors: self.networks.state(), metadata, files: Vec::new() })
    }

    fn restore(&mut self, saved: &Saved, claim: &Claim) -> Result<()> {
        let digest = saved.text("data")?;
        if digest != self.data.digest() {
            let (run, before, now) = (claim.folder().display(), saved.text("images")?, self.data.summary());
            let short = |digest: &str| digest.chars().take(8).collect::<String>();
            let (digest, own) = (short(digest), short(self.data.digest()));
            let error = anyhow!(
                "{run}: the run was started with {before} (digest {digest}…), these are {now} ({own}…): name its \
                 images with --data, or start a new run"
            );
            // The style head cannot be trained on other styles than its own.
            ensure!(saved.text("styles")? == serde_json::to_string(self.data.styles())?, "{error}");
            claim.refuse(error)?;
        }
        self.networks.load_state(&saved.tensors)
    }

    fn products(&mut self) -> Result<Vec<(String, Vec<u8>)>> {
        self.networks.products()
    }
}

/// Returns the number of steps of an epoch.
pub fn steps_per_epoch(config: &GanConfig, data: &StyleImages) -> u64 {
    match config.can.steps_per_epoch {
        0 => (data.per_pass() / config.can.batch_size).max(1) as u64,
        steps => steps,
    }
}

/// Opens the images of a configuration, cached at its size.
pub fn open_data(config: &GanConfig, context: &Context) -> Result<StyleImages> {
    let cache = user_cache().context("there is no folder for the cache of images: set XDG_CACHE_HOME or HOME")?;
    let can = &config.can;
    let source = match can.data.as_str() {
        // As many as leave a whole pass after some are held out.
        "" => Source::Paintings {
            seed: derive_seed(config.run.seed, 0, 0, Purpose::Data),
            per_class: (can.per_class as f64 / (1.0 - can.test_share)).ceil() as usize,
        },
        folder => Source::Folder(folder.into()),
    };
    let options = Options {
        size: can.size,
        fit: can.fit,
        per_class: can.per_class,
        test_share: can.test_share,
        seed: config.run.seed,
    };
    let open = || StyleImages::open(&source, &options, &cache, &context.progress, &context.interrupt);
    // The first process fills the cache for those that share it.
    let data = context.processes.first_before_others(open)?;
    context.processes.compare("the images", data.digest())?;
    Ok(data)
}

/// The confusion matrix of a classifier on held-out images.
pub struct Confusion {
    /// Number of images by true style (row) and predicted style (column).
    pub counts: Vec<Vec<usize>>,
    /// Mean cross-entropy in nats.
    pub loss: f64,
}

impl Confusion {
    /// Evaluates a style head in eval mode on every held-out image.
    ///
    /// # Errors
    /// [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop.
    pub fn of(network: &Discriminator, data: &StyleImages, device: Device, interrupt: &Interrupt) -> Result<Self> {
        let n_styles = data.styles().len();
        let mut confusion = Self { counts: vec![vec![0; n_styles]; n_styles], loss: 0.0 };
        for batch in data.test_batches(EVALUATION_BATCH) {
            interrupt.check("")?;
            let batch = batch?;
            let images = batch.images.to_device(device);
            let logits = no_grad(|| network.forward(&images))?.styles.to_device(Device::Cpu);
            confusion.loss += loss::style(&logits, &batch.styles, 0.0).double_value(&[]) * batch.styles.numel() as f64;
            let labels = Vec::<i64>::try_from(&batch.styles)?;
            for (label, predicted) in labels.into_iter().zip(Vec::<i64>::try_from(&logits.argmax(-1, false))?) {
                confusion.counts[label as usize][predicted as usize] += 1;
            }
        }
        confusion.loss /= data.n_test() as f64;
        Ok(confusion)
    }

    /// Returns the confusion matrix as an image for the run's folder; none for untrained networks.
    pub fn image(&self, epoch: u64, styles: &[String]) -> Option<(&'static str, Sheet)> {
        (epoch > 0).then(|| (CONFUSION, confusion_matrix(styles, &self.counts, self.accuracy()).into()))
    }

    /// Returns the fraction of images whose style is predicted correctly.
    pub fn accuracy(&self) -> f64 {
        let correct: usize = (0..self.counts.len()).map(|i| self.counts[i][i]).sum();
        correct as f64 / self.counts.iter().flatten().sum::<usize>().max(1) as f64
    }
}

/// Returns the fraction of logits [n, styles] whose argmax is the label, a scalar.
pub fn accuracy(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.detach().argmax(-1, false).eq_tensor(labels).to_kind(Kind::Float).mean(Kind::Float)
}

/// The metrics of a step by their path in the record, `loss/style` for `style` in `loss`; kept on the device to avoid
/// synchronization.
#[derive(Default)]
pub struct StepMetrics(Vec<(&'static str, Tensor)>);

impl StepMetrics {
    /// Adds a metric.
    pub fn add(&mut self, name: &'static str, value: &Tensor) {
        self.0.push((name, value.detach().to_kind(Kind::Float)));
    }
}

/// Sums of metrics over an epoch.
#[derive(Default)]
struct Totals {
    names: Vec<&'static str>,
    on_device: Option<Tensor>,
    totals: Vec<f64>,
    n_steps: u64,
    /// Number of steps that have not been read from the device yet.
    n_unread: u64,
}

impl Totals {
    /// Adds a step's metrics.
    fn add(&mut self, metrics: StepMetrics) {
        let (names, values): (Vec<_>, Vec<_>) = metrics.0.into_iter().unzip();
        let values = Tensor::stack(&values, 0);
        self.names = names;
        self.on_device = Some(match self.on_device.take() {
            None => values,
            Some(sum) => sum + values,
        });
        self.n_steps += 1;
        self.n_unread += 1;
    }

    /// Reads the sums since the last read from the device, up to `step`, as means over the whole batches.
    ///
    /// # Errors
    /// [`Diverged`] if a sum is not finite.
    fn read(&mut self, step: u64, share: &Share, processes: &Processes) -> Result<()> {
        let Some(sums) = self.on_device.take() else { return Ok(()) };
        let mut sums = sums.to_device(Device::Cpu).to_kind(Kind::Double) * share.weight();
        processes.sum(&mut sums)?;
        let sums = Vec::<f64>::try_from(&sums)?;
        self.totals.resize(sums.len(), 0.0);
        for ((total, sum), name) in self.totals.iter_mut().zip(sums).zip(&self.names) {
            if !sum.is_finite() {
                let what = match self.n_unread {
                    1 => format!("{name} is not a finite number at step {step}"),
                    n => format!("{name} is not a finite number at one of the steps {} to {step}", step + 1 - n),
                };
                bail!(Diverged { what, lower: LEARNING_RATE });
            }
            *total += sum;
        }
        self.n_unread = 0;
        Ok(())
    }

    /// Returns the means so far as the typed record: `a/b` becomes `b` in `a`.
    fn means<T: DeserializeOwned>(&self) -> Result<T> {
        let mut record = Map::new();
        for (name, total) in self.names.iter().zip(&self.totals) {
            let mean = Value::from(total / self.n_steps.max(1) as f64);
            match name.split_once('/') {
                None => drop(record.insert((*name).to_owned(), mean)),
                Some((group, name)) => {
                    let group = record.entry(group).or_insert_with(|| Value::Object(Map::new()));
                    group[name] = mean;
                }
            }
        }
        Ok(serde_json::from_value(Value::Object(record))?)
    }
}

#[cfg(test)]
mod tests {
    use crate::run::record::ClassifierMeans;

    use super::*;

    fn metrics(loss: f32, accuracy: f32) -> StepMetrics {
        let mut metrics = StepMetrics::default();
        metrics.add("loss", &Tensor::from(loss));
        metrics.add("accuracy", &Tensor::from(accuracy));
        metrics
    }

    #[test]
    fn metrics_are_averaged_over_the_steps() {
        let mut totals = Totals::default();
        let (share, processes) = (Share::whole(4), Processes::default());
        totals.add(metrics(1.0, 0.5));
        totals.add(metrics(2.0, 1.0));
        totals.read(2, &share, &processes).expect("they are numbers");
        totals.add(metrics(3.0, 0.0));
        totals.read(3, &share, &processes).expect("they are numbers");
        let means: ClassifierMeans = totals.means().expect("typed");
        assert_eq!(means, ClassifierMeans { loss: 2.0, accuracy: 0.5 });
        totals.add(metrics(f32::NAN, 0.0));
        let error = totals.read(4, &share, &processes).expect_err("not a number");
        assert_eq!(error.to_string(), "loss is not a finite number at step 4");
        assert!(error.is::<Diverged>());
        let mut totals = Totals::default();
        (0..4).for_each(|_| totals.add(metrics(f32::INFINITY, 0.0)));
        let message = totals.read(4, &share, &processes).expect_err("not finite").to_string();
        assert_eq!(message, "loss is not a finite number at one of the steps 1 to 4");
    }
}
