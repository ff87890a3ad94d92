//! The layers of all networks; field names are those of the checkpoint.

use std::cell::RefCell;

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::params::{Init, Params};

/// `torch.nn.Linear`, with room for one LoRA adapter.
#[derive(Debug)]
pub struct Linear {
    /// [out, in].
    pub weight: Tensor,
    /// \[out\].
    pub bias: Option<Tensor>,
    /// The LoRA adapter, if one is attached.
    pub adapter: Option<Adapter>,
    /// The full checkpoint name, without `.weight`.
    pub name: String,
}

/// y += scale · (x Aᵀ) Bᵀ (Hu et al., LoRA, arXiv 2106.09685).
#[derive(Debug)]
pub struct Adapter {
    /// `lora_A`, [rank, in], f32.
    pub a: Tensor,
    /// `lora_B`, [out, rank], f32.
    pub b: Tensor,
    /// alpha / rank, times the user's factor; 0 switches the adapter off.
    pub scale: f64,
    /// What calls without gradients in another type use.
    copies: RefCell<Option<Copies>>,
}

/// Copies of an adapter's factors in another type.
#[derive(Debug)]
struct Copies {
    a: Tensor,
    b: Tensor,
    /// libtorch's counts of the changes of both factors when they were copied.
    versions: [i64; 2],
}

impl Linear {
    /// Reads or initializes `weight` and, with `bias`, `bias`; initially both are uniform on ±1/√in, as in PyTorch.
    pub fn new(p: &Params, n_in: i64, n_out: i64, bias: bool) -> Result<Self> {
        let init = fan_in_uniform(n_in);
        Self::build(p, n_in, n_out, bias, init, init)
    }

    /// The same as [`Linear::new`] with another initialization of the weight, and a bias that is initially zero.
    pub fn with_init(p: &Params, n_in: i64, n_out: i64, bias: bool, init: Init) -> Result<Self> {
        Self::build(p, n_in, n_out, bias, init, Init::Zeros)
    }

    fn build(p: &Params, n_in: i64, n_out: i64, bias: bool, weight_init: Init, bias_init: Init) -> Result<Self> {
        let weight = p.tensor("weight", &[n_out, n_in], weight_init)?;
        let bias = bias.then(|| p.tensor("bias", &[n_out], bias_init)).transpose()?;
        Ok(Self { weight, bias, adapter: None, name: p.path().to_owned() })
    }

    /// [.., in] to [.., out], in the type of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match &self.adapter {
            Some(adapter) if adapter.scale != 0.0 => self.forward_adapted(x, adapter),
            _ => x.linear(&self.weight, self.bias.as_ref()),
        }
    }

    /// The adapter's product is computed in the type of `x`, as peft does under autocast; its factors stay f32, so that
    /// small steps of training add up.
    fn forward_adapted(&self, x: &Tensor, adapter: &Adapter) -> Tensor {
        // In rows, so that the adapter's product is added in place to a tensor that is not a view.
        let mut size = x.size();
        let rows = x.reshape([-1, size[size.len() - 1]]);
        let [a, b] = adapter.factors(x.kind());
        let down = rows.linear(&a, None::<&Tensor>);
        // The scale costs the least on this narrow product.
        let down = if adapter.scale == 1.0 { down } else { down * adapter.scale };
        let y = rows.linear(&self.weight, self.bias.as_ref()).addmm_(&down, &b.tr());
        if let Some(last) = size.last_mut() {
            *last = self.weight.size()[0];
        }
        y.view(&size[..])
    }
}

impl Adapter {
    /// An adapter with these factors, [rank, in] and [out, rank].
    pub fn new(a: Tensor, b: Tensor, scale: f64) -> Self {
        Self { a, b, scale, copies: RefCell::default() }
    }

    /// The factors in a type. The calls of a rollout, which have no gradients, share one copy.
    fn factors(&self, kind: Kind) -> [Tensor; 2] {
        let (a, b) = (&self.a, &self.b);
        if kind == a.kind() || torch_ext::grad_enabled() {
            return [a, b].map(|factor| factor.to_kind(kind));
        }
        let versions = [a, b].map(Tensor::internal_version);
        let mut copies = self.copies.borrow_mut();
        let copies = match copies.take().filter(|copies| copies.versions == versions && copies.a.kind() == kind) {
            Some(valid) => copies.insert(valid),
            None => copies.insert(Copies { a: a.to_kind(kind), b: b.to_kind(kind), versions }),
        };
        [&copies.a, &copies.b].map(Tensor::shallow_clone)
    }
}

/// The default initialization of PyTorch's linear and convolution layers, for weights and biases alike.
fn fan_in_uniform(fan_in: i64) -> Init {
    Init::Uniform { bound: 1.0 / (fan_in as f64).sqrt() }
}

/// `torch.nn.Conv2d`.
#[derive(Debug)]
pub struct Conv2d {
    /// [out, in, k, k].
    pub weight: Tensor,
    /// \[out\].
    pub bias: Option<Tensor>,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    /// Reads or initializes a convolution with a square kernel `k` and a bias, as in diffusers.
    pub fn new(p: &Params, n_in: i64, n_out: i64, k: i64, stride: i64, padding: i64) -> Result<Self> {
        Self::with_bias(p, n_in, n_out, k, stride, padding, true)
    }

    /// Reads or initializes a convolution with a square kernel `k`, with or without a bias.
    pub fn with_bias(p: &Params, n_in: i64, n_out: i64, k: i64, stride: i64, padding: i64, bias: bool) -> Result<Self> {
        let init = fan_in_uniform(n_in * k * k);
        let weight = p.tensor("weight", &[n_out, n_in, k, k], init)?;
        let bias = bias.then(|| p.tensor("bias", &[n_out], init)).transpose()?;
        Ok(Self { weight, bias, stride, padding })
    }

    /// [n, in, h, w] to [n, out, h', w'].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.conv2d(&self.weight, self.bias.as_ref(), self.stride, self.padding, 1, 1)
    }
}

/// `torch.nn.GroupNorm`, affine.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    /// Reads or initializes a layer of `groups` over `channels`.
    pub fn new(p: &Params, groups: i64, channels: i64, eps: f64) -> Result<Self> {
        let weight = p.tensor("weight", &[channels], Init::Ones)?;
        let bias = p.tensor("bias", &[channels], Init::Zeros)?;
        Ok(Self { weight, bias, groups, eps })
    }

    /// Returns a tensor of the same shape as `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)
    }

    /// The SiLU of [`GroupNorm::forward`], for x [n, channels, ..].
    pub fn forward_silu(&self, x: &Tensor) -> Tensor {
        torch_ext::group_norm_silu(x, self.groups, &self.weight, &self.bias, self.eps)
            .expect("the feature map has the number of channels that the layer was built for")
    }
}

/// `torch.nn.LayerNorm` over the last axis, affine.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads or initializes a layer over a last axis of length `width`.
    pub fn new(p: &Params, width: i64, eps: f64) -> Result<Self> {
        let weight = p.tensor("weight", &[width], Init::Ones)?;
        let bias = p.tensor("bias", &[width], Init::Zeros)?;
        Ok(Self { weight, bias, eps })
    }

    /// Returns a tensor of the same shape as `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

/// `torch.nn.Embedding`.
#[derive(Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// Reads or initializes a table of `n` rows of `width`.
    pub fn new(p: &Params, n: i64, width: i64, std: f64) -> Result<Self> {
        Ok(Self { weight: p.tensor("weight", &[n, width], Init::Normal { mean: 0.0, std })? })
    }

    /// Integer indices of any shape to [.., width].
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.weight, ids, -1, false, false)
    }

    /// The whole table, [n, width].
    pub fn table(&self) -> &Tensor {
        &self.weight
    }
}

/// Attention of several heads (Vaswani et al., Attention Is All You Need, arXiv 1706.03762): queries [n, len, hidden] and
/// keys and values [n, m, hidden] to [n, len, hidden]. `mask` is added to the scores before the softmax; its shape expands
/// to [n, heads, len, m].
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64, mask: Option<&Tensor>) -> Tensor {
    let split = |t: &Tensor| {
        let (n, len, hidden) = t.size3().expect("hidden states have three axes");
        t.reshape([n, len, heads, hidden / heads]).transpose(1, 2)
    };
    let y = Tensor::scaled_dot_product_attention(&split(q), &split(k), &split(v), mask, 0.0, false, None, false);
    y.transpose(1, 2).flatten(2, 3)
}

/// Divides each row by its Euclidean length; a row of zeros stays.
pub(crate) fn normalized(x: &Tensor) -> Tensor {
    let length = x.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true);
    x / length.clamp_min(1e-12)
}
