//! Networks that `models` writes as ONNX, read by this module and run by ONNX Runtime, compared with libtorch. All of it on
//! the CPU, the one place where ONNX Runtime always exists.

use std::sync::Arc;

use ambiguity_models::can::{Discriminator, DiscriminatorConfig, Generator, GeneratorConfig};
use ambiguity_models::onnx::{self as writer, Metadata};
use ambiguity_models::params::Params;
use tch::{Kind, Tensor};

use super::runtime::Model;
use super::*;
use crate::plugin::Sample;

/// Maximum absolute difference of logits, and of images in [-1, 1].
const TOLERANCE: f64 = 1e-4;

const STYLES: [&str; 4] = ["cubism", "na-ve-art-primitivism", "\"pop\" art", "ukiyo-e"];

/// Returns random weights for a network: activations neither vanish nor grow, and BatchNorm's running statistics are
/// those of a network that has been trained.
fn weights(seed: u64, ask: impl FnOnce(&Params)) -> Params {
    let fresh = Params::random(seed, Device::Cpu).expect("a generator");
    ask(&fresh);
    let mut randomness = torch_ext::Generator::cpu(seed + 1).expect("a generator");
    let mut change = |(name, tensor): (String, Tensor)| {
        let size = tensor.size();
        let tensor = match name.rsplit('.').next() {
            Some("running_mean") => randomness.normal(&size).expect("drawn") * 0.5,
            Some("running_var") => randomness.uniform(&size).expect("drawn") * 2.0 + 0.1,
            Some("bias") => randomness.normal(&size).expect("drawn") * 0.2,
            _ if name.ends_with("conv.weight") => tensor * 8.0,
            _ if name.starts_with("style_head") => tensor * 3.0,
            _ => tensor,
        };
        (name, tensor)
    };
    let tensors = fresh.finish().expect("nothing is left over").into_iter().map(&mut change).collect();
    Params::from_tensors(tensors, "random weights", Device::Cpu, Kind::Float)
}

fn discriminator(size: i64) -> Discriminator {
    let config = DiscriminatorConfig { size, channels: 4, max_channels: 12, head: [16, 9], dropout: 0.3, n_styles: 4 };
    let build = |p: &Params| Discriminator::new(p, &config).expect("its own weights");
    build(&weights(size as u64, |p| drop(build(p))))
}

fn generator(size: i64, slope: f64) -> Generator {
    let config = GeneratorConfig { size, latent: 7, channels: 32, slope };
    let build = |p: &Params| Generator::new(p, &config).expect("its own weights");
    build(&weights(size as u64, |p| drop(build(p))))
}

fn metadata() -> Metadata {
    Metadata {
        name: "dcgan".to_owned(),
        version: "1.2.0".to_owned(),
        title: "Four styles, classified by a discriminator".to_owned(),
        authors: vec!["A. Author".to_owned()],
        license: "Apache-2.0".to_owned(),
        styles: STYLES.map(str::to_owned).to_vec(),
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(&tensor.to_kind(Kind::Float).flatten(0, -1)).expect("floats")
}

/// Runs the model on `input` and compares its output with `wanted`.
fn check(model: &mut Model, input: &Tensor, wanted: &Tensor) {
    let shape: Vec<usize> = input.size().iter().map(|&dim| dim as usize).collect();
    let numbers_in = Numbers::Floats(numbers(input));
    let (shape, found, _) = model.run(numbers_in, &shape, Duration::from_secs(60), 60_000).expect("it runs");
    assert_eq!(shape, wanted.size());
    let wanted = numbers(wanted);
    let error = found.iter().zip(&wanted).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    let spread = wanted.iter().copied().fold(f32::MIN, f32::max) - wanted.iter().copied().fold(f32::MAX, f32::min);
    assert!(spread > 0.1, "all outputs are the same: {spread}");
    assert!(error <= TOLERANCE, "off by {error:.2e}");
}

#[test]
fn a_written_discriminator_returns_libtorchs_logits() {
    let mut randomness = torch_ext::Generator::cpu(3).expect("a generator");
    for size in [32, 64] {
        let network = discriminator(size);
        let bytes = writer::discriminator(&network, &metadata()).expect("written");
        let mut model = Model::load(&bytes, "images", "logits", Device::Cpu).expect("it loads");
        for n in [1, 5] {
            let images = randomness.uniform(&[n, 3, size, size]).expect("drawn") * 2.0 - 1.0;
            check(&mut model, &images, &network.forward(&images).expect("it runs").styles);
        }
    }
}

#[test]
fn a_written_generator_returns_libtorchs_images() {
    let mut randomness = torch_ext::Generator::cpu(4).expect("a generator");
    for (size, slope) in [(32, 0.2), (64, 0.0)] {
        let network = generator(size, slope);
        let bytes = writer::generator(&network, "Images of nothing").expect("written");
        let mut model = Model::load(&bytes, "noise", "images", Device::Cpu).expect("it loads");
        for n in [1, 5] {
            let noise = randomness.normal(&[n, 7]).expect("drawn");
            check(&mut model, &noise, &network.forward(&noise).expect("it runs"));
        }
    }
}

#[test]
fn what_is_written_is_read_back() {
    let network = discriminator(32);
    let graph = Graph::parse(writer::discriminator(&network, &metadata()).expect("written")).expect("an ONNX model");
    let listed = |tensors: &[graph::Tensor]| tensors.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(listed(&graph.inputs), ["images float32 [?, 3, 32, 32]"]);
    assert_eq!(listed(&graph.outputs), ["logits float32 [?, 4]"]);
    assert_eq!(graph.makers, BTreeMap::from([("logits".to_owned(), "Gemm".to_owned())]));
    assert_eq!((graph.opsets.get("ai.onnx"), graph.model_version), (Some(&17), 1));
    // Three convolutions, three layers, an activation after all but the last, and what flattens.
    assert_eq!(graph.n_nodes, 3 + 3 + 5 + 1);
    let values = 4 * (3 * 16 + 1) + 12 * (4 * 16 + 1) + 12 * (12 * 16 + 1) + 16 * (192 + 1) + 9 * 17 + 4 * 10;
    assert!((4 * values..4 * values + 600).contains(&graph.weight_bytes), "{} bytes", graph.weight_bytes);

    let settings = Settings::from_metadata(&graph.metadata).expect("valid settings");
    let spec = spec::resolve(&graph, settings, "file").expect("nothing is missing");
    let normalize = Some(vec![(0.5, 0.5); 3]);
    let pixels = Pixels { height: 32, width: 32, channels: 3, layout: Layout::Nchw, normalize };
    assert_eq!((&spec.input, spec.output, spec.fixed_batch), (&Input::Pixels(pixels), OutputKind::Logits, false));
    let found = Metadata {
        name: spec.name,
        version: spec.version,
        title: spec.title.expect("it is set"),
        authors: spec.authors,
        license: spec.license,
        styles: spec.styles,
    };
    assert_eq!(found, metadata());

    let graph = Graph::parse(writer::generator(&generator(64, 0.2), "Images").expect("written"));
    let graph = graph.expect("an ONNX model");
    assert_eq!(listed(&graph.inputs), ["noise float32 [?, 7]"]);
    assert_eq!(listed(&graph.outputs), ["images float32 [?, 3, 64, 64]"]);
    assert!(graph.metadata.is_empty(), "a generator is not a plugin");
}

#[test]
fn as_a_plugin_it_takes_images_of_any_size() {
    let network = discriminator(32);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("dcgan.onnx");
    std::fs::write(&file, writer::discriminator(&network, &metadata()).expect("written")).expect("writable");
    let found = Found { name: "dcgan".to_owned(), path: file, published: None };
    let mut plugin =
        OnnxPlugin::load(&found, &BTreeMap::new(), None, &Limits::default(), Device::Cpu, None).expect("loads");
    assert_eq!(plugin.description().styles(), STYLES);

    let image = |side: u32, seed: u32| {
        let byte = |x: u32, y: u32| ((x * 7 + y * 13 + seed * 31) * (x + seed) % 256) as u8;
        RgbImage::from_fn(side, side, |x, y| image::Rgb([byte(x, y), byte(y, x + 1), byte(x + y, seed)]))
    };
    let mut classified = |images: &[RgbImage]| {
        let samples = images.iter().map(|image| Sample { image: Some(Arc::new(image.clone())), ..Sample::default() });
        let mut batch = Batch::new(samples.collect());
        plugin.classify(&mut batch, &mut Encoders::new()).expect("classified").rows
    };
    let own: Vec<RgbImage> = (0..5).map(|seed| image(32, seed)).collect();
    let rows = classified(&own);
    let bytes: Vec<u8> = own.iter().flat_map(|image| image.as_raw().clone()).collect();
    let images = Tensor::from_slice(&bytes).view([5, 32, 32, 3]).permute([0, 3, 1, 2]);
    let logits = network.forward(&(images.to_kind(Kind::Float) / 127.5 - 1.0)).expect("it runs").styles;
    let wanted = Vec::<f64>::try_from(logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double).flatten(0, -1))
        .expect("numbers");
    let error = rows.concat().iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(error <= TOLERANCE, "off by {error:.2e}");
    assert!(rows[0].iter().zip(&rows[1]).any(|(a, b)| (a - b).abs() > 0.01), "{rows:?}");

    let larger = image(48, 1);
    let by_hand = RgbImage::from_raw(32, 32, resize_bicubic(larger.as_raw(), 48, 48, 32, 32)).expect("its size");
    assert_eq!(classified(&[larger])[0], classified(&[by_hand])[0]);
}
