//! BERT (Devlin et al., arXiv 1810.04805) with cross-attention to an image, as upstream's models/BLIP/med.py computes it:
//! post-norm, both directions, no token types, no pooler.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::image_reward::config::ImageRewardConfig;
use crate::layers::{Embedding, LayerNorm, Linear, attention};
use crate::params::Params;

/// What is added to the scores of padded tokens.
const MASKED: f64 = -10_000.0;

#[derive(Debug)]
pub(super) struct TextEncoder {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    cross_attention: Attention,
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm: LayerNorm,
    heads: i64,
}

impl TextEncoder {
    pub fn new(p: &Params, config: &ImageRewardConfig) -> Result<Self> {
        let embeddings = p.at("embeddings");
        embeddings.ignore("position_ids");
        let embedding = |name, n| Embedding::new(&embeddings.at(name), n, config.hidden_size, 0.02);
        let layers = p.at("encoder").at("layer");
        Ok(Self {
            word_embeddings: embedding("word_embeddings", config.vocab_size)?,
            position_embeddings: embedding("position_embeddings", config.max_position_embeddings)?,
            norm: LayerNorm::new(&embeddings.at("LayerNorm"), config.hidden_size, config.layer_norm_eps)?,
            layers: (0..config.num_hidden_layers).map(|i| Layer::new(&layers.at(i), config)).collect::<Result<_>>()?,
        })
    }

    /// Token ids and mask, i64 [n, len], and the image's hidden states [n, m, vision width] to hidden states
    /// [n, len, hidden].
    pub fn forward(&self, ids: &Tensor, mask: &Tensor, image: &Tensor) -> Tensor {
        let positions = self.position_embeddings.table();
        let (ids, mask) = (ids.to_device(positions.device()), mask.to_device(positions.device()));
        let padded = mask.eq(0).unsqueeze(1).unsqueeze(1).to_kind(Kind::Float) * MASKED;
        let padded = padded.to_kind(positions.kind());
        let x = self.word_embeddings.forward(&ids) + positions.narrow(0, 0, ids.size()[1]);
        self.layers.iter().fold(self.norm.forward(&x), |x, layer| layer.forward(&x, &padded, image))
    }
}

impl Layer {
    fn new(p: &Params, config: &ImageRewardConfig) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            attention: Attention::new(&p.at("attention"), hidden, config)?,
            cross_attention: Attention::new(&p.at("crossattention"), config.vision_width, config)?,
            intermediate: Linear::new(&p.at("intermediate").at("dense"), hidden, inner, true)?,
            output: Linear::new(&p.at("output").at("dense"), inner, hidden, true)?,
            norm: LayerNorm::new(&p.at("output").at("LayerNorm"), hidden, config.layer_norm_eps)?,
        })
    }

    fn forward(&self, x: &Tensor, padded: &Tensor, image: &Tensor) -> Tensor {
        let x = self.attention.forward(x, x, Some(padded));
        let x = self.cross_attention.forward(&x, image, None);
        let y = self.output.forward(&self.intermediate.forward(&x).gelu("none"));
        self.norm.forward(&(y + x))
    }
}

impl Attention {
    /// Queries are `hidden_size` wide, keys and values are made of states that are `width` wide.
    fn new(p: &Params, width: i64, config: &ImageRewardConfig) -> Result<Self> {
        let (hidden, own, output) = (config.hidden_size, p.at("self"), p.at("output"));
        Ok(Self {
            query: Linear::new(&own.at("query"), hidden, hidden, true)?,
            key: Linear::new(&own.at("key"), width, hidden, true)?,
            value: Linear::new(&own.at("value"), width, hidden, true)?,
            output: Linear::new(&output.at("dense"), hidden, hidden, true)?,
            norm: LayerNorm::new(&output.at("LayerNorm"), hidden, config.layer_norm_eps)?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let (q, k, v) = (self.query.forward(x), self.key.forward(context), self.value.forward(context));
        let y = self.output.forward(&attention(&q, &k, &v, self.heads, mask));
        self.norm.forward(&(y + x))
    }
}
