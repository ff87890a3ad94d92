//! `host eval`: images, generated or given, and the metrics of them. Every image that was generated and every number that was
//! computed is on the disk before the next one, so that a run that is killed loses nothing.
//!
//! # Layout
//!
//! - this file: [`evaluate`], from a request to an [`Evaluation`]
//! - [`images`]: sets of images: those of a model in a working folder, or given ones
//! - [`values`]: the numbers of a set, in files by parts of it

pub mod images;
pub mod values;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use sha2::{Digest as _, Sha256};

use self::images::{Generation, ImageSet, Model};
use self::values::measure;
use crate::context::Context;
use crate::interrupt::keeping;
use crate::metrics::catalog::{self, Available, Images, Name, Pairs, SIMILARITY_STEPS, plan};
use crate::metrics::{Column, Evaluator, Measured};
use crate::run::evaluation::{Evaluation, Protocol};

/// What is evaluated.
#[derive(Debug)]
pub enum Subject {
    /// A model, with or without a LoRA, whose images are generated.
    Model(Box<Model>),
    /// Given images, and the folder for the numbers.
    Given {
        /// The images.
        set: ImageSet,
        /// Their folder, as it was named.
        folder: PathBuf,
    },
}

/// What is evaluated, and how.
#[derive(Debug)]
pub struct Request {
    /// What is evaluated.
    pub subject: Subject,
    /// The folder for images and numbers.
    pub work: PathBuf,
    /// The metrics.
    pub metrics: BTreeSet<Name>,
    /// Number of images to generate.
    pub count: usize,
    /// Number of pairs of the style similarity.
    pub pairs: usize,
    /// Whether the model without LoRA is evaluated on the same prompts and noise.
    pub baseline: bool,
    /// The folder of reference images.
    pub reference: Option<PathBuf>,
}

/// Measures the metrics of a request. The first process returns them, the others nothing: they share the work on the images.
///
/// # Errors
/// [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop; what was computed is kept.
pub fn evaluate(
    request: &Request,
    evaluator: &mut Evaluator,
    available: &Available,
    context: &Context,
) -> Result<Option<Evaluation>> {
    let evaluation = evaluate_all(request, evaluator, available, context);
    evaluation.map_err(|error| {
        let work = request.work.display();
        keeping(error, format!("what was computed is kept in {work}, and the same command resumes"))
    })
}

fn evaluate_all(
    request: &Request,
    evaluator: &mut Evaluator,
    available: &Available,
    context: &Context,
) -> Result<Option<Evaluation>> {
    let planned = plan(&request.metrics, evaluator, available);
    let columns: BTreeSet<Column> = planned.iter().filter_map(|planned| planned.column().cloned()).collect();
    let mut of_pairs: Vec<(usize, Column)> = planned
        .iter()
        .filter_map(|planned| planned.of_pairs())
        .map(|(steps, column)| (steps, column.clone()))
        .collect();
    of_pairs.dedup();
    let mut work = Work { evaluator, columns: columns.into_iter().collect(), context };
    let reference = match &request.reference {
        Some(folder) if planned.iter().any(catalog::Planned::needs_reference) => {
            let set = ImageSet::of_folder(folder, &request.work.join(format!("reference-{}", name_of(folder)?)))?;
            let is_embedding = |column: &&Column| matches!(column, Column::Embedding(_));
            let columns: Vec<Column> = work.columns.iter().filter(is_embedding).cloned().collect();
            Some(work.measured(&set, &columns, "measuring the reference")?)
        }
        _ => None,
    };
    let columns = work.columns.clone();
    let (main, baseline, pairs) = match &request.subject {
        Subject::Given { set, .. } => {
            let measured = work.measured(set, &columns, "measuring")?;
            ((set.prompts.clone(), measured), None, None)
        }
        Subject::Model(model) => {
            let mut generation = Generation::new(model, &request.work);
            let mut set = |generation: &mut Generation<'_>, lora, steps, eta, n, columns: &[Column]| {
                let set = generation.images(lora, steps, eta, n, work.context)?;
                anyhow::Ok((set.prompts.clone(), work.measured(&set, columns, "measuring")?))
            };
            let (steps, eta) = (model.settings.steps, model.settings.eta);
            let main = set(&mut generation, true, steps, eta, request.count, &columns)?;
            let baseline = match request.baseline && model.settings.lora.is_some() {
                true => Some(set(&mut generation, false, steps, eta, request.count, &columns)?.1),
                false => None,
            };
            let pairs = match of_pairs.first() {
                Some((_, column)) => {
                    let columns = [column.clone()];
                    // The same deterministic sampler for all, so that only the model and the number of steps differ.
                    let (prompts, of) = set(&mut generation, true, SIMILARITY_STEPS[0], 0.0, request.pairs, &columns)?;
                    let mut untrained = vec![];
                    for (steps, _) in &of_pairs {
                        untrained.push((*steps, set(&mut generation, false, *steps, 0.0, request.pairs, &columns)?.1));
                    }
                    Some((prompts, of, untrained))
                }
                None => None,
            };
            (main, baseline, pairs)
        }
    };
    if !context.processes.is_first() {
        return Ok(None);
    }
    let (prompts, of) = &main;
    let images = Images {
        prompts,
        of,
        baseline: baseline.as_ref(),
        reference: reference.as_ref(),
        pairs: pairs.as_ref().map(|(prompts, of, untrained)| Pairs { prompts, of, untrained }),
    };
    let metrics = catalog::values(&planned, images, context)?;
    let n_pairs = pairs.as_ref().map(|(prompts, ..)| prompts.len());
    Ok(Some(Evaluation { protocol: protocol(request, prompts, n_pairs), metrics }))
}

/// Returns a name for the numbers of a folder's images: a digest of its place.
fn name_of(folder: &Path) -> Result<String> {
    let place = fs_err::canonicalize(folder)?;
    Ok(format!("{:.12}", format!("{:x}", Sha256::digest(place.as_os_str().as_encoded_bytes()))))
}

/// What the parts of an evaluation share.
struct Work<'a> {
    evaluator: &'a mut Evaluator,
    columns: Vec<Column>,
    context: &'a Context,
}

impl Work<'_> {
    fn measured(&mut self, set: &ImageSet, columns: &[Column], label: &str) -> Result<Measured> {
        let mut bar = self.context.progress.bar(label, set.len() as u64, "images");
        let measured = measure(set, columns, self.evaluator, self.context, &mut bar)?;
        bar.finish();
        Ok(measured)
    }
}

/// Returns the conditions of the images.
fn protocol(request: &Request, prompts: &[String], pairs: Option<usize>) -> Protocol {
    let mut distinct: Vec<String> = vec![];
    for prompt in prompts {
        if !prompt.is_empty() && !distinct.contains(prompt) {
            distinct.push(prompt.clone());
        }
    }
    let reference = request.reference.as_deref().map(|folder: &Path| folder.display().to_string());
    let common = Protocol { count: prompts.len(), prompts: distinct, pairs, reference, ..Protocol::default() };
    match &request.subject {
        Subject::Given { set, folder } => {
            let size = set.size();
            Protocol {
                images: Some(folder.display().to_string()),
                width: size.map(|(width, _)| width),
                height: size.map(|(_, height)| height),
                ..common
            }
        }
        Subject::Model(model) => {
            let settings = &model.settings;
            Protocol {
                steps: Some(settings.steps),
                eta: Some(settings.eta),
                guidance: Some(settings.guidance),
                width: Some(settings.width),
                height: Some(settings.height),
                seed: Some(model.seed),
                model: Some(model.name.clone()),
                lora: settings.lora.as_ref().map(|lora| lora.display().to_string()),
                lora_sha256: model.lora_sha256.clone(),
                ..common
            }
        }
    }
}
