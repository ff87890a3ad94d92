//! The pre-norm transformer of both towers (`CLIPEncoder`).

use tch::Tensor;

use crate::clip::config::Activation;
use crate::error::Result;
use crate::layers::{LayerNorm, Linear};
use crate::params::{Init, Params};

/// The sizes that both towers' configurations share.
pub(crate) struct EncoderConfig {
    pub layers: i64,
    pub hidden: i64,
    pub intermediate: i64,
    pub heads: i64,
    pub activation: Activation,
    pub eps: f64,
}

/// A stack of transformer blocks.
#[derive(Debug)]
pub(crate) struct Encoder {
    layers: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
}

#[derive(Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Encoder {
    /// Reads or initializes `layers.0`, `layers.1`, …
    pub fn new(p: &Params, config: &EncoderConfig) -> Result<Self> {
        let p = p.at("layers");
        let layers = (0..config.layers).map(|i| Block::new(&p.at(i), config)).collect::<Result<_>>()?;
        Ok(Self { layers })
    }

    /// [n, len, hidden] to the same shape; `causal` masks later positions.
    pub fn forward(&self, x: Tensor, causal: bool) -> Tensor {
        self.layers.iter().fold(x, |x, layer| layer.forward(&x, causal))
    }
}

impl Block {
    fn new(p: &Params, config: &EncoderConfig) -> Result<Self> {
        Ok(Self {
            layer_norm1: LayerNorm::new(&p.at("layer_norm1"), config.hidden, config.eps)?,
            self_attn: Attention::new(&p.at("self_attn"), config)?,
            layer_norm2: LayerNorm::new(&p.at("layer_norm2"), config.hidden, config.eps)?,
            mlp: Mlp::new(&p.at("mlp"), config)?,
        })
    }

    fn forward(&self, x: &Tensor, causal: bool) -> Tensor {
        let x = x + self.self_attn.forward(&self.layer_norm1.forward(x), causal);
        &x + self.mlp.forward(&self.layer_norm2.forward(&x))
    }
}

/// Initial standard deviation of layers that write to the residual stream, in all layers alike (`in_proj_std`
/// upstream).
fn residual_std(config: &EncoderConfig) -> f64 {
    (config.hidden as f64).powf(-0.5) * (2.0 * config.layers as f64).powf(-0.5)
}

fn normal(std: f64) -> Init {
    Init::Normal { mean: 0.0, std }
}

impl Attention {
    fn new(p: &Params, config: &EncoderConfig) -> Result<Self> {
        let hidden = config.hidden;
        let linear = |name, std| Linear::with_init(&p.at(name), hidden, hidden, true, normal(std));
        Ok(Self {
            k_proj: linear("k_proj", residual_std(config))?,
            v_proj: linear("v_proj", residual_std(config))?,
            q_proj: linear("q_proj", residual_std(config))?,
            out_proj: linear("out_proj", (hidden as f64).powf(-0.5))?,
            heads: config.heads,
        })
    }

    fn forward(&self, x: &Tensor, causal: bool) -> Tensor {
        let (n, len, hidden) = x.size3().expect("hidden states have three axes");
        let split = |t: Tensor| t.view([n, len, self.heads, hidden / self.heads]).transpose(1, 2);
        let q = split(self.q_proj.forward(x));
        let k = split(self.k_proj.forward(x));
        let v = split(self.v_proj.forward(x));
        let y = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, causal, None, false);
        self.out_proj.forward(&y.transpose(1, 2).reshape([n, len, hidden]))
    }
}

impl Mlp {
    fn new(p: &Params, config: &EncoderConfig) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden, config.intermediate);
        let fc1_std = (2.0 * hidden as f64).powf(-0.5);
        Ok(Self {
            fc1: Linear::with_init(&p.at("fc1"), hidden, intermediate, true, normal(fc1_std))?,
            fc2: Linear::with_init(&p.at("fc2"), intermediate, hidden, true, normal(residual_std(config)))?,
            activation: config.activation,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.fc1.forward(x);
        let x = match self.activation {
            Activation::QuickGelu => (&x * 1.702).sigmoid() * &x,
            Activation::Gelu => x.gelu("none"),
        };
        self.fc2.forward(&x)
    }
}
