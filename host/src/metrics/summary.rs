//! From the numbers of single images to the values of a metric: means, values of a whole set, their uncertainty, the difference
//! from a baseline, and the values of each prompt's images.

use std::collections::BTreeMap;

use crate::run::evaluation::{Estimate, OfPrompt, Values};
use crate::statistics::{Summary, bootstrap, centered_interval, standard_error};

/// Number of resamples of a bootstrap.
pub const DRAWS: usize = 400;
/// The seed of all bootstraps.
const SEED: u64 = 0;
/// Half the width of a 95 % interval in standard errors, for a mean of many values.
const NORMAL: f64 = 1.96;

/// Returns the mean of numbers with its uncertainty.
pub fn mean(values: &[f64]) -> Estimate {
    let Summary { mean, std, .. } = Summary::of(values);
    let ci95 = standard_error(values).map(|error| [mean - NORMAL * error, mean + NORMAL * error]);
    Estimate { mean, std, ci95, n: values.len() }
}

/// Returns the values of a metric of single images; `baseline` has those of the same prompts and noise without LoRA.
///
/// # Panics
/// If the lists differ in length.
pub fn of_images(values: &[f64], baseline: Option<&[f64]>, prompts: &[&str]) -> Values {
    assert_eq!(values.len(), prompts.len(), "one prompt per image");
    let of_prompt = |images: &Vec<usize>| {
        let of: Vec<f64> = images.iter().map(|&i| values[i]).collect();
        OfPrompt { mean: Summary::of(&of).mean, minimum: None, n: of.len() }
    };
    let difference = |baseline: &[f64]| {
        assert_eq!(values.len(), baseline.len(), "one baseline per image");
        mean(&values.iter().zip(baseline).map(|(value, baseline)| value - baseline).collect::<Vec<_>>())
    };
    Values {
        value: mean(values),
        baseline: baseline.map(mean),
        difference: baseline.map(difference),
        within_prompts: None,
        by_prompt: by_prompt(prompts)
            .iter()
            .map(|(prompt, images)| ((*prompt).to_owned(), of_prompt(images)))
            .collect(),
    }
}

/// A metric of several images together: its value for the images of these indices, which may repeat.
pub type OfSet<'a> = &'a dyn Fn(&[usize]) -> f64;
/// A further value of the images of these indices, if there are enough.
pub type FurtherOfSet<'a> = &'a dyn Fn(&[usize]) -> Option<f64>;

/// Returns the values of a metric of several images together, which are within `bounds`. The images of the baseline have the same
/// prompts and noise, so that a resample draws both by the same indices. `minimum` is a further value of a prompt's images.
pub fn of_set(
    prompts: &[&str],
    bounds: [f64; 2],
    value: OfSet<'_>,
    baseline: Option<OfSet<'_>>,
    minimum: Option<FurtherOfSet<'_>>,
) -> Values {
    let n = prompts.len();
    let all: Vec<usize> = (0..n).collect();
    let mut of_baseline = vec![];
    let draws = bootstrap(n, DRAWS, SEED, |images| {
        of_baseline.extend(baseline.map(|baseline| baseline(images)));
        value(images)
    });
    let differences: Vec<f64> = draws.iter().zip(&of_baseline).map(|(value, baseline)| value - baseline).collect();
    let estimate = |mean: f64, draws: &[f64], [low, high]: [f64; 2]| {
        let interval = centered_interval(mean, draws).map(|interval| interval.map(|end| end.clamp(low, high)));
        Estimate { mean, std: Summary::of(draws).std, ci95: interval, n }
    };
    let whole = (value(&all), baseline.map(|baseline| baseline(&all)));
    let groups = by_prompt(prompts);
    let of_prompt = |images: &Vec<usize>| OfPrompt {
        mean: value(images),
        minimum: minimum.and_then(|minimum| minimum(images)),
        n: images.len(),
    };
    let by_prompt: BTreeMap<String, OfPrompt> =
        groups.iter().map(|(prompt, images)| ((*prompt).to_owned(), of_prompt(images))).collect();
    // One image is as diverse as it can be: it says nothing.
    let several: Vec<f64> = by_prompt.values().filter(|of| of.n > 1).map(|of| of.mean).collect();
    Values {
        value: estimate(whole.0, &draws, bounds),
        baseline: whole.1.map(|baseline| estimate(baseline, &of_baseline, bounds)),
        difference: whole
            .1
            .map(|baseline| estimate(whole.0 - baseline, &differences, [f64::NEG_INFINITY, f64::INFINITY])),
        within_prompts: (!several.is_empty()).then(|| Summary::of(&several).mean),
        by_prompt,
    }
}

/// Returns the images of each prompt; none unless there are at least two prompts or one that is not empty.
fn by_prompt<'a>(prompts: &[&'a str]) -> BTreeMap<&'a str, Vec<usize>> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, prompt) in prompts.iter().enumerate() {
        groups.entry(prompt).or_default().push(i);
    }
    if groups.keys().all(|prompt| prompt.is_empty()) { BTreeMap::new() } else { groups }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_has_1_96_standard_errors_around_it() {
        let values = of_images(&[1.0, 3.0, 8.0], Some(&[1.0, 2.0, 6.0]), &["a", "b", "a"]);
        let std = ((9.0 + 1.0 + 16.0) / 3f64).sqrt();
        let error = std / 2f64.sqrt();
        let [low, high] = values.value.ci95.expect("three values");
        assert!((values.value.std - std).abs() < 1e-12);
        assert!((low - (4.0 - 1.96 * error)).abs() < 1e-12 && (high - (4.0 + 1.96 * error)).abs() < 1e-12);
        let difference = values.difference.expect("a baseline");
        assert!((difference.mean - 1.0).abs() < 1e-12 && (difference.std - (2.0 / 3f64).sqrt()).abs() < 1e-12);
        assert_eq!((values.by_prompt["a"].mean, values.by_prompt["a"].n, values.by_prompt["b"].n), (4.5, 2, 1));
        assert_eq!(of_images(&[1.0], None, &[""]).value.ci95, None);
        assert!(of_images(&[1.0], None, &[""]).by_prompt.is_empty());
    }

    #[test]
    fn a_value_of_a_set_is_resampled_with_its_baseline() {
        let numbers: Vec<f64> = (0..50).map(f64::from).collect();
        let mean = |images: &[usize]| images.iter().map(|&i| numbers[i]).sum::<f64>() / images.len() as f64;
        let shifted = |images: &[usize]| mean(images) - 2.0;
        let prompts: Vec<&str> = (0..50).map(|i| if i % 2 == 0 { "even" } else { "odd" }).collect();
        let values =
            of_set(&prompts, [0.0, 49.0], &mean, Some(&shifted), Some(&|images| images.first().map(|&i| numbers[i])));
        assert_eq!((values.value.mean, values.value.n), (24.5, 50));
        // The same images are drawn for both, so that their difference is certain.
        let difference = values.difference.expect("a baseline");
        assert!((difference.mean - 2.0).abs() < 1e-12 && difference.std < 1e-9);
        assert!(values.value.std > 1.0);
        assert_eq!(values.within_prompts, Some(24.5));
        let bounded = of_set(&prompts, [24.0, 24.6], &mean, None, None);
        assert_eq!(bounded.value.ci95, Some([24.0, 24.6]));
        assert_eq!((values.by_prompt["odd"].mean, values.by_prompt["odd"].minimum), (25.0, Some(1.0)));
    }
}
