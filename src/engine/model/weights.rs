//! Weights of a model: matrices that are repacked or stay in the mapped file, vectors that are widened to f32.

use std::sync::Arc;

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
};

use crate::Error;
use crate::gguf::{GgmlType, Gguf, Tensor};
use crate::kernels::matrix::{Format, Instructions, Packed, products};
use crate::kernels::quantized::Scratch;
use crate::kernels::{Pool, float, quantized};

/// A linear layer without bias.
pub(crate) trait Linear: Send + Sync {
    /// `y = x · Wᵀ`: for each row of `x` (`inputs` values) a row of `y` (`outputs` values). A row of the
    /// result depends on its row of `x` only.
    fn forward(&self, x: &[f32], y: &mut [f32], scratch: &mut Scratch, pool: &Pool);

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
    scratch: &mut Scratch,
    pool: &Pool,
) {
    let packed: Vec<&Packed> = layers.iter().filter_map(|layer| layer.packed()).collect();
    if packed.len() == N {
        products(&packed, x, &mut ys, &mut scratch.activations, Instructions::best(), pool);
    } else {
        for (layer, y) in layers.into_iter().zip(ys) {
            layer.forward(x, y, scratch, pool);
        }
    }
}

/// The format of panels for an element type, where there are kernels for it.
fn panel_format(kind: GgmlType) -> Option<Format> {
    match kind {
        GgmlType::Q8_0 => Some(Format::Q8_0),
        GgmlType::Q4_0 => Some(Format::Q4_0),
        GgmlType::Q4_K => Some(Format::Q4_K),
        GgmlType::Q6_K => Some(Format::Q6_K),
        _ => None,
    }
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
    kind: GgmlType,
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
        let (gguf_clone, kind) = (gguf.clone(), tensor.kind);
        let matrix = Matrix { gguf: gguf_clone, name: name.to_owned(), kind, inputs, outputs, packed: None };
        let data = tensor.data;
        let sound = match tensor.kind {
            // The reader has checked the size, and these are read byte by byte.
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => true,
            GgmlType::Q4_0 => quantized::fits::<BlockQ4_0>(data, inputs, outputs),
            GgmlType::Q4_1 => quantized::fits::<BlockQ4_1>(data, inputs, outputs),
            GgmlType::Q5_0 => quantized::fits::<BlockQ5_0>(data, inputs, outputs),
            GgmlType::Q5_1 => quantized::fits::<BlockQ5_1>(data, inputs, outputs),
            GgmlType::Q8_0 => quantized::fits::<BlockQ8_0>(data, inputs, outputs),
            GgmlType::Q2_K => quantized::fits::<BlockQ2K>(data, inputs, outputs),
            GgmlType::Q3_K => quantized::fits::<BlockQ3K>(data, inputs, outputs),
            GgmlType::Q4_K => quantized::fits::<BlockQ4K>(data, inputs, outputs),
            GgmlType::Q5_K => quantized::fits::<BlockQ5K>(data, inputs, outputs),
            GgmlType::Q6_K => quantized::fits::<BlockQ6K>(data, inputs, outputs),
            other => {
                return Err(gguf.unsupported(format!("tensor \"{name}\" has the element type {other}")));
            }
        };
        if sound {
            Ok(matrix)
        } else {
            Err(gguf.corrupt(format!("tensor \"{name}\" is not aligned, or its rows are not whole blocks")))
        }
    }

    /// Repacks the weights for multiplication where there are kernels for their type.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn pack(mut self) -> Result<Matrix, Error> {
        if let Some(format) = panel_format(self.kind) {
            let packed = Packed::new(format, self.data(), self.inputs, self.outputs).map_err(|_| {
                let size = Packed::size(format, self.inputs, self.outputs) as u64;
                let what = format!("tensor \"{}\" of \"{}\"", self.name, self.gguf.path().display());
                Error::OutOfMemory { what, needed_mb: size.div_ceil(1 << 20), limit_mb: None }
            })?;
            self.packed = Some(Arc::new(packed));
        }
        Ok(self)
    }

    /// Dequantizes row `index`, for example a token's embedding.
    pub(crate) fn row(&self, index: usize, out: &mut [f32]) {
        let data = self.data();
        match self.kind {
            GgmlType::F32 => float::row::<float::F32>(data, index, out),
            GgmlType::F16 => float::row::<float::F16>(data, index, out),
            GgmlType::BF16 => float::row::<float::Bf16>(data, index, out),
            GgmlType::Q4_0 => quantized::row::<BlockQ4_0>(data, index, out),
            GgmlType::Q4_1 => quantized::row::<BlockQ4_1>(data, index, out),
            GgmlType::Q5_0 => quantized::row::<BlockQ5_0>(data, index, out),
            GgmlType::Q5_1 => quantized::row::<BlockQ5_1>(data, index, out),
            GgmlType::Q8_0 => quantized::row::<BlockQ8_0>(data, index, out),
            GgmlType::Q2_K => quantized::row::<BlockQ2K>(data, index, out),
            GgmlType::Q3_K => quantized::row::<BlockQ3K>(data, index, out),
            GgmlType::Q4_K => quantized::row::<BlockQ4K>(data, index, out),
            GgmlType::Q5_K => quantized::row::<BlockQ5K>(data, index, out),
            GgmlType::Q6_K => quantized::row::<BlockQ6K>(data, index, out),
            other => unreachable!("{other} is refused by `load`"),
        }
    }

    fn data(&self) -> &[u8] {
        // `load` has seen it.
        self.gguf.opt_tensor(&self.name).ok().flatten().map_or(&[], |tensor| tensor.data)
    }
}

impl Linear for Matrix {
    fn forward(&self, x: &[f32], y: &mut [f32], scratch: &mut Scratch, pool: &Pool) {
        if let Some(packed) = &self.packed {
            let activations = &mut scratch.activations;
            return products(&[packed], x, &mut [y], activations, Instructions::best(), pool);
        }
        let (data, size) = (self.data(), (self.inputs, self.outputs));
        match self.kind {
            GgmlType::F32 => float::product::<float::F32>(data, size, x, y, pool),
            GgmlType::F16 => float::product::<float::F16>(data, size, x, y, pool),
            GgmlType::BF16 => float::product::<float::Bf16>(data, size, x, y, pool),
            GgmlType::Q4_1 => quantized::product::<BlockQ4_1>(data, size, x, y, scratch, pool),
            GgmlType::Q5_0 => quantized::product::<BlockQ5_0>(data, size, x, y, scratch, pool),
            GgmlType::Q5_1 => quantized::product::<BlockQ5_1>(data, size, x, y, scratch, pool),
            GgmlType::Q2_K => quantized::product::<BlockQ2K>(data, size, x, y, scratch, pool),
            GgmlType::Q3_K => quantized::product::<BlockQ3K>(data, size, x, y, scratch, pool),
            GgmlType::Q5_K => quantized::product::<BlockQ5K>(data, size, x, y, scratch, pool),
            other => unreachable!("{other} is refused by `load` or packed"),
        }
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
    match tensor.kind {
        GgmlType::F32 => float::row::<float::F32>(tensor.data, 0, &mut values),
        GgmlType::F16 => float::row::<float::F16>(tensor.data, 0, &mut values),
        GgmlType::BF16 => float::row::<float::Bf16>(tensor.data, 0, &mut values),
        other => return Err(gguf.unsupported(format!("tensor \"{name}\" has the element type {other}"))),
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
