//! Attention against plain softmax, and all versions against each other.

use std::sync::Arc;

use super::{
    AttentionSizes, Distance, Projections, Rows, Scoring, TILE, VisiblePart, attend, attend_tile,
    attend_tile_body,
};
use crate::kernels::Pool;
use crate::kernels::disjoint::Disjoint;
use crate::kernels::instructions::Instructions;
use crate::kernels::tile::KvCacheType;

/// Fills tiles for `positions` positions from f(kind, head, position, element).
fn tiles(
    kind: KvCacheType,
    heads: AttentionSizes,
    positions: usize,
    f: impl Fn(usize, usize, usize, usize) -> f32,
) -> Vec<Box<[u16]>> {
    let length = kind.tile_len(heads.dim);
    let tile = vec![0u16; heads.kv * length].into_boxed_slice();
    let mut tiles = vec![tile; positions.div_ceil(TILE)];
    for position in 0..positions {
        let (tile, slot) = (&mut tiles[position / TILE], position % TILE);
        for (head, tile) in tile.chunks_exact_mut(length).enumerate() {
            let [key, value]: [Vec<f32>; 2] =
                [0, 1].map(|part| (0..heads.dim).map(|d| f(part, head, position, d)).collect());
            kind.store(Instructions::Portable, tile, slot, &key, &value);
        }
    }
    tiles
}

/// The value of element `d` as it is read from the cache, by the definition of the type.
fn stored(kind: KvCacheType, d: usize, dim: usize, x: impl Fn(usize) -> f32) -> f64 {
    match kind {
        KvCacheType::F16 => f64::from(::half::f16::from_f32(x(d)).to_f32()),
        KvCacheType::Q8_0 => {
            let block = d / 32 * 32..dim.min((d / 32 + 1) * 32);
            let largest = block.map(|d| x(d).abs()).fold(0.0, f32::max);
            let scale = ::half::f16::from_f32(largest / 127.0).to_f32();
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            f64::from((x(d) * inverse).round_ties_even().clamp(-127.0, 127.0) * scale)
        }
    }
}

#[test]
fn agrees_with_plain_softmax_in_f64() {
    let plain = Scoring::plain(0.3);
    let sinks = [0.5, -1.0, 3.0, 0.0];
    for kind in KvCacheType::ALL {
        for both_ways in [false, true] {
            agrees_with_plain_softmax(kind, 20, both_ways, plain);
            agrees_with_plain_softmax(kind, 80, both_ways, plain);
            agrees_with_plain_softmax(kind, 20, both_ways, Scoring { cap: Some(0.7), ..plain });
            agrees_with_plain_softmax(kind, 20, both_ways, Scoring { sinks: Some(&sinks), ..plain });
            // Slopes of both signs, and one that leaves nothing of distant positions.
            let slopes = Some(&[0.5, 0.0625, 8.0, -0.01][..]);
            agrees_with_plain_softmax(kind, 20, both_ways, Scoring { slopes, ..plain });
            agrees_with_plain_softmax(kind, 64, both_ways, Scoring { slopes, window: Some(70), ..plain });
        }
        for window in [1, 7, 63, 64, 65, 100, 149, 150, 1000] {
            agrees_with_plain_softmax(kind, 20, false, Scoring { window: Some(window), ..plain });
            agrees_with_plain_softmax(kind, 20, true, Scoring { window: Some(window), ..plain });
        }
        let all = Scoring { cap: Some(2.0), window: Some(40), sinks: Some(&sinks), ..plain };
        agrees_with_plain_softmax(kind, 20, false, all);
    }
}

fn agrees_with_plain_softmax(kind: KvCacheType, dim: usize, both_ways: bool, scoring: Scoring<'_>) {
    let heads = AttentionSizes { query: 4, kv: 2, dim };
    let noise = |kind: usize, head: usize, position: usize, d: usize| {
        let x = (kind * 7919 + head * 104_729 + position * 1_299_709 + d * 15_485_863) % 1000;
        x as f32 / 500.0 - 1.0
    };
    let positions = 150usize;
    let (first, rows) = if both_ways { (0, 150) } else { (100, 50) };
    let mut tiles = tiles(kind, heads, first, noise);
    tiles.resize(positions.div_ceil(TILE), vec![0; heads.kv * kind.tile_len(dim)].into_boxed_slice());
    let queries: Vec<f32> = (0..rows * heads.query * heads.dim).map(|i| noise(2, 0, i, 0)).collect();
    let fresh = |kind: usize| -> Vec<f32> {
        let value =
            |i: usize| noise(kind, i / heads.dim % heads.kv, first + i / heads.dim / heads.kv, i % heads.dim);
        (0..rows * heads.kv * heads.dim).map(value).collect()
    };
    // Half of their size here, and doubled when they are prepared.
    let (mut half_queries, mut half_keys) = (queries.clone(), fresh(0));
    half_queries.iter_mut().chain(&mut half_keys).for_each(|x| *x *= 0.5);
    let double = |row: usize, queries: &mut [f32], key: &mut [f32]| {
        assert!(row < rows && queries.len() == 2 * heads.dim && key.len() == heads.dim);
        queries.iter_mut().chain(key).for_each(|x| *x *= 2.0);
    };
    let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
    let pool = Pool::new(2, Instructions::best(), &start).unwrap();
    let mut scratch = vec![0.0; heads.scratch_len(rows) * 2];
    let mut out = vec![f32::NAN; queries.len()];
    let mut open = tiles.split_off(first / TILE);
    let done: Vec<_> = tiles.into_iter().map(Arc::new).collect();
    let open = open.iter_mut().map(|tile| Disjoint::new(tile)).collect();
    let sequence =
        Rows { kind, done: &done, open, position: first, rows, first_row: 0, both_ways, running: None };
    let fresh = Some((&mut half_keys[..], &fresh(1)[..]));
    let projections = Projections { queries: &mut half_queries, fresh, ready: &double, scoring };
    attend(heads, 0, &[sequence], projections, &mut out, &mut scratch, &pool);
    let read = |part, kv, p, d| stored(kind, d, dim, |d| noise(part, kv, p, d));
    for row in 0..rows {
        for head in 0..heads.query {
            let kv = head / 2;
            let query = &queries[(row * heads.query + head) * heads.dim..][..heads.dim];
            let own = first + row;
            let last = match (both_ways, scoring.window) {
                (false, _) => own,
                (true, window) => window.map_or(positions, |window| own + window).min(positions) - 1,
            };
            let first_seen = scoring.window.map_or(0, |window| (own + 1).saturating_sub(window));
            let scores: Vec<f64> = (0..=last)
                .map(|p| {
                    let dot: f64 = (0..heads.dim).map(|d| f64::from(query[d]) * read(0, kv, p, d)).sum();
                    let slope = scoring.slopes.map_or(0.0, |slopes| f64::from(slopes[head]));
                    let score = dot * f64::from(scoring.scale) - slope * p.abs_diff(own) as f64;
                    let capped = |cap: f32| f64::from(cap) * libm::tanh(score / f64::from(cap));
                    if p < first_seen { 0.0 } else { libm::exp(scoring.cap.map_or(score, capped)) }
                })
                .collect();
            let sink = scoring.sinks.map_or(0.0, |sinks| libm::exp(f64::from(sinks[head])));
            let sum: f64 = scores.iter().sum::<f64>() + sink;
            for d in 0..heads.dim {
                let expected: f64 = scores.iter().enumerate().map(|(p, s)| s / sum * read(1, kv, p, d)).sum();
                let got = f64::from(out[(row * heads.query + head) * heads.dim + d]);
                assert!((got - expected).abs() < 1e-5, "{kind}, row {row} head {head}: {got} for {expected}");
            }
        }
    }
}

#[test]
fn heads_together_get_the_bytes_of_each_alone() {
    let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
    let pool = Pool::new(2, Instructions::best(), &start).unwrap();
    let plain = Pool::new(2, Instructions::Portable, &start).unwrap();
    let sinks = [0.5, -1.0, 3.0, 0.0, 0.25];
    let windows = [None, Some(1), Some(50), Some(64), Some(131)];
    let shapes = [(4, 2, 64), (3, 1, 20), (5, 1, 48), (2, 2, 16), (4, 2, 80)];
    let all = shapes.into_iter().flat_map(|s| windows.map(|window| (s, window)));
    for (((query, kv, dim), window), kind) in all.flat_map(|s| KvCacheType::ALL.map(|kind| (s, kind))) {
        let sinks = window.map(|_| &sinks[..query]);
        let scoring = Scoring { scale: 0.2, cap: window.map(|w| w as f32), window, sinks, slopes: None };
        let heads = AttentionSizes { query, kv, dim };
        let noise = |kind: usize, head: usize, position: usize, d: usize| {
            let x = (kind * 7919 + head * 104_729 + position * 1_299_709 + d * 15_485_863) % 1000;
            x as f32 / 500.0 - 1.0
        };
        let shared: Vec<_> = tiles(kind, heads, 200, noise).into_iter().map(Arc::new).collect();
        let (first, rows) = (63, 137);
        let queries: Vec<f32> = (0..rows * query * dim).map(|i| noise(2, 0, i, 0)).collect();
        let run = |pool: &Pool, first_row: usize, rows: usize, queries: &[f32]| {
            let mut scratch = vec![0.0; heads.scratch_len(rows) * 2];
            let mut out = vec![f32::NAN; queries.len()];
            let position = first + first_row;
            let (done, open) = (&shared[..], Vec::new());
            let sequence =
                Rows { kind, done, open, position, rows, first_row: 0, both_ways: false, running: None };
            let (mut queries, ready) = (queries.to_vec(), |_: usize, _: &mut [f32], _: &mut [f32]| {});
            let projections = Projections { queries: &mut queries, fresh: None, ready: &ready, scoring };
            attend(heads, 0, &[sequence], projections, &mut out, &mut scratch, pool);
            out
        };
        let together = run(&pool, 0, rows, &queries);
        let portable = run(&plain, 0, rows, &queries);
        assert!(together == portable, "{kind}, {query} heads of {dim}, window {window:?}");
        for row in [0, 1, 64, 136] {
            let range = row * query * dim..(row + 1) * query * dim;
            assert!(
                run(&pool, row, 1, &queries[range.clone()]) == together[range],
                "row {row} of {dim}, window {window:?}"
            );
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
        for (visible, cap, row) in [
            (0..1, None, None),
            (0..17, Some(0.5), None),
            (0..64, None, Some(30)),
            (0..64, None, Some(-1000)),
            (3..50, None, Some(64)),
            (20..40, Some(2.0), None),
            (63..64, None, None),
        ] {
            let seen = VisiblePart { visible, distance: row.map(|row| Distance { slope: 0.37, row }) };
            let scoring = Scoring { cap, ..Scoring::plain(0.3) };
            let (mut wide, mut portable) = (vec![0.25; dim], vec![0.25; dim]);
            let (mut wide_running, mut running) = ([0.5, 2.0], [0.5, 2.0]);
            attend_tile(
                Instructions::Avx2,
                &query,
                &keys,
                &values,
                seen.clone(),
                scoring,
                &mut wide_running,
                &mut wide,
            );
            attend_tile_body(&query, &keys, &values, seen, scoring, &mut running, &mut portable);
            assert_eq!((wide, wide_running), (portable, running));
        }
    }
}

#[test]
fn bytes_are_stored_alike_with_all_instructions_and_what_is_not_finite_stays_so() {
    for dim in [8, 20, 32, 80] {
        let kind = KvCacheType::Q8_0;
        let row = |seed: usize| -> Vec<f32> {
            (0..dim).map(|i| ((((i + seed) * 7919) % 2003) as f32 / 1000.0 - 1.0) * (seed as f32)).collect()
        };
        let filled = |instructions| {
            let mut tile = vec![0; kind.tile_len(dim)];
            for slot in 0..TILE {
                kind.store(instructions, &mut tile, slot, &row(slot), &row(100 * slot));
            }
            tile
        };
        let tile = filled(Instructions::Portable);
        assert!(tile == filled(Instructions::Avx2) && tile == filled(Instructions::Avx512), "{dim}");
        let read = |tile: &[u16]| {
            let (mut keys, mut values) = (vec![0.0; TILE * dim], vec![0.0; TILE * dim]);
            kind.read(Instructions::best(), tile, &mut keys, &mut values);
            (keys, values)
        };
        let (keys, values) = read(&tile);
        for (slot, d) in (0..TILE).flat_map(|slot| (0..dim).map(move |d| (slot, d))) {
            let expected = [slot, 100 * slot].map(|seed| stored(kind, d, dim, |d| row(seed)[d]) as f32);
            assert_eq!(
                [keys[d * TILE + slot], values[slot * dim + d]],
                expected,
                "position {slot}, element {d}"
            );
        }
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for instructions in [Instructions::Portable, Instructions::best()] {
                let mut tile = tile.clone();
                let mut spoiled = row(3);
                spoiled[dim - 1] = wrong;
                kind.store(instructions, &mut tile, 5, &spoiled, &spoiled);
                let (keys, values) = read(&tile);
                assert!(!keys[(dim - 1) * TILE + 5].is_finite() && !values[5 * dim + dim - 1].is_finite());
                assert!(keys[(dim - 1) * TILE + 4].is_finite() && values[4 * dim + dim - 1].is_finite());
                kind.clear(&mut tile, dim, 5);
                let (keys, values) = read(&tile);
                assert!(keys.iter().chain(&values).all(|x| x.is_finite()), "what was wiped is gone");
                assert!(values[5 * dim..].iter().all(|x| *x == 0.0) && values[4 * dim] != 0.0);
            }
        }
    }
}
