//! Networks with their optimizers, and their files: a folder each (`config.json`, `model.safetensors`), and ONNX.

use std::path::{Path, PathBuf};

use ambiguity_models::can::{Discriminator, DiscriminatorConfig, Generator, GeneratorConfig, Share};
use ambiguity_models::onnx;
use ambiguity_models::params::{NamedTensors, Params};
use ambiguity_models::safetensors::encode_safetensors;
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::AdamW;

use crate::config::gan::{Adam, Can};
use crate::optim::{add_under, copy_into, first_not_finite, under};

/// The generator's folder in a run's folder.
pub const GENERATOR: &str = "generator";
/// The discriminator's folder in a run's folder.
pub const DISCRIMINATOR: &str = "discriminator";
/// The plugin of a CAN's own style head, in its run's folder.
pub const DCGAN_PLUGIN: &str = "dcgan.onnx";
/// The plugin of a simple classifier, in its run's folder.
pub const SIMPLE_PLUGIN: &str = "simple.onnx";
/// The generator as ONNX, in its own folder: beside a plugin it would be mistaken for one.
const ONNX: &str = "model.onnx";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// A network in training.
pub struct Trained<N> {
    /// The network.
    pub network: N,
    /// All of the network's tensors, BatchNorm's running statistics included.
    pub tensors: NamedTensors,
    /// Adam over the trained tensors.
    pub optimizer: AdamW,
}

impl<N> Trained<N> {
    /// Returns a network with fresh weights; its `parameters` are trained.
    pub fn fresh(
        seed: u64,
        device: Device,
        adam: &Adam,
        build: impl FnOnce(&Params) -> ambiguity_models::Result<N>,
        parameters: impl FnOnce(&N) -> Vec<(String, Tensor)>,
    ) -> Result<Self> {
        let params = Params::random(seed, device)?;
        let network = build(&params)?;
        let leaves = parameters(&network).into_iter().map(|(name, tensor)| (name, tensor.set_requires_grad(true)));
        let optimizer = AdamW::new(leaves.collect(), adam.config())?;
        Ok(Self { network, tensors: params.finish()?, optimizer })
    }

    /// Updates the network by the mean loss of the own rows of a batch.
    pub fn update(&mut self, loss: &Tensor, share: &Share) -> Result<()> {
        self.optimizer.zero_grad();
        share.weighted(loss).f_backward()?;
        share.sum_gradients(self.optimizer.parameters().iter().map(|(_, tensor)| tensor))?;
        Ok(self.optimizer.step()?)
    }

    /// Adds the network and its optimizer to a state, under `name`.
    pub fn add_to(&self, state: &mut NamedTensors, name: &str) {
        add_under(state, name, self.tensors.iter().map(|(part, tensor)| (part, tensor.shallow_clone())));
        add_under(state, &format!("{name}.optimizer"), self.optimizer.state());
    }

    /// Loads the network and its optimizer from a state.
    pub fn load_from(&mut self, state: &NamedTensors, name: &str) -> Result<()> {
        copy_into(&self.tensors, &under(state, name)).with_context(|| name.to_owned())?;
        Ok(self.optimizer.load_state(&under(state, &format!("{name}.optimizer")))?)
    }

    /// Returns the name, under `name`, of a tensor of the network with a value that is not finite, if any.
    pub fn not_finite(&self, name: &str) -> Result<Option<String>> {
        Ok(first_not_finite(&self.tensors)?.map(|part| format!("{name}.{part}")))
    }

    /// Returns the number of trained parameters.
    pub fn n_parameters(&self) -> usize {
        self.optimizer.parameters().iter().map(|(_, tensor)| tensor.numel()).sum()
    }
}

/// A discriminator's `config.json`.
#[derive(Serialize)]
struct DiscriminatorFile<'a> {
    #[serde(flatten)]
    config: &'a DiscriminatorConfig,
    /// The styles in the order of the style head's logits.
    styles: &'a [String],
}

/// Returns `generator/config.json`, `generator/model.safetensors` and `generator/model.onnx`.
pub fn generator_files(generator: &Trained<Generator>) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = folder(GENERATOR, &generator.network.config(), &generator.tensors)?;
    files.push((
        format!("{GENERATOR}/{ONNX}"),
        onnx::generator(&generator.network, "Generator of a creative adversarial network")?,
    ));
    Ok(files)
}

/// Returns `discriminator/config.json`, which includes the styles, and `discriminator/model.safetensors`.
pub fn discriminator_files(
    discriminator: &Trained<Discriminator>,
    styles: &[String],
) -> Result<Vec<(String, Vec<u8>)>> {
    let config = DiscriminatorFile { config: discriminator.network.config(), styles };
    folder(DISCRIMINATOR, &config, &discriminator.tensors)
}

/// Returns the style head as an ONNX plugin.
pub fn plugin(
    discriminator: &Trained<Discriminator>,
    (name, title): (&str, &str),
    styles: &[String],
    can: &Can,
) -> Result<Vec<u8>> {
    let metadata = onnx::Metadata {
        name: name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        title: title.to_owned(),
        authors: can.authors.clone(),
        license: can.license.clone(),
        styles: styles.to_vec(),
    };
    Ok(onnx::discriminator(&discriminator.network, &metadata)?)
}

fn folder(name: &str, config: &impl Serialize, tensors: &NamedTensors) -> Result<Vec<(String, Vec<u8>)>> {
    let json = serde_json::to_string_pretty(config)? + "\n";
    let weights = encode_safetensors(Path::new(WEIGHTS), tensors, &[("format", "pt")])?;
    Ok(vec![(format!("{name}/{CONFIG}"), json.into_bytes()), (format!("{name}/{WEIGHTS}"), weights)])
}

/// Loads a generator from its own folder, or from the folder of a run that has one.
pub fn load_generator(folder: &Path, device: Device) -> Result<Generator> {
    let folder = generator_folder(folder)?;
    let config: GeneratorConfig = read_json(&folder.join(CONFIG))?;
    let params = Params::load(&folder.join(WEIGHTS), device, Kind::Float)?;
    let generator = Generator::new(&params, &config)?;
    params.finish()?;
    Ok(generator)
}

fn generator_folder(folder: &Path) -> Result<PathBuf> {
    match [folder.join(GENERATOR), folder.to_owned()].into_iter().find(|folder| folder.join(CONFIG).is_file()) {
        Some(folder) => Ok(folder),
        None => bail!(
            "{} has no generator: name the folder of a run of `host can train`, or one with a generator's {CONFIG} and \
             {WEIGHTS}",
            folder.display()
        ),
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = fs_err::read_to_string(path)?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a generator's configuration", path.display()))
}
