//! A run's folder after crashes, on resuming, and at unusable paths.

use image::{Rgb, RgbImage};
use serde_json::json;

use super::record::{ClassifierEpoch, ClassifierMeans, ClassifierRecord, Pace};
use super::*;

fn new_run(folder: &Path) -> RunDir {
    RunDir::create(&folder.join("run"), "seed = 1\n", &PluginsLock::default(), &RunInfo::default()).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn record(epoch: u64, loss: f64) -> ClassifierRecord {
    let means = ClassifierMeans { loss, accuracy: 0.5 };
    Record { epoch, trained: Some(ClassifierEpoch { means, pace: Pace::default() }), monitor: None, warnings: vec![] }
}

fn parsed(run: &Path) -> Result<Vec<ClassifierRecord>> {
    records(run)
}

#[test]
fn a_new_run_has_its_parts() {
    let folder = tempfile::tempdir().unwrap();
    let run = new_run(folder.path());
    assert_eq!(names(run.path()), ["checkpoints", "config.toml", "plugins.lock", "run.toml", "samples"]);
    assert_eq!(config(run.path()).unwrap(), "seed = 1\n");
    assert_eq!(run.plugins_lock().unwrap(), PluginsLock::default());
}

#[test]
fn an_empty_folder_is_taken_and_a_filled_one_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    drop(RunDir::create(folder.path(), "", &PluginsLock::default(), &RunInfo::default()).unwrap());
    let before = names(folder.path());
    let error = RunDir::create(folder.path(), "", &PluginsLock::default(), &RunInfo::default()).unwrap_err();
    assert!(error.to_string().contains("holds a run: resume it with --resume"), "{error}");
    assert_eq!(names(folder.path()), before);
    fs::rename(folder.path().join(CONFIG), folder.path().join("mine.toml")).unwrap();
    let error = RunDir::create(folder.path(), "", &PluginsLock::default(), &RunInfo::default()).unwrap_err();
    assert!(error.to_string().ends_with("is not empty: name another folder with --out"), "{error}");
}

#[test]
fn an_impossible_place_is_one_clear_sentence_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = RunDir::create(&file.join("run"), "", &PluginsLock::default(), &RunInfo::default()).unwrap_err();
    let expected = format!("cannot write {}: not a directory", file.join("run").display());
    assert_eq!(error.to_string(), expected);
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn a_folder_without_a_run_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let error = RunDir::open(folder.path()).unwrap_err();
    assert!(matches!(error, RunError::NotARun(_)), "{error}");
}

#[test]
fn two_writers_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let run = new_run(folder.path());
    let path = run.path().to_owned();
    assert!(matches!(RunDir::open(&path), Err(RunError::Busy(_))));
    drop(run);
    RunDir::open(&path).unwrap();
}

#[test]
fn a_torn_last_line_is_dropped_and_not_appended_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = new_run(folder.path());
    run.append_metrics(&record(1, 3.5)).unwrap();
    let path = run.path().to_owned();
    drop(run);
    let metrics = path.join(METRICS);
    let whole = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, format!("{whole}{{\"epoch\": 2, \"rew")).unwrap();

    assert_eq!(parsed(&path).unwrap().len(), 1);
    let mut run = RunDir::open(&path).unwrap();
    run.append_metrics(&record(2, 3.0)).unwrap();
    let text = fs::read_to_string(&metrics).unwrap();
    assert!(text.starts_with(&format!("{whole}{{\"epoch\":2,")) && text.lines().count() == 2, "{text}");
}

#[test]
fn a_damaged_line_in_the_middle_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = new_run(folder.path());
    fs::write(run.path().join(METRICS), "{\"epoch\":0}\nnonsense\n{\"epoch\":2}\n").unwrap();
    let error = parsed(run.path()).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl is damaged: line 2 is not a record"), "{error}");
}

#[test]
fn a_number_that_is_not_finite_is_refused_by_name_and_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = new_run(folder.path());
    let error = run.append_metrics(&record(4, f64::NAN)).unwrap_err().to_string();
    assert_eq!(error, "loss of epoch 4 is not a finite number");
    assert!(parsed(run.path()).unwrap().is_empty());
}

#[test]
fn rewinding_drops_what_came_after_and_keeps_the_rest_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = new_run(folder.path());
    // A number with a long decimal form, which could change if it is read and written again.
    let first = r#"{"epoch":1,"reward_mean":-3.2958368660043291}"#;
    fs::write(run.path().join(METRICS), format!("{first}\n")).unwrap();
    for epoch in [2, 3] {
        run.append_metrics(&record(epoch, 3.0)).unwrap();
    }
    for epoch in 1..=3 {
        run.save_checkpoint(epoch, &[("state.safetensors", vec![epoch as u8])], 9).unwrap();
        run.save_sheet(epoch, &RgbImage::from_pixel(8, 8, Rgb([9, 9, 9])).into()).unwrap();
    }
    let later = fs::read_to_string(run.path().join(METRICS)).unwrap().split_once('\n').unwrap().1.to_owned();
    let rewound = run.rewind(Some(1)).unwrap().unwrap();
    assert_eq!(fs::read_to_string(run.path().join(METRICS)).unwrap(), format!("{first}\n"));
    assert_eq!(names(&run.path().join(CHECKPOINTS)), ["epoch-0001"]);
    assert_eq!(names(&run.path().join(SAMPLES)), ["epoch-0001.png"]);
    // What was finished is kept: nobody asked to delete it.
    assert_eq!(rewound, run.path().join("rewound/epochs-0002-0003"));
    assert_eq!(fs::read_to_string(rewound.join(METRICS)).unwrap(), later);
    assert_eq!(names(&rewound.join(CHECKPOINTS)), ["epoch-0002", "epoch-0003"]);
    assert_eq!(fs::read(rewound.join("checkpoints/epoch-0003/state.safetensors")).unwrap(), [3]);
    assert_eq!(names(&rewound.join(SAMPLES)), ["epoch-0002.png", "epoch-0003.png"]);
    let event_files = |run: &RunDir| names(run.path()).iter().filter(|name| name.starts_with("events.")).count();
    assert_eq!(event_files(&run), 1);
    run.append_metrics(&record(2, 3.0)).unwrap();
    assert_eq!(event_files(&run), 2, "the repeated epochs are written to their own file");
    for epoch in [2, 3] {
        run.save_checkpoint(epoch, &[("state.safetensors", vec![7])], 9).unwrap();
    }
    let again = run.rewind(Some(1)).unwrap().unwrap();
    assert_eq!(again, run.path().join("rewound/epochs-0002-0003-2"), "a second time replaces nothing");
}

#[test]
fn epochs_without_a_checkpoint_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = new_run(folder.path());
    run.save_checkpoint(1, &[("state.safetensors", vec![1])], 9).unwrap();
    for epoch in 1..=2 {
        run.append_metrics(&record(epoch, 3.0)).unwrap();
        run.save_sheet(epoch, &RgbImage::new(8, 8).into()).unwrap();
    }
    assert_eq!(run.rewind(Some(1)).unwrap(), None);
    assert_eq!(parsed(run.path()).unwrap(), [record(1, 3.0)]);
    assert_eq!(names(&run.path().join(SAMPLES)), ["epoch-0001.png"]);
    assert!(!run.path().join(REWOUND).exists());
}

#[test]
fn what_a_killed_start_left_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = new_run(folder.path()).path().to_owned();
    // The last file that a start writes, under its temporary name.
    fs::rename(path.join(CONFIG), path.join(".config.toml.4711.tmp")).unwrap();
    RunDir::check_vacant(&path).unwrap();
    drop(RunDir::create(&path, "seed = 2\n", &PluginsLock::default(), &RunInfo::default()).unwrap());
    assert_eq!(names(&path), [CHECKPOINTS, CONFIG, LOCK_FILE, info::FILE, SAMPLES]);
    fs::remove_file(path.join(CONFIG)).unwrap();
    for mine in [format!("{SAMPLES}/mine.png"), "mine.txt".to_owned()] {
        fs::write(path.join(&mine), "mine").unwrap();
        assert!(matches!(RunDir::check_vacant(&path), Err(RunError::NotEmpty(_))), "{mine}");
        fs::remove_file(path.join(&mine)).unwrap();
    }
}

#[test]
fn runs_of_one_second_get_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let create = || {
        let path = folder.path().join("now");
        RunDir::create_numbered(&path, "", &PluginsLock::default(), &RunInfo::default()).unwrap()
    };
    // The first one is still being written to.
    let first = create();
    let runs = [first, create(), create()].map(|run| run.path().strip_prefix(folder.path()).unwrap().to_owned());
    assert_eq!(runs, ["now", "now-2", "now-3"].map(PathBuf::from));
}

#[test]
fn a_checkpoint_that_changed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = new_run(folder.path());
    let saved = run.save_checkpoint(1, &[("a", vec![1, 2]), ("b", vec![])], 9).unwrap();
    check_checkpoint(&saved).unwrap();
    let sums = fs::read_to_string(saved.join(SUMS)).unwrap();
    let [a, b] = [
        "a12871fee210fb8619291eaea194581cbd2531e4b23759d225f6806923f63222",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ];
    assert_eq!(sums, format!("{a}  a\n{b}  b\n"), "as sha256sum writes it");
    let error = || check_checkpoint(&saved).unwrap_err().to_string();
    fs::write(saved.join("b"), [0]).unwrap();
    assert!(error().ends_with("b is damaged: its SHA-256 is not the one in SHA256SUMS"), "{}", error());
    fs::remove_file(saved.join("a")).unwrap();
    assert!(error().starts_with("cannot read") && error().contains("epoch-0001/a"), "{}", error());
    for (sums, why) in [("", "it is missing or empty"), ("00 ../a\n", "is not a digest and the name of a file")] {
        fs::write(saved.join(SUMS), sums).unwrap();
        assert!(error().contains(SUMS) && error().ends_with(why), "{}", error());
    }
}

#[test]
fn checkpoints_are_pruned_to_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = new_run(folder.path());
    for epoch in [5, 10, 15, 20] {
        run.save_checkpoint(epoch, &[("state.safetensors", vec![0; 10])], 2).unwrap();
    }
    let epochs: Vec<_> = run.checkpoints().unwrap().into_iter().map(|(epoch, _)| epoch).collect();
    assert_eq!(epochs, [15, 20]);
    assert_eq!(names(&run.path().join(CHECKPOINTS)), ["epoch-0015", "epoch-0020"]);
}

#[test]
fn a_crash_before_the_rename_leaves_the_checkpoint_that_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = new_run(folder.path());
    run.save_checkpoint(1, &[("state.safetensors", vec![1, 1, 1])], 3).unwrap();
    let checkpoints = run.path().join(CHECKPOINTS);
    let path = run.path().to_owned();
    drop(run);
    // Files that a process leaves if it is killed while writing epoch 2, replacing epoch 1 or publishing.
    for stale in [".epoch-0002.4711.tmp", ".epoch-0001.4711.tmp"] {
        fs::create_dir(checkpoints.join(stale)).unwrap();
        fs::write(checkpoints.join(stale).join("state.safetensors"), [2]).unwrap();
    }
    fs::write(path.join(".pytorch_lora_weights.safetensors.4711.tmp"), [2]).unwrap();

    let run = RunDir::open(&path).unwrap();
    assert_eq!(run.checkpoints().unwrap().len(), 1);
    assert_eq!(fs::read(checkpoints.join("epoch-0001/state.safetensors")).unwrap(), [1, 1, 1]);
    assert_eq!(names(&checkpoints), ["epoch-0001"], "stale temporaries are swept");
    assert!(names(&path).iter().all(|name| !name.ends_with(".tmp")));
}

#[test]
fn a_failed_write_leaves_no_checkpoint_and_no_temporary() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = new_run(folder.path());
    run.save_checkpoint(1, &[("state.safetensors", vec![1])], 3).unwrap();
    // The second file cannot be written: its folder does not exist.
    let files = [("state.safetensors", vec![2]), ("missing/file", vec![2])];
    assert!(run.save_checkpoint(2, &files, 3).is_err());
    assert_eq!(names(&run.path().join(CHECKPOINTS)), ["epoch-0001"]);
}

#[test]
fn publishing_makes_the_folder_and_replaces_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = new_run(folder.path());
    for bytes in [[1], [2]] {
        run.publish("best/pytorch_lora_weights.safetensors", &bytes).unwrap();
    }
    assert_eq!(fs::read(run.path().join("best/pytorch_lora_weights.safetensors")).unwrap(), [2]);
    assert_eq!(names(&run.path().join("best")), ["pytorch_lora_weights.safetensors"]);
    for _ in 0..2 {
        run.unpublish("best/pytorch_lora_weights.safetensors").unwrap();
        assert!(names(&run.path().join("best")).is_empty());
    }
}

#[test]
fn the_newest_run_is_the_one_written_to_last() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(RunDir::newest_under(folder.path(), |_| true), None);
    let [old, new] = ["b", "a"].map(|name| folder.path().join(name));
    let mut first = RunDir::create(&old, "", &PluginsLock::default(), &RunInfo::default()).unwrap();
    drop(RunDir::create(&new, "", &PluginsLock::default(), &RunInfo::default()).unwrap());
    let later = SystemTime::now() + std::time::Duration::from_secs(5);
    File::open(new.join(CONFIG)).unwrap().set_modified(later).unwrap();
    fs::create_dir(folder.path().join("z-no-run")).unwrap();
    assert_eq!(RunDir::newest_under(folder.path(), |_| true), Some(new));
    first.append_metrics(&record(1, 3.0)).unwrap();
    File::open(old.join(METRICS)).unwrap().set_modified(later + std::time::Duration::from_secs(5)).unwrap();
    assert_eq!(RunDir::newest_under(folder.path(), |_| true), Some(old));
    drop(first);

    let info = RunInfo { command: "host can train".into(), ..RunInfo::default() };
    let other = folder.path().join("other");
    drop(RunDir::create(&other, "", &PluginsLock::default(), &info).unwrap());
    assert_eq!(super::info(&other), info);
    assert_eq!(RunDir::newest_under(folder.path(), |found| *found == info), Some(other));
}

#[test]
fn scalars_are_the_numbers_by_path() {
    let record =
        json!({"epoch": 3, "loss": 0.5, "monitor": {"reward_mean": -3.0, "epoch": 1}, "warnings": ["w"], "nan": null});
    let mut scalars = Vec::new();
    collect_scalars(&record, "", &mut scalars);
    let expected = [("loss", 0.5), ("monitor/reward_mean", -3.0), ("monitor/epoch", 1.0)];
    assert_eq!(scalars, expected.map(|(name, value)| (name.to_owned(), value)));
}

#[cfg(unix)]
#[test]
fn no_link_out_of_a_run_is_followed() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().unwrap();
    let mut run = new_run(folder.path());
    run.save_sheet(1, &RgbImage::new(8, 8).into()).unwrap();
    run.save_image(CONFUSION, &RgbImage::new(8, 8).into()).unwrap();
    run.append_metrics(&record(1, 3.0)).unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "a = 1\n").unwrap();
    let path = run.path().to_owned();
    symlink(&secret, path.join(SAMPLES).join("epoch-0002.png")).unwrap();
    symlink(&secret, path.join(BEFORE_AFTER)).unwrap();
    assert_eq!(sheets(&path).unwrap(), [(1, path.join(SAMPLES).join("epoch-0001.png"))]);
    assert_eq!((file(&path, CONFUSION), file(&path, BEFORE_AFTER)), (Some(path.join(CONFUSION)), None));
    for name in [METRICS, LOCK_FILE, CONFIG] {
        fs::remove_file(path.join(name)).unwrap();
        symlink(&secret, path.join(name)).unwrap();
    }
    let errors = [parsed(&path).unwrap_err(), plugins_lock(&path).unwrap_err(), config(&path).unwrap_err()];
    for (error, name) in errors.into_iter().zip([METRICS, LOCK_FILE, CONFIG]) {
        assert!(error.to_string().ends_with(&format!("{name} is damaged: it is not a regular file")), "{error}");
    }
    fs::rename(path.join(SAMPLES), folder.path().join("elsewhere")).unwrap();
    symlink(folder.path().join("elsewhere"), path.join(SAMPLES)).unwrap();
    assert!(sheets(&path).unwrap().is_empty());
}
