//! The model cards, generated from the metrics.

use std::process::Command;

use ambiguity_models::files::write_atomic;
use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::data::{N_PAIRS, style_texts, subject_texts};
use super::stage::Stage;
use super::{Finished, Session, finished_clip, finished_unet, finished_vae};
use crate::run::record::{ClipMonitor, UNetMonitor, VaeMonitor};

/// Writes the model card of a finished stage, once all its metrics are known.
pub(super) fn write(session: &Session, stage: Stage) -> Result<()> {
    let (dir, text) = match stage {
        Stage::Clip => {
            let clip = finished_clip(session)?.context("the clip stage is not finished")?;
            (session.clip_dir(), clip_card(session, &clip))
        }
        Stage::Vae => return Ok(()),
        Stage::UNet => {
            let unet = finished_unet(session)?.context("the unet stage is not finished")?;
            let vae = finished_vae(session)?.context("the vae stage is not finished")?;
            (session.diffusion_dir(), diffusion_card(session, &vae, &unet))
        }
    };
    Ok(write_atomic(&dir.join("README.md"), text.as_bytes())?)
}

/// Returns the commit of the working folder, if it is a checkout of this project.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    git(&["cat-file", "-e", "HEAD:host/presets/pretrain-tiny-art.toml"])?;
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// Returns version, commit and seed.
fn provenance(session: &Session) -> String {
    let commit = commit().map_or_else(String::new, |commit| format!(", commit {commit}"));
    format!("`host` {}{commit}, seed {}", env!("CARGO_PKG_VERSION"), session.pretrain().seed)
}

/// Returns the part of the configuration that a card prints.
fn recipe(session: &Session, parts: &[&str]) -> String {
    let whole = json!(session.pretrain());
    let mut table = serde_json::Map::new();
    for &part in parts {
        table.insert(part.to_owned(), whole[part].clone());
    }
    let file = json!({ "pretrain": Value::Object(table) });
    toml::to_string(&file).expect("a configuration read from TOML can be written as TOML")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

const FRONT_MATTER: &str = "---\nlicense: apache-2.0\n";

fn clip_card(session: &Session, finished: &Finished<ClipMonitor>) -> String {
    let pretrain = session.pretrain();
    let styles = style_texts();
    let subjects = subject_texts();
    format!(
        "{FRONT_MATTER}library_name: transformers\npipeline_tag: zero-shot-image-classification\n---\n\n\
# Tiny art CLIP\n\n\
A CLIP of {parameters} parameters for procedural paintings of {size} × {size} pixels in 27 styles of 8 subjects. It was\n\
trained from scratch, by `host pretrain clip`, on images that `host art` draws; no other image and no other weights\n\
went in. It knows nothing of the world outside these paintings. transformers loads it as a `CLIPModel`.\n\n\
## Metrics\n\n\
On {held_out} held-out paintings, zero-shot:\n\n\
| What is predicted | Accuracy | Chance | Texts |\n|---|---|---|---|\n\
| style | {style} | 3.7 % | \"{first_style}\", … |\n\
| subject | {subject} | 12.5 % | \"{first_subject}\", … |\n\
| style and subject | {caption} | 0.5 % | both in one caption |\n\n\
Style texts: {style_list}.\n\n\
Subject texts: {subject_list}.\n\n\
## Training\n\n\
{training} paintings, {minutes} minutes on {threads} CPU thread(s) ({provenance}). Loss: contrast between each batch's\n\
captions, plus classification of the 27 styles and the 8 subjects by texts that are redrawn at each step.\n\n\
```toml\n{recipe}```\n\n\
License: Apache-2.0.\n",
        parameters = finished.parameters,
        size = session.pretrain().data.size,
        held_out = pretrain.data.held_out_per_pair * N_PAIRS,
        style = percent(finished.monitor.style_accuracy),
        subject = percent(finished.monitor.subject_accuracy),
        caption = percent(finished.monitor.caption_accuracy),
        first_style = styles[0],
        first_subject = subjects[0],
        style_list = styles.join("; "),
        subject_list = subjects.join("; "),
        training = pretrain.clip.per_pair * N_PAIRS,
        minutes = finished.minutes.round(),
        threads = finished.threads,
        provenance = provenance(session),
        recipe = recipe(session, &["data", "clip"]),
    )
}

fn diffusion_card(session: &Session, vae: &Finished<VaeMonitor>, unet: &Finished<UNetMonitor>) -> String {
    let pretrain = session.pretrain();
    let samples = &pretrain.unet.samples;
    format!(
        "{FRONT_MATTER}library_name: diffusers\npipeline_tag: text-to-image\n---\n\n\
# Tiny art diffusion\n\n\
A latent diffusion model for procedural paintings of {size} × {size} pixels in 27 styles of 8 subjects: a UNet of\n\
{unet_parameters} parameters, an autoencoder of {vae_parameters} and the text encoder of the CLIP beside it. It was trained\n\
from scratch, by `host pretrain`, on images that `host art` draws; no other image and no other weights went in.\n\
diffusers loads it as a `StableDiffusionPipeline`. Prompts: \"painting of a man, ukiyo-e\", \"an impressionism painting of a\n\
building\", \"drawing of an animal\".\n\n\
## Metrics\n\n\
Autoencoder, on {vae_held_out} held-out paintings: {psnr:.1} dB mean PSNR. The latents of a {size}-pixel painting are\n\
{latent_channels} × {latent} × {latent}.\n\n\
Samples ({steps} DDIM steps, guidance {guidance}, eta 0), classified by the CLIP beside it, zero-shot:\n\n\
| Prompts | Samples | What is predicted | Accuracy | Chance |\n|---|---|---|---|---|\n\
| style and subject | {n_styled} | style | {styled_style} | 3.7 % |\n\
| style and subject | {n_styled} | subject | {styled_subject} | 12.5 % |\n\
| subject alone | {n_plain} | subject | {plain_subject} | 12.5 % |\n\n\
## Training\n\n\
Autoencoder: {vae_training} paintings, {vae_minutes} minutes on {vae_threads} CPU thread(s). UNet: {latents} latents,\n\
{unet_minutes} minutes on {unet_threads} CPU thread(s), the moving average of the weights ({provenance}).\n\n\
```toml\n{recipe}```\n\n\
License: Apache-2.0.\n",
        size = session.pretrain().data.size,
        unet_parameters = unet.parameters,
        vae_parameters = vae.parameters,
        vae_held_out = pretrain.data.held_out_per_pair * N_PAIRS,
        psnr = vae.monitor.psnr,
        latent_channels = session.pretrain().vae.latent_channels,
        latent = session.pretrain().data.size >> (session.pretrain().vae.block_out_channels.len() - 1),
        steps = samples.steps,
        guidance = samples.guidance,
        n_styled = unet.monitor.styled_samples,
        styled_style = percent(unet.monitor.styled_style_accuracy),
        styled_subject = percent(unet.monitor.styled_subject_accuracy),
        n_plain = unet.monitor.plain_samples,
        plain_subject = percent(unet.monitor.plain_subject_accuracy),
        vae_training = pretrain.vae.per_pair * N_PAIRS,
        vae_minutes = vae.minutes.round(),
        vae_threads = vae.threads,
        latents = 2 * pretrain.unet.per_pair * N_PAIRS,
        unet_minutes = unet.minutes.round(),
        unet_threads = unet.threads,
        provenance = provenance(session),
        recipe = recipe(session, &["data", "vae", "unet"]),
    )
}
