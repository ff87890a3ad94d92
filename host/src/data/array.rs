//! Arrays of any number of dimensions, from safetensors files.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// A row-major array; `data` has as many elements as the product of `shape`.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Size of each dimension, the outermost first.
    pub shape: Vec<u32>,
    /// The elements; the last dimension varies fastest.
    pub data: Vec<f32>,
}

/// Why an array could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ArrayError {
    /// The file could not be read.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not a safetensors file of one array of numbers.
    #[error("{path} is not an array: {why}", path = .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// Reads a safetensors file that has one tensor, of floating-point numbers of 16 to 64 bits.
///
/// # Errors
/// If it cannot be read, or has no tensor, several, or one of other numbers.
pub fn read_array(path: &Path) -> Result<Array, ArrayError> {
    let bytes = std::fs::read(path).map_err(|source| ArrayError::Io { path: path.to_owned(), source })?;
    decode(&bytes).map_err(|why| ArrayError::Unusable { path: path.to_owned(), why })
}

fn decode(bytes: &[u8]) -> Result<Array, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("it is no safetensors file ({error})"))?;
    let tensors = file.tensors();
    let [(_, tensor)] = &tensors[..] else {
        let mut names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.truncate(5);
        return Err(format!("it has {} tensors, not one ({})", tensors.len(), names.join(", ")));
    };
    let numbers = tensor.data();
    let data = match tensor.dtype() {
        Dtype::F16 => numbers.as_chunks().0.iter().map(|&x| f16::from_le_bytes(x).to_f32()).collect(),
        Dtype::BF16 => numbers.as_chunks().0.iter().map(|&x| bf16::from_le_bytes(x).to_f32()).collect(),
        Dtype::F32 => numbers.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect(),
        Dtype::F64 => numbers.as_chunks().0.iter().map(|&x| f64::from_le_bytes(x) as f32).collect(),
        other => return Err(format!("its numbers are {other:?}, not F16, BF16, F32 or F64")),
    };
    let size = |&size: &usize| u32::try_from(size).map_err(|_| format!("a dimension has the size {size}"));
    Ok(Array { shape: tensor.shape().iter().map(size).collect::<Result<_, _>>()?, data })
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn view<'a>(&(name, dtype, data): &(&str, Dtype, &'a [u8])) -> (String, TensorView<'a>) {
        let n = data.len() * 8 / dtype.bitsize();
        (name.to_owned(), TensorView::new(dtype, vec![1, n], data).expect("whole numbers"))
    }

    fn file(tensors: &[(&str, Dtype, &[u8])]) -> Vec<u8> {
        safetensors::serialize(tensors.iter().map(view), None).expect("valid tensors")
    }

    #[test]
    fn arrays_of_every_precision_are_read() {
        let wanted = Array { shape: vec![1, 2], data: vec![1.5, -2.0] };
        let half: Vec<u8> = [1.5, -2.0].into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
        let brain: Vec<u8> = [1.5, -2.0].into_iter().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect();
        let single: Vec<u8> = [1.5f32, -2.0].into_iter().flat_map(f32::to_le_bytes).collect();
        let double: Vec<u8> = [1.5f64, -2.0].into_iter().flat_map(f64::to_le_bytes).collect();
        let all = [(Dtype::F16, half), (Dtype::BF16, brain), (Dtype::F32, single), (Dtype::F64, double)];
        for (dtype, bytes) in all {
            assert_eq!(decode(&file(&[("x", dtype, &bytes)])).expect("an array"), wanted, "{dtype:?}");
        }
    }

    #[test]
    fn what_is_not_one_array_of_numbers_is_named() {
        let zero = 0f32.to_le_bytes();
        let two = file(&[("b", Dtype::F32, &zero), ("a", Dtype::F32, &zero)]);
        assert_eq!(decode(&two).expect_err("two"), "it has 2 tensors, not one (a, b)");
        let whole = file(&[("a", Dtype::I64, &1i64.to_le_bytes())]);
        assert_eq!(decode(&whole).expect_err("integers"), "its numbers are I64, not F16, BF16, F32 or F64");
        assert!(decode(b"not a file").expect_err("no file").starts_with("it is no safetensors file"));
    }
}
