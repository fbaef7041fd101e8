//! Random tensors in any type that candle can quantize.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor as Dense};

use crate::gguf::Tensor;
use crate::random::Random;
use crate::{Error, Kind, nonlinear};

impl Kind {
    /// Candle's name for the type; None where it has none.
    fn dtype(self) -> Option<GgmlDType> {
        Some(match self {
            Kind::F32 => GgmlDType::F32,
            Kind::F16 => GgmlDType::F16,
            Kind::BF16 => GgmlDType::BF16,
            Kind::Q4_0 => GgmlDType::Q4_0,
            Kind::Q4_1 => GgmlDType::Q4_1,
            Kind::Q5_0 => GgmlDType::Q5_0,
            Kind::Q5_1 => GgmlDType::Q5_1,
            Kind::Q8_0 => GgmlDType::Q8_0,
            Kind::Q2K => GgmlDType::Q2K,
            Kind::Q3K => GgmlDType::Q3K,
            Kind::Q4K => GgmlDType::Q4K,
            Kind::Q5K => GgmlDType::Q5K,
            Kind::Q6K => GgmlDType::Q6K,
            Kind::IQ4NL | Kind::IQ4XS | Kind::MXFP4 | Kind::TQ1_0 | Kind::TQ2_0 => return None,
        })
    }

    /// Its number in `enum ggml_type`.
    pub fn number(self) -> u32 {
        match self {
            Kind::F32 => 0,
            Kind::F16 => 1,
            Kind::Q4_0 => 2,
            Kind::Q4_1 => 3,
            Kind::Q5_0 => 6,
            Kind::Q5_1 => 7,
            Kind::Q8_0 => 8,
            Kind::Q2K => 10,
            Kind::Q3K => 11,
            Kind::Q4K => 12,
            Kind::Q5K => 13,
            Kind::Q6K => 14,
            Kind::IQ4NL => 20,
            Kind::IQ4XS => 23,
            Kind::BF16 => 30,
            Kind::TQ1_0 => 34,
            Kind::TQ2_0 => 35,
            Kind::MXFP4 => 39,
        }
    }
}

/// A matrix of `rows` rows of length `row`: normal numbers around 0 with this deviation.
pub(crate) fn matrix(
    seed: u64,
    name: String,
    row: usize,
    rows: usize,
    deviation: f32,
    kind: Kind,
) -> Result<Tensor, Error> {
    let mut random = Random::named(seed, &name);
    let values: Vec<f32> = (0..row * rows).map(|_| random.normal() * deviation).collect();
    quantize(name, vec![row, rows], values, kind)
}

/// `count` matrices of `rows` rows of length `row`, one after the other: those of experts.
pub(crate) fn matrices(
    seed: u64,
    name: String,
    [row, rows, count]: [usize; 3],
    deviation: f32,
    kind: Kind,
) -> Result<Tensor, Error> {
    let mut tensor = matrix(seed, name, row, rows * count, deviation, kind)?;
    tensor.shape = vec![row, rows, count];
    Ok(tensor)
}

/// A vector in F32, as all norms and biases are: normal numbers around `mean`.
pub(crate) fn vector(
    seed: u64,
    name: String,
    length: usize,
    mean: f32,
    deviation: f32,
) -> Result<Tensor, Error> {
    let mut random = Random::named(seed, &name);
    let values: Vec<f32> = (0..length).map(|_| mean + random.normal() * deviation).collect();
    quantize(name, vec![length], values, Kind::F32)
}

pub(crate) fn quantize(
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
    kind: Kind,
) -> Result<Tensor, Error> {
    let dtype = kind.dtype();
    let row = shape.first().copied().unwrap_or_default();
    let block = dtype.map_or_else(|| nonlinear::block(kind), |dtype| dtype.block_size());
    if !row.is_multiple_of(block) {
        return Err(Error::Spec(format!(
            "tensor {name} has rows of {row}, {kind:?} needs a multiple of {block}"
        )));
    }
    let data = if kind == Kind::F32 {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    } else if let Some(dtype) = dtype {
        let reversed: Vec<usize> = shape.iter().rev().copied().collect();
        let dense = Dense::from_vec(values, reversed, &Device::Cpu)?;
        QTensor::quantize(&dense, dtype)?.data()?.into_owned()
    } else {
        nonlinear::quantize(kind, &values)?
    };
    Ok(Tensor { name, shape, kind: kind.number(), data })
}
