//! Foreign model folders and LoRA files that were once read wrongly; see `tests/cases/README.md`.

use std::fs;
use std::path::PathBuf;

use ambiguity_models::params::NamedTensors;
use ambiguity_models::safetensors::read_safetensors;

use tempfile::TempDir;
use test_support::assert_close;

use crate::support::{copy_folder, host, host_ok, root};

/// Copies the files of a case into a new folder, its model over the plain one.
fn case(name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let cases = root().join("tests/cases");
    copy_folder(&cases.join("model"), &folder.path().join("model"));
    copy_folder(&cases.join(name), folder.path());
    folder
}

fn tensors(path: PathBuf) -> NamedTensors {
    read_safetensors(&path).expect("a safetensors file")
}

fn sample<'a>(prompt: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["sample", "--model=model", "--prompt", prompt, "--steps=5", "--out=out", "--tensors"];
    arguments.extend(more);
    arguments
}

/// Samples from the case's latents, compares with diffusers' latents, and returns what was printed.
fn latents_are_diffusers(name: &str, prompt: &str) -> String {
    let folder = case(name);
    let ran = host_ok(folder.path(), &sample(prompt, &["--latents=model/latents.safetensors"]));
    let found = tensors(folder.path().join("out/sample.safetensors"));
    let expected = tensors(folder.path().join("expected.safetensors"));
    assert_close(name, &found["latents"], &expected["latents"], 1e-5);
    ran.stderr
}

#[test]
fn clipping_schedulers_are_read_as_the_pipeline_reads_them() {
    let said = latents_are_diffusers("sched-clip_sample-true", "a cat");
    assert!(said.contains("`clip_sample` is true, but latents must not be clipped; false is used"), "{said}");
}

#[test]
fn numbers_that_json_lacks_do_not_matter_in_keys_that_are_not_read() {
    let folder = case("sched-dpmsolver-infinity");
    host_ok(folder.path(), &sample("a cat", &["--latents=model/latents.safetensors"]));
    let config = folder.path().join("model/scheduler/scheduler_config.json");
    let text = fs::read_to_string(&config).expect("readable").replace("0.012", "NaN");
    fs::write(&config, text).expect("writable");
    let ran = host(folder.path(), &sample("a cat", &[]));
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("key `beta_end` must be a number, found \"NaN\""), "{}", ran.stderr);
}

#[test]
fn added_tokens_are_tokens() {
    latents_are_diffusers("added_tokens-json", "a cat <my-style>");
}

#[test]
fn git_lfs_pointers_are_named() {
    let folder = case("lfs-pointer");
    for arguments in [sample("a cat", &[]), vec!["plugin", "inspect", "pointer.onnx"]] {
        let ran = host(folder.path(), &arguments);
        assert_eq!(ran.code, 1);
        assert!(
            ran.stderr.contains("it is a Git LFS pointer, not the file itself; run `git lfs pull`"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn files_and_parts_of_models_are_named() {
    let folder = case("sched-clip_sample-true");
    let refused = |model: &str| {
        let ran = host(folder.path(), &["sample", "--prompt=x", "--out=out", "--model", model]);
        assert_eq!(ran.code, 1, "{model}");
        ran.stderr
    };
    for model in ["model/unet/diffusion_pytorch_model.safetensors", "./missing.safetensors", "a/b.ckpt"] {
        let said = refused(model);
        assert!(said.contains("name a diffusers folder") && said.contains("from_single_file"), "{said}");
    }
    let said = refused("model/unet");
    assert!(said.contains("it is one part of a model, a UNet2DConditionModel"), "{said}");
    fs::remove_file(folder.path().join("model/model_index.json")).expect("it was there");
    assert!(refused("model").contains("latents.safetensors may be a checkpoint in one file"));
}

#[test]
fn patterns_of_alpha_are_regular_expressions() {
    let folder = case("lora-alpha_pattern-regex");
    host_ok(folder.path(), &["lora", "merge", "--model=model", "--lora=lora", "--out=out"]);
    let merged = tensors(folder.path().join("out/unet/diffusion_pytorch_model.safetensors"));
    let expected = tensors(folder.path().join("expected-weights.safetensors"));
    assert!(expected.len() > 16);
    for (name, tensor) in &expected {
        // The model is in f16, and so is what is merged; the expected tensors are not rounded.
        assert_close(name, &merged[name], tensor, 1e-3);
    }
}

#[test]
fn loras_that_would_load_wrongly_are_refused() {
    for (name, said) in [
        ("lora-pissa", "key `init_lora_weights` is \"pissa\", with which peft changes the model's own weights first"),
        ("lora-nan", "contains numbers that are not finite"),
    ] {
        let folder = case(name);
        for arguments in
            [vec!["lora", "merge", "--model=model", "--lora=lora", "--out=out"], sample("a cat", &["--lora=lora"])]
        {
            let ran = host(folder.path(), &arguments);
            assert_eq!(ran.code, 1, "{name}");
            assert!(ran.stderr.contains(said), "{}", ran.stderr);
            assert!(!folder.path().join("out").exists(), "{name}");
        }
    }
}

#[test]
fn a_lora_of_kohyas_scripts_is_the_same_lora() {
    let folder = case("lora-kohya-keys");
    let latents = |model: &str, out: &str, lora: &[&str]| {
        let arguments = ["sample", "--prompt=a cat", "--steps=5", "--tensors", "--latents=model/latents.safetensors"];
        host_ok(folder.path(), &[&arguments[..], &["--model", model, "--out", out], lora].concat());
        tensors(folder.path().join(out).join("sample.safetensors")).remove("latents").expect("it is there")
    };
    let lora = ["--lora=lora", "--lora-scale=30"];
    let merge = ["lora", "merge", lora[0], lora[1]];
    host_ok(folder.path(), &[&merge[..], &["--model=model", "--out=merged"]].concat());
    let (plain, added) = (latents("model", "plain", &[]), latents("model", "added", &lora));
    assert_close("merged", &latents("merged", "of-merged", &[]), &added, 1e-5);
    let change = test_support::relative_error(&plain, &added);
    assert!(change > 1e-3, "{change}");
    // Merged once is merged; a second time would double it.
    let ran = host(folder.path(), &[&merge[..], &["--model=merged", "--out=twice"]].concat());
    assert!(ran.code == 1 && ran.stderr.contains("already merged into merged at scale 30"), "{}", ran.stderr);
    let inside = folder.path().join("model/inside");
    let ran = host(
        folder.path(),
        &["lora", "merge", "--model=./model", "--lora=lora", "--out", inside.to_str().expect("text")],
    );
    assert!(ran.code == 1 && ran.stderr.contains("is inside the model's own folder"), "{}", ran.stderr);
}
