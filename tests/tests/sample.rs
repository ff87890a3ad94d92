//! `host sample`: the seed decides an image, the batch size changes nothing, given noise is used.

use ambiguity_host::data::png;
use ambiguity_models::safetensors::{read_safetensors, write_safetensors};
use tch::{Kind, Tensor};

use crate::support::{host, host_ok};

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

/// The latents do not depend on the VAE; its type and its tiles change the images a little.
#[test]
fn the_types_and_the_tiles_of_the_networks_are_the_users() {
    let folder = tempfile::tempdir().expect("a folder");
    let sample = |out: &str, extra: &[&str]| {
        let mut arguments = vec!["sample", "--width=96", "--count=1", "--out", out];
        arguments.extend(PROMPT);
        arguments.extend(extra);
        host_ok(folder.path(), &arguments);
        let tensors = read_safetensors(&folder.path().join(out).join("sample.safetensors")).expect("readable");
        ["latents", "images"].map(|name| tensors[name].shallow_clone())
    };
    let [latents, images] = sample("plain", &[]);
    assert_eq!(images.size(), [1, 3, 64, 96]);
    let distance = |a: &Tensor, b: &Tensor| (a - b).abs().mean(Kind::Float).double_value(&[]);
    for (out, extra) in [("vae", "--vae-dtype=bf16"), ("tiles", "--vae-tiling")] {
        let [same, other] = sample(out, &[extra]);
        assert!(same.equal(&latents), "{extra}");
        assert!((1e-5..0.05).contains(&distance(&other, &images)), "{extra}: {}", distance(&other, &images));
    }
    let [other, _] = sample("unet", &["--dtype=bf16"]);
    assert!((1e-5..0.1).contains(&distance(&other, &latents)), "{}", distance(&other, &latents));
}

/// What a user needs to generate an image again is in its file, as other tools write it; all are on one sheet.
#[test]
fn images_say_where_they_are_from_and_are_on_a_sheet() {
    let folder = tempfile::tempdir().expect("a folder");
    let sample = |more: &[&str]| {
        let arguments =
            ["sample", "--model=tiny-art", "--steps=2", "--seed=7", "--count=2", "--prompt", "a man", "水墨"];
        host(folder.path(), &[&arguments[..], more].concat())
    };
    let ran = sample(&["--negative-prompt=blue", "--guidance=3.5", "--out=out", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).expect("one JSON document");
    assert_eq!((&document["images"], &document["sheet"]), (&4.into(), &"out.png".into()));
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).expect("it was written");
    let image = bytes("out/0003.png");
    let text = |name: &str| png::text(&image, name).unwrap_or_default();
    let names = ["prompt", "negative_prompt", "seed", "steps", "eta", "guidance", "model", "lora"];
    assert_eq!(names.map(text), ["水墨", "blue", "10", "2", "0", "3.5", "tiny-art", ""]);
    assert_eq!(
        text("parameters"),
        "水墨\nNegative prompt: blue\nSteps: 2, Sampler: DDIM, CFG scale: 3.5, Seed: 10, Size: 64x64, Model: tiny-art, \
         Eta: 0, Version: host 0.1.0"
    );
    let sheet = image::load_from_memory(&bytes("out.png")).expect("a PNG").into_rgb8();
    for i in 0..4 {
        // A red channel of the image, which the sheet shows enlarged.
        let image = image::load_from_memory(&bytes(&format!("out/{i:04}.png"))).expect("a PNG").into_rgb8();
        let pixel = image.get_pixel(31, 17);
        assert!(sheet.pixels().filter(|found| *found == pixel).count() >= 4, "image {i} is not on the sheet");
    }
    let refused = sample(&["--out=other/../out2", "--sheet=out.png"]);
    let said = "error: out.png exists: name another file for the contact sheet with --sheet, or use --no-sheet\n";
    assert!(refused.code == 1 && refused.stderr.ends_with(said), "{}", refused.stderr);
    assert_eq!(sample(&["--out=plain", "--no-sheet"]).code, 0);
    assert!(!folder.path().join("plain.png").exists());
    assert_eq!(sample(&["--out=again", "--negative-prompt=blue", "--guidance=3.5"]).code, 0);
    assert!(bytes("again/0001.png") == bytes("out/0001.png"), "the same image is the same file");
}
