//! Weights of a model: matrices, packed or in the mapped file, and vectors that are widened to f32.
//!
//! GGUF names the dimensions of a tensor from the fastest one: a matrix `[outputs, inputs]` has the shape
//! `[inputs, outputs]` in the file.

use std::ops::Range;

use crate::Error;
use crate::gguf::{Gguf, Tensor};
use crate::kernels::Pool;
use crate::kernels::matrix::{Activations, Format, Make, PANEL, Packed, grouped_products, products};

use super::packed_weights::PackedWeights;
use super::tensors::{expect_shape, panel_format};

/// A matrix `[outputs, inputs]` of the model's file, in any format that can be multiplied.
#[derive(Clone)]
pub(crate) struct Matrix {
    gguf: Gguf,
    name: String,
    format: Format,
    inputs: usize,
    outputs: usize,
    packed: Option<Packed>,
}

impl Matrix {
    /// The tensor `name`, which must have `outputs` rows of `inputs` values.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it is missing or has another shape, [`Error::UnsupportedModel`] where
    /// its type cannot be multiplied.
    pub(crate) fn load(gguf: &Gguf, name: &str, inputs: usize, outputs: usize) -> Result<Matrix, Error> {
        expect_shape(gguf, &gguf.tensor(name)?, &[inputs, outputs])?;
        Matrix::of_rows(gguf, name, inputs, outputs)
    }

    /// The tensor `name`, whose shape was checked.
    fn of_rows(gguf: &Gguf, name: &str, inputs: usize, outputs: usize) -> Result<Matrix, Error> {
        let format = format_of(gguf, &gguf.tensor(name)?, inputs, outputs)?;
        Ok(Matrix { gguf: gguf.clone(), name: name.to_owned(), format, inputs, outputs, packed: None })
    }

    /// Takes the packed weights; None before they are made.
    ///
    /// # Errors
    /// As [`PackedWeights::get`].
    pub(crate) fn pack(mut self, panels: Option<&PackedWeights>) -> Result<Matrix, Error> {
        if let Some(panels) = panels {
            self.packed = Some(panels.get(&self.gguf, &self.name, self.inputs, self.outputs)?);
        }
        Ok(self)
    }

    /// Some of its rows as a matrix of their own, for families that keep several matrices in one tensor.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] where they are not whole panels.
    pub(super) fn part(&self, outputs: Range<usize>) -> Result<Matrix, Error> {
        let Range { start, end } = outputs.clone();
        if !(start.is_multiple_of(PANEL) && (end.is_multiple_of(PANEL) || end == self.outputs)) {
            return Err(self.gguf.unsupported(format!(
                "rows {start} to {end} of tensor \"{}\" are not a multiple of {PANEL}",
                self.name
            )));
        }
        let packed = self.packed.as_ref().map(|packed| packed.part(outputs));
        Ok(Matrix { outputs: end - start, packed, ..self.clone() })
    }

    /// Dequantizes row `index`, for example a token's embedding.
    pub(crate) fn row(&self, index: usize, out: &mut [f32]) {
        if let Some(packed) = &self.packed {
            return packed.row(index, out);
        }
        let row_bytes = self.inputs / self.format.block() * self.format.source_bytes();
        self.format.dequantize_row(&self.data()[index * row_bytes..(index + 1) * row_bytes], out);
    }

    /// `y = x · Wᵀ`: for each row of `x` `[rows, inputs]` a row of `y` `[rows, outputs]`. A row of the result
    /// depends on its row of `x` only. Where `make` is given it makes the rows of `x` first.
    pub(super) fn multiply(
        &self,
        x: &mut [f32],
        make: Option<Make<'_>>,
        y: &mut [f32],
        scratch: &mut Activations,
        pool: &Pool,
    ) {
        products(&[self.packed()], x, make, &mut [y], scratch, pool);
    }

    /// One column of the result: output `index` for each row of `x` `[rows, inputs]`, the same bytes as
    /// [`Matrix::multiply`] gives it.
    pub(super) fn output(
        &self,
        index: usize,
        x: &mut [f32],
        scratch: &mut Activations,
        pool: &Pool,
    ) -> Vec<f32> {
        let (panel, column) = self.packed().panel_of(index);
        let mut y = vec![0.0; x.len() / self.inputs * panel.outputs()];
        products(&[&panel], x, None, &mut [&mut y], scratch, pool);
        y.chunks_exact(panel.outputs()).map(|row| row[column]).collect()
    }

    /// Length of a row of the input.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Length of a row of the result.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    fn packed(&self) -> &Packed {
        let Some(packed) = &self.packed else { unreachable!("matrices are packed when a model is loaded") };
        packed
    }

    fn data(&self) -> &[u8] {
        // `load` has found it.
        self.gguf.opt_tensor(&self.name).ok().flatten().map_or(&[], |tensor| tensor.data)
    }
}

/// The format of a tensor that is multiplied as `outputs` rows of `inputs` values.
///
/// # Errors
/// [`Error::UnsupportedModel`] where its type has no kernels, [`Error::CorruptModel`] where its rows are not
/// whole blocks.
pub(crate) fn format_of(
    gguf: &Gguf,
    tensor: &Tensor<'_>,
    inputs: usize,
    outputs: usize,
) -> Result<Format, Error> {
    let Some(format) = panel_format(tensor.kind) else {
        return Err(gguf.unsupported_but(
            format!("tensor \"{}\" has the element type {}, which has no kernels", tensor.name, tensor.kind),
            super::other_quantizations(),
        ));
    };
    let blocks = inputs / format.block() * outputs;
    if !inputs.is_multiple_of(format.block()) || tensor.data.len() != blocks * format.source_bytes() {
        return Err(gguf.corrupt(format!("the rows of tensor \"{}\" are not whole blocks", tensor.name)));
    }
    Ok(format)
}

/// Matrices of one shape in one tensor, one after the other: those of experts.
pub(super) struct ExpertMatrices {
    inputs: usize,
    outputs: usize,
    /// Each one's panels, once they are made.
    packed: Vec<Packed>,
}

impl ExpertMatrices {
    /// The tensor `name`, which must have `count` times `outputs` rows of `inputs` values.
    ///
    /// # Errors
    /// As [`Matrix::load`], [`Matrix::pack`] and [`Matrix::part`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &str,
        [inputs, outputs, count]: [usize; 3],
    ) -> Result<ExpertMatrices, Error> {
        let [matrices] = ExpertMatrices::load_parts(gguf, packed, name, [inputs, outputs, count])?;
        Ok(matrices)
    }

    /// The same where each of the `count` matrices is N matrices of `outputs` rows, one after the other.
    ///
    /// # Errors
    /// As [`ExpertMatrices::load`].
    pub(super) fn load_parts<const N: usize>(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &str,
        [inputs, outputs, count]: [usize; 3],
    ) -> Result<[ExpertMatrices; N], Error> {
        // The shape was checked against the tensor's bytes, so the number of matrices is within bounds.
        expect_shape(gguf, &gguf.tensor(name)?, &[inputs, N * outputs, count])?;
        let all = Matrix::of_rows(gguf, name, inputs, N * outputs * count)?.pack(packed)?;
        let first = all.part(0..outputs)?;
        Ok(std::array::from_fn(|part| {
            let packed = all.packed.iter().flat_map(|all| {
                (0..count).map(move |index| {
                    let start = (index * N + part) * outputs;
                    all.part(start..start + outputs)
                })
            });
            ExpertMatrices { inputs: first.inputs, outputs: first.outputs, packed: packed.collect() }
        }))
    }

    /// Length of a row of the input.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Length of a row of a result.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }
}

/// Matrices of one shape in one tensor, each by itself.
///
/// # Errors
/// As [`ExpertMatrices::load`].
pub(super) fn matrices_of(
    gguf: &Gguf,
    packed: Option<&PackedWeights>,
    name: &str,
    [inputs, outputs, count]: [usize; 3],
) -> Result<Vec<Matrix>, Error> {
    expect_shape(gguf, &gguf.tensor(name)?, &[inputs, outputs, count])?;
    let all = Matrix::of_rows(gguf, name, inputs, outputs * count)?.pack(packed)?;
    (0..count).map(|index| all.part(index * outputs..(index + 1) * outputs)).collect()
}

/// Products of each group of rows with the matrix of its number: for each row of `x` `[rows, inputs]` in a
/// group a row of each `y` `[rows, outputs]`. Where `make` is given it makes the rows of `x` first.
pub(super) fn multiply_groups<const N: usize>(
    matrices: [&ExpertMatrices; N],
    groups: &[Range<usize>],
    x: &mut [f32],
    make: Option<Make<'_>>,
    mut ys: [&mut [f32]; N],
    scratch: &mut Activations,
    pool: &Pool,
) {
    let packed = matrices.map(|matrices| &matrices.packed[..]);
    grouped_products(&packed, groups, x, make, &mut ys, scratch, pool);
}

/// Products of several matrices with one input, which is made and quantized once for all of them: for each
/// row of `x` `[rows, inputs]` a row of each `y` `[rows, outputs]`. Where `make` is given it makes the rows
/// of `x` first.
pub(super) fn multiply_all<const N: usize>(
    matrices: [&Matrix; N],
    x: &mut [f32],
    make: Option<Make<'_>>,
    mut ys: [&mut [f32]; N],
    scratch: &mut Activations,
    pool: &Pool,
) {
    let packed = matrices.map(Matrix::packed);
    products(&packed, x, make, &mut ys, scratch, pool);
}
