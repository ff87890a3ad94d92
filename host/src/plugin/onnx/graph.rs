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
        "its tensor `{tensor}` lies in another file (external data), which the digest does not pin: save the model with its data inside, in Python with `onnx.save_model(onnx.load(FILE), FILE)`"
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
mod tests {
    use proto::{Attribute, Function, Model, Node, Training};

    use super::*;

    fn refused(bytes: Vec<u8>) -> String {
        Graph::parse(bytes).expect_err("it is refused").to_string()
    }

    fn model(node: Node) -> Model {
        Model { graph: Some(proto::Graph { node: vec![node], ..Default::default() }), ..Default::default() }
    }

    /// Returns an operator with a graph in an attribute.
    fn branch(graph: proto::Graph) -> Node {
        Node { attribute: vec![Attribute { g: vec![graph], ..Default::default() }], ..Default::default() }
    }

    #[test]
    fn what_cannot_be_decoded_is_refused_in_a_sentence() {
        for (bytes, what) in [
            (&[0x28][..], "Model.model_version: invalid varint"),
            (&[0xff; 12], "invalid varint"),
            (&[0x00, 0x00], "invalid tag value: 0"),
            (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0x00], "invalid key value: 34359738368"),
            (&[0x3a, 0x05, 0x00], "Model.graph: buffer underflow"),
            (&[0x3a, 0x02, 0x0a, 0x02, 0x12, 0x00], "Model.graph: delimited length exceeded"),
            (&[0x3f], "invalid wire type value: 7"),
            (&[0x38, 0x01], "Model.graph: invalid wire type: Varint (expected LengthDelimited)"),
            (
                &[0x3a, 0x05, 0x0a, 0x03, 0x22, 0x01, 0xff],
                "Node.op_type: invalid string value: data is not UTF-8 encoded",
            ),
            (&[0xa3, 0x06, 0xac, 0x06], "unexpected end group tag"),
        ] {
            assert_eq!(refused(bytes.to_vec()), format!("it cannot be decoded ({what})"), "{bytes:?}");
        }
        let nested =
            (0..40).fold(Node::default(), |node, _| branch(proto::Graph { node: vec![node], ..Default::default() }));
        assert_eq!(refused(model(nested).encode_to_vec()), "its graphs nest too deep");
    }

    #[test]
    fn a_file_of_more_parts_than_memory_is_spent_on_is_refused() {
        let decoded = |bytes: &[u8], mut steps| decode::<proto::Graph>(bytes.to_vec().into(), &mut steps);
        let operators = [0x0a, 0x00].repeat(100);
        assert_eq!(decoded(&operators, 201).expect("few enough").node.len(), 100);
        // The steps run out at every kind of place, a number without an end among them.
        for bytes in [&operators[..], &[0x0a, 0x02, 0x22, 0x00, 0x12, 0xff, 0xff]] {
            for steps in 0..6 {
                assert_eq!(decoded(bytes, steps), Err(GraphError::Steps), "{bytes:?} in {steps} steps");
            }
        }
        let tensor = proto::Tensor { dims: vec![1; 100], ..Default::default() };
        assert_eq!(decode::<proto::Tensor>(tensor.encode_to_vec().into(), &mut 50), Err(GraphError::Steps));
    }

    /// Where a field occurs twice, parsers merge both messages, so the location in the first one counts.
    #[test]
    fn a_tensor_in_another_file_hides_nowhere() {
        let tensor = |name: &str, data_location| {
            let tensor = proto::Tensor { name: name.to_owned(), data_location, ..Default::default() };
            Bytes::from(tensor.encode_to_vec())
        };
        let two = || vec![tensor("outside", 1), tensor("inside", 0)];
        let in_graph = || proto::Graph { initializer: two(), ..Default::default() };
        let sparse = || vec![SparseTensor { values: two(), ..Default::default() }];
        let indices = || vec![SparseTensor { indices: two(), ..Default::default() }];
        let attributes = || {
            [
                Attribute { t: two(), ..Default::default() },
                Attribute { tensors: two(), ..Default::default() },
                Attribute { g: vec![in_graph(), proto::Graph::default()], ..Default::default() },
                Attribute { graphs: vec![in_graph()], ..Default::default() },
                Attribute { sparse_tensor: sparse(), ..Default::default() },
                Attribute { sparse_tensors: indices(), ..Default::default() },
            ]
        };
        let in_node = |attribute| Node { attribute: vec![attribute], ..Default::default() };
        let mut models: Vec<Model> = attributes().map(|attribute| model(in_node(attribute))).to_vec();
        let with_functions = |function| {
            let function = Function { domain: "own".to_owned(), ..function };
            Model { functions: vec![function], ..model(Node::default()) }
        };
        for attribute in attributes() {
            models.push(with_functions(Function { node: vec![in_node(attribute.clone())], ..Default::default() }));
            models.push(with_functions(Function { attribute_proto: vec![attribute], ..Default::default() }));
        }
        let with_training = |training| Model { training_info: vec![training], ..model(Node::default()) };
        models.push(with_training(Training { initialization: vec![in_graph()], ..Default::default() }));
        models.push(with_training(Training { algorithm: vec![in_graph()], ..Default::default() }));
        models.push(model(branch(proto::Graph { sparse_initializer: sparse(), ..Default::default() })));
        models.push(Model { graph: Some(in_graph()), ..Default::default() });
        for model in models {
            // Another graph behind it is merged with it.
            let bytes = [model.encode_to_vec(), vec![0x3a, 0x00]].concat();
            assert!(refused(bytes).starts_with("its tensor `outside` lies in another file"), "{model:?}");
        }
    }

    fn function(name: &str, domain: &str, node: Vec<Node>) -> Function {
        Function { name: name.to_owned(), domain: domain.to_owned(), node, ..Default::default() }
    }

    fn call(name: &str, domain: &str) -> Node {
        Node { op_type: name.to_owned(), domain: domain.to_owned(), ..Default::default() }
    }

    /// Tags above 32 bits, whose low bits are a known field: other parsers take them for it.
    #[test]
    fn a_tag_out_of_range_is_refused() {
        let node = call("Identity", "").encode_to_vec();
        // Field 4, `op_type`, plus 2^32.
        let smuggled = [&node[..], &[0xa2, 0x80, 0x80, 0x80, 0x10, 0x0d], b"RandomUniform"].concat();
        let graph = [&[0x0a, smuggled.len() as u8][..], &smuggled].concat();
        let model = [&[0x3a, graph.len() as u8][..], &graph].concat();
        assert!(refused(model).starts_with("it cannot be decoded (Graph.node: invalid key value"));
        // Field 13, `external_data`, plus 2^32.
        let tensor = [&[0x42, 0x01, b'w'][..], &[0xea, 0x80, 0x80, 0x80, 0x10, 0x00]].concat();
        let graph = proto::Graph { initializer: vec![tensor.into()], ..Default::default() };
        let model = Model { graph: Some(graph), ..Default::default() }.encode_to_vec();
        assert!(refused(model).starts_with("it cannot be decoded (invalid key value"));
    }

    #[test]
    fn a_function_in_a_built_in_operator_set_is_refused() {
        for domain in ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"] {
            let functions = vec![function("RandomUniformLike", domain, vec![call("Identity", "")])];
            let model = Model { functions, ..model(call("RandomUniformLike", domain)) };
            let message = refused(model.encode_to_vec());
            assert!(message.starts_with("it defines the function RandomUniformLike in the built-in"), "{message}");
        }
        let functions = vec![function("RandomUniformLike", "own", vec![call("Identity", "")])];
        let model = Model { functions, ..model(call("RandomUniformLike", "own")) };
        Graph::parse(model.encode_to_vec()).expect("its own function, in its own set");
    }

    #[test]
    fn calls_of_functions_are_counted_as_often_as_they_happen() {
        let tenfold = |n: usize| {
            let mut functions = vec![function("f0", "own", vec![call("Sqrt", "")])];
            functions.extend((1..=n).map(|i| {
                let calls = vec![call(&format!("f{}", i - 1), "own"); 10];
                // Calls within a branch count too.
                let graph = proto::Graph { node: calls, ..Default::default() };
                function(&format!("f{i}"), "own", vec![branch(graph)])
            }));
            Model { functions, ..model(call(&format!("f{n}"), "own")) }.encode_to_vec()
        };
        Graph::parse(tenfold(4)).expect("11,111 operators and calls");
        assert_eq!(
            refused(tenfold(9)),
            "its functions call each other so often that it has more than 200000 operators"
        );
        let circle = vec![function("f", "own", vec![call("g", "own")]), function("g", "own", vec![call("f", "own")])];
        let circle = Model { functions: circle, ..model(call("f", "own")) };
        assert_eq!(refused(circle.encode_to_vec()), GraphError::Circle.to_string());
    }

    #[test]
    fn training_mode_is_refused() {
        let normalization = |attribute: Vec<Attribute>, outputs: &[&str]| Node {
            attribute,
            output: outputs.iter().map(|&name| name.to_owned()).collect(),
            ..call("BatchNormalization", "")
        };
        let mode = |i, reference: &str| Attribute {
            name: "training_mode".to_owned(),
            i,
            ref_attr_name: reference.to_owned(),
            ..Default::default()
        };
        let dropout =
            |mode: &str| Node { input: ["x", "ratio", mode].map(str::to_owned).to_vec(), ..call("Dropout", "") };
        let training = [
            normalization(vec![mode(Some(1), "")], &["y"]),
            normalization(vec![mode(None, "given")], &["y"]),
            normalization(vec![], &["y", "mean", "var"]),
            dropout("flag"),
            call("BiasDropout", "com.microsoft"),
        ];
        for node in training {
            let message = refused(model(node.clone()).encode_to_vec());
            assert!(message.starts_with(&format!("its operator {} is in training mode", node.op_type)), "{message}");
            let within = proto::Graph { node: vec![node], ..Default::default() };
            refused(model(branch(within)).encode_to_vec());
        }
        assert!(refused(model(call("Sampling", "com.microsoft")).encode_to_vec()).contains("draws random numbers"));
        let flag =
            proto::Tensor { name: "flag".to_owned(), data_type: BOOL, raw_data: vec![0].into(), ..Default::default() };
        for node in [
            normalization(vec![mode(Some(0), "")], &["y", ""]),
            dropout(""),
            Node { input: vec!["x".to_owned()], ..call("Dropout", "") },
            dropout("flag"),
        ] {
            let graph =
                proto::Graph { node: vec![node], initializer: vec![flag.encode_to_vec().into()], ..Default::default() };
            Graph::parse(Model { graph: Some(graph), ..Default::default() }.encode_to_vec()).expect("for inference");
        }
    }

    #[test]
    fn what_a_tensor_holds_is_not_copied() {
        let tensor = proto::Tensor { raw_data: vec![7; 32].into(), ..Default::default() };
        let graph = proto::Graph { initializer: vec![tensor.encode_to_vec().into()], ..Default::default() };
        let (file, mut steps) = (Bytes::from(graph.encode_to_vec()), 100);
        let graph: proto::Graph = decode(file.clone(), &mut steps).expect("a graph");
        let tensor: proto::Tensor = decode(graph.initializer[0].clone(), &mut steps).expect("a tensor");
        assert_eq!(tensor.raw_data.as_ptr(), file[file.len() - 32..].as_ptr());
    }
}
