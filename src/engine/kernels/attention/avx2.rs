//! A tile of attention with AVX2, FMA and F16C: a few query heads share each vector of keys and values, which are
//! widened in registers.
//!
//! Invariant: each score and each output is the same chain of operations as in the portable version, so the
//! bytes are too.
#![allow(unsafe_code, reason = "vector loads from slices whose sizes are checked first")]
#![allow(clippy::needless_range_loop, reason = "heads index registers and memory alike")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Scoring, TILE, weigh};
use crate::kernels::half::widen_one;

/// A query head of one row.
pub(super) struct Head<'a> {
    pub(super) query: &'a [f32],
    /// Positions of the tile that it sees.
    pub(super) visible: Range<usize>,
    /// The weighted sum of values so far.
    pub(super) out: &'a mut [f32],
}

/// `N` heads against a tile; `running` is [maximum, sum] of each.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn attend<const N: usize>(
    tile: &[u16],
    scoring: Scoring<'_>,
    running: &mut [[f32; 2]],
    heads: &mut [Head<'_>; N],
) {
    let dim = heads[0].query.len();
    assert!(tile.len() == 2 * TILE * dim && running.len() == N);
    assert!(heads.iter().all(|head| {
        head.query.len() == dim
            && head.out.len() == dim
            && !head.visible.is_empty()
            && head.visible.end <= TILE
    }));
    let (keys, values) = tile.split_at(TILE * dim);
    let mut weights = [[0.0; TILE]; N];
    // SAFETY: the sizes are as just checked.
    unsafe { score(keys, heads, &mut weights) };
    let mut corrections = [0.0; N];
    for (i, head) in heads.iter().enumerate() {
        corrections[i] = weigh(&mut weights[i], head.visible.clone(), scoring, &mut running[i]);
    }
    // SAFETY: as above.
    unsafe { add_values(values, heads, &weights, &corrections) };
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

/// Scores of all positions that some head sees, 16 at a time.
///
/// # Safety
/// `keys` are 64 for each element of a query.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score<const N: usize>(keys: &[u16], heads: &[Head<'_>; N], scores: &mut [[f32; TILE]; N]) {
    let dim = heads[0].query.len();
    let queries: [*const f32; N] = std::array::from_fn(|i| heads[i].query.as_ptr());
    let begin = heads.iter().map(|head| head.visible.start).min().unwrap_or(0);
    let end = heads.iter().map(|head| head.visible.end).max().unwrap_or(0);
    for first in (begin / 16 * 16..end).step_by(16) {
        let mut sums = [[_mm256_setzero_ps(); 2]; N];
        for d in 0..dim {
            // SAFETY: `d` is below the length of keys / 64 and of each query.
            unsafe {
                let keys = keys.as_ptr().add(d * TILE + first);
                let (low, high) = (halves(keys), halves(keys.add(8)));
                for (sums, query) in sums.iter_mut().zip(queries) {
                    let query = _mm256_broadcast_ss(&*query.add(d));
                    sums[0] = _mm256_fmadd_ps(query, low, sums[0]);
                    sums[1] = _mm256_fmadd_ps(query, high, sums[1]);
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
/// `values` are as many for each of 64 positions as a query has elements.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_values<const N: usize>(
    values: &[u16],
    heads: &mut [Head<'_>; N],
    weights: &[[f32; TILE]; N],
    corrections: &[f32; N],
) {
    let dim = heads[0].query.len();
    let end = heads.iter().map(|head| head.visible.end).min().unwrap_or(0);
    let begin = heads.iter().map(|head| head.visible.start).max().unwrap_or(0).min(end);
    for first in (0..dim / 16 * 16).step_by(16) {
        // SAFETY: 16 elements from `first` on are there in each output, and in the values of each position.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; N];
            for i in 0..N {
                let (out, correction) = (heads[i].out.as_ptr().add(first), _mm256_set1_ps(corrections[i]));
                sums[i][0] = _mm256_mul_ps(_mm256_loadu_ps(out), correction);
                sums[i][1] = _mm256_mul_ps(_mm256_loadu_ps(out.add(8)), correction);
            }
            for i in 0..N {
                // What earlier rows see before the later ones' windows.
                for position in heads[i].visible.start..begin {
                    let values = values.as_ptr().add(position * dim + first);
                    let weight = _mm256_broadcast_ss(&weights[i][position]);
                    sums[i][0] = _mm256_fmadd_ps(weight, halves(values), sums[i][0]);
                    sums[i][1] = _mm256_fmadd_ps(weight, halves(values.add(8)), sums[i][1]);
                }
            }
            for position in begin..end {
                let values = values.as_ptr().add(position * dim + first);
                let (low, high) = (halves(values), halves(values.add(8)));
                for i in 0..N {
                    let weight = _mm256_broadcast_ss(&weights[i][position]);
                    sums[i][0] = _mm256_fmadd_ps(weight, low, sums[i][0]);
                    sums[i][1] = _mm256_fmadd_ps(weight, high, sums[i][1]);
                }
            }
            for i in 0..N {
                // What later rows see beyond the earlier ones.
                for position in heads[i].visible.start.max(end)..heads[i].visible.end {
                    let values = values.as_ptr().add(position * dim + first);
                    let weight = _mm256_broadcast_ss(&weights[i][position]);
                    sums[i][0] = _mm256_fmadd_ps(weight, halves(values), sums[i][0]);
                    sums[i][1] = _mm256_fmadd_ps(weight, halves(values.add(8)), sums[i][1]);
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
            for position in head.visible.clone() {
                sum = weights[i][position].mul_add(widen_one(values[position * dim + d]), sum);
            }
            head.out[d] = sum;
        }
    }
}
