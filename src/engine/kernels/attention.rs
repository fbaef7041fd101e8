//! Grouped-query attention over the key-value cache, to what precedes a row or, in encoders, both ways.
//!
//! The cache is read in tiles of 64 absolute positions in ascending order, with a running maximum and sum
//! (online softmax). Each score is one ascending chain over the elements of a head, each output one ascending
//! chain over positions. So a row's result depends on its absolute position and on what precedes it, and not
//! on how the prompt was cut into slices.
//!
//! A tile of one key-value head is stored as keys `[head_dim][64]`, whose lanes are positions, then values
//! `[64][head_dim]`, whose lanes are elements, both f16.
#![allow(unsafe_code, reason = "threads write disjoint ranges of the output")]

#[cfg(target_arch = "x86_64")]
mod avx2;

use std::ops::Range;
use std::sync::Arc;

use super::exp::exp;
use super::half::{narrow, widen};
use super::norm::fold;
use super::pool::{Disjoint, Pool};

/// Positions in a tile.
pub(crate) const TILE: usize = 64;

/// The sizes that attention needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Query heads; a multiple of `kv_heads`.
    pub(crate) query: usize,
    /// Key-value heads.
    pub(crate) kv: usize,
    /// Elements of a head.
    pub(crate) dim: usize,
}

impl Heads {
    /// f16 values that one tile of one key-value head takes: keys and values.
    pub(crate) fn tile_len(&self) -> usize {
        2 * TILE * self.dim
    }

    /// f32 values of scratch per thread for [`attend`] over at most `rows` rows.
    pub(crate) fn scratch_len(&self, rows: usize) -> usize {
        self.tile_len() + rows * self.query / self.kv * 2
    }
}

/// Rows of one sequence that attend together.
///
/// There is one block for each tile of positions. The layer's tiles begin at some offset in each block, its key-value
/// heads one after the other (`Heads::tile_len` each).
pub(crate) struct Rows<'a> {
    /// Blocks that are only read.
    pub(crate) done: &'a [Arc<Box<[u16]>>],
    /// The blocks after those, which the rows' own keys and values go to.
    pub(crate) open: Vec<Disjoint<'a, u16>>,
    /// Absolute position of the first row; row i attends to all positions up to `position + i`.
    pub(crate) position: usize,
    /// Number of rows.
    pub(crate) rows: usize,
    /// Index of the first row in queries and output.
    pub(crate) first_row: usize,
    /// Each row attends to all positions, those after its own included: encoders.
    pub(crate) both_ways: bool,
}

impl Rows<'_> {
    /// The first row that sees a tile which begins at position `start`.
    fn first_in(&self, start: usize) -> usize {
        if self.both_ways { 0 } else { start.saturating_sub(self.position) }
    }

    /// How many positions of that tile a row sees.
    fn visible(&self, row: usize, start: usize) -> usize {
        let last = if self.both_ways { self.rows - 1 } else { row };
        (self.position + last + 1 - start).min(TILE)
    }
}

/// What is computed from the rows of a layer.
pub(crate) struct Projections<'a> {
    /// `query · dim` values a row.
    pub(crate) queries: &'a mut [f32],
    /// `kv · dim` values a row, and the same of values. None where the cache has them already.
    pub(crate) fresh: Option<(&'a mut [f32], &'a [f32])>,
    /// Makes query heads and the key head that they share ready, for a row: norms and rotation.
    pub(crate) ready: &'a (dyn Fn(usize, &mut [f32], &mut [f32]) + Sync),
}

/// Stores the rows' own keys and values, then `out = softmax(q · Kᵀ / sqrt(dim)) · V` for each row and query head.
/// `out` has one row of `query · dim` values per row; `scratch` has `Heads::scratch_len` values for each thread of
/// the pool; the layer's tiles are at `offset` in each block.
pub(crate) fn attend(
    heads: Heads,
    offset: usize,
    sequences: &[Rows<'_>],
    projections: Projections<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
    pool: &Pool,
) {
    let out = Disjoint::new(out);
    let scratch_len = scratch.len() / pool.threads();
    let scratch = Disjoint::new(scratch);
    let queries = Disjoint::new(projections.queries);
    let fresh = projections.fresh.map(|(keys, values)| (Disjoint::new(keys), values));
    pool.run(sequences.len() * heads.kv, &|worker, item| {
        // SAFETY: each thread has a worker number of its own.
        let scratch = unsafe { scratch.range(worker * scratch_len..(worker + 1) * scratch_len) };
        let head = KvHead { heads, index: item % heads.kv, offset, rows: &sequences[item / heads.kv] };
        if let Some((keys, values)) = &fresh {
            head.store(&queries, keys, values, projections.ready);
        }
        head.attend(&queries, &out, scratch);
    });
}

/// One key-value head, with the query heads that share it, over all rows of one sequence: what one thread does. No
/// other one touches these query heads, key heads, outputs and tiles.
struct KvHead<'a> {
    heads: Heads,
    index: usize,
    /// Of the layer in each block.
    offset: usize,
    rows: &'a Rows<'a>,
}

impl KvHead<'_> {
    /// Query heads of the group.
    fn group(&self) -> usize {
        self.heads.query / self.heads.kv
    }

    /// Its tile in a block.
    fn tile(&self, block: usize) -> &[u16] {
        let start = self.offset + self.index * self.heads.tile_len();
        let range = start..start + self.heads.tile_len();
        match block.checked_sub(self.rows.done.len()) {
            None => &self.rows.done[block][range],
            // SAFETY: no other thread has this tile, and `store` has returned.
            Some(open) => unsafe { self.rows.open[open].range(range) },
        }
    }

    /// Elements of a query head, by row and member of the group.
    fn query(&self, row: usize, member: usize) -> Range<usize> {
        let Heads { query, dim, .. } = self.heads;
        let head = (self.rows.first_row + row) * query + self.index * self.group() + member;
        head * dim..(head + 1) * dim
    }

    /// Makes queries and keys ready and puts keys and values into their tiles.
    fn store(
        &self,
        queries: &Disjoint<'_, f32>,
        keys: &Disjoint<'_, f32>,
        values: &[f32],
        ready: &(dyn Fn(usize, &mut [f32], &mut [f32]) + Sync),
    ) {
        let Heads { kv, dim, .. } = self.heads;
        let start = self.offset + self.index * self.heads.tile_len();
        for row in 0..self.rows.rows {
            let position = self.rows.position + row;
            let (open, slot) = (position / TILE - self.rows.done.len(), position % TILE);
            let head = (self.rows.first_row + row) * kv + self.index;
            let head = head * dim..(head + 1) * dim;
            let group = self.query(row, 0).start..self.query(row, self.group() - 1).end;
            // SAFETY: no other thread has these.
            let (queries, key, tile) = unsafe {
                (
                    queries.range(group),
                    keys.range(head.clone()),
                    self.rows.open[open].range(start..start + self.heads.tile_len()),
                )
            };
            ready(self.rows.first_row + row, queries, key);
            let (stored_keys, stored_values) = tile.split_at_mut(dim * TILE);
            let stored_values = &mut stored_values[slot * dim..(slot + 1) * dim];
            // The values' place first holds the keys, which are spread from there.
            narrow(key, stored_values);
            for (keys, key) in stored_keys.as_chunks_mut::<TILE>().0.iter_mut().zip(&*stored_values) {
                keys[slot] = *key;
            }
            narrow(&values[head], stored_values);
        }
    }

    fn attend(&self, queries: &Disjoint<'_, f32>, out: &Disjoint<'_, f32>, scratch: &mut [f32]) {
        let (heads, rows, group) = (self.heads, self.rows, self.group());
        let scale = 1.0 / (heads.dim as f32).sqrt();
        let (tile, state) = scratch.split_at_mut(heads.tile_len());
        let (keys, values) = tile.split_at_mut(TILE * heads.dim);
        let state = &mut state[..rows.rows * group * 2];
        for running in state.as_chunks_mut::<2>().0 {
            *running = [f32::NEG_INFINITY, 0.0];
        }
        for index in 0..(rows.position + rows.rows).div_ceil(TILE) {
            let tile = self.tile(index);
            #[cfg(target_arch = "x86_64")]
            if super::has_avx2() {
                self.attend_avx2(tile, index * TILE, queries, out, state);
                continue;
            }
            widen(&tile[..keys.len()], keys);
            widen(&tile[keys.len()..], values);
            let start = index * TILE;
            for row in rows.first_in(start)..rows.rows {
                let visible = rows.visible(row, start);
                for member in 0..group {
                    let range = self.query(row, member);
                    let running = &mut state[(row * group + member) * 2..][..2];
                    // SAFETY: no other thread has this head.
                    let (query, out) = unsafe { (&*queries.range(range.clone()), out.range(range)) };
                    if index == 0 {
                        out.fill(0.0);
                    }
                    attend_tile(query, keys, values, visible, scale, running, out);
                }
            }
        }
        for (item, running) in state.as_chunks::<2>().0.iter().enumerate() {
            // SAFETY: as above.
            let out = unsafe { out.range(self.query(item / group, item % group)) };
            let inverse = 1.0 / running[1];
            for out in out {
                *out *= inverse;
            }
        }
    }

    /// A tile with all query heads that see some of it, a few at a time.
    #[cfg(target_arch = "x86_64")]
    fn attend_avx2(
        &self,
        tile: &[u16],
        start: usize,
        queries: &Disjoint<'_, f32>,
        out: &Disjoint<'_, f32>,
        state: &mut [f32],
    ) {
        let (rows, group) = (self.rows, self.group());
        let scale = 1.0 / (self.heads.dim as f32).sqrt();
        let head = |item: usize| {
            let (row, member) = (item / group, item % group);
            let range = self.query(row, member);
            // SAFETY: no other thread has this head.
            let (query, out) = unsafe { (&*queries.range(range.clone()), out.range(range)) };
            if start == 0 {
                out.fill(0.0);
            }
            avx2::Head { query, visible: rows.visible(row, start), out }
        };
        let mut item = rows.first_in(start) * group;
        let items = rows.rows * group;
        let state = state.as_chunks_mut::<2>().0;
        while item < items {
            let count = (items - item).min(4);
            let running = &mut state[item..item + count];
            // SAFETY: the caller has looked for AVX2.
            unsafe {
                match count {
                    4 => {
                        avx2::attend::<4>(tile, scale, running, &mut std::array::from_fn(|i| head(item + i)))
                    }
                    3 => {
                        avx2::attend::<3>(tile, scale, running, &mut std::array::from_fn(|i| head(item + i)))
                    }
                    2 => {
                        avx2::attend::<2>(tile, scale, running, &mut std::array::from_fn(|i| head(item + i)))
                    }
                    _ => {
                        avx2::attend::<1>(tile, scale, running, &mut std::array::from_fn(|i| head(item + i)))
                    }
                }
            }
            item += count;
        }
    }
}

multiversion! {
    /// One query against the first `visible` positions of a tile; `running` is [maximum, sum] of the scores up
    /// to here, `out` the weighted sum of values so far.
    fn attend_tile(
        query: &[f32],
        keys: &[f32],
        values: &[f32],
        visible: usize,
        scale: f32,
        running: &mut [f32],
        out: &mut [f32],
    ) = attend_tile_body
}

#[inline(always)]
fn attend_tile_body(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    visible: usize,
    scale: f32,
    running: &mut [f32],
    out: &mut [f32],
) {
    let mut scores = [0.0f32; TILE];
    for (query, keys) in query.iter().zip(keys.as_chunks::<TILE>().0) {
        for (score, key) in scores.iter_mut().zip(keys) {
            *score = query.mul_add(*key, *score);
        }
    }
    let correction = weigh(&mut scores, visible, scale, running);
    let weights = scores;
    let (chunks, rest) = out.as_chunks_mut::<16>();
    let width = query.len();
    for (i, out) in chunks.iter_mut().enumerate() {
        let mut sums = out.map(|value| value * correction);
        for (weight, values) in weights[..visible].iter().zip(values.chunks_exact(width)) {
            let values = &values[i * 16..i * 16 + 16];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = weight.mul_add(*value, *sum);
            }
        }
        *out = sums;
    }
    let done = width - rest.len();
    for (i, out) in rest.iter_mut().enumerate() {
        let mut sum = *out * correction;
        for (weight, values) in weights[..visible].iter().zip(values.chunks_exact(width)) {
            sum = weight.mul_add(values[done + i], sum);
        }
        *out = sum;
    }
}

/// Turns the scores of a tile into weights, adds them to the running sum and returns what everything before is
/// multiplied with.
#[inline(always)]
fn weigh(scores: &mut [f32; TILE], visible: usize, scale: f32, running: &mut [f32]) -> f32 {
    let mut maximum = running[0];
    for score in &mut scores[..visible] {
        *score *= scale;
        // Unlike f32::max this keeps a NaN, so that the request fails instead of losing it.
        maximum = if *score <= maximum { maximum } else { *score };
    }
    let correction = exp(running[0] - maximum);
    for chunk in &mut scores.as_chunks_mut::<16>().0[..visible.div_ceil(16)] {
        chunk.iter_mut().for_each(|score| *score = exp(*score - maximum));
    }
    // Masked keys have no weight, whatever is stored there.
    scores[visible..].fill(0.0);
    let mut lanes = [0.0f32; 16];
    for chunk in scores.as_chunks::<16>().0 {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane += weight;
        }
    }
    running[1] = running[1].mul_add(correction, fold(&mut lanes));
    running[0] = maximum;
    correction
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Heads, Projections, Rows, TILE, attend, attend_tile, attend_tile_body};
    use crate::kernels::Pool;
    use crate::kernels::half::narrow_one;
    use crate::kernels::matrix::Instructions;
    use crate::kernels::pool::Disjoint;

    /// Fills tiles for `positions` positions from f(kind, head, position, element).
    fn tiles(
        heads: Heads,
        positions: usize,
        f: impl Fn(usize, usize, usize, usize) -> f32,
    ) -> Vec<Box<[u16]>> {
        let tile = vec![0u16; heads.kv * heads.tile_len()].into_boxed_slice();
        let mut tiles = vec![tile; positions.div_ceil(TILE)];
        for position in 0..positions {
            let (tile, slot) = (&mut tiles[position / TILE], position % TILE);
            for head in 0..heads.kv {
                let tile = &mut tile[head * heads.tile_len()..];
                for d in 0..heads.dim {
                    tile[d * TILE + slot] = narrow_one(f(0, head, position, d));
                    tile[heads.dim * TILE + slot * heads.dim + d] = narrow_one(f(1, head, position, d));
                }
            }
        }
        tiles
    }

    #[test]
    fn agrees_with_plain_softmax_in_f64() {
        for both_ways in [false, true] {
            agrees_with_plain_softmax(both_ways);
        }
    }

    fn agrees_with_plain_softmax(both_ways: bool) {
        let heads = Heads { query: 4, kv: 2, dim: 20 };
        let noise = |kind: usize, head: usize, position: usize, d: usize| {
            let x = (kind * 7919 + head * 104_729 + position * 1_299_709 + d * 15_485_863) % 1000;
            x as f32 / 500.0 - 1.0
        };
        let positions = 150usize;
        let (first, rows) = if both_ways { (0, 150) } else { (100, 50) };
        let mut tiles = tiles(heads, first, noise);
        tiles.resize(positions.div_ceil(TILE), vec![0; heads.kv * heads.tile_len()].into_boxed_slice());
        let queries: Vec<f32> = (0..rows * heads.query * heads.dim).map(|i| noise(2, 0, i, 0)).collect();
        let fresh = |kind: usize| -> Vec<f32> {
            let value = |i: usize| {
                noise(kind, i / heads.dim % heads.kv, first + i / heads.dim / heads.kv, i % heads.dim)
            };
            (0..rows * heads.kv * heads.dim).map(value).collect()
        };
        // Brought to their size only when they are made ready.
        let (mut half_queries, mut half_keys) = (queries.clone(), fresh(0));
        half_queries.iter_mut().chain(&mut half_keys).for_each(|x| *x *= 0.5);
        let double = |row: usize, queries: &mut [f32], key: &mut [f32]| {
            assert!(row < rows && queries.len() == 2 * heads.dim && key.len() == heads.dim);
            queries.iter_mut().chain(key).for_each(|x| *x *= 2.0);
        };
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        let pool = Pool::new(2, &start).unwrap();
        let mut scratch = vec![0.0; heads.scratch_len(rows) * 2];
        let mut out = vec![f32::NAN; queries.len()];
        let mut open = tiles.split_off(first / TILE);
        let done: Vec<_> = tiles.into_iter().map(Arc::new).collect();
        let open = open.iter_mut().map(|tile| Disjoint::new(tile)).collect();
        let sequence = Rows { done: &done, open, position: first, rows, first_row: 0, both_ways };
        let fresh = Some((&mut half_keys[..], &fresh(1)[..]));
        let projections = Projections { queries: &mut half_queries, fresh, ready: &double };
        attend(heads, 0, &[sequence], projections, &mut out, &mut scratch, &pool);
        let half = |x: f32| f64::from(::half::f16::from_f32(x).to_f32());
        for row in 0..rows {
            for head in 0..heads.query {
                let kv = head / 2;
                let query = &queries[(row * heads.query + head) * heads.dim..][..heads.dim];
                let last = if both_ways { positions - 1 } else { first + row };
                let scores: Vec<f64> = (0..=last)
                    .map(|p| {
                        let dot: f64 =
                            (0..heads.dim).map(|d| f64::from(query[d]) * half(noise(0, kv, p, d))).sum();
                        libm::exp(dot / libm::sqrt(heads.dim as f64))
                    })
                    .collect();
                let sum: f64 = scores.iter().sum();
                for d in 0..heads.dim {
                    let expected: f64 =
                        scores.iter().enumerate().map(|(p, s)| s / sum * half(noise(1, kv, p, d))).sum();
                    let got = f64::from(out[(row * heads.query + head) * heads.dim + d]);
                    assert!((got - expected).abs() < 1e-5, "row {row} head {head}: {got} for {expected}");
                }
            }
        }
    }

    #[test]
    fn heads_together_get_the_bytes_of_each_alone() {
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        let pool = Pool::new(2, &start).unwrap();
        for (query, kv, dim) in [(4, 2, 64), (3, 1, 20), (5, 1, 48), (2, 2, 16)] {
            let heads = Heads { query, kv, dim };
            let noise = |kind: usize, head: usize, position: usize, d: usize| {
                let x = (kind * 7919 + head * 104_729 + position * 1_299_709 + d * 15_485_863) % 1000;
                x as f32 / 500.0 - 1.0
            };
            let shared: Vec<_> = tiles(heads, 200, noise).into_iter().map(Arc::new).collect();
            let (first, rows) = (63, 137);
            let queries: Vec<f32> = (0..rows * query * dim).map(|i| noise(2, 0, i, 0)).collect();
            let run = |first_row: usize, rows: usize, queries: &[f32]| {
                let mut scratch = vec![0.0; heads.scratch_len(rows) * 2];
                let mut out = vec![f32::NAN; queries.len()];
                let position = first + first_row;
                let (done, open) = (&shared[..], Vec::new());
                let sequence = Rows { done, open, position, rows, first_row: 0, both_ways: false };
                let (mut queries, ready) = (queries.to_vec(), |_: usize, _: &mut [f32], _: &mut [f32]| {});
                let projections = Projections { queries: &mut queries, fresh: None, ready: &ready };
                attend(heads, 0, &[sequence], projections, &mut out, &mut scratch, &pool);
                out
            };
            let together = run(0, rows, &queries);
            // The limit holds for the tests that run beside this one too, which must not notice.
            Instructions::Portable.limit();
            let portable = run(0, rows, &queries);
            Instructions::Avx512.limit();
            assert!(together == portable, "{query} heads of {dim}");
            for row in [0, 1, 64, 136] {
                let range = row * query * dim..(row + 1) * query * dim;
                assert!(run(row, 1, &queries[range.clone()]) == together[range], "row {row} of {dim}");
            }
        }
    }

    #[test]
    fn the_wide_version_gives_the_bytes_of_the_portable_one() {
        for dim in [8, 20, 64] {
            let noise = |seed: usize, count: usize| -> Vec<f32> {
                (0..count).map(|i| (((i + seed) * 7919) % 2003) as f32 / 1000.0 - 1.0).collect()
            };
            let (query, keys, values) = (noise(1, dim), noise(2, dim * TILE), noise(3, dim * TILE));
            for visible in [1, 17, 64] {
                let (mut wide, mut portable) = (vec![0.25; dim], vec![0.25; dim]);
                let (mut wide_running, mut running) = ([0.5, 2.0], [0.5, 2.0]);
                attend_tile(&query, &keys, &values, visible, 0.3, &mut wide_running, &mut wide);
                attend_tile_body(&query, &keys, &values, visible, 0.3, &mut running, &mut portable);
                assert_eq!((wide, wide_running), (portable, running));
            }
        }
    }
}
