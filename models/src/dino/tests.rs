use tch::{Kind, Tensor, no_grad};
use test_support::{Reference, assert_close};
use torch_ext::Generator;

use super::*;
use crate::json::JsonObject;
use crate::params::NamedTensors;
use crate::safetensors::write_safetensors;
use crate::tests::drawn;

const NETWORKS: [(&str, u64); 3] = [("vit", 50), ("dinov2", 51), ("swiglu", 52)];

fn config(reference: &Reference, name: &str) -> DinoConfig {
    DinoConfig::read(&reference.config(name)).unwrap()
}

fn check(reference: &Reference, name: &str, network: &Dino) {
    let embeddings = reference.part(&format!("embedding.{name}."));
    assert_eq!(embeddings.len(), 3);
    for (size, wanted) in embeddings {
        let [height, width] = [0, 1].map(|i| size.split('x').nth(i).unwrap().parse().unwrap());
        let pixels = Generator::cpu(60 + height as u64).unwrap().normal(&[2, 3, height, width]).unwrap();
        assert_close(name, &no_grad(|| network.embed(&pixels).unwrap()), &wanted, 1e-5);
    }
}

#[test]
fn embeddings_match_transformers() {
    let reference = Reference::read("metric_dino.safetensors");
    for (name, seed) in NETWORKS {
        let config = config(&reference, name);
        let params = drawn(seed, Kind::Float, |p| Dino::new(p, &config).map(drop));
        let network = Dino::new(&params, &config).unwrap();
        params.finish().unwrap();
        check(&reference, name, &network);
    }
}

#[test]
fn folders_of_other_classes_are_read() {
    let reference = Reference::read("metric_dino.safetensors");
    for (name, seed) in NETWORKS {
        let config = config(&reference, name);
        let params = drawn(seed, Kind::Float, |p| Dino::new(p, &config).map(drop));
        Dino::new(&params, &config).unwrap();
        let prefix = if name == "vit" { "vit" } else { "dinov2" };
        let rename = |(name, tensor): (String, Tensor)| (format!("{prefix}.{name}"), tensor);
        let mut tensors: NamedTensors = params.finish().unwrap().into_iter().map(rename).collect();
        for more in ["pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token"] {
            tensors.insert(format!("{prefix}.{more}"), Tensor::from_slice(&[1.0f32]));
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        write_safetensors(&file, &tensors, &[("format", "pt")]).unwrap();
        std::fs::write(folder.path().join("config.json"), &reference.metadata[name]).unwrap();
        check(&reference, name, &Dino::load(folder.path(), test_support::device(), Kind::Float).unwrap());
        tensors.insert("classifier.weight".to_owned(), Tensor::from_slice(&[1.0f32]));
        write_safetensors(&file, &tensors, &[]).unwrap();
        let message = Dino::load(folder.path(), Device::Cpu, Kind::Float).unwrap_err().to_string();
        assert!(message.contains("the first is `classifier.weight`"), "{message}");
    }
}

#[test]
fn published_networks_have_their_number_of_parameters() {
    let count = |json: &str| {
        let config = JsonObject::parse("config.json".as_ref(), json.as_bytes());
        let config = DinoConfig::from_object(&config.unwrap()).unwrap();
        let p = Params::shapes();
        Dino::new(&p, &config).unwrap();
        p.finish().unwrap().values().map(Tensor::numel).sum::<usize>()
    };
    let vits16 = r#"{"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}"#;
    assert_eq!(count(vits16), 21_665_664);
    // Without the mask token.
    assert_eq!(count(r#"{"model_type": "dinov2", "image_size": 518}"#), 86_580_480 - 768);
    let giant = r#"{"model_type": "dinov2", "image_size": 518, "hidden_size": 1536, "num_attention_heads": 24,
        "num_hidden_layers": 40, "use_swiglu_ffn": true}"#;
    assert_eq!(count(giant), 1_136_480_768 - 1536);
}

#[test]
fn what_no_network_takes_is_refused() {
    let reference = Reference::read("metric_dino.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let message = |text: &str| {
        std::fs::write(&file, text).unwrap();
        DinoConfig::read(&file).unwrap_err().to_string()
    };
    for (text, wanted) in [
        ("{}", "key `model_type` is `missing`"),
        (r#"{"model_type": "dinov2_with_registers"}"#, "only vit or dinov2 is supported"),
        (r#"{"model_type": "vit", "hidden_act": "relu"}"#, "key `hidden_act` is `relu`"),
        (r#"{"model_type": "vit", "hidden_size": 100}"#, "key `num_attention_heads` is 12, which does not divide 100"),
        (r#"{"model_type": "vit", "patch_size": 300}"#, "key `patch_size` is 300, more than image_size 224"),
        (r#"{"model_type": "vit", "num_channels": 1}"#, "key `num_channels` must be 3, found 1"),
        (r#"{"model_type": "vit", "num_hidden_layers": 1000}"#, "key `num_hidden_layers` must be from 1 to 128"),
        (r#"{"model_type": "dinov2", "hidden_size": 1000000, "num_attention_heads": 1}"#, "the MLP 4000000 wide"),
    ] {
        let message = message(text);
        assert!(message.contains(wanted), "{message}");
    }
    let config = config(&reference, "vit");
    let network = Dino::new(&Params::random(1, Device::Cpu).unwrap(), &config).unwrap();
    for shape in [&[2, 1, 32, 32][..], &[2, 3, 7, 32], &[3, 32, 32]] {
        let pixels = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let message = network.embed(&pixels).unwrap_err().to_string();
        assert!(message.starts_with("DINO takes pixels [n, 3, h, w] of at least 8 per side, found"), "{message}");
    }
}
