//! Grouped-query attention over the key-value cache, to the positions up to a row's own or, in encoders, both
//! ways.
//!
//! The cache is read in tiles of 64 absolute positions in ascending order, with a running maximum and sum
//! (online softmax, [Milakov and Gimelshein 2018](https://arxiv.org/abs/1805.02867)). Each score is one
//! ascending chain over the elements of a head, each output one ascending chain over positions. So a row's
//! result depends on its absolute position and on the rows before it, and not on how the prompt was cut into
//! slices.
//!
//! A layer may see a window of positions only ([Beltagy et al. 2020](https://arxiv.org/abs/2004.05150)), cap
//! its scores (Gemma 2) and give each head a sink ([Xiao et al. 2023](https://arxiv.org/abs/2309.17453),
//! learned as in gpt-oss). Where positions are neither embedded nor rotated in, scores fall with the distance
//! ([Press et al. 2021](https://arxiv.org/abs/2108.12409)).
//!
//! A tile of one key-value head is stored as 16-bit floats or as 8-bit integers with scales
//! ([`super::tile`]).
#![allow(unsafe_code, reason = "threads write disjoint ranges of the output")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::disjoint::Disjoint;
use super::exp::exp;
use super::gelu::tanh_of;
use super::instructions::Instructions;
use super::norm::fold;
use super::pool::Pool;
use super::rows::Rows;
#[cfg(target_arch = "x86_64")]
use super::tile::KvCacheType;
use super::tile::TILE;

/// The sizes of attention's heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionSizes {
    /// Query heads; a multiple of `kv`.
    pub(crate) query: usize,
    /// Key-value heads.
    pub(crate) kv: usize,
    /// Elements of a head.
    pub(crate) dim: usize,
}

impl AttentionSizes {
    /// The factor of scores unless a model says otherwise: `1 / sqrt(dim)`.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// f32 values of scratch per thread for [`attend`] over at most `rows` rows: a tile, and two for each
    /// head and row.
    pub(crate) fn scratch_len(&self, rows: usize) -> usize {
        2 * TILE * self.dim + rows * self.query / self.kv * 2
    }
}

/// Values of keys of a share of the pool's work: about two microseconds.
const VALUES_WORTH: usize = 32_768;
/// Positions that can be attended to in the time that it takes to make a row ready.
const READY_POSITIONS: usize = 8;

impl Rows<'_> {
    /// The first row that sees a tile which begins at position `start`.
    fn first_in(&self, start: usize, window: Option<usize>) -> usize {
        match (self.both_ways, window) {
            (false, _) => start.saturating_sub(self.position),
            (true, None) => 0,
            (true, Some(window)) => (start + 1).saturating_sub(window),
        }
    }

    /// The first position that a row sees.
    fn begin(&self, row: usize, window: Option<usize>) -> usize {
        window.map_or(0, |window| (self.position + row + 1).saturating_sub(window))
    }

    /// The end of the rows that see a tile which begins at position `start`.
    fn end_in(&self, start: usize, window: Option<usize>) -> usize {
        // The tile's last position is seen by its own row and by those up to a window behind it.
        let end = |window: usize| (start + TILE - 1).saturating_add(window).saturating_sub(self.position);
        window.map_or(self.rows, |window| end(window).min(self.rows))
    }

    /// The positions of that tile that a row sees, counted from its start.
    fn visible(&self, row: usize, start: usize, window: Option<usize>) -> Range<usize> {
        let last = match (self.both_ways, window) {
            (false, _) => row,
            (true, None) => self.rows - 1,
            (true, Some(window)) => (row + window - 1).min(self.rows - 1),
        };
        let begin = self.begin(row, window).saturating_sub(start);
        begin..(self.position + last + 1 - start).min(TILE)
    }
}

/// The formula of scores, and the positions that have one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scoring<'a> {
    /// The factor of products of queries and keys.
    pub(crate) scale: f32,
    /// Scores `s` become `cap · tanh(s / cap)`.
    pub(crate) cap: Option<f32>,
    /// Most positions that a row sees, its own and those before it; with [`Rows::both_ways`] as many behind
    /// it.
    pub(crate) window: Option<usize>,
    /// A score for each query head that takes part in the softmax and has no value, `[query]`.
    pub(crate) sinks: Option<&'a [f32]>,
    /// The amount that the scores of each query head lose for each position between a row and the position
    /// that it sees, on both sides alike, `[query]` (ALiBi). Not together with `cap`.
    pub(crate) slopes: Option<&'a [f32]>,
}

/// The part of a tile that a row sees.
#[derive(Debug, Clone)]
struct VisiblePart {
    /// Positions, counted from the tile's start.
    visible: Range<usize>,
    distance: Option<Distance>,
}

/// The fall of scores with the distance, for a head and a row.
#[derive(Debug, Clone, Copy)]
struct Distance {
    slope: f32,
    /// The position of the row, counted from the tile's start; negative where it is before the tile.
    row: i32,
}

impl Scoring<'_> {
    /// Scores with the factor `scale`, and nothing else.
    pub(crate) fn plain(scale: f32) -> Self {
        Scoring { scale, cap: None, window: None, sinks: None, slopes: None }
    }
}

/// The projections of a layer's rows, and how scores are made of them.
pub(crate) struct Projections<'a> {
    /// `query · dim` values a row.
    pub(crate) queries: &'a mut [f32],
    /// `kv · dim` values a row, and the same of values. None where the cache has them already.
    pub(crate) fresh: Option<(&'a mut [f32], &'a [f32])>,
    /// Norms and rotation.
    pub(crate) ready: Ready<'a>,
    pub(crate) scoring: Scoring<'a>,
}

/// The function that prepares query heads of row `.0` and the key head that they share.
pub(crate) type Ready<'a> = &'a (dyn Fn(usize, &mut [f32], &mut [f32]) + Sync);

/// Stores the rows' own keys and values, then `out = softmax(score(q · Kᵀ)) · V` for each row and query head.
/// `out` has one row of `query · dim` values per row; `scratch` has `AttentionSizes::scratch_len` values for
/// each thread of the pool; the layer's tiles are at `offset` in each block.
pub(crate) fn attend(
    heads: AttentionSizes,
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
    let values =
        |of: &Rows<'_>| of.rows * (of.position + of.rows + READY_POSITIONS) * heads.query * heads.dim;
    let worth = sequences.iter().map(values).sum::<usize>() / VALUES_WORTH;
    let (scoring, instructions) = (projections.scoring, pool.instructions());
    pool.run(sequences.len() * heads.kv, worth, &|worker, item| {
        // SAFETY: each thread has a worker number of its own.
        let scratch = unsafe { scratch.range(worker * scratch_len..(worker + 1) * scratch_len) };
        let (index, rows) = (item % heads.kv, &sequences[item / heads.kv]);
        let head = KvHead { heads, index, offset, rows, scoring, instructions };
        if let Some((keys, values)) = &fresh {
            head.store(&queries, keys, values, projections.ready);
        }
        head.attend(&queries, &out, scratch);
    });
}

/// One key-value head, with the query heads that share it, over all rows of one sequence: the work of one
/// thread. No other thread touches these query heads, key heads, outputs and tiles.
struct KvHead<'a> {
    heads: AttentionSizes,
    index: usize,
    /// The place of the layer's part in each block.
    offset: usize,
    rows: &'a Rows<'a>,
    scoring: Scoring<'a>,
    instructions: Instructions,
}

impl KvHead<'_> {
    /// Query heads of the group.
    fn group(&self) -> usize {
        self.heads.query / self.heads.kv
    }

    /// The place of its tile in each block.
    fn place(&self) -> Range<usize> {
        let length = self.rows.kind.tile_len(self.heads.dim);
        let start = self.offset + self.index * length;
        start..start + length
    }

    /// Its tile in a block.
    fn tile(&self, block: usize) -> &[u16] {
        let range = self.place();
        match block.checked_sub(self.rows.done.len()) {
            None => &self.rows.done[block][range],
            // SAFETY: no other thread has this tile, and `store` has returned.
            Some(open) => unsafe { self.rows.open[open].range(range) },
        }
    }

    /// Elements of a query head, by row and member of the group.
    fn query(&self, row: usize, member: usize) -> Range<usize> {
        let AttentionSizes { query, dim, .. } = self.heads;
        let head = (self.rows.first_row + row) * query + self.index * self.group() + member;
        head * dim..(head + 1) * dim
    }

    /// Prepares queries and keys, and stores keys and values in their tiles.
    fn store(&self, queries: &Disjoint<'_, f32>, keys: &Disjoint<'_, f32>, values: &[f32], ready: Ready<'_>) {
        let AttentionSizes { kv, dim, .. } = self.heads;
        for row in 0..self.rows.rows {
            let position = self.rows.position + row;
            let (open, slot) = (position / TILE - self.rows.done.len(), position % TILE);
            let head = (self.rows.first_row + row) * kv + self.index;
            let head = head * dim..(head + 1) * dim;
            let group = self.query(row, 0).start..self.query(row, self.group() - 1).end;
            // SAFETY: no other thread has these.
            let (queries, key, tile) = unsafe {
                (queries.range(group), keys.range(head.clone()), self.rows.open[open].range(self.place()))
            };
            ready(self.rows.first_row + row, queries, key);
            self.rows.kind.store(self.instructions, tile, slot, key, &values[head]);
        }
    }

    /// The fall of scores with the distance for a row and a member of the group, in a tile that begins at
    /// position `start`.
    fn distance(&self, row: usize, member: usize, start: usize) -> Option<Distance> {
        let slope = self.scoring.slopes?[self.index * self.group() + member];
        // Both are far below 2^31.
        Some(Distance { slope, row: (self.rows.position + row) as i32 - start as i32 })
    }

    fn attend(&self, queries: &Disjoint<'_, f32>, out: &Disjoint<'_, f32>, scratch: &mut [f32]) {
        let (heads, rows, group, scoring) = (self.heads, self.rows, self.group(), self.scoring);
        let (tile, state) = scratch.split_at_mut(2 * TILE * heads.dim);
        let (keys, values) = tile.split_at_mut(TILE * heads.dim);
        let state = &mut state[..rows.rows * group * 2];
        for (item, running) in state.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *running = match scoring.sinks {
                None => [f32::NEG_INFINITY, 0.0],
                Some(sinks) => [sinks[self.index * group + item % group], 1.0],
            };
        }
        for index in rows.begin(0, scoring.window) / TILE..(rows.position + rows.rows).div_ceil(TILE) {
            let tile = self.tile(index);
            #[cfg(target_arch = "x86_64")]
            if self.instructions.wide() {
                self.attend_avx2(tile, index * TILE, queries, out, state);
                continue;
            }
            rows.kind.read(self.instructions, tile, keys, values);
            let start = index * TILE;
            for row in rows.first_in(start, scoring.window)..rows.end_in(start, scoring.window) {
                let visible = rows.visible(row, start, scoring.window);
                for member in 0..group {
                    let range = self.query(row, member);
                    let running = &mut state[(row * group + member) * 2..][..2];
                    // SAFETY: no other thread has this head.
                    let (query, out) = unsafe { (&*queries.range(range.clone()), out.range(range)) };
                    if rows.begin(row, scoring.window) >= start {
                        out.fill(0.0);
                    }
                    let distance = self.distance(row, member, start);
                    let seen = VisiblePart { visible: visible.clone(), distance };
                    attend_tile(self.instructions, query, keys, values, seen, scoring, running, out);
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
        let (rows, group, scoring, dim) = (self.rows, self.group(), self.scoring, self.heads.dim);
        let head = |item: usize| {
            let (row, member) = (item / group, item % group);
            let range = self.query(row, member);
            // SAFETY: no other thread has this head.
            let (query, out) = unsafe { (&*queries.range(range.clone()), out.range(range)) };
            if rows.begin(row, scoring.window) >= start {
                out.fill(0.0);
            }
            let distance = self.distance(row, member, start);
            let seen = VisiblePart { visible: rows.visible(row, start, scoring.window), distance };
            avx2::QueryHead { query, seen, out }
        };
        let mut item = rows.first_in(start, scoring.window) * group;
        let items = rows.end_in(start, scoring.window) * group;
        let state = state.as_chunks_mut::<2>().0;
        while item < items {
            let count = (items - item).min(6);
            let running = &mut state[item..item + count];
            macro_rules! attend {
                ($count:literal) => {{
                    let mut heads = std::array::from_fn(|i| head(item + i));
                    match rows.kind {
                        KvCacheType::F16 => avx2::attend::<$count, _>(
                            avx2::Halves::of(tile, dim),
                            scoring,
                            running,
                            &mut heads,
                        ),
                        KvCacheType::Q8_0 => avx2::attend::<$count, _>(
                            avx2::ByteTile::of(tile, dim),
                            scoring,
                            running,
                            &mut heads,
                        ),
                    }
                }};
            }
            // SAFETY: the caller has looked for AVX2.
            unsafe {
                match count {
                    6 => attend!(6),
                    5 => attend!(5),
                    4 => attend!(4),
                    3 => attend!(3),
                    2 => attend!(2),
                    _ => attend!(1),
                }
            }
            item += count;
        }
    }
}

multiversion! {
    /// One query against the `seen` part of a tile; `running` is [maximum, sum] of the scores so far, `out`
    /// the weighted sum of values so far.
    fn attend_tile(
        query: &[f32],
        keys: &[f32],
        values: &[f32],
        seen: VisiblePart,
        scoring: Scoring<'_>,
        running: &mut [f32],
        out: &mut [f32],
    ) = attend_tile_body
}

#[inline(always)]
fn attend_tile_body(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    seen: VisiblePart,
    scoring: Scoring<'_>,
    running: &mut [f32],
    out: &mut [f32],
) {
    let mut scores = [0.0f32; TILE];
    for (query, keys) in query.iter().zip(keys.as_chunks::<TILE>().0) {
        for (score, key) in scores.iter_mut().zip(keys) {
            *score = query.mul_add(*key, *score);
        }
    }
    let correction = weigh(&mut scores, &seen, scoring, running);
    let visible = seen.visible;
    let weights = &scores[visible.clone()];
    let values = &values[visible.start * query.len()..];
    let (chunks, rest) = out.as_chunks_mut::<16>();
    let width = query.len();
    for (i, out) in chunks.iter_mut().enumerate() {
        let mut sums = out.map(|value| value * correction);
        for (weight, values) in weights.iter().zip(values.chunks_exact(width)) {
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
        for (weight, values) in weights.iter().zip(values.chunks_exact(width)) {
            sum = weight.mul_add(values[done + i], sum);
        }
        *out = sum;
    }
}

/// Turns the scores of a tile into weights and adds these to the running sum. Returns the factor for all
/// earlier sums. A NaN among the scores makes the sum NaN.
#[inline(always)]
fn weigh(scores: &mut [f32; TILE], seen: &VisiblePart, scoring: Scoring<'_>, running: &mut [f32]) -> f32 {
    let visible = &seen.visible;
    let chunks = visible.start / 16..visible.end.div_ceil(16);
    let mut scale = scoring.scale;
    if let Some(cap) = scoring.cap {
        for score in scores.as_chunks_mut::<16>().0[chunks.clone()].as_flattened_mut() {
            *score = cap * tanh_of(*score * scale / cap);
        }
        scale = 1.0;
    }
    if let Some(Distance { slope, row }) = seen.distance {
        // Scores may be on both sides of the row, and in tiles without the row.
        let first = chunks.start * 16;
        let positions = first as i32 - row..;
        let chunks = scores.as_chunks_mut::<16>().0[chunks.clone()].as_flattened_mut();
        for (score, position) in chunks.iter_mut().zip(positions) {
            *score = slope.mul_add(-(position.abs() as f32), *score * scale);
        }
        scale = 1.0;
    }
    // Masked keys have no weight, whatever is stored there.
    scores[..visible.start].fill(f32::NEG_INFINITY);
    scores[visible.end..].fill(f32::NEG_INFINITY);
    // The maximum in 16 lanes: one chain of comparisons over all scores would take as long as a fifth of the
    // products.
    let mut maxima = [running[0]; 16];
    for chunk in &mut scores.as_chunks_mut::<16>().0[chunks.clone()] {
        for (maximum, score) in maxima.iter_mut().zip(chunk) {
            *score *= scale;
            *maximum = if *score > *maximum { *score } else { *maximum };
        }
    }
    let maximum =
        maxima.iter().fold(running[0], |most, maximum| if *maximum > most { *maximum } else { most });
    let correction = exp(running[0] - maximum);
    let mut lanes = [0.0f32; 16];
    for chunk in &mut scores.as_chunks_mut::<16>().0[chunks] {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *score = exp(*score - maximum);
            *lane += *score;
        }
    }
    running[1] = running[1].mul_add(correction, fold(&mut lanes));
    running[0] = maximum;
    correction
}
