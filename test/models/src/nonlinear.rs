//! IQ4_NL, IQ4_XS and MXFP4, which candle does not know: four bits a weight that choose among 16 levels; and
//! the types of [`ternary`]. Scales are the simplest that do, not the best.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor as Dense};

use crate::{Error, Kind, ternary};

/// `kvalues_iq4nl` of ggml.
const LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// The values of MXFP4: a sign, two bits of exponent, one of mantissa.
const FOUR_BITS: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Weights of a block.
pub(crate) fn block(kind: Kind) -> usize {
    if matches!(kind, Kind::IQ4XS | Kind::TQ1_0 | Kind::TQ2_0) { 256 } else { 32 }
}

/// The blocks of some weights.
pub(crate) fn quantize(kind: Kind, values: &[f32]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    for block in values.chunks_exact(block(kind)) {
        match kind {
            Kind::IQ4XS => {
                let scales: Vec<f32> = block.chunks_exact(32).map(scale).collect();
                let whole = half(scales.iter().fold(0.0f32, |most, scale| most.max(*scale)) / 31.0)?;
                // Six bits each, 32 being none: the upper two of all first, then the lower four.
                let sixes: Vec<u16> = scales
                    .iter()
                    .map(
                        |scale| {
                            if whole.0 > 0.0 { (scale / whole.0).round().min(31.0) as u16 + 32 } else { 32 }
                        },
                    )
                    .collect();
                bytes.extend(whole.1);
                let high = (0..).zip(&sixes).fold(0, |high, (at, six)| high | (six >> 4) << (2 * at));
                bytes.extend(high.to_le_bytes());
                bytes.extend(sixes.chunks_exact(2).map(|pair| (pair[0] & 15 | (pair[1] & 15) << 4) as u8));
                for (part, six) in block.chunks_exact(32).zip(&sixes) {
                    push(&LEVELS, part, whole.0 * f32::from(six - 32), &mut bytes);
                }
            }
            Kind::MXFP4 => {
                // The power of two that puts the greatest weight into the highest octave, 4 to 8.
                let most = block.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                let exponent = (most.to_bits() >> 23).saturating_sub(2) as u8;
                bytes.push(exponent);
                let power = if exponent == 0 { 0.0 } else { f32::from_bits(u32::from(exponent) << 23) };
                push(&FOUR_BITS, block, power, &mut bytes);
            }
            Kind::TQ1_0 | Kind::TQ2_0 => {
                // The scale is the mean distance of the weights from 0: two thirds of them are rounded away
                // from it.
                let mean = block.iter().map(|value| value.abs()).sum::<f32>() / block.len() as f32;
                let scale = half(mean)?;
                bytes.extend(ternary::digits(kind, block, scale.0));
                bytes.extend(scale.1);
            }
            _ => {
                let scale = half(scale(block))?;
                bytes.extend(scale.1);
                push(&LEVELS, block, scale.0, &mut bytes);
            }
        }
    }
    Ok(bytes)
}

/// The scale by which the greatest of 32 weights becomes the greatest level.
fn scale(part: &[f32]) -> f32 {
    part.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 113.0
}

/// The nearest levels of 32 weights, those of the second half in the upper bits.
fn push(levels: &[f32; 16], part: &[f32], scale: f32, bytes: &mut Vec<u8>) {
    let nearest = |value: f32| {
        let level = if scale > 0.0 { value / scale } else { 0.0 };
        let distance = |at: &usize| (levels[*at] - level).abs();
        (0..16).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or_default() as u8
    };
    let (low, high) = part.split_at(16);
    bytes.extend(low.iter().zip(high).map(|(low, high)| nearest(*low) | nearest(*high) << 4));
}

/// A value as f16, and its bytes.
fn half(value: f32) -> Result<(f32, Vec<u8>), Error> {
    let dense = Dense::from_vec(vec![value], vec![1], &Device::Cpu)?;
    let tensor = QTensor::quantize(&dense, GgmlDType::F16)?;
    let rounded = tensor.dequantize(&Device::Cpu)?.to_vec1::<f32>()?;
    Ok((rounded.first().copied().unwrap_or_default(), tensor.data()?.into_owned()))
}
