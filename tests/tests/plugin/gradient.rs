//! L_SA through a plugin's gradient: from images through the shipped encoder and plugins, and back.

use ambiguity_host::encoders::Encoders;
use ambiguity_host::plugin::{Artifact, Limits};
use ambiguity_host::tasks::gan::ambiguity::{PluginAmbiguity, mean_cross_entropy};
use ambiguity_models::can::{Generator, GeneratorConfig, Share};
use ambiguity_models::params::Params;
use ndarray::Array2;
use tch::{Kind, Tensor, no_grad};
use test_support::{device, relative_error};
use torch_ext::{AdamW, AdamWConfig};

use super::{load, means, two_images};
use crate::support::root;

/// The shipped plugins with a gradient for images.
const PLUGINS: [&str; 3] = ["kmeans_image", "kmeans_text", "clip_softmax"];

fn encoders() -> Encoders {
    let mut encoders = Encoders::new();
    encoders.add_clip("tiny-art", &root().join("models/weights/tiny-art/clip"), device());
    encoders
}

fn shipped(plugin: &str) -> PluginAmbiguity {
    let path = root().join(format!("plugins/{plugin}.wasm"));
    let plugin = load(Limits::default(), &path, &[]).expect("it ships");
    PluginAmbiguity::new(plugin, encoders()).expect("it has a gradient")
}

fn normal(seed: u64, shape: &[i64]) -> Tensor {
    let numbers = torch_ext::Generator::cpu(seed).and_then(|mut randomness| randomness.normal(shape));
    numbers.expect("random numbers").to_device(device())
}

/// Smooth images [n, 3, 40, 40] within (-1, 1), of another size than the encoder's, as a leaf.
fn images(seed: u64, n: i64) -> Tensor {
    let coarse = normal(seed, &[n, 3, 5, 5]);
    coarse.upsample_bicubic2d([40, 40], false, None, None).tanh().set_requires_grad(true)
}

/// The gradient of `of` with respect to the images that it was computed from.
fn gradient(of: &Tensor, images: &Tensor) -> Tensor {
    Tensor::f_run_backward(&[of], &[images], false, false).expect("there is a graph").remove(0)
}

/// The whole path compared with central differences of the value along random directions, which in f32 are accurate to
/// about a thousandth. The error is a root mean square over the directions, since the value may be nearly flat along
/// one.
#[test]
fn the_surrogates_gradient_is_that_of_the_value() {
    const STEP: f64 = 4e-3;
    for plugin in PLUGINS {
        let mut ambiguity = shipped(plugin);
        let images = images(5, 2);
        let loss = ambiguity.loss(&images).expect("good images");
        assert!((loss.value - mean_cross_entropy(&loss.distributions)).abs() < 1e-12);
        assert!(loss.value >= (ambiguity.n_styles() as f64).ln(), "{plugin}: {}", loss.value);
        let gradient = gradient(&loss.surrogate, &images);
        let mut value = |images: &Tensor| mean_cross_entropy(&ambiguity.classify(images).expect("good images"));
        let (mut off, mut whole) = (0.0, 0.0);
        for seed in 0..12 {
            // Smooth directions, since white noise nearly vanishes in the resize.
            let direction = normal(seed, &[2, 3, 5, 5]).upsample_bicubic2d([40, 40], false, None, None);
            let along = (&gradient * &direction).sum(Kind::Double).double_value(&[]);
            let step = direction * STEP;
            let (up, down) = no_grad(|| (value(&(&images + &step)), value(&(&images - &step))));
            let difference = (up - down) / (2.0 * STEP);
            off += (along - difference).powi(2);
            whole += difference.powi(2);
        }
        let error = (off / whole).sqrt();
        eprintln!("{plugin}: off by {error:.2e}, rms slope {:.2e}", (whole / 12f64).sqrt());
        assert!(error < 5e-3, "{plugin}: off by {error:.2e}");
    }
}

/// Compared with the same heads written in libtorch, from the same baked assets, on the same embeddings: within 1e-5.
#[test]
fn the_surrogates_gradient_is_that_of_the_same_head_in_libtorch() {
    for plugin in PLUGINS {
        let path = root().join(format!("plugins/{plugin}.wasm"));
        let artifact = Artifact::read(&path, &Limits::default()).expect("it ships");
        let manifest = artifact.manifest.clone().expect("it has a manifest");
        let images = images(6, 5);
        let mut encoders = encoders();
        let unit = |rows: &Tensor| rows / rows.norm_scalaropt_dim(2, [-1].as_slice(), true);
        let embeddings = encoders.embed_tensor("tiny-art", &((&images + 1.0) * 0.5)).expect("good images");
        let logits = if plugin == "clip_softmax" {
            let texts: Vec<Tensor> = manifest
                .prompts
                .iter()
                .map(|prompts| {
                    let texts = encoders.embed_texts("tiny-art", prompts).expect("good texts");
                    unit(&unit(&tensor(&texts)).mean_dim([0].as_slice(), false, Kind::Float))
                })
                .collect();
            let scale = match manifest.temperature {
                Some(temperature) => 1.0 / temperature,
                None => encoders.get("tiny-art").expect("it ships").info().logit_scale.expect("a CLIP has one"),
            };
            unit(&embeddings).matmul(&Tensor::stack(&texts, 0).tr()) * f64::from(scale)
        } else {
            let centers = tensor(&artifact.tensor("centers").expect("it has centers"));
            let rest = match artifact.tensor("disregarded") {
                Ok(directions) => {
                    let directions = tensor(&directions);
                    &embeddings - embeddings.matmul(&directions.tr()).matmul(&directions)
                }
                Err(_) => embeddings.shallow_clone(),
            };
            let points = if manifest.normalize { unit(&rest) } else { rest };
            let apart = points.unsqueeze(1) - centers.unsqueeze(0);
            let distances = apart.norm_scalaropt_dim(2, [-1].as_slice(), false).clamp_min(1e-6);
            distances.reciprocal() / f64::from(manifest.temperature.unwrap_or(1.0))
        };
        let wanted = ambiguity_models::can::loss::ambiguity(&logits);
        let loss = shipped(plugin).loss(&images).expect("good images");
        let value_error = (loss.value / wanted.double_value(&[]) - 1.0).abs();
        let weighted = loss.surrogate * 3.0;
        let error = relative_error(&gradient(&weighted, &images), &(gradient(&wanted, &images) * 3.0));
        eprintln!("{plugin}: gradient off by {error:.2e}, value by {value_error:.2e}");
        assert!(error < 1e-5, "{plugin}: off by {error:.2e}");
        assert!(value_error < 1e-6, "{plugin}: the value is off by {value_error:.2e}");
    }
}

fn tensor(rows: &Array2<f32>) -> Tensor {
    let shape = [rows.nrows() as i64, rows.ncols() as i64];
    Tensor::from_slice(&rows.iter().copied().collect::<Vec<_>>()).view(shape).to_device(device())
}

/// A generator that is trained on nothing else generates images that are ambiguous to the plugin, also from noise that
/// was not used in training.
#[test]
fn l_sa_falls_when_trained_alone() {
    for plugin in ["kmeans_image", "clip_softmax"] {
        let mut ambiguity = shipped(plugin);
        let config = GeneratorConfig { size: 32, latent: 8, channels: 32, slope: 0.2 };
        let generator = Generator::new(&Params::random(3, device()).expect("a generator"), &config).expect("it fits");
        let parameters =
            generator.parameters().into_iter().map(|(name, p)| (name, p.set_requires_grad(true))).collect();
        let adam = AdamWConfig { learning_rate: 2e-3, beta1: 0.5, beta2: 0.999, weight_decay: 0.0, epsilon: 1e-8 };
        let mut optimizer = AdamW::new(parameters, adam).expect("leaves");
        let held_out = normal(99, &[16, config.latent]);
        let value = |ambiguity: &mut PluginAmbiguity| {
            let images =
                no_grad(|| generator.forward_train(&held_out, &Share::whole(held_out.size()[0]))).expect("it runs");
            mean_cross_entropy(&ambiguity.classify(&images).expect("good images"))
        };
        let best = (ambiguity.n_styles() as f64).ln();
        let before = value(&mut ambiguity) - best;
        for step in 0..30 {
            let images =
                generator.forward_train(&normal(100 + step, &[8, config.latent]), &Share::whole(8)).expect("it runs");
            ambiguity.loss(&images).expect("good images").surrogate.backward();
            optimizer.step().expect("finite gradients");
            optimizer.zero_grad();
        }
        let after = value(&mut ambiguity) - best;
        eprintln!("{plugin}: {before:.5} above ln N before, {after:.5} after");
        assert!(after < 0.5 * before, "{plugin}: {before} above ln N before, {after} after");
    }
}

#[test]
fn plugins_that_cannot_be_trained_through_are_refused_in_one_sentence() {
    let refused = |plugin: &str| {
        let plugin = load(Limits::default(), &root().join(plugin), &[]).expect("it loads");
        PluginAmbiguity::new(plugin, encoders()).err().expect("it cannot").to_string()
    };
    let lacks = "it exports no gradient, which training through it needs; use a plugin for which `host plugin inspect` \
                 shows `gradient yes`, such as kmeans_image or clip_softmax, or export `ambiguity:plugin/gradient` or `pixel-gradient`";
    assert_eq!(refused("plugins/palette.wasm"), format!("plugin `palette`: {lacks}"));
    assert_eq!(refused("tests/reference/onnx/embedding.onnx"), format!("plugin `embedding`: {lacks}"));
    assert_eq!(
        refused("plugins/words.wasm"),
        "plugin words takes text, but a CAN generates images: choose a plugin for images"
    );
    // Both kinds of plugin return the same error themselves.
    for path in ["plugins/palette.wasm", "tests/reference/onnx/pixels.onnx"] {
        let mut plugin = load(Limits::default(), &root().join(path), &[]).expect("it loads");
        let upstream = Array2::zeros((2, plugin.description().styles().len()));
        let message =
            plugin.embedding_vjp(&mut two_images(), &mut means(), "means", &upstream).expect_err(path).to_string();
        assert!(message.ends_with(lacks), "{message}");
    }
    // A scorer, which has no styles.
    assert_eq!(
        refused("plugins/clip_score.wasm"),
        "plugin `clip_score`: it is a scorer, which has no styles; choose a classifier, such as kmeans_image, or use `host \
         plugin score`"
    );
    // A plugin with a gradient, and an encoder that has none or is missing.
    let hostile = super::built("hostile");
    let hostile = || load(Limits::default(), &hostile, &[("encoder", "means")]).expect("it loads");
    let missing = PluginAmbiguity::new(hostile(), Encoders::new()).err().expect("no encoder").to_string();
    assert!(missing.starts_with("there is no encoder `means`; name its folder"), "{missing}");
    let mut ambiguity = PluginAmbiguity::new(hostile(), means()).expect("it has a gradient");
    let message = ambiguity.loss(&images(1, 1)).expect_err("no gradient flows").to_string();
    assert_eq!(
        message,
        "this encoder is not differentiable, which training through it needs; use a CLIP folder instead"
    );
}

/// A plugin over pixels: the gradient compared with the same classifier in libtorch. The plugin sees the pixels rounded to 8
/// bits.
#[test]
fn a_gradient_flows_through_pixels() {
    let plugin = load(Limits::default(), &super::built("primary"), &[]).expect("it loads");
    let mut ambiguity = PluginAmbiguity::new(plugin, Encoders::new()).expect("it needs no encoder");
    let images = images(8, 3);
    let loss = ambiguity.loss(&images).expect("good images");
    let logits = ((&images + 1.0) * 0.5).mean_dim([2, 3].as_slice(), false, Kind::Float) * 8.0;
    let wanted = ambiguity_models::can::loss::ambiguity(&logits);
    let value_error = (loss.value / wanted.double_value(&[]) - 1.0).abs();
    let error = relative_error(&gradient(&loss.surrogate, &images), &gradient(&wanted, &images));
    eprintln!("gradient off by {error:.2e}, value by {value_error:.2e}");
    assert!(error < 1e-2 && value_error < 1e-3, "gradient off by {error:.2e}, value by {value_error:.2e}");
}

#[test]
fn images_that_are_not_finite_or_missing_are_refused() {
    let mut ambiguity = shipped("kmeans_image");
    let message = ambiguity.loss(&(images(1, 2) * f64::NAN)).expect_err("no numbers").to_string();
    assert_eq!(message, "the embedding of image 0 of a batch is not finite");
    let message = ambiguity.classify(&Tensor::zeros([0, 3, 32, 32], (Kind::Float, device()))).expect_err("none");
    assert!(message.to_string().contains("there are no images to classify"), "{message}");
}
