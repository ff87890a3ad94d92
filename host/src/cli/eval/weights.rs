//! The weights of metrics: where they are, and what to say of those that are missing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ambiguity_models::safetensors::read_safetensors;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tch::Device;

use crate::context::Context;
use crate::encoders::{Encoders, array};
use crate::metrics::catalog::{self, Available, Images, Name, plan};
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
    let _ = (evaluator, device, names);
    for weights in [AESTHETIC, CLIP_L, IMAGE_REWARD, DINO, PICK_SCORE, HPS, CSD] {
        let _: Option<Located> = args.locate(&weights, context)?;
        available.missing.push((weights.name, weights.missing()));
    }
    Ok(())
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
    let _ = args;
    let mut tensors = read_safetensors(path)?;
    let embeddings = tensors.remove("embeddings");
    let embeddings = embeddings.with_context(|| format!("{} has no tensor `embeddings`", path.display()))?;
    let rows = array(&embeddings).with_context(|| format!("`embeddings` of {} is no matrix", path.display()))?;
    ensure!(rows.iter().all(|value| value.is_finite()), "{} has numbers that are not finite", path.display());
    const GIVEN: &str = "given";
    let evaluator = Evaluator::new(Encoders::shipped(device), 1, &context.interrupt);
    let available = Available { encoders: vec![GIVEN.to_owned()], ..Available::default() };
    let mut measured = Measured::default();
    measured.insert(Column::Embedding(GIVEN.to_owned()), rows.mapv(f64::from));
    let prompts = vec![String::new(); rows.nrows()];
    let images = Images { prompts: &prompts, of: &measured, baseline: None, reference: None, pairs: None };
    let metrics = catalog::values(&plan(names, &evaluator, &available), images)?;
    let protocol = Protocol { count: rows.nrows(), images: Some(path.display().to_string()), ..Protocol::default() };
    Ok(Evaluation { protocol, metrics })
}
