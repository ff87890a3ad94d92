//! The networks of evaluation metrics at their published sizes, with random weights:
//! `cargo test --release -p ambiguity-models true_shapes -- --ignored --nocapture`. The peaks of memory include what the
//! allocator kept of the networks before.

use std::time::Instant;

use tch::{Device, no_grad};

use super::*;
use crate::aesthetic::AestheticPredictor;
use crate::clip::{Activation, Clip, ClipConfig, TextConfig, VisionConfig};
use crate::csd::Csd;
use crate::dino::{Dino, DinoConfig, Family};
use crate::image_reward::{ImageReward, ImageRewardConfig};
use crate::preference::PickScore;

/// Number of images that each network is run on.
const N: i64 = 2;

/// Peak of the process's memory since the last call, in GB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    // Resets the peak to what is in use now.
    drop(std::fs::write("/proc/self/clear_refs", "5"));
    kib.unwrap_or(f64::NAN) * 1024.0 / 1e9
}

/// Builds and runs a network; prints its number of parameters, the seconds and the peak of memory.
fn measure<T>(name: &str, build: impl Fn(&Params) -> crate::Result<T>, run: impl Fn(&T) -> crate::Result<Tensor>) {
    peak();
    let started = Instant::now();
    let params = Params::random(1, device()).unwrap();
    let network = build(&params).unwrap();
    let parameters: usize = params.finish().unwrap().values().map(Tensor::numel).sum();
    let built = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let found = no_grad(|| run(&network)).unwrap();
    assert_eq!(found.isfinite().all().int64_value(&[]), 1, "{name}");
    assert_eq!(found.size()[0], N, "{name}");
    let (ran, peak) = (started.elapsed().as_secs_f64(), peak());
    println!("{name}: {parameters} parameters, {built:.1} s to draw, {ran:.2} s for {N} images, peak {peak:.2} GB");
}

/// CLIP ViT-H/14 of LAION, from which PickScore and HPSv2 were fine-tuned.
fn clip_h() -> ClipConfig {
    let text_config = TextConfig {
        vocab_size: 49_408,
        hidden_size: 1024,
        intermediate_size: 4096,
        projection_dim: 1024,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        max_position_embeddings: 77,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-5,
        pad_token_id: Some(1),
        bos_token_id: Some(0),
        eos_token_id: 2,
    };
    let vision_config = VisionConfig {
        hidden_size: 1280,
        intermediate_size: 5120,
        projection_dim: 1024,
        num_hidden_layers: 32,
        num_attention_heads: 16,
        ..clip_l_vision(Activation::Gelu)
    };
    ClipConfig { text_config, vision_config, projection_dim: 1024, logit_scale_init_value: 2.6592 }
}

fn clip_l_vision(hidden_act: Activation) -> VisionConfig {
    VisionConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        projection_dim: 768,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        num_channels: 3,
        image_size: 224,
        patch_size: 14,
        hidden_act,
        layer_norm_eps: 1e-5,
    }
}

fn vits16() -> DinoConfig {
    DinoConfig {
        family: Family::Vit,
        hidden_size: 384,
        intermediate_size: 1536,
        num_hidden_layers: 12,
        num_attention_heads: 6,
        image_size: 224,
        patch_size: 16,
        layer_norm_eps: 1e-12,
        qkv_bias: true,
    }
}

/// DINOv2-base, whose position embeddings are resized from 37 × 37 patches.
fn dinov2_base() -> DinoConfig {
    DinoConfig {
        family: Family::Dinov2 { swiglu: false },
        hidden_size: 768,
        intermediate_size: 3072,
        num_attention_heads: 12,
        image_size: 518,
        patch_size: 14,
        layer_norm_eps: 1e-6,
        ..vits16()
    }
}

#[test]
#[ignore = "needs 7 GB of memory and a minute"]
fn true_shapes() {
    let options = (Kind::Float, Device::Cpu);
    let pixels = Generator::cpu(2).unwrap().normal(&[N, 3, 224, 224]).unwrap();
    let ids = |length: i64| Tensor::arange(length, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    measure(
        "aesthetic predictor",
        |p| AestheticPredictor::new(p, device()),
        |network| network.score(&Tensor::ones([N, 768], options)),
    );
    measure("DINO ViT-S/16", |p| Dino::new(p, &vits16()), |network| network.embed(&pixels));
    measure("DINOv2-base", |p| Dino::new(p, &dinov2_base()), |network| network.embed(&pixels));
    let config = clip_l_vision(Activation::QuickGelu);
    measure("CSD ViT-L/14", |p| Csd::new(p, &config), |network| network.embed(&pixels));
    let mask = Tensor::ones([1, 35], (Kind::Int64, Device::Cpu));
    measure(
        "ImageReward",
        |p| ImageReward::new(p, &ImageRewardConfig::v1()),
        |network| network.score(&pixels, &ids(35), &mask),
    );
    measure(
        "PickScore and HPSv2",
        |p| Ok(PickScore { clip: Clip::new(p, &clip_h())? }),
        |network| network.score(&pixels, &ids(77)),
    );
}
