//! The spatial transformer: self-attention, cross-attention to the text and a gated feed-forward layer
//! (diffusers' `transformer_2d.py` and `attention.py`).

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::config::UNetConfig;
use crate::error::Result;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear};
use crate::params::Params;

/// Epsilon of the GroupNorm before the transformer, whatever the value of `norm_eps`.
const NORM_EPS: f64 = 1e-6;
/// Epsilon of the transformer's LayerNorms.
const LAYER_NORM_EPS: f64 = 1e-5;

/// Multi-head attention of `q` [n, length, width] over `k` and `v` [n, keys, width], to [n, length, width].
pub(crate) fn multi_head_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64) -> Tensor {
    let split = |x: &Tensor| {
        let (n, length, width) = x.size3().expect("attention takes [n, length, width]");
        x.view([n, length, heads, width / heads]).transpose(1, 2)
    };
    let mixed = Tensor::scaled_dot_product_attention(
        &split(q),
        &split(k),
        &split(v),
        None::<&Tensor>,
        0.0,
        false,
        None::<f64>,
        false,
    );
    mixed.transpose(1, 2).flatten(2, 3)
}

/// The prompts of a UNet call, as its cross-attention takes them.
#[derive(Debug)]
pub struct Text(Source);

#[derive(Debug)]
enum Source {
    /// Prompt embeddings [n, length, dim], in the type of the weights.
    Embeddings(Tensor),
    /// Keys and values [n, length, width] of each cross-attention layer, by the name of its `to_k`.
    KeysAndValues(BTreeMap<String, [Tensor; 2]>),
}

impl Text {
    /// Wraps prompt embeddings [n, length, dim], in the type of the weights.
    pub(super) fn of_embeddings(embeddings: Tensor) -> Self {
        Self(Source::Embeddings(embeddings))
    }

    /// Computes the keys and values of all layers of some transformers from prompt embeddings.
    pub(super) fn of_layers<'a>(embeddings: &Tensor, transformers: impl Iterator<Item = &'a Transformer2D>) -> Self {
        let layers = transformers.flat_map(|transformer| &transformer.transformer_blocks).map(|block| &block.attn2);
        let entry = |layer: &Attention| (layer.to_k.name.clone(), layer.keys_and_values(embeddings));
        Self(Source::KeysAndValues(layers.map(entry).collect()))
    }

    pub(super) fn shallow_clone(&self) -> Self {
        let clone = |(name, [k, v]): (&String, &[Tensor; 2])| (name.clone(), [k.shallow_clone(), v.shallow_clone()]);
        Self(match &self.0 {
            Source::Embeddings(embeddings) => Source::Embeddings(embeddings.shallow_clone()),
            Source::KeysAndValues(layers) => Source::KeysAndValues(layers.iter().map(clone).collect()),
        })
    }
}

/// One attention layer, `attn1` or `attn2`.
#[derive(Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
    upcast: bool,
}

impl Attention {
    fn new(p: &Params, width: i64, context_width: i64, heads: i64, upcast: bool) -> Result<Self> {
        Ok(Self {
            to_q: Linear::new(&p.at("to_q"), width, width, false)?,
            to_k: Linear::new(&p.at("to_k"), context_width, width, false)?,
            to_v: Linear::new(&p.at("to_v"), context_width, width, false)?,
            to_out: Linear::new(&p.at("to_out.0"), width, width, true)?,
            heads,
            upcast,
        })
    }

    /// Self-attention: every position of `x` attends to all of `x`.
    fn forward(&self, x: &Tensor) -> Tensor {
        self.attend(&self.to_q.forward(x), &self.keys_and_values(x))
    }

    /// Cross-attention: every position of `x` attends to the prompt.
    fn forward_text(&self, x: &Tensor, text: &Text) -> Tensor {
        let q = self.to_q.forward(x);
        match &text.0 {
            Source::Embeddings(embeddings) => self.attend(&q, &self.keys_and_values(embeddings)),
            Source::KeysAndValues(layers) => {
                self.attend(&q, layers.get(&self.to_k.name).expect("the text was prepared by this network"))
            }
        }
    }

    fn keys_and_values(&self, context: &Tensor) -> [Tensor; 2] {
        [self.to_k.forward(context), self.to_v.forward(context)]
    }

    fn attend(&self, q: &Tensor, [k, v]: &[Tensor; 2]) -> Tensor {
        // bf16 has the exponents of f32, so that no score overflows, and fused attention sums in f32 anyway.
        let mixed = if self.upcast && q.kind() == Kind::Half {
            let float = |x: &Tensor| x.to_kind(Kind::Float);
            multi_head_attention(&float(q), &float(k), &float(v), self.heads).to_kind(q.kind())
        } else {
            multi_head_attention(q, k, v, self.heads)
        };
        self.to_out.forward(&mixed)
    }

    fn linears_mut(&mut self, f: &mut dyn FnMut(&mut Linear)) {
        for linear in [&mut self.to_q, &mut self.to_k, &mut self.to_v, &mut self.to_out] {
            f(linear);
        }
    }
}

/// GEGLU feed-forward (Shazeer, arXiv 2002.05202), four times as wide inside, with the exact gelu.
#[derive(Debug)]
struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(p: &Params, width: i64) -> Result<Self> {
        Ok(Self {
            proj: Linear::new(&p.at("net.0.proj"), width, 8 * width, true)?,
            out: Linear::new(&p.at("net.2"), 4 * width, width, true)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        // One backward operation, unlike two slices.
        let halves = self.proj.forward(x).chunk(2, -1);
        self.out.forward(&(&halves[0] * halves[1].gelu("none")))
    }
}

/// `BasicTransformerBlock`.
#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(p: &Params, width: i64, heads: i64, config: &UNetConfig) -> Result<Self> {
        let upcast = config.upcast_attention;
        Ok(Self {
            norm1: LayerNorm::new(&p.at("norm1"), width, LAYER_NORM_EPS)?,
            attn1: Attention::new(&p.at("attn1"), width, width, heads, upcast)?,
            norm2: LayerNorm::new(&p.at("norm2"), width, LAYER_NORM_EPS)?,
            attn2: Attention::new(&p.at("attn2"), width, config.cross_attention_dim, heads, upcast)?,
            norm3: LayerNorm::new(&p.at("norm3"), width, LAYER_NORM_EPS)?,
            ff: FeedForward::new(&p.at("ff"), width)?,
        })
    }

    fn forward(&self, x: &Tensor, text: &Text) -> Tensor {
        let x = self.attn1.forward(&self.norm1.forward(x)) + x;
        let x = self.attn2.forward_text(&self.norm2.forward(&x), text) + x;
        self.ff.forward(&self.norm3.forward(&x)) + x
    }
}

#[derive(Debug)]
enum Projection {
    Linear(Linear),
    Conv(Conv2d),
}

/// `Transformer2DModel`: transformer blocks over the pixels of a feature map, with a residual connection.
#[derive(Debug)]
pub(super) struct Transformer2D {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

impl Transformer2D {
    /// Builds the transformer of stage `stage` of the configuration.
    pub fn new(p: &Params, stage: usize, config: &UNetConfig) -> Result<Self> {
        let (width, heads) = (config.block_out_channels[stage], config.attention_heads[stage]);
        let projection = |name: &str| -> Result<Projection> {
            Ok(if config.use_linear_projection {
                Projection::Linear(Linear::new(&p.at(name), width, width, true)?)
            } else {
                Projection::Conv(Conv2d::new(&p.at(name), width, width, 1, 1, 0)?)
            })
        };
        Ok(Self {
            norm: GroupNorm::new(&p.at("norm"), config.norm_num_groups, width, NORM_EPS)?,
            proj_in: projection("proj_in")?,
            transformer_blocks: (0..config.transformer_layers_per_block[stage])
                .map(|i| TransformerBlock::new(&p.at("transformer_blocks").at(i), width, heads, config))
                .collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// A feature map [n, c, h, w] and the prompts of its rows to [n, c, h, w].
    pub fn forward(&self, x: &Tensor, text: &Text) -> Tensor {
        let (n, c, h, w) = x.size4().expect("a feature map is [n, c, h, w]");
        let to_tokens = |x: Tensor| x.permute([0, 2, 3, 1]).reshape([n, h * w, c]);
        let to_map = |tokens: Tensor| tokens.view([n, h, w, c]).permute([0, 3, 1, 2]);
        let normed = self.norm.forward(x);
        let mut tokens = match &self.proj_in {
            Projection::Linear(linear) => linear.forward(&to_tokens(normed)),
            Projection::Conv(conv) => to_tokens(conv.forward(&normed)),
        };
        for block in &self.transformer_blocks {
            tokens = block.forward(&tokens, text);
        }
        let map = match &self.proj_out {
            Projection::Linear(linear) => to_map(linear.forward(&tokens)),
            Projection::Conv(conv) => conv.forward(&to_map(tokens)),
        };
        map + x
    }

    pub fn linears_mut(&mut self, f: &mut dyn FnMut(&mut Linear)) {
        if let Projection::Linear(linear) = &mut self.proj_in {
            f(linear);
        }
        for block in &mut self.transformer_blocks {
            block.attn1.linears_mut(f);
            block.attn2.linears_mut(f);
            f(&mut block.ff.proj);
            f(&mut block.ff.out);
        }
        if let Projection::Linear(linear) = &mut self.proj_out {
            f(linear);
        }
    }
}
