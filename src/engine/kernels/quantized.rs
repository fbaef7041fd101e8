//! Block-quantized weights through candle: dequantized rows of every format, and matrix products of the formats
//! that have no panels ([`super::matrix`]).
//!
//! Candle provides the block formats, the quantization of activations and one dot product of a weight row with
//! an activation row for each format; the loops and threads around them are ours. Candle's own matrix product
//! is no option: it keeps its own threads, which spin without bound and whose number only the environment can
//! set, and its forward pass on tensors takes different kernels for one row and for many (Q6_K on AVX2).
//!
//! Invariant: the kernel for an output is chosen by its index alone, so the bytes of a row are the same
//! whatever rows are beside it. Candle's dot products differ between instruction sets: with them, bytes are
//! repeatable on one kind of processor only.
#![allow(unsafe_code, reason = "views of mapped bytes and of scratch memory as candle's blocks")]

use candle_core::quantized::GgmlType as Block;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
    BlockQ8_1, BlockQ8K,
};

use super::pool::{Disjoint, Pool};

/// Rows of activations that are multiplied with a few rows of weights before the next ones are fetched.
const ROW_TILE: usize = 16;

/// A block format of GGML that candle knows.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and every bit pattern is a value of it.
pub(crate) unsafe trait Format: Block {}

macro_rules! formats {
    ($($block:ty),*) => { $(
        // SAFETY: candle declares the block `repr(C)`, of integers and f16, and asserts that its size is the
        // sum of its fields.
        unsafe impl Format for $block {}
    )* };
}
formats!(
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0
);
// What activations are quantized to.
formats!(BlockQ8_1, BlockQ8K);

/// Memory for quantized activations; grows to what the largest product needs and stays.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Those of panels.
    pub(crate) activations: super::matrix::Activations,
    words: Vec<u64>,
}

impl Scratch {
    /// `count` blocks of unspecified content.
    fn blocks<T: Format>(&mut self, count: usize) -> &mut [T] {
        const { assert!(align_of::<T>() <= align_of::<u64>()) };
        let words = (count * size_of::<T>()).div_ceil(size_of::<u64>());
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        // SAFETY: long enough, aligned, initialised, and every bit pattern is a block.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), count) }
    }
}

/// `bytes` as blocks; None if they are not aligned or not whole blocks.
fn view<T: Format>(bytes: &[u8]) -> Option<&[T]> {
    let aligned = bytes.as_ptr().cast::<T>().is_aligned();
    if !aligned || !bytes.len().is_multiple_of(size_of::<T>()) {
        return None;
    }
    // SAFETY: aligned, whole, and every bit pattern is a block.
    Some(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) })
}

/// Whether `bytes` can be multiplied as `outputs` rows of `inputs` values.
pub(crate) fn fits<T: Format>(bytes: &[u8], inputs: usize, outputs: usize) -> bool {
    inputs.is_multiple_of(T::BLCK_SIZE)
        && view::<T>(bytes).is_some_and(|blocks| blocks.len() == inputs / T::BLCK_SIZE * outputs)
}

/// Dequantizes one row of `out.len()` values.
pub(crate) fn row<T: Format>(bytes: &[u8], index: usize, out: &mut [f32]) {
    let blocks = out.len() / T::BLCK_SIZE;
    let Some(weights) = view::<T>(bytes) else {
        unreachable!("checked by `fits` when the tensor was loaded")
    };
    T::to_float(&weights[index * blocks..(index + 1) * blocks], out);
}

/// `y = x · Wᵀ` for the rows of `x`, `inputs` values each; `y` gets `outputs` values for each.
pub(crate) fn product<T>(
    bytes: &[u8],
    (inputs, outputs): (usize, usize),
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
    pool: &Pool,
) where
    T: Format,
    T::VecDotType: Format,
{
    let Some(weights) = view::<T>(bytes) else {
        unreachable!("checked by `fits` when the tensor was loaded")
    };
    let blocks = inputs / T::BLCK_SIZE;
    let rows = x.len() / inputs;
    assert!(weights.len() == blocks * outputs && x.len() == rows * inputs && y.len() == rows * outputs);
    let quantized = scratch.blocks::<T::VecDotType>(rows * blocks);
    {
        let quantized = Disjoint::new(quantized);
        pool.ranges(rows, 4, &|_, range| {
            for row in range {
                // SAFETY: each row is quantized by one thread.
                let target = unsafe { quantized.range(row * blocks..(row + 1) * blocks) };
                T::VecDotType::from_float(&x[row * inputs..(row + 1) * inputs], target);
            }
        });
    }
    let quantized: &[T::VecDotType] = quantized;
    let weight = |output: usize| &weights[output * blocks..(output + 1) * blocks];
    let y = Disjoint::new(y);
    // Multiples of four outputs, about eight claims per thread.
    let grain = (outputs.div_ceil(pool.threads() * 8).next_multiple_of(4)).min(128);
    pool.ranges(outputs, grain, &|_, range| {
        for tile in (0..rows).step_by(ROW_TILE) {
            for first in range.clone().step_by(4) {
                let last = range.end.min(first + 4);
                for row in tile..rows.min(tile + ROW_TILE) {
                    let x = &quantized[row * blocks..(row + 1) * blocks];
                    // SAFETY: each output of each row is computed by one thread.
                    let y = unsafe { y.range(row * outputs + first..row * outputs + last) };
                    if let [a, b, c, d] = y {
                        (*a, *b, *c, *d) = T::vec_dot_4(
                            inputs,
                            weight(first),
                            weight(first + 1),
                            weight(first + 2),
                            weight(first + 3),
                            x,
                        );
                    } else {
                        for (output, y) in (first..).zip(y) {
                            *y = T::vec_dot(inputs, weight(output), x);
                        }
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::quantized::k_quants::matmul;

    use super::*;

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn pool(threads: usize) -> Pool {
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        Pool::new(threads, &start).unwrap()
    }

    /// The product of many rows, of each alone, with any number of threads, and candle's are equal.
    fn check<T>()
    where
        T: Format,
        T::VecDotType: Format,
    {
        let (inputs, outputs, rows) = (512, 43, 21);
        let mut weights = vec![T::zeros(); inputs / T::BLCK_SIZE * outputs];
        T::from_float(&noise(inputs * outputs, 1), &mut weights);
        let x = noise(rows * inputs, 2);
        let mut expected = vec![0.0; rows * outputs];
        matmul((rows, inputs, outputs), &x, &weights, &mut expected).unwrap();
        // SAFETY: blocks have no padding.
        let bytes =
            unsafe { std::slice::from_raw_parts(weights.as_ptr().cast::<u8>(), size_of_val(&weights[..])) };
        assert!(fits::<T>(bytes, inputs, outputs));
        let mut scratch = Scratch::default();
        for threads in [1, 2, 5] {
            let pool = pool(threads);
            let mut got = vec![0.0; rows * outputs];
            product::<T>(bytes, (inputs, outputs), &x, &mut got, &mut scratch, &pool);
            assert_eq!(got, expected, "{threads} threads");
            for row in 0..rows {
                let mut alone = vec![0.0; outputs];
                let x = &x[row * inputs..(row + 1) * inputs];
                product::<T>(bytes, (inputs, outputs), x, &mut alone, &mut scratch, &pool);
                assert_eq!(alone, expected[row * outputs..(row + 1) * outputs], "row {row} alone");
            }
        }
    }

    /// A dequantized row is what was quantized, up to the format's precision.
    fn check_row<T: Format>() {
        let (inputs, outputs) = (512, 43);
        let mut weights = vec![T::zeros(); inputs / T::BLCK_SIZE * outputs];
        T::from_float(&noise(inputs * outputs, 1), &mut weights);
        // SAFETY: blocks have no padding.
        let bytes =
            unsafe { std::slice::from_raw_parts(weights.as_ptr().cast::<u8>(), size_of_val(&weights[..])) };
        assert!(fits::<T>(bytes, inputs, outputs));
        let mut dequantized = vec![0.0; inputs];
        row::<T>(bytes, outputs - 1, &mut dequantized);
        let original = &noise(inputs * outputs, 1)[inputs * (outputs - 1)..];
        let error = dequantized.iter().zip(original).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 0.6, "the last row comes back within the format's precision, not {error} off");
    }

    #[test]
    fn products_are_candles_to_the_bit_whatever_the_rows_and_threads() {
        check::<BlockQ4_1>();
        check::<BlockQ5_0>();
        check::<BlockQ5_1>();
        check::<BlockQ2K>();
        check::<BlockQ3K>();
        check::<BlockQ5K>();
    }

    #[test]
    fn rows_come_back_within_the_precision_of_the_format() {
        check_row::<BlockQ4_0>();
        check_row::<BlockQ4_1>();
        check_row::<BlockQ5_0>();
        check_row::<BlockQ5_1>();
        check_row::<BlockQ8_0>();
        check_row::<BlockQ2K>();
        check_row::<BlockQ3K>();
        check_row::<BlockQ4K>();
        check_row::<BlockQ5K>();
        check_row::<BlockQ6K>();
    }

    #[test]
    fn bytes_that_are_not_aligned_or_not_whole_do_not_fit() {
        let bytes = vec![0u16; 1000];
        // SAFETY: u16 has no padding.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), 2000) };
        assert!(fits::<BlockQ8_0>(&bytes[..34 * 4], 64, 2));
        assert!(!fits::<BlockQ8_0>(&bytes[1..34 * 4 + 1], 64, 2));
        assert!(!fits::<BlockQ8_0>(&bytes[..34 * 4], 64, 3));
        assert!(!fits::<BlockQ8_0>(&bytes[..34 * 4], 48, 2));
    }
}
