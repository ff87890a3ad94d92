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

/// The types of numbers that inputs and outputs may have: float32, float16, float64.
const FLOATS: [i32; 3] = [1, 10, 11];

/// Why a property of a model is not known.
enum Problem {
    /// A key is not set and cannot be inferred: how to set it.
    Missing(String),
    /// Something is wrong.
    Invalid(String),
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self::Invalid(text)
    }
}

/// What is missing, in the order in which it was asked for.
#[derive(Default)]
struct Missing(Vec<String>);

impl Missing {
    /// Returns a property, or notes that it is missing.
    fn note<T>(&mut self, found: Result<T, Problem>) -> Result<Option<T>, String> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(Problem::Missing(text)) => {
                self.0.push(text);
                Ok(None)
            }
            Err(Problem::Invalid(text)) => Err(text),
        }
    }

    /// Returns everything that is missing as one sentence.
    fn sentence(self) -> String {
        self.0.join("; and ")
    }
}

/// Combines a graph with its settings; `stem` is the file's name without extension. An error is a sentence, which asks for
/// everything that is missing at once.
pub fn resolve(graph: &Graph, settings: Settings, stem: &str) -> Result<Spec, String> {
    let [input] = &graph.inputs[..] else {
        return Err(format!("it has {}, a plugin must have one", listed("input", &graph.inputs)));
    };
    let dims = input.shape.as_deref().ok_or_else(|| format!("its input `{}` has no shape", input.name))?;
    let image = |output: &Tensor| matches!(output.shape.as_deref(), Some([_, Some(1 | 3), h, w]) if (*h, *w) != (Some(1), Some(1)));
    if settings.styles.is_none() && !graph.outputs.is_empty() && graph.outputs.iter().all(image) {
        return Err("its output is images, so it is not a classifier".to_owned());
    }
    if graph.outputs.iter().any(|output| output.element == 0) && graph.labels.is_some() {
        return Err("its output is a list of maps, as scikit-learn's models have by default: export it with \
                    `options={\"zipmap\": False}` of skl2onnx"
            .to_owned());
    }
    let mut missing = Missing::default();
    let styles = settings.styles.clone().or_else(|| graph.labels.clone());
    let styles = missing.note(styles.ok_or_else(|| Problem::Missing(missing_styles(graph))))?;
    let output = match (&styles, &graph.outputs[..]) {
        (Some(styles), _) => Some(pick_output(graph, styles)?),
        (None, [output]) => Some(output),
        (None, _) => None,
    };
    let output = match output {
        Some(output) => Some((output, missing.note(output_kind(graph, output, settings.output))?)),
        None => None,
    };
    let kind = match (&settings.input, dims.len()) {
        (Some(kind), _) => Ok(kind.clone()),
        (None, 4) => Ok(InputKind::Pixels),
        (None, 2) => Err(Problem::Missing(format!(
            "its input `{input}` looks like embeddings: to name their encoder, {}",
            key("input", "embedding:ENCODER")
        ))),
        (None, _) => return Err(format!("its input `{input}` is neither images nor embeddings")),
    };
    let format = match missing.note(kind)? {
        Some(InputKind::Pixels) => pixels(input, dims, &settings, &mut missing)?.map(Input::Pixels),
        Some(InputKind::Embedding(encoder)) => Some(embedding(input, dims, &settings, encoder)?),
        None => None,
    };
    let (Some(styles), Some((output, Some(output_kind))), Some(format)) = (styles, output, format) else {
        return Err(missing.sentence());
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
        output: output_kind,
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
            let mut fitting: Vec<&Tensor> = outputs.iter().filter(|output| width(output) == Some(n)).collect();
            if fitting.is_empty() {
                // scikit-learn's models have labels and probabilities, whose number may be left open.
                let is_open = |output: &&Tensor| {
                    FLOATS.contains(&output.element) && matches!(output.shape.as_deref(), Some([_, None]))
                };
                fitting = outputs.iter().filter(is_open).collect();
            }
            let [output] = fitting[..] else {
                let listed = listed("output", outputs);
                return Err(format!(
                    "it has {listed}, a plugin must have one, or exactly one of {n} values for its {n} styles"
                ));
            };
            output
        }
    };
    if !FLOATS.contains(&output.element) {
        return Err(format!("its output `{output}` is not float32, float16 or float64"));
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
fn output_kind(graph: &Graph, output: &Tensor, set: Option<OutputKind>) -> Result<OutputKind, Problem> {
    match (set, graph.makers.get(&output.name).map(String::as_str)) {
        (Some(kind), _) => Ok(kind),
        (None, Some("Softmax")) => Ok(OutputKind::Probabilities),
        (None, Some("Gemm" | "LogSoftmax")) => Ok(OutputKind::Logits),
        // The name that skl2onnx gives to them.
        (None, _) if graph.labels.is_some() && output.name == "probabilities" => Ok(OutputKind::Probabilities),
        (None, _) => Err(Problem::Missing(format!(
            "its output `{}` may be logits or probabilities: {}",
            output.name,
            key("output", "logits or probabilities")
        ))),
    }
}

fn embedding(input: &Tensor, dims: &[Option<usize>], settings: &Settings, encoder: String) -> Result<Input, String> {
    let &[_, dim] = dims else {
        return Err(format!("its input `{input}` is set to embeddings, but is not a row of numbers for each sample"));
    };
    if dim == Some(0) {
        return Err(format!("its input `{input}` is embeddings of 0 dimensions"));
    }
    if !FLOATS.contains(&input.element) {
        return Err(format!("its input `{input}` is not float32, float16 or float64, as embeddings are"));
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

fn pixels(
    input: &Tensor,
    dims: &[Option<usize>],
    settings: &Settings,
    missing: &mut Missing,
) -> Result<Option<Pixels>, String> {
    let &[_, a, b, c] = dims else {
        return Err(format!("its input `{input}` is set to pixels, but does not have four dimensions"));
    };
    if input.element != 2 && !FLOATS.contains(&input.element) {
        return Err(format!("its input `{input}` is neither float32, float16, float64 nor uint8"));
    }
    if settings.encoder_digest.is_some() {
        return Err("it sets `encoder_digest`, which applies to embeddings, but its input is pixels".to_owned());
    }
    let Some(layout) = missing.note(layout(input, (a, c), settings))? else { return Ok(None) };
    let (in_graph, height, width) = match layout {
        Layout::Nchw => (a, b, c),
        Layout::Nhwc => (c, a, b),
    };
    let channels = match (in_graph, settings.channels) {
        (Some(found), Some(set)) if found != set => {
            return Err(format!("its input `{input}` has {found} channels, but it sets `channels` = {set}"));
        }
        (Some(channels), _) | (None, Some(channels)) => Ok(channels),
        (None, None) => Err(Problem::Missing(format!(
            "its input `{input}` has a dynamic number of channels: {}",
            key("channels", "1 or 3")
        ))),
    };
    let channels = missing.note(channels)?;
    if let Some(channels) = channels.filter(|channels| !matches!(channels, 1 | 3)) {
        return Err(format!("its input `{input}` has {channels} channels, it must have 1 or 3"));
    }
    let size = missing.note(size(input, [height, width], settings))?;
    let (Some(channels), Some([height, width])) = (channels, size) else { return Ok(None) };
    Ok(Some(Pixels { height, width, channels, layout, normalize: normalize(input, channels, settings)? }))
}

fn layout(
    input: &Tensor,
    (second, last): (Option<usize>, Option<usize>),
    settings: &Settings,
) -> Result<Layout, Problem> {
    if let Some(layout) = settings.layout {
        return Ok(layout);
    }
    let may_be_channels = |dim: Option<usize>| matches!(dim, Some(1 | 3));
    match (may_be_channels(second), may_be_channels(last)) {
        (true, false) => Ok(Layout::Nchw),
        (false, true) => Ok(Layout::Nhwc),
        _ => Err(Problem::Missing(format!(
            "the channel dimension of its input `{input}` is ambiguous: {}",
            key("layout", "nchw or nhwc")
        ))),
    }
}

fn size(input: &Tensor, in_graph: [Option<usize>; 2], settings: &Settings) -> Result<[usize; 2], Problem> {
    let set = settings.size.map(|size| size.height_width());
    let mut size = [0; 2];
    for i in 0..2 {
        size[i] = match (in_graph[i], set.map(|size| size[i])) {
            (Some(found), Some(set)) if found != set => {
                return Err(
                    format!("its input `{input}` does not have the `size` that it sets, {set} is not {found}").into()
                );
            }
            (Some(side), _) | (None, Some(side)) => side,
            (None, None) => {
                let how = key("size", "[height, width]");
                return Err(Problem::Missing(format!("its input `{input}` has a dynamic size: {how}")));
            }
        };
        if !(1..=MAX_SIDE).contains(&size[i]) {
            return Err(
                format!("its input `{input}` has a side of {}, it must be from 1 to {MAX_SIDE}", size[i]).into()
            );
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
            (graph(&[0, 3, 8, 8], 9, &[0, 2], "Softmax"), "styles = ['a', 'b']"),
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
    fn everything_that_is_missing_is_asked_for_at_once() {
        let message = resolve(&graph(&[0, 0, 0, 3], 1, &[0, 5], "Add"), settings(""), "x").expect_err("much");
        for key in ["styles", "output", "size"] {
            assert!(message.contains(&format!("set `ambiguity.{key}` = ")), "{message}");
        }
        assert_eq!(message.matches("; and ").count(), 2, "{message}");
        let message = resolve(&graph(&[0, 768], 1, &[0, 5], "Add"), settings(""), "x").expect_err("much");
        assert!(message.contains("`ambiguity.input` = embedding:ENCODER"), "{message}");
        assert_eq!(message.matches("; and ").count(), 2, "{message}");
    }

    #[test]
    fn the_classes_of_a_model_of_scikit_learn_are_its_styles() {
        let mut model = graph(&[0, 4], 1, &[0], "ArrayFeatureExtractor");
        model.outputs[0] = tensor("label", 8, &[0]);
        model.outputs.push(tensor("probabilities", 1, &[0, 0]));
        model.makers = [("probabilities".to_owned(), "Normalizer".to_owned())].into();
        model.labels = Some(vec!["cat".to_owned(), "dog".to_owned()]);
        let spec = resolve(&model, settings("input = 'embedding:e'"), "x").expect("nothing is missing");
        assert_eq!((spec.styles, spec.output), (vec!["cat".to_owned(), "dog".to_owned()], OutputKind::Probabilities));
        assert_eq!(spec.output_name, "probabilities");
        model.outputs[1] = Tensor { name: "output_probability".to_owned(), ..Tensor::default() };
        let message = resolve(&model, settings("input = 'embedding:e'"), "x").expect_err("a list of maps");
        assert!(message.contains("\"zipmap\": False"), "{message}");
    }

    #[test]
    fn half_and_double_precision_are_taken() {
        for element in FLOATS {
            let mut model = graph(&[0, 4], element, &[0, 2], "Gemm");
            model.outputs[0].element = element;
            resolve(&model, settings("input = 'embedding:e'\nstyles = ['a', 'b']"), "x").expect("a type of numbers");
        }
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
