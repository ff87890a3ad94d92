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

/// The operators that draw random numbers: the same image must get the same distribution.
const RANDOM: [&str; 6] =
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"];

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
    /// Number of steps that are left.
    steps: usize,
}

impl Reader {
    fn model(&mut self, model: &proto::Model) -> Result<()> {
        let graph = model.graph.as_ref().ok_or(GraphError::Empty)?;
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
        self.nodes(&graph.node)?;
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

    fn nodes(&mut self, nodes: &[proto::Node]) -> Result<()> {
        for proto::Node { op_type: operator, domain, attribute, .. } in nodes {
            self.attributes(attribute)?;
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
        let with_functions = |function| Model { functions: vec![function], ..model(Node::default()) };
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
