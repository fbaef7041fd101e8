//! Rotary position embedding ([Su et al. 2021](https://arxiv.org/abs/2104.09864)).
//!
//! Angles are computed in f64 with exact range reduction for each position, so they are as accurate at
//! position 30,000 as at 3, and no table grows with the context.

use super::instructions::Instructions;

/// The two elements of a head that rotate together. llama.cpp's function `llama_model_rope_type` names them
/// for each architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairs {
    /// Elements 2i and 2i + 1 rotate together: `NORM` in llama.cpp, used by files of the llama architecture,
    /// for instance.
    Interleaved,
    /// Elements i and i + n/2 rotate together: `NEOX` in llama.cpp, used by the qwen family, for instance.
    Halves,
}

/// The rotation of one model: a frequency per pair.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    pairs: Pairs,
    /// Radians per position, one for each pair.
    frequencies: Vec<f64>,
    /// The factor of rotated elements.
    magnitude: f64,
}

/// The parameters of [YaRN](https://arxiv.org/abs/2309.00071), which stretches a context: pairs that rotate
/// fast are unchanged, those that rotate slowly are slowed down, with a ramp between.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Yarn {
    /// The length of the context, as a multiple of the one that the model was trained with.
    pub(crate) factor: f32,
    /// Positions of the context that the model was trained with.
    pub(crate) original: usize,
    /// Rotations within that context from which on a pair is unchanged, and below which it is slowed down
    /// entirely.
    pub(crate) fast: f32,
    pub(crate) slow: f32,
}

impl Rope {
    /// Rotation of the first `dimensions` elements of each head: pair i rotates by `scale · base^(-2i /
    /// dimensions) / factors[i]` a position. Without `factors` they are 1.
    pub(crate) fn new(
        pairs: Pairs,
        dimensions: usize,
        base: f32,
        scale: f32,
        factors: Option<&[f32]>,
    ) -> Self {
        let frequencies = (0..dimensions / 2)
            .map(|i| {
                let exponent = -((2 * i) as f64) / dimensions as f64;
                let factor = factors.and_then(|factors| factors.get(i)).copied().unwrap_or(1.0);
                f64::from(scale) * libm::pow(f64::from(base), exponent) / f64::from(factor)
            })
            .collect();
        Rope { pairs, frequencies, magnitude: 1.0 }
    }

    /// The same stretched to a longer context. `base` is that of the rotation.
    pub(crate) fn stretched(mut self, base: f32, yarn: Yarn) -> Self {
        let dimensions = 2.0 * self.frequencies.len() as f64;
        let base = libm::log(f64::from(base));
        // The pair, as a number of dimensions, that makes so many rotations within the original context.
        let pair = |turns: f32| {
            let wavelength = yarn.original as f64 / (f64::from(turns) * std::f64::consts::TAU);
            dimensions * libm::log(wavelength) / (2.0 * base)
        };
        let low = libm::floor(pair(yarn.fast)).max(0.0);
        let high = libm::ceil(pair(yarn.slow)).min(dimensions - 1.0);
        for (i, frequency) in self.frequencies.iter_mut().enumerate() {
            let slowed = *frequency / f64::from(yarn.factor);
            let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            *frequency = slowed * ramp + *frequency * (1.0 - ramp);
        }
        self
    }

    /// The same, which also multiplies the rotated elements with `magnitude`.
    pub(crate) fn with_magnitude(self, magnitude: f64) -> Self {
        Rope { magnitude, ..self }
    }

    /// The two elements of a head that rotate together.
    pub(crate) fn kind(&self) -> Pairs {
        self.pairs
    }

    /// Number of pairs, which is the length of the slices that [`Rope::angles`] fills.
    pub(crate) fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Cosine and sine of each pair's angle at `position`.
    pub(crate) fn angles(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((frequency, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            let (s, c) = libm::sincos(position as f64 * frequency);
            *cos = (c * self.magnitude) as f32;
            *sin = (s * self.magnitude) as f32;
        }
    }

    /// Rotates each head of `head_dim` elements in `x`.
    pub(crate) fn rotate(
        &self,
        instructions: Instructions,
        x: &mut [f32],
        head_dim: usize,
        cos: &[f32],
        sin: &[f32],
    ) {
        match self.pairs {
            Pairs::Interleaved => rotate_neighbours(instructions, x, head_dim, cos, sin),
            Pairs::Halves => rotate_halves(instructions, x, head_dim, cos, sin),
        }
    }
}

multiversion! {
    fn rotate_neighbours(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) = rotate_neighbours_body
}

multiversion! {
    fn rotate_halves(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) = rotate_halves_body
}

#[inline(always)]
fn rotate_neighbours_body(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    for head in x.chunks_exact_mut(head_dim) {
        for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * cos - b * sin;
            pair[1] = a * sin + b * cos;
        }
    }
}

#[inline(always)]
fn rotate_halves_body(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    for head in x.chunks_exact_mut(head_dim) {
        let (low, high) = head.split_at_mut(cos.len());
        for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (x, y) = (*a, *b);
            *a = x * cos - y * sin;
            *b = x * sin + y * cos;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pairs, Rope};
    use crate::kernels::instructions::Instructions;

    #[test]
    fn halves_and_neighbours_turn_the_same_pairs() {
        let (mut cos, mut sin) = ([0.0; 4], [0.0; 4]);
        let halves = Rope::new(Pairs::Halves, 8, 10_000.0, 1.0, None);
        halves.angles(12_345, &mut cos, &mut sin);
        let mut a = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        halves.rotate(Instructions::Avx2, &mut a, 8, &cos, &sin);
        let neighbours = Rope::new(Pairs::Interleaved, 8, 10_000.0, 1.0, None);
        let mut b = [1.0f32, 5.0, 2.0, 6.0, 3.0, 7.0, 4.0, 8.0];
        neighbours.rotate(Instructions::Avx2, &mut b, 8, &cos, &sin);
        for i in 0..4 {
            assert_eq!((a[i], a[i + 4]), (b[2 * i], b[2 * i + 1]));
        }
    }

    #[test]
    fn the_first_pair_turns_by_one_radian_a_position() {
        let rope = Rope::new(Pairs::Halves, 4, 1e6, 1.0, None);
        let (mut cos, mut sin) = ([0.0; 2], [0.0; 2]);
        rope.angles(30_000, &mut cos, &mut sin);
        // cos and sin of 30,000, to ten digits.
        assert!((f64::from(cos[0]) - libm::cos(30_000.0)).abs() < 1e-7);
        assert!((f64::from(sin[0]) - libm::sin(30_000.0)).abs() < 1e-7);
    }

    #[test]
    fn factors_and_linear_scaling_slow_the_rotation() {
        let plain = Rope::new(Pairs::Halves, 4, 1e4, 1.0, None);
        let slow = Rope::new(Pairs::Halves, 4, 1e4, 0.25, Some(&[1.0, 2.0]));
        assert_eq!(slow.frequencies[0], plain.frequencies[0] * 0.25);
        assert_eq!(slow.frequencies[1], plain.frequencies[1] * 0.25 / 2.0);
    }
}
