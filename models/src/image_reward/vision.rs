//! BLIP's Vision Transformer (Dosovitskiy et al., arXiv 2010.11929), as upstream's models/BLIP/vit.py computes it: pre-norm,
//! all hidden states returned.

use tch::Tensor;

use crate::error::Result;
use crate::image_reward::config::ImageRewardConfig;
use crate::layers::{Conv2d, LayerNorm, Linear, attention};
use crate::params::{Init, Params};

/// Epsilon of every layer norm.
const EPS: f64 = 1e-6;

#[derive(Debug)]
pub(super) struct VisualEncoder {
    cls_token: Tensor,
    pos_embed: Tensor,
    patch_embed: Conv2d,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
}

impl VisualEncoder {
    pub fn new(p: &Params, config: &ImageRewardConfig) -> Result<Self> {
        let (width, patch) = (config.vision_width, config.patch_size);
        let positions = (config.image_size / patch).pow(2) + 1;
        let init = Init::Normal { mean: 0.0, std: 0.02 };
        let blocks = p.at("blocks");
        Ok(Self {
            cls_token: p.tensor("cls_token", &[1, 1, width], init)?,
            pos_embed: p.tensor("pos_embed", &[1, positions, width], init)?,
            patch_embed: Conv2d::new(&p.at("patch_embed").at("proj"), 3, width, patch, patch, 0)?,
            blocks: (0..config.vision_layers).map(|i| Block::new(&blocks.at(i), config)).collect::<Result<_>>()?,
            norm: LayerNorm::new(&p.at("norm"), width, EPS)?,
        })
    }

    /// Pixels [n, 3, s, s] of the configuration's size to hidden states [n, 1 + patches, width].
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let pixels = pixels.to_device(self.cls_token.device()).to_kind(self.cls_token.kind());
        let patches = self.patch_embed.forward(&pixels).flatten(2, 3).transpose(1, 2);
        let class = self.cls_token.expand([pixels.size()[0], -1, -1], false);
        let x = Tensor::cat(&[class, patches], 1) + &self.pos_embed;
        self.norm.forward(&self.blocks.iter().fold(x, |x, block| block.forward(&x)))
    }
}

impl Block {
    fn new(p: &Params, config: &ImageRewardConfig) -> Result<Self> {
        let (width, inner) = (config.vision_width, config.vision_intermediate_size);
        let (attn, mlp) = (p.at("attn"), p.at("mlp"));
        Ok(Self {
            norm1: LayerNorm::new(&p.at("norm1"), width, EPS)?,
            qkv: Linear::new(&attn.at("qkv"), width, 3 * width, true)?,
            proj: Linear::new(&attn.at("proj"), width, width, true)?,
            norm2: LayerNorm::new(&p.at("norm2"), width, EPS)?,
            fc1: Linear::new(&mlp.at("fc1"), width, inner, true)?,
            fc2: Linear::new(&mlp.at("fc2"), inner, width, true)?,
            heads: config.vision_heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let qkv = self.qkv.forward(&self.norm1.forward(x)).chunk(3, -1);
        let x = x + self.proj.forward(&attention(&qkv[0], &qkv[1], &qkv[2], self.heads, None));
        let y = self.fc1.forward(&self.norm2.forward(&x)).gelu("none");
        x + self.fc2.forward(&y)
    }
}
