//! Reads the numbers of reference tensors.

use ndarray::Array2;
use tch::{Kind, Tensor};

/// Returns all numbers of a tensor.
pub(super) fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).expect("numbers")
}

/// Returns a matrix.
pub(super) fn matrix(tensor: &Tensor) -> Array2<f64> {
    let (n, width) = tensor.size2().expect("a matrix");
    Array2::from_shape_vec((n as usize, width as usize), numbers(tensor)).expect("as many as its shape says")
}
