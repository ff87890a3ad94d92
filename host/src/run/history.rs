//! The metrics as numbers by epoch; what a record lacks is absent here, so that older and shorter records read too.

use serde_json::Value;

/// What the monitor measured at an epoch, on the same prompts and noise each time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MonitorPoint {
    /// The epoch; 0 is the untrained model.
    pub epoch: u64,
    /// Mean reward.
    pub reward_mean: f64,
    /// Standard error of that mean over the samples.
    pub reward_sem: Option<f64>,
    /// Mean entropy of the distributions, in nats.
    pub entropy: Option<f64>,
    /// Mean probability of a sample's likeliest style.
    pub max_probability: Option<f64>,
    /// Mean pairwise 1 − cos of the samples' embeddings.
    pub diversity: Option<f64>,
    /// The reward of each sample, for comparing epochs sample by sample.
    pub rewards: Vec<f64>,
}

/// What was measured while an epoch trained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EpochPoint {
    /// The epoch, from 1.
    pub epoch: u64,
    /// Mean reward of the epoch's own samples.
    pub reward_mean: Option<f64>,
    /// Samples drawn a second.
    pub images_per_second: Option<f64>,
    /// Seconds by part, in the record's order.
    pub seconds: Vec<(String, f64)>,
    /// The largest |ratio − 1| over the first update.
    pub ratio_error: Option<f64>,
    /// Samples that a plugin failed on.
    pub skipped: u64,
}

/// A run's metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The monitor's measurements by epoch.
    pub monitor: Vec<MonitorPoint>,
    /// The training epochs.
    pub epochs: Vec<EpochPoint>,
    /// Warnings with their epochs.
    pub warnings: Vec<(u64, String)>,
}

impl History {
    /// Reads records of `metrics.jsonl`; records without an epoch are passed over.
    pub fn from_records(records: &[Value]) -> Self {
        let mut history = Self::default();
        for record in records {
            let Some(epoch) = record.get("epoch").and_then(Value::as_u64) else { continue };
            if let Some(monitor) = record.get("monitor") {
                history.monitor.extend(monitor_point(epoch, monitor));
            }
            if epoch > 0 {
                history.epochs.push(epoch_point(epoch, record));
            }
            let warnings = record.get("warnings").and_then(Value::as_array).into_iter().flatten();
            history.warnings.extend(warnings.filter_map(Value::as_str).map(|text| (epoch, text.to_owned())));
        }
        history
    }

    /// The monitor's point with the highest reward whose diversity held at least `min_diversity` of the first point's.
    pub fn best(&self, min_diversity: Option<f64>) -> Option<&MonitorPoint> {
        let start = self.monitor.first()?.diversity;
        let held = |point: &&MonitorPoint| match (min_diversity, start, point.diversity) {
            (Some(share), Some(start), Some(now)) => now >= share * start,
            _ => true,
        };
        self.monitor.iter().filter(held).max_by(|a, b| a.reward_mean.total_cmp(&b.reward_mean))
    }
}

fn number(value: &Value, name: &str) -> Option<f64> {
    value.get(name)?.as_f64()
}

fn monitor_point(epoch: u64, monitor: &Value) -> Option<MonitorPoint> {
    let rewards = monitor.get("rewards").and_then(Value::as_array).into_iter().flatten();
    Some(MonitorPoint {
        epoch,
        reward_mean: number(monitor, "reward_mean")?,
        reward_sem: number(monitor, "reward_sem"),
        entropy: number(monitor, "entropy"),
        max_probability: number(monitor, "max_probability"),
        diversity: number(monitor, "diversity"),
        rewards: rewards.filter_map(Value::as_f64).collect(),
    })
}

fn epoch_point(epoch: u64, record: &Value) -> EpochPoint {
    let seconds = record.get("seconds").and_then(Value::as_object).into_iter().flatten();
    EpochPoint {
        epoch,
        reward_mean: number(record, "reward_mean"),
        images_per_second: number(record, "images_per_second"),
        seconds: seconds.filter_map(|(part, value)| Some((part.clone(), value.as_f64()?))).collect(),
        ratio_error: number(record, "ratio_error"),
        skipped: record.get("skipped").and_then(Value::as_u64).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_may_lack_anything_but_their_epoch() {
        let records = [
            json!({"epoch": 0, "monitor": {"reward_mean": -4.0, "diversity": 0.5}}),
            json!({"epoch": 1}),
            json!({"epoch": 2, "reward_mean": -3.9, "seconds": {"sample": 2.0, "train": 1}, "warnings": ["low"]}),
            json!({"epoch": 3, "monitor": {"reward_mean": null}}),
            json!("stray"),
        ];
        let history = History::from_records(&records);
        assert_eq!(history.monitor.len(), 1);
        assert_eq!(history.epochs.len(), 3);
        assert_eq!(history.epochs[1].seconds, [("sample".to_owned(), 2.0), ("train".to_owned(), 1.0)]);
        assert_eq!(history.warnings, [(2, "low".to_owned())]);
    }

    #[test]
    fn the_best_point_is_one_whose_diversity_held() {
        let point = |epoch, reward_mean, diversity| MonitorPoint {
            epoch,
            reward_mean,
            diversity: Some(diversity),
            ..MonitorPoint::default()
        };
        let monitor = vec![point(0, -4.0, 0.5), point(5, -3.5, 0.4), point(10, -3.3, 0.1)];
        let history = History { monitor, ..History::default() };
        assert_eq!(history.best(Some(0.6)).unwrap().epoch, 5);
        assert_eq!(history.best(None).unwrap().epoch, 10);
    }
}
