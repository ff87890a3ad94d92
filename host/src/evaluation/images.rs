//! Sets of images: those of a model, generated into a working folder as far as they are not there yet, or given ones.

use std::path::{Path, PathBuf};

use ambiguity_models::lora::LoraFile;
use ambiguity_models::pipeline::{LoadOptions, Pipeline};
use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::context::Context;
use crate::data::images::{find_images, upright_size};
use crate::data::png::{self, parameters, software};
use crate::fs::write_atomic;
use crate::generator::{Generator, Settings};
use crate::random::{Purpose, derive_seed};
use crate::rl::rollout::SeededNoise;
use crate::run::images::captions;

/// Images in files, with their prompts, and the folder for their numbers.
#[derive(Clone, Debug)]
pub struct ImageSet {
    /// The files, in order.
    pub files: Vec<PathBuf>,
    /// The prompt of each image; empty for one without.
    pub prompts: Vec<String>,
    /// The folder for their numbers.
    pub values: PathBuf,
}

impl ImageSet {
    /// Returns the images of a folder: those of its `captions.jsonl` with their captions, else all below it with the prompts in
    /// PNG files, as [`png::prompt`] reads them. `values` is the folder for their numbers.
    ///
    /// # Errors
    /// If there are no images, or a file that is named is missing.
    pub fn of_folder(folder: &Path, values: &Path) -> Result<Self> {
        let listed = captions(folder)?;
        let (files, prompts) = match listed {
            Some(captions) => {
                ensure!(!captions.is_empty(), "{}/captions.jsonl names no images", folder.display());
                captions.into_iter().map(|caption| (folder.join(caption.file), caption.caption)).unzip()
            }
            None => {
                let files = find_images(folder)?;
                let prompt = |file: &PathBuf| -> Result<String> {
                    let is_png = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
                    let bytes = if is_png { fs_err::read(file)? } else { vec![] };
                    Ok(png::prompt(&bytes).unwrap_or_default())
                };
                let prompts = files.iter().map(prompt).collect::<Result<_>>()?;
                (files, prompts)
            }
        };
        Ok(Self { files, prompts, values: values.to_owned() })
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Returns whether an image has a prompt.
    pub fn has_prompts(&self) -> bool {
        self.prompts.iter().any(|prompt| !prompt.is_empty())
    }

    /// Returns the width and height of all images, if they are the same.
    pub fn size(&self) -> Option<(u32, u32)> {
        let first = upright_size(self.files.first()?)?;
        self.files.iter().all(|file| upright_size(file) == Some(first)).then_some(first)
    }
}

/// A model, with or without a LoRA, whose images are evaluated.
#[derive(Debug)]
pub struct Model {
    /// The model, as it was named.
    pub name: String,
    /// How it samples; the first prompt is the negative one.
    pub settings: Settings,
    /// The seed of the noise.
    pub seed: u64,
    /// The digest of the LoRA's file.
    pub lora_sha256: Option<String>,
    /// A digest of what the LoRA's file and the configuration beside it mean: layers with their scales.
    lora_meaning: String,
}

impl Model {
    /// Returns a model with the digest of its LoRA.
    ///
    /// # Errors
    /// If the LoRA cannot be read.
    pub fn new(name: &str, settings: Settings, seed: u64) -> Result<Self> {
        let digest = settings.lora.as_deref().map(lora_digest).transpose()?;
        let (lora_sha256, lora_meaning) = digest.map(|(sha256, meaning)| (Some(sha256), meaning)).unwrap_or_default();
        Ok(Self { name: name.to_owned(), settings, seed, lora_sha256, lora_meaning })
    }
}

/// Returns the digest of a LoRA's file, and of that with the scale of each layer, which may be in peft's configuration beside it.
fn lora_digest(lora: &Path) -> Result<(String, String)> {
    let file = LoraFile::read(lora)?;
    let sha256 = format!("{:x}", Sha256::digest(fs_err::read(&file.path)?));
    let mut hash = Sha256::new();
    hash.update(&sha256);
    for layer in &file.layers {
        hash.update(format!("{} {}\n", layer.module, layer.scaling));
    }
    Ok((sha256, format!("{:x}", hash.finalize())))
}

/// Returns a digest of the configurations below a model's folder: schedulers, tokenizers and networks.
fn configurations(folder: &Path) -> Result<String> {
    let mut files = vec![];
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(fs_err::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?);
        } else {
            files.push(path);
        }
    }
    let is_text = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json" || extension == "txt");
    files.retain(|path| path.is_file() && is_text(path));
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(file.strip_prefix(folder).unwrap_or(&file).as_os_str().as_encoded_bytes());
        hash.update(Sha256::digest(fs_err::read(&file)?));
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// The images of a model in a working folder. The model is loaded when the first image is missing.
pub struct Generation<'a> {
    model: &'a Model,
    work: &'a Path,
    generator: Option<Generator>,
    /// The digest of the model's weights.
    digest: Option<String>,
}

impl<'a> Generation<'a> {
    /// Returns the images of a model below `work`.
    pub fn new(model: &'a Model, work: &'a Path) -> Self {
        Self { model, work, generator: None, digest: None }
    }

    /// Returns the first `n` images of the model, with or without its LoRA, with that number of steps and η; those that are
    /// missing are generated. Image i has prompt i in turn, and noise that depends on the seed and i alone.
    ///
    /// # Errors
    /// [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop; the images so far are kept.
    pub fn images(&mut self, lora: bool, steps: usize, eta: f64, n: usize, context: &Context) -> Result<ImageSet> {
        let lora = lora && self.model.settings.lora.is_some();
        let folder = self.work.join(self.name(lora, steps, eta)?);
        let files: Vec<PathBuf> = (0..n).map(|i| folder.join(format!("{i:04}.png"))).collect();
        let n_prompts = self.model.settings.prompts.len() - 1;
        ensure!(n_prompts > 0, "there is no prompt to evaluate: name media and subjects, or prompts.file");
        let prompts: Vec<usize> = (0..n).map(|i| 1 + i % n_prompts).collect();
        // One answer for all processes, some of which may be ahead.
        if context.processes.from_first(|| Ok(files.iter().any(|file| !file.is_file())))? {
            fs_err::create_dir_all(&folder)?;
            self.generate(lora, (steps, eta), &files, &prompts, context)?;
            context.processes.wait()?;
        }
        let prompts = prompts.iter().map(|&prompt| self.model.settings.prompts[prompt].clone()).collect();
        Ok(ImageSet { files, prompts, values: folder.join("values") })
    }

    fn generate(
        &mut self,
        lora: bool,
        (steps, eta): (usize, f64),
        files: &[PathBuf],
        prompts: &[usize],
        context: &Context,
    ) -> Result<()> {
        let Model { settings, seed, lora_sha256, .. } = self.model;
        let generator = match &mut self.generator {
            Some(generator) => generator,
            none => {
                let opened = none.insert(Generator::open(settings)?);
                let now = settings.lora.as_deref().map(lora_digest).transpose()?.map(|(sha256, _)| sha256);
                ensure!(
                    now == *lora_sha256,
                    "the LoRA has changed since this command started: is its training still running? Run the command again, or \
                     name one of the run's checkpoints"
                );
                opened
            }
        };
        generator.use_lora(lora);
        generator.set_steps(steps, eta)?;
        let label = if lora || settings.lora.is_none() { "generating" } else { "generating without the LoRA" };
        let mut bar = context.progress.bar(label, (files.len() * steps) as u64, "steps");
        // The same images share a call whatever is there already, so that each has the same bits.
        let per_call = generator.images_per_call();
        for (call, first) in (0..files.len()).step_by(per_call).enumerate() {
            let range = first..(first + per_call).min(files.len());
            if !context.processes.is_own(call) || files[range.clone()].iter().all(|file| file.is_file()) {
                bar.skip((range.len() * steps) as u64);
                continue;
            }
            let seeds: Vec<u64> = range.clone().map(|i| derive_seed(*seed, 0, i as u64, Purpose::Evaluation)).collect();
            let mut noise = SeededNoise::of_seeds(generator.latent_shape(), seeds.clone());
            let mut done = |n: usize| bar.inc(n as u64);
            let images = generator.generate(&prompts[range.clone()], &mut noise, &context.interrupt, &mut done)?;
            // An image that is there has numbers already: in a call with others its last bits may differ.
            let missing = range.zip(images).zip(seeds).filter(|((i, _), _)| !files[*i].is_file());
            for ((i, image), seed) in missing {
                let prompt = &settings.prompts[prompts[i]];
                let mut texts = vec![
                    ("Steps", steps.to_string()),
                    ("Sampler", "DDIM".to_owned()),
                    ("CFG scale", settings.guidance.to_string()),
                    ("Seed", seed.to_string()),
                    ("Size", format!("{}x{}", settings.width, settings.height)),
                    ("Model", self.model.name.clone()),
                    ("Eta", eta.to_string()),
                ];
                if let Some(path) = settings.lora.as_ref().filter(|_| lora) {
                    texts.push(("Lora", format!("{}: {}", path.display(), settings.lora_scale)));
                }
                let texts = [parameters(prompt, "", &texts), ("prompt".to_owned(), prompt.clone()), software()];
                let bytes = png::encode(&image, &texts).with_context(|| files[i].display().to_string())?;
                write_atomic(&files[i], &bytes)?;
            }
        }
        bar.finish();
        Ok(())
    }

    /// Returns the folder's name of images: what they are, and a digest of everything that they depend on.
    fn name(&mut self, lora: bool, steps: usize, eta: f64) -> Result<String> {
        let Model { settings, seed, lora_meaning, .. } = self.model;
        let digest = match &self.digest {
            Some(digest) => digest.clone(),
            None => {
                let model = format!("{} {}", Pipeline::digest(&settings.model)?, configurations(&settings.model)?);
                self.digest.insert(model).clone()
            }
        };
        let mut parts = vec![digest];
        parts.extend(lora.then(|| format!("{lora_meaning} {}", settings.lora_scale)));
        let Settings { guidance, width, height, load, .. } = settings;
        let LoadOptions { device, kind, vae_kind, vae_tiling, .. } = load;
        // Each process has a GPU of its own.
        let device = if device.is_cuda() { "Cuda" } else { "Cpu" };
        parts.push(format!(
            "{steps} {eta} {guidance} {width} {height} {kind:?} {device} {seed} {vae_kind:?} {vae_tiling}"
        ));
        parts.extend(settings.prompts.iter().cloned());
        let mut hash = Sha256::new();
        for part in &parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let what = match (lora, settings.lora.is_some()) {
            (true, _) => "trained",
            (false, true) => "baseline",
            (false, false) => "model",
        };
        Ok(format!("{what}-{steps}-steps-{:.12}", format!("{:x}", hash.finalize())))
    }
}
