//! Products of panels with AVX-512 VNNI: blocks of 32 with 4 or 5 bits that have minima or a table.
//!
//! As in [`super`], a vector is four inputs of all 16 outputs; the values of IQ4_NL and MXFP4 are used plus
//! 128.
#![allow(unsafe_code, reason = "vector loads from slices whose sizes are checked once for each tile")]
#![allow(clippy::needless_range_loop, reason = "rows index registers and memory alike")]

use std::arch::x86_64::*;

use super::super::BlockTile;
use super::super::layout::{E2M1, Format, IQ4};
use super::{broadcast, halves, prefetch};

/// Rows that are computed together.
const ROWS: usize = 8;

const Q4_1: u8 = Format::Q4_1 as u8;
const Q5_0: u8 = Format::Q5_0 as u8;
const Q5_1: u8 = Format::Q5_1 as u8;
const IQ4_NL: u8 = Format::IQ4_NL as u8;
const MXFP4: u8 = Format::MXFP4 as u8;

/// Adds the blocks of a tile to its sums.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
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

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn by_rows<const F: u8>(tile: &mut BlockTile<'_>) {
    let rows = tile.sums.len();
    for first in (0..rows).step_by(ROWS) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows - first {
                1 => multiply_rows::<F, 1>(tile, first),
                2 => multiply_rows::<F, 2>(tile, first),
                3 => multiply_rows::<F, 3>(tile, first),
                4 => multiply_rows::<F, 4>(tile, first),
                5 => multiply_rows::<F, 5>(tile, first),
                6 => multiply_rows::<F, 6>(tile, first),
                7 => multiply_rows::<F, 7>(tile, first),
                _ => multiply_rows::<F, 8>(tile, first),
            }
        }
    }
}

/// The values of IQ4's quants plus 128 in every quarter of a vector.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn iq4_table() -> __m512i {
    above(&IQ4)
}

/// A table plus 128 in every quarter of a vector.
#[inline]
#[target_feature(enable = "avx512f")]
fn above(table: &[i8; 16]) -> __m512i {
    // SAFETY: the table is 16 bytes long.
    let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
    _mm512_xor_si512(_mm512_broadcast_i32x4(table), _mm512_set1_epi32(0x8080_8080_u32 as i32))
}

/// The scales of the 16 outputs of MXFP4, as [`half_of_power`](super::super::layout::half_of_power) makes
/// them.
///
/// # Safety
/// 16 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn powers(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    let exponents = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(at.cast()) });
    let one = _mm512_set1_epi32(1);
    let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, one));
    let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), exponents);
    let is_normal = _mm512_cmpgt_epi32_mask(exponents, one);
    _mm512_castsi512_ps(_mm512_mask_blend_epi32(is_normal, small, normal))
}

/// Moves bit `BIT` of every byte to bit 4 and puts it beside the low bits of `quants`, whose others are
/// cleared.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fifth<const BIT: usize>(bits: __m512i, quants: __m512i) -> __m512i {
    let moved = match BIT {
        0 => _mm512_slli_epi16::<4>(bits),
        1 => _mm512_slli_epi16::<3>(bits),
        2 => _mm512_slli_epi16::<2>(bits),
        3 => _mm512_slli_epi16::<1>(bits),
        4 => bits,
        5 => _mm512_srli_epi16::<1>(bits),
        6 => _mm512_srli_epi16::<2>(bits),
        _ => _mm512_srli_epi16::<3>(bits),
    };
    let moved = _mm512_and_si512(moved, _mm512_set1_epi8(16));
    // (quants & 15) | moved
    _mm512_ternarylogic_epi32::<0xea>(quants, _mm512_set1_epi8(15), moved)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_rows<const F: u8, const R: usize>(tile: &mut BlockTile<'_>, first: usize) {
    let (five, minima) = (F == Q5_0 || F == Q5_1, F == Q4_1 || F == Q5_1);
    let (low, looked_up) = (_mm512_set1_epi8(15), F == IQ4_NL || F == MXFP4);
    let table = above(if F == MXFP4 { &E2M1 } else { &IQ4 });
    // SAFETY: `multiply` has checked the sizes.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); R];
        let sums = tile.sums.as_mut_ptr().add(first).cast::<f32>();
        for r in 0..R {
            acc[r] = _mm512_loadu_ps(sums.add(r * 16));
        }
        let x = tile.x.as_ptr().add(first * tile.x_stride);
        let scales = tile.scales.as_ptr().add(first * tile.scale_stride);
        let x_sums = tile.x_sums.as_ptr().add(first * tile.x_sum_stride);
        for block in 0..tile.blocks {
            let x = x.add(block * 32);
            let quants = tile.quants.as_ptr().add(block * tile.quant_stride);
            if tile.fresh {
                prefetch(quants, tile.quant_stride);
            }
            let bits = if five { _mm512_loadu_si512(quants.add(256).cast()) } else { low };
            let mut sum = [_mm512_setzero_si512(); R];
            // The sums begin with the correction for the offset of the weights.
            let offset = match F {
                Q5_0 => Some(2),
                IQ4_NL | MXFP4 => Some(0),
                _ => None,
            };
            if let Some(offset) = offset {
                for r in 0..R {
                    let x_sum = *x_sums.add(r * tile.x_sum_stride + block * 4 + offset);
                    sum[r] = _mm512_set1_epi32(x_sum);
                }
            }
            macro_rules! word {
                ($word:literal, $high:literal) => {{
                    let w = _mm512_loadu_si512(quants.add($word * 64).cast());
                    let shifted = _mm512_srli_epi16::<4>(w);
                    let (a, b) = if five {
                        (fifth::<$word>(bits, w), fifth::<$high>(bits, shifted))
                    } else if looked_up {
                        (
                            _mm512_shuffle_epi8(table, _mm512_and_si512(w, low)),
                            _mm512_shuffle_epi8(table, _mm512_and_si512(shifted, low)),
                        )
                    } else {
                        (_mm512_and_si512(w, low), _mm512_and_si512(shifted, low))
                    };
                    for r in 0..R {
                        let x = x.add(r * tile.x_stride + $word * 4);
                        sum[r] = _mm512_dpbusd_epi32(sum[r], a, broadcast(x));
                        sum[r] = _mm512_dpbusd_epi32(sum[r], b, broadcast(x.add(16)));
                    }
                }};
            }
            word!(0, 4);
            word!(1, 5);
            word!(2, 6);
            word!(3, 7);
            let meta = tile.meta.as_ptr().add(block * tile.meta_stride);
            let d = if F == MXFP4 { powers(meta) } else { halves(meta) };
            let m = if minima { halves(meta.add(32)) } else { d };
            for r in 0..R {
                let scale = _mm512_set1_ps(*scales.add(r * tile.scale_stride + block));
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_mul_ps(d, scale), acc[r]);
                if minima {
                    let x_sum = *x_sums.add(r * tile.x_sum_stride + block * 4 + 3);
                    let x_sum = _mm512_set1_ps(x_sum as f32);
                    acc[r] = _mm512_fmadd_ps(x_sum, _mm512_mul_ps(m, scale), acc[r]);
                }
            }
        }
        for r in 0..R {
            _mm512_storeu_ps(sums.add(r * 16), acc[r]);
        }
    }
}
