//! Writes into a model's file what describes it, and the data of tensors that lie in other files. Everything else stays byte
//! by byte: the file is changed field by field, so that what this program does not know is kept.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use ambiguity_models::onnx::proto::Entry;
use prost::Message as _;
use prost::bytes::{Buf as _, Bytes, BytesMut};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

use super::settings::PREFIX;

/// The fields of a tensor for its data, for the place of data in another file, and for whether there is such a place.
const RAW_DATA: u32 = 9;
const EXTERNAL_DATA: u32 = 13;
const DATA_LOCATION: u32 = 14;

/// The field of a model for its metadata.
const METADATA: u32 = 14;

/// Maximum number of messages within each other.
const MAX_DEPTH: usize = 100;

/// Maximum number of fields of all messages, each of which takes some 80 bytes while it is read.
const MAX_FIELDS: usize = 1 << 22;

/// The messages of ONNX that contain tensors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Function,
    Sparse,
    Tensor,
}

impl Kind {
    /// Returns the kind of the message in a field, if there may be tensors within.
    fn within(self, field: u32) -> Option<Self> {
        Some(match (self, field) {
            (Self::Model, 7) => Self::Graph,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Self::Tensor,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::Sparse,
            (Self::Node, 5) | (Self::Function, 11) => Self::Attribute,
            (Self::Attribute, 6 | 11) => Self::Graph,
            _ => return None,
        })
    }
}

/// One field of a message.
struct Field {
    number: u32,
    /// The field as it is in the file.
    raw: Bytes,
    /// Its content, if it is a message, a text or bytes.
    content: Option<Bytes>,
}

/// Returns a model's file with these entries of metadata, which replace those of the same keys, and with the data of all
/// tensors, of which no more than `limit` bytes are read from files in `folder`.
///
/// # Errors
/// A sentence, if the file is no protobuf, or the data of a tensor cannot be read.
pub(super) fn described(
    file: Bytes,
    folder: &Path,
    metadata: &BTreeMap<String, String>,
    limit: usize,
) -> Result<Bytes, String> {
    let mut data = Data { folder, left: limit, n_fields: MAX_FIELDS };
    let mut described = BytesMut::new();
    for field in data.fields(file)? {
        let replaced = field.number == METADATA
            && field
                .content
                .as_ref()
                .and_then(|entry| Entry::decode(entry.clone()).ok())
                .is_some_and(|entry| entry.key.strip_prefix(PREFIX).is_some_and(|key| metadata.contains_key(key)));
        if !replaced {
            data.put(Kind::Model, field, MAX_DEPTH, &mut described)?;
        }
    }
    for (key, value) in metadata {
        let entry = Entry { key: format!("{PREFIX}{key}"), value: value.clone() };
        put_bytes(METADATA, &entry.encode_to_vec(), &mut described);
    }
    Ok(described.freeze())
}

/// The files beside a model.
struct Data<'a> {
    folder: &'a Path,
    /// Number of bytes that may still be read.
    left: usize,
    /// Number of fields that the model may still have.
    n_fields: usize,
}

impl Data<'_> {
    /// Appends a field of a message of this kind, with the data of the tensors within it.
    fn put(&mut self, kind: Kind, field: Field, depth: usize, out: &mut BytesMut) -> Result<(), String> {
        match (kind.within(field.number), field.content) {
            (Some(inside), Some(content)) => {
                let depth = depth.checked_sub(1).ok_or("its graphs nest too deep")?;
                put_bytes(field.number, &self.message(inside, content, depth)?, out);
            }
            _ => out.extend_from_slice(&field.raw),
        }
        Ok(())
    }

    /// Returns a message with the data of the tensors within it.
    fn message(&mut self, kind: Kind, bytes: Bytes, depth: usize) -> Result<Bytes, String> {
        let fields = self.fields(bytes.clone())?;
        let of = |number: u32| fields.iter().filter(move |field| field.number == number);
        if kind == Kind::Tensor && of(EXTERNAL_DATA).next().is_none() {
            return Ok(bytes);
        }
        let mut out = BytesMut::new();
        if kind == Kind::Tensor {
            let places = of(EXTERNAL_DATA).filter_map(|field| field.content.clone()).map(Entry::decode);
            let places: Result<Vec<Entry>, _> = places.collect();
            let places = places.map_err(|error| error.to_string())?;
            let data = self.read(&places.into_iter().map(|entry| (entry.key, entry.value)).collect())?;
            for field in fields {
                if ![RAW_DATA, EXTERNAL_DATA, DATA_LOCATION].contains(&field.number) {
                    out.extend_from_slice(&field.raw);
                }
            }
            put_bytes(RAW_DATA, &data, &mut out);
        } else {
            for field in fields {
                self.put(kind, field, depth, &mut out)?;
            }
        }
        Ok(out.freeze())
    }

    /// Returns the fields of a message.
    fn fields(&mut self, mut bytes: Bytes) -> Result<Vec<Field>, String> {
        let failed = |error: prost::DecodeError| format!("it cannot be decoded ({error}), so it is no ONNX model");
        let mut fields = vec![];
        while bytes.has_remaining() {
            self.n_fields = self.n_fields.checked_sub(1).ok_or("it has too many parts")?;
            let start = bytes.clone();
            let (number, wire) = decode_key(&mut bytes).map_err(failed)?;
            let content = match wire {
                WireType::LengthDelimited => {
                    let length = decode_varint(&mut bytes).map_err(failed)?;
                    let length = usize::try_from(length).ok().filter(|&length| length <= bytes.remaining());
                    Some(bytes.split_to(length.ok_or("it is cut off, so it is no ONNX model")?))
                }
                _ => {
                    skip_field(wire, number, &mut bytes, DecodeContext::default()).map_err(failed)?;
                    None
                }
            };
            let raw = start.slice(..start.len() - bytes.remaining());
            fields.push(Field { number, raw, content });
        }
        Ok(fields)
    }

    /// Reads the data of a tensor from the file, and the part of it, that its entries name.
    fn read(&mut self, place: &BTreeMap<String, String>) -> Result<Vec<u8>, String> {
        let location = place.get("location").ok_or("a tensor in another file does not say in which")?;
        let path = self.inside(location)?;
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let number = |key: &str| {
            let value = place.get(key).map(|text| text.parse::<u64>());
            value.transpose().map_err(|_| format!("the {key} of a tensor in {location} is not a number"))
        };
        let mut file = std::fs::File::open(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(size.saturating_sub(offset));
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(format!("{} ends before the data of a tensor does", path.display()));
        }
        let length = usize::try_from(length).map_err(|error| error.to_string())?;
        self.left = self.left.checked_sub(length).ok_or("its data in other files is larger than a model may be")?;
        let mut data = vec![0; length];
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut data)).map_err(failed)?;
        Ok(data)
    }

    /// Returns the path of a file in the model's folder. A model must not reach for other files.
    fn inside(&self, location: &str) -> Result<PathBuf, String> {
        let is_plain =
            Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let path = self.folder.join(location);
        let inside = || Some(path.canonicalize().ok()?.starts_with(self.folder.canonicalize().ok()?));
        let kind = || path.metadata().map(|metadata| metadata.is_file());
        match is_plain && !location.is_empty() {
            true if kind().is_err() => Err(format!("its data is in {}, which does not exist", path.display())),
            true if inside() == Some(true) && kind().is_ok_and(|is_file| is_file) => Ok(path),
            _ => Err(format!("its data is in `{location}`, which is no file of the model's folder")),
        }
    }
}

/// Appends a field with bytes.
fn put_bytes(number: u32, bytes: &[u8], out: &mut BytesMut) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use ambiguity_models::onnx::proto::{Graph, Model, Node, Tensor};

    use super::*;

    /// A model whose weights are partly in another file, with a field that this program does not know.
    fn model(location: &str) -> Bytes {
        let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
        let places = [entry("location", location), entry("offset", "2"), entry("length", "4")];
        let outside = Tensor {
            dims: vec![1],
            data_type: 1,
            name: "w".to_owned(),
            external_data: places.iter().map(|entry| entry.encode_to_vec().into()).collect(),
            data_location: 1,
            ..Tensor::default()
        };
        let inside = Tensor { name: "v".to_owned(), raw_data: vec![1, 2].into(), ..Tensor::default() };
        let branch = Graph { initializer: vec![outside.encode_to_vec().into()], ..Graph::default() };
        let attribute = ambiguity_models::onnx::proto::Attribute { g: vec![branch], ..Default::default() };
        let graph = Graph {
            node: vec![Node { attribute: vec![attribute], ..Node::default() }],
            initializer: vec![outside.encode_to_vec().into(), inside.encode_to_vec().into()],
            ..Graph::default()
        };
        let metadata_props = vec![entry("ambiguity.styles", "[]"), entry("author", "A. Author")];
        let mut bytes = Model { graph: Some(graph), metadata_props, ..Model::default() }.encode_to_vec();
        // Field 99, a number: 5.
        bytes.extend([0x98, 0x06, 5]);
        bytes.into()
    }

    fn metadata() -> BTreeMap<String, String> {
        [("styles", "[\"a\", \"b\"]"), ("output", "logits")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn metadata_is_replaced_and_data_is_merged_and_the_rest_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("w.bin"), [9, 9, 0, 0, 128, 63, 9]).expect("writable");
        let described = described(model("w.bin"), folder.path(), &metadata(), 100).expect("it is described");
        let found = Model::decode(described.clone()).expect("a model");
        let entries: Vec<(&str, &str)> =
            found.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
        let wanted = [("author", "A. Author"), ("ambiguity.output", "logits"), ("ambiguity.styles", "[\"a\", \"b\"]")];
        assert_eq!(entries, wanted);
        let graph = found.graph.expect("it has one");
        for bytes in [&graph.initializer[0], &graph.node[0].attribute[0].g[0].initializer[0]] {
            let tensor = Tensor::decode(bytes.clone()).expect("a tensor");
            assert_eq!((tensor.name.as_str(), &tensor.raw_data[..]), ("w", &[0, 0, 128, 63][..]));
            assert!(tensor.external_data.is_empty() && tensor.data_location == 0 && tensor.dims == [1]);
        }
        assert!(described.windows(3).any(|bytes| bytes == [0x98, 0x06, 5]), "what is not known stays");
    }

    #[test]
    fn only_files_of_the_models_folder_are_read() {
        let around = tempfile::tempdir().expect("a temporary folder");
        let folder = around.path().join("model");
        std::fs::create_dir_all(folder.join("part")).expect("writable");
        std::fs::write(around.path().join("secret"), [0; 100]).expect("writable");
        std::fs::write(folder.join("short"), [0; 3]).expect("writable");
        #[cfg(unix)]
        std::os::unix::fs::symlink("../secret", folder.join("link")).expect("writable");
        let secret = around.path().join("secret").display().to_string();
        for (location, wanted) in [
            ("../secret", "which is no file of the model's folder"),
            (secret.as_str(), "which is no file of the model's folder"),
            ("link", "which is no file of the model's folder"),
            ("part", "which is no file of the model's folder"),
            ("", "which is no file of the model's folder"),
            ("none", "which does not exist"),
            ("short", "ends before the data of a tensor does"),
        ] {
            let error = described(model(location), &folder, &metadata(), 100).expect_err(location);
            assert!(error.ends_with(wanted), "{location}: {error}");
        }
        std::fs::write(folder.join("whole"), [0; 9]).expect("writable");
        let error = described(model("whole"), &folder, &metadata(), 7).expect_err("two tensors of four bytes");
        assert_eq!(error, "its data in other files is larger than a model may be");
    }
}
