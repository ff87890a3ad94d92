//! A plugin for interface 0.2.0 as it was released: built from the frozen WIT alone, without the SDK, and calling every
//! function that 0.2.0 has. The committed `../frozen-0.2.0.wasm` is what `scripts/frozen.sh` built from it then; a host
//! that does not load it has broken every plugin that people have.

wit_bindgen::generate!({
    path: "../../../wit/frozen/0.2.0",
    inline: "
        package frozen:plugin;
        world frozen {
            include ambiguity:plugin/differentiable-classifier@0.2.0;
            export ambiguity:plugin/pixel-gradient@0.2.0;
        }
    ",
    world: "frozen:plugin/frozen",
    generate_all,
});

use ambiguity::plugin::samples::Batch;
use ambiguity::plugin::types::Matrix;
use ambiguity::plugin::{assets, config, encoders, log};
use exports::ambiguity::plugin::{classifier, description, gradient, pixel_gradient};

/// The section that states the least interface version that a plugin needs.
#[used]
#[unsafe(link_section = "ambiguity:interface")]
static INTERFACE: [u8; 5] = *b"0.2.0";

/// An encoder of images and texts, without token features.
const ENCODER: &str = "means";

struct Frozen;

/// Returns an error with a message, unless a condition holds.
fn ensure(condition: bool, message: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(message.to_owned()) }
}

impl description::Guest for Frozen {
    fn describe() -> Result<description::Description, String> {
        ensure(encoders::info(ENCODER).is_err(), "there was an encoder before there was a batch")?;
        let option = |key: &str, value_type, default: Option<&str>| description::PluginOption {
            key: key.to_owned(),
            value_type,
            default: default.map(str::to_owned),
            help: "An option of each type".to_owned(),
        };
        Ok(description::Description {
            name: "frozen".to_owned(),
            version: "0.2.0".to_owned(),
            media: ["image", "text", "audio", "video", "tensor"].map(str::to_owned).to_vec(),
            encoders: vec![ENCODER.to_owned()],
            options: vec![
                option("title", description::OptionType::Text, None),
                option("styles", description::OptionType::Integer, Some("2")),
                option("share", description::OptionType::Number, Some("0.25")),
                option("strict", description::OptionType::Boolean, Some("true")),
            ],
            properties: vec![("origin".to_owned(), "frozen".to_owned())],
        })
    }
}

/// Returns the share of the first style: that of red in an image, and fixed numbers of other media.
fn share(batch: &Batch, i: u32) -> Result<f32, String> {
    log::write(log::Level::Info, &format!("sample {i}: {}", batch.prompt(i)));
    for key in batch.metadata_keys(i) {
        let value = batch.metadata(i, &key).ok_or("a key has no value")?;
        log::write(log::Level::Debug, &format!("{key} = {value}"));
    }
    ensure(batch.metadata(i, "missing").is_none(), "a key that does not exist has a value")?;
    let (image, text, audio) = (batch.image(i), batch.text(i), batch.audio(i));
    let (video, tensor) = (batch.video(i), batch.tensor(i));
    let is = [image.is_ok(), text.is_ok(), audio.is_ok(), video.is_ok(), tensor.is_ok()];
    ensure(is.iter().filter(|is| **is).count() == 1, "a sample is not of one medium")?;
    if let Ok(image) = image {
        let small = batch.image_resized(i, 2, 3)?;
        ensure(image.rgb.len() == (image.width * image.height * 3) as usize, "an image has another size")?;
        ensure((small.width, small.height, small.rgb.len()) == (2, 3, 18), "a resized image has another size")?;
        let sum = |channel: usize| image.rgb.iter().skip(channel).step_by(3).map(|&x| f32::from(x) + 1.0).sum();
        let (red, green): (f32, f32) = (sum(0), sum(1));
        return Ok(red / (red + green));
    }
    if let Ok(text) = text {
        ensure(!text.is_empty(), "a text is empty")?;
        return Ok(0.125);
    }
    if let Ok(audio) = audio {
        ensure(audio.sample_rate > 0 && audio.pcm.len() as u32 % audio.channels == 0, "a recording has no frames")?;
        return Ok(0.25);
    }
    if let Ok(video) = video {
        let last = batch.frame(i, video.frames - 1)?;
        let small = batch.frame_resized(i, 0, 1, 1)?;
        ensure((last.width, last.height) == (video.width, video.height), "a frame has another size")?;
        ensure(small.rgb.len() == 3 && video.frame_rate > 0.0, "a resized frame has another size")?;
        ensure(batch.frame(i, video.frames).is_err(), "there is a frame after the last one")?;
        return Ok(0.5);
    }
    let tensor = tensor?;
    ensure(tensor.shape.iter().product::<u32>() == tensor.data.len() as u32, "an array has another shape")?;
    Ok(0.75)
}

impl classifier::Guest for Frozen {
    fn styles() -> Result<Vec<String>, String> {
        let n_styles = config::get("styles").map_or(Ok(2), |n| n.parse().map_err(|_| "styles is not a number"))?;
        Ok((0..n_styles).map(|i| format!("style-{i}")).collect())
    }

    /// Classifies into two styles, and calls everything else along the way.
    fn classify(batch: &Batch) -> Result<Matrix, String> {
        log::write(log::Level::Debug, &format!("assets: {:?}", assets::names()));
        ensure(assets::bytes("missing").is_err() && assets::tensor("missing").is_err(), "there is a missing asset")?;
        let info = encoders::info(ENCODER)?;
        log::write(
            log::Level::Debug,
            &format!(
                "{:?} {:?} {:?} {:?} {:?} {:?}",
                info.media, info.logit_scale, info.image_size, info.token_features, info.digest, info.properties
            ),
        );
        let n = batch.len();
        let texts = encoders::embed_texts(ENCODER, &["a text".to_owned()])?;
        ensure((texts.rows, texts.cols) == (1, info.dim), "a text's embedding has another shape")?;
        let prompts = batch.prompt_embedding(ENCODER)?;
        ensure((prompts.rows, prompts.cols) == (n, info.dim), "the prompts' embeddings have another shape")?;
        let is_embedded = batch.image(0).is_ok() || batch.text(0).is_ok();
        let embedding = batch.embedding(ENCODER);
        ensure(embedding.is_ok() == is_embedded, "not the images and texts alone have embeddings")?;
        if let Ok(embedding) = embedding {
            ensure((embedding.rows, embedding.cols) == (n, info.dim), "the embeddings have another shape")?;
        }
        ensure(batch.token_features(ENCODER, 0).is_err(), "an encoder without token features has some")?;
        let mut data = vec![];
        for i in 0..n {
            let share = share(batch, i)?;
            data.extend([share.ln(), (1.0 - share).ln()]);
        }
        Ok(Matrix { rows: n, cols: 2, data })
    }
}

impl gradient::Guest for Frozen {
    fn embedding_vjp(batch: &Batch, encoder: String, upstream: Matrix) -> Result<Matrix, String> {
        let embedding = batch.embedding(&encoder)?;
        let data = vec![0.5; (embedding.cols * upstream.rows) as usize];
        Ok(Matrix { rows: upstream.rows, cols: embedding.cols, data })
    }
}

impl pixel_gradient::Guest for Frozen {
    fn pixel_vjp(batch: &Batch, i: u32, upstream: Vec<f32>) -> Result<Vec<f32>, String> {
        Ok(batch.image(i)?.rgb.iter().map(|_| upstream.iter().sum()).collect())
    }
}

export!(Frozen);
