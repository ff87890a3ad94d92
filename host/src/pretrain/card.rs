//! The model cards, generated from what was measured.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::data::{style_texts, subject_texts};
use super::journal::{Figures, Journal};
use super::{Session, Stage, write_text};

/// Writes the card that a finished stage belongs to, once everything it tells of is there.
pub fn write(session: &Session, stage: Stage) -> Result<()> {
    let journal = Journal::of(session.out);
    match stage {
        Stage::Clip => {
            let figures = journal.done(Stage::Clip)?.context("the journal has no figures of the clip stage")?;
            write_text(&session.clip_dir().join("README.md"), &clip_card(session, &figures))
        }
        Stage::Vae => Ok(()),
        Stage::UNet => {
            let unet = journal.done(Stage::UNet)?.context("the journal has no figures of the unet stage")?;
            let vae = journal.done(Stage::Vae)?.unwrap_or_default();
            write_text(&session.diffusion_dir().join("README.md"), &diffusion_card(session, &vae, &unet))
        }
    }
}

/// The commit of the working folder, where it is this project's.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    git(&["cat-file", "-e", "HEAD:host/presets/pretrain-tiny-art.toml"])?;
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// Where the code and the randomness came from.
fn provenance(session: &Session) -> String {
    let commit = commit().map_or_else(String::new, |commit| format!(", commit {commit}"));
    format!("`host` {}{commit}, seed {}", env!("CARGO_PKG_VERSION"), session.config.seed)
}

/// The part of the configuration that a card prints.
fn recipe(session: &Session, parts: &[&str]) -> String {
    let whole = json!(session.config);
    let mut table = serde_json::Map::new();
    for &part in parts {
        table.insert(part.to_owned(), whole[part].clone());
    }
    let file = json!({ "pretrain": Value::Object(table) });
    toml::to_string(&file).expect("it was read from TOML, so it fits TOML")
}

fn percent(figures: &Figures, name: &str) -> String {
    figures.number(name).map_or_else(|| "not measured".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

fn number(figures: &Figures, name: &str, decimals: usize) -> String {
    figures.number(name).map_or_else(|| "not measured".to_owned(), |value| format!("{value:.decimals$}"))
}

const FRONT_MATTER: &str = "---\nlicense: apache-2.0\n";

fn clip_card(session: &Session, figures: &Figures) -> String {
    let styles = style_texts();
    let subjects = subject_texts();
    format!(
        "{FRONT_MATTER}library_name: transformers\npipeline_tag: zero-shot-image-classification\n---\n\n\
# Tiny art CLIP\n\n\
A CLIP of {parameters} parameters for procedural paintings of {size} × {size} pixels in 27 styles of 8 subjects. It was\n\
trained from scratch, by `host pretrain clip`, on images that `host art` draws; no other image and no other weights\n\
went in. It knows nothing of the world outside these paintings. transformers loads it as a `CLIPModel`.\n\n\
## Figures\n\n\
On {held_out} held-out paintings, zero-shot:\n\n\
| What is told | Accuracy | Chance | Texts |\n|---|---|---|---|\n\
| style | {style} | 3.7 % | \"{first_style}\", … |\n\
| subject | {subject} | 12.5 % | \"{first_subject}\", … |\n\
| style and subject | {caption} | 0.5 % | both in one caption |\n\n\
Style texts: {style_list}.\n\n\
Subject texts: {subject_list}.\n\n\
## Training\n\n\
{training} paintings, {minutes} minutes on {threads} CPU thread(s) ({provenance}). Loss: contrast between each batch's\n\
captions, plus telling the 27 styles and the 8 subjects apart by texts worded anew at each step.\n\n\
```toml\n{recipe}```\n\n\
License: Apache-2.0.\n",
        parameters = number(figures, "parameters", 0),
        size = session.config.data.size,
        held_out = number(figures, "held_out_paintings", 0),
        style = percent(figures, "style_accuracy"),
        subject = percent(figures, "subject_accuracy"),
        caption = percent(figures, "caption_accuracy"),
        first_style = styles[0],
        first_subject = subjects[0],
        style_list = styles.join("; "),
        subject_list = subjects.join("; "),
        training = number(figures, "training_paintings", 0),
        minutes = number(figures, "minutes", 0),
        threads = number(figures, "threads", 0),
        provenance = provenance(session),
        recipe = recipe(session, &["data", "clip"]),
    )
}

fn diffusion_card(session: &Session, vae: &Figures, unet: &Figures) -> String {
    let samples = &session.config.unet.samples;
    format!(
        "{FRONT_MATTER}library_name: diffusers\npipeline_tag: text-to-image\n---\n\n\
# Tiny art diffusion\n\n\
A latent diffusion model for procedural paintings of {size} × {size} pixels in 27 styles of 8 subjects: a UNet of\n\
{unet_parameters} parameters, an autoencoder of {vae_parameters} and the text encoder of the CLIP beside it. It was trained\n\
from scratch, by `host pretrain`, on images that `host art` draws; no other image and no other weights went in.\n\
diffusers loads it as a `StableDiffusionPipeline`. Prompts: \"painting of a man, ukiyo-e\", \"an impressionism painting of a\n\
building\", \"drawing of an animal\".\n\n\
## Figures\n\n\
Autoencoder, on {vae_held_out} held-out paintings: {psnr} dB mean PSNR. The latents of a {size}-pixel painting are\n\
{latent_channels} × {latent} × {latent}.\n\n\
Samples ({steps} DDIM steps, guidance {guidance}, eta 0), told by the CLIP beside it, zero-shot:\n\n\
| Prompts | Samples | What is told | Accuracy | Chance |\n|---|---|---|---|---|\n\
| style and subject | {n_styled} | style | {styled_style} | 3.7 % |\n\
| style and subject | {n_styled} | subject | {styled_subject} | 12.5 % |\n\
| subject alone | {n_plain} | subject | {plain_subject} | 12.5 % |\n\n\
## Training\n\n\
Autoencoder: {vae_training} paintings, {vae_minutes} minutes on {vae_threads} CPU thread(s). UNet: {latents} latents,\n\
{unet_minutes} minutes on {unet_threads} CPU thread(s), the moving average of the weights ({provenance}).\n\n\
```toml\n{recipe}```\n\n\
License: Apache-2.0.\n",
        size = session.config.data.size,
        unet_parameters = number(unet, "parameters", 0),
        vae_parameters = number(vae, "parameters", 0),
        vae_held_out = number(vae, "held_out_paintings", 0),
        psnr = number(vae, "psnr", 1),
        latent_channels = session.config.vae.latent_channels,
        latent = session.config.data.size >> (session.config.vae.block_out_channels.len() - 1),
        steps = samples.steps,
        guidance = samples.guidance,
        n_styled = samples.styled,
        styled_style = percent(unet, "styled_style_accuracy"),
        styled_subject = percent(unet, "styled_subject_accuracy"),
        n_plain = samples.plain,
        plain_subject = percent(unet, "plain_subject_accuracy"),
        vae_training = number(vae, "training_paintings", 0),
        vae_minutes = number(vae, "minutes", 0),
        vae_threads = number(vae, "threads", 0),
        latents = number(unet, "training_latents", 0),
        unet_minutes = number(unet, "minutes", 0),
        unet_threads = number(unet, "threads", 0),
        provenance = provenance(session),
        recipe = recipe(session, &["data", "vae", "unet"]),
    )
}
