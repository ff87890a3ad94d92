//! Derives the format of a model's input and output from its settings and its graph. A missing setting is inferred from
//! the graph where that is unambiguous; otherwise an error names the key to set.

use super::graph::{Graph, Tensor};
use super::settings::{InputKind, Layout, OutputKind, Settings};
use crate::text::in_one_line;

/// Maximum number of samples in one call of a model with a dynamic batch size.
const AT_ONCE: usize = 64;

/// Maximum number of values in one call's input: 1 GiB of float32.
const MAX_VALUES: usize = 1 << 28;

/// Maximum side in pixels of a model's input.
const MAX_SIDE: usize = 8192;

/// The resolved description of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The plugin's short name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One-line title.
    pub title: Option<String>,
    /// Its authors.
    pub authors: Vec<String>,
    /// SPDX license expression; empty if not set.
    pub license: String,
    /// The styles, in the order of the outputs.
    pub styles: Vec<String>,
    /// The format of its input.
    pub input: Input,
    /// The input's name in the graph.
    pub input_name: String,
    /// The output's name in the graph.
    pub output_name: String,
    /// Whether the output is logits or probabilities.
    pub output: OutputKind,
    /// Number of samples in one call.
    pub batch: usize,
    /// Whether every call must have exactly `batch` samples.
    pub fixed_batch: bool,
}

/// The format of a model's input.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Images.
    Pixels(Pixels),
    /// Embeddings.
    Embedding {
        /// The encoder's name.
        encoder: String,
        /// The digest of its weights, if the model requires these exact weights.
        digest: Option<String>,
        /// Length of an embedding, if the graph fixes it.
        dim: Option<usize>,
    },
}

/// The format of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// 3 for red, green, blue; 1 for gray.
    pub channels: usize,
    /// The order of dimensions.
    pub layout: Layout,
    /// Mean and standard deviation of each channel, on the scale of [0, 1]; None for a uint8 input.
    pub normalize: Option<Vec<(f32, f32)>>,
}

impl Pixels {
    /// Returns the shape of a batch of `n` images.
    pub fn shape(&self, n: usize) -> [usize; 4] {
        match self.layout {
            Layout::Nchw => [n, self.channels, self.height, self.width],
            Layout::Nhwc => [n, self.height, self.width, self.channels],
        }
    }
}

/// Combines a graph with its settings; `stem` is the file's name without extension. An error is a sentence.
pub fn resolve(graph: &Graph, settings: Settings, stem: &str) -> Result<Spec, String> {
    let [input] = &graph.inputs[..] else {
        return Err(format!("it has {}, a plugin must have one", listed("input", &graph.inputs)));
    };
    let dims = input.shape.as_deref().ok_or_else(|| format!("its input `{}` has no shape", input.name))?;
    let image = |output: &Tensor| matches!(output.shape.as_deref(), Some([_, Some(1 | 3), h, w]) if (*h, *w) != (Some(1), Some(1)));
    if settings.styles.is_none() && !graph.outputs.is_empty() && graph.outputs.iter().all(image) {
        return Err("its output is images, so it is not a classifier".to_owned());
    }
    let styles = settings.styles.clone().ok_or_else(|| missing_styles(graph))?;
    let output = pick_output(graph, &styles)?;
    let kind = match (&settings.input, dims.len()) {
        (Some(kind), _) => kind.clone(),
        (None, 4) => InputKind::Pixels,
        (None, 2) => {
            return Err(format!(
                "its input `{input}` looks like embeddings: to name their encoder, {}",
                key("input", "embedding:ENCODER")
            ));
        }
        (None, _) => return Err(format!("its input `{input}` is neither images nor embeddings")),
    };
    let format = match kind {
        InputKind::Pixels => Input::Pixels(pixels(input, dims, &settings)?),
        InputKind::Embedding(encoder) => embedding(input, dims, &settings, encoder)?,
    };
    let n_values = match &format {
        Input::Pixels(pixels) => pixels.shape(1).iter().product(),
        Input::Embedding { dim, .. } => dim.unwrap_or(1),
    };
    let batch = dims[0].unwrap_or_else(|| (MAX_VALUES / n_values).clamp(1, AT_ONCE));
    if batch == 0 || batch.saturating_mul(n_values) > MAX_VALUES {
        return Err(format!(
            "its input `{input}` would take {batch} x {n_values} values at once, the limit is {MAX_VALUES}"
        ));
    }
    Ok(Spec {
        name: settings.name.unwrap_or_else(|| stem.to_owned()),
        version: settings.version.unwrap_or_else(|| graph.model_version.to_string()),
        title: settings.title.map(|title| in_one_line(&title)),
        authors: settings.authors.unwrap_or_default().iter().map(|author| in_one_line(author)).collect(),
        license: in_one_line(&settings.license.unwrap_or_default()),
        styles,
        input: format,
        input_name: input.name.clone(),
        output_name: output.name.clone(),
        output: output_kind(graph, output, settings.output)?,
        batch,
        fixed_batch: dims[0].is_some(),
    })
}

/// Returns how to set a key, for a message.
fn key(name: &str, value: &str) -> String {
    format!("set `ambiguity.{name}` = {value} in the file's metadata, or `{name}` in a .toml beside it")
}

fn listed(what: &str, tensors: &[Tensor]) -> String {
    let names: Vec<String> = tensors.iter().map(|tensor| format!("`{}`", tensor.name)).collect();
    match names.len() {
        0 => format!("no {what}"),
        1 => format!("the {what} {}", names[0]),
        n => format!("{n} {what}s ({})", names.join(", ")),
    }
}

/// Returns the number of values that an output has for each sample, if the graph fixes it.
fn width(output: &Tensor) -> Option<usize> {
    match output.shape.as_deref() {
        Some(&[_, width]) => width,
        _ => None,
    }
}

fn missing_styles(graph: &Graph) -> String {
    let n_styles = match &graph.outputs[..] {
        [output] => width(output).map(|width| format!("{width} ")).unwrap_or_default(),
        _ => String::new(),
    };
    format!("the names of its {n_styles}styles are missing: {}", key("styles", "a JSON list of names"))
}

/// Returns the output with a value for each style.
fn pick_output<'a>(graph: &'a Graph, styles: &[String]) -> Result<&'a Tensor, String> {
    let n = styles.len();
    let output = match &graph.outputs[..] {
        [output] => output,
        outputs => {
            // If several outputs fit, none is taken.
            let fitting: Vec<&Tensor> = outputs.iter().filter(|output| width(output) == Some(n)).collect();
            let [output] = fitting[..] else {
                let listed = listed("output", outputs);
                return Err(format!(
                    "it has {listed}, a plugin must have one, or exactly one of {n} values for its {n} styles"
                ));
            };
            output
        }
    };
    if output.element != 1 {
        return Err(format!("its output `{output}` is not float32"));
    }
    match output.shape.as_deref() {
        None | Some([_, None]) => Ok(output),
        Some([_, Some(width)]) if *width == n => Ok(output),
        Some([_, Some(width)]) => Err(format!(
            "its output `{output}` has {width} values for a sample, but it names {n} styles: there must be one value for \
             each style"
        )),
        Some(_) => Err(format!("its output `{output}` is not a row of values for each sample")),
    }
}

/// Returns the kind that is set, otherwise the kind that the last operator implies, if it is one of these.
fn output_kind(graph: &Graph, output: &Tensor, set: Option<OutputKind>) -> Result<OutputKind, String> {
    match (set, graph.makers.get(&output.name).map(String::as_str)) {
        (Some(kind), _) => Ok(kind),
        (None, Some("Softmax")) => Ok(OutputKind::Probabilities),
        (None, Some("Gemm" | "LogSoftmax")) => Ok(OutputKind::Logits),
        (None, _) => Err(format!(
            "its output `{}` may be logits or probabilities: {}",
            output.name,
            key("output", "logits or probabilities")
        )),
    }
}

fn embedding(input: &Tensor, dims: &[Option<usize>], settings: &Settings, encoder: String) -> Result<Input, String> {
    let &[_, dim] = dims else {
        return Err(format!("its input `{input}` is set to embeddings, but is not a row of numbers for each sample"));
    };
    if dim == Some(0) {
        return Err(format!("its input `{input}` is embeddings of 0 dimensions"));
    }
    if input.element != 1 {
        return Err(format!("its input `{input}` is not float32, as embeddings are"));
    }
    for (name, given) in [
        ("size", settings.size.is_some()),
        ("mean", settings.mean.is_some()),
        ("std", settings.std.is_some()),
        ("layout", settings.layout.is_some()),
        ("channels", settings.channels.is_some()),
    ] {
        if given {
            return Err(format!("it sets `{name}`, which applies to pixels, but its input is embeddings"));
        }
    }
    Ok(Input::Embedding { encoder, digest: settings.encoder_digest.clone(), dim })
}

fn pixels(input: &Tensor, dims: &[Option<usize>], settings: &Settings) -> Result<Pixels, String> {
    let &[_, a, b, c] = dims else {
        return Err(format!("its input `{input}` is set to pixels, but does not have four dimensions"));
    };
    if !matches!(input.element, 1 | 2) {
        return Err(format!("its input `{input}` is neither float32 nor uint8"));
    }
    if settings.encoder_digest.is_some() {
        return Err("it sets `encoder_digest`, which applies to embeddings, but its input is pixels".to_owned());
    }
    let layout = layout(input, (a, c), settings)?;
    let (in_graph, height, width) = match layout {
        Layout::Nchw => (a, b, c),
        Layout::Nhwc => (c, a, b),
    };
    let channels = match (in_graph, settings.channels) {
        (Some(found), Some(set)) if found != set => {
            return Err(format!("its input `{input}` has {found} channels, but it sets `channels` = {set}"));
        }
        (Some(channels), _) | (None, Some(channels)) => channels,
        (None, None) => {
            return Err(format!("its input `{input}` has a dynamic number of channels: {}", key("channels", "1 or 3")));
        }
    };
    if !matches!(channels, 1 | 3) {
        return Err(format!("its input `{input}` has {channels} channels, it must have 1 or 3"));
    }
    let [height, width] = size(input, [height, width], settings)?;
    Ok(Pixels { height, width, channels, layout, normalize: normalize(input, channels, settings)? })
}

fn layout(
    input: &Tensor,
    (second, last): (Option<usize>, Option<usize>),
    settings: &Settings,
) -> Result<Layout, String> {
    if let Some(layout) = settings.layout {
        return Ok(layout);
    }
    let may_be_channels = |dim: Option<usize>| matches!(dim, Some(1 | 3));
    match (may_be_channels(second), may_be_channels(last)) {
        (true, false) => Ok(Layout::Nchw),
        (false, true) => Ok(Layout::Nhwc),
        _ => {
            Err(format!("the channel dimension of its input `{input}` is ambiguous: {}", key("layout", "nchw or nhwc")))
        }
    }
}

fn size(input: &Tensor, in_graph: [Option<usize>; 2], settings: &Settings) -> Result<[usize; 2], String> {
    let set = settings.size.map(|size| size.height_width());
    let mut size = [0; 2];
    for i in 0..2 {
        size[i] = match (in_graph[i], set.map(|size| size[i])) {
            (Some(found), Some(set)) if found != set => {
                return Err(format!("its input `{input}` does not have the `size` that it sets, {set} is not {found}"));
            }
            (Some(side), _) | (None, Some(side)) => side,
            (None, None) => {
                return Err(format!("its input `{input}` has a dynamic size: {}", key("size", "[height, width]")));
            }
        };
        if !(1..=MAX_SIDE).contains(&size[i]) {
            return Err(format!("its input `{input}` has a side of {}, it must be from 1 to {MAX_SIDE}", size[i]));
        }
    }
    Ok(size)
}

/// Returns mean and standard deviation of each channel. Without `mean` and `std` they are 0 and 1: pixels in [0, 1].
fn normalize(input: &Tensor, channels: usize, settings: &Settings) -> Result<Option<Vec<(f32, f32)>>, String> {
    if input.element == 2 {
        return match (&settings.mean, &settings.std) {
            (None, None) => Ok(None),
            _ => Err(format!("its input `{input}` takes bytes without normalization: remove `mean` and `std`")),
        };
    }
    let per_channel = |name: &str, given: &Option<super::settings::PerChannel>, default: f32| match given {
        None => Ok(vec![default; channels]),
        Some(values) => values.of(channels).map_err(|found| format!("its `{name}` {found}")),
    };
    let (mean, std) = (per_channel("mean", &settings.mean, 0.0)?, per_channel("std", &settings.std, 1.0)?);
    if mean.iter().any(|mean| !mean.is_finite()) || std.iter().any(|std| !(std.is_finite() && *std > 0.0)) {
        return Err("its `mean` must be finite and its `std` above 0".to_owned());
    }
    Ok(Some(mean.into_iter().zip(std).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, element: i32, shape: &[usize]) -> Tensor {
        // 0 stands for a dimension that is only known at run time.
        let shape = shape.iter().map(|&dim| (dim > 0).then_some(dim)).collect();
        Tensor { name: name.to_owned(), element, shape: Some(shape) }
    }

    fn graph(input: &[usize], element: i32, output: &[usize], maker: &str) -> Graph {
        Graph {
            inputs: vec![tensor("x", element, input)],
            outputs: vec![tensor("y", 1, output)],
            makers: [("y".to_owned(), maker.to_owned())].into(),
            ..Graph::default()
        }
    }

    fn settings(toml: &str) -> Settings {
        Settings::from_toml(toml).expect("a test's own settings")
    }

    #[test]
    fn what_is_unambiguous_is_inferred_from_the_graph() {
        let spec = resolve(&graph(&[0, 3, 32, 48], 1, &[0, 2], "Softmax"), settings("styles = ['a', 'b']"), "x");
        let spec = spec.expect("everything can be inferred");
        let pixels =
            Pixels { height: 32, width: 48, channels: 3, layout: Layout::Nchw, normalize: Some(vec![(0.0, 1.0); 3]) };
        assert_eq!((spec.input, spec.output), (Input::Pixels(pixels), OutputKind::Probabilities));
        assert_eq!((spec.name.as_str(), spec.batch, spec.fixed_batch), ("x", AT_ONCE, false));

        let bytes = resolve(&graph(&[4, 8, 8, 1], 2, &[4, 0], "Gemm"), settings("styles = ['a', 'b']"), "x");
        let bytes = bytes.expect("everything can be inferred");
        let Input::Pixels(pixels) = bytes.input else { panic!("not pixels") };
        assert_eq!((pixels.layout, pixels.channels, pixels.normalize), (Layout::Nhwc, 1, None));
        assert_eq!((bytes.output, bytes.batch, bytes.fixed_batch), (OutputKind::Logits, 4, true));
    }

    #[test]
    fn what_is_missing_is_asked_for_and_what_is_invalid_is_refused() {
        let table = [
            (graph(&[0, 3, 8, 8], 1, &[0, 5], "Softmax"), ""),
            (graph(&[0, 768], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']"),
            (graph(&[0, 768, 2], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']"),
            (graph(&[0, 3, 0, 0], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']"),
            (graph(&[0, 0, 8, 8], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']\nlayout = 'nchw'"),
            (graph(&[0, 3, 8, 3], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']"),
            (graph(&[0, 3, 8, 8], 1, &[0, 2], "Add"), "styles = ['a', 'b']"),
            (graph(&[0, 3, 8, 8], 1, &[0, 5], "Softmax"), "styles = ['a', 'b']"),
            (graph(&[0, 3, 8, 8], 1, &[0, 2, 2], "Softmax"), "styles = ['a', 'b']"),
            (graph(&[0, 3, 8, 8], 10, &[0, 2], "Softmax"), "styles = ['a', 'b']"),
            (graph(&[0, 3, 8, 8], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']\nsize = 16"),
            (graph(&[0, 4, 8, 8], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']\nlayout = 'nchw'"),
            (graph(&[0, 3, 8, 8], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']\nstd = [1, 0, 1]"),
            (graph(&[0, 3, 8, 8], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']\nmean = [1, 0]"),
            (graph(&[0, 3, 8, 8], 2, &[0, 2], "Softmax"), "styles = ['a', 'b']\nmean = 0.5"),
            (graph(&[0, 3, 9000, 8], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']"),
            (graph(&[9999, 3, 800, 800], 1, &[9999, 2], "Softmax"), "styles = ['a', 'b']"),
            (graph(&[0, 3], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']\ninput = 'embedding:e'\nsize = 3"),
            (graph(&[0, 3], 1, &[0, 2], "Softmax"), "styles = ['a', 'b']\ninput = 'pixels'"),
        ];
        let mut messages: Vec<String> =
            table.iter().map(|(graph, toml)| resolve(graph, settings(toml), "x").expect_err(toml)).collect();
        let mut two = graph(&[0, 3, 8, 8], 1, &[0, 2], "Softmax");
        two.outputs.push(tensor("z", 1, &[0, 2]));
        messages.push(resolve(&two, settings("styles = ['a', 'b']"), "x").expect_err("two outputs of one width"));
        two.inputs.push(tensor("w", 1, &[1]));
        messages.push(resolve(&two, settings("styles = ['a', 'b']"), "x").expect_err("two inputs"));
        insta::assert_snapshot!(messages.join("\n"));
    }

    #[test]
    fn embeddings_of_0_dimensions_are_refused() {
        let mut empty = graph(&[0, 3], 1, &[0, 2], "Softmax");
        empty.inputs[0].shape = Some(vec![None, Some(0)]);
        let settings = settings("styles = ['a', 'b']\ninput = 'embedding:e'");
        let message = resolve(&empty, settings, "x").expect_err("0 dimensions");
        assert!(message.contains("is embeddings of 0 dimensions"), "{message}");
    }

    #[test]
    fn of_several_outputs_the_one_that_fits_is_taken() {
        let mut two = graph(&[0, 3, 8, 8], 1, &[0, 1], "Sigmoid");
        two.outputs.push(tensor("styles", 1, &[0, 2]));
        two.makers.insert("styles".to_owned(), "Gemm".to_owned());
        let spec = resolve(&two, settings("styles = ['a', 'b']"), "x").expect("one output fits");
        assert_eq!((spec.output_name.as_str(), spec.output), ("styles", OutputKind::Logits));
    }
}
