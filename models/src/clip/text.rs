//! CLIP's text tower (Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
//! arXiv 2103.00020, section 2.4), as transformers' `CLIPTextModel` computes it.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::clip::config::TextConfig;
use crate::clip::encoder::{Encoder, EncoderConfig};
use crate::error::Result;
use crate::layers::{Embedding, LayerNorm, Linear};
use crate::params::{Init, Params};
use crate::weights::{TRANSFORMERS_STEM, load_folder};

/// Token ids to hidden states: the text encoder of Stable Diffusion, or the text tower of CLIP.
#[derive(Debug)]
pub struct TextTransformer {
    token_embedding: Embedding,
    position_embedding: Embedding,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    eos_token_id: i64,
}

impl TextTransformer {
    /// Reads or initializes a `CLIPTextModel` at the root of a checkpoint: names below `text_model.`, or, as
    /// transformers 5 has them in memory, without it.
    pub fn new(p: &Params, config: &TextConfig) -> Result<Self> {
        let bare = !p.has("text_model.embeddings.token_embedding.weight") && p.has("embeddings.token_embedding.weight");
        if bare { Self::at(p, config) } else { Self::at(&p.at("text_model"), config) }
    }

    /// Reads or initializes the tower whose `embeddings`, `encoder` and `final_layer_norm` lie directly below `p`.
    pub(crate) fn at(p: &Params, config: &TextConfig) -> Result<Self> {
        let embeddings = p.at("embeddings");
        embeddings.ignore("position_ids");
        let encoder = EncoderConfig {
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        let embedding = |name, n| Embedding::new(&embeddings.at(name), n, config.hidden_size, 0.02);
        Ok(Self {
            token_embedding: embedding("token_embedding", config.vocab_size)?,
            position_embedding: embedding("position_embedding", config.max_position_embeddings)?,
            encoder: Encoder::new(&p.at("encoder"), &encoder)?,
            final_layer_norm: LayerNorm::new(&p.at("final_layer_norm"), config.hidden_size, config.layer_norm_eps)?,
            eos_token_id: config.eos_token_id,
        })
    }

    /// Loads config.json and the weights (one file, an fp16 variant or shards) of a `CLIPTextModel` folder, such as a
    /// pipeline's `text_encoder`.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> Result<Self> {
        let config = TextConfig::read(&dir.join("config.json"))?;
        let p = load_folder(dir, TRANSFORMERS_STEM, device, kind)?;
        let text = Self::new(&p, &config)?;
        p.finish()?;
        Ok(text)
    }

    /// Token ids, i64 [n, len], to the hidden states after the final layer norm, [n, len, hidden], and the pooled
    /// states, [n, hidden]: those at the end-of-text token.
    ///
    /// Attention is causal and does not mask padding, as in the pipelines of Stable Diffusion.
    ///
    /// # Panics
    /// If `len` exceeds the position embeddings, or an id the vocabulary; the tokenizer of the same folder exceeds
    /// neither.
    pub fn hidden_states(&self, ids: &Tensor) -> (Tensor, Tensor) {
        let table = self.position_embedding.table();
        let ids = ids.to_device(table.device());
        let (n, len) = ids.size2().expect("token ids have two axes");
        let x = self.token_embedding.forward(&ids) + table.narrow(0, 0, len);
        let last = self.final_layer_norm.forward(&self.encoder.forward(x, true));
        let rows = Tensor::arange(n, (Kind::Int64, last.device()));
        let pooled = last.index(&[Some(&rows), Some(&self.pooled_positions(&ids))]);
        (last, pooled)
    }

    /// The position of each row's pooled state. Checkpoints of 2022 have eos_token_id = 2, which is not their
    /// end-of-text token: transformers then takes the position of the highest id, which is the end-of-text token.
    fn pooled_positions(&self, ids: &Tensor) -> Tensor {
        if self.eos_token_id == 2 {
            ids.argmax(1, false)
        } else {
            ids.eq(self.eos_token_id).to_kind(Kind::Int64).argmax(1, false)
        }
    }
}

/// The text tower with its projection into the joint embedding space (`CLIPTextModelWithProjection`).
#[derive(Debug)]
pub struct ProjectedText {
    /// The tower.
    pub text: TextTransformer,
    /// [projection, hidden], without a bias.
    pub text_projection: Linear,
}

impl ProjectedText {
    /// Reads or initializes `text_model` and `text_projection`.
    pub fn new(p: &Params, config: &TextConfig) -> Result<Self> {
        let text = TextTransformer::new(p, config)?;
        let text_projection = projection(&p.at("text_projection"), config.hidden_size, config.projection_dim)?;
        Ok(Self { text, text_projection })
    }

    /// Loads a folder's config.json and weights: one file, an fp16 variant or shards.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> Result<Self> {
        let config = TextConfig::read(&dir.join("config.json"))?;
        let p = load_folder(dir, TRANSFORMERS_STEM, device, kind)?;
        let text = Self::new(&p, &config)?;
        p.finish()?;
        Ok(text)
    }

    /// Token ids, i64 [n, len], to raw embeddings [n, projection].
    pub fn embed_texts(&self, ids: &Tensor) -> Tensor {
        self.text_projection.forward(&self.text.hidden_states(ids).1)
    }
}

/// A projection into the joint embedding space, with CLIP's initialization.
pub(crate) fn projection(p: &Params, hidden: i64, dim: i64) -> Result<Linear> {
    Linear::with_init(p, hidden, dim, false, Init::Normal { mean: 0.0, std: (hidden as f64).powf(-0.5) })
}
