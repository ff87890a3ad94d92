//! Checks of the gradients that plugins return.

use ndarray::Array2;

use super::error::Fault;

/// Checks the numbers that a plugin returned as dL/d(pixel values) of an image of `n_values` values.
pub(super) fn check_pixels(gradient: &[f32], n_values: usize) -> Result<(), Fault> {
    if gradient.len() != n_values {
        let found = gradient.len();
        return Err(Fault::Output(format!("it returned a gradient of {found} numbers for {n_values} pixel values")));
    }
    match gradient.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(Fault::Output(format!("its gradient of a pixel is {value}: it must be finite"))),
        None => Ok(()),
    }
}

/// Checks a row-major matrix that a plugin returned as dL/d(embeddings) of `n_samples` samples in `dim` dimensions. An
/// error carries the index of the sample at fault, if it concerns a single one.
pub(super) fn check(
    (rows, cols, data): (usize, usize, Vec<f32>),
    (n_samples, dim): (usize, usize),
) -> Result<Array2<f32>, (Option<usize>, Fault)> {
    if (rows, cols) != (n_samples, dim) {
        let expected = format!("{n_samples} samples x {dim} dimensions");
        return Err((None, Fault::Output(format!("it returned a gradient of {rows} x {cols} for {expected}"))));
    }
    let message = format!("it returned {} numbers for a gradient of {rows} x {cols}", data.len());
    let gradient = Array2::from_shape_vec((rows, cols), data).map_err(|_| (None, Fault::Output(message)))?;
    match gradient.indexed_iter().find(|(_, value)| !value.is_finite()) {
        Some(((sample, dimension), value)) => {
            let message = format!("its gradient in dimension {dimension} is {value}: it must be finite");
            Err((Some(sample), Fault::Output(message)))
        }
        None => Ok(gradient),
    }
}
