//! A run's configuration and records, by its kind.

use std::path::Path;

use serde::Deserialize;

use crate::config::{FineTuneConfig, GanConfig, RunConfig as _};
use crate::run::record::{
    ClassifierRecord, ClipMonitor, FineTuneRecord, GanRecord, Pace, PretrainRecord, Record, UNetMonitor, VaeMonitor,
};
use crate::run::{self, RunError};

/// A run's configuration and records, by its kind.
pub(super) enum Training {
    FineTune(Box<FineTuneConfig>, Vec<FineTuneRecord>),
    Gan(Box<GanConfig>, Vec<GanRecord>),
    Classifier(Box<GanConfig>, Vec<ClassifierRecord>),
    Clip(Vec<PretrainRecord<ClipMonitor>>),
    Vae(Vec<PretrainRecord<VaeMonitor>>),
    UNet(Vec<PretrainRecord<UNetMonitor>>),
}

/// Where the time of a training epoch went.
pub(super) struct EpochPace {
    /// Seconds by part.
    pub(super) parts: Vec<(&'static str, f64)>,
    pub(super) images_per_second: Option<f64>,
}

impl Training {
    pub(super) fn read(run: &Path, config: &str, command: &str) -> anyhow::Result<Self> {
        let damaged = |error: toml::de::Error| RunError::Damaged {
            path: run.join("config.toml"),
            message: error.message().to_owned(),
        };
        let gan = || GanConfig::of_run(config).map(Box::new).map_err(damaged);
        let fine_tune = || FineTuneConfig::of_run(config).map(Box::new).map_err(damaged);
        /// The tables by which the kinds of configurations are distinguished.
        #[derive(Deserialize)]
        struct Kind {
            can: Option<toml::Table>,
            pretrain: Option<toml::Table>,
        }
        let kind: Kind = toml::from_str(config).map_err(damaged)?;
        Ok(match (kind.can.is_some(), kind.pretrain.is_some()) {
            (true, _) if command == "host classifier train" => Self::Classifier(gan()?, run::records(run)?),
            (true, _) => Self::Gan(gan()?, run::records(run)?),
            (_, true) if command.starts_with("host pretrain clip") => Self::Clip(run::records(run)?),
            (_, true) if command.starts_with("host pretrain vae") => Self::Vae(run::records(run)?),
            (_, true) => Self::UNet(run::records(run)?),
            _ => Self::FineTune(fine_tune()?, run::records(run)?),
        })
    }

    pub(super) fn warnings(&self) -> Vec<(u64, String)> {
        fn of<T, M>(records: &[Record<T, M>]) -> Vec<(u64, String)> {
            let warnings = |record: &Record<T, M>| {
                let epoch = record.epoch;
                record.warnings.iter().map(move |warning| (epoch, warning.clone())).collect::<Vec<_>>()
            };
            records.iter().flat_map(warnings).collect()
        }
        match self {
            Self::FineTune(_, records) => of(records),
            Self::Gan(_, records) => of(records),
            Self::Classifier(_, records) => of(records),
            Self::Clip(records) => of(records),
            Self::Vae(records) => of(records),
            Self::UNet(records) => of(records),
        }
    }

    /// The last trained epoch, and the configured number of epochs.
    pub(super) fn epochs(&self) -> (u64, Option<u64>) {
        fn last<T, M>(records: &[Record<T, M>]) -> u64 {
            records.iter().filter(|record| record.trained.is_some()).map(|record| record.epoch).max().unwrap_or(0)
        }
        match self {
            Self::FineTune(config, records) => (last(records), Some(config.train.epochs)),
            Self::Gan(config, records) => (last(records), Some(config.can.epochs)),
            Self::Classifier(config, records) => (last(records), Some(config.can.epochs)),
            Self::Clip(records) => (last(records), None),
            Self::Vae(records) => (last(records), None),
            Self::UNet(records) => (last(records), None),
        }
    }

    pub(super) fn paces(&self) -> Vec<EpochPace> {
        let of_pace = |pace: &Pace| EpochPace {
            parts: vec![("data", pace.seconds.data), ("train", pace.seconds.train)],
            images_per_second: Some(pace.images_per_second),
        };
        fn of_pretraining<M>(records: &[PretrainRecord<M>]) -> Vec<EpochPace> {
            let trained = records.iter().filter_map(|record| record.trained.as_ref());
            let pace = |seconds| EpochPace { parts: vec![("train", seconds)], images_per_second: None };
            trained.map(|epoch| pace(epoch.train_seconds)).collect()
        }
        match self {
            Self::FineTune(_, records) => {
                let trained = records.iter().filter_map(|record| record.trained.as_ref());
                let of = trained.map(|epoch| {
                    let seconds = &epoch.seconds;
                    let parts = vec![("sample", seconds.sample), ("reward", seconds.reward), ("train", seconds.train)];
                    EpochPace { parts, images_per_second: Some(epoch.images_per_second) }
                });
                of.collect()
            }
            Self::Gan(_, records) => {
                records.iter().filter_map(|record| Some(of_pace(&record.trained.as_ref()?.pace))).collect()
            }
            Self::Classifier(_, records) => {
                records.iter().filter_map(|record| Some(of_pace(&record.trained.as_ref()?.pace))).collect()
            }
            Self::Clip(records) => of_pretraining(records),
            Self::Vae(records) => of_pretraining(records),
            Self::UNet(records) => of_pretraining(records),
        }
    }
}
