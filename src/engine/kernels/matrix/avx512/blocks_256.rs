//! Products of panels with AVX-512 VNNI: blocks of 256 other than Q4_K's and Q6_K's.
//!
//! As in [`super`], a vector is four inputs of all 16 outputs. The weights of Q3_K are stored plus 4, and the
//! values of IQ4_XS are used plus 128: both offsets are subtracted by means of the sums of the activations
//! times the sub-scales.
#![allow(unsafe_code, reason = "vector loads from slices whose sizes are checked once for each tile")]
#![allow(clippy::needless_range_loop, reason = "rows index registers and memory alike")]

use std::arch::x86_64::*;

use super::super::BlockTile;
use super::super::layout::Format;
use super::blocks_32::iq4_table;
use super::{broadcast, halves, prefetch};

/// Rows that are computed together; more do not fit into registers.
const ROWS: usize = 8;

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
/// The processor has AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
pub(in super::super) unsafe fn multiply(format: Format, tile: &mut BlockTile<'_>) {
    tile.check(format);
    // SAFETY: `check` has compared the sizes of all slices with the number of rows and blocks.
    unsafe {
        if tile.unpacked {
            by_format!(by_rows_unpacked, format, (tile));
        } else {
            by_format!(by_rows_packed, format, (tile));
        }
    }
}

macro_rules! by_rows {
    ($name:ident, $unpacked:literal) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        unsafe fn $name<const F: u8>(tile: &mut BlockTile<'_>) {
            let rows = tile.sums.len();
            for first in (0..rows).step_by(ROWS) {
                // SAFETY: the caller's promise.
                unsafe {
                    match rows - first {
                        1 => multiply_rows::<F, 1, $unpacked>(tile, first),
                        2 => multiply_rows::<F, 2, $unpacked>(tile, first),
                        3 => multiply_rows::<F, 3, $unpacked>(tile, first),
                        4 => multiply_rows::<F, 4, $unpacked>(tile, first),
                        5 => multiply_rows::<F, 5, $unpacked>(tile, first),
                        6 => multiply_rows::<F, 6, $unpacked>(tile, first),
                        7 => multiply_rows::<F, 7, $unpacked>(tile, first),
                        _ => multiply_rows::<F, 8, $unpacked>(tile, first),
                    }
                }
            }
        }
    };
}
by_rows!(by_rows_packed, false);
by_rows!(by_rows_unpacked, true);

/// Unpacks the quants of `blocks` blocks into bytes, four inputs of each output after the other.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
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

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack_block<const F: u8>(quants: *const u8, out: *mut u8) {
    for part in 0..8 {
        for word in 0..8 {
            // SAFETY: the caller's promise of a block, and of 4096 bytes.
            unsafe {
                let bytes = word_of::<F>(quants, part, word);
                _mm512_storeu_si512(out.add((part * 8 + word) * 64).cast(), bytes);
            }
        }
    }
}

/// Inputs 4 · `word` … of a part of 32 inputs of a block, unsigned: plus 4 for Q3_K, plus 128 for IQ4_XS.
///
/// Shifts are by registers: parts that are not a loop make the compiler load all activations first, into
/// memory.
///
/// # Safety
/// `quants` points to a block; `part` and `word` are below 8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn word_of<const F: u8>(quants: *const u8, part: usize, word: usize) -> __m512i {
    // SAFETY: the caller's promise.
    let load = |at: usize| unsafe { _mm512_loadu_si512(quants.add(at * 64).cast()) };
    let shifted = |bytes: __m512i, bits: usize| _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(bits as i32));
    // Adds `value` where the part's bit of the word at `at` is set.
    let add = |quants: __m512i, at: usize, value: i8| {
        let set = _mm512_test_epi8_mask(load(at), _mm512_set1_epi8((1_u8 << part) as i8));
        _mm512_mask_add_epi8(quants, set, quants, _mm512_set1_epi8(value))
    };
    let (low, three) = (_mm512_set1_epi8(15), _mm512_set1_epi8(3));
    match F {
        Q5_K => {
            let quants = shifted(load(part / 2 * 8 + word), part % 2 * 4);
            add(_mm512_and_si512(quants, low), 32 + word, 16)
        }
        Q2_K => _mm512_and_si512(shifted(load(part / 4 * 8 + word), part % 4 * 2), three),
        Q3_K => {
            let quants = shifted(load(part / 4 * 8 + word), part % 4 * 2);
            add(_mm512_and_si512(quants, three), 16 + word, 4)
        }
        _ => {
            let quants = load(part * 4 + word % 4);
            let quants = if word < 4 { quants } else { _mm512_srli_epi16::<4>(quants) };
            _mm512_shuffle_epi8(iq4_table(), _mm512_and_si512(quants, low))
        }
    }
}

/// Two numbers for each output as pairs of i16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pairs(a: __m512i, b: __m512i) -> __m512i {
    _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_slli_epi32::<16>(b))
}

/// With `UNPACKED` the quants are bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_rows<const F: u8, const R: usize, const UNPACKED: bool>(
    tile: &mut BlockTile<'_>,
    first: usize,
) {
    let minima = F == Q2_K || F == Q5_K;
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
            if tile.fresh {
                prefetch(quants, tile.quant_stride);
            }
            let meta = tile.meta.as_ptr().add(block * tile.meta_stride);
            let (x, x_sums) = (x.add(block * 256), x_sums.add(block * 36));
            let sub = meta.add(if minima { 64 } else { 32 });
            // The byte that each output has at `i`, which is a scale but for Q2_K.
            let bytes = |i: usize| {
                let bytes = _mm_loadu_si128(sub.add(i * 16).cast());
                if minima { _mm512_cvtepu8_epi32(bytes) } else { _mm512_cvtepi8_epi32(bytes) }
            };
            let mut total = [_mm512_setzero_si512(); R];
            for part in 0..8 {
                let mut sum = [_mm512_setzero_si512(); R];
                for word in 0..8 {
                    let w = if UNPACKED {
                        _mm512_loadu_si512(quants.add((part * 8 + word) * 64).cast())
                    } else {
                        word_of::<F>(quants, part, word)
                    };
                    for r in 0..R {
                        let x = broadcast(x.add(r * tile.x_stride + part * 32 + word * 4));
                        sum[r] = _mm512_dpbusd_epi32(sum[r], w, x);
                    }
                    // Sub-scales are for 16 inputs or for 32.
                    if word == 7 || word == 3 && (F == Q2_K || F == Q3_K) {
                        let scale = match F {
                            Q2_K => _mm512_and_si512(bytes(part * 2 + word / 4), _mm512_set1_epi32(15)),
                            Q3_K => bytes(part * 2 + word / 4),
                            _ => bytes(part),
                        };
                        for r in 0..R {
                            total[r] = _mm512_add_epi32(total[r], _mm512_mullo_epi32(sum[r], scale));
                            sum[r] = _mm512_setzero_si512();
                        }
                    }
                }
            }
            // Sums of the activations of parts times their minima or scales: times -16 for parts of 16.
            let mut extra = [_mm512_setzero_si512(); R];
            if F == Q5_K || F == IQ4_XS {
                for pair in 0..4 {
                    let factors = if F == Q5_K {
                        _mm512_cvtepu8_epi16(_mm256_loadu_si256(meta.add(192 + pair * 32).cast()))
                    } else {
                        pairs(bytes(2 * pair), bytes(2 * pair + 1))
                    };
                    for r in 0..R {
                        let x_sum = *x_sums.add(r * tile.x_sum_stride + 16 + pair);
                        extra[r] = _mm512_dpwssd_epi32(extra[r], factors, _mm512_set1_epi32(x_sum));
                    }
                }
            } else {
                for pair in 0..8 {
                    let (mut a, mut b) = (bytes(2 * pair), bytes(2 * pair + 1));
                    if F == Q2_K {
                        (a, b) = (_mm512_srli_epi32::<4>(a), _mm512_srli_epi32::<4>(b));
                    }
                    let factors = pairs(a, b);
                    for r in 0..R {
                        // Each sum is there twice: the second half of one word and the first of the next.
                        let x_sum = x_sums.add(r * tile.x_sum_stride + 20 + 2 * pair).cast::<i8>().add(2);
                        extra[r] = _mm512_dpwssd_epi32(extra[r], factors, broadcast(x_sum));
                    }
                }
            }
            let d = halves(meta);
            for r in 0..R {
                let scale = _mm512_set1_ps(*scales.add(r * tile.scale_stride + block));
                let sum = match F {
                    Q3_K => _mm512_add_epi32(total[r], _mm512_srai_epi32::<2>(extra[r])),
                    IQ4_XS => _mm512_sub_epi32(total[r], _mm512_slli_epi32::<7>(extra[r])),
                    _ => total[r],
                };
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(d, scale), acc[r]);
                if minima {
                    let mut sum = extra[r];
                    if F == Q2_K {
                        sum = _mm512_srai_epi32::<4>(_mm512_sub_epi32(_mm512_setzero_si512(), sum));
                    }
                    let d_min = _mm512_mul_ps(halves(meta.add(32)), scale);
                    acc[r] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(sum), d_min, acc[r]);
                }
            }
        }
        for r in 0..R {
            _mm512_storeu_ps(sums.add(r * 16), acc[r]);
        }
    }
}
