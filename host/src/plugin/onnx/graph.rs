//! Reads an ONNX file without ONNX Runtime: inputs, outputs, operator sets and metadata. Whatever a plugin must not
//! have is refused here, before it reaches a parser that trusts files: data in other files, operators of custom
//! libraries, random numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

use ambiguity_models::onnx::proto::{self, Entry, OperatorSet, Size, SparseTensor, ValueInfo};
use prost::bytes::{Buf, Bytes};
use prost::{DecodeError, Message};

/// The limit of steps in which a file is decoded, a few for each field. A step takes about 100 bytes of memory at most,
/// so the memory that a hostile file takes is bounded.
const MAX_STEPS: usize = 1 << 25;

/// The operator sets of ONNX Runtime itself. An operator of any other set is of a custom library, or a function of the
/// file.
const DOMAINS: [&str; 3] = ["ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// The beginnings of the names of operator sets that ONNX Runtime knows, besides the one without a name. A function in one
/// of them would not be run: the built-in operator of its name would.
const BUILT_IN: [&str; 4] = ["ai.onnx", "com.microsoft", "com.ms.", "org.pytorch.aten"];

/// The operators that draw random numbers: the same image must get the same distribution.
const RANDOM: [&str; 7] =
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Sampling"];

/// The operators that exist for training only, and drop values at random.
const DROPOUTS: [&str; 3] = ["BiasDropout", "BitmaskDropout", "BitmaskBiasDropout"];

/// The number of ONNX's type of truth values.
const BOOL: i32 = 9;

/// Maximum number of operators after each call of a function of the file is replaced by what the function contains, as
/// ONNX Runtime does.
const MAX_OPERATORS: u64 = 200_000;

/// Maximum length of a chain of functions that call each other.
const MAX_CALLS: usize = 100;

/// The contents of a model's file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// The inputs, without the constants that older files list as inputs.
    pub inputs: Vec<Tensor>,
    /// The outputs.
    pub outputs: Vec<Tensor>,
    /// The operator that computes each output, by the output's name.
    pub makers: BTreeMap<String, String>,
    /// The names of the classes in the order of their probabilities, if its classifiers of `ai.onnx.ml` have one list of them,
    /// as those of scikit-learn do.
    pub labels: Option<Vec<String>>,
    /// The versions of the operator sets.
    pub opsets: BTreeMap<String, i64>,
    /// The keys and values of `metadata_props`.
    pub metadata: BTreeMap<String, String>,
    /// The model's own version, 0 if it has none.
    pub model_version: i64,
    /// Number of operators, those of branches and loops included.
    pub n_nodes: usize,
    /// Number of bytes of its constants.
    pub weight_bytes: usize,
}

/// An input or output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// The elements' type as ONNX counts them: 1 is float32, 2 is uint8; 0 if it is no tensor.
    pub element: i32,
    /// Its dimensions, none for a size that is only known at run time; no shape at all if the rank is not known.
    pub shape: Option<Vec<Option<usize>>>,
}

impl Tensor {
    /// Returns the name of the elements' type.
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

/// Why a file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// It is cut off or corrupt.
    #[error("it cannot be decoded ({0})")]
    Malformed(String),
    /// Another format of ONNX Runtime's.
    #[error("it is a model in ORT format, which cannot be looked into: use the .onnx file that it was made of")]
    OrtFormat,
    /// It holds no model.
    #[error("it holds no graph, so it is no ONNX model")]
    Empty,
    /// It nests deeper than decoders allow.
    #[error("its graphs nest too deep")]
    Depth,
    /// Decoding it would take too much memory.
    #[error("it has too many parts: decoding it takes more than {MAX_STEPS} steps")]
    Steps,
    /// Some of its data is in another file.
    #[error(
        "its tensor `{tensor}` lies in another file (external data), which the digest does not pin: put it inside with `host plugin describe-onnx FILE -o FILE`"
    )]
    ExternalData {
        /// The first such tensor.
        tensor: String,
    },
    /// It needs code of a custom library.
    #[error(
        "its operator {domain}.{operator} is of a custom operator library: a plugin may use {}, and functions that the file itself defines", DOMAINS.join(", ")
    )]
    CustomOperator {
        /// The operator's set.
        domain: String,
        /// The operator.
        operator: String,
    },
    /// It loads code that was compiled for a device.
    #[error("its operator EPContext loads code that was compiled for one device: export the model itself")]
    CompiledContext,
    /// It draws random numbers.
    #[error("its operator {operator} draws random numbers: the same image must get the same distribution each time")]
    Random {
        /// The operator.
        operator: String,
    },
    /// It normalizes with the statistics of a batch, or drops values at random.
    #[error(
        "its operator {operator} is in training mode, so that an image's distribution depends on the others or on chance: export the model for inference, in PyTorch after `model.eval()`"
    )]
    Training {
        /// The operator.
        operator: String,
    },
    /// One of its functions has the name of a built-in operator's set.
    #[error(
        "it defines the function {function} in the built-in operator set `{domain}`, where ONNX Runtime runs its own operators: define it in a set of another name"
    )]
    BuiltInFunction {
        /// The operator set.
        domain: String,
        /// The function.
        function: String,
    },
    /// Its functions call each other too often.
    #[error("its functions call each other so often that it has more than {MAX_OPERATORS} operators")]
    TooManyCalls,
    /// Its functions call each other in a circle, or in a long chain.
    #[error("its functions call each other in a circle, or in a chain of more than {MAX_CALLS}")]
    Circle,
    /// A key of its metadata has two values.
    #[error("its metadata has `{key}` twice")]
    MetadataTwice {
        /// The key.
        key: String,
    },
}

type Result<T> = std::result::Result<T, GraphError>;

impl Graph {
    /// Reads a model's file. All graphs within it are checked, at any depth.
    pub fn parse(file: impl Into<Bytes>) -> Result<Self> {
        let file = file.into();
        // The identifier of a flatbuffer stands behind its first offset.
        if file.get(4..8) == Some(b"ORTM") {
            return Err(GraphError::OrtFormat);
        }
        let mut reader = Reader { steps: MAX_STEPS, ..Reader::default() };
        let model: proto::Model = decode(file, &mut reader.steps)?;
        reader.model(&model)?;
        Ok(reader.graph)
    }
}

/// Decodes a message of a file, which takes some of the steps that are left.
fn decode<M: Message + Default>(bytes: Bytes, steps: &mut usize) -> Result<M> {
    let message = M::decode(Counted { bytes, steps: &mut *steps });
    if *steps == 0 {
        return Err(GraphError::Steps);
    }
    message.map_err(|error| malformed(&error))
}

/// Returns the decoder's error, of whose path only the innermost field is kept.
fn malformed(error: &DecodeError) -> GraphError {
    let text = error.to_string();
    if text.ends_with("recursion limit reached") {
        return GraphError::Depth;
    }
    // The path comes first, its innermost field at the beginning, then the description, which has spaces.
    let is_field = |part: &&str| !part.contains(' ');
    let parts: Vec<&str> = text.split(": ").skip(1).collect();
    let (fields, what) = parts.split_at(parts.iter().take_while(|part| is_field(part)).count());
    let innermost = fields.first().map_or(String::new(), |field| format!("{field}: "));
    GraphError::Malformed(format!("{innermost}{}", what.join(": ")))
}

/// A file's bytes, which end once no steps are left.
struct Counted<'a> {
    bytes: Bytes,
    steps: &'a mut usize,
}

impl Buf for Counted<'_> {
    fn remaining(&self) -> usize {
        if *self.steps == 0 { 0 } else { self.bytes.remaining() }
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        *self.steps = self.steps.saturating_sub(1);
        self.bytes.advance(count);
    }

    // The default would copy them.
    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        self.bytes.copy_to_bytes(count)
    }

    // The default would panic after the last step; the decoder calls this only for bytes that are there.
    fn get_u8(&mut self) -> u8 {
        self.bytes.get_u8()
    }
}

#[derive(Default)]
struct Reader {
    graph: Graph,
    /// Domains and names of the functions that the file defines.
    functions: BTreeSet<(String, String)>,
    /// Names of the constants of the outermost graph that are false.
    falsehoods: BTreeSet<String>,
    /// Number of steps that are left.
    steps: usize,
}

impl Reader {
    fn model(&mut self, model: &proto::Model) -> Result<()> {
        let graph = model.graph.as_ref().ok_or(GraphError::Empty)?;
        for function in &model.functions {
            let (domain, function) = (function.domain.clone(), function.name.clone());
            if domain.is_empty() || BUILT_IN.iter().any(|name| domain.starts_with(name)) {
                let domain = if domain.is_empty() { "ai.onnx".to_owned() } else { domain };
                return Err(GraphError::BuiltInFunction { domain, function });
            }
        }
        Calls::new(&model.functions).check(graph)?;
        self.functions =
            model.functions.iter().map(|function| (function.domain.clone(), function.name.clone())).collect();
        self.graph.model_version = model.model_version;
        self.main(graph)?;
        self.opsets(&model.opset_import);
        for Entry { key, value } in &model.metadata_props {
            if self.graph.metadata.insert(key.clone(), value.clone()).is_some() {
                return Err(GraphError::MetadataTwice { key: key.clone() });
            }
        }
        for training in &model.training_info {
            self.subgraphs(&training.initialization)?;
            self.subgraphs(&training.algorithm)?;
        }
        for function in &model.functions {
            self.nodes(&function.node)?;
            self.opsets(&function.opset_import);
            self.attributes(&function.attribute_proto)?;
        }
        Ok(())
    }

    /// Reads the outermost graph, which alone has the model's inputs and outputs.
    fn main(&mut self, graph: &proto::Graph) -> Result<()> {
        self.falsehoods = self.falsehoods(graph)?;
        let mut lists = graph.node.iter().filter_map(labels).collect::<BTreeSet<_>>().into_iter();
        self.graph.labels = lists.next().filter(|_| lists.next().is_none());
        self.nodes(&graph.node)?;
        self.falsehoods.clear();
        let mut constants = self.tensors(&graph.initializer)?;
        constants.extend(self.sparse(&graph.sparse_initializer)?);
        self.graph.inputs = graph.input.iter().map(tensor_of).collect();
        self.graph.inputs.retain(|input| !constants.contains(&input.name));
        self.graph.outputs = graph.output.iter().map(tensor_of).collect();
        let makers = graph.node.iter().flat_map(|node| node.output.iter().map(|output| (output, &node.op_type)));
        let of_outputs = makers.filter(|(name, _)| self.graph.outputs.iter().any(|output| output.name == **name));
        self.graph.makers = of_outputs.map(|(name, operator)| (name.clone(), operator.clone())).collect();
        Ok(())
    }

    /// Checks graphs within the outermost one. Their constants are not inputs of the model.
    fn subgraphs(&mut self, graphs: &[proto::Graph]) -> Result<()> {
        for graph in graphs {
            self.nodes(&graph.node)?;
            self.tensors(&graph.initializer)?;
            self.sparse(&graph.sparse_initializer)?;
        }
        Ok(())
    }

    /// Returns the names of the outermost graph's constants that are one truth value, false.
    fn falsehoods(&mut self, graph: &proto::Graph) -> Result<BTreeSet<String>> {
        let constants = graph.node.iter().filter(|node| node.op_type == "Constant" && node.domain.is_empty());
        let of_nodes = constants.filter_map(|node| match (&node.output[..], &node.attribute[..]) {
            ([name], [attribute]) if attribute.t.len() == 1 => Some((Some(name), &attribute.t[0])),
            _ => None,
        });
        let all: Vec<_> = graph.initializer.iter().map(|tensor| (None, tensor)).chain(of_nodes).collect();
        let mut names = BTreeSet::new();
        // One truth value and its name take few bytes.
        for (name, bytes) in all.into_iter().filter(|(_, bytes)| bytes.len() < 1024) {
            let tensor: proto::Tensor = decode(bytes.clone(), &mut self.steps)?;
            if tensor.data_type == BOOL && tensor.raw_data[..] == [0] {
                names.insert(name.cloned().unwrap_or(tensor.name));
            }
        }
        Ok(names)
    }

    /// Whether an operator behaves as in training: with the statistics of the batch, or by chance.
    fn is_training(&self, node: &proto::Node) -> bool {
        match node.op_type.as_str() {
            "BatchNormalization" => {
                let mut modes = node.attribute.iter().filter(|attribute| attribute.name == "training_mode");
                // Before operator set 14, more than one output meant training.
                modes.any(|mode| mode.i.is_some_and(|mode| mode != 0) || !mode.ref_attr_name.is_empty())
                    || node.output.iter().skip(1).any(|output| !output.is_empty())
            }
            "Dropout" => node.input.get(2).is_some_and(|mode| !mode.is_empty() && !self.falsehoods.contains(mode)),
            other => DROPOUTS.contains(&other),
        }
    }

    fn nodes(&mut self, nodes: &[proto::Node]) -> Result<()> {
        for node in nodes {
            let proto::Node { op_type: operator, domain, attribute, .. } = node;
            // Graphs within the outermost one may have other constants of the same names.
            let falsehoods = std::mem::take(&mut self.falsehoods);
            self.attributes(attribute)?;
            self.falsehoods = falsehoods;
            self.graph.n_nodes += 1;
            let (domain, operator) = (domain.clone(), operator.clone());
            let own = self.functions.contains(&(domain.clone(), operator.clone()));
            if !own && !domain.is_empty() && !DOMAINS.contains(&domain.as_str()) {
                return Err(GraphError::CustomOperator { domain, operator });
            }
            if operator == "EPContext" {
                return Err(GraphError::CompiledContext);
            }
            if RANDOM.contains(&operator.as_str()) && !own {
                return Err(GraphError::Random { operator });
            }
            if self.is_training(node) && !own {
                return Err(GraphError::Training { operator });
            }
        }
        Ok(())
    }

    fn attributes(&mut self, attributes: &[proto::Attribute]) -> Result<()> {
        for attribute in attributes {
            self.tensors(&attribute.t)?;
            self.tensors(&attribute.tensors)?;
            self.subgraphs(&attribute.g)?;
            self.subgraphs(&attribute.graphs)?;
            self.sparse(&attribute.sparse_tensor)?;
            self.sparse(&attribute.sparse_tensors)?;
        }
        Ok(())
    }

    /// Checks that the data of constants is in this file, and returns their names.
    fn tensors(&mut self, tensors: &[Bytes]) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for bytes in tensors {
            let tensor: proto::Tensor = decode(bytes.clone(), &mut self.steps)?;
            if !tensor.external_data.is_empty() || tensor.data_location != 0 {
                return Err(GraphError::ExternalData { tensor: tensor.name });
            }
            self.graph.weight_bytes += bytes.len();
            names.insert(tensor.name);
        }
        Ok(names)
    }

    /// Checks sparse constants likewise; the names are those of their values.
    fn sparse(&mut self, tensors: &[SparseTensor]) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for tensor in tensors {
            names.append(&mut self.tensors(&tensor.values)?);
            self.tensors(&tensor.indices)?;
        }
        Ok(names)
    }

    fn opsets(&mut self, opsets: &[OperatorSet]) {
        for OperatorSet { domain, version } in opsets {
            let domain = domain.as_deref().filter(|domain| !domain.is_empty()).unwrap_or("ai.onnx");
            let known = self.graph.opsets.entry(domain.to_owned()).or_insert(*version);
            *known = (*version).max(*known);
        }
    }
}

/// Returns the classes of a classifier of `ai.onnx.ml`, or of the operator that makes maps of its output.
fn labels(node: &proto::Node) -> Option<Vec<String>> {
    let attribute = node.attribute.iter().find(|attribute| attribute.name.starts_with("classlabels_"))?;
    let texts = attribute.strings.iter().map(|text| String::from_utf8_lossy(text).into_owned());
    let labels: Vec<String> = texts.chain(attribute.ints.iter().map(ToString::to_string)).collect();
    (node.domain == "ai.onnx.ml" && labels.len() >= 2).then_some(labels)
}

/// The functions of a file, and the number of operators that a call of each stands for.
struct Calls<'a> {
    /// All functions of each domain and name, of which the one with most operators counts.
    functions: BTreeMap<(&'a str, &'a str), Vec<&'a proto::Function>>,
    counted: BTreeMap<(&'a str, &'a str), u64>,
}

impl<'a> Calls<'a> {
    fn new(functions: &'a [proto::Function]) -> Self {
        let mut by_name: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for function in functions {
            by_name.entry((function.domain.as_str(), function.name.as_str())).or_default().push(function);
        }
        Self { functions: by_name, counted: BTreeMap::new() }
    }

    /// Checks the number of operators of a graph after each call is replaced.
    fn check(mut self, graph: &'a proto::Graph) -> Result<()> {
        match self.count(&graph.node, MAX_CALLS)? > MAX_OPERATORS {
            true => Err(GraphError::TooManyCalls),
            false => Ok(()),
        }
    }

    /// Returns the number of operators after each call is replaced; chains of calls may have this many left.
    fn count(&mut self, nodes: &'a [proto::Node], left: usize) -> Result<u64> {
        let mut n = 0u64;
        for node in nodes {
            n = n.saturating_add(1);
            for graph in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
                n = n.saturating_add(self.count(&graph.node, left)?);
            }
            n = n.saturating_add(self.of_function((&node.domain, &node.op_type), left)?);
        }
        Ok(n)
    }

    fn of_function(&mut self, name: (&'a str, &'a str), left: usize) -> Result<u64> {
        if let Some(&n) = self.counted.get(&name) {
            return Ok(n);
        }
        let Some(functions) = self.functions.get(&name).cloned() else { return Ok(0) };
        let left = left.checked_sub(1).ok_or(GraphError::Circle)?;
        let mut most = 0;
        for function in functions {
            most = self.count(&function.node, left)?.max(most);
        }
        self.counted.insert(name, most);
        Ok(most)
    }
}

/// Returns the name, type and shape of an input or output.
fn tensor_of(info: &ValueInfo) -> Tensor {
    let tensor_type = info.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
    // A dimension that has a name or nothing is only known at run time.
    let size = |dim: &proto::Dimension| match dim.size {
        Some(Size::DimValue(size)) => usize::try_from(size).ok(),
        _ => None,
    };
    Tensor {
        name: info.name.clone(),
        element: tensor_type.map_or(0, |tensor| tensor.elem_type),
        shape: tensor_type.and_then(|tensor| Some(tensor.shape.as_ref()?.dim.iter().map(size).collect())),
    }
}

#[cfg(test)]
mod tests;
