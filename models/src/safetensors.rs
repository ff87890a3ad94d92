//! Reading and writing safetensors files: memory-mapped, typed, with metadata, replaced atomically.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use ::safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::json::write_file;
use crate::params::NamedTensors;

/// Reads all tensors of a file, on the CPU, in the file's own types.
pub fn read_safetensors(path: &Path) -> Result<NamedTensors> {
    Ok(read_safetensors_with_metadata(path)?.0)
}

/// Reads all tensors of a file and its string metadata.
pub fn read_safetensors_with_metadata(path: &Path) -> Result<(NamedTensors, HashMap<String, String>)> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let bad = |message: String| Error::Safetensors { path: path.to_owned(), message };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is read within this function only; that another process truncates the file meanwhile is the risk
    // of every memory map.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    let (_, header) = SafeTensors::read_metadata(&map).map_err(|e| bad(e.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let tensors = SafeTensors::deserialize(&map).map_err(|e| bad(e.to_string()))?;
    let mut named = NamedTensors::new();
    for (name, view) in tensors.iter() {
        let kind = kind_of(view.dtype()).ok_or_else(|| bad(format!("tensor `{name}` has type {:?}", view.dtype())))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        named.insert(name.to_owned(), Tensor::f_from_data_size(view.data(), &shape, kind)?);
    }
    Ok((named, metadata))
}

/// Writes tensors (copied to the CPU, contiguous) and metadata to `path` through a temporary file beside it.
pub fn write_safetensors(path: &Path, tensors: &NamedTensors, metadata: &[(&str, &str)]) -> Result<()> {
    write_file(path, &encode_safetensors(path, tensors, metadata)?)
}

/// Returns the bytes of a safetensors file; `path` is for errors only.
pub fn encode_safetensors(path: &Path, tensors: &NamedTensors, metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let bad = |message: String| Error::Safetensors { path: path.to_owned(), message };
    let mut buffers = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
        let dtype =
            dtype_of(tensor.kind()).ok_or_else(|| bad(format!("tensor `{name}` has type {:?}", tensor.kind())))?;
        let mut data = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut data, tensor.numel())?;
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        buffers.push((name, dtype, shape, data));
    }
    let mut views = Vec::with_capacity(buffers.len());
    for (name, dtype, shape, data) in &buffers {
        let view = TensorView::new(*dtype, shape.clone(), data).map_err(|e| bad(e.to_string()))?;
        views.push((name.as_str(), view));
    }
    let metadata = (!metadata.is_empty())
        .then(|| metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
    serialize(views, metadata).map_err(|e| bad(e.to_string()))
}

/// The digest of a network's weights, whatever their file: the sha256, in hex, over all tensors in order of their
/// names.
///
/// It covers, for each tensor, its name, a zero byte, its type as the format writes it (`F32`), a zero byte, its number
/// of axes, their lengths, the length of its data (u64, little endian), and its data, but neither the metadata nor the
/// order in the file.
pub fn digest_safetensors(path: &Path) -> Result<String> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let bad = |message: String| Error::Safetensors { path: path.to_owned(), message };
    let file = File::open(path).map_err(io)?;
    // SAFETY: as in `read_safetensors_with_metadata`.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    let tensors = SafeTensors::deserialize(&map).map_err(|e| bad(e.to_string()))?;
    let mut tensors = tensors.tensors();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut hash = Sha256::new();
    for (name, view) in &tensors {
        hash.update(name.as_bytes());
        hash.update(b"\0");
        hash.update(format!("{:?}", view.dtype()).as_bytes());
        hash.update(b"\0");
        hash.update((view.shape().len() as u64).to_le_bytes());
        for &length in view.shape() {
            hash.update((length as u64).to_le_bytes());
        }
        hash.update((view.data().len() as u64).to_le_bytes());
        hash.update(view.data());
    }
    Ok(hex(&hash.finalize()))
}

/// Returns bytes in hexadecimal, two digits each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::BOOL,
        _ => return None,
    })
}
