//! CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020),
//! with two classification losses besides the contrastive one, since styles and subjects are known.

use std::path::Path;

use ambiguity_models::clip::{
    Activation, Clip, ClipConfig, PadRule, Preprocessor, TextConfig, Tokenizer, VisionConfig,
};
use ambiguity_models::params::{NamedTensors, Params};
use ambiguity_models::safetensors::write_safetensors;
use anyhow::{Context, Result, ensure};
use image::RgbImage;
use procedural_art::{STYLES, SUBJECTS, all_captions};
use tch::{Device, Kind, Reduction, Tensor, no_grad};

use super::Session;
use super::data::{Captions, N_PAIRS, Paintings, Split, augment, style_of, subject_of};
use super::evaluate::{ZeroShot, normalized};
use super::stage::{Model, Prepared, Pretraining, Stage, generator, weights_seed};
use super::vocabulary;
use crate::config::pretrain::{ClipStage, WeightsType};
use crate::run::record::ClipMonitor;

/// Epsilon of the layer norms, as in CLIP.
const LAYER_NORM_EPS: f64 = 1e-5;

/// CLIP in training.
pub(super) struct Contrast {
    seed: u64,
    config: ClipStage,
    clip: Clip,
    clip_config: ClipConfig,
    tokenizer: Tokenizer,
    preprocessor: Preprocessor,
    captions: Captions,
    paintings: Paintings,
    held_out: Paintings,
}

/// Returns a CLIP with fresh weights, with its training paintings.
pub(super) fn open(session: &Session) -> Result<Pretraining<Contrast>> {
    let pretrain = session.pretrain();
    let config = &pretrain.clip;
    let tokenizer = tokenizer(config.text.length)?;
    let clip_config = network(config, i64::from(pretrain.data.size), &tokenizer)?;
    let params = Params::random(weights_seed(pretrain.seed, Stage::Clip), Device::Cpu)?;
    let clip = Clip::new(&params, &clip_config)?;
    let prepared = Prepared::new(params.finish()?, &config.schedule, None)?;
    let model = Contrast {
        seed: pretrain.seed,
        config: config.clone(),
        clip,
        clip_config,
        preprocessor: Preprocessor::clip(pretrain.data.size as usize),
        captions: Captions::new(&tokenizer)?,
        tokenizer,
        paintings: Paintings::render(session, Split::Training, config.per_pair)?,
        held_out: Paintings::render(session, Split::HeldOut, pretrain.data.held_out_per_pair)?,
    };
    Ok(prepared.with(model, session))
}

/// Returns the tokenizer of the paintings' captions.
pub(super) fn tokenizer(length: usize) -> Result<Tokenizer> {
    let vocabulary = vocabulary::build(&all_captions());
    Ok(Tokenizer::from_vocab(vocabulary.tokens, &vocabulary.merges, length, PadRule::EndOfText)?)
}

fn network(config: &ClipStage, size: i64, tokenizer: &Tokenizer) -> Result<ClipConfig> {
    let id = |token: &str| tokenizer.id(token).map(i64::from).with_context(|| format!("the vocabulary lacks {token}"));
    let (start, end) = (id("<|startoftext|>")?, id("<|endoftext|>")?);
    let (text, vision) = (&config.text, &config.vision);
    for (table, width, heads) in [("text", text.hidden_size, text.heads), ("vision", vision.hidden_size, vision.heads)]
    {
        let fits = heads > 0 && width % heads == 0;
        ensure!(fits, "`pretrain.clip.{table}.heads` is {heads}, which does not divide hidden_size {width}");
    }
    Ok(ClipConfig {
        text_config: TextConfig {
            vocab_size: tokenizer.vocab_size() as i64,
            hidden_size: text.hidden_size,
            intermediate_size: text.intermediate_size,
            projection_dim: config.projection_dim,
            num_hidden_layers: text.layers,
            num_attention_heads: text.heads,
            max_position_embeddings: text.length as i64,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: LAYER_NORM_EPS,
            pad_token_id: Some(end),
            bos_token_id: Some(start),
            eos_token_id: end,
        },
        vision_config: VisionConfig {
            hidden_size: vision.hidden_size,
            intermediate_size: vision.intermediate_size,
            projection_dim: config.projection_dim,
            num_hidden_layers: vision.layers,
            num_attention_heads: vision.heads,
            num_channels: 3,
            image_size: size,
            patch_size: vision.patch_size,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: LAYER_NORM_EPS,
        },
        projection_dim: config.projection_dim,
        logit_scale_init_value: config.logit_scale_init,
    })
}

impl Model for Contrast {
    type Monitor = ClipMonitor;

    const STAGE: Stage = Stage::Clip;

    fn backward(&mut self, step: u64) -> Result<f64> {
        self.limit_scale();
        let n = self.config.batch_size;
        let mut generator = generator(self.seed, Stage::Clip, step, 0, 1)?;
        let pairs = Vec::<i64>::try_from(generator.permutation(N_PAIRS as i64)?.narrow(0, 0, n as i64))?;
        let copies = generator.integers(0, self.config.per_pair as i64, &[n as i64])?;
        let indices = copies * N_PAIRS as i64 + Tensor::from_slice(&pairs);
        let draws = Vec::<f32>::try_from(generator.uniform(&[(n + STYLES.len() + SUBJECTS.len()) as i64])?)?;
        let images = augment(&self.paintings.at(&indices), self.config.shift, &mut generator)?;
        let pixels = self.preprocessor.pixels_from_tensor(&images)?;
        let images = normalized(&self.clip.embed_images(&pixels));
        let texts = normalized(&self.clip.embed_texts(&self.captions.select(&self.rows(&pairs, &draws))));
        let logits = images.matmul(&texts.tr()) * self.clip.logit_scale.exp();
        let loss = self.loss(&logits, &pairs);
        loss.f_backward()?;
        Ok(loss.double_value(&[]))
    }

    fn evaluate(&mut self, _last: bool) -> Result<(ClipMonitor, Option<RgbImage>)> {
        let monitor = ZeroShot::new(&self.clip, &self.tokenizer).paintings(&self.clip, &self.held_out)?;
        Ok((monitor, None))
    }

    fn write(&self, session: &Session, weights: &NamedTensors, _: &ClipMonitor) -> Result<()> {
        let dir = session.clip_dir();
        fs_err::create_dir_all(&dir)?;
        self.clip_config.write(&dir.join("config.json"))?;
        self.tokenizer.save(&dir)?;
        self.preprocessor.save(&dir)?;
        write_weights(&dir.join("model.safetensors"), weights, session.pretrain().weights)
    }
}

impl Contrast {
    /// Returns the caption rows: the batch's own, then one for each style, then one for each subject.
    fn rows(&self, pairs: &[i64], draws: &[f32]) -> Vec<i64> {
        let mut draws = draws.iter().map(|&draw| f64::from(draw));
        let mut draw = || draws.next().expect("a number was drawn for each caption");
        let mut rows: Vec<i64> = pairs.iter().map(|&pair| self.captions.full(pair as usize, draw())).collect();
        rows.extend((0..STYLES.len()).map(|style| self.captions.style(style, draw())));
        rows.extend((0..SUBJECTS.len()).map(|subject| self.captions.subject(subject, draw())));
        rows
    }

    /// Returns the loss of logits [n, n + 27 + 8], with the texts in the order of [`Contrast::rows`].
    fn loss(&self, logits: &Tensor, pairs: &[i64]) -> Tensor {
        let n = pairs.len() as i64;
        let target = |f: fn(usize) -> usize| {
            Tensor::from_slice(&pairs.iter().map(|&pair| f(pair as usize) as i64).collect::<Vec<_>>())
        };
        let cross_entropy = |logits: &Tensor, target: &Tensor| {
            logits.cross_entropy_loss(target, None::<&Tensor>, Reduction::Mean, -100, 0.0)
        };
        let own = logits.narrow(1, 0, n);
        let diagonal = Tensor::arange(n, (Kind::Int64, logits.device()));
        let captions = (cross_entropy(&own, &diagonal) + cross_entropy(&own.tr(), &diagonal)) / 2.0;
        let (n_styles, n_subjects) = (STYLES.len() as i64, SUBJECTS.len() as i64);
        let styles = cross_entropy(&logits.narrow(1, n, n_styles), &target(style_of));
        let subjects = cross_entropy(&logits.narrow(1, n + n_styles, n_subjects), &target(subject_of));
        captions * self.config.caption_weight
            + styles * self.config.style_weight
            + subjects * self.config.subject_weight
    }

    fn limit_scale(&self) {
        no_grad(|| {
            let _ = self.clip.logit_scale.shallow_clone().clamp_max_(self.config.logit_scale_max.ln());
        });
    }
}

/// Writes weights in the type of the shipped files.
pub(super) fn write_weights(path: &Path, tensors: &NamedTensors, kind: WeightsType) -> Result<()> {
    let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach().to_kind(kind.kind()))).collect();
    // transformers does not read a file without this entry.
    Ok(write_safetensors(path, &tensors, &[("format", "pt")])?)
}
