//! Products with weights in ggml's blocks, using candle's types and dot products, on this crate's threads.
//!
//! Candle can also multiply a whole matrix. That is not used, for two reasons: it starts threads of its own,
//! one for each core whatever the settings say, and it sums in another order where there are several rows, so
//! that a row's result would depend on the other rows.
//!
//! Invariant: an output depends on its own row and its weights only. Candle chooses the instructions, so
//! another processor may give other bytes.
#![allow(unsafe_code, reason = "blocks are made of a file's bytes, threads write disjoint columns")]

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
};

use super::disjoint::Disjoint;
use super::matrix::Format;
use super::pool::Pool;
use crate::Error;
use crate::memory::try_vec;

/// Outputs that a thread computes together.
const COLUMNS: usize = 16;
/// Products of a share of the pool's work.
const PRODUCTS_WORTH: usize = 32_768;

/// A matrix `[outputs, inputs]`.
pub(crate) trait Weights: Send + Sync {
    /// Some outputs of each row of `x` `[rows, inputs]`: `y` is `[rows, outputs.len()]`.
    fn multiply(&self, x: &[f32], outputs: Range<usize>, y: &mut [f32], pool: &Pool);

    /// Row `index`, widened.
    fn row(&self, index: usize, out: &mut [f32]);
}

struct Blocks<T> {
    inputs: usize,
    blocks: Vec<T>,
}

impl<T> Blocks<T> {
    /// Copies blocks of a file.
    fn copied(bytes: &[u8], inputs: usize, what: &str) -> Result<Blocks<T>, Error> {
        let count = bytes.len() / size_of::<T>();
        let mut blocks = try_vec::<T>(what, count)?;
        // SAFETY: there is room for them, and blocks are numbers without padding, of which any bits are
        // valid.
        unsafe {
            let memory = blocks.as_mut_ptr().cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, count * size_of::<T>());
            blocks.set_len(count);
        }
        Ok(Blocks { inputs, blocks })
    }
}

impl<T: GgmlType> Blocks<T> {
    fn blocks_of(&self, row: usize) -> &[T] {
        let each = self.inputs / T::BLCK_SIZE;
        &self.blocks[row * each..(row + 1) * each]
    }
}

impl<T: GgmlType> Weights for Blocks<T> {
    fn multiply(&self, x: &[f32], outputs: Range<usize>, y: &mut [f32], pool: &Pool) {
        let (rows, columns) = (x.len() / self.inputs, outputs.len());
        assert!(x.len() == rows * self.inputs && y.len() == rows * columns);
        let each = self.inputs / T::BLCK_SIZE;
        let mut quantized = vec![T::VecDotType::zeros(); rows * each];
        for (x, blocks) in x.chunks_exact(self.inputs).zip(quantized.chunks_exact_mut(each)) {
            T::VecDotType::from_float(x, blocks);
        }
        let y = Disjoint::new(y);
        let worth = x.len().saturating_mul(columns) / PRODUCTS_WORTH;
        pool.run(columns.div_ceil(COLUMNS), worth, &|_, item| {
            for column in item * COLUMNS..((item + 1) * COLUMNS).min(columns) {
                let weights = self.blocks_of(outputs.start + column);
                for (row, x) in quantized.chunks_exact(each).enumerate() {
                    let at = row * columns + column;
                    // SAFETY: no other item has this column.
                    let out = unsafe { y.range(at..at + 1) };
                    out[0] = T::vec_dot(self.inputs, weights, x);
                }
            }
        });
    }

    fn row(&self, index: usize, out: &mut [f32]) {
        T::to_float(self.blocks_of(index), out);
    }
}

/// The matrix of rows of `inputs` values in a file's bytes, which are whole blocks of the format. Weights are
/// widened to f32 where candle has no such blocks, and where they are 16-bit numbers, for which it would
/// round activations too.
///
/// # Errors
/// [`Error::OutOfMemory`], for `what`.
pub(crate) fn load(
    format: Format,
    bytes: &[u8],
    inputs: usize,
    what: &str,
) -> Result<Arc<dyn Weights>, Error> {
    Ok(match format {
        Format::F32 => Arc::new(Blocks::<f32>::copied(bytes, inputs, what)?),
        Format::Q4_0 => Arc::new(Blocks::<BlockQ4_0>::copied(bytes, inputs, what)?),
        Format::Q4_1 => Arc::new(Blocks::<BlockQ4_1>::copied(bytes, inputs, what)?),
        Format::Q5_0 => Arc::new(Blocks::<BlockQ5_0>::copied(bytes, inputs, what)?),
        Format::Q5_1 => Arc::new(Blocks::<BlockQ5_1>::copied(bytes, inputs, what)?),
        Format::Q8_0 => Arc::new(Blocks::<BlockQ8_0>::copied(bytes, inputs, what)?),
        Format::Q2_K => Arc::new(Blocks::<BlockQ2K>::copied(bytes, inputs, what)?),
        Format::Q3_K => Arc::new(Blocks::<BlockQ3K>::copied(bytes, inputs, what)?),
        Format::Q4_K => Arc::new(Blocks::<BlockQ4K>::copied(bytes, inputs, what)?),
        Format::Q5_K => Arc::new(Blocks::<BlockQ5K>::copied(bytes, inputs, what)?),
        Format::Q6_K => Arc::new(Blocks::<BlockQ6K>::copied(bytes, inputs, what)?),
        _ => {
            let row_bytes = inputs / format.block() * format.source_bytes();
            let mut blocks = try_vec(what, bytes.len() / row_bytes * inputs)?;
            for row in bytes.chunks_exact(row_bytes) {
                let start = blocks.len();
                blocks.resize(start + inputs, 0.0);
                format.dequantize_row(row, &mut blocks[start..]);
            }
            Arc::new(Blocks::<f32> { inputs, blocks })
        }
    })
}

/// Bytes that [`load`] takes for so many bytes of a file.
pub(crate) fn bytes(format: Format, bytes: u64) -> u64 {
    match format {
        Format::F16
        | Format::BF16
        | Format::IQ4_NL
        | Format::IQ4_XS
        | Format::MXFP4
        | Format::TQ1_0
        | Format::TQ2_0 => {
            let elements = bytes / format.source_bytes() as u64 * format.block() as u64;
            elements.saturating_mul(size_of::<f32>() as u64)
        }
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernels::instructions::Instructions;

    #[test]
    fn an_output_does_not_depend_on_the_rows_beside_it_nor_on_threads() {
        let (inputs, outputs) = (512, 37);
        let value = |i: usize| ((i * 7919) % 2003) as f32 / 700.0 - 1.3;
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        let pools = [1, 3].map(|threads| Pool::new(threads, Instructions::best(), &start).unwrap());
        let x: Vec<f32> = (0..5 * inputs).map(value).collect();
        for format in [Format::F32, Format::F16, Format::Q4_0, Format::Q8_0, Format::Q4_K, Format::Q6_K] {
            let length = outputs * inputs / format.block() * format.source_bytes();
            // Small exponents, so that every scale is a number.
            let source: Vec<u8> = (0..length).map(|i| (i * 89 % 61) as u8).collect();
            let weights = load(format, &source, inputs, "a test").unwrap();
            let mut all = vec![0.0; 5 * outputs];
            weights.multiply(&x, 0..outputs, &mut all, &pools[1]);
            assert!(all.iter().all(|y| y.is_finite()) && all.iter().any(|y| *y != 0.0));
            for (row, expected) in all.chunks_exact(outputs).enumerate() {
                let x = &x[row * inputs..(row + 1) * inputs];
                let mut alone = vec![0.0; outputs];
                weights.multiply(x, 0..outputs, &mut alone, &pools[0]);
                assert_eq!(alone, expected, "{format:?}");
                let mut some = vec![0.0; 3];
                weights.multiply(x, 20..23, &mut some, &pools[0]);
                assert_eq!(some, expected[20..23], "{format:?}");
            }
            assert!(bytes(format, length as u64) >= length as u64);
        }
    }
}
