//! Number of parameters of a model, from its configuration alone (the paper's Table 17).

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use crate::can::{Discriminator, DiscriminatorConfig, Generator, GeneratorConfig};
use crate::clip::{Clip, ClipConfig, TextConfig, TextTransformer};
use crate::error::{Error, Result};
use crate::json::JsonObject;
use crate::lora::{Lora, LoraSpec};
use crate::params::{NamedTensors, Params};
use crate::published::Published;
use crate::unet::{UNet, UNetConfig};
use crate::vae::{Vae, VaeConfig};

/// One part of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The part's folder, or the first component of its tensors' names.
    pub name: String,
    /// Number of parameters, including those of an adapter.
    pub parameters: usize,
    /// Number of parameters that fine-tuning trains.
    pub trainable: usize,
    /// The tensors that are counted, by their checkpoint names, with their shapes; an adapter's are not among them.
    pub tensors: BTreeMap<String, Vec<i64>>,
}

impl Component {
    /// A component of frozen tensors.
    fn frozen<'a>(name: &str, tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) -> Self {
        let tensors: BTreeMap<_, _> = tensors.into_iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect();
        let parameters = tensors.values().map(|shape| shape.iter().product::<i64>() as usize).sum();
        Self { name: name.to_owned(), parameters, trainable: 0, tensors }
    }
}

/// Counts the parts of a published model; `lora` is the adapter of its UNet, if it has one.
pub fn of_published(id: &str, model: Published, lora: &LoraSpec) -> Result<Vec<Component>> {
    let object = |file: &str, json: &str| JsonObject::parse(&Path::new(id).join(file), json.as_bytes());
    match model {
        Published::Diffusion { unet, vae, text_encoder } => diffusion(
            &object("unet/config.json", unet)?,
            &object("vae/config.json", vae)?,
            &object("text_encoder/config.json", text_encoder)?,
            lora,
        ),
        Published::Clip(config) => clip(&object("config.json", config)?),
    }
}

/// Counts the parts of a folder that diffusers (a pipeline) or transformers (a CLIP model) wrote; only its
/// configurations are read.
pub fn of_folder(dir: &Path, lora: &LoraSpec) -> Result<Vec<Component>> {
    let object = |part: &str| JsonObject::read(&dir.join(part).join("config.json"));
    if dir.join("model_index.json").is_file() {
        return diffusion(&object("unet")?, &object("vae")?, &object("text_encoder")?, lora);
    }
    if dir.join("config.json").is_file() {
        return clip(&JsonObject::read(&dir.join("config.json"))?);
    }
    let dir = dir.display();
    Err(Error::Input(format!(
        "{dir} has neither model_index.json (a diffusers pipeline) nor config.json (a CLIP model)"
    )))
}

/// Counts the parts of the paper's CAN with images of `size` pixels per side and `n_styles` styles.
pub fn of_can(size: i64, n_styles: i64) -> Result<Vec<Component>> {
    let network =
        Generator::new(&Params::shapes(), &GeneratorConfig { size, latent: 100, channels: 2048, slope: 0.2 })?;
    let generator = trained("generator", &network.parameters());
    let config =
        DiscriminatorConfig { size, channels: 32, max_channels: 512, head: [1024, 512], dropout: 0.3, n_styles };
    let network = Discriminator::new(&Params::shapes(), &config)?;
    Ok(vec![generator, trained("discriminator", &network.parameters())])
}

fn trained(name: &str, parameters: &[(String, Tensor)]) -> Component {
    let component = Component::frozen(name, parameters.iter().map(|(name, tensor)| (name, tensor)));
    Component { trainable: component.parameters, ..component }
}

fn diffusion(
    unet: &JsonObject,
    vae: &JsonObject,
    text_encoder: &JsonObject,
    lora: &LoraSpec,
) -> Result<Vec<Component>> {
    let frozen = |name: &str, params: &Params| Ok::<_, Error>(Component::frozen(name, &params.finish()?));
    let params = Params::shapes();
    TextTransformer::new(&params, &TextConfig::from_file(text_encoder)?)?;
    let text_encoder = frozen("text_encoder", &params)?;
    let params = Params::shapes();
    Vae::new(&params, &VaeConfig::from_object(vae)?)?;
    let vae = frozen("vae", &params)?;
    let params = Params::shapes();
    let mut network = UNet::new(&params, &UNetConfig::from_object(unet)?)?;
    let mut unet = frozen("unet", &params)?;
    unet.trainable = Lora::attach(&mut network, lora, 0)?.n_parameters();
    unet.parameters += unet.trainable;
    Ok(vec![text_encoder, vae, unet])
}

fn clip(config: &JsonObject) -> Result<Vec<Component>> {
    let params = Params::shapes();
    Clip::new(&params, &ClipConfig::from_object(config)?)?;
    let mut parts = BTreeMap::<String, NamedTensors>::new();
    for (name, tensor) in params.finish()? {
        let part = name.split('.').next().unwrap_or(&name).to_owned();
        parts.entry(part).or_default().insert(name, tensor);
    }
    Ok(parts.iter().map(|(name, tensors)| Component::frozen(name, tensors)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::Targets;
    use crate::published::{PUBLISHED, published};

    fn rank_4() -> LoraSpec {
        LoraSpec { rank: 4, alpha: 4.0, targets: Targets::Attention }
    }

    fn counts(id: &str) -> Vec<(String, usize, usize)> {
        let components = of_published(id, published(id).expect("it is known"), &rank_4()).expect("it is valid");
        components.into_iter().map(|part| (part.name, part.parameters, part.trainable)).collect()
    }

    #[test]
    fn stable_diffusion_2_has_what_table_17_says() {
        let expected = [("text_encoder", 340_387_840, 0), ("vae", 83_653_863, 0), ("unet", 866_740_676, 829_952)];
        assert_eq!(counts("stable-diffusion-2-base"), expected.map(|(name, n, k)| (name.to_owned(), n, k)));
    }

    #[test]
    fn the_can_has_what_table_17_says() {
        let expected = [
            (64, 47_336_960, 13_691_612),
            (128, 47_855_360, 14_347_228),
            (256, 47_983_488, 15_920_604),
            (512, 48_014_784, 20_115_932),
        ];
        for (size, generator, discriminator) in expected {
            let counts: Vec<usize> = of_can(size, 27).expect("a power of two").iter().map(|c| c.parameters).collect();
            assert_eq!(counts, [generator, discriminator], "{size}");
        }
        let more = of_can(64, 30).expect("a power of two")[1].parameters;
        assert_eq!(more, 13_691_612 + 3 * 513);
    }

    /// The sums are those of transformers 5.23 and diffusers 0.42 on the same configurations.
    #[test]
    fn other_published_models_have_their_numbers() {
        let total = |id| counts(id).iter().map(|&(_, n, trainable)| n - trainable).sum::<usize>();
        assert_eq!(total("stable-diffusion-v1-5"), 123_060_480 + 83_653_863 + 859_520_964);
        assert_eq!(total("openai/clip-vit-large-patch14"), 427_616_513);
        assert_eq!(total("openai/clip-vit-base-patch32"), 151_277_313);
        for (id, _) in PUBLISHED {
            counts(id);
        }
    }
}
