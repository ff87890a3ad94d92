//! The metrics by name, what each needs, and their values from what was measured.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use anyhow::{Result, ensure};
use ndarray::{ArrayView2, Axis};

use super::diversity::{Directions, unit_rows};
use super::evaluator::Evaluator;
use super::measured::{Column, Measured};
use super::reference::{NEIGHBORS, Reference};
use super::summary::{FurtherOfSet, of_images, of_set};
use crate::context::Context;
use crate::rl::reward::entropy;
use crate::run::evaluation::{Metric, Outcome, Values};
use crate::text::key_hint;

/// Numbers of steps of the untrained model's images in the style similarity.
pub const SIMILARITY_STEPS: [usize; 3] = [30, 15, 10];
/// Number of image pairs of the style similarity in the paper.
pub const PAIRS: usize = 40;
/// The name of the encoder of the style similarity.
pub const DINO: &str = "dino";

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// The mean reward under a plugin.
    Reward,
    /// The mean entropy of a classifier's distributions, in nats.
    Entropy,
    /// The entropy of a classifier's mean distribution, in nats: high if the images have many styles together.
    StyleCoverage,
    /// The aesthetic score of LAION's predictor, from 1 to 10.
    Ava,
    /// The score of ImageReward v1.0.
    ImageReward,
    /// The cosine of the embeddings of image and prompt.
    PromptSimilarity,
    /// The cosine of the DINO embeddings of an image and of the untrained model's image from the same prompt and noise, with so
    /// many steps.
    StyleSimilarity(usize),
    /// The score of PickScore.
    PickScore,
    /// The score of HPS v2.1.
    Hps,
    /// The Vendi score: the effective number of different images.
    Vendi,
    /// The mean distance of two images.
    PairwiseDistance,
    /// The share of images with a near-duplicate.
    NearDuplicates,
    /// The share of reference images that the generated ones reach.
    Coverage,
    /// The distance to the nearest reference image.
    Novelty,
}

impl Name {
    /// All metrics, in the order of tables.
    pub const ALL: [Self; 16] = [
        Self::Reward,
        Self::Entropy,
        Self::StyleCoverage,
        Self::Ava,
        Self::ImageReward,
        Self::PromptSimilarity,
        Self::StyleSimilarity(30),
        Self::StyleSimilarity(15),
        Self::StyleSimilarity(10),
        Self::PickScore,
        Self::Hps,
        Self::Vendi,
        Self::PairwiseDistance,
        Self::NearDuplicates,
        Self::Coverage,
        Self::Novelty,
    ];

    /// Returns the name of the network behind the metric, if it is one of a network.
    pub fn network(self) -> Option<&'static str> {
        match self {
            Self::Ava => Some("ava"),
            Self::ImageReward => Some("image-reward"),
            Self::PickScore => Some("pick-score"),
            Self::Hps => Some("hps"),
            _ => None,
        }
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reward => f.write_str("reward"),
            Self::Entropy => f.write_str("entropy"),
            Self::StyleCoverage => f.write_str("style-coverage"),
            Self::PromptSimilarity => f.write_str("prompt-similarity"),
            Self::StyleSimilarity(steps) => write!(f, "style-similarity-{steps}"),
            Self::Vendi => f.write_str("vendi"),
            Self::PairwiseDistance => f.write_str("pairwise-distance"),
            Self::NearDuplicates => f.write_str("near-duplicates"),
            Self::Coverage => f.write_str("coverage"),
            Self::Novelty => f.write_str("novelty"),
            Self::Ava | Self::ImageReward | Self::PickScore | Self::Hps => {
                f.write_str(self.network().unwrap_or_default())
            }
        }
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<String> = Self::ALL.iter().map(ToString::to_string).collect();
        let found = Self::ALL.iter().zip(&names).find(|(_, name)| *name == text);
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        found.map(|(name, _)| *name).ok_or_else(|| format!("there is no metric `{text}`; {}", key_hint(text, &known)))
    }
}

/// What an evaluation has besides the evaluator, for what metrics need.
#[derive(Clone, Debug, Default)]
pub struct Available {
    /// The encoders of images that are at hand, by name, in the order of tables.
    pub encoders: Vec<String>,
    /// Those of them that embed texts too.
    pub text_encoders: Vec<String>,
    /// What is missing for the network or encoder of that name, and what to do.
    pub missing: Vec<(&'static str, String)>,
    /// Whether the images have prompts.
    pub prompts: bool,
    /// Whether there are reference images.
    pub reference: bool,
    /// Whether images of the untrained model can be generated beside those of a LoRA.
    pub pairs: bool,
}

impl Available {
    /// Adds an encoder of images, unless it is there.
    pub fn add_encoder(&mut self, name: &str) {
        add(&mut self.encoders, name);
    }

    /// Adds an encoder of images and texts to those of texts, unless it is there.
    pub fn add_text_encoder(&mut self, name: &str) {
        add(&mut self.text_encoders, name);
    }
}

fn add(names: &mut Vec<String>, name: &str) {
    if !names.iter().any(|other| other == name) {
        names.push(name.to_owned());
    }
}

/// A metric under one encoder or plugin, to be measured.
#[derive(Clone, Debug)]
pub struct Planned {
    name: Name,
    encoder: Option<String>,
    plugin: Option<String>,
    held_out: bool,
    /// The column that it is computed from, or what is missing.
    needs: Result<Column, String>,
}

impl Planned {
    /// Returns the column that is needed of the images, unless something is missing.
    pub fn column(&self) -> Option<&Column> {
        self.needs.as_ref().ok().filter(|_| !self.is_of_pairs())
    }

    /// Returns the column that is needed of the pairs of a style similarity, and their number of steps.
    pub fn of_pairs(&self) -> Option<(usize, &Column)> {
        match (self.name, &self.needs) {
            (Name::StyleSimilarity(steps), Ok(column)) => Some((steps, column)),
            _ => None,
        }
    }

    fn is_of_pairs(&self) -> bool {
        matches!(self.name, Name::StyleSimilarity(_))
    }

    /// Whether the metric compares with reference images.
    pub fn needs_reference(&self) -> bool {
        matches!(self.name, Name::Coverage | Name::Novelty) && self.needs.is_ok()
    }

    fn metric(&self, outcome: Outcome) -> Metric {
        Metric {
            name: self.name.to_string(),
            encoder: self.encoder.clone(),
            plugin: self.plugin.clone(),
            held_out: self.held_out,
            outcome,
        }
    }
}

/// Returns what is to be measured for metrics: each under every plugin or encoder that it can be measured with.
pub fn plan(names: &BTreeSet<Name>, evaluator: &Evaluator, available: &Available) -> Vec<Planned> {
    let missing = |name: &str| available.missing.iter().find(|(of, _)| *of == name).map(|(_, what)| what.clone());
    let mut planned = vec![];
    for &name in Name::ALL.iter().filter(|name| names.contains(name)) {
        let one = |needs: Result<Column, String>| Planned { name, encoder: None, plugin: None, held_out: false, needs };
        let by_encoder = |encoder: &String, needs| Planned { encoder: Some(encoder.clone()), ..one(needs) };
        match name {
            Name::Reward | Name::Entropy | Name::StyleCoverage => {
                let fitting = |styles: &[String]| name == Name::Reward || !styles.is_empty();
                let before = planned.len();
                for plugin in evaluator.plugins().filter(|plugin| fitting(plugin.styles)) {
                    let needs = Ok(Column::Plugin(plugin.name.to_owned()));
                    let (held_out, plugin) = (plugin.weight.is_none(), Some(plugin.name.to_owned()));
                    planned.push(Planned { plugin, held_out, ..one(needs) });
                }
                if planned.len() == before {
                    let what = if name == Name::Reward { "plugin" } else { "classifier" };
                    planned.push(one(Err(format!("needs a {what}: name one with --plugin"))));
                }
            }
            Name::Ava | Name::ImageReward | Name::PickScore | Name::Hps => {
                let network = name.network().unwrap_or_default();
                let needs = match missing(network) {
                    Some(what) => Err(what),
                    None if !evaluator.has_network(network) => Err("needs its weights".to_owned()),
                    None if name != Name::Ava && !available.prompts => Err(NO_PROMPTS.to_owned()),
                    None => Ok(Column::Network(network)),
                };
                planned.push(one(needs));
            }
            Name::PromptSimilarity => match (&available.text_encoders[..], available.prompts) {
                (_, false) => planned.push(one(Err(NO_PROMPTS.to_owned()))),
                ([], _) => planned.push(one(Err(NO_ENCODER.to_owned()))),
                (encoders, _) => planned.extend(
                    encoders.iter().map(|encoder| by_encoder(encoder, Ok(Column::PromptSimilarity(encoder.clone())))),
                ),
            },
            Name::StyleSimilarity(_) => {
                let needs = match missing(DINO) {
                    Some(what) => Err(what),
                    None if !available.pairs => {
                        Err("needs a run or a LoRA: its images are compared with those of the \
                                                     untrained model"
                            .to_owned())
                    }
                    None => Ok(Column::Embedding(DINO.to_owned())),
                };
                planned.push(by_encoder(&DINO.to_owned(), needs));
            }
            Name::Coverage | Name::Novelty if !available.reference => {
                planned.push(one(Err("needs reference images: name their folder with --reference".to_owned())));
            }
            Name::Vendi | Name::PairwiseDistance | Name::NearDuplicates | Name::Coverage | Name::Novelty => {
                if available.encoders.is_empty() {
                    planned.push(one(Err(NO_ENCODER.to_owned())));
                }
                planned.extend(
                    available
                        .encoders
                        .iter()
                        .map(|encoder| by_encoder(encoder, Ok(Column::Embedding(encoder.clone())))),
                );
            }
        }
    }
    planned
}

const NO_PROMPTS: &str = "needs prompts: write captions.jsonl beside the images, {\"file\": \"NAME\", \"caption\": \"TEXT\"} in \
                          each line";
const NO_ENCODER: &str = "needs an encoder: name one with --encoder clip=DIR";

/// The measured images of an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// The prompt of each image.
    pub prompts: &'a [String],
    /// The images.
    pub of: &'a Measured,
    /// The images of the baseline, from the same prompts and noise.
    pub baseline: Option<&'a Measured>,
    /// The reference images.
    pub reference: Option<&'a Measured>,
    /// The pairs of the style similarity: the prompts, the images, and those of the untrained model by the number of steps.
    pub pairs: Option<Pairs<'a>>,
}

/// The measured pairs of the style similarity.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    /// The prompt of each pair.
    pub prompts: &'a [String],
    /// The images.
    pub of: &'a Measured,
    /// The images of the untrained model by their number of steps.
    pub untrained: &'a [(usize, Measured)],
}

/// Returns the values of planned metrics.
///
/// # Errors
/// If there are no images; [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop.
pub fn values(planned: &[Planned], images: Images<'_>, context: &Context) -> Result<Vec<Metric>> {
    ensure!(!images.prompts.is_empty(), "there are no images to evaluate");
    let mut references = BTreeMap::new();
    let bar = context.progress.bar("computing", planned.len() as u64, "metrics");
    let one = |planned: &Planned| {
        context.interrupt.check("")?;
        bar.message(planned.name.to_string());
        let outcome = match &planned.needs {
            Err(reason) => Outcome::NotRun { reason: reason.clone() },
            Ok(column) => match of_column(planned, column, images, &mut references) {
                Ok(values) => Outcome::Ok(Box::new(values)),
                Err(reason) => Outcome::NotRun { reason },
            },
        };
        bar.inc(1);
        Ok(planned.metric(outcome))
    };
    let metrics = planned.iter().map(one).collect();
    bar.finish();
    metrics
}

/// Returns the values of a metric from its column, or why there are none.
fn of_column(
    planned: &Planned,
    column: &Column,
    images: Images<'_>,
    references: &mut BTreeMap<Column, Reference>,
) -> Result<Values, String> {
    let prompts: Vec<&str> = images.prompts.iter().map(String::as_str).collect();
    let means = |of: &Measured| of.means(column);
    match planned.name {
        Name::Reward | Name::Ava => {
            let baseline = images.baseline.map(means);
            Ok(of_images(&means(images.of), baseline.as_deref(), &prompts))
        }
        Name::Entropy => {
            let of = |of: &Measured| -> Vec<f64> {
                of.rows(column).rows().into_iter().map(|row| entropy(&row.to_vec())).collect()
            };
            let baseline = images.baseline.map(of);
            Ok(of_images(&of(images.of), baseline.as_deref(), &prompts))
        }
        // An image without a prompt has nothing to be similar to.
        Name::PromptSimilarity | Name::ImageReward | Name::PickScore | Name::Hps => {
            let with: Vec<usize> = (0..prompts.len()).filter(|&i| !prompts[i].is_empty()).collect();
            let of = |of: &Measured| -> Vec<f64> {
                let all = of.means(column);
                with.iter().map(|&i| all[i]).collect()
            };
            let prompts: Vec<&str> = with.iter().map(|&i| prompts[i]).collect();
            let baseline = images.baseline.map(of);
            Ok(of_images(&of(images.of), baseline.as_deref(), &prompts))
        }
        Name::StyleSimilarity(steps) => {
            let pairs = images.pairs.ok_or("needs pairs of images")?;
            let untrained = pairs.untrained.iter().find(|(of, _)| *of == steps).map(|(_, images)| images);
            let untrained = unit_rows(untrained.ok_or("needs pairs of images")?.rows(column).view());
            let of = unit_rows(pairs.of.rows(column).view());
            let cosines: Vec<f64> = of.rows().into_iter().zip(untrained.rows()).map(|(a, b)| a.dot(&b)).collect();
            let prompts: Vec<&str> = pairs.prompts.iter().map(String::as_str).collect();
            Ok(of_images(&cosines, None, &prompts))
        }
        Name::StyleCoverage => {
            let coverage = |of: &Measured| {
                let probabilities = of.rows(column).mapv(f64::exp);
                move |images: &[usize]| entropy_of_mean(probabilities.view(), images)
            };
            let (value, baseline) = (coverage(images.of), images.baseline.map(coverage));
            let bounds = [0.0, (images.of.rows(column).ncols() as f64).ln()];
            Ok(of_set(&prompts, bounds, &value, baseline.as_ref().map(|of| of as _), None))
        }
        Name::Vendi | Name::PairwiseDistance | Name::NearDuplicates => {
            let n = prompts.len() as f64;
            let (value, bounds): (fn(&Directions, &[usize]) -> f64, _) = match planned.name {
                Name::Vendi => (Directions::vendi, [1.0, n]),
                Name::PairwiseDistance => (Directions::mean_distance, [0.0, 2.0]),
                _ => (Directions::near_duplicates, [0.0, 1.0]),
            };
            let of = Directions::of(images.of.rows(column).view());
            let baseline = images.baseline.map(|of| Directions::of(of.rows(column).view()));
            let least = |images: &[usize]| of.least_distance(images);
            let is_distance = planned.name == Name::PairwiseDistance;
            let minimum: Option<FurtherOfSet<'_>> = if is_distance { Some(&least) } else { None };
            let of_baseline = baseline.as_ref().map(|baseline| move |images: &[usize]| value(baseline, images));
            let of_baseline = of_baseline.as_ref().map(|of| of as _);
            Ok(of_set(&prompts, bounds, &|images| value(&of, images), of_baseline, minimum))
        }
        Name::Coverage | Name::Novelty => {
            if !references.contains_key(column) {
                let rows = images.reference.ok_or("needs reference images")?.rows(column);
                references.insert(column.clone(), Reference::new(rows.view()));
            }
            let reference = &references[column];
            let compare = |of: &Measured| reference.compare(of.rows(column).view());
            let (of, baseline) = (compare(images.of), images.baseline.map(compare));
            if planned.name == Name::Novelty {
                let baseline = baseline.map(|baseline| baseline.novelty);
                return Ok(of_images(&of.novelty, baseline.as_deref(), &prompts));
            }
            if !of.has_coverage() {
                return Err(format!("needs more than {NEIGHBORS} reference images"));
            }
            let of_baseline = baseline.as_ref().map(|baseline| move |images: &[usize]| baseline.coverage(images));
            let of_baseline = of_baseline.as_ref().map(|of| of as _);
            Ok(of_set(&prompts, [0.0, 1.0], &|images| of.coverage(images), of_baseline, None))
        }
    }
}

/// Returns the entropy in nats of the mean of some distributions.
fn entropy_of_mean(probabilities: ArrayView2<'_, f64>, images: &[usize]) -> f64 {
    let mean = probabilities.select(Axis(0), images).mean_axis(Axis(0)).expect("there are images");
    -mean.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for name in Name::ALL {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        let message = "vendy".parse::<Name>().expect_err("no metric");
        assert!(message.contains("did you mean `vendi`?"), "{message}");
    }

    fn planned(name: Name, column: Column) -> Planned {
        Planned { name, encoder: None, plugin: None, held_out: false, needs: Ok(column) }
    }

    fn measured(column: &Column, rows: Array2<f64>) -> Measured {
        let mut measured = Measured::default();
        measured.insert(column.clone(), rows);
        measured
    }

    #[test]
    fn metrics_are_those_of_their_columns() {
        let column = Column::Plugin("p".to_owned());
        let log = |rows: Array2<f64>| measured(&column, rows.mapv(f64::ln));
        let of = log(array![[0.5, 0.5], [0.9, 0.1]]);
        let baseline = log(array![[0.9, 0.1], [0.9, 0.1]]);
        let prompts = ["a".to_owned(), "b".to_owned()];
        let images = Images { prompts: &prompts, of: &of, baseline: Some(&baseline), reference: None, pairs: None };
        let names = [Name::Reward, Name::Entropy, Name::StyleCoverage];
        let plans: Vec<Planned> = names.map(|name| planned(name, column.clone())).into();
        let found = values(&plans, images, &Context::quiet()).expect("there are images");
        let value = |i: usize| found[i].values().expect("measured");
        let rewards = [0.5f64.ln(), 0.5 * (0.09f64).ln()];
        assert!((value(0).value.mean - (rewards[0] + rewards[1]) / 2.0).abs() < 1e-12);
        let difference = value(0).difference.expect("a baseline").mean;
        assert!((difference - (rewards[0] - rewards[1]) / 2.0).abs() < 1e-12);
        let h = |p: f64| -(p * p.ln() + (1.0 - p) * (1.0 - p).ln());
        assert!((value(1).value.mean - (2f64.ln() + h(0.9)) / 2.0).abs() < 1e-12);
        assert!((value(2).value.mean - h(0.7)).abs() < 1e-12);
        assert!((value(2).by_prompt["a"].mean - 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn images_without_a_prompt_have_no_prompt_similarity() {
        let column = Column::PromptSimilarity("clip".to_owned());
        let of = measured(&column, array![[0.2], [0.9], [0.4]]);
        let prompts = ["a cat".to_owned(), String::new(), "a dog".to_owned()];
        let images = Images { prompts: &prompts, of: &of, baseline: None, reference: None, pairs: None };
        let found =
            values(&[planned(Name::PromptSimilarity, column)], images, &Context::quiet()).expect("there are images");
        let value = found[0].values().expect("measured").value;
        assert!((value.mean - 0.3).abs() < 1e-12 && value.n == 2);
    }

    #[test]
    fn a_style_similarity_is_the_cosine_of_pairs() {
        let column = Column::Embedding(DINO.to_owned());
        let of = measured(&column, array![[1.0, 0.0], [0.0, 2.0]]);
        let untrained = [(15, measured(&column, array![[3.0, 0.0], [1.0, 1.0]]))];
        let prompts = ["a".to_owned(), "b".to_owned()];
        let pairs = Some(Pairs { prompts: &prompts, of: &of, untrained: &untrained });
        let images = Images { prompts: &prompts, of: &of, baseline: None, reference: None, pairs };
        let found = values(&[planned(Name::StyleSimilarity(15), column.clone())], images, &Context::quiet())
            .expect("there are images");
        let value = found[0].values().expect("measured").value;
        assert!((value.mean - (1.0 + 0.5f64.sqrt()) / 2.0).abs() < 1e-12);
        let none =
            values(&[planned(Name::StyleSimilarity(30), column)], images, &Context::quiet()).expect("there are images");
        assert!(none[0].values().is_none());
    }
}
