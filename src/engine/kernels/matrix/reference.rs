//! Scalar products straight from ggml's block layouts, against which panels and kernels are checked. It
//! shares no code with them.

use super::Format;
use super::layout::{E2M1, IQ4};

/// One block, with the offsets of its weights subtracted.
pub(super) struct DecodedBlock {
    pub(super) weights: Vec<i32>,
    /// Sub-scales and minima of equally long parts.
    pub(super) scales: Vec<i32>,
    pub(super) minima: Vec<i32>,
    pub(super) d: f32,
    pub(super) m: f32,
}

fn half(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The places of the f16 scales of a block.
pub(super) fn halves(format: Format) -> &'static [usize] {
    match format {
        Format::F32 | Format::F16 | Format::BF16 | Format::MXFP4 => &[],
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::IQ4_NL | Format::IQ4_XS => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
        Format::TQ1_0 => &[52],
        Format::TQ2_0 => &[64],
    }
}

/// The values of a floating-point row.
fn floats(format: Format, row: &[u8]) -> Vec<f32> {
    match format {
        Format::F32 => row.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Format::F16 => row.chunks(2).map(|b| half(b, 0)).collect(),
        _ => row.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// The 6-bit scale and minimum `i` of Q4_K and Q5_K.
fn six_bits(bytes: &[u8], i: usize) -> (i32, i32) {
    let bits = bytes.iter().rev().fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    let field = |at: usize, width: usize| (bits >> at & ((1 << width) - 1)) as i32;
    if i < 4 {
        (field(i * 8, 6), field(32 + i * 8, 6))
    } else {
        let j = i - 4;
        (field(64 + j * 8, 4) | field(j * 8 + 6, 2) << 4, field(68 + j * 8, 4) | field(38 + j * 8, 2) << 4)
    }
}

pub(super) fn read(format: Format, b: &[u8]) -> DecodedBlock {
    let bit = |at: usize, bit: usize| i32::from(b[at + bit / 8] >> (bit % 8) & 1);
    let nibble = |at: usize, high: bool| i32::from(if high { b[at] >> 4 } else { b[at] & 15 });
    let size = format.block();
    let d = match format {
        Format::MXFP4 => 2f64.powi(i32::from(b[0]) - 128) as f32,
        _ => half(b, halves(format)[0]),
    };
    let m = halves(format).get(1).map_or(0.0, |at| half(b, *at));
    let weight = |k: usize| -> i32 {
        // For blocks of 32: the first 16 are low nibbles.
        let small = |at: usize| nibble(at + k % 16, k >= 16);
        match format {
            Format::Q8_0 => i32::from(b[2 + k] as i8),
            Format::Q4_0 => small(2) - 8,
            Format::Q4_1 => small(4),
            Format::Q5_0 => small(6) + 16 * bit(2, k) - 16,
            Format::Q5_1 => small(8) + 16 * bit(4, k),
            Format::IQ4_NL => i32::from(IQ4[small(2) as usize]),
            Format::MXFP4 => i32::from(E2M1[small(1) as usize]),
            Format::IQ4_XS => i32::from(IQ4[nibble(8 + k / 32 * 16 + k % 16, k % 32 >= 16) as usize]),
            Format::Q2_K => i32::from(b[16 + k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3),
            Format::Q3_K => {
                let low = i32::from(b[32 + k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3);
                low + 4 * i32::from(b[k % 32] >> (k / 32) & 1) - 4
            }
            Format::TQ1_0 => {
                // Ternary digits, of which the first is the most significant of a fixed-point number.
                let (at, digit) = match k {
                    0..160 => (k % 32, k / 32),
                    160..240 => (32 + k % 16, (k - 160) / 16),
                    _ => (48 + k % 4, (k - 240) / 4),
                };
                let fraction = (0..digit).fold(u32::from(b[at]), |fraction, _| fraction * 3 % 256);
                (fraction * 3 / 256) as i32 - 1
            }
            Format::TQ2_0 => i32::from(b[k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3) - 1,
            Format::Q4_K => nibble(16 + k / 64 * 32 + k % 32, k % 64 >= 32),
            Format::Q5_K => {
                let high = i32::from(b[16 + k % 32] >> (k / 32) & 1);
                nibble(48 + k / 64 * 32 + k % 32, k % 64 >= 32) + 16 * high
            }
            Format::Q6_K => {
                let (half, rest) = (k / 128, k % 128);
                let low = nibble(half * 64 + rest % 64, rest >= 64);
                let high = i32::from(b[128 + half * 32 + rest % 32] >> (rest / 32 * 2) & 3);
                low + 16 * high - 32
            }
            Format::F32 | Format::F16 | Format::BF16 => unreachable!(),
        }
    };
    let (scales, minima): (Vec<i32>, Vec<i32>) = match format {
        Format::Q4_1 | Format::Q5_1 => (vec![1], vec![-1]),
        Format::Q4_K | Format::Q5_K => (0..8).map(|i| six_bits(&b[4..16], i)).unzip(),
        Format::Q2_K => (0..16).map(|i| (nibble(i, false), nibble(i, true))).unzip(),
        Format::Q3_K => {
            let scale = |i: usize| {
                let low = nibble(96 + i % 8, i >= 8);
                low + 16 * i32::from(b[104 + i % 4] >> (i / 4 * 2) & 3) - 32
            };
            ((0..16).map(scale).collect(), vec![])
        }
        Format::Q6_K => ((0..16).map(|i| i32::from(b[192 + i] as i8)).collect(), vec![]),
        Format::IQ4_XS => {
            let high = u16::from_le_bytes([b[2], b[3]]);
            let scale = |i: usize| {
                let low = nibble(4 + i / 2, i % 2 == 1);
                low + 16 * i32::from(high >> (2 * i) & 3) - 32
            };
            ((0..8).map(scale).collect(), vec![])
        }
        _ => (vec![1], vec![]),
    };
    DecodedBlock { weights: (0..size).map(weight).collect(), scales, minima, d, m }
}

/// A row of weights with a row of activations, which are quantized as in the engine.
pub(super) fn product(format: Format, row: &[u8], x: &[f32]) -> f32 {
    let size = format.block();
    if size == 1 {
        return floats(format, row).iter().zip(x).fold(0.0, |sum, (w, x)| w.mul_add(*x, sum));
    }
    let mut sum = 0.0f32;
    for (block, x) in row.chunks(format.source_bytes()).zip(x.chunks(size)) {
        let block = read(format, block);
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let inverse = if largest < 2f32.powi(-100) { 0.0 } else { 127.0 / largest };
        let quants: Vec<i64> =
            x.iter().map(|x| (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i64).collect();
        let scale = largest / 127.0;
        let weighted = |part: usize, weight: &dyn Fn(usize) -> i32| -> i64 {
            let length = size / block.scales.len();
            (part * length..(part + 1) * length).map(|k| i64::from(weight(k)) * quants[k]).sum()
        };
        let total: i64 = (0..block.scales.len())
            .map(|i| i64::from(block.scales[i]) * weighted(i, &|k| block.weights[k]))
            .sum();
        assert!(i32::try_from(total).is_ok());
        sum = (total as f32).mul_add(block.d * scale, sum);
        if !block.minima.is_empty() {
            let minima: i64 =
                (0..block.minima.len()).map(|i| i64::from(block.minima[i]) * weighted(i, &|_| 1)).sum();
            assert!(i32::try_from(minima).is_ok());
            sum = (-(minima as f32)).mul_add(block.m * scale, sum);
        }
    }
    sum
}
