//! Access to tensors of a file: element types that can be multiplied, shapes, and tensors that are read as
//! floats.

use crate::Error;
use crate::gguf::{GgmlType, Gguf, Tensor};
use crate::kernels::matrix::Format;

/// The format of an element type that can be multiplied.
pub(crate) fn panel_format(kind: GgmlType) -> Option<Format> {
    Some(match kind {
        GgmlType::F32 => Format::F32,
        GgmlType::F16 => Format::F16,
        GgmlType::BF16 => Format::BF16,
        GgmlType::Q8_0 => Format::Q8_0,
        GgmlType::Q4_0 => Format::Q4_0,
        GgmlType::Q4_1 => Format::Q4_1,
        GgmlType::Q5_0 => Format::Q5_0,
        GgmlType::Q5_1 => Format::Q5_1,
        GgmlType::IQ4_NL => Format::IQ4_NL,
        GgmlType::Q2_K => Format::Q2_K,
        GgmlType::Q3_K => Format::Q3_K,
        GgmlType::Q4_K => Format::Q4_K,
        GgmlType::Q5_K => Format::Q5_K,
        GgmlType::Q6_K => Format::Q6_K,
        GgmlType::IQ4_XS => Format::IQ4_XS,
        GgmlType::MXFP4 => Format::MXFP4,
        GgmlType::TQ1_0 => Format::TQ1_0,
        GgmlType::TQ2_0 => Format::TQ2_0,
        _ => return None,
    })
}

/// A floating-point vector of `length` values, widened to f32.
///
/// # Errors
/// As [`super::weights::Matrix::load`].
pub(crate) fn vector(gguf: &Gguf, name: &str, length: usize) -> Result<Vec<f32>, Error> {
    floats(gguf, name, &[length])
}

/// A floating-point tensor of a shape, widened to f32.
///
/// # Errors
/// As [`super::weights::Matrix::load`].
pub(crate) fn floats(gguf: &Gguf, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
    let tensor = gguf.tensor(name)?;
    expect_shape(gguf, &tensor, shape)?;
    let mut values = vec![0.0; shape.iter().product()];
    match (tensor.kind, panel_format(tensor.kind)) {
        (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16, Some(format)) => {
            format.dequantize_row(tensor.data, &mut values);
        }
        (other, _) => {
            return Err(gguf.unsupported(format!("tensor \"{name}\" has the element type {other}")));
        }
    }
    Ok(values)
}

/// [`vector`], if there is a tensor of this name.
///
/// # Errors
/// As [`super::weights::Matrix::load`].
pub(crate) fn opt_vector(gguf: &Gguf, name: &str, length: usize) -> Result<Option<Vec<f32>>, Error> {
    match gguf.opt_tensor(name)? {
        Some(_) => vector(gguf, name, length).map(Some),
        None => Ok(None),
    }
}

/// Checks a shape, ignoring trailing dimensions of 1.
///
/// # Errors
/// [`Error::CorruptModel`] where it is another one.
pub(crate) fn expect_shape(gguf: &Gguf, tensor: &Tensor<'_>, expected: &[usize]) -> Result<(), Error> {
    let mut shape = tensor.shape;
    while let [rest @ .., 1] = shape
        && rest.len() >= expected.len()
    {
        shape = rest;
    }
    if shape == expected {
        return Ok(());
    }
    Err(gguf
        .corrupt(format!("tensor \"{}\" has shape {:?} instead of {expected:?}", tensor.name, tensor.shape)))
}
