//! Reading and writing safetensors files: memory-mapped, typed, with metadata, replaced atomically.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView, serialize};
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::files::lfs_pointer;
use crate::json::write_file;
use crate::params::NamedTensors;

/// Reads all tensors of a file, on the CPU, in the file's own types.
pub fn read_safetensors(path: &Path) -> Result<NamedTensors> {
    Ok(read_safetensors_with_metadata(path)?.0)
}

/// Reads all tensors of a file and its string metadata.
pub fn read_safetensors_with_metadata(path: &Path) -> Result<(NamedTensors, HashMap<String, String>)> {
    let bad = |message: String| Error::Safetensors { path: path.to_owned(), message };
    let map = map(path)?;
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

/// Maps a safetensors file into memory.
fn map(path: &Path) -> Result<Mmap> {
    map_file(path, |message| Error::Safetensors { path: path.to_owned(), message })
}

/// Maps a file into memory; `bad` makes the error of a file that is a Git LFS pointer.
pub(crate) fn map_file(path: &Path, bad: impl FnOnce(String) -> Error) -> Result<Mmap> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    // SAFETY: that another process truncates the file meanwhile is the risk of every memory map.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    match lfs_pointer(&map) {
        Some(what) => Err(bad(what.to_owned())),
        None => Ok(map),
    }
}

/// Reads a file's string metadata.
pub fn read_metadata(path: &Path) -> Result<HashMap<String, String>> {
    let map = map(path)?;
    let (_, header) = SafeTensors::read_metadata(&map)
        .map_err(|e| Error::Safetensors { path: path.to_owned(), message: e.to_string() })?;
    Ok(header.metadata().clone().unwrap_or_default())
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
    let file = serialize(views, None).map_err(|e| bad(e.to_string()))?;
    Ok(if metadata.is_empty() { file } else { with_metadata(&file, metadata) })
}

/// Returns a file without metadata with these entries in their order. The library would take them from a hash map, and
/// the same entries would not always give the same bytes.
fn with_metadata(file: &[u8], metadata: &[(&str, &str)]) -> Vec<u8> {
    let (length, rest) = file.split_first_chunk().expect("a file begins with the length of its header");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header = std::str::from_utf8(header).expect("a header is JSON").trim_end();
    let tensors = header.strip_prefix('{').expect("a header is an object");
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let entries: Vec<String> = metadata.iter().map(|(key, value)| format!("{}:{}", text(key), text(value))).collect();
    let comma = if tensors == "}" { "" } else { "," };
    let mut header = format!("{{\"__metadata__\":{{{}}}{comma}{tensors}", entries.join(","));
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// The digest of a network's weights, whatever their file: the sha256, in hex, over all tensors in order of their
/// names.
///
/// It covers, for each tensor, its name, a zero byte, its type as the format writes it (`F32`), a zero byte, its number
/// of axes, their lengths, the length of its data (u64, little endian), and its data, but neither the metadata nor the
/// order in the file.
pub fn digest_safetensors(path: &Path) -> Result<String> {
    digest_shards(&[path.to_owned()])
}

/// The same for a network whose weights are in several files: the digest of one file with all of them.
pub fn digest_shards(paths: &[PathBuf]) -> Result<String> {
    let maps: Vec<Mmap> = paths.iter().map(|path| map(path)).collect::<Result<_>>()?;
    let mut tensors = Vec::new();
    for (path, map) in paths.iter().zip(&maps) {
        let bad = |e: SafeTensorError| Error::Safetensors { path: path.clone(), message: e.to_string() };
        tensors.extend(SafeTensors::deserialize(map).map_err(bad)?.tensors());
    }
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
pub fn hex(bytes: &[u8]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tensors_and_metadata_are_the_same_bytes() {
        let path = Path::new("x.safetensors");
        let tensors = NamedTensors::from([("b".to_owned(), Tensor::from_slice(&[1.0f32, 2.0]))]);
        let metadata: Vec<(String, String)> =
            (0..20).map(|i| (format!("key {i}"), format!("\"{i}\" \\ é\n"))).collect();
        let entries: Vec<(&str, &str)> = metadata.iter().map(|(key, value)| (&**key, &**value)).collect();
        let bytes = encode_safetensors(path, &tensors, &entries).unwrap();
        for _ in 0..4 {
            assert_eq!(encode_safetensors(path, &tensors, &entries).unwrap(), bytes);
        }
        for entries in [&entries[..], &entries[..1], &[]] {
            for tensors in [&tensors, &NamedTensors::new()] {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("x.safetensors");
                write_safetensors(&path, tensors, entries).unwrap();
                let (read, found) = read_safetensors_with_metadata(&path).unwrap();
                assert!(
                    read.keys().eq(tensors.keys()) && read.iter().all(|(name, tensor)| tensor.equal(&tensors[name]))
                );
                let wanted = entries.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
                assert_eq!(found, wanted.collect::<HashMap<_, _>>());
            }
        }
    }
}
