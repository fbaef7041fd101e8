//! The layers that blocks are made of, as tensors: products with a bias, and norms.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor, bail};

use super::raised;
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::ggml::{self, Weights};
use crate::model::spec::{NormKind, NormSpec};
use crate::model::{expect_shape, floats, format_of, opt_vector, vector};

/// The purpose of the memory, as errors name it.
pub(super) const WEIGHTS: &str = "the weights of a model";

/// The file that weights come from, and the device that they go to.
#[derive(Clone, Copy)]
pub(super) struct WeightSource<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) device: &'a Device,
}

impl WeightSource<'_> {
    /// A floating-point tensor of the file, whose dimensions are `shape` from the fastest one.
    ///
    /// # Errors
    /// As [`floats`].
    pub(super) fn floats(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        let values = floats(self.gguf, name, shape)?;
        let dimensions: Vec<usize> = shape.iter().rev().copied().collect();
        Tensor::from_vec(values, dimensions, self.device).map_err(raised)
    }

    /// A vector of the file, if it is there.
    ///
    /// # Errors
    /// As [`opt_vector`].
    pub(super) fn opt_vector(&self, name: &str, length: usize) -> Result<Option<Tensor>, Error> {
        let values = opt_vector(self.gguf, name, length)?;
        values.map(|values| Tensor::new(values, self.device).map_err(raised)).transpose()
    }

    /// A vector of equal values.
    fn filled(&self, value: f32, length: usize) -> Result<Tensor, Error> {
        Tensor::new(vec![value; length], self.device).map_err(raised)
    }

    /// A vector of the file.
    ///
    /// # Errors
    /// As [`vector`].
    pub(super) fn vector(&self, name: &str, length: usize) -> Result<Tensor, Error> {
        Tensor::new(vector(self.gguf, name, length)?, self.device).map_err(raised)
    }
}

/// Rows of a matrix, `[outputs, inputs]`, which may be part of a larger one.
#[derive(Clone)]
pub(super) struct CandleMatrix {
    weights: Arc<dyn Weights>,
    inputs: usize,
    outputs: Range<usize>,
}

impl CandleMatrix {
    /// The tensor `name`, which must have `outputs` rows of `inputs` values.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it is missing or has another shape, [`Error::UnsupportedModel`] where
    /// its type cannot be multiplied, [`Error::OutOfMemory`].
    pub(super) fn load(
        source: WeightSource<'_>,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<CandleMatrix, Error> {
        CandleMatrix::of_shape(source, name, &[inputs, outputs])
    }

    /// The tensor `name` of this shape; with three dimensions it is several matrices one after the other.
    ///
    /// # Errors
    /// As [`CandleMatrix::load`].
    pub(super) fn of_shape(
        source: WeightSource<'_>,
        name: &str,
        shape: &[usize],
    ) -> Result<CandleMatrix, Error> {
        let tensor = source.gguf.tensor(name)?;
        expect_shape(source.gguf, &tensor, shape)?;
        let (inputs, outputs) = (shape[0], shape[1..].iter().product());
        let format = format_of(source.gguf, &tensor, inputs, outputs)?;
        let weights = ggml::load(format, tensor.data, inputs, WEIGHTS)?;
        Ok(CandleMatrix { weights, inputs, outputs: 0..outputs })
    }

    /// Some of its rows.
    pub(super) fn part(&self, outputs: Range<usize>) -> CandleMatrix {
        let start = self.outputs.start;
        CandleMatrix { outputs: start + outputs.start..start + outputs.end, ..self.clone() }
    }

    /// `x · Wᵀ` of rows `[rows, inputs]`: `[rows, outputs]`.
    pub(super) fn forward(&self, x: &Tensor, pool: &Pool) -> candle_core::Result<Tensor> {
        x.apply_op1_no_bwd(&Product { matrix: self, pool })
    }

    /// Row `index`, widened.
    pub(super) fn row(&self, index: usize, out: &mut [f32]) {
        self.weights.row(self.outputs.start + index, out);
    }
}

/// [`CandleMatrix::forward`] as candle calls it.
struct Product<'a> {
    matrix: &'a CandleMatrix,
    pool: &'a Pool,
}

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let CandleMatrix { weights, inputs, outputs } = self.matrix;
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("rows of a product are strided") };
        let (rows, width) = layout.shape().dims2()?;
        if width != *inputs {
            bail!("rows of {width} values are multiplied with a matrix of {inputs}");
        }
        let x = &storage.as_slice::<f32>()?[start..end];
        let mut y = vec![0.0; rows * outputs.len()];
        weights.multiply(x, outputs.clone(), &mut y, self.pool);
        Ok((CpuStorage::F32(y), Shape::from((rows, outputs.len()))))
    }
}

/// A matrix with or without bias `[outputs]`.
pub(super) struct CandleDense {
    matrix: CandleMatrix,
    bias: Option<Tensor>,
}

impl CandleDense {
    /// `{name}.weight`, and `{name}.bias` if the file has it.
    ///
    /// # Errors
    /// As [`CandleMatrix::load`].
    pub(super) fn load(
        source: WeightSource<'_>,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<CandleDense, Error> {
        Ok(CandleDense {
            matrix: CandleMatrix::load(source, &format!("{name}.weight"), inputs, outputs)?,
            bias: source.opt_vector(&format!("{name}.bias"), outputs)?,
        })
    }

    /// Some of its outputs.
    ///
    /// # Errors
    /// [`Error::Panicked`] where they are not there.
    pub(super) fn part(&self, outputs: Range<usize>) -> Result<CandleDense, Error> {
        let bias = self.bias.as_ref().map(|bias| bias.narrow(0, outputs.start, outputs.len()));
        Ok(CandleDense { matrix: self.matrix.part(outputs), bias: bias.transpose().map_err(raised)? })
    }

    /// The products with the rows `[rows, inputs]`: `[rows, outputs]`.
    pub(super) fn forward(&self, x: &Tensor, pool: &Pool) -> candle_core::Result<Tensor> {
        let y = self.matrix.forward(x, pool)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// A norm of rows as long as its weight.
pub(super) struct CandleNorm {
    weight: Tensor,
    /// The bias of a norm that subtracts the mean.
    bias: Option<Tensor>,
    epsilon: f32,
}

impl CandleNorm {
    /// `{name}.weight` `[width]`, and `{name}.bias` `[width]` where the kind of norm has one.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where one is missing or has another length.
    pub(super) fn load(
        source: WeightSource<'_>,
        name: &str,
        spec: NormSpec,
        width: usize,
    ) -> Result<CandleNorm, Error> {
        let bias = match spec.kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(source.vector(&format!("{name}.bias"), width)?),
            NormKind::LayerWithoutBias => Some(source.filled(0.0, width)?),
        };
        let weight = source.vector(&format!("{name}.weight"), width)?;
        Ok(CandleNorm { weight, bias, epsilon: spec.epsilon })
    }

    /// A norm whose weights are 1.
    ///
    /// # Errors
    /// [`Error::Panicked`] for a bug.
    pub(super) fn unweighted(
        source: WeightSource<'_>,
        spec: NormSpec,
        width: usize,
    ) -> Result<CandleNorm, Error> {
        let bias = match spec.kind {
            NormKind::Rms => None,
            NormKind::Layer | NormKind::LayerWithoutBias => Some(source.filled(0.0, width)?),
        };
        Ok(CandleNorm { weight: source.filled(1.0, width)?, bias, epsilon: spec.epsilon })
    }

    /// The norm of each row along the last dimension.
    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.contiguous()?;
        match &self.bias {
            Some(bias) => candle_nn::ops::layer_norm(&x, &self.weight, bias, self.epsilon),
            None => candle_nn::ops::rms_norm(&x, &self.weight, self.epsilon),
        }
    }
}
