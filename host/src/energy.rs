//! The energy of a computation: measured by NVML on an NVIDIA GPU, by RAPL on a CPU where Linux lets it be read, else
//! estimated from the number of threads. Of a run on a GPU, the GPU's energy alone counts.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::nvml::Gpu;

/// Kilograms of CO2 per kilowatt-hour: the average of the world's electricity in 2023 (Ember, "Global Electricity Review
/// 2024": 480 g). The place of a machine matters: countries range from below 50 g to above 700 g.
pub const KG_CO2_PER_KWH: f64 = 0.48;
/// The watts of a busy core that an estimate assumes; the thermal design power of current CPUs is 4 to 10 W per core.
pub const WATTS_PER_CORE: f64 = 7.0;
/// Where Linux has the counters of RAPL.
const POWERCAP: &str = "/sys/class/powercap";
/// Time between two readings of a GPU's power, where it has no counter of energy.
const POWER_PERIOD: Duration = Duration::from_millis(500);
/// Time between two readings of RAPL's counters, which begin again at 0 after some minutes.
const RAPL_PERIOD: Duration = Duration::from_secs(30);

/// How energy is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Measured by NVIDIA's driver: the GPU's.
    Nvml,
    /// Measured by the counters of the CPU: that of all processes of the machine.
    Rapl,
    /// Threads × [`WATTS_PER_CORE`] × time.
    Estimate,
}

/// An amount of energy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Joules.
    pub joules: f64,
    /// How they are known.
    pub source: Source,
}

impl Source {
    /// Returns how the energy is known, in words.
    pub fn in_words(self) -> String {
        match self {
            Self::Nvml => "measured by NVML, the GPU's".to_owned(),
            Self::Rapl => "measured by RAPL, the CPU's".to_owned(),
            Self::Estimate => format!("estimated at {WATTS_PER_CORE} W per thread"),
        }
    }
}

impl Energy {
    /// Returns the sum, which is as well known as its least known part; none without parts.
    pub fn sum(parts: impl IntoIterator<Item = Self>) -> Option<Self> {
        let add = |a: Self, b: Self| Self { joules: a.joules + b.joules, source: a.source.max(b.source) };
        parts.into_iter().reduce(add)
    }

    /// Returns the kilowatt-hours.
    pub fn kilowatt_hours(&self) -> f64 {
        self.joules / 3.6e6
    }

    /// Returns the kilograms of CO2 by [`KG_CO2_PER_KWH`].
    pub fn kg_co2(&self) -> f64 {
        KG_CO2_PER_KWH * self.kilowatt_hours()
    }
}

/// A meter of the energy that a device uses.
#[derive(Debug)]
pub struct Meter {
    counter: Counter,
}

/// What a meter reads.
#[derive(Clone, Debug)]
enum Counter {
    /// A GPU that counts its energy.
    Gpu(Gpu),
    /// A GPU whose power is read again and again.
    GpuPower(Gpu),
    /// The counters of the CPU's packages and memory.
    Rapl(Vec<Zone>),
    /// The number of threads.
    Threads(usize),
}

/// A counter of RAPL.
#[derive(Clone, Debug, PartialEq)]
struct Zone {
    file: PathBuf,
    /// The microjoules after which it begins again at 0.
    range: u64,
}

/// A measurement that was started.
#[derive(Debug)]
pub struct Running {
    counter: Counter,
    start: Instant,
    /// The GPU's joules at the start.
    joules: f64,
    /// The thread that reads a counter again and again.
    sampler: Option<(Sender<()>, JoinHandle<f64>)>,
}

impl Meter {
    /// Returns the meter of a device; none for a GPU whose energy is unknown. `threads` compute on the CPU.
    pub fn new(device: Device, threads: usize) -> Option<Self> {
        let counter = match device {
            Device::Cuda(index) => {
                let gpu = Gpu::of_cuda(index)?;
                match (gpu.joules(), gpu.watts()) {
                    (Some(_), _) => Counter::Gpu(gpu),
                    (None, Some(_)) => Counter::GpuPower(gpu),
                    (None, None) => return None,
                }
            }
            Device::Cpu => match zones(Path::new(POWERCAP)) {
                zones if zones.is_empty() => Counter::Threads(threads),
                zones => Counter::Rapl(zones),
            },
            _ => return None,
        };
        Some(Self { counter })
    }

    /// Starts a measurement.
    pub fn start(&self) -> Running {
        let counter = self.counter.clone();
        let (mut joules, mut sampler) = (0.0, None);
        match &counter {
            Counter::Gpu(gpu) => joules = gpu.joules().unwrap_or(f64::NAN),
            Counter::GpuPower(gpu) => {
                let gpu = gpu.clone();
                let mut last = Instant::now();
                sampler = Some(sample(POWER_PERIOD, move || {
                    let seconds = last.elapsed().as_secs_f64();
                    last = Instant::now();
                    gpu.watts().unwrap_or(0.0) * seconds
                }));
            }
            Counter::Rapl(zones) => {
                let zones = zones.clone();
                let mut before: Vec<Option<u64>> = zones.iter().map(Zone::read).collect();
                sampler = Some(sample(RAPL_PERIOD, move || {
                    let now: Vec<Option<u64>> = zones.iter().map(Zone::read).collect();
                    let used = |((before, now), zone): ((&Option<u64>, &Option<u64>), &Zone)| {
                        before.zip(*now).map_or(0, |(before, now)| zone.between(before, now))
                    };
                    let microjoules: u64 = before.iter().zip(&now).zip(&zones).map(used).sum();
                    before = now;
                    microjoules as f64 / 1e6
                }));
            }
            Counter::Threads(_) => {}
        }
        Running { counter, start: Instant::now(), joules, sampler }
    }
}

impl Running {
    /// Ends the measurement; none if a counter could not be read.
    pub fn stop(self) -> Option<Energy> {
        let seconds = self.start.elapsed().as_secs_f64();
        let sampled = |sampler: Option<(Sender<()>, JoinHandle<f64>)>| {
            let (stop, thread) = sampler?;
            drop(stop);
            thread.join().ok()
        };
        let (joules, source) = match self.counter {
            Counter::Gpu(gpu) => (gpu.joules()? - self.joules, Source::Nvml),
            Counter::GpuPower(_) => (sampled(self.sampler)?, Source::Nvml),
            Counter::Rapl(_) => (sampled(self.sampler)?, Source::Rapl),
            Counter::Threads(threads) => (threads as f64 * WATTS_PER_CORE * seconds, Source::Estimate),
        };
        (joules.is_finite() && joules >= 0.0).then_some(Energy { joules, source })
    }
}

/// Adds up what `read` returns every `period` in a thread, until the sender is dropped.
fn sample(period: Duration, mut read: impl FnMut() -> f64 + Send + 'static) -> (Sender<()>, JoinHandle<f64>) {
    let (stop, stopped) = channel::<()>();
    let thread = std::thread::spawn(move || {
        let mut sum = 0.0;
        while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
            sum += read();
        }
        sum + read()
    });
    (stop, thread)
}

impl Zone {
    fn read(&self) -> Option<u64> {
        number(&self.file)
    }

    /// The microjoules between two readings.
    fn between(&self, before: u64, now: u64) -> u64 {
        if now >= before { now - before } else { (self.range.saturating_add(now)).saturating_sub(before) }
    }
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Returns the counters that can be read: those of the packages, and of the memory where it is counted apart. That of the
/// whole system would count them twice.
fn zones(powercap: &Path) -> Vec<Zone> {
    let Ok(entries) = std::fs::read_dir(powercap) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let is_rapl =
        |folder: &&PathBuf| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("intel-rapl:"));
    let zone = |folder: &PathBuf| {
        let name = std::fs::read_to_string(folder.join("name")).ok()?;
        let name = name.trim();
        let counts = name.starts_with("package") || name == "dram";
        let file = folder.join("energy_uj");
        number(&file).filter(|_| counts)?;
        Some(Zone { file, range: number(&folder.join("max_energy_range_uj")).unwrap_or(u64::MAX) })
    };
    folders.iter().filter(is_rapl).filter_map(zone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_and_memory_are_counted_once() {
        let powercap = tempfile::tempdir().expect("a folder");
        for (folder, name) in [
            ("intel-rapl", ""),
            ("intel-rapl:0", "package-0\n"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:0:1", "dram"),
            ("intel-rapl:1", "psys"),
        ] {
            let folder = powercap.path().join(folder);
            std::fs::create_dir(&folder).expect("a folder");
            std::fs::write(folder.join("name"), name).expect("writable");
            std::fs::write(folder.join("energy_uj"), "90\n").expect("writable");
            std::fs::write(folder.join("max_energy_range_uj"), "100\n").expect("writable");
        }
        let found = zones(powercap.path());
        let names: Vec<_> = found.iter().map(|zone| zone.file.strip_prefix(powercap.path()).expect("below")).collect();
        assert_eq!(names, [Path::new("intel-rapl:0/energy_uj"), Path::new("intel-rapl:0:1/energy_uj")]);
        assert_eq!((found[0].between(90, 95), found[0].between(90, 5)), (5, 15), "a counter begins again at 0");
        assert!(zones(&powercap.path().join("none")).is_empty());

        let running = Meter { counter: Counter::Rapl(found) }.start();
        std::fs::write(powercap.path().join("intel-rapl:0/energy_uj"), "96").expect("writable");
        let energy = running.stop().expect("it was read");
        assert!((energy.joules - 6e-6).abs() < 1e-12 && energy.source == Source::Rapl, "{energy:?}");
    }

    #[test]
    fn an_estimate_is_called_one() {
        let energy = Meter { counter: Counter::Threads(2) }.start().stop().expect("always");
        assert!(energy.source == Source::Estimate && energy.joules > 0.0);
        assert_eq!(serde_json::to_value(energy).expect("JSON")["source"], "estimate");
    }

    #[test]
    fn a_sum_is_as_well_known_as_its_least_known_part() {
        let energy = |joules, source| Energy { joules, source };
        let sum = Energy::sum([energy(1.8e6, Source::Nvml), energy(1.8e6, Source::Estimate)]).expect("two");
        assert_eq!((sum.kilowatt_hours(), sum.kg_co2(), sum.source), (1.0, KG_CO2_PER_KWH, Source::Estimate));
        assert_eq!(Energy::sum([]), None);
    }
}
