//! `host sample`: the seed decides an image, the batch size changes nothing, given noise is used.

use ambiguity_models::safetensors::{read_safetensors, write_safetensors};
use tch::{Kind, Tensor};

use crate::support::host_ok;

const PROMPT: [&str; 4] = ["--model=tiny-art", "--prompt=painting of a woman", "--steps=3", "--tensors"];

#[test]
fn image_i_has_seed_n_plus_i_whatever_the_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |extra: &[&str]| {
        let mut arguments = vec!["sample"];
        arguments.extend(PROMPT);
        arguments.extend(extra);
        host_ok(folder.path(), &arguments);
    };
    run(&["--seed=5", "--count=3", "--out=three"]);
    run(&["--seed=7", "--count=1", "--out=one", "--micro-batch=1"]);
    let three = read_safetensors(&folder.path().join("three/sample.safetensors")).expect("readable");
    let one = read_safetensors(&folder.path().join("one/sample.safetensors")).expect("readable");
    let difference = (three["images"].get(2) - one["images"].get(0)).abs().max().double_value(&[]);
    assert!(difference < 1e-4, "{difference}");
    assert!(three["images"].size() == [3, 3, 64, 64] && !three.contains_key("log_probs"));
    assert!(folder.path().join("three/0002.png").is_file());
}

#[test]
fn given_latents_and_noise_replace_the_seeds() {
    let folder = tempfile::tempdir().expect("a folder");
    let latents = Tensor::randn([2, 4, 16, 16], (Kind::Float, tch::Device::Cpu));
    let noise = Tensor::randn([3, 2, 4, 16, 16], (Kind::Float, tch::Device::Cpu));
    let write = |name: &str, tensor: &Tensor| {
        let tensors = [(name.to_owned(), tensor.shallow_clone())].into();
        write_safetensors(&folder.path().join(name), &tensors, &[]).expect("written");
    };
    write("latents", &latents);
    write("noise", &noise);
    for (seed, out) in [("--seed=1", "a"), ("--seed=2", "b")] {
        let mut arguments =
            vec!["sample", seed, "--count=2", "--eta=1", "--latents=latents", "--noise=noise", "--out", out];
        arguments.extend(PROMPT);
        host_ok(folder.path(), &arguments);
    }
    let a = read_safetensors(&folder.path().join("a/sample.safetensors")).expect("readable");
    let b = read_safetensors(&folder.path().join("b/sample.safetensors")).expect("readable");
    assert!(a["images"].equal(&b["images"]));
    assert!(a["trajectory"].get(0).equal(&latents));
    assert_eq!(a["log_probs"].size(), [3, 2]);
}
