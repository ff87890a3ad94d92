//! A model's graph, put together operator by operator and written as an ONNX file.
//!
//! Field numbers are those of `onnx/onnx.proto3` (ONNX 1.23).

use tch::{Device, Kind, Tensor};

use super::protobuf::Message;
use crate::error::{Error, Result};

/// Version of the file format, and of the operators: both of 2022, so that every runtime of today reads them.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;

/// Elements' types.
const FLOAT32: i64 = 1;
const INT64: i64 = 7;

/// What the batch's dimension, which is open, is called.
const BATCH: &str = "n";

/// An operator's attribute.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attribute<'a> {
    Float(f32),
    Integer(i64),
    Integers(&'a [i64]),
}

/// A graph so far. A value is known by its name: an operator's only output is called as the operator itself.
#[derive(Debug)]
pub(super) struct Graph {
    name: String,
    nodes: Message,
    constants: Message,
    inputs: Message,
    outputs: Message,
}

impl Graph {
    pub(super) fn new(name: &str) -> Self {
        let empty = Message::default;
        Self { name: name.to_owned(), nodes: empty(), constants: empty(), inputs: empty(), outputs: empty() }
    }

    /// An input, f32 [n, `sample`…].
    pub(super) fn input(&mut self, name: &str, sample: &[i64]) -> String {
        self.inputs.message(11, &value_info(name, sample));
        name.to_owned()
    }

    /// Gives a value out, f32 [n, `sample`…].
    pub(super) fn output(&mut self, name: &str, sample: &[i64]) {
        self.outputs.message(12, &value_info(name, sample));
    }

    /// A constant in f32, from a tensor of any kind on any device; an error if f32 cannot hold a number of it.
    pub(super) fn floats(&mut self, name: &str, tensor: &Tensor) -> Result<String> {
        let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_flatten(0, -1)?;
        let values = Vec::<f32>::try_from(&flat)?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::Input(format!(
                "the weights `{name}` are not all finite, so the network cannot be written as an ONNX model"
            )));
        }
        let data: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok(self.constant(name, &tensor.size(), FLOAT32, &data))
    }

    /// A constant list of integers.
    pub(super) fn integers(&mut self, name: &str, values: &[i64]) -> String {
        let data: Vec<u8> = values.iter().copied().flat_map(i64::to_le_bytes).collect();
        self.constant(name, &[values.len() as i64], INT64, &data)
    }

    /// An operator.
    pub(super) fn node(
        &mut self,
        name: &str,
        operator: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
    ) -> String {
        let mut node = Message::default();
        for input in inputs {
            node.text(1, input);
        }
        node.text(2, name).text(3, name).text(4, operator);
        for (name, value) in attributes {
            node.message(5, &attribute(name, *value));
        }
        self.nodes.message(1, &node);
        name.to_owned()
    }

    /// The file: the graph, what it is in one sentence, and metadata as pairs of key and value.
    pub(super) fn into_file(self, sentence: &str, metadata: &[(String, String)]) -> Result<Vec<u8>> {
        let mut graph = self.nodes;
        graph.text(2, &self.name).append(&self.constants).append(&self.inputs).append(&self.outputs);
        let mut model = Message::default();
        model.integer(1, IR_VERSION).text(2, "ambiguity").text(3, env!("CARGO_PKG_VERSION"));
        model.integer(5, 1).text(6, sentence).message(7, &graph);
        model.message(8, Message::default().text(1, "").integer(2, OPSET));
        for (key, value) in metadata {
            model.message(14, Message::default().text(1, key).text(2, value));
        }
        let bytes = model.into_bytes();
        if bytes.len() > i32::MAX as usize {
            let mib = bytes.len() >> 20;
            return Err(Error::Input(format!(
                "the network takes {mib} MiB, an ONNX file holds at most 2 GiB: make it narrower"
            )));
        }
        Ok(bytes)
    }

    fn constant(&mut self, name: &str, shape: &[i64], element: i64, data: &[u8]) -> String {
        let mut tensor = Message::default();
        tensor.integers(1, shape).integer(2, element).text(8, name).bytes(9, data);
        self.constants.message(5, &tensor);
        name.to_owned()
    }
}

fn attribute(name: &str, value: Attribute<'_>) -> Message {
    let mut attribute = Message::default();
    attribute.text(1, name);
    match value {
        Attribute::Float(value) => attribute.float(2, value).integer(20, 1),
        Attribute::Integer(value) => attribute.integer(3, value).integer(20, 2),
        Attribute::Integers(values) => attribute.integers(8, values).integer(20, 7),
    };
    attribute
}

/// The name, type and shape of an input or output.
fn value_info(name: &str, sample: &[i64]) -> Message {
    let mut shape = Message::default();
    shape.message(1, Message::default().text(2, BATCH));
    for &dim in sample {
        shape.message(1, Message::default().integer(1, dim));
    }
    let mut kind = Message::default();
    kind.message(1, Message::default().integer(1, FLOAT32).message(2, &shape));
    let mut info = Message::default();
    info.text(1, name).message(2, &kind);
    info
}
