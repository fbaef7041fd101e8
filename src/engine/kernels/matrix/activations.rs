//! Activations as 8-bit integers, with which quantized weights are multiplied.
//!
//! A block of values (32, or 256 for K-quants) shares a scale: largest magnitude / 127. The integers are the
//! same on every instruction set: multiplications, a clamp and a rounding to even that are exact or fixed by
//! IEEE 754.

use crate::Error;
use crate::kernels::instructions::Instructions;
use crate::memory::try_grow;

/// Adding 1.5 · 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
const ROUND: f32 = 12_582_912.0;
/// 2^-100: a block without a larger value is zero.
const TINY: f32 = f32::from_bits(27 << 23);

/// Words of [`Activations::sums`] for a block of 32: its sum times -128, -8, -16 and 1.
pub(super) const SUMS_32: usize = 4;
/// Words for a block of 256: the sums of 16 values times -32; pairs of sums of 32 values, as two i16; the
/// sums of 16 values times -16, each twice as i16.
pub(super) const SUMS_256: usize = 36;

/// Rows of quantized activations.
#[derive(Default)]
pub(crate) struct Activations {
    /// Values that share a scale.
    pub(super) block: usize,
    /// Values of a row.
    pub(super) inputs: usize,
    pub(super) quants: Vec<i8>,
    /// The same in 16 bits where [`Activations::is_wide`]: of each four the first and the third, then the
    /// second and the fourth, as weights of Q8_0 are unpacked.
    pub(super) wide: Vec<i16>,
    is_wide: bool,
    /// One for each block.
    pub(super) scales: Vec<f32>,
    /// Sums that correct for weights stored with an offset, and for minima.
    pub(super) sums: Vec<i32>,
    /// Working memory of the threads.
    pub(super) work: Vec<super::CacheLine>,
}

impl Activations {
    /// Words of sums for each block.
    pub(super) fn sums_per_block(&self) -> usize {
        if self.block == 32 { SUMS_32 } else { SUMS_256 }
    }

    /// Whether there are quants in 16 bits too.
    pub(super) fn is_wide(&self) -> bool {
        self.is_wide
    }

    /// Allocates memory for `rows` rows of up to `inputs` values, in any blocks, and for so many threads, so
    /// that no pass has to.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn reserve(&mut self, inputs: usize, rows: usize, threads: usize) -> Result<(), Error> {
        const WHAT: &str = "the activations of a model";
        let (values, blocks) = (rows * inputs, rows * inputs.div_ceil(32));
        try_grow(WHAT, &mut self.quants, values)?;
        try_grow(WHAT, &mut self.wide, values)?;
        try_grow(WHAT, &mut self.scales, blocks)?;
        try_grow(WHAT, &mut self.sums, blocks * SUMS_256.div_ceil(8).max(SUMS_32))?;
        try_grow(WHAT, &mut self.work, threads * super::WORK)
    }

    /// Makes room for `rows` rows of `inputs` values in blocks of `block` (32 or 256), and for wide quants.
    pub(super) fn resize(&mut self, block: usize, inputs: usize, rows: usize, wide: bool) {
        debug_assert!(block == 32 || block == 256);
        (self.block, self.inputs, self.is_wide) = (block, inputs, wide);
        let blocks = rows * (inputs / block);
        // Never shrinks, so that a pass allocates nothing once the largest one has run.
        grow(&mut self.quants, rows * inputs);
        if wide {
            grow(&mut self.wide, rows * inputs);
        }
        grow(&mut self.scales, blocks);
        let sums = blocks * self.sums_per_block();
        grow(&mut self.sums, sums);
    }
}

fn grow<T: Copy + Default>(values: &mut Vec<T>, length: usize) {
    if values.len() < length {
        values.resize(length, T::default());
    }
}

/// Quantizes one row in blocks of `block`.
pub(super) fn quantize(
    instructions: Instructions,
    block: usize,
    x: &[f32],
    quants: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    match block {
        32 => quantize_32(instructions, x, quants, scales, sums),
        _ => quantize_256(instructions, x, quants, scales, sums),
    }
}

multiversion! {
    fn quantize_32(x: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32]) = quantize_32_body
}

multiversion! {
    fn quantize_256(x: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32]) = quantize_256_body
}

multiversion! {
    /// Writes quants in 16 bits, in the order of [`Activations::wide`].
    pub(super) fn widen(quants: &[i8], out: &mut [i16]) = widen_body
}

#[inline(always)]
fn widen_body(quants: &[i8], out: &mut [i16]) {
    for ([a, b, c, d], out) in quants.as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<4>().0) {
        *out = [*a, *c, *b, *d].map(i16::from);
    }
}

/// Quantizes a block and returns its scale, which is not finite if a value is not.
#[inline(always)]
#[allow(clippy::manual_clamp, reason = "unlike clamp this makes a NaN a number; the scale keeps it")]
fn quantize_block<const N: usize>(x: &[f32; N], quants: &mut [i8; N]) -> f32 {
    // The bits are compared as integers, so that a NaN counts as larger than all numbers and is not lost.
    let largest = x.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let inverse = if largest < TINY { 0.0 } else { 127.0 / largest };
    for (quant, x) in quants.iter_mut().zip(x) {
        let rounded = (x * inverse).max(-127.0).min(127.0) + ROUND;
        *quant = rounded.to_bits() as i8;
    }
    largest / 127.0
}

#[inline(always)]
fn sum(quants: &[i8]) -> i32 {
    quants.iter().map(|quant| i32::from(*quant)).sum()
}

/// Two sums as i16 in one word, the first in the low half.
#[inline(always)]
fn pair(low: i32, high: i32) -> i32 {
    (low & 0xffff) | (high << 16)
}

#[inline(always)]
fn quantize_32_body(x: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let blocks = x.as_chunks::<32>().0.iter().zip(quants.as_chunks_mut::<32>().0);
    for (((x, quants), scale), sums) in blocks.zip(scales).zip(sums.as_chunks_mut::<SUMS_32>().0) {
        *scale = quantize_block(x, quants);
        let sum = sum(quants);
        *sums = [-128 * sum, -8 * sum, -16 * sum, sum];
    }
}

#[inline(always)]
fn quantize_256_body(x: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let blocks = x.as_chunks::<256>().0.iter().zip(quants.as_chunks_mut::<256>().0);
    for (((x, quants), scale), sums) in blocks.zip(scales).zip(sums.as_chunks_mut::<SUMS_256>().0) {
        *scale = quantize_block(x, quants);
        let mut of_16 = [0; 16];
        for (of_16, quants) in of_16.iter_mut().zip(quants.as_chunks::<16>().0) {
            *of_16 = sum(quants);
        }
        for (i, sum) in of_16.into_iter().enumerate() {
            sums[i] = -32 * sum;
            sums[20 + i] = pair(-16 * sum, -16 * sum);
        }
        for i in 0..4 {
            let [a, b, c, d] = [of_16[4 * i], of_16[4 * i + 1], of_16[4 * i + 2], of_16[4 * i + 3]];
            sums[16 + i] = pair(a + b, c + d);
        }
    }
}
