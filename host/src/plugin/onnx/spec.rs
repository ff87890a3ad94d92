//! From what a file says of itself and what its graph shows to what is fed to it and what comes out. What is not said is
//! taken from the graph where only one thing is possible, and asked for by name where not.

use super::super::in_one_line;
use super::graph::{Graph, Tensor};
use super::settings::{InputKind, Layout, OutputKind, Settings};

/// Samples in one call of a model that takes any number.
const AT_ONCE: usize = 64;

/// Numbers in one call's input at most: 1 GiB of float32.
const MAX_NUMBERS: usize = 1 << 28;

/// An image is not stretched to more than this on a side.
const MAX_SIDE: usize = 8192;

/// How a model is used.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The plugin's short name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One line for people.
    pub title: Option<String>,
    /// Who made it.
    pub authors: Vec<String>,
    /// SPDX expression, empty if not said.
    pub license: String,
    /// The styles, in the order of the outputs.
    pub styles: Vec<String>,
    /// What is fed to it.
    pub input: Input,
    /// The input's name in the graph.
    pub input_name: String,
    /// The output's name in the graph.
    pub output_name: String,
    /// Whether the softmax of what comes out is the distribution, or that itself.
    pub output: OutputKind,
    /// Samples in one call.
    pub batch: usize,
    /// Whether every call must have so many.
    pub fixed_batch: bool,
}

/// What a model is fed.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Images.
    Pixels(Pixels),
    /// Embeddings.
    Embedding {
        /// The encoder's name.
        encoder: String,
        /// The digest of its weights, if the model is for these alone.
        digest: Option<String>,
        /// Length of an embedding, where the graph says it.
        dim: Option<usize>,
    },
}

/// Images as numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 3 for red, green, blue; 1 for gray.
    pub channels: usize,
    /// The order of dimensions.
    pub layout: Layout,
    /// Taken off and divided by, one pair a channel, on the scale of [0, 1]; none for bytes as they are.
    pub normalize: Option<Vec<(f32, f32)>>,
}

impl Pixels {
    /// The shape of `n` images.
    pub fn shape(&self, n: usize) -> [usize; 4] {
        match self.layout {
            Layout::Nchw => [n, self.channels, self.height, self.width],
            Layout::Nhwc => [n, self.height, self.width, self.channels],
        }
    }
}

/// Puts a graph and what is said of it together; `stem` is the file's name without extension. An error is a sentence.
pub fn resolve(graph: &Graph, said: Settings, stem: &str) -> Result<Spec, String> {
    let [input] = &graph.inputs[..] else {
        return Err(format!("it has {}, a plugin has one", listed("input", &graph.inputs)));
    };
    let dims = input.shape.as_deref().ok_or_else(|| format!("its input `{}` has no shape", input.name))?;
    let image = |output: &Tensor| matches!(output.shape.as_deref(), Some([_, Some(1 | 3), h, w]) if (*h, *w) != (Some(1), Some(1)));
    if said.styles.is_none() && !graph.outputs.is_empty() && graph.outputs.iter().all(image) {
        return Err("it gives images, so it is no classifier".to_owned());
    }
    let styles = said.styles.clone().ok_or_else(|| ask_for_styles(graph))?;
    let output = pick_output(graph, &styles)?;
    let kind = match (&said.input, dims.len()) {
        (Some(kind), _) => kind.clone(),
        (None, 4) => InputKind::Pixels,
        (None, 2) => {
            return Err(format!(
                "its input `{input}` looks like embeddings: say of which encoder with {}",
                key("input", "embedding:ENCODER")
            ));
        }
        (None, _) => return Err(format!("its input `{input}` is neither images nor embeddings")),
    };
    let made = match kind {
        InputKind::Pixels => Input::Pixels(pixels(input, dims, &said)?),
        InputKind::Embedding(encoder) => embedding(input, dims, &said, encoder)?,
    };
    let numbers = match &made {
        Input::Pixels(pixels) => pixels.shape(1).iter().product(),
        Input::Embedding { dim, .. } => dim.unwrap_or(1),
    };
    let batch = dims[0].unwrap_or_else(|| (MAX_NUMBERS / numbers).clamp(1, AT_ONCE));
    if batch == 0 || batch.saturating_mul(numbers) > MAX_NUMBERS {
        return Err(format!(
            "its input `{input}` would take {batch} x {numbers} numbers at once, the limit is {MAX_NUMBERS}"
        ));
    }
    Ok(Spec {
        name: said.name.unwrap_or_else(|| stem.to_owned()),
        version: said.version.unwrap_or_else(|| graph.model_version.to_string()),
        title: said.title.map(|title| in_one_line(&title)),
        authors: said.authors.unwrap_or_default().iter().map(|author| in_one_line(author)).collect(),
        license: in_one_line(&said.license.unwrap_or_default()),
        styles,
        input: made,
        input_name: input.name.clone(),
        output_name: output.name.clone(),
        output: output_kind(graph, output, said.output)?,
        batch,
        fixed_batch: dims[0].is_some(),
    })
}

/// How a key is to be given, for a message.
fn key(name: &str, value: &str) -> String {
    format!("`ambiguity.{name}` = {value} in the file's metadata, or `{name}` in a .toml beside it")
}

fn listed(what: &str, tensors: &[Tensor]) -> String {
    let names: Vec<String> = tensors.iter().map(|tensor| format!("`{}`", tensor.name)).collect();
    match names.len() {
        0 => format!("no {what}"),
        1 => format!("the {what} {}", names[0]),
        n => format!("{n} {what}s ({})", names.join(", ")),
    }
}

/// The number of values that an output has for each sample, where the graph says it.
fn width(output: &Tensor) -> Option<usize> {
    match output.shape.as_deref() {
        Some(&[_, width]) => width,
        _ => None,
    }
}

fn ask_for_styles(graph: &Graph) -> String {
    let gives = match &graph.outputs[..] {
        [output] => width(output).map(|width| format!(", {width} of them")).unwrap_or_default(),
        _ => String::new(),
    };
    format!("it does not say its styles{gives}: name them with {}", key("styles", "a JSON list of names"))
}

/// The output with a value for each style.
fn pick_output<'a>(graph: &'a Graph, styles: &[String]) -> Result<&'a Tensor, String> {
    let n = styles.len();
    let output = match &graph.outputs[..] {
        [output] => output,
        outputs => {
            // Where several might be meant, none is taken.
            let fitting: Vec<&Tensor> = outputs.iter().filter(|output| width(output) == Some(n)).collect();
            let [output] = fitting[..] else {
                let listed = listed("output", outputs);
                return Err(format!("it has {listed}, a plugin has one, or just one of {n} values for its {n} styles"));
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

/// What the last operator makes can be told where it is one of these.
fn output_kind(graph: &Graph, output: &Tensor, said: Option<OutputKind>) -> Result<OutputKind, String> {
    match (said, graph.makers.get(&output.name).map(String::as_str)) {
        (Some(kind), _) => Ok(kind),
        (None, Some("Softmax")) => Ok(OutputKind::Probabilities),
        (None, Some("Gemm" | "LogSoftmax")) => Ok(OutputKind::Logits),
        (None, _) => Err(format!(
            "it cannot be told whether its output `{}` is logits or probabilities: say it with {}",
            output.name,
            key("output", "logits or probabilities")
        )),
    }
}

fn embedding(input: &Tensor, dims: &[Option<usize>], said: &Settings, encoder: String) -> Result<Input, String> {
    let &[_, dim] = dims else {
        return Err(format!(
            "its input `{input}` is said to be embeddings, but is not a row of numbers for each sample"
        ));
    };
    if dim == Some(0) {
        return Err(format!("its input `{input}` is embeddings of no numbers"));
    }
    if input.element != 1 {
        return Err(format!("its input `{input}` is not float32, as embeddings are"));
    }
    for (name, given) in [
        ("size", said.size.is_some()),
        ("mean", said.mean.is_some()),
        ("std", said.std.is_some()),
        ("layout", said.layout.is_some()),
        ("channels", said.channels.is_some()),
    ] {
        if given {
            return Err(format!("it says `{name}`, which is about pixels, but its input is embeddings"));
        }
    }
    Ok(Input::Embedding { encoder, digest: said.encoder_digest.clone(), dim })
}

fn pixels(input: &Tensor, dims: &[Option<usize>], said: &Settings) -> Result<Pixels, String> {
    let &[_, a, b, c] = dims else {
        return Err(format!("its input `{input}` is said to be pixels, but does not have four dimensions"));
    };
    if !matches!(input.element, 1 | 2) {
        return Err(format!("its input `{input}` is neither float32 nor uint8"));
    }
    if said.encoder_digest.is_some() {
        return Err("it says `encoder_digest`, which is about embeddings, but its input is pixels".to_owned());
    }
    let layout = layout(input, (a, c), said)?;
    let (in_graph, height, width) = match layout {
        Layout::Nchw => (a, b, c),
        Layout::Nhwc => (c, a, b),
    };
    let channels = match (in_graph, said.channels) {
        (Some(found), Some(said)) if found != said => {
            return Err(format!("its input `{input}` has {found} channels, but it says `channels` = {said}"));
        }
        (Some(channels), _) | (None, Some(channels)) => channels,
        (None, None) => {
            return Err(format!("its input `{input}` leaves the channels open: say {}", key("channels", "1 or 3")));
        }
    };
    if !matches!(channels, 1 | 3) {
        return Err(format!("its input `{input}` has {channels} channels, images have 1 or 3"));
    }
    let [height, width] = size(input, [height, width], said)?;
    Ok(Pixels { height, width, channels, layout, normalize: normalize(input, channels, said)? })
}

fn layout(input: &Tensor, (second, last): (Option<usize>, Option<usize>), said: &Settings) -> Result<Layout, String> {
    if let Some(layout) = said.layout {
        return Ok(layout);
    }
    let may_be_channels = |dim: Option<usize>| matches!(dim, Some(1 | 3));
    match (may_be_channels(second), may_be_channels(last)) {
        (true, false) => Ok(Layout::Nchw),
        (false, true) => Ok(Layout::Nhwc),
        _ => Err(format!(
            "it cannot be told which dimension of its input `{input}` is the channels: say {}",
            key("layout", "nchw or nhwc")
        )),
    }
}

fn size(input: &Tensor, in_graph: [Option<usize>; 2], said: &Settings) -> Result<[usize; 2], String> {
    let said = said.size.map(|size| size.height_width());
    let mut size = [0; 2];
    for i in 0..2 {
        size[i] = match (in_graph[i], said.map(|size| size[i])) {
            (Some(found), Some(said)) if found != said => {
                return Err(format!(
                    "its input `{input}` does not have the `size` that it says, {said} is not {found}"
                ));
            }
            (Some(side), _) | (None, Some(side)) => side,
            (None, None) => {
                return Err(format!("its input `{input}` takes any size: say {}", key("size", "[height, width]")));
            }
        };
        if !(1..=MAX_SIDE).contains(&size[i]) {
            return Err(format!("its input `{input}` has a side of {}, sides go from 1 to {MAX_SIDE}", size[i]));
        }
    }
    Ok(size)
}

/// Without `mean` and `std`, pixels go in as they are in [0, 1].
fn normalize(input: &Tensor, channels: usize, said: &Settings) -> Result<Option<Vec<(f32, f32)>>, String> {
    if input.element == 2 {
        return match (&said.mean, &said.std) {
            (None, None) => Ok(None),
            _ => Err(format!("its input `{input}` takes bytes as they are, so `mean` and `std` mean nothing to it")),
        };
    }
    let per_channel = |name: &str, given: &Option<super::settings::PerChannel>, default: f32| match given {
        None => Ok(vec![default; channels]),
        Some(values) => values.of(channels).map_err(|found| format!("its `{name}` {found}")),
    };
    let (mean, std) = (per_channel("mean", &said.mean, 0.0)?, per_channel("std", &said.std, 1.0)?);
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

    fn said(toml: &str) -> Settings {
        Settings::from_toml(toml).expect("a test's own settings")
    }

    #[test]
    fn the_graph_says_what_only_one_thing_can_be() {
        let spec = resolve(&graph(&[0, 3, 32, 48], 1, &[0, 2], "Softmax"), said("styles = ['a', 'b']"), "x");
        let spec = spec.expect("everything can be told");
        let pixels =
            Pixels { height: 32, width: 48, channels: 3, layout: Layout::Nchw, normalize: Some(vec![(0.0, 1.0); 3]) };
        assert_eq!((spec.input, spec.output), (Input::Pixels(pixels), OutputKind::Probabilities));
        assert_eq!((spec.name.as_str(), spec.batch, spec.fixed_batch), ("x", AT_ONCE, false));

        let bytes = resolve(&graph(&[4, 8, 8, 1], 2, &[4, 0], "Gemm"), said("styles = ['a', 'b']"), "x");
        let bytes = bytes.expect("everything can be told");
        let Input::Pixels(pixels) = bytes.input else { panic!("not pixels") };
        assert_eq!((pixels.layout, pixels.channels, pixels.normalize), (Layout::Nhwc, 1, None));
        assert_eq!((bytes.output, bytes.batch, bytes.fixed_batch), (OutputKind::Logits, 4, true));
    }

    #[test]
    fn what_cannot_be_told_is_asked_for_and_what_cannot_be_is_refused() {
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
            table.iter().map(|(graph, toml)| resolve(graph, said(toml), "x").expect_err(toml)).collect();
        let mut two = graph(&[0, 3, 8, 8], 1, &[0, 2], "Softmax");
        two.outputs.push(tensor("z", 1, &[0, 2]));
        messages.push(resolve(&two, said("styles = ['a', 'b']"), "x").expect_err("two outputs of one width"));
        two.inputs.push(tensor("w", 1, &[1]));
        messages.push(resolve(&two, said("styles = ['a', 'b']"), "x").expect_err("two inputs"));
        insta::assert_snapshot!(messages.join("\n"));
    }

    #[test]
    fn embeddings_of_no_numbers_are_refused() {
        let mut empty = graph(&[0, 3], 1, &[0, 2], "Softmax");
        empty.inputs[0].shape = Some(vec![None, Some(0)]);
        let message = resolve(&empty, said("styles = ['a', 'b']\ninput = 'embedding:e'"), "x").expect_err("no numbers");
        assert!(message.contains("is embeddings of no numbers"), "{message}");
    }

    #[test]
    fn of_several_outputs_the_one_that_fits_is_taken() {
        let mut two = graph(&[0, 3, 8, 8], 1, &[0, 1], "Sigmoid");
        two.outputs.push(tensor("styles", 1, &[0, 2]));
        two.makers.insert("styles".to_owned(), "Gemm".to_owned());
        let spec = resolve(&two, said("styles = ['a', 'b']"), "x").expect("one output fits");
        assert_eq!((spec.output_name.as_str(), spec.output), ("styles", OutputKind::Logits));
    }
}
