//! Selective state spaces ([Dao and Gu 2024](https://arxiv.org/abs/2405.21060)).
//!
//! A head has a matrix `S` `[state, dim]`. A position makes it decay, writes its element of the head there,
//! and reads:
//!
//! ```text
//! S ← decay · S + b · (step · x)ᵀ
//! y = Sᵀ · c + skip · x
//! ```
//!
//! A column of `S` belongs to one element of the head and needs no other one. So columns are computed in
//! strips, as those of the [delta rule](super::delta_rule).

#![allow(unsafe_code, reason = "threads write disjoint columns")]

use super::delta_rule::{CHAINS, LANES, fold};
use super::disjoint::Disjoint;
use super::pool::Pool;
use super::recurrence::{StatePlace, each_position};
use super::rows::Rows;

/// Elements of matrices of a share of the pool's work: about two microseconds.
const ELEMENTS_WORTH: usize = 16_384;

/// The sizes of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StateSpaceSizes {
    pub(crate) heads: usize,
    /// Elements of each head, a multiple of [`LANES`].
    pub(crate) dim: usize,
    /// Groups of consecutive heads with common `b` and `c`.
    pub(crate) groups: usize,
    /// Rows of a matrix, a multiple of [`CHAINS`].
    pub(crate) state: usize,
}

/// The inputs of a layer, row by row.
pub(crate) struct Signals<'a> {
    /// `[rows, heads · dim + 2 · groups · state]`: `x` of each head, `b` of each group, `c` of each group.
    pub(crate) inputs: &'a [f32],
    /// `[rows, heads]`.
    pub(crate) decays: &'a [f32],
    /// `[rows, heads]`.
    pub(crate) steps: &'a [f32],
    /// `[heads]`.
    pub(crate) skips: &'a [f32],
}

impl StateSpaceSizes {
    /// Values of their state.
    pub(crate) fn state_len(&self) -> usize {
        self.heads * self.dim * self.state
    }

    /// Processes the rows of all sequences: `out` `[rows, heads · dim]`.
    pub(crate) fn scan(
        &self,
        sequences: &[Rows<'_>],
        place: StatePlace,
        signals: &Signals<'_>,
        out: &mut [f32],
        pool: &Pool,
    ) {
        let StateSpaceSizes { heads, dim, groups, state } = *self;
        let (values, channels) = (heads * dim, heads * dim + 2 * groups * state);
        let (strips, instructions) = (dim / LANES, pool.instructions());
        let worth = out.len() * state / ELEMENTS_WORTH;
        let out = Disjoint::new(out);
        pool.run(sequences.len() * heads * strips, worth, &|_, item| {
            let (rows, column) = (&sequences[item / (heads * strips)], item % (heads * strips));
            let head = column / strips;
            let part = column * state * LANES..(column + 1) * state * LANES;
            let group = head / (heads / groups) * state;
            // SAFETY: no other item is about these columns of this sequence.
            unsafe {
                each_position(rows, place, part, |row, strip| {
                    let row = rows.first_row + row;
                    let inputs = &signals.inputs[row * channels..(row + 1) * channels];
                    let (x, rest) = inputs.split_at(values);
                    let (b, c) = rest.split_at(groups * state);
                    let x = &x[column * LANES..(column + 1) * LANES];
                    let (b, c) = (&b[group..group + state], &c[group..group + state]);
                    let (decay, by) = (signals.decays[row * heads + head], signals.steps[row * heads + head]);
                    let start = row * values + column * LANES;
                    let out = out.range(start..start + LANES);
                    step(instructions, strip, b, c, x, [decay, by, signals.skips[head]], out);
                });
            }
        });
    }
}

multiversion! {
    /// One position of one strip, with its decay, step and skip. `b` and `c` are as long as a multiple of
    /// [`CHAINS`]; `x` and `out` have [`LANES`] values.
    fn step(strip: &mut [f32], b: &[f32], c: &[f32], x: &[f32], factors: [f32; 3], out: &mut [f32]) = step_body
}

#[inline(always)]
fn step_body(strip: &mut [f32], b: &[f32], c: &[f32], x: &[f32], factors: [f32; 3], out: &mut [f32]) {
    let [decay, by, skip] = factors;
    let (bs, cs) = (b.as_chunks::<CHAINS>().0, c.as_chunks::<CHAINS>().0);
    let rows = strip.as_chunks_mut::<LANES>().0.as_chunks_mut::<CHAINS>().0;
    let mut written = [0.0f32; LANES];
    for (written, x) in written.iter_mut().zip(x) {
        *written = by * x;
    }
    let mut sums = [[0.0f32; LANES]; CHAINS];
    for ((rows, bs), cs) in rows.iter_mut().zip(bs).zip(cs) {
        for (((sums, row), b), c) in sums.iter_mut().zip(rows).zip(bs).zip(cs) {
            for ((sum, element), written) in sums.iter_mut().zip(row).zip(&written) {
                *element = b.mul_add(*written, *element * decay);
                *sum = element.mul_add(*c, *sum);
            }
        }
    }
    for ((out, sum), x) in out.iter_mut().zip(fold(&sums)).zip(x) {
        *out = skip.mul_add(*x, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::instructions::Instructions;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed) % 2003) as f32 / 2000.0 - 0.5).collect()
    }

    #[test]
    fn a_strip_goes_on_as_the_formula_says_and_the_same_everywhere() {
        let (state, factors) = (32, [0.9, 0.6, 0.3]);
        let signals = |position: usize| {
            (values(state, position * 31), values(state, position * 17 + 5), values(LANES, position * 5))
        };
        let run = |instructions| {
            let (mut strip, mut outs) = (vec![0.0; state * LANES], Vec::new());
            for position in 0..20 {
                let ((b, c, x), mut out) = (signals(position), [0.0; LANES]);
                step(instructions, &mut strip, &b, &c, &x, factors, &mut out);
                outs.extend(out);
            }
            outs
        };
        let got = run(Instructions::Avx2);
        assert_eq!(got, run(Instructions::Portable));
        let [decay, by, skip] = factors.map(f64::from);
        let mut matrix = vec![[0.0f64; LANES]; state];
        for (position, got) in got.chunks_exact(LANES).enumerate() {
            let (b, c, x) = signals(position);
            for lane in 0..LANES {
                let x = f64::from(x[lane]);
                for (row, b) in matrix.iter_mut().zip(&b) {
                    row[lane] = decay * row[lane] + by * x * f64::from(*b);
                }
                let read: f64 = matrix.iter().zip(&c).map(|(row, c)| row[lane] * f64::from(*c)).sum();
                let out = read + skip * x;
                assert!((out - f64::from(got[lane])).abs() < 1e-5, "{position}, {lane}");
            }
        }
    }
}
