//! Products of panels with AVX-512 VNNI: a vector is four inputs of all 16 outputs of a panel.
//!
//! `vpdpbusd` multiplies unsigned weights with signed activations and adds four products to a 32-bit lane,
//! all exact. The offsets of stored weights are subtracted by means of sums of the activations.
#![allow(unsafe_code, reason = "vector loads from slices whose sizes are checked once for each tile")]
#![allow(clippy::needless_range_loop, reason = "rows index registers and memory alike")]

pub(super) mod blocks_256;
pub(super) mod blocks_32;

use std::arch::asm;
use std::arch::x86_64::*;

use super::BlockTile;
use super::layout::Format;

/// Rows that are computed together.
const ROWS: usize = 8;
/// Rows of 32-input blocks that are computed together where there are as many: `vpdpbusd` has a latency of
/// five cycles, and two begin in each.
const MANY_ROWS: usize = 16;

macro_rules! by_rows {
    ($kernel:ident, $tile:ident, $first:ident, $rows:expr $(, $flag:expr)*) => {
        match $rows {
            1 => $kernel::<1, $($flag),*>($tile, $first),
            2 => $kernel::<2, $($flag),*>($tile, $first),
            3 => $kernel::<3, $($flag),*>($tile, $first),
            4 => $kernel::<4, $($flag),*>($tile, $first),
            5 => $kernel::<5, $($flag),*>($tile, $first),
            6 => $kernel::<6, $($flag),*>($tile, $first),
            7 => $kernel::<7, $($flag),*>($tile, $first),
            _ => $kernel::<8, $($flag),*>($tile, $first),
        }
    };
}

/// Adds the blocks of a tile to its sums.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn multiply(format: Format, tile: &mut BlockTile<'_>) {
    tile.check(format);
    let rows = tile.sums.len();
    let mut first = 0;
    while first < rows {
        let mut count = (rows - first).min(ROWS);
        // SAFETY: `check` has compared the sizes of all slices with the number of rows and blocks.
        unsafe {
            match (format, tile.unpacked) {
                (Format::Q8_0 | Format::Q4_0, _) if rows - first >= MANY_ROWS => {
                    count = MANY_ROWS;
                    match format {
                        Format::Q8_0 => multiply_32::<MANY_ROWS, true>(tile, first),
                        _ => multiply_32::<MANY_ROWS, false>(tile, first),
                    }
                }
                (Format::Q8_0, _) => by_rows!(multiply_32, tile, first, count, true),
                (Format::Q4_0, _) => by_rows!(multiply_32, tile, first, count, false),
                (Format::Q4_K, false) => by_rows!(multiply_q4_k, tile, first, count, false),
                (Format::Q4_K, true) => by_rows!(multiply_q4_k, tile, first, count, true),
                (Format::Q6_K, false) => by_rows!(multiply_q6_k, tile, first, count, false),
                (Format::Q6_K, true) => by_rows!(multiply_q6_k, tile, first, count, true),
                (other, _) => unreachable!("{other:?} is multiplied elsewhere"),
            }
        }
        first += count;
    }
}

/// Unpacks some groups of parts of 32 inputs, whose words each kind of `$word` makes.
macro_rules! unpack_words {
    ($groups:expr, $quants:ident, $out:ident, [$($kind:literal),*], $word:ident) => {
        for group in $groups {
            let mut part = group * [$($kind),*].len();
            $(
                for word in part * 8..part * 8 + 8 {
                    _mm512_storeu_si512($out.add(word * 64).cast(), $word::<$kind>($quants, word));
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
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
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

/// 16 f16 values as f32.
///
/// # Safety
/// 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

/// Bytes by which quants are fetched ahead of their use: a thread's panels are one stream of memory, but the
/// processor's own prefetching ends at a page.
const AHEAD: usize = 4096;

/// Prefetches the lines `AHEAD` of those of a block, which may lie beyond the weights.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn prefetch(block: *const u8, bytes: usize) {
    for at in (AHEAD..AHEAD + bytes).step_by(64) {
        // A prefetch has no visible effect, whatever the address.
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(at).cast());
    }
}

/// Four activations in every lane.
///
/// # Safety
/// 4 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn broadcast(at: *const i8) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
}

/// Returns its argument. Without this, the compiler computes one row after the other, each a chain that waits
/// for its own results.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn in_register(mut sum: __m512i) -> __m512i {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(zmm_reg) sum, options(pure, nomem, nostack, preserves_flags)) };
    sum
}

/// Q8_0 (`EIGHT`) and Q4_0.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_32<const R: usize, const EIGHT: bool>(tile: &mut BlockTile<'_>, first: usize) {
    // SAFETY: `multiply` has checked the sizes.
    unsafe {
        let low = _mm512_set1_epi8(15);
        let sums = tile.sums.as_mut_ptr().add(first).cast::<__m512>();
        // These sums are in registers only where there are few rows; those of many rows are in memory.
        let mut acc = [_mm512_setzero_ps(); R];
        for r in 0..R {
            acc[r] = sums.add(r).read();
        }
        let x = tile.x.as_ptr().add(first * tile.x_stride);
        let scales = tile.scales.as_ptr().add(first * tile.scale_stride);
        let x_sums = tile.x_sums.as_ptr().add(first * tile.x_sum_stride);
        for block in 0..tile.blocks {
            let mut sum = [_mm512_setzero_si512(); R];
            for r in 0..R {
                let at = x_sums.add(r * tile.x_sum_stride + block * 4);
                sum[r] = _mm512_set1_epi32(*at.add(if EIGHT { 0 } else { 1 }));
            }
            let quants = tile.quants.as_ptr().add(block * tile.quant_stride);
            if tile.fresh {
                prefetch(quants, tile.quant_stride);
            }
            let x = x.add(block * 32);
            if EIGHT {
                for word in 0..8 {
                    let w = _mm512_loadu_si512(quants.add(word * 64).cast());
                    for r in 0..R {
                        let x = broadcast(x.add(r * tile.x_stride + word * 4));
                        sum[r] = in_register(_mm512_dpbusd_epi32(sum[r], w, x));
                    }
                }
            } else {
                for word in 0..4 {
                    let w = _mm512_loadu_si512(quants.add(word * 64).cast());
                    let w = [_mm512_and_si512(w, low), _mm512_and_si512(_mm512_srli_epi16::<4>(w), low)];
                    for part in 0..2 {
                        for r in 0..R {
                            let x = broadcast(x.add(r * tile.x_stride + part * 16 + word * 4));
                            sum[r] = in_register(_mm512_dpbusd_epi32(sum[r], w[part], x));
                        }
                    }
                }
            }
            let d = halves(tile.meta.as_ptr().add(block * tile.meta_stride));
            for r in 0..R {
                let d = _mm512_mul_ps(d, _mm512_set1_ps(*scales.add(r * tile.scale_stride + block)));
                let sum = _mm512_cvtepi32_ps(sum[r]);
                if R > ROWS {
                    // Volatile, as the compiler would otherwise keep them in registers, and spill others.
                    let old = sums.add(r).read_volatile();
                    sums.add(r).write(_mm512_fmadd_ps(sum, d, old));
                } else {
                    acc[r] = _mm512_fmadd_ps(sum, d, acc[r]);
                }
            }
        }
        if R <= ROWS {
            for r in 0..R {
                sums.add(r).write(acc[r]);
            }
        }
    }
}

/// Inputs 4 · `word` … of a Q4_K block; every other eight words are `HIGH`.
///
/// # Safety
/// `quants` points to a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn q4_k_word<const HIGH: bool>(quants: *const u8, word: usize) -> __m512i {
    // SAFETY: the caller's promise; `word` is below 64.
    let bytes = unsafe { _mm512_loadu_si512(quants.add((word / 16 * 8 + word % 8) * 64).cast()) };
    let bytes = if HIGH { _mm512_srli_epi16::<4>(bytes) } else { bytes };
    _mm512_and_si512(bytes, _mm512_set1_epi8(15))
}

/// Inputs 4 · `word` … of a Q6_K block, which are in the given quarter of a half block.
///
/// # Safety
/// `quants` points to a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn q6_k_word<const QUARTER: usize>(quants: *const u8, word: usize) -> __m512i {
    let (half, word) = (word / 32 * 1536, word % 8);
    // SAFETY: the caller's promise; the word is one of 64.
    let (low, high) = unsafe {
        (
            _mm512_loadu_si512(quants.add(half + (QUARTER % 2 * 8 + word) * 64).cast()),
            _mm512_loadu_si512(quants.add(half + 1024 + word * 64).cast()),
        )
    };
    let low = if QUARTER < 2 { low } else { _mm512_srli_epi16::<4>(low) };
    let high = match QUARTER {
        0 => _mm512_slli_epi16::<4>(high),
        1 => _mm512_slli_epi16::<2>(high),
        2 => high,
        _ => _mm512_srli_epi16::<2>(high),
    };
    let high = _mm512_and_si512(high, _mm512_set1_epi8(0x30));
    // (low & 15) | high
    _mm512_ternarylogic_epi32::<0xea>(low, _mm512_set1_epi8(15), high)
}

/// Q4_K; with `UNPACKED` the quants are bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_q4_k<const R: usize, const UNPACKED: bool>(tile: &mut BlockTile<'_>, first: usize) {
    // SAFETY: `multiply` has checked the sizes.
    unsafe {
        let sums = tile.sums.as_mut_ptr().add(first).cast::<__m512>();
        let x = tile.x.as_ptr().add(first * tile.x_stride);
        let scales = tile.scales.as_ptr().add(first * tile.scale_stride);
        let x_sums = tile.x_sums.as_ptr().add(first * tile.x_sum_stride);
        for block in 0..tile.blocks {
            let quants = tile.quants.as_ptr().add(block * tile.quant_stride);
            let meta = tile.meta.as_ptr().add(block * tile.meta_stride);
            if tile.fresh {
                prefetch(quants, tile.quant_stride);
            }
            let x = x.add(block * 256);
            let mut total = [_mm512_setzero_si512(); R];
            macro_rules! part {
                ($part:expr, $high:literal) => {{
                    let part = $part;
                    // Sums of 16 products fit into 16 bits, for `vpdpwssd` with the scale.
                    let mut sum = [[_mm512_setzero_si512(); 2]; R];
                    for word in 0..4 {
                        let w = [word, word + 4].map(|word| {
                            if UNPACKED {
                                _mm512_loadu_si512(quants.add((part * 8 + word) * 64).cast())
                            } else {
                                q4_k_word::<$high>(quants, part * 8 + word)
                            }
                        });
                        for side in 0..2 {
                            for r in 0..R {
                                let at = r * tile.x_stride + part * 32 + side * 16 + word * 4;
                                let products =
                                    _mm512_dpbusd_epi32(sum[r][side], w[side], broadcast(x.add(at)));
                                sum[r][side] = in_register(products);
                            }
                        }
                    }
                    let scale = _mm512_cvtepu8_epi32(_mm_loadu_si128(meta.add(64 + part * 16).cast()));
                    for r in 0..R {
                        total[r] = _mm512_dpwssd_epi32(total[r], sum[r][0], scale);
                        total[r] = _mm512_dpwssd_epi32(total[r], sum[r][1], scale);
                    }
                }};
            }
            for pair in 0..4 {
                part!(2 * pair, false);
                part!(2 * pair + 1, true);
            }
            let d = halves(meta);
            let d_min = halves(meta.add(32));
            let mut minima = [_mm512_setzero_si512(); R];
            for pair in 0..4 {
                let mins = _mm256_loadu_si256(meta.add(192 + pair * 32).cast());
                let mins = _mm512_cvtepu8_epi16(mins);
                for r in 0..R {
                    let x_sum = *x_sums.add(r * tile.x_sum_stride + block * 36 + 16 + pair);
                    minima[r] = _mm512_dpwssd_epi32(minima[r], mins, _mm512_set1_epi32(x_sum));
                }
            }
            for r in 0..R {
                let scale = _mm512_set1_ps(*scales.add(r * tile.scale_stride + block));
                // Volatile, as the compiler would otherwise keep the sums in registers, of which there are
                // too few.
                let old = sums.add(r).read_volatile();
                let new = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[r]), _mm512_mul_ps(d, scale), old);
                let minima = _mm512_cvtepi32_ps(minima[r]);
                sums.add(r).write(_mm512_fnmadd_ps(minima, _mm512_mul_ps(d_min, scale), new));
            }
        }
    }
}

/// Q6_K; with `UNPACKED` the quants are bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_q6_k<const R: usize, const UNPACKED: bool>(tile: &mut BlockTile<'_>, first: usize) {
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
            let quants = tile.quants.as_ptr().add(block * tile.quant_stride);
            let meta = tile.meta.as_ptr().add(block * tile.meta_stride);
            if tile.fresh {
                prefetch(quants, tile.quant_stride);
            }
            let x = x.add(block * 256);
            let mut total = [_mm512_setzero_si512(); R];
            macro_rules! part {
                ($part:expr, $quarter:literal) => {{
                    let part = $part;
                    let mut sum = [_mm512_setzero_si512(); R];
                    for r in 0..R {
                        sum[r] = _mm512_set1_epi32(*x_sums.add(r * tile.x_sum_stride + block * 36 + part));
                    }
                    for word in 0..4 {
                        let w = if UNPACKED {
                            _mm512_loadu_si512(quants.add((part * 4 + word) * 64).cast())
                        } else {
                            q6_k_word::<$quarter>(quants, part * 4 + word)
                        };
                        for r in 0..R {
                            let x = broadcast(x.add(r * tile.x_stride + part * 16 + word * 4));
                            sum[r] = in_register(_mm512_dpbusd_epi32(sum[r], w, x));
                        }
                    }
                    let scale = _mm512_cvtepi8_epi32(_mm_loadu_si128(meta.add(32 + part * 16).cast()));
                    for r in 0..R {
                        total[r] = _mm512_add_epi32(total[r], _mm512_mullo_epi32(sum[r], scale));
                    }
                }};
            }
            for first in [0, 1, 8, 9] {
                part!(first, 0);
                part!(first + 2, 1);
                part!(first + 4, 2);
                part!(first + 6, 3);
            }
            let d = halves(meta);
            for r in 0..R {
                let scale = _mm512_set1_ps(*scales.add(r * tile.scale_stride + block));
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[r]), _mm512_mul_ps(d, scale), acc[r]);
            }
        }
        for r in 0..R {
            _mm512_storeu_ps(sums.add(r * 16), acc[r]);
        }
    }
}
