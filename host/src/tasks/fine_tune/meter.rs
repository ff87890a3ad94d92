//! Progress within an epoch of sampling and training, in images.

use crate::config::FineTuneConfig;
use crate::progress::Bar;

/// Converts sampled and trained rows into the bar's images: a trained row costs about as much as three sampled ones.
pub(super) struct Meter<'a> {
    bar: &'a Bar,
    epoch: u64,
    epochs: u64,
    n_images: u64,
    shown: u64,
    units: f64,
    units_per_image: f64,
    /// Number of processes, all of which advance as this one does.
    processes: f64,
}

impl<'a> Meter<'a> {
    /// Cost of a trained row in sampled rows.
    const TRAINED_ROW: f64 = 3.0;

    /// Returns a meter at the start of an epoch.
    pub(super) fn new(bar: &'a Bar, config: &FineTuneConfig, epoch: u64, processes: usize) -> Self {
        let trained = (config.n_train_timesteps() * config.train.inner_epochs) as f64 * Self::TRAINED_ROW;
        Self {
            bar,
            epoch,
            epochs: config.train.epochs,
            n_images: config.sample.per_epoch() as u64,
            shown: 0,
            units: 0.0,
            units_per_image: config.sample.steps as f64 + trained,
            processes: processes as f64,
        }
    }

    /// Shows the current phase behind the bar.
    pub(super) fn phase(&self, what: &str) {
        self.bar.message(format!("epoch {}/{} {what}", self.epoch, self.epochs));
    }

    /// Counts sampled rows.
    pub(super) fn sampled(&mut self, rows: usize) {
        self.advance(rows as f64);
    }

    /// Counts trained rows.
    pub(super) fn trained(&mut self, rows: usize) {
        self.advance(rows as f64 * Self::TRAINED_ROW);
    }

    fn advance(&mut self, units: f64) {
        self.units += units * self.processes;
        let images = ((self.units / self.units_per_image) as u64).min(self.n_images);
        self.bar.inc(images - self.shown);
        self.shown = images;
    }
}
