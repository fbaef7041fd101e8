//! The kernels for micro-benchmarks, which are a crate of their own: each function makes its data and returns
//! the closure to be timed.
#![allow(missing_docs, reason = "not part of the interface")]

use std::sync::Arc;

use super::attention::{self, AttentionSizes, Projections};
use super::instructions::Instructions;
use super::matrix::{self, Activations, Format, Packed, products};
use super::pool::Pool;
use super::rope::{Pairs, Rope};
use super::rows::Rows;
use super::tile::{KvCacheType, TILE};
use super::{norm, swiglu};

/// Formats by ggml's names.
pub const FORMATS: [&str; 16] = [
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "IQ4_XS", "MXFP4",
];

fn format(name: &str) -> Option<Format> {
    use Format::{
        BF16, F16, F32, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
    };
    let all =
        [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS, MXFP4];
    FORMATS.iter().zip(all).find(|(known, _)| **known == name).map(|(_, format)| format)
}

/// Values in -1 … 1 with a long period.
fn values(count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn pool(threads: usize, instructions: Instructions) -> Option<Pool> {
    let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
    Pool::new(threads, instructions, &start).ok()
}

/// An empty job on all threads: the cost of beginning and ending a job.
pub fn job(threads: usize) -> Option<impl FnMut()> {
    let pool = pool(threads, Instructions::best())?;
    Some(move || {
        pool.run(threads, usize::MAX, &|_, item| {
            std::hint::black_box(item);
        })
    })
}

/// The product of `rows` rows with `outputs` · `inputs` weights.
pub fn product(
    name: &str,
    (inputs, outputs): (usize, usize),
    rows: usize,
    threads: usize,
    instructions: Instructions,
) -> Option<impl FnMut()> {
    let format = format(name)?;
    // Small numbers in every format: bytes of 0x11 … 0x2e are scales, and floats, of about 1e-4 … 1e-1.
    let count = inputs / format.block() * outputs * format.source_bytes();
    let source: Vec<u8> =
        (0..count as u32).map(|i| 0x11 + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 30).collect();
    let packed = Packed::new(format, &source, inputs, outputs).ok()?;
    let (mut x, mut y) = (values(rows * inputs), vec![0.0; rows * outputs]);
    let (mut scratch, pool) = (Activations::default(), pool(threads, instructions)?);
    Some(move || products(&[&packed], &mut x, None, &mut [&mut y], &mut scratch, &pool))
}

/// Quantization of `rows` rows, in blocks of 32 or 256.
pub fn quantize(block: usize, inputs: usize, rows: usize) -> Option<impl FnMut()> {
    let (mut x, mut target, pool) =
        (values(rows * inputs), Activations::default(), pool(1, Instructions::best())?);
    Some(move || {
        matrix::quantize(Instructions::best(), &mut x, None, inputs, block, false, &mut target, &pool)
    })
}

/// `rows` rows of one sequence attend to `positions` positions before them.
pub fn attention(
    heads: (usize, usize, usize),
    positions: usize,
    rows: usize,
    kind: KvCacheType,
    threads: usize,
) -> Option<impl FnMut()> {
    let heads = AttentionSizes { query: heads.0, kv: heads.1, dim: heads.2 };
    let tile = heads.kv * kind.tile_len(heads.dim);
    // f16 values of about 0.1, or bytes and scales of that size.
    let block = || (0..tile).map(|i| 0x2e00 + (i % 251) as u16).collect::<Box<[u16]>>();
    let blocks: Vec<Arc<Box<[u16]>>> =
        (0..(positions + rows).div_ceil(TILE)).map(|_| Arc::new(block())).collect();
    let width = heads.query * heads.dim;
    let (mut queries, mut out) = (values(rows * width), vec![0.0; rows * width]);
    let (mut scratch, pool) =
        (vec![0.0; heads.scratch_len(rows) * threads], pool(threads, Instructions::best())?);
    Some(move || {
        let (done, open) = (&blocks[..], Vec::new());
        let sequence = Rows {
            kind,
            done,
            open,
            position: positions,
            rows,
            first_row: 0,
            both_ways: false,
            running: None,
        };
        let scoring = attention::Scoring::plain(heads.scale());
        let projections = Projections { queries: &mut queries, fresh: None, ready: &|_, _, _| {}, scoring };
        attention::attend(heads, 0, &[sequence], projections, &mut out, &mut scratch, &pool);
    })
}

/// Normalization of one row.
pub fn rms_norm(width: usize) -> impl FnMut() {
    let (x, weight, mut out) = (values(width), values(width), vec![0.0; width]);
    move || {
        norm::rms_norm(Instructions::best(), &x, &weight, 1e-6, &mut out);
    }
}

/// Rotation of `heads` heads of `dim` elements, with or without the angles.
pub fn rope(heads: usize, dim: usize, angles: bool) -> impl FnMut() {
    let rope = Rope::new(Pairs::Halves, dim, 1e6, 1.0, None);
    let (mut x, mut cos, mut sin) = (values(heads * dim), vec![1.0; dim / 2], vec![0.0; dim / 2]);
    move || {
        if angles {
            rope.angles(1234, &mut cos, &mut sin);
        }
        rope.rotate(Instructions::best(), &mut x, dim, &cos, &sin);
    }
}

/// `silu(gate) · up` of one row.
pub fn swiglu(width: usize) -> impl FnMut() {
    let (gate, up) = (values(width), values(width));
    let mut out = gate.clone();
    move || {
        out.copy_from_slice(&gate);
        swiglu::swiglu(Instructions::best(), &mut out, &up);
    }
}
