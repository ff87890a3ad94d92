use super::*;
use crate::diffusers::DIFFUSERS_VERSION;
use serde_json::{Value, json};

/// Names of the UNets, and the seeds with which the script draws their weights.
const UNETS: [(&str, u64); 3] = [("sd1", 100), ("sd2", 101), ("upcast", 102)];

fn error_of(kind: Kind, name: &str, seed: u64) -> f64 {
    let reference = Reference::read("diffusion_unet.safetensors");
    let input = |part: &str| reference.tensor(&format!("{name}.{part}"));
    let unet = drawn_unet(&reference, name, seed, kind);
    let out = unet.forward(input("latents"), input("timesteps"), input("text"));
    assert_eq!(out.kind(), kind);
    relative_error(&out, input("out"))
}

#[test]
fn matches_diffusers() {
    for (name, seed) in UNETS {
        let error = error_of(Kind::Float, name, seed);
        assert!(error <= 1e-5, "{name}: {error:.2e}");
    }
}

#[test]
fn matches_diffusers_with_channels_innermost() {
    let reference = Reference::read("diffusion_unet.safetensors");
    for (name, seed) in UNETS {
        let input = |part: &str| reference.tensor(&format!("{name}.{part}"));
        let unet = drawn_unet_in(&reference, name, seed, Kind::Float, MemoryFormat::ChannelsLast);
        let out = unet.forward(input("latents"), input("timesteps"), input("text"));
        let error = relative_error(&out, input("out"));
        assert!(error <= 1e-5, "{name}: {error:.2e}");
        let gradient = |unet: &UNet| {
            let latents = input("latents").copy().set_requires_grad(true);
            unet.forward(&latents, input("timesteps"), input("text")).square().sum(Kind::Float).backward();
            latents.grad()
        };
        let plain = drawn_unet(&reference, name, seed, Kind::Float);
        let error = relative_error(&gradient(&unet), &gradient(&plain));
        assert!(error <= 1e-5, "{name}, gradient: {error:.2e}");
    }
}

#[test]
fn bf16_stays_near_f32() {
    for (name, seed) in UNETS {
        let error = error_of(Kind::BFloat16, name, seed);
        assert!(error <= 2e-2, "{name}: {error:.2e}");
    }
}

#[test]
fn attention_in_bf16_is_not_upcast() {
    let reference = Reference::read("diffusion_unet.safetensors");
    let input = |part: &str| reference.tensor(&format!("upcast.{part}"));
    let config = UNetConfig::read(&reference.config("upcast")).unwrap();
    assert!(config.upcast_attention);
    let [upcast, plain] = [true, false].map(|upcast_attention| {
        let params = drawn(102, Kind::BFloat16, |p| UNet::new(p, &config).map(drop));
        let unet = UNet::new(&params, &UNetConfig { upcast_attention, ..config.clone() }).unwrap();
        unet.forward(input("latents"), input("timesteps"), input("text"))
    });
    assert_eq!(upcast, plain);
}

#[test]
fn configuration_survives_writing_and_reading() {
    let reference = Reference::read("diffusion_unet.safetensors");
    for (name, _) in UNETS {
        let config = UNetConfig::read(&reference.config(name)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        config.save(folder.path()).unwrap();
        assert_eq!(UNetConfig::read(&folder.path().join("config.json")).unwrap(), config);
        // Every key that diffusers wrote has the same value, except that one number replaces a list of equal ones.
        let theirs: Value = serde_json::from_str(&reference.metadata[name]).unwrap();
        let ours = config.to_json();
        assert_eq!(ours["_diffusers_version"], DIFFUSERS_VERSION);
        let keys = theirs
            .as_object()
            .unwrap()
            .iter()
            .filter(|(key, _)| !["_use_default_values", "_diffusers_version"].contains(&key.as_str()));
        for (key, value) in keys {
            let known = ours.get(key).unwrap_or_else(|| panic!("{name}: `{key}` is not written"));
            let same = known == value || known.as_f64() == value.as_f64() && value.is_number();
            assert!(same || value.is_array(), "{name}: `{key}` is {known}, not {value}");
        }
    }
}

#[test]
fn what_is_not_built_is_refused_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let cases = [
        ("down_block_types", json!(["AttnDownBlock2D"])),
        ("act_fn", json!("gelu")),
        ("class_embed_type", json!("timestep")),
        ("addition_embed_type", json!("text_time")),
        ("resnet_time_scale_shift", json!("scale_shift")),
        ("mid_block_type", Value::Null),
        ("attention_head_dim", json!([5, 10])),
        ("attention_head_dim", json!(7)),
        ("transformer_layers_per_block", json!([[1], [2]])),
        ("norm_num_groups", json!(7)),
        ("dropout", json!(0.1)),
        ("_class_name", json!("AutoencoderKL")),
        // Numbers that no network has: it could not be built in any time or memory, or would give no numbers.
        ("sample_size", json!(-1)),
        ("in_channels", json!(1i64 << 40)),
        ("layers_per_block", json!(1_000_000_000)),
        ("transformer_layers_per_block", json!(100)),
        ("block_out_channels", json!([i64::MAX - 63, 32, 32, 32])),
        ("block_out_channels", json!(vec![32; 64])),
        ("time_embedding_dim", json!(0)),
        ("conv_in_kernel", json!(33)),
        ("norm_eps", json!(-1.0)),
        ("freq_shift", json!(1e300)),
    ];
    for (key, value) in cases {
        let mut config = json!({"_class_name": "UNet2DConditionModel"});
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = UNetConfig::read(&path).unwrap_err().to_string();
        let key = if key == "norm_num_groups" { "block_out_channels" } else { key };
        assert!(error.contains("config.json") && error.contains(key), "{key}: {error}");
    }
}

#[test]
fn a_fresh_network_has_pytorchs_statistics() {
    let reference = Reference::read("diffusion_unet.safetensors");
    let config = UNetConfig::read(&reference.config("sd2")).unwrap();
    let params = Params::random(3, device()).unwrap();
    UNet::new(&params, &config).unwrap();
    let tensors = params.finish().unwrap();
    let weight = &tensors["mid_block.resnets.0.conv1.weight"];
    let bias = &tensors["mid_block.resnets.0.conv1.bias"];
    let bound = (64f64 * 9.0).sqrt().recip();
    for (tensor, minimum) in [(weight, 0.99), (bias, 0.8)] {
        let largest = tensor.abs().max().double_value(&[]);
        assert!(largest <= bound && largest > minimum * bound, "{largest} of {bound}");
    }
    assert_eq!(tensors["conv_norm_out.weight"].mean(Kind::Float).double_value(&[]), 1.0);
}
