//! Matrix products with F32, F16 and BF16 weights.
//!
//! Activations stay f32, and each output is one ascending chain of fused multiply-adds over the inputs; the
//! lanes are 16 outputs, whose weights are widened and transposed a stretch of inputs at a time.
#![allow(unsafe_code, reason = "threads write disjoint ranges of the output")]

use super::pool::{Disjoint, Pool};

/// Outputs that are computed side by side.
const LANES: usize = 16;
/// Inputs that are widened at a time.
const STRETCH: usize = 256;

/// A floating-point format of weights, little-endian.
pub(crate) trait Float: Copy + Send + Sync + 'static {
    /// Bytes of a value.
    const SIZE: usize;
    /// Widens the value in the first `SIZE` bytes; exact.
    fn load(bytes: &[u8]) -> f32;
}

/// IEEE binary32.
#[derive(Clone, Copy)]
pub(crate) struct F32;
/// IEEE binary16.
#[derive(Clone, Copy)]
pub(crate) struct F16;
/// The upper half of a binary32.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

impl Float for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    fn load(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Float for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load(bytes: &[u8]) -> f32 {
        ::half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32_const()
    }
}

impl Float for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }
}

/// Widens one row of `out.len()` values.
pub(crate) fn row<T: Float>(bytes: &[u8], index: usize, out: &mut [f32]) {
    let row = &bytes[index * out.len() * T::SIZE..(index + 1) * out.len() * T::SIZE];
    for (out, bytes) in out.iter_mut().zip(row.chunks_exact(T::SIZE)) {
        *out = T::load(bytes);
    }
}

/// `y = x · Wᵀ` for the rows of `x`, `inputs` values each; `y` gets `outputs` values for each.
pub(crate) fn product<T: Float>(
    bytes: &[u8],
    (inputs, outputs): (usize, usize),
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    let rows = x.len() / inputs;
    assert!(
        bytes.len() == inputs * outputs * T::SIZE && x.len() == rows * inputs && y.len() == rows * outputs
    );
    let y = Disjoint::new(y);
    pool.ranges(outputs, LANES, &|_, range| {
        let mut panel = [[0.0f32; LANES]; STRETCH];
        for start in (0..inputs).step_by(STRETCH) {
            let stretch = start..inputs.min(start + STRETCH);
            for (lane, output) in range.clone().enumerate() {
                let row = &bytes[(output * inputs + stretch.start) * T::SIZE..];
                for (panel, bytes) in panel[..stretch.len()].iter_mut().zip(row.chunks_exact(T::SIZE)) {
                    panel[lane] = T::load(bytes);
                }
            }
            for row in 0..rows {
                let x = &x[row * inputs + stretch.start..row * inputs + stretch.end];
                // SAFETY: each output of each row is computed by one thread.
                let y = unsafe { y.range(row * outputs + range.start..row * outputs + range.end) };
                let mut sums = [0.0f32; LANES];
                if start > 0 {
                    sums[..y.len()].copy_from_slice(y);
                }
                accumulate(&panel[..stretch.len()], x, &mut sums);
                y.copy_from_slice(&sums[..y.len()]);
            }
        }
    });
}

multiversion! {
    fn accumulate(panel: &[[f32; LANES]], x: &[f32], sums: &mut [f32; LANES]) = accumulate_body
}

#[inline(always)]
fn accumulate_body(panel: &[[f32; LANES]], x: &[f32], sums: &mut [f32; LANES]) {
    let mut local = *sums;
    for (weights, x) in panel.iter().zip(x) {
        for (sum, weight) in local.iter_mut().zip(weights) {
            *sum = weight.mul_add(*x, *sum);
        }
    }
    *sums = local;
}
