//! Export of networks to ONNX files, which any ONNX runtime loads; that of a classifier is a plugin.
//!
//! BatchNorm is folded into the convolutions, in f64, so a file contains the network in evaluation mode: its output
//! equals that of [`Discriminator::forward`] or, without training, [`Generator::forward`], up to f32 rounding. The same
//! weights are exported to the same bytes.

mod graph;
pub mod proto;

use serde_json::{Value, json};

use self::graph::{Graph, float, integer, integers};
use crate::can::{Convolution, Discriminator, Generator, SLOPE};
use crate::error::{Error, Result};

/// The metadata of a plugin's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The plugin's short name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Title in one line.
    pub title: String,
    /// Authors.
    pub authors: Vec<String>,
    /// License as an SPDX expression.
    pub license: String,
    /// The styles, in the order of the network's classes.
    pub styles: Vec<String>,
}

/// Exports the discriminator's style classifier as an ONNX plugin: `images`, f32 [n, 3, size, size] in [-1, 1], to
/// `logits`, f32 [n, styles].
///
/// The file contains the metadata of a plugin (`ambiguity.*`): images in [0, 1] are normalized to [-1, 1] with a mean
/// and a standard deviation of 0.5.
///
/// # Errors
/// If the number of styles is not that of the network, or a weight is not finite.
pub fn discriminator(network: &Discriminator, metadata: &Metadata) -> Result<Vec<u8>> {
    let config = network.config();
    if i64::try_from(metadata.styles.len()) != Ok(config.n_styles) {
        return Err(Error::Input(format!(
            "the network classifies {} styles, but {} are named",
            config.n_styles,
            metadata.styles.len()
        )));
    }
    let mut graph = Graph::new("discriminator");
    let mut x = graph.input("images", &[3, config.size, config.size]);
    for (i, block) in network.convolutions().iter().enumerate() {
        x = convolution(&mut graph, &format!("blocks.{i}.conv"), "Conv", &x, block)?;
        x = activation(&mut graph, &format!("blocks.{i}.act"), &x, SLOPE);
    }
    x = graph.node("features", "Flatten", &[&x], &[integer("axis", 1)]);
    let layers = network.style_head();
    for (i, layer) in layers.iter().enumerate() {
        let weight = graph.floats(&format!("{}.weight", layer.name), &layer.weight)?;
        let bias = layer.bias.as_ref().map(|bias| graph.floats(&format!("{}.bias", layer.name), bias)).transpose()?;
        let inputs: Vec<&str> = [&x, &weight].into_iter().chain(&bias).map(String::as_str).collect();
        let last = i + 1 == layers.len();
        let name = if last { "logits" } else { &layer.name };
        x = graph.node(name, "Gemm", &inputs, &[integer("transB", 1)]);
        if !last {
            x = activation(&mut graph, &format!("{}.act", layer.name), &x, SLOPE);
        }
    }
    graph.output(&x, &[config.n_styles]);
    graph.into_file(&metadata.title, properties(metadata, config.size))
}

/// Exports the generator as an ONNX model: `noise`, f32 [n, latent], standard normal, to `images`, f32 [n, 3, size,
/// size] in [-1, 1]. `title` is one line.
///
/// # Errors
/// If a weight is not finite, or the file would be larger than ONNX's 2 GiB.
pub fn generator(network: &Generator, title: &str) -> Result<Vec<u8>> {
    let config = network.config();
    let mut graph = Graph::new("generator");
    let noise = graph.input("noise", &[config.latent]);
    let axes = graph.integers("axes", &[2, 3]);
    let mut x = graph.node("pixel", "Unsqueeze", &[&noise, &axes], &[]);
    let convolutions = network.convolutions();
    for (i, block) in convolutions.iter().enumerate() {
        let last = i + 1 == convolutions.len();
        let name = if last { "out.conv".to_owned() } else { format!("blocks.{i}.conv") };
        x = convolution(&mut graph, &name, "ConvTranspose", &x, block)?;
        if !last {
            x = activation(&mut graph, &format!("blocks.{i}.act"), &x, config.slope);
        }
    }
    x = graph.node("images", "Tanh", &[&x], &[]);
    graph.output(&x, &[3, config.size, config.size]);
    graph.into_file(title, vec![])
}

fn convolution(graph: &mut Graph, name: &str, operator: &str, x: &str, by: &Convolution) -> Result<String> {
    let weight = graph.floats(&format!("{name}.weight"), &by.weight)?;
    let bias = by.bias.as_ref().map(|bias| graph.floats(&format!("{name}.bias"), bias)).transpose()?;
    let inputs: Vec<&str> = [x, &weight].into_iter().chain(bias.as_deref()).collect();
    let attributes = [
        integers("kernel_shape", &by.weight.size()[2..]),
        integers("pads", &[by.padding; 4]),
        integers("strides", &[by.stride; 2]),
    ];
    Ok(graph.node(name, operator, &inputs, &attributes))
}

/// max(x, slope · x).
fn activation(graph: &mut Graph, name: &str, x: &str, slope: f64) -> String {
    if slope == 0.0 {
        return graph.node(name, "Relu", &[x], &[]);
    }
    graph.node(name, "LeakyRelu", &[x], &[float("alpha", slope as f32)])
}

/// The metadata of an ONNX plugin; values are JSON.
fn properties(metadata: &Metadata, side: i64) -> Vec<(String, String)> {
    let Metadata { name, version, title, authors, license, styles } = metadata;
    let pairs: [(&str, Value); 13] = [
        ("name", json!(name)),
        ("version", json!(version)),
        ("title", json!(title)),
        ("authors", json!(authors)),
        ("license", json!(license)),
        ("styles", json!(styles)),
        ("input", json!("pixels")),
        ("size", json!([side, side])),
        ("mean", json!([0.5, 0.5, 0.5])),
        ("std", json!([0.5, 0.5, 0.5])),
        ("layout", json!("nchw")),
        ("channels", json!(3)),
        ("output", json!("logits")),
    ];
    pairs.into_iter().map(|(key, value)| (format!("ambiguity.{key}"), value.to_string())).collect()
}
