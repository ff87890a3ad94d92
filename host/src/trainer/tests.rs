//! Tests of the loop with a task that only sums its epochs.

use std::ffi::OsString;
use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use image::RgbImage;
use tch::{Kind, Tensor};

use super::*;
use crate::config::GanConfig;
use crate::config::gan::GanTask;
use crate::data::png::Sheet;
use crate::interrupt::Interrupted;
use crate::optim::Diverged;
use crate::processes::Processes;
use crate::processes::tests::three;
use crate::run::record::{ClassifierEpoch, ClassifierMonitor};
use crate::run::{LockedPlugin, PluginsLock, RunDir, RunInfo};

const COMMAND: &str = "host classifier train";

#[test]
fn only_a_model_that_was_diverse_collapses() {
    let mut progress = Progress::default();
    let diversities = [Some(0.1), None, Some(0.3), Some(0.5), None, Some(0.2)];
    let collapsed = diversities.map(|diversity| progress.collapsed(diversity, 0.3));
    assert_eq!(collapsed, [false, false, false, false, false, true]);
    // With another minimum, a model that was below it from the start has not collapsed.
    assert!(!progress.collapsed(Some(0.4), 0.6));
    assert!(progress.collapsed(Some(0.4), 0.5));
    assert!(!progress.collapsed(Some(0.5), 0.5), "the minimum itself is no collapse");
}

/// The error that stops a training in an epoch.
type Stop = fn() -> anyhow::Error;

/// A task whose weight is the sum of its trained epochs.
#[derive(Clone, Debug)]
struct Sum {
    weight: f64,
    epochs: u64,
    every: u64,
    keep: usize,
    monitor_every: u64,
    /// Scores by epoch, from 0 on.
    scores: &'static [Option<f64>],
    diversities: &'static [Option<f64>],
    collapse: Option<(f64, bool)>,
    stop: Option<(u64, Stop)>,
    /// An epoch whose monitor fails.
    blind: Option<u64>,
}

impl Sum {
    fn of(epochs: u64) -> Self {
        Self {
            weight: 0.0,
            epochs,
            every: 2,
            keep: 0,
            monitor_every: 2,
            scores: &[],
            diversities: &[],
            collapse: None,
            stop: None,
            blind: None,
        }
    }

    fn product(weight: f64) -> Vec<u8> {
        format!("weight {weight}").into_bytes()
    }

    fn image(&self) -> RgbImage {
        RgbImage::from_pixel(2, 2, image::Rgb([self.weight as u8; 3]))
    }
}

impl Task for Sum {
    type Epoch = ClassifierEpoch;
    type Monitor = ClassifierMonitor;

    fn resume_command(&self, folder: &Path) -> (String, bool) {
        (format!("host sum --resume {}", folder.display()), true)
    }

    fn schedule(&self) -> Schedule {
        Schedule {
            epochs: self.epochs,
            checkpoint: Checkpoint { every: self.every, keep: self.keep },
            monitor_every: self.monitor_every,
            collapse: self.collapse,
            progress: (1, "epochs"),
        }
    }

    fn train_epoch(&mut self, epoch: u64, _bar: &Bar) -> Result<Trained<ClassifierEpoch>> {
        // Half of an epoch, which is not kept if it stops here.
        self.weight += 0.5;
        if let Some((at, stop)) = self.stop
            && at == epoch
        {
            return Err(stop());
        }
        self.weight += epoch as f64 - 0.5;
        let mut record = ClassifierEpoch::default();
        record.means.loss = self.weight;
        Ok(Trained { record, message: String::new(), warnings: vec![format!("trained {epoch}")], kept: None })
    }

    fn monitor(&mut self, epoch: u64) -> Result<Option<Monitored<ClassifierMonitor>>> {
        if self.blind == Some(epoch) {
            return Ok(None);
        }
        let of = |list: &[Option<f64>]| list.get(epoch as usize).copied().flatten();
        Ok(Some(Monitored {
            record: ClassifierMonitor { accuracy: 0.0, loss: self.weight },
            score: of(self.scores),
            diversity: of(self.diversities),
            sheet: Some(self.image().into()),
            images: vec![("newest.png", self.image().into())],
            kept: None,
        }))
    }

    fn warnings(
        &self,
        epoch: u64,
        _: &ClassifierEpoch,
        monitor: Option<&ClassifierMonitor>,
        best_diversity: f64,
    ) -> Vec<String> {
        vec![format!("epoch {epoch} monitored {} most diverse {best_diversity}", monitor.is_some())]
    }

    fn counteract(&mut self) -> Option<String> {
        Some("counteracted".to_owned())
    }

    fn state(&self) -> Result<State> {
        let tensors = [("weight".to_owned(), Tensor::from(self.weight))].into();
        Ok(State { tensors, metadata: vec![("kind", "sum".to_owned())], files: vec![("note.txt", b"a note".to_vec())] })
    }

    fn restore(&mut self, checkpoint: &Saved, _claim: &Claim) -> Result<()> {
        assert_eq!(checkpoint.text("kind")?, "sum");
        assert_eq!(fs::read(checkpoint.folder.join("note.txt"))?, b"a note");
        self.weight = checkpoint.tensors["weight"].to_kind(Kind::Double).double_value(&[]);
        Ok(())
    }

    fn products(&mut self) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(vec![
            ("sum.txt".to_owned(), Self::product(self.weight)),
            ("twice.txt".to_owned(), Self::product(2.0 * self.weight)),
        ])
    }

    fn last_images(&mut self, ends: &Ends<ClassifierMonitor>) -> Result<Vec<(&'static str, Sheet)>> {
        let pixel = image::Rgb([ends.first.loss as u8, ends.last.loss as u8, self.weight as u8]);
        Ok(vec![(run::BEFORE_AFTER, RgbImage::from_pixel(1, 1, pixel).into())])
    }
}

/// Runs in one folder.
struct Runs {
    folder: tempfile::TempDir,
}

impl Runs {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn run(&self, task: Sum, start: Start) -> Result<Outcome<Sum>> {
        Self::run_in(task, start, Processes::default())
    }

    fn run_in(task: Sum, start: Start, processes: Processes) -> Result<Outcome<Sum>> {
        let config = GanConfig::resolve(GanTask::Classifier, "tiny-art", &[])?;
        let info = RunInfo { command: COMMAND.to_owned(), ..RunInfo::default() };
        let context = Context { processes, ..Context::quiet() };
        let claim = start.claim(PluginsLock::default(), &context.processes)?;
        Trainer::new(task, claim, &config, &info, &context)?.run()
    }

    fn start(&self, task: Sum) -> Result<Outcome<Sum>> {
        self.run(task, Start::New(self.path()))
    }

    fn resume(&self, task: Sum, epoch: Option<u64>) -> Result<Outcome<Sum>> {
        self.run(task, Start::Resume { folder: self.path(), epoch, force: false })
    }

    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path().join(name)).ok()
    }

    fn pixel(&self, name: &str) -> [u8; 3] {
        image::open(self.path().join(name)).expect("an image").to_rgb8().get_pixel(0, 0).0
    }

    /// The names in one of the run's folders, sorted.
    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path().join(folder)).expect("a folder").map(|entry| entry.expect("readable"));
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn records(&self) -> Vec<Record<ClassifierEpoch, ClassifierMonitor>> {
        run::records(&self.path()).expect("whole lines")
    }
}

fn interrupted() -> anyhow::Error {
    Interrupted::default().into()
}

#[test]
fn a_whole_run_has_its_records_products_sheets_and_checkpoints() {
    let runs = Runs::new();
    let outcome = runs.start(Sum::of(5)).expect("it trains");
    assert_eq!((outcome.epochs, outcome.collapsed, outcome.task.weight), (5, false, 15.0));
    assert_eq!((outcome.ends.first.loss, outcome.ends.last.loss), (0.0, 15.0));
    assert_eq!(outcome.folder, runs.path());
    let seen = |record: &Record<ClassifierEpoch, ClassifierMonitor>| {
        let trained = record.trained.as_ref().map(|epoch| epoch.means.loss);
        (record.epoch, trained, record.monitor.as_ref().map(|monitor| monitor.loss))
    };
    let wanted = [
        (0, None, Some(0.0)),
        (1, Some(1.0), None),
        (2, Some(3.0), Some(3.0)),
        (3, Some(6.0), None),
        (4, Some(10.0), Some(10.0)),
        (5, Some(15.0), Some(15.0)),
    ];
    assert_eq!(runs.records().iter().map(seen).collect::<Vec<_>>(), wanted);
    assert_eq!(runs.records()[1].warnings, ["trained 1", "epoch 1 monitored false most diverse 0"]);
    assert_eq!(runs.records()[2].warnings, ["trained 2", "epoch 2 monitored true most diverse 0"]);
    assert_eq!(runs.names("checkpoints"), ["epoch-0002", "epoch-0004", "epoch-0005"]);
    assert_eq!(runs.names("samples"), ["epoch-0000.png", "epoch-0002.png", "epoch-0004.png", "epoch-0005.png"]);
    assert_eq!(runs.text("sum.txt").as_deref(), Some("weight 15"));
    assert_eq!(runs.text("twice.txt").as_deref(), Some("weight 30"));
    assert_eq!(runs.pixel("newest.png"), [15; 3]);
    assert_eq!(runs.pixel(run::BEFORE_AFTER), [0, 15, 15]);
    assert!(runs.path().join(report::FILE).is_file() && runs.text("best/sum.txt").is_none());
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    const SCORES: &[Option<f64>] = &[Some(1.0), None, Some(3.0), None, Some(2.0), Some(2.5)];
    const DIVERSITIES: &[Option<f64>] = &[Some(0.5), None, Some(0.9), None, Some(0.8), Some(0.7)];
    let task = || Sum { scores: SCORES, diversities: DIVERSITIES, collapse: Some((0.1, true)), ..Sum::of(5) };
    let whole = Runs::new();
    whole.start(task()).expect("it trains");
    for at in 1..=5 {
        let stopped = Runs::new();
        let error = stopped.start(Sum { stop: Some((at, interrupted)), ..task() }).expect_err("it is interrupted");
        let kept = format!(
            "{} of 5 epochs are kept in {folder}; resume with `host sum --resume {folder}`",
            at - 1,
            folder = stopped.path().display()
        );
        assert_eq!(error.downcast_ref::<Interrupted>().expect("an interruption").kept, kept);
        // The last finished epoch is on the disk, whichever epochs have checkpoints, and the unfinished one is not.
        let weight = (at - 1) * at / 2;
        assert_eq!(stopped.text("sum.txt"), (at > 1).then(|| format!("weight {weight}")), "stopped in epoch {at}");
        let outcome = stopped.resume(task(), None).expect("it resumes");
        assert_eq!((outcome.task.weight, outcome.ends.first.loss, outcome.ends.last.loss), (15.0, 0.0, 15.0));
        for file in ["metrics.jsonl", "sum.txt", "twice.txt", "best/sum.txt", "checkpoints/epoch-0005/best.safetensors"]
        {
            assert!(whole.text(file).is_some(), "{file}");
            assert_eq!(stopped.text(file), whole.text(file), "{file}, stopped in epoch {at}");
        }
        let state =
            |runs: &Runs| fs::read(runs.path().join("checkpoints/epoch-0005/state.safetensors")).expect("saved");
        assert_eq!(
            Saved::read(&stopped.path().join("checkpoints/epoch-0005")).expect("saved").tensors["weight"],
            Tensor::from(15.0f64)
        );
        assert_eq!(state(&stopped).len(), state(&whole).len());
    }
    assert_eq!(whole.text("best/sum.txt").as_deref(), Some("weight 3"));
}

#[test]
fn the_best_has_the_highest_score_and_is_rewound_with_its_run() {
    const SCORES: &[Option<f64>] = &[None, None, Some(3.0), Some(3.0), Some(1.0), Some(4.0)];
    let runs = Runs::new();
    let task = Sum { scores: SCORES, monitor_every: 1, every: 1, ..Sum::of(5) };
    runs.start(task.clone()).expect("it trains");
    assert_eq!(runs.text("best/sum.txt").as_deref(), Some("weight 15"));
    // An equal score does not replace the earlier best, and the published files are those of the epoch it is rewound
    // to.
    let task = Sum { epochs: 4, ..task };
    let outcome = runs.resume(task.clone(), Some(4)).expect("it has finished");
    assert_eq!((outcome.epochs, outcome.task.weight, outcome.ends.last.loss), (4, 10.0, 10.0));
    assert_eq!(runs.text("best/sum.txt").as_deref(), Some("weight 3"));
    assert_eq!(runs.text("sum.txt").as_deref(), Some("weight 10"));
    assert_eq!((runs.records().len(), runs.names("checkpoints").len()), (5, 4));
    let error = runs.resume(task.clone(), Some(5)).expect_err("it was removed").to_string();
    assert!(error.ends_with("has no checkpoint of epoch 5"), "{error}");
    // A best that the checkpoint lacks is removed.
    let stop: Stop = || anyhow!("a fault");
    let error = runs.resume(Sum { stop: Some((2, stop)), ..task }, Some(1)).expect_err("it stops");
    assert!(format!("{error:#}").starts_with("a fault; stopped in epoch 2; "), "{error:#}");
    assert!(runs.text("best/sum.txt").is_none());
}

#[test]
fn a_finished_run_is_not_changed() {
    let runs = Runs::new();
    let whole = runs.start(Sum::of(3)).expect("it trains");
    let metrics = runs.text("metrics.jsonl");
    let pixel = RgbImage::from_pixel(1, 1, image::Rgb([9; 3]));
    pixel.save(runs.path().join(run::BEFORE_AFTER)).expect("writable");
    let again = runs.resume(Sum::of(3), None).expect("it has finished");
    assert_eq!((again.epochs, again.task.weight), (whole.epochs, whole.task.weight));
    assert_eq!((again.ends.first.loss, again.ends.last.loss), (0.0, 6.0));
    // The last images are generated only where they are missing.
    assert_eq!((runs.text("metrics.jsonl"), runs.pixel(run::BEFORE_AFTER)), (metrics.clone(), [9; 3]));
    fs::remove_file(runs.path().join(run::BEFORE_AFTER)).expect("it exists");
    runs.resume(Sum::of(3), None).expect("it has finished");
    assert_eq!((runs.text("metrics.jsonl"), runs.pixel(run::BEFORE_AFTER)), (metrics, [0, 6, 6]));
    let more = runs.resume(Sum::of(4), None).expect("it continues");
    assert_eq!((more.epochs, more.task.weight, runs.pixel(run::BEFORE_AFTER)), (4, 10.0, [0, 10, 10]));
}

#[test]
fn a_collapse_ends_a_run_or_is_warned_of() {
    const DIVERSITIES: &[Option<f64>] = &[Some(1.0), Some(0.6), Some(0.2), Some(0.1), Some(0.1)];
    const SCORES: &[Option<f64>] = &[None, Some(1.0), Some(2.0), Some(3.0), Some(4.0)];
    let task = |what| Sum {
        diversities: DIVERSITIES,
        scores: SCORES,
        monitor_every: 1,
        every: 3,
        collapse: Some((0.3, what)),
        ..Sum::of(4)
    };
    let runs = Runs::new();
    let outcome = runs.start(task(true)).expect("it ends without an error");
    assert_eq!((outcome.epochs, outcome.collapsed, outcome.task.weight), (2, true, 3.0));
    assert_eq!(runs.names("checkpoints"), ["epoch-0002"]);
    assert_eq!(runs.text("best/sum.txt").as_deref(), Some("weight 1"));
    assert_eq!(runs.records()[2].warnings, ["trained 2", "epoch 2 monitored true most diverse 1"]);
    let runs = Runs::new();
    let outcome = runs.start(task(false)).expect("it continues");
    assert_eq!((outcome.epochs, outcome.collapsed, outcome.task.weight), (4, false, 10.0));
    assert_eq!(runs.text("best/sum.txt").as_deref(), Some("weight 1"), "a collapsed model is never the best");
    // The task reacts to it, and not before; the model is kept as it was found.
    assert_eq!(runs.records()[1].warnings.len(), 2);
    assert_eq!(runs.records()[2].warnings, ["trained 2", "epoch 2 monitored true most diverse 1", "counteracted"]);
    assert_eq!(runs.names("checkpoints"), ["epoch-0002", "epoch-0003", "epoch-0004"]);
}

#[test]
fn processes_train_together_unless_their_weights_differ() {
    let train = |other: Option<usize>| {
        let runs = Runs::new();
        three(Duration::from_secs(20), |processes| {
            let weight = if other == Some(processes.rank()) { 1.0 } else { 0.0 };
            let ended = Runs::run_in(Sum { weight, ..Sum::of(3) }, Start::New(runs.path()), processes);
            ended.map(|outcome| (outcome.epochs, outcome.task.weight)).map_err(|error| error.to_string())
        })
    };
    assert_eq!(train(None), [Ok((3, 6.0)), Ok((3, 6.0)), Ok((3, 6.0))]);
    for ended in train(Some(2)) {
        let message = ended.expect_err("one differs");
        assert!(message.starts_with("the weights of process 2 differ from those of process 0"), "{message}");
    }

    // The others get the checkpoint from the first, which alone has the run's folder.
    let (runs, elsewhere) = (Runs::new(), Runs::new());
    runs.start(Sum::of(2)).expect("it trains");
    let resumed = three(Duration::from_secs(20), |processes| {
        let folder = if processes.is_first() { runs.path() } else { elsewhere.path() };
        let outcome = Runs::run_in(Sum::of(4), Start::Resume { folder, epoch: None, force: false }, processes);
        outcome.map(|outcome| (outcome.epochs, outcome.task.weight, outcome.ends.first.loss)).expect("it resumes")
    });
    assert_eq!(resumed, [(4, 10.0, 0.0); 3]);
    assert!(!elsewhere.path().exists());
}

#[test]
fn what_is_resumed_is_a_run_or_a_checkpoint_of_the_same_command() {
    let runs = Runs::new();
    runs.start(Sum::of(3)).expect("it trains");
    let resume = |part: &str, command: &str, force| {
        Start::resume(Some(&runs.path().join(part)), command, force).map_err(|error| error.to_string())
    };
    let start = |epoch, force| Ok(Start::Resume { folder: runs.path(), epoch, force });
    assert_eq!(Start::resume(Some(&runs.path()), COMMAND, false).expect("a run"), start(None, false).expect("a start"));
    assert_eq!(resume("checkpoints/epoch-0002", COMMAND, true), start(Some(2), true));
    for other in ["checkpoints", "checkpoints/epoch-0009", "samples/epoch-0002.png"] {
        let message = resume(other, COMMAND, false).expect_err("no run");
        assert!(message.contains("is neither a run's folder"), "{message}");
    }
    let message = resume("checkpoints/epoch-0002", "host train", false).expect_err("another command");
    let resumed_by =
        format!("resume it with `{COMMAND} --resume {}`", runs.path().join("checkpoints/epoch-0002").display());
    assert!(message.contains("is a run of `host classifier train`") && message.ends_with(&resumed_by), "{message}");
}

#[test]
fn a_lock_allows_its_own_plugins_alone() {
    let runs = Runs::new();
    let lock_of = |sha256: &str| {
        let plugin = LockedPlugin {
            name: "palette".to_owned(),
            source: "palette.wasm".to_owned(),
            sha256: sha256.to_owned(),
            interface: "0.2.0".to_owned(),
            ..LockedPlugin::default()
        };
        PluginsLock { plugins: vec![plugin], ..PluginsLock::default() }
    };
    let start = || Start::Locked {
        start: Box::new(Start::New(runs.path())),
        lock: lock_of("00"),
        path: PathBuf::from("plugins.lock"),
    };
    let claim = start().claim(lock_of("00"), &Processes::default()).expect("its own");
    assert_eq!(claim.folder(), runs.path());
    for error in [start().check_locked(&lock_of("11")).err(), start().claim(lock_of("11"), &Processes::default()).err()]
    {
        let message = error.expect("another plugin").to_string();
        assert!(message.starts_with("plugins.lock forbids this: "), "{message}");
    }
    assert!(Start::New(runs.path()).check_locked(&lock_of("11")).is_ok());
}

#[test]
fn as_many_checkpoints_are_kept_as_configured() {
    let runs = Runs::new();
    runs.start(Sum { every: 1, keep: 2, ..Sum::of(4) }).expect("it trains");
    assert_eq!(runs.names("checkpoints"), ["epoch-0003", "epoch-0004"]);
    let runs = Runs::new();
    runs.start(Sum { every: 1, keep: 0, ..Sum::of(4) }).expect("it trains");
    assert_eq!(runs.names("checkpoints").len(), 4);
}

#[test]
fn a_monitor_that_fails_is_left_out_except_the_first() {
    let runs = Runs::new();
    let outcome = runs.start(Sum { blind: Some(2), ..Sum::of(3) }).expect("it trains");
    assert_eq!((outcome.epochs, outcome.ends.last.loss), (3, 6.0));
    let record = &runs.records()[2];
    assert!(record.monitor.is_none() && record.warnings[1].starts_with("the monitor was left out"), "{record:?}");
    let runs = Runs::new();
    let error = runs.start(Sum { blind: Some(0), ..Sum::of(3) }).expect_err("there is nothing to compare with");
    assert!(format!("{error:#}").contains("plugins failed on some of the monitor's samples"), "{error:#}");
}

#[test]
fn a_stopped_run_says_where_what_is_kept_and_how_to_resume() {
    let message = |task: Sum, start: fn(&Runs, Sum) -> Result<Outcome<Sum>>| {
        let runs = Runs::new();
        let error = start(&runs, task).expect_err("it stops");
        format!("{error:#}").replace(&runs.path().display().to_string(), "[RUN]")
    };
    let fault: Stop = || anyhow!("a fault");
    assert_eq!(
        message(Sum { stop: Some((2, fault)), ..Sum::of(3) }, Runs::start),
        "a fault; stopped in epoch 2; 1 of 3 epochs are kept in [RUN]; resume with `host sum --resume [RUN]`"
    );
    let diverged: Stop = || Diverged { what: "the loss is NaN".to_owned(), lower: "train.rate" }.into();
    assert_eq!(
        message(Sum { stop: Some((1, diverged)), ..Sum::of(3) }, Runs::start),
        "the loss is NaN; stopped in epoch 1; 0 of 3 epochs are kept in [RUN]; start again with a lower train.rate"
    );
    assert_eq!(
        message(Sum { stop: Some((3, diverged)), ..Sum::of(3) }, Runs::start),
        "the loss is NaN; stopped in epoch 3; 2 of 3 epochs are kept in [RUN]; resume from this checkpoint or an earlier \
         one with a lower train.rate: `host sum --resume [RUN]/checkpoints/epoch-0002 --force --set train.rate=…`"
    );
    let panics: Stop = || panic!("out of memory");
    assert_eq!(
        message(Sum { stop: Some((1, panics)), ..Sum::of(3) }, Runs::start),
        "out of memory; stopped in epoch 1; 0 of 3 epochs are kept in [RUN]; resume with `host sum --resume [RUN]`"
    );
}

#[test]
fn a_stopped_run_says_what_could_not_be_saved() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run");
    let run = RunDir::create(&path, "", &PluginsLock::default(), &RunInfo::default()).expect("a new folder");
    let resume = |folder: &Path| (format!("host sum --resume {}", folder.display()), true);
    let message = |saved: &str, cause: anyhow::Error| {
        let error = stopped(&run, resume, (1, 3), Err(anyhow!("{saved}")), cause);
        format!("{error:#}").replace(&path.display().to_string(), "[RUN]")
    };
    let rest = "stopped in epoch 1; 0 of 3 epochs are kept in [RUN]; resume with `host sum --resume [RUN]`";
    let full = || anyhow!("the disk is full");
    assert_eq!(message("the disk is full", full()), format!("the disk is full, so the last epoch is not kept; {rest}"));
    assert_eq!(
        message("the disk is full", anyhow!("a fault")),
        format!("a fault; the last epoch is not kept: the disk is full; {rest}")
    );
    assert_eq!(message("the disk is full", Interrupted::default().into()), format!("the disk is full; {rest}"));
}

#[test]
fn a_damaged_checkpoint_is_named_with_the_one_before_it() {
    let runs = Runs::new();
    runs.start(Sum { every: 1, ..Sum::of(3) }).expect("it trains");
    let checkpoints = runs.path().join("checkpoints");
    let refused = |epoch| {
        let message = format!("{:#}", runs.resume(Sum::of(3), epoch).expect_err("it is damaged"));
        message.replace(&checkpoints.display().to_string(), "[…]")
    };
    let state = checkpoints.join("epoch-0003/state.safetensors");
    let mut bytes = fs::read(&state).expect("saved");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(state, bytes).expect("writable");
    assert_eq!(
        refused(None),
        "[…]/epoch-0003/state.safetensors is damaged: its SHA-256 is not the one in SHA256SUMS; resume from the \
         checkpoint before it: `host sum --resume […]/epoch-0002`"
    );
    fs::remove_dir_all(checkpoints.join("epoch-0003")).expect("it exists");
    fs::rename(checkpoints.join("epoch-0001"), checkpoints.join("epoch-0009")).expect("it exists");
    assert_eq!(
        refused(None),
        "[…]/epoch-0009 is a checkpoint of epoch 1; resume from the checkpoint before it: `host sum --resume \
         […]/epoch-0002`"
    );
    fs::remove_file(checkpoints.join("epoch-0002/SHA256SUMS")).expect("it exists");
    let message = refused(Some(2));
    assert!(message.ends_with("is missing or empty; there is no checkpoint before it: start a new run"), "{message}");
    assert!(!runs.path().join("rewound").exists(), "what is refused changes nothing");
}

#[test]
fn a_start_prunes_what_a_killed_process_left() {
    let runs = Runs::new();
    runs.start(Sum { every: 1, ..Sum::of(4) }).expect("it trains");
    assert_eq!(runs.names("checkpoints").len(), 4);
    runs.resume(Sum { keep: 2, ..Sum::of(4) }, None).expect("it has finished");
    assert_eq!(runs.names("checkpoints"), ["epoch-0003", "epoch-0004"]);
}

#[test]
fn a_run_is_named_by_its_folder_or_a_checkpoints() {
    let runs = Runs::new();
    runs.start(Sum::of(2)).expect("it trains");
    let (run, checkpoint) = (runs.path(), runs.path().join("checkpoints/epoch-0002"));
    let resume = |target: &Path, force| Start::resume(Some(target), COMMAND, force).map_err(|error| error.to_string());
    let named = |epoch, force| Ok(Start::Resume { folder: run.clone(), epoch, force });
    assert_eq!(resume(&run, false), named(None, false));
    assert_eq!(resume(&checkpoint, true), named(Some(2), true));
    let refused = |target: &Path| resume(target, false).expect_err("it is refused");
    for target in ["samples", "checkpoints/epoch-0007", "checkpoints/epoch-x", "checkpoints/epoch-0002/note.txt"] {
        assert!(refused(&run.join(target)).contains("is neither a run's folder"), "{target}");
    }
    let other = Start::resume(Some(&run), "host train", false).expect_err("another command's").to_string();
    let run = run.display();
    assert_eq!(other, format!("{run} is a run of `{COMMAND}`: resume it with `{COMMAND} --resume {run}`"));
    // Without its notes, a run counts as one of the requested command.
    fs::remove_file(runs.path().join("run.toml")).expect("it exists");
    assert!(Start::resume(Some(&runs.path()), "host train", false).is_ok());
}

#[test]
fn the_newest_run_of_the_same_command_is_resumed() {
    let folder = tempfile::tempdir().expect("a folder");
    let create = |name: &str, command: &str, age: u64| {
        let info = RunInfo { command: command.to_owned(), ..RunInfo::default() };
        drop(RunDir::create(&folder.path().join(name), "", &PluginsLock::default(), &info).expect("a new folder"));
        let config = fs::File::open(folder.path().join(name).join("config.toml")).expect("it exists");
        config.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("a time");
    };
    let newest =
        |command: &str| start::newest_of(folder.path(), command).map(|run| run.file_name().map(OsString::from));
    assert_eq!(newest(COMMAND), None);
    create("own", COMMAND, 30);
    create("other", "host train", 20);
    let named = |name: &str| Some(Some(OsString::from(name)));
    assert_eq!((newest(COMMAND), newest("host train"), newest("host can train")), (named("own"), named("other"), None));
    // One without notes may be of any command.
    create("unknown", "", 10);
    assert_eq!((newest(COMMAND), newest("host can train")), (named("unknown"), named("unknown")));
}

#[test]
fn a_start_has_the_pins_of_its_lock() {
    let digest = "ab".repeat(32);
    let plugin = LockedPlugin {
        name: "palette".to_owned(),
        source: "oci://registry.example/art/palette:1".to_owned(),
        sha256: "00".to_owned(),
        interface: "0.2.0".to_owned(),
        reference: Some("oci://registry.example/art/palette:1".to_owned()),
        manifest: Some(format!("sha256:{digest}")),
        ..LockedPlugin::default()
    };
    let lock = PluginsLock { plugins: vec![plugin], ..PluginsLock::default() };
    let runs = Runs::new();
    drop(RunDir::create(&runs.path(), "", &lock, &RunInfo::default()).expect("a new folder"));
    let pins = |start: &Start| {
        let pins = start.pins(&Processes::default()).expect("its lock is read");
        pins.into_iter().map(|(source, pin)| (source, pin.manifest, pin.is_own)).collect::<Vec<_>>()
    };
    let new = Start::New(runs.path());
    assert_eq!(pins(&new), []);
    let pinned = |is_own| vec![("oci://registry.example/art/palette:1".to_owned(), digest.clone(), is_own)];
    assert_eq!(pins(&Start::Resume { folder: runs.path(), epoch: None, force: false }), pinned(true));
    assert_eq!(pins(&Start::Locked { start: Box::new(new), lock, path: PathBuf::from("plugins.lock") }), pinned(false));
}

#[test]
fn other_plugins_are_another_run_unless_the_user_insists() {
    let runs = Runs::new();
    runs.start(Sum::of(2)).expect("it trains");
    let plugin = LockedPlugin {
        name: "palette".to_owned(),
        source: "palette.wasm".to_owned(),
        sha256: "00".to_owned(),
        interface: "0.2.0".to_owned(),
        ..LockedPlugin::default()
    };
    let lock = || PluginsLock { plugins: vec![plugin.clone()], ..PluginsLock::default() };
    let start = |force| Start::Resume { folder: runs.path(), epoch: None, force };
    let error = format!("{:#}", start(false).claim(lock(), &Processes::default()).expect_err("another plugin"));
    assert!(error.starts_with("this would be another run (--force resumes it anyway): "), "{error}");
    let own = start(false).claim(PluginsLock::default(), &Processes::default()).expect("its own plugins");
    let refused = own.refuse(anyhow!("another model")).expect_err("nobody insists").to_string();
    assert!(refused.contains("another run"), "{refused}");
    drop(own);
    let claim = start(true).claim(lock(), &Processes::default()).expect("the user insists");
    assert_eq!(claim.checkpoint(), Some((2, &*runs.path().join("checkpoints/epoch-0002"))));
    assert_eq!(claim.folder(), runs.path());
    assert!(claim.refuse(anyhow!("another model")).is_ok());
    assert!(Start::New(runs.path()).refuse(anyhow!("another model")).is_err());
    let taken = Start::New(runs.path()).claim(lock(), &Processes::default()).expect_err("it holds a run").to_string();
    assert!(taken.contains("holds a run"), "{taken}");
}
