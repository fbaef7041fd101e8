//! The choice of the experts that a row uses, and their weights.
//!
//! Invariant: the choice for a row depends on its own logits only: the highest, the lowest index of equal
//! ones, in that order.
#![allow(unsafe_code, reason = "threads write disjoint ranges of the choices")]

use std::ops::Range;

use super::disjoint::Disjoint;
use super::exp::exp;
use super::pool::Pool;

/// The weights of the experts that a row uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weighting {
    /// The softmax over the logits of all experts.
    Softmax,
    /// The softmax over the logits of the used experts; the same as that over all, divided by their sum.
    SoftmaxOfUsed,
}

/// Logits that a share of the pool's work looks at: about two microseconds.
const LOGITS_WORTH: usize = 8192;

/// For each row of `logits` `[rows, experts]` the experts with the highest logits, best first, and their
/// weights: `chosen` and `weights` are `[rows, used]`. NaN comes after all numbers; if it is chosen, the
/// weights of the row are NaN too.
pub(crate) fn choose(
    logits: &[f32],
    experts: usize,
    weighting: Weighting,
    chosen: &mut [u32],
    weights: &mut [f32],
    pool: &Pool,
) {
    let rows = logits.len() / experts;
    assert!(rows * experts == logits.len() && chosen.len() == weights.len());
    let used = chosen.len().checked_div(rows).unwrap_or(0);
    assert!(rows * used == chosen.len() && used <= experts);
    let instructions = pool.instructions();
    let (chosen, weights) = (Disjoint::new(chosen), Disjoint::new(weights));
    pool.ranges(rows, 4, logits.len() * used / LOGITS_WORTH, &|_, range: Range<usize>| {
        for row in range {
            let part = row * used..(row + 1) * used;
            // SAFETY: each row is done by one thread.
            let (chosen, weights) = unsafe { (chosen.range(part.clone()), weights.range(part)) };
            choose_row(instructions, &logits[row * experts..(row + 1) * experts], weighting, chosen, weights);
        }
    });
}

multiversion! {
    fn choose_row(logits: &[f32], weighting: Weighting, chosen: &mut [u32], weights: &mut [f32]) = choose_row_body
}

/// A number that is the larger the higher the logit and the lower the index; no two of a row are equal.
#[inline(always)]
fn order(logit: f32, index: usize) -> u64 {
    // Both zeros are equal.
    let bits = (logit + 0.0).to_bits();
    let ascending = if logit.is_nan() {
        0
    } else if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    u64::from(ascending) << 32 | u64::from(u32::MAX - index as u32)
}

#[inline(always)]
fn choose_row_body(logits: &[f32], weighting: Weighting, chosen: &mut [u32], weights: &mut [f32]) {
    let mut last = u64::MAX;
    for (chosen, weight) in chosen.iter_mut().zip(&mut *weights) {
        let mut best = 0;
        for (index, logit) in logits.iter().enumerate() {
            let order = order(*logit, index);
            best = if order < last && order > best { order } else { best };
        }
        *chosen = u32::MAX - best as u32;
        *weight = logits[*chosen as usize];
        last = best;
    }
    let Some(highest) = weights.first().copied() else { return };
    let mut sum = 0.0;
    if weighting == Weighting::Softmax {
        for logit in logits {
            sum += exp(*logit - highest);
        }
    }
    for weight in &mut *weights {
        *weight = exp(*weight - highest);
    }
    if weighting == Weighting::SoftmaxOfUsed {
        sum = weights.iter().sum();
    }
    for weight in weights {
        *weight /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::instructions::Instructions;

    fn chosen(logits: &[f32], used: usize, weighting: Weighting) -> (Vec<u32>, Vec<f32>) {
        let (mut chosen, mut weights) = (vec![9; used], vec![9.0; used]);
        choose_row_body(logits, weighting, &mut chosen, &mut weights);
        let (mut wide, mut wide_weights) = (vec![0; used], vec![0.0; used]);
        choose_row(Instructions::best(), logits, weighting, &mut wide, &mut wide_weights);
        assert_eq!(chosen, wide);
        let bits = |weights: &[f32]| weights.iter().map(|weight| weight.to_bits()).collect::<Vec<_>>();
        assert!(weights.iter().any(|weight| weight.is_nan()) || bits(&weights) == bits(&wide_weights));
        (chosen, weights)
    }

    #[test]
    fn the_highest_are_chosen_and_of_equals_the_first() {
        let logits = [0.0, 2.0, -1.0, 2.0, -0.0, 3.0, f32::NEG_INFINITY];
        let (order, weights) = chosen(&logits, 7, Weighting::SoftmaxOfUsed);
        assert_eq!(order, [5, 1, 3, 0, 4, 2, 6]);
        assert_eq!(weights[1].to_bits(), weights[2].to_bits());
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(weights[6], 0.0);
    }

    #[test]
    fn weights_are_shares_of_all_or_of_the_chosen() {
        let logits = [1.0f32, 0.0, 2.0, -3.0];
        let all: f64 = logits.iter().map(|x| libm::exp(f64::from(*x))).sum();
        let (of_all, of_used) =
            (chosen(&logits, 2, Weighting::Softmax), chosen(&logits, 2, Weighting::SoftmaxOfUsed));
        assert_eq!((&of_all.0[..], &of_used.0[..]), (&[2, 0][..], &[2, 0][..]));
        let used = libm::exp(1.0) + libm::exp(2.0);
        for (rank, x) in [2.0, 1.0].into_iter().enumerate() {
            assert!((f64::from(of_all.1[rank]) - libm::exp(x) / all).abs() < 1e-6);
            assert!((f64::from(of_used.1[rank]) - libm::exp(x) / used).abs() < 1e-6);
        }
    }

    #[test]
    fn what_is_no_number_comes_last_and_does_no_harm() {
        assert_eq!(chosen(&[f32::NAN, -5.0, f32::NAN], 3, Weighting::SoftmaxOfUsed).0, [1, 0, 2]);
        let (order, weights) = chosen(&[f32::NAN; 4], 2, Weighting::Softmax);
        assert_eq!(order, [0, 1]);
        assert!(weights.iter().all(|weight| weight.is_nan()));
        let (order, weights) = chosen(&[f32::INFINITY, 1.0], 1, Weighting::Softmax);
        assert!(order == [0] && weights[0].is_nan());
    }
}
