//! What is measured in an epoch's steps: sums that stay on the device between looks.

use anyhow::{Result, bail};
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::job::LEARNING_RATE;
use crate::train::Diverged;

/// Scalars of a step by their place in the record, `loss/style` for `style` in `loss`; on the device, so that nothing
/// waits for them.
#[derive(Default)]
pub(super) struct Figures(Vec<(&'static str, Tensor)>);

impl Figures {
    /// Adds one.
    pub(super) fn add(&mut self, name: &'static str, value: &Tensor) {
        self.0.push((name, value.detach().to_kind(Kind::Float)));
    }
}

/// Sums of figures over an epoch.
#[derive(Default)]
pub(super) struct Sums {
    names: Vec<&'static str>,
    on_device: Option<Tensor>,
    totals: Vec<f64>,
    n_steps: u64,
    /// Steps that are on the device alone.
    n_unread: u64,
}

impl Sums {
    /// Adds a step's.
    pub(super) fn add(&mut self, figures: Figures) {
        let (names, values): (Vec<_>, Vec<_>) = figures.0.into_iter().unzip();
        let values = Tensor::stack(&values, 0);
        self.names = names;
        self.on_device = Some(match self.on_device.take() {
            None => values,
            Some(sum) => sum + values,
        });
        self.n_steps += 1;
        self.n_unread += 1;
    }

    /// Fetches what was summed since the last time, up to `step`; an error if it holds what is no number.
    pub(super) fn read(&mut self, step: u64) -> Result<()> {
        let Some(sums) = self.on_device.take() else { return Ok(()) };
        let sums = Vec::<f32>::try_from(&sums.to_device(Device::Cpu))?;
        self.totals.resize(sums.len(), 0.0);
        for ((total, sum), name) in self.totals.iter_mut().zip(sums).zip(&self.names) {
            if !sum.is_finite() {
                let what = match self.n_unread {
                    1 => format!("{name} is no finite number at step {step}"),
                    n => format!("{name} is no finite number at one of the steps {} to {step}", step + 1 - n),
                };
                bail!(Diverged { what, lower: LEARNING_RATE });
            }
            *total += f64::from(sum);
        }
        self.n_unread = 0;
        Ok(())
    }

    /// The means so far, `a/b` as `b` in `a`.
    pub(super) fn means(&self) -> Value {
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
        Value::Object(record)
    }
}

/// What stands behind the bar.
pub(super) fn in_short(means: &Value) -> String {
    let mut words = Vec::new();
    let number = |value: &Value| value.as_f64();
    if let Some(loss) = number(&means["loss"]) {
        words.push(format!("loss {loss:.3}"));
    }
    for (name, key) in [("D", "discriminator"), ("G", "generator"), ("ambiguity", "ambiguity")] {
        words.extend(number(&means["loss"][key]).map(|loss| format!("{name} {loss:.3}")));
    }
    for key in ["accuracy", "style_accuracy"] {
        words.extend(number(&means[key]).map(|share| format!("accuracy {:.0} %", 100.0 * share)));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figures(style: f32, accuracy: f32) -> Figures {
        let mut figures = Figures::default();
        figures.add("loss/style", &Tensor::from(style));
        figures.add("accuracy", &Tensor::from(accuracy));
        figures
    }

    #[test]
    fn figures_are_averaged_over_the_steps_and_nested() {
        let mut sums = Sums::default();
        sums.add(figures(1.0, 0.5));
        sums.add(figures(2.0, 1.0));
        sums.read(2).expect("they are numbers");
        sums.add(figures(3.0, 0.0));
        sums.read(3).expect("they are numbers");
        assert_eq!(sums.means(), json!({ "loss": { "style": 2.0 }, "accuracy": 0.5 }));
        sums.add(figures(f32::NAN, 0.0));
        let error = sums.read(4).expect_err("not a number");
        assert_eq!(error.to_string(), "loss/style is no finite number at step 4");
        assert!(error.is::<Diverged>());
        let mut sums = Sums::default();
        (0..4).for_each(|_| sums.add(figures(f32::INFINITY, 0.0)));
        let message = sums.read(4).expect_err("not finite").to_string();
        assert_eq!(message, "loss/style is no finite number at one of the steps 1 to 4");
    }
}
