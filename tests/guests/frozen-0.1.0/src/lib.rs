//! A plugin for interface 0.1.0 as it was released: built from the frozen WIT alone, without the SDK, and calling every
//! function that 0.1.0 has. The committed `../frozen-0.1.0.wasm` is what `scripts/frozen.sh` made of it then; a host
//! that does not load it has broken every plugin that people have.

wit_bindgen::generate!({
    path: "../../../wit/frozen/0.1.0",
    world: "differentiable-plugin",
});

use ambiguity::plugin::samples::Batch;
use ambiguity::plugin::types::Matrix;
use ambiguity::plugin::{assets, config, encoders, log};
use exports::ambiguity::plugin::{classifier, gradient};

/// The section in which a plugin says which interface it was built for.
#[used]
#[unsafe(link_section = "ambiguity:interface")]
static INTERFACE: [u8; 5] = *b"0.1.0";

struct Frozen;

impl classifier::Guest for Frozen {
    fn describe() -> Result<classifier::Description, String> {
        if encoders::info("means").is_ok() {
            return Err("an encoder was there before there was a batch".to_owned());
        }
        let n_styles = config::get("styles").map_or(Ok(2), |n| n.parse().map_err(|_| "styles is no number"))?;
        Ok(classifier::Description {
            name: "frozen".to_owned(),
            version: "0.1.0".to_owned(),
            styles: (0..n_styles).map(|i| format!("style-{i}")).collect(),
            media: vec!["image".to_owned(), "text".to_owned()],
            encoders: vec!["means".to_owned()],
        })
    }

    /// The shares of red and green in a picture, and what else can be asked about along the way.
    fn classify(batch: &Batch) -> Result<Matrix, String> {
        log::write(log::Level::Debug, &format!("assets: {:?}", assets::names()));
        if assets::bytes("missing").is_ok() || assets::tensor("missing").is_ok() {
            return Err("an asset that is not there was given".to_owned());
        }
        let info = encoders::info("means")?;
        let texts = encoders::embed_texts("means", &["a text".to_owned()])?;
        let embedding = batch.embedding("means")?;
        let (dim, n) = (info.dim, batch.len());
        if (texts.rows, texts.cols, embedding.rows, embedding.cols) != (1, dim, n, dim) {
            return Err("embeddings have another shape than was said".to_owned());
        }
        let mut data = vec![];
        for i in 0..n {
            let image = batch.image(i)?;
            let small = batch.image_resized(i, 2, 3)?;
            if (image.rgb.len(), small.rgb.len()) != ((image.width * image.height * 3) as usize, 18) {
                return Err("a picture has another size than was said".to_owned());
            }
            if batch.text(i).is_ok() || batch.audio(i).is_ok() {
                return Err("a picture was a text or a recording too".to_owned());
            }
            let title = batch.metadata(i, "title").unwrap_or_default();
            log::write(log::Level::Info, &format!("{title}: {}", batch.prompt(i)));
            let sum = |channel: usize| image.rgb.iter().skip(channel).step_by(3).map(|&x| f32::from(x) + 1.0).sum();
            let (red, green): (f32, f32) = (sum(0), sum(1));
            data.extend([red / (red + green), green / (red + green)]);
        }
        Ok(Matrix { rows: n, cols: 2, data })
    }
}

impl gradient::Guest for Frozen {
    fn embedding_vjp(batch: &Batch, upstream: Matrix) -> Result<Matrix, String> {
        let embedding = batch.embedding("means")?;
        let data = vec![0.0; (embedding.cols * upstream.rows) as usize];
        Ok(Matrix { rows: upstream.rows, cols: embedding.cols, data })
    }
}

export!(Frozen);
