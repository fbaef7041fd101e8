//! Products of panels of floating-point weights.
//!
//! Activations stay f32. An output is one ascending chain of fused multiply-adds over the inputs; lanes are
//! outputs, and several rows are computed together, so that weights are loaded and widened once for all of
//! them.
#![allow(unsafe_code, reason = "vector loads from slices whose sizes are checked, run-time detection")]
#![allow(clippy::needless_range_loop, reason = "rows index registers and memory alike")]

use super::layout::{Format, PANEL};
use crate::kernels::half::widen_one;
use crate::kernels::instructions::Instructions;

/// Inputs that all rows are multiplied with before the next ones: their weights stay in the first cache.
const STRETCH: usize = 256;

/// A panel, some rows of activations and their sums.
pub(super) struct FloatTile<'a> {
    pub(super) panel: &'a [u8],
    pub(super) inputs: usize,
    /// As many rows of `inputs` values as there are sums.
    pub(super) x: &'a [f32],
    pub(super) sums: &'a mut [[f32; PANEL]],
}

/// Adds the products of all inputs to the sums.
pub(super) fn multiply(format: Format, tile: &mut FloatTile<'_>, instructions: Instructions) {
    assert!(tile.panel.len() >= tile.inputs * format.quant_bytes());
    assert!(tile.x.len() == tile.inputs * tile.sums.len());
    for start in (0..tile.inputs).step_by(STRETCH) {
        let count = STRETCH.min(tile.inputs - start);
        #[cfg(target_arch = "x86_64")]
        if matches!(instructions, Instructions::Avx2 | Instructions::Avx512) && instructions.present() {
            // SAFETY: the processor has the instructions, and the sizes are right.
            unsafe {
                match (instructions, format) {
                    (Instructions::Avx512, Format::F32) => avx512::multiply::<4, false>(tile, start, count),
                    (Instructions::Avx512, Format::F16) => avx512::multiply::<2, false>(tile, start, count),
                    (Instructions::Avx512, _) => avx512::multiply::<2, true>(tile, start, count),
                    (_, Format::F32) => avx2::multiply::<4, false>(tile, start, count),
                    (_, Format::F16) => avx2::multiply::<2, false>(tile, start, count),
                    (_, _) => avx2::multiply::<2, true>(tile, start, count),
                }
            }
            continue;
        }
        let _ = instructions;
        portable(format, tile, start, count);
    }
}

/// The portable version, which defines the results.
fn portable(format: Format, tile: &mut FloatTile<'_>, start: usize, count: usize) {
    let mut weights = [[0.0; PANEL]; STRETCH];
    let size = format.quant_bytes();
    let panel = tile.panel[start * size..(start + count) * size].chunks_exact(size);
    for (quants, weights) in panel.zip(&mut weights) {
        match format {
            Format::F32 => {
                for (quant, weight) in quants.as_chunks::<4>().0.iter().zip(weights) {
                    *weight = f32::from_le_bytes(*quant);
                }
            }
            Format::F16 => {
                for (quant, weight) in quants.as_chunks::<2>().0.iter().zip(weights) {
                    *weight = widen_one(u16::from_le_bytes(*quant));
                }
            }
            _ => {
                for (quant, weight) in quants.as_chunks::<2>().0.iter().zip(weights) {
                    *weight = f32::from_bits(u32::from(u16::from_le_bytes(*quant)) << 16);
                }
            }
        }
    }
    let rows = tile.x.chunks_exact(tile.inputs).zip(tile.sums.iter_mut());
    for (x, sums) in rows {
        let mut local = *sums;
        for (weights, x) in weights.iter().zip(&x[start..start + count]) {
            for (sum, weight) in local.iter_mut().zip(weights) {
                *sum = weight.mul_add(*x, *sum);
            }
        }
        *sums = local;
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::FloatTile;

    /// `SIZE` bytes a value, `BRAIN` for BF16.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn multiply<const SIZE: usize, const BRAIN: bool>(
        tile: &mut FloatTile<'_>,
        start: usize,
        count: usize,
    ) {
        let rows = tile.sums.len();
        for first in (0..rows).step_by(6) {
            // SAFETY: the caller's promise.
            unsafe {
                match rows - first {
                    1 => multiply_rows::<SIZE, BRAIN, 1>(tile, first, start, count),
                    2 => multiply_rows::<SIZE, BRAIN, 2>(tile, first, start, count),
                    3 => multiply_rows::<SIZE, BRAIN, 3>(tile, first, start, count),
                    4 => multiply_rows::<SIZE, BRAIN, 4>(tile, first, start, count),
                    5 => multiply_rows::<SIZE, BRAIN, 5>(tile, first, start, count),
                    _ => multiply_rows::<SIZE, BRAIN, 6>(tile, first, start, count),
                }
            }
        }
    }

    /// 8 weights, widened.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load<const SIZE: usize, const BRAIN: bool>(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise of 8 values.
        unsafe {
            if SIZE == 4 {
                return _mm256_loadu_ps(at.cast());
            }
            let bits = _mm_loadu_si128(at.cast());
            if BRAIN {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
            } else {
                _mm256_cvtph_ps(bits)
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn multiply_rows<const SIZE: usize, const BRAIN: bool, const R: usize>(
        tile: &mut FloatTile<'_>,
        first: usize,
        start: usize,
        count: usize,
    ) {
        // SAFETY: `super::multiply` has checked the sizes.
        unsafe {
            let sums = tile.sums.as_mut_ptr().add(first).cast::<f32>();
            let x = tile.x.as_ptr().add(first * tile.inputs + start);
            let weights = tile.panel.as_ptr().add(start * 16 * SIZE);
            let mut acc = [[_mm256_setzero_ps(); 2]; R];
            for r in 0..R {
                acc[r] = [_mm256_loadu_ps(sums.add(r * 16)), _mm256_loadu_ps(sums.add(r * 16 + 8))];
            }
            for k in 0..count {
                let at = weights.add(k * 16 * SIZE);
                let w = [load::<SIZE, BRAIN>(at), load::<SIZE, BRAIN>(at.add(8 * SIZE))];
                for r in 0..R {
                    let x = _mm256_broadcast_ss(&*x.add(r * tile.inputs + k));
                    acc[r] = [_mm256_fmadd_ps(w[0], x, acc[r][0]), _mm256_fmadd_ps(w[1], x, acc[r][1])];
                }
            }
            for r in 0..R {
                _mm256_storeu_ps(sums.add(r * 16), acc[r][0]);
                _mm256_storeu_ps(sums.add(r * 16 + 8), acc[r][1]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::FloatTile;

    /// `SIZE` bytes a value, `BRAIN` for BF16.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn multiply<const SIZE: usize, const BRAIN: bool>(
        tile: &mut FloatTile<'_>,
        start: usize,
        count: usize,
    ) {
        let rows = tile.sums.len();
        let mut first = 0;
        while first < rows {
            // SAFETY: the caller's promise.
            first += unsafe {
                match rows - first {
                    1 => multiply_rows::<SIZE, BRAIN, 1>(tile, first, start, count),
                    2 => multiply_rows::<SIZE, BRAIN, 2>(tile, first, start, count),
                    3 => multiply_rows::<SIZE, BRAIN, 3>(tile, first, start, count),
                    4..8 => multiply_rows::<SIZE, BRAIN, 4>(tile, first, start, count),
                    _ => multiply_rows::<SIZE, BRAIN, 8>(tile, first, start, count),
                }
            };
        }
    }

    /// 16 weights, widened.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load<const SIZE: usize, const BRAIN: bool>(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise of 16 values.
        unsafe {
            if SIZE == 4 {
                return _mm512_loadu_ps(at.cast());
            }
            let bits = _mm256_loadu_si256(at.cast());
            if BRAIN {
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
            } else {
                _mm512_cvtph_ps(bits)
            }
        }
    }

    /// Returns the number of rows.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn multiply_rows<const SIZE: usize, const BRAIN: bool, const R: usize>(
        tile: &mut FloatTile<'_>,
        first: usize,
        start: usize,
        count: usize,
    ) -> usize {
        // SAFETY: `super::multiply` has checked the sizes.
        unsafe {
            let sums = tile.sums.as_mut_ptr().add(first).cast::<f32>();
            let x = tile.x.as_ptr().add(first * tile.inputs + start);
            let weights = tile.panel.as_ptr().add(start * 16 * SIZE);
            let mut acc = [_mm512_setzero_ps(); R];
            for r in 0..R {
                acc[r] = _mm512_loadu_ps(sums.add(r * 16));
            }
            for k in 0..count {
                let w = load::<SIZE, BRAIN>(weights.add(k * 16 * SIZE));
                for r in 0..R {
                    acc[r] = _mm512_fmadd_ps(w, _mm512_set1_ps(*x.add(r * tile.inputs + k)), acc[r]);
                }
            }
            for r in 0..R {
                _mm512_storeu_ps(sums.add(r * 16), acc[r]);
            }
        }
        R
    }
}
