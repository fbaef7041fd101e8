//! Products of panels with AVX2 and FMA: a vector is four inputs of 8 outputs, half a panel.
//!
//! `vpmaddubsw` multiplies unsigned with signed bytes and adds two products in 16 bits. That saturates for
//! 8-bit weights above 127, so those are used as magnitudes with their sign moved to the activations;
//! products of 4-bit weights fit for a whole block of 32 and those of 6-bit weights for two steps.
#![allow(unsafe_code, reason = "vector loads from slices whose sizes are checked once for each tile")]
#![allow(clippy::needless_range_loop, reason = "rows index registers and memory alike")]

pub(super) mod blocks_256;
pub(super) mod blocks_32;
pub(super) mod wide;

use std::arch::asm;
use std::arch::x86_64::*;

use super::BlockTile;
use super::layout::Format;

/// Rows that are computed together.
const ROWS: usize = 4;

macro_rules! by_rows {
    ($kernel:ident, $tile:ident, $first:ident, $rows:expr $(, $flag:expr)*) => {
        match $rows {
            1 => $kernel::<1, $($flag),*>($tile, $first),
            2 => $kernel::<2, $($flag),*>($tile, $first),
            3 => $kernel::<3, $($flag),*>($tile, $first),
            _ => $kernel::<4, $($flag),*>($tile, $first),
        }
    };
}

pub(super) use by_rows;

/// Adds the blocks of a tile to its sums.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(format: Format, tile: &mut BlockTile<'_>) {
    tile.check(format);
    let rows = tile.sums.len();
    for first in (0..rows).step_by(ROWS) {
        let count = (rows - first).min(ROWS);
        // SAFETY: `check` has compared the sizes of all slices with the number of rows and blocks.
        unsafe {
            match (format, tile.unpacked) {
                (Format::Q8_0, _) => by_rows!(multiply_q8_0, tile, first, count),
                (Format::Q4_0, _) => by_rows!(multiply_q4_0, tile, first, count),
                (Format::Q4_K, false) => by_rows!(multiply_q4_k, tile, first, count, false),
                (Format::Q4_K, true) => by_rows!(multiply_q4_k, tile, first, count, true),
                (Format::Q6_K, false) => by_rows!(multiply_q6_k, tile, first, count, false),
                (Format::Q6_K, true) => by_rows!(multiply_q6_k, tile, first, count, true),
                (other, _) => unreachable!("{other:?} is multiplied elsewhere"),
            }
        }
    }
}

/// Unpacks some groups of parts of 32 inputs, whose words each kind of `$word` makes.
macro_rules! unpack_words {
    ($groups:expr, $quants:ident, $out:ident, [$($kind:literal),*], $word:ident) => {
        for group in $groups {
            let mut part = group * [$($kind),*].len();
            $(
                for half in 0..16 {
                    let (word, side) = (part * 8 + half / 2, half % 2);
                    let bytes = $word::<$kind>($quants, word, side);
                    _mm256_storeu_si256($out.add(word * 64 + side * 32).cast(), bytes);
                }
                part += 1;
            )*
            debug_assert_eq!(part, (group + 1) * [$($kind),*].len());
        }
    };
}

/// Unpacks the quants of `blocks` blocks of a K-quant into bytes, four inputs of each output after the other.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack(format: Format, quants: &[u8], blocks: usize, out: &mut [u8]) {
    assert!(format.holds(quants, blocks) && out.len() >= blocks * 4096);
    for block in 0..blocks {
        // SAFETY: within the slices.
        unsafe {
            let quants = quants.as_ptr().add(block * format.block_bytes());
            let out = out.as_mut_ptr().add(block * 4096);
            match format {
                Format::Q4_K => {
                    unpack_words!(0..4, quants, out, [false, true], q4_k_word);
                }
                _ => {
                    unpack_words!(0..2, quants, out, [0, 1, 2, 3], q6_k_word);
                }
            }
        }
    }
}

/// 8 f16 values as f32.
///
/// # Safety
/// 16 bytes can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}

/// Four activations in every lane.
///
/// # Safety
/// 4 bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn broadcast(at: *const i8) -> __m256i {
    // SAFETY: the caller's promise.
    _mm256_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
}

/// Returns its argument. Without this, the compiler adds products to one another before it adds them to the
/// sums, for which it has too few registers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn in_register(mut sum: __m256i) -> __m256i {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(ymm_reg) sum, options(pure, nomem, nostack, preserves_flags)) };
    sum
}

/// Adds `sum · d · scale` to sums in memory.
///
/// # Safety
/// 32 bytes, aligned to as many, can be read and written.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn accumulate(at: *mut f32, sum: __m256i, d: __m256, scale: f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let d = _mm256_mul_ps(d, _mm256_set1_ps(scale));
        // Volatile, as the compiler would otherwise keep the sums of all rows in registers, of which there
        // are too few.
        let old = at.cast::<__m256>().read_volatile();
        _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), d, old));
    }
}

/// Q8_0. Both halves of the outputs together share the loads of activations.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_q8_0<const R: usize>(tile: &mut BlockTile<'_>, first: usize) {
    // SAFETY: `multiply` has checked the sizes.
    unsafe {
        let (flip, ones) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1));
        let sums = tile.sums.as_mut_ptr().add(first).cast::<f32>();
        let x = tile.x.as_ptr().add(first * tile.x_stride);
        let scales = tile.scales.as_ptr().add(first * tile.scale_stride);
        for block in 0..tile.blocks {
            let quants = tile.quants.as_ptr().add(block * tile.quant_stride);
            let meta = tile.meta.as_ptr().add(block * tile.meta_stride);
            let mut sum = [[_mm256_setzero_si256(); 2]; R];
            for word in 0..8 {
                if word % 2 == 0 {
                    prefetch(quants.add(word * 64));
                }
                let w = [0, 1].map(|side| {
                    _mm256_xor_si256(_mm256_loadu_si256(quants.add(word * 64 + side * 32).cast()), flip)
                });
                let magnitude = w.map(|w| _mm256_abs_epi8(w));
                for r in 0..R {
                    let x = broadcast(x.add(r * tile.x_stride + block * 32 + word * 4));
                    for side in 0..2 {
                        let products = _mm256_maddubs_epi16(magnitude[side], _mm256_sign_epi8(x, w[side]));
                        sum[r][side] = _mm256_add_epi32(sum[r][side], _mm256_madd_epi16(products, ones));
                    }
                }
            }
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

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_q4_0<const R: usize>(tile: &mut BlockTile<'_>, first: usize) {
    // SAFETY: `multiply` has checked the sizes.
    unsafe {
        let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        let sums = tile.sums.as_mut_ptr().add(first).cast::<f32>();
        let x = tile.x.as_ptr().add(first * tile.x_stride);
        let scales = tile.scales.as_ptr().add(first * tile.scale_stride);
        let x_sums = tile.x_sums.as_ptr().add(first * tile.x_sum_stride);
        for block in 0..tile.blocks {
            for side in 0..2 {
                let quants = tile.quants.as_ptr().add(block * tile.quant_stride + side * 32);
                let mut sum = [_mm256_setzero_si256(); R];
                for word in 0..4 {
                    let w = _mm256_loadu_si256(quants.add(word * 64).cast());
                    let a = _mm256_and_si256(w, low);
                    let b = _mm256_and_si256(_mm256_srli_epi16::<4>(w), low);
                    for r in 0..R {
                        let x = x.add(r * tile.x_stride + block * 32 + word * 4);
                        sum[r] = _mm256_add_epi16(sum[r], _mm256_maddubs_epi16(a, broadcast(x)));
                        sum[r] = _mm256_add_epi16(sum[r], _mm256_maddubs_epi16(b, broadcast(x.add(16))));
                    }
                }
                let d = halves(tile.meta.as_ptr().add(block * tile.meta_stride + side * 16));
                for r in 0..R {
                    let offset = *x_sums.add(r * tile.x_sum_stride + block * 4 + 1);
                    let sum = _mm256_add_epi32(_mm256_madd_epi16(sum[r], ones), _mm256_set1_epi32(offset));
                    let scale = *scales.add(r * tile.scale_stride + block);
                    accumulate(sums.add(r * 16 + side * 8), sum, d, scale);
                }
            }
        }
    }
}

/// Inputs 4 · `word` … of a Q4_K block, for one half of the outputs; every other eight words are `HIGH`.
///
/// # Safety
/// `quants` points to a block.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn q4_k_word<const HIGH: bool>(quants: *const u8, word: usize, side: usize) -> __m256i {
    let at = (word / 16 * 8 + word % 8) * 64 + side * 32;
    // SAFETY: the caller's promise; `word` is below 64.
    let bytes = unsafe { _mm256_loadu_si256(quants.add(at).cast()) };
    let bytes = if HIGH { _mm256_srli_epi16::<4>(bytes) } else { bytes };
    _mm256_and_si256(bytes, _mm256_set1_epi8(15))
}

/// Inputs 4 · `word` … of a Q6_K block, for one half of the outputs; they are in the given quarter of a half
/// block.
///
/// # Safety
/// `quants` points to a block.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn q6_k_word<const QUARTER: usize>(quants: *const u8, word: usize, side: usize) -> __m256i {
    let (half, word) = (word / 32 * 1536, word % 8);
    // SAFETY: the caller's promise; the word is one of 64.
    let (low, high) = unsafe {
        let quants = quants.add(half + side * 32);
        (
            _mm256_loadu_si256(quants.add((QUARTER % 2 * 8 + word) * 64).cast()),
            _mm256_loadu_si256(quants.add(1024 + word * 64).cast()),
        )
    };
    let low = if QUARTER < 2 { low } else { _mm256_srli_epi16::<4>(low) };
    let high = match QUARTER {
        0 => _mm256_slli_epi16::<4>(high),
        1 => _mm256_slli_epi16::<2>(high),
        2 => high,
        _ => _mm256_srli_epi16::<2>(high),
    };
    _mm256_or_si256(
        _mm256_and_si256(low, _mm256_set1_epi8(15)),
        _mm256_and_si256(high, _mm256_set1_epi8(0x30)),
    )
}

/// Bytes by which quants are fetched ahead of their use: a thread's panels are one stream of memory, but the
/// processor's own prefetching ends at a page.
const AHEAD: usize = 4096;

/// Prefetches the two cache lines `AHEAD` of an address, which may lie beyond the weights.
#[inline]
#[target_feature(enable = "avx2")]
fn prefetch(at: *const u8) {
    let at = at.wrapping_add(AHEAD).cast::<i8>();
    // A prefetch has no visible effect, whatever the address.
    _mm_prefetch::<_MM_HINT_T0>(at);
    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(64));
}

/// Q4_K; with `UNPACKED` the quants are bytes. Both halves of the outputs together share the loads of
/// activations.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_q4_k<const R: usize, const UNPACKED: bool>(tile: &mut BlockTile<'_>, first: usize) {
    // SAFETY: `multiply` has checked the sizes.
    unsafe {
        let sums = tile.sums.as_mut_ptr().add(first).cast::<f32>();
        let x = tile.x.as_ptr().add(first * tile.x_stride);
        let scales = tile.scales.as_ptr().add(first * tile.scale_stride);
        let x_sums = tile.x_sums.as_ptr().add(first * tile.x_sum_stride);
        for block in 0..tile.blocks {
            let quants = tile.quants.as_ptr().add(block * tile.quant_stride);
            let meta = tile.meta.as_ptr().add(block * tile.meta_stride);
            let x = x.add(block * 256);
            let mut total = [[_mm256_setzero_si256(); 2]; R];
            macro_rules! part {
                ($part:expr, $high:literal) => {{
                    let part = $part;
                    let mut sum = [[_mm256_setzero_si256(); 2]; R];
                    for word in 0..8 {
                        let w = [0, 1].map(|side| {
                            if UNPACKED {
                                _mm256_loadu_si256(quants.add((part * 8 + word) * 64 + side * 32).cast())
                            } else {
                                q4_k_word::<$high>(quants, part * 8 + word, side)
                            }
                        });
                        for r in 0..R {
                            let x = broadcast(x.add(r * tile.x_stride + part * 32 + word * 4));
                            for side in 0..2 {
                                let products = _mm256_maddubs_epi16(w[side], x);
                                sum[r][side] = in_register(_mm256_add_epi16(sum[r][side], products));
                            }
                        }
                    }
                    for side in 0..2 {
                        let scale = _mm_loadl_epi64(meta.add(64 + part * 16 + side * 8).cast());
                        let scale = _mm256_cvtepu8_epi32(scale);
                        let scale = _mm256_or_si256(scale, _mm256_slli_epi32::<16>(scale));
                        for r in 0..R {
                            let products = _mm256_madd_epi16(sum[r][side], scale);
                            total[r][side] = _mm256_add_epi32(total[r][side], products);
                        }
                    }
                }};
            }
            for pair in 0..4 {
                if !UNPACKED {
                    for lines in 0..4 {
                        prefetch(quants.add(pair * 512 + lines * 128));
                    }
                }
                part!(2 * pair, false);
                part!(2 * pair + 1, true);
            }
            if !UNPACKED {
                prefetch(meta);
                prefetch(meta.add(128));
            }
            for side in 0..2 {
                let mut minima = [_mm256_setzero_si256(); R];
                for pair in 0..4 {
                    let mins = _mm_loadu_si128(meta.add(192 + pair * 32 + side * 16).cast());
                    let mins = _mm256_cvtepu8_epi16(mins);
                    for r in 0..R {
                        let x_sum = *x_sums.add(r * tile.x_sum_stride + block * 36 + 16 + pair);
                        let products = _mm256_madd_epi16(mins, _mm256_set1_epi32(x_sum));
                        minima[r] = _mm256_add_epi32(minima[r], products);
                    }
                }
                let d = halves(meta.add(side * 16));
                let d_min = halves(meta.add(32 + side * 16));
                for r in 0..R {
                    let at = sums.add(r * 16 + side * 8);
                    let scale = *scales.add(r * tile.scale_stride + block);
                    accumulate(at, total[r][side], d, scale);
                    let d_min = _mm256_mul_ps(d_min, _mm256_set1_ps(scale));
                    let minima = _mm256_cvtepi32_ps(minima[r]);
                    _mm256_storeu_ps(at, _mm256_fnmadd_ps(minima, d_min, _mm256_loadu_ps(at)));
                }
            }
        }
    }
}

/// Q6_K; with `UNPACKED` the quants are bytes. Both halves of the outputs together share the loads of
/// activations.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_q6_k<const R: usize, const UNPACKED: bool>(tile: &mut BlockTile<'_>, first: usize) {
    // SAFETY: `multiply` has checked the sizes.
    unsafe {
        let sums = tile.sums.as_mut_ptr().add(first).cast::<f32>();
        let x = tile.x.as_ptr().add(first * tile.x_stride);
        let scales = tile.scales.as_ptr().add(first * tile.scale_stride);
        let x_sums = tile.x_sums.as_ptr().add(first * tile.x_sum_stride);
        for block in 0..tile.blocks {
            let quants = tile.quants.as_ptr().add(block * tile.quant_stride);
            let meta = tile.meta.as_ptr().add(block * tile.meta_stride);
            let x = x.add(block * 256);
            let x_sums = x_sums.add(block * 36 + 20);
            let mut total = [[_mm256_setzero_si256(); 2]; R];
            for side in 0..2 {
                // -16 times the sums of the activations times their scales, two parts at a time, then twice
                // that.
                for pair in 0..8 {
                    let scale = meta.add(32 + pair * 32 + side * 8);
                    let scales = _mm256_blend_epi16::<0xaa>(
                        _mm256_cvtepi8_epi32(_mm_loadl_epi64(scale.cast())),
                        _mm256_slli_epi32::<16>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(scale.add(16).cast()))),
                    );
                    for r in 0..R {
                        // Each sum is there twice: the second half of one word and the first of the next.
                        let x_sum = x_sums.add(r * tile.x_sum_stride + 2 * pair).cast::<i8>().add(2);
                        let products = _mm256_madd_epi16(scales, broadcast(x_sum));
                        total[r][side] = _mm256_add_epi32(total[r][side], products);
                    }
                }
                for r in 0..R {
                    total[r][side] = _mm256_slli_epi32::<1>(total[r][side]);
                }
            }
            macro_rules! part {
                ($part:expr, $quarter:literal) => {{
                    let part = $part;
                    let scale = [0, 1].map(|side| {
                        let scale = _mm_loadl_epi64(meta.add(32 + part * 16 + side * 8).cast());
                        let scale = _mm256_cvtepi8_epi32(scale);
                        _mm256_blend_epi16::<0xaa>(scale, _mm256_slli_epi32::<16>(scale))
                    });
                    for word in [0, 2] {
                        let w = [0, 1, 2, 3].map(|i| {
                            let (word, side) = (part * 4 + word + i / 2, i % 2);
                            if UNPACKED {
                                _mm256_loadu_si256(quants.add(word * 64 + side * 32).cast())
                            } else {
                                q6_k_word::<$quarter>(quants, word, side)
                            }
                        });
                        for r in 0..R {
                            let x = x.add(r * tile.x_stride + part * 16 + word * 4);
                            let x = [broadcast(x), broadcast(x.add(4))];
                            for side in 0..2 {
                                let sum = _mm256_add_epi16(
                                    _mm256_maddubs_epi16(w[side], x[0]),
                                    _mm256_maddubs_epi16(w[2 + side], x[1]),
                                );
                                let products = _mm256_madd_epi16(sum, scale[side]);
                                total[r][side] = _mm256_add_epi32(total[r][side], products);
                            }
                        }
                    }
                }};
            }
            for group in 0..4 {
                if !UNPACKED {
                    for lines in 0..6 {
                        prefetch(quants.add(group * 768 + lines * 128));
                    }
                }
                let first = group / 2 * 8 + group % 2;
                part!(first, 0);
                part!(first + 2, 1);
                part!(first + 4, 2);
                part!(first + 6, 3);
            }
            if !UNPACKED {
                prefetch(meta);
                prefetch(meta.add(128));
            }
            for side in 0..2 {
                let d = halves(meta.add(side * 16));
                for r in 0..R {
                    let scale = *scales.add(r * tile.scale_stride + block);
                    accumulate(sums.add(r * 16 + side * 8), total[r][side], d, scale);
                }
            }
        }
    }
}
