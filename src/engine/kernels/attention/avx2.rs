//! A tile of attention with AVX2, FMA and F16C: a few query heads share each vector of keys and values, which
//! are converted to f32 in registers, however they are stored ([`StoredTile`]).
//!
//! Invariant: each score and each output is the same chain of operations as in the portable version, so the
//! bytes are the same too.
#![allow(unsafe_code, reason = "vector loads from slices whose sizes are checked first")]
#![allow(clippy::needless_range_loop, reason = "heads index registers and memory alike")]

use std::arch::x86_64::*;

use super::{Scoring, VisiblePart, weigh};
use crate::kernels::half::widen_one;
use crate::kernels::tile::{BLOCK, Quantized, TILE};

/// A query head of one row.
pub(super) struct QueryHead<'a> {
    pub(super) query: &'a [f32],
    /// The positions of the tile that it sees.
    pub(super) seen: VisiblePart,
    /// The weighted sum of values so far.
    pub(super) out: &'a mut [f32],
}

/// The keys and values of a tile, as they are stored. All sizes were checked when it was made; `first` is a
/// multiple of 16.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; elements and positions are within the tile.
pub(super) trait StoredTile: Copy {
    /// Scales of 16 lanes of keys.
    type KeyScales: Copy;
    /// Scales of the values of all positions.
    type ValueScales;

    /// Elements of a head.
    fn dim(self) -> usize;

    /// The scales of a block of elements of 16 positions from `first` on.
    unsafe fn key_scales(self, block: usize, first: usize) -> Self::KeyScales;

    /// Element `d` of the keys of 16 positions from `first` on.
    unsafe fn keys(self, d: usize, first: usize, scales: Self::KeyScales) -> [__m256; 2];

    /// The scales of a block of elements.
    unsafe fn value_scales(self, block: usize) -> Self::ValueScales;

    /// 16 elements from `first` on of the value of a position.
    unsafe fn values(self, position: usize, first: usize, scales: &Self::ValueScales) -> [__m256; 2];

    /// Element `d` of the value of a position.
    unsafe fn value(self, position: usize, d: usize) -> f32;
}

/// A tile of f16.
#[derive(Clone, Copy)]
pub(super) struct Halves<'a> {
    dim: usize,
    keys: &'a [u16],
    values: &'a [u16],
}

impl<'a> Halves<'a> {
    pub(super) fn of(tile: &'a [u16], dim: usize) -> Halves<'a> {
        assert!(tile.len() == 2 * TILE * dim);
        let (keys, values) = tile.split_at(TILE * dim);
        Halves { dim, keys, values }
    }
}

impl StoredTile for Halves<'_> {
    type KeyScales = ();
    type ValueScales = ();

    fn dim(self) -> usize {
        self.dim
    }

    #[inline(always)]
    unsafe fn key_scales(self, _block: usize, _first: usize) {}

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn keys(self, d: usize, first: usize, (): ()) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let keys = self.keys.as_ptr().add(d * TILE + first);
            [halves(keys), halves(keys.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn value_scales(self, _block: usize) {}

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn values(self, position: usize, first: usize, (): &()) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let values = self.values.as_ptr().add(position * self.dim + first);
            [halves(values), halves(values.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn value(self, position: usize, d: usize) -> f32 {
        widen_one(self.values[position * self.dim + d])
    }
}

/// A tile of bytes with scales.
#[derive(Clone, Copy)]
pub(super) struct ByteTile<'a> {
    dim: usize,
    tile: Quantized<'a>,
}

impl<'a> ByteTile<'a> {
    pub(super) fn of(tile: &'a [u16], dim: usize) -> ByteTile<'a> {
        assert!(tile.len() == TILE * dim + 2 * TILE * dim.div_ceil(BLOCK));
        ByteTile { dim, tile: Quantized::of(tile, dim) }
    }
}

impl StoredTile for ByteTile<'_> {
    type KeyScales = [__m256; 2];
    type ValueScales = [f32; TILE];

    fn dim(self) -> usize {
        self.dim
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn key_scales(self, block: usize, first: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let scales = self.tile.key_scales.as_ptr().add(block * TILE + first);
            [halves(scales), halves(scales.add(8))]
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn keys(self, d: usize, first: usize, scales: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let keys = self.tile.keys.as_ptr().add(d * TILE + first);
            [_mm256_mul_ps(bytes(keys), scales[0]), _mm256_mul_ps(bytes(keys.add(8)), scales[1])]
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn value_scales(self, block: usize) -> [f32; TILE] {
        let mut scales = [0.0; TILE];
        for first in (0..TILE).step_by(8) {
            // SAFETY: the caller's promise.
            unsafe {
                let wide = halves(self.tile.value_scales.as_ptr().add(block * TILE + first));
                _mm256_storeu_ps(scales.as_mut_ptr().add(first), wide);
            }
        }
        scales
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn values(self, position: usize, first: usize, scales: &[f32; TILE]) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = _mm256_broadcast_ss(&scales[position]);
            let values = self.tile.values.as_ptr().add(position * self.dim + first);
            [_mm256_mul_ps(bytes(values), scale), _mm256_mul_ps(bytes(values.add(8)), scale)]
        }
    }

    #[inline(always)]
    unsafe fn value(self, position: usize, d: usize) -> f32 {
        let scale = widen_one(self.tile.value_scales[d / BLOCK * TILE + position]);
        f32::from(self.tile.values[position * self.dim + d]) * scale
    }
}

/// `N` heads against a tile; `running` is [maximum, sum] of each.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn attend<const N: usize, S: StoredTile>(
    tile: S,
    scoring: Scoring<'_>,
    running: &mut [[f32; 2]],
    heads: &mut [QueryHead<'_>; N],
) {
    let dim = tile.dim();
    assert!(running.len() == N);
    assert!(heads.iter().all(|head| {
        head.query.len() == dim
            && head.out.len() == dim
            && !head.seen.visible.is_empty()
            && head.seen.visible.end <= TILE
    }));
    let mut weights = [[0.0; TILE]; N];
    // SAFETY: the sizes are as just checked.
    unsafe { score(tile, heads, &mut weights) };
    let mut corrections = [0.0; N];
    for (i, head) in heads.iter().enumerate() {
        corrections[i] = weigh(&mut weights[i], &head.seen, scoring, &mut running[i]);
    }
    // SAFETY: as above.
    unsafe { add_values(tile, heads, &weights, &corrections) };
}

/// 8 f16 values as f32.
///
/// # Safety
/// 16 bytes can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn halves(at: *const u16) -> __m256 {
    // SAFETY: the caller's promise.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}

/// 8 bytes as f32.
///
/// # Safety
/// 8 bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn bytes(at: *const i8) -> __m256 {
    // SAFETY: the caller's promise.
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
}

/// Scores of all positions that some head sees, 16 at a time.
///
/// # Safety
/// Queries are as long as the tile's heads.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score<const N: usize, S: StoredTile>(
    tile: S,
    heads: &[QueryHead<'_>; N],
    scores: &mut [[f32; TILE]; N],
) {
    let dim = tile.dim();
    let queries: [*const f32; N] = std::array::from_fn(|i| heads[i].query.as_ptr());
    let begin = heads.iter().map(|head| head.seen.visible.start).min().unwrap_or(0);
    let end = heads.iter().map(|head| head.seen.visible.end).max().unwrap_or(0);
    for first in (begin / 16 * 16..end).step_by(16) {
        let mut sums = [[_mm256_setzero_ps(); 2]; N];
        for block in 0..dim.div_ceil(BLOCK) {
            // SAFETY: the block and the elements of it are in the tile and in each query.
            unsafe {
                let scales = tile.key_scales(block, first);
                for d in block * BLOCK..dim.min((block + 1) * BLOCK) {
                    let [low, high] = tile.keys(d, first, scales);
                    for (sums, query) in sums.iter_mut().zip(queries) {
                        let query = _mm256_broadcast_ss(&*query.add(d));
                        sums[0] = _mm256_fmadd_ps(query, low, sums[0]);
                        sums[1] = _mm256_fmadd_ps(query, high, sums[1]);
                    }
                }
            }
        }
        for (scores, sums) in scores.iter_mut().zip(sums) {
            // SAFETY: 16 scores from `first` on.
            unsafe {
                _mm256_storeu_ps(scores.as_mut_ptr().add(first), sums[0]);
                _mm256_storeu_ps(scores.as_mut_ptr().add(first + 8), sums[1]);
            }
        }
    }
}

/// `out = out · correction + weights · values`, 16 elements at a time, positions in ascending order.
///
/// # Safety
/// Outputs are as long as the tile's heads.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_values<const N: usize, S: StoredTile>(
    tile: S,
    heads: &mut [QueryHead<'_>; N],
    weights: &[[f32; TILE]; N],
    corrections: &[f32; N],
) {
    let dim = tile.dim();
    let end = heads.iter().map(|head| head.seen.visible.end).min().unwrap_or(0);
    let begin = heads.iter().map(|head| head.seen.visible.start).max().unwrap_or(0).min(end);
    for first in (0..dim / 16 * 16).step_by(16) {
        // SAFETY: 16 elements from `first` on are there in each output, and in the values of each position.
        unsafe {
            let scales = tile.value_scales(first / BLOCK);
            let mut sums = [[_mm256_setzero_ps(); 2]; N];
            for i in 0..N {
                let (out, correction) = (heads[i].out.as_ptr().add(first), _mm256_set1_ps(corrections[i]));
                sums[i][0] = _mm256_mul_ps(_mm256_loadu_ps(out), correction);
                sums[i][1] = _mm256_mul_ps(_mm256_loadu_ps(out.add(8)), correction);
            }
            for i in 0..N {
                // The earlier rows also see these positions, before the later ones' windows.
                for position in heads[i].seen.visible.start..begin {
                    let [low, high] = tile.values(position, first, &scales);
                    let weight = _mm256_broadcast_ss(&weights[i][position]);
                    sums[i][0] = _mm256_fmadd_ps(weight, low, sums[i][0]);
                    sums[i][1] = _mm256_fmadd_ps(weight, high, sums[i][1]);
                }
            }
            for position in begin..end {
                let [low, high] = tile.values(position, first, &scales);
                for i in 0..N {
                    let weight = _mm256_broadcast_ss(&weights[i][position]);
                    sums[i][0] = _mm256_fmadd_ps(weight, low, sums[i][0]);
                    sums[i][1] = _mm256_fmadd_ps(weight, high, sums[i][1]);
                }
            }
            for i in 0..N {
                // The later rows also see these positions, beyond the earlier ones.
                for position in heads[i].seen.visible.start.max(end)..heads[i].seen.visible.end {
                    let [low, high] = tile.values(position, first, &scales);
                    let weight = _mm256_broadcast_ss(&weights[i][position]);
                    sums[i][0] = _mm256_fmadd_ps(weight, low, sums[i][0]);
                    sums[i][1] = _mm256_fmadd_ps(weight, high, sums[i][1]);
                }
                let out = heads[i].out.as_mut_ptr().add(first);
                _mm256_storeu_ps(out, sums[i][0]);
                _mm256_storeu_ps(out.add(8), sums[i][1]);
            }
        }
    }
    for (i, head) in heads.iter_mut().enumerate() {
        for d in dim / 16 * 16..dim {
            let mut sum = head.out[d] * corrections[i];
            for position in head.seen.visible.clone() {
                // SAFETY: the element is one of the tile.
                sum = weights[i][position].mul_add(unsafe { tile.value(position, d) }, sum);
            }
            head.out[d] = sum;
        }
    }
}
