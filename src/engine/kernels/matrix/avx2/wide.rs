//! Products of many rows with Q8_0 weights in AVX2: quants and activations in 16 bits.
//!
//! With bytes, `vpmaddubsw` needs magnitudes and moved signs, and its sums have to be widened after each four
//! inputs. Weights that are unpacked once for many rows need neither: they take a `vpmaddwd` and an addition
//! for each two inputs of 8 outputs. Sums are the same integers.
#![allow(unsafe_code, reason = "vector loads from slices whose sizes are checked once for each tile")]
#![allow(clippy::needless_range_loop, reason = "rows index registers and memory alike")]

use std::arch::x86_64::*;

use super::super::layout::Format;
use super::super::{BlockTile, PANEL};
use super::{accumulate, by_rows, halves, in_register};

/// Rows that are computed together.
const ROWS: usize = 4;
/// Bytes of an unpacked block: of each word of four inputs the first and third of 16 outputs, then the second
/// and fourth.
const BLOCK: usize = 32 * PANEL * 2;

/// Unpacks the quants of `blocks` blocks.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(in super::super) unsafe fn unpack(quants: &[u8], blocks: usize, out: &mut [u8]) {
    let format = Format::Q8_0;
    assert!(format.holds(quants, blocks) && out.len() >= blocks * BLOCK);
    let flip = _mm256_set1_epi8(-128);
    for block in 0..blocks {
        // SAFETY: within the slices.
        unsafe {
            let quants = quants.as_ptr().add(block * format.block_bytes());
            let out = out.as_mut_ptr().add(block * BLOCK);
            for half in 0..16 {
                let bytes = _mm256_xor_si256(_mm256_loadu_si256(quants.add(half * 32).cast()), flip);
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes));
                let at = out.add(half / 2 * 128 + half % 2 * 32);
                _mm256_storeu_si256(at.cast(), even);
                _mm256_storeu_si256(at.add(64).cast(), _mm256_srai_epi16::<8>(bytes));
            }
        }
    }
}

/// Adds the unpacked blocks of a tile to its sums.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) unsafe fn multiply(tile: &mut BlockTile<'_>) {
    tile.check(Format::Q8_0);
    let rows = tile.sums.len();
    assert!(tile.quant_stride == BLOCK);
    assert!(tile.wide.len() >= rows.saturating_sub(1) * tile.x_stride + tile.blocks * 32);
    for first in (0..rows).step_by(ROWS) {
        let count = (rows - first).min(ROWS);
        // SAFETY: the sizes of all slices are those of the rows and blocks.
        unsafe { by_rows!(multiply_rows, tile, first, count) }
    }
}

/// Two activations in every lane.
///
/// # Safety
/// 4 bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast(at: *const i16) -> __m256i {
    // SAFETY: the caller's promise.
    _mm256_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_rows<const R: usize>(tile: &mut BlockTile<'_>, first: usize) {
    // SAFETY: `multiply` has checked the sizes.
    unsafe {
        let sums = tile.sums.as_mut_ptr().add(first).cast::<f32>();
        let x = tile.wide.as_ptr().add(first * tile.x_stride);
        let scales = tile.scales.as_ptr().add(first * tile.scale_stride);
        for block in 0..tile.blocks {
            let quants = tile.quants.as_ptr().add(block * BLOCK);
            let x = x.add(block * 32);
            let mut sum = [[_mm256_setzero_si256(); 2]; R];
            // Four at a time: the end of a loop of 16 short iterations is hard to predict.
            for four in 0..4 {
                for pair in 4 * four..4 * four + 4 {
                    let w = [0, 1].map(|side| _mm256_loadu_si256(quants.add(pair * 64 + side * 32).cast()));
                    for r in 0..R {
                        let x = broadcast(x.add(r * tile.x_stride + pair * 2));
                        for side in 0..2 {
                            let products = _mm256_madd_epi16(w[side], x);
                            sum[r][side] = in_register(_mm256_add_epi32(sum[r][side], products));
                        }
                    }
                }
            }
            let meta = tile.meta.as_ptr().add(block * tile.meta_stride);
            for side in 0..2 {
                let d = halves(meta.add(side * 16));
                for r in 0..R {
                    let scale = *scales.add(r * tile.scale_stride + block);
                    accumulate(sums.add(r * 16 + side * 8), sum[r][side], d, scale);
                }
            }
        }
    }
}
