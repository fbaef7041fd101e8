//! Weights of a model: matrices that are repacked or stay in the mapped file, vectors that are widened to f32.

use std::sync::Arc;

use crate::Error;
use crate::gguf::{GgmlType, Gguf, Tensor};
use crate::kernels::Pool;
use crate::kernels::matrix::{Activations, Format, Instructions, Packed, products};

/// A linear layer without bias.
pub(crate) trait Linear: Send + Sync {
    /// `y = x · Wᵀ`: for each row of `x` (`inputs` values) a row of `y` (`outputs` values). A row of the
    /// result depends on its row of `x` only.
    fn forward(&self, x: &[f32], y: &mut [f32], scratch: &mut Activations, pool: &Pool);

    /// Length of a row of the result.
    fn outputs(&self) -> usize;

    /// The weights in panels, if that is how they are multiplied.
    fn packed(&self) -> Option<&Packed>;
}

/// [`Linear::forward`] of several layers with one input, which is quantized once for all of them.
pub(super) fn forward_all<const N: usize>(
    layers: [&dyn Linear; N],
    x: &[f32],
    mut ys: [&mut [f32]; N],
    scratch: &mut Activations,
    pool: &Pool,
) {
    let packed: Vec<&Packed> = layers.iter().filter_map(|layer| layer.packed()).collect();
    if packed.len() == N {
        products(&packed, x, &mut ys, scratch, Instructions::best(), pool);
    } else {
        for (layer, y) in layers.into_iter().zip(ys) {
            layer.forward(x, y, scratch, pool);
        }
    }
}

/// The format of an element type that can be multiplied.
fn panel_format(kind: GgmlType) -> Option<Format> {
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
        _ => return None,
    })
}

/// Bytes that the model of a file takes beyond the file's size: panels replace what they are made of, but the
/// token embedding stays beside its panels where it is the head too.
pub(super) fn repacked_bytes(gguf: &Gguf) -> u64 {
    let tied = !gguf.tensors().any(|tensor| tensor.name == "output.weight");
    let mut more = 0;
    for tensor in gguf.tensors() {
        let (Some(format), [inputs, outputs]) = (panel_format(tensor.kind), tensor.shape) else { continue };
        let embedding = tensor.name == "token_embd.weight";
        if embedding && !tied {
            continue;
        }
        let replaced = if embedding { 0 } else { tensor.data.len() };
        more += Packed::size(format, *inputs, *outputs).saturating_sub(replaced) as u64;
    }
    more
}

/// A matrix in the model file, in any format that can be multiplied.
#[derive(Clone)]
pub(crate) struct Matrix {
    gguf: Gguf,
    name: String,
    format: Format,
    inputs: usize,
    outputs: usize,
    packed: Option<Arc<Packed>>,
}

impl Matrix {
    /// The tensor `name`, which must have `outputs` rows of `inputs` values.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it is missing or has another shape, [`Error::UnsupportedModel`] where
    /// its type cannot be multiplied.
    pub(crate) fn load(gguf: &Gguf, name: &str, inputs: usize, outputs: usize) -> Result<Matrix, Error> {
        let tensor = gguf.tensor(name)?;
        expect_shape(gguf, &tensor, &[inputs, outputs])?;
        let Some(format) = panel_format(tensor.kind) else {
            return Err(gguf.unsupported(format!("tensor \"{name}\" has the element type {}", tensor.kind)));
        };
        let blocks = inputs / format.block() * outputs;
        if !inputs.is_multiple_of(format.block()) || tensor.data.len() != blocks * format.source_bytes() {
            return Err(gguf.corrupt(format!("the rows of tensor \"{name}\" are not whole blocks")));
        }
        Ok(Matrix { gguf: gguf.clone(), name: name.to_owned(), format, inputs, outputs, packed: None })
    }

    /// Repacks the weights for multiplication.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn pack(mut self) -> Result<Matrix, Error> {
        let packed = Packed::new(self.format, self.data(), self.inputs, self.outputs).map_err(|_| {
            let size = Packed::size(self.format, self.inputs, self.outputs) as u64;
            let what = format!("tensor \"{}\" of \"{}\"", self.name, self.gguf.path().display());
            Error::OutOfMemory { what, needed_mb: size.div_ceil(1 << 20), limit_mb: None }
        })?;
        self.packed = Some(Arc::new(packed));
        Ok(self)
    }

    /// Dequantizes row `index`, for example a token's embedding.
    pub(crate) fn row(&self, index: usize, out: &mut [f32]) {
        let row_bytes = self.inputs / self.format.block() * self.format.source_bytes();
        self.format.dequantize_row(&self.data()[index * row_bytes..(index + 1) * row_bytes], out);
    }

    fn data(&self) -> &[u8] {
        // `load` has seen it.
        self.gguf.opt_tensor(&self.name).ok().flatten().map_or(&[], |tensor| tensor.data)
    }
}

impl Linear for Matrix {
    fn forward(&self, x: &[f32], y: &mut [f32], scratch: &mut Activations, pool: &Pool) {
        let Some(packed) = &self.packed else { unreachable!("layers are packed when a model is loaded") };
        products(&[packed], x, &mut [y], scratch, Instructions::best(), pool);
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn packed(&self) -> Option<&Packed> {
        self.packed.as_deref()
    }
}

/// A floating-point vector of `length` values, widened to f32.
///
/// # Errors
/// As [`Matrix::load`].
pub(super) fn vector(gguf: &Gguf, name: &str, length: usize) -> Result<Vec<f32>, Error> {
    let tensor = gguf.tensor(name)?;
    expect_shape(gguf, &tensor, &[length])?;
    let mut values = vec![0.0; length];
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
/// As [`Matrix::load`].
pub(super) fn opt_vector(gguf: &Gguf, name: &str, length: usize) -> Result<Option<Vec<f32>>, Error> {
    match gguf.opt_tensor(name)? {
        Some(_) => vector(gguf, name, length).map(Some),
        None => Ok(None),
    }
}

/// Checks a shape; trailing dimensions of 1 mean nothing.
fn expect_shape(gguf: &Gguf, tensor: &Tensor<'_>, expected: &[usize]) -> Result<(), Error> {
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
