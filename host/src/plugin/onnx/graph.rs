//! What an ONNX file is, read without ONNX Runtime: inputs, outputs, operator sets and metadata. What a plugin must not
//! have is refused here, before any of it reaches a parser that trusts files: data in other files, operators that only
//! a library brings, chance.
//!
//! Field numbers are those of `onnx/onnx.proto3` (ONNX 1.23).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

use super::protobuf::{Malformed, Message};

/// Messages may nest this deep: what protocol buffers' own parsers allow.
const MAX_DEPTH: usize = 100;

/// Operator sets that ONNX Runtime itself has. An operator of any other is a library's, or a function of the file.
const DOMAINS: [&str; 3] = ["ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// Operators that draw random numbers: the same image must get the same distribution.
const RANDOM: [&str; 6] =
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"];

/// A model's file, looked into.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// What is fed to it, constants that older files list as inputs left out.
    pub inputs: Vec<Tensor>,
    /// What it gives.
    pub outputs: Vec<Tensor>,
    /// The operator that makes each output, by the output's name.
    pub makers: BTreeMap<String, String>,
    /// Versions of the operator sets.
    pub opsets: BTreeMap<String, i64>,
    /// Key and value of `metadata_props`.
    pub metadata: BTreeMap<String, String>,
    /// The model's own version, 0 where it has none.
    pub model_version: i64,
    /// Number of operators, those of branches and loops included.
    pub n_nodes: usize,
    /// Bytes of its constants.
    pub weight_bytes: usize,
}

/// An input or output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// The elements' type as ONNX counts them: 1 is float32, 2 is uint8; 0 if it is no tensor.
    pub element: i64,
    /// Its dimensions, none where a number is only known at run time; no shape at all where the rank is not known.
    pub shape: Option<Vec<Option<usize>>>,
}

impl Tensor {
    /// The elements' type by its name.
    pub fn element_name(&self) -> &'static str {
        const NAMES: [&str; 17] = [
            "no tensor",
            "float32",
            "uint8",
            "int8",
            "uint16",
            "int16",
            "int32",
            "int64",
            "string",
            "bool",
            "float16",
            "float64",
            "uint32",
            "uint64",
            "complex64",
            "complex128",
            "bfloat16",
        ];
        usize::try_from(self.element).ok().and_then(|i| NAMES.get(i).copied()).unwrap_or("of a rare type")
    }
}

impl Display for Tensor {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.element_name())?;
        let Some(shape) = &self.shape else { return Ok(()) };
        let dims: Vec<String> = shape.iter().map(|dim| dim.map_or("?".to_owned(), |dim| dim.to_string())).collect();
        write!(f, " [{}]", dims.join(", "))
    }
}

/// Why a file is not looked at any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// It is cut off or corrupt.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Another format of ONNX Runtime's.
    #[error("it is a model in ORT format, which cannot be looked into: use the .onnx file that it was made of")]
    OrtFormat,
    /// It holds no model.
    #[error("it holds no graph, so it is no ONNX model")]
    Empty,
    /// Graphs within graphs without end.
    #[error("its graphs nest more than {MAX_DEPTH} deep")]
    Depth,
    /// Some of it lies in another file.
    #[error(
        "its tensor `{tensor}` lies in another file (external data), which the digest does not pin: save the model with its data inside, in Python with `onnx.save_model(onnx.load(FILE), FILE)`"
    )]
    ExternalData {
        /// The first such tensor.
        tensor: String,
    },
    /// Code from elsewhere.
    #[error(
        "its operator {domain}.{operator} is of a custom operator library: a plugin may use {}, and functions that the file itself defines", DOMAINS.join(", ")
    )]
    CustomOperator {
        /// The operator's set.
        domain: String,
        /// The operator.
        operator: String,
    },
    /// Compiled for a device, kept in another file.
    #[error("its operator EPContext loads code that was compiled for one device: export the model itself")]
    CompiledContext,
    /// Chance.
    #[error("its operator {operator} draws random numbers: the same image must get the same distribution each time")]
    Random {
        /// The operator.
        operator: String,
    },
    /// The same key with two values.
    #[error("its metadata has `{key}` twice")]
    MetadataTwice {
        /// The key.
        key: String,
    },
}

type Result<T> = std::result::Result<T, GraphError>;

impl Graph {
    /// Reads a model's file. Every part of it is walked over, whatever its depth.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        // The identifier of a flatbuffer stands behind its first offset.
        if bytes.get(4..8) == Some(b"ORTM") {
            return Err(GraphError::OrtFormat);
        }
        let mut reader = Reader::default();
        let model = Message::new(bytes);
        // Operators may be functions that come after the graph.
        for field in model.fields() {
            if let (25, Some(function)) = numbered(field?) {
                reader.declare(function)?;
            }
        }
        let mut has_graph = false;
        for field in model.fields() {
            let (number, value) = field?;
            let message = value.message();
            match (number, message) {
                (5, _) => reader.graph.model_version = value.integer().unwrap_or(0),
                (7, Some(graph)) => {
                    has_graph = true;
                    reader.main(graph)?;
                }
                (8, Some(opset)) => reader.opset(opset)?,
                (14, Some(entry)) => reader.metadata(entry)?,
                (20, Some(training)) => {
                    for field in training.fields() {
                        if let (1 | 2, Some(graph)) = numbered(field?) {
                            reader.subgraph(graph, 1)?;
                        }
                    }
                }
                (25, Some(function)) => reader.function(function)?,
                _ => {}
            }
        }
        if !has_graph {
            return Err(GraphError::Empty);
        }
        let Reader { mut graph, constants, .. } = reader;
        graph.inputs.retain(|input| !constants.contains(&input.name));
        Ok(graph)
    }
}

fn numbered<'a>((number, value): (u64, super::protobuf::Value<'a>)) -> (u64, Option<Message<'a>>) {
    (number, value.message())
}

#[derive(Default)]
struct Reader {
    graph: Graph,
    /// Domain and name of the functions that the file defines.
    functions: BTreeSet<(String, String)>,
    constants: BTreeSet<String>,
}

impl Reader {
    fn declare(&mut self, function: Message<'_>) -> Result<()> {
        let (mut name, mut domain) = ("", "");
        for field in function.fields() {
            match numbered(field?) {
                (1, Some(text)) => name = text.text()?,
                (10, Some(text)) => domain = text.text()?,
                _ => {}
            }
        }
        self.functions.insert((domain.to_owned(), name.to_owned()));
        Ok(())
    }

    fn function(&mut self, function: Message<'_>) -> Result<()> {
        for field in function.fields() {
            match numbered(field?) {
                (7, Some(node)) => drop(self.node(node, 1)?),
                (9, Some(opset)) => self.opset(opset)?,
                (11, Some(attribute)) => self.attribute(attribute, 1)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The outermost graph, which alone has the model's inputs and outputs.
    fn main(&mut self, graph: Message<'_>) -> Result<()> {
        let mut makers = BTreeMap::new();
        for field in graph.fields() {
            match numbered(field?) {
                (1, Some(node)) => {
                    let (operator, outputs) = self.node(node, 1)?;
                    makers.extend(outputs.into_iter().map(|output| (output, operator.clone())));
                }
                (11, Some(input)) => self.graph.inputs.push(tensor_of(input)?),
                (12, Some(output)) => self.graph.outputs.push(tensor_of(output)?),
                (number, Some(part)) => self.constant(number, part)?,
                _ => {}
            }
        }
        makers.retain(|name, _| self.graph.outputs.iter().any(|output| output.name == *name));
        self.graph.makers.extend(makers);
        Ok(())
    }

    fn subgraph(&mut self, graph: Message<'_>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(GraphError::Depth);
        }
        for field in graph.fields() {
            match numbered(field?) {
                (1, Some(node)) => drop(self.node(node, depth + 1)?),
                // A branch's constants hide nothing from the model's inputs.
                (5, Some(tensor)) => drop(self.tensor(tensor)?),
                (15, Some(sparse)) => self.sparse(sparse)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn constant(&mut self, number: u64, part: Message<'_>) -> Result<()> {
        match number {
            5 => {
                let name = self.tensor(part)?;
                self.constants.insert(name);
            }
            15 => self.sparse(part)?,
            _ => {}
        }
        Ok(())
    }

    /// Checks an operator; gives its name and those of its outputs.
    fn node(&mut self, node: Message<'_>, depth: usize) -> Result<(String, Vec<String>)> {
        let (mut operator, mut domain, mut outputs) = ("", "", vec![]);
        for field in node.fields() {
            match numbered(field?) {
                (2, Some(text)) => outputs.push(text.text()?.to_owned()),
                (4, Some(text)) => operator = text.text()?,
                (5, Some(attribute)) => self.attribute(attribute, depth)?,
                (7, Some(text)) => domain = text.text()?,
                _ => {}
            }
        }
        self.graph.n_nodes += 1;
        let own = self.functions.contains(&(domain.to_owned(), operator.to_owned()));
        let operator = operator.to_owned();
        if !own && !domain.is_empty() && !DOMAINS.contains(&domain) {
            return Err(GraphError::CustomOperator { domain: domain.to_owned(), operator });
        }
        if operator == "EPContext" {
            return Err(GraphError::CompiledContext);
        }
        if RANDOM.contains(&operator.as_str()) && !own {
            return Err(GraphError::Random { operator });
        }
        Ok((operator, outputs))
    }

    fn attribute(&mut self, attribute: Message<'_>, depth: usize) -> Result<()> {
        for field in attribute.fields() {
            match numbered(field?) {
                (5 | 10, Some(tensor)) => drop(self.tensor(tensor)?),
                (6 | 11, Some(graph)) => self.subgraph(graph, depth + 1)?,
                (22 | 23, Some(sparse)) => self.sparse(sparse)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn sparse(&mut self, sparse: Message<'_>) -> Result<()> {
        for field in sparse.fields() {
            match numbered(field?) {
                (1, Some(values)) => {
                    let name = self.tensor(values)?;
                    self.constants.insert(name);
                }
                (2, Some(indices)) => drop(self.tensor(indices)?),
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks that a constant is in this file; gives its name.
    fn tensor(&mut self, tensor: Message<'_>) -> Result<String> {
        let (mut name, mut external) = ("", false);
        for field in tensor.fields() {
            let (number, value) = field?;
            match (number, value.message()) {
                (8, Some(text)) => name = text.text()?,
                (13, Some(_)) => external = true,
                (14, None) => external |= value.integer() != Some(0),
                _ => {}
            }
        }
        if external {
            return Err(GraphError::ExternalData { tensor: name.to_owned() });
        }
        self.graph.weight_bytes += tensor.bytes().len();
        Ok(name.to_owned())
    }

    fn opset(&mut self, opset: Message<'_>) -> Result<()> {
        let (mut domain, mut version) = ("", 0);
        for field in opset.fields() {
            let (number, value) = field?;
            match (number, value.message()) {
                (1, Some(text)) => domain = text.text()?,
                (2, None) => version = value.integer().unwrap_or(0),
                _ => {}
            }
        }
        let domain = if domain.is_empty() { "ai.onnx" } else { domain };
        let known = self.graph.opsets.entry(domain.to_owned()).or_insert(version);
        *known = version.max(*known);
        Ok(())
    }

    fn metadata(&mut self, entry: Message<'_>) -> Result<()> {
        let (mut key, mut value) = ("", "");
        for field in entry.fields() {
            match numbered(field?) {
                (1, Some(text)) => key = text.text()?,
                (2, Some(text)) => value = text.text()?,
                _ => {}
            }
        }
        match self.graph.metadata.insert(key.to_owned(), value.to_owned()) {
            Some(_) => Err(GraphError::MetadataTwice { key: key.to_owned() }),
            None => Ok(()),
        }
    }
}

/// The name, type and shape of an input or output.
fn tensor_of(info: Message<'_>) -> Result<Tensor> {
    let mut tensor = Tensor::default();
    for field in info.fields() {
        match numbered(field?) {
            (1, Some(name)) => tensor.name = name.text()?.to_owned(),
            (2, Some(kind)) => {
                for field in kind.fields() {
                    if let (1, Some(of_tensor)) = numbered(field?) {
                        read_type(of_tensor, &mut tensor)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(tensor)
}

fn read_type(of_tensor: Message<'_>, tensor: &mut Tensor) -> Result<()> {
    for field in of_tensor.fields() {
        let (number, value) = field?;
        match (number, value.message()) {
            (1, None) => tensor.element = value.integer().unwrap_or(0),
            (2, Some(shape)) => {
                let mut dims = tensor.shape.take().unwrap_or_default();
                for field in shape.fields() {
                    if let (1, Some(dim)) = numbered(field?) {
                        dims.push(dimension(dim)?);
                    }
                }
                tensor.shape = Some(dims);
            }
            _ => {}
        }
    }
    Ok(())
}

/// A dimension's number; a name, or nothing, is one that is only known at run time.
fn dimension(dim: Message<'_>) -> Result<Option<usize>> {
    let mut size = None;
    for field in dim.fields() {
        match field? {
            (1, value) => size = value.integer().and_then(|size| usize::try_from(size).ok()),
            (2, _) => size = None,
            _ => {}
        }
    }
    Ok(size)
}
