//! Builds a model's graph operator by operator and writes it as an ONNX file.

use prost::Message as _;
use tch::{Device, Kind, Tensor};

use super::proto::{self, Attribute, Dimension, Entry, OperatorSet, Shape, Size, TensorType, Type, ValueInfo};
use crate::error::{Error, Result};

/// The versions of the file format and of the operators are of 2022, so that every runtime of today reads them.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;

/// Element types, `TensorProto.DataType`.
const FLOAT32: i32 = 1;
const INT64: i32 = 7;

/// The name of the batch dimension, whose size is open.
const BATCH: &str = "n";

/// A graph under construction. Values are referred to by name: the only output of an operator has the operator's name.
#[derive(Debug)]
pub(super) struct Graph(proto::Graph);

impl Graph {
    pub(super) fn new(name: &str) -> Self {
        Self(proto::Graph { name: name.to_owned(), ..Default::default() })
    }

    /// Adds an input, f32 [n, `sample`…], and returns its name.
    pub(super) fn input(&mut self, name: &str, sample: &[i64]) -> String {
        self.0.input.push(value_info(name, sample));
        name.to_owned()
    }

    /// Makes a value an output, f32 [n, `sample`…].
    pub(super) fn output(&mut self, name: &str, sample: &[i64]) {
        self.0.output.push(value_info(name, sample));
    }

    /// Adds a constant in f32, from a tensor of any kind on any device, and returns its name. It is an error if a number
    /// is not finite in f32.
    pub(super) fn floats(&mut self, name: &str, tensor: &Tensor) -> Result<String> {
        let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_flatten(0, -1)?;
        let values = Vec::<f32>::try_from(&flat)?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::Input(format!(
                "the weights `{name}` are not all finite, so the network cannot be written as an ONNX model"
            )));
        }
        Ok(self.constant(name, tensor.size(), FLOAT32, values.into_iter().flat_map(f32::to_le_bytes).collect()))
    }

    /// Adds a constant list of integers and returns its name.
    pub(super) fn integers(&mut self, name: &str, values: &[i64]) -> String {
        let data = values.iter().copied().flat_map(i64::to_le_bytes).collect();
        self.constant(name, vec![values.len() as i64], INT64, data)
    }

    /// Adds an operator and returns the name of its output.
    pub(super) fn node(&mut self, name: &str, operator: &str, inputs: &[&str], attributes: &[Attribute]) -> String {
        self.0.node.push(proto::Node {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![name.to_owned()],
            name: name.to_owned(),
            op_type: operator.to_owned(),
            attribute: attributes.to_vec(),
            ..Default::default()
        });
        name.to_owned()
    }

    /// Returns the file: the graph, a sentence that describes it, and metadata as pairs of key and value.
    pub(super) fn into_file(self, sentence: &str, metadata: Vec<(String, String)>) -> Result<Vec<u8>> {
        let model = proto::Model {
            ir_version: IR_VERSION,
            producer_name: "ambiguity".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            model_version: 1,
            doc_string: sentence.to_owned(),
            graph: Some(self.0),
            opset_import: vec![OperatorSet { domain: Some(String::new()), version: OPSET }],
            metadata_props: metadata.into_iter().map(|(key, value)| Entry { key, value }).collect(),
            ..Default::default()
        };
        let size = model.encoded_len();
        if size > i32::MAX as usize {
            return Err(Error::Input(format!(
                "the network takes {} MiB, an ONNX file holds at most 2 GiB: make it narrower",
                size >> 20
            )));
        }
        Ok(model.encode_to_vec())
    }

    fn constant(&mut self, name: &str, dims: Vec<i64>, data_type: i32, data: Vec<u8>) -> String {
        let tensor =
            proto::Tensor { dims, data_type, name: name.to_owned(), raw_data: data.into(), ..Default::default() };
        self.0.initializer.push(tensor.encode_to_vec().into());
        name.to_owned()
    }
}

/// Returns an attribute whose value is a number.
pub(super) fn float(name: &str, value: f32) -> Attribute {
    Attribute { name: name.to_owned(), f: Some(value), r#type: 1, ..Default::default() }
}

/// Returns an attribute whose value is an integer.
pub(super) fn integer(name: &str, value: i64) -> Attribute {
    Attribute { name: name.to_owned(), i: Some(value), r#type: 2, ..Default::default() }
}

/// Returns an attribute whose value is a list of integers.
pub(super) fn integers(name: &str, values: &[i64]) -> Attribute {
    Attribute { name: name.to_owned(), ints: values.to_vec(), r#type: 7, ..Default::default() }
}

/// Returns the description of an input or output: its name, type and shape.
fn value_info(name: &str, sample: &[i64]) -> ValueInfo {
    let sizes = [Size::DimParam(BATCH.to_owned())].into_iter().chain(sample.iter().copied().map(Size::DimValue));
    let dim = sizes.map(|size| Dimension { size: Some(size) }).collect();
    let tensor_type = TensorType { elem_type: FLOAT32, shape: Some(Shape { dim }) };
    ValueInfo { name: name.to_owned(), r#type: Some(Type { tensor_type: Some(tensor_type) }) }
}
