//! The weights of metrics: where they are, and what to say of those that are missing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ambiguity_models::safetensors::read_safetensors;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use ndarray::Array2;
use tch::Device;

use crate::context::Context;
use crate::encoders::{Encoders, array};
use crate::metrics::catalog::{self, Available, Images, Name, plan};
use crate::metrics::networks::{Aesthetic, ImageRewardNetwork, PreferenceNetwork};
use crate::metrics::{Column, Evaluator, Measured};
use crate::run::evaluation::{Evaluation, Protocol};
use crate::zoo::weights::{AESTHETIC, CLIP_L, CSD, DINO, HPS, IMAGE_REWARD, Located, MetricWeights, PICK_SCORE};

/// The places of the weights of metrics.
#[derive(Args, Debug)]
pub(super) struct WeightsArgs {
    /// The aesthetic predictor's weights, .pth or .safetensors [default: found in models/weights or the Hub's cache]
    #[arg(long, value_name = "FILE")]
    aesthetic: Option<PathBuf>,
    /// ImageReward's weights with BERT's vocab.txt
    #[arg(long, value_name = "DIR")]
    image_reward: Option<PathBuf>,
    /// DINO's folder, for the style similarity
    #[arg(long, value_name = "DIR")]
    dino: Option<PathBuf>,
    /// PickScore's folder
    #[arg(long, value_name = "DIR")]
    pick_score: Option<PathBuf>,
    /// HPS v2.1's weights with CLIP's vocabulary
    #[arg(long, value_name = "DIR")]
    hps: Option<PathBuf>,
    /// CSD's folder, for diversity of style
    #[arg(long, value_name = "DIR")]
    csd: Option<PathBuf>,
    /// Download the weights that are missing from the Hub (up to 8 GB)
    #[arg(long)]
    fetch: bool,
}

impl WeightsArgs {
    fn named(&self, weights: &MetricWeights) -> Option<&Path> {
        let path = match weights.name {
            "aesthetic" => &self.aesthetic,
            "image-reward" => &self.image_reward,
            "dino" => &self.dino,
            "pick-score" => &self.pick_score,
            "hps" => &self.hps,
            "csd" => &self.csd,
            _ => &None,
        };
        path.as_deref()
    }

    fn locate(&self, weights: &MetricWeights, context: &Context) -> Result<Option<Located>> {
        weights.locate(self.named(weights), self.fetch, context)
    }
}

/// Adds the networks and encoders whose weights are at hand, as far as the metrics need them, and notes those that are missing.
pub(super) fn add_weights(
    args: &WeightsArgs,
    names: &BTreeSet<Name>,
    evaluator: &mut Evaluator,
    available: &mut Available,
    device: Device,
    context: &Context,
) -> Result<()> {
    let wants = |wanted: &[Name]| wanted.iter().any(|name| names.contains(name));
    let is_of_pairs = |name: &Name| matches!(name, Name::StyleSimilarity(_));
    let of_embeddings =
        wants(&[Name::Vendi, Name::PairwiseDistance, Name::NearDuplicates, Name::Coverage, Name::Novelty]);
    if of_embeddings || wants(&[Name::Ava, Name::PromptSimilarity]) {
        let is_named = evaluator.encoders().names().contains(&CLIP_L.name);
        let located = if is_named { None } else { args.locate(&CLIP_L, context)? };
        if let Some(located) = &located {
            evaluator.encoders().add_clip_of_metrics(CLIP_L.name, located.path(), device);
        }
        match is_named || located.is_some() {
            true => {
                available.add_encoder(CLIP_L.name);
                available.add_text_encoder(CLIP_L.name);
            }
            false => available.missing.push((AVA, CLIP_L.missing())),
        }
    }
    if of_embeddings || names.iter().any(is_of_pairs) {
        match args.locate(&DINO, context)? {
            Some(located) => {
                evaluator.encoders().add_dino(DINO.name, located.path(), device);
                available.add_encoder(DINO.name);
            }
            None => available.missing.push((DINO.name, DINO.missing())),
        }
    }
    if of_embeddings && let Some(located) = args.locate(&CSD, context)? {
        let path = located.weights(&["model.safetensors", "pytorch_model.bin"]);
        let path = path.unwrap_or_else(|| located.path().to_owned());
        evaluator.encoders().add_csd(CSD.name, &path, device);
        available.add_encoder(CSD.name);
    }
    if names.contains(&Name::Ava) {
        match args.locate(&AESTHETIC, context)? {
            Some(located) => {
                let predictor = Aesthetic::new(&aesthetic_file(&located), CLIP_L.name, device);
                evaluator.add_network(AVA, Box::new(predictor));
            }
            None => available.missing.insert(0, (AVA, AESTHETIC.missing())),
        }
    }
    if names.contains(&Name::ImageReward) {
        let located = args.locate(&IMAGE_REWARD, context)?;
        let files = located.as_ref().and_then(|located| {
            let weights = located.weights(&["ImageReward.safetensors", "ImageReward.pt", "model.safetensors"])?;
            Some((weights, located.file(&["vocab.txt"])?))
        });
        match files {
            Some((weights, vocabulary)) => {
                let network = ImageRewardNetwork::new(&weights, &vocabulary, device);
                evaluator.add_network(IMAGE_REWARD.name, Box::new(network));
            }
            None => available.missing.push((IMAGE_REWARD.name, IMAGE_REWARD.missing())),
        }
    }
    if names.contains(&Name::PickScore) {
        match args.locate(&PICK_SCORE, context)? {
            Some(located) => {
                let network = PreferenceNetwork::pick_score(located.path(), device);
                evaluator.add_network(PICK_SCORE.name, Box::new(network));
            }
            None => available.missing.push((PICK_SCORE.name, PICK_SCORE.missing())),
        }
    }
    if names.contains(&Name::Hps) {
        let located = args.locate(&HPS, context)?;
        let files = located.as_ref().and_then(|located| {
            let weights = located.weights(&["HPS_v2.1_compressed.pt", "model.safetensors"])?;
            Some((weights, located.file(&["vocab.json"])?))
        });
        match files {
            Some((weights, vocabulary)) => {
                let folder = vocabulary.parent().unwrap_or(Path::new("."));
                evaluator.add_network(HPS.name, Box::new(PreferenceNetwork::hps(&weights, folder, device)));
            }
            None => available.missing.push((HPS.name, HPS.missing())),
        }
    }
    Ok(())
}

/// The name of the aesthetic predictor's metric.
const AVA: &str = "ava";

/// Returns the file of the aesthetic predictor, or its folder.
fn aesthetic_file(located: &Located) -> PathBuf {
    let names = ["aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth", "model.safetensors"];
    located.weights(&names).unwrap_or_else(|| located.path().to_owned())
}

/// Evaluates given embeddings: metrics that read nothing else.
///
/// # Errors
/// If the file has no matrix `embeddings`, or a metric needs images.
pub(super) fn of_embeddings(
    path: &Path,
    names: &BTreeSet<Name>,
    args: &WeightsArgs,
    device: Device,
    context: &Context,
) -> Result<Evaluation> {
    let mut tensors = read_safetensors(path)?;
    let embeddings = tensors.remove("embeddings");
    let embeddings = embeddings.with_context(|| format!("{} has no tensor `embeddings`", path.display()))?;
    let rows = array(&embeddings).with_context(|| format!("`embeddings` of {} is no matrix", path.display()))?;
    ensure!(rows.iter().all(|value| value.is_finite()), "{} has numbers that are not finite", path.display());
    const GIVEN: &str = "given";
    let mut evaluator = Evaluator::new(Encoders::shipped(device), 1, &context.interrupt);
    let mut available = Available { encoders: vec![GIVEN.to_owned()], ..Available::default() };
    let mut measured = Measured::default();
    if names.contains(&Name::Ava) {
        match args.locate(&AESTHETIC, context)? {
            Some(located) => {
                let mut predictor = Aesthetic::new(&aesthetic_file(&located), GIVEN, device);
                let scores = predictor.of_embeddings(rows.view()).with_context(|| path.display().to_string())?;
                measured.insert(Column::Network(AVA), Array2::from_shape_vec((scores.len(), 1), scores)?);
                evaluator.add_network(AVA, Box::new(predictor));
            }
            None => available.missing.push((AVA, AESTHETIC.missing())),
        }
    }
    measured.insert(Column::Embedding(GIVEN.to_owned()), rows.mapv(f64::from));
    let prompts = vec![String::new(); rows.nrows()];
    let images = Images { prompts: &prompts, of: &measured, baseline: None, reference: None, pairs: None };
    let metrics = catalog::values(&plan(names, &evaluator, &available), images, context)?;
    let protocol = Protocol { count: rows.nrows(), images: Some(path.display().to_string()), ..Protocol::default() };
    Ok(Evaluation { protocol, metrics })
}
