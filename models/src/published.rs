//! The configurations of published models, so that their parameters can be counted without their files.

/// A model on the Hub, as the JSON of its configuration files.
#[derive(Clone, Copy, Debug)]
pub enum Published {
    /// A `StableDiffusionPipeline`.
    Diffusion {
        /// The text of unet/config.json.
        unet: &'static str,
        /// The text of vae/config.json.
        vae: &'static str,
        /// The text of text_encoder/config.json.
        text_encoder: &'static str,
    },
    /// A transformers `CLIPModel`, as the text of its config.json.
    Clip(&'static str),
}

macro_rules! diffusion {
    ($folder:literal) => {
        Published::Diffusion {
            unet: include_str!(concat!("published/", $folder, "/unet.json")),
            vae: include_str!(concat!("published/", $folder, "/vae.json")),
            text_encoder: include_str!(concat!("published/", $folder, "/text_encoder.json")),
        }
    };
}

/// The known models by their ids on the Hub.
pub const PUBLISHED: [(&str, Published); 5] = [
    ("stabilityai/stable-diffusion-2-base", diffusion!("stable-diffusion-2-base")),
    ("stabilityai/stable-diffusion-2-1", diffusion!("stable-diffusion-2-1")),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", diffusion!("stable-diffusion-v1-5")),
    ("openai/clip-vit-large-patch14", Published::Clip(include_str!("published/clip-vit-large-patch14/config.json"))),
    ("openai/clip-vit-base-patch32", Published::Clip(include_str!("published/clip-vit-base-patch32/config.json"))),
];

/// Returns a known model by its id, or by the last part of its id.
pub fn published(id: &str) -> Option<Published> {
    let last = |full: &'static str| full.rsplit('/').next();
    PUBLISHED.iter().find(|(full, _)| *full == id || last(full) == Some(id)).map(|&(_, model)| model)
}
