//! Gradients through plugins: the whole path from pictures through encoder, plugin and back, against finite differences
//! and against the same head in libtorch; and every way in which a plugin's gradient can be at fault.

use std::fmt::Write as _;
use std::path::PathBuf;

use ambiguity_host::can::ambiguity::PluginAmbiguity;
use ambiguity_host::encoders::{Encoders, SHIPPED};
use ambiguity_host::plugin::{Artifact, Batch, Limits};
use ambiguity_models::can::{Generator, GeneratorConfig};
use ambiguity_models::params::Params;
use ndarray::Array2;
use tch::{Device, Kind, Tensor};
use torch_ext::{AdamW, AdamWConfig, Generator as Randomness};

use super::{built, load, means};
use crate::support::root;

fn shipped_encoders() -> Encoders {
    let mut encoders = Encoders::new();
    encoders.add_clip(SHIPPED, &root().join("models/weights/tiny-art/clip"), Device::Cpu);
    encoders
}

fn shipped(plugin: &str) -> PathBuf {
    root().join("plugins").join(plugin)
}

fn ambiguity(plugin: &str) -> PluginAmbiguity {
    let plugin = load(Limits::default(), &shipped(plugin), &[]).expect("it ships");
    PluginAmbiguity::new(plugin, shipped_encoders()).expect("it has a gradient")
}

/// Smooth pictures in [-1, 1] that differ, [n, 3, 64, 64].
fn pictures(n: i64) -> Tensor {
    let mut randomness = Randomness::cpu(5).expect("a generator");
    let coarse = randomness.normal(&[n, 3, 8, 8]).expect("noise");
    coarse.upsample_bilinear2d([64, 64], false, None::<f64>, None::<f64>).tanh()
}

#[test]
fn the_whole_path_agrees_with_finite_differences() {
    for plugin in ["kmeans_image.wasm", "clip_softmax.wasm"] {
        let mut ambiguity = ambiguity(plugin);
        let images = pictures(3).set_requires_grad(true);
        ambiguity.loss(&images).expect("a loss").surrogate.backward();
        let gradient = images.grad();
        let images = images.detach();
        let mut randomness = Randomness::cpu(6).expect("a generator");
        let (mut squared_error, mut squared) = (0.0, 0.0);
        for i in 0..8 {
            // Along the gradient and along random directions, all with a good part of the gradient in them, since f32
            // forward passes drown what is smaller.
            let noise = randomness.normal(&images.size()).expect("noise");
            let noise = &noise / noise.norm() * (0.3 * f64::from(i));
            let direction = &gradient / gradient.norm() + noise;
            let direction = &direction / direction.norm();
            let step = 0.05;
            let value = |ambiguity: &mut PluginAmbiguity, factor: f64| {
                ambiguity.loss(&(&images + &direction * factor)).expect("a loss").value
            };
            let found = (value(&mut ambiguity, step) - value(&mut ambiguity, -step)) / (2.0 * step);
            let wanted = (&gradient * &direction).sum(Kind::Double).double_value(&[]);
            squared_error += (found - wanted).powi(2);
            squared += found.powi(2);
        }
        let error = (squared_error / squared).sqrt();
        assert!(squared > 0.0 && error < 0.01, "{plugin}: relative error {error:.2e}");
    }
}

#[test]
fn k_means_has_the_gradient_of_the_same_head_in_libtorch() {
    let bytes = std::fs::read(shipped("kmeans_image.wasm")).expect("it ships");
    let plugin = Artifact::parse("kmeans_image.wasm".as_ref(), bytes).expect("a plugin");
    let centers = plugin.tensor("centers").expect("it has centres");
    let shape = [centers.nrows() as i64, centers.ncols() as i64];
    let centers = Tensor::from_slice(&centers.into_raw_vec_and_offset().0).view(shape);

    let images = pictures(4).set_requires_grad(true);
    let through_plugin = ambiguity("kmeans_image.wasm").loss(&images).expect("a loss");
    through_plugin.surrogate.backward();
    let found = images.grad().copy();

    let images = pictures(4).set_requires_grad(true);
    let mut encoders = shipped_encoders();
    let embeddings = encoders.embed_tensor(SHIPPED, &((&images + 1.0) * 0.5)).expect("embeddings");
    let embeddings = &embeddings / embeddings.norm_scalaropt_dim(2.0, [1i64], true);
    let distances = (embeddings.unsqueeze(1) - centers.unsqueeze(0)).norm_scalaropt_dim(2.0, [2i64], false);
    let logits = distances.clamp_min(1e-6).reciprocal();
    let loss = -logits.log_softmax(-1, Kind::Float).mean(Kind::Float);
    loss.backward();
    let wanted = images.grad();

    let error = ((&found - &wanted).norm() / wanted.norm()).double_value(&[]);
    assert!(error <= 1e-4, "relative error {error:.2e}");
    assert!((through_plugin.value - loss.double_value(&[])).abs() < 1e-5);
}

/// Trained on it alone, a generator finds pictures that are more ambiguous to the plugin.
#[test]
fn the_loss_falls_when_it_is_trained_alone() {
    for plugin in ["kmeans_image.wasm", "clip_softmax.wasm"] {
        let mut ambiguity = ambiguity(plugin);
        let config = GeneratorConfig { size: 64, latent: 8, channels: 32, slope: 0.2 };
        let params = Params::random(3, Device::Cpu).expect("weights");
        let generator = Generator::new(&params, &config).expect("a generator");
        let leaves = generator.parameters().into_iter().map(|(name, tensor)| (name, tensor.set_requires_grad(true)));
        let adam = AdamWConfig { learning_rate: 5e-3, beta1: 0.5, beta2: 0.999, weight_decay: 0.0, epsilon: 1e-8 };
        let mut optimizer = AdamW::new(leaves.collect(), adam).expect("leaves");
        let noise = Randomness::cpu(4).expect("a generator").normal(&[8, 8]).expect("noise");
        let mut values = Vec::new();
        for _ in 0..25 {
            optimizer.zero_grad();
            let loss = ambiguity.loss(&generator.forward(&noise, true)).expect("a loss");
            loss.surrogate.backward();
            optimizer.step().expect("a step");
            values.push(loss.value);
        }
        let least = (ambiguity.n_styles() as f64).ln();
        let (first, last) = (values[0], values[24]);
        assert!(last - least < 0.5 * (first - least), "{plugin}: {first:.4} → {last:.4}, at least {least:.4}");
    }
}

#[test]
fn plugins_without_a_gradient_and_with_a_bad_one_are_named() {
    let mut table = String::new();
    let onnx = root().join("tests/reference/onnx/pixels.onnx");
    for path in [shipped("palette.wasm"), shipped("words.wasm"), onnx] {
        let plugin = load(Limits::default(), &path, &[]).expect("it loads");
        assert!(!plugin.differentiable());
        let refused = PluginAmbiguity::new(plugin, shipped_encoders()).map(drop).expect_err("no gradient").to_string();
        writeln!(table, "{refused}").expect("a string grows");
    }
    let hostile = built("hostile");
    let batch = || Batch::of_embeddings("means", Array2::from_elem((2, 3), 0.5));
    let upstream = Array2::from_elem((2, 2), 1.0);
    for fault in ["vjp-nan", "vjp-shape", "vjp-short", "vjp-loop", "none"] {
        let limits = Limits { fuel: 1_000_000, ..Limits::default() };
        let mut plugin = load(limits, &hostile, &[("fault", fault), ("encoder", "means")]).expect("it loads");
        let message = plugin.embedding_vjp(&mut batch(), &mut means(), &upstream).expect_err(fault).to_string();
        writeln!(table, "{fault}\n    {message}").expect("a string grows");
        plugin.classify(&mut batch(), &mut means()).expect("the next call is answered");
    }
    let mut plugin = load(Limits::default(), &hostile, &[]).expect("it loads");
    let message = plugin.embedding_vjp(&mut batch(), &mut means(), &upstream).expect_err("no encoder").to_string();
    writeln!(table, "no encoder\n    {message}").expect("a string grows");
    insta::assert_snapshot!(table);
}
