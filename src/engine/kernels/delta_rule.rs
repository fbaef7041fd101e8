//! The gated delta rule ([Yang et al. 2024](https://arxiv.org/abs/2412.06464)).
//!
//! A head has a matrix `S` `[keys, values]`. A position makes it decay, looks up the value that it has for
//! the position's key, and adds a share of the difference to the position's value:
//!
//! ```text
//! S ← decay · S
//! S ← S + k · (β · (v - Sᵀ · k))ᵀ
//! o = Sᵀ · q
//! ```
//!
//! A column of `S` belongs to one element of the values and needs no other one. So columns are computed in
//! strips of [`LANES`], and a strip stays in the cache over all positions of a pass.

#![allow(unsafe_code, reason = "threads write disjoint columns")]

use super::disjoint::Disjoint;
use super::norm::sum_of_squares_body;
use super::pool::Pool;
use super::recurrence::{StatePlace, each_position};
use super::rows::Rows;

/// Columns of a strip: `S` is stored as strips `[keys, LANES]`.
pub(crate) const LANES: usize = 16;
/// Elements of matrices of a share of the pool's work: about two microseconds.
const ELEMENTS_WORTH: usize = 16_384;
/// Sums over keys are made of this many chains, which take the keys in turns and are folded in pairs.
pub(super) const CHAINS: usize = 4;

/// The sizes of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeltaRuleSizes {
    /// Heads of queries and keys; value head `h` has those of head `h` modulo this.
    pub(crate) key_heads: usize,
    /// Heads of values, each with a matrix of its own.
    pub(crate) value_heads: usize,
    /// Elements of each head, a multiple of [`LANES`].
    pub(crate) dim: usize,
}

/// The inputs of a layer's matrices, row by row.
pub(crate) struct Lessons<'a> {
    /// `[rows, (2 · key_heads + value_heads) · dim]`: queries, keys and values.
    pub(crate) inputs: &'a [f32],
    /// `[rows, value_heads]`.
    pub(crate) decays: &'a [f32],
    /// `[rows, value_heads]`.
    pub(crate) betas: &'a [f32],
}

impl DeltaRuleSizes {
    /// Values of their state.
    pub(crate) fn state_len(&self) -> usize {
        self.value_heads * self.dim * self.dim
    }

    /// Processes the rows of all sequences: `out` `[rows, value_heads · dim]`.
    pub(crate) fn learn(
        &self,
        sequences: &[Rows<'_>],
        place: StatePlace,
        lessons: &Lessons<'_>,
        out: &mut [f32],
        pool: &Pool,
    ) {
        let DeltaRuleSizes { key_heads, value_heads, dim } = *self;
        let (keys, values) = (key_heads * dim, value_heads * dim);
        let (strips, instructions) = (dim / LANES, pool.instructions());
        let worth = out.len() * dim / ELEMENTS_WORTH;
        let out = Disjoint::new(out);
        pool.run(sequences.len() * value_heads * strips, worth, &|_, item| {
            let (rows, column) = (&sequences[item / (value_heads * strips)], item % (value_heads * strips));
            let head = column / strips;
            let part = column * dim * LANES..(column + 1) * dim * LANES;
            let of_key = head % key_heads * dim;
            // SAFETY: no other item is about these columns of this sequence.
            unsafe {
                each_position(rows, place, part, |row, strip| {
                    let row = rows.first_row + row;
                    let inputs = &lessons.inputs[row * (2 * keys + values)..(row + 1) * (2 * keys + values)];
                    let query = &inputs[of_key..of_key + dim];
                    let key = &inputs[keys + of_key..keys + of_key + dim];
                    let value = &inputs[2 * keys + column * LANES..2 * keys + (column + 1) * LANES];
                    let (decay, beta) =
                        (lessons.decays[row * value_heads + head], lessons.betas[row * value_heads + head]);
                    let start = row * values + column * LANES;
                    let out = out.range(start..start + LANES);
                    learn(instructions, strip, key, query, value, decay, beta, out);
                });
            }
        });
    }
}

multiversion! {
    /// One position of one strip. `key` and `query` are as long as a multiple of 4; `value` and `out` have
    /// [`LANES`] values.
    fn learn(
        strip: &mut [f32], key: &[f32], query: &[f32], value: &[f32], decay: f32, beta: f32, out: &mut [f32],
    ) = learn_body
}

multiversion! {
    /// `x = scale · x / sqrt(Σ x² + epsilon)` of each `length` values.
    pub(crate) fn unit_length(x: &mut [f32], length: usize, epsilon: f32, scale: f32) = unit_length_body
}

/// The factor of a matrix for one position: `exp(rate · softplus(x))`.
pub(crate) fn decay(x: f32, rate: f32) -> f32 {
    libm::exp(f64::from(rate) * softplus(x)) as f32
}

/// `ln(1 + exp(x))`.
pub(crate) fn softplus(x: f32) -> f64 {
    let x = f64::from(x);
    if x > 20.0 { x } else { libm::log1p(libm::exp(x)) }
}

#[inline(always)]
fn learn_body(
    strip: &mut [f32],
    key: &[f32],
    query: &[f32],
    value: &[f32],
    decay: f32,
    beta: f32,
    out: &mut [f32],
) {
    let (keys, queries) = (key.as_chunks::<CHAINS>().0, query.as_chunks::<CHAINS>().0);
    let rows = strip.as_chunks_mut::<LANES>().0.as_chunks_mut::<CHAINS>().0;
    let mut sums = [[0.0f32; LANES]; CHAINS];
    for (rows, keys) in rows.iter().zip(keys) {
        for ((sums, row), key) in sums.iter_mut().zip(rows).zip(keys) {
            for (sum, element) in sums.iter_mut().zip(row) {
                *sum = element.mul_add(*key, *sum);
            }
        }
    }
    let known = fold(&sums);
    let mut change = [0.0f32; LANES];
    for ((change, known), value) in change.iter_mut().zip(&known).zip(value) {
        *change = (value - decay * known) * beta;
    }
    let mut sums = [[0.0f32; LANES]; CHAINS];
    for ((rows, keys), queries) in rows.iter_mut().zip(keys).zip(queries) {
        for (((sums, row), key), query) in sums.iter_mut().zip(rows).zip(keys).zip(queries) {
            for ((sum, element), change) in sums.iter_mut().zip(row).zip(&change) {
                *element = key.mul_add(*change, *element * decay);
                *sum = element.mul_add(*query, *sum);
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(fold(&sums)) {
        *out = sum;
    }
}

/// The sums over all chains.
#[inline(always)]
pub(super) fn fold(sums: &[[f32; LANES]; CHAINS]) -> [f32; LANES] {
    std::array::from_fn(|lane| (sums[0][lane] + sums[2][lane]) + (sums[1][lane] + sums[3][lane]))
}

#[inline(always)]
fn unit_length_body(x: &mut [f32], length: usize, epsilon: f32, scale: f32) {
    for x in x.chunks_exact_mut(length) {
        let factor = scale / (sum_of_squares_body(x) + epsilon).sqrt();
        x.iter_mut().for_each(|x| *x *= factor);
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
    fn a_strip_learns_as_the_formula_says_and_the_same_everywhere() {
        let keys = 32;
        let run = |instructions| {
            let (mut strip, mut outs) = (vec![0.0; keys * LANES], Vec::new());
            for position in 0..20 {
                let mut key = values(keys, position * 31);
                unit_length(instructions, &mut key, keys, 1e-6, 1.0);
                let query = values(keys, position * 17 + 5);
                let mut out = [0.0; LANES];
                let value = values(LANES, position * 5);
                learn(instructions, &mut strip, &key, &query, &value, 0.9, 0.6, &mut out);
                outs.extend(out);
            }
            outs
        };
        let got = run(Instructions::Avx2);
        assert_eq!(got, run(Instructions::Portable));
        let mut matrix = vec![[0.0f64; LANES]; keys];
        for (position, got) in got.chunks_exact(LANES).enumerate() {
            let mut key = values(keys, position * 31);
            unit_length(Instructions::Portable, &mut key, keys, 1e-6, 1.0);
            let (query, value) = (values(keys, position * 17 + 5), values(LANES, position * 5));
            for lane in 0..LANES {
                matrix.iter_mut().for_each(|row| row[lane] *= f64::from(0.9f32));
                let known: f64 = matrix.iter().zip(&key).map(|(row, key)| row[lane] * f64::from(*key)).sum();
                let change = (f64::from(value[lane]) - known) * f64::from(0.6f32);
                for (row, key) in matrix.iter_mut().zip(&key) {
                    row[lane] += f64::from(*key) * change;
                }
                let out: f64 =
                    matrix.iter().zip(&query).map(|(row, query)| row[lane] * f64::from(*query)).sum();
                assert!((out - f64::from(got[lane])).abs() < 1e-5, "{position}, {lane}");
            }
        }
    }

    #[test]
    fn a_decay_is_between_0_and_1_and_not_finite_for_what_is_not() {
        for x in [-1e30, -50.0, -1.0, 0.0, 3.0, 21.0, 1e30] {
            let decay = decay(x, -0.7);
            assert!((0.0..=1.0).contains(&decay), "{x}: {decay}");
        }
        assert!(decay(f32::NAN, -0.7).is_nan());
        assert!((decay(1.5, -0.7) - 0.303_920_45).abs() < 1e-5, "{}", decay(1.5, -0.7));
    }
}
