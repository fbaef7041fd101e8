//! Attention against plain softmax, and of all versions against each other.

use std::sync::Arc;

use super::{Heads, Projections, Rows, Scoring, TILE, attend, attend_tile, attend_tile_body};
use crate::kernels::Pool;
use crate::kernels::disjoint::Disjoint;
use crate::kernels::half::narrow_one;
use crate::kernels::matrix::Instructions;

/// Fills tiles for `positions` positions from f(kind, head, position, element).
fn tiles(heads: Heads, positions: usize, f: impl Fn(usize, usize, usize, usize) -> f32) -> Vec<Box<[u16]>> {
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
    let plain = Scoring::plain(0.3);
    let sinks = [0.5, -1.0, 3.0, 0.0];
    for both_ways in [false, true] {
        agrees_with_plain_softmax(both_ways, plain);
        agrees_with_plain_softmax(both_ways, Scoring { cap: Some(0.7), ..plain });
        agrees_with_plain_softmax(both_ways, Scoring { sinks: Some(&sinks), ..plain });
    }
    for window in [1, 7, 63, 64, 65, 100, 149, 150, 1000] {
        agrees_with_plain_softmax(false, Scoring { window: Some(window), ..plain });
        agrees_with_plain_softmax(true, Scoring { window: Some(window), ..plain });
    }
    let all = Scoring { cap: Some(2.0), window: Some(40), sinks: Some(&sinks), ..plain };
    agrees_with_plain_softmax(false, all);
}

fn agrees_with_plain_softmax(both_ways: bool, scoring: Scoring<'_>) {
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
        let value =
            |i: usize| noise(kind, i / heads.dim % heads.kv, first + i / heads.dim / heads.kv, i % heads.dim);
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
    let pool = Pool::new(2, Instructions::best(), &start).unwrap();
    let mut scratch = vec![0.0; heads.scratch_len(rows) * 2];
    let mut out = vec![f32::NAN; queries.len()];
    let mut open = tiles.split_off(first / TILE);
    let done: Vec<_> = tiles.into_iter().map(Arc::new).collect();
    let open = open.iter_mut().map(|tile| Disjoint::new(tile)).collect();
    let sequence = Rows { done: &done, open, position: first, rows, first_row: 0, both_ways, running: None };
    let fresh = Some((&mut half_keys[..], &fresh(1)[..]));
    let projections = Projections { queries: &mut half_queries, fresh, ready: &double, scoring };
    attend(heads, 0, &[sequence], projections, &mut out, &mut scratch, &pool);
    let half = |x: f32| f64::from(::half::f16::from_f32(x).to_f32());
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
                    let dot: f64 =
                        (0..heads.dim).map(|d| f64::from(query[d]) * half(noise(0, kv, p, d))).sum();
                    let score = dot * f64::from(scoring.scale);
                    let capped = |cap: f32| f64::from(cap) * libm::tanh(score / f64::from(cap));
                    if p < first_seen { 0.0 } else { libm::exp(scoring.cap.map_or(score, capped)) }
                })
                .collect();
            let sink = scoring.sinks.map_or(0.0, |sinks| libm::exp(f64::from(sinks[head])));
            let sum: f64 = scores.iter().sum::<f64>() + sink;
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
    let pool = Pool::new(2, Instructions::best(), &start).unwrap();
    let plain = Pool::new(2, Instructions::Portable, &start).unwrap();
    let sinks = [0.5, -1.0, 3.0, 0.0, 0.25];
    let windows = [None, Some(1), Some(50), Some(64), Some(131)];
    let shapes = [(4, 2, 64), (3, 1, 20), (5, 1, 48), (2, 2, 16)];
    for ((query, kv, dim), window) in shapes.into_iter().flat_map(|s| windows.map(|window| (s, window))) {
        let sinks = window.map(|_| &sinks[..query]);
        let scoring = Scoring { scale: 0.2, cap: window.map(|w| w as f32), window, sinks };
        let heads = Heads { query, kv, dim };
        let noise = |kind: usize, head: usize, position: usize, d: usize| {
            let x = (kind * 7919 + head * 104_729 + position * 1_299_709 + d * 15_485_863) % 1000;
            x as f32 / 500.0 - 1.0
        };
        let shared: Vec<_> = tiles(heads, 200, noise).into_iter().map(Arc::new).collect();
        let (first, rows) = (63, 137);
        let queries: Vec<f32> = (0..rows * query * dim).map(|i| noise(2, 0, i, 0)).collect();
        let run = |pool: &Pool, first_row: usize, rows: usize, queries: &[f32]| {
            let mut scratch = vec![0.0; heads.scratch_len(rows) * 2];
            let mut out = vec![f32::NAN; queries.len()];
            let position = first + first_row;
            let (done, open) = (&shared[..], Vec::new());
            let sequence = Rows { done, open, position, rows, first_row: 0, both_ways: false, running: None };
            let (mut queries, ready) = (queries.to_vec(), |_: usize, _: &mut [f32], _: &mut [f32]| {});
            let projections = Projections { queries: &mut queries, fresh: None, ready: &ready, scoring };
            attend(heads, 0, &[sequence], projections, &mut out, &mut scratch, pool);
            out
        };
        let together = run(&pool, 0, rows, &queries);
        let portable = run(&plain, 0, rows, &queries);
        assert!(together == portable, "{query} heads of {dim}, window {window:?}");
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
        for (visible, cap) in
            [(0..1, None), (0..17, Some(0.5)), (0..64, None), (20..40, Some(2.0)), (63..64, None)]
        {
            let scoring = Scoring { cap, ..Scoring::plain(0.3) };
            let (mut wide, mut portable) = (vec![0.25; dim], vec![0.25; dim]);
            let (mut wide_running, mut running) = ([0.5, 2.0], [0.5, 2.0]);
            attend_tile(
                Instructions::Avx2,
                &query,
                &keys,
                &values,
                visible.clone(),
                scoring,
                &mut wide_running,
                &mut wide,
            );
            attend_tile_body(&query, &keys, &values, visible, scoring, &mut running, &mut portable);
            assert_eq!((wide, wide_running), (portable, running));
        }
    }
}
