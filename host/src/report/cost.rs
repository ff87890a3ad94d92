//! The cost of a fine-tuning: hours, energy and CO2, from the records of its epochs.

use crate::energy::{Energy, KG_CO2_PER_KWH};
use crate::run::record::FineTuneRecord;
use crate::text::{number, two_digits};

/// The cost of the epochs of a run, those before it was resumed included, without the monitors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Energy; none unless every epoch has it.
    pub energy: Option<Energy>,
}

impl Cost {
    /// Returns the cost of all epochs.
    pub fn of(records: &[FineTuneRecord]) -> Self {
        let trained = || records.iter().filter_map(|record| record.trained.as_ref());
        let energies: Option<Vec<Energy>> = trained().map(|epoch| epoch.energy).collect();
        Self { seconds: trained().map(|epoch| epoch.seconds.total()).sum(), energy: energies.and_then(Energy::sum) }
    }

    /// Returns the cost in one line.
    pub fn in_words(&self) -> String {
        let time = format!("{} of training", duration(self.seconds));
        match &self.energy {
            Some(energy) => format!("{time}, {}, {}", energy_in_words(energy), co2_in_words(energy)),
            None => time,
        }
    }
}

/// Returns an energy with how it is known.
pub(super) fn energy_in_words(energy: &Energy) -> String {
    format!("{} kWh ({})", two_digits(energy.kilowatt_hours()), energy.source.in_words())
}

/// Returns the CO2 of an energy with the factor.
pub(super) fn co2_in_words(energy: &Energy) -> String {
    format!("{} kg CO2 (at {KG_CO2_PER_KWH} kg per kWh)", two_digits(energy.kg_co2()))
}

/// Returns a time in words.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 60.0 => format!("{} s", number(seconds, 1)),
        seconds if seconds < 3600.0 => format!("{} min {} s", (seconds / 60.0) as u64, (seconds % 60.0) as u64),
        _ => format!("{} h {} min", (seconds / 3600.0) as u64, (seconds / 60.0) as u64 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::energy::Source;
    use crate::run::record::{FineTuneEpoch, FineTuneSeconds};

    #[test]
    fn the_cost_is_that_of_all_epochs() {
        let record = |epoch, joules: Option<f64>| {
            let seconds = FineTuneSeconds { sample: 1000.0, reward: 300.0, train: 2000.0 };
            let energy = joules.map(|joules| Energy { joules, source: Source::Nvml });
            let trained = Some(FineTuneEpoch { seconds, energy, ..FineTuneEpoch::default() });
            FineTuneRecord { epoch, trained, monitor: None, warnings: vec![] }
        };
        let words = Cost::of(&[record(1, Some(1.8e6)), record(2, Some(3.6e6))]).in_words();
        let expected =
            "1 h 50 min of training, 1.5 kWh (measured by NVML, the GPU's), 0.72 kg CO2 (at 0.48 kg per kWh)";
        assert_eq!(words, expected);
        assert_eq!(Cost::of(&[record(1, None), record(2, Some(3.6e6))]).in_words(), "1 h 50 min of training");
        assert_eq!(Cost::of(&[]).in_words(), "0.0 s of training");
    }
}
