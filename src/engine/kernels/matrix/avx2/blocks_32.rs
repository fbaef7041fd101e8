//! Products of panels with AVX2 and FMA: blocks of 32 with 4 or 5 bits that have minima or a table.
//!
//! As in [`super`], a vector is four inputs of 8 outputs. Products of 5-bit weights fit into 16 bits for half
//! a block, and so do the values of MXFP4 plus 12. IQ4_NL's weights are used as magnitudes, with their sign
//! moved to the activations.
#![allow(unsafe_code, reason = "vector loads from slices whose sizes are checked once for each tile")]
#![allow(clippy::needless_range_loop, reason = "rows index registers and memory alike")]

use std::arch::x86_64::*;

use super::super::BlockTile;
use super::super::layout::{E2M1, Format, IQ4};
use super::{broadcast, halves};

/// Rows that are computed together.
const ROWS: usize = 4;

const Q4_1: u8 = Format::Q4_1 as u8;
const Q5_0: u8 = Format::Q5_0 as u8;
const Q5_1: u8 = Format::Q5_1 as u8;
const IQ4_NL: u8 = Format::IQ4_NL as u8;
const MXFP4: u8 = Format::MXFP4 as u8;

/// Adds the blocks of a tile to its sums.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) unsafe fn multiply(format: Format, tile: &mut BlockTile<'_>) {
    tile.check(format);
    // SAFETY: `check` has compared the sizes of all slices with the number of rows and blocks.
    unsafe {
        match format {
            Format::Q4_1 => by_rows::<Q4_1>(tile),
            Format::Q5_0 => by_rows::<Q5_0>(tile),
            Format::Q5_1 => by_rows::<Q5_1>(tile),
            Format::IQ4_NL => by_rows::<IQ4_NL>(tile),
            Format::MXFP4 => by_rows::<MXFP4>(tile),
            other => unreachable!("{other:?} is multiplied elsewhere"),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn by_rows<const F: u8>(tile: &mut BlockTile<'_>) {
    let rows = tile.sums.len();
    for first in (0..rows).step_by(ROWS) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows - first {
                1 => multiply_rows::<F, 1>(tile, first),
                2 => multiply_rows::<F, 2>(tile, first),
                3 => multiply_rows::<F, 3>(tile, first),
                _ => multiply_rows::<F, 4>(tile, first),
            }
        }
    }
}

/// The values of IQ4's quants in both halves of a vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn iq4_table() -> __m256i {
    // SAFETY: the table is 16 bytes long.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(IQ4.as_ptr().cast()) })
}

/// The doubled values of MXFP4's quants plus 12 in both halves of a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn e2m1_table() -> __m256i {
    // SAFETY: the table is 16 bytes long.
    let table = unsafe { _mm_loadu_si128(E2M1.as_ptr().cast()) };
    _mm256_broadcastsi128_si256(_mm_add_epi8(table, _mm_set1_epi8(12)))
}

/// The scales of 8 outputs of MXFP4, as [`half_of_power`](super::super::layout::half_of_power) makes them.
///
/// # Safety
/// 8 bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn powers(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    let exponents = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(at.cast()) });
    let one = _mm256_set1_epi32(1);
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponents, one));
    let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponents);
    _mm256_castsi256_ps(_mm256_blendv_epi8(small, normal, _mm256_cmpgt_epi32(exponents, one)))
}

/// Moves bit `BIT` of every byte to bit 4 and clears the others.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth<const BIT: usize>(bits: __m256i) -> __m256i {
    let moved = match BIT {
        0 => _mm256_slli_epi16::<4>(bits),
        1 => _mm256_slli_epi16::<3>(bits),
        2 => _mm256_slli_epi16::<2>(bits),
        3 => _mm256_slli_epi16::<1>(bits),
        4 => bits,
        5 => _mm256_srli_epi16::<1>(bits),
        6 => _mm256_srli_epi16::<2>(bits),
        _ => _mm256_srli_epi16::<3>(bits),
    };
    _mm256_and_si256(moved, _mm256_set1_epi8(16))
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_rows<const F: u8, const R: usize>(tile: &mut BlockTile<'_>, first: usize) {
    let (five, minima) = (F == Q5_0 || F == Q5_1, F == Q4_1 || F == Q5_1);
    let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let table = if F == MXFP4 { e2m1_table() } else { iq4_table() };
    // SAFETY: `multiply` has checked the sizes.
    unsafe {
        let sums = tile.sums.as_mut_ptr().add(first).cast::<f32>();
        let x = tile.x.as_ptr().add(first * tile.x_stride);
        let scales = tile.scales.as_ptr().add(first * tile.scale_stride);
        let x_sums = tile.x_sums.as_ptr().add(first * tile.x_sum_stride);
        for block in 0..tile.blocks {
            let x = x.add(block * 32);
            for side in 0..2 {
                let quants = tile.quants.as_ptr().add(block * tile.quant_stride + side * 32);
                let bits = if five { _mm256_loadu_si256(quants.add(256).cast()) } else { low };
                let mut total = [_mm256_setzero_si256(); R];
                let mut sum = [_mm256_setzero_si256(); R];
                macro_rules! word {
                    ($word:literal, $high:literal) => {{
                        let w = _mm256_loadu_si256(quants.add($word * 64).cast());
                        let mut a = _mm256_and_si256(w, low);
                        let mut b = _mm256_and_si256(_mm256_srli_epi16::<4>(w), low);
                        if five {
                            a = _mm256_or_si256(a, fifth::<$word>(bits));
                            b = _mm256_or_si256(b, fifth::<$high>(bits));
                        }
                        if F == MXFP4 {
                            (a, b) = (_mm256_shuffle_epi8(table, a), _mm256_shuffle_epi8(table, b));
                        }
                        if F == IQ4_NL {
                            (a, b) = (_mm256_shuffle_epi8(table, a), _mm256_shuffle_epi8(table, b));
                            let magnitudes = (_mm256_abs_epi8(a), _mm256_abs_epi8(b));
                            for r in 0..R {
                                let x = x.add(r * tile.x_stride + $word * 4);
                                let x = (broadcast(x), broadcast(x.add(16)));
                                let p = _mm256_maddubs_epi16(magnitudes.0, _mm256_sign_epi8(x.0, a));
                                total[r] = _mm256_add_epi32(total[r], _mm256_madd_epi16(p, ones));
                                let p = _mm256_maddubs_epi16(magnitudes.1, _mm256_sign_epi8(x.1, b));
                                total[r] = _mm256_add_epi32(total[r], _mm256_madd_epi16(p, ones));
                            }
                        } else {
                            for r in 0..R {
                                let x = x.add(r * tile.x_stride + $word * 4);
                                let products = _mm256_maddubs_epi16(a, broadcast(x));
                                sum[r] = _mm256_add_epi16(sum[r], products);
                                let products = _mm256_maddubs_epi16(b, broadcast(x.add(16)));
                                sum[r] = _mm256_add_epi16(sum[r], products);
                            }
                        }
                    }};
                }
                word!(0, 4);
                word!(1, 5);
                if five || F == MXFP4 {
                    for r in 0..R {
                        total[r] = _mm256_madd_epi16(sum[r], ones);
                        sum[r] = _mm256_setzero_si256();
                    }
                }
                word!(2, 6);
                word!(3, 7);
                let meta = tile.meta.as_ptr().add(block * tile.meta_stride);
                let meta = meta.add(if F == MXFP4 { side * 8 } else { side * 16 });
                let d = if F == MXFP4 { powers(meta) } else { halves(meta) };
                for r in 0..R {
                    if F != IQ4_NL {
                        total[r] = _mm256_add_epi32(total[r], _mm256_madd_epi16(sum[r], ones));
                    }
                    let x_sums = x_sums.add(r * tile.x_sum_stride + block * 4);
                    if F == MXFP4 {
                        let offset = -12 * *x_sums.add(3);
                        total[r] = _mm256_add_epi32(total[r], _mm256_set1_epi32(offset));
                    }
                    if F == Q5_0 {
                        total[r] = _mm256_add_epi32(total[r], _mm256_set1_epi32(*x_sums.add(2)));
                    }
                    let scale = _mm256_set1_ps(*scales.add(r * tile.scale_stride + block));
                    let at = sums.add(r * 16 + side * 8);
                    let acc = _mm256_loadu_ps(at);
                    let total = _mm256_cvtepi32_ps(total[r]);
                    let mut acc = _mm256_fmadd_ps(total, _mm256_mul_ps(d, scale), acc);
                    if minima {
                        let x_sum = _mm256_set1_ps(*x_sums.add(3) as f32);
                        acc = _mm256_fmadd_ps(x_sum, _mm256_mul_ps(halves(meta.add(32)), scale), acc);
                    }
                    _mm256_storeu_ps(at, acc);
                }
            }
        }
    }
}
