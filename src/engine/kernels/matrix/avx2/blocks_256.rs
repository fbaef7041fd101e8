//! Products of panels with AVX2 and FMA: blocks of 256 other than Q4_K's and Q6_K's.
//!
//! As in [`super`], a vector is four inputs of 8 outputs. Products are summed in 16 bits over 16 inputs,
//! which fits for weights of up to 5 bits, and multiplied by the sub-scale in one `vpmaddwd`. IQ4_XS's
//! weights are used as magnitudes, with their sign moved to the activations, and are multiplied by the
//! sub-scale at once.
#![allow(unsafe_code, reason = "vector loads from slices whose sizes are checked once for each tile")]
#![allow(clippy::needless_range_loop, reason = "rows index registers and memory alike")]

use std::arch::x86_64::*;

use super::super::BlockTile;
use super::super::layout::Format;
use super::blocks_32::iq4_table;
use super::{broadcast, halves};

/// Rows that are computed together.
const ROWS: usize = 4;

const Q2_K: u8 = Format::Q2_K as u8;
const Q3_K: u8 = Format::Q3_K as u8;
const Q5_K: u8 = Format::Q5_K as u8;
const IQ4_XS: u8 = Format::IQ4_XS as u8;

macro_rules! by_format {
    ($function:ident, $format:expr, ($($argument:expr),*)) => {
        match $format {
            Format::Q2_K => $function::<Q2_K>($($argument),*),
            Format::Q3_K => $function::<Q3_K>($($argument),*),
            Format::Q5_K => $function::<Q5_K>($($argument),*),
            Format::IQ4_XS => $function::<IQ4_XS>($($argument),*),
            other => unreachable!("{other:?} is multiplied elsewhere"),
        }
    };
}

/// Adds the blocks of a tile to its sums.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) unsafe fn multiply(format: Format, tile: &mut BlockTile<'_>) {
    tile.check(format);
    // SAFETY: `check` has compared the sizes of all slices with the number of rows and blocks.
    unsafe { by_format!(by_rows, format, (tile)) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn by_rows<const F: u8>(tile: &mut BlockTile<'_>) {
    let rows = tile.sums.len();
    for first in (0..rows).step_by(ROWS) {
        // SAFETY: the caller's promise.
        unsafe {
            match (rows - first, tile.unpacked) {
                (1, false) => multiply_rows::<F, 1, false>(tile, first),
                (2, false) => multiply_rows::<F, 2, false>(tile, first),
                (3, false) => multiply_rows::<F, 3, false>(tile, first),
                (_, false) => multiply_rows::<F, 4, false>(tile, first),
                (1, true) => multiply_rows::<F, 1, true>(tile, first),
                (2, true) => multiply_rows::<F, 2, true>(tile, first),
                (3, true) => multiply_rows::<F, 3, true>(tile, first),
                (_, true) => multiply_rows::<F, 4, true>(tile, first),
            }
        }
    }
}

/// Unpacks the quants of `blocks` blocks into bytes, four inputs of each output after the other.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) unsafe fn unpack(format: Format, quants: &[u8], blocks: usize, out: &mut [u8]) {
    assert!(format.holds(quants, blocks) && out.len() >= blocks * 4096);
    for block in 0..blocks {
        // SAFETY: within the slices.
        unsafe {
            let quants = quants.as_ptr().add(block * format.block_bytes());
            let out = out.as_mut_ptr().add(block * 4096);
            by_format!(unpack_block, format, (quants, out));
        }
    }
}

#[target_feature(enable = "avx2")]
unsafe fn unpack_block<const F: u8>(quants: *const u8, out: *mut u8) {
    for part in 0..8 {
        for at in 0..16 {
            // SAFETY: the caller's promise of a block, and of 4096 bytes.
            unsafe {
                let bytes = word_of::<F>(quants, part, at / 2, at % 2);
                _mm256_storeu_si256(out.add((part * 16 + at) * 32).cast(), bytes);
            }
        }
    }
}

/// Inputs 4 · `word` … of a part of 32 inputs of a block, for one half of the outputs. They are unsigned, and
/// plus 4 for Q3_K; only IQ4_XS's are signed.
///
/// Shifts are by registers: parts that are not a loop make the compiler load all activations first, into
/// memory.
///
/// # Safety
/// `quants` points to a block; `part` and `word` are below 8, `side` is below 2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn word_of<const F: u8>(quants: *const u8, part: usize, word: usize, side: usize) -> __m256i {
    // SAFETY: the caller's promise.
    let load = |at: usize| unsafe { _mm256_loadu_si256(quants.add(at * 64 + side * 32).cast()) };
    let shifted = |bytes: __m256i, bits: usize| _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(bits as i32));
    // `value` where the part's bit of the word at `at` is set.
    let set = |at: usize, value: i8| {
        let mask = _mm256_set1_epi8((1_u8 << part) as i8);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(load(at), mask), mask);
        _mm256_and_si256(set, _mm256_set1_epi8(value))
    };
    let (low, three) = (_mm256_set1_epi8(15), _mm256_set1_epi8(3));
    match F {
        Q5_K => {
            let quants = shifted(load(part / 2 * 8 + word), part % 2 * 4);
            _mm256_or_si256(_mm256_and_si256(quants, low), set(32 + word, 16))
        }
        Q2_K => _mm256_and_si256(shifted(load(part / 4 * 8 + word), part % 4 * 2), three),
        Q3_K => {
            let quants = shifted(load(part / 4 * 8 + word), part % 4 * 2);
            _mm256_or_si256(_mm256_and_si256(quants, three), set(16 + word, 4))
        }
        _ => {
            let quants = load(part * 4 + word % 4);
            let quants = if word < 4 { quants } else { _mm256_srli_epi16::<4>(quants) };
            _mm256_shuffle_epi8(iq4_table(), _mm256_and_si256(quants, low))
        }
    }
}

/// Sub-scales of two parts as pairs of i16, from a byte of each.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(a: __m256i, b: __m256i) -> __m256i {
    _mm256_blend_epi16::<0xaa>(a, _mm256_slli_epi32::<16>(b))
}

/// With `UNPACKED` the quants are bytes.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_rows<const F: u8, const R: usize, const UNPACKED: bool>(
    tile: &mut BlockTile<'_>,
    first: usize,
) {
    let minima = F == Q2_K || F == Q5_K;
    // SAFETY: `multiply` has checked the sizes.
    unsafe {
        let sums = tile.sums.as_mut_ptr().add(first).cast::<f32>();
        let x = tile.x.as_ptr().add(first * tile.x_stride);
        let scales = tile.scales.as_ptr().add(first * tile.scale_stride);
        let x_sums = tile.x_sums.as_ptr().add(first * tile.x_sum_stride);
        for half in 0..tile.blocks * 2 {
            let (block, side) = (half / 2, half % 2);
            let quants = tile.quants.as_ptr().add(block * tile.quant_stride);
            let meta = tile.meta.as_ptr().add(block * tile.meta_stride);
            let (x, x_sums) = (x.add(block * 256), x_sums.add(block * 36));
            let sub = meta.add(if minima { 64 } else { 32 } + side * 8);
            // The byte that each of 8 outputs has at `i`, which is a scale but for Q2_K.
            let bytes = |i: usize| {
                let bytes = _mm_loadl_epi64(sub.add(i * 16).cast());
                if minima { _mm256_cvtepu8_epi32(bytes) } else { _mm256_cvtepi8_epi32(bytes) }
            };
            let mut total = [_mm256_setzero_si256(); R];
            for part in 0..8 {
                for sixteen in 0..2 {
                    let scale = match F {
                        Q2_K => _mm256_and_si256(bytes(part * 2 + sixteen), _mm256_set1_epi32(15)),
                        Q3_K => bytes(part * 2 + sixteen),
                        _ => bytes(part),
                    };
                    let scale = pairs(scale, scale);
                    let mut sum = [_mm256_setzero_si256(); R];
                    for word in sixteen * 4..sixteen * 4 + 4 {
                        let w = if UNPACKED {
                            _mm256_loadu_si256(quants.add((part * 8 + word) * 64 + side * 32).cast())
                        } else {
                            word_of::<F>(quants, part, word, side)
                        };
                        for r in 0..R {
                            let x = broadcast(x.add(r * tile.x_stride + part * 32 + word * 4));
                            if F == IQ4_XS {
                                let products =
                                    _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                                let products = _mm256_madd_epi16(products, scale);
                                total[r] = _mm256_add_epi32(total[r], products);
                            } else {
                                sum[r] = _mm256_add_epi16(sum[r], _mm256_maddubs_epi16(w, x));
                            }
                        }
                    }
                    if F != IQ4_XS {
                        for r in 0..R {
                            total[r] = _mm256_add_epi32(total[r], _mm256_madd_epi16(sum[r], scale));
                        }
                    }
                }
            }
            // Sums of the activations of parts times their minima or, for Q3_K, scales: times -16 for parts
            // of 16.
            let mut extra = [_mm256_setzero_si256(); R];
            if F == Q5_K {
                for pair in 0..4 {
                    let mins = _mm_loadu_si128(meta.add(192 + pair * 32 + side * 16).cast());
                    let mins = _mm256_cvtepu8_epi16(mins);
                    for r in 0..R {
                        let x_sum = *x_sums.add(r * tile.x_sum_stride + 16 + pair);
                        let products = _mm256_madd_epi16(mins, _mm256_set1_epi32(x_sum));
                        extra[r] = _mm256_add_epi32(extra[r], products);
                    }
                }
            } else if F != IQ4_XS {
                for pair in 0..8 {
                    let (mut a, mut b) = (bytes(2 * pair), bytes(2 * pair + 1));
                    if F == Q2_K {
                        (a, b) = (_mm256_srli_epi32::<4>(a), _mm256_srli_epi32::<4>(b));
                    }
                    let factors = pairs(a, b);
                    for r in 0..R {
                        // Each sum is there twice: the second half of one word and the first of the next.
                        let x_sum = x_sums.add(r * tile.x_sum_stride + 20 + 2 * pair).cast::<i8>().add(2);
                        let products = _mm256_madd_epi16(factors, broadcast(x_sum));
                        extra[r] = _mm256_add_epi32(extra[r], products);
                    }
                }
            }
            let d = halves(meta.add(side * 16));
            for r in 0..R {
                let scale = _mm256_set1_ps(*scales.add(r * tile.scale_stride + block));
                let at = sums.add(r * 16 + side * 8);
                let mut sum = total[r];
                if F == Q3_K {
                    // The weights are stored plus 4.
                    sum = _mm256_add_epi32(sum, _mm256_srai_epi32::<2>(extra[r]));
                }
                let sum = _mm256_cvtepi32_ps(sum);
                let mut acc = _mm256_fmadd_ps(sum, _mm256_mul_ps(d, scale), _mm256_loadu_ps(at));
                if minima {
                    let mut sum = extra[r];
                    if F == Q2_K {
                        sum = _mm256_srai_epi32::<4>(_mm256_sub_epi32(_mm256_setzero_si256(), sum));
                    }
                    let d_min = _mm256_mul_ps(halves(meta.add(32 + side * 16)), scale);
                    acc = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(sum), d_min, acc);
                }
                _mm256_storeu_ps(at, acc);
            }
        }
    }
}
