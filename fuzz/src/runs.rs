//! A run's folder: its metrics, and the report drawn from them.

use std::path::Path;

use ambiguity_host::report;
use ambiguity_host::run::record::{
    ClassifierEpoch, ClassifierMonitor, ClassifierRecord, FineTuneEpoch, FineTuneMonitor, FineTuneRecord, GanEpoch,
    GanMonitor, GanRecord, Record,
};
use ambiguity_host::run::{RunDir, records};
use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::put;

/// The configuration and the notes of a run of each kind: fine-tuning, a CAN, a classifier.
const KINDS: [(&str, &str); 3] = [
    (include_str!("../../host/presets/paper-512.toml"), ""),
    (include_str!("../../host/presets/can-paper.toml"), ""),
    (include_str!("../../host/presets/can-paper.toml"), "command = \"host classifier train\"\n"),
];

/// One byte for the kind of run, then `metrics.jsonl`.
pub fn metrics_files(_: &Path) -> Result<Vec<Vec<u8>>> {
    let monitor = FineTuneMonitor { reward_mean: -4.1, reward_sem: Some(0.1), diversity: 0.4, ..Default::default() };
    let monitor = FineTuneMonitor { rewards: vec![-4.0, -4.2], ..monitor };
    let later = FineTuneMonitor { reward_mean: -3.7, rewards: vec![-3.6, -3.8], ..monitor.clone() };
    let epoch = FineTuneEpoch { reward_mean: -3.9, skipped: 1, images_per_second: 12.5, ..Default::default() };
    let warnings = vec!["low".to_owned()];
    let fine_tuning = [
        FineTuneRecord { epoch: 0, trained: None, monitor: Some(monitor), warnings: vec![] },
        FineTuneRecord { epoch: 1, trained: Some(epoch), monitor: Some(later), warnings },
    ];
    let monitor = GanMonitor { ambiguity: 3.3, diversity: 0.5, styles: 27, ..Default::default() };
    let gan = [
        GanRecord { epoch: 0, trained: None, monitor: Some(monitor), warnings: vec![] },
        GanRecord { epoch: 1, trained: Some(GanEpoch::default()), monitor: None, warnings: vec![] },
    ];
    let monitor = ClassifierMonitor { accuracy: 0.1, loss: 3.0 };
    let classifier = [
        ClassifierRecord { epoch: 0, trained: None, monitor: Some(monitor), warnings: vec![] },
        ClassifierRecord { epoch: 1, trained: Some(ClassifierEpoch::default()), monitor: None, warnings: vec![] },
    ];
    Ok(vec![lines(0, &fine_tuning)?, lines(1, &gan)?, lines(2, &classifier)?])
}

fn lines<R: Serialize>(kind: u8, records: &[R]) -> Result<Vec<u8>> {
    let mut bytes = vec![kind];
    for record in records {
        serde_json::to_writer(&mut bytes, record)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// Writes a run's folder; returns the run's kind.
fn prepare(folder: &Path, bytes: &[u8]) -> usize {
    let (kind, text) = bytes.split_first().unwrap_or((&0, &[]));
    let kind = usize::from(*kind) % KINDS.len();
    let (config, notes) = KINDS[kind];
    put(folder, "config.toml", config.as_bytes());
    put(folder, "run.toml", notes.as_bytes());
    put(folder, "metrics.jsonl", text);
    kind
}

pub fn metrics(folder: &Path, bytes: &[u8]) -> bool {
    match prepare(folder, bytes) {
        0 => read::<FineTuneEpoch, FineTuneMonitor>(folder),
        1 => read::<GanEpoch, GanMonitor>(folder),
        _ => read::<ClassifierEpoch, ClassifierMonitor>(folder),
    }
}

fn read<T: Serialize + DeserializeOwned, M: Serialize + DeserializeOwned>(folder: &Path) -> bool {
    let mut run = RunDir::open(folder).expect("a damaged line does not keep a run from being opened");
    let Ok(read) = records::<T, M>(folder) else { return false };
    let Some(last) = read.iter().map(|record| record.epoch).max() else { return false };
    let write = |record: &Record<T, M>| serde_json::to_string(record).expect("numbers and strings");
    let written: Vec<String> = read.iter().map(write).collect();
    for line in &written {
        assert_eq!(write(&Record::parse(line).expect("its own line")), *line);
    }
    // A resumed run keeps every line up to its epoch.
    run.rewind(Some(last)).expect("every record has its epoch");
    let kept = records::<T, M>(folder).expect("they are the same lines");
    assert_eq!(kept.iter().map(write).collect::<Vec<_>>(), written);
    true
}

pub fn report(folder: &Path, bytes: &[u8]) -> bool {
    prepare(folder, bytes);
    report::write(folder).is_ok()
}
