//! The definition of the products of panels: other instruction sets give these bytes.
//!
//! Within a block all products are summed exactly in integers and converted once; blocks follow each other in
//! ascending order, each with one fused multiply-add (formats with minima: two).

use super::BlockTile;
use super::layout::{Format, PANEL, half_of_power};

/// The dot product of the inner loop.
pub(super) trait Dot {
    /// The exact sums of products for each output. Weights are 4 inputs of each output after the other, as
    /// many groups of four as in `x`: 4 or 8.
    fn dot(&self, weights: &[[i8; 64]], x: &[[i8; 4]]) -> [i32; PANEL];

    /// [`Format::unpack`].
    #[inline(always)]
    fn unpack(&self, format: Format, quants: &[u8], out: &mut [i8]) {
        format.unpack(quants, out);
    }
}

/// Kernels without vector instructions of our own.
pub(super) struct Portable;

impl Dot for Portable {
    #[inline(always)]
    fn dot(&self, weights: &[[i8; 64]], x: &[[i8; 4]]) -> [i32; PANEL] {
        let mut sums = [0; PANEL];
        for (weights, x) in weights.iter().zip(x) {
            let x = x.map(i32::from);
            for (sum, w) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
                let w = w.map(i32::from);
                *sum += w[0] * x[0] + w[1] * x[1] + (w[2] * x[2] + w[3] * x[3]);
            }
        }
        sums
    }
}

/// Adds the blocks of a tile to its sums.
pub(super) fn multiply(format: Format, tile: &mut BlockTile<'_>) {
    multiply_with(format, tile, &Portable);
}

/// [`multiply`] with a dot product.
#[inline(always)]
pub(super) fn multiply_with(format: Format, tile: &mut BlockTile<'_>, dot: &impl Dot) {
    let size = format.block();
    let mut unpacked = [[0; 64]; 64];
    let weights = &mut unpacked[..size / 4];
    for block in 0..tile.blocks {
        let quants = &tile.quants[block * tile.quant_stride..][..format.quant_bytes()];
        let meta = &tile.meta[block * tile.meta_stride..][..format.meta_bytes()];
        dot.unpack(format, quants, weights.as_flattened_mut());
        for (row, sums) in tile.sums.iter_mut().enumerate() {
            let x = &tile.x[row * tile.x_stride + block * size..][..size];
            let (total, minima) = sum_block(format, weights, meta, x, dot);
            let scale = tile.scales[row * tile.scale_stride + block];
            let halves = |at: usize, lane: usize| {
                half::f16::from_le_bytes([meta[at + 2 * lane], meta[at + 2 * lane + 1]]).to_f32_const()
            };
            for (lane, (sum, total)) in sums.iter_mut().zip(total).enumerate() {
                let d = if format == Format::MXFP4 { half_of_power(meta[lane]) } else { halves(0, lane) };
                *sum = (total as f32).mul_add(d * scale, *sum);
            }
            if let Some((sign, minima)) = minima {
                for (lane, (sum, minimum)) in sums.iter_mut().zip(minima).enumerate() {
                    *sum = (sign * minimum as f32).mul_add(halves(32, lane) * scale, *sum);
                }
            }
        }
    }
}

/// For each output, the sum that is multiplied with the block's scale; and if the block has minima, their
/// sign and the sum that is multiplied with their scale.
#[inline(always)]
fn sum_block(
    format: Format,
    weights: &[[i8; 64]],
    meta: &[u8],
    x: &[i8],
    dot: &impl Dot,
) -> ([i32; PANEL], Option<(f32, [i32; PANEL])>) {
    let x = x.as_chunks::<4>().0;
    let sum = |x: &[[i8; 4]]| x.as_flattened().iter().map(|x| i32::from(*x)).sum::<i32>();
    // Sums of parts of `length` inputs, times their scales.
    let parts = |length: usize, scale: &dyn Fn(usize, usize) -> i32| {
        let mut total = [0; PANEL];
        let parts = weights.chunks_exact(length / 4).zip(x.chunks_exact(length / 4));
        for (part, (weights, x)) in parts.enumerate() {
            for (lane, (total, sum)) in total.iter_mut().zip(dot.dot(weights, x)).enumerate() {
                *total += sum * scale(part, lane);
            }
        }
        total
    };
    // Sums of the activations of parts, times their minima.
    let minima = |length: usize, minimum: &dyn Fn(usize, usize) -> i32| {
        let mut total = [0; PANEL];
        for (part, x) in x.chunks_exact(length / 4).enumerate() {
            let sum = sum(x);
            for (lane, total) in total.iter_mut().enumerate() {
                *total += sum * minimum(part, lane);
            }
        }
        Some((-1.0, total))
    };
    match format {
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("floating-point weights have no blocks"),
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::IQ4_NL | Format::MXFP4 => {
            (dot.dot(weights, x), None)
        }
        Format::Q4_1 | Format::Q5_1 => (dot.dot(weights, x), Some((1.0, [sum(x); PANEL]))),
        Format::Q4_K | Format::Q5_K => (
            parts(32, &|part, lane| i32::from(meta[64 + part * PANEL + lane])),
            minima(32, &|part, lane| i32::from(meta[192 + part / 2 * 2 * PANEL + 2 * lane + part % 2])),
        ),
        Format::Q2_K => (
            parts(16, &|part, lane| i32::from(meta[64 + part * PANEL + lane] & 15)),
            minima(16, &|part, lane| i32::from(meta[64 + part * PANEL + lane] >> 4)),
        ),
        Format::Q3_K | Format::TQ1_0 | Format::TQ2_0 | Format::Q6_K => {
            (parts(16, &|part, lane| i32::from(meta[32 + part * PANEL + lane] as i8)), None)
        }
        Format::IQ4_XS => (parts(32, &|part, lane| i32::from(meta[32 + part * PANEL + lane] as i8)), None),
    }
}
