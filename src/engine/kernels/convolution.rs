//! Causal convolution of channels over the positions of a sequence, each channel by itself.
#![allow(unsafe_code, reason = "threads write disjoint groups of channels")]

use std::ops::Range;

use super::disjoint::Disjoint;
use super::exp::exp;
use super::instructions::Instructions;
use super::pool::Pool;
use super::recurrence::{StatePlace, each_position};
use super::rows::Rows;
use super::swiglu::add;

/// Channels that a thread computes together. Their last inputs lie together in a state, the oldest first.
const GROUP: usize = 64;
/// Values of a share of the pool's work: about two microseconds.
const VALUES_WORTH: usize = 8192;

/// The weights of a convolution.
pub(crate) struct Taps {
    channels: usize,
    taps: usize,
    /// The weights of each group of channels, `[taps, channels]`.
    weights: Vec<f32>,
}

impl Taps {
    /// The taps whose weights are `[channels, taps]`.
    pub(crate) fn new(taps: usize, by_channel: &[f32]) -> Taps {
        let mut weights = Vec::with_capacity(by_channel.len());
        for group in by_channel.chunks(GROUP * taps) {
            for tap in 0..taps {
                weights.extend(group.iter().skip(tap).step_by(taps));
            }
        }
        Taps { channels: by_channel.len() / taps, taps, weights }
    }

    /// Values of its state: the inputs that later positions will use again.
    pub(crate) fn state_len(channels: usize, taps: usize) -> usize {
        channels * (taps - 1)
    }

    /// `x = silu(conv(x) + bias)` of rows `[rows, channels]`; the bias is `[channels]`, or empty.
    pub(crate) fn activated(
        &self,
        sequences: &[Rows<'_>],
        place: StatePlace,
        x: &mut [f32],
        bias: &[f32],
        pool: &Pool,
    ) {
        let x = Disjoint::new(x);
        let instructions = pool.instructions();
        self.each(sequences, place, pool, &|row, channels, window| {
            let start = row * self.channels;
            // SAFETY: these channels of this row are this thread's.
            let x = unsafe { x.range(start + channels.start..start + channels.end) };
            window.convolve(x);
            if let Some(bias) = bias.get(channels) {
                add(instructions, x, bias);
            }
            silu(instructions, x);
        });
    }

    /// `y = c · conv(b · x)` of rows `[rows, channels]`, `bcx` having b, c and x of each row one after the
    /// other.
    pub(crate) fn gated(
        &self,
        sequences: &[Rows<'_>],
        place: StatePlace,
        bcx: &[f32],
        y: &mut [f32],
        pool: &Pool,
    ) {
        let y = Disjoint::new(y);
        let instructions = pool.instructions();
        self.each(sequences, place, pool, &|row, channels, window| {
            let bcx = &bcx[3 * row * self.channels..3 * (row + 1) * self.channels];
            let [b, c, x] = [0, 1, 2].map(|part| {
                let start = part * self.channels;
                &bcx[start + channels.start..start + channels.end]
            });
            let start = row * self.channels;
            // SAFETY: these channels of this row are this thread's.
            let y = unsafe { y.range(start + channels.start..start + channels.end) };
            y.copy_from_slice(x);
            multiply(instructions, y, b);
            window.convolve(y);
            multiply(instructions, y, c);
        });
    }

    /// Calls `work` for each row, and each group of channels of it.
    fn each(
        &self,
        sequences: &[Rows<'_>],
        place: StatePlace,
        pool: &Pool,
        work: &(dyn Fn(usize, Range<usize>, &mut ConvolutionWindow<'_>) + Sync),
    ) {
        let (taps, instructions) = (self.taps, pool.instructions());
        let groups = self.channels.div_ceil(GROUP);
        let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        let worth = rows * self.channels * taps / VALUES_WORTH;
        pool.run(sequences.len() * groups, worth, &|_, item| {
            let (rows, start) = (&sequences[item / groups], item % groups * GROUP);
            let channels = start..(start + GROUP).min(self.channels);
            let part = channels.start * (taps - 1)..channels.end * (taps - 1);
            let weights = &self.weights[channels.start * taps..channels.end * taps];
            // SAFETY: no other item is about these channels of this sequence.
            unsafe {
                each_position(rows, place, part, |row, inputs| {
                    let mut window = ConvolutionWindow { weights, inputs, instructions };
                    work(rows.first_row + row, channels.clone(), &mut window);
                });
            }
        });
    }
}

/// A group of channels at one position.
struct ConvolutionWindow<'a> {
    weights: &'a [f32],
    /// The inputs before the position.
    inputs: &'a mut [f32],
    instructions: Instructions,
}

impl ConvolutionWindow<'_> {
    /// Takes the position's input from `x` and leaves the result there.
    fn convolve(&mut self, x: &mut [f32]) {
        convolve(self.instructions, self.weights, self.inputs, x);
    }
}

multiversion! {
    /// One position: `x = Σ weights[tap] · input[tap]`, the last input being `x` itself and those before it
    /// from `window` `[taps - 1, channels]`, which moves on. Taps are summed in ascending order. `weights` is
    /// `[taps, channels]`, of one group of channels at most.
    fn convolve(weights: &[f32], window: &mut [f32], x: &mut [f32]) = convolve_body
}

multiversion! {
    /// `x = x · y`.
    fn multiply(x: &mut [f32], y: &[f32]) = multiply_body
}

multiversion! {
    /// `x = silu(x)`.
    fn silu(x: &mut [f32]) = silu_body
}

multiversion! {
    /// `x = x · σ(gate)`, σ being the logistic function.
    pub(crate) fn gate_logistic(x: &mut [f32], gate: &[f32]) = gate_logistic_body
}

#[inline(always)]
fn convolve_body(weights: &[f32], window: &mut [f32], x: &mut [f32]) {
    let channels = x.len();
    let (older, last) = weights.split_at(window.len());
    let mut sum = [0.0; GROUP];
    let sum = &mut sum[..channels];
    for (weights, inputs) in older.chunks_exact(channels).zip(window.chunks_exact(channels)) {
        for ((sum, weight), input) in sum.iter_mut().zip(weights).zip(inputs) {
            *sum = weight.mul_add(*input, *sum);
        }
    }
    window.copy_within(channels.., 0);
    let newest = window.len() - channels;
    window[newest..].copy_from_slice(x);
    for ((x, weight), sum) in x.iter_mut().zip(last).zip(sum) {
        *x = weight.mul_add(*x, *sum);
    }
}

#[inline(always)]
fn multiply_body(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x *= y);
}

#[inline(always)]
fn silu_body(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x /= 1.0 + exp(-*x));
}

#[inline(always)]
fn gate_logistic_body(x: &mut [f32], gate: &[f32]) {
    x.iter_mut().zip(gate).for_each(|(x, gate)| *x *= 1.0 / (1.0 + exp(-gate)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed) % 2003) as f32 / 700.0 - 1.3).collect()
    }

    #[test]
    fn it_is_the_sum_over_the_last_inputs_and_the_same_everywhere() {
        for channels in [GROUP, 13] {
            let (taps, positions) = (4, 9);
            let (weights, inputs) = (values(taps * channels, 5), values(positions * channels, 77));
            let mut windows = [Instructions::Avx2, Instructions::Portable].map(|instructions| {
                (instructions, vec![0.0; Taps::state_len(channels, taps)], inputs.clone())
            });
            for (instructions, window, x) in &mut windows {
                for x in x.chunks_exact_mut(channels) {
                    convolve(*instructions, &weights, window, x);
                }
            }
            assert_eq!(windows[0].2, windows[1].2);
            for (i, got) in windows[0].2.iter().enumerate() {
                let (position, channel) = (i / channels, i % channels);
                let input = |tap: usize| (position + tap + 1).checked_sub(taps);
                let expected: f64 = (0..taps)
                    .filter_map(|tap| Some((tap, input(tap)?)))
                    .map(|(tap, position)| {
                        f64::from(weights[tap * channels + channel])
                            * f64::from(inputs[position * channels + channel])
                    })
                    .sum();
                assert!((f64::from(*got) - expected).abs() < 1e-5, "{i}: {got} for {expected}");
            }
        }
    }

    #[test]
    fn the_wide_versions_give_the_bytes_of_the_portable_ones() {
        let gate: Vec<f32> = values(101, 3).iter().map(|x| x * 20.0).collect();
        let (mut wide, mut portable) = (gate.clone(), gate.clone());
        silu(Instructions::Avx2, &mut wide);
        silu_body(&mut portable);
        assert_eq!(wide, portable);
        gate_logistic(Instructions::Avx2, &mut wide, &gate);
        gate_logistic_body(&mut portable, &gate);
        assert_eq!(wide, portable);
    }
}
